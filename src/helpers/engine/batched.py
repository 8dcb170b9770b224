"""Batched relaxation on one device, through torch-sim.

Structures that have converged leave the batch at once and waiting ones take their place; a structure that fails leaves it too, with a
reason, and does not disturb the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
import torch
import torch_sim as ts
from ase.constraints import FixAtoms, FixCartesian
from torch_sim.models.interface import ModelInterface
from tqdm.auto import tqdm

from helpers.engine.torchsim import fire
from helpers.potentials.base import GraphPotential, Potential, Prediction, StructureError, out_of_memory
from helpers.potentials.neighbours import check_structure
from helpers.structures import content, enter, handedness, many

CELL_MODES = ("fixed", "full", "out-of-plane")

NO_STRESS = "the potential gives no stress, which the relaxation of a cell needs"

# Atoms per cubic nanometre is torch-sim's unit of density in its memory metric.
_NM3_PER_A3 = 1e-3


@dataclass
class Relaxed:
    """A relaxed structure."""

    atoms: ase.Atoms  # final geometry (the initial one if it failed at once), with the constraints that it came with
    energy: float  # eV; NaN if it failed
    forces: np.ndarray  # shape (n_atoms, 3), eV/Å; zero for coordinates that were held
    steps: int  # of FIRE
    converged: bool  # whether forces (and stress, where the cell relaxes) fell below the thresholds
    error: str | None = None  # why not, if not


class Batch(ModelInterface):
    """A potential that sees the structures of a batch whole, not only what a torch-sim state holds of them.

    Out of plane, only the zz component of the stress is passed on, so that a relaxed cell keeps its in-plane vectors.
    """

    def __init__(self, potential: Potential, cell: str) -> None:
        super().__init__()
        self.potential, self.cell = potential, cell
        self.structures: list[ase.Atoms] = []
        self._device, self._dtype = potential.device, potential.dtype
        self._compute_forces, self._compute_stress = True, cell != "fixed"

    def forward(self, state: ts.SimState, **_: object) -> dict[str, torch.Tensor]:  # noqa: D102  (documented by torch-sim)
        output = self.potential(state, structures=self.structures)
        if self.cell == "out-of-plane":
            zz = torch.zeros_like(output["stress"])
            zz[:, 2, 2] = output["stress"][:, 2, 2]
            output["stress"] = zz
        return output


def relax(
    potential: Potential,
    structures: Iterable[ase.Atoms],
    *,
    cell: str = "fixed",
    fmax: float = 0.05,
    smax: float = 6e-4,
    max_steps: int = 500,
    held: Sequence[np.ndarray | None] | None = None,
    progress: bool = False,
) -> list[Relaxed]:
    """Relax many structures with FIRE; results in the order of the structures.

    >>> from ase.build import bulk
    >>> from helpers import engine, potentials
    >>> emt = potentials.load("ase:ase.calculators.emt.EMT")
    >>> relaxed = engine.relax(emt, [bulk("Cu"), bulk("Al")], cell="full")
    >>> [round(float(one.atoms.cell.volume), 1) for one in relaxed]
    [11.6, 15.9]

    ``structures``: not changed. Coordinates under FixAtoms and FixCartesian are held, besides those of ``held``. Other constraints are
        refused, and so is any with a cell that relaxes. A left-handed cell comes back left-handed.
    ``cell`` ({"fixed", "full", "out-of-plane"}): ``fixed``: atoms only. ``full``: atoms and all six strains. ``out-of-plane``: atoms and
        the height along z; the in-plane vectors, which must lie in the xy plane, stay (a film on its substrate).
    ``fmax``: largest force on any atom at convergence, eV/Å.
    ``smax``: largest component of the stress at convergence where the cell relaxes, eV/Å³ (6e-4 is 0.1 GPa).
    ``max_steps``: steps after which a structure is given up.
    ``held``: for each structure, the Cartesian coordinates that do not move, shape (n_atoms, 3); None if all move. Needs ``cell="fixed"``.
        Their forces do not count for convergence.

    Batches are halved when the memory does not suffice, and go on from where they were. TypeError if something is no structure, see
    :func:`helpers.structures.many`; ValueError if the cell mode is unknown, no step is allowed, or ``held`` does not fit the structures or
    the cell mode. FIRE: Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), in torch-sim's implementation of ASE's variant.
    """
    if cell not in CELL_MODES:
        raise ValueError(f"cell={cell!r}; choose one of {', '.join(CELL_MODES)}")
    if not max_steps >= 1:
        raise ValueError(f"max_steps={max_steps!r}; give one step or more (without a step: potential.evaluate)")
    given = many(structures)
    free = _free(given, held, cell)
    results: dict[int, Relaxed] = {}
    for index, atoms in enumerate(given):
        try:
            free[index] &= ~_constrained(atoms, cell)
            _check(potential, atoms, cell)
        except StructureError as error:
            results[index] = _failed(atoms, str(error))
    waiting = [index for index in range(len(given)) if index not in results]
    # What moves: torch-sim's volume has the sign of the cell, and with it the force on a lattice vector.
    moving = [_back(enter(atoms), atoms) for atoms in given]
    steps = np.zeros(len(given), dtype=int)
    with tqdm(total=len(given), disable=not progress, unit="structure", desc="relaxation") as bar:
        bar.update(len(given) - len(waiting))
        limit = memory_limit(potential)
        while waiting:
            try:
                for index, relaxed in _relax_all(potential, given, moving, waiting, free, steps, cell, fmax, smax, max_steps, limit):
                    results[index] = relaxed
                    bar.update()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                torch.cuda.empty_cache()
                remaining = [index for index in waiting if index not in results]
                largest = max(remaining, key=lambda index: _memory_metric(moving[index]))
                if limit <= _memory_metric(moving[largest]):
                    results[largest] = _failed(_back(given[largest], moving[largest]), f"out of memory after {steps[largest]} steps")
                    bar.update()
                limit /= 2
            waiting = [index for index in waiting if index not in results]
    return [results[index] for index in range(len(given))]


def relax_distinct(potential: Potential, structures: Iterable[ase.Atoms], **settings: Any) -> dict[bytes, Relaxed]:
    """Relax every distinct structure once, as :func:`relax` does; results by :func:`helpers.structures.content`."""
    distinct = {content(atoms): atoms for atoms in structures}
    return dict(zip(distinct, relax(potential, list(distinct.values()), **settings), strict=True)) if distinct else {}


def evaluate_distinct(potential: Potential, structures: Iterable[ase.Atoms], progress: bool = False) -> dict[bytes, Prediction]:
    """Evaluate every distinct structure once, without stress; results by :func:`helpers.structures.content`."""
    distinct = {content(atoms): atoms for atoms in structures}
    return dict(zip(distinct, potential.evaluate(list(distinct.values()), stress=False, progress=progress), strict=True))


def _free(structures: Sequence[ase.Atoms], held: Sequence[np.ndarray | None] | None, cell: str) -> list[np.ndarray]:
    """Return for each structure which coordinates move, shape (n_atoms, 3)."""
    if held is None:
        return [np.ones((len(atoms), 3), dtype=bool) for atoms in structures]
    if cell != "fixed":
        raise ValueError(f"coordinates can be held in a fixed cell only, not with cell={cell!r}")
    if len(held) != len(structures):
        raise ValueError(f"there are {len(structures)} structures but {len(held)} entries in held")
    free = []
    for number, (atoms, mask) in enumerate(zip(structures, held, strict=True)):
        mask = np.zeros((len(atoms), 3), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        if mask.shape != (len(atoms), 3):
            raise ValueError(f"held[{number}] has shape {mask.shape}; structure {number} needs ({len(atoms)}, 3)")
        free.append(~mask)
    return free


def _constrained(atoms: ase.Atoms, cell: str) -> np.ndarray:
    """Return which coordinates the constraints of atoms hold, shape (n_atoms, 3); raise StructureError for those that cannot be kept."""
    mask = np.zeros((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        name, advice = type(constraint).__name__, "take it off with set_constraint()"
        if not isinstance(constraint, (FixAtoms, FixCartesian)):
            raise StructureError(f"its constraint {name} cannot be kept, only FixAtoms and FixCartesian: {advice}")
        if cell != "fixed":
            raise StructureError(f"its constraint {name} cannot be kept in a cell that relaxes: {advice}, or relax with cell='fixed'")
        mask[constraint.index] |= getattr(constraint, "mask", True)
    return mask


def _check(potential: Potential, atoms: ase.Atoms, cell: str) -> None:
    check_structure(atoms.numbers, atoms.positions, atoms.cell.array, potential.elements, atoms.pbc)
    if isinstance(potential, GraphPotential):
        potential.check_memory(potential.system(atoms))
    if cell == "out-of-plane" and np.abs(atoms.cell.array[:2, 2]).max() > 1e-6:
        raise StructureError("out-of-plane relaxation needs the first two lattice vectors in the xy plane")


def _failed(atoms: ase.Atoms, error: str) -> Relaxed:
    return Relaxed(atoms.copy(), np.nan, np.full((len(atoms), 3), np.nan), 0, False, error)


def _back(given: ase.Atoms, moved: ase.Atoms) -> ase.Atoms:
    """Return what was given at its new place, with its constraints; a left-handed cell is turned round, here as there."""
    atoms = given.copy()
    atoms.set_cell(moved.cell.array * handedness(given), apply_constraint=False)
    atoms.positions = moved.positions
    return atoms


def _memory_metric(atoms: ase.Atoms) -> float:
    """Return torch-sim's measure of a structure's memory: atoms times number density (nm⁻³)."""
    return len(atoms) ** 2 / (atoms.get_volume() * _NM3_PER_A3)


def memory_limit(potential: Potential) -> float:
    """Return the largest sum of the memory metric in a batch, from the memory that is free now."""
    if not isinstance(potential, GraphPotential):
        return np.inf
    edges_per_metric = 4 / 3 * np.pi * potential.cutoff**3 * _NM3_PER_A3
    return potential.max_edges() / edges_per_metric


def _relax_all(potential, given, moving, indices, free, steps, cell, fmax, smax, max_steps, limit):
    """Yield (index, Relaxed) as structures finish; ``moving`` and ``steps`` keep what was reached if something raises."""
    moves_cell = cell != "fixed"
    had_stress = potential.compute_stress
    potential.compute_stress = moves_cell
    model = Batch(potential, cell)
    initialise, step = fire(model, moves_cell)
    limit = max(limit, max(_memory_metric(moving[index]) for index in indices) * 1.001)
    batcher = ts.InFlightAutoBatcher(model, memory_scales_with="n_atoms_x_density", max_memory_scaler=limit)
    state, done, now = None, None, np.zeros(0, dtype=int)
    try:
        batcher.load_states(_initial_states(model, initialise, moving, indices, limit))
        while True:
            state, finished = batcher.next_batch(state, done)
            order = batcher.completed_idx_og_order[len(batcher.completed_idx_og_order) - len(finished) :]
            for position, final in zip(order, finished, strict=True):
                index = indices[position]
                yield index, _record(potential, given[index], final, int(steps[index]), fmax, smax if moves_cell else None)
            if state is None:
                return
            now = np.array(indices)[batcher.current_idx]
            model.structures = [moving[index] for index in now]
            mask = torch.as_tensor(np.concatenate([free[index] for index in now]), dtype=state.dtype, device=state.device)
            # A coordinate that never feels a force starts at rest and stays at rest: FIRE needs no other change.
            state.forces = state.forces * mask
            done = _done(state, fmax, smax if moves_cell else None)
            if not done.any():
                state = step(state)
                state.forces = state.forces * mask
                steps[now] += 1
                done = _done(state, fmax, smax if moves_cell else None)
            done |= torch.as_tensor(steps[now] >= max_steps, device=done.device)
    except (RuntimeError, MemoryError):
        for index, reached in zip(now, () if state is None else state.to_atoms(), strict=False):
            if np.isfinite(reached.positions).all() and np.isfinite(reached.cell.array).all():
                moving[index].set_cell(reached.cell)
                moving[index].positions = reached.positions
        raise
    finally:
        potential.compute_stress = had_stress


def _initial_states(model, initialise, moving, indices, limit):
    """Yield the optimiser's state of each structure; first forces are computed a batch at a time, as they are needed."""
    chunks, size = [[]], 0.0
    for index in indices:
        metric = _memory_metric(moving[index])
        if chunks[-1] and size + metric > limit:
            chunks.append([])
            size = 0.0
        chunks[-1].append(moving[index])
        size += metric
    for model.structures in chunks:
        yield from initialise(ts.initialize_state(model.structures, model.device, model.dtype)).split()


def _done(state: ts.SimState, fmax: float, smax: float | None) -> torch.Tensor:
    """Tell which structures leave the batch: converged, or no longer numbers."""
    largest = torch.full((state.n_systems,), 0.0, dtype=state.dtype, device=state.device)
    largest.scatter_reduce_(0, state.system_idx, torch.linalg.norm(state.forces, dim=1), "amax")
    converged = largest < fmax
    if smax is not None:
        stress = state.stress.abs().amax(dim=(1, 2))
        converged = (converged & (stress < smax)) | ~torch.isfinite(stress)
    return converged | ~torch.isfinite(state.energy) | ~torch.isfinite(largest)


def _record(potential: Potential, initial: ase.Atoms, state: ts.SimState, steps: int, fmax: float, smax: float | None) -> Relaxed:
    forces = state.forces.detach().cpu().numpy()
    energy = float(state.energy)
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        reason = potential.evaluate([initial])[0].error or f"energy or forces became NaN after {steps} steps"
        return _failed(initial, reason)
    if smax is not None and not bool(torch.isfinite(state.stress).all()):
        return _failed(initial, NO_STRESS)
    (moved,) = state.to_atoms()
    atoms = _back(initial, moved)
    force = float(np.linalg.norm(forces, axis=1).max())
    stress = 0.0 if smax is None else float(state.stress.abs().max())
    converged = force < fmax and (smax is None or stress < smax)
    error = f"not converged in {steps} steps: largest force {force:.3f} eV/Å"
    error += "" if smax is None else f", largest stress {stress:.2e} eV/Å³"
    return Relaxed(atoms, energy, forces, steps, converged, None if converged else error)
