"""Charts of a number against a condition: temperature, lost neighbours."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from helpers.figures import style
from helpers.figures.style import STYLE, colour, in_order, label


def scale_against_temperature(table: pd.DataFrame, melting_k: Mapping[str, float]) -> Figure:
    """Draw the softening scale against the nominal temperature, one panel per element and volume, with the melting point.

    ``table``: from :func:`helpers.benchmarks.off_equilibrium.by_temperature`.
    ``melting_k``: melting point of each element, K.
    """
    crystals = list(dict.fromkeys(table.sort_values(["element", "volume"])["crystal"]))
    models = in_order(table["model"])
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(crystals))
        figure.set_figheight(0.75 * figure.get_figheight())
        for panel, crystal in zip(axes, crystals, strict=True):
            panel.axhline(1, zorder=2, **style.IDEAL)
            panel.axvspan(melting_k[crystal.split(",")[0]], 2e4, color="#F4E6D8", zorder=0)
            for model in models:
                part = table[(table["model"] == model) & (table["crystal"] == crystal)].sort_values("temperature_k")
                spread = np.abs(part[["slope_low", "slope_high"]].to_numpy().T - part["slope"].to_numpy())
                panel.errorbar(part["temperature_k"], part["slope"], spread, linewidth=1.4, zorder=3, **style.look(model, 5.5))
            style.log_places(panel, [300, 1000, 3000])
            panel.set(xlim=(230, 7500), ylim=(0.3, 1.45))
            panel.set_title(crystal, loc="left")
        style.outer_labels(axes, "nominal temperature (K)", "softening scale s")
        handles = [Line2D([], [], label=label(model), **style.look(model, 5.5)) for model in models]
        style.legend(figure, [*handles, Patch(color="#F4E6D8", label="above the melting point")])
    return figure


# Edges of the bins of lost coordination; a loss on an edge belongs to the bin below it.
_EDGES = (0.0, 0.15, 0.3, 0.45, 0.7)


def error_against_coordination(table: pd.DataFrame) -> Figure:
    """Draw model over DFT against the coordination that atoms have lost, one panel per model.

    Behind the points stands, for each bin of the loss with three or more of them, a box from the lower to the upper quartile with
    the median.

    ``table``: one row per defect or surface: ``model``, ``kind`` (``vacancy``, or anything else for a surface), ``coordination_loss``
        (fraction of nearest neighbours lost) and ``ratio`` (model/DFT). Rows whose ``status`` is not ``ok`` are left out.
    """
    rows = style.one_property(table) if "property" in table else table
    rows = style.good_rows(rows, ["model", "kind"], ["coordination_loss", "ratio"])
    models = in_order(rows["model"])
    beyond = rows[(rows["coordination_loss"] <= _EDGES[0]) | (rows["coordination_loss"] > _EDGES[-1])]
    if len(beyond):
        raise ValueError(f"a coordination loss of {beyond['coordination_loss'].iloc[0]:g} lies outside the bins {_EDGES}")
    low, high = style.robust_limits(rows["ratio"].to_numpy(dtype=float))
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(models), head=0.2)
        figure.set_figheight(0.85 * figure.get_figheight())
        for panel, model in zip(axes, models, strict=True):
            part = rows[rows["model"] == model]
            panel.axhline(1, zorder=2, **style.IDEAL)
            _binned(panel, part, colour(model))
            for vacancy, look in _KINDS.items():
                points = part[(part["kind"] == "vacancy") == vacancy]
                edge = {"color": colour(model), "markeredgecolor": "white", "markeredgewidth": 0.5, "linestyle": "none"}
                panel.plot(points["coordination_loss"], points["ratio"], alpha=0.85, zorder=4, **edge, **look)
            outside = np.count_nonzero((part["ratio"] < low) | (part["ratio"] > high))
            panel.set(xlim=(_EDGES[0], _EDGES[-1]), ylim=(low, high))
            style.title(panel, model, f"n = {len(part)}" + (f", {outside} outside" if outside else ""))
        style.outer_labels(axes, "nearest neighbours lost (fraction)", "model / DFT")
        kinds = zip(("vacancy", "surface"), _KINDS.values(), strict=True)
        handles = [Line2D([], [], color="#444444", linestyle="none", label=name, **look) for name, look in kinds]
        handles += [Patch(facecolor="#444444", alpha=0.25, label="quartiles")]
        handles += [Line2D([], [], color=style.TEXT, linewidth=2.2, label="median")]
        style.legend(figure, handles)
    return figure


# Shapes that no model has; True is a vacancy.
_KINDS = {True: {"marker": "p", "markersize": 7}, False: {"marker": "d", "markersize": 5.5}}


def _binned(axes: Axes, part: pd.DataFrame, hue: str) -> None:
    """Draw quartiles and median of the ratio in each bin that has three points or more."""
    bins = pd.cut(part["coordination_loss"], list(_EDGES))
    for interval, ratio in part["ratio"].groupby(bins, observed=True):
        if len(ratio) < 3:
            continue
        lower, median, upper = ratio.quantile([0.25, 0.5, 0.75])
        inner = [interval.left + 0.006, interval.right - 0.006]
        axes.fill_between(inner, lower, upper, color=hue, alpha=0.22, linewidth=0, zorder=2.5)
        axes.plot(inner, [median] * 2, color=style.TEXT, linewidth=2.2, solid_capstyle="butt", zorder=3)
