"""Small operations on crystal structures that several benchmarks need."""

from __future__ import annotations

import ase
import numpy as np
from ase.neighborlist import neighbor_list
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer


def plain(structure: Structure) -> ase.Atoms:
    """Turn a pymatgen structure into ASE atoms that carry nothing else."""
    return ase.Atoms(numbers=structure.atomic_numbers, positions=structure.cart_coords, cell=structure.lattice.matrix, pbc=True)


def from_dict(structure: dict) -> ase.Atoms:
    """Read a pymatgen structure's dictionary; building its objects would take most of the time."""
    sites = structure["sites"]
    return ase.Atoms(
        [site["species"][0]["element"] for site in sites],
        scaled_positions=[site["abc"] for site in sites],
        cell=structure["lattice"]["matrix"],
        pbc=True,
    )


def content(atoms: ase.Atoms) -> bytes:
    """Return a key by which equal structures are recognised."""
    return atoms.numbers.tobytes() + atoms.positions.tobytes() + atoms.cell.array.tobytes()


def symmetrised(atoms: ase.Atoms, guess: ase.Atoms) -> ase.Atoms:
    """Return the conventional cell of a relaxed crystal, free of the relaxation's rounding errors.

    Parameters
    ----------
    atoms, guess : ase.Atoms
        The crystal after and before the relaxation.

    Raises
    ------
    ValueError
        If the relaxation has changed the space group.
    """
    before, after = (SpacegroupAnalyzer(AseAtomsAdaptor.get_structure(a), symprec=0.02) for a in (guess, atoms))
    if before.get_space_group_number() != after.get_space_group_number():
        raise ValueError(f"bulk: went from {before.get_space_group_symbol()} to {after.get_space_group_symbol()} as it relaxed")
    return plain(after.get_conventional_standard_structure())


def neighbours(atoms: ase.Atoms, cutoff: float) -> np.ndarray:
    """Return how many atoms (periodic images included) lie within a cutoff (Å) of each atom, shape (n_atoms,)."""
    return np.bincount(neighbor_list("i", atoms, cutoff), minlength=len(atoms))


def first_shell(crystal: ase.Atoms) -> float:
    """Return the cutoff (Å) that holds the nearest neighbours of a crystal: 1.15 times their distance.

    In a close-packed crystal that takes in the twelve nearest neighbours (the next are at 1.41), in a bcc crystal the eight
    nearest (the next are at 1.155).
    """
    return 1.15 * neighbor_list("d", crystal, 6.0).min()
