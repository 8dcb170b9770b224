"""Neighbour lists: which atoms of a periodic structure see each other, and who finds them (:func:`find`).

Units: Å.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import ase
import numpy as np
import torch
from vesin import NeighborList

# Below this volume per atom (Å³) no crystal exists: even solid hydrogen at 500 GPa keeps 1.2 Å³.
_MIN_VOLUME_PER_ATOM = 0.5

# By how much lists that are to serve while atoms move reach beyond the cutoff, Å.
SKIN_A = 0.5

# Structures whose lists a GPU finds at once: enough small ones to be worth a call, few enough large ones to need little memory.
AT_ONCE = 64

# Atomic numbers, positions (Å, one row for each atom), cell (Å, a lattice vector in each row), and along which of them it is periodic.
Crystal = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | bool]

# Centre, neighbour and shift of each edge, as in :class:`System`.
Edges = tuple[np.ndarray, np.ndarray, np.ndarray]


class StructureError(ValueError):
    """A structure cannot be evaluated; the message says why."""


def check_structure(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, elements: frozenset[int], pbc: np.ndarray | bool = True
) -> None:
    """Refuse a structure that no potential can evaluate: StructureError, with the reason.

    Atomic numbers (shape (n_atoms,)), positions (Å, (n_atoms, 3)), lattice vectors as rows (Å, (3, 3)), the atomic numbers that the
    potential was trained on, and along which lattice vectors it is periodic.
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
    def build(cls, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, cutoff: float, edges: Edges | None = None) -> System:
        """Find all pairs within ``cutoff`` (Å) under periodic boundary conditions, unless they are given.

        StructureError if an atom has no neighbour: graph networks return nonsense there.
        """
        search = NeighborList(cutoff=cutoff, full_list=True, sorted=True)
        centre, neighbour, shift = edges or search.compute(points=positions, box=cell, periodic=True, quantities="ijS")
        lonely = np.flatnonzero(np.bincount(centre, minlength=len(numbers)) == 0)
        if len(lonely):
            raise StructureError(f"atom {lonely[0]} has no neighbour within the model's cutoff of {cutoff:g} Å")
        return cls(numbers, positions, cell, centre.astype(np.int64), neighbour.astype(np.int64), shift.astype(np.float64))


def find(crystals: Iterable[Crystal], elements: frozenset[int], cutoff: float, device: torch.device) -> Iterator[System | StructureError]:
    """Yield each structure with its neighbour list, or the error that says why it cannot be evaluated, in order.

    A GPU finds many lists at once if the extra ``gpu`` is installed. A CPU does not: its batches are too small to gain from that.
    """
    at_once = AT_ONCE if device.type == "cuda" and importlib.util.find_spec("nvalchemiops") else 1
    waiting = iter(crystals)
    while some := list(islice(waiting, at_once)):
        errors = [_or_error(check_structure, *crystal[:3], elements, crystal[3]) for crystal in some]
        good = [crystal for crystal, error in zip(some, errors, strict=True) if error is None]
        edges = iter(edges_at_once(good, cutoff, device) if at_once > 1 and good else [None] * len(good))
        for crystal, error in zip(some, errors, strict=True):
            yield error or _or_error(System.build, *crystal[:3], cutoff, next(edges))


def _or_error(function: Callable[..., Any], *of: object) -> Any:
    try:
        return function(*of)
    except StructureError as error:
        return error


def edges_at_once(crystals: Sequence[Crystal], cutoff: float, device: torch.device) -> list[Edges]:
    """Find the pairs of many structures on a device, in its memory; needs the extra ``gpu``."""
    import warp

    warp.config.quiet = True
    from nvalchemiops.torch.neighbors import NeighborOverflowError, neighbor_list

    sizes = [len(numbers) for numbers, *_ in crystals]
    first = np.cumsum([0, *sizes])
    arrays = {"positions": np.concatenate([one[1] for one in crystals]), "cell": np.stack([one[2] for one in crystals])}
    arrays |= {"batch_idx": np.repeat(np.arange(len(sizes)), sizes).astype(np.int32), "batch_ptr": first.astype(np.int32)}
    given = {name: torch.as_tensor(array, device=device) for name, array in (arrays | {"pbc": np.ones((len(sizes), 3), bool)}).items()}
    # An atom first has room for half as many neighbours again as there are on average in the densest cell.
    densest = max(len(numbers) / abs(np.linalg.det(cell)) for numbers, _, cell, _ in crystals)
    room = int(1.5 * densest * 4 / 3 * np.pi * cutoff**3) + 16
    try:
        found = neighbor_list(**given, cutoff=cutoff, max_neighbors=room, return_neighbor_list=True)
    except NeighborOverflowError as error:
        found = neighbor_list(**given, cutoff=cutoff, max_neighbors=error.num_neighbors, return_neighbor_list=True)
    (centre, neighbour), start, shift = (tensor.cpu().numpy() for tensor in found)
    own = [(k, slice(start[k], start[stop])) for k, stop in pairwise(first)]
    return [(centre[part] - k, neighbour[part] - k, shift[part]) for k, part in own]


def still_serve(before: Sequence[System | None], now: Sequence[Crystal], cutoff: float) -> np.ndarray:
    """Tell which neighbour lists, made with ``cutoff + SKIN_A``, hold all pairs within ``cutoff`` of structures whose atoms have moved.

    Let F deform the old cell into the new one, and u be the farthest that an atom has moved besides. A pair that is not listed is now more
    than (1 − ‖F − 1‖)(cutoff + SKIN_A) − 2u apart, for no vector shrinks by more than its length times ‖F − 1‖.

    Shape (B,), for B lists and the structures as they are now; False also without a list, for other atoms, or where something is no number.
    """
    serve = np.zeros(len(now), dtype=bool)
    same = [(k, system) for k, system in enumerate(before) if system is not None and np.array_equal(system.numbers, now[k][0])]
    if same:
        places, systems = zip(*same, strict=True)
        _, positions, cells, _ = zip(*[now[k] for k in places], strict=True)
        sizes, old = [len(system.numbers) for system in systems], np.concatenate([system.positions for system in systems])
        strain = np.linalg.solve([system.cell for system in systems], cells) - np.eye(3)
        moved = np.concatenate(positions) - old - np.einsum("nx,nxy->ny", old, np.repeat(strain, sizes, axis=0))
        farthest = np.maximum.reduceat(np.linalg.norm(moved, axis=1), np.cumsum([0, *sizes[:-1]]))
        serve[list(places)] = (1 - np.linalg.norm(strain, axis=(1, 2))) * (cutoff + SKIN_A) - 2 * farthest > cutoff
    return serve
