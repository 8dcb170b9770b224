"""Print the built book with Chromium: one PDF of every page, in the order of the contents, with bookmarks.

The pages are printed as they are on the screen, so figures and formulas are those of the HTML; interactive figures print as they open.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from bs4 import BeautifulSoup
from pypdf import PdfReader, PdfWriter
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check import HTML, pages
from served import chromium, chromium_options, serve

OUTPUT = HTML.parent / "soft-potentials.pdf"
WAIT_MS = 20_000  # of the page's own clock, for formulas and figures
WINDOW = "--window-size=1280,30000"  # a whole chapter: figures are drawn when they come near the window


def title(page: Path) -> str:
    """Return the heading of a page."""
    heading = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").find("h1")
    return heading.get_text().rstrip("#").strip() if heading else page.stem


def print_page(program: str, address: str, target: Path) -> None:
    """Print one address to a PDF.

    Raises
    ------
    RuntimeError
        If the browser wrote nothing.
    """
    how = ["--headless=new", "--disable-gpu", WINDOW, "--no-pdf-header-footer", f"--virtual-time-budget={WAIT_MS}", *chromium_options()]
    done = subprocess.run(  # noqa: S603
        [program, *how, f"--print-to-pdf={target}", address], capture_output=True, text=True, timeout=300, check=False
    )
    if not target.is_file():
        raise RuntimeError(f"{program} could not print {address}: {done.stderr.strip()[-500:]}")


def main() -> int:
    """Print every page and join them; return 1, with a line that says why, if that cannot be done."""
    names = pages()
    missing = [name for name in names if not (HTML / f"{name}.html").is_file()]
    if missing:
        print(f"not built: {', '.join(missing)}; run make book first", file=sys.stderr)
        return 1
    writer = PdfWriter()
    try:
        program = chromium()
        # Served rather than opened as files: a browser reads more from the same server than from the same folder.
        with serve(HTML) as address, tempfile.TemporaryDirectory() as folder:
            for number, name in enumerate(tqdm(names, unit="page")):
                target = Path(folder) / f"{number}.pdf"
                print_page(program, f"{address}/{name}.html", target)
                writer.append(PdfReader(target), outline_item=title(HTML / f"{name}.html"), import_outline=False)
    except (FileNotFoundError, RuntimeError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 1
    part = OUTPUT.with_suffix(".part")
    writer.write(part)
    part.replace(OUTPUT)
    print(f"{len(writer.pages)} sheets: {OUTPUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
