"""Frames (PBE) of elements and bcc alloys behind the potentials SNAP, from two repositories, snap and mlearn.

Molecular dynamics, vacancies, slabs, strained cells and orderings: Li et al., Phys. Rev. B 98, 094104 (2018); Li et al., npj Comput. Mater.
6, 70 (2020); Zuo et al., J. Phys. Chem. A 124, 731 (2020).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
from ase import units

from helpers import registry, structures
from helpers.sources import Frame

MLEARN, SNAP = "materialsvirtuallab/mlearn/data", "materialsvirtuallab/snap"

# Molecular dynamics, vacancies and strained cells of single elements. mlearn before snap: a frame that is in both is taken from mlearn,
# which says at what temperature it was made.
SINGLE_ELEMENTS = (
    *[f"{MLEARN}/{element}/{part}.json" for element in ("Si", "Li", "Mo") for part in ("training", "test")],
    *[f"{MLEARN}/{element}/test.json" for element in ("Cu", "Ni")],
    *[f"{SNAP}/{name}.json" for name in ("Cu/training/AIMD", "Cu/training/Vacancy", "Ni/training/Vacancy")],
)

_GROUPS = ("AIMD-NVT", "Vacancy", "Surface", "Elastic", "SS")  # SS: orderings of an alloy


def frames(keys: Iterable[str], group: str | None = None) -> list[Frame]:
    """Return the frames of some files; those of snap that an earlier file of the same material has too are left out.

    With a ``group``, one of ``_GROUPS``, only those. ``info`` holds ``source_file``, ``split``, ``group``, ``temperature_k`` (NaN if not
    told), ``miller`` (of a slab; None if not told), ``reconstructed`` and ``notes``.
    """
    found: list[Frame] = []
    for key in keys:
        repository, *folders, file = key.removesuffix(".json").split("/")[1:]
        material = file.partition("_")[0] if folders[0] == "NbMoTaW" else folders[-1] if repository == "mlearn" else folders[0]
        split = "test" if file == "test" else "train"
        source = f"{repository}/{material}/{split if repository == 'mlearn' else file}"
        known = [frame for frame in found if frame.material == material]
        for number, record in enumerate(json.loads(registry.fetch(key).read_text())):
            answers = record["outputs"]
            if repository == "mlearn":
                own_group = record["group"]
                stress = _stress(answers["virial_stress"], swapped=_shears_swapped(material, own_group))
            else:
                own_group = next(kind for kind in _GROUPS if kind.removesuffix("-NVT") in file)
                stress = _stress(answers["stress"], swapped=False)
            if group not in (None, own_group):
                continue
            description, notes = record.get("description") or "", record.get("notes") or {}
            temperature = re.search(r"at (\d+) K", description)
            info = {
                "source_file": source,
                "split": split,
                "group": own_group,
                "temperature_k": float(temperature[1]) if temperature else np.nan,
                "miller": _miller(description, notes),
                "reconstructed": "reconstructed" in description,
                "notes": notes,
            }
            atoms, forces = structures.from_dict(record["structure"]), np.array(answers["forces"], dtype=float)
            frame = Frame(f"{source}/{number:03d}", material, atoms, float(answers["energy"]), forces, stress, info)
            if repository == "mlearn" or not any(same(frame, other) for other in known):
                found.append(frame)
    return found


def same(one: Frame, other: Frame) -> bool:
    """Tell whether two frames have one energy and the same forces, to within 0.1 meV and 1 meV/Å."""
    if abs(one.energy - other.energy) > 1e-4:
        return False
    return one.forces.shape == other.forces.shape and np.abs(one.forces - other.forces).max() < 1e-3


def undeformed(strained: Sequence[Frame]) -> Frame:
    """Return, of strained cells, the undeformed crystal: the one of least stress."""
    # Not the one of lowest energy. For Cu and Ni, whose 108-atom cells scatter by 1 meV/atom, that would be a strained cell, for
    # Mo one with displaced atoms, and the surface energies would agree less well with Tran et al. (2016).
    return min(strained, key=lambda frame: np.abs(frame.stress).max())


def _miller(description: str, notes: dict[str, str]) -> tuple[int, ...] | None:
    """Return the Miller index that a frame of snap (Nb, Ta, W) or mlearn names, or None (snap Cu and Ni)."""
    if noted := notes.get("Sur"):
        return tuple(int(digit) for digit in noted)
    named = re.search(r"\((\d)_(\d)_(\d)\)", description)
    return tuple(int(digit) for digit in named.groups()) if named else None


def _stress(six: Sequence[float], *, swapped: bool) -> np.ndarray:
    """Return a stress (3, 3), eV/Å³, ASE's sign, from VASP's xx, yy, zz, xy, yz, zx (swapped: zx, yz) in kbar, of a pressure."""
    xx, yy, zz, xy, yz, zx = six
    if swapped:
        yz, zx = zx, yz
    return -0.1 * units.GPa * np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])


def _shears_swapped(element: str, group: str) -> bool:
    """Tell whether mlearn stores the last two shears of a frame in the order zx, yz."""
    # Not documented. Cu and Ni frames that mlearn shares with snap have them in the other order than there; for Si, Mo and Li
    # only one of the orders agrees with a model's stress (for Si it differs between strained cells and the rest).
    return element != "Li" and (element, group) != ("Si", "Elastic")
