"""What others have published, as structures with the values that DFT gives for them. Nothing is computed or chosen for a benchmark here."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import Any

import ase
import numpy as np

from helpers import registry


@dataclass(frozen=True)
class Frame:
    """A structure with its energy, forces and stress from DFT."""

    name: str  # unique within its source
    material: str
    atoms: ase.Atoms
    energy: float  # eV
    forces: np.ndarray  # shape (n_atoms, 3), eV/Å
    stress: np.ndarray  # shape (3, 3), eV/Å³, ASE's sign; NaN if it is not published
    info: dict[str, Any] = field(default_factory=dict)  # what else the source says


def reference(name: str) -> list[dict[str, str]]:
    """Return the lines of a table in the folder ``data/reference``, where numbers stand that others published; # begins a comment."""
    with (registry.data_dir() / "reference" / name).open(newline="") as handle:
        return list(csv.DictReader(line for line in handle if not line.startswith("#")))
