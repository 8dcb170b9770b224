"""Charts, drawn with matplotlib from tidy tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from scipy import stats

from helpers import softening
from helpers.figures.style import (
    _MUTED,
    _PANEL,
    _TEXT,
    COLOURS,
    STYLE,
    _chosen,
    _labels,
    _legend,
    _note,
    _panels,
    _range,
    _readable,
    _rows,
    _significant,
    _size,
    _square,
    _title,
    colour,
    in_order,
    label,
    marker,
)
from helpers.potentials import CATALOGUE


def parity(
    table: pd.DataFrame,
    what: str,
    quantity: str | None = None,
    paper: pd.DataFrame | None = None,
    clusters: str | None = "material",
    models: Sequence[str] | None = None,
    fit: bool = True,
) -> Figure:
    """Draw model against DFT for a scalar property, one panel per model.

    Each panel has the diagonal, the line fitted through the origin, and the numbers: n, slope with its 95 % interval (bootstrap over
    materials) and MAE.

    Parameters
    ----------
    table : DataFrame
        Tidy table; failed rows are left out.
    what : str
        Name of the property for the axes: ``surface energy``.
    quantity : str, optional
        Which property, if the table has several.
    paper : DataFrame, optional
        The paper's points, from :func:`paper_points`: open markers behind ours.
    clusters : str or None
        Column to resample for the interval; None resamples single values.
    models : sequence of str, optional
        Which models, in which order. By default all, in the order of the catalogue.
    fit : bool
        Draw the fitted line and its slope; not where the reference is another functional.

    Raises
    ------
    ValueError
        If there is nothing to draw, or the table holds several properties or units.
    """
    rows = _rows(table, quantity)
    units = rows["unit"].unique()
    if len(units) != 1:
        raise ValueError(f"one unit is needed, but the table has {', '.join(map(str, units))}")
    models = _chosen(rows, models)
    with mpl.rc_context(STYLE):
        figure, axes, spare = _panels(len(models), extra=0.3)
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
            _parity_panel(panel, model, part, shown[shown["model"] == model], clusters, (low, high), str(units[0]), fit)
        _labels(figure, axes, what, str(units[0]))
        handles = [
            Line2D([], [], color="#444444", marker="o", linestyle="none", markersize=6, label="ours"),
            *([Line2D([], [], color="#444444", linewidth=2, label="fit through zero")] if fit else []),
            Line2D([], [], color=_TEXT, linewidth=1.1, linestyle=(0, (4, 2.5)), label="model = DFT"),
        ]
        if len(shown):
            handles.insert(
                1, Line2D([], [], color="#444444", marker="o", markerfacecolor="none", linestyle="none", alpha=0.55, label="paper")
            )
        _legend(figure, spare, handles)
    return figure


def _parity_panel(
    axes: Axes,
    model: str,
    part: pd.DataFrame,
    paper: pd.DataFrame,
    clusters: str | None,
    limits: tuple[float, float],
    unit: str,
    fit: bool = True,
    brief: bool = False,
) -> None:
    x, y = part["reference"].to_numpy(dtype=float), part["value"].to_numpy(dtype=float)
    if len(paper):
        axes.plot(
            paper["reference"],
            paper["value"],
            marker=marker(model),
            linestyle="none",
            markersize=_size(model, 4.5),
            markerfacecolor="none",
            markeredgecolor=colour(model),
            markeredgewidth=0.9,
            alpha=0.45,
            zorder=3,
        )
    axes.plot(
        x,
        y,
        marker=marker(model),
        linestyle="none",
        markersize=_size(model, 5.5),
        color=colour(model),
        markeredgecolor="white",
        markeredgewidth=0.5,
        alpha=0.9,
        zorder=4,
    )
    summary = softening.scalar_summary(y, x, clusters=None if clusters is None else part[clusters])
    _square(axes, *limits)
    lines = [f"n = {summary['n']}", f"MAE {_significant(summary['mae'])} {unit}"]
    if brief:
        lines = [f"MAE {summary['mae']:.2f} {unit}"]
    if fit:
        ends = np.array([min(x.min(), 0.0), max(x.max(), 0.0)])
        axes.plot(ends, summary["slope"] * ends, color=colour(model), linewidth=2, zorder=5, path_effects=_casing())
        interval = "" if brief else _range(summary["slope_low"], summary["slope_high"])
        lines.insert(-1, f"slope {summary['slope']:.2f}{interval}")
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    _note(axes, "\n".join(lines))
    _title(axes, model)


def _casing(width: float = 4.0) -> list[object]:
    """Return path effects that put white on both sides of a line, so that it stands out from points of its own colour."""
    return [Stroke(linewidth=width, foreground="white"), Normal()]


def _ramp(base: str) -> LinearSegmentedColormap:
    """Return a colour map from a tint to a shade of one colour."""
    rgb = np.array(to_rgb(base))
    return LinearSegmentedColormap.from_list("ramp", [0.8 + 0.2 * rgb, rgb, 0.3 * rgb])


def force_parity(
    table: pd.DataFrame, models: Sequence[str] | None = None, limit: float | None = None, quantity: str = "force", gridsize: int = 42
) -> Figure:
    """Draw model against DFT force components as a density, one panel per model (the paper's Fig. 5a).

    Each panel has the fitted line through the origin, the softening scale, MAE and corrected MAE of all components together.

    Parameters
    ----------
    table : DataFrame
        Tidy table, one row per component; failed rows are left out.
    models : sequence of str, optional
        Which models, in which order.
    limit : float, optional
        Largest component drawn, eV/Å. By default it holds 99.9 % of the DFT components; how many points lie outside is written in the
        panel. All count for the numbers.
    quantity : str
        The property.
    gridsize : int
        Hexagons across a panel.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    rows = _rows(table, quantity)
    models = _chosen(rows, models)
    with mpl.rc_context(STYLE):
        figure, axes, spare = _panels(len(models), extra=1.1)
        if limit is None:
            limit = float(np.quantile(np.abs(rows["reference"].to_numpy(dtype=float)), 0.999)) * 1.05
        drawn = [
            _force_panel(panel, model, rows[rows["model"] == model], limit, gridsize) for panel, model in zip(axes, models, strict=True)
        ]
        norm = LogNorm(1, max(2, *(hexagons.get_array().max() for hexagons in drawn)))
        for hexagons in drawn:
            hexagons.set_norm(norm)
        _labels(figure, axes, "force", "eV/Å")
        # One scale for all panels, in grey: lightness counts, hue names the model.
        scale = mpl.cm.ScalarMappable(norm, _ramp("#7F7F7F"))
        if spare is None:
            figure.colorbar(scale, ax=axes, location="bottom", shrink=0.6, aspect=28, label="components per hexagon")
        else:
            figure.colorbar(scale, cax=spare.inset_axes([0.1, 0.28, 0.8, 0.05]), orientation="horizontal", label="components per hexagon")
        handles = [
            Line2D([], [], color="#444444", linewidth=2, label="fit through zero"),
            Line2D([], [], color=_TEXT, linewidth=1.1, linestyle=(0, (4, 2.5)), label="model = DFT"),
        ]
        _legend(figure, spare, handles)
    return figure


def _lanes(models: Sequence[str], height: float) -> tuple[Figure, Axes]:
    """Return a figure with one horizontal lane per model, the first on top."""
    figure = Figure(figsize=(6.9, height * len(models) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_ylim(len(models) - 0.45, -0.6)
    axes.set_yticks(range(len(models)), [label(model).replace(" ", "\n", 1) for model in models], fontweight="bold", linespacing=1.3)
    for tick, model in zip(axes.get_yticklabels(), models, strict=True):
        tick.set_color(_readable(model))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure, axes


def _good_fits(fits: pd.DataFrame, models: Sequence[str] | None) -> tuple[pd.DataFrame, list[str]]:
    good = fits[fits["status"] == "ok"]
    if good.empty:
        raise ValueError("no material has a fit")
    for model, part in good.groupby("model", observed=True):
        if part["material"].duplicated().any():
            raise ValueError(f"materials of {model} occur more than once: pass one reference set")
    return good, _chosen(good, models)


def _force_panel(axes: Axes, model: str, part: pd.DataFrame, limit: float, gridsize: int, brief: bool = False) -> PolyCollection:
    """Draw one model's force components as hexagons, with the fit and the numbers (``brief``: two of them); return the hexagons."""
    x, y = part["reference"].to_numpy(dtype=float), part["value"].to_numpy(dtype=float)
    inside = (np.abs(x) <= limit) & (np.abs(y) <= limit)
    hexagons = axes.hexbin(
        x[inside],
        y[inside],
        gridsize=gridsize,
        extent=(-limit, limit, -limit, limit),
        mincnt=1,
        cmap=_ramp(colour(model)),
        norm=LogNorm(),
        linewidths=0.1,
        zorder=2,
    )
    _square(axes, -limit, limit)
    fitted = softening.fit(x, y)
    ends = np.array([-limit, limit])
    axes.plot(ends, fitted.slope * ends, color=_readable(model), linewidth=2, zorder=5, path_effects=_casing())
    axes.set_ylim(-limit, limit)
    if brief:
        _note(axes, f"slope {fitted.slope:.2f}\nMAE {fitted.mae:.2f} eV/Å")
        return hexagons
    _note(axes, f"slope {fitted.slope:.3f}\nMAE {fitted.mae:.3f}\ncMAE {fitted.cmae:.3f} eV/Å")
    _title(axes, model)
    outside = np.count_nonzero(~inside)
    _note(axes, f"n = {len(x):,}" + (f"\n{outside:,} outside" if outside else ""), "lower right")
    return hexagons


def force_histogram(forces: pd.DataFrame, sets: Mapping[str, str]) -> Figure:
    """Draw how large the DFT force components of some sets are, on a logarithmic axis.

    Parameters
    ----------
    forces : DataFrame
        Force rows of one model (the DFT values are the same for all).
    sets : mapping of str to str
        Set → name in the legend. The first is drawn as a grey area: what the others are compared with.
    """
    edges = np.logspace(-3, 2, 61)
    centres = np.sqrt(edges[1:] * edges[:-1])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2 * _PANEL + 0.2, 4.3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        tones = ["#9AA3AC", COLOURS["chgnet-0.3.0"], COLOURS["m3gnet-mp-2021.2.8"], "#222222"]
        for (name, text), tone, style in zip(sets.items(), tones, ["-", "-", "--", ":"], strict=False):
            sizes = np.abs(forces.loc[forces["set"] == name, "reference"].to_numpy(dtype=float))
            sizes = sizes[sizes > 0]
            density, _ = np.histogram(sizes, bins=edges)
            density = density / density.sum() / np.log10(edges[1] / edges[0])
            where = f"{text} (median {_significant(float(np.median(sizes)))} eV/Å)"
            if tone == tones[0]:
                axes.fill_between(centres, density, color=tone, alpha=0.45, linewidth=0, label=where)
            else:
                axes.plot(centres, density, color=tone, linestyle=style, label=where)
        axes.set(xscale="log", xlabel="size of a DFT force component (eV/Å)", ylabel="share per decade", xlim=(1e-3, 40))
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper left", ncols=1)
    return figure


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
        figure = Figure(figsize=(2 * _PANEL + 0.2, 0.9 + 0.16 * len(materials) * (len(models) + 1)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.axvline(ideal, color=_TEXT, linewidth=1.1, linestyle=(0, (4, 2.5)), zorder=2)
        for lane, model in enumerate(models):
            part = table[table["model"] == model].set_index("material").reindex(materials)
            y = np.arange(len(materials)) + _lane(lane, len(models))
            if f"{quantity}_low" in table:
                axes.hlines(y, part[f"{quantity}_low"], part[f"{quantity}_high"], color=colour(model), linewidth=1.6, alpha=0.75)
            axes.plot(
                part[quantity],
                y,
                marker=marker(model),
                color=colour(model),
                linestyle="none",
                markersize=_size(model, 6),
                label=label(model),
            )
        _name_lanes(axes, materials)
        axes.set_xlabel(what)
        figure.legend(loc="outside upper center", ncols=2, columnspacing=1.2)
    return figure


def scale_against_temperature(table: pd.DataFrame, melting_k: Mapping[str, float]) -> Figure:
    """Draw the softening scale against the temperature, one panel per element, with the melting point.

    Parameters
    ----------
    table : DataFrame
        From :func:`helpers.benchmarks.off_equilibrium.by_temperature`.
    melting_k : mapping of str to float
        Melting point of each element, K.
    """
    elements = list(melting_k)
    models = in_order(table["model"])
    with mpl.rc_context(STYLE):
        figure, axes, spare = _panels(len(elements))
        figure.set_figheight(0.75 * figure.get_figheight())
        for panel, element in zip(axes, elements, strict=True):
            panel.axhline(1, color=_TEXT, linewidth=1.1, linestyle=(0, (4, 2.5)), zorder=2)
            panel.axvspan(melting_k[element], 2e4, color="#F4E6D8", zorder=0)
            for model in models:
                part = table[(table["model"] == model) & (table["element"] == element)].sort_values("temperature_k")
                spread = np.abs(part[["slope_low", "slope_high"]].to_numpy().T - part["slope"].to_numpy())
                panel.errorbar(
                    part["temperature_k"],
                    part["slope"],
                    spread,
                    color=colour(model),
                    marker=marker(model),
                    markersize=_size(model, 5.5),
                    linewidth=1.4,
                    zorder=3,
                )
            panel.set(xscale="log", xlim=(230, 7500), ylim=(0.3, 1.45))
            panel.set_xticks([300, 1000, 3000], ["300", "1000", "3000"])
            panel.set_xticks([], minor=True)
            panel.set_title(element, loc="left")
        for position, panel in enumerate(axes):
            if position + 2 >= len(axes):
                panel.set_xlabel("temperature (K)")
            if position % 2 == 0:
                panel.set_ylabel("softening scale")
        handles = [Line2D([], [], color=colour(m), marker=marker(m), markersize=_size(m, 5.5), label=label(m)) for m in models]
        _legend(figure, spare, [*handles, Patch(color="#F4E6D8", label="above the melting point")])
    return figure


def label_choices(choices: pd.DataFrame, what: str, limits: tuple[float, float] = (0.0, 2.0)) -> Figure:
    """Draw what a correction does for every choice of its label: a point per choice, a bar from the 10 % to the 90 % quantile, the median.

    Parameters
    ----------
    choices : DataFrame
        One row per ``model``, ``material`` and choice, with ``ratio`` (error after over error before) and ``status``.
    what : str
        Name of the ratio on the axis.
    limits : (float, float)
        Range drawn; points beyond are put on the edge.
    """
    good = choices[choices["status"] == "ok"]
    models = in_order(good["model"])
    materials = sorted(good["material"].unique())
    rng = np.random.default_rng(0)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2 * _PANEL + 0.2, 0.9 + 0.2 * len(materials) * (len(models) + 1)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.axvline(1, color=_TEXT, linewidth=1.1, linestyle=(0, (4, 2.5)), zorder=2)
        for lane, model in enumerate(models):
            for row, material in enumerate(materials):
                ratio = good.loc[(good["model"] == model) & (good["material"] == material), "ratio"].to_numpy()
                if not len(ratio):
                    continue
                y = row + _lane(lane, len(models))
                jitter = rng.uniform(-0.06, 0.06, len(ratio))
                axes.plot(
                    np.clip(ratio, *limits), y + jitter, ".", color=colour(model), markersize=2.5, alpha=0.35, zorder=3, clip_on=False
                )
                axes.hlines(y, *np.clip(np.quantile(ratio, [0.1, 0.9]), *limits), color=colour(model), linewidth=3, alpha=0.55, zorder=4)
                axes.plot(
                    np.clip(np.median(ratio), *limits),
                    y,
                    marker=marker(model),
                    color=colour(model),
                    markeredgecolor="white",
                    markersize=_size(model, 7),
                    linestyle="none",
                    zorder=5,
                    label=label(model),
                )
        _name_lanes(axes, materials)
        axes.set(xlabel=what, xlim=limits)
        handles = {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, columnspacing=1.2)
    return figure


def _lane(position: int, n: int) -> float:
    """Return where a model lies within its material's lane, −0.4 to 0.4, the first on top."""
    return -0.4 + 0.8 * (position + 0.5) / n


def _name_lanes(axes: Axes, materials: Sequence[str]) -> None:
    """Name the lanes, the first on top, with a line between each two."""
    axes.set_yticks(range(len(materials)), materials)
    axes.set_ylim(len(materials) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for edge in range(1, len(materials)):
        axes.axhline(edge - 0.5, color="#E4E7EA", linewidth=0.8, zorder=1)


def hero(before: pd.DataFrame, after: pd.DataFrame, surfaces: pd.DataFrame, model: str) -> Figure:
    """Draw softening in one picture, three panels: forces as trained, surface energies, and the same forces after fine-tuning.

    Parameters
    ----------
    before, after : DataFrame
        Force rows of the same frames.
    surfaces : DataFrame
        Rows of one property of ``surfaces``.
    model : str
        The model's key.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        before, after, surfaces = _rows(before, "force"), _rows(after, "force"), _rows(surfaces, None)
        limit = float(np.quantile(np.abs(before["reference"].to_numpy(dtype=float)), 0.999)) * 1.05
        _force_panel(left, model, before, limit, 42, brief=True)
        _force_panel(right, model, after, limit, 42, brief=True)
        top = 1.05 * float(surfaces[["value", "reference"]].to_numpy().max())
        _parity_panel(middle, model, surfaces, pd.DataFrame(), "material", (-0.02 * top, top), str(surfaces["unit"].iloc[0]), brief=True)
        for axes, what in ((left, "force (eV/Å)"), (middle, "surface energy (eV/Å²)"), (right, "force (eV/Å)")):
            axes.set(xlabel=f"DFT {what}", ylabel=f"model {what}")
        for axes, title in ((left, "Forces: too weak"), (middle, "Surfaces: too cheap"), (right, "After ten labels")):
            axes.set_title(title, loc="left", color=_TEXT)
    return figure


def scale_distribution(
    fits: pd.DataFrame,
    paper_stats: pd.DataFrame | None = None,
    models: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw the softening scales of all materials for each model (the paper's Fig. 5b).

    Above each lane's axis the density, on it a box (quartiles, median), below it each material as a point.

    Parameters
    ----------
    fits : DataFrame
        From :func:`helpers.softening.per_material`, of one reference set.
    paper_stats : DataFrame, optional
        ``fig5b_stats.csv``: columns ``model`` (the paper's names), ``q25``, ``median``, ``q75``. Drawn as an open marker with a bar.
    models : sequence of str, optional
        Which models, in which order.
    limits : (float, float), optional
        Range of scales drawn. By default all, unless a few lie far out; the number of those outside is written at the edge.

    Raises
    ------
    ValueError
        If no material has a fit, or a material occurs more than once for a model.
    """
    good, models = _good_fits(fits, models)
    with mpl.rc_context(STYLE):
        figure, axes = _lanes(models, 1.15)
        if limits is None:
            limits = _robust_limits(good["slope"].to_numpy(dtype=float))
        axes.axvline(1.0, color=_TEXT, linewidth=1.1, linestyle=(0, (4, 2.5)), zorder=1)
        rng = np.random.default_rng(0)
        for lane, model in enumerate(models):
            values = good.loc[good["model"] == model, "slope"].to_numpy(dtype=float)
            inside = values[(values >= limits[0]) & (values <= limits[1])]
            hue = colour(model)
            _cloud(axes, inside, lane - 0.16, 0.34, limits, hue)
            _quartile_box(axes, _five(values, limits), lane - 0.06, 0.13, hue, "white")
            size = float(np.clip(60 / np.sqrt(len(values)), 2.5, 6))
            jitter = lane + 0.12 + rng.uniform(-0.055, 0.055, len(inside))
            axes.plot(
                inside, jitter, marker=marker(model), linestyle="none", color=hue, markersize=size, alpha=0.55, markeredgewidth=0, zorder=3
            )
            paper = _paper_row(paper_stats, model)
            if paper is not None:
                axes.plot([paper["q25"], paper["q75"]], [lane + 0.28] * 2, color=hue, linewidth=1.4, zorder=3)
                axes.plot(
                    paper["median"],
                    lane + 0.28,
                    marker=marker(model),
                    color=hue,
                    markerfacecolor="white",
                    markersize=8,
                    markeredgewidth=1.6,
                    zorder=4,
                )
            below = np.mean(values < 1)
            axes.text(
                1.0,
                lane - 0.06,
                f"median {np.median(values):.2f}\n{below:.0%} below 1\nn = {len(values)}",
                transform=axes.get_yaxis_transform(),
                ha="left",
                va="center",
                fontsize=10,
                color=_TEXT,
                linespacing=1.3,
            )
            _outside(axes, values, limits, lane)
        axes.set_xlim(limits)
        axes.set_xlabel("softening scale of a material")
        handles = [
            Patch(facecolor="#444444", alpha=0.25, label="density"),
            Line2D([], [], color="#444444", marker="o", linestyle="none", alpha=0.6, markersize=5, label="a material"),
            Patch(facecolor="white", edgecolor="#444444", linewidth=1.4, label="quartiles, median"),
        ]
        if paper_stats is not None:
            handles.append(Line2D([], [], color="#444444", marker="o", markerfacecolor="white", linewidth=1.4, label="paper"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.2, handletextpad=0.5)
    return figure


def _robust_limits(values: np.ndarray) -> tuple[float, float]:
    """Return limits that hold all values, unless some lie more than four times the interquartile range beyond the quartiles."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    reach = 4 * (upper - lower)
    kept = values[(values >= lower - reach) & (values <= upper + reach)]
    low, high = min(kept.min(), 1.0), max(kept.max(), 1.0)
    margin = 0.04 * (high - low) + 0.04
    return float(low - margin), float(high + margin)


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
        medianprops={"color": _TEXT, "linewidth": 2.2, "solid_capstyle": "butt"},
        zorder=4,
    )


def _outside(axes: Axes, values: np.ndarray, limits: tuple[float, float], lane: float) -> None:
    below, above = np.count_nonzero(values < limits[0]), np.count_nonzero(values > limits[1])
    if below:
        axes.text(limits[0], lane + 0.42, f"← {below} more", fontsize=9, color=_MUTED, ha="left", va="center")
    if above:
        axes.text(limits[1], lane + 0.42, f"{above} more →", fontsize=9, color=_MUTED, ha="right", va="center")


def _paper_row(paper: pd.DataFrame | None, model: str, **conditions: str) -> pd.Series | None:
    """Return the paper's row for a model, or None if the paper does not have that model."""
    if paper is None or model not in CATALOGUE or CATALOGUE[model].paper_label is None:
        return None
    rows = paper[paper["model"] == CATALOGUE[model].paper_label]
    for column, value in conditions.items():
        rows = rows[rows[column] == value]
    return rows.iloc[0] if len(rows) else None


def mae_cmae(
    fits: pd.DataFrame,
    paper_quartiles: pd.DataFrame | None = None,
    models: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw the distribution over materials of the force MAE, before and after the slope is corrected (the paper's Fig. 6b).

    Parameters
    ----------
    fits : DataFrame
        From :func:`helpers.softening.per_material`, of one reference set.
    paper_quartiles : DataFrame, optional
        ``fig6b_quartiles.csv``: columns ``model``, ``quantity`` (MAE, cMAE), ``q25``, ``median``, ``q75``; drawn as dashed boxes
        without whiskers.
    models : sequence of str, optional
        Which models, in which order.
    limits : (float, float), optional
        Range drawn, eV/Å. By default from zero to the largest 95 % quantile.

    Raises
    ------
    ValueError
        As for :func:`scale_distribution`.
    """
    good, models = _good_fits(fits, models)
    with mpl.rc_context(STYLE):
        figure, axes = _lanes(models, 1.05)
        if limits is None:
            tops = good.groupby("model", observed=True)[["mae", "cmae"]].quantile(0.95).to_numpy()
            limits = (0.0, float(tops.max()) * 1.04)
        for lane, model in enumerate(models):
            hue, part = colour(model), good[good["model"] == model]
            for quantity, at, filled in (("mae", lane - 0.3, True), ("cmae", lane + 0.12, False)):
                values = part[quantity].to_numpy(dtype=float)
                tint = tuple(0.45 * np.array(to_rgb(hue)) + 0.55) if filled else "white"
                _quartile_box(axes, _five(values, limits), at, 0.2, hue, tint)
                axes.text(
                    1.01,
                    at,
                    f"{'cMAE' if quantity == 'cmae' else 'MAE'} {np.median(values):.3f}",
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=10,
                    color=_TEXT,
                )
                paper = _paper_row(paper_quartiles, model, quantity="cMAE" if quantity == "cmae" else "MAE")
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
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.2)
    return figure
