"""Forces away from equilibrium, against DFT single points (Fig. 5 and 6b of the paper).

Reference sets (``SETS``)
-------------------------
``wbm-21``
    21 frames of the paper's own "WBM high energy states", 14 compounds. The like-for-like anchor; eleven compounds have
    one frame, so only the pooled slopes mean anything.
``wbm-full``
    The paper's whole set, about 9,300 frames of 970 compounds, from figshare. Used by default only where the file
    already is on this machine.
``mattersim-tp``
    PBE molecular dynamics of Materials Project compounds at high temperature and pressure, up to five frames each
    (Yang et al., arXiv 2405.04967). The frames reach 1000 GPa: :func:`headline` keeps moderate pressures, :func:`sensitivity`
    shows what that choice does.
``extreme``
    The same for random mixtures of many elements. A stress test, not a sample of materials.
``mptrj-1k``
    1,000 frames of the models' own training data MPtrj. The control: near equilibrium, in distribution.
``single-element-md``
    Si, Li, Mo, Cu, Ni: molecular dynamics, vacancies, slabs and strained cells (Zuo et al., J. Phys. Chem. A 124, 731 (2020);
    Li et al., Phys. Rev. B 98, 094104 (2018)).
``rattled-crystals``
    Crystals that this module builds itself. No DFT value belongs to them (``reference`` is NaN): they only
    serve to check, while the book builds, that the code still gives the committed predictions, and no summary includes them.

The table
---------
One row per force component (``property`` ``force``, columns ``atom`` and ``component``), one ``energy_per_atom`` per frame
and, if the protocol asks, six ``stress`` components. Frames of crystals of ``single-element-md`` below the melting point have a
``virial``, −Σ u·F with u from :func:`displacements`: what a temperature is read from (:func:`by_temperature`). Where there is no atom,
``atom`` is −1. Predictions and DFT values are stored as float32, forces rounded to 1e-4 eV/Å, energies to 1e-6 eV/atom, stresses to
1e-6 eV/Å³, virials to 1e-4 eV: far below any model's error, and a fraction of the size on disk.
Older tables get virials and volumes, without a model, by ``python data/amend_off_equilibrium.py``.

Energies of different sources lie on different scales (pseudopotentials, +U, spin): only differences within one material mean anything.

Loading keeps every frame; filters belong to the analysis. Pass tables through :func:`headline` before fitting.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
import pandas as pd
from ase import units
from ase.build import bulk
from scipy import stats

from helpers import registry, softening, structures
from helpers.benchmarks import COLUMNS, NO_U, Case, Family, Sample, chosen_sets, of, without
from helpers.potentials.base import Potential, Prediction
from helpers.sources import Frame, snap, trajectories

_MATTERSIM = "microsoft/mattersim/data/benchmarks"

SETS: dict[str, tuple[str, ...]] = {
    "wbm-21": ("kirk0830/AtomisticSkills/.agents/skills/ml-mace-finetune/examples/mace-wbm-finetune/valid.xyz",),
    "wbm-full": ("figshare/27307776/WBM_high_energy_states.json",),
    "mattersim-tp": (f"{_MATTERSIM}/mpf-TP.xyz", f"{_MATTERSIM}/mpf-alkali-TP.xyz"),
    "extreme": (f"{_MATTERSIM}/random-TP.xyz",),
    "mptrj-1k": (f"{_MATTERSIM}/mptrj-random-1k.xyz",),
    "single-element-md": snap.SINGLE_ELEMENTS,
    "rattled-crystals": (),
}

LIVE = "rattled-crystals"
KEYS = ("atom", "component")
QUICK = {"wbm-21": Sample(21), "mattersim-tp": Sample(40, whole=True), "single-element-md": Sample(40), "mptrj-1k": Sample(40)}
STAND_IN = Sample(18)

# Largest accepted difference from the committed table: float32 networks on other processors, with room to spare.
TOLERANCES = {"force": 2e-3, "energy_per_atom": 1e-4, "stress": 1e-4, "virial": 0.05}

# Columns of the table beyond the standard ones, the same for every set, with the value they have where a set does not say.
INFO: dict[str, object] = {
    "source_file": "",
    "pressure_gpa": np.nan,
    "volume_a3_per_atom": np.nan,
    "has_u_metal_with_o_or_f": False,
    "group": "",
    "temperature_k": np.nan,
    "split": "",
}

_UNITS = {"force": "eV/Å", "energy_per_atom": "eV/atom", "stress": "eV/Å³", "virial": "eV"}
_DIGITS = {"force": 4, "energy_per_atom": 6, "stress": 6, "virial": 4}
_FORCE, _ENERGY, _STRESS, _VIRIAL = range(4)  # their places there
_COMPONENTS = ("", "x", "y", "z", "xx", "yy", "zz", "yz", "xz", "xy")

# Melting points, K (CRC Handbook of Chemistry and Physics, 97th ed. (2016)).
MELTING_K = {"Si": 1687, "Mo": 2895, "Cu": 1358, "Li": 454, "Ni": 1728}

# The other groups, strained cells and relaxed slabs, hold small or no forces: they are made for energies and stresses.
_THERMAL_GROUPS = ("AIMD-NVT", "Vacancy")

# Crystals of the live set: structure and lattice constant in Å (Wyckoff, Crystal Structures (Interscience, 1963)).
_CRYSTALS = {
    "MgO": ("rocksalt", 4.212),
    "Si": ("diamond", 5.431),
    "Cu": ("fcc", 3.615),
    "CsCl": ("cesiumchloride", 4.123),
    "CaF2": ("fluorite", 5.463),
    "SrTiO3": ("perovskite", 3.905),
}


@dataclass(frozen=True)
class Protocol:
    """Settings of the benchmark."""

    stress: bool = False  # also predict stress; it costs time
    # :func:`headline` keeps frames of ``mattersim-tp`` whose DFT pressure lies strictly between the two, GPa.
    pressure_min_gpa: float = -20.0
    pressure_max_gpa: float = 15.0
    # … and compounds of that set with at least so many such frames. A set most of whose compounds have fewer has neither scales of
    # compounds nor errors corrected with them in :func:`summarise`: they would be tested on the dozens of numbers they are fitted to.
    min_frames: int = 3
    # :func:`summarise` gives a material a slope of its own only if its DFT forces are at least so large (root mean square, eV/Å). The
    # default is the force below which the paper calls a structure relaxed.
    min_rms_force_ev_per_a: float = 0.05
    rattle_a: float = 0.1  # standard deviation of each displacement component in ``rattled-crystals``, Å
    strain: float = 0.03  # those crystals are taken at linear strains −strain, 0 and +strain
    seed: int = 2025  # of their random displacements


# ---- Reference frames -----------------------------------------------------------------------------


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return the reference frames of some sets, by default of all, but of ``wbm-full`` only if its file is on this machine.

    One case per frame, with the structure as ``frame`` and the reference ``energy`` (eV), ``forces`` (eV/Å, shape (n_atoms, 3))
    and ``stress`` (eV/Å³, shape (3, 3), ASE's sign; NaN if not published). ``rattled-crystals`` has no reference.
    ``info`` has the keys of :data:`INFO`.
    """
    protocol = protocol or Protocol()
    if sets is None:
        sets = [name for name in SETS if name != "wbm-full" or registry.available(SETS[name])]
    found: list[Case] = []
    for name in chosen_sets(SETS, sets):
        if name == "rattled-crystals":
            found += _rattled_crystals(protocol)
        else:
            found += [_published(name, frame) for frame in _READERS[name](SETS[name])]
    return found


def single_element(element: str) -> list[Case]:
    """Return the frames of one element of ``single-element-md``, reading no other files; KeyError if there are none."""
    keys = single_element_keys(element)
    if not keys:
        raise KeyError(f"single-element-md has no file of {element!r}")
    return [_published("single-element-md", frame) for frame in snap.frames(keys)]


def single_element_keys(element: str) -> tuple[str, ...]:
    """Return the registry keys of the files of one element."""
    return tuple(key for key in SETS["single-element-md"] if f"/{element}/" in key)


def pressure_gpa(stress: np.ndarray) -> float:
    """Return the pressure −tr(σ)/3 in GPa of a stress (3, 3) in eV/Å³ with ASE's sign: positive under compression."""
    return float(-np.trace(stress) / 3 / units.GPa)


def _published(chosen: str, frame: Frame) -> Case:
    known = {name: value for name, value in frame.info.items() if name in INFO}
    return frame_case(f"{chosen}/{frame.name}", chosen, frame.material, frame.atoms, frame.energy, frame.forces, frame.stress, **known)


def frame_case(name: str, chosen: str, material: str, atoms: ase.Atoms, energy: float, forces, stress, **info: object) -> Case:
    """Return a case after checking the shapes of its reference."""
    forces, stress = np.asarray(forces, dtype=float), np.asarray(stress, dtype=float)
    if forces.shape != (len(atoms), 3) or stress.shape != (3, 3):
        raise ValueError(f"{name}: {len(atoms)} atoms, but forces of shape {forces.shape} and stress of shape {stress.shape}")
    own = {
        "pressure_gpa": pressure_gpa(stress),
        "has_u_metal_with_o_or_f": structures.has_u_metal_with_o_or_f(atoms.get_chemical_symbols()),
        "volume_a3_per_atom": atoms.get_volume() / len(atoms),
    }
    reference = {"energy": float(energy), "forces": forces, "stress": stress}
    return Case(name, chosen, material, {"frame": atoms}, reference, INFO | own | info)


_READERS = {
    "wbm-21": trajectories.wbm_fine_tuning,
    "wbm-full": trajectories.wbm,
    "mattersim-tp": trajectories.mattersim,
    "extreme": trajectories.mattersim,
    "mptrj-1k": trajectories.mptrj,
    "single-element-md": snap.frames,
}


def _crystal(name: str) -> ase.Atoms:
    structure, a = _CRYSTALS[name]
    if structure == "perovskite":
        corners = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
        return ase.Atoms(name, scaled_positions=corners, cell=[a, a, a], pbc=True)
    crystal = bulk(name, structure, a=a, cubic=True)
    return crystal.repeat(2) if len(crystal) == 2 else crystal


def _rattled_crystals(protocol: Protocol) -> list[Case]:
    found = []
    # The legacy generator: NumPy guarantees its numbers for all time, those of the new one may change between versions.
    random = np.random.RandomState(protocol.seed)
    for name in _CRYSTALS:
        for strain in (-protocol.strain, 0.0, protocol.strain):
            atoms = _crystal(name)
            atoms.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
            atoms.positions += random.normal(scale=protocol.rattle_a, size=(len(atoms), 3))
            found.append(Case(f"rattled-crystals/{name}/{strain:+.3f}", "rattled-crystals", name, {"frame": atoms}, info=dict(INFO)))
    return found


# ---- Predictions ----------------------------------------------------------------------------------


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Predict all frames; the table is described at the top of the module, strings are categories.

    A frame that fails has a single row, property ``force``, with NaN and the reason. A model without stress gets one failed ``stress`` row
    per frame, if stress was asked for; a crystal out of order a failed ``virial`` row.
    """
    protocol = protocol or Protocol()
    predictions = potential.evaluate([case.structures["frame"] for case in cases], stress=protocol.stress, progress=progress)
    each = enumerate(zip(cases, predictions, strict=True))
    return tidy(
        potential.key, cases, (part for owner, pair in each for part in (*_answers(owner, *pair, protocol.stress), *virial(owner, *pair)))
    )


# Rows of one property and one case: the case's number, the property, value, reference, atom, component and reason, each an array or the
# same in all of these rows.
_Part = tuple[Any, ...]


def tidy(model: str, cases: Sequence[Case], parts: Iterable[_Part]) -> pd.DataFrame:
    """Return a table of such parts, property by property."""
    # As objects, texts take little space.
    even = [np.broadcast_arrays(*map(np.atleast_1d, part[:-1]), np.array([part[-1]], dtype=object)) for part in parts]
    even.sort(key=lambda part: part[1][0])
    columns = [np.concatenate(column) for column in zip(*even, strict=True)] or [np.empty(0)] * 7
    owner, of_property, atom, component = (columns[at].astype(int) for at in (0, 1, 4, 5))
    reason, numbers = columns[6], np.stack(columns[2:4]).astype(float)
    for number, digits in enumerate(_DIGITS.values()):
        numbers[:, of_property == number] = numbers[:, of_property == number].round(digits)
    table = pd.DataFrame(
        {
            "model": pd.Categorical.from_codes(np.zeros(len(owner), dtype=int), [model]),
            "set": _by_case([case.set for case in cases], owner),
            "material": _by_case([case.material for case in cases], owner),
            "case": _by_case([case.name for case in cases], owner),
            "property": pd.Categorical.from_codes(of_property, list(_UNITS)),
            **dict(zip(("value", "reference"), numbers.astype(np.float32), strict=True)),
            "unit": pd.Categorical.from_codes(of_property, list(_UNITS.values())),
            "status": pd.Categorical.from_codes((reason != "").astype(int), ["ok", "failed"]),
            "reason": pd.Categorical(reason),
        }
    )[COLUMNS]
    for name, default in INFO.items():
        values = [case.info.get(name, default) for case in cases]
        table[name] = _by_case(values, owner) if isinstance(default, str) else _numbers(values, default)[owner]
    return table.assign(atom=atom.astype(np.int32), component=pd.Categorical.from_codes(component, list(_COMPONENTS)))


def _by_case(values: Sequence[str], owner: np.ndarray) -> pd.Categorical:
    """Spread one string per case over the rows that belong to it."""
    codes, categories = pd.factorize(np.asarray(values, dtype=object))
    return pd.Categorical.from_codes(codes[owner], categories)


def _numbers(values: Sequence[object], default: object) -> np.ndarray:
    return np.asarray(values, dtype=bool if isinstance(default, bool) else np.float32)


def _answers(owner: int, case: Case, prediction: Prediction, stress: bool) -> Iterator[_Part]:
    """Yield forces, energy and, if asked for, stress of a frame, or why it has none."""
    n = len(case.structures["frame"])
    known: dict[str, Any] = {"energy": np.nan, "forces": np.full((n, 3), np.nan), "stress": np.full((3, 3), np.nan)} | case.reference
    if not prediction.ok:
        yield owner, _FORCE, np.nan, np.nan, -1, 0, prediction.error
        return
    yield owner, _FORCE, prediction.forces.ravel(), known["forces"].ravel(), np.repeat(np.arange(n), 3), np.tile([1, 2, 3], n), ""
    yield owner, _ENERGY, prediction.energy / n, known["energy"] / n, -1, 0, ""
    if stress and prediction.stress is not None:
        six = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
        yield owner, _STRESS, prediction.stress[six], known["stress"][six], -1, np.arange(4, 10), ""
    elif stress:
        yield owner, _STRESS, np.nan, np.nan, -1, 0, "the model gives no stress"


def virial(owner: int, case: Case, prediction: Prediction) -> Iterator[_Part]:
    """Yield the virial of a frame if it is a crystal of :data:`MELTING_K` below melting."""
    melts = MELTING_K.get(case.material, 0.0)
    if prediction.ok and case.info.get("group") == "AIMD-NVT" and case.info["temperature_k"] < melts:
        try:
            moved = displacements(case.structures["frame"])
        except ValueError as error:
            yield owner, _VIRIAL, np.nan, np.nan, -1, 0, str(error)
        else:
            # Rounded as in the table, so that a virial does not depend on when it was computed.
            both = (-np.sum(moved * np.round(forces, 4)) for forces in (prediction.forces, case.reference["forces"]))
            yield owner, _VIRIAL, *both, -1, 0, ""


def displacements(atoms: ase.Atoms) -> np.ndarray:
    """Return how far the atoms of a cubic element's crystal are from the sites of the ideal crystal, without the drift of the whole.

    A mean position over few frames would take part in their motion and lower a virial, by 1/n_frames or more: hence the sites. The cell is
    a cubic supercell of the element's ground-state structure; periodic images and the origin do not matter. Å, shape (n_atoms, 3).
    ValueError if the number of atoms is not that of a cubic supercell, or the nearest sites of two atoms are one and the same.
    """
    unit, n_atoms = bulk(atoms.get_chemical_symbols()[0], cubic=True), len(atoms)
    sites = unit.repeat(round((n_atoms / len(unit)) ** (1 / 3))).get_scaled_positions()
    if len(sites) != n_atoms:
        raise ValueError(f"{n_atoms} atoms are no cubic supercell of {unit.symbols}")
    positions, found = atoms.get_scaled_positions(wrap=False), []
    for site in sites[: len(unit)]:
        origin = positions[0] - site
        for _ in range(3):  # the first guess of the origin holds one atom's own displacement
            away = positions[:, None] - origin - sites
            away -= np.rint(away)
            nearest = np.linalg.norm(away @ atoms.cell.array, axis=2).argmin(axis=1)
            moved = away[np.arange(n_atoms), nearest]
            origin = origin + moved.mean(axis=0)
        if len(set(nearest)) == n_atoms:
            found.append((moved - moved.mean(axis=0)) @ atoms.cell.array)
    if not found:
        raise ValueError("an atom has left its site")
    return min(found, key=lambda moved: np.square(moved).sum())


# ---- Analysis -------------------------------------------------------------------------------------


def headline(table: pd.DataFrame, protocol: Protocol | None = None) -> pd.DataFrame:
    """Return the rows that the headline numbers are made of.

    * ``rattled-crystals`` is left out: it has no DFT value.
    * ``mattersim-tp``: frames with a DFT pressure between the protocol's limits, and of those the compounds with at least
      ``min_frames``. A scale from fewer frames says little; at hundreds of GPa atoms touch, which is another question than softening.
    * ``single-element-md``: molecular dynamics and vacancies. Strained cells and relaxed slabs hold small or no forces.

    What is kept depends on the reference alone, never on a prediction. Other sets are kept whole.
    """
    protocol = protocol or Protocol()
    with_reference = table[table["set"] != "rattled-crystals"]
    thermal = (with_reference["set"] != "single-element-md") | with_reference["group"].isin(_THERMAL_GROUPS)
    return _moderate(with_reference[thermal], protocol.pressure_min_gpa, protocol.pressure_max_gpa, protocol.min_frames)


def _moderate(table: pd.DataFrame, low: float, high: float, min_frames: int) -> pd.DataFrame:
    """Filter ``mattersim-tp`` by pressure (GPa) and frames per compound; keep all else."""
    pressure = table["pressure_gpa"]
    kept = table[(table["set"] != "mattersim-tp") | ((pressure > low) & (pressure < high))]
    is_tp = kept["set"] == "mattersim-tp"
    frames = kept.loc[is_tp, ["material", "case"]].drop_duplicates()["material"].value_counts()
    return kept[~is_tp | kept["material"].isin(frames.index[frames >= min_frames])]


def sensitivity(table: pd.DataFrame) -> pd.DataFrame:
    """Show what the filter of ``mattersim-tp`` does to its softening scale; ValueError if the table has no rows of this set.

    For each model, upper limit ``pressure_max_gpa`` (15, 30, 50 and ∞) and choice ``with_u_systems`` (whether oxides and
    fluorides of metals that the Materials Project treats with +U are in): ``n_frames``, ``n_materials``, the pooled ``slope``
    and the ``slope_median`` over compounds, both with intervals, and ``share_below_one``.
    """
    protocol = Protocol()
    everything = table[table["set"] == "mattersim-tp"]
    if everything.empty:
        raise ValueError("the table has no rows of the set 'mattersim-tp'")
    found = []
    for with_u in (True, False):
        chosen = everything if with_u else everything[~everything["has_u_metal_with_o_or_f"].astype(bool)]
        for limit in (15.0, 30.0, 50.0, np.inf):
            low = protocol.pressure_min_gpa if np.isfinite(limit) else -np.inf
            kept = _moderate(chosen, low, limit, protocol.min_frames)
            found.append(_statistics(kept, protocol).assign(pressure_max_gpa=limit, with_u_systems=with_u))
    columns = ["model", "pressure_max_gpa", "with_u_systems", "n_frames", "n_materials", "slope", "slope_low", "slope_high"]
    columns += ["slope_median", "slope_median_low", "slope_median_high", "share_below_one"]
    return pd.concat(found, ignore_index=True)[columns].sort_values(columns[:3], ascending=[True, True, False], ignore_index=True)


def by_pressure(table: pd.DataFrame) -> pd.DataFrame:
    """Return the pooled scale of ``mattersim-tp``, unfiltered, in windows of the DFT pressure, up to 50 GPa.

    One row per model and window: ``material`` (the window in words, in ascending order of pressure), ``n_frames``, and the
    columns of :func:`helpers.softening.pooled`; intervals from resampling compounds.
    """
    rows = table[(table["set"] == "mattersim-tp") & (table["property"] == "force") & (table["status"] == "ok")]
    edges_gpa = (-20, 0, 5, 10, 15, 30, 50)
    names = [f"{low:g} to {high:g} GPa" for low, high in itertools.pairwise(edges_gpa)]
    window = pd.cut(rows["pressure_gpa"], edges_gpa, labels=names)
    rows = rows.assign(window=window)[window.notna()]
    found = softening.pooled(rows, by=("model", "window")).rename(columns={"window": "material"})
    frames = rows.groupby(["model", "window"], observed=True)["case"].nunique().rename("n_frames").rename_axis(["model", "material"])
    return found.astype({"material": str}).merge(frames.reset_index().astype({"material": str}), on=["model", "material"])


def crystals(table: pd.DataFrame) -> pd.DataFrame:
    """Return the force rows of ``single-element-md`` that are perfect crystals below the melting point (:data:`MELTING_K`)."""
    rows = table[(table["set"] == "single-element-md") & (table["property"] == "force") & (table["group"] == "AIMD-NVT")]
    # Without rows the melting points would not be numbers.
    return rows[rows["temperature_k"] < rows["material"].astype(str).map(MELTING_K).astype(float)]


def by_temperature(table: pd.DataFrame, block: int = 1) -> pd.DataFrame:
    """Return the scale of ``single-element-md`` at each nominal temperature of the ab-initio molecular dynamics, and the true one.

    Only perfect crystals (group ``AIMD-NVT``) whose source says the temperature are used. The temperatures of the vacancy frames are
    left out: in silicon those said to be at 300 K have larger forces than those said to be at 3374 K. A ``block`` is how many frames, in
    the table's order, count as one in the interval of ``label_k`` and ``virial_ratio``.

    One row per model, ``element``, ``volume`` (Å³ per atom) and nominal ``temperature_k``: ``material`` (``Si 300 K``, ``Li 300 K,
    −10 %``), ``crystal`` (``Si``, ``Li, −10 %``), the columns of :func:`helpers.softening.pooled` with frames resampled, and below
    melting ``label_k``, ``virial_ratio`` (``_low``, ``_high``: Student's t, 95 %) and ``n_frames``, those with a virial.

    Over a canonical sample −⟨Σ u·F⟩ = 3(N−1) kT, whatever the anharmonicity (equipartition: Tolman, Phys. Rev. 11, 261 (1918)). With
    DFT's forces that is ``label_k``, the nominal temperature only if the frames were drawn from the labelled surface. ``virial_ratio`` is
    Σ u·F of the model over that of DFT: a slope with the displacements as instrument, which neither unbiased noise moves, in model or
    DFT, nor shrinking, as a model knows the displacements. It weighs a harmonic crystal's modes by their energy, s by that times ω².
    """
    rows = table[(table["set"] == "single-element-md") & (table["status"] == "ok")]
    rows = rows[(rows["group"] == "AIMD-NVT") & rows["temperature_k"].notna()]
    # Tables without volumes keep all frames of an element together.
    rows = rows.assign(volume=rows["volume_a3_per_atom"].astype(float).round(1).fillna(0.0) if "volume_a3_per_atom" in rows else 0.0)
    by = ["model", "material", "volume", "temperature_k"]
    found = softening.pooled(rows, clusters="case", by=by)
    n_atoms = rows.groupby("case", observed=True)["atom"].max() + 1
    virials = rows[rows["property"] == "virial"]
    kinetic = 3 * units.kB * (virials["case"].astype(str).map(n_atoms).astype(float) - 1)
    records = []
    for key, part in virials.assign(kinetic=kinetic).groupby(by, observed=True):
        record = dict(zip(by, key, strict=True)) | {"n_frames": len(part)}
        for name, top, bottom in (("label_k", "reference", "kinetic"), ("virial_ratio", "value", "reference")):
            record |= dict(zip([name, f"{name}_low", f"{name}_high"], ratio_of_sums(part[top], part[bottom], block), strict=True))
        records.append(record)
    if records:
        found = found.merge(pd.DataFrame(records), on=by, how="left")
    found["element"] = pd.Categorical(found["material"].astype(str), categories=list(MELTING_K), ordered=True)
    volumes = found.groupby("material", observed=True)["volume"]
    change = 100 * (found["volume"] / volumes.transform(lambda volume: np.median(volume.unique())) - 1)
    in_words = change.map(", {:+.0f} %".format).str.replace("-", "−").str.replace("+0", "±0")
    in_words = in_words.where(volumes.transform("nunique") > 1, "")
    found["crystal"] = found["element"].astype(str) + in_words
    found["material"] = found["element"].astype(str) + found["temperature_k"].map(" {:.0f} K".format) + in_words
    return found.sort_values(["model", "element", "volume", "temperature_k"], ignore_index=True)


def ratio_of_sums(top: pd.Series, bottom: pd.Series, block: int) -> tuple[float, float, float]:
    """Return Σtop/Σbottom and its 95 % interval (Cochran, Sampling Techniques (1977), ch. 6), of blocks of neighbouring rows."""
    starts = np.arange(0, len(top), block)
    over, under = (np.add.reduceat(x.to_numpy(dtype=float), starts) for x in (top, bottom))
    ratio, n = over.sum() / under.sum(), len(starts)
    if n < 2:
        return ratio, np.nan, np.nan
    half = stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1) * np.square(over - ratio * under).sum()) / under.sum()
    return ratio, ratio - half, ratio + half


def summarise(table: pd.DataFrame, protocol: Protocol | None = None) -> pd.DataFrame:
    """Return one row per model and set, of the rows that :func:`headline` keeps.

    ``n_frames``, ``n_failed_frames`` and ``n_materials`` (those with forces large enough for a fit of their own); of all components
    together ``n_components``, ``slope``, ``inverse_slope``, ``r2``, ``mae``, ``cmae``, ``rmse`` (eV/Å); of the materials' own fits
    ``slope_mean``, ``slope_median``, ``inverse_slope_median``, ``mae_median``, ``cmae_median``, ``share_below_one`` and the
    quartiles ``slope_q25``, ``slope_q75``: all but ``mae_median`` are NaN for a set most of whose materials have fewer than
    ``min_frames`` frames (``wbm-21``, ``mptrj-1k``). Intervals (``_low``, ``_high``) come from resampling materials; see
    :func:`helpers.softening.pooled` and :func:`helpers.softening.distribution`. A model that failed on a whole set has its
    row, with NaN.

    A slope of predictions on DFT is below one for a calibrated (shrunken) model, too: read ``inverse_slope`` beside it
    (:mod:`helpers.softening`). Many frames of ``mptrj-1k`` are so close to equilibrium that their forces are the errors of DFT: those
    below ``min_rms_force_ev_per_a`` enter the pooled fit only.
    """
    protocol = protocol or Protocol()
    return _statistics(headline(table, protocol), protocol)


def _statistics(rows: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """Count frames and put the pooled fit beside the distribution over materials, for each model and set."""
    by = ["model", "set"]
    forces = rows[rows["property"] == "force"]
    frames = forces[[*by, "case", "status"]].drop_duplicates()
    frames = frames.assign(n_failed_frames=(frames["status"] == "failed").astype(int))
    grouped = frames.groupby(by, observed=True)
    counts = grouped.agg(n_frames=("case", "size"), n_failed_frames=("n_failed_frames", "sum")).reset_index()
    counts[by] = counts[by].astype(str)
    good = forces[forces["status"] == "ok"]
    if good.empty:
        return counts
    together = softening.pooled(good, by=by).rename(columns={"n": "n_components"}).drop(columns=["n_clusters", "n_failed"])
    summary = counts.merge(together, on=by, how="left")
    mean_square = good["reference"].astype(float).pow(2).groupby([good["set"], good["material"]], observed=True).transform("mean")
    strong = good[mean_square >= protocol.min_rms_force_ev_per_a**2]
    if strong.empty:
        return summary
    fits = softening.per_material(strong)
    own = softening.distribution(fits[fits["status"] == "ok"]).drop(columns="n_failed")
    frames_each = fits.groupby("set", observed=True)["n_cases"].median()
    few = own["set"].map(frames_each).astype(float) < protocol.min_frames
    fitted = [name for name in own if name not in (*by, "n_materials") and not name.startswith("mae")]
    own.loc[few, fitted] = np.nan
    return summary.merge(own, on=by, how="left")


# ---- As softness ----------------------------------------------------------------------------------


def usable(cases: Sequence[Case]) -> list[Case]:
    """Return the cases that a sample is drawn from: of sets with DFT values those that :func:`headline` keeps."""
    if not cases or cases[0].set == LIVE:
        return list(cases)
    listed = pd.DataFrame([{"set": case.set, "material": case.material, "case": case.name, **case.info} for case in cases])
    kept = set(headline(listed)["case"])
    return [case for case in cases if case.name in kept]


def _forces(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: without(headline(of(name, "force")(table)), "has_u_metal_with_o_or_f")


FAMILIES = (
    Family("forces-wbm", "forces: WBM-21", "off_equilibrium", "force", _forces("wbm-21"), selection=NO_U),
    Family("forces-tp", "forces: MatterSim-TP", "off_equilibrium", "force", _forces("mattersim-tp"), selection=NO_U),
    Family("forces-md", "forces: dynamics of elements", "off_equilibrium", "force", _forces("single-element-md")),
    Family("forces-cold", "forces: crystals below melting", "off_equilibrium", "force", crystals),
    Family("forces-control", "forces: MPtrj (control)", "off_equilibrium", "force", _forces("mptrj-1k"), selection=NO_U, role="control"),
    Family("live-forces", "forces: rattled crystals", "off_equilibrium", "force", of(LIVE, "force"), role="stand-in"),
)
