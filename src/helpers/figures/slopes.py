"""Charts of the two slopes: simulated clouds, the plane of both, what 1 − s is made of, pairs of models, slopes in bins of size, scales
predicted before any DFT.

``names`` maps families to their names, in the order of the lanes; ``limits`` is the range drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from helpers import softening
from helpers.figures import style
from helpers.figures.lanes import name_lanes
from helpers.figures.style import STYLE, colour, in_order, label

# Lines that are no model's, told apart by their dashes as well.
_ON_TRUTH, _ON_PREDICTION = style.METHODS[1][0], style.METHODS[2][0]


def clouds(simulated: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw truth and prediction of simulated models (:func:`helpers.explanations.simulate`) with both regression lines, a panel per model.

    Titles are by model, in order. Some points of each are drawn; the lines are fitted to all.
    """
    rows = style.good_rows(simulated, ["model"], ["reference", "value"])
    models = style.chosen(rows, list(titles))
    low, high = -3.4, 3.4
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(models), head=0.2)
        for panel, model in zip(axes, models, strict=True):
            part = rows[rows["model"] == model]
            fitted = softening.fit(part["reference"], part["value"])
            shown = part.iloc[:900]
            panel.plot(shown["reference"], shown["value"], ".", color="#8A97A3", markersize=2.5, alpha=0.55, zorder=2)
            panel.plot([low, high], [low, high], zorder=3, **style.IDEAL)
            ends = np.array([low, high])
            panel.plot(ends, fitted.slope * ends, color=_ON_TRUTH, linewidth=2.4, zorder=4)
            panel.plot(fitted.inverse_slope * ends, ends, color=_ON_PREDICTION, linewidth=2.4, linestyle=(0, (5, 1.5)), zorder=5)
            panel.set(xlim=(low, high), ylim=(low, high), aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
            numbers = f"s = {fitted.slope:.2f}, s′ = {fitted.inverse_slope:.2f}, R² = {fitted.r2:.2f}"
            style.heading(panel, titles[model], numbers)
        style.outer_labels(axes, "truth", "prediction")
        handles = [
            Line2D([], [], color=_ON_TRUTH, linewidth=2.4, label="prediction on truth (slope s)"),
            Line2D([], [], color=_ON_PREDICTION, linewidth=2.4, linestyle=(0, (5, 1.5)), label="truth on prediction (slope s′)"),
            Line2D([], [], label="perfect", **style.IDEAL),
        ]
        style.legend(figure, handles)
    return figure


# Ranges of s and s'; a point beyond is put on the edge.
_S_LIMITS, _REVERSE_LIMITS = (0.26, 1.35), (0.72, 3.0)


def slope_plane(overview: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Draw both slopes against each other, one panel per family, a marker with its intervals per model.

    Both axes are logarithmic, so that lines of constant R² = s s' are straight. ``overview`` is :func:`helpers.explanations.overview`;
    families without a row are left out.
    """
    rows = style.good_rows(overview[overview["family"].isin(names)], ["family", "model"], ["slope", "inverse_slope"])
    families = [key for key in names if key in set(rows["family"])]
    models = in_order(rows["model"])
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(families))
        figure.set_figheight(0.82 * figure.get_figheight())
        for panel, family in zip(axes, families, strict=True):
            _plane(panel)
            for model in models:
                for entry in rows[(rows["family"] == family) & (rows["model"] == model)].itertuples():
                    _in_plane(panel, entry)
            panel.set_title(fill(names[family], 18), loc="left")
        style.outer_labels(axes, "s, model on DFT", "s′, DFT on model")
        points = {"linestyle": "none", "markeredgecolor": "white"}
        handles = [Line2D([], [], label=label(model), **style.look(model, 7.5), **points) for model in models]
        handles += [
            Line2D([], [], color=style.TEXT, linewidth=1.6, label="soft, no scatter"),
            Line2D([], [], color=_ON_TRUTH, linewidth=1.6, linestyle=(0, (1, 1)), label="s = 1: unbiased noise"),
            Line2D([], [], color=_ON_PREDICTION, linewidth=1.6, linestyle=(0, (5, 1.5)), label="s′ = 1: calibrated"),
            Line2D([], [], color="#B9C0C7", linewidth=1.1, label="R² = 0.9, 0.8, 0.6"),
        ]
        style.legend(figure, handles)
    return figure


def _plane(axes: Axes) -> None:
    """Draw the lines on which the simulated models lie, and those of equal scatter."""
    axes.set(xscale="log", yscale="log", xlim=_S_LIMITS, ylim=_REVERSE_LIMITS)
    axes.set_xticks([0.3, 0.5, 0.7, 1.0])
    axes.set_xticklabels([f"{t:g}" for t in axes.get_xticks()])
    axes.set_yticks([1.0, 1.5, 2.0, 3.0])
    axes.set_yticklabels([f"{t:g}" for t in axes.get_yticks()])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
        axis.set_tick_params(which="minor", length=0)
    axes.grid(visible=False)
    s = np.array(_S_LIMITS)
    for r2 in (0.9, 0.8, 0.6):
        axes.plot(s, r2 / s, color="#B9C0C7", linewidth=1.1, zorder=1)
    axes.plot(s, 1 / s, color=style.TEXT, linewidth=1.6, zorder=1.5)
    axes.axvline(1, color=_ON_TRUTH, linewidth=1.6, linestyle=(0, (1, 1)), zorder=1.5)
    axes.axhline(1, color=_ON_PREDICTION, linewidth=1.6, linestyle=(0, (5, 1.5)), zorder=1.5)


def _in_plane(axes: Axes, entry) -> None:
    hue = colour(entry.model)
    x, y = np.clip(entry.slope, *_S_LIMITS), np.clip(entry.inverse_slope, *_REVERSE_LIMITS)
    axes.hlines(y, *np.clip([entry.slope_low, entry.slope_high], *_S_LIMITS), color=hue, linewidth=1.5, alpha=0.75, zorder=3)
    ends = np.clip([entry.inverse_slope_low, entry.inverse_slope_high], *_REVERSE_LIMITS)
    axes.vlines(x, *ends, color=hue, linewidth=1.5, alpha=0.75, zorder=3)
    point = {"markeredgecolor": "white", "markeredgewidth": 0.7, "linestyle": "none", "zorder": 4, "clip_on": False}
    axes.plot(x, y, **style.look(entry.model, 7.5), **point)


# What a part of 1 − s is owed to: Tol's muted colours, with a hatch where lightness alone would not do.
_PARTS = {
    "left": ("what is left", style.METHODS[1][0], ""),
    "regression": ("scatter, if the model is calibrated", "#BBBBBB", "////"),
    "geometry": ("re-optimisation", "#88CCEE", ""),
    "selection": ("+U, magnetic, unstable", "#DDCC77", "\\\\\\\\"),
}


_PART_LIMITS = (-0.45, 0.85)  # a bar that is longer is cut, and what is left is written beside it


def parts(explained: pd.DataFrame, names: Mapping[str, str], models: Sequence[str]) -> Figure:
    """Draw what 1 − s is made of: a lane per family, a panel per model, a piece of a bar per explanation.

    Pieces that explain softening lie right of zero, those that hide it left. What is left comes first, with its interval. ``explained`` is
    :func:`helpers.explanations.explain_all`; of one or two models.
    """
    rows = style.good_rows(explained[explained["family"].isin(names)], ["family", "model", "explanation"], ["part"])
    models = style.chosen(rows, models)
    lanes = [key for key in names if key in set(rows.loc[rows["model"].isin(models), "family"])]
    with mpl.rc_context(STYLE):
        figure = style.blank(1.5 + 0.36 * len(lanes))
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        for panel, model in zip(panels, models, strict=True):
            name_lanes(panel, [names[key] for key in lanes])
            panel.axvline(0, color=style.TEXT, linewidth=1.0, zorder=5)
            for lane, family in enumerate(lanes):
                part = rows[(rows["model"] == model) & (rows["family"] == family)].set_index("explanation")
                if part.empty:
                    panel.text(0.02, lane, "no table", fontsize=9, color=style.MUTED, va="center")
                else:
                    _bar(panel, part, lane)
            panel.set(xlim=_PART_LIMITS, xticks=[-0.4, 0, 0.4, 0.8])
            panel.set_xlabel("part of 1 − s")
            panel.set_title(label(model), color=style.readable(model), loc="left")
        handles = [
            Patch(facecolor=hue, edgecolor="white", hatch=hatch, label=words)
            for name, (words, hue, hatch) in _PARTS.items()
            if name in set(rows.loc[rows["model"].isin(models), "explanation"])
        ]
        handles.append(Line2D([], [], color="black", marker="|", markersize=11, markeredgewidth=2.2, linestyle="none", label="1 − s"))
        interval = {"color": _PARTS["left"][1], "marker": "o", "markersize": 3.5, "linewidth": 1.8}
        handles.append(Line2D([], [], label="95 % interval of what is left", **interval))
        figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1.4)
    return figure


def _bar(axes: Axes, part: pd.DataFrame, lane: int) -> None:
    right = left = 0.0
    for name, (_, hue, hatch) in _PARTS.items():
        if name not in part.index:
            continue
        width = float(part.loc[name, "part"])
        start = right if width >= 0 else left
        axes.barh(lane - 0.08, width, left=start, height=0.5, color=hue, edgecolor="white", hatch=hatch, linewidth=0.5, zorder=3)
        right, left = (right + width, left) if width >= 0 else (right, left + width)
    entry, total = part.loc["left"], float(part.loc["total", "part"])
    # Below the bar, where dark on dark would not be seen.
    if np.isfinite(entry["part_low"]):
        axes.hlines(lane + 0.32, entry["part_low"], entry["part_high"], color=_PARTS["left"][1], linewidth=1.8, zorder=6)
        axes.plot(entry["part"], lane + 0.32, marker="o", color=_PARTS["left"][1], markersize=3.5, zorder=6)
    axes.plot(total, lane - 0.08, marker="|", color="black", markersize=13, markeredgewidth=2.2, zorder=7)
    if entry["part"] < _PART_LIMITS[0]:
        text = f"← {entry['part']:.1f}".replace("-", "−")
        axes.text(_PART_LIMITS[0] + 0.02, lane - 0.08, text, fontsize=9, color="white", va="center", zorder=8)


def pairs(found: pd.DataFrame, names: Mapping[str, str], limits: tuple[float, float] = (0.15, 1.5)) -> Figure:
    """Draw s and 1/s' of two models, a lane per family, joined by a line.

    ``found`` is :func:`helpers.explanations.pairs`.
    """
    rows = style.good_rows(found[found["family"].isin(names)], ["family", "first", "second"], ["slope_first", "slope_second"])
    rows = rows.set_index("family").loc[[key for key in names if key in set(rows["family"])]]
    models = (rows["first"].iloc[0], rows["second"].iloc[0])
    lanes = np.arange(len(rows))
    with mpl.rc_context(STYLE):
        figure = style.blank(1.4 + 0.42 * len(rows))
        panels = figure.subplots(1, 2, sharey=True)
        titles = {"slope": "s: model on DFT", "inverse": "1/s′: scatter taken out"}
        for panel, (quantity, title) in zip(panels, titles.items(), strict=True):
            name_lanes(panel, [names[key] for key in rows.index])
            panel.axvline(1, zorder=2, **style.IDEAL)
            panel.hlines(lanes, *(rows[f"{quantity}_{end}"] for end in ("first", "second")), color="#9AA3AC", linewidth=2.2, zorder=2.5)
            for model, end, shift in ((models[0], "first", -0.16), (models[1], "second", 0.16)):
                low, high = (rows[f"{quantity}_{end}_{side}"] for side in ("low", "high"))
                panel.hlines(lanes + shift, low, high, color=colour(model), linewidth=1.6, alpha=0.8, zorder=3)
                points = {"markeredgecolor": "white", "markeredgewidth": 0.7, "linestyle": "none", "zorder": 4}
                panel.plot(rows[f"{quantity}_{end}"], lanes, **style.look(model, 7.5), **points)
            panel.set(xlim=limits)
            panel.set_title(title, loc="left")
        handles = [Line2D([], [], linestyle="none", label=label(model), **style.look(model, 7.5)) for model in models]
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return figure


def diets(
    board: pd.DataFrame,
    names: Mapping[str, str],
    alike: Sequence[str],
    steps: Sequence[tuple[str, str]],
    limits: tuple[float, float] = (0.0, 1.3),
) -> Figure:
    """Draw s of models that learned from the same frames as a band, and of models of one network as arrows, a lane per family.

    ``board``: from :func:`helpers.explanations.overview`.
    ``alike``: models that learned from the same frames; the band reaches from the lowest s to the highest.
    ``steps``: pairs of models of one network; an arrow leads from the first one's s to the second one's. The first is one of ``alike``.
    """
    rows = style.good_rows(board[board["family"].isin(names)], ["family", "model"], ["slope"])
    slope = rows.pivot_table(index="family", columns="model", values="slope").reindex([key for key in names if key in set(rows["family"])])
    last = [second for _, second in steps if second in slope]
    with mpl.rc_context(STYLE):
        figure = style.blank(1.8 + 0.52 * len(slope))
        axes = figure.subplots()
        name_lanes(axes, [names[key] for key in slope.index])
        axes.axvline(1, zorder=2, **style.IDEAL)
        for lane, (_, line) in enumerate(slope.iterrows()):
            ends = line[[key for key in alike if key in slope]].agg(["min", "max"])
            axes.barh(lane - 0.18, ends["max"] - ends["min"], left=ends["min"], height=0.3, color="#D5DAE0", zorder=1)
            for number, (first, second) in enumerate(steps):
                if second in slope and np.isfinite(line[[first, second]]).all():
                    arrow = {"arrowstyle": "->", "color": colour(second), "linewidth": 1.8, "shrinkA": 0, "shrinkB": 3}
                    y = lane + 0.08 + 0.3 * number / max(1, len(steps) - 1)
                    axes.annotate("", (line[second], y), (line[first], y), arrowprops=arrow, zorder=3)
                    axes.plot(line[second], y, zorder=4, **style.look(second, 6.5))
            for key in alike:
                axes.plot(line.get(key, np.nan), lane - 0.18, zorder=4, markeredgecolor="white", **style.look(key, 7.0))
        axes.set(xlim=limits, xlabel="slope s, model on DFT")
        handles = [Line2D([], [], linestyle="none", label=label(model), **style.look(model, 7.0)) for model in in_order([*alike, *last])]
        handles.append(Patch(color="#D5DAE0", label="range over the same frames"))
        figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1.2)
    return figure


def ratio_by_size(binned: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw model over DFT against the size of the force: bins by DFT on the left, by the model on the right, a line of panels per set.

    ``binned`` is :func:`helpers.explanations.binned`, with the columns ``model``, ``family`` and ``on``; titles are by family, in order.
    """
    rows = style.good_rows(binned[binned["family"].isin(titles)], ["model", "family", "on"], ["size", "ratio"])
    families = [key for key in titles if key in set(rows["family"])]
    models = in_order(rows["model"])
    with mpl.rc_context(STYLE):
        figure = style.blank(1.3 + 2.35 * len(families))
        grid = figure.subplots(len(families), 2, sharex=True, sharey=True, squeeze=False)
        for line, family in zip(grid, families, strict=True):
            for panel, on in zip(line, ("reference", "value"), strict=True):
                panel.axhline(1, zorder=2, **style.IDEAL)
                for model in models:
                    part = rows[(rows["family"] == family) & (rows["on"] == on) & (rows["model"] == model)].sort_values("size")
                    panel.fill_between(part["size"], part["ratio_low"], part["ratio_high"], color=colour(model), alpha=0.13, linewidth=0)
                    panel.plot(part["size"], part["ratio"], linewidth=1.4, zorder=3, **style.look(model, 5))
                panel.set(xscale="log", yscale="log", xlim=(0.02, 30), ylim=(0.45, 3.6))
                panel.set_yticks([0.5, 0.7, 1, 1.5, 2, 3], ["0.5", "0.7", "1", "1.5", "2", "3"])
                panel.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
                panel.minorticks_off()
                way = "bins by DFT: s" if on == "reference" else "bins by the model: 1/s′"
                panel.set_title(f"{titles[family]}\n{way}", loc="left", fontsize=10.5)
            line[0].set_ylabel("model / DFT")
        grid[-1, 0].set_xlabel("force on the atom, DFT (eV/Å)")
        grid[-1, 1].set_xlabel("force on the atom, model (eV/Å)")
        handles = [Line2D([], [], label=label(model), **style.look(model, 5)) for model in models]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, columnspacing=1.2)
    return figure


def predicted_scales(left: pd.DataFrame, names: Mapping[str, str], limits: tuple[float, float] = (0.0, 1.6)) -> Figure:
    """Draw measured against predicted scales, one panel per family, a point per material with its interval as a pale bar.

    ``left`` is from :func:`helpers.calibration.leave_out`, with ``family`` and ``model``; materials without a prediction are left out. A
    point beyond ``limits``, of both axes, is put on the edge.
    """
    rows = left[left["family"].isin(names) & np.isfinite(left["scale"])]
    rows = style.good_rows(rows, ["family", "model"], ["measured", "scale", "low", "high"])
    families, models = [key for key in names if key in set(rows["family"])], in_order(rows["model"])
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(families))
        for panel, family in zip(axes, families, strict=True):
            style.square(panel, *limits)
            for order, model in enumerate(models):
                part = rows[(rows["family"] == family) & (rows["model"] == model)]
                x, y, low, high = (np.clip(part[name], *limits) for name in ("scale", "measured", "low", "high"))
                panel.vlines(x, low, high, color=colour(model), alpha=0.14, linewidth=2.2, zorder=1 + 0.1 * order)
                point = {"linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.4, "alpha": 0.85, "clip_on": False}
                panel.plot(x, y, **style.look(model, 4.5), **point, zorder=3 + 0.1 * order)
            panel.set_title(names[family], loc="left")
        style.outer_labels(axes, "predicted scale", "measured scale")
        shown = {"linestyle": "none", "markeredgecolor": "white"}
        handles: list[object] = [Line2D([], [], label=label(model), **style.look(model, 7.5), **shown) for model in models]
        handles.append(Patch(color="#B9C0C7", label="90 % interval"))
        style.legend(figure, handles)
    return figure
