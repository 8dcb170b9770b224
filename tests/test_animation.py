"""Animated structures: what the page holds, and what is refused. (Playing was tried in a browser.)"""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from bs4 import BeautifulSoup
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle
from PIL import Image

from helpers import figures
from helpers.figures import interactive


def path(n=4):
    """Return frames of one atom of NaCl that moves along x."""
    frames = []
    for step in range(n):
        atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        atoms.positions[3, 0] += 0.1 * step
        frames.append(atoms)
    return frames


def data_of(html):
    return json.loads(re.search(r"const data = (\{.*\});", html).group(1))


def drawn(html):
    """Return what is drawn beside the atoms: edges of the cell, arrows and empty sites."""
    return [json.loads(found) for found in re.findall(r"^  for \(const .* of (\[.*\])\) \{$", html, re.MULTILINE)]


def test_a_reader_can_play_step_and_read():
    html = figures.animation_view(path(), "An ion moves.", labels=["0 eV", "<b>1</b> eV", "2 eV", "3 eV"], highlight=[3])._repr_html_()
    page = BeautifulSoup(html, "html.parser")
    assert page.button["aria-label"]
    assert page.find("input")["aria-label"]
    assert page.find("input")["max"] == "3"
    assert page.output.text == "0 eV"
    assert page.output["aria-live"] == "off", "a screen reader would read every frame aloud"
    assert page.button["aria-pressed"] == "false"
    assert page.button["type"] == "button"
    for word in ("play", "pause"):
        assert word in page.button["aria-label"].lower(), "the name holds what is written on the button"
    assert data_of(html)["labels"][1] == "<b>1</b> eV"


def test_without_scripts_there_is_a_picture_and_no_control_that_does_nothing():
    page = BeautifulSoup(figures.animation_view(path(), "An ion moves.", highlight=[3])._repr_html_(), "html.parser")
    assert page.img["alt"].startswith("An ion moves. Cl4Na4, 4 frames")
    assert min(Image.open(io.BytesIO(base64.b64decode(page.img["src"].split(",")[1]))).size) > 300
    (hidden,) = page.select("[hidden]")
    assert hidden.find("button")
    assert hidden.find("input")
    assert "display" not in hidden.get("style", ""), "a display of its own would show what is hidden"


def test_the_picture_shows_the_way_of_the_highlighted_atom():
    def patches(**settings):
        axes = figures.animation_view(path(), "An ion moves.", **settings)._picture().axes[0]
        return [patch for patch in axes.patches if isinstance(patch, Circle)]

    assert len(patches()) == 8
    seen = patches(highlight=[3])
    balls, beads = seen[:8], seen[8:]
    assert sorted({round(ball.radius, 2) for ball in balls}) == [0.55, 0.9]
    assert len(beads) == 3
    (ball,) = (ball for ball in balls if ball.radius > 0.8)
    steps = np.diff([ball.center, *(bead.center for bead in beads)], axis=0)
    # x is turned by 22° about the vertical of the picture.
    assert steps[:, 0] == pytest.approx(0.1 * np.cos(np.radians(22)), abs=1e-6)
    assert {bead.get_facecolor()[:3] for bead in beads} == {to_rgb(ball.get_facecolor())}
    assert to_rgb(ball.get_facecolor()) not in {to_rgb(other.get_facecolor()) for other in balls if other is not ball}


def test_empty_sites_are_drawn_and_named():
    site = path()[-1].positions[3]
    view = figures.animation_view(path(), "An ion moves.", highlight=[3], sites=[site])
    assert drawn(view._repr_html_())[2] == [pytest.approx(site, abs=1e-3)]
    key = BeautifulSoup(view._repr_html_(), "html.parser").select_one(".structure-key").get_text()
    assert "moving" in key
    assert "empty site" in key
    holes = [patch for patch in view._picture().axes[0].patches if patch.get_alpha() and patch.radius == interactive.SITE_RADIUS]
    assert len(holes) == 1


def test_labels_are_escaped():
    html = figures.animation_view(path(2), "An ion <moves>.", labels=["<b>1</b> eV", "x"])._repr_html_()
    assert "<b>" not in html
    assert "<moves>" not in html
    assert BeautifulSoup(html, "html.parser").output.text == "<b>1</b> eV"


def test_frames_without_labels_are_counted():
    html = figures.animation_view(path(2), "An ion moves.")._repr_html_()
    assert BeautifulSoup(html, "html.parser").output.text == "frame 1"
    assert data_of(html)["labels"] == ["frame 1", "frame 2"]


def test_the_page_holds_all_frames():
    html = figures.animation_view(path(), "An ion moves.", highlight=[3], seconds=4.0)._repr_html_()
    data = data_of(html)
    assert data["order"] == [0, 1, 2, 3]
    assert data["step"] == 1000
    assert data["highlight"] == [3]
    assert data["symbols"] == path()[0].get_chemical_symbols()
    positions = np.array(data["positions"])
    assert positions.shape == (4, 8, 3)
    assert positions[:, 3, 0] - positions[0, 3, 0] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-3)
    assert positions[:, 0].std(axis=0) == pytest.approx(0)
    lengths = np.linalg.norm(np.diff(drawn(html)[0], axis=1), axis=-1)
    np.testing.assert_allclose(lengths, np.full((12, 1), 5.6))
    assert {symbol: f"#{hue:06x}" for symbol, hue in data["scheme"]["map"].items()} == {"Na": "#ab5cf2", "Cl": "#1ff01f"}


def test_positions_are_rounded_and_no_cell_has_no_edges():
    molecule = Atoms("OH", [[0, 0, 0], [0.12345678, 0, 0.97]])
    html = figures.animation_view([molecule, molecule], "A molecule.")._repr_html_()
    assert data_of(html)["positions"][0][1] == [0.123, 0, 0.97]
    assert drawn(html)[0] == []


def test_back_and_forth_shows_neither_end_twice():
    view = figures.animation_view(path(), "An ion moves.", loop="back-and-forth")
    html = view._repr_html_()
    assert data_of(html)["order"] == [0, 1, 2, 3, 2, 1]
    assert BeautifulSoup(html, "html.parser").find("input")["max"] == "3", "the slider has a place for each frame"


@pytest.mark.parametrize("label", ["</script>", "<!--<script>"])
def test_a_label_cannot_end_or_open_a_script(label):
    html = figures.animation_view(path(2), "An ion moves.", labels=[label, "x"])._repr_html_()
    assert html.count("</script>") == html.count("<script") == 1
    assert "<!--" not in html
    assert data_of(html)["labels"] == [label, "x"]


@pytest.mark.skipif(shutil.which("node") is None, reason="checks the syntax of the JavaScript with node")
def test_the_script_is_javascript(tmp_path):
    html = figures.animation_view(path(2), "An ion moves.", labels=["</script>", 'a"b'], highlight=[3])._repr_html_()
    file = tmp_path / "animation.js"
    file.write_text(re.search(r"<script>(.*)</script>", html, re.DOTALL).group(1))
    subprocess.run([shutil.which("node"), "--check", str(file)], check=True)


def test_changing_the_given_atoms_later_changes_nothing():
    frames = path(2)
    view = figures.animation_view(frames, "An ion moves.")
    before = data_of(view._repr_html_())
    frames[1].positions += 1
    assert data_of(view._repr_html_()) == before


def test_show_gives_it_a_caption():
    html = figures.show(figures.animation_view(path(2), "An ion moves."), alt="An ion moves.", caption="A <hop>.")._repr_html_()
    page = BeautifulSoup(html, "html.parser")
    assert page.select_one("figure.result > figcaption").text == "A <hop>."
    assert page.select_one("figure.result > .structure-views button")


def other_cell():
    frames = path(2)
    frames[1].cell[0, 0] += 0.1
    return frames


def not_finite():
    frames = path(2)
    frames[1].positions[0, 0] = np.nan
    return frames


@pytest.mark.parametrize(
    ("frames", "settings", "message"),
    [
        ([], {}, "at least two frames, not 0"),
        (path(1), {}, "at least two frames, not 1"),
        ([path(1)[0], bulk("Cu")], {}, "frame 1 has not the atoms"),
        ([path(1)[0], path(1)[0][::-1]], {}, "frame 1 has not the atoms"),
        ([Atoms(), Atoms()], {}, "no atoms"),
        (other_cell(), {}, "frame 1 has not the cell"),
        (not_finite(), {}, "frame 1 holds positions that are not finite"),
        (path(2), {"labels": ["one"]}, "2 frames but 1 labels"),
        (path(2), {"highlight": [8]}, "atom 8 is to be highlighted, but the frames have 8 atoms"),
        (path(2), {"highlight": [-1]}, "atom -1 is to be highlighted"),
        (path(2), {"sites": [1.0, 2.0]}, r"shape \(k, 3\), not \(2,\)"),
        (path(2), {"loop": "once"}, "choose one of loop, back-and-forth"),
        (path(2), {"seconds": 0}, "seconds must be positive"),
        (path(2), {"seconds": np.inf}, "seconds must be positive and finite"),
        (path(2), {"alt": " "}, "alternative text"),
    ],
)
def test_bad_input_is_refused(frames, settings, message):
    with pytest.raises(ValueError, match=message):
        figures.animation_view(frames, **{"alt": "An ion moves.", **settings})


def test_a_fraction_is_no_atom():
    with pytest.raises(TypeError):
        figures.animation_view(path(2), "An ion moves.", highlight=[1.5])
