"""Model against reference for several families of properties, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from helpers.figures import style
from helpers.figures.against_dft import force_limit, force_panel, parity_panel
from helpers.figures.style import STYLE


def families(panels: Mapping[str, tuple[pd.DataFrame, str, bool]], reference: str = "DFT") -> Figure:
    """Draw one model against its reference, one panel per family, each on its own scale.

    ``panels``: title → rows (``model``, ``material``, ``value``, ``reference``) of one model, their unit, and whether to draw a density
        (many components about zero) instead of points.
    ``reference``: name of the horizontal axis.
    """
    if not panels:
        raise ValueError("there is nothing to draw: no family has values")
    with mpl.rc_context(STYLE):
        figure, axes = style.panels(len(panels), head=0.3)
        for panel, (title, (table, unit, dense)) in zip(axes, panels.items(), strict=True):
            rows = style.good_rows(table, ["model", "material"], ["value", "reference"])
            model = str(rows["model"].iloc[0])
            values = rows[["value", "reference"]].to_numpy(dtype=float)
            if dense:
                force_panel(panel, model, rows, force_limit(rows), 36, title)
            else:
                low, high = min(values.min(), 0.0), max(values.max(), 0.0)
                margin = 0.04 * (high - low)
                parity_panel(panel, model, rows, pd.DataFrame(), "material", (low - margin, high + margin), unit, name=title)
        style.outer_labels(axes, reference, "model")
    return figure
