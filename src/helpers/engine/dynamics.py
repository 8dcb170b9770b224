"""Molecular dynamics of many structures at once, through torch-sim; what it passes is yielded, not kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ase
import numpy as np
import torch
import torch_sim as ts
from ase import units

from helpers.engine.batched import Batch
from helpers.potentials.base import Potential
from helpers.potentials.neighbours import StructureError, check_structure
from helpers.structures import enter, many

_HOTTEST = 10  # times the temperature asked for, above which a structure has exploded
_PS = 1000 * units.fs  # in ASE's units of time, as torch-sim's; masses are in u, energies in eV


@dataclass(frozen=True)
class Snapshot:
    """What moves, at one step; arrays by the number of the structure, of those that still go.

    Attributes
    ----------
    step : int
    positions : dict of ndarray, shape (n_atoms, 3)
        Å, not folded back into the cell.
    velocities : dict of ndarray, shape (n_atoms, 3)
        Å/ps.
    forces : dict of ndarray, shape (n_atoms, 3)
        eV/Å.
    energies, temperatures : dict of float
        Potential energy in eV; kinetic temperature in K. A thermostat moves the whole as well, Newton's equations do not: 3N degrees of
        freedom, or 3(N − 1).
    ended : dict of str
        Structures that came to an end since the last snapshot, with the reason.
    """

    step: int
    positions: Mapping[int, np.ndarray]
    velocities: Mapping[int, np.ndarray]
    forces: Mapping[int, np.ndarray]
    energies: Mapping[int, float]
    temperatures: Mapping[int, float]
    ended: Mapping[int, str] = field(default_factory=dict)


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

    Parameters
    ----------
    potential : Potential
    structures : ase.Atoms, pymatgen Structure, or iterable of either
        Not changed. All are in one batch, which has to fit into memory. Constraints and momenta that they bring are not used.
    temperatures_k : float, or one for each structure
        Of the Maxwell–Boltzmann distribution that velocities are drawn from, without the motion of the whole, and of the thermostat.
    steps : int
        A multiple of ``every``.
    time_step_fs : float
    friction_per_ps : float or None
        Of Langevin's thermostat, in the BAOAB splitting. None: Newton's equations, in which the energy is kept.
    seed : int
        Decides velocities and noise. They are drawn for the batch as a whole: a trajectory is the same again beside the same others.

    Raises
    ------
    TypeError
        If something is no structure, see :func:`helpers.structures.many`.
    ValueError
        If steps, time step, friction or temperatures make no sense.
    helpers.potentials.StructureError
        If the potential cannot evaluate a structure.

    Notes
    -----
    A structure ends, and the others go on, when its energy or forces are no numbers or it is ten times as hot as asked for. BAOAB:
    Leimkuhler & Matthews, J. Chem. Phys. 138, 174102 (2013), in torch-sim's implementation.
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
    if friction_per_ps is None:
        initialise, step = ts.nve(model, dt=time_step, kT=tensor(asked * units.kB))
    else:
        initialise, step = ts.nvt_langevin(model, dt=time_step, kT=tensor(asked * units.kB), gamma=tensor(friction_per_ps / _PS))
    had_stress, potential.compute_stress = potential.compute_stress, False
    state = initialise(ts.initialize_state(given, model.device, model.dtype), seed=seed)
    potential.compute_stress = had_stress
    going = np.arange(len(given))
    unfolded = [atoms.positions.copy() for atoms in given]
    folded = [atoms.positions for atoms in given]
    for done in range(0, steps + 1, every):
        if done:
            state = _advance(potential, state, step, every, (seed, done), tensor(asked[going] * units.kB))
        parts = _parts(state, 3 * (friction_per_ps is None))
        ended = {int(index): reason for index, part in zip(going, parts, strict=True) if (reason := _over(*part, asked[index], done))}
        kept = [place for place, index in enumerate(going) if index not in ended]
        for place in kept:
            index = going[place]
            change = parts[place][0] - folded[index]
            cell = given[index].cell.array
            # torch-sim folds atoms back into the cell; between two snapshots none moves by half a cell.
            unfolded[index] = unfolded[index] + change - np.round(np.linalg.solve(cell.T, change.T).T) @ cell
            folded[index] = parts[place][0]
        if ended:
            going, parts = going[kept], [parts[place] for place in kept]
            state = state[kept] if kept else state
            model.structures = [given[index] for index in going]
        by_index = {int(index): part for index, part in zip(going, parts, strict=True)}
        velocities, forces, energies, temperatures = ({index: part[n] for index, part in by_index.items()} for n in range(1, 5))
        yield Snapshot(done, {index: unfolded[index] for index in by_index}, velocities, forces, energies, temperatures, ended)
        if not kept:
            return


def _advance(potential, state, step, every, seeds, kt):
    """Take some steps; their noise hangs on the seeds alone, and the generator of those who draw beside us stays as it was."""
    had_stress, potential.compute_stress = potential.compute_stress, False
    try:
        with torch.random.fork_rng():
            torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
            for _ in range(every):
                state = step(state, kT=kt)
    finally:
        potential.compute_stress = had_stress
    return state


def _parts(state, held):
    """Return positions, velocities, forces, energy and temperature of each structure."""
    counts = state.n_atoms_per_system.tolist()
    arrays = [values.detach().cpu().numpy() for values in (state.positions, state.velocities, state.forces)]
    split = [np.split(values, np.cumsum(counts)[:-1]) for values in arrays]
    twice = (state.masses[:, None] * state.velocities.square()).sum(dim=1).detach().cpu().numpy()
    twice = np.add.reduceat(twice, np.cumsum([0, *counts[:-1]]))
    temperatures = twice / (np.maximum(3 * np.array(counts) - held, 1) * units.kB)
    energies = state.energy.detach().cpu().tolist()
    return [(x, v * _PS, f, e, t) for x, v, f, e, t in zip(*split, energies, temperatures.tolist(), strict=True)]


def _over(positions, velocities, forces, energy, temperature, asked, step) -> str:
    """Tell why a structure cannot go on; nothing if it can."""
    if not all(np.isfinite(values).all() for values in (positions, velocities, forces, energy)):
        return f"energy or forces became NaN by step {step}"
    return f"{temperature:.0f} K by step {step}" if temperature > _HOTTEST * asked else ""
