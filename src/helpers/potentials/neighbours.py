"""Neighbour lists: which atoms of a periodic structure see each other.

Units: Å.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
from vesin import NeighborList

# Below this volume per atom (Å³) no crystal exists: even solid hydrogen at 500 GPa keeps 1.2 Å³.
_MIN_VOLUME_PER_ATOM = 0.5

# By how much lists that are to serve while atoms move reach beyond the cutoff, Å.
SKIN_A = 0.5


class StructureError(ValueError):
    """A structure cannot be evaluated; the message says why."""


def check_structure(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, elements: frozenset[int], pbc: np.ndarray | bool = True
) -> None:
    """Refuse a structure that no potential can evaluate.

    Parameters
    ----------
    numbers : ndarray, shape (n_atoms,)
        Atomic numbers.
    positions : ndarray, shape (n_atoms, 3)
        Å.
    cell : ndarray, shape (3, 3)
        Lattice vectors as rows, Å.
    elements : frozenset of int
        Atomic numbers the potential was trained on.
    pbc : ndarray of bool, shape (3,)
        Along which lattice vectors it is periodic.

    Raises
    ------
    StructureError
        With the reason.
    """
    if not np.all(pbc):
        raise StructureError("not periodic in all three directions; set pbc=True and leave vacuum wider than the cutoff")
    if len(numbers) == 0:
        raise StructureError("no atoms")
    if not np.isfinite(positions).all():
        bad = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise StructureError(f"position of atom {bad} is not a number: {positions[bad]}")
    if not np.isfinite(cell).all():
        raise StructureError("the cell holds values that are not numbers")
    volume = abs(np.linalg.det(cell))
    if volume < _MIN_VOLUME_PER_ATOM * len(numbers):
        raise StructureError(f"cell volume {volume:.3g} Å³ for {len(numbers)} atoms; give a periodic cell (with vacuum around a molecule)")
    unknown = sorted(set(np.asarray(numbers).tolist()) - elements)
    if unknown:
        names = ", ".join(ase.data.chemical_symbols[z] if 0 < z < len(ase.data.chemical_symbols) else str(z) for z in unknown)
        raise StructureError(f"element(s) the model was not trained on: {names}")


@dataclass
class System:
    """One structure with its neighbour list, ready to be batched.

    ``centre[k]`` sees ``neighbour[k]`` displaced by ``shift[k]`` lattice vectors. Every pair appears in both directions, the edges of an
    atom one after the other.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    centre: np.ndarray
    neighbour: np.ndarray
    shift: np.ndarray

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return len(self.centre)

    @classmethod
    def build(cls, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, cutoff: float) -> System:
        """Find all pairs within ``cutoff`` (Å) under periodic boundary conditions.

        Raises
        ------
        StructureError
            If an atom has no neighbour: graph networks return nonsense there.
        """
        search = NeighborList(cutoff=cutoff, full_list=True, sorted=True)
        centre, neighbour, shift = search.compute(points=positions, box=cell, periodic=True, quantities="ijS")
        lonely = np.flatnonzero(np.bincount(centre, minlength=len(numbers)) == 0)
        if len(lonely):
            raise StructureError(f"atom {lonely[0]} has no neighbour within the model's cutoff of {cutoff:g} Å")
        return cls(numbers, positions, cell, centre.astype(np.int64), neighbour.astype(np.int64), shift.astype(np.float64))


def still_serve(before: Sequence[System | None], now: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], cutoff: float) -> np.ndarray:
    """Tell which neighbour lists, made with ``cutoff + SKIN_A``, hold all pairs within ``cutoff`` of structures whose atoms have moved.

    Let F deform the old cell into the new one, and u be the farthest that an atom has moved besides. A pair that is not listed is now
    more than (1 − ‖F − 1‖)(cutoff + SKIN_A) − 2u apart, for no vector shrinks by more than its length times ‖F − 1‖.

    Parameters
    ----------
    before : sequence of (System or None)
        The lists, B of them.
    now : sequence of (numbers, positions, cell)
        The structures as :meth:`System.build` takes them.

    Returns
    -------
    ndarray of bool, shape (B,)
        False also without a list, for other atoms, or where something is not a number.
    """
    serve = np.zeros(len(now), dtype=bool)
    same = [(k, system) for k, system in enumerate(before) if system is not None and np.array_equal(system.numbers, now[k][0])]
    if same:
        places, systems = zip(*same, strict=True)
        _, positions, cells = zip(*[now[k] for k in places], strict=True)
        sizes, old = [len(system.numbers) for system in systems], np.concatenate([system.positions for system in systems])
        strain = np.linalg.solve([system.cell for system in systems], cells) - np.eye(3)
        moved = np.concatenate(positions) - old - np.einsum("nx,nxy->ny", old, np.repeat(strain, sizes, axis=0))
        farthest = np.maximum.reduceat(np.linalg.norm(moved, axis=1), np.cumsum([0, *sizes[:-1]]))
        serve[list(places)] = (1 - np.linalg.norm(strain, axis=(1, 2))) * (cutoff + SKIN_A) - 2 * farthest > cutoff
    return serve
