"""Open every page of the built book in Chromium, without a network, and report what a reader would stumble over.

Each page is opened twice, on a wide light window and on a dark phone, and scrolled to its end. Reported are

* requests that fail, and requests to anywhere but this machine;
* errors on the console;
* a page that scrolls sideways;
* what axe-core calls serious or critical, and headings that skip a level;
* images without alternative text;
* on the phone, charts and structures over which a finger cannot scroll the page;
* more than 3 MB fetched before the reader scrolls, images that wait for the scrolling not counted;
* a first page that takes more than two seconds to open.

On the first page the keyboard is tried as well: skip link, search, contents on a phone; and its notebook is downloaded.

``python book/browser.py [PAGE ...]`` opens the pages given (``notebooks/surfaces``), or all of the book, as many at a time as there are
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check import HTML, pages
from served import chromium, chromium_options, serve

AXE = Path(__file__).resolve().parent / "vendor" / "axe-core" / "axe.min.js"
GRAVE = {"serious", "critical"}
# Rules that axe-core calls moderate or minor and this book keeps none the less.
ALSO = {"heading-order", "page-has-heading-one", "empty-heading", "skip-link"}
TRANSITION_MS = 1000  # what comes into view may slide
SWIPE = 15  # px, a tenth of the way that a finger is drawn
MAX_WEIGHT = 3_000_000  # bytes before scrolling
MAX_OPENING = 2.0  # s, for the first page
OPENINGS = 3  # the quickest counts: others may be using this machine
PATIENCE_MS = 120_000  # longest wait for anything: a busy machine is no fault of the page; only the first page is timed

# Structures are drawn with WebGL, in software where there is no graphics card.
WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# Whatever is not this machine goes to a proxy that does not exist.
NO_NETWORK = {"server": "http://127.0.0.1:9", "bypass": "127.0.0.1"}


@dataclass(frozen=True)
class View:
    """A window: name, size in CSS pixels, and the reader's preference for light or dark."""

    name: str
    width: int
    height: int
    scheme: str


VIEWS = (View("desktop, light", 1280, 900, "light"), View("phone, dark", 390, 844, "dark"))

# Things whose weight the reader does not wait for: images that are fetched when they come near the window.
_WEIGHT = """() => {
  const lazy = new Set([...document.images].filter((image) => image.loading === "lazy").map((image) => image.currentSrc || image.src));
  return performance.getEntries()
    .filter((entry) => ["navigation", "resource"].includes(entry.entryType) && !lazy.has(entry.name))
    .reduce((sum, entry) => sum + entry.encodedBodySize, 0);
}"""
# Two frames for each step: only what is painted near the window is fetched.
_SCROLL = """async () => {
  for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight) {
    scrollTo(0, y);
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
  }
  scrollTo(0, 0);
}"""
# A picture that a drawing has replaced has left the page, and is not among these.
_ARRIVED = "() => [...document.images].every((image) => image.complete || !image.checkVisibility())"
_BROKEN = """() => [...document.images].filter((image) => image.checkVisibility() && !image.naturalWidth)
  .map((image) => image.outerHTML.slice(0, 120))"""
_SIDEWAYS = """() => {
  const page = document.documentElement, wide = page.scrollWidth - page.clientWidth;
  if (wide <= 0) return null;
  const beyond = [...document.body.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > page.clientWidth + 1);
  const last = beyond.filter((e) => !beyond.some((other) => other !== e && e.contains(other)));
  const names = last.slice(0, 3).map((e) => e.outerHTML.slice(0, 90));
  return `${wide} px too wide: ${names.join(" | ")}`;
}"""
_NO_ALT = """() => [...document.images]
  .filter((image) => !image.alt.trim() && !["presentation", "none"].includes(image.getAttribute("role")) && !image.ariaHidden)
  .map((image) => image.outerHTML.slice(0, 120))"""
_AXE = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.map((found) => ({
  id: found.id, impact: found.impact, help: found.help,
  nodes: found.nodes.map((node) => `${node.target.join(" ")}: ${(node.any[0] ?? node.all[0] ?? node.none[0])?.message ?? ""}`),
}))"""
# All but what waits for the scrolling has been fetched and run.
_OPENED = """() => {
  const [page] = performance.getEntriesByType("navigation"), paints = performance.getEntriesByName("first-contentful-paint");
  return page.loadEventEnd > 0 && paints.length ? Math.max(page.loadEventEnd, paints[0].startTime) / 1000 : null;
}"""


@dataclass
class Visit:
    """What one opening of a page showed: problems, remarks of lesser weight, and bytes fetched before scrolling."""

    page: str
    view: View
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    weight: int = 0


def new_window(browser, view: View):
    """Return a page in a window of its own, with nothing cached."""
    context = browser.new_context(
        viewport={"width": view.width, "height": view.height},
        color_scheme=view.scheme,
        reduced_motion="reduce",
        has_touch=view.width < 500,
    )
    return context.new_page()


def listen(page, address: str, problems: list[str]) -> None:
    """Note failed requests, requests to elsewhere, and errors on the console."""

    def asked(request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and not request.url.startswith(f"{address}/"):
            problems.append(f"asks {parts.scheme}://{parts.netloc} for {parts.path}")

    def answered(response) -> None:
        if response.status >= 400:
            problems.append(f"{response.status} for {urlsplit(response.url).path}")

    def failed(request: object) -> None:
        # What the browser itself gives up, because the reader has gone on to another page, is no failure.
        if "ERR_ABORTED" not in str(request.failure):
            problems.append(f"request failed: {request.url[:200]} ({request.failure})")

    page.on("request", asked)
    page.on("response", answered)
    page.on("requestfailed", failed)
    page.on("pageerror", lambda error: problems.append(f"error in a script: {error}"))
    page.on("console", lambda message: message.type == "error" and problems.append(f"console: {message.text[:300]}"))


def open_page(page, url: str) -> None:
    """Open a page and wait until it is quiet: fonts are there, formulas are set, nothing is being fetched."""
    page.goto(url, wait_until="load", timeout=PATIENCE_MS)
    page.wait_for_load_state("networkidle", timeout=PATIENCE_MS)
    page.evaluate("async () => { await document.fonts.ready; await window.MathJax?.startup?.promise; }")


def try_finger(page) -> list[str]:
    """Draw a finger over the first chart and the first structure, folded or not; return over which the page does not follow."""
    wrong = []
    touch = page.context.new_cdp_session(page)
    page.evaluate("() => document.querySelectorAll('details').forEach((folded) => { folded.open = true; })")
    for kind in (".plotly-graph-div", ".structure-viewer"):
        place = page.locator(kind).first
        if not place.count():
            continue
        place.evaluate("(element) => element.scrollIntoView({block: 'center'})")
        page.wait_for_load_state("networkidle", timeout=PATIENCE_MS)
        page.wait_for_timeout(TRANSITION_MS)  # it is drawn
        box = place.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        before, room = page.evaluate("() => [scrollY, document.documentElement.scrollHeight - innerHeight - scrollY]")
        step = -SWIPE if room > 10 * SWIPE else SWIPE
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for n in range(1, 11):
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y + n * step}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_timeout(TRANSITION_MS)
        if abs(page.evaluate("() => scrollY") - before) < 3 * SWIPE:
            wrong.append(f"a finger on {kind} does not scroll the page")
    return wrong


def visit(browser, address: str, name: str, view: View, axe: str) -> Visit:
    """Open a page in one view, scroll through it, and return what was seen."""
    seen = Visit(name, view)
    page = new_window(browser, view)
    listen(page, address, seen.problems)
    try:
        open_page(page, f"{address}/{name}.html")
        seen.weight = page.evaluate(_WEIGHT)
        if seen.weight > MAX_WEIGHT:
            seen.problems.append(f"{seen.weight / 1e6:.1f} MB before scrolling; {MAX_WEIGHT / 1e6:.0f} MB is the limit")
        page.evaluate(_SCROLL)
        page.wait_for_function(_ARRIVED, timeout=PATIENCE_MS)
        seen.problems += [f"picture that cannot be shown: {image}" for image in page.evaluate(_BROKEN)]
        page.wait_for_load_state("networkidle", timeout=PATIENCE_MS)
        theme = page.evaluate("() => document.documentElement.dataset.theme")
        if theme != view.scheme:
            seen.problems.append(f"the theme is {theme!r}, the reader prefers {view.scheme!r}")
        sideways = page.evaluate(_SIDEWAYS)
        if sideways:
            seen.problems.append(f"scrolls sideways, {sideways}")
        seen.problems += [f"image without alternative text: {image}" for image in page.evaluate(_NO_ALT)]
        page.evaluate(axe)
        for found in page.evaluate(_AXE):
            grave = found["impact"] in GRAVE or found["id"] in ALSO
            places = "; ".join(found["nodes"][:3]) + (f"; and {len(found['nodes']) - 3} more" if len(found["nodes"]) > 3 else "")
            (seen.problems if grave else seen.remarks).append(f"{found['impact']}: {found['id']}, {found['help']}: {places}")
        if view.width < 500:
            seen.problems += try_finger(page)
    except Exception as error:  # noqa: BLE001, whatever a page does to the browser is a finding
        seen.problems.append(f"could not be examined: {str(error).splitlines()[0]}")
    finally:
        page.context.close()
    return seen


def opening_time(browser, url: str, view: View = VIEWS[0]) -> float:
    """Return the seconds until a page has opened, with nothing cached: the quickest of a few openings."""
    times = []
    for _ in range(OPENINGS):
        page = new_window(browser, view)
        page.goto(url, wait_until="load", timeout=PATIENCE_MS)
        times.append(page.wait_for_function(_OPENED).json_value())
        page.context.close()
    return min(times)


def try_keyboard(browser, address: str, name: str, word: str) -> list[str]:
    """Use a page with the keyboard alone; return what does not work. ``word``: one that the search must find."""
    wrong: list[str] = []
    page = new_window(browser, VIEWS[0])
    listen(page, address, wrong)
    open_page(page, f"{address}/{name}.html")

    page.keyboard.press("Tab")
    page.wait_for_timeout(TRANSITION_MS)
    active = "document.activeElement"
    first = page.evaluate(f"() => ({{to: {active}.getAttribute('href'), bottom: {active}.getBoundingClientRect().bottom}})")
    if not (first["to"] or "").startswith("#") or first["bottom"] <= 0:
        wrong.append("the first Tab does not show a link that skips to the text")
    else:
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        if not page.evaluate("(target) => document.querySelector(target).contains(document.activeElement)", first["to"]):
            wrong.append("after the skip link the next Tab is not in the text")

    field_has_focus = "() => document.activeElement.matches('input[type=search]') && document.activeElement.checkVisibility()"
    page.keyboard.press("Control+k")
    if not page.evaluate(field_has_focus):
        wrong.append("Ctrl-K does not open the search")
    else:
        page.keyboard.press("Escape")
        if page.evaluate(field_has_focus):
            wrong.append("Escape does not close the search")
        page.keyboard.press("Control+k")
        page.keyboard.type(word)
        page.keyboard.press("Enter")
        try:
            page.wait_for_selector("#search-results li a", timeout=PATIENCE_MS)
        except Exception:  # noqa: BLE001, what is reported is that nothing was found
            wrong.append(f"the search finds nothing for {word!r}")
    page.context.close()

    phone = new_window(browser, VIEWS[1])
    listen(phone, address, wrong)
    open_page(phone, f"{address}/{name}.html")
    phone.locator("button.primary-toggle").focus()
    phone.keyboard.press("Enter")
    if not phone.locator("#pst-primary-sidebar-modal a, .bd-sidebar-primary a").first.is_visible():
        wrong.append("the contents do not open on a phone")
    phone.context.close()
    return wrong


def try_download(browser, address: str, name: str) -> list[str]:
    """Download a chapter's notebook with its button; return what is wrong with it."""
    page = new_window(browser, VIEWS[0])
    try:
        open_page(page, f"{address}/{name}.html")
        page.locator(".dropdown-download-buttons > button").click(timeout=PATIENCE_MS)
        with page.expect_download(timeout=PATIENCE_MS) as begun:
            page.locator(".btn-download-source-button").click()
        notebook = json.loads(Path(begun.value.path()).read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001, whatever goes wrong is the finding
        return [f"its notebook cannot be downloaded: {str(error).splitlines()[0]}"]
    finally:
        page.context.close()
    return [] if notebook.get("nbformat") and notebook.get("cells") else ["what is downloaded is no notebook"]


@contextmanager
def browsing():
    """Start a browser of its own for the thread that asks; close it in the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=[*WEBGL, *chromium_options()], proxy=NO_NETWORK)
        yield browser
        browser.close()


def look(address: str, name: str) -> list[str]:
    """Examine a page in all views and print a line on each; return its problems."""
    wrong: list[str] = []
    axe = AXE.read_text(encoding="utf-8")
    with browsing() as browser:
        for view in VIEWS:
            start = time.perf_counter()
            seen = visit(browser, address, name, view, axe)
            took = time.perf_counter() - start
            lines = [f"{name} ({view.name}): {seen.weight / 1e6:.1f} MB, {len(seen.problems)} problem(s), {took:.0f} s"]
            lines += [f"  {line}" for line in dict.fromkeys(seen.problems)] + [f"  (remark) {line}" for line in seen.remarks]
            print("\n".join(lines), flush=True)
            wrong += [f"{name} ({view.name}): {line}" for line in dict.fromkeys(seen.problems)]
    return wrong


def try_first(address: str, first: str) -> list[str]:
    """Time the opening of the page that readers meet first, try the keyboard and the download; return what is wrong."""
    wrong: list[str] = []
    with browsing() as browser:
        opening = opening_time(browser, f"{address}/{first}.html")
        print(f"{first} opens in {opening:.2f} s, the quickest of {OPENINGS}")
        if opening > MAX_OPENING:
            wrong.append(f"{first}: opens in {opening:.2f} s; {MAX_OPENING:.0f} s is the limit")
        wrong += [f"{first} (keyboard): {line}" for line in try_keyboard(browser, address, first, "softening")]
        wrong += [f"{first} (download): {line}" for line in try_download(browser, address, first)]
    return wrong


def main() -> int:
    """Examine the book; return 1 if anything is wrong, 2 if it cannot be examined."""
    parser = argparse.ArgumentParser(description="Open the pages of the built book in Chromium, without a network.")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="such as notebooks/surfaces; all if left out")
    names = parser.parse_args().pages or [*pages(), "search", "genindex"]
    missing = [name for name in names if not (HTML / f"{name}.html").is_file()]
    if missing:
        print(f"not built: {', '.join(missing)}; run make book first", file=sys.stderr)
        return 2
    try:
        import playwright.sync_api  # noqa: F401

        chromium()
    except (ImportError, FileNotFoundError) as error:
        print(f"{error}\nmake browser installs the package; Chromium or Chrome comes from the system", file=sys.stderr)
        return 2
    with serve(HTML) as address:
        # Alone, since it is timed.
        wrong = try_first(address, pages()[0]) if pages()[0] in names else []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            wrong += [line for lines in pool.map(partial(look, address), names) for line in lines]
    print(f"\n{len(names)} pages in {len(VIEWS)} views; {len(wrong)} problem(s).")
    for message in wrong:
        print(message, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
