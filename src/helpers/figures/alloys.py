"""Charts of solid solutions: energies against composition, and the phase diagram that follows from them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.figures import style
from helpers.figures.style import STYLE, colour, in_order, label, marker

_SOURCES = ("ours", "paper", "DFT")


def by_composition(ours: pd.DataFrame, paper: pd.DataFrame | None = None) -> Figure:
    """Draw the energy of every ordering of a solid solution, and its mean at each composition, one panel per model (the paper's Fig. 2c).

    ``ours``: one row per ordering: ``model``, ``x`` (fraction of Ca), ``value`` (eV per formula unit). Where all orderings of a model have
        a ``multiplicity`` (how many arrangements are equal by symmetry) the mean is weighted with it: it is that of random alloys. Rows
        whose ``status`` is not ``ok`` are left out.
    ``paper``: the paper's points in the same form: ``model`` is a catalogue key, or ``DFT``, which is drawn in every panel. Points are
        drawn beside their composition, DFT on the left, the paper's model on the right; means at their composition.
    """
    rows = style.good_rows(style.one_property(ours) if "property" in ours else ours, ["model"], ["x", "value"])
    models = in_order(rows["model"])
    theirs = rows.iloc[:0] if paper is None else style.good_rows(paper, ["model"], ["x", "value"])
    dft = theirs[theirs["model"] == "DFT"]
    beside = 0.24 * min(np.diff(np.unique(rows["x"].to_numpy(dtype=float).round(6))), default=0.1)
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(models))
        figure.set_figheight(0.8 * figure.get_figheight())
        shown = pd.concat([rows.loc[rows["model"].isin(models), "value"], theirs.loc[theirs["model"].isin([*models, "DFT"]), "value"]])
        low, high = min(shown.min(), 0.0), max(shown.max(), 0.0)
        margin = 0.05 * max(high - low, 0.01)
        for panel, model in zip(axes, models, strict=True):
            panel.axhline(0, color=style.MUTED, linewidth=0.9, zorder=1)
            _orderings(panel, dft, -beside, color=style.MUTED)
            _orderings(panel, rows[rows["model"] == model], 0.0, color=colour(model))
            _orderings(panel, theirs[theirs["model"] == model], beside, color=colour(model), open_marker=marker(model))
            _mean(panel, dft, "DFT")
            _mean(panel, rows[rows["model"] == model], model)
            panel.set(xlim=(-0.04, 1.04), ylim=(low - margin, high + margin))
            panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
            style.title(panel, model)
        style.outer_labels(axes, "Ca fraction", "formation energy\n(eV per formula unit)")
        style.legend(figure, _composition_key(len(dft) > 0, bool(set(theirs["model"]) & set(models))))
    return figure


def _orderings(axes: Axes, part: pd.DataFrame, shift: float, color: str, open_marker: str | None = None) -> None:
    """Draw one point per ordering: small and translucent, or the paper's open marker."""
    look = (
        {"marker": "o", "markersize": 3.6, "markeredgewidth": 0, "alpha": 0.4}
        if open_marker is None
        else {"marker": open_marker, "markersize": 3.8, "markerfacecolor": "none", "markeredgewidth": 0.8, "alpha": 0.6}
    )
    if len(part):
        axes.plot(part["x"] + shift, part["value"], linestyle="none", color=color, zorder=3, **look)


def _mean(axes: Axes, part: pd.DataFrame, model: str) -> None:
    """Draw the mean at each composition as a line with the model's marker."""
    if part.empty:
        return
    known = "multiplicity" in part and part["multiplicity"].notna().all()
    weights = part["multiplicity"] if known else pd.Series(1.0, part.index)
    x = part["x"].round(6)
    means = (part["value"] * weights).groupby(x).sum() / weights.groupby(x).sum()
    edge = {} if model == "DFT" else {"markeredgecolor": "white", "markeredgewidth": 0.5}
    axes.plot(means.index, means, linewidth=1.6, zorder=5, **style.look(model, 5.5), **edge)


def _composition_key(with_dft: bool, with_paper: bool) -> list[Line2D]:
    tone = "#444444"
    handles = [
        Line2D([], [], color=tone, marker="o", markersize=3.6, alpha=0.5, linestyle="none", label="ours, an ordering"),
        Line2D([], [], color=tone, marker="o", markersize=5.5, linewidth=1.6, label="ours, mean"),
    ]
    if with_paper:
        handles.append(Line2D([], [], color=tone, marker="o", markersize=3.8, markerfacecolor="none", linestyle="none", label="paper"))
    if with_dft:
        handles.append(Line2D([], [], color=colour("DFT"), marker=marker("DFT"), markersize=5.5, linewidth=1.6, label="DFT (paper)"))
    return handles


def phase_diagram(binodals: pd.DataFrame, consolute: pd.DataFrame | None = None) -> Figure:
    """Draw miscibility gaps: the temperature above which a solid solution mixes, against its composition.

    ``binodals``: one row per point of a binodal: ``model`` (a catalogue key, or ``DFT``), ``source`` (``ours``, ``paper`` or ``DFT``),
        ``x`` (fraction of Ca) and ``temperature_k`` (K). Ours are solid lines, the paper's dashed, DFT black.
    ``consolute``: the top of each gap, one row per model and source, with the same columns. It is joined to its line and marked.
    """
    columns = ["model", "source", "x", "temperature_k"]
    rows = style.good_rows(binodals, columns[:2], columns[2:])
    tops = rows.iloc[:0] if consolute is None else style.good_rows(consolute, columns[:2], columns[2:])
    unknown = sorted(set(rows["source"]).union(tops["source"]) - set(_SOURCES))
    if unknown:
        raise ValueError(f"unknown source {unknown[0]!r}; there are: {', '.join(_SOURCES)}")
    if tops.duplicated(columns[:2]).any():
        raise ValueError(f"{tops.loc[tops.duplicated(columns[:2]), 'model'].iloc[0]} has more than one consolute point")
    drawn = list(dict.fromkeys(zip(rows["model"], rows["source"], strict=True)))
    lost = [key for key in zip(tops["model"], tops["source"], strict=True) if key not in drawn]
    if lost:
        raise ValueError(f"the consolute point of {lost[0][0]} ({lost[0][1]}) has no binodal")
    models = in_order(rows["model"])
    with mpl.rc_context(STYLE):
        figure = style.blank(3.1 + 0.13 * len(models))
        axes = figure.subplots()
        for model, source in drawn:
            part, top = (frame[(frame["model"] == model) & (frame["source"] == source)] for frame in (rows, tops))
            line = pd.concat([part, top]).sort_values("x", kind="stable")
            axes.plot(line["x"], line["temperature_k"], color=colour(model), zorder=3, **_gap_style(model, source))
            if len(top):
                face = "white" if source == "paper" else colour(model)
                point = {"markerfacecolor": face, "markeredgewidth": 1.8 if model == "DFT" else 1.4, "linestyle": "none"}
                axes.plot(top["x"], top["temperature_k"], zorder=4, **style.look(model, 8), **point)
        axes.set(xlim=(0, 1), xlabel="Ca fraction", ylabel="temperature (K)")
        axes.set_ylim(bottom=0)
        handles = [Line2D([], [], **style.look(model, 7), label="DFT (paper)" if model == "DFT" else label(model)) for model in models]
        for source in ("ours", "paper"):
            if source in set(rows["source"]):
                face = {"markerfacecolor": "white"} if source == "paper" else {}
                handles.append(Line2D([], [], color="#444444", marker="o", markersize=7, label=source, **face, **_gap_style("", source)))
        figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=2.0, handlelength=3.0)
    return figure


def _gap_style(model: str, source: str) -> dict[str, object]:
    return {"linewidth": 2.2 if model == "DFT" else 1.8, "linestyle": (0, (5, 2)) if source == "paper" else "-"}


# A line, then points; the colours are no model's.
_SOURCE_STYLES = (
    {"color": "#004488", "marker": "o", "linestyle": "-", "markersize": 5},
    {"color": "#777777", "marker": "s", "linestyle": (0, (5, 2)), "markersize": 4.5},
    {"color": "#BB5566", "marker": "^", "linestyle": "none", "markersize": 7.5},
    {"color": "#BB5566", "marker": "v", "linestyle": "none", "markersize": 7.5, "markerfacecolor": "white"},
    {"color": "#000000", "marker": "x", "linestyle": (0, (1, 1.5)), "markersize": 6},
)


def continuous_composition(curves: pd.DataFrame) -> Figure:
    """Draw the lattice parameter, as a deviation from Vegard's law, and the mixing energy of a solid solution from several sources.

    Columns are ``source``, ``x`` (fraction of Ca), ``deviation`` (Å, from the line between the end members) and ``mixing_energy`` (eV per
    formula unit); either may be NaN where a source has none. Sources are drawn in the order in which they come.
    """
    missing = [column for column in ("source", "x", "deviation", "mixing_energy") if column not in curves]
    if missing or curves.empty:
        raise ValueError(f"the table has no column {', '.join(missing)}" if missing else "there is nothing to draw: the table has no rows")
    sources = list(dict.fromkeys(curves["source"]))
    if len(sources) > len(_SOURCE_STYLES):
        raise ValueError(f"{len(sources)} sources, but there are {len(_SOURCE_STYLES)} styles")
    looks = dict(zip(sources, _SOURCE_STYLES, strict=False))
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(2)
        for panel, column in zip(axes, ("deviation", "mixing_energy"), strict=True):
            panel.axhline(0, color=style.MUTED, linewidth=0.9)
            for source, look in looks.items():
                part = curves[(curves["source"] == source) & curves[column].notna()].sort_values("x")
                if len(part):
                    panel.plot(part["x"], part[column], linewidth=1.6, zorder=3, **look)
            panel.set(xlim=(-0.03, 1.03), xlabel="Ca fraction")
        axes[0].set_ylabel("a − Vegard's law (Å)")
        axes[1].set_ylabel("mixing energy (eV per formula unit)")
        handles = [Line2D([], [], label=source, linewidth=1.6, **look) for source, look in looks.items()]
        style.legend(figure, handles)
    return figure
