"""The one visual language of the book: a colour and a marker for each model, and every kind of figure.

Functions take tidy tables (:mod:`helpers.benchmarks`, :mod:`helpers.softening`) and return a figure; they touch no global
plotting state. :func:`show` gives a figure its alternative text and its caption. The paper's values
are open markers in the colour of the model they belong to.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil
from zlib import crc32

import ase
import matplotlib as mpl
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from ase.visualize.plot import plot_atoms
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator
from scipy import stats

from helpers import softening
from helpers.potentials import CATALOGUE
from helpers.registry import data_dir

# Okabe and Ito's colours (jfly.uni-koeln.de/color, 2008) and Tol's olive; models of one architecture have related hues.
COLOURS: dict[str, str] = {
    "DFT": "#000000",
    "chgnet-0.3.0": "#0072B2",
    "chgnet-0.2.0": "#56B4E9",
    "m3gnet-mp-2021.2.8": "#D55E00",
    "m3gnet-matpes-pbe-2025.1": "#E69F00",
    "tensornet-matpes-pbe-2025.1": "#CC79A7",
    "mace-mp-0-medium": "#009E73",
    "mace-mpa-0-medium": "#999933",
}

MARKERS: dict[str, str] = {
    "DFT": "x",
    "chgnet-0.3.0": "o",
    "chgnet-0.2.0": "h",
    "m3gnet-mp-2021.2.8": "s",
    "m3gnet-matpes-pbe-2025.1": "D",
    "tensornet-matpes-pbe-2025.1": "P",
    "mace-mp-0-medium": "^",
    "mace-mpa-0-medium": "v",
}

# Markers of equal size in points do not look equally large.
_MARKER_SCALE = {"D": 0.85, "P": 1.25, "*": 1.4, "X": 1.15, "^": 1.1, "v": 1.1, "<": 1.1}

# A model of the reader's own, and models made from a catalogue model.
_OTHER_COLOUR, _OTHER_MARKER, _SCALED_MARKER, _TUNED_MARKER = "#5A5A5A", "<", "*", "X"

_PLOTLY_SYMBOL = {
    "x": "x-thin",
    "o": "circle",
    "h": "hexagon",
    "s": "square",
    "D": "diamond",
    "P": "cross",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    "*": "star",
    "X": "x",
}

STYLE = {
    "figure.dpi": 96,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E7EA",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "mathtext.default": "regular",
}

_TEXT = "#222222"
_MUTED = "#6B7480"
_PANEL = 3.35  # inch; two panels side by side fill a column of text and can still be read on a phone
_SINGLE = 4.6  # inch, of a panel alone
_RESOLUTION = 192  # dots per inch of the page's 96, for screens with small pixels

_ids = count()


# ---------------------------------------------------------------------------------------------------
# Colours, markers, names


def apply_style() -> None:
    """Make the book's style the default of matplotlib, for figures drawn by hand in a notebook."""
    mpl.rcParams.update(STYLE)


def base_key(model: str) -> str:
    """Return the catalogue key that a model was made from: ``chgnet-0.3.0*1.2500`` and ``chgnet-0.3.0+10`` are CHGNet 0.3.0."""
    return model if model.startswith(("ase:", "file:")) else model.split("*")[0].split("+")[0]


def colour(model: str) -> str:
    """Return the colour of a model: its own, that of the model it was made from, or grey."""
    return COLOURS.get(base_key(model), _OTHER_COLOUR)


def marker(model: str) -> str:
    """Return the marker of a model. A scaled model is a star, a fine-tuned one a filled cross."""
    base = base_key(model)
    made = model[len(base) :]
    if made:
        return _SCALED_MARKER if "*" in made else _TUNED_MARKER
    return MARKERS.get(base, _OTHER_MARKER)


def _size(model: str, points: float) -> float:
    return points * _MARKER_SCALE.get(marker(model), 1.0)


def label(model: str) -> str:
    """Return the name of a model for figures and text."""
    base = base_key(model)
    name = CATALOGUE[base].label if base in CATALOGUE else base
    made, _, factor = model[len(base) :].partition("*")
    if made:
        labels = made.removeprefix("+")
        name += f" + {labels} label{'' if labels == '1' else 's'}"
    return f"{name} × {float(factor):.2f}" if factor else name


def in_order(models: Iterable[str]) -> list[str]:
    """Return models in the order of the catalogue, so that every figure lists them alike; unknown ones last."""
    order = {key: position for position, key in enumerate(COLOURS)}
    return sorted(set(models), key=lambda model: (order.get(base_key(model), len(order)), model))


def paper_key(paper_label: str) -> str:
    """Return the catalogue key of one of the paper's three models.

    Raises
    ------
    ValueError
        If the paper has no such model.
    """
    keys = {entry.paper_label: key for key, entry in CATALOGUE.items() if entry.paper_label}
    if paper_label not in keys:
        raise ValueError(f"the paper has no model {paper_label!r}; it has {', '.join(sorted(keys))}")
    return keys[paper_label]


def paper_points(figure: str) -> pd.DataFrame:
    """Read a digitised parity figure of the paper.

    Parameters
    ----------
    figure : {"fig2a", "fig2b", "fig2c"}
        Surfaces (eV/Å²), defects (eV) or solid solutions (eV per formula unit).

    Returns
    -------
    DataFrame
        Columns ``model`` (catalogue key), ``value``, ``reference``. Points that lie off the figure's axis are left out.

    Raises
    ------
    FileNotFoundError
        If that figure was not digitised.
    ValueError
        If the table holds no DFT column.
    """
    wide = pd.read_csv(data_dir() / "paper" / f"{figure}_digitised.csv")
    column = {name: next((c for c in wide if name in c.split("_")), None) for name in ("DFT", "M3GNet", "CHGNet", "MACE")}
    if column["DFT"] is None:
        raise ValueError(f"the digitised {figure} has no DFT column; it has {', '.join(wide)}")
    reference = wide[column.pop("DFT")]
    parts = [
        pd.DataFrame({"model": paper_key(name), "value": wide[source], "reference": reference}) for name, source in column.items() if source
    ]
    return pd.concat(parts, ignore_index=True).dropna(ignore_index=True)


# ---------------------------------------------------------------------------------------------------
# Shared pieces


def _rows(table: pd.DataFrame, quantity: str | None) -> pd.DataFrame:
    """Return the rows to draw: one property, nothing that failed."""
    rows = table if quantity is None else table[table["property"] == quantity]
    properties = sorted(rows["property"].unique())
    if len(properties) != 1:
        asked = "" if quantity is None else f" of property {quantity!r}"
        raise ValueError(f"one property is needed, but the table{asked} has {properties or 'no rows'}; choose with quantity=…")
    rows = rows[rows["status"] == "ok"]
    if rows.empty:
        raise ValueError(f"every row of property {properties[0]!r} failed")
    bad = rows[~np.isfinite(rows[["value", "reference"]].to_numpy(dtype=float)).all(axis=1)]
    if len(bad):
        raise ValueError(f"{len(bad)} rows with status 'ok' hold values that are not finite, first in case {bad['case'].iloc[0]!r}")
    return rows


def _chosen(rows: pd.DataFrame, models: Sequence[str] | None) -> list[str]:
    """Return the models to draw, after checking that all of them are there."""
    there = set(rows["model"])
    if models is None:
        return in_order(there)
    missing = [model for model in models if model not in there]
    if missing or not models:
        raise ValueError(f"the table has no good rows of {', '.join(missing) or 'any model'}; it has {', '.join(in_order(there))}")
    return list(models)


def _panels(n: int, extra: float = 0.0) -> tuple[Figure, list[Axes], Axes | None]:
    """Return a figure with n panels in at most two columns, and the empty place beside the last one, if there is one.

    ``extra`` inches of height are added when there is no empty place for legend and colour bar.
    """
    columns = min(n, 2)
    lines = ceil(n / columns)
    extra = 0.0 if n % columns else extra
    side = _PANEL if columns == 2 else _SINGLE
    figure = Figure(figsize=(side * columns + 0.2, side * lines + 0.2 + extra), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).ravel())
    spare = axes[n] if len(axes) > n else None
    if spare is not None:
        spare.set_axis_off()
    return figure, axes[:n], spare


def _legend(figure: Figure, spare: Axes | None, handles: list[object]) -> None:
    """Put the legend into the empty place, else above the panels."""
    if spare is not None:
        spare.legend(handles=handles, loc="center", fontsize=STYLE["legend.fontsize"] + 0.5, labelspacing=1.0)
    else:
        columns = len(handles) if figure.get_figwidth() > 2 * _PANEL else 2
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.2)


def _note(axes: Axes, text: str, corner: str = "upper left") -> None:
    """Write numbers into a corner of a panel, on a veil of white that keeps them apart from points."""
    x, horizontal = (0.035, "left") if "left" in corner else (0.965, "right")
    y, vertical = (0.965, "top") if "upper" in corner else (0.035, "bottom")
    axes.text(
        x,
        y,
        text,
        transform=axes.transAxes,
        ha=horizontal,
        va=vertical,
        color=_TEXT,
        fontsize=10,
        linespacing=1.35,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "boxstyle": "square,pad=0.15"},
        zorder=10,
    )


def _range(low: float, high: float, digits: int = 2) -> str:
    if not np.isfinite([low, high]).all():
        return ""
    # No-break spaces keep an interval in one piece where a table is narrow.
    return f"\u00a0[{low:.{digits}f},\u00a0{high:.{digits}f}]"


def _significant(value: float) -> str:
    """Return three significant digits, with their zeros."""
    return f"{value:#.3g}".rstrip(".")


def _square(axes: Axes, low: float, high: float) -> None:
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    # The same few round ticks on both axes, so that the diagonal can be read off.
    ticks = MaxNLocator(nbins=5).tick_values(low, high)
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.plot([low, high], [low, high], color=_TEXT, linewidth=1.1, linestyle=(0, (4, 2.5)), zorder=2.5)


def _title(axes: Axes, model: str) -> None:
    axes.set_title(label(model), color=_readable(model), loc="left")


def _readable(model: str) -> tuple[float, float, float]:
    """Return a model's colour, darkened until text in it has a contrast of 4.5 on white (WCAG 2.1, criterion 1.4.3)."""
    rgb = np.array(to_rgb(colour(model)))
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5:
            return tuple(rgb)
        rgb *= 0.96


def _labels(figure: Figure, axes: Sequence[Axes], what: str, unit: str) -> None:
    """Label the outer axes only: below the lowest panel of each column, and left of each line."""
    columns = min(len(axes), 2)
    suffix = f" ({unit})" if unit else ""
    for position, panel in enumerate(axes):
        if position + columns >= len(axes):
            panel.set_xlabel(f"DFT {what}{suffix}")
        if position % columns == 0:
            panel.set_ylabel(f"model {what}{suffix}")


# ---------------------------------------------------------------------------------------------------
# Static figures


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
    if fit:
        ends = np.array([min(x.min(), 0.0), max(x.max(), 0.0)])
        axes.plot(ends, summary["slope"] * ends, color=colour(model), linewidth=2, zorder=5, path_effects=_casing())
        lines.insert(1, f"slope {summary['slope']:.2f}{_range(summary['slope_low'], summary['slope_high'])}")
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


def _force_panel(axes: Axes, model: str, part: pd.DataFrame, limit: float, gridsize: int) -> PolyCollection:
    """Draw one model's force components as hexagons, with the fit and the numbers; return the hexagons."""
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
    _note(axes, f"slope {fitted.slope:.3f}\nMAE {fitted.mae:.3f}\ncMAE {fitted.cmae:.3f} eV/Å")
    outside = np.count_nonzero(~inside)
    _note(axes, f"n = {len(x):,}" + (f"\n{outside:,} outside" if outside else ""), "lower right")
    _title(axes, model)
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
        figure = Figure(figsize=(8.6, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        before, after, surfaces = _rows(before, "force"), _rows(after, "force"), _rows(surfaces, None)
        limit = float(np.quantile(np.abs(before["reference"].to_numpy(dtype=float)), 0.999)) * 1.05
        _force_panel(left, model, before, limit, 42)
        _force_panel(right, model, after, limit, 42)
        top = 1.05 * float(surfaces[["value", "reference"]].to_numpy().max())
        _parity_panel(middle, model, surfaces, pd.DataFrame(), "material", (-0.02 * top, top), str(surfaces["unit"].iloc[0]))
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


# ---------------------------------------------------------------------------------------------------
# Interactive figures


def interactive_parity(
    table: pd.DataFrame, what: str, unit: str | None = None, label_column: str = "case", quantity: str | None = None
) -> go.Figure:
    """Draw model against DFT for a scalar property, all models in one plot; hovering names the case.

    Parameters
    ----------
    table : DataFrame
        Tidy table; failed rows are left out.
    what : str
        Name of the property for the axes.
    unit : str, optional
        By default that of the table.
    label_column : str
        Column that hovering shows.
    quantity : str, optional
        Which property, if the table has several.

    Returns
    -------
    plotly.graph_objects.Figure
        As wide as its place. Only ``scatter`` traces: the basic bundle of plotly.js is enough. Give it to :func:`show`.

    Raises
    ------
    ValueError
        If there is nothing to draw, or the label column is missing.
    """
    if label_column not in table:
        raise ValueError(f"the table has no column {label_column!r}")
    rows = _rows(table, quantity)
    unit = str(rows["unit"].iloc[0]) if unit is None else unit
    numbers = rows[["value", "reference"]].to_numpy(dtype=float)
    low, high = numbers.min(), numbers.max()
    margin = 0.05 * (high - low)
    ends = [low - margin, high + margin]
    figure = go.Figure()
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": _TEXT, "width": 1.2, "dash": "dash"}, hoverinfo="skip", name="model = DFT"
    )
    for model in in_order(rows["model"]):
        part = rows[rows["model"] == model]
        figure.add_scatter(
            x=part["reference"].astype(float).tolist(),
            y=part["value"].astype(float).tolist(),
            text=part[label_column].astype(str).tolist(),
            mode="markers",
            name=label(model),
            marker={"color": colour(model), "symbol": _PLOTLY_SYMBOL[marker(model)], "size": 8, "line": {"color": "white", "width": 0.6}},
            hovertemplate=f"<b>%{{text}}</b><br>{label(model)} %{{y:.4g}}<br>DFT %{{x:.4g}} {unit}<extra></extra>",
        )
    line = {"showline": True, "linecolor": "#444444", "gridcolor": "#E4E7EA", "zeroline": False, "ticks": "outside", "tickcolor": "#444444"}
    suffix = f" ({unit})" if unit else ""
    figure.update_layout(
        template="none",
        autosize=True,
        height=520,
        margin={"l": 64, "r": 12, "t": 34, "b": 52},
        font={"family": "system-ui, sans-serif", "size": 14, "color": _TEXT},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hovermode="closest",
        hoverlabel={"font": {"size": 14}},
        # Dragging pans the page on a phone, not the plot; the mode bar has zoom.
        dragmode=False,
        modebar={"remove": ["select2d", "lasso2d", "autoScale2d"], "bgcolor": "rgba(255, 255, 255, 0.8)"},
        legend={"orientation": "h", "yanchor": "top", "y": -0.16, "x": 0.5, "xanchor": "center"},
        xaxis={"title": {"text": f"DFT {what}{suffix}", "standoff": 8}, "range": ends, "constrain": "domain", **line},
        yaxis={
            "title": {"text": f"model {what}{suffix}", "standoff": 6},
            "range": ends,
            "scaleanchor": "x",
            "constrain": "domain",
            **line,
        },
    )
    return figure


def _identifier(kind: str, content: str) -> str:
    """Return an id for an element: a number within a session, and a checksum against what an earlier session left on the page."""
    return f"{kind}-{next(_ids)}-{crc32(content.encode()):08x}"


# Load a script once per page, however many figures ask for it, and then run what needs it.
_LOAD_ONCE = """\
window.loadOnce ??= (address) => (window.loadOnce[address] ??= new Promise((done, failed) => {
  const script = document.createElement("script");
  script.src = address; script.onload = done; script.onerror = () => failed(new Error("cannot load " + address));
  document.head.append(script);
}));
"""


def _script(address: str, body: str) -> str:
    """Return a script element that loads another script once and then runs ``body``, with its failure written to the console."""
    # A "</" inside a string of the script would end the element.
    body = body.replace("</", "<\\/")
    return f"<script>\n{_LOAD_ONCE}window.loadOnce({json.dumps(address)}).then(() => {{\n{body}\n}}).catch(console.error);\n</script>"


@dataclass(frozen=True)
class StructureView:
    """Structures that can be turned with mouse or finger. Jupyter and the book show it by itself.

    Attributes
    ----------
    structures : dict of str to ase.Atoms
        By the name written below each.
    alt : str
        Alternative text.
    script : str
        Address of 3Dmol.js, relative to the page.
    height : int
        Of each view, pixels.
    """

    structures: Mapping[str, ase.Atoms]
    alt: str
    script: str
    height: int

    def _repr_html_(self) -> str:
        boxes, scripts = [], []
        for name, atoms in self.structures.items():
            identifier = _identifier("structure", self.alt + name)
            alternative = html.escape(f"{self.alt} {name}: {atoms.get_chemical_formula()}.", quote=True)
            boxes.append(
                '<div style="flex: 1 1 250px; min-width: 0; max-width: 420px">'
                f'<div id="{identifier}" class="structure-viewer" role="img" aria-label="{alternative}" '
                f'style="position: relative; width: 100%; height: {self.height}px; overflow: hidden; background: white">'
                f'<img src="{_png_uri(_drawing(atoms))}" alt="{alternative}" '
                'style="width: 100%; height: 100%; object-fit: contain"></div>'
                f'<div style="text-align: center; font-size: 0.9rem">{html.escape(name)}</div></div>'
            )
            scripts.append(_viewer(identifier, atoms))
        layout = "display: flex; flex-wrap: wrap; gap: 0.8rem; justify-content: center; background: white; color: #222222"
        return f'<div class="structure-views" style="{layout}">{"".join(boxes)}</div>\n{_script(self.script, "".join(scripts))}'

    def __repr__(self) -> str:
        return f"StructureView({', '.join(self.structures)})"


def structure_view(
    structures: Mapping[str, ase.Atoms], alt: str, script: str = "../_static/3Dmol-min.js", height: int = 260
) -> StructureView:
    """Show structures with their unit cells, to be turned with mouse or finger.

    A picture is shown first; 3Dmol.js (Rego and Koes, Bioinformatics 31, 1322 (2015)) replaces it if it can be loaded. So there
    is a picture without scripts, without WebGL, and in a notebook that does not find the file.

    Parameters
    ----------
    structures : mapping of str to ase.Atoms
        By name.
    alt : str
        What they show, for those who cannot see them. Name and formula of each are added.
    script : str
        Address of 3Dmol.js, relative to the page.
    height : int
        Of each view, pixels.

    Raises
    ------
    ValueError
        If there is no structure, one is empty, or the alternative text is.
    """
    if not structures:
        raise ValueError("there is no structure to show")
    empty = [name for name, atoms in structures.items() if len(atoms) == 0]
    if empty:
        raise ValueError(f"structure {empty[0]!r} has no atoms")
    _need_alt(alt)
    return StructureView(dict(structures), alt, script, height)


# How far each axis of the picture and of the first view is turned, degrees: a slab stands upright and shows some depth.
_TILT, _TURN = -78, 22


def _drawing(atoms: ase.Atoms) -> Figure:
    """Return a picture of a structure and its cell."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.8, 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        plot_atoms(atoms, axes, radii=0.55, rotation=f"{_TILT}x,{_TURN}y,0z")
        axes.set_axis_off()
    return figure


def _viewer(identifier: str, atoms: ase.Atoms) -> str:
    """Return the JavaScript that turns a picture into a view of 3Dmol.js."""
    lines = [f"{symbol} {x:.4f} {y:.4f} {z:.4f}" for symbol, (x, y, z) in zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)]
    xyz = "\n".join([str(len(atoms)), "", *lines])
    edges = _cell_edges(np.asarray(atoms.cell)).round(4).tolist() if atoms.cell.rank == 3 else []
    return f"""\
(() => {{
  const box = document.getElementById({json.dumps(identifier)});
  const picture = [...box.children];
  const viewer = $3Dmol.createViewer(box, {{backgroundColor: "white"}});
  if (!viewer) return;
  viewer.addModel({json.dumps(xyz)}, "xyz");
  viewer.setStyle({{}}, {{sphere: {{scale: 0.32, colorscheme: "Jmol"}}, stick: {{radius: 0.11, colorscheme: "Jmol"}}}});
  const point = ([x, y, z]) => ({{x, y, z}});
  for (const [start, end] of {json.dumps(edges)}) {{
    viewer.addCylinder({{start: point(start), end: point(end), radius: 0.04, color: "#777777"}});
  }}
  viewer.zoomTo();
  viewer.rotate({_TILT}, "x");
  viewer.rotate({_TURN}, "vy");
  viewer.render();
  picture.forEach((element) => element.remove());
  // The wheel scrolls the page; with Ctrl it zooms.
  box.addEventListener("wheel", (event) => {{ if (!event.ctrlKey) event.stopPropagation(); }}, true);
}})();
"""


def _cell_edges(cell: np.ndarray) -> np.ndarray:
    """Return the twelve edges of a cell, shape (12, 2, 3), Å."""
    edges = []
    for axis in range(3):
        first, second = (cell[other] for other in range(3) if other != axis)
        edges += [(start, start + cell[axis]) for start in (0 * first, first, second, first + second)]
    return np.array(edges)


# ---------------------------------------------------------------------------------------------------
# Captions


def caption(provenances: Iterable[Mapping[str, object]], extra: str = "") -> str:
    """Return the footer of a figure: models with their packages, device and date.

    Parameters
    ----------
    provenances : iterable of mapping
        From :func:`helpers.results.provenance`: ``model``, ``device``, ``date``, and ``potential`` with ``package``.
    extra : str
        A sentence to end with.

    Returns
    -------
    str
        Models that were run on one device on one day share a clause.

    Raises
    ------
    ValueError
        If a provenance lacks model, device or date, or there is none.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for provenance in provenances:
        missing = [key for key in ("model", "device", "date") if not provenance.get(key)]
        if missing:
            raise ValueError(f"a provenance lacks {', '.join(missing)}: {dict(provenance)}")
        name = label(str(provenance["model"]))
        package = (provenance.get("potential") or {}).get("package")
        groups.setdefault((str(provenance["device"]), str(provenance["date"])), []).append(f"{name} ({package})" if package else name)
    if not groups:
        raise ValueError("a caption needs at least one provenance")
    clauses = [f"{', '.join(names)}: {device}, {date}" for (device, date), names in groups.items()]
    return "; ".join(clauses) + "." + (f" {extra}" if extra else "")


def _need_alt(alt: str) -> None:
    if not alt.strip():
        raise ValueError("a figure needs an alternative text: say what it shows in a sentence")


def _png_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_RESOLUTION, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Shown:
    """A figure with alternative text and caption; Jupyter and the book show it by itself."""

    figure: Figure | go.Figure | StructureView
    alt: str
    caption: str
    footer: str
    script: str

    def _repr_html_(self) -> str:
        words = html.escape(self.caption)
        if self.footer:
            words += f"<small>{html.escape(self.footer)}</small>"
        below = f"<figcaption>{words}</figcaption>" if words else ""
        return f'<figure class="result">{self._content()}{below}</figure>'

    def _content(self) -> str:
        alternative = html.escape(self.alt, quote=True)
        if isinstance(self.figure, StructureView):
            return self.figure._repr_html_()
        if isinstance(self.figure, go.Figure):
            identifier = _identifier("plot", self.alt)
            height = self.figure.layout.height or 450
            draw = (
                f"const plot = {self.figure.to_json()};\n"
                f'return Plotly.newPlot("{identifier}", plot.data, plot.layout, {{responsive: true, displaylogo: false}});'
            )
            place = f'id="{identifier}" class="plotly-graph-div" role="img" aria-label="{alternative}"'
            return f'<div {place} style="height: {height}px; width: 100%"></div>\n{_script(self.script, draw)}'
        width = round(self.figure.get_figwidth() * 96)
        return f'<img src="{_png_uri(self.figure)}" alt="{alternative}" width="{width}" style="max-width: 100%; height: auto">'

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def show(
    figure: Figure | go.Figure | StructureView,
    alt: str,
    caption: str = "",
    footer: str = "",
    script: str = "../_static/vendor/plotly-basic.min.js",
) -> Shown:
    """Give a figure its alternative text and caption, as an HTML ``<figure>``.

    Parameters
    ----------
    figure : matplotlib or plotly figure, or StructureView
        A matplotlib figure becomes a PNG at twice the page's resolution.
    alt : str
        What the figure shows, for those who cannot see it.
    caption : str
        Plain text; it is escaped.
    footer : str
        From :func:`caption`: models, device, date.
    script : str
        Address of plotly.js, relative to the page. It is loaded once per page, and only for a plotly figure.

    Raises
    ------
    ValueError
        If the alternative text is empty.
    """
    _need_alt(alt)
    return Shown(figure, alt, caption, footer, script)


@dataclass(frozen=True)
class ShownTable:
    """A table with a caption; it scrolls by itself where the page is narrow."""

    frame: pd.DataFrame
    caption: str
    footer: str

    def _repr_html_(self) -> str:
        # The name of the index goes into the corner instead of a line of its own; several become columns.
        single = self.frame.index.nlevels == 1
        frame = self.frame.rename_axis(index=None, columns=self.frame.index.name) if single else self.frame.reset_index()
        body = frame.to_html(border=0, escape=True, na_rep="–", classes="table result-table", index=single)
        words = html.escape(self.caption) + (f"<small>{html.escape(self.footer)}</small>" if self.footer else "")
        return f'<figure class="result"><div class="table-wrapper" tabindex="0">{body}</div><figcaption>{words}</figcaption></figure>'

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.frame.to_string()}"


def show_table(frame: pd.DataFrame, caption: str, footer: str = "") -> ShownTable:
    """Give a table its caption, in the same frame as a figure.

    Parameters
    ----------
    frame : DataFrame
        As it should read: rounded, with units in the column names. The index becomes the row names.
    caption : str
        Plain text; it is escaped.
    footer : str
        From :func:`caption`.
    """
    return ShownTable(frame, caption, footer)


def with_interval(
    table: pd.DataFrame, column: str, digits: int = 2, low: str = "_low", high: str = "_high", scale: float = 1.0
) -> list[str]:
    """Return a column as text with its interval, ``0.80 [0.70, 0.87]``, from the columns with the endings ``low`` and ``high``."""
    numbers = table[[column, column + low, column + high]].astype(float).to_numpy() * scale
    return [f"{value:.{digits}f}" + _range(lower, upper, digits) for value, lower, upper in numbers]
