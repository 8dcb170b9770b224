"""Charts of phonons: bands and density of states; thermal conductivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.figures import style
from helpers.figures.style import STYLE, colour, label

_GREEK = {"G": "Γ"}


def bands_and_dos(table: pd.DataFrame, paper: Mapping[str, float] | None = None) -> Figure:
    """Draw the phonon bands of a crystal, one panel per model, and below them the densities of states (the paper's Fig. 4a).

    ``table``: rows of one case from :func:`helpers.benchmarks.phonons.run`: ``band`` (THz, with ``q``, ``branch``, ``distance``, ``label``)
        and, if the densities are to be drawn, ``dos`` (1/THz, with ``frequency_thz``). Other properties are left out.
    ``paper``: the paper's highest frequency for some models, THz: an open marker at the right edge.
    """
    bands = style.good_rows(table[table["property"] == "band"], ["model", "case"], ["q", "branch", "distance", "value", "reference"])
    cases = sorted(bands["case"].unique())
    if len(cases) > 1:
        raise ValueError(f"bands of one crystal are needed, but the table has {', '.join(cases)}")
    models = style.in_order(bands["model"])
    twice = bands[bands.duplicated(["model", "q", "branch"])]
    if len(twice):
        one = twice.iloc[0]
        raise ValueError(f"{len(twice)} points of bands are there twice, first for {one['model']}: q {one['q']}, branch {one['branch']}")
    densities = table[(table["property"] == "dos") & (table["status"] == "ok") & table["model"].isin(models)]
    values = bands[["value", "reference"]].to_numpy(dtype=float)
    low, high = min(0.0, float(values.min())), 1.22 * float(values.max())
    columns = min(2, len(models))
    lines = int(np.ceil(len(models) / columns))
    heights = [1.0] * lines + ([0.85] if len(densities) else [])
    with mpl.rc_context(STYLE):
        figure = style.blank(2.65 * sum(heights) + 0.4)
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        for number, model in enumerate(models):
            axes = figure.add_subplot(grid[divmod(number, columns)])
            _bands(axes, model, bands[bands["model"] == model], None if paper is None else paper.get(model))
            axes.set_ylim(low, high)
            if number % columns == 0:
                axes.set_ylabel("frequency (THz)")
        if len(densities):
            _densities(figure.add_subplot(grid[-1, :]), models, densities)
        handles = [
            Line2D([], [], color="black", linewidth=1.3, label="DFT"),
            Line2D([], [], color="#444444", linewidth=1.5, linestyle=(0, (4, 1.2)), label="model, in its colour"),
        ]
        if paper:
            face = {"markerfacecolor": "white", "markeredgewidth": 1.5, "linestyle": "none"}
            handles.append(Line2D([], [], color="#444444", marker="o", markersize=7, label="paper's maximum", **face))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.6)
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
    axes.set_xticks(names.index.to_numpy(), names.to_list())
    axes.set_xlim(distance[0], distance[-1])
    axes.grid(visible=False, axis="x")
    top, top_dft = rows["value"].max(), rows["reference"].max()
    if paper is not None:
        axes.plot(distance[-1], paper, **style.look(model, 7.5), markerfacecolor="white", markeredgewidth=1.5, clip_on=False, zorder=6)
    style.note(axes, f"highest {top:.2f}, DFT {top_dft:.2f}")
    axes.set_title(label(model), color=style.readable(model), loc="left")


def _densities(axes: Axes, models: Sequence[str], rows: pd.DataFrame) -> None:
    """Draw the densities of states of all models and of DFT."""
    # The grid of frequencies differs from model to model; the one that reaches furthest holds all of DFT's.
    widest = max(models, key=lambda model: len(rows[rows["model"] == model]))
    dft = rows[rows["model"] == widest].sort_values("frequency_thz")
    axes.fill_between(dft["frequency_thz"], dft["reference"], color="#9AA3AC", alpha=0.45, linewidth=0)
    for model in models:
        part = rows[rows["model"] == model].sort_values("frequency_thz")
        if len(part):
            axes.plot(part["frequency_thz"], part["value"], color=colour(model), linewidth=1.5)
    axes.set(xlabel="frequency (THz)", ylabel="states per THz")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=min(0.0, float(rows["frequency_thz"].min())))
    axes.set_title("Density of states: DFT grey, models in their colours", loc="left", fontsize=10.5, fontweight="normal")


def conductivity(found: pd.DataFrame) -> Figure:
    """Draw thermal conductivities against highest frequencies, both over DFT's, one panel per model, with what softness alone would do.

    ``found``: from :func:`helpers.benchmarks.phonons.conductivities`. Models without frequencies and crystals without a conductivity are
        left out.
    """
    rows = found[(found["kappa_ratio"] > 0) & found["omega_max"].notna()]
    models, soft = style.in_order(rows["model"]), np.array([0.5, 1.3])
    with mpl.rc_context(STYLE):
        figure, axes, spare = style.panels(len(models), 0.35)
        for panel, model in zip(axes, models, strict=True):
            part = rows[rows["model"] == model]
            panel.plot(soft, soft**3, zorder=2, **style.IDEAL)
            panel.plot(part["omega_max"], part["kappa_ratio"], linestyle="none", alpha=0.65, zorder=3, **style.look(model, 5.0))
            panel.plot(1, 1, color="black", marker="+", markersize=11, markeredgewidth=1.6)
            style.log_places(panel, [0.5, 0.7, 1.0, 1.3])
            panel.set(xlim=(0.48, 1.35), ylim=(5e-4, 6), yscale="log")
            outside = (~part["omega_max"].between(*panel.get_xlim()) | ~part["kappa_ratio"].between(*panel.get_ylim())).sum()
            style.note(panel, f"n = {len(part)}" + (f", {outside} outside" if outside else ""), "upper left")
            style.title(panel, model)
        style.outer_labels(axes, "highest frequency, model / DFT", "conductivity, model / DFT")
        handles = [Line2D([], [], label="softness alone: third power", **style.IDEAL)]
        handles.append(Line2D([], [], color="black", marker="+", markersize=10, linestyle="none", label="DFT"))
        style.legend(figure, spare, handles)
    return figure
