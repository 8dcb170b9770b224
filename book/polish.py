"""What the built pages need beyond Sphinx: pictures as files of their own, and names for controls that have none.

Figures come out of notebooks as data inside the page; a reader would wait for all of them before the first word. Here they become
files that a browser fetches when they come near the window. Pages that Sphinx did not write again are as they were left.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from pathlib import Path

from bs4 import BeautifulSoup

FOLDER = "_figures"  # below the site; holds nothing else
_PNG = "data:image/png;base64,"


def png_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a PNG in pixels, from its header (PNG specification, third edition, section 11.2.1).

    Raises
    ------
    ValueError
        If it is no PNG.
    """
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR":
        raise ValueError("not a PNG")
    return struct.unpack(">II", content[16:24])


def pictures_apart(soup: BeautifulSoup, site: Path, to_root: str) -> None:
    """Write the pictures that a page holds as data to files below ``site``, and let all pictures of the text wait for the reader.

    Width and height are set, so that the text does not move when a picture arrives.
    """
    for image in soup.select("article img[src]"):
        image["loading"], image["decoding"] = "lazy", "async"
        if not image["src"].startswith(_PNG):
            continue
        content = base64.b64decode(image["src"].removeprefix(_PNG))
        path = site / FOLDER / f"{hashlib.sha256(content).hexdigest()[:16]}.png"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        image["src"] = f"{to_root}{FOLDER}/{path.name}"
        if image.get("width", "").isdecimal() and not image.get("height"):
            width, height = png_size(content)
            image["height"] = str(round(int(image["width"]) * height / width))


def name_controls(soup: BeautifulSoup) -> None:
    """Give the switches that open and close parts of a page the names that are seen, or one where nothing is seen but an arrow."""
    for summary in soup.select("details.hide > summary[aria-label]"):
        del summary["aria-label"]  # it hides the visible words, "Show code cell source"
    for entry in soup.select("li.has-children"):
        link, summary = entry.find("a", recursive=False), entry.select_one("details > summary")
        if link and summary:
            summary["aria-label"] = f"Pages of {link.get_text(strip=True)}"


def name_parts(soup: BeautifulSoup) -> None:
    """Make the sidebar, logo included, a part of the page that a screen reader can jump to; an empty corner of a table heads nothing."""
    sidebar = soup.select_one("#pst-primary-sidebar")
    if sidebar:
        sidebar["role"], sidebar["aria-label"] = "region", "Search and chapters"
    for corner in soup.select("article thead th"):
        if not corner.get_text(strip=True):
            corner.name = "td"


def minus_signs(soup: BeautifulSoup) -> None:
    """Give the numbers that the text quotes a minus sign for their hyphen."""
    for number in soup.select("span.pasted-text"):
        if re.match(r"-[\d.]", number.get_text()):
            number.string = number.get_text().replace("-", "−", 1)


def whole_dates(soup: BeautifulSoup) -> None:
    """Keep a date in a table from breaking at its hyphens (custom.css)."""
    for cell in soup.select("article td:not(.whole)"):
        if re.match(r"\d{4}-\d\d-\d\d", cell.get_text(strip=True)):
            cell["class"] = [*cell.get("class", []), "whole"]


def plain_bibliography(soup: BeautifulSoup) -> None:
    """Remove the roles of the bibliography: its list may not hold the targets that stand in it, and that of its entries is deprecated."""
    for part in soup.select('.citation-list[role="list"], [role="doc-biblioentry"]'):
        del part["role"]


def only_links_that_lead_somewhere(soup: BeautifulSoup, page: Path) -> None:
    """Remove from the labs the buttons that open or edit the page in the repository: the pages are made, only their source is there."""
    if page.parts[:2] == ("book", "labs"):
        for button in soup.select(".dropdown-launch-buttons, li:has(> .btn-source-edit-button), .btn-source-edit-button"):
            button.decompose()


def polish(site: Path) -> None:
    """Polish all pages of a site, and remove pictures that no page shows any more."""
    used: set[str] = set()
    for page in sorted(site.rglob("*.html")):
        if "_static" in page.relative_to(site).parts:
            continue
        before = page.read_text(encoding="utf-8")
        soup = BeautifulSoup(before, "html.parser")
        pictures_apart(soup, site, "../" * (len(page.relative_to(site).parts) - 1))
        name_controls(soup)
        name_parts(soup)
        plain_bibliography(soup)
        minus_signs(soup)
        whole_dates(soup)
        only_links_that_lead_somewhere(soup, page.relative_to(site))
        after = str(soup)
        if after != before:
            page.write_text(after, encoding="utf-8")
        used |= {Path(image["src"]).name for image in soup.select(f'img[src*="{FOLDER}/"]')}
    for path in (site / FOLDER).glob("*.png"):
        if path.name not in used:
            path.unlink()
