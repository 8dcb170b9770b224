"""Reports as one self-contained page of HTML, and as Markdown.

A report is a list of :class:`Section`, each with blocks: :class:`Text`, :class:`Bullets`, :class:`Table`, :class:`Code`,
:class:`Picture`. Blocks hold plain text; everything is escaped here, so a file name or a comment in somebody's data cannot become markup.
The page needs no network, follows the reader's light or dark scheme, and prints.
"""

from __future__ import annotations

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from helpers import results
from helpers.figures import style


class Block(ABC):
    """A piece of a report."""

    @abstractmethod
    def html(self) -> str:
        """Return the block as HTML."""

    @abstractmethod
    def markdown(self) -> str:
        """Return the block as Markdown."""


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; ``strong`` ones stand out."""

    text: str
    strong: bool = False

    def html(self) -> str:  # noqa: D102
        return f'<p class="key">{_html(self.text)}</p>' if self.strong else f"<p>{_html(self.text)}</p>"

    def markdown(self) -> str:  # noqa: D102
        return f"**{_markdown(self.text)}**" if self.strong else _markdown(self.text)


@dataclass(frozen=True)
class Bullets(Block):
    """A list."""

    items: Sequence[str]

    def html(self) -> str:  # noqa: D102
        return "<ul>" + "".join(f"<li>{_html(item)}</li>" for item in self.items) + "</ul>"

    def markdown(self) -> str:  # noqa: D102
        return "\n".join(f"- {_markdown(item)}" for item in self.items)


@dataclass(frozen=True)
class Table(Block):
    """A table as it should read: rounded, with units; the index names the rows. ``numbers``: cells that are not to be broken."""

    frame: pd.DataFrame
    caption: str = ""
    numbers: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", style.noted(self.caption, self.frame.to_csv()))

    def html(self) -> str:  # noqa: D102
        corner = _html(str(self.frame.index.name or ""))
        head = "".join(f'<th scope="col">{_html(str(column))}</th>' for column in self.frame.columns)
        rows = "".join(
            f'<tr><th scope="row">{_html(str(name))}</th>' + "".join(f"<td>{_html(str(value))}</td>" for value in values) + "</tr>"
            for name, values in zip(self.frame.index, self.frame.to_numpy(), strict=True)
        )
        caption = f"<caption>{_html(self.caption)}</caption>" if self.caption else ""
        kind = ' class="numbers"' if self.numbers else ""
        body = f'<table{kind}>{caption}<thead><tr><th scope="col">{corner}</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
        return f'<div class="wide" tabindex="0">{body}</div>'

    def markdown(self) -> str:  # noqa: D102
        rows = [[str(self.frame.index.name or ""), *map(str, self.frame.columns)], ["---"] * (1 + self.frame.shape[1])]
        rows += [[str(name), *map(str, values)] for name, values in zip(self.frame.index, self.frame.to_numpy(), strict=True)]
        lines = ["| " + " | ".join(cell if cell == "---" else _markdown(cell) for cell in row) + " |" for row in rows]
        return "\n".join(lines) + (f"\n\n{_markdown(self.caption)}" if self.caption else "")


@dataclass(frozen=True)
class Code(Block):
    """Commands or a program."""

    text: str

    def html(self) -> str:  # noqa: D102
        return f'<pre tabindex="0"><code>{html.escape(self.text)}</code></pre>'

    def markdown(self) -> str:  # noqa: D102
        # A fence longer than any run of backticks inside cannot be closed from within.
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", self.text)), default=0))
        return f"{fence}\n{self.text}\n{fence}"


@dataclass(frozen=True)
class Picture(Block):
    """A matplotlib figure, embedded."""

    figure: Figure
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        style.need_alt(self.alt)
        object.__setattr__(self, "caption", style.noted(self.caption, style.words(self.figure)))

    def html(self) -> str:  # noqa: D102
        width = round(self.figure.get_figwidth() * 96)
        image = f'<img src="{style.png_uri(self.figure)}" alt="{html.escape(self.alt, quote=True)}" width="{width}">'
        return f'<figure><div class="wide" tabindex="0">{image}</div><figcaption>{_html(self.caption)}</figcaption></figure>'

    def markdown(self) -> str:  # noqa: D102
        return f"*Figure (in the HTML report): {_markdown(self.alt)} {_markdown(self.caption)}*"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


def facts(rows: Mapping[str, object]) -> Table:
    """Return a table of two columns: what, and its value."""
    return Table(pd.DataFrame({"": list(rows.values())}, index=list(rows)))


def _html(text: str) -> str:
    return html.escape(_line(text))


def _markdown(text: str) -> str:
    """Return text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(_line(text), quote=False))


def _line(text: str) -> str:
    """Return text on one line: a line break or control character in a file name must not end a block."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


_CSS = """
:root { color-scheme: light dark;
  --text: #1f2328; --muted: #59636e; --page: #ffffff; --panel: #f3f5f7; --line: #d5dae0; --accent: #0b5fa5; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --muted: #a2abb5; --page: #16191d; --panel: #22272e; --line: #3b434c; --accent: #7cbcf5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 52rem; color: var(--text); background: var(--page);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
.lead, figcaption, caption, footer { color: var(--muted); }
.lead { margin: 0 0 1rem; }
.key { padding: .7rem .9rem; background: var(--panel); border-left: 4px solid var(--accent); border-radius: 0 6px 6px 0; font-weight: 600; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: .4rem; font-size: .9rem; max-width: min(50rem, calc(100vw - 2rem)); }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; overflow-wrap: normal; }
td { overflow-wrap: anywhere; min-width: 4.5rem; }
td:last-child:not(:nth-child(-n+4)) { min-width: 12rem; }
thead th { border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; min-width: 7.5rem; }
.numbers td, .numbers td:last-child:not(:nth-child(-n+4)) { white-space: nowrap; min-width: 0; }
pre { padding: .8rem 1rem; background: var(--panel); border: 1px solid var(--line); border-radius: 6px; overflow-x: auto;
  font: .9rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: normal; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; min-width: 30rem; height: auto; background: #fff; border-radius: 6px; }
figcaption { font-size: .9rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
footer { margin-top: 2.5rem; font-size: .9rem; }
@media print {
  :root { --text: #000; --muted: #444; --page: #fff; --panel: #f3f5f7; --line: #bbb; --accent: #0b5fa5; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2 { break-after: avoid; } figure, table, pre { break-inside: avoid; } pre { white-space: pre-wrap; } .wide { overflow: visible; }
  figure img { min-width: 0; }
}
"""


def page(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """Return a report as one HTML document."""
    body = "".join(
        f"<section><h2>{_html(part.title)}</h2>{''.join(block.html() for block in part.blocks)}</section>\n" for part in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_html(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n<h1>{_html(title)}</h1>\n"
        f'<p class="lead">{_html(lead)}</p>\n{body}</main>\n<footer>{_html(footer)}</footer>\n</body>\n</html>\n'
    )


def markdown(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """Return a report as Markdown."""
    parts = [f"# {_markdown(title)}", _markdown(lead)]
    for part in sections:
        parts += [f"## {_markdown(part.title)}", *(block.markdown() for block in part.blocks)]
    return "\n\n".join([*parts, _markdown(footer)]).rstrip() + "\n"


def write(folder: Path, title: str, lead: str, sections: Sequence[Section], footer: str = "") -> None:
    """Write a report as ``report.html`` and ``report.md`` into a folder."""
    for name, made in (("report.html", page), ("report.md", markdown)):
        results.write_bytes(made(title, lead, sections, footer).encode("utf-8", "backslashreplace"), folder / name)
