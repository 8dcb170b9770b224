"""What the reader can point at and turn: plotly charts and structures; both work offline."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import ase
import matplotlib as mpl
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from ase.visualize.plot import plot_atoms
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from helpers.figures.style import _PLOTLY_SYMBOL, _TEXT, STYLE, _ids, _need_alt, _png_uri, _rows, colour, in_order, label, marker


def interactive_parity(
    table: pd.DataFrame, what: str, unit: str | None = None, label_column: str = "case", quantity: str | None = None
) -> go.Figure:
    """Draw model against DFT for a scalar property, all models in one plot; hovering names the case.

    Parameters
    ----------
    table : DataFrame
        Tidy table; failed rows are left out.
    what : str
        Name of the property for the axes.
    unit : str, optional
        By default that of the table.
    label_column : str
        Column that hovering shows.
    quantity : str, optional
        Which property, if the table has several.

    Returns
    -------
    plotly.graph_objects.Figure
        As wide as its place. Only ``scatter`` traces: the basic bundle of plotly.js is enough. Give it to :func:`show`.

    Raises
    ------
    ValueError
        If there is nothing to draw, or the label column is missing.
    """
    if label_column not in table:
        raise ValueError(f"the table has no column {label_column!r}")
    rows = _rows(table, quantity)
    unit = str(rows["unit"].iloc[0]) if unit is None else unit
    numbers = rows[["value", "reference"]].to_numpy(dtype=float)
    low, high = numbers.min(), numbers.max()
    margin = 0.05 * (high - low)
    ends = [low - margin, high + margin]
    figure = go.Figure()
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": _TEXT, "width": 1.2, "dash": "dash"}, hoverinfo="skip", name="model = DFT"
    )
    for model in in_order(rows["model"]):
        part = rows[rows["model"] == model]
        figure.add_scatter(
            x=part["reference"].astype(float).tolist(),
            y=part["value"].astype(float).tolist(),
            text=part[label_column].astype(str).tolist(),
            mode="markers",
            name=label(model),
            marker={"color": colour(model), "symbol": _PLOTLY_SYMBOL[marker(model)], "size": 8, "line": {"color": "white", "width": 0.6}},
            hovertemplate=f"<b>%{{text}}</b><br>{label(model)} %{{y:.4g}}<br>DFT %{{x:.4g}} {unit}<extra></extra>",
        )
    line = {"showline": True, "linecolor": "#444444", "gridcolor": "#E4E7EA", "zeroline": False, "ticks": "outside", "tickcolor": "#444444"}
    suffix = f" ({unit})" if unit else ""
    figure.update_layout(
        template="none",
        autosize=True,
        height=520,
        margin={"l": 64, "r": 12, "t": 34, "b": 52},
        font={"family": "system-ui, sans-serif", "size": 14, "color": _TEXT},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hovermode="closest",
        hoverlabel={"font": {"size": 14}},
        # Dragging pans the page on a phone, not the plot; the mode bar has zoom.
        dragmode=False,
        modebar={"remove": ["select2d", "lasso2d", "autoScale2d"], "bgcolor": "rgba(255, 255, 255, 0.8)"},
        legend={"orientation": "h", "yanchor": "top", "y": -0.16, "x": 0.5, "xanchor": "center"},
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


def _identifier(kind: str, content: str) -> str:
    """Return an id for an element: a number within a session, and a checksum against what an earlier session left on the page."""
    return f"{kind}-{next(_ids)}-{crc32(content.encode()):08x}"


# Load a script once per page, however many figures ask for it, and then run what needs it.
_LOAD_ONCE = """\
window.loadOnce ??= (address) => (window.loadOnce[address] ??= new Promise((done, failed) => {
  const script = document.createElement("script");
  script.src = address; script.onload = done; script.onerror = () => failed(new Error("cannot load " + address));
  document.head.append(script);
}));
"""


def _script(address: str, body: str) -> str:
    """Return a script element that loads another script once and then runs ``body``, with its failure written to the console."""
    # A "</" inside a string of the script would end the element.
    body = body.replace("</", "<\\/")
    return f"<script>\n{_LOAD_ONCE}window.loadOnce({json.dumps(address)}).then(() => {{\n{body}\n}}).catch(console.error);\n</script>"


@dataclass(frozen=True)
class StructureView:
    """Structures that can be turned with mouse or finger. Jupyter and the book show it by itself.

    Attributes
    ----------
    structures : dict of str to ase.Atoms
        By the name written below each.
    alt : str
        Alternative text.
    script : str
        Address of 3Dmol.js, relative to the page.
    height : int
        Of each view, pixels.
    """

    structures: Mapping[str, ase.Atoms]
    alt: str
    script: str
    height: int

    def _repr_html_(self) -> str:
        boxes, scripts = [], []
        for name, atoms in self.structures.items():
            identifier = _identifier("structure", self.alt + name)
            alternative = html.escape(f"{self.alt} {name}: {atoms.get_chemical_formula()}.", quote=True)
            boxes.append(
                '<div style="flex: 1 1 250px; min-width: 0; max-width: 420px">'
                f'<div id="{identifier}" class="structure-viewer" role="img" aria-label="{alternative}" '
                f'style="position: relative; width: 100%; height: {self.height}px; overflow: hidden; background: white">'
                f'<img src="{_png_uri(_drawing(atoms))}" alt="{alternative}" '
                'style="width: 100%; height: 100%; object-fit: contain"></div>'
                f'<div style="text-align: center; font-size: 0.9rem">{html.escape(name)}</div></div>'
            )
            scripts.append(_viewer(identifier, atoms))
        layout = "display: flex; flex-wrap: wrap; gap: 0.8rem; justify-content: center; background: white; color: #222222"
        return f'<div class="structure-views" style="{layout}">{"".join(boxes)}</div>\n{_script(self.script, "".join(scripts))}'

    def __repr__(self) -> str:
        return f"StructureView({', '.join(self.structures)})"


def structure_view(
    structures: Mapping[str, ase.Atoms], alt: str, script: str = "../_static/3Dmol-min.js", height: int = 260
) -> StructureView:
    """Show structures with their unit cells, to be turned with mouse or finger.

    A picture is shown first; 3Dmol.js (Rego and Koes, Bioinformatics 31, 1322 (2015)) replaces it if it can be loaded. So there
    is a picture without scripts, without WebGL, and in a notebook that does not find the file.

    Parameters
    ----------
    structures : mapping of str to ase.Atoms
        By name.
    alt : str
        What they show, for those who cannot see them. Name and formula of each are added.
    script : str
        Address of 3Dmol.js, relative to the page.
    height : int
        Of each view, pixels.

    Raises
    ------
    ValueError
        If there is no structure, one is empty, or the alternative text is.
    """
    if not structures:
        raise ValueError("there is no structure to show")
    empty = [name for name, atoms in structures.items() if len(atoms) == 0]
    if empty:
        raise ValueError(f"structure {empty[0]!r} has no atoms")
    _need_alt(alt)
    return StructureView(dict(structures), alt, script, height)


# How far each axis of the picture and of the first view is turned, degrees: a slab stands upright and shows some depth.
_TILT, _TURN = -78, 22


def _drawing(atoms: ase.Atoms) -> Figure:
    """Return a picture of a structure and its cell."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.8, 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        plot_atoms(atoms, axes, radii=0.55, rotation=f"{_TILT}x,{_TURN}y,0z")
        axes.set_axis_off()
    return figure


def _viewer(identifier: str, atoms: ase.Atoms) -> str:
    """Return the JavaScript that turns a picture into a view of 3Dmol.js."""
    lines = [f"{symbol} {x:.4f} {y:.4f} {z:.4f}" for symbol, (x, y, z) in zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)]
    xyz = "\n".join([str(len(atoms)), "", *lines])
    edges = _cell_edges(np.asarray(atoms.cell)).round(4).tolist() if atoms.cell.rank == 3 else []
    return f"""\
(() => {{
  const box = document.getElementById({json.dumps(identifier)});
  const picture = [...box.children];
  const viewer = $3Dmol.createViewer(box, {{backgroundColor: "white"}});
  if (!viewer) return;
  viewer.addModel({json.dumps(xyz)}, "xyz");
  viewer.setStyle({{}}, {{sphere: {{scale: 0.32, colorscheme: "Jmol"}}, stick: {{radius: 0.11, colorscheme: "Jmol"}}}});
  const point = ([x, y, z]) => ({{x, y, z}});
  for (const [start, end] of {json.dumps(edges)}) {{
    viewer.addCylinder({{start: point(start), end: point(end), radius: 0.04, color: "#777777"}});
  }}
  viewer.zoomTo();
  viewer.rotate({_TILT}, "x");
  viewer.rotate({_TURN}, "vy");
  viewer.render();
  picture.forEach((element) => element.remove());
  // The wheel scrolls the page; with Ctrl it zooms.
  box.addEventListener("wheel", (event) => {{ if (!event.ctrlKey) event.stopPropagation(); }}, true);
}})();
"""


def _cell_edges(cell: np.ndarray) -> np.ndarray:
    """Return the twelve edges of a cell, shape (12, 2, 3), Å."""
    edges = []
    for axis in range(3):
        first, second = (cell[other] for other in range(3) if other != axis)
        edges += [(start, start + cell[axis]) for start in (0 * first, first, second, first + second)]
    return np.array(edges)
