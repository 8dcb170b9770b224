"""Figures and tables as they stand on a page: alternative text, caption, and the footer that says where the numbers come from."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from helpers.figures import style
from helpers.figures.animation import AnimationView
from helpers.figures.interactive import StructureView, element_id, script_tag
from helpers.figures.style import in_order, label
from helpers.potentials import CATALOGUE

_ROWS = 10  # of a table are seen at once
_PLOTLY = "../_static/vendor/plotly-basic.min.js"  # relative to the page
# Where a line of a table would break at a hyphen: the name of a model or set, and a date.
_WHOLE = re.compile(r"(?<![\w-])(?:[A-Za-z]+-)+\d+[a-z]?(?![\w-])|\d{4}-\d\d-\d\d")


def caption(provenances: Iterable[Mapping[str, Any]], extra: str = "") -> str:
    """Return the footer of a figure: models with their packages, device and date, and a sentence to end with.

    Provenances are from :func:`helpers.results.provenance`: ``model``, ``device``, ``date``, and ``potential`` with ``package`` and, for a
    model outside the catalogue, ``label``. Models that were run on one device on one day share a clause.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for provenance in provenances:
        missing = [key for key in ("model", "device", "date") if not provenance.get(key)]
        if missing:
            raise ValueError(f"a provenance lacks {', '.join(missing)}: {dict(provenance)}")
        about = provenance.get("potential") or {}
        name, package = about.get("label") or label(str(provenance["model"])), about.get("package")
        groups.setdefault((str(provenance["device"]), str(provenance["date"])), []).append(f"{name} ({package})" if package else name)
    if not groups:
        raise ValueError("a caption needs at least one provenance")
    clauses = [f"{', '.join(dict.fromkeys(names))}: {device}, {date}" for (device, date), names in groups.items()]
    return "; ".join(clauses) + "." + (f" {extra}" if extra else "")


def _folded_footer(footer: str) -> str:
    """Return where numbers come from, as HTML behind one word that opens it."""
    return f'<details class="provenance"><summary>Source</summary>{html.escape(footer)}</details>' if footer else ""


@dataclass(frozen=True)
class Shown:
    """A figure with alternative text and caption; Jupyter and the book show it by itself."""

    figure: Figure | go.Figure | StructureView | AnimationView
    alt: str
    caption: str
    footer: str

    def _repr_html_(self) -> str:
        words = html.escape(self.caption) + _folded_footer(self.footer)
        below = f"<figcaption>{words}</figcaption>" if words else ""
        return f'<figure class="result">{self._content()}{below}</figure>'

    def _content(self) -> str:
        alternative = html.escape(self.alt, quote=True)
        if isinstance(self.figure, StructureView | AnimationView):
            return self.figure._repr_html_()
        if isinstance(self.figure, go.Figure):
            identifier = element_id("plot", self.alt)
            height = self.figure.layout.height or 450
            config = '{responsive: true, displaylogo: false, displayModeBar: !matchMedia("(hover: none)").matches && "hover"}'
            draw = f'const plot = {self.figure.to_json()};\nreturn Plotly.newPlot("{identifier}", plot.data, plot.layout, {config});'
            place = f'id="{identifier}" class="plotly-graph-div" role="group" aria-label="{alternative}"'
            return f'<div {place} style="height: {height}px; width: 100%"></div>\n{script_tag(_PLOTLY, draw)}'
        width = round(self.figure.get_figwidth() * 96)
        return f'<img src="{style.png_uri(self.figure)}" alt="{alternative}" width="{width}" style="max-width: 100%; height: auto">'

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def show(figure: Figure | go.Figure | StructureView | AnimationView, alt: str, caption: str = "", footer: str = "") -> Shown:
    """Give a figure its alternative text and caption, as an HTML ``<figure>``.

    ValueError if the alternative text is empty.

    ``figure``: A matplotlib figure becomes a PNG at twice the page's resolution.
    ``alt``: what the figure shows, for those who cannot see it.
    ``caption``: plain text; it is escaped.
    ``footer``: from :func:`caption`: models, device, date.
    """
    style.need_alt(alt)
    return Shown(figure, alt, style.noted(caption, style.words(figure)), footer)


@dataclass(frozen=True)
class ShownTable:
    """A table with a caption; it scrolls by itself where the page is narrow.

    In the book one with ``filters`` can also be sorted, and its rows chosen; of others the rows ``folded`` appear at a click
    (``book/_static/tables.js``).
    """

    frame: pd.DataFrame
    caption: str
    footer: str
    filters: tuple[str, ...] | None = None
    folded: tuple[int, ...] = ()

    def _repr_html_(self) -> str:
        # The name of the index goes into the corner instead of a line of its own; several become columns.
        frame, single = self.frame, self.frame.index.nlevels == 1
        frame = frame.rename_axis(index=None, columns=frame.index.name) if single else frame.reset_index().rename_axis(columns=None)
        if not single and self.filters is None:
            # A group has its name once, and once more where its first rows are folded.
            group, seen = frame.iloc[:, 0], ~np.isin(np.arange(len(frame)), self.folded)
            named = ~group.duplicated() | (seen & ~group.where(seen).duplicated())
            frame = frame.assign(**{str(frame.columns[0]): group.where(named, "")})
        body = frame.to_html(border=0, na_rep="–", classes="table result-table" + " grouped" * (not single), index=single)
        # Minus signs are minus signs, and the empty corner is no heading.
        body = body.replace("<td>-", "<td>−").replace("<th></th>", "<td></td>", 1) if len(frame) else "<p>None.</p>"
        body = re.sub(">[^<]+<", lambda text: style.formulas(_WHOLE.sub(r'<span class="whole">\g<0></span>', text[0]), tags=True), body)
        words = html.escape(self.caption) + _folded_footer(self.footer)
        use = f" data-folded='{json.dumps(self.folded)}'" if self.folded else ""
        if self.filters is not None:
            use = f' data-sortable data-filters="{html.escape(json.dumps(self.filters))}"'
        return f'<figure class="result"{use}><div class="table-wrapper" tabindex="0">{body}</div><figcaption>{words}</figcaption></figure>'

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.frame.to_string()}"


def show_table(frame: pd.DataFrame, caption: str, footer: str = "", filters: Sequence[str] | None = None) -> ShownTable:
    """Give a table its caption, in the same frame as a figure.

    ValueError if a filter is no column.

    ``frame``: as it should read: rounded, with units in the column names. The index becomes the row names.
    ``caption``: plain text; it is escaped.
    ``footer``: from :func:`caption`.
    ``filters``: columns, or levels of the index, by which a reader of the book can choose rows. With a list, even an empty one, the table
        can be searched and sorted by every column. For long tables; elsewhere than in the book it is a plain table.
    """
    columns = [str(name) for name in (*frame.index.names, *frame.columns)]
    unknown = [name for name in filters or () if name not in columns]
    if unknown:
        raise ValueError(f"no column {', '.join(unknown)} to filter by; there are {', '.join(columns)}")
    caption = style.noted(caption, frame.to_csv())
    return ShownTable(frame, caption, footer, None if filters is None else tuple(filters), _folded(np.arange(len(frame)) >= _ROWS))


def _folded(rest: np.ndarray) -> tuple[int, ...]:
    """Return the rows to fold, of which at least three make it worth a click."""
    return tuple(np.flatnonzero(rest).tolist()) if len(rest) > _ROWS and rest.sum() > 2 else ()


def summary(
    table: pd.DataFrame,
    columns: Mapping[str, str | tuple],
    caption: str,
    footer: str = "",
    *,
    rows: str | Sequence[str] = "model",
    filters: Sequence[str] | None = None,
    first: Collection[str] | None = None,
) -> ShownTable:
    """Show a table of numbers as it should read: models by name and in order, digits as asked, intervals in the same cell.

    ``table``: one line per row to show; what ``rows`` and ``columns`` name may be columns or levels of the index.
    ``columns``: heading → column, or (column, digits), or (column, digits, factor). Two digits if not said; whole numbers and text stay as
        they are. A column that has ``_low`` and ``_high`` beside it is shown with that interval. Columns that the table lacks are left out.
    ``caption``, ``footer``, ``filters``: as for :func:`show_table`.
    ``rows``: what names the rows; ``column as heading`` gives it another heading. Models come in the order of the catalogue, everything
        else in the order of the table. A ``case`` is named without its source.
    ``first``: models whose rows a long table shows at once, the others at a click. By default those of the paper and the reader's own.
    """
    named = [name.partition(" as ")[::2] for name in ([rows] if isinstance(rows, str) else rows)]
    table = table.reset_index() if any(table.index.names) else table
    missing, rest = [name for name, _ in named if name not in table], None
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)} to name its rows; it has {', '.join(map(str, table.columns))}")
    if "model" in [name for name, _ in named]:
        order = {model: position for position, model in enumerate(in_order(table["model"]))}
        places = {name: table[name].map(order) if name == "model" else pd.factorize(table[name])[0] for name, _ in named}
        table = table.iloc[np.lexsort([places[name] for name, _ in reversed(named)])]
        known = [key for key, entry in CATALOGUE.items() if not (entry.paper_label if first is None else key in first)]
        rest = table["model"].map(style.base_key).isin(known).to_numpy()
        table = table.assign(model=table["model"].map(label))
    if "case" in table:  # without its source
        table = table.assign(case=table["case"].str.split("/", n=1).str[-1].str.replace("/", " "))
    shown = {}
    for heading, wanted in columns.items():
        column, *how = (wanted,) if isinstance(wanted, str) else wanted
        if column in table:
            shown[heading] = _cells(table, column, *how)
    index = pd.MultiIndex.from_frame(table[[name for name, _ in named]], names=[heading or name for name, heading in named])
    frame = pd.DataFrame(shown, index=index if len(named) > 1 else index.get_level_values(0))
    made = show_table(frame, caption, footer, filters)
    # Where no model of the first is in the table, its first rows are as good as others.
    if rest is None or rest.all():
        return made
    return replace(made, folded=_folded(rest | (np.cumsum(~rest) > _ROWS)))


def _cells(table: pd.DataFrame, column: str, digits: int = 2, scale: float = 1.0) -> list[object]:
    if {f"{column}_low", f"{column}_high"} <= set(table):
        return [text.replace("-", "−") for text in with_interval(table, column, digits, scale=scale)]
    if pd.api.types.is_float_dtype(table[column]):
        return ["–" if np.isnan(value) else f"{scale * value:z.{digits}f}".replace("-", "−") for value in table[column]]
    return list(table[column])


def with_interval(table: pd.DataFrame, column: str, digits: int = 2, scale: float = 1.0) -> list[str]:
    """Return a column as text with its interval (``_low``, ``_high``), ``0.80 [0.70, 0.87]``; no number is a dash."""
    numbers = table[[column, column + "_low", column + "_high"]].astype(float).to_numpy() * scale
    return ["–" if np.isnan(x) else f"{x:z.{digits}f}" + style.interval(lower, upper, digits) for x, lower, upper in numbers]
