"""Slides of the chapters, made from the built pages: numbers, figures and formulas are those of the book, and nothing comes from elsewhere.

A chapter is a page with a summary. Its first slide has the question and the answer. A section without results is told in full. One with
results has its first words, its steps by hand, its pictures and its small tables; the rest of its words are the speaker's notes (key S).
What is interactive stays in the book.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from bs4 import BeautifulSoup, NavigableString, Tag
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check import HTML, pages

FOLDER = HTML / "slides"
WORDS, PICTURE = 130, 95  # words of a slide, and how many take as much room as a picture
ROWS, COLUMNS, CELLS = 10, 8, 200  # of a table that can be read from the last row of seats; the last in words
TALL = 0.8  # height over width of a picture that is cut between its rows of panels
LEFT_OUT = ("live-check", "references", "what-failed", "what-is-left-out")
NOT_TOLD = "script, style, button, a.headerlink, .glance, .table-filters, figcaption details"
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="../_static/favicon.svg">
"""
PAGE = """<link rel="stylesheet" href="../_static/vendor/reveal/reveal.css">
<link rel="stylesheet" href="../_static/slides.css">
<script>window.MathJax = {{options: {{enableMenu: false}}}};</script>
<script defer src="../_static/vendor/mathjax/tex-chtml.js"></script>
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="../_static/vendor/reveal/reveal.js"></script>
<script src="../_static/vendor/reveal/notes.js"></script>
<script>
Reveal.initialize({{width: 1280, height: 720, margin: 0.03, center: false, hash: true, navigationMode: "linear", slideNumber: "c/t",
  controls: false, transition: "none", plugins: [RevealNotes]}});
const fit = ({{currentSlide}}) => {{  // what is a little too long becomes a little smaller
  for (let size = 0.95; currentSlide.scrollHeight > currentSlide.clientHeight && size > 0.5; size -= 0.05) {{
    currentSlide.querySelectorAll("table, pre").forEach((part) => {{ part.style.zoom = size; }});
  }}
}};
["ready", "slidechanged"].forEach((event) => Reveal.on(event, fit));
</script>
</body>
</html>
"""
INDEX = """<link rel="stylesheet" href="../_static/slides.css">
</head>
<body class="list">
<h1>{title}</h1>
<p>Arrow keys turn the slides; S opens the notes; Esc shows all. To print them, add ?print-pdf to the address.</p>
<ul>{links}</ul>
</body>
</html>
"""


def cleaned(page: BeautifulSoup) -> Tag:
    """Return the article of a page without what a slide cannot use: controls, links, marks of footnotes, sources of figures."""
    article = page.select_one("article")
    for mark in article.select("a.footnote-reference"):
        if isinstance(mark.previous_sibling, NavigableString):
            mark.previous_sibling.replace_with(mark.previous_sibling.rstrip())
        mark.decompose()
    for tag in article.select(NOT_TOLD):
        tag.decompose()
    for link in article.select("a"):
        link.unwrap()
    for image in article.select("img"):
        image.attrs = {name: image[name] for name in ("src", "alt")}
    return article


def words(tag: Tag) -> int:
    """Return how many words a part of a page takes."""
    return len(tag.get_text().split())


def told(section: Tag) -> list[tuple[str, int]]:
    """Return the text of a section, cut into what fits on a slide each, with its number of words; lists are cut between their items."""
    parts: list[tuple[str, Tag]] = []
    for child in section.find_all(["p", "ul", "ol", "dl", "blockquote", "div"], recursive=False):
        if child.name in ("ul", "ol"):
            items = child.find_all("li", recursive=False)
            parts += [(f'<{child.name} start="{number}">{item}</{child.name}>', item) for number, item in enumerate(items, 1)]
        elif child.name != "div" or {"math", "admonition"} & set(child.get("class", [])):
            parts.append((str(child), child))
    slides: list[tuple[str, int]] = []
    for text, tag in parts:
        if slides and slides[-1][1] + words(tag) <= WORDS:
            slides[-1] = slides[-1][0] + text, slides[-1][1] + words(tag)
        else:
            slides.append((text, words(tag)))
    return slides


def cut(picture: Path) -> list[str]:
    """Cut a tall picture between its rows of panels, where its background goes from one side to the other.

    Return the addresses of the parts, seen from the slides: none if a part would still be too tall to be read.
    """
    with Image.open(picture) as image:
        width, height = image.size
        if height <= TALL * width:
            return [f"../{picture.parent.name}/{picture.name}"]
        ink = np.flatnonzero(np.asarray(image.convert("L")).min(axis=1) < 250)
        gaps = np.flatnonzero(np.diff(ink) > 8)  # pixels: more than between two lines of a title
        strips = list(zip(ink[[0, *(gaps + 1)]].tolist(), ink[[*gaps, -1]].tolist(), strict=True))
        parts: list[list[tuple[int, int]]] = [[]]
        for start, end in strips:
            if parts[-1] and end - parts[-1][0][0] > TALL * width:
                # Titles stand nearer to the panels below them, numbers of an axis nearer to those above.
                title = len(parts[-1]) > 1 and start - parts[-1][-1][1] < parts[-1][-1][0] - parts[-1][-2][1]
                parts.append([parts[-1].pop()] if title else [])
            parts[-1].append((start, end))
        if max(part[-1][1] - part[0][0] for part in parts) > 1.1 * TALL * width:
            return []
        names = [f"{picture.stem}-{number}.png" for number in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            image.crop((0, max(part[0][0] - 8, 0), width, part[-1][1] + 9)).save(FOLDER / name)
    return names


def shown(section: Tag) -> list[tuple[str, int]]:
    """Return the results of a section, with their room in words: pictures and small tables with their captions, and steps by hand.

    A step is code with what it printed, and the paragraph before it, which is taken from the section.
    """
    found = []
    for child in section.find_all(["div", "figure"], recursive=False):
        code, printed = child.select_one(".cell_input pre"), child.select_one(".cell_output pre")
        if "by-hand" in section.get("id", "") and code and printed and not child.select_one("details"):
            before = child.find_previous_sibling()
            step = str(before.extract()) if before.name == "p" else ""
            found.append((f'{step}<pre class="code">{code.decode_contents()}</pre><pre>{printed.decode_contents()}</pre>', WORDS))
        for figure in [child] if child.name == "figure" else child.select("figure.result"):
            rows, picture = figure.select("tbody tr"), figure.find("img", recursive=False)
            if picture is not None:
                for name in cut((FOLDER / picture["src"]).resolve()):
                    picture["src"] = name
                    found.append((str(figure), PICTURE))
            elif 0 < len(rows) <= ROWS and len(rows[-1].select("td, th")) <= COLUMNS and words(figure) <= CELLS:
                found.append((str(figure), words(figure)))
    return found


def slides(article: Tag) -> str:
    """Return the slides of a chapter: a column for each section, with those of its parts below."""
    columns: list[list[str]] = []
    for section in article.select("section"):
        heading = section.find(["h1", "h2", "h3"], recursive=False)
        if heading is None or section.get("id", "").startswith(LEFT_OUT):
            continue
        results, texts, notes = shown(section), told(section), ""
        bodies = [text for text, _ in texts] + [body for body, _ in results]
        if results and texts and heading.name != "h1":
            first = [] if "by-hand" in section.get("id", "") else texts[:1]
            notes = "".join(text for text, _ in texts[len(first) :])
            bodies = [body for body, _ in first + results]
            if first and first[0][1] + results[0][1] <= WORDS:
                bodies[:2] = [bodies[0] + bodies[1]]
        made = [f"<section>{heading}{body}</section>" for body in bodies]
        if notes:
            made[0] = made[0].removesuffix("</section>") + f'<aside class="notes">{notes}</aside></section>'
        if heading.name == "h3" and columns:
            columns[-1] += made
        else:
            columns.append(made)
    return "\n".join(f"<section>{''.join(made)}</section>" for made in columns if made)


def main() -> int:
    """Write the slides of every chapter and a list of them; return 1, with a line that says why, if there is no built book."""
    made = {}
    for name in pages():
        path = HTML / f"{name}.html"
        if not path.is_file():
            print(f"not built: {name}; run make book first", file=sys.stderr)
            return 1
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        if path.parent.name == "notebooks" and page.select_one("section#summary"):
            FOLDER.mkdir(exist_ok=True)
            article = cleaned(page)
            made[path.name] = article.h1.get_text()
            (FOLDER / path.name).write_text((HEAD + PAGE).format(title=made[path.name], slides=slides(article)), encoding="utf-8")
    links = "".join(f'<li><a href="{name}">{title}</a></li>\n' for name, title in made.items())
    (FOLDER / "index.html").write_text((HEAD + INDEX).format(title="Slides", links=links), encoding="utf-8")
    print(f"slides of {len(made)} chapters: {FOLDER / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
