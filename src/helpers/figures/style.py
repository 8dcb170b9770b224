"""Colours, markers and names of the models, and the pieces that every chart is made of."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from math import ceil
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from ase.data import atomic_numbers
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from helpers import NOTES
from helpers.potentials import CATALOGUE, papers
from helpers.registry import data_dir

_DFT = "DFT"
_DFT_COLOUR, _DFT_MARKER = "#000000", "x"

# Markers of equal size in points do not look equally large.
_MARKER_SCALE = {"D": 0.85, "P": 1.25, "*": 1.4, "X": 1.15, "^": 1.1, "v": 1.1, "<": 1.1}

# A model of the reader's own, and models made from a catalogue model.
_OTHER_COLOUR, _OTHER_MARKER, _SCALED_MARKER, _TUNED_MARKER = "#5A5A5A", "<", "*", "X"
_PUBLISHED_MARKER = "$△$"

PLOTLY_SYMBOL = {
    "x": "x-thin",
    "o": "circle",
    "h": "hexagon",
    "s": "square",
    "D": "diamond",
    "P": "cross",
    "^": "triangle-up",
    "v": "triangle-down",
    "p": "pentagon",
    "$◣$": "triangle-sw",
    "$◤$": "triangle-nw",
    "$◢$": "triangle-se",
    ">": "triangle-right",
    "8": "octagon",
    "d": "diamond-tall",
    "H": "hexagon2",
    "$△$": "triangle-up-open",
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

TEXT = "#222222"
MUTED = "#6B7480"
_PANEL = 3.35  # inch; two panels side by side fill a column of text and can still be read on a phone
SINGLE = 4.6  # inch, of a panel alone
WIDE = 2 * _PANEL + 0.2  # inch, of two
# A chemical formula within a text: two elements or more. UF3 is the name of a potential here.
_FORMULA = re.compile(r"(?<![\w.])(?!UF3)(?:[A-Z][a-z]?\d*|\((?:[A-Z][a-z]?\d*)+\)\d*){2,}(?!\w)")
_LOW = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_RESOLUTION = 192  # dots per inch of the page's 96, for screens with small pixels

# Looks of methods, cures and kinds of data, in the order given. In CIELAB each colour lies 35 or more from those of all models.
METHODS = (
    ("#1A1A1A", "o", "-"),
    ("#E5004F", "s", (0, (5, 1.5))),
    ("#2B2BE8", "^", (0, (1, 1))),
    ("#1E9E1E", "D", (0, (3, 1, 1, 1))),
    ("#887766", "v", (0, (5, 1, 1, 1))),
    ("#B050F0", "P", (0, (2, 1))),
)

# The line on which a perfect model would lie.
IDEAL = {"color": TEXT, "linewidth": 1.1, "linestyle": (0, (4, 2.5))}

ids = count()


def apply_style() -> None:
    """Make the book's style the default of matplotlib, for figures drawn by hand in a notebook."""
    mpl.rcParams.update(STYLE)


def base_key(model: str) -> str:
    """Return the catalogue key that a model was made from: ``chgnet-0.3.0*1.2500`` and ``chgnet-0.3.0+10`` are CHGNet 0.3.0.

    ``mace-mp-0-medium@published`` stands for values that others published.
    """
    return model if model.startswith(("ase:", "file:")) else re.split(r"[*+@]", model)[0]


def colour(model: str) -> str:
    """Return the colour of a model: its own, that of the model it was made from, or grey."""
    base = base_key(model)
    if base == _DFT:
        return _DFT_COLOUR
    return CATALOGUE[base].colour if base in CATALOGUE else _OTHER_COLOUR


def marker(model: str) -> str:
    """Return the marker of a model. A scaled model is a star, a fine-tuned one a filled cross, what others published a hollow triangle."""
    base = base_key(model)
    made = model[len(base) :]
    if made:
        return _SCALED_MARKER if "*" in made else _PUBLISHED_MARKER if "@" in made else _TUNED_MARKER
    if base == _DFT:
        return _DFT_MARKER
    return CATALOGUE[base].marker if base in CATALOGUE else _OTHER_MARKER


def look(model: str, points: float) -> dict[str, object]:
    """Return colour, marker and marker size of a model's points, for matplotlib; ``points`` is the size of a circle beside them."""
    shape = marker(model)
    return {"color": colour(model), "marker": shape, "markersize": points * _MARKER_SCALE.get(shape, 1.0)}


def label(model: str) -> str:
    """Return the name of a model for figures and text; a potential in a file or of a factory that is not ASE's is the reader's own."""
    base = base_key(model)
    own = re.sub(r"^ase:ase\.(?:\w+\.)*(\w+)$", r"\1 of ASE", base)  # ase:ase.calculators.emt.EMT
    name = CATALOGUE[base].label if base in CATALOGUE else re.sub(r"^(?:ase|file):(?:.*/)?(.+?)/*$", r"Your model (\1)", own)
    made, _, factor = model[len(base) :].partition("*")
    if made.startswith("@"):
        name += f" ({made[1:]})"
    elif made:
        name += f" + {made.removeprefix('+')} label{'' if made == '+1' else 's'}"
    return f"{name} × {float(factor):.2f}" if factor else name


def in_order(models: Iterable[str]) -> list[str]:
    """Return models in the order of the catalogue, so that every figure lists them alike; unknown ones last."""
    order = {key: position for position, key in enumerate((_DFT, *CATALOGUE))}
    return sorted(set(models), key=lambda model: (order.get(base_key(model), len(order)), model))


def paper_points(figure: str) -> pd.DataFrame:
    """Read a digitised parity figure of the paper.

    Columns ``model`` (catalogue key), ``value``, ``reference``. Points that lie off the figure's axis are left out. FileNotFoundError if
    that figure was not digitised; ValueError if the table holds no DFT column.

    ``figure`` ({"fig2a", "fig2b", "fig2c"}): surfaces (eV/Å²), defects (eV) or solid solutions (eV per formula unit).
    """
    wide = pd.read_csv(data_dir() / "paper" / f"{figure}_digitised.csv")
    column = {name: next((c for c in wide if name in c.split("_")), None) for name in ("DFT", "M3GNet", "CHGNet", "MACE")}
    if column["DFT"] is None:
        raise ValueError(f"the digitised {figure} has no DFT column; it has {', '.join(wide)}")
    reference, entries = wide[column.pop("DFT")], papers(figure.removeprefix("fig"))
    parts = [
        pd.DataFrame({"model": entries[name].key, "value": wide[source], "reference": reference})
        for name, source in column.items()
        if source
    ]
    return pd.concat(parts, ignore_index=True).dropna(ignore_index=True)


def property_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to draw: of one property, nothing that failed."""
    rows = one_property(table)
    rows = rows[rows["status"] == "ok"]
    if rows.empty:
        raise ValueError(f"every row of property {table['property'].iloc[0]!r} failed")
    bad = rows[~np.isfinite(rows[["value", "reference"]].to_numpy(dtype=float)).all(axis=1)]
    if len(bad):
        raise ValueError(f"{len(bad)} rows with status 'ok' hold values that are not finite, first in case {bad['case'].iloc[0]!r}")
    return rows


def one_property(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that has rows of one property, and of no other."""
    properties = sorted(table["property"].unique())
    if len(properties) != 1:
        raise ValueError(f"one property is needed, but the table has {properties or 'no rows'}")
    return table


def good_rows(table: pd.DataFrame, texts: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """Return the rows to draw of a table with these columns: none that failed, and no number that is not finite."""
    missing = [column for column in (*texts, *numbers) if column not in table]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    rows = table[table["status"] == "ok"] if "status" in table else table
    if rows.empty:
        raise ValueError("there is nothing to draw: the table has no rows, or all of them failed")
    bad = rows[~np.isfinite(rows[list(numbers)].to_numpy(dtype=float)).all(axis=1)]
    if len(bad):
        first = ", ".join(f"{column} {bad[column].iloc[0]!r}" for column in (*texts, *numbers))
        raise ValueError(f"{len(bad)} rows hold values of {', '.join(numbers)} that are not finite, first: {first}")
    return rows


def chosen(rows: pd.DataFrame, models: Sequence[str] | None) -> list[str]:
    """Return the models to draw, after checking that all of them are there."""
    there = set(rows["model"])
    if models is None:
        return in_order(there)
    missing = [model for model in models if model not in there]
    if missing or not models:
        raise ValueError(f"the table has no good rows of {', '.join(missing) or 'any model'}; it has {', '.join(in_order(there))}")
    return list(models)


def blank(height: float, width: float = WIDE) -> Figure:
    """Return an empty figure (inch), by default as wide as a column of text."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(n: int, head: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Return a figure with n panels in at most three columns; four stand two by two.

    ``head`` inches of height are added to each line for what stands above its panels.
    """
    columns = 2 if n == 4 else min(n, 3)
    lines = ceil(n / columns)
    side = SINGLE if columns == 1 else 2 * _PANEL / columns
    figure = blank((side + head) * lines + 0.4, side * columns + 0.2)
    axes = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for empty in axes[n:]:
        empty.set_axis_off()
    return figure, axes[:n]


def legend(figure: Figure, handles: Sequence[Artist], **options: Any) -> None:
    """Put a legend above the panels, with as many columns as there is place for, and make the figure as much taller."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(len(handles), max(1, int(figure.get_figwidth() / (0.5 + 0.075 * longest))))
    figure.legend(handles=handles, loc="outside upper left", **{"ncols": columns, "columnspacing": 1.2} | options)
    figure.set_figheight(figure.get_figheight() + 0.22 * ceil(len(handles) / columns))


def looks(names: Iterable[str], size: float = 6.0) -> dict[str, dict[str, Any]]:
    """Return how lines of methods are drawn, by name in order: as :data:`METHODS`; ValueError if there are too few of these."""
    names = list(names)
    if len(names) > len(METHODS):
        raise ValueError(f"{len(names)} lines, but there are {len(METHODS)} colours")
    keys = ("color", "marker", "linestyle")
    return {
        name: dict(zip(keys, look, strict=True)) | {"markersize": size, "linewidth": 1.6}
        for name, look in zip(names, METHODS, strict=False)
    }


def with_ranges(axes: Axes, line: pd.DataFrame, x: str, look: Mapping[str, Any]) -> None:
    """Draw means against a column, in its order, with their range as bars."""
    line = line.sort_values(x)
    spread = np.abs(line[["low", "high"]].to_numpy().T - line["mean"].to_numpy())
    axes.errorbar(line[x], line["mean"], spread, markeredgecolor="white", markeredgewidth=0.6, zorder=3, **look)


def log_places(axes: Axes, places: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with these places in plain numbers."""
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xticks([], minor=True)


def heading(axes: Axes, name: str, *lines: str, hue: Any = TEXT) -> None:
    """Write a name above a panel, and between the two lines of numbers, where they hide no point."""
    axes.set_title(name, color=hue, loc="left", pad=5 + 13 * len(lines), fontsize=11.5 if len(name) < 18 else 10.5)
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    numbers = axes.annotate("\n".join(lines), (0, 1), (0, 4), color=TEXT, fontsize=9, linespacing=1.25, **place)
    numbers.set_in_layout(False)  # the title keeps the place; a long line would make the panel narrow


def interval(low: float, high: float, digits: int = 2) -> str:
    """Return an interval as it is written behind a number, or nothing if it has no ends."""
    if not np.isfinite([low, high]).all():
        return ""
    # Where a table is narrow the interval goes below its number, in one piece.
    return f" [{low:z.{digits}f},\u00a0{high:z.{digits}f}]"


def formulas(text: str, *, tags: bool = False) -> str:
    """Return a text with the digits of its chemical formulas as subscripts: signs of Unicode, or tags of HTML."""

    def lowered(found: re.Match) -> str:
        symbols = set(re.findall("[A-Z][a-z]?", found[0]))
        if len(symbols) < 2 or not symbols <= atomic_numbers.keys():
            return found[0]
        return re.sub(r"\d+", r"<sub>\g<0></sub>", found[0]) if tags else found[0].translate(_LOW)

    return _FORMULA.sub(lowered, text)


def significant(value: float) -> str:
    """Return three significant digits, with their zeros."""
    return f"{value:#.3g}".rstrip(".")


def square(axes: Axes, low: float, high: float) -> None:
    """Give both axes the same range and ticks, and draw the diagonal."""
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    # The same few round ticks on both axes, so that the diagonal can be read off.
    ticks = MaxNLocator(nbins=4).tick_values(low, high)
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    axes.set(xticks=ticks, yticks=ticks)
    axes.plot([low, high], [low, high], zorder=2.5, **IDEAL)


def title(axes: Axes, model: str, *lines: str) -> None:
    """Write a model's name above a panel, in its colour, and lines of numbers."""
    heading(axes, label(model), *lines, hue=readable(model))


def readable(model: str) -> tuple[float, float, float]:
    """Return a model's colour, darkened until text in it has a contrast of 4.5 on white (WCAG 2.1, criterion 1.4.3)."""
    rgb = np.array(to_rgb(colour(model)))
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5:
            return tuple(rgb)
        rgb *= 0.96


def robust_limits(values: np.ndarray, ideal: float = 1.0) -> tuple[float, float]:
    """Return limits that hold all values, unless some lie more than four times the interquartile range beyond the quartiles."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    reach = 4 * (upper - lower)
    kept = values[(values >= lower - reach) & (values <= upper + reach)]
    low, high = min(kept.min(), ideal), max(kept.max(), ideal)
    margin = 0.04 * (high - low) + 0.04
    return float(low - margin), float(high + margin)


def outer_labels(axes: Sequence[Axes], below: str, left: str) -> None:
    """Label the axes once, below and left of all panels; numbers that all panels share stand at the outer ones alone."""
    columns = axes[0].get_subplotspec().get_gridspec().ncols
    alike_x, alike_y = (len({get(panel) for panel in axes}) == 1 for get in (Axes.get_xlim, Axes.get_ylim))
    for position, panel in enumerate(axes):
        lowest = position + columns >= len(axes)
        panel.tick_params(which="both", labelbottom=lowest or not alike_x, labelleft=position % columns == 0 or not alike_y)
    axes[0].figure.supxlabel(below, fontsize=11)
    axes[0].figure.supylabel(left, fontsize=11)


def noted(caption: str, words: str) -> str:
    """Return a caption with the note of each sign (:data:`helpers.NOTES`) that is in the words and not in the caption yet."""
    notes = [f"{sign} {note}" for sign, note in NOTES.items() if sign in words and sign not in caption]
    return " ".join([*([caption] if caption else []), *notes])


def words(figure: Any) -> str:
    """Return the names that stand in a figure of matplotlib or plotly; of anything else nothing."""
    if isinstance(figure, go.Figure):
        return " ".join(str(trace.name) for trace in figure.data)
    return " ".join(text.get_text() for text in figure.findobj(Text)) if isinstance(figure, Figure) else ""


def mark(figure: Any, note: str) -> None:
    """Write a note into the lower right corner of a figure of matplotlib, which grows for it, or plotly."""
    if isinstance(figure, go.Figure):
        figure.add_annotation(text=note, x=1, y=0, xref="paper", yref="paper", xanchor="right", yanchor="bottom", showarrow=False)
    elif isinstance(figure, Figure):
        height = figure.get_figheight() + 0.24
        figure.set_figheight(height)
        figure.get_layout_engine().set(rect=(0, 0.24 / height, 1, 1 - 0.24 / height))
        figure.text(0.995, 0.03 / height, note, ha="right", va="bottom", fontsize=10, color=TEXT)


def need_alt(alt: str) -> None:
    """Raise ValueError if an alternative text is empty."""
    if not alt.strip():
        raise ValueError("a figure needs an alternative text: say what it shows in a sentence")


def png_uri(figure: Figure) -> str:
    """Return a figure as the address of an image that holds it; ValueError if its legend does not fit in."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_RESOLUTION, metadata={"Software": None})
    for legend in figure.legends:
        box = legend.get_window_extent()
        if box.x0 < -1 or box.x1 > figure.bbox.x1 + 1:
            raise ValueError(f"a legend {box.width / figure.dpi:.1f} inches wide is cut off: give it fewer columns")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
