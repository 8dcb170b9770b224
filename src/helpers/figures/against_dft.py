"""Charts of model against DFT: scalars as points, forces as a density, and the picture on the first page."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from helpers import softening
from helpers.figures import style
from helpers.figures.style import STYLE, TEXT, colour


def parity(
    table: pd.DataFrame, what: str, paper: pd.DataFrame | None = None, clusters: str | None = "material", fit: bool = True
) -> Figure:
    """Draw model against DFT for a scalar property, one panel per model.

    Each panel has the diagonal, the line fitted through the origin, and above it the numbers: slope with its 95 % interval (bootstrap
    over materials), n and MAE.

    ``table``: tidy table of one property; failed rows are left out.
    ``what``: its name for the axes: ``surface energy``.
    ``paper``: the paper's points, from :func:`paper_points`: open markers behind ours.
    ``clusters``: column to resample for the interval; None resamples single values.
    ``fit``: draw the fitted line and its slope; not where the reference is another functional.
    """
    rows = style.property_rows(table)
    units = rows["unit"].unique()
    if len(units) != 1:
        raise ValueError(f"one unit is needed, but the table has {', '.join(map(str, units))}")
    models = style.in_order(rows["model"])
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(models), head=0.3)
        columns = ["model", "value", "reference"]
        shown = pd.DataFrame(columns=columns) if paper is None else paper.loc[paper["model"].isin(models), columns]
        parts = [rows[rows["model"] == model] for model in models]
        everything = np.concatenate([part[columns[1:]].to_numpy(dtype=float).ravel() for part in (*parts, shown)])
        low, high = everything.min(), everything.max()
        # A quantity of one sign is drawn from zero, where the fitted line starts.
        low, high = (min(low, 0.0), max(high, 0.0)) if low * high > 0 else (low, high)
        margin = 0.04 * (high - low)
        low, high = low - margin, high + margin
        for panel, model, part in zip(axes, models, parts, strict=True):
            parity_panel(panel, model, part, shown[shown["model"] == model], clusters, (low, high), str(units[0]), fit)
        suffix = f" ({units[0]})" if units[0] else ""
        style.outer_labels(axes, f"DFT {what}{suffix}", f"model {what}{suffix}")
        handles = [
            Line2D([], [], color="#444444", marker="o", linestyle="none", markersize=6, label="ours"),
            *([Line2D([], [], color="#444444", linewidth=2, label="fit through zero")] if fit else []),
            Line2D([], [], label="model = DFT", **style.IDEAL),
        ]
        if len(shown):
            look = {"marker": "o", "markerfacecolor": "none", "linestyle": "none", "alpha": 0.55}
            handles.insert(1, Line2D([], [], color="#444444", label="paper", **look))
        style.legend(figure, handles)
    return figure


def parity_panel(
    axes: Axes,
    model: str,
    part: pd.DataFrame,
    paper: pd.DataFrame,
    clusters: str | None,
    limits: tuple[float, float],
    unit: str,
    fit: bool = True,
    name: str | None = None,
) -> None:
    """Draw one model's points over the fit and the paper's points; the panel's name, by default the model's, and the numbers above."""
    x, y = part["reference"].to_numpy(dtype=float), part["value"].to_numpy(dtype=float)
    if len(paper):
        open_points = {"linestyle": "none", "markerfacecolor": "none", "markeredgewidth": 0.9, "alpha": 0.45}
        axes.plot(paper["reference"], paper["value"], zorder=2.8, **style.look(model, 4.5), **open_points)
    points = {"linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.5, "alpha": 0.9}
    axes.plot(x, y, zorder=4, **style.look(model, 5.5), **points)
    summary = softening.scalar_summary(y, x, clusters=None if clusters is None else part[clusters])
    style.square(axes, *limits)
    lines = [f"n = {summary['n']}, MAE {style.significant(summary['mae'])} {unit}"]
    if fit:
        ends = np.array([min(x.min(), 0.0), max(x.max(), 0.0)])
        axes.plot(ends, summary["slope"] * ends, color=colour(model), linewidth=2, zorder=3)
        lines.insert(0, f"slope {summary['slope']:.2f}{style.interval(summary['slope_low'], summary['slope_high'])}")
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    style.heading(axes, name or style.label(model), *lines, hue=TEXT if name else style.readable(model))


def _ramp(base: str) -> LinearSegmentedColormap:
    """Return a colour map from a tint to a shade of one colour."""
    rgb = np.array(to_rgb(base))
    return LinearSegmentedColormap.from_list("ramp", [0.8 + 0.2 * rgb, rgb, 0.3 * rgb])


def force_parity(table: pd.DataFrame, models: Sequence[str] | None = None) -> Figure:
    """Draw model against DFT force components as a density, one panel per model (the paper's Fig. 5a).

    Each panel has the fitted line through the origin, the softening scale, MAE and corrected MAE (eV/Å) of all components. The table has
    one row per component; failed rows are left out. Drawn are 99.9 % of the DFT components; how many lie outside is written above.
    """
    rows = style.property_rows(table)
    models = style.chosen(rows, models)
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(models), head=0.5)
        limit = force_limit(rows)
        drawn = [force_panel(panel, model, rows[rows["model"] == model], limit, 42) for panel, model in zip(axes, models, strict=True)]
        norm = LogNorm(1, max(2, *(hexagons.get_array().max() for hexagons in drawn if hexagons.get_array().size)))
        for hexagons in drawn:
            hexagons.set_norm(norm)
        style.outer_labels(axes, "DFT force (eV/Å)", "model force (eV/Å)")
        # One scale for all panels, in grey: lightness counts, hue names the model.
        scale = mpl.cm.ScalarMappable(norm, _ramp("#7F7F7F"))
        figure.colorbar(scale, ax=figure.axes, shrink=0.6, aspect=28, label="components per hexagon")
        handles = [
            Line2D([], [], color="#444444", linewidth=2, label="fit through zero"),
            Line2D([], [], label="model = DFT", **style.IDEAL),
        ]
        style.legend(figure, handles)
    return figure


def force_limit(rows: pd.DataFrame) -> float:
    """Return how far axes of forces reach, eV/Å, to hold 99.9 % of the DFT components."""
    return 1.05 * float(np.quantile(np.abs(rows["reference"].to_numpy(dtype=float)), 0.999))


def force_panel(axes: Axes, model: str, part: pd.DataFrame, limit: float, gridsize: int, name: str | None = None) -> PolyCollection:
    """Draw one model's force components as hexagons, with the fit; the panel's name, by default the model's, and the numbers above.

    Returns the hexagons.
    """
    x, y = part["reference"].to_numpy(dtype=float), part["value"].to_numpy(dtype=float)
    inside = (np.abs(x) <= limit) & (np.abs(y) <= limit)
    colours = {"cmap": _ramp(colour(model)), "norm": LogNorm(), "linewidths": 0.1}
    extent = (-limit, limit, -limit, limit)
    hexagons = axes.hexbin(x[inside], y[inside], gridsize=gridsize, extent=extent, mincnt=1, zorder=2, **colours)
    style.square(axes, -limit, limit)
    fitted = softening.fit(x, y)
    ends = np.array([-limit, limit])
    # In a dense cloud the line would not be seen below it.
    casing = [Stroke(linewidth=2.6, foreground="white"), Normal()]
    axes.plot(ends, fitted.slope * ends, color=style.readable(model), linewidth=1.6, zorder=5, path_effects=casing)
    axes.set_ylim(-limit, limit)
    outside = np.count_nonzero(~inside)
    lines = [f"slope {fitted.slope:.2f}", f"MAE {fitted.mae:.3f}, cMAE {fitted.cmae:.3f}"]
    lines.append(f"n = {len(x):,}" + (f", {outside:,} outside" if outside else ""))
    style.heading(axes, name or style.label(model), *lines, hue=TEXT if name else style.readable(model))
    return hexagons


def hero(before: pd.DataFrame, after: pd.DataFrame, surfaces: pd.DataFrame, model: str) -> Figure:
    """Draw softening in one picture, three panels: forces as trained, surface energies, and the same forces after fine-tuning.

    ``before``, ``after``: force rows of the same frames.
    ``surfaces``: rows of one property of ``surfaces``.
    ``model``: the model's key.
    """
    with mpl.rc_context(STYLE):
        figure = style.blank(3.3, 9.0)
        left, middle, right = figure.subplots(1, 3)
        before, after, surfaces = map(style.property_rows, (before, after, surfaces))
        limit = force_limit(before)
        force_panel(left, model, before, limit, 42, "Forces: too weak")
        force_panel(right, model, after, limit, 42, "After ten labels")
        top = 1.05 * float(surfaces[["value", "reference"]].to_numpy().max())
        name, unit = "Surfaces: too cheap", str(surfaces["unit"].iloc[0])
        parity_panel(middle, model, surfaces, pd.DataFrame(), "material", (-0.02 * top, top), unit, name=name)
        for axes, what in ((left, "force (eV/Å)"), (middle, "surface energy (eV/Å²)"), (right, "force (eV/Å)")):
            axes.set(xlabel=f"DFT {what}", ylabel=f"model {what}")
    return figure
