"""The built site: what is done to its pages, its buttons, and the checks in a browser, each of which must find what is wrong."""

import base64
import functools
import hashlib
import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

from helpers import figures

ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "book" / "_static"


@functools.cache
def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def png(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def uri(content):
    return "data:image/png;base64," + base64.b64encode(content).decode()


# ---- what is done to the pages


@pytest.fixture
def site(tmp_path):
    """A page with a picture as data, a hidden cell, a list of contents and a bibliography; and a lab."""
    page = f"""<html><body><div id="pst-primary-sidebar"><p>Logo</p></div>
        <ul><li class="has-children"><a href="t.html">Teaching</a><details><summary><i></i></summary></details></li></ul>
        <article><h1>x</h1><figure class="result"><img src="{uri(png(40, 10))}" alt="a figure" width="20"></figure>
        <details class="hide"><summary aria-label="Toggle hidden content"><p>Show code</p></summary></details>
        <div class="citation-list" role="list"><a id="a"></a><div role="doc-biblioentry">x</div></div>
        <table><thead><tr><th></th><th>model</th></tr></thead></table>
        <p>a &lt; b &amp; c</p><script>if (a < b && c) {{ d = "</" + "p>"; }}</script></article></body></html>"""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "page.html").write_text(page)
    (tmp_path / "book" / "labs").mkdir(parents=True)
    buttons = '<div class="dropdown-launch-buttons">x</div><ul><li><a class="btn-source-edit-button" href="https://x">x</a></li></ul>'
    for name in ("book/labs/lab.html", "book/text.html"):
        (tmp_path / name).write_text(f"<html><body>{buttons}</body></html>")
    return tmp_path


def test_pictures_become_files_that_wait(site):
    load("polish").polish(site)
    image = BeautifulSoup((site / "notebooks" / "page.html").read_text(), "html.parser").img
    assert (site / "notebooks" / image["src"]).read_bytes() == png(40, 10)
    assert (image["loading"], image["width"], image["height"], image["alt"]) == ("lazy", "20", "5", "a figure")


def test_polishing_twice_changes_nothing_and_leaves_no_old_picture(site):
    polish = load("polish")
    polish.polish(site)
    (site / polish.FOLDER / "0123456789abcdef.png").write_bytes(png(1, 1))
    before = {path: path.read_bytes() for path in site.rglob("*.html")}
    polish.polish(site)
    assert {path: path.read_bytes() for path in site.rglob("*.html")} == before
    assert [path.read_bytes() for path in (site / polish.FOLDER).iterdir()] == [png(40, 10)]


def test_controls_have_the_names_that_are_seen(site):
    load("polish").polish(site)
    text = (site / "notebooks" / "page.html").read_text()
    soup = BeautifulSoup(text, "html.parser")
    assert soup.select_one("li summary")["aria-label"] == "Pages of Teaching"
    assert soup.select_one("#pst-primary-sidebar[role=region]")["aria-label"] == "Search and chapters"
    assert [cell.get_text() for cell in soup.select("thead th")] == ["model"]
    assert len(soup.select("thead tr > *")) == 2
    assert not soup.select("details.hide > summary[aria-label], [role=list], [role=doc-biblioentry]")
    # Text and scripts are as they were.
    assert "a &lt; b &amp; c" in text
    assert 'if (a < b && c) { d = "</" + "p>"; }' in text


def test_labs_have_no_button_for_a_file_that_the_repository_lacks(site):
    load("polish").polish(site)
    assert "https://x" not in (site / "book" / "labs" / "lab.html").read_text()
    assert "https://x" in (site / "book" / "text.html").read_text()


def test_quoted_numbers_have_minus_signs(site):
    page = site / "book" / "text.html"
    page.write_text("".join(f'<span class="pasted-text">{text}</span>' for text in ("-0.5", "MACE-MP-0", "-")))
    load("polish").polish(site)
    assert [one.string for one in BeautifulSoup(page.read_text(), "html.parser").select(".pasted-text")] == ["−0.5", "MACE-MP-0", "-"]


def test_only_a_png_has_a_size():
    assert load("polish").png_size(png(7, 3)) == (7, 3)
    with pytest.raises(ValueError, match="not a PNG"):
        load("polish").png_size(b"GIF89a" + bytes(40))


# ---- buttons


CONFIGURATION = yaml.safe_load((ROOT / "_config.yml").read_text())


def test_without_a_repository_the_configuration_is_as_it_stands(monkeypatch):
    monkeypatch.delenv("SOFTENING_REPOSITORY", raising=False)
    assert load("build").configuration_file() == ROOT / "_config.yml"
    options = CONFIGURATION["sphinx"]["config"]["html_theme_options"]
    assert not {"repository_url", "launch_buttons", "use_edit_page_button", "use_issues_button"} & set(options)


def test_the_repository_is_named_in_one_place(monkeypatch, tmp_path):
    build = load("build")
    monkeypatch.setattr(build, "BUILD", tmp_path / "_build")
    monkeypatch.setenv("SOFTENING_REPOSITORY", "https://github.com/owner/soft.git")
    monkeypatch.setenv("SOFTENING_BRANCH", "next")
    monkeypatch.setenv("SOFTENING_JUPYTERHUB", "https://hub.example.org")
    written = yaml.safe_load(build.configuration_file().read_text())
    options = written["sphinx"]["config"]["html_theme_options"]
    assert (options["repository_url"], options["repository_branch"]) == ("https://github.com/owner/soft", "next")
    assert options["launch_buttons"]["jupyterhub_url"] == "https://hub.example.org"
    # Everything else is as it was.
    for key in set(options) - set(CONFIGURATION["sphinx"]["config"]["html_theme_options"]):
        del options[key]
    assert written == CONFIGURATION


@pytest.mark.parametrize(
    ("repository", "hub", "complaint"),
    [
        ("github.com/owner/soft", "", "SOFTENING_REPOSITORY='github.com/owner/soft'"),
        ("https://example.org/owner/soft", "", "give https://github.com/OWNER/NAME"),
        ("https://github.com/owner", "", "SOFTENING_REPOSITORY"),
        ("https://github.com/owner/soft", "hub.example.org", "SOFTENING_JUPYTERHUB='hub.example.org'"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(repository, hub, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        load("build").published(CONFIGURATION, repository, hub=hub)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a small book of one notebook, one text and one lab with the configuration of this one; return its outside links by page."""
    root = tmp_path_factory.mktemp("book")
    for folder in ("_static", "_templates"):
        shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
    for name in ("references.bib", "docstrings.py"):
        shutil.copy(ROOT / "book" / name, root / "book")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# One"), nbformat.v4.new_code_cell("1 + 1")], metadata=kernel)
    for name in ("notebooks/one.ipynb", "book/labs/lab.ipynb"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, root / name)
    (root / "book" / "text.md").write_text("# Text\n")
    (root / "_toc.yml").write_text("format: jb-book\nroot: notebooks/one\nchapters:\n  - file: book/text\n  - file: book/labs/lab\n")

    @functools.cache
    def links(repository, hub=""):
        configuration = CONFIGURATION if not repository else load("build").published(CONFIGURATION, repository, hub=hub)
        (root / "_config.yml").write_text(yaml.safe_dump({**configuration, "execute": {"execute_notebooks": "off"}}))
        output = root / f"out-{hashlib.sha256((repository + hub).encode()).hexdigest()[:8]}"
        tool = str(Path(sys.executable).parent / "jupyter-book")
        done = subprocess.run([tool, "build", str(root), "--path-output", str(output)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        html = output / "_build" / "html"
        load("polish").polish(html)
        found = {}
        for page in ("notebooks/one", "book/text", "book/labs/lab"):
            soup = BeautifulSoup((html / f"{page}.html").read_text(), "html.parser")
            found[page] = [a["href"] for a in soup.select(".article-header-buttons a[href]") if "://" in a["href"]]
            downloads = [a["href"] for a in soup.select("a.btn-download-source-button")]
            assert downloads
            assert all((html / page).parent.joinpath(name).is_file() for name in downloads)
        return found

    return links


@pytest.mark.slow
def test_pages_without_a_repository_lead_nowhere_outside(built):
    assert built("") == {"notebooks/one": [], "book/text": [], "book/labs/lab": []}


@pytest.mark.slow
def test_pages_of_a_repository_have_their_buttons(built):
    links = built("https://github.com/owner/soft", "https://hub.example.org")
    assert "https://mybinder.org/v2/gh/owner/soft/main?urlpath=lab/tree/notebooks/one.ipynb" in links["notebooks/one"]
    assert "https://colab.research.google.com/github/owner/soft/blob/main/notebooks/one.ipynb" in links["notebooks/one"]
    assert any(link.startswith("https://hub.example.org/hub/user-redirect/git-pull?repo=") for link in links["notebooks/one"])
    assert "https://github.com/owner/soft/edit/main/book/text.md" in links["book/text"]
    assert any("issues/new" in link for link in links["book/text"])
    # A page of text cannot be launched; of a lab only the source is in the repository.
    assert not any("mybinder" in link for link in links["book/text"] + links["book/labs/lab"])
    assert not any("/edit/" in link for link in links["book/labs/lab"])


@pytest.mark.slow
def test_colab_is_not_offered_for_another_host(built):
    links = built("https://gitlab.com/owner/soft")["notebooks/one"]
    assert any(link.startswith("https://mybinder.org/v2/gl/owner%2Fsoft/main") for link in links)
    assert not any("colab" in link or "hub" in link for link in links)


# ---- in a browser


def test_axe_is_the_release_that_is_named():
    axe = load("browser").AXE
    named = (axe.parents[1] / "README.md").read_text()
    assert hashlib.sha256(axe.read_bytes()).hexdigest() in named
    assert f"axe-core {re.search(rb'axe v([0-9.]+)', axe.read_bytes()[:200]).group(1).decode()} " in named


def test_what_the_book_serves_of_others_is_what_was_published():
    named = (STATIC / "vendor" / "README.md").read_text()
    mathjax = STATIC / "vendor" / "mathjax"
    files = {path.relative_to(mathjax).as_posix(): path for path in mathjax.rglob("*") if path.is_file()}
    sums = "".join(f"{hashlib.sha256(files[name].read_bytes()).hexdigest()}  {name}\n" for name in sorted(files))
    assert f"`mathjax/`, of the sorted list of its files with their checksums: `{hashlib.sha256(sums.encode()).hexdigest()}`" in named
    for name in ("plotly-basic.min.js", "../3Dmol-min.js", "reveal/reveal.js", "reveal/reveal.css", "reveal/notes.js"):
        found = hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest()
        assert f"`{name}`: `{found}`" in named, f"{name} is not the file whose checksum book/_static/vendor/README.md gives"


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -c requirements.lock -e .[dev]"
    )
    browser, served = load("browser"), load("served")
    try:
        program = served.chromium()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with playwright.sync_playwright() as started:
        window = started.chromium.launch(
            executable_path=program, args=[*browser.WEBGL, *served.chromium_options()], proxy=browser.NO_NETWORK
        )
        yield window
        window.close()


# The theme follows the reader, as that of the book does.
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Page</title><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<script>document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";</script>
<style>html[data-theme=dark] body {{ background: #111; color: #eee; }}</style></head>
<body><main class="bd-article"><article><h1>Page</h1>{}</article></main></body></html>"""
BAR = "<p>words</p>" * 200


def see(chromium, folder, body, view=0):
    browser, served = load("browser"), load("served")
    (folder / "page.html").write_text(PAGE.format(body))
    with served.serve(folder) as address:
        return browser.visit(chromium, address, "page", browser.VIEWS[view], browser.AXE.read_text())


@pytest.mark.parametrize("view", [0, 1], ids=["desktop", "phone"])
def test_a_good_page_has_no_problem(chromium, tmp_path, view):
    (tmp_path / "a.png").write_bytes(png(20, 20))
    seen = see(chromium, tmp_path, f'<h2>Part</h2>{BAR}<img src="a.png" alt="grey" width="20" height="20" loading="lazy">', view)
    assert seen.problems == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('<img src="gone.png" alt="x">', "404 for /gone.png"),
        ('<script src="https://example.org/x.js"></script>', "asks https://example.org"),
        ('<script>fetch("http://example.org/data").catch(() => {})</script>', "asks http://example.org"),
        ("<script>console.error('broken')</script>", "console: broken"),
        ("<script>undefined_function()</script>", "error in a script"),
        ('<div style="width: 3000px">wide</div>', "scrolls sideways"),
        ('<p style="color: #ccc; background: #fff">pale</p>', "color-contrast"),
        ("<h4>skipped</h4>", "heading-order"),
        ("<h1></h1>", "empty-heading"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt="">', "image without alternative text"),
        ('<button type="button"></button>', "button-name"),
        ('<div style="overflow: auto; height: 90px; width: 200px">' + "<p>words</p>" * 20 + "</div>", "scrollable-region"),
        ('<script>document.documentElement.dataset.theme = "sepia"</script>', "the theme is 'sepia'"),
    ],
)
def test_what_is_wrong_is_found(chromium, tmp_path, body, complaint):
    seen = see(chromium, tmp_path, body)
    assert any(complaint in problem for problem in seen.problems), seen.problems


@pytest.mark.slow
@pytest.mark.parametrize("mode", [False, "pan"], ids=["of the book", "that pans"])
def test_a_chart_that_holds_a_finger_is_found(chromium, tmp_path, mode):
    rows = pd.DataFrame({"model": "chgnet-0.3.0", "case": ["a/1", "a/2"], "property": "x", "value": [1.0, 2.0], "reference": [1.0, 2.5]})
    figure = figures.interactive_parity(rows.assign(unit="eV", status="ok"), "energy").update_layout(dragmode=mode)
    shutil.copytree(STATIC / "vendor", tmp_path / "vendor", ignore=shutil.ignore_patterns("mathjax", "reveal"))
    body = figures.show(figure, "two points")._repr_html_().replace("../_static/", "")
    seen = see(chromium, tmp_path, f"<details><summary>chart</summary>{body}</details>{BAR}", view=1)
    assert [problem for problem in seen.problems if "finger" in problem] == [
        "a finger on .plotly-graph-div does not scroll the page"
    ] * bool(mode)


@pytest.mark.slow
def test_a_picture_that_waits_weighs_nothing_and_one_at_once_does(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr(load("browser"), "MAX_WEIGHT", 50_000)
    (tmp_path / "big.png").write_bytes(png(8, 8) + bytes(100_000))
    image = '<img src="big.png" alt="big" width="8" height="8"{}>'
    assert see(chromium, tmp_path, image.format(' loading="lazy"')).problems == []
    assert any("MB before scrolling" in problem for problem in see(chromium, tmp_path, image.format("")).problems)


@pytest.mark.slow
def test_a_broken_picture_far_below_is_found(chromium, tmp_path):
    seen = see(chromium, tmp_path, f'{BAR}{BAR}<img src="gone.png" alt="x" loading="lazy" width="9" height="9">')
    assert any("404 for /gone.png" in problem for problem in seen.problems)


@pytest.mark.slow
def test_the_time_of_opening_counts_what_the_page_waits_for(chromium, tmp_path):
    browser, served = load("browser"), load("served")
    (tmp_path / "page.html").write_text(PAGE.format("<script>const t = performance.now(); while (performance.now() < t + 400);</script>"))
    with served.serve(tmp_path) as address:
        assert browser.opening_time(chromium, f"{address}/page.html") > 0.4


@pytest.mark.slow
def test_keyboard_problems_are_found(chromium, tmp_path, monkeypatch):
    browser, served = load("browser"), load("served")
    (tmp_path / "page.html").write_text(PAGE.format('<a href="page.html">x</a><button class="primary-toggle">menu</button>'))
    with served.serve(tmp_path) as address:
        wrong = browser.try_keyboard(chromium, address, "page", "softening")
        monkeypatch.setattr(browser, "PATIENCE_MS", 5000)  # for a button that is not there
        assert browser.try_download(chromium, address, "missing")
    assert [line for line in wrong if "skips" in line]
    assert [line for line in wrong if "Ctrl-K" in line]
    assert [line for line in wrong if "contents" in line]


@pytest.fixture
def window(chromium, tmp_path):
    """Open a page that holds some HTML and scripts of the book; return it."""
    served = load("served")
    opened = []

    def make(body, scripts=(), scripting=True, width=1280):
        for name in scripts:
            shutil.copy(STATIC / name, tmp_path)
        tags = "".join(f'<script defer src="{name}"></script>' for name in scripts)
        style = "<style>.table-wrapper { overflow-x: auto; }</style>"
        (tmp_path / "page.html").write_text(PAGE.format(style + body + tags))
        context = chromium.new_context(java_script_enabled=scripting, viewport={"width": width, "height": 700})
        opened.append(context)
        page = context.new_page()
        page.goto(f"{address}/page.html")
        return page

    with served.serve(tmp_path) as address:
        yield make
        for context in opened:
            context.close()


FRAME = pd.DataFrame(
    {
        "figure": ["2a", "10b", "2a", "3"],
        "model": ["CHGNet", "M3GNet", "MACE", "CHGNet"],
        "paper": ["0.10 *", "−0.20", "1,200.5", "0.03"],
        "ours": ["0.80 [0.70,\u00a00.87]", "–", "0.10", "−0.5"],
    }
).set_index("figure")


def board():
    return figures.show_table(FRAME, caption="c", filters=["model"])._repr_html_()


def column(page, number):
    return page.locator(f"tbody tr:not([hidden]) > :nth-child({number})").all_inner_texts()


@pytest.mark.slow
def test_a_table_sorts_by_click_and_by_key(window):
    page = window(board(), ["tables.js"])
    paper, ours = page.get_by_role("button", name="paper"), page.get_by_role("button", name="ours")
    paper.click()
    assert column(page, 3) == ["−0.20", "0.03", "0.10 *", "1,200.5"]
    assert page.locator("th[aria-sort]").evaluate_all("all => all.map((th) => [th.innerText, th.ariaSort])") == [["paper", "ascending"]]
    paper.focus()
    page.keyboard.press("Enter")
    assert column(page, 3) == ["1,200.5", "0.10 *", "0.03", "−0.20"]
    page.keyboard.press("Space")
    assert column(page, 3) == FRAME["paper"].tolist(), "the third time the table is as it was"
    assert page.locator("th[aria-sort]").count() == 0
    ours.click()
    assert [text[:4] for text in column(page, 4)] == ["−0.5", "0.10", "0.80", "–"]
    ours.click()
    assert [text[:4] for text in column(page, 4)] == ["0.80", "0.10", "−0.5", "–"], "what is missing stays last"
    page.get_by_role("button", name="figure").click()
    assert column(page, 1) == ["2a", "2a", "3", "10b"]


@pytest.mark.slow
def test_rows_are_chosen_by_menu_and_by_text(window):
    page = window(board(), ["tables.js"])
    page.get_by_label("model").select_option("CHGNet")
    assert column(page, 2) == ["CHGNet", "CHGNet"]
    assert page.locator("output").inner_text() == "2 of 4 rows"
    page.get_by_label("text").fill("2a chg")
    assert column(page, 1) == ["2a"]
    page.get_by_role("button", name="Show all").click()
    assert len(column(page, 1)) == 4
    page.get_by_label("text").fill("nothing like it")
    assert page.locator("output").inner_text() == "0 of 4 rows"


@pytest.mark.slow
def test_without_scripts_it_is_a_plain_table(window):
    page = window(board(), ["tables.js"], scripting=False)
    assert column(page, 2) == FRAME["model"].tolist()
    assert page.locator("button, select, input").count() == 0


@pytest.mark.slow
def test_a_long_table_unfolds_at_a_click(window):
    long = figures.show_table(pd.DataFrame({"n": range(14)}), caption="c")._repr_html_()
    page = window(f"<style>{(STATIC / 'custom.css').read_text()}</style>{long}{board()}", ["tables.js"])
    seen = page.locator("figure[data-folded] tbody tr:visible")
    assert seen.count() == 10
    page.get_by_role("button", name="All 14 rows").click()
    assert seen.count() == 14
    page.get_by_role("button", name="10 rows").click()
    assert seen.count() == 10
    page.emulate_media(media="print")
    assert seen.count() == 14
    assert page.locator("output").inner_text() == "4 of 4 rows", "others of the page sort and filter"


def test_a_table_is_plain_unless_asked_and_filters_are_columns():
    assert "data-sortable" not in figures.show_table(FRAME, caption="c")._repr_html_()
    assert json.loads(BeautifulSoup(board(), "html.parser").figure["data-filters"]) == ["model"]
    with pytest.raises(ValueError, match="no column family to filter by; there are figure, model"):
        figures.show_table(FRAME, caption="c", filters=["family"])


@pytest.mark.slow
def test_what_scrolls_can_be_reached_with_the_keyboard(window):
    body = '<figure class="result" style="overflow-x: auto"><div style="width: 600px">wide</div></figure>'
    wide = window(body, ["page.js"])
    wide.wait_for_timeout(300)
    assert wide.locator("figure").get_attribute("tabindex") is None
    wide.set_viewport_size({"width": 300, "height": 700})
    wide.wait_for_selector("figure[tabindex='0'][data-wide]")
    wide.set_viewport_size({"width": 1280, "height": 700})
    wide.wait_for_selector("figure:not([tabindex]):not([data-wide])")


@pytest.mark.slow
def test_a_table_wider_than_the_text_takes_the_margin(window):
    table = figures.show_table(pd.DataFrame({"a": ["x"], "b": ["y"]}), caption="c")._repr_html_()
    style = (STATIC / "custom.css").read_text() + ".bd-article { width: 600px } td { min-width: 250px }"
    none = figures.show_table(pd.DataFrame({"a": []}), caption="says None, and is no script error")._repr_html_()
    page = window(f'<style>{style}</style><div class="bd-article">{none}{table}</div>', ["page.js"])
    page.set_viewport_size({"width": 1280, "height": 700})
    page.wait_for_selector(".table-wrapper.full-width")
    page.wait_for_timeout(300)
    assert 600 < page.evaluate("document.querySelector('.table-wrapper.full-width').clientWidth") <= 816
    assert page.locator("figure").nth(1).get_attribute("data-wide") is None, "nothing is out of sight"


@pytest.mark.slow
def test_a_drawing_library_is_fetched_when_the_figure_comes_near(window):
    rows = pd.DataFrame(
        {"model": "chgnet-0.3.0", "reference": [1.0, 2.0], "value": [1.0, 1.5], "case": "Cu", "property": "e", "unit": "eV", "status": "ok"}
    )
    shown = figures.show(figures.interactive_parity(rows, "energy"), alt="a plot")
    page = window(f"{BAR}{BAR}{shown._repr_html_().replace('../_static/', '')}")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(500)
    assert page.evaluate("Object.keys(window.loadOnce).length") == 0
    page.locator(".plotly-graph-div").scroll_into_view_if_needed()
    page.wait_for_function("() => Object.keys(window.loadOnce).length === 1")
    assert [url for url in asked if url.endswith("plotly-basic.min.js")]
