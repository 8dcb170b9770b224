"""Curvature from DFT: what phonopy writes, read by its own readers, as displaced supercells with forces and force constants."""

from __future__ import annotations

from pathlib import Path

import ase
import numpy as np
from phonopy import Phonopy
from phonopy.file_IO import parse_FORCE_CONSTANTS, parse_FORCE_SETS
from phonopy.harmonic.force_constants import compact_fc_to_full_fc
from phonopy.interface.calculator import get_calculator_physical_units
from phonopy.interface.phonopy_yaml import PhonopyYaml
from phonopy.interface.vasp import read_vasp

from helpers.training.fine_tune import Label

SETS, CONSTANTS = "FORCE_SETS", "FORCE_CONSTANTS"
_BESIDE = ("phonopy_params.yaml", "phonopy.yaml", "phonopy_disp.yaml", "SPOSCAR")
_STEP_A = 0.01  # displacement per component where a file brings none, Å


def is_one(path: Path) -> bool:
    """Tell by its name whether a file is phonopy's."""
    return path.name in (SETS, CONSTANTS) or (path.name.startswith("phonopy") and path.suffix in (".yaml", ".yml"))


def read(path: Path) -> list[Label]:
    """Return the displaced supercells of FORCE_SETS or of a yaml file of phonopy, or one, harmonic, where there are force constants only.

    FORCE_SETS and FORCE_CONSTANTS tell no crystal: that is read from a yaml file of phonopy, or SPOSCAR, beside them. ValueError if there
    is none, if there are neither forces nor force constants, or if units are others than eV and Å.
    """
    beside = [path.with_name(name) for name in _BESIDE] if path.name in (SETS, CONSTANTS) else [path]
    of_crystal = next((one for one in beside if one.is_file()), None)
    if of_crystal is None:
        raise ValueError(f"{path} tells no crystal; put phonopy's {', '.join(_BESIDE[:-1])} or {_BESIDE[-1]} beside it")
    if of_crystal.name == "SPOSCAR":
        phonons, known = Phonopy(read_vasp(of_crystal), np.eye(3, dtype=int), primitive_matrix=np.eye(3)), PhonopyYaml()
    else:
        known = PhonopyYaml().read(of_crystal)
        if (unit := get_calculator_physical_units(known.calculator).force_constants_unit) != "eV/angstrom^2":
            raise ValueError(f"{of_crystal} is of {known.calculator}, in {unit}; convert it to eV and Å with phonopy-load")
        phonons = Phonopy(known.unitcell, known.supercell_matrix, primitive_matrix=known.primitive_matrix)
    own = path == of_crystal
    dataset = known.dataset if own else parse_FORCE_SETS(path) if path.name == SETS else None
    constants = known.force_constants if own else parse_FORCE_CONSTANTS(path) if path.name == CONSTANTS else None
    if dataset and ("forces" in dataset or all("forces" in one for one in dataset.get("first_atoms", [{}]))):
        phonons.dataset = dataset
        if constants is None:
            phonons.produce_force_constants(fc_calculator=None if "first_atoms" in dataset else "symfc")
            constants = phonons.force_constants
    elif constants is None:
        raise ValueError(f"{path} holds neither forces nor force constants; give {SETS}, {CONSTANTS} or phonopy_params.yaml")
    perfect = phonons.supercell
    crystal, n = ase.Atoms(perfect.symbols, perfect.positions, cell=perfect.cell, pbc=True), len(perfect)
    full = constants if len(constants) == n else compact_fc_to_full_fc(phonons.primitive, constants)
    full = full.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n)
    if phonons.dataset:
        moves, forces = [one.positions - perfect.positions for one in phonons.supercells_with_displacements], phonons.forces
    else:
        moves = [np.random.default_rng(0).normal(0, _STEP_A, (n, 3))]
        forces = [-(full @ moves[0].ravel()).reshape(n, 3)]
    moved = [ase.Atoms(crystal.numbers, crystal.positions + move, cell=crystal.cell, pbc=True) for move in moves]
    return [Label(atoms, None, force, None, crystal, full) for atoms, force in zip(moved, forces, strict=True)]
