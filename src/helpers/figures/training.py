"""How a training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from helpers.figures.style import _MUTED, _SINGLE, STYLE, _readable


def training_curve(history: Sequence[Mapping[str, float]], best_epoch: int, model: str) -> Figure:
    """Draw the force errors of a training against the epoch, with the epoch whose weights were kept.

    Parameters
    ----------
    history : sequence of mapping
        Of :class:`helpers.training.fine_tune.FineTuned`: ``epoch``, ``train_force_mae`` and ``validation_force_mae`` (eV/Å).
    best_epoch : int
    model : str
        Its key; it decides the colour.

    Raises
    ------
    ValueError
        If the history is empty.
    """
    if not history:
        raise ValueError("there is nothing to draw: the training has no epochs")
    epochs = [entry["epoch"] + 1 for entry in history]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_SINGLE + 1.4, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        few = {"marker": "o", "markersize": 4} if len(epochs) < 15 else {}
        axes.plot(epochs, [entry["train_force_mae"] for entry in history], color=_MUTED, label="trained on", **few)
        axes.plot(epochs, [entry["validation_force_mae"] for entry in history], color=_readable(model), label="chooses the epoch", **few)
        axes.axvline(best_epoch + 1, color=_readable(model), linewidth=1, linestyle=":", label="kept")
        axes.set(xlabel="epoch", ylabel="force MAE (eV/Å)", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure
