"""What the reader can point at and turn: plotly charts and structures; both work offline."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import ase
import matplotlib as mpl
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from ase.data import atomic_numbers
from ase.data.colors import jmol_colors
from ase.visualize.plot import Matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from helpers.figures import style
from helpers.figures.style import STYLE, colour, in_order, label, marker
from helpers.potentials import CATALOGUE


def interactive_parity(table: pd.DataFrame, what: str, label_column: str = "case") -> go.Figure:
    """Draw model against DFT for a scalar property, all models in one plot; hovering names the case.

    As wide as its place, with a legend above and a menu of models below. Only ``scatter`` traces: the basic bundle of plotly.js is
    enough. Give it to :func:`helpers.figures.show`.

    ``table``: tidy table of one property; failed rows are left out.
    ``what``: its name for the axes.
    ``label_column``: column that hovering shows; of the name of a case what stands behind its source.
    """
    if label_column not in table:
        raise ValueError(f"the table has no column {label_column!r}")
    rows = style.property_rows(table)
    unit = str(rows["unit"].iloc[0])
    numbers = rows[["value", "reference"]].to_numpy(dtype=float)
    low, high = numbers.min(), numbers.max()
    ends = [low - 0.05 * (high - low), high + 0.05 * (high - low)]
    figure = go.Figure()
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": style.TEXT, "width": 1.2, "dash": "dash"}, hoverinfo="skip", name="model = DFT"
    )
    models = in_order(rows["model"])
    for model in models:
        part = rows[rows["model"] == model]
        figure.add_scatter(
            x=part["reference"].astype(float).tolist(),
            y=part["value"].astype(float).tolist(),
            text=part[label_column].astype(str).str.split("/", n=1).str[-1].str.replace("/", " ").map(style.formulas).tolist(),
            mode="markers",
            name=label(model),
            marker={
                "color": colour(model),
                "symbol": style.PLOTLY_SYMBOL[marker(model)],
                "size": 8,
                "line": {"color": "white", "width": 0.6},
            },
            hovertemplate=f"<b>%{{text}}</b><br>{label(model)} %{{y:.3g}} {unit}<br>DFT %{{x:.3g}} {unit}<extra></extra>",
        )
    papers = [key for key in models if key in CATALOGUE and CATALOGUE[key].paper_label]
    choices = {"all models": models, **({"the paper's models": papers} if papers else {}), **{label(key): [key] for key in models}}
    menu = {
        "buttons": [
            {"label": words, "method": "restyle", "args": ["visible", [True, *(key in chosen for key in models)]]}
            for words, chosen in choices.items()
        ],
        "direction": "up",
        "x": 0.5,
        "xanchor": "center",
        "y": -0.14,
        "yanchor": "top",
        "bgcolor": "white",
        "bordercolor": "#B8C0C8",
        "font": {"size": 13},
    }
    line = {"showline": True, "linecolor": "#444444", "gridcolor": "#E4E7EA", "zeroline": False, "ticks": "outside", "tickcolor": "#444444"}
    suffix = f" ({unit})" if unit else ""
    figure.update_layout(
        template="none",
        autosize=True,
        height=560,
        margin={"l": 64, "r": 12, "t": 12, "b": 52},
        font={"family": "system-ui, sans-serif", "size": 14, "color": style.TEXT},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hovermode="closest",
        hoverlabel={"font": {"size": 14}},
        # Dragging pans the page on a phone, not the plot; the mode bar has zoom.
        dragmode=False,
        modebar={"remove": ["select2d", "lasso2d", "autoScale2d"], "bgcolor": "rgba(255, 255, 255, 0.8)"},
        updatemenus=[menu] if len(models) > 1 else [],
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0.5, "xanchor": "center"},
        xaxis={"title": {"text": f"DFT {what}{suffix}", "standoff": 8}, "range": ends, "constrain": "domain", **line},
        yaxis={
            "title": {"text": f"model {what}{suffix}", "standoff": 6},
            "range": ends,
            "scaleanchor": "x",
            "constrain": "domain",
            **line,
        },
    )
    return figure


def element_id(kind: str, content: str) -> str:
    """Return an id for an element: a number within a session, and a checksum against what an earlier session left on the page."""
    return f"{kind}-{next(style.ids)}-{crc32(content.encode()):08x}"


VIEWER = "../_static/3Dmol-min.js"  # relative to the page
# A drawing library is fetched when the first figure that needs it comes near the window, and once, however many figures ask for it.
_LOAD_ONCE = """\
window.loadOnce ??= (address) => (window.loadOnce[address] ??= new Promise((done, failed) => {
  const script = document.createElement("script");
  script.src = address; script.onload = done; script.onerror = () => failed(new Error("cannot load " + address));
  document.head.append(script);
}));
window.whenNear ??= (place) => new Promise((done) => {
  if (!place || !window.IntersectionObserver) { done(); return; }
  const watch = new IntersectionObserver((seen) => {
    if (seen.some((one) => one.isIntersecting)) { watch.disconnect(); done(); }
  }, {rootMargin: "400px"});
  watch.observe(place);
});
"""


def script_tag(address: str, body: str) -> str:
    """Return a script element that runs ``body`` when what stands before it comes near the window and another script is there.

    A failure is written to the console.
    """
    # A "</" inside a string of the script would end the element.
    body = body.replace("</", "<\\/")
    near = "window.whenNear(document.currentScript?.previousElementSibling)"
    load = f"window.loadOnce({json.dumps(address)}).then(() => {{\n{body}\n}})"
    return f"<script>\n{_LOAD_ONCE}{near}.then(() => {load}).catch(console.error);\n</script>"


# What scrolls the page does so over a structure, too: the wheel zooms with Ctrl only, and a finger turns sideways only.
_SCROLLS = """\
  box.addEventListener("wheel", (event) => { if (!event.ctrlKey) event.stopPropagation(); }, true); box.style.touchAction = "pan-y";
  for (const kind of ["touchstart", "touchmove"]) box.addEventListener(kind, (event) => { event.preventDefault = () => {}; }, true);
"""
# Elements that this book mixes and whose colours in the Jmol scheme, used for all others, look alike.
_ELEMENTS = {
    "Mg": "#F2C14E",
    "Ca": "#2F5DA8",
    "Nb": "#8FD3C8",
    "Mo": "#1F6F78",
    "Ta": "#9CC9F5",
    "W": "#1B4F8F",
    "Al": "#8A7FC7",
    "Si": "#E8C07D",
}
_ARROW, SITE = "#111111", "#7A3E9D"
# Balls are smaller and of one size where there are arrows, so that arrows start at their surface. All in Å.
BALL, _ARROW_WIDTH, SITE_RADIUS = 0.45, 0.1, 0.8
# An arrow shorter than this fraction of the longest would be a speck.
_SHORTEST = 0.02


def element_colours(symbols: Iterable[str]) -> dict[str, str]:
    """Return the colour of each element, in order of first appearance."""
    return {symbol: _ELEMENTS.get(symbol) or to_hex(jmol_colors[atomic_numbers[symbol]]) for symbol in dict.fromkeys(symbols)}


@dataclass(frozen=True)
class Scene:
    """What one view shows: atoms, arrows as starts and ends (n, 2, 3) in Å, and empty sites (k, 3) in Å."""

    atoms: ase.Atoms
    arrows: np.ndarray
    sites: np.ndarray


@dataclass(frozen=True)
class StructureView:
    """Structures that can be turned with mouse or finger. Jupyter and the book show it by itself."""

    structures: Mapping[str, ase.Atoms]  # by the name written below each
    alt: str  # alternative text
    height: int  # of each view, pixels
    # Displacements (n_atoms, 3) and positions of empty sites (k, 3), Å, by name.
    arrows: Mapping[str, np.ndarray]
    sites: Mapping[str, np.ndarray]
    arrow_scale: float  # length of an arrow over that of the displacement

    def _repr_html_(self) -> str:
        boxes, scripts = [], []
        for name, atoms in self.structures.items():
            scene = Scene(atoms, arrow_ends(atoms, self.arrows.get(name), self.arrow_scale), self.sites.get(name, np.empty((0, 3))))
            identifier = element_id("structure", self.alt + name)
            extras = self._extras(scene)
            words = f"{self.alt} {name}: {atoms.get_chemical_formula()}{''.join(f', {text}' for _, text in extras)}."
            alternative = html.escape(words, quote=True)
            boxes.append(
                '<div style="flex: 1 1 200px; min-width: 0; max-width: 420px">'
                f'<div id="{identifier}" class="structure-viewer" role="img" aria-label="{alternative}" '
                f'style="position: relative; width: 100%; height: {self.height}px; overflow: hidden; background: white">'
                f'<img src="{style.png_uri(drawing(scene))}" alt="{alternative}" '
                'style="width: 100%; height: 100%; object-fit: contain"></div>'
                f'<div style="text-align: center; font-size: 0.9rem">{html.escape(name)}</div>{colour_key(atoms, extras)}</div>'
            )
            scripts.append(_viewer(identifier, scene))
        layout = "display: flex; flex-wrap: wrap; gap: 0.8rem; justify-content: center; background: white; color: #222222"
        return f'<div class="structure-views" style="{layout}">{"".join(boxes)}</div>\n{script_tag(VIEWER, "".join(scripts))}'

    def _extras(self, scene: Scene) -> list[tuple[str, str]]:
        """Return what is drawn besides atoms, as symbol and words."""
        found = []
        if len(scene.sites):
            found.append((chip(SITE, 0.45), "empty site" if len(scene.sites) == 1 else "empty sites"))
        if len(scene.arrows):
            found.append(("→", f"displacement × {self.arrow_scale:g}"))
        return found

    def __repr__(self) -> str:
        return f"StructureView({', '.join(self.structures)})"


def chip(hue: str, opacity: float = 1.0) -> str:
    """Return a round spot of a colour, as HTML."""
    look = f"display: inline-block; width: 0.75em; height: 0.75em; border-radius: 50%; border: 1px solid #444444; background: {hue}"
    return f'<span aria-hidden="true" style="{look}; opacity: {opacity:g}"></span>'


def colour_key(atoms: ase.Atoms, extras: Sequence[tuple[str, str]]) -> str:
    """Return the key below a view, as HTML: the elements, if there are several, and what else is drawn."""
    colours = element_colours(atoms.get_chemical_symbols())
    entries = [(chip(hue), symbol) for symbol, hue in colours.items()] if len(colours) > 1 or extras else []
    words = [f'<span style="white-space: nowrap">{mark} {text}</span>' for mark, text in (*entries, *extras)]
    look = "display: flex; flex-wrap: wrap; gap: 0 0.9rem; justify-content: center; font-size: 0.85rem; color: #444444"
    return f'<div class="structure-key" style="{look}">{"".join(words)}</div>' if words else ""


def structure_view(
    structures: Mapping[str, ase.Atoms],
    alt: str,
    height: int = 260,
    arrows: Mapping[str, np.ndarray] | None = None,
    sites: Mapping[str, np.ndarray] | None = None,
    arrow_scale: float = 10.0,
) -> StructureView:
    """Show structures, by name, with their unit cells, to be turned with mouse or finger.

    A picture is shown first; 3Dmol.js (Rego and Koes, Bioinformatics 31, 1322 (2015)) replaces it if it can be loaded. So there is a
    picture without scripts, without WebGL, and in a notebook that does not find the file. ValueError if there is no structure, one is
    empty, the alternative text is, or arrows or sites belong to no structure, have another shape, or are not finite.

    ``structures``, ``height``: see :class:`StructureView`.
    ``alt``: what they show, for those who cannot see them. Name and formula of each are added, and what is drawn besides atoms.
    ``arrows`` (shape (n_atoms, 3)): displacement of each atom, Å, for some of the structures. Arrows start at the surface of the ball of
        their atom, so that short ones are seen; those shorter than 2 % of the longest are left out.
    ``sites`` (shape (k, 3)): positions of empty sites, Å: translucent balls.
    ``arrow_scale``: how much longer an arrow is than the displacement; the view says so.
    """
    if not structures:
        raise ValueError("there is no structure to show")
    empty = [name for name, atoms in structures.items() if len(atoms) == 0]
    if empty:
        raise ValueError(f"structure {empty[0]!r} has no atoms")
    style.need_alt(alt)
    if not arrow_scale > 0:
        raise ValueError(f"arrow_scale must be positive, not {arrow_scale:g}")
    lengths = {name: len(atoms) for name, atoms in structures.items()}
    return StructureView(
        dict(structures),
        alt,
        height,
        _vectors("arrows", arrows, structures, lengths),
        _vectors("sites", sites, structures, {}),
        arrow_scale,
    )


def _vectors(
    what: str, given: Mapping[str, np.ndarray] | None, structures: Mapping[str, ase.Atoms], lengths: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return vectors by structure as arrays, after checking name, shape (with the length, where one is given) and numbers."""
    found = {}
    for name, vectors in (given or {}).items():
        if name not in structures:
            raise ValueError(f"{what} are given for {name!r}, but the structures are {', '.join(map(repr, structures))}")
        array = np.asarray(vectors, dtype=float)
        wanted = lengths.get(name)
        if array.ndim != 2 or array.shape[1] != 3 or (wanted is not None and len(array) != wanted):
            raise ValueError(f"{what} of {name!r} must have shape ({'k' if wanted is None else wanted}, 3), not {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{what} of {name!r} hold values that are not finite")
        found[name] = array
    return found


def arrow_ends(atoms: ase.Atoms, displacements: np.ndarray | None, scale: float) -> np.ndarray:
    """Return start and end of the arrows that are long enough to be seen, shape (n, 2, 3), Å."""
    if displacements is None:
        return np.empty((0, 2, 3))
    length = np.linalg.norm(displacements, axis=1)
    seen = length > _SHORTEST * length.max()
    starts = atoms.positions[seen] + BALL * displacements[seen] / length[seen, None]
    return np.stack([starts, starts + scale * displacements[seen]], axis=1)


# How far each axis of the picture and of the first view is turned, degrees: a slab stands upright and shows some depth.
_TILT, _TURN = -78, 22


def drawing(
    scene: Scene,
    radii: np.ndarray | None = None,
    ghosts: Sequence[tuple[np.ndarray, float, str]] = (),
    hues: Mapping[int, str] | None = None,
) -> Figure:
    """Return a picture of a structure, its cell, and what else is there.

    Radii of the balls are in Å, by default those of the elements; ghosts are translucent balls: centre and radius in Å, and colour; hues
    are colours of single atoms.
    """
    atoms = scene.atoms
    symbols = atoms.get_chemical_symbols()
    elements = element_colours(symbols)
    colours = [(hues or {}).get(number, elements[symbol]) for number, symbol in enumerate(symbols)]
    size = radii if radii is not None else np.full(len(atoms), BALL) if len(scene.arrows) else 0.55
    ghosts = [*((site, SITE_RADIUS, SITE) for site in scene.sites), *ghosts]
    with mpl.rc_context(STYLE):
        figure = style.blank(2.8, 2.8)
        axes = figure.subplots()
        picture = Matplotlib(atoms, axes, rotation=f"{_TILT}x,{_TURN}y,0z", radii=size, colors=colours)
        picture.write()
        for centre, radius, hue in ghosts:
            x, y, _ = picture.to_image_plane_positions(centre)
            axes.add_patch(Circle((x, y), radius, facecolor=hue, edgecolor=hue, alpha=0.45, zorder=2))
        if len(scene.arrows):
            (x, y, _), (end_x, end_y, _) = np.moveaxis(picture.to_image_plane_positions(scene.arrows), [1, 2], [0, 1])
            look = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "xy", "width": 2 * _ARROW_WIDTH, "color": _ARROW, "zorder": 3}
            axes.quiver(x, y, end_x - x, end_y - y, **look)
        axes.set_axis_off()
    return figure


def _viewer(identifier: str, scene: Scene) -> str:
    """Return the JavaScript that turns a picture into a view of 3Dmol.js."""
    atoms = scene.atoms
    symbols = atoms.get_chemical_symbols()
    # Bonds would hide arrows.
    bonds = [[] for _ in atoms] if len(scene.arrows) else joined(atoms)
    placed = [
        {"elem": symbol, "x": x, "y": y, "z": z, "bonds": bonded, "bondOrder": [1] * len(bonded)}
        for symbol, (x, y, z), bonded in zip(symbols, atoms.positions.round(4).tolist(), bonds, strict=True)
    ]
    ball = {"radius": BALL} if len(scene.arrows) else {"scale": 0.32}
    scheme = colour_scheme(symbols)
    look = {"sphere": {**ball, "colorscheme": scheme}, "stick": {"radius": 0.11, "colorscheme": scheme}}
    model = f"viewer.addModel().addAtoms({json.dumps(placed)});\n  viewer.setStyle({{}}, {json.dumps(look)});"
    return view_script(identifier, scene, model)


def colour_scheme(symbols: Iterable[str]) -> dict[str, object]:
    """Return the colours of elements as 3Dmol.js takes them: as numbers."""
    return {"prop": "elem", "map": {symbol: int(hue[1:], 16) for symbol, hue in element_colours(symbols).items()}}


def view_script(identifier: str, scene: Scene, model: str, then: str = "") -> str:
    """Return JavaScript that turns the picture in an element into a view: what adds the atoms, and what is to be done when it is there."""
    edges = cell_edges(np.asarray(scene.atoms.cell)).round(4).tolist() if scene.atoms.cell.rank == 3 else []
    arrow = {"radius": _ARROW_WIDTH, "radiusRatio": 2.2, "mid": 0.6, "color": _ARROW}
    site = {"radius": SITE_RADIUS, "color": SITE, "opacity": 0.45}
    return f"""\
(() => {{
  const box = document.getElementById({json.dumps(identifier)});
  const picture = [...box.children];
  const viewer = $3Dmol.createViewer(box, {{backgroundColor: "white"}});
  if (!viewer) return;
  {model}
  const point = ([x, y, z]) => ({{x, y, z}});
  for (const [start, end] of {json.dumps(edges)}) {{
    viewer.addCylinder({{start: point(start), end: point(end), radius: 0.04, color: "#777777"}});
  }}
  for (const [start, end] of {json.dumps(scene.arrows.round(4).tolist())}) {{
    viewer.addArrow({{start: point(start), end: point(end), ...{json.dumps(arrow)}}});
  }}
  for (const center of {json.dumps(scene.sites.round(4).tolist())}) {{
    viewer.addSphere({{center: point(center), ...{json.dumps(site)}}});
  }}
  viewer.zoomTo();
  viewer.rotate({_TILT}, "x");
  viewer.rotate({_TURN}, "vy");
  viewer.render();
  picture.forEach((element) => element.remove());
{then}{_SCROLLS}}})();
"""


def joined(atoms: ase.Atoms) -> list[list[int]]:
    """Return which atoms each atom is drawn joined to: its nearest neighbours in the picture, none across a boundary.

    Distances are compared with that to the nearest neighbour in the crystal, of whichever atom is farther from its own: the first
    shell of a relaxed crystal is taken in, and ions of one kind, which a rule by radii would join, are not.
    """
    nearest = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    np.fill_diagonal(nearest, np.inf)
    shortest = nearest.min(axis=1)
    distances = atoms.get_all_distances()
    np.fill_diagonal(distances, np.inf)
    return [np.flatnonzero(row).tolist() for row in distances < 1.15 * np.maximum.outer(shortest, shortest)]


def cell_edges(cell: np.ndarray) -> np.ndarray:
    """Return the twelve edges of a cell, shape (12, 2, 3), Å."""
    edges = []
    for axis in range(3):
        first, second = (cell[other] for other in range(3) if other != axis)
        edges += [(start, start + cell[axis]) for start in (0 * first, first, second, first + second)]
    return np.array(edges)
