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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import ase
import numpy as np
import pandas as pd
from ase.build import bulk

from helpers import softening
from helpers.benchmarks import Case, chosen_sets, defects, off_equilibrium
from helpers.potentials.base import Potential, Prediction
from helpers.sources import snap
from helpers.training import trial
from helpers.training.fine_tune import Label

_ALLOYS = {"Nb-Mo": "NbMo", "Ta-W": "TaW"}
_SNAP = f"{snap.SNAP}/NbMoTaW/training"

SETS: dict[str, tuple[str, ...]] = {
    "vacancy-frames": tuple(dict.fromkeys(off_equilibrium.SETS["single-element-md"] + defects.SETS["vacancies"])),
    "orderings": tuple(
        [f"{_SNAP}/{file}_SS.json" for file in _ALLOYS.values()]
        + [f"{_SNAP}/{element}_Elastic.json" for name in _ALLOYS for element in name.split("-")]
    ),
    "teacher": (),
}
LIVE = "teacher"
KEYS = ("stage", "held_out", "epoch", "atom", "component")
MODELS = {"chgnet-0.3.0": tuple(SETS)}

# Training amplifies the last digits of float32: a few hundred steps apart, two machines differ by about a per cent.
TOLERANCES = dict.fromkeys(("force", "energy_difference", "vacancy_energy"), 0.05)
TOLERANCES |= {"validation_force_mae": 0.02, "loss": 0.5, "best_epoch": 100}


@dataclass(frozen=True)
class Protocol(trial.PaperProtocol):
    """Settings, besides those of :class:`helpers.training.trial.PaperProtocol`."""

    # Materials of the two sets.
    elements: tuple[str, ...] = ("Si", "Mo", "Li", "Cu", "Ni")
    alloys: tuple[str, ...] = ("Nb-Mo", "Ta-W")
    n_held_out: int = 12  # vacancy frames never trained on
    n_held_out_orderings: int = 100  # relaxed orderings evaluated, none of which is a relaxed label


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per material and draw of labels, first draws first; KeyError if a set is unknown.

    ``structures`` holds the labels (``label/0`` …), the held-out frames (``held/0`` …) and the pure crystals (``crystal/Nb`` …);
    ``reference`` energies (eV), forces (eV/Å) and stresses (eV/Å³) under ``energy/<role>`` and so on.
    """
    protocol = protocol or Protocol()
    chosen = chosen_sets(SETS, sets)
    sources: dict[str, dict[str, Pool]] = {}
    if "vacancy-frames" in chosen:
        frames = off_equilibrium.cases(sets=["single-element-md"])
        sources["vacancy-frames"] = {element: _vacancy_frames(element, frames, protocol) for element in protocol.elements}
    if "orderings" in chosen:
        sources["orderings"] = {alloy: _orderings(alloy, protocol) for alloy in protocol.alloys}
    found = [
        draw(Case(f"{name}/{material}/seed-{seed}", name, material, {}, {}, {"seed": seed}), source, protocol.n_labels)
        for seed in protocol.seeds
        for name, materials in sources.items()
        for material, source in materials.items()
    ]
    if "teacher" in chosen:
        found.append(Case("teacher/Al/seed-0", "teacher", "Al", {}, {}, {"seed": 0}))
    return found


@dataclass(frozen=True)
class Pool:
    """What labels are drawn from, what is held out, and the pure crystals with their energies (eV)."""

    pool: list[Label]
    held: list[Label]
    crystals: dict[str, tuple[ase.Atoms, float]]


def draw(case: Case, source: Pool, n_labels: int) -> Case:
    """Return a case with labels drawn by its seed, what is held out, and the pure crystals."""
    trial.put(case, label=trial.draw(source.pool, n_labels, case.info["seed"]), held=source.held)
    for element, (crystal, energy) in source.crystals.items():
        case.structures[f"crystal/{element}"] = crystal
        case.reference[f"energy/crystal/{element}"] = energy
    return case


def _vacancy_frames(element: str, frames: Sequence[Case], protocol: Protocol) -> Pool:
    vacancy, elastic = ([case for case in frames if (case.material, case.info["group"]) == (element, g)] for g in ("Vacancy", "Elastic"))
    crystal = min(elastic, key=lambda case: np.abs(case.reference["stress"]).max())
    held, pool = trial.divide([trial.of_frame(frame) for frame in vacancy], protocol.n_held_out)
    return Pool(pool, held, {element: (crystal.structures["frame"], crystal.reference["energy"])})


def _orderings(alloy: str, protocol: Protocol) -> Pool:
    frames = snap.frames([f"{_SNAP}/{_ALLOYS[alloy]}_SS.json"])
    labels = {tag: [Label(x.atoms, x.energy, x.forces, x.stress) for x in frames if tag in x.info["notes"]] for tag in ("relax", "unrelax")}
    crystals = {}
    for element in alloy.split("-"):
        frame = snap.undeformed(snap.frames([f"{_SNAP}/{element}_Elastic.json"]))
        crystals[element] = (frame.atoms, frame.energy)
    # Symmetry leaves some orderings without forces: they teach nothing.
    pool = [label for label in labels["unrelax"] if np.abs(label.forces).max() > 1e-3]
    order = np.random.default_rng(0).permutation(len(labels["relax"]))[: protocol.n_held_out_orderings]
    return Pool(pool, [labels["relax"][k] for k in np.sort(order)], crystals)


def _teach(potential: Potential, case: Case) -> None:
    """Give the teacher's case its labels: rattled cells with a vacancy."""
    rng = np.random.default_rng(0)
    crystal = bulk("Al", cubic=True)

    def with_vacancy() -> Iterator[ase.Atoms]:
        for _ in range(6):
            atoms = crystal.repeat((2, 2, 1))
            del atoms[int(rng.integers(len(atoms)))]
            yield atoms

    *labels, pure = trial.labelled(trial.stiffer(potential), [*trial.rattled(with_vacancy(), 0.12, rng), crystal], stress=True)
    draw(case, Pool(labels[:4], labels[4:], {"Al": (crystal, pure.total_energy)}), 4)


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Fine-tune on each case's labels and evaluate before and after; a tidy table as the module's docstring says."""
    return trial.before_and_after(potential, cases, protocol or Protocol(), _teach, test, progress)


def test(potential: Potential, case: Case, record: trial.Record) -> trial.Rows:
    """Return the rows of a potential on a case: forces on what is held out, and the energy difference that counts there."""
    held = trial.labels_of(case, "held")
    crystals = {role.removeprefix("crystal/"): atoms for role, atoms in case.structures.items() if role.startswith("crystal/")}
    predictions = potential.evaluate([*[label.atoms for label in held], *crystals.values()])
    predictions, pure = predictions[: len(held)], dict(zip(crystals, predictions[len(held) :], strict=True))
    rows = trial.force_rows(record, trial.numbered(held), predictions)
    rows += _difference_rows(record, case, predictions, crystals, pure)
    if case.set == "vacancy-frames":
        # Published vacancy energies of this element in its ground state.
        published = [one for one in defects.cases(sets=["vacancies", "bcc-vacancies"]) if one.material == case.material]
        made = defects.run(potential, published, defects.Protocol())
        rows += trial.rows_of(record, made[made["property"] == "relaxed"], name="vacancy_energy")
    return rows


def _difference_rows(
    record: trial.Record, case: Case, predictions: Sequence[Prediction], crystals: dict[str, ase.Atoms], pure: dict[str, Prediction]
) -> trial.Rows:
    """Return the energy of each held-out frame above the pure crystals, model and DFT."""
    wrong = trial.fault(pure.values())
    rows = []
    for (columns, label), prediction in zip(trial.numbered(trial.labels_of(case, "held")), predictions, strict=True):
        shares = {element: label.atoms.symbols.count(element) / len(crystal) for element, crystal in crystals.items()}
        reference = label.total_energy - sum(share * case.reference[f"energy/crystal/{element}"] for element, share in shares.items())
        error = wrong or prediction.error
        value = np.nan if error else prediction.energy - sum(share * pure[element].energy for element, share in shares.items())
        rows.append(record("energy_difference", value, reference, "eV", error=error, **columns))
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return, per case and stage, slope and MAE of held-out forces and energy differences, and the vacancy energy beside DFT.

    Columns: ``model, set, material, case, stage``; ``force_slope, force_mae`` (eV/Å); ``energy_slope`` (through the origin), ``energy_mae``
    (eV per cell) and ``energy_spread_slope`` (with an intercept: are differences *among* the held-out frames right, whatever
    their mean?); ``vacancy_energy`` and ``vacancy_reference`` (eV, NaN where there is no published value).
    """
    records = []
    for record, part in trial.per_stage(table):
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
    """Return, per material of a set, some columns of :func:`summarise` before and after; see :func:`trial.compare_stages`."""
    return trial.compare_stages(summarise(table[table["set"] == chosen]), columns)
