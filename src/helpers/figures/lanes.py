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


def by_material(table: pd.DataFrame, quantity: str, what: str, order: Sequence[str] | None = None) -> Figure:
    """Draw a number with its interval for each material (lanes) and model (markers), and a dashed line at one, where a perfect model lies.

    ``table``: one row per ``model`` and ``material``: the column ``quantity`` and, if there are intervals, that name + ``_low``, ``_high``.
    ``quantity``: the column to draw.
    ``what``: its name on the axis.
    ``order``: order of the lanes, the first on top; alphabetical by default.
    """
    models = in_order(table["model"])
    materials = sorted(table["material"].unique()) if order is None else list(order)
    with mpl.rc_context(STYLE):
        figure, axes = _lanes(materials, len(models), 0.13)
        axes.axvline(1, zorder=2, **style.IDEAL)
        for lane, model in enumerate(models):
            part = table[table["model"] == model].set_index("material").reindex(materials)
            y = np.arange(len(materials)) + _lane(lane, len(models))
            if f"{quantity}_low" in table:
                axes.hlines(y, part[f"{quantity}_low"], part[f"{quantity}_high"], color=colour(model), linewidth=1.6, alpha=0.75)
            axes.plot(part[quantity], y, linestyle="none", label=label(model), **style.look(model, 6))
        axes.set_xlabel(what)
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2)
    return figure


def label_choices(choices: pd.DataFrame, what: str, limits: tuple[float, float] = (0.0, 2.0), order: Sequence[str] | None = None) -> Figure:
    """Draw what a correction does for every choice of its label: a point per choice, a bar from the 10 % to the 90 % quantile, the median.

    ``choices``: one row per ``model``, ``material`` and choice, with ``ratio`` (error after over error before). Rows whose ``status`` is
        not ``ok`` are left out.
    ``what``: name of the ratio on the axis.
    ``limits``: range drawn; points beyond are put on the edge.
    ``order``: order of the lanes, the first on top; sorted by default.
    """
    good = style.good_rows(choices, ["model", "material"], ["ratio"])
    models = in_order(good["model"])
    materials = sorted(good["material"].unique()) if order is None else list(order)
    rng = np.random.default_rng(0)
    with mpl.rc_context(STYLE):
        figure, axes = _lanes(materials, len(models), 0.16)
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
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=2, columnspacing=1.2)
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
    axes.set_yticks(range(len(materials)), map(style.formulas, materials))
    axes.set_ylim(len(materials) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for edge in range(1, len(materials)):
        axes.axhline(edge - 0.5, color="#E4E7EA", linewidth=0.8, zorder=1)
