"""Frames away from equilibrium: states of WBM, trajectories of MatterSim's benchmarks, and MPtrj."""

from __future__ import annotations

import json
from collections.abc import Iterable

import ase
import ase.io
import numpy as np
from ase import units
from ase.formula import Formula

from helpers import registry, structures
from helpers.sources import Frame


def formula(atoms: ase.Atoms) -> str:
    """Return the reduced formula, metals first."""
    return Formula(atoms.get_chemical_formula()).reduce()[0].format("metal")


def wbm_fine_tuning(keys: Iterable[str]) -> list[Frame]:
    """Read frames of WBM in the layout that MACE is fine-tuned with."""
    found = []
    for path in map(registry.fetch, keys):
        for number, atoms in enumerate(ase.io.read(path, ":", format="extxyz")):
            name, stress = formula(atoms), np.reshape(atoms.info["REF_stress"], (3, 3))
            answers = atoms.info["REF_energy"], atoms.arrays["REF_forces"], stress
            found.append(Frame(f"{number:02d}-{name}", name, _bare(atoms), *answers, {"source_file": path.name}))
    return found


def wbm(keys: Iterable[str]) -> list[Frame]:
    """Read material → frame → {structure, vasp_e (eV), vasp_f (eV/Å), vasp_s (kB, positive under compression)}."""
    found = []
    for path in map(registry.fetch, keys):
        for material, states in json.loads(path.read_text()).items():
            for state, record in states.items():
                stress = np.full((3, 3), np.nan)
                if record.get("vasp_s") is not None:
                    stress = -np.asarray(record["vasp_s"], dtype=float) * 0.1 * units.GPa
                answers = record["vasp_e"], np.asarray(record["vasp_f"], dtype=float), stress
                atoms = structures.from_dict(record["structure"])
                found.append(Frame(f"{material}/{state}", material, atoms, *answers, {"source_file": path.name}))
    return found


def mattersim(keys: Iterable[str]) -> list[Frame]:
    """Read trajectories. The frames are shuffled in the file; ``internal_id`` counts them in their original order.

    There is no name of the compound: it is a stretch of neighbouring ids with the same reduced formula (a few trajectories mix a
    primitive cell and its supercell). Polymorphs lie in separate stretches and are numbered.
    """
    found: list[Frame] = []
    stretches: dict[str, int] = {}
    previous = None
    for path in map(registry.fetch, keys):
        for atoms in sorted(ase.io.read(path, ":", format="extxyz"), key=lambda atoms: atoms.info["internal_id"]):
            name = formula(atoms)
            if previous != (path, name):
                stretches[name] = stretches.get(name, 0) + 1
                previous = (path, name)
            material = name if stretches[name] == 1 else f"{name} ({stretches[name]})"
            found.append(Frame(str(atoms.info["internal_id"]), material, _bare(atoms), *_answers(atoms), {"source_file": path.name}))
    return found


def mptrj(keys: Iterable[str]) -> list[Frame]:
    """Read frames of MPtrj; the material is a trajectory."""
    return [
        Frame(x.info["mptrj_snapshot_id"], x.info["mptrj_traj_id"], _bare(x), *_answers(x), {"source_file": path.name})
        for path in map(registry.fetch, keys)
        for x in ase.io.read(path, ":", format="extxyz")
    ]


def _bare(atoms: ase.Atoms) -> ase.Atoms:
    """Return a periodic structure without results, magnetic moments and notes."""
    return ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)


def _answers(atoms: ase.Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    return atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False), atoms.get_stress(voigt=False, apply_constraint=False)
