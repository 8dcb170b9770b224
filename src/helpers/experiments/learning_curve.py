"""How much does each label buy? Errors against the number of labels, by method and kind of label, and what is forgotten.

:mod:`helpers.experiments.fine_tuning` repeats the paper's ten labels. Here the number of labels goes from one to a hundred, labels are of
one kind only, less than all weights are trained, and the potential is asked afterwards about materials that no label shows.

Labels are drawn one after the other, so that those of a small number are among those of every larger one with the same seed. All of them
are trained on and the last epoch is kept: with one or two labels there is nothing to validate with. The number of gradient steps hardly
depends on the number of labels (:meth:`Protocol.steps`), so that the curves compare data, not effort.

Sets
----
``curve``
    Si, Mo and Li (Zuo et al., J. Phys. Chem. A 124, 731 (2020)): ``scalar`` (one constant, closed form, least squares), ``all`` (all
    weights) and ``scratch`` (the same architecture, half as wide, from random weights) against the number of labels; ``none`` is the
    potential as it is.
``kinds``
    All weights, a few labels of one kind: ``cold`` and ``molten`` (molecular dynamics at the lowest and the highest temperature),
    ``vacancy``, ``strained``, ``slab``, and ``largest`` (of all thermal frames the fifth with the largest forces).
``parts``
    Less than all weights: the ``readout``, the ``last-layer`` with it, and corrections of ``low-rank``.
``teacher``
    Rattled MgO, labelled by the same potential made a quarter stiffer: no file is needed, the right answer is known, a few steps.

The table
---------
One row per case, property and test set. Columns beyond the standard ones: ``method``, ``kind`` (of the labels; ``any`` is drawn from all
thermal frames), ``n_labels``, ``seed``, ``held_out`` (test set). ``reference`` is empty: all values are errors, slopes or counts.

Test sets of the same element, never trained on: ``all`` (thermal and vacancy frames), its parts ``cold``, ``molten`` and ``vacancy``, and
``strained`` and ``slab``. Test sets that no label shows: ``other-chemistry`` and ``compounds`` (frames of the models' training data MPtrj
without and with the element), and the names of other elements (thermal frames).

Properties: ``force_mae`` and ``cmae`` (eV/Å), ``slope``, ``inverse_slope``; ``energy_mae`` (eV/atom, after one constant for the element,
the mean error of ``all``, has been taken off) and ``n_trained`` (how many numbers were trained). On test sets of other materials, of which
one frame may be far worse than all others: ``frame_mae`` (eV/Å, the median over frames of each one's force MAE), and ``energy_drift``
(eV/atom, mean change of the prediction).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import ase
import numpy as np
import pandas as pd
from ase.build import bulk

from helpers import softening, structures
from helpers.benchmarks import Case, chosen_sets, off_equilibrium, row, table
from helpers.potentials.base import Potential, PotentialError, Prediction, StructureError
from helpers.training import fine_tune, trial
from helpers.training.fine_tune import Label, Recipe

_FRAMES = tuple(dict.fromkeys(off_equilibrium.SETS["single-element-md"] + off_equilibrium.SETS["mptrj-1k"]))
SETS: dict[str, tuple[str, ...]] = {"curve": _FRAMES, "kinds": _FRAMES, "parts": _FRAMES, "teacher": ()}
LIVE = "teacher"
KEYS = ("held_out",)
MODELS = {"chgnet-0.3.0": tuple(SETS)}

# Each training is a piece of work of its own.
ATOMS_PER_SHARD = 1

# Training amplifies the last digits of float32.
TOLERANCES = dict.fromkeys(("force_mae", "cmae", "frame_mae", "energy_mae"), 0.01)
TOLERANCES |= {"slope": 0.02, "inverse_slope": 0.02, "energy_drift": 0.02, "n_trained": 0}

KINDS = ("cold", "molten", "vacancy", "strained", "slab", "largest")
OWN = ("all", "cold", "molten", "vacancy", "strained", "slab")
ELEMENTS = ("Si", "Mo", "Li", "Cu", "Ni")

_TEACHER_STEPS = 8
# Forces below this (eV/Å) vanish by symmetry: they determine no slope.
_NO_FORCE = 1e-3


@dataclass(frozen=True)
class Protocol:
    """Settings."""

    materials: tuple[str, ...] = ("Si", "Mo", "Li")  # elements
    counts: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)  # numbers of labels
    seeds: tuple[int, ...] = (0, 1, 2)  # of the draws of ``curve``
    few_seeds: tuple[int, ...] = (0, 1)  # of the draws of ``kinds`` and ``parts``
    # Frames of the element that are tested on, never trained on.
    n_held_out: int = 44
    n_held_out_strained: int = 8
    n_held_out_slabs: int = 4
    n_kind: int = 5  # labels of one kind
    n_parts: tuple[int, ...] = (10,)  # numbers of labels where less than all weights are trained
    # Frames without the element, with it, and of each other element.
    n_other: int = 30
    n_compounds: int = 15
    n_element: int = 2
    max_atoms: int = 32  # of those compounds
    # Gradient steps: see :meth:`steps`.
    steps_per_label: int = 100
    max_steps: int = 200
    scratch_steps: int = 400
    rank: int = 4  # of the corrections ``low-rank``
    scratch_counts: tuple[int, ...] = (1, 5, 10, 100)  # numbers of labels where a network is trained from random weights
    scratch_channels: int = 32  # its width
    # See :class:`helpers.training.fine_tune.Recipe`; the paper's.
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    # Where few numbers are trained, or all of them are wrong, they have further to go. Of 0.003 and 0.01 the better for every method, with
    # ten labels of Li and thirty more frames to validate, none of them a test frame.
    part_learning_rate: float = 1e-2
    scratch_learning_rate: float = 1e-2
    energy_weight: float = 0.1
    force_weight: float = 100.0
    stress_weight: float = 0.1

    def steps(self, n_labels: int, method: str = "all") -> int:
        """Return the number of gradient steps: a hundred epochs, as in the paper, or ``max_steps`` if that is less.

        Random weights have further to go: ``scratch_steps`` for any number of labels.
        """
        return self.scratch_steps if method == "scratch" else min(self.steps_per_label * n_labels, self.max_steps)

    def recipe(self, method: str, n_labels: int, seed: int, steps: int | None = None) -> Recipe:
        """Return the recipe of a training; ``Recipe.trained`` is left to :func:`train`, which knows the network."""
        rates = {"all": self.learning_rate, "scratch": self.scratch_learning_rate}
        return trial.recipe(
            self,
            epochs=max(1, round((steps or self.steps(n_labels, method)) / n_labels)),
            learning_rate=rates.get(method, self.part_learning_rate),
            max_gradient_norm=10.0 if method == "scratch" else None,
            validation_fraction=0.0,
            keep="last",
            seed=seed,
            rank=self.rank if method == "low-rank" else 0,
        )


# ---- Labels and test sets -------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Frames of one element: what labels are drawn from, by kind, and what is tested on, by test set."""

    labels: dict[str, list[Label]]
    tests: dict[str, list[Label]]


def kind_of(frame: Case, temperatures_k: tuple[float, float]) -> str:
    """Return the kind of a frame, given the lowest and the highest temperature of the element's dynamics; empty for those in between."""
    group = frame.info["group"]
    if group == "AIMD-NVT":
        return {temperatures_k[0]: "cold", temperatures_k[1]: "molten"}.get(frame.info["temperature_k"], "")
    return {"Vacancy": "vacancy", "Elastic": "strained", "Surface": "slab"}.get(group, "")


def pool(material: str, frames: Sequence[Case], compounds: Sequence[Case], protocol: Protocol) -> Pool:
    """Divide the frames of all elements, and those of MPtrj, into labels and tests for one element.

    Nothing here depends on the seed of a draw.
    """
    own = [frame for frame in frames if frame.material == material]
    heated = [frame.info["temperature_k"] for frame in own if frame.info["group"] == "AIMD-NVT"]
    ends = min(heated), max(heated)
    thermal = [frame for frame in own if frame.info["group"] in ("AIMD-NVT", "Vacancy")]
    labels: dict[str, list[Label]] = {}
    tests: dict[str, list[Label]] = {}

    held, free = trial.divide(thermal, protocol.n_held_out)
    for target, every, members in ((tests, "all", held), (labels, "any", free)):
        target[every] = [trial.of_frame(frame) for frame in members]
        for kind in ("cold", "molten", "vacancy"):
            target[kind] = [trial.of_frame(frame) for frame in members if kind_of(frame, ends) == kind]
    for kind, n_held in (("strained", protocol.n_held_out_strained), ("slab", protocol.n_held_out_slabs)):
        tests[kind], labels[kind] = trial.divide([trial.of_frame(frame) for frame in own if kind_of(frame, ends) == kind], n_held)
    by_force = sorted(labels["any"], key=lambda label: -float(np.sqrt(np.mean(label.forces**2))))
    labels["largest"] = by_force[: max(protocol.n_kind, len(by_force) // 5)]

    rng = np.random.default_rng(0)
    small = [frame for frame in compounds if len(frame.structures["frame"]) <= protocol.max_atoms]
    with_it = [frame for frame in small if material in frame.structures["frame"].get_chemical_symbols()]
    without = [frame for frame in small if material not in frame.structures["frame"].get_chemical_symbols()]
    for name, found, number in (("other-chemistry", without, protocol.n_other), ("compounds", with_it, protocol.n_compounds)):
        chosen = np.sort(rng.choice(len(found), min(number, len(found)), replace=False))
        tests[name] = [trial.of_frame(found[k]) for k in chosen]
    for element in ELEMENTS:
        if element != material:
            found = [frame for frame in frames if frame.material == element and frame.info["group"] in ("AIMD-NVT", "Vacancy")]
            chosen = np.sort(rng.choice(len(found), protocol.n_element, replace=False))
            tests[element] = [trial.of_frame(found[k]) for k in chosen]
    return Pool(labels, tests)


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per material, method, kind and number of labels, and seed; KeyError if a set is unknown.

    ``structures`` holds the labels (``label/0`` …) and the test frames (``<test set>/0`` …); ``reference`` their energies (eV), forces
    (eV/Å) and stresses (eV/Å³) under ``energy/<role>`` and so on. The frames of ``teacher`` are made when the case is run.
    """
    protocol = protocol or Protocol()
    chosen = chosen_sets(SETS, sets)
    found: list[Case] = []
    pools: dict[str, Pool] = {}
    if set(chosen) != {"teacher"}:
        frames, compounds = (off_equilibrium.cases(sets=[name]) for name in ("single-element-md", "mptrj-1k"))
        pools = {material: pool(material, frames, compounds, protocol) for material in protocol.materials}
    for name in chosen:
        for material in ("MgO",) if name == "teacher" else protocol.materials:
            for method, kind, n_labels, seed in _variants(name, protocol):
                info = {"method": method, "kind": kind, "n_labels": n_labels, "seed": seed}
                made = Case(f"{name}/{material}/{method}/{kind}/n-{n_labels}/seed-{seed}", name, material, {}, {}, info)
                if name != "teacher":
                    source = pools[material]
                    trial.put(made, label=trial.draw_nested(source.labels[kind], n_labels, seed), **source.tests)
                found.append(made)
    return found


def _variants(name: str, protocol: Protocol) -> list[tuple[str, str, int, int]]:
    """Return method, kind, number of labels and seed of every case of a set, those of the first seed first."""
    if name == "teacher":
        return [("none", "any", 0, 0), ("scalar", "any", 1, 0), ("all", "any", 1, 0), ("all", "any", 2, 0), ("low-rank", "any", 2, 0)]
    if name == "kinds":
        return [("all", kind, protocol.n_kind, seed) for seed in protocol.few_seeds for kind in KINDS]
    if name == "parts":
        methods = ("readout", "last-layer", "low-rank")
        return [(method, "any", n, seed) for seed in protocol.few_seeds for n in protocol.n_parts for method in methods]
    counts = {"scalar": protocol.counts, "all": protocol.counts, "scratch": protocol.scratch_counts}
    return [("none", "any", 0, 0), *[(method, "any", n, seed) for seed in protocol.seeds for method in counts for n in counts[method]]]


def tests_of(case: Case) -> dict[str, list[Label]]:
    """Return the test frames of a case by test set."""
    names = dict.fromkeys(role.rsplit("/", 1)[0] for role in case.structures)
    return {name: trial.labels_of(case, name) for name in names if name != "label"}


def _teach(potential: Potential, case: Case) -> None:
    """Give the teacher's case its frames: rattled MgO as labels and tests, rattled Si as the other chemistry."""
    crystals = [bulk("MgO", "rocksalt", a=4.21)] * 4 + [bulk("Si", a=5.43)] * 2
    made = trial.labelled(trial.stiffer(potential), trial.rattled(crystals, 0.1, np.random.default_rng(0)), stress=True)
    trial.put(case, label=made[: case.info["n_labels"]], all=made[2:4], **{"other-chemistry": made[4:]})


# ---- Running --------------------------------------------------------------------------------------


def run(
    potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False, rows_of: Any = None
) -> pd.DataFrame:
    """Train the potential as each case says and test it; a tidy table as the module's docstring says.

    ``rows_of`` does so for one case, given potential, case, record, protocol and progress; by default the experiment's own.
    """
    protocol, rows_of = protocol or Protocol(), rows_of or _case_rows
    rows: trial.Rows = []
    for case in cases:
        if case.set == "teacher":
            case = replace(case, structures={}, reference={})
            _teach(potential, case)
        record = partial(row, potential.key, case)
        try:
            rows += rows_of(potential, case, record, protocol, progress)
        except (PotentialError, StructureError, ValueError) as error:
            rows.append(record("force_mae", np.nan, np.nan, "eV/Å", error=str(error), held_out="all"))
    return table(rows)


def _case_rows(potential: Potential, case: Case, record: trial.Record, protocol: Protocol, progress: bool) -> trial.Rows:
    tests = tests_of(case)
    before = untouched(potential, tests)
    labels, method = trial.labels_of(case), case.info["method"]
    if method == "none":
        return error_rows(record, tests, before, before)
    if method == "scalar":
        factor = fine_tune.linear_correction(potential, labels, "least_squares").scale / potential.scale
        n_trained = 1
        after = {name: [Prediction(factor * p.energy, factor * p.forces, error=p.error) for p in part] for name, part in before.items()}
    else:
        steps = _TEACHER_STEPS if case.set == "teacher" else None
        trained = train(potential, labels, method, protocol, case.info["seed"], steps=steps, progress=progress)
        n_trained = trained.n_trained
        known = {name: members for name, members in tests.items() if method != "scratch" or name in OWN}
        after = {name: trained.potential.evaluate([label.atoms for label in members]) for name, members in known.items()}
    return [record("n_trained", n_trained, np.nan, "1", held_out=""), *error_rows(record, tests, before, after)]


def train(
    potential: Potential,
    labels: Sequence[Label],
    method: str,
    protocol: Protocol,
    seed: int,
    *,
    steps: int | None = None,
    progress: bool = False,
) -> fine_tune.FineTuned:
    """Train on labels by one of the methods ``all``, ``scratch``, ``readout``, ``last-layer`` and ``low-rank``; else PotentialError."""
    recipe = protocol.recipe(method, len(labels), seed, steps)
    start = potential
    if method == "scratch":
        architecture = "mace" if potential.describe()["family"] == "MACE" else "chgnet"
        start = trial.untaught(labels, architecture, protocol.scratch_channels, seed)
    elif method in ("readout", "last-layer"):
        recipe = replace(recipe, trained=fine_tune.part(potential, method))
    elif method not in ("all", "low-rank"):
        raise PotentialError(f"no method {method!r}; there are: all, scratch, readout, last-layer, low-rank")
    return fine_tune.fine_tune(start, labels, recipe, progress=progress)


@dataclass(frozen=True)
class _Frames:
    """Structures that are recognised by their content."""

    content: tuple[bytes, ...]
    atoms: tuple[ase.Atoms, ...] = field(compare=False)


def untouched(potential: Potential, tests: Mapping[str, Sequence[Label]]) -> dict[str, list[Prediction]]:
    """Return what the potential as it is predicts; computed once per process and set of frames."""
    frames = [label.atoms for members in tests.values() for label in members]
    answers = iter(_predicted(potential, _Frames(tuple(structures.content(atoms) for atoms in frames), tuple(frames))))
    return {name: [next(answers) for _ in members] for name, members in tests.items()}


@lru_cache(maxsize=8)
def _predicted(potential: Potential, frames: _Frames) -> tuple[Prediction, ...]:
    return tuple(potential.evaluate(list(frames.atoms)))


def error_rows(
    record: trial.Record,
    tests: Mapping[str, Sequence[Label]],
    before: Mapping[str, Sequence[Prediction]],
    after: Mapping[str, Sequence[Prediction]],
) -> trial.Rows:
    """Return the errors on each test set, after one constant per atom that all energies of the element share."""
    rows: trial.Rows = []
    shift = float(np.mean(trial.energy_errors(tests["all"], after["all"])))
    for name, predictions in after.items():
        if wrong := trial.fault(predictions):
            rows.append(record("force_mae", np.nan, np.nan, "eV/Å", error=wrong, held_out=name))
            continue
        found = errors(tests[name], predictions)
        if name in OWN:
            found["energy_mae"] = float(np.abs(trial.energy_errors(tests[name], predictions) - shift).mean())
        else:
            by_frame = [np.abs(a.forces - label.forces).mean() for label, a in zip(tests[name], predictions, strict=True)]
            found["frame_mae"] = float(np.median(by_frame))
            changes = [(a.energy - b.energy) / len(b.forces) for a, b in zip(predictions, before[name], strict=True)]
            found["energy_drift"] = float(np.abs(changes).mean())
        rows += trial.error_rows(record, found, held_out=name)
    return rows


def errors(labels: Sequence[Label], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return ``force_mae`` (eV/Å) and, unless all forces vanish, ``slope``, ``inverse_slope`` and ``cmae`` (eV/Å)."""
    reference, predicted = trial.forces(labels, predictions)
    found = {"force_mae": float(np.abs(predicted - reference).mean())}
    if min(np.abs(reference).max(), np.abs(predicted).max()) > _NO_FORCE:
        fitted = softening.fit(reference, predicted)
        found |= {name: getattr(fitted, name) for name in ("slope", "inverse_slope", "cmae")}
    return found


# ---- Analysis -------------------------------------------------------------------------------------


_KIND = ["model", "set", "material", "method", "kind", "n_labels"]


def over_seeds(made: pd.DataFrame, quantity: str, held_out: str = "all") -> pd.DataFrame:
    """Return a property on a test set, ``mean, low, high, draws`` over the draws of each kind of case, and its value ``before``."""
    each = over_each(made, quantity, held_out)
    before = each[["model", "material", "before"]].drop_duplicates()
    return trial.over_seeds(each, _KIND).merge(before, on=["model", "material"], how="left")


def forgotten(made: pd.DataFrame) -> pd.DataFrame:
    """Return typical force errors (``frame_mae``) on materials that no label shows, over what they were before.

    ``elsewhere`` is ``other-chemistry``, ``compounds`` or ``other-elements``; ``mean``, ``low`` and ``high`` are those over the draws of
    the ratio after / before (for other elements the geometric mean over them).
    """
    parts = []
    for name in ("other-chemistry", "compounds", *ELEMENTS):
        part = over_each(made, "frame_mae", name)
        parts.append(part.assign(elsewhere="other-elements" if name in ELEMENTS else name))
    ratios = pd.concat(parts)
    ratios["log"] = np.log(ratios["value"] / ratios["before"])
    by = [*_KIND, "elsewhere"]
    each = ratios.groupby([*by, "seed"], sort=False)["log"].mean().reset_index()
    return trial.over_seeds(each.assign(ratio=np.exp(each["log"])), by, "ratio").drop(columns="draws")


def over_each(made: pd.DataFrame, quantity: str, held_out: str = "all") -> pd.DataFrame:
    """Return a property on a test set, one row per case, with the column ``before``."""
    good = made[(made["property"] == quantity) & (made["held_out"] == held_out) & (made["status"] == "ok")]
    # Before is computed once for all sets of DFT frames.
    plain = good[good["method"] == "none"].groupby(["model", "material"])["value"].first().rename("before")
    return good[good["method"] != "none"].merge(plain.reset_index(), on=["model", "material"], how="left")


def by_kind(made: pd.DataFrame, n_labels: int, quantity: str = "force_mae") -> pd.DataFrame:
    """Return a property after training on labels of one kind, by test set, over what it was before: ``ratio``, the mean over the draws.

    Kind ``any`` comes from ``curve``.
    """
    parts = []
    for name in OWN:
        part = over_seeds(made, quantity, name)
        part = part[(part["method"] == "all") & (part["n_labels"] == n_labels) & part["set"].isin(["curve", "kinds"])]
        parts.append(part.assign(held_out=name, ratio=part["mean"] / part["before"]))
    return pd.concat(parts)[["model", "material", "kind", "held_out", "ratio"]].reset_index(drop=True)


def reached(made: pd.DataFrame, error: float, material: str, method: str) -> float:
    """Return how many labels a method needs for a force error (eV/Å), from its mean curve with logarithmic axes; it may be infinite."""
    line = over_seeds(made, "force_mae")
    line = line[(line["set"] == "curve") & (line["material"] == material) & (line["method"] == method)].sort_values("n_labels")
    below = np.flatnonzero(line["mean"].to_numpy() <= error)
    if len(below) == 0:
        return float("inf")
    at = below[0]
    x, y = np.log(line["n_labels"].to_numpy(dtype=float)), np.log(line["mean"].to_numpy())
    if at == 0:
        return float(np.exp(x[0]))
    share = (y[at - 1] - np.log(error)) / (y[at - 1] - y[at])
    return float(np.exp(x[at - 1] + share * (x[at] - x[at - 1])))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return force errors, slopes and energy errors on the held-out frames, mean and range over the draws of each kind of case."""
    found = None
    for quantity in ("force_mae", "slope", "inverse_slope", "cmae", "energy_mae"):
        part = over_seeds(table, quantity).set_index([*_KIND, "draws"])[["before", "mean", "low", "high"]]
        part.columns = [f"{quantity}_before", quantity, f"{quantity}_low", f"{quantity}_high"]
        found = part if found is None else found.join(part)
    return found.reset_index()
