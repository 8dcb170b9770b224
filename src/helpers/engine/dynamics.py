"""Molecular dynamics of many structures at once, through torch-sim; what it passes is yielded, not kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import ase
import numpy as np
import torch
import torch_sim as ts
from ase import units

from helpers.engine import torchsim
from helpers.engine.batched import Batch
from helpers.potentials.base import Potential
from helpers.potentials.neighbours import StructureError, check_structure
from helpers.structures import enter, many

_HOTTEST = 10  # times the temperature asked for, above which a structure has exploded
_PS = 1000 * units.fs  # in ASE's units of time, as torch-sim's; masses are in u, energies in eV


@dataclass(frozen=True)
class Snapshot:
    """What moves, at one step; arrays by the number of the structure, of those that still go."""

    step: int
    positions: Mapping[int, np.ndarray]  # shape (n_atoms, 3), Å, not folded back into the cell
    velocities: Mapping[int, np.ndarray]  # Å/ps
    forces: Mapping[int, np.ndarray]  # eV/Å
    energies: Mapping[int, float]  # potential energy, eV
    # Kinetic, K. A thermostat moves the whole as well, Newton's equations do not: 3N degrees of freedom, or 3(N − 1).
    temperatures: Mapping[int, float]
    ended: Mapping[int, str] = field(default_factory=dict)  # structures that came to an end since the last snapshot, with the reason


def move(
    potential: Potential,
    structures: Iterable[ase.Atoms],
    temperatures_k: Sequence[float] | float,
    *,
    steps: int,
    time_step_fs: float = 1.0,
    friction_per_ps: float | None = 1.0,
    every: int = 10,
    seed: int = 0,
) -> Iterator[Snapshot]:
    """Yield a snapshot of the start and of every tenth step (``every``) of molecular dynamics in cells that stay as they are.

    ``structures``: not changed. All are in one batch, which has to fit into memory. Constraints and momenta that they bring are not used.
    ``temperatures_k``: one, or one for each structure, of the Maxwell–Boltzmann distribution that velocities are drawn from, less the
        motion of the whole, and of the thermostat.
    ``steps``: a multiple of ``every``.
    ``friction_per_ps``: of Langevin's thermostat, in the BAOAB splitting. None: Newton's equations, in which the energy is kept.
    ``seed``: decides velocities and noise. They are drawn for the batch as a whole: a trajectory is the same again beside the same others.

    A structure ends, and the others go on, when its energy or forces are no numbers or it is ten times as hot as asked for. TypeError if
    something is no structure, see :func:`helpers.structures.many`; ValueError if steps, time step, friction or temperatures make no sense;
    StructureError if the potential cannot evaluate a structure. BAOAB: Leimkuhler & Matthews, J. Chem. Phys. 138, 174102 (2013), in
    torch-sim's implementation.
    """
    given = [enter(atoms) for atoms in many(structures)]
    asked = np.broadcast_to(np.asarray(temperatures_k, dtype=float), len(given))
    if not (every >= 1 and steps >= every and steps % every == 0):
        raise ValueError(f"steps={steps!r} must be a positive multiple of every={every!r}")
    if not (time_step_fs > 0 and (asked > 0).all() and (friction_per_ps is None or friction_per_ps > 0)):
        raise ValueError(f"time step {time_step_fs!r} fs, friction {friction_per_ps!r} /ps and temperatures must be positive")
    for number, atoms in enumerate(given):
        try:
            check_structure(atoms.numbers, atoms.positions, atoms.cell.array, potential.elements, atoms.pbc)
        except StructureError as error:
            raise StructureError(f"structure {number}: {error}") from None
    return _moved(potential, given, asked, steps, time_step_fs, friction_per_ps, every, seed)


def _moved(potential, given, asked, steps, time_step_fs, friction_per_ps, every, seed):
    model = Batch(potential, "fixed")
    model.structures = given

    def tensor(values):
        return torch.as_tensor(values, dtype=model.dtype, device=model.device)

    time_step = tensor(time_step_fs * units.fs)
    friction = {} if friction_per_ps is None else {"gamma": tensor(friction_per_ps / _PS)}
    initialise, step = torchsim.integrator(model, dt=time_step, kT=tensor(asked * units.kB), **friction)
    with _no_stress(potential):
        state = initialise(ts.initialize_state(given, model.device, model.dtype))
    state.momenta = _at_rest_as_a_whole(state, np.random.default_rng(seed).standard_normal(state.momenta.shape), tensor(asked * units.kB))
    going = np.arange(len(given))
    unfolded = torch.zeros_like(state.positions)
    for done in range(0, steps + 1, every):
        if done:
            for one in range(done - every, done):
                state, change = _advance(potential, state, step, (seed, one), tensor(asked[going] * units.kB))
                unfolded = unfolded + change
        parts = _parts(state, 3 * (friction_per_ps is None))
        ended = {int(index): reason for index, part in zip(going, parts, strict=True) if (reason := _over(*part, asked[index], done))}
        kept = [place for place, index in enumerate(going) if index not in ended]
        if ended:
            unfolded = unfolded[torch.isin(state.system_idx, torch.as_tensor(kept, device=state.device))]
            going, parts = going[kept], [parts[place] for place in kept]
            state = state[kept] if kept else state
            model.structures = [given[index] for index in going]
        by_index = {int(index): part for index, part in zip(going, parts, strict=True)}
        velocities, forces, energies, temperatures = ({index: part[n] for index, part in by_index.items()} for n in range(4))
        ends = np.cumsum([len(given[index]) for index in going])[:-1]
        moved = dict(zip(by_index, np.split(unfolded.detach().cpu().numpy(), ends), strict=True)) if kept else {}
        positions = {index: given[index].positions + change for index, change in moved.items()}
        yield Snapshot(done, positions, velocities, forces, energies, temperatures, ended)
        if not kept:
            return


@contextmanager
def _no_stress(potential):
    had_stress, potential.compute_stress = potential.compute_stress, False
    try:
        yield
    finally:
        potential.compute_stress = had_stress


def _at_rest_as_a_whole(state, normal, kt):
    """Return momenta of a Maxwell–Boltzmann distribution less the motion of the whole, of which an atom has a share by its mass."""
    system, masses = state.system_idx, state.masses[:, None]
    drawn = torch.as_tensor(normal, dtype=state.dtype, device=state.device) * (masses * kt[system, None]).sqrt()
    momentum, mass = (values.new_zeros(state.n_systems, values.shape[1]).index_add(0, system, values) for values in (drawn, masses))
    return drawn - masses * (momentum / mass)[system]


def _advance(potential, state, step, seeds, kt):
    """Take a step; return the state and how far atoms moved. The noise hangs on the seeds alone; others who draw notice nothing."""
    before, drawing = state.positions.clone(), [] if state.device.type == "cpu" else [state.device]
    with _no_stress(potential), torch.random.fork_rng(drawing):
        torchsim.seed(state, int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        state = step(state, kT=kt)
    # torch-sim folds atoms back into the cell; in a step none moves by half a cell.
    cells, change = state.row_vector_cell[state.system_idx], state.positions - before
    folds = torch.linalg.solve(cells.transpose(1, 2), change[:, :, None]).round()
    return state, change - (cells.transpose(1, 2) @ folds)[:, :, 0]


def _parts(state, held):
    """Return velocities, forces, energy and temperature of each structure."""
    counts = state.n_atoms_per_system.tolist()
    split = [np.split(values.detach().cpu().numpy(), np.cumsum(counts)[:-1]) for values in (state.velocities, state.forces)]
    twice = (state.masses[:, None] * state.velocities.square()).sum(dim=1).detach().cpu().numpy()
    twice = np.add.reduceat(twice, np.cumsum([0, *counts[:-1]]))
    temperatures = twice / (np.maximum(3 * np.array(counts) - held, 1) * units.kB)
    energies = state.energy.detach().cpu().tolist()
    return [(v * _PS, f, e, t) for v, f, e, t in zip(*split, energies, temperatures.tolist(), strict=True)]


def _over(velocities, forces, energy, temperature, asked, step) -> str:
    """Tell why a structure cannot go on; nothing if it can."""
    if not all(np.isfinite(values).all() for values in (velocities, forces, energy)):
        return f"energy or forces became NaN by step {step}"
    return f"{temperature:.0f} K by step {step}" if temperature > _HOTTEST * asked else ""
