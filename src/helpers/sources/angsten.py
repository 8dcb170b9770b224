"""Vacancies in close-packed metals, their formation energies and migration barriers (PBE).

Angsten et al., New J. Phys. 16, 015018 (2014). There is a table for fcc and one for hcp hosts.

The table of hcp metals has two columns of barriers, and the file does not say which is which. ``e_vacmig_v`` is taken for the hop in the
basal plane and ``e_vacmig`` for that out of it: mlip-arena, from which the file comes, compares the latter with a hop between the
two atoms of the primitive cell. The values agree: in Zn and Cd, whose c axis is long, the hop out of the plane is the easy one.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

import ase
import ase.build
import numpy as np
from ase.data import atomic_numbers, reference_states

from helpers import registry

_FOLDER = "atomind-ai/mlip-arena/benchmarks/vacancy_migration"
TABLES = {"fcc": f"{_FOLDER}/Table-A1-fcc.csv", "hcp": f"{_FOLDER}/Table-A2-hcp.csv"}

# By structure: hops and the column with the barrier.
_HOPS = {"fcc": {"fcc": "e_vacmig"}, "hcp": {"in-plane": "e_vacmig_v", "out-of-plane": "e_vacmig"}}

_GROUND_STATE = {
    **dict.fromkeys(("Ac", "Ag", "Al", "Au", "Ca", "Ce", "Cu", "Ir", "Ni", "Pb", "Pd", "Pt", "Rh", "Sr", "Th"), "fcc"),
    **dict.fromkeys(("Be", "Cd", "Co", "Hf", "La", "Mg", "Os", "Re", "Ru", "Sc", "Tc", "Ti", "Tl", "Y", "Zn", "Zr"), "hcp"),
}
# Of these the tables hold a non-magnetic row as well.
_MAGNETIC_ROW = frozenset({"Co", "Ni"})
_UNUSED = {
    **dict.fromkeys(("Ar", "He", "Kr", "Ne", "Xe"), "noble gas: the formation energy is zero within the digits given"),
    **dict.fromkeys(("Dy", "Er", "Ho", "Pr", "Tb"), "open f shell: which pseudopotential was used is not clear"),
    **dict.fromkeys(
        ("Ba", "Bi", "Cr", "Cs", "Fe", "Ga", "Ge", "In", "K", "Li", "Mn", "Mo", "Na", "Nb", "Pa", "Rb", "Si", "Sn", "Te", "V"),
        "the ground state is neither fcc nor hcp",
    ),
    **dict.fromkeys(("Ta", "W"), "the ground state is bcc, and the close-packed host is mechanically unstable"),
}


@dataclass(frozen=True)
class Vacancy:
    """A vacancy in a metal."""

    element: str
    structure: str
    ground_state: bool  # whether that is the metal's own structure
    # Primitive cell of the volume in DFT. Of an hcp crystal c/a is not published: it is the ideal one or, where the metal is hcp, the
    # measured one, as it is far from ideal in Zn and Cd.
    host: ase.Atoms
    volume_per_atom: float  # Å³
    energy: float  # formation energy, eV
    barriers: dict[str, float | None]  # migration barrier (eV) by hop, ``fcc`` or ``in-plane`` and ``out-of-plane``; None if there is none


def vacancies() -> list[Vacancy]:
    """Return the rows that can be used, in the order of the tables."""
    return [_vacancy(structure, record) for structure in TABLES for record in _read(structure) if not _reason(structure, record)]


def left_out() -> list[tuple[str, str, str]]:
    """Return structure, symbol and reason of the rows that cannot."""
    return [
        (structure, record["symbol"], reason)
        for structure in TABLES
        for record in _read(structure)
        if (reason := _reason(structure, record))
    ]


def _read(structure: str) -> list[dict[str, str]]:
    with registry.fetch(TABLES[structure]).open(newline="") as handle:
        return list(csv.DictReader(handle))


def _reason(structure: str, record: dict[str, str]) -> str:
    """Return why a row cannot be used ('' if it can)."""
    symbol = record["symbol"]
    element = symbol.removesuffix("_mag")
    if element in _GROUND_STATE:
        if element in _MAGNETIC_ROW and element == symbol:
            return "not spin-polarised; the ferromagnetic row is used"
        return "the formation energy is negative: the host is unstable" if float(record["e_vacform"]) <= 0 else ""
    if element not in _UNUSED:
        raise ValueError(f"{TABLES[structure]} has a row {symbol!r} that is not known here; add it to those used or to those left out")
    return _UNUSED[element]


def _vacancy(structure: str, record: dict[str, str]) -> Vacancy:
    element, volume = record["symbol"].removesuffix("_mag"), float(record["volume_per_atom"])
    if structure == "fcc":
        host = ase.build.bulk(element, "fcc", a=(4 * volume) ** (1 / 3))
    else:
        measured = reference_states[atomic_numbers[element]]
        c_over_a = measured["c/a"] if measured["symmetry"] == "hcp" else np.sqrt(8 / 3)
        host = ase.build.bulk(element, "hcp", a=(4 * volume / (np.sqrt(3) * c_over_a)) ** (1 / 3), covera=c_over_a)
    barriers = {hop: float(record[column]) if record[column] else None for hop, column in _HOPS[structure].items()}
    return Vacancy(element, structure, _GROUND_STATE[element] == structure, host, volume, float(record["e_vacform"]), barriers)
