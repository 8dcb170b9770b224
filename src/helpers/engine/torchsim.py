"""What torch-sim has called otherwise since its version 0.4: a way to relax or to move is a function that starts and one that steps."""

from functools import partial
from typing import Any

import torch
import torch_sim as ts

NEWER = hasattr(ts, "fire_init")

# For torch-sim's own loops.
FIRE, LANGEVIN = (ts.Optimizer.fire, ts.Integrator.nvt_langevin) if NEWER else (ts.optimizers.fire, ts.nvt_langevin)


def _newer(model: Any, name: str, start: dict[str, Any], step: dict[str, Any]) -> tuple[Any, Any]:
    return partial(getattr(ts, f"{name}_init"), model=model, **start), partial(getattr(ts, f"{name}_step"), model=model, **step)


def fire(model: Any, moves_cell: bool) -> tuple[Any, Any]:
    """Return FIRE in ASE's variant, of the atoms alone or with all strains of the cell: what makes its state, and a step of it."""
    if NEWER:
        return _newer(model, "fire", {"cell_filter": ts.CellFilter.unit if moves_cell else None}, {})
    return (ts.optimizers.unit_cell_fire if moves_cell else ts.optimizers.fire)(model)


def integrator(model: Any, **settings: Any) -> tuple[Any, Any]:
    """Return Langevin's dynamics (``dt``, ``kT``, ``gamma``), or Newton's (without ``gamma``), as :func:`fire`; a step takes ``kT``."""
    name = "nvt_langevin" if "gamma" in settings else "nve"
    if NEWER:
        return _newer(model, name, {"kT": settings.pop("kT")}, settings)
    return getattr(ts, name)(model, **settings)


def seed(state: ts.SimState, number: int) -> None:
    """Let the next step's noise hang on a number: newer states draw it themselves, older ones from PyTorch's generator."""
    torch.manual_seed(number)
    if NEWER:
        state.rng = number
