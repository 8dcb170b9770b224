"""Charts of learning from labels: errors against their number, which label teaches what, and the descent of a single number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.figures import style
from helpers.figures.style import METHODS, STYLE

_REFERENCE = {"marker": "x", "color": style.TEXT, "markersize": 8, "markeredgewidth": 2, "linestyle": "none"}


def error_curves(
    curves: pd.DataFrame,
    materials: Sequence[str],
    methods: Mapping[str, str],
    y_label: str,
    *,
    marked: tuple[str, pd.DataFrame] | None = None,
) -> Figure:
    """Draw an error against the number of labels, one panel per material, both axes logarithmic.

    ``curves``: columns ``material``, ``method``, ``n_labels``, ``mean``, ``low``, ``high`` (over the draws) and ``before``, the error
        without labels: a dashed line.
    ``materials``: panels, in order.
    ``methods``: method → name in the legend, in order.
    ``marked``: points of another source: their name, and a table with ``material``, ``n_labels`` and ``value``.
    """
    looks = style.looks(methods)
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(materials))
        for axis, material in zip(axes, materials, strict=True):
            here = curves[(curves["material"] == material) & curves["method"].isin(methods)]
            if here.empty:
                raise ValueError(f"there is nothing to draw for {material}")
            axis.axhline(here["before"].iloc[0], zorder=1, **style.IDEAL)
            for method, look in looks.items():
                style.with_ranges(axis, here[here["method"] == method], "n_labels", look)
            if marked is not None:
                points = marked[1][marked[1]["material"] == material]
                axis.plot(points["n_labels"], points["value"], zorder=4, **_REFERENCE)
            style.log_places(axis, sorted(set(here["n_labels"]))[:: 1 + here["n_labels"].nunique() // 6])  # there is no room for more
            axis.set(yscale="log", xlabel="labels", ylabel=y_label)
            plain_ticks(axis)
            axis.set_title(material, loc="left")
        handles = [Line2D([], [], label="no label", **style.IDEAL)]
        handles += [Line2D([], [], label=methods[method], **look) for method, look in looks.items()]
        if marked is not None:
            handles.append(Line2D([], [], label=marked[0], **_REFERENCE))
        style.legend(figure, handles)
    return figure


def plain_ticks(axis: Axes) -> None:
    """Label a logarithmic axis that spans a decade or two with plain numbers."""
    low, high = axis.get_ylim()
    ticks = [m * 10.0**e for e in range(-6, 4) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks([], minor=True)


def kind_matrix(
    ratios: pd.DataFrame,
    kinds: Mapping[str, str],
    tests: Mapping[str, str],
    materials: Sequence[str],
    what: str = "error after / before",
) -> Figure:
    """Draw what labels of one kind do to test frames of each kind: a number and a colour per pair, one panel per material.

    ``ratios``: columns ``material``, ``kind``, ``held_out`` and ``ratio`` (error after / before). Pairs that are missing stay white.
    ``kinds``, ``tests``: kinds of labels (rows) and test sets (columns) → names, in order.
    ``materials``: panels, one below the other.
    ``what``: what the ratio is; below the colour bar.
    """
    with mpl.rc_context(STYLE):
        height = 0.36 * len(kinds) + 0.5
        figure = style.blank(height * len(materials) + 1.0)
        axes = figure.subplots(len(materials), 1, squeeze=False).ravel()
        for axis, material in zip(axes, materials, strict=True):
            here = ratios[ratios["material"] == material]
            if here.empty:
                raise ValueError(f"there is nothing to draw for {material}")
            wide = here.pivot_table(index="kind", columns="held_out", values="ratio").reindex(index=list(kinds), columns=list(tests))
            # A factor of four either way fills the scale: blue is better, red worse.
            image = axis.imshow(wide.to_numpy(dtype=float), cmap="RdBu_r", norm=LogNorm(0.25, 4), aspect="auto")
            for (line, column), value in zip(np.ndindex(wide.shape), wide.to_numpy(dtype=float).ravel().tolist(), strict=True):
                if np.isfinite(value):
                    ink = "white" if abs(np.log(value)) > np.log(2.6) else style.TEXT
                    text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
                    axis.text(column, line, text, ha="center", va="center", color=ink, fontsize=10)
            axis.set_yticks(range(len(kinds)), kinds.values())
            axis.set_xticks(range(len(tests)), tests.values() if axis is axes[-1] else [""] * len(tests))
            axis.grid(False)
            axis.tick_params(length=0)
            axis.set_title(f"{material}: trained on (rows), tested on (columns)", loc="left")
        bar = figure.colorbar(image, ax=list(axes), location="bottom", shrink=0.6, aspect=40, extend="both")
        bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["¼", "½", "1", "2", "4"])
        bar.minorticks_off()
        bar.set_label(what)
    return figure


def pareto(points: pd.DataFrame, materials: Sequence[str], methods: Mapping[str, str], x_label: str, y_label: str) -> Figure:
    """Draw two errors, after over before, against each other, one panel per material; grey: the front, which nothing beats in both.

    ``points``: columns ``material``, ``method``, ``x`` and ``y``, and the ends of their bars, ``x_low`` … ``y_high``.
    ``materials``: panels, in order.
    ``methods``: method → name in the legend, in order.
    """
    looks = style.looks(methods, 8.5)
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(materials))
        for axis, material in zip(axes, materials, strict=True):
            here = points[(points["material"] == material) & points["method"].isin(methods)].sort_values(["x", "y"])
            if here.empty:
                raise ValueError(f"there is nothing to draw for {material}")
            axis.axhline(1, zorder=1, **style.IDEAL)
            axis.axvline(1, zorder=1, **style.IDEAL)
            front = here[here["y"] < here["y"].cummin().shift(fill_value=np.inf)]
            axis.step(front["x"], front["y"], where="post", color="#9AA3AC", linewidth=5, alpha=0.5, zorder=2)
            for method, x, y, *ends in here[["method", "x", "y", "x_low", "x_high", "y_low", "y_high"]].itertuples(index=False):
                bars = np.abs(np.reshape(ends, (2, 2, 1)) - np.reshape([x, y], (2, 1, 1)))
                axis.errorbar(x, y, bars[1], bars[0], markeredgecolor="white", zorder=3, **looks[method] | {"linestyle": "none"})
            axis.set_ylim(0, 1.1)
            axis.set_title(material, loc="left")
        style.outer_labels(axes, x_label, y_label)
        style.legend(figure, [Line2D([], [], label=methods[name], **look | {"linestyle": "none"}) for name, look in looks.items()])
    return figure


def descent(paths: Mapping[str, Sequence[float]], levels: Mapping[str, float], y_label: str) -> Figure:
    """Draw how a single number is trained, epoch by epoch, and where closed forms say it should end.

    ``paths``: name of the training → the number after 0, 1, 2, … epochs.
    ``levels``: name of the closed form → its value; horizontal lines, the first dashed, the others dotted.
    """
    if not 0 < len(paths) <= len(METHODS):
        raise ValueError(f"{len(paths)} paths; between one and {len(METHODS)} can be drawn")
    with mpl.rc_context(STYLE):
        figure = style.blank(3.4, style.SINGLE + 1.4)
        axis = figure.subplots()
        for number, (name, value) in enumerate(levels.items()):
            look = {**style.IDEAL, "linestyle": (0, (1, 1.5))} if number else style.IDEAL
            axis.axhline(value, label=name, zorder=2, **look)
        for (name, path), (colour, _, dashes) in zip(paths.items(), METHODS, strict=False):
            axis.plot(range(len(path)), path, color=colour, linestyle=dashes, label=name, zorder=3)
        axis.set(xlabel="epoch", ylabel=y_label)
        axis.legend()
    return figure
