"""Charts with one lane per material, and in it a place for each model or cure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.figures import style
from helpers.figures.style import STYLE, colour, in_order, label


def by_material(table: pd.DataFrame, quantity: str, what: str, ideal: float = 1.0, order: Sequence[str] | None = None) -> Figure:
    """Draw a number with its interval for each material (lanes) and model (markers).

    Parameters
    ----------
    table : DataFrame
        One row per ``model`` and ``material``: the column ``quantity`` and, if there are intervals, that name + ``_low``, ``_high``.
    quantity : str
        The column to draw.
    what : str
        Its name on the axis.
    ideal : float
        Where a perfect model lies: a dashed line.
    order : sequence of str, optional
        Order of the lanes, the first on top; alphabetical by default.
    """
    models = in_order(table["model"])
    materials = sorted(table["material"].unique()) if order is None else list(order)
    with mpl.rc_context(STYLE):
        figure, axes = _lanes(materials, len(models), 0.16)
        axes.axvline(ideal, zorder=2, **style.IDEAL)
        for lane, model in enumerate(models):
            part = table[table["model"] == model].set_index("material").reindex(materials)
            y = np.arange(len(materials)) + _lane(lane, len(models))
            if f"{quantity}_low" in table:
                axes.hlines(y, part[f"{quantity}_low"], part[f"{quantity}_high"], color=colour(model), linewidth=1.6, alpha=0.75)
            axes.plot(part[quantity], y, linestyle="none", label=label(model), **style.look(model, 6))
        axes.set_xlabel(what)
        figure.legend(loc="outside upper center", ncols=2, columnspacing=1.2)
    return figure


def label_choices(choices: pd.DataFrame, what: str, limits: tuple[float, float] = (0.0, 2.0), order: Sequence[str] | None = None) -> Figure:
    """Draw what a correction does for every choice of its label: a point per choice, a bar from the 10 % to the 90 % quantile, the median.

    Parameters
    ----------
    choices : DataFrame
        One row per ``model``, ``material`` and choice, with ``ratio`` (error after over error before). Rows whose ``status`` is not
        ``ok`` are left out.
    what : str
        Name of the ratio on the axis.
    limits : (float, float)
        Range drawn; points beyond are put on the edge.
    order : sequence of str, optional
        Order of the lanes, the first on top; sorted by default.
    """
    good = style.good_rows(choices, ["model", "material"], ["ratio"])
    models = in_order(good["model"])
    materials = sorted(good["material"].unique()) if order is None else list(order)
    rng = np.random.default_rng(0)
    with mpl.rc_context(STYLE):
        figure, axes = _lanes(materials, len(models), 0.2)
        axes.axvline(1, zorder=2, **style.IDEAL)
        for lane, model in enumerate(models):
            for row, material in enumerate(materials):
                ratio = good.loc[(good["model"] == model) & (good["material"] == material), "ratio"].to_numpy()
                if not len(ratio):
                    continue
                y = row + _lane(lane, len(models))
                # The cloud stays within its model's share of the lane.
                jitter = rng.uniform(-0.24, 0.24, len(ratio)) / len(models)
                dots = {"color": colour(model), "markersize": 2.5, "alpha": 0.35, "clip_on": False}
                axes.plot(np.clip(ratio, *limits), y + jitter, ".", zorder=3, **dots)
                axes.hlines(y, *np.clip(np.quantile(ratio, [0.1, 0.9]), *limits), color=colour(model), linewidth=2.6, alpha=0.55, zorder=4)
                middle = {"markeredgecolor": "white", "markeredgewidth": 0.6, "linestyle": "none", "clip_on": False, "label": label(model)}
                axes.plot(np.clip(np.median(ratio), *limits), y, zorder=5, **style.look(model, 6.5), **middle)
        beyond = bool((good["ratio"] > limits[1]).any())
        axes.set(xlabel=f"{what} (beyond {limits[1]:g}: at the edge)" if beyond else what, xlim=limits)
        handles = {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, columnspacing=1.2)
    return figure


# Cures have no model's colour or marker, except that a correction is a star and fine-tuning a cross, as everywhere.
CURES = (("*", "#332288"), ("X", "#CC6677"), ("p", "#882255"), ("d", "#7A5C00"))
_CURE_SIZE = {"*": 12, "X": 9}


def before_after(table: pd.DataFrame, what: str, ideal: float = 1.0, start: str = "before", order: Sequence[str] | None = None) -> Figure:
    """Draw what cures do to a number: for each material (lanes) an arrow from the value before to the value after each cure.

    Parameters
    ----------
    table : DataFrame
        One row per ``material`` and ``cure`` with ``value`` and its interval ``value_low``, ``value_high`` (NaN if there is none). The rows
        whose cure is ``start`` hold the values before. Rows whose ``status`` is not ``ok`` are left out.
    what : str
        Name of the number on the axis.
    ideal : float
        Where a perfect model lies: a dashed line.
    start : str
        Name of what the cures are compared with.
    order : sequence of str, optional
        Order of the lanes, the first on top; alphabetical by default.
    """
    rows = style.good_rows(table, ["material", "cure"], ["value"])
    intervals = ["value_low", "value_high"]
    style.good_rows(table, intervals, [])
    twice = rows[rows.duplicated(["material", "cure"])]
    if len(twice):
        raise ValueError(f"{twice['material'].iloc[0]} has {twice['cure'].iloc[0]!r} more than once")
    cures = [cure for cure in dict.fromkeys(rows["cure"]) if cure != start]
    if not 0 < len(cures) <= len(CURES):
        raise ValueError(f"one to {len(CURES)} cures can be drawn, but the table has {len(cures)} beside {start!r}")
    materials = sorted(rows["material"].unique()) if order is None else list(order)
    before = rows[rows["cure"] == start].set_index("material").reindex(materials)
    if before["value"].isna().any():
        raise ValueError(f"{before.index[before['value'].isna()][0]} has no row {start!r}")
    with mpl.rc_context(STYLE):
        figure, axes = _lanes(materials, len(cures), 0.2)
        axes.axvline(ideal, zorder=2, **style.IDEAL)
        lanes = np.arange(len(materials))
        for y, (low, high) in zip(lanes, before[intervals].to_numpy(dtype=float), strict=True):
            axes.fill_between([low, high], y - 0.42, y + 0.42, color=style.MUTED, alpha=0.2, linewidth=0, zorder=1.5)
        axes.vlines(before["value"], lanes - 0.42, lanes + 0.42, color=style.MUTED, linewidth=3, zorder=3, label=start)
        for position, (cure, (shape, hue)) in enumerate(zip(cures, CURES, strict=False)):
            after = rows[rows["cure"] == cure].set_index("material").reindex(materials)
            y = lanes + _lane(position, len(cures))
            axes.hlines(y, after["value_low"], after["value_high"], color=hue, linewidth=4.5, alpha=0.3, zorder=2.5)
            arrow = {"arrowstyle": "-|>,head_width=0.18,head_length=0.35", "color": hue, "shrinkA": 0, "shrinkB": 3, "linewidth": 1.3}
            for old, new, at in zip(before["value"], after["value"], y, strict=True):
                if np.isfinite(new):
                    axes.annotate("", (new, at), (old, at), arrowprops=arrow, zorder=4)
            point = {"marker": shape, "color": hue, "markersize": _CURE_SIZE.get(shape, 8), "linestyle": "none", "label": cure}
            axes.plot(after["value"], y, markeredgecolor="white", markeredgewidth=0.6, zorder=5, **point)
        axes.set_xlabel(what)
        figure.legend(loc="outside upper center", ncols=2, columnspacing=1.6)
    return figure


def _lanes(materials: Sequence[str], n: int, height: float) -> tuple[Figure, Axes]:
    """Return a figure with a named lane for each material, each with ``n`` places of this height (inch), less where there are many."""
    tall = height if len(materials) <= 10 else 0.6 * height
    figure = style.blank(0.9 + len(materials) * max(0.2, tall * (n + 1)))
    axes = figure.subplots()
    name_lanes(axes, materials)
    return figure, axes


def _lane(position: int, n: int) -> float:
    """Return where a model lies within its material's lane, −0.4 to 0.4, the first on top."""
    return -0.4 + 0.8 * (position + 0.5) / n


def name_lanes(axes: Axes, materials: Sequence[str]) -> None:
    """Name the lanes, the first on top, with a line between each two."""
    axes.set_yticks(range(len(materials)), materials)
    axes.set_ylim(len(materials) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for edge in range(1, len(materials)):
        axes.axhline(edge - 0.5, color="#E4E7EA", linewidth=0.8, zorder=1)
