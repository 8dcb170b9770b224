"""Stretched and sheared crystals of four elements: stress against DFT at the same geometry.

:mod:`helpers.benchmarks.elasticity` compares moduli, each model at its own minimum. Here model and DFT see the same cells, with their
stresses one by one, so that a single one can serve as the label of a correction. What is compared is the change of the stress from
the undeformed cell of the same source: at that cell a model with another lattice parameter has a stress of its own.

Sets
----
``four-elements``
    Strained cells of Si, Mo (Zuo et al., J. Phys. Chem. A 124, 731 (2020)), Cu and Ni, PBE: the group "Elastic" of the sets with
    forces. Strains reach ±10 %. Lithium's four sheared cells, of a shear that costs it 2 GPa, are left out.
``al-shear``
    Al sheared and stretched by up to 2 %, without DFT: what the book recomputes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import ase
import numpy as np
import pandas as pd
from ase import units
from ase.build import bulk
from pymatgen.analysis.elasticity import Strain

from helpers import softening, structures
from helpers.benchmarks import Case, Family, Sample, chosen_sets, row, table
from helpers.potentials.base import Potential
from helpers.sources import snap

SETS: dict[str, tuple[str, ...]] = {"four-elements": snap.SINGLE_ELEMENTS, "al-shear": ()}
LIVE = "al-shear"
KEYS = ("component",)
QUICK: dict[str, Sample] = {}  # on no card: frames of the four elements that off_equilibrium draws
TOLERANCES = {"stress_change": 0.05}  # GPa

_ELEMENTS = ("Si", "Mo", "Cu", "Ni")
_COMPONENTS = {"xx": (0, 0), "yy": (1, 1), "zz": (2, 2), "yz": (1, 2), "xz": (0, 2), "xy": (0, 1)}
# Below this a cell counts as undeformed, and a strain as absent.
_NO_STRAIN = 1e-4
_LIVE_STRAINS = (-0.02, -0.01, 0.01, 0.02)


@dataclass(frozen=True)
class Protocol:
    """Settings."""

    max_strain: float = 0.11  # of a cell that is a case


def strain_of(cell: np.ndarray, undeformed: np.ndarray) -> np.ndarray:
    """Return the symmetric strain that turns one cell into another, ½ (F + Fᵀ) − 1 with F the deformation, shape (3, 3)."""
    deformation = np.linalg.inv(undeformed) @ cell
    return (deformation + deformation.T) / 2 - np.eye(3)


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per strained cell.

    Structures ``frame`` and ``undeformed``; reference ``stress_change`` (shape (3, 3), eV/Å³); info ``kind`` (``stretch`` or
    ``shear``) and ``strain`` (its largest component, of the tensor).
    """
    makers = {"four-elements": _four_elements, "al-shear": lambda _: _aluminium()}
    return [case for name in chosen_sets(SETS, sets) for case in makers[name](protocol or Protocol())]


def _four_elements(protocol: Protocol) -> list[Case]:
    frames = snap.frames(snap.SINGLE_ELEMENTS, "Elastic")
    found = []
    for element in _ELEMENTS:
        own = [frame for frame in frames if frame.material == element]
        for size in dict.fromkeys(len(frame.atoms) for frame in own):
            same = [frame for frame in own if len(frame.atoms) == size]
            rest = snap.undeformed(same)
            for frame in same:
                name = f"single-element-md/{frame.name}"
                made = _case("four-elements", element, name, frame.atoms, rest.atoms, frame.stress - rest.stress)
                if _NO_STRAIN < abs(made.info["strain"]) <= protocol.max_strain:
                    found.append(made)
    return found


def _aluminium() -> list[Case]:
    rest = bulk("Al", cubic=True, a=4.05)
    found = []
    for axis, name in ((0, "xx"), (5, "xy")):
        for amount in _LIVE_STRAINS:
            voigt = np.zeros(6)
            voigt[axis] = amount
            frame = structures.strained(rest, Strain.from_voigt(voigt))
            found.append(_case("al-shear", "Al", f"al-shear/{name}/{amount:+.2f}", frame, rest, None))
    return found


def _case(name: str, element: str, case: str, frame: ase.Atoms, rest: ase.Atoms, change: np.ndarray | None) -> Case:
    strain = strain_of(frame.cell.array, rest.cell.array)
    place = np.unravel_index(np.argmax(np.abs(strain)), strain.shape)
    info = {"kind": "stretch" if place[0] == place[1] else "shear", "strain": float(strain[place]), "n_atoms": len(frame)}
    reference = {} if change is None else {"stress_change": change}
    return Case(case, name, element, {"frame": frame, "undeformed": rest}, reference, info)


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Predict the change of the stress from the undeformed cell; one row per case and component that DFT or symmetry lets change.

    The property is ``stress_change`` (GPa), columns are ``component`` (xx to xy), ``kind`` and ``strain``. Rows are the normal
    components of stretched cells, and the shear component that belongs to the strain of sheared ones.
    """
    distinct = {structures.content(case.structures["undeformed"]): case.structures["undeformed"] for case in cases}
    frames = [case.structures["frame"] for case in cases]
    predictions = potential.evaluate([*distinct.values(), *frames], stress=True, progress=progress)
    at_rest = dict(zip(distinct, predictions, strict=False))
    rows = []
    for case, after in zip(cases, predictions[len(distinct) :], strict=True):
        rest = case.structures["undeformed"]
        before = at_rest[structures.content(rest)]
        error, change = after.error or (before.error and f"undeformed cell: {before.error}"), np.full((3, 3), np.nan)
        if error is None:
            if after.stress is None or before.stress is None:
                error = "the potential has no stress"
            else:
                change = (after.stress - before.stress) / units.GPa
        wanted = case.reference.get("stress_change", np.full((3, 3), np.nan)) / units.GPa
        strain = strain_of(case.structures["frame"].cell.array, rest.cell.array)
        for name, place in _COMPONENTS.items():
            shear = place[0] != place[1]
            if shear != (case.info["kind"] == "shear") or (shear and abs(strain[place]) < _NO_STRAIN):
                continue
            values = float(change[place]), float(wanted[place])
            rows.append(row(potential.key, case, "stress_change", *values, "GPa", error=error, component=name))
    return table(rows)


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with DFT values, with ``material`` naming element and kind (``Si, shear``): what corrections are grouped by."""
    rows = table[table["reference"].notna()]
    return rows.assign(element=rows["material"], material=rows["material"] + ", " + rows["kind"])


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`helpers.softening.scalar_summaries` per model, element and kind of strain (GPa, intervals from resampling cells)."""
    return softening.scalar_summaries(table[table["reference"].notna()], ("model", "set", "material", "kind"), "case")


def from_one_cell(table: pd.DataFrame) -> pd.DataFrame:
    """Correct all strained cells of an element and kind (``material``) with one of them (``label``), for every choice of it."""
    return softening.one_label_corrections(labelled(table), quantity="stress_change")


def from_shear_to_stretch(table: pd.DataFrame) -> pd.DataFrame:
    """Apply the factor of one cell to the cells of the other kind, for every choice of it.

    One row per model, element and label: ``model, element, from_kind, c``, and the mean absolute errors of the other kind's stress,
    ``mae_before`` and ``mae_after`` (GPa).
    """
    other = {"shear": "stretch", "stretch": "shear"}
    labels = from_one_cell(table)
    element, kind = (labels["material"].str.split(", ").str[part] for part in (0, 1))
    found = softening.transferred(labelled(table), labels.assign(material=element + ", " + kind.map(other)))
    element, kind = (found["material"].str.split(", ").str[part] for part in (0, 1))
    return found.assign(element=element, from_kind=kind.map(other))[["model", "element", "from_kind", "c", "mae_before", "mae_after"]]


# ---- As softness ----------------------------------------------------------------------------------


def _strained(*kinds: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table[(table["set"] == "four-elements") & table["kind"].isin(kinds)]


FAMILIES = (
    Family("stress-stretch", "stress: stretched cells", "strained_cells", "stress", _strained("stretch", "volume")),
    Family("stress-shear", "stress: sheared cells", "strained_cells", "stress", _strained("shear")),
)
