"""Which frames are worth a DFT label? Candidates for one crystal, a choice among them, and a rehearsal against chance.

A stiffer potential plays the part of DFT: it labels five of the candidates, the potential is mended with these forces, and the error is
taken on fresh frames, the hot ones of the stiffer potential's own dynamics.

Sets: ``rehearsal``, eight crystals, two draws each, TensorNet MatPES and Nequix OAM in turn as the source of labels while the other one
advises; ``teacher``, Al, labelled by the potential itself made a quarter stiffer, without advice: no file is needed.

Columns of the table beyond the standard ones: ``source`` (who labels), ``seed``, ``choice`` (``before``: no label; ``random``; ``in turn``:
by chance, but each kind in turn; ``alone`` and ``asked``: :func:`choose` without and with advice), ``method`` (``linear``: one factor;
``all``: all weights), ``held_out`` (``all``, or a kind of frame). ``reference`` is empty. Properties: ``force_mae`` and ``cmae`` (eV/Å),
``slope``, ``inverse_slope``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import ase
import numpy as np
import pandas as pd
from ase.build import bulk

from helpers import potentials, softening, structures
from helpers.benchmarks import Case, chosen_sets, row, table
from helpers.engine import dynamics
from helpers.experiments import learning_curve
from helpers.potentials.base import Potential, Prediction
from helpers.training import fine_tune, trial
from helpers.training.fine_tune import Label

_ADVISES = {"tensornet-matpes-pbe-2025.1": "nequix-oam-1", "nequix-oam-1": "tensornet-matpes-pbe-2025.1"}
_WEIGHTS = tuple(file for key in _ADVISES for file in potentials.CATALOGUE[key].weights)
SETS: dict[str, tuple[str, ...]] = {"rehearsal": _WEIGHTS, "teacher": ()}
LIVE = "teacher"
KEYS = ("choice", "method", "held_out")
MODELS = {"chgnet-0.3.0": tuple(SETS)}
ATOMS_PER_SHARD = 1  # two dynamics and several trainings: a piece of work of its own

# Training amplifies the last digits of float32.
TOLERANCES = {"force_mae": 0.01, "cmae": 0.01, "slope": 0.02, "inverse_slope": 0.02}

# Structure and a, Å.
CRYSTALS = {"Si": ("diamond", 5.43), "GaAs": ("zincblende", 5.75), "MgO": ("rocksalt", 4.25), "LiF": ("rocksalt", 4.08)}
CRYSTALS |= {"TiC": ("rocksalt", 4.33), "NiAl": ("cesiumchloride", 2.89), "Cu": ("fcc", 3.63), "Mo": ("bcc", 3.16)}

KINDS = ("rattled", "strained", "hot")  # of candidates
SMALLEST, LARGEST = 0.01, 20.0  # eV/Å; frames whose largest force is outside are no candidates
_WIDE = 8.0  # Å; a cell this wide is not made larger


@dataclass(frozen=True)
class Protocol:
    """Settings."""

    n_labels: int = 5
    seeds: tuple[int, ...] = (0, 1)  # of the candidates and of what is drawn; sources of labels take turns
    max_atoms: int = 16  # to which a small cell is repeated
    n_each: int = 3  # frames of each size below
    rattles_a: tuple[float, ...] = (0.05, 0.1, 0.2)  # Å, root mean square per coordinate
    strains: tuple[float, ...] = (0.03, 0.06)  # largest component; with the smallest rattle
    temperature_k: float = 1000.0  # of the hottest frames; there are as many of half of it
    md_steps: int = 40
    every: int = 10  # steps from one hot frame to the next
    gradient_steps: int = 30  # of ``all``


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per crystal and seed; its frames are made when it is run. KeyError if a set is unknown."""
    protocol, chosen, found = protocol or Protocol(), chosen_sets(SETS, sets), []
    for seed in protocol.seeds if "rehearsal" in chosen else ():
        for material, (structure, a) in CRYSTALS.items():
            name, info = f"rehearsal/{material}/seed-{seed}", {"source": [*_ADVISES][seed % len(_ADVISES)], "seed": seed}
            found.append(Case(name, "rehearsal", material, {"crystal": bulk(material, structure, a=a)}, {}, info))
    if "teacher" in chosen:
        found.append(Case("teacher/Al/seed-0", "teacher", "Al", {"crystal": bulk("Al", a=4.05)}, {}, {"source": "teacher", "seed": 0}))
    return found


def enlarged(crystal: ase.Atoms, max_atoms: int) -> ase.Atoms:
    """Return the crystal repeated along its shortest lattice vector, again and again, until it is wide or has no room for more atoms."""
    repeats = np.ones(3, dtype=int)
    while True:
        lengths = crystal.cell.lengths() * repeats
        more = repeats + (np.arange(3) == lengths.argmin())
        if lengths.min() >= _WIDE or len(crystal) * more.prod() > max_atoms:
            return crystal.repeat(repeats)
        repeats = more


def candidates(
    potential: Potential, crystal: ase.Atoms, protocol: Protocol, seed: int, kinds: Collection[str] = KINDS
) -> list[tuple[str, ase.Atoms]]:
    """Return frames made from a crystal, each with its kind: ``rattled``, ``strained``, or ``hot``, of the potential's own dynamics."""
    rng = np.random.default_rng(seed)
    cell = enlarged(crystal, protocol.max_atoms)
    found = [("rattled", atoms) for size in protocol.rattles_a for atoms in trial.rattled([cell] * protocol.n_each, size, rng)]
    for size in np.repeat(protocol.strains, protocol.n_each):
        strain = rng.uniform(-size, size, (3, 3))
        strained = structures.strained(cell, (strain + strain.T) / 2)
        found += [("strained", atoms) for atoms in trial.rattled([strained], protocol.rattles_a[0], rng)]
    if "hot" not in kinds:
        return [one for one in found if one[0] in kinds]
    starts, kelvin = trial.rattled([cell] * 2, protocol.rattles_a[0], rng), (protocol.temperature_k / 2, protocol.temperature_k)
    step_fs = 1.0 if 1 in cell.numbers else 2.0
    run = {"steps": protocol.md_steps, "every": protocol.every, "time_step_fs": step_fs, "friction_per_ps": 10.0, "seed": seed}
    for snapshot in dynamics.move(potential, starts, kelvin, **run):
        for number, positions in snapshot.positions.items() if snapshot.step else ():
            atoms = starts[number].copy()
            atoms.positions = positions
            found.append(("hot", atoms))
    return [one for one in found if one[0] in kinds]


def choose(kinds: Sequence[str], forces: Sequence[np.ndarray], advice: Sequence[Sequence[np.ndarray]], n: int) -> list[int]:
    """Return the positions of n frames, those first whose labels are worth most.

    What a label would show is taken to be the mean force of stiffer potentials (``advice``, one entry each) minus the potential's; without
    them the force itself, of which a soft potential lacks a share. The kinds take turns. Each gives the frame that shows most (root mean
    square per component) beyond what the chosen ones show: what lies along them is projected out. Forces: one array of shape (n_atoms, 3)
    per frame, eV/Å.
    """
    left = [np.mean(stiff, axis=0) - own for own, *stiff in zip(forces, *advice, strict=True)] if advice else [own.copy() for own in forces]
    chosen: list[int] = []
    while len(chosen) < min(n, len(kinds)):
        taken = {k: sum(kinds[one] == kinds[k] for one in chosen) for k in range(len(kinds)) if k not in chosen}
        best = max((k for k in taken if taken[k] == min(taken.values())), key=lambda k: np.square(left[k]).mean())
        chosen.append(best)
        shown = left[best] / max(np.linalg.norm(left[best]), 1e-12)
        left = [one - np.sum(one * shown) * shown if one.shape == shown.shape else one for one in left]
    return chosen


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Choose, label, mend and test; a tidy table as the module's docstring says."""
    return table([line for case in cases for line in _case_rows(potential, case, protocol or Protocol(), progress)])


def _case_rows(potential: Potential, case: Case, protocol: Protocol, progress: bool) -> trial.Rows:
    source, *advisers = (trial.stiffer(potential),)
    if case.set == "teacher":
        protocol = replace(protocol, n_each=1, md_steps=4, every=2, gradient_steps=5)
    else:
        source, *advisers = (potentials.load(key, potential.device) for key in (case.info["source"], _ADVISES[case.info["source"]]))
    seed, crystal = case.info["seed"], case.structures["crystal"]
    made = candidates(potential, crystal, protocol, seed)
    forces, *advice = ([p.forces for p in one.evaluate([atoms for _, atoms in made])] for one in (potential, *advisers))
    usable = [k for k, own in enumerate(forces) if np.abs(own).max() < LARGEST]
    kinds, (forces, *advice) = [made[k][0] for k in usable], [[part[k] for k in usable] for part in (forces, *advice)]
    labels = trial.labelled(source, [made[k][1] for k in usable])
    tests: dict[str, list[Label]] = {"all": []}
    fresh = candidates(source, crystal, protocol, 1000 + seed)
    for (kind, _), label in zip(fresh, trial.labelled(source, [atoms for _, atoms in fresh]), strict=True):
        if np.abs(label.forces).max() < LARGEST:
            for name in ("all", kind):
                tests.setdefault(name, []).append(label)

    rng, n = np.random.default_rng(seed), protocol.n_labels
    choices = {"random": rng.permutation(len(kinds))[:n], "in turn": choose(kinds, [*(rng.random(len(kinds)) * np.eye(len(kinds)))], (), n)}
    choices |= {"alone": choose(kinds, forces, (), n)} | ({"asked": choose(kinds, forces, advice, n)} if advice else {})
    record, frames = partial(row, potential.key, case), [label.atoms for label in tests["all"]]
    before = potential.evaluate(frames)
    rows = _error_rows(partial(record, choice="before", method=""), before, tests)
    for choice, chosen in choices.items():
        taught = [replace(labels[k], energy=None) for k in chosen]  # every potential has another zero
        factor = fine_tune.linear_correction(potential, taught).scale / potential.scale
        rows += _error_rows(partial(record, choice=choice, method="linear"), [replace(p, forces=factor * p.forces) for p in before], tests)
        settings, steps = learning_curve.Protocol(), protocol.gradient_steps
        trained = learning_curve.train(potential, taught, "all", settings, seed, steps=steps, progress=progress)
        rows += _error_rows(partial(record, choice=choice, method="all"), trained.potential.evaluate(frames), tests)
    return rows


def _error_rows(record: trial.Record, answers: Sequence[Prediction], tests: Mapping[str, Sequence[Label]]) -> trial.Rows:
    at = {id(label): answer for label, answer in zip(tests["all"], answers, strict=True)}
    return [
        line
        for name, members in tests.items()
        for line in trial.error_rows(record, learning_curve.errors(members, [at[id(label)] for label in members]), held_out=name)
    ]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return how much of the force error each choice leaves, and how that compares with frames drawn at random.

    One row per ``model``, ``set``, ``choice``, ``method`` and ``held_out``: ``cases``; ``left``, the geometric mean over the cases of the
    force MAE after over before; ``to_random``, that of the force MAE over the one with random frames, with its 95 % interval ``low``,
    ``high`` (materials resampled), and ``wins``, the share of cases in which it is smaller (%).
    """
    keys = ["model", "set", "case", "held_out"]
    good = table[(table["property"] == "force_mae") & (table["status"] == "ok")]
    before, random = (good[good["choice"] == name].set_index(by)["value"] for name, by in (("before", keys), ("random", [*keys, "method"])))
    each = good[good["choice"] != "before"].join(before.rename("before"), on=keys).join(random.rename("random"), on=[*keys, "method"])
    each = each.assign(left=np.log(each["value"] / each["before"]), ratio=np.log(each["value"] / each["random"]))
    records, by = [], ["model", "set", "choice", "method", "held_out"]
    for key, part in each.groupby(by, sort=False, observed=True):
        found = {"cases": len(part), "left": np.exp(part["left"].mean()), "wins": 100 * (part["ratio"] < 0).mean()}
        found |= {"to_random": np.exp(part["ratio"].mean()), "low": np.nan, "high": np.nan}
        sums = part.groupby("material", observed=True)["ratio"].agg(["sum", "size"])
        if len(sums) > 1:
            ends = softening.bootstrap_over(sums, lambda total: np.exp(total[..., 0] / total[..., 1]))
            found |= {"low": ends.low, "high": ends.high}
        records.append(dict(zip(by, key, strict=True)) | found)
    return pd.DataFrame(records)
