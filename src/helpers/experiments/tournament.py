"""Which cure at equal labels? The methods of :data:`helpers.training.fine_tune.METHODS` side by side: what is mended, what is forgotten.

Labels, test sets, the number of gradient steps and most properties are those of :mod:`helpers.experiments.learning_curve`. Without a
method is the potential as it is. The method ``curvature`` takes no part, since frames of molecular dynamics bring no force constants.

Sets: ``ten`` and ``one`` labels of Si, Mo and Li, one draw; ``rest``, 50 labels and all other draws; ``teacher``, rattled MgO, labelled by
the same potential made a quarter stiffer, and a few steps.

Columns are those of the learning curve. Properties besides: ``surface_slope`` and ``surface_inverse_slope`` of the unrelaxed surface
energies of the same element (test set ``surface``); ``force_change`` (eV/Å) and ``energy_change`` (eV/atom) of crystals of other elements
(test set ``forgotten``, see :func:`helpers.training.fine_tune.forgetting`); ``seconds`` of the training (processor time).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers import softening
from helpers.benchmarks import Case, chosen_sets, off_equilibrium, surfaces
from helpers.experiments import learning_curve
from helpers.potentials.base import Potential
from helpers.training import fine_tune, trial

_FILES = tuple(dict.fromkeys((*learning_curve.SETS["curve"], *surfaces.SETS["slabs-109"])))
SETS: dict[str, tuple[str, ...]] = {"ten": _FILES, "one": _FILES, "rest": _FILES, "teacher": ()}
LIVE = "teacher"
KEYS = learning_curve.KEYS
MODELS = {"chgnet-0.3.0": ("ten", LIVE)}
ATOMS_PER_SHARD = 1
TOLERANCES = learning_curve.TOLERANCES | {"force_change": 0.01, "energy_change": 0.02}
METHODS = tuple(method for method in fine_tune.METHODS if method != "curvature")

_DRAWS = {"ten": [(10, 0)], "one": [(1, 0)], LIVE: [(2, 0)]}  # numbers of labels and seeds
_TEACHER_STEPS = 8


@dataclass(frozen=True)
class Protocol(learning_curve.Protocol):
    """Settings: those of the learning curve."""

    counts: tuple[int, ...] = (1, 10, 50)


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per material, number of labels, draw and method, as those of the learning curve; KeyError if a set is unknown."""
    protocol, found = protocol or Protocol(), []
    chosen = chosen_sets(SETS, sets)
    frames, compounds = ([], []) if chosen == [LIVE] else (off_equilibrium.cases(sets=[s]) for s in ("single-element-md", "mptrj-1k"))
    rest = [(n, seed) for seed in protocol.seeds for n in protocol.counts if (n, seed) not in _DRAWS["ten"] + _DRAWS["one"]]
    for name in chosen:
        for material in ("MgO",) if name == LIVE else protocol.materials:
            pool = None if name == LIVE else learning_curve.pool(material, frames, compounds, protocol)
            each = [(*draw, method) for draw in _DRAWS.get(name, rest) for method in METHODS]
            for n, seed, method in [(0, 0, "none")] * (name in ("ten", LIVE)) + each:
                info = {"method": method, "kind": "any", "n_labels": n, "seed": seed}
                made = Case(f"{name}/{material}/{method}/n-{n}/seed-{seed}", name, material, {}, {}, info)
                if pool:
                    trial.put(made, label=trial.draw_nested(pool.labels["any"], n, seed), **pool.tests)
                found.append(made)
    return found


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Train the potential as each case says and test it; a tidy table as the module's docstring says."""
    return learning_curve.run(potential, cases, protocol or Protocol(), progress, _rows)


def _rows(potential: Potential, case: Case, record: trial.Record, protocol: Protocol, progress: bool) -> trial.Rows:
    labels, tests, start, method = trial.labels_of(case), learning_curve.tests_of(case), time.process_time(), case.info["method"]
    after = potential
    if method == "linear":
        after = fine_tune.linear_correction(potential, labels, "advised")
    elif method != "none":
        recipe = protocol.recipe("all", len(labels), case.info["seed"], _TEACHER_STEPS if case.set == LIVE else None)
        recipe = fine_tune.recipe_of(method, potential, recipe)
        after = fine_tune.fine_tune(potential, labels, recipe, progress=progress).potential
    seconds = time.process_time() - start
    before = learning_curve.untouched(potential, tests)
    answers = {name: after.evaluate([label.atoms for label in members]) for name, members in tests.items()}
    rows = learning_curve.error_rows(record, tests, before, answers)
    if labels:
        lost = fine_tune.forgetting(potential, after, {z for label in labels for z in label.atoms.numbers.tolist()})
        rows.append(record("force_change", lost["forces"], np.nan, "eV/Å", held_out="forgotten"))
        rows.append(record("energy_change", lost["energy"], np.nan, "eV/atom", held_out="forgotten"))
    if case.set != LIVE:
        rows.append(record("seconds", seconds, np.nan, "s", held_out=""))
        slabs = [slab for slab in surfaces.cases(sets=["slabs-109"]) if slab.material == case.material]
        made = surfaces.run(after, slabs, surfaces.Protocol(relax=False))
        made = made[(made["property"] == "gamma_static") & (made["status"] == "ok")]
        found = softening.fit(made["reference"], made["value"])
        rows += trial.error_rows(record, {"surface_slope": found.slope, "surface_inverse_slope": found.inverse_slope}, held_out="surface")
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and range over the draws of every property on every test set, by model, material, method and number of labels."""
    by = ["model", "material", "method", "n_labels", "property", "held_out"]
    return trial.over_seeds(table[table["status"] == "ok"], by)
