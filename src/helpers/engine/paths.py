"""Paths from one minimum of the energy to another: rows of images of one crystal, relaxed by the nudged elastic band."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic
from ase.mep import NEB
from ase.optimize import FIRE
from scipy.optimize import linear_sum_assignment

from helpers import structures
from helpers.potentials.base import Potential

# From image to image: cells that differ by less are equal, and atoms that move less have not changed places, Å.
_SAME_CELL_A, _FAR_A = 1e-3, 0.5


def check_path(images: Sequence[ase.Atoms]) -> None:
    """Raise ValueError, with image and atoms, unless all images have the same atoms in the same order, and the same cell.

    Atoms have changed places if another order more than halves the sum of their squared displacements.
    """
    for number, (before, after) in enumerate(pairwise(images), 1):
        if sorted(after.numbers) != sorted(before.numbers):
            raise ValueError(f"image {number} is {after.symbols} and image {number - 1} {before.symbols}: a path keeps its atoms")
        if np.abs(after.cell.array - before.cell.array).max() > _SAME_CELL_A:
            raise ValueError(f"image {number} has another cell than image {number - 1}: the cell of a path is fixed")
        far = np.flatnonzero((np.linalg.norm(structures.displacements(before, after), axis=1) > _FAR_A) | (before.numbers != after.numbers))
        steps = (after.positions[far] - before.positions[far, None]).reshape(-1, 3)
        squares = find_mic(steps, before.cell, pbc=True)[1].reshape(len(far), len(far)) ** 2 if len(far) else np.zeros((0, 0))
        # More than all other displacements together, so that an atom goes to one of its own element.
        foreign = before.numbers[far, None] != after.numbers[far]
        rows, columns = linear_sum_assignment(squares + foreign * (1 + squares.sum()))
        if (before.numbers != after.numbers).any() or squares[rows, columns].sum() < 0.5 * squares.trace():
            there, here = (", ".join(map(str, far[some][rows != columns][:6])) for some in (rows, columns))
            raise ValueError(
                f"image {number} has its atoms in another order than image {number - 1}: atoms {there} there are atoms {here} here; "
                "give all images the same order"
            )


class _BatchedNEB(NEB):
    """ASE's nudged elastic band, with the forces of all images from one call."""

    def __init__(self, potential: Potential, images: Sequence[ase.Atoms], **settings: object) -> None:
        super().__init__(list(images), **settings)
        self.potential = potential
        self.n_calls = 0

    def get_forces(self) -> np.ndarray:
        for image, prediction in zip(self.images, self.potential.evaluate(self.images), strict=True):
            if not prediction.ok:
                raise ValueError(f"an image of the band cannot be evaluated: {prediction.error}")
            image.calc = SinglePointCalculator(image, energy=prediction.energy, forces=prediction.forces)
        self.n_calls += 1
        return super().get_forces()


def neb(
    potential: Potential, images: Sequence[ase.Atoms], *, fmax: float = 0.05, max_steps: int = 500, climb: bool = True
) -> tuple[list[ase.Atoms], int]:
    """Relax a path with the nudged elastic band, all images in one batch.

    The band is ASE's (improved tangents, springs of 0.1 eV/Å²; Henkelman, Uberuaga and Jónsson, J. Chem. Phys. 113, 9901 (2000)); the
    optimiser is FIRE. ``images`` lead from one relaxed end point to the other; the end points stay, and so do atoms under constraints.
    ``fmax`` is the largest force on the band at convergence, eV/Å; ``climb`` lets the highest image climb to the saddle point.

    Returned are images with total energies in ``info["energy_ev"]``, and the number of batched evaluations. ValueError if there are fewer
    than three images, one has other atoms, their order or the cell changed (:func:`check_path`) or cannot be evaluated, or the band does
    not converge.
    """
    images = structures.many(images)
    if len(images) < 3:
        raise ValueError(f"a band needs at least three images, not {len(images)}")
    check_path(images)
    band = _BatchedNEB(potential, [image.copy() for image in images], climb=climb, method="improvedtangent")
    if not FIRE(band, logfile=None).run(fmax=fmax, steps=max_steps):
        raise ValueError(f"the band did not converge in {max_steps} steps")
    found = []
    for image in band.images:
        frame = image.copy()
        frame.info["energy_ev"] = float(image.get_potential_energy())
        found.append(frame)
    return found, band.n_calls
