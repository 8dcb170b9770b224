"""Elastic moduli: the curvature of the energy at equilibrium, against DFT of the training data's functional.

Strain a crystal by ε and its energy rises by ½ V Σ C_ij ε_i ε_j (Voigt's notation, i and j from 1 to 6); the stress is σ_i = Σ C_ij ε_j.
The elastic tensor C is a curvature, as the squares of phonon frequencies are, so E → c E gives C → c C and the same lattice. The
averages of Voigt, Reuss and Hill over all directions are the bulk modulus K and the shear modulus G of a polycrystal
(Hill, Proc. Phys. Soc. A 65, 349 (1952)). The reference sets are

``binaries``
    A random choice of the binary compounds of the Materials Project with elastic moduli (de Jong et al., Sci. Data 2, 150009 (2015)), as
    collected for the benchmark of MatCalc. The functional is PBE, as in the models' training data: no part of a difference is a
    difference of functionals. Which compounds are left out is a matter of composition, size and the DFT values alone (:func:`left_out`).
``prototypes``
    Six simple crystals built here, without reference.

The model relaxes the primitive cell, atoms and lattice. A crystal that has lost its symmetry as it relaxed is a failed case. The
relaxed crystal, made symmetric again, is strained along each of the six axes of Voigt's notation in both senses, and the atoms
are relaxed in the strained cell, as in DFT. Strain and stress are those of the reference: Green's and Lagrange's strain and the second
stress of Piola and Kirchhoff. Of strains that a symmetry of the crystal turns into each other one is computed, as there too. The slopes
of the stresses (least squares) are the columns of C. Both senses together cancel the first anharmonic term and the stress that the
relaxation has left over. Finally C is averaged over the symmetry of the crystal.

How large a strain? A network's energy can be uneven on this scale, so that its curvature depends on the strain over which it is taken.
What is tabulated is the mean curvature over a range, not the one at a point, for the ranges of :data:`RANGES`. ``bulk_modulus`` and
``shear_modulus`` have all components of the strain tensor at ±0.5 and ±1 %, as the Materials Project documents for its present values,
from which the reference was collected; those with ``_wide`` have the shears of the paper of 2015.

A tensor with an eigenvalue that is not positive belongs to a crystal that would deform of itself (Born's criterion: Mouhat and
Coudert, Phys. Rev. B 90, 224104 (2014)). Its averages mean nothing, so it is a failed case. Such cases do not enter the slopes: a model
whose crystals are soft to the point of instability looks better than it is, unless they are counted (``n_unstable``).
"""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ase
import ase.build
import ase.data
import numpy as np
import pandas as pd
from ase import units
from pymatgen.analysis.elasticity import ElasticTensor, Strain, Stress
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from helpers import engine, registry, softening, structures
from helpers.benchmarks import Case, Family, Rows, Sample, chosen_sets, of, row, table
from helpers.potentials.base import Potential, Prediction

_MODULI = "materialsvirtuallab/matcalc/benchmark_data/mp-binary-pbe-elasticity-2025.1.json.gz"

SETS: dict[str, tuple[str, ...]] = {"binaries": (_MODULI,), "prototypes": ()}
LIVE = "prototypes"
KEYS: tuple[str, ...] = ()
QUICK = {"binaries": Sample(20)}
STAND_IN = Sample(6)
ATOMS_PER_SHARD = 60  # each crystal is relaxed, strained some twenty times and relaxed again: hundreds of evaluations

# Ends of the names of properties: sizes of the normal and of the shear strains. A shear strain in Voigt's notation is twice the component.
RANGES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "": ((0.005, 0.01), (0.01, 0.02)),
    "_wide": ((0.005, 0.01), (0.03, 0.06)),
    "_1pct": ((0.01,), (0.01,)),
    "_025pct": ((0.0025,), (0.0025,)),
}

# How far a recomputed value may lie from the committed one: what the thresholds of the relaxations and single precision leave open.
# Over a small strain the same error of a stress is a larger one of its slope.
TOLERANCES = {name + end: 2.0 if end == "_025pct" else 1.0 for name in ("bulk_modulus", "shear_modulus") for end in RANGES}
TOLERANCES["volume_per_atom"] = 0.02

# Below this the Materials Project gives its own values with a warning.
_LEAST_GPA = 2.0

# Crystal structure and measured lattice parameter, Å: only where the relaxation starts.
_PROTOTYPES = {
    "Al": ("fcc", 4.05),
    "Cu": ("fcc", 3.61),
    "W": ("bcc", 3.16),
    "Si": ("diamond", 5.43),
    "MgO": ("rocksalt", 4.21),
    "NaCl": ("rocksalt", 5.64),
}

# The crystals that are strained are symmetric up to rounding.
_SYMPREC = 1e-3

_UNSTABLE = "unstable: "

# Relaxation of the strained crystals: displacement for their force constants, the least of these that is believed, and the longest step.
_DISPLACEMENT_A, _SOFTEST_EV_PER_A2, _MAX_STEP_A = 0.01, 0.5, 0.1


@dataclass(frozen=True)
class Protocol:
    """Settings of the elasticity benchmark."""

    n_compounds: int = 400  # Size of the set ``binaries``. They come in random order, so that the first n of them are a fair sample too.
    seed: int = 0  # of that order
    max_atoms: int = 8  # largest cell of that set
    # Sizes of the strains, as :data:`RANGES`, dimensionless, in Voigt's notation.
    ranges: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=lambda: dict(RANGES))
    fmax_ev_per_a: float = 1e-3  # largest force at convergence of a relaxation, eV/Å
    smax_ev_per_a3: float = 6e-5  # largest stress at convergence of the relaxation of the cell, eV/Å³ (6e-5 is 0.01 GPa)
    max_steps: int = 500  # steps after which a relaxation counts as failed


# ---- Reference cases ------------------------------------------------------------------------------


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return the reference cases; the protocol decides on the number of compounds, their size and their order.

    Structure ``crystal``; reference ``bulk_modulus`` and ``shear_modulus`` (averages of Voigt, Reuss and Hill, GPa)
    and ``volume_per_atom`` (Å³), where there are DFT values.
    """
    makers = {"binaries": _binaries, "prototypes": _prototypes}
    return [case for name in chosen_sets(SETS, sets) for case in makers[name](protocol or Protocol())]


def compound(material: str) -> Case:
    """Return any compound of the source of ``binaries``, by its Materials Project identifier; KeyError if it is unknown."""
    for record in records():
        if record["mp_id"] == material:
            return _binary(record)
    raise KeyError(f"{_MODULI} has no {material}")


def left_out(protocol: Protocol | None = None) -> pd.DataFrame:
    """Return the compounds of the source that cannot be cases, with the reason: columns ``set, material, formula, reason``."""
    judged = [(record, unfit(record, protocol or Protocol())) for record in records()]
    rows = [("binaries", record["mp_id"], record["formula"], reason) for record, reason in judged if reason]
    return pd.DataFrame(rows, columns=["set", "material", "formula", "reason"])


def records() -> list[dict]:
    """Return all records of the source of ``binaries``."""
    with gzip.open(registry.fetch(_MODULI), "rt") as handle:
        return json.load(handle)


def unfit(record: dict, protocol: Protocol) -> str:
    """Return why a compound is no case ('' if it is one); the model is never asked."""
    sites = record["structure"]["sites"]
    elements = {site["species"][0]["element"] for site in sites}
    k, g = record["bulk_modulus_vrh"], record["shear_modulus_vrh"]
    if magnetic := elements & structures.OPEN_SHELL:
        return f"{', '.join(sorted(magnetic))}: open d or f shell"
    if structures.has_u_metal_with_o_or_f(elements):
        return "DFT+U"
    if len(sites) > protocol.max_atoms:
        return f"more than {protocol.max_atoms} atoms"
    if min(k, g) < _LEAST_GPA:
        return f"DFT modulus below {_LEAST_GPA:g} GPa"
    # ν = (3K − 2G) / (6K + 2G). True auxetic polycrystals are rare; in the source most are calculations that went wrong.
    if 2 * g > 3 * k:
        return "DFT moduli with a negative Poisson ratio"
    return ""


def _binaries(protocol: Protocol) -> list[Case]:
    fit = sorted((record for record in records() if not unfit(record, protocol)), key=lambda record: record["mp_id"])
    order = np.random.default_rng(protocol.seed).permutation(len(fit))
    return [_binary(fit[number]) for number in order[: protocol.n_compounds]]


def _binary(record: dict) -> Case:
    crystal = structures.from_dict(record["structure"])
    reference = {
        "bulk_modulus": record["bulk_modulus_vrh"],
        "shear_modulus": record["shear_modulus_vrh"],
        "volume_per_atom": crystal.get_volume() / len(crystal),
    }
    return _case("binaries", record["mp_id"], record["formula"], crystal, reference, "PBE")


def _prototypes(_: Protocol) -> list[Case]:
    return [
        _case("prototypes", formula, formula, ase.build.bulk(formula, structure, a=a), {}, "")
        for formula, (structure, a) in _PROTOTYPES.items()
    ]


def _case(name: str, material: str, formula: str, crystal: ase.Atoms, reference: dict[str, float], functional: str) -> Case:
    info = {"formula": formula, "functional": functional, "n_atoms": len(crystal)}
    return Case(f"{name}/{material}", name, material, {"crystal": crystal}, reference, info)


# ---- Elasticity -----------------------------------------------------------------------------------


def strains(amount: float) -> list[Strain]:
    """Return the twelve strains: each component of Voigt's notation alone, with both signs."""
    return [Strain.from_voigt(sign * amount * axis) for axis in np.eye(6) for sign in (1, -1)]


def equivalents(crystal: ase.Atoms) -> list[tuple[int, np.ndarray]]:
    """Return, for each of :func:`strains`, the first that symmetry makes equal to it, and the rotation R from that: ε = R ε' Rᵀ."""
    analyser = SpacegroupAnalyzer(AseAtomsAdaptor.get_structure(crystal), symprec=_SYMPREC)
    rotations = np.array([operation.rotation_matrix for operation in analyser.get_point_group_operations(cartesian=True)])
    twelve = np.array(strains(1.0))
    turned = rotations @ twelve[:, None] @ rotations.transpose(0, 2, 1)
    # Axes: strain, rotation, strain that it is turned into.
    equal = np.abs(turned[:, :, None] - twelve).max(axis=(-1, -2)) < _SYMPREC
    pairs = [np.argwhere(equal[:, :, number])[0] for number in range(len(twelve))]
    return [(int(first), rotations[rotation]) for first, rotation in pairs]


def elastic_tensor(imposed: Sequence[Strain], stresses: Sequence[np.ndarray], crystal: ase.Atoms) -> ElasticTensor:
    """Fit the elastic tensor of a crystal to its stresses, by least squares: GPa, with C_ij = C_ji and the symmetry of the crystal.

    Imposed are strains of one component each in Voigt's notation, every component with both signs; the second stress of Piola and
    Kirchhoff under each of them has shape (3, 3), eV/Å³, positive under tension. ``k_vrh`` and ``g_vrh`` of the tensor are the moduli.
    """
    in_gpa = [(stress + stress.T) / 2 / units.GPa for stress in map(np.asarray, stresses)]
    with warnings.catch_warnings():
        # Before the next line makes it symmetric, the tensor is so up to the accuracy of the stresses only.
        warnings.simplefilter("ignore")
        fitted = ElasticTensor.from_independent_strains(imposed, in_gpa)
    return fitted.voigt_symmetrized.fit_to_structure(AseAtomsAdaptor.get_structure(crystal), symprec=_SYMPREC)


# ---- Predictions ----------------------------------------------------------------------------------


@dataclass
class _Outcome:
    """What is known of one crystal."""

    crystal: ase.Atoms | None = None
    error: str | None = None
    tensors: dict[str, ElasticTensor] = field(default_factory=dict)  # by range, as the errors
    errors: dict[str, str] = field(default_factory=dict)


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol, progress: bool = False) -> pd.DataFrame:
    """Predict bulk and shear moduli and the volume at equilibrium.

    All crystals are relaxed together, then all strained ones, and their stresses are evaluated in one call. A potential with a
    smooth variant is used in that (:meth:`~helpers.potentials.Potential.smooth`). Cases of your own have a ``crystal``.

    One row per case and property: ``bulk_modulus`` and ``shear_modulus`` (GPa) for each range of strains, and
    ``volume_per_atom`` (Å³). The reason begins with "unstable" where the elastic tensor is not positive; the volume stands then, too.
    ``reference`` is NaN where there is no DFT value.
    """
    potential = potential.smooth()
    guesses = [case.structures["crystal"] for case in cases]
    limits: dict[str, Any] = {"fmax": protocol.fmax_ev_per_a, "smax": protocol.smax_ev_per_a3, "max_steps": protocol.max_steps}
    relaxed = engine.relax(potential, guesses, cell="full", progress=progress, **limits)
    outcomes = [outcome_of(result, guess) for result, guess in zip(relaxed, guesses, strict=True)]
    add_tensors(potential, [outcome for outcome in outcomes if outcome.error is None], protocol, progress)
    return table(line for case, outcome in zip(cases, outcomes, strict=True) for line in _rows(potential.key, case, outcome, protocol))


def outcome_of(result: engine.Relaxed, guess: ase.Atoms) -> _Outcome:
    """Return the primitive cell of a relaxed crystal, symmetric again, or why there is none."""
    if result.error is not None:
        return _Outcome(error=result.error)
    try:
        conventional = structures.symmetrised(result.atoms, guess)
    except ValueError as error:
        return _Outcome(error=str(error))
    analyser = SpacegroupAnalyzer(AseAtomsAdaptor.get_structure(conventional), symprec=_SYMPREC)
    return _Outcome(structures.plain(analyser.get_primitive_standard_structure()))


def add_tensors(potential: Potential, outcomes: Sequence[_Outcome], protocol: Protocol, progress: bool) -> None:
    """Add the elastic tensors to each outcome, or why there is none."""
    sizes = [sorted({size for pair in protocol.ranges.values() for size in pair[kind]}) for kind in (0, 1)]
    unit = strains(1.0)
    same = [equivalents(outcome.crystal) for outcome in outcomes]
    # A job is a crystal, one of the twelve strains, and its size; the first six of the twelve are normal.
    jobs = [
        (number, first, size)
        for number, pairs in enumerate(same)
        for first in sorted({first for first, _ in pairs})
        for size in sizes[first >= 6]
    ]
    deformations = [(unit[first] * size).get_deformation_matrix() for _, first, size in jobs]
    crystals = [outcomes[number].crystal for number, _, _ in jobs]
    starts = [structures.strained(crystal, matrix - np.eye(3)) for crystal, matrix in zip(crystals, deformations, strict=True)]
    predictions = at_rest(potential, crystals, starts, protocol, progress)
    found = dict(zip(jobs, zip(deformations, predictions, strict=True), strict=True))
    for number, outcome in enumerate(outcomes):
        for name, pair in protocol.ranges.items():
            imposed, stresses, errors = [], [], []
            for strain, (first, rotation) in zip(unit, same[number], strict=True):
                for size in pair[first >= 6]:
                    matrix, prediction = found[number, first, size]
                    if prediction.error:
                        errors.append(f"strained: {prediction.error}")
                        continue
                    imposed.append(strain * size)
                    stresses.append(rotation @ Stress(prediction.stress).piola_kirchoff_2(matrix) @ rotation.T)
            if not errors:
                outcome.tensors[name] = elastic_tensor(imposed, stresses, outcome.crystal)
                if (lowest := np.linalg.eigvalsh(outcome.tensors[name].voigt)[0]) <= 0:
                    errors.append(f"{_UNSTABLE}an eigenvalue of the elastic tensor is {lowest:.1f} GPa")
            if errors:
                outcome.errors[name] = errors[0]


def at_rest(potential, crystals, starts, protocol, progress) -> list[Prediction]:
    """Return the predictions for strained crystals whose atoms have come to rest; ``error`` says which have not."""
    # BFGS: it starts with the force constants of the unstrained crystal, so that a few steps are enough.
    atoms = [start.copy() for start in starts]
    predictions: list[Prediction] = potential.evaluate(atoms, stress=True, progress=progress)
    moving = [number for number, prediction in enumerate(predictions) if pull(prediction) >= protocol.fmax_ev_per_a]
    owners = {id(crystals[number]): crystals[number] for number in moving}
    common = dict(zip(owners, _compliances(potential, list(owners.values())), strict=True))
    compliances = {number: common[id(crystals[number])] for number in moving}
    for _ in range(protocol.max_steps):
        steps = [compliances[number] @ predictions[number].forces.ravel() for number in moving]
        steps = [step * _MAX_STEP_A / max(np.abs(step).max(), _MAX_STEP_A) for step in steps]
        for number, step in zip(moving, steps, strict=True):
            atoms[number].positions += step.reshape(-1, 3)
        found = potential.evaluate([atoms[number] for number in moving], stress=True)
        for number, step, prediction in zip(moving, steps, found, strict=True):
            change = (predictions[number].forces - prediction.forces).ravel()
            if (product := step @ change) > 0:
                turn = np.eye(len(step)) - np.outer(step, change) / product
                compliances[number] = turn @ compliances[number] @ turn.T + np.outer(step, step) / product
            predictions[number] = prediction
        moving = [number for number in moving if pull(predictions[number]) >= protocol.fmax_ev_per_a]
        if not moving:
            break
    for number in moving:
        reason = f"not converged in {protocol.max_steps} steps: largest force {pull(predictions[number]):.3f} eV/Å"
        predictions[number] = Prediction.failed(len(atoms[number]), reason)
    return predictions


def pull(prediction: Prediction) -> float:
    """Return the largest force on an atom, eV/Å; NaN if there is none."""
    return float(np.linalg.norm(prediction.forces, axis=1).max())


def _compliances(potential: Potential, crystals: Sequence[ase.Atoms]) -> list[np.ndarray]:
    """Return for each crystal the displacements per force, Å²/eV, shape (3 n_atoms, 3 n_atoms), all modes taken as stable."""
    displaced = []
    for crystal in crystals:
        for number in range(6 * len(crystal)):
            displaced.append(crystal.copy())
            displaced[-1].positions[number // 6, number // 2 % 3] += (-1) ** number * _DISPLACEMENT_A
    forces = iter([prediction.forces.ravel() for prediction in potential.evaluate(displaced)])
    found = []
    for crystal in crystals:
        constants = np.array([next(forces) - next(forces) for _ in range(3 * len(crystal))]) / (-2 * _DISPLACEMENT_A)
        values, modes = np.linalg.eigh(np.nan_to_num(constants + constants.T) / 2)
        found.append(modes / np.maximum(np.abs(values), _SOFTEST_EV_PER_A2) @ modes.T)
    return found


def _rows(model: str, case: Case, outcome: _Outcome, protocol: Protocol) -> Rows:
    volume = np.nan if outcome.crystal is None else outcome.crystal.get_volume() / len(outcome.crystal)
    reference = {name: float(case.reference.get(name, np.nan)) for name in ("bulk_modulus", "shear_modulus", "volume_per_atom")}
    rows = []
    for end in protocol.ranges:
        error = outcome.error or outcome.errors.get(end)
        tensor = outcome.tensors.get(end)
        for name, attribute in (("bulk_modulus", "k_vrh"), ("shear_modulus", "g_vrh")):
            value = np.nan if error else float(getattr(tensor, attribute))
            rows.append(row(model, case, name + end, value, reference[name], "GPa", error=error))
    rows.append(row(model, case, "volume_per_atom", volume, reference["volume_per_atom"], "Å³", error=outcome.error))
    return rows


# ---- Summary --------------------------------------------------------------------------------------


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers that the chapter quotes, one row per model, set and property; rows without a DFT value do not count.

    Columns ``model, set, property, n, n_failed``, ``n_unstable`` (of the failed, those whose elastic tensor is not positive), those
    of :func:`helpers.softening.scalar_summary` (intervals from resampling compounds), and ``ratio_median``, model over
    DFT, with ``_low`` and ``_high``. What does not exist is NaN for groups of fewer than two values.
    """
    by, rated = ["model", "set", "property"], table[table["reference"].notna()]
    if rated.empty:
        return pd.DataFrame()
    rated = rated.assign(slope=rated["value"] / rated["reference"], unstable=rated["reason"].str.startswith(_UNSTABLE))
    found = softening.scalar_summaries(rated, by)
    found.insert(5, "n_unstable", rated.groupby(by, sort=False)["unstable"].sum().to_numpy())
    spread = softening.distribution(rated.merge(found.loc[found["n"] >= 2, by], on=by), by)
    names = {f"slope_median{end}": f"ratio_median{end}" for end in ("", "_low", "_high")}
    return found.merge(spread[[*by, *names]].rename(columns=names), on=by, how="left")


def from_bulk_to_shear(table: pd.DataFrame) -> pd.DataFrame:
    """Correct the shear modulus of each compound with its bulk modulus as the one label: c = K(DFT) / K(model), and G → c G.

    One row per model and compound that has both moduli: ``model, material, formula, c``, ``needed`` = G(DFT) / G(model), and in GPa
    ``before``, ``after`` and ``reference`` of the shear modulus.
    """
    good = table[(table["status"] == "ok") & table["reference"].notna() & table["property"].isin(["bulk_modulus", "shear_modulus"])]
    wide = good.pivot_table(index=["model", "material", "formula"], columns="property", values=["value", "reference"])
    if wide.empty:
        return pd.DataFrame(columns=["model", "material", "formula", "c", "needed", "before", "after", "reference"])
    c = wide[("reference", "bulk_modulus")] / wide[("value", "bulk_modulus")]
    before, reference = wide[("value", "shear_modulus")], wide[("reference", "shear_modulus")]
    found = pd.DataFrame({"c": c, "needed": reference / before, "before": before, "after": c * before, "reference": reference})
    return found.dropna().reset_index()


def summarise_transfer(transfer: pd.DataFrame) -> pd.DataFrame:
    """Return, per model, medians over compounds of :func:`from_bulk_to_shear`.

    Index ``model``; ``n``, ``c``, ``needed``, the ratios to DFT ``before`` and ``after``, the errors ``error_before`` and
    ``error_after`` (GPa) and ``helps``, the share of compounds whose error became smaller.
    """
    reference, made = transfer["reference"], transfer.assign(n=1)
    for stage in ("before", "after"):
        made = made.assign(**{stage: transfer[stage] / reference, f"error_{stage}": (transfer[stage] - reference).abs()})
    made["helps"] = made["error_after"] < made["error_before"]
    medians = dict.fromkeys(("c", "needed", "before", "after", "error_before", "error_after"), "median")
    return made.groupby("model").agg({"n": "sum", **medians, "helps": "mean"})


# ---- As softness ----------------------------------------------------------------------------------


FAMILIES = (
    Family("bulk-modulus", "bulk modulus", "elasticity", "curvature", of("binaries", "bulk_modulus")),
    Family("shear-modulus", "shear modulus", "elasticity", "curvature", of("binaries", "shear_modulus")),
    Family("live-bulk", "bulk modulus, simple crystals", "elasticity", "curvature", of(LIVE, "bulk_modulus"), role="stand-in"),
    Family("live-shear", "shear modulus, simple crystals", "elasticity", "curvature", of(LIVE, "shear_modulus"), role="stand-in"),
)
