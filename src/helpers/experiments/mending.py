"""Do ten labels mend an energy difference? Fine-tuning for vacancies and for alloys.

:mod:`helpers.experiments.fine_tuning` asks what ten labels do to forces. Defects and solid solutions are energy differences, which the
paper's loss hardly weighs, so here the labels are frames with a vacancy, or alloys, and what counts is the energy of held-out frames above
that of the pure crystals, and the vacancy formation energy at rest.

Sets
----
``vacancy-frames``
    Si, Li, Mo (Zuo et al., J. Phys. Chem. A 124, 731 (2020)), Cu and Ni (Li et al., Phys. Rev. B 98, 094104 (2018)): frames of
    molecular dynamics with a vacancy. Some of those of Si and Mo are molten.
``orderings``
    Nb-Mo and Ta-W: unrelaxed orderings of 16 atoms (Li et al., npj Comput. Mater. 6, 70 (2020)) as labels, relaxed ones held out.
``teacher``
    Rattled Al with a vacancy, labelled by the same potential made a quarter stiffer: no file is needed and the right answer is known.

The table
---------
Columns beyond the standard ones: ``stage`` (``before``, ``after`` or ``training``), ``seed``, ``held_out``, ``atom``, ``component``,
``epoch``. Properties:

``force``
    Held-out frames, one row per component, eV/Å.
``energy_difference``
    Held-out frames, eV per cell: E − Σ n_i e_i with e_i the energy per atom of the pure crystal from the same source.
``vacancy_energy``
    eV, relaxed, for elements with a published value; ``held_out`` names the case of :mod:`helpers.benchmarks.defects`.
``validation_force_mae``, ``loss``, ``best_epoch``
    Of the training.

What does not depend on the draw (stage ``before``) is there for the first seed only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
import pandas as pd
from ase.build import bulk

from helpers import registry, results, softening, structures
from helpers.benchmarks import Case, chosen_sets, defects, off_equilibrium, row, surfaces, table
from helpers.experiments import fine_tuning
from helpers.potentials.base import Potential, Prediction
from helpers.training import fine_tune
from helpers.training.fine_tune import Label, Recipe

_ALLOYS = {"Nb-Mo": "NbMo", "Ta-W": "TaW"}
_SNAP = "materialsvirtuallab/snap/NbMoTaW/training"

SETS: dict[str, tuple[str, ...]] = {
    "vacancy-frames": tuple(dict.fromkeys(off_equilibrium.SETS["single-element-md"] + defects.SETS["vacancies"])),
    "orderings": tuple(
        [f"{_SNAP}/{file}_SS.json" for file in _ALLOYS.values()]
        + [f"{_SNAP}/{element}_Elastic.json" for name in _ALLOYS for element in name.split("-")]
    ),
    "teacher": (),
}
LIVE = "teacher"

# Training amplifies the last digits of float32: a few hundred steps apart, two machines differ by about a per cent.
TOLERANCES = {
    "force": 0.05,
    "energy_difference": 0.05,
    "vacancy_energy": 0.05,
    "validation_force_mae": 0.02,
    "loss": 0.5,
    "best_epoch": 100,
}

_TEACHER_SCALE = 1.25
_TEACHER_EPOCHS = 6


@dataclass(frozen=True)
class Protocol(fine_tuning.Training):
    """Settings.

    Attributes
    ----------
    elements, alloys : tuple of str
        Materials of the two sets.
    n_labels : int
        Labelled frames per draw; a tenth of them (at least one) selects the epoch.
    n_held_out : int
        Vacancy frames never trained on.
    n_held_out_orderings : int
        Relaxed orderings evaluated, none of which is a relaxed label.
    seeds : tuple of int
        One draw of labels each.
    epochs, learning_rate, final_learning_rate, energy_weight, force_weight, stress_weight, batch_size
        See :class:`helpers.training.fine_tune.Recipe`.
    """

    elements: tuple[str, ...] = ("Si", "Mo", "Li", "Cu", "Ni")
    alloys: tuple[str, ...] = ("Nb-Mo", "Ta-W")
    n_labels: int = 10
    n_held_out: int = 12
    n_held_out_orderings: int = 100
    seeds: tuple[int, ...] = (0,)
    epochs: int = 100
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    energy_weight: float = 0.1
    force_weight: float = 100.0
    stress_weight: float = 0.1
    batch_size: int = 1


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per material and draw of labels, first draws first.

    ``structures`` holds the labels (``label/0`` …), the held-out frames (``held/0`` …) and the pure crystals (``crystal/Nb`` …);
    ``reference`` energies (eV), forces (eV/Å) and stresses (eV/Å³) under ``energy/<role>`` and so on.

    Raises
    ------
    KeyError
        If a set is unknown.
    """
    protocol = protocol or Protocol()
    chosen = chosen_sets(SETS, sets)
    sources: dict[str, dict[str, _Pool]] = {}
    if "vacancy-frames" in chosen:
        frames = off_equilibrium.cases(sets=["single-element-md"])
        sources["vacancy-frames"] = {element: _vacancy_frames(element, frames, protocol) for element in protocol.elements}
    if "orderings" in chosen:
        sources["orderings"] = {alloy: _orderings(alloy, protocol) for alloy in protocol.alloys}
    found = [
        _draw(f"{name}/{material}", name, material, seed, source, protocol.n_labels)
        for seed in protocol.seeds
        for name, materials in sources.items()
        for material, source in materials.items()
    ]
    if "teacher" in chosen:
        found.append(Case("teacher/Al/seed-0", "teacher", "Al", {}, {}, {"seed": 0}))
    return found


@dataclass(frozen=True)
class _Pool:
    """What labels are drawn from, what is held out, and the pure crystals with their energies (eV)."""

    pool: list[Label]
    held: list[Label]
    crystals: dict[str, tuple[ase.Atoms, float]]


def _draw(name: str, set_name: str, material: str, seed: int, source: _Pool, n_labels: int) -> Case:
    drawn = np.sort(np.random.default_rng(seed + 1).choice(len(source.pool), n_labels, replace=False))
    labelled = {f"label/{k}": source.pool[i] for k, i in enumerate(drawn)} | {f"held/{k}": x for k, x in enumerate(source.held)}
    reference: dict[str, object] = {}
    for role, label in labelled.items():
        reference |= {f"energy/{role}": label.energy, f"forces/{role}": label.forces, f"stress/{role}": label.stress}
    atoms = {role: label.atoms for role, label in labelled.items()}
    for element, (crystal, energy) in source.crystals.items():
        atoms[f"crystal/{element}"] = crystal
        reference[f"energy/crystal/{element}"] = energy
    return Case(f"{name}/seed-{seed}", set_name, material, atoms, reference, {"seed": seed})


def _vacancy_frames(element: str, frames: Sequence[Case], protocol: Protocol) -> _Pool:
    by_group = {
        group: [case for case in frames if case.material == element and case.info["group"] == group] for group in ("Vacancy", "Elastic")
    }
    labels = [
        Label(case.structures["frame"], case.reference["energy"], case.reference["forces"], case.reference["stress"])
        for case in by_group["Vacancy"]
    ]
    crystal = min(by_group["Elastic"], key=lambda case: np.abs(case.reference["stress"]).max())
    held, pool = fine_tuning.held_out(len(labels), protocol.n_held_out)
    pure = {element: (crystal.structures["frame"], crystal.reference["energy"])}
    return _Pool([labels[k] for k in pool], [labels[k] for k in held], pure)


def _orderings(alloy: str, protocol: Protocol) -> _Pool:
    records = json.loads(registry.fetch(f"{_SNAP}/{_ALLOYS[alloy]}_SS.json").read_text())
    labels = {tag: [_snap_label(r) for r in records if r["tags"] == [tag]] for tag in ("relax", "unrelax")}
    crystals = {}
    for element in alloy.split("-"):
        frame = surfaces.undeformed(json.loads(registry.fetch(f"{_SNAP}/{element}_Elastic.json").read_text()))
        crystals[element] = (structures.from_dict(frame["structure"]), frame["outputs"]["energy"])
    # Symmetry leaves some orderings without forces: they teach nothing.
    pool = [label for label in labels["unrelax"] if np.abs(label.forces).max() > 1e-3]
    order = np.random.default_rng(0).permutation(len(labels["relax"]))[: protocol.n_held_out_orderings]
    return _Pool(pool, [labels["relax"][k] for k in np.sort(order)], crystals)


def _snap_label(record: dict) -> Label:
    outputs = record["outputs"]
    stress = off_equilibrium.stress_from_kbar(outputs["stress"], swapped=False)
    return Label(structures.from_dict(record["structure"]), outputs["energy"], np.asarray(outputs["forces"], dtype=float), stress)


def _teacher_case(potential: Potential, case: Case) -> Case:
    """Return the teacher's case with its structures: rattled cells with a vacancy, labelled by the stiffer potential."""
    rng = np.random.default_rng(0)
    crystal = bulk("Al", cubic=True)
    frames = []
    for _ in range(6):
        atoms = crystal.repeat((2, 2, 1))
        del atoms[int(rng.integers(len(atoms)))]
        atoms.positions += rng.normal(0, 0.12, atoms.positions.shape)
        frames.append(atoms)
    *answers, pure = potential.scaled(_TEACHER_SCALE).evaluate([*frames, crystal], stress=True)
    labels = [Label(atoms, p.energy, p.forces, p.stress) for atoms, p in zip(frames, answers, strict=True)]
    made = _draw("teacher/Al", "teacher", "Al", 0, _Pool(labels[:4], labels[4:], {"Al": (crystal, pure.energy)}), 4)
    return Case(case.name, case.set, case.material, made.structures, made.reference, case.info)


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Fine-tune on each case's labels and evaluate before and after; a tidy table as the module's docstring says.

    Training writes a checkpoint after every epoch, so that a killed run goes on where it stopped; it is removed when the case is done.
    """
    protocol = protocol or Protocol()
    rows: list[dict[str, object]] = []
    for case in cases:
        recipe = protocol.recipe(case.info["seed"])
        if case.set == "teacher":
            case = _teacher_case(potential, case)
            recipe = protocol.recipe(case.info["seed"], epochs=_TEACHER_EPOCHS, learning_rate=3e-4)
        labels = fine_tuning.labels_of(case, "label")
        checkpoint = checkpoint_path(potential, case, recipe, labels)
        tuned = fine_tune.fine_tune(potential, labels, recipe, checkpoint=checkpoint, progress=progress)
        if case.info["seed"] == protocol.seeds[0]:
            rows += _evaluate(potential, potential.key, case, "before")
        rows += _evaluate(tuned.potential, potential.key, case, "after")
        rows += fine_tuning.training_rows(potential.key, case, tuned)
        checkpoint.unlink(missing_ok=True)
    return fine_tuning.filled(table(rows))


def checkpoint_path(potential: Potential, case: Case, recipe: Recipe, labels: Sequence[Label]) -> Path:
    """Return where the training of a case is saved: a name that follows from weights, labels and recipe."""
    digest = hashlib.sha256(json.dumps([potential.describe(), recipe.record()], sort_keys=True, default=str).encode())
    for label in labels:
        digest.update(structures.content(label.atoms) + np.round(label.forces, 6).tobytes())
    return results.runs_dir() / "mending" / "checkpoints" / f"{case.name.replace('/', '_')}-{digest.hexdigest()[:16]}.pt"


def _evaluate(potential: Potential, key: str, case: Case, stage: str) -> list[dict[str, object]]:
    held = fine_tuning.labels_of(case, "held")
    elements = [role.removeprefix("crystal/") for role in case.structures if role.startswith("crystal/")]
    crystals = [case.structures[f"crystal/{element}"] for element in elements]
    predictions = potential.evaluate([*[label.atoms for label in held], *crystals])
    rows = fine_tuning.force_rows(key, case, held, predictions[: len(held)], stage)
    rows += _difference_rows(key, case, held, predictions, elements, crystals, stage)
    if case.set == "vacancy-frames":
        made = defects.run(potential, _published(case.material), defects.Protocol())
        for _, entry in made[made["property"] == "relaxed"].iterrows():
            values = entry["value"], entry["reference"], entry["unit"]
            rows.append(row(key, case, "vacancy_energy", *values, error=entry["reason"] or None, stage=stage, held_out=entry["case"]))
    return rows


def _difference_rows(
    key: str,
    case: Case,
    held: Sequence[Label],
    predictions: Sequence[Prediction],
    elements: Sequence[str],
    crystals: Sequence[ase.Atoms],
    stage: str,
) -> list[dict[str, object]]:
    """Return the energy of each held-out frame above the pure crystals, model and DFT."""
    pure = predictions[len(held) :]
    wrong = next((p.error for p in pure if not p.ok), None)
    rows = []
    for number, (label, prediction) in enumerate(zip(held, predictions, strict=False)):
        counts = [label.atoms.symbols.count(element) for element in elements]
        shares = [count / len(crystal) for count, crystal in zip(counts, crystals, strict=True)]
        reference = label.energy - sum(s * case.reference[f"energy/crystal/{e}"] for s, e in zip(shares, elements, strict=True))
        error = wrong or prediction.error
        value = np.nan if error else prediction.energy - sum(s * p.energy for s, p in zip(shares, pure, strict=True))
        rows.append(row(key, case, "energy_difference", value, reference, "eV", error=error, stage=stage, held_out=f"{number:03d}"))
    return rows


def _published(element: str) -> list[Case]:
    """Return the cases of :mod:`helpers.benchmarks.defects` with a published vacancy energy of this element in its ground state."""
    return [case for case in defects.cases(sets=["vacancies", "bcc-vacancies"]) if case.material == element]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return, per case and stage, slope and MAE of held-out forces and energy differences, and the vacancy energy beside DFT.

    Columns: ``model, set, material, case, stage``; ``force_slope, force_mae`` (eV/Å); ``energy_slope`` (through the origin), ``energy_mae``
    (eV per cell) and ``energy_spread_slope`` (with an intercept: are differences *among* the held-out frames right, whatever
    their mean?); ``vacancy_energy`` and ``vacancy_reference`` (eV, NaN where there is no published value).
    """
    records = []
    staged = table[table["stage"].isin(["before", "after"]) & (table["status"] == "ok")]
    for (model, chosen, material, case, stage), part in staged.groupby(["model", "set", "material", "case", "stage"], sort=False):
        record: dict[str, object] = {"model": model, "set": chosen, "material": material, "case": case, "stage": stage}
        for name, prefix in (("force", "force"), ("energy_difference", "energy")):
            rows = part[part["property"] == name]
            record[f"{prefix}_slope"] = softening.softening_scale(rows["reference"], rows["value"])
            record[f"{prefix}_mae"] = float((rows["value"] - rows["reference"]).abs().mean())
            if prefix == "energy":
                record["energy_spread_slope"] = softening.softening_scale(rows["reference"], rows["value"], intercept=True)
        vacancy = part[part["property"] == "vacancy_energy"]
        record["vacancy_energy"] = float(vacancy["value"].mean()) if len(vacancy) else np.nan
        record["vacancy_reference"] = float(vacancy["reference"].mean()) if len(vacancy) else np.nan
        records.append(record)
    return pd.DataFrame(records)


def before_and_after(table: pd.DataFrame, chosen: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return, per material of a set, some columns of :func:`summarise` before and after; see :func:`fine_tuning.compare_stages`."""
    return fine_tuning.compare_stages(summarise(table[table["set"] == chosen]), columns)
