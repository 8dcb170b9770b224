"""Phonons (Deng et al., npj Comput. Mater. 11, 9 (2025), Fig. 4).

The frequencies of a crystal are the square roots of the curvature of its energy surface, over the masses: E → c E gives ω → √c ω.
All of them come from finite displacements, in a supercell whose atoms are moved one at a time; phonopy turns the
forces into force constants and these into frequencies (Togo, J. Phys. Soc. Jpn. 92, 012001 (2023)). An imaginary frequency
is given as a negative number. The reference sets are

``phonondb``
    229 compounds of PhononDB, those of the paper. Unit cell, supercell, displacements and forces are there, so that a displacement of
    the model has its counterpart in DFT. The functional is **PBEsol**, but the models are trained on PBE, which binds more weakly.
``csf``
    CsF (mp-1784) of the same source: the paper's Fig. 4a, with band structure and density of states.
``phonondb-pbe``
    103 rocksalt, zincblende and wurtzite binaries in PBE, as the models' training data (Póta et al., arXiv:2408.00755). There are
    frequencies on a mesh, no forces.
``prototypes``
    Five simple crystals built here, without reference.

None has the non-analytic term of polar crystals at q → 0 (LO–TO splitting), because no potential has charges for it.

The model relaxes the primitive cell, atoms and lattice, in the symmetry of the reference: a crystal that the model finds unstable would
otherwise turn into another one, for which the displacements do not suffice. Strain and shifts are carried over to the unit
cell of the DFT calculation, and the same supercell is built and the same displacements are imposed as in DFT. The forces of the
perfect supercell are subtracted.

Which q-points? The authors' highest DFT frequencies are those along high-symmetry lines. ``omega_max`` is the highest frequency on a
mesh and on straight lines from Γ through the zone (:func:`sampling`). ``omega_mean`` (real modes only) and ``omega_min`` belong to the
mesh. Between the q-points that are commensurate with the supercell frequencies are interpolated, and a small supercell makes
shallow dips below zero: how many compounds count as stable depends on the sampling.
``omega_gamma`` is the highest frequency at Γ, the one number that in a harmonic crystal does not depend on the supercell.

What the model's own cell adds is told by ``omega_max_static`` and ``omega_mean_static``: the same at the cell and the atomic positions of
the reference. A crystal that PBE makes larger than PBEsol does has softer phonons for that reason alone.

Networks are less smooth than DFT on the scale of the displacements, so that longer ones give other frequencies. All are those of
DFT, 0.01 Å, and where DFT brings none they are equally long.

A ``displacement_slope`` is the softening scale (see :mod:`helpers.softening`) of a single displacement, over the forces on all atoms of the
supercell. The reference cells keep small forces. Their estimate is the median, over the pairs of opposite displacements, of the mean
of the two forces, which is subtracted from all. Symmetry leaves some crystals without such pairs; ``residual_removed`` tells.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.data
import ase.io
import numpy as np
import pandas as pd
from ase.cell import Cell
from phonopy import Phonopy
from phonopy.file_IO import parse_FORCE_SETS_from_strings
from phonopy.interface.vasp import read_vasp_from_strings
from phonopy.phonon.band_structure import get_band_qpoints
from phonopy.structure.atoms import PhonopyAtoms
from phonopy.structure.cells import get_supercell, guess_primitive_matrix
from pymatgen.core import Composition, IStructure
from scipy.linalg import sqrtm
from tqdm.auto import tqdm

from helpers import engine, registry, softening, sources, structures
from helpers.benchmarks import Case, Family, Rows, Sample, beside, chosen_sets, of, row, table
from helpers.potentials.base import Potential
from helpers.potentials.neighbours import check_structure

UNIT = "THz"

_PHONONDB = "WMD-group/phononDB/phonon_db_tarred/"
_CSF = "mp-1784"
_PBE_FREQUENCIES = "MPA2suite/k_SRME/data/kappas_phononDB_PBE_noNAC.json.gz"
_PBE_STRUCTURES = "MPA2suite/k_SRME/data/phononDB-PBE-structures.extxyz"


def _material(key: str) -> str:
    """Return the Materials Project identifier in the name of a PhononDB archive, …-materials-id-NUMBER-…."""
    return "mp-" + key.partition("materials-id-")[2].partition("-")[0]


SETS: dict[str, Sequence[str]] = {
    "phonondb": registry.Listed("phonons", lambda key: key.startswith(_PHONONDB) and _material(key) != _CSF),
    "csf": registry.Listed("phonons", lambda key: key.startswith(_PHONONDB) and _material(key) == _CSF),
    "phonondb-pbe": (_PBE_FREQUENCIES, _PBE_STRUCTURES),
    "prototypes": (),
}
_PBESOL = "PBEsol"
FUNCTIONALS = {"phonondb": _PBESOL, "csf": _PBESOL}
LIVE = "prototypes"
KEYS = ("atom", "displacement", "q", "branch", "frequency_thz")
QUICK = {"phonondb": Sample(6, 1500), "phonondb-pbe": Sample(6)}
STAND_IN = Sample(5)

# How far a recomputed value may lie from the committed one: what the thresholds of the relaxation leave open.
TOLERANCES = {
    "omega_max": 0.05,
    "omega_mean": 0.03,
    "omega_min": 0.1,
    "omega_gamma": 0.05,
    "omega_max_static": 0.05,
    "omega_mean_static": 0.03,
    "volume_per_atom": 0.02,
    "displacement_slope": 0.02,
    "band": 0.1,
    "dos": 0.5,
}

_FREQUENCIES = ("omega_max", "omega_mean", "omega_min", "omega_gamma")
_STATIC = "_static"
_STATIC_FREQUENCIES = ("omega_max", "omega_mean")
_RATIOS = ("omega_max", "omega_mean", "omega_gamma", *(name + _STATIC for name in _STATIC_FREQUENCIES))

# DFT frequencies above this count as real, THz.
_STABLE_THZ = -0.1

# Crystal structure and measured lattice parameter, Å: only where the relaxation starts.
_PROTOTYPES = {
    "MgO": ("rocksalt", 4.21),
    "NaCl": ("rocksalt", 5.64),
    "CsCl": ("cesiumchloride", 4.12),
    "Si": ("diamond", 5.43),
    "Al": ("fcc", 4.05),
}
_PROTOTYPE_REPEATS = 3

_DISPLACED = "displaced "


@dataclass(frozen=True)
class Protocol:
    """Settings of the phonon benchmark."""

    # Largest force at convergence of the relaxation, eV/Å, and largest stress times the volume of the cell, divided by the square root of
    # its number of atoms, eV. With 15 Å³ per atom the stress is then below 0.01 GPa.
    fmax_ev_per_a: float = 1e-3
    # The same for a relaxation that has not converged after ``max_steps``, or makes no progress: below this it is good enough for phonons
    # (the forces of the perfect supercell are subtracted), above it has failed. M3GNet's energy has small steps where bonds cross its
    # cutoff.
    accepted_ev_per_a: float = 1e-2
    max_steps: int = 300  # steps of a relaxation
    relax: bool = True  # Whether the cell is relaxed with the model. Without it, phonons are those at the cell of the reference.
    # A compound with DFT forces whose displaced supercells have at most so many atoms together is computed at the cell of the reference as
    # well. More than there are means all, 0 none.
    static_atoms: int = 3000
    displacement_a: float = 0.01  # length of the displacements in the sets that do not bring their own, Å
    mesh: int = 8  # q-points of the Γ-centred mesh along each reciprocal axis
    line_points: int = 21  # q-points on each line from Γ
    # Names of cases whose bands and density of states go into the table, with the path in the names of ``ase.cell.Cell.bandpath``.
    bands: tuple[tuple[str, str], ...] = ((f"csf/{_CSF}", "GXU,KGLWX"),)
    band_points: int = 201  # q-points on a path
    dos_mesh_a: float = 100.0  # density of the mesh for the density of states, as a length, Å
    dos_step_thz: float = 0.02  # spacing of the density of states, THz


# ---- Reference cases ------------------------------------------------------------------------------


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return the reference cases; the protocol says how long displacements are where a set does not bring its own.

    Structures ``unit_cell`` and ``displaced 1``, ``displaced 2``, …: supercells of it, in phonopy's order of atoms, with one atom
    displaced. Reference ``supercell_matrix`` and ``primitive_matrix``, both shape (3, 3) and in phonopy's convention, and, where there
    are DFT values, ``forces`` (eV/Å, shape (n_displacements, n_atoms, 3)) or ``frequencies`` (THz, shape
    (n_q, n_branches)) with their ``qpoints`` (reduced, shape (n_q, 3)) and ``weights`` (shape (n_q,)).
    """
    makers = {"phonondb": _phonondb, "csf": _phonondb, "phonondb-pbe": _phonondb_pbe, "prototypes": _prototypes}
    return [case for name in chosen_sets(SETS, sets) for case in makers[name](name, protocol or Protocol())]


def own(crystal: ase.Atoms | IStructure, repeats: int | Sequence[int], protocol: Protocol | None = None, name: str = "own") -> Case:
    """Return a case for a crystal of your own, with the fewest displacements that its symmetry allows.

    ``crystal`` is a primitive cell, from which the relaxation starts. Constraints do not count; magnetic moments lower the symmetry and
    travel along. ``repeats`` is the size of the supercell in primitive cells, along each lattice vector: twice the reach of the forces is
    wanted. ``name`` stands before the formula in that of the case. TypeError, ValueError if that is no crystal, or those are no numbers of
    cells.
    """
    counts = np.asarray(repeats)
    if counts.dtype.kind not in "iuf" or counts.shape not in ((), (3,)) or (counts < 1).any() or (counts % 1 != 0).any():
        raise ValueError(f"repeats={repeats!r} are no numbers of cells; give one whole number above zero, or three")
    given = structures.many(crystal)
    if len(given) != 1:
        raise ValueError(f"one crystal is wanted, not {len(given)}")
    (crystal,) = given
    check_structure(crystal.numbers, crystal.positions, crystal.cell.array, frozenset(range(1, 119)), crystal.pbc)
    apart = crystal.get_all_distances(mic=True) + np.diag(np.full(len(crystal), np.inf))
    if apart.min() < 0.1:
        one, other = np.unravel_index(apart.argmin(), apart.shape)
        raise ValueError(f"atoms {one} and {other} lie in one place ({apart.min():.2g} Å apart); remove one of them")
    formula = Composition(crystal.get_chemical_formula()).reduced_formula
    matrix = np.diag(np.broadcast_to(counts, 3))
    return _systematic_case(name, formula, to_phonopy(crystal), matrix, np.eye(3), {}, protocol or Protocol())


def compound(material: str) -> Case:
    """Return one compound of PhononDB, by its Materials Project identifier; KeyError if ``phonondb`` and ``csf`` do not have it."""
    archives = {_material(key): (name, key) for name in ("phonondb", "csf") for key in SETS[name]}
    if material not in archives:
        raise KeyError(f"PhononDB has {len(archives)} compounds here, and {material} is not among them")
    return _archived(*archives[material])


def authors(table: pd.DataFrame) -> pd.DataFrame:
    """Return the highest frequencies that Deng et al. published for MACE-MP-0 and for DFT, as rows of a model of its own.

    The other columns are those of the table's first model.
    """
    rows = table[(table["set"] == "phonondb") & (table["property"] == "omega_max")]
    rows = rows[rows["model"] == rows["model"].iloc[0]] if len(rows) else rows
    numbers = {line["material_id"]: line for line in sources.reference("phonondb_omega_max_authors.csv")}
    value, reference = (
        rows["material"].map({key: float(line[f"omega_max_{name}_thz"]) for key, line in numbers.items()})
        for name in ("mace_mp0", "dft_pbesol")
    )
    return rows.assign(model="mace-mp-0-medium@published", value=value, reference=reference, status="ok", reason="")


def supercell_matrix(conf: str, source: str) -> np.ndarray:
    """Return the supercell matrix that the text of a ``phonopy.conf`` sets with its tag DIM (three or nine whole numbers).

    ValueError if there is no such tag or it has another number of entries; the message names the ``source``.
    """
    found = re.search(r"^\s*DIM\s*=\s*(.*)$", conf, flags=re.MULTILINE)
    entries = [int(entry) for entry in found.group(1).split()] if found else []
    if len(entries) == 3:
        return np.diag(entries)
    if len(entries) == 9:
        return np.array(entries).reshape(3, 3)
    raise ValueError(f"{source}: DIM needs 3 or 9 numbers, not {len(entries)}")


def _phonondb(name: str, _: Protocol) -> list[Case]:
    return [_archived(name, key) for key in SETS[name]]


def _archived(name: str, key: str) -> Case:
    with tarfile.open(registry.fetch(key), "r:xz") as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        streams = {file: archive.extractfile(members[file]) for file in ("POSCAR-unitcell", "FORCE_SETS", "phonopy.conf")}
        texts = {file: stream.read().decode() for file, stream in streams.items() if stream is not None}
    unit_cell = read_vasp_from_strings(texts["POSCAR-unitcell"])
    matrix = supercell_matrix(texts["phonopy.conf"], f"{key}: phonopy.conf")
    dataset = parse_FORCE_SETS_from_strings(texts["FORCE_SETS"])
    perfect = get_supercell(unit_cell, matrix)
    if dataset["natom"] != len(perfect):
        raise ValueError(f"{key}: FORCE_SETS is for {dataset['natom']} atoms, but the supercell of phonopy.conf has {len(perfect)}")
    displacements = [(first["number"], first["displacement"]) for first in dataset["first_atoms"]]
    reference = {"forces": np.array([first["forces"] for first in dataset["first_atoms"]])}
    return _case(name, _material(key), unit_cell, matrix, guess_primitive_matrix(unit_cell), displacements, perfect, reference)


def _phonondb_pbe(name: str, protocol: Protocol) -> list[Case]:
    with gzip.open(registry.fetch(_PBE_FREQUENCIES), "rt") as handle:
        columns = json.load(handle)
    where = {material: number for number, material in columns["mp_id"].items()}
    found = []
    for atoms in ase.io.read(registry.fetch(_PBE_STRUCTURES), ":"):
        material = atoms.info["mp_id"]
        reference = {
            quantity: np.array(columns[quantity][where[material]], dtype=float) for quantity in ("frequencies", "qpoints", "weights")
        }
        matrix = np.array(atoms.info["fc2_supercell"], dtype=int)
        primitive_matrix = np.array(atoms.info.get("primitive_matrix", np.eye(3)), dtype=float)
        found.append(_systematic_case(name, material, to_phonopy(atoms), matrix, primitive_matrix, reference, protocol))
    return found


def _prototypes(name: str, protocol: Protocol) -> list[Case]:
    crystals = [ase.build.bulk(formula, structure, a=a) for formula, (structure, a) in _PROTOTYPES.items()]
    return [own(crystal, _PROTOTYPE_REPEATS, protocol, name) for crystal in crystals]


def _systematic_case(
    name: str,
    material: str,
    unit_cell: PhonopyAtoms,
    matrix: np.ndarray,
    primitive_matrix: np.ndarray,
    reference: dict[str, np.ndarray],
    protocol: Protocol,
) -> Case:
    """Return a case with the fewest displacements that the symmetry allows."""
    # They follow from the symmetry of the unit cell, which the supercells here share and which is found much faster.
    small = dynamics(unit_cell, np.eye(3), primitive_matrix)
    small.generate_displacements(distance=protocol.displacement_a)
    perfect = get_supercell(unit_cell, matrix)
    displacements = [(int(perfect.u2s_map[first["number"]]), first["displacement"]) for first in small.dataset["first_atoms"]]
    return _case(name, material, unit_cell, matrix, primitive_matrix, displacements, perfect, reference)


def _case(
    name: str,
    material: str,
    unit_cell: PhonopyAtoms,
    matrix: np.ndarray,
    primitive_matrix: np.ndarray,
    displacements: Sequence[tuple[int, np.ndarray]],
    perfect: PhonopyAtoms,
    reference: dict[str, np.ndarray],
) -> Case:
    atoms = to_ase(unit_cell)
    supercells = displaced(to_ase(perfect), displacements)
    roles = {"unit_cell": atoms, **{f"{_DISPLACED}{number}": cell for number, cell in enumerate(supercells, 1)}}
    info = {
        "formula": Composition(atoms.get_chemical_formula()).reduced_formula,
        "functional": FUNCTIONALS.get(name, "PBE" if reference else ""),
        "magnetic": not structures.OPEN_SHELL.isdisjoint(atoms.get_chemical_symbols()),
        "n_atoms": len(atoms),
        "n_displacements": len(displacements),
        "supercell_atoms": len(perfect),
    }
    matrices = {"supercell_matrix": matrix, "primitive_matrix": primitive_matrix}
    return Case(f"{name}/{material}", name, material, roles, matrices | reference, info)


def displaced(supercell: ase.Atoms, displacements: Iterable[tuple[int, np.ndarray]]) -> list[ase.Atoms]:
    """Return copies of a supercell with one atom displaced in each; displacements are pairs of an atom's index and a vector, Å."""
    copies = []
    for atom, vector in displacements:
        copy = supercell.copy()
        copy.positions[atom] += vector
        copies.append(copy)
    return copies


def to_ase(cell: PhonopyAtoms) -> ase.Atoms:
    """Return a cell of phonopy as atoms, with its moments."""
    moments = cell.magnetic_moments
    return ase.Atoms(cell.symbols, scaled_positions=cell.scaled_positions, cell=cell.cell, magmoms=moments, pbc=True)


def to_phonopy(atoms: ase.Atoms) -> PhonopyAtoms:
    """Return atoms as a cell of phonopy, with their moments."""
    # Positions are not wrapped: an atom that crosses a face of the cell must keep its place in the supercell.
    scaled, moments = atoms.get_scaled_positions(wrap=False), atoms.get_initial_magnetic_moments()
    moments = moments if moments.any() else None
    return PhonopyAtoms(symbols=atoms.get_chemical_symbols(), scaled_positions=scaled, cell=atoms.cell.array, magnetic_moments=moments)


# ---- Lattice dynamics -----------------------------------------------------------------------------


def dynamics(unit_cell: PhonopyAtoms, matrix: np.ndarray, primitive_matrix: np.ndarray) -> Phonopy:
    """Return phonopy's crystal, with its symmetry and without forces yet; matrices as in :func:`cases`."""
    return Phonopy(unit_cell, supercell_matrix=np.rint(matrix).astype(int), primitive_matrix=primitive_matrix)


def add_forces(crystal: Phonopy, displacements: Sequence[tuple[int, np.ndarray]], forces: np.ndarray) -> None:
    """Give a crystal its force constants, symmetrised under permutation and translation as ``phonopy.load`` does.

    A displacement is the index of an atom in the supercell and a vector (Å); forces have shape (n_displacements, n_atoms, 3), eV/Å.
    """
    crystal.dataset = {
        "natom": len(crystal.supercell),
        "first_atoms": [
            {"number": int(atom), "displacement": vector, "forces": force}
            for (atom, vector), force in zip(displacements, forces, strict=True)
        ],
    }
    crystal.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
    crystal.symmetrize_force_constants(show_drift=False)


def sampling(crystal: Phonopy, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Return the q-points at which a crystal with force constants is sampled, and their weights.

    The irreducible points of a mesh, and points on the 13 straight lines from Γ to ½(h b₁ + k b₂ + l b₃) with h, k, l of −1, 0 and 1, on
    which most maxima of the authors lie. Reduced coordinates of the primitive cell, shape (n_q, 3), Γ among them; multiplicity of the mesh
    points, shape (n_q,), 0 on the lines.
    """
    with warnings.catch_warnings():
        # Where the symmetry exchanges axes of unequal meshes phonopy says that it uses time reversal only.
        warnings.simplefilter("ignore")
        crystal.init_mesh([protocol.mesh] * 3, is_gamma_center=True)
    # Of each pair of opposite directions one.
    ends = [end for end in product((0.0, 0.5, -0.5), repeat=3) if end > (0.0, 0.0, 0.0)]
    lines = np.concatenate(get_band_qpoints([[np.zeros(3), np.array(end)] for end in ends], npoints=protocol.line_points))
    mesh = crystal.mesh
    return np.concatenate([mesh.qpoints, lines]), np.concatenate([mesh.weights, np.zeros(len(lines))])


def frequencies(crystal: Phonopy, qpoints: np.ndarray) -> np.ndarray:
    """Return the frequencies (THz, imaginary ones negative) at reduced q-points, shape (n_q, n_branches)."""
    return crystal.run_qpoints(qpoints).frequencies


def numbers_of(omega: np.ndarray, qpoints: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return what is tabulated of frequencies."""
    mesh, share = omega[weights > 0], weights[weights > 0]
    real = mesh > 0
    gamma = np.abs(qpoints).max(axis=1) < 1e-8
    with np.errstate(invalid="ignore"):  # a crystal may have no real frequency
        mean = (share[:, None] * np.where(real, mesh, 0)).sum() / (share[:, None] * real).sum()
    return {
        "omega_max": float(omega.max()),
        "omega_mean": float(mean),
        "omega_min": float(mesh.min()),
        "omega_gamma": float(omega[gamma].max()),
    }


def without_residual(displacements: Sequence[tuple[int, np.ndarray]], forces: np.ndarray) -> tuple[np.ndarray, bool]:
    """Subtract the forces that a not quite relaxed supercell has without any displacement.

    To first order opposite displacements have opposite effects, so that half of the sum of their forces is what is sought. The second
    order remains on the atoms around the displaced one; the median over all pairs is free of it.

    Arguments are those of :func:`add_forces`. If no two displacements are opposite, forces are returned unchanged, and False.
    """
    pairs = [
        (i, j)
        for i, (atom, vector) in enumerate(displacements)
        for j, (other, opposite) in enumerate(displacements[:i])
        if atom == other and np.abs(np.add(vector, opposite)).max() < 1e-6
    ]
    if not pairs:
        return forces, False
    return forces - np.median([(forces[i] + forces[j]) / 2 for i, j in pairs], axis=0), True


def relax(potential: Potential, crystal: ase.Atoms, protocol: Protocol) -> ase.Atoms:
    """Relax a crystal in its symmetry with the thresholds of the protocol, see :func:`helpers.engine.relax_symmetric`."""
    return engine.relax_symmetric(
        potential, crystal, fmax=protocol.fmax_ev_per_a, accepted=protocol.accepted_ev_per_a, max_steps=protocol.max_steps
    )


def carried_over(crystal: Phonopy, relaxed: ase.Atoms) -> ase.Atoms:
    """Return the unit cell of a crystal after its primitive cell has been relaxed.

    Lattice and atoms, which keep the order of ``crystal.unitcell``, change as those of ``crystal.primitive`` have changed to ``relaxed``.
    No rotation is carried over, so that Cartesian displacements keep their directions in the crystal.
    """
    before = to_ase(crystal.primitive)
    # The deformation r → r F, without its rotation.
    deformation = np.linalg.inv(before.cell.array) @ relaxed.cell.array
    stretch = sqrtm(deformation @ deformation.T)
    shift = relaxed.get_scaled_positions(wrap=False) - before.get_scaled_positions(wrap=False)
    shift = (shift - np.rint(shift)) @ before.cell.array

    primitive, supercell = crystal.primitive, crystal.supercell
    in_primitive = [primitive.p2p_map[primitive.s2p_map[index]] for index in supercell.u2s_map]
    atoms = to_ase(crystal.unitcell)
    atoms.positions = (atoms.positions + shift[in_primitive]) @ stretch
    atoms.cell = atoms.cell.array @ stretch
    return atoms


# ---- Predictions ----------------------------------------------------------------------------------


@dataclass
class Phonons:
    """A crystal's lattice dynamics by the reference and by the model."""

    case: Case
    reference: Phonopy  # at the cell of the case; with force constants if the case has forces
    displacements: list[tuple[int, np.ndarray]] = field(default_factory=list)  # index in the supercell, and displacement, Å
    model: Phonopy | None = None  # at the model's cell, with the model's force constants
    # Of the model, without those of the perfect supercell, eV/Å, shape (n_displacements, n_atoms, 3).
    forces: np.ndarray | None = None
    seconds: float = 0.0  # of computing; those of shared batches are divided by the number of atoms
    error: str | None = None  # why there is no model


def phonons(potential: Potential, cases: Sequence[Case], protocol: Protocol, progress: bool = False) -> list[Phonons]:
    """Compute the lattice dynamics of crystals with a potential; arguments as for :func:`run`.

    Crystals are relaxed one by one; all supercells are evaluated in one call. A potential with a smooth variant is used in that
    (:meth:`~helpers.potentials.Potential.smooth`).
    """
    potential = potential.smooth()
    found = [prepared(case) for case in cases]
    supercells: list[ase.Atoms] = []
    first: list[int] = []
    for item in tqdm(found, disable=not progress, unit="crystal", desc="relaxation"):
        first.append(len(supercells))
        if item.error is not None:
            continue
        start = time.perf_counter()
        try:
            item.model = _model_crystal(potential, item, protocol)
        except ValueError as error:
            item.error = str(error)
        else:
            perfect = to_ase(item.model.supercell)
            supercells += [perfect, *displaced(perfect, item.displacements)]
        item.seconds += time.perf_counter() - start

    start = time.perf_counter()
    predictions = potential.evaluate(supercells, stress=False, progress=progress)
    per_atom = (time.perf_counter() - start) / max(1, sum(len(supercell) for supercell in supercells))
    for item, at in zip(found, first, strict=True):
        if item.error is not None:
            continue
        perfect, *moved = predictions[at : at + 1 + len(item.displacements)]
        start = time.perf_counter()
        item.error = next((prediction.error for prediction in (perfect, *moved) if prediction.error is not None), None)
        if item.error is not None:
            item.model = None
            continue
        item.forces = np.array([prediction.forces for prediction in moved]) - perfect.forces
        add_forces(item.model, item.displacements, item.forces)
        item.seconds += time.perf_counter() - start + per_atom * len(perfect.forces) * (1 + len(moved))
    return found


def prepared(case: Case) -> Phonons:
    """Return the crystal at the cell of the case, with the reference's force constants if there are forces."""
    start = time.perf_counter()
    missing = [name for name in ("supercell_matrix", "primitive_matrix") if name not in case.reference]
    if missing or "unit_cell" not in case.structures:
        raise ValueError(f"{case.name} needs a structure unit_cell, and supercell_matrix and primitive_matrix among its references")
    crystal = dynamics(to_phonopy(case.structures["unit_cell"]), case.reference["supercell_matrix"], case.reference["primitive_matrix"])
    found = Phonons(case, crystal)
    try:
        found.displacements = _displacements(case, to_ase(crystal.supercell))
        if "forces" in case.reference:
            expected = (len(found.displacements), len(crystal.supercell), 3)
            if case.reference["forces"].shape != expected:
                raise ValueError(f"reference forces have the shape {case.reference['forces'].shape}, not {expected}")
            add_forces(crystal, found.displacements, case.reference["forces"])
    except ValueError as error:
        found.error = str(error)
    found.seconds = time.perf_counter() - start
    return found


def _displacements(case: Case, supercell: ase.Atoms) -> list[tuple[int, np.ndarray]]:
    """Return which atom is displaced in each displaced supercell of a case, and by what; ValueError if it is not just one in each."""
    found = []
    for role, atoms in case.structures.items():
        if not role.startswith(_DISPLACED):
            continue
        if not np.array_equal(atoms.numbers, supercell.numbers):
            raise ValueError(f"{role} has not the atoms of the supercell, in phonopy's order")
        scaled = atoms.get_scaled_positions(wrap=False) - supercell.get_scaled_positions(wrap=False)
        vectors = (scaled - np.rint(scaled)) @ supercell.cell.array
        moved = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 1e-5)
        if len(moved) != 1:
            raise ValueError(f"{role} has {len(moved)} displaced atoms, not one")
        found.append((int(moved[0]), vectors[moved[0]]))
    if not found:
        raise ValueError("there are no displaced supercells")
    return found


def _model_crystal(potential: Potential, item: Phonons, protocol: Protocol) -> Phonopy:
    """Return the crystal at the cell at which the model's phonons are computed."""
    given = item.case.reference
    cell = item.case.structures["unit_cell"]
    if protocol.relax:
        relaxed = relax(potential, to_ase(item.reference.primitive), protocol)
        cell = carried_over(item.reference, relaxed)
    crystal = dynamics(to_phonopy(cell), given["supercell_matrix"], given["primitive_matrix"])
    n_before, n_after = (len(each.symmetry.symmetry_operations["rotations"]) for each in (item.reference, crystal))
    # With fewer operations phonopy would fill the force constants from too few displacements, without a word.
    if n_after < n_before:
        raise ValueError(f"lost symmetry as it relaxed: {n_after} of {n_before} operations are left")
    return crystal


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol, progress: bool = False) -> pd.DataFrame:
    """Predict phonon frequencies, and the softening of single displacements.

    Cases of your own have a ``unit_cell``, displaced supercells, the two matrices and, if there are any, DFT forces.

    One row per case each: ``omega_max``, ``omega_mean``, ``omega_min``, ``omega_gamma`` (THz) and ``volume_per_atom`` (Å³).
    For the cases of ``protocol.static_atoms``: ``omega_max_static``, ``omega_mean_static`` (THz).
    One row per displacement with DFT forces: ``displacement_slope``, with columns ``displacement`` (from 1), ``atom``
    (in the supercell), ``element``, ``residual_removed``. For the cases of ``protocol.bands``: ``band`` (THz), with columns
    ``q`` (number on the path), ``branch`` (from 0), ``distance`` (along the path, Å⁻¹) and ``label`` (of a
    high-symmetry point), and ``dos`` (states per THz and primitive cell), with ``frequency_thz``. Columns ``dft_stable``
    (lowest DFT frequency above −0.1 THz; missing without DFT) and ``seconds`` are in all rows.
    """
    bands = dict(protocol.bands)
    small = [case for case in cases if protocol.relax and "forces" in case.reference and _work(case) <= protocol.static_atoms]
    fixed = phonons(potential, small, replace(protocol, relax=False), progress) if small else []
    static = {item.case.name: item for item in fixed}
    rows = []
    for item in phonons(potential, cases, protocol, progress):
        start = time.perf_counter()
        made = _scalar_rows(potential.key, item, protocol)
        if item.case.name in static:
            made += _static_rows(potential.key, static[item.case.name], protocol)
        lowest = next(line["reference"] for line in made if line["property"] == "omega_min")
        if item.forces is not None:
            if "forces" in item.case.reference:
                made += _slope_rows(potential.key, item, item.forces)
            if item.case.name in bands:
                made += _band_rows(potential.key, item, bands[item.case.name], protocol)
                made += _dos_rows(potential.key, item, protocol)
        seconds = round(item.seconds + time.perf_counter() - start, 2)
        stable = bool(lowest > _STABLE_THZ) if np.isfinite(lowest) else None
        rows += [line | {"dft_stable": stable, "seconds": seconds} for line in made]
    return table(rows)


def _work(case: Case) -> int:
    """Return the number of atoms in all displaced supercells of a case."""
    return sum(len(atoms) for role, atoms in case.structures.items() if role.startswith(_DISPLACED))


def _has_forces(item: Phonons) -> bool:
    return item.reference.force_constants is not None


def _scalar_rows(model: str, item: Phonons, protocol: Protocol) -> Rows:
    """Return one row for each of the frequencies and for the volume."""
    case, given = item.case, item.case.reference
    value = reference = dict.fromkeys(_FREQUENCIES, np.nan)
    volume, reference_volume = np.nan, np.nan
    if "frequencies" in given:
        qpoints, weights = given["qpoints"], given["weights"]
        reference = numbers_of(given["frequencies"], qpoints, weights)
    elif _has_forces(item):
        # The model is sampled at the same reduced points, though its cell is another.
        qpoints, weights = sampling(item.reference, protocol)
        reference = numbers_of(frequencies(item.reference, qpoints), qpoints, weights)
    elif item.model is not None:
        qpoints, weights = sampling(item.model, protocol)
    if item.model is not None:
        value = numbers_of(frequencies(item.model, qpoints), qpoints, weights)
        volume = abs(item.model.unitcell.volume) / len(item.model.unitcell)  # phonopy's has the sign of the handedness
    if np.isfinite(reference["omega_max"]):
        reference_volume = abs(item.reference.unitcell.volume) / len(item.reference.unitcell)
    rows = [row(model, case, name, value[name], reference[name], UNIT, error=item.error) for name in _FREQUENCIES]
    return [*rows, row(model, case, "volume_per_atom", volume, reference_volume, "Å³", error=item.error)]


def _static_rows(model: str, item: Phonons, protocol: Protocol) -> Rows:
    """Return the rows of the frequencies at the cell of the reference."""
    rows = _scalar_rows(model, item, protocol)
    return [line | {"property": line["property"] + _STATIC} for line in rows if line["property"] in _STATIC_FREQUENCIES]


def _slope_rows(model: str, item: Phonons, predicted: np.ndarray) -> Rows:
    """Return one row per displacement."""
    reference, removed = without_residual(item.displacements, item.case.reference["forces"])
    symbols = item.reference.supercell.symbols
    rows = []
    for number, ((atom, _), dft, forces) in enumerate(zip(item.displacements, reference, predicted, strict=True), 1):
        told: dict[str, Any] = {"displacement": number, "atom": float(atom), "element": symbols[atom], "residual_removed": removed}
        rows.append(row(model, item.case, "displacement_slope", softening.softening_scale(dft, forces), 1.0, "", **told))
    return rows


def _band_rows(model: str, item: Phonons, path: str, protocol: Protocol) -> Rows:
    """Return one row per q-point of the path and branch; distances are those in the reference's reciprocal cell."""
    band_path = Cell(item.reference.primitive.cell).bandpath(path, npoints=protocol.band_points)
    distance, _, _ = band_path.get_linear_kpoint_axis()
    points = band_path.special_points.items()
    labels = [next((name for name, point in points if np.abs(q - point).max() < 1e-9), "") for q in band_path.kpts]
    value = frequencies(item.model, band_path.kpts)
    reference = frequencies(item.reference, band_path.kpts) if _has_forces(item) else np.full_like(value, np.nan)
    record = partial(row, model, item.case, "band", unit=UNIT)
    return [
        record(
            float(value[at]),
            float(reference[at]),
            q=float(at[0]),
            branch=float(at[1]),
            distance=float(distance[at[0]]),
            label=labels[at[0]],
        )
        for at in np.ndindex(value.shape)
    ]


def _dos_rows(model: str, item: Phonons, protocol: Protocol) -> Rows:
    """Return one row per frequency, from the lowest to the highest of both."""
    crystals = [crystal for crystal in (item.model, item.reference) if crystal is not None and crystal.force_constants is not None]
    for crystal in crystals:
        crystal.run_mesh(protocol.dos_mesh_a)
    step = protocol.dos_step_thz
    # Acoustic modes at Γ are zero but for rounding.
    low = np.floor(min(crystal.mesh.frequencies.min() for crystal in crystals) / step + 1e-3) * step
    high = np.ceil(max(crystal.mesh.frequencies.max() for crystal in crystals) / step) * step
    # phonopy takes frequencies below the end: half a step makes the end the last one.
    done = [crystal.run_total_dos(freq_min=low, freq_max=high + step / 2, freq_pitch=step) for crystal in crystals]
    value = done[0].dos
    reference = done[1].dos if len(done) > 1 else np.full_like(value, np.nan)
    return [
        row(model, item.case, "dos", float(one), float(other), "1/THz", frequency_thz=float(at))
        for at, one, other in zip(done[0].frequency_points, value, reference, strict=True)
    ]


def softest_mode(
    potential: Potential,
    case: Case,
    protocol: Protocol,
    q: Sequence[float] = (0.0, 0.0, 0.0),
    *,
    repeats: Sequence[int] = (2, 2, 2),
    amplitude_a: float = 0.4,
    n_frames: int = 24,
) -> list[ase.Atoms]:
    """Return one period of a crystal's softest vibration at a q-point, for an animation.

    At Γ of the primitive cell, where the three acoustic modes are translations, the lowest of the others is taken. The primitive cell is
    repeated; ``amplitude_a`` is the largest displacement of an atom, Å, far more than the zero-point motion, so that it can be seen. The
    last frame is one step before the first. Frames have ``info["frequency_thz"]``, negative for an unstable mode (which grows instead of
    vibrating). ValueError if the phonons cannot be computed, or the crystal has one atom per primitive cell and q is Γ.
    """
    (found,) = phonons(potential, [case], protocol)
    crystal, at = found.model, np.asarray(q, dtype=float)
    if crystal is None:
        raise ValueError(f"{case.name}: {found.error}")
    at_gamma = np.abs(at - np.rint(at)).max() < 1e-8
    if at_gamma and len(crystal.primitive) == 1:
        raise ValueError(f"{case.name}: one atom per primitive cell has no optical mode at Γ")
    # The three acoustic modes are the ones closest to zero; an unstable optical mode lies below them.
    omega = frequencies(crystal, at[None])[0]
    acoustic = set(np.argsort(np.abs(omega))[:3]) if at_gamma else set()
    branch = next(number for number in range(len(omega)) if number not in acoustic)
    wave = crystal.run_modulations(repeats, [(at, branch, 1.0, 0.0)])
    still = to_ase(wave.supercell)
    field = wave.modulations[0] * amplitude_a / np.linalg.norm(wave.modulations[0], axis=1).max()
    frames = []
    for phase in 2 * np.pi * np.arange(n_frames) / n_frames:
        frame = still.copy()
        frame.positions += (field * np.exp(-1j * phase)).real
        frame.info["frequency_thz"] = float(omega[branch])
        frames.append(frame)
    return frames


# ---- Summary --------------------------------------------------------------------------------------


def ratios(table: pd.DataFrame, quantities: Sequence[str] = _RATIOS) -> pd.DataFrame:
    """Return the rows of some frequencies that have a DFT value, with ``ratio`` model/DFT (missing if the case failed)."""
    chosen = table[table["property"].isin(quantities) & table["reference"].notna()]
    return chosen.assign(ratio=chosen["value"] / chosen["reference"])


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers that the chapter quotes: the ratio of frequencies, model over DFT.

    One row per model, set, property (``omega_max``, ``omega_mean``, ``omega_gamma``, and the first two static) and subset (``all``;
    ``dft_stable``, without imaginary DFT frequencies; ``non_magnetic``, without elements that have open d or f shells): ``n``,
    ``n_failed``, and ``ratio_mean``, ``ratio_median``, ``share_below_one`` with ``_low`` and ``_high``, the 95 % interval from
    resampling compounds (:func:`helpers.softening.distribution`), NaN for one compound. A subset without a compound that has not
    failed has no row.
    """
    rows = ratios(table)
    subsets = {
        "all": np.ones(len(rows), dtype=bool),
        "dft_stable": rows["dft_stable"].eq(True),
        "non_magnetic": ~rows["magnetic"].astype(bool),
    }
    keys = ["model", "set", "property", "subset"]
    fits = pd.concat([rows[members].assign(subset=name) for name, members in subsets.items()]).rename(columns={"ratio": "slope"})
    fits = fits.merge(fits.loc[fits["status"] == "ok", keys].drop_duplicates(), on=keys)
    if fits.empty:
        return pd.DataFrame()
    summary = softening.distribution(fits, by=keys)
    summary = summary.rename(columns=lambda column: column.replace("slope_", "ratio_").replace("n_materials", "n"))
    kept = ["ratio_mean", "ratio_median", "share_below_one"]
    return summary[["model", "set", "property", "subset", "n", "n_failed", *[name + end for name in kept for end in ("", "_low", "_high")]]]


# Of the potentials whose conductivities are published: those whose frequencies are known here.
_CONDUCTING = {
    "CHGNet 0.3.0": "chgnet-0.3.0",
    "M3GNet (MatGL MP-2021.2.8)": "m3gnet-mp-2021.2.8",
    "SevenNet-0 (11 July 2024)": "sevennet-0",
    "MACE-MP-0 medium (2023-12-03)": "mace-mp-0-medium@published",
}


def conductivities(table: pd.DataFrame) -> pd.DataFrame:
    """Set the lattice thermal conductivities that Póta et al. published beside frequencies of the same crystals (``phonondb-pbe``).

    They are of other people's runs of twelve potentials, at 300 K, from force constants of second and third order (arXiv:2408.00755). The
    frequencies are those of the table and, for MACE-MP-0b, those that the authors published.

    One row per potential and crystal: ``model``, a key of the catalogue where there is one, ``material``; ``kappa`` and ``kappa_dft``
    (W/m/K, mean of the diagonal); the ratios to DFT ``kappa_ratio``, ``omega_max`` and ``omega_mean``. NaN: the authors' run found no
    stable crystal, or nobody has the frequency. ValueError if the table has no frequencies of these crystals.
    """
    known = ratios(table[(table["set"] == "phonondb-pbe") & (table["status"] == "ok")], ("omega_max", "omega_mean"))
    if known.empty:
        raise ValueError("the table has no frequencies of phonondb-pbe: softening run phonons --sets phonondb-pbe computes them")
    wide = known.pivot_table(index=["model", "material"], columns="property", values="ratio", observed=True).reset_index()
    top = known[known["property"] == "omega_max"].drop_duplicates("material").set_index("material")["reference"]
    successor = pd.DataFrame(sources.reference("mace_mp0b_medium_omega_max.csv")).set_index("mp_id")["omega_max_thz"].astype(float)
    successor = (successor / top).rename("omega_max").rename_axis("material").reset_index().assign(model="MACE-MP-0b medium")
    found = pd.DataFrame(sources.reference("kappa_pota2024.csv")).rename(columns={"mp_id": "material"})
    numbers = found[["kappa", "kappa_dft"]].apply(pd.to_numeric)
    found = found[["model", "material"]].assign(**numbers, kappa_ratio=numbers["kappa"] / numbers["kappa_dft"])
    found["model"] = found["model"].replace(_CONDUCTING)
    return found.merge(pd.concat([wide, successor]), on=["model", "material"], how="left")


def heat_from_softness(found: pd.DataFrame) -> pd.DataFrame:
    """Return how much of the error of :func:`conductivities` a uniformly soft potential would make, by model.

    If all energies are s times those of DFT, classical atoms move as they would at the temperature T/s, √s times as fast. With κ ∝ 1/T it
    follows that κ is s^1.5 times as large: the ratio of frequencies to the third power, whatever the crystal. ``share`` is
    Σ 3 ln(ω/ω_DFT) / Σ ln(κ/κ_DFT) over crystals, one if that is all; with the 95 % interval from resampling crystals.

    Index ``model``; ``n`` crystals with both conductivities and ``n_failed``; the median ``kappa_ratio``; and for ``max`` and ``mean``
    the median ``soft_*`` (ω ratio to the third power), ``share_*`` with its ends, and ``r_*`` (correlation of the logarithms).
    """
    records = {}
    for model, part in found.groupby("model"):
        good = part[part["kappa_ratio"] > 0]
        record = {"n": len(good), "n_failed": len(part) - len(good), "kappa_ratio": good["kappa_ratio"].median()}
        for name in ("max", "mean"):
            both = good[good[f"omega_{name}"] > 0]
            logarithms = np.log(np.column_stack([both[f"omega_{name}"] ** 3, both["kappa_ratio"]]))
            if len(both) > 2:
                share = softening.bootstrap_over(logarithms, lambda sums: sums[..., 0] / sums[..., 1])
                record |= {f"soft_{name}": np.exp(np.median(logarithms[:, 0])), f"r_{name}": np.corrcoef(logarithms.T)[0, 1]}
                record |= {f"share_{name}": share.estimate, f"share_{name}_low": share.low, f"share_{name}_high": share.high}
        records[model] = record
    return pd.DataFrame.from_dict(records, orient="index").rename_axis("model")


def both_slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`helpers.softening.scalar_summary` of the highest frequencies of ``phonondb`` over compounds (THz), index ``model``."""
    rows = ratios(table, ["omega_max"])
    rows = rows[(rows["set"] == "phonondb") & (rows["status"] == "ok")]
    found = {model: softening.scalar_summary(part["value"], part["reference"]) for model, part in rows.groupby("model")}
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("model")


def one_displacement_corrections(table: pd.DataFrame, quantity: str = "omega_max") -> pd.DataFrame:
    """Correct a compound's frequencies, ``omega_max`` or ``omega_mean``, with one displacement, for every choice of it.

    A displacement in which the model's forces are s times those of DFT asks for c = 1/s, and E → c E turns ω into √c ω.

    One row per displacement: ``model, set, material, displacement, element, dft_stable, c``, ``needed`` = (ω_DFT/ω)², the factor
    that the frequency itself asks for, ``before`` and ``after`` (ω and √c ω, THz), ``reference``, ``error_before`` and
    ``error_after`` (minus the reference), ``status`` and ``reason`` (a slope that is not positive gives no correction).
    """
    keys = ["model", "set", "material"]
    good = table[table["status"] == "ok"]
    top = good[good["property"] == quantity][[*keys, "value", "reference"]].rename(columns={"value": "before"})
    labels = good[good["property"] == "displacement_slope"][[*keys, "displacement", "element", "dft_stable", "value"]]
    both = labels.merge(top, on=keys, validate="many_to_one")
    usable = both["value"] > 0
    c = (1 / both["value"]).where(usable)
    after = np.sqrt(c) * both["before"]
    return both.drop(columns="value").assign(
        c=c,
        needed=(both["reference"] / both["before"]) ** 2,
        after=after,
        error_before=both["before"] - both["reference"],
        error_after=after - both["reference"],
        status=np.where(usable, "ok", "failed"),
        reason=np.where(usable, "", "the slope of the displacement is not positive"),
    )


def effect_of_one_displacement(corrections: pd.DataFrame) -> pd.DataFrame:
    """Return what :func:`one_displacement_corrections` do to each compound of ``phonondb``, over every choice of the displacement.

    One row per model and compound: ``model, material, labels`` (number of choices), the ratios to DFT ``before`` and ``after`` (median
    over the choices), ``mae_before`` and ``mae_after`` (THz; mean over the choices) and ``helps``, the share of choices that make
    the error smaller.
    """
    good = corrections[(corrections["status"] == "ok") & (corrections["set"] == "phonondb")]
    for stage in ("before", "after"):
        good = good.assign(**{stage: good[stage] / good["reference"], f"mae_{stage}": good[f"error_{stage}"].abs()})
    good = good.assign(labels=1, helps=good["mae_after"] < good["mae_before"])
    ways = {"labels": "sum", "before": "median", "after": "median", "mae_before": "mean", "mae_after": "mean", "helps": "mean"}
    return good.groupby(["model", "material"]).agg(ways).reset_index()


def summarise_corrections(effect: pd.DataFrame) -> pd.DataFrame:
    """Return, per model, what one displacement as the label does (:func:`effect_of_one_displacement`), every compound counting alike.

    Index ``model``; ``n`` compounds, ``labels``, medians of the ratios ``before`` and ``after``, means of ``mae_before``, ``mae_after``
    (THz) and ``helps``, and the spread of the ratio over compounds, ``spread_before`` and ``spread_after`` (interquartile range).
    """

    def spread(ratio: pd.Series) -> float:
        return ratio.quantile(0.75) - ratio.quantile(0.25)

    return effect.groupby("model").agg(
        n=("material", "size"),
        labels=("labels", "sum"),
        before=("before", "median"),
        after=("after", "median"),
        mae_before=("mae_before", "mean"),
        mae_after=("mae_after", "mean"),
        helps=("helps", "mean"),
        spread_before=("before", spread),
        spread_after=("after", spread),
    )


def relaxation(table: pd.DataFrame) -> pd.DataFrame:
    """Set the highest frequencies at the model's own cell and at that of the reference side by side, for the compounds that have both.

    Columns ``model, set, material, formula``, the ratios model/DFT ``relaxed`` and ``static``, and ``volume``, the model's volume over that
    of the reference.
    """
    keys = ["model", "set", "material", "formula"]
    good = table[(table["status"] == "ok") & table["reference"].notna()]
    names = {"omega_max": "relaxed", "omega_max_static": "static", "volume_per_atom": "volume"}
    good = good[good["property"].isin(names)].assign(ratio=lambda rows: rows["value"] / rows["reference"])
    wide = good.pivot_table(index=keys, columns="property", values="ratio").rename(columns=names).rename_axis(columns=None)
    return wide.dropna().reset_index()


def functionals(table: pd.DataFrame) -> pd.DataFrame:
    """Set the compounds that are there in PBEsol and in PBE side by side.

    The two sets have other supercells, which decide the interpolated frequencies, so their frequencies are not compared in general. At
    Γ all cells move alike, and the frequency does not depend on the supercell: there PBE over PBEsol is the functional
    (with the lattice parameter that belongs to it), and model/PBEsol = model/PBE × PBE/PBEsol.

    One row per model and compound in both: ``model, material, formula``; at Γ, in THz, ``pbesol``, ``pbe``, and the model in either
    supercell, ``model_gamma`` and ``model_gamma_pbe_supercell`` (equal if all is well); ``pbe_over_pbesol``, ``model_over_pbesol``,
    ``model_over_pbe``; and, each within its own supercell, the ratios of the highest frequencies,
    ``max_over_pbesol`` and ``max_over_pbe``. Empty if there is no such compound.
    """
    good = ratios(table, ("omega_max", "omega_gamma"))
    good = good[good["status"] == "ok"]
    keys = ["model", "material", "formula"]

    def side(names: Sequence[str]) -> pd.DataFrame:
        chosen = good[good["set"].isin(names)]
        gamma = chosen[chosen["property"] == "omega_gamma"][[*keys, "value", "reference", "ratio"]]
        top = chosen[chosen["property"] == "omega_max"][[*keys, "ratio"]]
        return gamma.merge(top, on=keys, suffixes=("_gamma", "_max"), validate="one_to_one")

    both = side(["phonondb", "csf"]).merge(side(["phonondb-pbe"]), on=keys, suffixes=("", "_pbe"), validate="one_to_one")
    names = {"reference": "pbesol", "reference_pbe": "pbe", "value": "model_gamma", "value_pbe": "model_gamma_pbe_supercell"}
    names |= {"ratio_gamma": "model_over_pbesol", "ratio_gamma_pbe": "model_over_pbe"}
    names |= {"ratio_max": "max_over_pbesol", "ratio_max_pbe": "max_over_pbe"}
    both = both.rename(columns=names)
    return both.assign(pbe_over_pbesol=both["pbe"] / both["pbesol"])


# ---- As softness ----------------------------------------------------------------------------------


def _pbesol(table: pd.DataFrame) -> pd.DataFrame:
    found = beside(table[table["set"] == "phonondb"], "omega_max", "omega_max_static")
    pairs = functionals(table)[["model", "material", "pbe_over_pbesol"]].rename(columns={"pbe_over_pbesol": "functional_ratio"})
    found = found.merge(pairs, on=["model", "material"], how="left")
    return found.assign(kept=found["dft_stable"].eq(True) & ~found["magnetic"].astype(bool))


FAMILIES = (
    Family("phonons", "phonons: ω, PBEsol", "phonons", "frequency", _pbesol, "cell of DFT", "stable in DFT, not magnetic", _PBESOL),
    Family("phonons-pbe", "phonons: ω, PBE", "phonons", "frequency", of("phonondb-pbe", "omega_max")),
    Family("live-phonons", "phonons: ω, simple crystals", "phonons", "frequency", of(LIVE, "omega_max"), role="stand-in"),
)
