"""Charts of distributions over materials or force components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from helpers.figures import style
from helpers.figures.style import STYLE, colour, label, marker
from helpers.potentials import papers


def scale_distribution(
    fits: pd.DataFrame,
    paper_stats: pd.DataFrame | None = None,
    models: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    what: str = "softening scale of a material",
) -> Figure:
    """Draw the softening scales of all materials for each model (the paper's Fig. 5b), or ratios of another kind.

    Above each lane's axis the density, on it a box (quartiles, median), below it each material as a point.

    ``fits``: from :func:`helpers.softening.per_material`, of one reference set; or any table with ``model``, ``material``, ``slope`` (model
        over DFT) and ``status``.
    ``paper_stats``: ``fig5b_stats.csv``: columns ``model`` (the paper's names), ``q25``, ``median``, ``q75``. Drawn as an open marker with
        a bar, or without where the quartiles are not known.
    ``limits``: range of scales drawn. By default all, unless a few lie far out; the number of those outside is written at the edge.
    ``what``: name of the axis.
    """
    good, models = _good_fits(fits, models)

    def words(values: np.ndarray) -> str:
        return f"median {np.median(values):.2f}\n{np.mean(values < 1):.0%} below 1\nn = {len(values)}"

    return _distributions(good.rename(columns={"slope": "drawn"}), models, limits, 1.0, what, "a material", words, paper_stats)


def error_distribution(table: pd.DataFrame, paper_stats: pd.DataFrame | None = None) -> Figure:
    """Draw the errors of all barriers for each model (the paper's Fig. 3b), as :func:`scale_distribution` draws scales.

    ``table``: tidy table with one row per ``model`` and ``case``. Rows whose ``status`` is not ``ok`` are left out.
    ``paper_stats``: ``fig3b_stats.csv``: columns ``model`` (the paper's names), ``q25``, ``median``, ``q75`` of the paper's errors.
    """
    good = style.property_rows(table)
    twice = good[good.duplicated(["model", "case"])]
    if len(twice):
        raise ValueError(f"{twice['model'].iloc[0]} has {twice['case'].iloc[0]} more than once")

    def words(values: np.ndarray) -> str:
        return f"mean {np.mean(values):+.2f}\n{np.mean(values < 0):.0%} below 0\nn = {len(values)}".replace("-", "−")

    good = good.assign(drawn=good["value"] - good["reference"])
    axis = f"barrier, model − DFT ({good['unit'].iloc[0]})"
    return _distributions(good, style.in_order(good["model"]), None, 0.0, axis, "a case", words, paper_stats)


def _distributions(
    good: pd.DataFrame,
    models: Sequence[str],
    limits: tuple[float, float] | None,
    ideal: float,
    axis: str,
    point: str,
    words: Callable[[np.ndarray], str],
    paper_stats: pd.DataFrame | None,
) -> Figure:
    """Draw column ``drawn`` in one lane per model; ``words`` makes the text beside a lane."""
    with mpl.rc_context(STYLE):
        figure, axes = _lanes(models, 1.0)
        if limits is None:
            limits = style.robust_limits(good["drawn"].to_numpy(dtype=float), ideal)
        axes.axvline(ideal, zorder=1, **style.IDEAL)
        rng = np.random.default_rng(0)
        for lane, model in enumerate(models):
            values = good.loc[good["model"] == model, "drawn"].to_numpy(dtype=float)
            inside = values[(values >= limits[0]) & (values <= limits[1])]
            hue = colour(model)
            _cloud(axes, inside, lane - 0.16, 0.34, limits, hue)
            _quartile_box(axes, _five(values, limits), lane - 0.06, 0.13, hue, "white")
            size = float(np.clip(60 / np.sqrt(len(values)), 2.5, 6))
            jitter = lane + 0.12 + rng.uniform(-0.055, 0.055, len(inside))
            points = {"marker": marker(model), "color": hue, "linestyle": "none"}
            axes.plot(inside, jitter, markersize=size, alpha=0.55, markeredgewidth=0, zorder=3, **points)
            paper = _paper_row(paper_stats, model)
            if paper is not None:
                if np.isfinite([paper["q25"], paper["q75"]]).all():
                    axes.plot([paper["q25"], paper["q75"]], [lane + 0.28] * 2, color=hue, linewidth=1.4, zorder=3)
                axes.plot(paper["median"], lane + 0.28, markerfacecolor="white", markersize=8, markeredgewidth=1.6, zorder=4, **points)
            _beside(axes, 1.0, lane - 0.06, words(values))
            _outside(axes, values, limits, lane)
        axes.set_xlim(limits)
        axes.set_xlabel(axis)
        handles = [
            Patch(facecolor="#444444", alpha=0.25, label="density"),
            Line2D([], [], color="#444444", marker="o", linestyle="none", alpha=0.6, markersize=5, label=point),
            Patch(facecolor="white", edgecolor="#444444", linewidth=1.4, label="quartiles, median"),
        ]
        if paper_stats is not None:
            handles.append(Line2D([], [], color="#444444", marker="o", markerfacecolor="white", linewidth=1.4, label="paper"))
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), columnspacing=1.2, handletextpad=0.5)
    return figure


def mae_cmae(fits: pd.DataFrame, paper_quartiles: pd.DataFrame | None = None) -> Figure:
    """Draw the distribution over materials of the force MAE, before and after the slope is corrected (the paper's Fig. 6b).

    ``fits``: from :func:`helpers.softening.per_material`, of one reference set.
    ``paper_quartiles``: ``fig6b_quartiles.csv``: columns ``model``, ``quantity`` (MAE, cMAE), ``q25``, ``median``, ``q75``; drawn as dashed
        boxes without whiskers. The axis reaches from zero to the largest 95 % quantile.
    """
    good, models = _good_fits(fits, None)
    with mpl.rc_context(STYLE):
        figure, axes = _lanes(models, 1.05)
        tops = good.groupby("model", observed=True)[["mae", "cmae"]].quantile(0.95).to_numpy()
        limits = (0.0, float(tops.max()) * 1.04)
        for lane, model in enumerate(models):
            hue, part = colour(model), good[good["model"] == model]
            for quantity, at, filled in (("mae", lane - 0.3, True), ("cmae", lane + 0.12, False)):
                values = part[quantity].to_numpy(dtype=float)
                tint = tuple(0.45 * np.array(to_rgb(hue)) + 0.55) if filled else "white"
                _quartile_box(axes, _five(values, limits), at, 0.2, hue, tint)
                name = "cMAE" if quantity == "cmae" else "MAE"
                _beside(axes, 1.01, at, f"{name} {np.median(values):.3f}")
                paper = _paper_row(paper_quartiles, model, quantity=name)
                if paper is not None:
                    q25, median, q75 = paper[["q25", "median", "q75"]].astype(float)
                    _quartile_box(axes, (q25, q25, median, q75, q75), at + 0.19, 0.11, hue, tint, dashed=True)
        axes.set_xlim(limits)
        axes.set_xlabel("force error of a material (eV/Å)")
        handles = [
            Patch(facecolor="#B5B5B5", edgecolor="#444444", linewidth=1.4, label="MAE"),
            Patch(facecolor="white", edgecolor="#444444", linewidth=1.4, label="cMAE: after dividing by the slope"),
        ]
        if paper_quartiles is not None:
            handles.append(Patch(facecolor="white", edgecolor="#444444", linewidth=1.4, linestyle=(0, (2.5, 1.5)), label="paper"))
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), columnspacing=1.2)
    return figure


def force_histogram(forces: pd.DataFrame, sets: Mapping[str, str]) -> Figure:
    """Draw how large the DFT force components of some sets are, on a logarithmic axis.

    ``forces``: force rows of one model (the DFT values are the same for all).
    ``sets``: set → name in the legend. The first is drawn as a grey area: what the others are compared with.
    """
    edges = np.logspace(-3, 2, 61)
    centres = np.sqrt(edges[1:] * edges[:-1])
    with mpl.rc_context(STYLE):
        figure = style.blank(4.3)
        axes = figure.subplots()
        tones = ["#9AA3AC", *(hue for hue, _, _ in style.METHODS[:3])]
        for (name, text), tone, look in zip(sets.items(), tones, ["-", "-", "--", ":"], strict=False):
            sizes = np.abs(forces.loc[forces["set"] == name, "reference"].to_numpy(dtype=float))
            sizes = sizes[sizes > 0]
            density, _ = np.histogram(sizes, bins=edges)
            density = density / density.sum() / np.log10(edges[1] / edges[0])
            where = f"{text} (median {style.significant(float(np.median(sizes)))} eV/Å)"
            if tone == tones[0]:
                axes.fill_between(centres, density, color=tone, alpha=0.45, linewidth=0, label=where)
            else:
                axes.plot(centres, density, color=tone, linestyle=look, label=where)
        axes.set(xscale="log", xlabel="size of a DFT force component (eV/Å)", ylabel="share per decade", xlim=(1e-3, 40))
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper left", ncols=1)
    return figure


def _lanes(models: Sequence[str], height: float) -> tuple[Figure, Axes]:
    """Return a figure with one horizontal lane per model, the first on top."""
    figure = style.blank(height * len(models) + 1.1)
    axes = figure.subplots()
    axes.set_ylim(len(models) - 0.45, -0.6)
    axes.set_yticks(range(len(models)), [label(model).replace(" ", "\n", 1) for model in models], fontweight="bold", linespacing=1.3)
    for tick, model in zip(axes.get_yticklabels(), models, strict=True):
        tick.set_color(style.readable(model))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure, axes


def _beside(axes: Axes, x: float, y: float, text: str) -> None:
    """Write right of the axes, at a height in the units of the data."""
    axes.text(x, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=10, color=style.TEXT, linespacing=1.3)


def _good_fits(fits: pd.DataFrame, models: Sequence[str] | None) -> tuple[pd.DataFrame, list[str]]:
    good = fits[fits["status"] == "ok"]
    if good.empty:
        raise ValueError("no material has a fit")
    for model, part in good.groupby("model", observed=True):
        if part["material"].duplicated().any():
            raise ValueError(f"materials of {model} occur more than once: pass one reference set")
    return good, style.chosen(good, models)


def _cloud(axes: Axes, values: np.ndarray, base: float, height: float, limits: tuple[float, float], hue: str) -> None:
    """Draw the density of values upwards from a base line (the axis points down)."""
    if len(np.unique(values)) < 3:
        return
    density = stats.gaussian_kde(values)
    grid = np.linspace(max(limits[0], values.min() - 0.05), min(limits[1], values.max() + 0.05), 256)
    curve = density(grid)
    axes.fill_between(grid, base, base - height * curve / curve.max(), color=hue, alpha=0.25, linewidth=0, zorder=2)
    axes.plot(grid, base - height * curve / curve.max(), color=hue, linewidth=1.2, zorder=2)


def _five(values: np.ndarray, limits: tuple[float, float]) -> tuple[float, ...]:
    """Return the 5, 25, 50, 75 and 95 % quantiles, for a box with whiskers, kept within the limits of the axis."""
    return tuple(np.clip(np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]), *limits))


def _quartile_box(
    axes: Axes, values: tuple[float, ...], at: float, width: float, hue: str, face: str | tuple[float, ...], dashed: bool = False
) -> None:
    low, q25, median, q75, high = values
    line = {"color": hue, "linewidth": 1.4, "linestyle": (0, (2.5, 1.5)) if dashed else "-"}
    axes.bxp(
        [{"whislo": low, "q1": q25, "med": median, "q3": q75, "whishi": high, "fliers": []}],
        positions=[at],
        widths=[width],
        orientation="horizontal",
        showfliers=False,
        showcaps=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": face, "edgecolor": hue, "linewidth": 1.4, "linestyle": line["linestyle"]},
        whiskerprops=line,
        medianprops={"color": style.TEXT, "linewidth": 2.2, "solid_capstyle": "butt"},
        zorder=4,
    )


def _outside(axes: Axes, values: np.ndarray, limits: tuple[float, float], lane: float) -> None:
    below, above = np.count_nonzero(values < limits[0]), np.count_nonzero(values > limits[1])
    if below:
        axes.text(limits[0], lane + 0.42, f"← {below} more", fontsize=9, color=style.MUTED, ha="left", va="center")
    if above:
        axes.text(limits[1], lane + 0.42, f"{above} more →", fontsize=9, color=style.MUTED, ha="right", va="center")


def _paper_row(paper: pd.DataFrame | None, model: str, **conditions: str) -> pd.Series | None:
    """Return the paper's row for a model, or None if the paper does not have that model."""
    labels = {entry.key: label for label, entry in papers().items()}
    if paper is None or model not in labels:
        return None
    rows = paper[paper["model"] == labels[model]]
    for column, value in conditions.items():
        rows = rows[rows[column] == value]
    return rows.iloc[0] if len(rows) else None
