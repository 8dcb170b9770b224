"""Hops of ions in battery materials, with migration barriers from the literature: Devi et al., arXiv 2508.06459."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import ase
import numpy as np

from helpers import registry

_REPOSITORY = "sai-mat-group/predicting-migration-barriers"
PATHS = tuple(f"{_REPOSITORY}/DATA_FILES/MODEL-3-4/RAW/RAW-Em-5-images-{part}.json" for part in ("TRAIN", "TEST"))
SHEET = f"{_REPOSITORY}/TABULATION-GIT-HUB.xlsx"


@dataclass(frozen=True)
class Hop:
    """A hop."""

    # As in the sheet; ``ion`` is the element that hops.
    name: str
    ion: str
    formula: str
    family: str
    functional: str
    barrier: float  # eV
    authors_mace: float  # barrier that the authors computed with MACE, eV; NaN if there is none
    # On the straight line between two sites of the unrelaxed crystal, at 0, ¼, ½, ¾ and 1; the ion is the first atom.
    images: list[ase.Atoms]


def hops() -> list[Hop]:
    """Return all hops; ValueError if the sheet does not have one of them."""
    sheet = {line["sys_name"]: line for line in read_sheet(registry.fetch(SHEET))}
    found = []
    for key in PATHS:
        for entry in json.loads(registry.fetch(key).read_text()):
            name, elements, sites = entry["sys_name"], entry["atoms"]["elements"], np.array(entry["atoms"]["coords"])
            if name not in sheet:
                raise ValueError(f"{key}: hop {name!r} is not in {SHEET}")
            # The first five sites are one and the same ion on its way.
            images = [
                ase.Atoms(elements[4:], scaled_positions=np.vstack([place, sites[5:]]), cell=entry["atoms"]["lattice_mat"], pbc=True)
                for place in sites[:5]
            ]
            line = sheet[name]
            told = line["COMPOSITION"], line["CLASS"], line["XC"], float(entry["target"]), float(line.get("MACE-RELAX", "nan"))
            found.append(Hop(name, elements[0], *told, images))
    return found


_TAG = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_sheet(path: Path) -> list[dict[str, str]]:
    """Read the first sheet of an Excel file, one dictionary per row with the first row's cells as keys; empty cells are left out.

    Formulas, dates and formats are not looked at.
    """
    with zipfile.ZipFile(path) as archive:
        # The registry has checked the file against its hash.
        texts, sheet = (
            ElementTree.fromstring(archive.read(f"xl/{name}.xml"))  # noqa: S314
            for name in ("sharedStrings", "worksheets/sheet1")
        )
    shared = ["".join(part.text or "" for part in text.iter(f"{_TAG}t")) for text in texts]
    lines = []
    for line in sheet.iter(f"{_TAG}row"):
        values = {cell.get("r", "").rstrip("0123456789"): (cell.get("t"), cell.findtext(f"{_TAG}v")) for cell in line}
        lines.append({column: shared[int(text)] if kind == "s" else text for column, (kind, text) in values.items() if text is not None})
    header = lines[0]
    return [{header[column]: value for column, value in cells.items() if column in header} for cells in lines[1:]]
