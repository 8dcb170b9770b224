"""Fine-tuning with ten labels (Fig. 6 of the paper), on single elements with ab-initio molecular dynamics.

For each material, 100 frames are held out once and for all; ten labels are drawn from the rest, once per seed.
A case is one draw. Its run fine-tunes the potential with the paper's recipe and evaluates the held-out frames before and
after, as well as unrelaxed surface energies of the same element, which no label shows: what does a force label teach about
an energy difference?

Sets
----
``ten-labels``
    Si, Li and Mo: thermal and vacancy frames of Zuo et al., J. Phys. Chem. A 124, 731 (2020).
``teacher``
    Rattled MgO whose labels come from the same potential made a quarter stiffer. The right answer is known (a constant
    of 1.25), no file is needed, and a few epochs show that the loop learns: the live check.

The table
---------
Columns beyond the standard ones: ``stage`` (``before``, ``after`` or ``training``), ``seed``, ``held_out`` (frame or slab),
``atom``, ``component``, ``epoch``.
Properties: ``force`` (held-out frames, one row per component; ``before`` only for the first seed, since it is the same for all),
``surface_energy`` (eV/Å², column ``held_out`` names the slab), ``validation_force_mae`` and ``loss`` (one row per epoch), ``best_epoch``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
from ase.build import bulk

from helpers import softening
from helpers.benchmarks import Case, chosen_sets, off_equilibrium, row, surfaces, table
from helpers.potentials.base import Potential, Prediction
from helpers.training import fine_tune
from helpers.training.fine_tune import Label, Recipe

SETS: dict[str, tuple[str, ...]] = {
    "ten-labels": tuple(dict.fromkeys(off_equilibrium.SETS["single-element-md"] + surfaces.SETS["slabs-109"])),
    "teacher": (),
}
LIVE = "teacher"

# Training amplifies the last digits of float32: a few hundred steps apart, two machines differ by about a per cent.
TOLERANCES = {"force": 0.05, "surface_energy": 2e-3, "validation_force_mae": 0.02, "loss": 0.5, "best_epoch": 100}

_TEACHER_SCALE = 1.25
_TEACHER_EPOCHS = 6
_QUANTITIES = ("energy", "forces", "stress")


class Training:
    """What protocols share whose fields are also those of a recipe."""

    def recipe(self, seed: int, **changes: object) -> Recipe:
        """Return the recipe of one draw."""
        names = {f.name for f in fields(Recipe)}
        return Recipe(**{k: v for k, v in {**asdict(self), "seed": seed, **changes}.items() if k in names})


@dataclass(frozen=True)
class Protocol(Training):
    """Settings.

    Attributes
    ----------
    materials : tuple of str
        Elements of the single-element sets.
    n_labels : int
        Labelled frames per draw; a tenth of them (at least one) selects the epoch.
    n_held_out : int
        Frames never trained on.
    seeds : tuple of int
        One draw of labels each.
    epochs, learning_rate, final_learning_rate, energy_weight, force_weight, stress_weight, batch_size
        See :class:`helpers.training.fine_tune.Recipe`.
    """

    materials: tuple[str, ...] = ("Si", "Mo", "Li")
    n_labels: int = 10
    n_held_out: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 100
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    energy_weight: float = 0.1
    force_weight: float = 100.0
    stress_weight: float = 0.1
    batch_size: int = 1


def thermal_frames(material: str) -> list[Case]:
    """Return the molecular-dynamics and vacancy frames of an element, in the files' order."""
    frames = off_equilibrium.cases(sets=["single-element-md"])
    return [case for case in frames if case.material == material and case.info["group"] in ("AIMD-NVT", "Vacancy")]


def held_out(n_frames: int, n_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide frames into those held out and those that labels may be drawn from; the same at every call.

    Returns
    -------
    held, pool : int arrays
        Sorted frame numbers.
    """
    if n_frames <= n_held_out:
        raise ValueError(f"{n_frames} frames do not suffice to hold {n_held_out} out")
    order = np.random.default_rng(0).permutation(n_frames)
    return np.sort(order[:n_held_out]), np.sort(order[n_held_out:])


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per material and draw of labels.

    ``structures`` holds the labels (``label/0`` …), the held-out frames (``held/0`` …) under those roles;
    ``reference`` their forces, energies and stresses under ``forces/<role>`` and so on.

    Raises
    ------
    KeyError
        If a set is unknown.
    """
    protocol = protocol or Protocol()
    chosen = chosen_sets(SETS, sets)
    found: list[Case] = []
    if "ten-labels" in chosen:
        for material in protocol.materials:
            frames = thermal_frames(material)
            held, pool = held_out(len(frames), protocol.n_held_out)
            for seed in protocol.seeds:
                drawn = np.sort(np.random.default_rng(seed + 1).choice(pool, protocol.n_labels, replace=False))
                found.append(_case(material, seed, [frames[k] for k in drawn], [frames[k] for k in held]))
    if "teacher" in chosen:
        found.append(Case("teacher/MgO/seed-0", "teacher", "MgO", {}, {}, {"seed": 0}))
    return found


def _case(material: str, seed: int, labels: Sequence[Case], held: Sequence[Case]) -> Case:
    roles = {f"label/{k}": frame for k, frame in enumerate(labels)} | {f"held/{k}": frame for k, frame in enumerate(held)}
    return Case(
        name=f"ten-labels/{material}/seed-{seed}",
        set="ten-labels",
        material=material,
        structures={role: frame.structures["frame"] for role, frame in roles.items()},
        reference={f"{name}/{role}": frame.reference[name] for role, frame in roles.items() for name in _QUANTITIES},
        info={"seed": seed},
    )


def labels_of(case: Case, kind: str) -> list[Label]:
    """Return the labelled structures of a case whose role begins with ``kind`` (``label`` or ``held``)."""
    roles = [role for role in case.structures if role.startswith(kind)]
    return [Label(case.structures[role], *(case.reference.get(f"{name}/{role}") for name in _QUANTITIES)) for role in roles]


def put(case: Case, kind: str, labels: Iterable[Label], quantities: Sequence[str] = _QUANTITIES) -> None:
    """Put labels into a case as ``kind/0`` …, with what is known of these quantities; :func:`labels_of` gets them back."""
    for number, label in enumerate(labels):
        case.structures[f"{kind}/{number}"] = label.atoms
        known = {name: getattr(label, name) for name in quantities if getattr(label, name) is not None}
        case.reference.update({f"{name}/{kind}/{number}": value for name, value in known.items()})


def _teacher_labels(potential: Potential) -> list[Label]:
    rng = np.random.default_rng(0)
    frames = [bulk("MgO", "rocksalt", a=4.21) for _ in range(6)]
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    answers = potential.scaled(_TEACHER_SCALE).evaluate(frames, stress=True)
    return [Label(atoms, p.energy, p.forces, p.stress) for atoms, p in zip(frames, answers, strict=True)]


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Fine-tune on each case's labels and evaluate before and after; a tidy table as the module's docstring says."""
    protocol = protocol or Protocol()
    rows: list[dict[str, object]] = []
    for case in cases:
        if case.set == "teacher":
            everything = _teacher_labels(potential)
            labels, held = everything[:4], everything[4:]
            recipe = protocol.recipe(case.info["seed"], epochs=_TEACHER_EPOCHS, learning_rate=3e-4)
        else:
            labels, held = labels_of(case, "label"), labels_of(case, "held")
            recipe = protocol.recipe(case.info["seed"])
        tuned = fine_tune.fine_tune(potential, labels, recipe, progress=progress)
        slabs = _slabs(case.material) if case.set == "ten-labels" else []
        if case.info["seed"] == protocol.seeds[0]:
            rows += _evaluate(potential, potential.key, case, held, slabs, "before")
        rows += _evaluate(tuned.potential, potential.key, case, held, slabs, "after")
        rows += training_rows(potential.key, case, tuned)
    return filled(table(rows))


def training_rows(key: str, case: Case, tuned: fine_tune.FineTuned) -> list[dict[str, object]]:
    """Return validation error and loss of every epoch, and which epoch was kept."""
    rows = [
        row(key, case, name, epoch[name], np.nan, unit, stage="training", epoch=epoch["epoch"])
        for epoch in tuned.history
        for name, unit in (("validation_force_mae", "eV/Å"), ("loss", "1"))
    ]
    return [*rows, row(key, case, "best_epoch", tuned.best_epoch, np.nan, "1", stage="training")]


def filled(made: pd.DataFrame) -> pd.DataFrame:
    """Give columns that some rows lack their type: -1 for numbers, empty text."""
    for name in ("atom", "epoch", "seed"):
        if name in made:
            made[name] = made[name].fillna(-1).astype("int32")
    return made.fillna({"component": "", "held_out": ""})


def _slabs(material: str) -> list[Case]:
    return [case for case in surfaces.cases(sets=["slabs-109"]) if case.material == material]


def _evaluate(
    potential: Potential, key: str, case: Case, held: Sequence[Label], slabs: Sequence[Case], stage: str
) -> list[dict[str, object]]:
    rows = force_rows(key, case, held, potential.evaluate([label.atoms for label in held]), stage)
    if slabs:
        gammas = surfaces.run(potential, slabs, surfaces.Protocol(relax=False))
        for _, entry in gammas[gammas["property"] == "gamma_static"].iterrows():
            error = entry["reason"] or None
            values = entry["value"], entry["reference"], entry["unit"]
            rows.append(row(key, case, "surface_energy", *values, error=error, stage=stage, held_out=entry["case"]))
    return rows


def force_rows(key: str, case: Case, held: Sequence[Label], predictions: Sequence[Prediction], stage: str) -> list[dict[str, object]]:
    """Return one row per force component of the held-out frames; one failed row for a frame that could not be evaluated."""
    rows = []
    for number, (label, prediction) in enumerate(zip(held, predictions, strict=True)):
        frame = {"stage": stage, "held_out": f"{number:03d}"}
        if not prediction.ok:
            rows.append(row(key, case, "force", np.nan, np.nan, "eV/Å", error=prediction.error, **frame))
            continue
        for atom, (predicted, reference) in enumerate(zip(prediction.forces, label.forces, strict=True)):
            for component, value, wanted in zip("xyz", predicted, reference, strict=True):
                rows.append(row(key, case, "force", round(value, 4), round(wanted, 4), "eV/Å", atom=atom, component=component, **frame))
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return slope, R², MAE and cMAE of the held-out forces and the slope and MAE of the surface energies, per case and stage."""
    rows = []
    for (model, chosen, material, case, stage), part in table[table["stage"].isin(["before", "after"])].groupby(
        ["model", "set", "material", "case", "stage"], sort=False
    ):
        forces = part[(part["property"] == "force") & (part["status"] == "ok")]
        fitted = softening.fit(forces["reference"], forces["value"])
        entry = {"model": model, "set": chosen, "material": material, "case": case, "stage": stage, "n": fitted.n}
        entry |= {"slope": fitted.slope, "inverse_slope": fitted.inverse_slope, "r2": fitted.r2, "mae": fitted.mae, "cmae": fitted.cmae}
        slabs = part[part["property"] == "surface_energy"]
        if len(slabs):
            entry["surface_slope"] = softening.softening_scale(slabs["reference"], slabs["value"])
            entry["surface_mae"] = float(np.abs(slabs["value"] - slabs["reference"]).mean())
        rows.append(entry)
    return pd.DataFrame(rows)


def before_and_after(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return, per material of ``ten-labels``, some columns of :func:`summarise` before and after; see :func:`compare_stages`."""
    return compare_stages(summarise(table[table["set"] == "ten-labels"]), columns)


def compare_stages(summary: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return, per material of a summary, some of its columns before fine-tuning, and their mean and range over the draws after.

    Columns of the result: ``<column>_before``, ``<column>`` (mean after), ``<column>_low``, ``<column>_high``, and ``draws``.
    """
    before = summary[summary["stage"] == "before"].set_index("material")
    after = summary[summary["stage"] == "after"].groupby("material", sort=False)
    found = {"draws": after.size()}
    for column in columns:
        found |= {f"{column}_before": before[column], column: after[column].mean()}
        found |= {f"{column}_low": after[column].min(), f"{column}_high": after[column].max()}
    return pd.DataFrame(found).loc[before.index]
