"""Check the built book as a reader would meet it: every page, figure and link is there, and nothing comes from elsewhere.

With ``--sources``, check instead that the pages' sources link to files that exist, which needs no built book.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "book" / "_build" / "html"

# Elements that make a browser fetch something, and the attribute that says what.
FETCHED = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src", "video": "src"}
# Links in the head that name an address without fetching it.
NOT_FETCHED = {"canonical", "search", "index", "prev", "next", "author"}


def pages() -> list[str]:
    """Return the pages that the table of contents promises."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    found: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            found.extend(node[key] for key in ("root", "file") if key in node)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(toc)
    return found


def check_page(path: Path, anchors: dict[Path, set[str]]) -> list[str]:
    """Return what is wrong with one page."""
    wrong = []
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    for name, attribute in FETCHED.items():
        for tag in soup.find_all(name):
            address = tag.get(attribute)
            if not address or address.startswith("data:") or (name == "link" and NOT_FETCHED & set(tag.get("rel", []))):
                continue
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                wrong.append(f"fetches {address} from elsewhere")
            elif not (path.parent / unquote(parts.path)).resolve().is_file():
                wrong.append(f"<{name}> refers to {address}, which does not exist")
    for image in soup.find_all("img"):
        if not (image.get("alt") or "").strip() and image.get("role") != "presentation":
            wrong.append(f"image without alternative text: {str(image)[:120]}")
    for link in soup.find_all("a", href=True):
        parts = urlsplit(link["href"])
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
        if not target.exists():
            wrong.append(f"dead link to {link['href']}")
        elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in anchors.get(target, set()):
            wrong.append(f"dead link to {link['href']}: no such place on that page")
    for error in soup.select(".output.stderr, .problematic, .system-message"):
        wrong.append(f"shows an error: {error.get_text()[:200]!r}")
    # What a figure says of itself where it cannot be drawn (helpers.figures.show).
    said = [output.get_text() for output in soup.select(".output pre")]
    wrong += [f"a figure was not drawn: {text[:200]!r}" for text in said if text.startswith("Figure: ")]
    return wrong


def lab_pages() -> dict[Path, Path]:
    """Return the labs' pages, which are written when the book is built, and the notebooks that they are made from."""
    return {ROOT / "book" / "labs" / path.name: path for path in (ROOT / "notebooks" / "labs" / "source").glob("*/*.ipynb")}


def dead_links(path: Path, of: Path | None = None) -> list[str]:
    """Return the relative links of a Markdown file or notebook that lead to no file; ``of``: the page that it will be, elsewhere."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target = urlsplit(link)
        if target.scheme or target.netloc or not target.path:
            continue
        goal = ((of or path).parent / unquote(target.path)).resolve()
        if not goal.exists() and goal not in lab_pages():
            found.append(link)
    return found


def sources() -> int:
    """Check the links of all sources; print those that are dead and return 1 if there are any."""
    files = [*ROOT.glob("*.md"), *(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb"), ROOT / "book" / "template.ipynb"]
    read = {path: None for path in files} | {path: page for page, path in lab_pages().items()}
    wrong = [f"{path.relative_to(ROOT)}: dead link to {link}" for path, page in sorted(read.items()) for link in dead_links(path, page)]
    for name in pages():
        there = [ROOT / f"{name}{end}" for end in (".md", ".ipynb")]
        if not any(path.is_file() or path in lab_pages() for path in there):
            wrong.append(f"_toc.yml: no file {name}")
    for message in wrong:
        print(message, file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    """Check every page; print what is wrong and return 1 if anything is."""
    if "--sources" in sys.argv[1:]:
        return sources()
    if not (HTML / "index.html").is_file():
        print("There is no built book; run make book first.", file=sys.stderr)
        return 1
    wrong: list[str] = []
    for name in pages():
        if not (HTML / f"{name}.html").is_file():
            wrong.append(f"{name}: the page is missing")
    html = sorted(path for path in HTML.rglob("*.html") if "_static" not in path.parts)
    anchors = {}
    for path in html:
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        named = {tag["name"] for tag in soup.find_all("a", attrs={"name": True})}
        anchors[path.resolve()] = named | {tag["id"] for tag in soup.find_all(id=True)}
    figures = 0
    for path in html:
        wrong += [f"{path.relative_to(HTML)}: {message}" for message in check_page(path, anchors)]
        figures += path.read_text(encoding="utf-8").count("<figure")
    for message in wrong:
        print(message, file=sys.stderr)
    print(f"{len(html)} pages, {figures} figures checked; {len(wrong)} problem(s).")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
