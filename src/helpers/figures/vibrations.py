"""Charts of phonons: bands; thermal conductivity."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.figures import style
from helpers.figures.style import STYLE, colour

_GREEK = {"G": "Γ"}


def bands(table: pd.DataFrame, paper: Mapping[str, float] | None = None) -> Figure:
    """Draw the phonon bands of a crystal, one panel per model (the paper's Fig. 4a).

    ``table``: rows of one case from :func:`helpers.benchmarks.phonons.run`: ``band`` (THz, with ``q``, ``branch``, ``distance``,
        ``label``). Other properties are left out.
    ``paper``: the paper's highest frequency for some models, THz: an open marker at the right edge.
    """
    rows = style.good_rows(table[table["property"] == "band"], ["model", "case"], ["q", "branch", "distance", "value", "reference"])
    cases = sorted(rows["case"].unique())
    if len(cases) > 1:
        raise ValueError(f"bands of one crystal are needed, but the table has {', '.join(cases)}")
    models = style.in_order(rows["model"])
    twice = rows[rows.duplicated(["model", "q", "branch"])]
    if len(twice):
        one = twice.iloc[0]
        raise ValueError(f"{len(twice)} points of bands are there twice, first for {one['model']}: q {one['q']}, branch {one['branch']}")
    values = rows[["value", "reference"]].to_numpy(dtype=float)
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(models), head=0.2)
        figure.set_figheight(0.85 * figure.get_figheight())
        for panel, model in zip(axes, models, strict=True):
            _bands(panel, model, rows[rows["model"] == model], None if paper is None else paper.get(model))
            panel.set_ylim(min(0.0, float(values.min())), 1.04 * float(values.max()))
        figure.supylabel("frequency (THz)", fontsize=11)
        handles = [
            Line2D([], [], color="black", linewidth=1.3, label="DFT"),
            Line2D([], [], color="#444444", linewidth=1.5, linestyle=(0, (4, 1.2)), label="model, in its colour"),
        ]
        if paper:
            face = {"markerfacecolor": "white", "markeredgewidth": 1.5, "linestyle": "none"}
            handles.append(Line2D([], [], color="#444444", marker="o", markersize=7, label="paper's maximum", **face))
        style.legend(figure, handles)
    return figure


def _bands(axes: Axes, model: str, rows: pd.DataFrame, paper: float | None) -> None:
    """Draw one model's bands over those of DFT."""
    wide = rows.pivot_table(index="q", columns="branch", values=["value", "reference"])
    points = rows.drop_duplicates("q").sort_values("q")
    distance = points["distance"].to_numpy(dtype=float)
    # A path may jump from one point to another at the same distance: no line across.
    pieces = np.split(np.arange(len(distance)), np.flatnonzero(np.diff(distance) < 1e-9) + 1)
    styles = {
        "reference": {"color": "black", "linewidth": 1.3, "zorder": 3},
        "value": {"color": colour(model), "linewidth": 1.5, "linestyle": (0, (4, 1.2)), "zorder": 4},
    }
    for side, look in styles.items():
        for piece in pieces:
            axes.plot(distance[piece], wide[side].to_numpy()[piece], **look)
    axes.axhline(0, color=style.MUTED, linewidth=0.8, zorder=1)
    places = points[points["label"].astype(str) != ""]
    names = places.groupby("distance")["label"].agg(lambda labels: "|".join(_GREEK.get(name, name) for name in dict.fromkeys(labels)))
    for place in names.index:
        axes.axvline(place, color="#C5CAD0", linewidth=0.8, zorder=1)
    # A name beside its neighbour stands a line lower.
    near = np.diff(names.index, prepend=-np.inf) < 0.09 * (distance[-1] - distance[0])
    axes.set_xticks(names.index.to_numpy(), ["\n" * int(low) + name for low, name in zip(near, names, strict=True)])
    axes.set_xlim(distance[0], distance[-1])
    axes.grid(visible=False, axis="x")
    top, top_dft = rows["value"].max(), rows["reference"].max()
    if paper is not None:
        axes.plot(distance[-1], paper, **style.look(model, 7.5), markerfacecolor="white", markeredgewidth=1.5, clip_on=False, zorder=6)
    style.title(axes, model, f"highest {top:.2f}, DFT {top_dft:.2f}")


def conductivity(found: pd.DataFrame) -> Figure:
    """Draw thermal conductivities against highest frequencies, both over DFT's, one panel per model, with what softness alone would do.

    ``found``: from :func:`helpers.benchmarks.phonons.conductivities`. Models without frequencies and crystals without a conductivity are
        left out.
    """
    rows = found[(found["kappa_ratio"] > 0) & found["omega_max"].notna()]
    models, soft = style.in_order(rows["model"]), np.array([0.5, 1.3])
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(models), head=0.2)
        for panel, model in zip(axes, models, strict=True):
            part = rows[rows["model"] == model]
            panel.plot(soft, soft**3, zorder=2, **style.IDEAL)
            panel.plot(part["omega_max"], part["kappa_ratio"], linestyle="none", alpha=0.65, zorder=3, **style.look(model, 5.0))
            panel.plot(1, 1, color="black", marker="+", markersize=11, markeredgewidth=1.6)
            style.log_places(panel, [0.5, 0.7, 1.0, 1.3])
            panel.set(xlim=(0.48, 1.35), ylim=(5e-4, 6), yscale="log")
            outside = (~part["omega_max"].between(*panel.get_xlim()) | ~part["kappa_ratio"].between(*panel.get_ylim())).sum()
            style.title(panel, model, f"n = {len(part)}" + (f", {outside} outside" if outside else ""))
        style.outer_labels(axes, "highest frequency, model / DFT", "conductivity, model / DFT")
        handles = [Line2D([], [], label="softness alone: third power", **style.IDEAL)]
        handles.append(Line2D([], [], color="black", marker="+", markersize=10, linestyle="none", label="DFT"))
        style.legend(figure, handles)
    return figure
