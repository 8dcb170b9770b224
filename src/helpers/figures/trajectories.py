"""Charts of molecular dynamics: how far atoms move, and profiles over distance or frequency."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.figures import style
from helpers.figures.style import STYLE, in_order, label

_DFT = {"color": style.TEXT, "marker": "x", "linestyle": "none", "markersize": 8, "markeredgewidth": 2}
_TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.12, 0.15, 0.2, 0.5)  # Å²


def displacements(summary: pd.DataFrame, models: Sequence[str] | None = None) -> Figure:
    """Draw ⟨u²⟩ against the temperature, both logarithmic, one panel per element; crosses are DFT, bars 95 %.

    ``summary``: from :func:`helpers.benchmarks.dynamics.summarise`.
    """
    rows = style.good_rows(summary[summary["u2"].notna()], ["model", "material"], ["temperature_k", "u2", "u2_error"])
    models = style.chosen(rows, models)
    elements = list(dict.fromkeys(rows["material"]))
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(elements))
        for panel, element in zip(axes, elements, strict=True):
            ours = rows[rows["material"] == element]
            dft = ours[ours["u2_dft"].notna()].drop_duplicates("temperature_k")
            panel.errorbar(dft["temperature_k"], dft["u2_dft"], 1.96 * dft["u2_dft_error"], zorder=5, **_DFT)
            for model in models:
                part = ours[ours["model"] == model].sort_values("temperature_k")
                look = {"linewidth": 1.4, "markeredgecolor": "white", "markeredgewidth": 0.5, "zorder": 4, **style.look(model, 6)}
                panel.errorbar(part["temperature_k"], part["u2"], 1.96 * part["u2_error"], **look)
            panel.set_yscale("log")
            panel.set_yticks([tick for tick in _TICKS if panel.get_ylim()[0] <= tick <= panel.get_ylim()[1]])
            panel.set_yticks([], minor=True)
            panel.yaxis.set_major_formatter("{x:g}")
            low, high = ours["temperature_k"].min(), ours["temperature_k"].max()
            style.log_places(panel, [place for place in (100, 200, 300, 500, 1000, 2000, 3000) if low <= place <= high])
            panel.set_title(element, loc="left")
        style.outer_labels(axes, "temperature (K)", "mean square displacement ⟨u²⟩ (Å²)")
        style.legend(figure, [Line2D([], [], label="DFT", **_DFT), *(Line2D([], [], label=label(m), **style.look(m, 6)) for m in models)])
    return figure


def profiles(rows: pd.DataFrame, x: str, axis: str, known: str, models: Sequence[str] | None = None) -> Figure:
    """Draw a quantity of trajectories over distance or frequency, one panel per material and temperature, with what it is compared with.

    ``rows``: good rows of one property of the table, averaged over seeds here.
    ``x``, ``axis``: column of the distance or the frequency, and the names of both axes, ``below|left``.
    ``known``: column drawn dashed: DFT's ``reference``, once for each panel, in black, or the ``harmonic`` one of each model.
    """
    dft = known == "reference"
    rows = style.good_rows(rows, ["model", "material"], [x, "value", "temperature_k"])
    models = style.chosen(rows, models)
    means = rows.groupby(["material", "temperature_k", "model", x], observed=True)[["value", known]].mean().reset_index()
    groups = list(means.groupby(["material", "temperature_k"], observed=True, sort=False))
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(groups))
        figure.set_figheight(0.85 * figure.get_figheight())
        for panel, ((material, temperature), part) in zip(axes, groups, strict=True):
            for model in in_order(set(part["model"]) & set(models)):
                line, hue = part[part["model"] == model], style.colour(model)
                panel.plot(line[x], line["value"], color=hue, zorder=3)
                if not dft:
                    panel.plot(line[x], line[known], color=hue, linewidth=1.2, linestyle=(0, (2, 1.5)), zorder=2)
            if dft:
                line = part[part["model"] == part["model"].iloc[0]]
                panel.plot(line[x], line[known], color=style.TEXT, linewidth=1.4, linestyle=(0, (4, 1.5)), zorder=4)
            ends = part.loc[part["value"].abs() > 0.005 * part["value"].max(), x]
            panel.set(xlim=(max(0.0, ends.min() - 0.3), ends.max()), ylim=(0, None))
            style.heading(panel, f"{material}, {temperature:.0f} K")
        style.outer_labels(axes, *axis.split("|"))
        handles = [Line2D([], [], color=style.colour(model), label=label(model)) for model in models]
        look = {"color": style.TEXT, "linewidth": 1.4, "linestyle": (0, (4, 1.5) if dft else (2, 1.5))}
        style.legend(figure, [Line2D([], [], label="DFT" if dft else "harmonic", **look), *handles])
    return figure
