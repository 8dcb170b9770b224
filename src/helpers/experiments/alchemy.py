"""Alchemical rocksalt: Ca_xMg_{1−x}O as one mixed crystal (:mod:`helpers.training.alchemy`), beside supercells with real atoms.

Sets
----
``rocksalt``
    The mixed crystal of two sites at nine compositions. No file is needed: what the book recomputes.
``explicit``
    Orderings of 64 atoms. Of many random ones those are taken whose pairs are closest to those of the random alloy in the first two
    shells of cations, in the spirit of special quasirandom structures (Zunger et al., Phys. Rev. Lett. 65, 353 (1990)).
``one-label``
    A frame of hot CaO or MgO with its DFT forces (PBE, MatterSim-TP; neither is rocksalt) as the one label of a correction: a factor,
    and all weights. What is asked: lattice parameter and bulk modulus of the end members against PBE (de Jong et al., Sci. Data 2,
    150009 (2015)), mixing energies at x = ½, and the forces of the other frames.

Properties
----------
``lattice_parameter`` (Å, of the cube), ``bulk_modulus`` (GPa, along isotropic strain) and ``mixing_energy`` (eV per formula unit of two
cations, against the model's own end members) are those of the mixed crystal, or of the relaxed supercell; ``_ideal`` marks the supercell on
ideal sites, its size alone optimised. ``energy_slope`` is dE/dx at fixed lattice, eV per cation, by automatic differentiation, and
``energy_slope_differences`` the same by finite differences; ``lattice_slope`` is da/dx, Å. ``label_slope`` is the softening scale on the
label, ``factor`` what the correction multiplies by, ``force_mae`` (eV/Å) the error on the other frames.

Columns beyond the standard ones: ``x`` (fraction of Ca), ``stage`` (``before``; with one label ``scalar``, ``tuned``), ``held_out`` (what
was evaluated), ``ordering``. What does not depend on the label (stage ``before``) is there for the first one only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
import pandas as pd
from ase.build import bulk
from ase.neighborlist import neighbor_list

from helpers import engine, softening
from helpers.benchmarks import Case, Rows, chosen_sets, elasticity, off_equilibrium, row, table
from helpers.benchmarks.solid_solutions import mixing_energy
from helpers.potentials.base import Potential, StructureError
from helpers.training import alchemy, fine_tune, trial
from helpers.training.fine_tune import Recipe

SETS: dict[str, tuple[str, ...]] = {
    "rocksalt": (),
    "explicit": (),
    "one-label": (*off_equilibrium.SETS["mattersim-tp"], *elasticity.SETS["binaries"]),
}
LIVE = "rocksalt"
KEYS = ("stage", "held_out")
MODELS = {"chgnet-0.3.0": tuple(SETS)}

# Rounding of single precision; slopes and moduli are differences of stresses that are small themselves.
TOLERANCES = {
    "lattice_parameter": 2e-3,
    "bulk_modulus": 1.0,
    "mixing_energy": 2e-3,
    "energy_slope": 5e-3,
    "energy_slope_differences": 2e-2,
    "lattice_slope": 5e-2,
}

# An ordering of 64 atoms is evaluated some hundred times.
ATOMS_PER_SHARD = 64

_COMPOUNDS = {"MgO": "mp-1265", "CaO": "mp-2605"}
_GUESS_A = {"MgO": 4.21, "CaO": 4.81}  # Å, measured; only where searches start
_UNITS = {
    "lattice_parameter": "Å",
    "lattice_parameter_ideal": "Å",
    "bulk_modulus": "GPa",
    "mixing_energy": "eV/f.u.",
    "mixing_energy_ideal": "eV/f.u.",
    "energy_slope": "eV",
    "energy_slope_differences": "eV",
    "lattice_slope": "Å",
    "label_slope": "",
    "factor": "",
    "force_mae": "eV/Å",
}


@dataclass(frozen=True)
class Protocol:
    """Settings."""

    intervals: int = 8  # compositions of ``rocksalt`` are multiples of one over this
    difference: float = 0.02  # step in x of the finite differences
    x_explicit: tuple[float, ...] = (0.25, 0.5, 0.75)  # compositions of ``explicit``: multiples of 1/32
    seeds: tuple[int, ...] = (0,)  # one ordering each
    draws: int = 500  # random orderings of which the best is taken
    labels: int = 3  # labels of each compound in ``one-label``, the first of them
    fmax_ev_per_a: float = 0.05  # largest force at convergence of a relaxation, eV/Å
    max_steps: int = 300  # FIRE steps after which a relaxation counts as failed
    # Of the fine-tuning with one label.
    epochs: int = 100
    learning_rate: float = 1e-3


# ---- Cases ----------------------------------------------------------------------------------------


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per composition, ordering or label."""
    makers = {"rocksalt": _rocksalt, "explicit": _explicit, "one-label": _one_label}
    return [case for name in chosen_sets(SETS, sets) for case in makers[name](protocol or Protocol())]


def _start(x: float) -> float:
    return (1 - x) * _GUESS_A["MgO"] + x * _GUESS_A["CaO"]


def _rocksalt(protocol: Protocol) -> list[Case]:
    found = []
    for number in range(protocol.intervals + 1):
        x = number / protocol.intervals
        crystal = bulk("MgO", "rocksalt", a=_start(x))
        found.append(Case(f"rocksalt/{x:.4f}", "rocksalt", "Ca-Mg-O", {"crystal": crystal}, {}, {"x": x, "ordering": ""}))
    return found


def shells(sites: ase.Atoms, a: float) -> list[np.ndarray]:
    """Return the pairs of the first two shells of an fcc lattice (a in Å, at least two cubes along each axis), int, shape (n_pairs, 2)."""
    first, second, length = neighbor_list("ijd", sites, 1.1 * a)
    near = length < 0.85 * a  # neighbours at 0.707 a and at a
    return [np.column_stack([first[chosen], second[chosen]]) for chosen in (near, ~near)]


def short_range_order(pairs: Sequence[np.ndarray], second: np.ndarray) -> np.ndarray:
    """Return the Warren–Cowley parameter of each of the :func:`shells`; zero in the random alloy (Cowley, Phys. Rev. 77, 669 (1950)).

    α = 1 − P(AB) / [2 x(1 − x)], with P(AB) the share of unlike pairs in a shell. ``second``, shape (n_sites,), tells which sites hold the
    second species; neither all nor none.
    """
    x = second.mean()
    return np.array([1 - (second[shell[:, 0]] != second[shell[:, 1]]).mean() / (2 * x * (1 - x)) for shell in pairs])


def _explicit(protocol: Protocol) -> list[Case]:
    found = []
    for x in protocol.x_explicit:
        for seed in protocol.seeds:
            rng = np.random.default_rng(seed)
            a = _start(x)
            alloy = bulk("MgO", "rocksalt", a=a, cubic=True) * 2
            places = np.flatnonzero(alloy.symbols == "Mg")
            pairs = shells(alloy[places], a)
            n_second = round(x * len(places))
            drawn = [rng.permutation(len(places)) < n_second for _ in range(protocol.draws)]
            best = min(drawn, key=lambda second: float(np.square(short_range_order(pairs, second)).sum()))
            alloy.symbols[places[best]] = "Ca"
            info = {"x": n_second / len(places), "ordering": f"{seed}"}
            found.append(Case(f"explicit/{x:.4f}/{seed}", "explicit", "Ca-Mg-O", {"alloy": alloy}, {}, info))
    return found


def _one_label(protocol: Protocol) -> list[Case]:
    frames = [case for case in off_equilibrium.cases(sets=["mattersim-tp"]) if case.material in _COMPOUNDS]
    reference = {}
    for formula, material in _COMPOUNDS.items():
        dft = elasticity.compound(material)
        reference[f"bulk_modulus/{formula}"] = dft.reference["bulk_modulus"]
        reference[f"lattice_parameter/{formula}"] = (8 * dft.reference["volume_per_atom"]) ** (1 / 3)
    found = []
    used: Counter[str] = Counter()
    for number, frame in enumerate(frames):
        used[frame.material] += 1
        if used[frame.material] > protocol.labels:
            continue
        structures, values = {}, dict(reference)
        for other, case in enumerate(frames):
            role = "label/0" if other == number else f"other/{other}"
            structures[role] = case.structures["frame"]
            values |= {f"{quantity}/{role}": case.reference[quantity] for quantity in ("energy", "forces", "stress")}
        name = frame.name.split("/")[-1]
        info = {"x": np.nan, "ordering": "", "first": number == 0}
        found.append(Case(f"one-label/{name}", "one-label", frame.material, structures, values, info))
    return found


# ---- Predictions ----------------------------------------------------------------------------------


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Predict the properties of the module's text; one row per case, property and stage. PotentialError if elements cannot be mixed."""
    protocol = protocol or Protocol()
    makers = {"rocksalt": _run_rocksalt, "explicit": _run_explicit, "one-label": _run_one_label}
    rows: Rows = []
    ends: dict[str, alchemy.Equilibrium] = {}
    for case in cases:
        if not ends and case.set != "one-label":
            ends = _ends(potential)
        rows += makers[case.set](potential, case, protocol, ends)
    made = table(rows)
    return made.drop(columns="first", errors="ignore").fillna({"held_out": ""})


def _ends(potential: Potential) -> dict[str, alchemy.Equilibrium]:
    return {formula: alchemy.equilibrium(potential, bulk(formula, "rocksalt", a=a)) for formula, a in _GUESS_A.items()}


def _row(potential: Potential, case: Case, name: str, value: float, *, reference: float = np.nan, **extra: Any) -> dict[str, Any]:
    columns = {"stage": "before", "held_out": ""} | extra
    return row(potential.key, case, name, float(value), float(reference), _UNITS[name], **columns)


def _mixed_energy(energy_per_cation: float, x: float, ends: dict[str, alchemy.Equilibrium]) -> float:
    """Return the mixing energy per formula unit of two cations."""
    return mixing_energy(2 * energy_per_cation, 1, x, 2 * ends["MgO"].energy, 2 * ends["CaO"].energy)


def _run_rocksalt(potential: Potential, case: Case, protocol: Protocol, ends: dict[str, alchemy.Equilibrium]) -> Rows:
    x = case.info["x"]
    mixed = alchemy.mix(potential, {"Mg": 1 - x, "Ca": x})
    try:
        found = alchemy.equilibrium(mixed, case.structures["crystal"])
    except StructureError as error:
        return [_row(potential, case, "lattice_parameter", np.nan, error=str(error))]
    a = alchemy.lattice_parameter(found.atoms)
    (response,) = mixed.responses([found.atoms])
    values = {
        "lattice_parameter": a,
        "bulk_modulus": found.bulk_modulus_gpa,
        "mixing_energy": _mixed_energy(found.energy, x, ends),
        "energy_slope": response.energy_gradient["Ca"] - response.energy_gradient["Mg"],
        "lattice_slope": a * alchemy.length_slope(mixed, found.atoms, "Ca", "Mg"),
    }
    if protocol.difference <= x <= 1 - protocol.difference:
        values["energy_slope_differences"] = _difference(potential, found.atoms, x, protocol.difference)
    return [_row(potential, case, name, value) for name, value in values.items()]


def _difference(potential: Potential, crystal: ase.Atoms, x: float, step: float) -> float:
    """Return dE/dx by central differences of fourth order, at fixed positions."""

    def energy(shift: float) -> float:
        return alchemy.mix(potential, {"Mg": 1 - x - shift, "Ca": x + shift}).evaluate([crystal])[0].energy

    half = step / 2
    return (8 * (energy(half) - energy(-half)) - (energy(step) - energy(-step))) / (12 * half)


def _run_explicit(potential: Potential, case: Case, protocol: Protocol, ends: dict[str, alchemy.Equilibrium]) -> Rows:
    x, alloy = case.info["x"], case.structures["alloy"]
    try:
        ideal = alchemy.equilibrium(potential, alloy, window=0.05)
    except StructureError as error:
        return [_row(potential, case, "lattice_parameter_ideal", np.nan, error=str(error))]
    n_cations = len(alloy) // 2
    rows = [
        _row(potential, case, "lattice_parameter_ideal", alchemy.lattice_parameter(ideal.atoms)),
        _row(potential, case, "mixing_energy_ideal", _mixed_energy(ideal.energy / n_cations, x, ends)),
    ]
    (relaxed,) = engine.relax(potential, [ideal.atoms], cell="full", fmax=protocol.fmax_ev_per_a, max_steps=protocol.max_steps)
    a = np.nan if relaxed.error else alchemy.lattice_parameter(relaxed.atoms)
    energy = np.nan if relaxed.error else _mixed_energy(relaxed.energy / n_cations, x, ends)
    rows.append(_row(potential, case, "lattice_parameter", a, error=relaxed.error))
    rows.append(_row(potential, case, "mixing_energy", energy, error=relaxed.error))
    return rows


def _run_one_label(potential: Potential, case: Case, protocol: Protocol, _: object) -> Rows:
    (label,) = trial.labels_of(case)
    (before,) = potential.evaluate([label.atoms])
    if not before.ok:
        return [_row(potential, case, "label_slope", np.nan, error=before.error)]
    scaled = fine_tune.linear_correction(potential, [label])
    recipe = Recipe(epochs=protocol.epochs, learning_rate=protocol.learning_rate, validation_fraction=0, keep="last")
    tuned = fine_tune.fine_tune(potential, [label], recipe).potential
    slope = softening.softening_scale(label.forces.ravel(), before.forces.ravel())
    rows = [_row(potential, case, "label_slope", slope), _row(potential, case, "factor", scaled.scale / potential.scale, stage="scalar")]
    stages = {"scalar": scaled, "tuned": tuned}
    if case.info["first"]:
        stages = {"before": potential, **stages}
    for stage, model in stages.items():
        rows += _properties(potential, model, case, stage, protocol)
    return rows


def _properties(original: Potential, model: Potential, case: Case, stage: str, protocol: Protocol) -> Rows:
    """Return the rows of one potential: end members, mixtures at x = ½, and forces."""
    others = trial.labels_of(case, "other")
    predictions = model.evaluate([other.atoms for other in others])
    errors = [np.abs(one.forces - other.forces).mean() for one, other in zip(predictions, others, strict=True)]
    rows = [_row(original, case, "force_mae", np.mean(errors), stage=stage, held_out="other frames")]
    layers = bulk("MgO", "rocksalt", a=_start(0.5), cubic=True)
    layers.symbols[(layers.symbols == "Mg") & (layers.positions[:, 2] > 1)] = "Ca"
    try:
        ends = _ends(model)
        mixed = alchemy.equilibrium(alchemy.mix(model, {"Mg": 0.5, "Ca": 0.5}), bulk("MgO", "rocksalt", a=_start(0.5)))
    except StructureError as error:
        return [*rows, _row(original, case, "lattice_parameter", np.nan, error=str(error), stage=stage, held_out="end members")]
    for formula, end in ends.items():
        values = {"lattice_parameter": alchemy.lattice_parameter(end.atoms), "bulk_modulus": end.bulk_modulus_gpa}
        for name, value in values.items():
            rows.append(_row(original, case, name, value, reference=case.reference[f"{name}/{formula}"], stage=stage, held_out=formula))
    values = {
        "lattice_parameter": alchemy.lattice_parameter(mixed.atoms),
        "bulk_modulus": mixed.bulk_modulus_gpa,
        "mixing_energy": _mixed_energy(mixed.energy, 0.5, ends),
    }
    rows += [_row(original, case, name, value, stage=stage, held_out="mixture") for name, value in values.items()]
    (relaxed,) = engine.relax(model, [layers], cell="full", fmax=protocol.fmax_ev_per_a, max_steps=protocol.max_steps)
    energy = np.nan if relaxed.error else _mixed_energy(relaxed.energy / 4, 0.5, ends)
    return [*rows, _row(original, case, "mixing_energy", energy, error=relaxed.error, stage=stage, held_out="layers")]


# ---- Summary --------------------------------------------------------------------------------------


def vegard(x: float | np.ndarray, a_first: float, a_second: float) -> float | np.ndarray:
    """Return Vegard's law, a = (1 − x) a₁ + x a₂ (Z. Phys. 5, 17 (1921))."""
    return (1 - x) * a_first + x * a_second


def enumerated(solid_solutions: pd.DataFrame) -> pd.DataFrame:
    """Return what :mod:`helpers.benchmarks.solid_solutions` has of the random alloy, from all relaxed orderings of a 16-cation cell.

    Columns ``model, x, lattice_parameter`` (Å), ``mixing_energy`` (eV per formula unit) and ``lowest`` and ``highest`` of the latter.
    Means weigh orderings with their multiplicity.
    """
    rows = solid_solutions[(solid_solutions["set"] == "ca-mg-o") & (solid_solutions["property"] == "formation_energy")]
    rows = rows[rows["status"] == "ok"]
    records = []
    for (model, x), group in rows.groupby(["model", "x"], sort=True):
        lengths = (8 * group["volume_a3_per_atom"]) ** (1 / 3)
        records.append(
            {
                "model": model,
                "x": x,
                "lattice_parameter": float(np.average(lengths, weights=group["multiplicity"])),
                "mixing_energy": float(np.average(group["value"], weights=group["multiplicity"])),
                "lowest": float(group["value"].min()),
                "highest": float(group["value"].max()),
            }
        )
    return pd.DataFrame(records)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model, set, composition, property, stage and what was evaluated: mean and range over orderings or labels."""
    keys = ["model", "set", "x", "property", "stage", "held_out"]
    records = []
    for names, group in table.groupby(keys, sort=False, dropna=False):
        good = group.loc[group["status"] == "ok", "value"]
        record = dict(zip(keys, names, strict=True)) | {"n": len(good), "n_failed": len(group) - len(good)}
        if len(good):
            record |= {"mean": good.mean(), "median": good.median(), "lowest": good.min(), "highest": good.max()}
        references = group["reference"].unique()
        record["reference"] = references[0] if len(references) == 1 else np.nan
        records.append(record)
    return pd.DataFrame(records)
