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
from dataclasses import dataclass

import numpy as np
import pandas as pd
from ase.build import bulk

from helpers import softening
from helpers.benchmarks import Case, chosen_sets, off_equilibrium, surfaces
from helpers.potentials.base import Potential
from helpers.training import trial

SETS: dict[str, tuple[str, ...]] = {
    "ten-labels": tuple(dict.fromkeys(off_equilibrium.SETS["single-element-md"] + surfaces.SETS["slabs-109"])),
    "teacher": (),
}
LIVE = "teacher"
KEYS = ("stage", "held_out", "epoch", "atom", "component")
MODELS = {"chgnet-0.3.0": tuple(SETS)}

# Training amplifies the last digits of float32: a few hundred steps apart, two machines differ by about a per cent.
TOLERANCES = {"force": 0.05, "surface_energy": 2e-3, "validation_force_mae": 0.02, "loss": 0.5, "best_epoch": 100}


@dataclass(frozen=True)
class Protocol(trial.PaperProtocol):
    """Settings, besides those of :class:`helpers.training.trial.PaperProtocol`."""

    materials: tuple[str, ...] = ("Si", "Mo", "Li")  # elements of the single-element sets
    n_held_out: int = 100  # frames never trained on
    seeds: tuple[int, ...] = (0, 1, 2)


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per material and draw of labels; KeyError if a set is unknown.

    ``structures`` holds the labels (``label/0`` …), the held-out frames (``held/0`` …) under those roles;
    ``reference`` their forces, energies and stresses under ``forces/<role>`` and so on.
    """
    protocol = protocol or Protocol()
    chosen = chosen_sets(SETS, sets)
    found: list[Case] = []
    if "ten-labels" in chosen:
        frames = off_equilibrium.cases(sets=["single-element-md"])
        for material in protocol.materials:
            thermal = [frame for frame in frames if frame.material == material and frame.info["group"] in ("AIMD-NVT", "Vacancy")]
            held, pool = trial.divide([trial.of_frame(frame) for frame in thermal], protocol.n_held_out)
            for seed in protocol.seeds:
                case = Case(f"ten-labels/{material}/seed-{seed}", "ten-labels", material, {}, {}, {"seed": seed})
                trial.put(case, label=trial.draw(pool, protocol.n_labels, seed), held=held)
                found.append(case)
    if "teacher" in chosen:
        found.append(Case("teacher/MgO/seed-0", "teacher", "MgO", {}, {}, {"seed": 0}))
    return found


def _teach(potential: Potential, case: Case) -> None:
    frames = trial.rattled([bulk("MgO", "rocksalt", a=4.21)] * 6, 0.1, np.random.default_rng(0))
    labels = trial.labelled(trial.stiffer(potential), frames, stress=True)
    trial.put(case, label=labels[:4], held=labels[4:])


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Fine-tune on each case's labels and evaluate before and after; a tidy table as the module's docstring says."""
    return trial.before_and_after(potential, cases, protocol or Protocol(), _teach, _test, progress)


def _test(potential: Potential, case: Case, record: trial.Record) -> trial.Rows:
    held = trial.labels_of(case, "held")
    rows = trial.force_rows(record, trial.numbered(held), potential.evaluate([label.atoms for label in held]))
    if case.set == "ten-labels":
        slabs = [slab for slab in surfaces.cases(sets=["slabs-109"]) if slab.material == case.material]
        gammas = surfaces.run(potential, slabs, surfaces.Protocol(relax=False))
        rows += trial.rows_of(record, gammas[gammas["property"] == "gamma_static"], name="surface_energy")
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return slope, R², MAE and cMAE of the held-out forces and the slope and MAE of the surface energies, per case and stage."""
    rows = []
    for entry, part in trial.per_stage(table):
        forces = part[part["property"] == "force"]
        fitted = softening.fit(forces["reference"], forces["value"])
        entry |= {name: getattr(fitted, name) for name in ("n", "slope", "inverse_slope", "r2", "mae", "cmae")}
        slabs = part[part["property"] == "surface_energy"]
        if len(slabs):
            entry["surface_slope"] = softening.softening_scale(slabs["reference"], slabs["value"])
            entry["surface_mae"] = float(np.abs(slabs["value"] - slabs["reference"]).mean())
        rows.append(entry)
    return pd.DataFrame(rows)


def before_and_after(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return, per material of ``ten-labels``, some columns of :func:`summarise` before and after; see :func:`trial.compare_stages`."""
    return trial.compare_stages(summarise(table[table["set"] == "ten-labels"]), columns)
