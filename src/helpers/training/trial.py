"""The bench of the trained experiments: labels, draws, a teacher, training and testing, errors, means over draws.

What belongs to the physics of one experiment stands in its file in :mod:`helpers.experiments`.

A live check needs no DFT file: the potential itself, made a quarter stiffer (:func:`stiffer`), plays the part of DFT, and the right answer
is known. This is the set ``teacher`` of most experiments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pandas as pd

from helpers import results, structures
from helpers.potentials import untrained
from helpers.potentials.base import GraphPotential, Potential, Prediction, StructureError
from helpers.results import Case, Rows, row, table
from helpers.training import fine_tune
from helpers.training.fine_tune import FineTuned, Label, Recipe

QUANTITIES = ("energy", "forces", "stress")
STIFFER = 1.25

Record = Callable[..., dict[str, Any]]

_TEACHER = {"epochs": 6, "learning_rate": 3e-4}
_UNITS = {"cmae": "eV/Å", "residual": "eV/atom", "seconds": "s"}
_MISSING = {"atom": "int32", "epoch": "int32", "seed": "int32", "temperature_k": float, "displacement": float, "quantile": float}


# ---- Labels in cases ------------------------------------------------------------------------------


def of_frame(frame: Case) -> Label:
    """Return a frame of a benchmark, which it holds under ``frame``, as a label."""
    return Label(frame.structures["frame"], *(frame.reference[name] for name in QUANTITIES))


def put(case: Case, **parts: Iterable[Label]) -> None:
    """Put labels into a case: structures ``<part>/0`` …, and what is known of them as reference ``energy/<part>/0`` …."""
    for part, labels in parts.items():
        for number, label in enumerate(labels):
            case.structures[f"{part}/{number}"] = label.atoms
            known = {name: getattr(label, name) for name in QUANTITIES if getattr(label, name) is not None}
            case.reference.update({f"{name}/{part}/{number}": value for name, value in known.items()})


def labels_of(case: Case, part: str = "label") -> list[Label]:
    """Return the labels that :func:`put` put into a case as this part."""
    known = case.reference
    return [
        Label(atoms, known.get(f"energy/{role}"), known[f"forces/{role}"], known.get(f"stress/{role}"))
        for role, atoms in case.structures.items()
        if role.startswith(f"{part}/")
    ]


# ---- Draws ----------------------------------------------------------------------------------------


def divide(frames: Sequence, n_held_out: int) -> tuple[list, list]:
    """Divide frames into those held out and those, at least one, that labels may be drawn from; the same at every call, and in order."""
    if len(frames) <= n_held_out:
        raise ValueError(f"{len(frames)} frames do not suffice to hold {n_held_out} out")
    order = np.random.default_rng(0).permutation(len(frames))
    held, free = ([frames[k] for k in np.sort(part)] for part in (order[:n_held_out], order[n_held_out:]))
    return held, free


def draw(pool: Sequence, number: int, seed: int) -> list:
    """Draw so many labels, in the order of the pool."""
    return [pool[k] for k in np.sort(np.random.default_rng(seed + 1).choice(len(pool), number, replace=False))]


def draw_nested(pool: Sequence, number: int, seed: int) -> list:
    """Draw labels one after the other: with one seed, the first few are the same whatever the number."""
    if number > len(pool):
        raise ValueError(f"{number} labels are asked for, but there are {len(pool)}")
    return [pool[k] for k in np.random.default_rng(seed + 1).permutation(len(pool))[:number]]


# ---- Teachers -------------------------------------------------------------------------------------


def rattled(crystals: Iterable[ase.Atoms], size_a: float, rng: np.random.Generator | np.random.RandomState) -> list[ase.Atoms]:
    """Return crystals, each with normally distributed displacements of this root mean square per coordinate (Å)."""
    moved = []
    for crystal in crystals:
        atoms = crystal.copy()
        atoms.positions += rng.normal(0, size_a, atoms.positions.shape)
        moved.append(atoms)
    return moved


def stiffer(potential: Potential) -> Potential:
    """Return the potential times :data:`STIFFER`: a teacher whose forces the potential itself underestimates by a known factor."""
    return potential.scaled(STIFFER)


def labelled(teacher: Potential, frames: Sequence[ase.Atoms], *, stress: bool = False) -> list[Label]:
    """Let a teacher label structures, taken as periodic; StructureError if it cannot."""
    plain = [ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True) for atoms in frames]
    answers = teacher.evaluate(plain, stress=stress)
    for atoms, answer in zip(plain, answers, strict=True):
        if not answer.ok:
            raise StructureError(f"the teacher cannot label {atoms.get_chemical_formula()}: {answer.error}")
    return [Label(atoms, answer.energy, answer.forces, answer.stress) for atoms, answer in zip(plain, answers, strict=True)]


# ---- Recipes and networks -------------------------------------------------------------------------


def recipe(protocol: Any, **changes: Any) -> Recipe:
    """Return a recipe of those fields of a protocol that are also a recipe's, with changes."""
    names = {field.name for field in fields(Recipe)}
    return Recipe(**{name: value for name, value in vars(protocol).items() if name in names} | changes)


@dataclass(frozen=True)
class PaperProtocol:
    """What protocols share that fine-tune on a few labels as the paper does."""

    n_labels: int = 10  # labelled frames per draw; a tenth of them (at least one) selects the epoch
    seeds: tuple[int, ...] = (0,)  # one draw of labels each
    # See :class:`helpers.training.fine_tune.Recipe`.
    epochs: int = 100
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    energy_weight: float = 0.1
    force_weight: float = 100.0
    stress_weight: float = 0.1
    batch_size: int = 1


def student_recipe(protocol: Any, n_frames: int, steps: int, **changes: Any) -> Recipe:
    """Return the recipe of so many gradient steps from random weights, as :func:`recipe` does."""
    n_train = n_frames - max(1, round(Recipe().validation_fraction * n_frames))
    settings = {"epochs": max(1, round(steps * protocol.batch_size / n_train)), "stress_weight": 0.0, "max_gradient_norm": 10.0}
    return recipe(protocol, **settings | changes)


def reference_energies(labels: Sequence[Label]) -> dict[str, float]:
    """Return energies of the elements (eV/atom) that sum up to the labels' energies as nearly as can be.

    In a compound of fixed composition only their sum matters; the smallest solution is taken.
    """
    elements = sorted({symbol for label in labels for symbol in label.atoms.get_chemical_symbols()})
    counts = np.array([[label.atoms.symbols.count(element) for element in elements] for label in labels], dtype=float)
    solution, *_ = np.linalg.lstsq(counts, np.array([label.energy for label in labels]), rcond=None)
    return dict(zip(elements, solution.tolist(), strict=True))


def untaught(labels: Sequence[Label], architecture: str, channels: int, seed: int, **options: Any) -> GraphPotential:
    """Return a network with random weights, its energies and the size of its forces set for these labels (:func:`untrained.build`)."""
    force_rms = float(np.sqrt(np.mean(np.concatenate([label.forces for label in labels]) ** 2)))
    return untrained.build(architecture, reference_energies(labels), channels=channels, force_rms=force_rms, seed=seed, **options)


# ---- Before and after -----------------------------------------------------------------------------


def before_and_after(
    potential: Potential,
    cases: Sequence[Case],
    protocol: PaperProtocol,
    teach: Callable[[Potential, Case], None],
    test: Callable[[Potential, Case, Record], Rows],
    progress: bool = False,
) -> pd.DataFrame:
    """Fine-tune on the labels of each case, and test before (with the first seed only) and after.

    Cases hold labels under ``label``, and their ``seed``; ``teach`` puts labels into a case of set ``teacher``. ``test`` returns the rows
    of a potential and a case; it makes them with its third argument, :func:`helpers.results.row` without what is the same in all of them.
    Training writes a checkpoint after every epoch, so that a killed run goes on where it stopped; it is removed when the case is done.
    """
    rows: Rows = []
    for case in cases:
        seed, teacher = case.info["seed"], case.set == "teacher"
        chosen = recipe(protocol, seed=seed, **(_TEACHER if teacher else {}))
        if teacher:
            case = replace(case, structures={}, reference={})
            teach(potential, case)
        labels = labels_of(case)
        checkpoint = _checkpoint(potential, case, chosen, labels)
        tuned = fine_tune.fine_tune(potential, labels, chosen, checkpoint=checkpoint, progress=progress)
        before, after, training = (partial(row, potential.key, case, stage=stage) for stage in ("before", "after", "training"))
        if seed == protocol.seeds[0]:
            rows += test(potential, case, before)
        rows += test(tuned.potential, case, after)
        rows += training_rows(training, tuned)
        checkpoint.unlink(missing_ok=True)
    return filled(table(rows))


def _checkpoint(potential: Potential, case: Case, recipe: Recipe, labels: Sequence[Label]) -> Path:
    """Return where the training of a case is saved: a name that follows from weights, labels and recipe."""
    digest = hashlib.sha256(json.dumps([potential.describe(), recipe.record()], sort_keys=True, default=str).encode())
    for label in labels:
        digest.update(structures.content(label.atoms) + np.round(label.forces, 6).tobytes())
    return results.runs_dir() / "training" / "checkpoints" / f"{case.name.replace('/', '_')}-{digest.hexdigest()[:16]}.pt"


def training_rows(record: Record, tuned: FineTuned) -> Rows:
    """Return validation error and loss of every epoch, and which epoch was kept."""
    rows = [
        record(name, epoch[name], np.nan, unit, epoch=epoch["epoch"])
        for epoch in tuned.history
        for name, unit in (("validation_force_mae", "eV/Å"), ("loss", "1"))
    ]
    return [*rows, record("best_epoch", tuned.best_epoch, np.nan, "1")]


def mae_rows(record: Record, trained: FineTuned) -> Rows:
    """Return ``training_mae`` and ``validation_mae`` of the epoch that was kept."""
    best = trained.history[trained.best_epoch]
    return error_rows(record, {"training_mae": best["train_force_mae"], "validation_mae": best["validation_force_mae"]})


def numbered(labels: Iterable[Label]) -> list[tuple[dict[str, object], Label]]:
    """Return labels with the column that names each, ``held_out``."""
    return [({"held_out": f"{number:03d}"}, label) for number, label in enumerate(labels)]


def force_rows(record: Record, frames: Iterable[tuple[Mapping[str, object], Label]], predictions: Iterable[Prediction]) -> Rows:
    """Return one row per force component of labelled frames, each with its further columns; one failed row where there is no answer."""
    rows = []
    for (columns, label), prediction in zip(frames, predictions, strict=True):
        if not prediction.ok:
            rows.append(record("force", np.nan, np.nan, "eV/Å", error=prediction.error, **columns))
            continue
        for (atom, axis), wanted in np.ndenumerate(label.forces):
            values = round(prediction.forces[atom, axis], 4), round(wanted, 4)
            rows.append(record("force", *values, "eV/Å", **columns, atom=atom, component="xyz"[axis]))
    return rows


def rows_of(record: Record, made: pd.DataFrame, columns: Sequence[str] = (), name: str | None = None) -> Rows:
    """Return a benchmark's rows, with some columns if it has them and the property under a new name; ``held_out`` is the case."""
    rows = []
    for entry in made.to_dict("records"):
        known = {"held_out": entry["case"]} | {column: entry[column] for column in columns if column in entry}
        values = (entry[column] for column in ("value", "reference", "unit"))
        rows.append(record(name or entry["property"], *values, error=entry["reason"] or None, **known))
    return rows


def filled(made: pd.DataFrame) -> pd.DataFrame:
    """Give columns that some rows lack their type: −1 for numbers, empty text."""
    there = {name: kind for name, kind in _MISSING.items() if name in made}
    return made.fillna(dict.fromkeys(there, -1) | dict.fromkeys(("component", "held_out", "frame", "label"), "")).astype(there)


# ---- Errors ---------------------------------------------------------------------------------------


def fault(predictions: Iterable[Prediction]) -> str | None:
    """Return why the first prediction that failed did."""
    return next((prediction.error for prediction in predictions if not prediction.ok), None)


def forces(labels: Sequence[Label], predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Return all force components, of the labels and predicted (eV/Å)."""
    reference, predicted = (np.concatenate([answer.forces.ravel() for answer in answers]) for answers in (labels, predictions))
    return reference, predicted


def energy_errors(labels: Sequence[Label], predictions: Sequence[Prediction]) -> np.ndarray:
    """Return prediction minus label, eV/atom."""
    return np.array([(p.energy - label.total_energy) / len(label.atoms) for label, p in zip(labels, predictions, strict=True)])


def error_rows(record: Record, found: dict[str, float], **columns: object) -> Rows:
    """Return a row per number; its unit follows from its name."""
    return [record(name, value, np.nan, unit(name), **columns) for name, value in found.items()]


def unit(name: str) -> str:
    """Return the unit of an error: eV/Å of forces, eV/atom of energies, 1 of what has none."""
    if name in _UNITS or not name.endswith(("_mae", "_rmse", "_rms", "_drift")):
        return _UNITS.get(name, "1")
    return "eV/atom" if name.startswith("energy") else "eV/Å"


# ---- Draws together -------------------------------------------------------------------------------


def over_seeds(rows: pd.DataFrame, by: Sequence[str], column: str = "value", *, sort: bool = False) -> pd.DataFrame:
    """Return ``mean``, ``low``, ``high`` and number (``draws``) of a column, one row per combination of the columns ``by``."""
    grouped = rows.groupby(list(by), sort=sort, observed=True)[column]
    return grouped.agg(mean="mean", low="min", high="max", draws="size").reset_index()


def per_stage(made: pd.DataFrame) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    """Yield model, set, material, case and stage, and the rows of it, before and after; failed rows are left out."""
    by = ["model", "set", "material", "case", "stage"]
    staged = made[made["stage"].isin(["before", "after"]) & (made["status"] == "ok")]
    for key, part in staged.groupby(by, sort=False):
        yield dict(zip(by, key, strict=True)), part


def compare_stages(summary: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return, per material of a summary, some of its columns before fine-tuning, and their mean and range over the draws after.

    They are ``<column>_before``, ``<column>`` (mean after), ``<column>_low``, ``<column>_high`` (NaN of a single draw), and ``draws``.
    """
    before = summary[summary["stage"] == "before"].set_index("material")
    after = summary[summary["stage"] == "after"].groupby("material", sort=False)
    found = {"draws": after.size()}
    for column in columns:
        found |= {f"{column}_before": before[column], column: after[column].mean()}
        ends = after[column].agg(["min", "max"]).where(found["draws"] > 1)
        found |= {f"{column}_low": ends["min"], f"{column}_high": ends["max"]}
    return pd.DataFrame(found).loc[before.index]
