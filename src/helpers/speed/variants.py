"""What was tried to make this project's evaluation faster: each idea on and off, in turns, in one process and on one thread."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import ase
import numpy as np
import torch

from helpers import potentials, runner
from helpers.potentials.base import Graph, GraphPotential

Evaluate = Callable[[Sequence[ase.Atoms]], list[np.ndarray]]


def _forces(potential: GraphPotential, frames: Sequence[ase.Atoms]) -> list[np.ndarray]:
    return [one.forces for one in potential.evaluate(frames)]


def _as_it_is(potential: GraphPotential) -> Evaluate:
    return lambda frames: _forces(potential, frames)


def _gradients_of_weights(potential: GraphPotential) -> Evaluate:
    twin = copy.copy(potential)
    twin._modules = {**potential._modules, "network": copy.deepcopy(potential.network).requires_grad_(True)}
    return _as_it_is(twin)


def _side_by_side(potential: GraphPotential) -> Evaluate:
    """Put features side by side before the first linear layer of each MLP, as the packages do."""
    module: Any = import_module(type(potential).__module__)
    split = module.linear_on_parts

    def joined(layers, parts):
        rows = torch.cat([features if chosen is None else features[chosen] for features, chosen in parts], dim=1)
        return torch.cat([layer(rows) for layer in layers], dim=1)

    def evaluate(frames: Sequence[ase.Atoms]) -> list[np.ndarray]:
        module.linear_on_parts = joined
        try:
            return _forces(potential, frames)
        finally:
            module.linear_on_parts = split

    return evaluate


def _one_at_a_time(potential: GraphPotential) -> Evaluate:
    return lambda frames: [force for atoms in frames for force in _forces(potential, [atoms])]


def _large_batches(potential: GraphPotential) -> Evaluate:
    twin = copy.copy(potential)
    twin.max_edges = lambda: 40_000
    return _as_it_is(twin)


def _ready_graphs(potential: GraphPotential) -> Evaluate:
    """Keep the graphs from one evaluation to the next, as a relaxation could whose atoms hardly move."""
    kept: dict[int, Graph] = {}

    def evaluate(frames: Sequence[ase.Atoms]) -> list[np.ndarray]:
        if not kept:
            batches = list(potential.batches(frames, [None] * len(frames)))
            kept.update({number: potential.collate([system for _, system in batch]) for number, batch in enumerate(batches)})
        found = []
        for graph in kept.values():
            forces = potential.compute(graph)[1].numpy()
            found += np.split(forces, np.cumsum(graph.n_atoms.numpy())[:-1])
        return found

    return evaluate


def _no_denormals(potential: GraphPotential) -> Evaluate:
    def evaluate(frames: Sequence[ase.Atoms]) -> list[np.ndarray]:
        torch.set_flush_denormal(True)
        try:
            return _forces(potential, frames)
        finally:
            torch.set_flush_denormal(False)

    return evaluate


def _compiled(potential: GraphPotential) -> Evaluate:
    return _as_it_is(potential.compiled())


AS_IT_IS = "as it is"
COMPILED = "torch.compile"

VARIANTS: dict[str, Callable[[GraphPotential], Evaluate]] = {
    AS_IT_IS: _as_it_is,
    "features side by side, as in the packages": _side_by_side,
    "weights that require gradients": _gradients_of_weights,
    "one structure at a time": _one_at_a_time,
    "batches of 40,000 edges instead of 3,000": _large_batches,
    "graphs kept from one evaluation to the next": _ready_graphs,
    "denormal numbers taken as zero": _no_denormals,
    COMPILED: _compiled,
}


def measure(
    key: str, frames: Sequence[ase.Atoms], rounds: int, names: Sequence[str] = tuple(VARIANTS)
) -> list[tuple[str, int, float, float, str]]:
    """Measure variants of a CHGNet or a MatGL network.

    Parameters
    ----------
    key : str
        Of :func:`helpers.potentials.load`.
    frames : sequence of ase.Atoms
    rounds : int
    names : sequence of str
        Keys of :data:`VARIANTS`, the first among them.

    Returns
    -------
    list of (variant, round, processor time in s, largest difference of forces from the first variant in eV/Å, reason of failure)
        The first turn of each, in which graphs are built and code is compiled, does not count.
    """
    torch.set_num_threads(1)
    runner.keep_memory()  # as in a run
    potential = potentials.load(key, "cpu")
    rows, ready, expected = [], {}, []
    for name in names:
        try:
            evaluate = VARIANTS[name](potential)
            found = evaluate(frames)
        except Exception as error:  # noqa: BLE001  (a compiler may be missing, or fail in its own way)
            rows.append((name, -1, np.nan, np.nan, f"{type(error).__name__}: {error}".splitlines()[0][:200]))
            continue
        expected = expected or found
        difference = max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))
        ready[name] = evaluate, difference
    for turn in range(rounds):
        for name, (evaluate, difference) in list(ready.items())[:: 1 if turn % 2 == 0 else -1]:
            gc.collect()
            start = time.process_time()
            evaluate(frames)
            rows.append((name, turn, time.process_time() - start, difference, ""))
    return rows
