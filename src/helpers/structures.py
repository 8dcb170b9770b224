"""The one door through which structures enter, and small operations on crystals that several benchmarks need."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

import ase
import numpy as np
from ase.build import bulk, make_supercell
from ase.constraints import FixAtoms, FixScaled
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import find_mic
from ase.neighborlist import neighbor_list
from pymatgen.core import IStructure, Structure
from pymatgen.core.surface import Slab, SlabGenerator
from pymatgen.electronic_structure.core import Magmom
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

# The Materials Project applies a Hubbard U to these metals in oxides and fluorides (Jain et al., APL Mater. 1, 011002 (2013)).
_U_METALS = frozenset({"Co", "Cr", "Fe", "Mn", "Mo", "Ni", "V", "W"})

# Elements whose crystals are magnetic, and, wider, those with open d and f shells (58 to 70: Ce to Yb).
MAGNETIC = frozenset({"Cr", "Mn", "Fe", "Co", "Ni"})
OPEN_SHELL = MAGNETIC | {"V", "U", "Np", "Pu", *chemical_symbols[58:71]}

# Supercells by structure and number of sites, in lattice vectors of ASE's primitive cell. The fcc and bcc ones are cubic, but for
# those of 64 sites, which keep the shape of the primitive cell.
_CUBIC = {"fcc": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]), "bcc": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])}
SUPERCELLS: dict[str, dict[int, np.ndarray]] = {
    "fcc": {32: 2 * _CUBIC["fcc"], 64: np.diag([4, 4, 4]), 108: 3 * _CUBIC["fcc"], 256: 4 * _CUBIC["fcc"]},
    "hcp": {36: np.diag([3, 3, 2]), 64: np.diag([4, 4, 2]), 96: np.diag([4, 4, 3]), 150: np.diag([5, 5, 3])},
    "bcc": {54: 3 * _CUBIC["bcc"], 64: np.diag([4, 4, 4]), 128: 4 * _CUBIC["bcc"], 250: 5 * _CUBIC["bcc"]},
}

_WANTED = "give ase.Atoms or an ordered pymatgen Structure, one or several in a list"


def enter(atoms: ase.Atoms) -> ase.Atoms:
    """Return a copy for an evaluation: without constraints, which make zeros of forces, and with all that a calculator may read."""
    bare = atoms.copy()
    bare.set_constraint()
    return bare


def many(structures: ase.Atoms | IStructure | Iterable[ase.Atoms | IStructure]) -> list[ase.Atoms]:
    """Return ASE atoms, pymatgen structures, or an iterable of either as a list of ASE atoms.

    ASE atoms are passed on as they are. Of a pymatgen structure magnetic moments (those of its species too), site charges, its
    total charge and properties travel; selective dynamics become constraints, as when ASE reads the same POSCAR.

    Raises
    ------
    TypeError
        If something else is given, or one of several is something else.
    ValueError
        If a pymatgen structure has a site that more than one species share, or that is partly empty.
    """
    if isinstance(structures, (ase.Atoms, IStructure)):
        return [_atoms(structures, "the structure")]
    if isinstance(structures, (str, bytes, PathLike, Mapping)) or not isinstance(structures, Iterable):
        raise TypeError(f"{_shown(structures)} is no structure; {_WANTED} (ase.io.read reads a file)")
    return [_atoms(structure, f"structure {number}") for number, structure in enumerate(structures)]


def _shown(value: object) -> str:
    return f"{type(value).__name__} {textwrap.shorten(repr(value), 60, placeholder=' …')}"


def _atoms(structure: ase.Atoms | IStructure, name: str) -> ase.Atoms:
    if isinstance(structure, ase.Atoms):
        return structure
    if not isinstance(structure, IStructure):
        raise TypeError(f"{name} is {_shown(structure)}; {_WANTED}")
    if not structure.is_ordered:
        raise ValueError(f"{name}, {structure.formula}, is disordered: sites are shared or partly empty; {_WANTED}")
    atoms = plain(structure)
    atoms.pbc = structure.lattice.pbc
    atoms.info = structure.properties | ({} if structure._charge is None else {"charge": structure._charge})
    moments = [site.properties.get("magmom", getattr(site.specie, "spin", None)) for site in structure]
    if any(moment is not None for moment in moments):
        vectors = np.array([Magmom(0 if moment is None else moment).global_moment for moment in moments])
        atoms.set_initial_magnetic_moments(vectors if vectors[:, :2].any() else vectors[:, 2])
    charges = [site.properties.get("charge") or 0.0 for site in structure]
    if any(charges):
        atoms.set_initial_charges(charges)
    moves = [site.properties.get("selective_dynamics") for site in structure]
    fixed = ~np.array([[True] * 3 if one is None else one for one in moves], dtype=bool)
    partly = [FixScaled(k, mask) for k, mask in enumerate(fixed) if mask.any() and not mask.all()]
    atoms.set_constraint([FixAtoms(mask=fixed.all(axis=1)), *partly] if fixed.any() else None)
    return atoms


def handedness(atoms: ase.Atoms) -> float:
    """Return −1 if the cell is left-handed, else 1. The product of cell and sign is right-handed and has the same lattice."""
    return -1.0 if np.linalg.det(atoms.cell.array) < 0 else 1.0


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


def has_u_metal_with_o_or_f(symbols: Iterable[str]) -> bool:
    """Tell whether the Materials Project would have used DFT+U: O or F together with Co, Cr, Fe, Mn, Mo, Ni, V or W."""
    elements = set(symbols)
    return bool(elements & {"O", "F"}) and bool(elements & _U_METALS)


def displacements(before: ase.Atoms, after: ase.Atoms) -> np.ndarray:
    """Return how each atom moves, by the shortest way, shape (n_atoms, 3), Å."""
    return find_mic(after.positions - before.positions, before.cell, pbc=True)[0]


def on_lattice(supercell: ase.Atoms, guess: ase.Atoms, host: ase.Atoms) -> ase.Atoms:
    """Put a supercell, made for one cell of a crystal (``guess``), on another (``host``); fractional positions stay."""
    placed = supercell.copy()
    placed.set_cell(np.round(supercell.cell.array @ np.linalg.inv(guess.cell.array)) @ host.cell.array, scale_atoms=True)
    return placed


def strained(crystal: ase.Atoms, strain: np.ndarray) -> ase.Atoms:
    """Return a strained copy of a crystal, r → (1 + ε) r with the atoms carried along; ε has shape (3, 3)."""
    copy = crystal.copy()
    copy.set_cell(crystal.cell.array @ (np.eye(3) + np.asarray(strain)).T, scale_atoms=True)
    return copy


# Lattice parameters of prototypes, over the distance of nearest neighbours.
_PROTOTYPES = {"rocksalt": 2.0, "zincblende": 4 / 3**0.5, "cesiumchloride": 2 / 3**0.5}


def prototype(pair: Sequence[int] | np.ndarray, lattice: str, rng: np.random.Generator) -> ase.Atoms:
    """Return a crystal of two elements (atomic numbers; twice the same: of one), strained by up to 3 % and rattled by 0.1 Å.

    The lattice is ``rocksalt``, ``zincblende`` or ``cesiumchloride``; covalent radii set the distances.
    """
    length = 1.05 * np.maximum(covalent_radii[list(pair)], 1).sum()  # Å; two small atoms would come too close
    crystal = bulk("NaCl", lattice, a=_PROTOTYPES[lattice] * length, cubic=True)
    crystal.numbers = np.where(crystal.symbols == "Na", *pair)
    crystal = strained(crystal, rng.uniform(-0.03, 0.03, (3, 3)))
    crystal.rattle(0.1, rng=rng)
    return crystal


def spread(elements: Iterable[int], number: int, seed: int) -> list[ase.Atoms]:
    """Return so many crystals (:func:`prototype`) that are spread over elements, each of which comes as often as any other.

    Every fourth is of one element, the others are of two.
    """
    rng, known = np.random.default_rng(seed), sorted(elements)
    rounds = -(-2 * number // len(known))
    order = iter(np.concatenate([rng.permutation(known) for _ in range(rounds)]).tolist())
    pairs = ([next(order)] * 2 if n % 4 == 3 else [next(order), next(order)] for n in range(number))
    return [prototype(pair, list(_PROTOTYPES)[n % 3], rng) for n, pair in enumerate(pairs)]


def neighbours(atoms: ase.Atoms, cutoff: float) -> np.ndarray:
    """Return how many atoms (periodic images included) lie within a cutoff (Å) of each atom, shape (n_atoms,)."""
    return np.bincount(neighbor_list("i", atoms, cutoff), minlength=len(atoms))


def first_shell(crystal: ase.Atoms) -> float:
    """Return the cutoff (Å) that holds the nearest neighbours of a crystal: 1.15 times their distance.

    In a close-packed crystal that takes in the twelve nearest neighbours (the next are at 1.41), in a bcc crystal the eight
    nearest (the next are at 1.155).
    """
    return 1.15 * neighbor_list("d", crystal, 6.0).min()


def area(slab: ase.Atoms) -> float:
    """Return the area of one face of a slab in Å²; the third lattice vector is the one that crosses the vacuum."""
    return float(np.linalg.norm(np.cross(slab.cell[0], slab.cell[1])))


def broken_bonds(slab: ase.Atoms, bulk: ase.Atoms) -> float:
    """Return how many nearest neighbours the slab's atoms lack, against the bulk's average: twice the broken bonds of both faces."""
    cutoff = first_shell(bulk)
    return neighbours(bulk, cutoff).mean() * len(slab) - neighbours(slab, cutoff).sum()


def build_slab(bulk: ase.Atoms, miller: Sequence[int], min_slab_a: float, min_vacuum_a: float) -> ase.Atoms:
    """Cut a stoichiometric slab with two equivalent faces from a bulk crystal.

    Parameters
    ----------
    bulk : ase.Atoms
        Conventional cell, which the Miller index refers to.
    miller : sequence of three int
    min_slab_a, min_vacuum_a : float
        Least thickness of slab and vacuum, Å. A layer counts with the space that belongs to it.

    Returns
    -------
    ase.Atoms
        First two lattice vectors in the surface, third along its normal. Of several cuts, the one that breaks the
        fewest bonds per area.

    Raises
    ------
    ValueError
        If there is no such slab.
    """
    crystal = AseAtomsAdaptor.get_structure(bulk)
    generator = SlabGenerator(
        crystal,
        tuple(miller),
        min_slab_a,
        min_vacuum_a,
        center_slab=True,
        primitive=True,
        lll_reduce=True,
        max_normal_search=1,
    )
    possible = [slab.get_orthogonal_c_slab() for slab in generator.get_slabs()]
    slabs = [
        plain(slab)
        for slab in possible
        if slab.composition.reduced_formula == crystal.composition.reduced_formula and _has_equal_faces(slab)
    ]
    if not slabs:
        raise ValueError(f"no stoichiometric slab with equal faces among the {len(possible)} cuts along ({' '.join(map(str, miller))})")
    return min(slabs, key=lambda slab: round(broken_bonds(slab, bulk) / area(slab), 6))


def _has_equal_faces(slab: Slab) -> bool:
    """Tell whether a symmetry operation turns the slab over."""
    operations = SpacegroupAnalyzer(slab, symprec=0.05).get_symmetry_operations()
    return any(round(operation.rotation_matrix[2][2]) == -1 for operation in operations)


def supercell(host: ase.Atoms, structure: str, n_sites: int) -> ase.Atoms:
    """Return a supercell of a metal.

    Parameters
    ----------
    host : ase.Atoms
        Primitive cell, with lattice vectors as :func:`ase.build.bulk` orients them.
    structure : {"fcc", "hcp", "bcc"}
    n_sites : int
        One of the sizes that are known.

    Raises
    ------
    ValueError
        If there is no such supercell; the message lists those there are.
    """
    known = SUPERCELLS[structure]
    if n_sites not in known:
        raise ValueError(f"no {structure} supercell of {n_sites} sites; there are: {', '.join(map(str, known))}")
    return make_supercell(host, known[n_sites])
