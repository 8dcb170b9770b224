"""Structures that move: a vibration, or an ion on its way. Works offline."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np

from helpers.figures.interactive import _TILT, _TURN, _cell_edges, _drawing, _element_colours, _identifier, _key, _Scene, _script
from helpers.figures.style import _need_alt, _png_uri

LOOPS = ("loop", "back-and-forth")

# Radius of a ball, Å, and of one that is pointed out.
_BALL, _POINTED_OUT = 0.55, 0.9


@dataclass(frozen=True)
class AnimationView:
    """Frames of a structure that play, can be stepped through, and turned. Jupyter and the book show it by itself.

    Attributes
    ----------
    frames : tuple of ase.Atoms
    alt : str
        Alternative text.
    labels : tuple of str
        What is written below each frame.
    order : tuple of int
        Frames in the order in which they play.
    seconds : float
        Time of one pass through ``order``.
    highlight : tuple of int
        Atoms drawn larger.
    script : str
        Address of 3Dmol.js, relative to the page.
    height : int
        Pixels.
    """

    frames: tuple[ase.Atoms, ...]
    alt: str
    labels: tuple[str, ...]
    order: tuple[int, ...]
    seconds: float
    highlight: tuple[int, ...]
    script: str
    height: int

    def _repr_html_(self) -> str:
        identifier = _identifier("animation", self.alt)
        first = self.frames[0]
        # Where a highlighted atom passes is shown in the picture that stands for the animation.
        passed = [frame.positions[atom] for frame in self.frames[1:] for atom in self.highlight]
        scene = _Scene(first, np.empty((0, 2, 3)), np.array(passed).reshape(-1, 3))
        alternative = html.escape(f"{self.alt} {first.get_chemical_formula()}, {len(self.frames)} frames.", quote=True)
        box = "position: relative; width: 100%; overflow: hidden; background: white"
        bar = "display: flex; gap: 0.8rem; align-items: center; justify-content: center; padding: 0.4rem 0.6rem; flex-wrap: wrap"
        return (
            '<div class="structure-views" style="background: white; color: #222222">'
            f'<div id="{identifier}" class="structure-viewer" role="img" aria-label="{alternative}" '
            f'style="{box}; height: {self.height}px">'
            f'<img src="{_png_uri(_drawing(scene))}" alt="{alternative}" style="width: 100%; height: 100%; object-fit: contain"></div>'
            f'<div id="{identifier}-bar" style="{bar}" hidden>'
            f'<button type="button" aria-label="Play or pause" aria-pressed="false" style="min-width: 5rem">Play</button>'
            f'<input type="range" min="0" max="{len(self.order) - 1}" value="0" step="1" aria-label="Frame" '
            'style="flex: 1 1 8rem; max-width: 20rem">'
            f'<output style="min-width: 6rem; font-size: 0.9rem">{html.escape(self.labels[0])}</output></div>'
            f"{_key(first, [])}</div>\n{_script(self.script, self._player(identifier))}"
        )

    def _player(self, identifier: str) -> str:
        """Return the JavaScript that puts the view in the place of the picture and plays it."""
        symbols = self.frames[0].get_chemical_symbols()
        # Atoms beside each other in the list of frames share their symbols, which are sent once.
        positions = [frame.positions.round(3).tolist() for frame in self.frames]
        scheme = {"prop": "elem", "map": {symbol: int(hue[1:], 16) for symbol, hue in _element_colours(symbols).items()}}
        edges = _cell_edges(np.asarray(self.frames[0].cell)).round(3).tolist() if self.frames[0].cell.rank == 3 else []
        data = {
            "symbols": symbols,
            "positions": positions,
            "labels": list(self.labels),
            "order": list(self.order),
            "step": 1000 * self.seconds / len(self.order),
            "highlight": list(self.highlight),
            "edges": edges,
            "scheme": scheme,
        }
        return f"""\
(() => {{
  const data = {json.dumps(data)};
  const box = document.getElementById({json.dumps(identifier)});
  const bar = document.getElementById({json.dumps(identifier + "-bar")});
  const [button, slider, output] = bar.children;
  const picture = [...box.children];
  const viewer = $3Dmol.createViewer(box, {{backgroundColor: "white"}});
  if (!viewer) return;
  const xyz = (frame) => [frame.length, "", ...frame.map((r, k) => data.symbols[k] + " " + r.join(" "))].join("\\n") + "\\n";
  viewer.addModelsAsFrames(data.positions.map(xyz).join(""), "xyz");
  viewer.setStyle({{}}, {{sphere: {{radius: {_BALL}, colorscheme: data.scheme}}}});
  if (data.highlight.length) viewer.setStyle({{index: data.highlight}}, {{sphere: {{radius: {_POINTED_OUT}, colorscheme: data.scheme}}}});
  const point = ([x, y, z]) => ({{x, y, z}});
  for (const [start, end] of data.edges) {{
    viewer.addCylinder({{start: point(start), end: point(end), radius: 0.04, color: "#777777"}});
  }}
  viewer.zoomTo();
  viewer.rotate({_TILT}, "x");
  viewer.rotate({_TURN}, "vy");
  viewer.zoom(1.35);
  viewer.render();
  picture.forEach((element) => element.remove());
  bar.hidden = false;
  const show = (place) => {{
    const frame = data.order[place];
    slider.value = place;
    output.textContent = data.labels[frame];
    Promise.resolve(viewer.setFrame(frame)).then(() => viewer.render()).catch(console.error);
  }};
  let place = 0, timer = null, wanted = !matchMedia("(prefers-reduced-motion: reduce)").matches, seen = false;
  // Out of sight nothing moves, so that several animations on a page cost nothing.
  const update = () => {{
    const run = wanted && seen;
    if (run && timer === null) timer = setInterval(() => {{ place = (place + 1) % data.order.length; show(place); }}, data.step);
    if (!run && timer !== null) {{ clearInterval(timer); timer = null; }}
    button.textContent = wanted ? "Pause" : "Play";
    button.setAttribute("aria-pressed", String(wanted));
  }};
  button.addEventListener("click", () => {{ wanted = !wanted; update(); }});
  slider.addEventListener("input", () => {{ wanted = false; place = Number(slider.value); show(place); update(); }});
  new IntersectionObserver((entries) => {{ seen = entries[entries.length - 1].isIntersecting; update(); }}).observe(box);
  update();
  // The wheel scrolls the page; with Ctrl it zooms.
  box.addEventListener("wheel", (event) => {{ if (!event.ctrlKey) event.stopPropagation(); }}, true);
}})();
"""

    def __repr__(self) -> str:
        return f"AnimationView({self.frames[0].get_chemical_formula()}, {len(self.frames)} frames)"


def animation_view(
    frames: Sequence[ase.Atoms],
    alt: str,
    *,
    labels: Sequence[str] | None = None,
    highlight: Sequence[int] = (),
    loop: str = "loop",
    seconds: float = 2.0,
    script: str = "../_static/3Dmol-min.js",
    height: int = 320,
) -> AnimationView:
    """Show a structure that moves, with a button, a slider and the text of the frame below.

    A picture is shown first; 3Dmol.js (Rego and Koes, Bioinformatics 31, 1322 (2015)) replaces it if it can be loaded. The
    animation plays while it is in sight, and waits for the button where the reader's system asks for less motion.

    Parameters
    ----------
    frames : sequence of ase.Atoms
        Two or more, with the same atoms in the same order and the same cell.
    alt : str
        What they show, for those who cannot see them. Formula and number of frames are added.
    labels : sequence of str, optional
        A few words for each frame.
    highlight : sequence of int
        Atoms to be drawn larger: the ion that moves.
    loop : {"loop", "back-and-forth"}
        What follows the last frame: the first one, or the way back.
    seconds : float
        Time of one pass.
    script : str
        Address of 3Dmol.js, relative to the page.
    height : int
        Pixels.

    Raises
    ------
    ValueError
        If there are fewer than two frames, they do not belong together, a position is not finite, the labels are not as many, an atom to be
        highlighted does not exist, the way to loop is unknown, or the alternative text is empty.
    """
    _need_alt(alt)
    frames = [frame.copy() for frame in frames]
    if len(frames) < 2:
        raise ValueError(f"an animation needs at least two frames, not {len(frames)}")
    first = frames[0]
    for number, frame in enumerate(frames):
        if not np.array_equal(frame.numbers, first.numbers):
            raise ValueError(f"frame {number} has not the atoms of frame 0")
        if not np.allclose(frame.cell.array, first.cell.array, atol=1e-4):
            raise ValueError(f"frame {number} has not the cell of frame 0")
        if not np.isfinite(frame.positions).all():
            raise ValueError(f"frame {number} holds positions that are not finite")
    if labels is not None and len(labels) != len(frames):
        raise ValueError(f"there are {len(frames)} frames but {len(labels)} labels")
    strange = [atom for atom in highlight if not 0 <= atom < len(first)]
    if strange:
        raise ValueError(f"atom {strange[0]} is to be highlighted, but the frames have {len(first)} atoms")
    if loop not in LOOPS:
        raise ValueError(f"loop={loop!r}; choose one of {', '.join(LOOPS)}")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, not {seconds:g}")
    order = list(range(len(frames)))
    if loop == "back-and-forth":
        order += order[-2:0:-1]
    words = tuple(f"frame {number + 1}" for number in range(len(frames))) if labels is None else tuple(map(str, labels))
    return AnimationView(
        tuple(frames), alt, words, tuple(order), float(seconds), tuple(int(atom) for atom in highlight), script, int(height)
    )
