"""How a training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from helpers.figures import style
from helpers.figures.style import STYLE


def training_curve(history: Sequence[Mapping[str, float]], best_epoch: int, model: str) -> Figure:
    """Draw the force errors of a training against the epoch, with the epoch whose weights were kept.

    ``history``: of :class:`helpers.training.fine_tune.FineTuned`: ``epoch``, ``train_force_mae`` and ``validation_force_mae`` (eV/Å).
    ``model``: its key; it decides the colour.
    """
    if not history:
        raise ValueError("there is nothing to draw: the training has no epochs")
    epochs = [entry["epoch"] + 1 for entry in history]
    with mpl.rc_context(STYLE):
        figure = style.blank(3.2, style.SINGLE + 1.4)
        axes = figure.subplots()
        few = {"marker": "o", "markersize": 4} if len(epochs) < 15 else {}
        axes.plot(epochs, [entry["train_force_mae"] for entry in history], color=style.MUTED, label="trained on", **few)
        axes.plot(
            epochs, [entry["validation_force_mae"] for entry in history], color=style.readable(model), label="chooses the epoch", **few
        )
        axes.axvline(best_epoch + 1, color=style.readable(model), linewidth=1, linestyle=":", label="kept")
        axes.set(xlabel="epoch", ylabel="force MAE (eV/Å)", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure
