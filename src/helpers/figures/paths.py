"""Charts of migration: the energy along a path."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.figures import style
from helpers.figures.style import STYLE, colour, label, marker


def energy_profiles(table: pd.DataFrame) -> Figure:
    """Draw the energy of the images along migration paths, one panel per material.

    The lines between the images are straight: nothing is known there.

    ``table``: one row per image: ``model, material, path_coordinate`` (0 to 1), ``value`` and ``reference`` (eV above the first image).
        Rows whose ``status`` is not ``ok`` are left out. The reference is black. Panels come in the order of the table.
    """
    rows = style.good_rows(table, ["model", "material"], ["path_coordinate", "value", "reference"])
    models = style.in_order(rows["model"])
    twice = rows[rows.duplicated(["model", "material", "path_coordinate"])]
    if len(twice):
        raise ValueError(f"{twice['model'].iloc[0]} has an image of {twice['material'].iloc[0]} more than once")
    materials = list(dict.fromkeys(rows["material"]))
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(materials))
        for panel, material in zip(axes, materials, strict=True):
            part = rows[rows["material"] == material]
            panel.axhline(0, color=style.MUTED, linewidth=0.8, zorder=1)
            dft = part.drop_duplicates("path_coordinate").sort_values("path_coordinate")
            panel.plot(dft["path_coordinate"], dft["reference"], color=colour("DFT"), linewidth=2.2, marker=marker("DFT"), markersize=6.5)
            for model in models:
                line = part[part["model"] == model].sort_values("path_coordinate")
                panel.plot(line["path_coordinate"], line["value"], linewidth=1.5, **style.look(model, 5.5))
            panel.set_xlim(-0.03, 1.03)
            panel.set_xticks([0, 0.5, 1])
            panel.set_title(style.formulas(material), loc="left")
        style.outer_labels(axes, "path coordinate", "energy (eV)")
        handles = [Line2D([], [], color=colour("DFT"), linewidth=2.2, marker=marker("DFT"), markersize=6.5, label="DFT")]
        handles += [Line2D([], [], linewidth=1.5, label=label(model), **style.look(model, 5.5)) for model in models]
        style.legend(figure, handles)
    return figure
