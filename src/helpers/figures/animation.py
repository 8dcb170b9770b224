"""Structures that move: a vibration, or an ion on its way. Works offline."""

from __future__ import annotations

import html
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
from matplotlib.figure import Figure

from helpers.figures import interactive, style

LOOPS = ("loop", "back-and-forth")

# Radius of a ball, of one that is pointed out, and of the beads that mark its path in the still picture. All in Å. Colour of the latter.
_BALL, _POINTED_OUT, _BEAD = 0.55, 0.9, 0.4
_MOVER = style.METHODS[1][0]


@dataclass(frozen=True)
class AnimationView:
    """Frames of a structure that play, can be stepped through, and turned. Jupyter and the book show it by itself."""

    frames: tuple[ase.Atoms, ...]
    alt: str  # alternative text
    labels: tuple[str, ...]  # what is written below each frame
    order: tuple[int, ...]  # frames in the order in which they play
    seconds: float  # time of one pass through ``order``
    highlight: tuple[int, ...]  # atoms drawn larger, in a colour of their own
    sites: np.ndarray  # empty sites, shape (k, 3), Å
    height: int  # pixels

    def _repr_html_(self) -> str:
        identifier = interactive.element_id("animation", self.alt)
        first = self.frames[0]
        alternative = html.escape(f"{self.alt} {first.get_chemical_formula()}, {len(self.frames)} frames.", quote=True)
        box = "position: relative; width: 100%; overflow: hidden; background: white"
        bar = "display: flex; gap: 0.3rem 0.8rem; align-items: center; justify-content: center; padding: 0.4rem 0.6rem; flex-wrap: wrap"
        # As wide as the longest label, so that nothing jumps while it changes.
        output = f"min-width: min({max(map(len, self.labels))}ch, 100%); font-size: 0.9rem; font-variant-numeric: tabular-nums"
        return (
            # Buttons and sliders of a dark page would be dark on white.
            '<div class="structure-views" style="background: white; color: #222222; color-scheme: light">'
            f'<div id="{identifier}" class="structure-viewer" role="img" aria-label="{alternative}" '
            f'style="{box}; height: {self.height}px">'
            f'<img src="{style.png_uri(self._picture())}" alt="{alternative}" style="width: 100%; height: 100%; object-fit: contain"></div>'
            # The attribute is on an element without a display of its own, which would win over it.
            f'<div id="{identifier}-bar" hidden><div style="{bar}">'
            '<button type="button" aria-label="Play or pause" aria-pressed="false" style="min-width: 5rem">Play</button>'
            f'<input type="range" min="0" max="{len(self.frames) - 1}" value="0" step="1" aria-label="Frame" '
            'style="flex: 1 1 8rem; max-width: 20rem">'
            # Screen readers would speak all the time; the slider tells them the text of the frame.
            f'<output aria-live="off" style="{output}">{html.escape(self.labels[0])}</output></div></div>'
            f"{interactive.colour_key(first, self._extras())}</div>\n{interactive.script_tag(interactive.VIEWER, self._player(identifier))}"
        )

    def _extras(self) -> list[tuple[str, str]]:
        """Return what is drawn besides the elements, as symbol and words."""
        moving = [(interactive.chip(_MOVER), "moving")] if self.highlight else []
        return moving + ([(interactive.chip(interactive.SITE, 0.45), "empty site")] if len(self.sites) else [])

    def _scene(self) -> interactive.Scene:
        return interactive.Scene(self.frames[0], np.empty((0, 2, 3)), self.sites)

    def _picture(self) -> Figure:
        """Return the picture that stands for the animation: the first frame, empty sites, and the way of the highlighted atoms."""
        radii = np.full(len(self.frames[0]), _BALL)
        radii[list(self.highlight)] = _POINTED_OUT
        beads = [(frame.positions[atom], _BEAD, _MOVER) for frame in self.frames[1:] for atom in self.highlight]
        return interactive.drawing(self._scene(), radii, beads, dict.fromkeys(self.highlight, _MOVER))

    def _player(self, identifier: str) -> str:
        """Return the JavaScript that puts the view in the place of the picture and plays it."""
        symbols = self.frames[0].get_chemical_symbols()
        data = {
            # Symbols are sent once: all frames have the same atoms.
            "symbols": symbols,
            "positions": [frame.positions.round(3).tolist() for frame in self.frames],
            "labels": list(self.labels),
            "order": list(self.order),
            "step": 1000 * self.seconds / len(self.order),
            "highlight": list(self.highlight),
            "scheme": interactive.colour_scheme(symbols),
        }
        # "<!--<script" in a label would keep the element from ending.
        safe = json.dumps(data).replace("<", "\\u003c")
        model = f"""\
const data = {safe};
  const xyz = (frame) => [frame.length, "", ...frame.map((r, k) => data.symbols[k] + " " + r.join(" "))].join("\\n") + "\\n";
  // Without its search for bonds, which are not drawn, the reader of this format numbers no atoms, and none could be pointed out.
  viewer.addModelsAsFrames(data.positions.map(xyz).join(""), "xyz");
  viewer.setStyle({{}}, {{sphere: {{radius: {_BALL}, colorscheme: data.scheme}}}});
  if (data.highlight.length) viewer.setStyle({{index: data.highlight}}, {{sphere: {{radius: {_POINTED_OUT}, color: "{_MOVER}"}}}});"""
        play = f"""\
  viewer.zoom(1.35);
  const bar = document.getElementById({json.dumps(identifier + "-bar")});
  const [button, slider, output] = bar.firstElementChild.children;
  bar.hidden = false;
  let place = 0, request = null, last = 0, seen = false;
  let wanted = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const show = () => {{
    const frame = data.order[place];
    slider.value = frame;
    slider.setAttribute("aria-valuetext", data.labels[frame]);
    output.textContent = data.labels[frame];
    Promise.resolve(viewer.setFrame(frame)).then(() => viewer.render()).catch(console.error);
  }};
  // By the clock, at most one frame each time the screen is drawn: a slow machine skips frames, and a hidden tab draws none.
  const tick = (now) => {{
    const steps = Math.floor((now - last) / data.step);
    if (steps > 0) {{
      last += steps * data.step;
      place = (place + steps) % data.order.length;
      show();
    }}
    request = requestAnimationFrame(tick);
  }};
  // Out of sight nothing moves, so that several animations on a page cost nothing.
  const update = () => {{
    if (wanted && seen && request === null) {{ last = performance.now(); request = requestAnimationFrame(tick); }}
    if (!(wanted && seen) && request !== null) {{ cancelAnimationFrame(request); request = null; }}
    button.textContent = wanted ? "Pause" : "Play";
    button.setAttribute("aria-pressed", String(wanted));
  }};
  button.addEventListener("click", () => {{ wanted = !wanted; update(); }});
  // The first places of the order are the frames themselves.
  slider.addEventListener("input", () => {{ wanted = false; place = Number(slider.value); update(); show(); }});
  new IntersectionObserver((entries) => {{ seen = entries[entries.length - 1].isIntersecting; update(); }}).observe(box);
  update();
  show();
"""
        return interactive.view_script(identifier, self._scene(), model, play)

    def __repr__(self) -> str:
        return f"AnimationView({self.frames[0].get_chemical_formula()}, {len(self.frames)} frames)"


def animation_view(
    frames: Sequence[ase.Atoms],
    alt: str,
    *,
    labels: Sequence[str] | None = None,
    highlight: Sequence[int] = (),
    sites: np.ndarray | None = None,
    loop: str = "loop",
    seconds: float = 2.0,
    height: int = 320,
) -> AnimationView:
    """Show a structure that moves, with a button, a slider and the text of the frame below.

    A picture is shown first; 3Dmol.js (Rego and Koes, Bioinformatics 31, 1322 (2015)) replaces it if it can be loaded. The
    animation plays while it is in sight, and waits for the button where the reader's system asks for less motion.

    Give it to :func:`helpers.figures.show` for a caption. ValueError if there are fewer than two frames, they have no atoms, or not the
    same atoms and cell, a position is not finite, the labels are not as many as the frames, an atom to be highlighted does not exist,
    ``loop`` is unknown, ``seconds`` is not positive and finite, or the alternative text is empty; TypeError if an atom to be highlighted is
    not an integer.

    ``frames``: two or more, with the same atoms in the same order and the same cell. Positions, Å, are drawn as they are, to 0.001 Å.
    ``alt``: what they show, for those who cannot see them. Formula and number of frames are added.
    ``labels``: A few words for each frame, as plain text; by default its number, counted from 1.
    ``highlight``: atoms to be drawn larger and in a colour of their own, counted from 0: the ion that moves. The still picture shows where
        they pass.
    ``sites`` (shape (k, 3)): positions of empty sites, Å: translucent balls.
    ``loop`` ({"loop", "back-and-forth"}): what follows the last frame: the first one, or the way back.
    ``seconds``: time of one pass, s; of the way there and back together.
    ``height``: pixels.
    """
    style.need_alt(alt)
    frames = [frame.copy() for frame in frames]
    if len(frames) < 2:
        raise ValueError(f"an animation needs at least two frames, not {len(frames)}")
    first = frames[0]
    if len(first) == 0:
        raise ValueError("the frames have no atoms")
    for number, frame in enumerate(frames):
        if not np.array_equal(frame.numbers, first.numbers):
            raise ValueError(f"frame {number} has not the atoms of frame 0")
        if not np.allclose(frame.cell.array, first.cell.array, atol=1e-4):
            raise ValueError(f"frame {number} has not the cell of frame 0")
        if not np.isfinite(frame.positions).all():
            raise ValueError(f"frame {number} holds positions that are not finite")
    if labels is not None and len(labels) != len(frames):
        raise ValueError(f"there are {len(frames)} frames but {len(labels)} labels")
    highlight = tuple(operator.index(atom) for atom in highlight)
    strange = [atom for atom in highlight if not 0 <= atom < len(first)]
    if strange:
        raise ValueError(f"atom {strange[0]} is to be highlighted, but the frames have {len(first)} atoms")
    empty = np.empty((0, 3)) if sites is None else np.asarray(sites, dtype=float)
    if empty.ndim != 2 or empty.shape[1] != 3 or not np.isfinite(empty).all():
        raise ValueError(f"sites must be finite and have shape (k, 3), not {empty.shape}")
    if loop not in LOOPS:
        raise ValueError(f"loop={loop!r}; choose one of {', '.join(LOOPS)}")
    if not 0 < seconds < np.inf:
        raise ValueError(f"seconds must be positive and finite, not {seconds:g}")
    order = list(range(len(frames)))
    if loop == "back-and-forth":
        order += order[-2:0:-1]
    words = tuple(f"frame {number + 1}" for number in range(len(frames))) if labels is None else tuple(map(str, labels))
    return AnimationView(tuple(frames), alt, words, tuple(order), float(seconds), highlight, empty, int(height))
