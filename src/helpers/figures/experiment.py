"""Charts of the experiment with teachers and students: kinds of training data have colours here, not models."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers import softening
from helpers.figures import style
from helpers.figures.style import STYLE


def _handles(kinds: Mapping[str, str]) -> list[Line2D]:
    return [Line2D([], [], label=kinds[kind], **look) for kind, look in style.looks(kinds).items()]


def seed_curves(
    curves: pd.DataFrame,
    panels: Mapping[str, str],
    kinds: Mapping[str, str],
    y_label: str,
    *,
    logarithmic: tuple[str, ...] = (),
    marked: Mapping[str, float] | None = None,
    limits: tuple[float, float] | None = None,
    ticks: tuple[float, ...] = (),
) -> Figure:
    """Draw means and ranges over seeds against what was varied, one panel per thing that was varied.

    ``curves``: columns ``panel``, ``kind``, ``x``, ``mean``, ``low``, ``high``.
    ``panels``: panel → label of its horizontal axis, in order.
    ``kinds``: kind of training data → name in the legend, in order.
    ``y_label``: of a ratio: the line at one is drawn.
    ``logarithmic``: panels with a logarithmic horizontal axis.
    ``marked``: panel → the standard value, a vertical line.
    ``limits``: of the vertical axis.
    ``ticks``: of logarithmic axes, which then all have one range; by default the values that were tried.
    """
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(panels))
        figure.set_figheight(0.85 * figure.get_figheight())
        for axis, (panel, x_label) in zip(axes, panels.items(), strict=True):
            here = curves[curves["panel"] == panel]
            if here.empty:
                raise ValueError(f"there is nothing to draw for {panel!r}")
            axis.axhline(1, zorder=1, **style.IDEAL)
            if marked and panel in marked:
                axis.axvline(marked[panel], color="#C9CED4", linewidth=5, zorder=0)
            for kind, look in style.looks(kinds).items():
                style.with_ranges(axis, here[here["kind"] == kind], "x", look)
            if panel in logarithmic:
                style.log_places(axis, ticks or sorted(set(here["x"])))
                if ticks:
                    axis.set_xlim(0.8 * curves["x"].min(), 1.25 * curves["x"].max())
            axis.set_xlabel(x_label)
            axis.set_ylabel(y_label)
            if limits:
                axis.set_ylim(limits)
        style.legend(figure, _handles(kinds))
    return figure


def arms(table: pd.DataFrame, panels: Mapping[str, str]) -> Figure:
    """Draw one number of every arm of an experiment: lanes of arms, one panel per question, mean and range over seeds.

    ``table``: columns ``arm``, ``panel``, ``mean``, ``low``, ``high``; arms in the order in which they are drawn, the standard one first,
        whose range is shaded.
    ``panels``: panel → label of its axis, in order.
    """
    names = list(dict.fromkeys(table["arm"]))
    with mpl.rc_context(STYLE):
        figure = style.blank(1.0 + 0.3 * len(names), 8.6)
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (panel, look) in zip(axes, style.looks(panels).items(), strict=True):
            here = table[table["panel"] == panel].set_index("arm").reindex(names)
            if here["mean"].isna().all():
                raise ValueError(f"there is nothing to draw for {panel!r}")
            axis.axvline(1, zorder=2, **style.IDEAL)
            axis.axvspan(here["low"].iloc[0], here["high"].iloc[0], color="#E4E7EA", linewidth=0, zorder=0)
            axis.hlines(range(len(names)), here["low"], here["high"], color=look["color"], linewidth=2, zorder=2.5)
            axis.plot(here["mean"], range(len(names)), marker=look["marker"], color=look["color"], linestyle="none", markersize=7, zorder=3)
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.set_xlabel(panels[panel])
    return figure


def restoring_force(pulled: pd.DataFrame, kinds: Mapping[str, str]) -> Figure:
    """Draw the force that drives a pulled atom back, teacher and students, and the students' share of the teacher's.

    ``pulled``: columns ``kind``, ``seed``, ``displacement`` (Å), ``value`` and ``reference`` (eV/Å, along the pull).
    ``kinds``: kind of training data → name in the legend, in order. A line per seed.
    """
    pulled = pulled[pulled["kind"].isin(kinds)]
    if pulled.empty:
        raise ValueError("there is nothing to draw")
    teacher = pulled.groupby("displacement")["reference"].first()
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(2)
        figure.set_figheight(0.95 * figure.get_figheight())
        force, share = axes
        force.plot(teacher.index, -teacher, color=style.TEXT, linewidth=2.4, zorder=2)
        share.axhline(1, zorder=1, **style.IDEAL)
        for kind, look in style.looks(kinds).items():
            for _, line in pulled[pulled["kind"] == kind].groupby("seed"):
                line = line.sort_values("displacement")
                force.plot(line["displacement"], -line["value"], zorder=3, **{**look, "markersize": 3.5, "linewidth": 1.2})
                ratio = line["value"] / line["reference"]
                share.plot(line["displacement"], ratio, zorder=3, **{**look, "markersize": 3.5, "linewidth": 1.2})
        force.set(ylabel="restoring force (eV/Å)", xlabel="pulled by (Å)", yscale="log")
        share.set(ylabel="student / teacher", xlabel="pulled by (Å)")
        style.legend(figure, [Line2D([], [], color=style.TEXT, linewidth=2.4, label="teacher"), *_handles(kinds)])
    return figure


def seed_parity(forces: pd.DataFrame, kinds: Mapping[str, str]) -> Figure:
    """Draw force components of students against the teacher's, one panel per kind of training data, all seeds together.

    ``forces``: columns ``kind``, ``seed``, ``value``, ``reference`` (eV/Å) and ``status``; failed rows are left out.
    ``kinds``: kind of training data → title, in order.
    """
    good = forces[forces["status"] == "ok"]
    limit = 1.05 * float(good[good["kind"].isin(kinds)][["value", "reference"]].abs().to_numpy().max())
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(kinds), head=0.2)
        for axis, (kind, look) in zip(axes, style.looks(kinds).items(), strict=True):
            part = good[good["kind"] == kind]
            if part.empty:
                raise ValueError(f"there are no forces of {kind!r}")
            axis.scatter(part["reference"], part["value"], s=5, color=look["color"], alpha=0.35, linewidths=0, zorder=3, rasterized=True)
            axis.plot([-limit, limit], [-limit, limit], zorder=2, **style.IDEAL)
            slopes = [softening.softening_scale(one["reference"], one["value"]) for _, one in part.groupby("seed")]
            for slope in slopes:
                axis.plot([-limit, limit], [-limit * slope, limit * slope], color=look["color"], linewidth=1.2, zorder=4)
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            style.heading(axis, kinds[kind], "slopes " + ", ".join(f"{slope:.2f}" for slope in slopes))
        style.outer_labels(axes, "teacher (eV/Å)", "student (eV/Å)")
    return figure
