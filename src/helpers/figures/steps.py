"""Charts of what is added step by step: one panel per test, one line per kind of model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.figures import style
from helpers.figures.learning import plain_ticks
from helpers.figures.style import STYLE, colour, label


def stepwise(
    curves: pd.DataFrame,
    panels: Mapping[str, str],
    lines: Mapping[str, str],
    steps: Sequence[str],
    y_label: str,
    *,
    enters: Mapping[str, int] | None = None,
    model: tuple[str, Mapping[str, float]] | None = None,
    ideal: float | None = None,
    logarithmic: bool = False,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw a quantity against what has been added so far.

    ``curves``: columns ``held_out`` (panel), ``capacity`` (line), ``step`` (from one on), ``mean``, ``low``, ``high``.
    ``panels``, ``lines``: value → name, in order.
    ``steps``: names of the steps.
    ``enters``: panel → the step with which it enters; what lies before is shaded.
    ``model``: key of a potential, and its value in each panel: a horizontal line in its colour.
    ``ideal``: where a perfect model would lie.
    ``limits``: of the vertical axis; what lies beyond is marked with an arrow at the edge.
    """
    looks = style.looks(lines, 5.5)
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(panels))
        for axis, (panel, title) in zip(axes, panels.items(), strict=True):
            here = curves[(curves["held_out"] == panel) & curves["capacity"].isin(lines)]
            if here.empty:
                raise ValueError(f"there is nothing to draw for {panel}")
            if enters and enters[panel] > 1:
                axis.axvspan(0.5, enters[panel] - 0.5, color="#EEF0F2", zorder=0)
            if ideal is not None:
                axis.axhline(ideal, zorder=1, **style.IDEAL)
            if model is not None:
                axis.axhline(model[1][panel], color=colour(model[0]), linewidth=1.6, zorder=2)
            for name, look in looks.items():
                style.with_ranges(axis, here[here["capacity"] == name], "step", look)
            axis.set(xlim=(0.5, len(steps) + 0.5), ylabel=y_label)
            axis.set_xticks(range(1, len(steps) + 1), steps, rotation=30, ha="right")
            axis.set_title(title, loc="left")
            if logarithmic:
                axis.set_yscale("log")
            if limits is not None:
                _clip(axis, here, looks, limits)
            if logarithmic:
                plain_ticks(axis)
        handles = [Line2D([], [], label=lines[name], **look) for name, look in looks.items()]
        if model is not None:
            handles.append(Line2D([], [], color=colour(model[0]), linewidth=1.6, label=label(model[0])))
        if enters:
            handles.append(Line2D([], [], color="#D5D9DE", linewidth=8, label="family not seen"))
        style.legend(figure, handles)
    return figure


def _clip(axis, here: pd.DataFrame, looks: Mapping[str, dict], limits: tuple[float, float]) -> None:
    """Set the limits, and mark means beyond them with an arrow that says how far they are."""
    axis.set_ylim(*limits)
    beyond = here[(here["mean"] < limits[0]) | (here["mean"] > limits[1])]
    for entry in beyond.itertuples():
        up = entry.mean > limits[1]
        order = list(looks).index(entry.capacity) - (len(looks) - 1) / 2
        place = (entry.step + 0.2 * order, limits[1] if up else limits[0])
        axis.plot(*place, marker="^" if up else "v", color=looks[entry.capacity]["color"], markersize=7, clip_on=False, zorder=5)
        shift = (0, -12) if up else (0, 8)
        axis.annotate(f"{entry.mean:.3g}", place, shift, textcoords="offset points", ha="center", color=style.MUTED, fontsize=8.5)
