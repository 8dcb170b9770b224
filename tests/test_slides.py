"""Slides: what of a page they hold, and that nothing is fetched from elsewhere."""

import re
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from conftest import book_script
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

INPUT, OUTPUT = '<div class="cell_input"><pre><span>a = 3 * 1.2</span></pre></div>', '<div class="cell_output"><pre>a = 3.6</pre></div>'
SOURCE = "<details><summary>Source</summary>CHGNet, 2 cores</details>"
TABLE = f'<figure class="result"><table><tbody>{{}}</tbody></table><figcaption>About {{}}.{SOURCE}</figcaption></figure>'
ROW = "<tr><th>CHGNet</th><td>0.78</td></tr>"
PAGE = f"""<html><body><nav>Contents</nav><article><section id="surfaces"><h1>Surfaces<a class="headerlink" href="#surfaces">#</a></h1>
<p><em>What does a cut cost?</em></p><p>Too little: 0.78 of <a href="dft.html">DFT</a>.</p>
<figure class="result"><img src="../_figures/tall.png" alt="points below the diagonal" loading="lazy" width="600" height="900">
<figcaption>Below the line.{SOURCE}</figcaption></figure>
<div class="dropdown glance admonition"><p class="admonition-title">How to run this</p></div>
<section id="the-physics"><h2>The physics</h2><p>A surface <a class="footnote-reference brackets" href="#id1">[5]</a>, by area:</p>
<div class="math">\\[ \\gamma = E / A \\]</div><p>{"word " * 100}</p></section>
<section id="one-by-hand"><h2>One by hand</h2><p>Two steps.</p><p>First, the bulk.</p><div class="cell">{INPUT}{OUTPUT}</div>
<div class="cell tag_hide-input"><details><div class="cell_input"><pre>hidden = 1</pre></div></details></div></section>
<section id="the-whole-set"><h2>The whole set</h2><p>All surfaces.</p><p>{"later " * 130}</p>
<div class="cell"><div class="cell_output">{TABLE.format(3 * ROW, "few")}</div></div>
<div class="cell"><div class="cell_output">{TABLE.format(30 * ROW, "many")}</div></div>
<section id="beside"><h3>Beside the paper</h3><p>They agree.</p></section></section>
<section id="live-check"><h2>Live check</h2><p>Recomputed.</p></section>
<section id="summary"><h2>Summary</h2><ul><li>Soft.</li><li>It can be mended.</li></ul></section>
</section></article></body></html>"""


def drawn(rows):
    """Return the picture of so many rows of panels, with a strip of numbers right below each and one of titles right above."""
    picture = np.full((rows * 400, 600), 255, np.uint8)
    for top in range(0, rows * 400, 400):
        picture[top + 40 : top + 50, 100:500] = picture[top + 70 : top + 300, 100:500] = picture[top + 315 : top + 325, 100:500] = 0
    return Image.fromarray(picture)


@pytest.fixture
def site(tmp_path, monkeypatch):
    module = book_script("slides")
    for name in ("notebooks", "_figures", "slides"):
        (tmp_path / name).mkdir()
    (tmp_path / "_static").symlink_to(ROOT / "book" / "_static")
    (tmp_path / "notebooks" / "surfaces.html").write_text(PAGE)
    (tmp_path / "notebooks" / "status.html").write_text("<article><h1>Status</h1></article>")
    drawn(3).save(tmp_path / "_figures" / "tall.png")
    monkeypatch.setattr(module, "HTML", tmp_path)
    monkeypatch.setattr(module, "FOLDER", tmp_path / "slides")
    monkeypatch.setattr(module, "pages", lambda: ["notebooks/surfaces", "notebooks/status"])
    return module, tmp_path


def test_a_chapter_becomes_slides(site):
    module, folder = site
    assert module.main() == 0
    page = BeautifulSoup((folder / "slides" / "surfaces.html").read_text(), "html.parser")
    columns = page.select(".slides > section")
    assert [column.select_one("h1, h2").get_text() for column in columns] == [
        *("Surfaces", "The physics", "One by hand", "The whole set", "Summary")
    ]
    title, *pictures = columns[0].find_all("section")
    assert "What does a cut cost? Too little: 0.78 of DFT." in " ".join(title.get_text(" ").split()).replace(" .", ".")
    assert len(pictures) == 3
    assert all(picture.img["alt"] == "points below the diagonal" for picture in pictures)
    physics = columns[1].find_all("section")
    assert "A surface, by area:" in physics[0].get_text()
    assert r"\[ \gamma = E / A \]" in physics[0].get_text()
    assert len(physics) == 1
    (step,) = columns[2].find_all("section")
    assert [part.get_text() for part in step.find_all(["p", "pre"])][:3] == ["First, the bulk.", "a = 3 * 1.2", "a = 3.6"]
    whole, beside = columns[3].find_all("section")
    assert whole.select_one("p").get_text() == "All surfaces."
    assert len(whole.select("tr")) == 3
    assert "later" in whole.select_one("aside.notes").get_text()
    assert "later" not in "".join(part.get_text() for part in whole.find_all(["p", "figure"], recursive=False))
    assert "They agree." in beside.get_text()
    words = page.get_text()
    for gone in ("Recomputed", "hidden", "many", "2 cores", "How to run this", "[5]", "#", "Contents"):
        assert gone not in words, gone


def test_nothing_is_fetched_from_elsewhere(site):
    module, folder = site
    module.main()
    check = book_script("check")
    for path in (folder / "slides").glob("*.html"):
        assert check.check_page(path, {}) == []
        assert "://" not in path.read_text()
    listed = (folder / "slides" / "index.html").read_text()
    assert '<a href="surfaces.html">Surfaces</a>' in listed
    assert "status" not in listed
    style = (ROOT / "book" / "_static" / "slides.css").read_text() + (ROOT / "book" / "_static/vendor/reveal/reveal.css").read_text()
    assert not re.findall(r"@import|url\((?!data:)", style)


def test_tall_pictures_are_cut_between_their_rows(site):
    module, folder = site
    names = module.cut(folder / "_figures" / "tall.png")
    parts = [np.asarray(Image.open(folder / "slides" / name)) for name in names]
    assert len(parts) == 3
    for part in parts:
        # Its titles, panels and numbers, and those of no other row.
        strips = np.flatnonzero(np.diff((part.min(axis=1) < 250).astype(int)) == 1)
        assert len(strips) == 3
    drawn(1).save(folder / "_figures" / "flat.png")
    assert module.cut(folder / "_figures" / "flat.png") == ["../_figures/flat.png"]
    Image.fromarray(np.zeros((900, 600), np.uint8)).save(folder / "_figures" / "one.png")
    assert module.cut(folder / "_figures" / "one.png") == [], "nothing to cut: it would be too small to be read"


def test_without_a_book_there_are_no_slides(site, capsys):
    module, folder = site
    (folder / "notebooks" / "surfaces.html").unlink()
    assert module.main() == 1
    assert "not built: notebooks/surfaces; run make book first" in capsys.readouterr().err
