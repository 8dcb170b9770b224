"""Relaxation of one crystal within its symmetry, with ASE's constraint and a quasi-Newton method.

Within the symmetry there are few degrees of freedom, and a dozen steps do where FIRE takes a hundred.
"""

from __future__ import annotations

import warnings

import ase
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from helpers import structures
from helpers.engine.batched import NO_STRESS
from helpers.potentials.base import Potential

# Within what atoms lie where a symmetry operation wants them, Å: phonopy's own value.
_SYMPREC = 1e-5

# Steps without progress after which a relaxation that is good enough stops.
_PATIENCE = 25

# Curvature that BFGS starts from. ASE's is that of stiff bonds, but soft modes decide when a crystal is relaxed. From
# a fifth of it, with the strain scaled as in _FreeCell, they are relaxed in four tenths of the steps.
_CURVATURE_EV_PER_A2, _ASE_CURVATURE_EV_PER_A2 = 15.0, 70.0


def relax_symmetric(
    potential: Potential, crystal: ase.Atoms, *, fmax: float = 1e-3, accepted: float = 1e-2, max_steps: int = 300
) -> ase.Atoms:
    """Relax the atoms and the cell of a crystal in its symmetry, which is found with a tolerance of 1e-5 Å; it is not changed.

    ``fmax``: largest force at convergence, eV/Å, and largest stress times the volume of the cell, divided by the square root of its number
        of atoms, eV.
    ``accepted``: the same for a relaxation that has not converged after ``max_steps``, or makes no progress: below this it is good enough.

    ValueError if it cannot be evaluated, or does not converge, with shorter steps neither.
    """
    (crystal,) = structures.many(crystal)
    # An energy surface that is not smooth can lead long steps astray; then once more from the start, with ASE's own, shorter ones.
    failure = ""
    for curvature, cell_factor in ((_CURVATURE_EV_PER_A2, len(crystal) ** 0.5), (_ASE_CURVATURE_EV_PER_A2, len(crystal))):
        atoms = structures.enter(crystal)
        atoms.calc = potential.calculator()
        atoms.set_constraint(FixSymmetry(atoms, symprec=_SYMPREC))
        try:
            with warnings.catch_warnings():
                # SciPy's logarithm of the deformation reports errors of 1e-13.
                warnings.filterwarnings("ignore", message="logm result may be inaccurate", category=RuntimeWarning)
                force = descend(_FreeCell(atoms, cell_factor), curvature, fmax, accepted, max_steps)
        except PropertyNotImplementedError:
            raise ValueError(NO_STRESS) from None
        except RuntimeError as error:
            # ASE's constraint refuses a strain of more than a quarter in one step.
            failure = failure or f"relaxation went astray: {error}"
            continue
        if force < accepted:
            return structures.enter(atoms)
        failure = failure or f"relaxation not converged in {max_steps} steps: largest force {force:.1e} eV/Å"
    raise ValueError(failure)


class _FreeCell(FrechetCellFilter):
    """Atoms and lattice, with remembered forces.

    An optimiser asks for them several times in a step, and for a small cell the derivative of the exponential takes as long as the network.

    A strain is best scaled by the square root of the number of atoms. The energy's curvature along it, elastic modulus times volume per
    atom, is then the same in a small and in a large cell and like that of a bond; with ASE's factor, the number of atoms, it falls with
    the size of the cell, and the lattice is what one waits for.
    """

    def __init__(self, atoms: ase.Atoms, factor: float):
        super().__init__(atoms, exp_cell_factor=float(factor))
        self._known: tuple[np.ndarray, np.ndarray] | None = None

    def get_forces(self, **kwargs) -> np.ndarray:
        where = np.concatenate([self.atoms.positions, self.atoms.cell.array])
        if self._known is None or not np.array_equal(where, self._known[0]):
            self._known = where, super().get_forces(**kwargs)
        return self._known[1].copy()


def descend(free: FrechetCellFilter, curvature: float, fmax: float, accepted: float, max_steps: int) -> float:
    """Relax until converged, out of steps, or good enough without progress; return the largest force (eV/Å)."""
    smallest, when = np.inf, 0
    optimiser = BFGS(free, logfile=None, alpha=curvature)
    for step, _ in enumerate(optimiser.irun(fmax=fmax, steps=max_steps)):
        force = float(np.linalg.norm(free.get_forces(), axis=1).max())
        if force < 0.9 * smallest:
            smallest, when = force, step
        elif force < accepted and step - when >= _PATIENCE:
            break
    return force
