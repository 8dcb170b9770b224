"""Do losses that need no label mend softening? CHGNet and silicon crystals, with one label and with ten.

The losses of :mod:`helpers.training.weak_supervision` are added to fine-tuning on real DFT labels, with energies alone and with energies
and forces, and the result is tested on held-out frames of the crystal, where the potential is soft and scatters little.

Sets
----
``labels``
    Frames of crystalline Si at 300 to 1518 K, Zuo et al., J. Phys. Chem. A 124, 731 (2020): plain fine-tuning, and with each loss, for one
    label and several. Everything else is the same: frames, their order, number of gradient steps, learning rate.
``steps``
    The same with a heavy weight on PITC, for several sizes of the step and for adversarial directions.
``teacher``
    Two rattled cells of Si labelled by the potential itself, made a quarter stiffer; six gradient steps. No file is needed: the live check.

The table
---------
Columns beyond the standard ones: ``method`` (``none``: untrained; ``plain``, ``taylor``, ``spatial``; ``scalar``: no training but the best
single factor under the same loss, :func:`helpers.training.weak_supervision.best_scale`), ``labels`` (``energy`` or ``energy and forces``),
``n_labels``, ``weight`` (of the loss), ``step_a`` (Å), ``direction``, ``seed`` (which frames are drawn). Properties, over all test frames:
``slope``, ``inverse_slope`` and ``r2`` of forces (1), ``force_mae`` (eV/Å), ``energy_mae`` (eV/atom), ``residual`` (root mean square of
PITC's residual on the first labels after training, at the step of the case or, in ``plain``, of the protocol, eV/atom).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import pandas as pd
import torch
from ase.build import bulk

from helpers import softening
from helpers.benchmarks import Case, chosen_sets, row, table
from helpers.experiments import coverage
from helpers.potentials.base import GraphPotential, Potential
from helpers.training import fine_tune, trial, weak_supervision
from helpers.training.fine_tune import Label, Recipe
from helpers.training.weak_supervision import Weak

SETS: dict[str, tuple[str, ...]] = {"labels": coverage.SETS["silicon"], "steps": coverage.SETS["silicon"], "teacher": ()}
LIVE = "teacher"
KEYS: tuple[str, ...] = ()
MODELS = {"chgnet-0.3.0": tuple(SETS)}

# Every case is a training.
ATOMS_PER_SHARD = 500

# Training amplifies the last digits of float32.
TOLERANCES = {"slope": 0.02, "inverse_slope": 0.02, "r2": 0.01, "force_mae": 0.01, "energy_mae": 0.01, "residual": 1e-4}

_TEACHER_STEPS = 6
_N_RESIDUALS = 3  # labels whose residual is recorded
_METHODS = ("plain", "taylor", "spatial")


@dataclass(frozen=True)
class Protocol:
    """Settings."""

    counts: tuple[int, ...] = (1, 10)  # numbers of labels in set ``labels``
    n_labels: int = 10  # in set ``steps``
    n_tests: int = 5  # held-out frames
    seeds: tuple[int, ...] = (0, 1, 2)  # draws of labels
    gradient_steps: int = 10  # of every training
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    # See :class:`helpers.training.fine_tune.Recipe`; a force weight of zero where the labels are energies alone.
    energy_weight: float = 1e3
    force_weight: float = 1.0
    # Of the losses in set ``labels``; the weight is per (eV/atom)², as that of the energy.
    weight: float = 1e4
    step_a: float = 0.01
    heavy_weight: float = 1e5  # in set ``steps``
    steps_a: tuple[float, ...] = (0.01, 0.03)  # sizes of the step in set ``steps``, Å
    largest_step_a: float = 0.03  # … and that with adversarial directions, and with energies alone

    def recipe(self, info: dict, n_labels: int, steps: int) -> Recipe:
        """Return the recipe of a case."""
        weak = None
        if info["method"] in ("taylor", "spatial"):
            weights = {f"{info['method']}_weight": info["weight"]}
            weak = Weak(**weights, step_a=info["step_a"], direction=info["direction"], seed=info["seed"])
        return trial.recipe(
            self,
            epochs=max(1, round(steps / n_labels)),
            force_weight=self.force_weight if info["labels"] == "energy and forces" else 0.0,
            stress_weight=0.0,
            validation_fraction=0.0,
            keep="last",
            seed=info["seed"],
            weak=weak,
        )


def _info(method: str, labels: str, n_labels: int, seed: int, **weak: object) -> dict:
    plain = {"method": method, "labels": labels, "n_labels": n_labels, "weight": 0.0, "step_a": 0.0, "direction": "random"}
    return plain | weak | {"seed": seed}


def _variants(name: str, protocol: Protocol) -> list[dict]:
    """Return the cases of a set, those of the first seed first."""
    kinds = ("energy", "energy and forces")
    weak = {"weight": protocol.weight, "step_a": protocol.step_a}
    if name == "teacher":
        weak = {"weight": protocol.heavy_weight, "step_a": protocol.largest_step_a}
        both = [_info(method, kinds[1], 2, 0, **({} if method == "plain" else weak)) for method in _METHODS]
        return [_info("none", "", 0, 0), *both]
    found = [_info("none", "", 0, 0)] if name == "labels" else []
    for seed in protocol.seeds:
        for kind in kinds:
            if name == "labels":
                for method in _METHODS:
                    found += [_info(method, kind, n, seed, **({} if method == "plain" else weak)) for n in protocol.counts]
                continue
            heavy = partial(_info, "taylor", kind, protocol.n_labels, seed, weight=protocol.heavy_weight)
            if kind == "energy":
                found.append(heavy(step_a=protocol.largest_step_a))
                continue
            found += [heavy(step_a=step) for step in protocol.steps_a]
            found.append(heavy(step_a=protocol.largest_step_a, direction="adversarial"))
        if name == "steps":
            for step in (0.0, *protocol.steps_a):
                weight = protocol.heavy_weight if step else 0.0
                found.append(_info("scalar", kinds[1], protocol.n_labels, seed, weight=weight, step_a=step))
    return found


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per training, with its frames as ``label/0`` … and ``test/0`` …; KeyError if a set is unknown."""
    protocol = protocol or Protocol()
    chosen = chosen_sets(SETS, sets)
    found = []
    for name in chosen:
        for info in _variants(name, protocol):
            text = "/".join(f"{value:g}" if isinstance(value, float) else str(value) for value in info.values()).replace(" ", "-")
            case = Case(f"{name}/Si/{text}", name, "Si", {}, {}, info)
            if name != "teacher":
                free, held = _crystals(protocol.n_tests)
                trial.put(case, label=trial.draw_nested(free, info["n_labels"], info["seed"]), test=held)
            found.append(case)
    return found


@lru_cache(maxsize=1)
def _crystals(n_tests: int) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
    """Return frames of the crystal in molecular dynamics: those that labels are drawn from, and those held out."""
    pool = coverage.silicon(coverage.Protocol().held_out_share)
    labels = [replace(label, stress=None) for label in (*pool.training["vibrations"], *pool.tests["vibrations"])]
    held, free = trial.divide(labels, n_tests)
    return tuple(free), tuple(held)


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Train and test as each case says; a tidy table as the module's docstring says."""
    protocol = protocol or Protocol()
    rows: trial.Rows = []
    for case in cases:
        info, steps = case.info, protocol.gradient_steps
        if case.set == "teacher":
            case, steps = replace(case, structures={}, reference={}), _TEACHER_STEPS
            _teach(potential, case)
        labels, tests = trial.labels_of(case), trial.labels_of(case, "test")
        changed = potential
        if info["method"] == "scalar":
            changed = potential.scaled(_factor(potential, labels, info, protocol))
        elif info["method"] != "none":
            changed = fine_tune.fine_tune(potential, labels, protocol.recipe(info, len(labels), steps), progress=progress).potential
        found = _errors(changed, tests)
        if info["method"] not in ("none", "scalar"):
            residuals = taylor_residuals(changed, labels[:_N_RESIDUALS], info["step_a"] or protocol.step_a, seed=0)
            found["residual"] = float(np.sqrt(np.mean(residuals**2)))
        rows += trial.error_rows(partial(row, potential.key, case), found)
    return table(rows)


def _errors(potential: Potential, tests: Sequence[Label]) -> dict[str, float]:
    predictions = potential.evaluate([label.atoms for label in tests])
    fitted = softening.fit(*trial.forces(tests, predictions))
    found = {name: getattr(fitted, name) for name in ("slope", "inverse_slope", "r2")}
    return found | {"force_mae": fitted.mae, "energy_mae": float(np.abs(trial.energy_errors(tests, predictions)).mean())}


def taylor_residuals(potential: GraphPotential, labels: Sequence[Label], step_a: float, seed: int, draws: int = 1) -> np.ndarray:
    """Return PITC's residuals (eV/atom) in random directions, shape (n_labels, draws)."""
    generator = torch.Generator().manual_seed(seed)
    found = np.empty((len(labels), draws))
    for number, label in enumerate(labels):
        graph = potential.collate([potential.system(label.atoms)])
        known = potential.compute(graph)[:2]
        for draw in range(draws):
            d = step_a * weak_supervision.directions(len(label.atoms), generator, graph.positions.device)
            residual = weak_supervision.taylor_residual(potential, graph, d, known=known)
            found[number, draw] = residual.detach().item() / len(label.atoms)
    return found


def _factor(potential: GraphPotential, labels: Sequence[Label], info: dict, protocol: Protocol) -> float:
    """Return the best factor under the loss of a case; PITC's residuals are averaged over a few directions."""
    residuals = np.zeros(len(labels))
    if info["weight"]:
        residuals = np.sqrt(np.mean(taylor_residuals(potential, labels, info["step_a"], info["seed"], draws=2) ** 2, axis=1))
    forces = [prediction.forces for prediction in potential.evaluate([label.atoms for label in labels])]
    weights = {"force_weight": protocol.force_weight, "weak_weight": info["weight"]}
    return weak_supervision.best_scale([label.forces for label in labels], forces, residuals, **weights)


def _teach(potential: Potential, case: Case) -> None:
    """Give the teacher's case its frames; the teacher is stiffer, but has the same energy at rest."""
    crystal = bulk("Si", cubic=True)
    frames = trial.rattled([crystal] * 4, 0.08, np.random.RandomState(7))
    *labels, rest = trial.labelled(trial.stiffer(potential), [*frames, crystal])
    excess = rest.total_energy * (1 - 1 / trial.STIFFER)
    labels = [replace(label, energy=label.total_energy - excess) for label in labels]
    trial.put(case, label=labels[:2], test=labels[2:])


# ---- Analysis -------------------------------------------------------------------------------------


def over_seeds(made: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Return ``mean, low, high, draws`` of a property over the draws, and what it is untrained, ``before``."""
    good = made[(made["property"] == quantity) & (made["status"] == "ok")]
    before = good.loc[(good["method"] == "none") & (good["set"] != "teacher"), "value"]
    by = ["set", "method", "labels", "n_labels", "weight", "step_a", "direction"]
    found = trial.over_seeds(good[good["method"] != "none"], by)
    return found.assign(before=float(before.iloc[0]) if len(before) else np.nan)


def differences(made: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Return what each loss changes against plain fine-tuning with the same frames (``difference``), draw by draw, in set ``labels``."""
    rows = made[(made["set"] == "labels") & (made["property"] == quantity) & (made["method"] != "none")]
    wide = rows.pivot_table(index=["labels", "n_labels", "seed"], columns="method", values="value", observed=True)
    found = wide.drop(columns="plain").sub(wide["plain"], axis=0)
    return found.reset_index().melt(id_vars=["labels", "n_labels", "seed"], var_name="method", value_name="difference")


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return all properties over the draws, one row per property and kind of training."""
    names = ("slope", "inverse_slope", "r2", "force_mae", "energy_mae", "residual")
    return pd.concat([over_seeds(table, name).assign(property=name) for name in names], ignore_index=True)
