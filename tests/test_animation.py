"""Animated structures: what the page holds, and what is refused. (Playing was tried in a browser.)"""

import json
import re

import numpy as np
import pytest
from ase.build import bulk
from bs4 import BeautifulSoup

from helpers import figures


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


def test_a_reader_can_play_step_and_read():
    html = figures.animation_view(path(), "An ion moves.", labels=["0 eV", "<b>1</b> eV", "2 eV", "3 eV"], highlight=[3])._repr_html_()
    page = BeautifulSoup(html, "html.parser")
    assert page.button["aria-label"]
    assert page.find("input")["aria-label"]
    assert page.find("input")["max"] == "3"
    assert page.output.text == "0 eV"
    # Without scripts there is the picture and no control that does nothing.
    assert page.img["alt"].startswith("An ion moves. Cl4Na4, 4 frames")
    assert page.button.parent.has_attr("hidden")
    assert "<b>1</b>" not in html.split("<script>")[0]


def test_the_page_holds_all_frames():
    data = data_of(figures.animation_view(path(), "An ion moves.", highlight=[3], seconds=4.0)._repr_html_())
    assert data["order"] == [0, 1, 2, 3]
    assert data["step"] == 1000
    assert data["highlight"] == [3]
    assert data["symbols"] == path()[0].get_chemical_symbols()
    positions = np.array(data["positions"])
    assert positions.shape == (4, 8, 3)
    assert positions[:, 3, 0] - positions[0, 3, 0] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-3)
    assert positions[:, 0].std(axis=0) == pytest.approx(0)
    assert len(data["edges"]) == 12


def test_back_and_forth_shows_neither_end_twice():
    view = figures.animation_view(path(), "An ion moves.", loop="back-and-forth")
    assert data_of(view._repr_html_())["order"] == [0, 1, 2, 3, 2, 1]


def test_a_label_cannot_end_the_script():
    html = figures.animation_view(path(2), "An ion moves.", labels=["</script>", "x"])._repr_html_()
    assert html.count("</script>") == 1


def test_show_gives_it_a_caption():
    html = figures.show(figures.animation_view(path(2), "An ion moves."), alt="An ion moves.", caption="A <hop>.")._repr_html_()
    assert "A &lt;hop&gt;." in html
    assert "addModelsAsFrames" in html


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
        (other_cell(), {}, "frame 1 has not the cell"),
        (not_finite(), {}, "frame 1 holds positions that are not finite"),
        (path(2), {"labels": ["one"]}, "2 frames but 1 labels"),
        (path(2), {"highlight": [8]}, "atom 8 is to be highlighted, but the frames have 8 atoms"),
        (path(2), {"loop": "once"}, "choose one of loop, back-and-forth"),
        (path(2), {"seconds": 0}, "seconds must be positive"),
        (path(2), {"alt": " "}, "alternative text"),
    ],
)
def test_bad_input_is_refused(frames, settings, message):
    with pytest.raises(ValueError, match=message):
        figures.animation_view(frames, **{"alt": "An ion moves.", **settings})
