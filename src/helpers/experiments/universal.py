"""A universal potential mended by a stiffer one in the place of DFT, and what that does to every family.

*Frames* of many crystals are made, a *teacher* labels them, a second potential says which labels to trust, and the *student* is trained on
the rest. Energies of two potentials have different zeros: one constant per element, fitted to crystals at rest, brings the teacher's to
that of the student. *Replay*: the student's own answers for crystals at rest are labels too. A ``strict`` mending has no frame of what a
benchmark tests (:func:`tested`): an element whose bulk, slab, vacancy or dynamics is tested comes in compounds only.

Sets: ``strict``; ``slow``, the same on benchmarks that take longer; ``teacher``, a few labels of the student itself, a quarter stiffer. The
table has each benchmark's quick sample after the mending, with ``benchmark``, ``sample`` (its set) and the property as ``sample/property``;
what was before stands in the benchmark's table. Without ``benchmark``: numbers of the mending.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ase.build
import ase.io
import numpy as np
import pandas as pd
from ase.data import covalent_radii
from ase.geometry import get_distances
from ase.neighborlist import neighbor_list
from pymatgen.core import Composition
from pymatgen.io.ase import AseAtomsAdaptor
from tqdm.auto import tqdm

from helpers import BENCHMARKS, EXPERIMENTS, benchmarks, engine, potentials, registry, results, softening, structures
from helpers.benchmarks import Case, chosen_sets, elasticity, row, table
from helpers.experiments import learning_curve
from helpers.potentials import fixes
from helpers.potentials.base import GraphPotential, Potential, PotentialError, Prediction
from helpers.training import fine_tune, trial
from helpers.training.fine_tune import Label, Recipe

_KNOWN = {name: benchmarks.module(name) for name in BENCHMARKS if name not in EXPERIMENTS}
JUDGED = tuple(name for name, known in _KNOWN.items() if known.QUICK)


class _Files(Sequence[str]):
    """The files of all quick samples, found when they are first asked for: to import this reads no registry."""

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        sets = ((known, chosen) for known in (_KNOWN[name] for name in JUDGED) for chosen in known.QUICK)
        return tuple(dict.fromkeys(key for known, chosen in sets for key in known.SETS[chosen]))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place):
        return self._keys[place]


SETS: dict[str, Sequence[str]] = {"strict": _Files(), "slow": _Files(), "teacher": ()}
LIVE = "teacher"
KEYS = ("benchmark", "sample", *dict.fromkeys(key for name in JUDGED for key in _KNOWN[name].KEYS))
MODELS = {"chgnet-0.3.0": ("strict", LIVE)}
ATOMS_PER_SHARD = 1
TOLERANCES = {"slope": 0.05, "force_mae": 0.02, "labels": 0, "refused": 0, "moments_change": 0.02}
TEACHER, SECOND = "nequix-oam-1", "tensornet-matpes-pbe-2025.1"

KINDS = ("rattle", "large rattle", "compression", "shear", "hot", "vacancy", "antisite", "slab", "hop")
_FCC = 1 - np.eye(3)
_LATTICES: list[tuple[np.ndarray, list[tuple[int, tuple[float, float, float]]]]] = [  # a cell, and which of three species sits where
    (_FCC, [(0, (0, 0, 0))]),
    (np.eye(3), [(0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)), (2, (0.5, 0.5, 0)), (2, (0.5, 0, 0.5)), (2, (0, 0.5, 0.5))]),  # perovskite
    (_FCC - np.eye(3), [(0, (0, 0, 0))]),  # bcc
    (_FCC, [(0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)), (2, (0.25, 0.25, 0.25))]),  # half-Heusler
]
_ANIONS = (8, 8, 8, 9, 16, 17)  # of perovskites: half of them are oxides


@dataclass(frozen=True)
class Protocol:
    """Settings of frames and labels."""

    n_frames: int = 600
    strict: bool = False
    kinds: tuple[str, ...] = KINDS  # in turn
    max_atoms: int = 20
    built: float = 0.4  # share of frames from crystals that are built; the others are published binaries
    n_built: int = 160  # such crystals that are tried
    small_a: tuple[float, float] = (0.02, 0.1)  # displacement of each coordinate (standard deviation), Å
    large_a: tuple[float, float] = (0.15, 0.35)
    strain: tuple[float, float] = (-0.08, 0.04)  # of all lengths
    shear: float = 0.12  # largest component of the strain
    temperature_k: tuple[float, float] = (300.0, 2500.0)
    steps: int = 20  # of the student's molecular dynamics
    # Labels are left out where root mean squares of forces say |F₁ − F₂| > disagreement · (|F₁| + floor), or a force is above the largest.
    disagreement: float = 0.3
    floor_ev_per_a: float = 0.1
    max_force_ev_per_a: float = 20.0
    replay: float = 0.4  # crystals at rest with the student's own answers, per frame
    seed: int = 0  # of frames and training


# Of squared and absolute errors the better on held-out labels of a teacher, after a hundred labels; weights were not varied.
RECIPE = Recipe(epochs=6, energy_weight=10.0, force_weight=10.0, stress_weight=0.1, batch_size=8)
FEW = {"n_frames": 24, "max_atoms": 16, "built": 1.0, "n_built": 8, "steps": 2, "max_force_ev_per_a": 1e3}  # of the set ``teacher``
SHORT = replace(RECIPE, epochs=3, validation_fraction=0.3)


def names(atoms: ase.Atoms) -> tuple[str, str]:
    """Return the reduced formula and the elements, each the same for every order: ``MgO`` and ``Mg-O``."""
    composition = Composition(atoms.get_chemical_formula())
    return composition.reduced_formula, composition.chemical_system


def tested() -> frozenset[str]:
    """Return reduced formulas of all structures of all cases whose files are here, and the systems of solid solutions (``Mo-Nb``)."""
    found: set[str] = set()
    for name, known in _KNOWN.items():
        for case in known.cases(sets=[one for one in known.SETS if registry.available(known.SETS[one])]):
            for formula, system in map(names, case.structures.values()):
                found |= {formula, system} if name == "solid_solutions" else {formula}
    return frozenset(found)


def build(student: Potential, protocol: Protocol, excluded: frozenset[str]) -> list[ase.Atoms]:
    """Return crystals of one element and of three, as the student relaxes them; those that it cannot relax are missing."""
    rng = np.random.default_rng([protocol.seed, 1])
    drawn = []
    for number in range(protocol.n_built):
        cell, sites = _LATTICES[number % len(_LATTICES)]
        chosen = rng.choice(sorted(student.elements), 3, replace=False)
        if len(sites) == 5 and student.elements.issuperset(_ANIONS):
            chosen[2] = rng.choice(_ANIONS)
        crystal = ase.Atoms([chosen[k] for k, _ in sites], scaled_positions=[at for _, at in sites], cell=3 * cell, pbc=True)
        first, second, distance = neighbor_list("ijd", crystal, 7.0)
        radii = np.maximum(covalent_radii[crystal.numbers], 0.7)
        crystal.set_cell(crystal.cell * ((radii[first] + radii[second]) / distance).max(), scale_atoms=True)
        drawn += [crystal] * excluded.isdisjoint(names(crystal))
    relaxed = engine.relax(student, drawn, cell="full", fmax=0.1, smax=6e-3, max_steps=60)
    return [one.atoms for one in relaxed if one.converged]


def distorted(kind: str, crystal: ase.Atoms, protocol: Protocol, rng: np.random.Generator) -> ase.Atoms:
    """Return a frame of one kind; a hot one as it starts."""
    atoms = crystal.copy()
    if kind == "slab":
        miller = ((1, 0, 0), (1, 1, 0), (1, 1, 1))[rng.integers(3)]
        layers = max(1, min(protocol.max_atoms // len(ase.build.surface(crystal, miller, 1)), 6))
        atoms = ase.build.surface(crystal, miller, layers, vacuum=5.0)
        atoms.pbc = True
    while kind != "slab" and len(atoms) < 8:
        atoms = atoms.repeat(np.where(np.arange(3) == np.argmin(atoms.cell.lengths()), 2, 1))
    if kind == "compression":
        atoms = structures.strained(atoms, np.eye(3) * rng.uniform(*protocol.strain))
    if kind == "shear":
        change = np.triu(rng.uniform(-protocol.shear, protocol.shear, (3, 3)), 1)
        atoms = structures.strained(atoms, change + change.T)
    if kind == "antisite":
        first = rng.integers(len(atoms))
        second = rng.choice(np.flatnonzero(atoms.numbers != atoms.numbers[first]))
        atoms.numbers[[first, second]] = atoms.numbers[[second, first]]
    if kind in ("vacancy", "hop"):
        site = int(rng.integers(len(atoms)))
        if kind == "hop":
            vectors, distances = get_distances(atoms.positions[site], atoms.positions, atoms.cell, pbc=True)
            same = np.where((atoms.numbers == atoms.numbers[site]) & (distances[0] > 0.1), distances[0], np.inf)
            nearest = int(np.argmin(same))
            atoms.positions[nearest] -= np.isfinite(same[nearest]) * vectors[0, nearest] / 2
        del atoms[site]
    atoms.positions += rng.normal(0, rng.uniform(*(protocol.large_a if kind == "large rattle" else protocol.small_a)), (len(atoms), 3))
    return atoms


def frames(student: Potential, protocol: Protocol, excluded: frozenset[str], progress: bool = False) -> tuple[list[ase.Atoms], ...]:
    """Make frames, in a random order in which the first n are a fair sample, and return them and crystals at rest.

    Hosts are small published binaries and :func:`build`. ``info`` of a frame holds ``kind``, ``host`` (a reduced formula), ``formula``
    (its own) and ``number``. Frames whose dynamics broke down are missing. Crystals at rest are those for replay, and the hosts.
    """
    records = sorted(elasticity.records(), key=lambda record: record["mp_id"]) if protocol.built < 1 else []
    known = [atoms for atoms in (structures.from_dict(one["structure"]) for one in records) if excluded.isdisjoint(names(atoms))]
    known = [atoms for atoms in known if len(atoms) <= protocol.max_atoms // 2 and student.elements.issuperset(atoms.numbers.tolist())]
    built = build(student, protocol, excluded)
    made, hosts, number = [], [], 0
    while len(made) < protocol.n_frames:
        rng = np.random.default_rng([protocol.seed, 3, number])
        pool = built if built and (not known or rng.random() < protocol.built) else known
        host, kind = pool[rng.integers(len(pool))], protocol.kinds[len(made) % len(protocol.kinds)]
        number += 1
        if kind == "antisite" and len(set(host.numbers)) < 2:
            continue
        atoms = distorted(kind, host, protocol, rng)
        if excluded.isdisjoint(names(atoms)) and len(atoms) <= protocol.max_atoms:
            atoms.info = {"kind": kind, "host": names(host)[0], "formula": names(atoms)[0], "number": number}
            made.append(atoms)
            hosts.append(host)
    hot = [atoms for atoms in made if atoms.info["kind"] == "hot"]
    steps = {"steps": protocol.steps, "every": protocol.steps, "time_step_fs": 2.0, "friction_per_ps": 10.0}
    cold = [atoms for atoms in made if atoms.info["kind"] != "hot"]
    for first in tqdm(range(0, len(hot), 16), disable=not progress, desc="hot frames"):
        part = hot[first : first + 16]
        kelvin = np.random.default_rng([protocol.seed, 2, first]).uniform(*protocol.temperature_k, len(part))
        *_, last = engine.move(student, part, kelvin.tolist(), seed=first, **steps)
        for place, positions in last.positions.items():
            part[place].positions = positions
            cold.append(part[place])
    order = np.random.default_rng([protocol.seed, 4]).permutation(len(known) + len(built))
    others = [[*known, *built][k] for k in order[: round(protocol.replay * protocol.n_frames)]]
    return sorted(cold, key=lambda atoms: atoms.info["number"]), list(
        {structures.content(atoms): atoms for atoms in [*others, *hosts]}.values()
    )


def refused(first: Prediction, second: Prediction, protocol: Protocol) -> str:
    """Return why a label of the first potential is left out, by itself or beside the second's; nothing if it is good."""
    if not (first.ok and second.ok):
        return "a potential failed"
    if np.abs(first.forces).max() > protocol.max_force_ev_per_a:
        return f"a force is above {protocol.max_force_ev_per_a:g} eV/Å"
    away, size = (np.sqrt(np.mean(np.square(values))) for values in (first.forces - second.forces, first.forces))
    return "the two potentials disagree" if away > protocol.disagreement * (size + protocol.floor_ev_per_a) else ""


def label(
    made: Sequence[ase.Atoms], crystals: Sequence[ase.Atoms], three: Sequence[Potential], protocol: Protocol, progress: bool = False
) -> tuple[list[Label], list[Label], dict[str, int]]:
    """Return labels of the teacher on the student's zero, of the student for crystals at rest, and why how many frames were refused.

    The three are student, teacher and second potential. PotentialError if no label is good.
    """
    own, other = (one.evaluate(crystals, stress=True, progress=progress) for one in three[:2])
    rest = [(atoms, a, b.energy) for atoms, a, b in zip(crystals, own, other, strict=True) if a.ok and b.ok]
    constants = trial.reference_energies([Label(atoms, a.energy - energy, a.forces) for atoms, a, energy in rest])
    labels, left_out = [], Counter()
    answers = (one.evaluate(made, stress=True, progress=progress) for one in three[1:])
    for atoms, first, second in zip(made, *answers, strict=True):
        if why := refused(first, second, protocol) or ("" if constants.keys() >= set(atoms.symbols) else "an element is in no crystal"):
            left_out[why] += 1
        else:
            labels.append(Label(atoms, first.energy + sum(constants[one] for one in atoms.symbols), first.forces, first.stress))
    if not labels:
        raise PotentialError(f"no label of {three[1].key} is good: {', '.join(f'{why} ({n})' for why, n in left_out.items())}")
    replay = rest[: round(protocol.replay * len(made))]
    return labels, [Label(atoms, a.energy, a.forces, a.stress) for atoms, a, _ in replay], left_out


def mend(three: Sequence[Potential], out: Path, protocol: Protocol, recipe: Recipe = RECIPE, progress: bool = False) -> dict[str, Any]:
    """Mend a potential (student, teacher and second potential) and save it (:mod:`helpers.potentials.fixes`); the same call goes on.

    Returns what is saved with it: ``n_labels``, by kind (``frames``), ``n_replay``, ``left_out`` (why → how many),
    :func:`learning_curve.errors` on held-out labels (``before``, ``after``), and CHGNet's mean change of moments (``moments_change``, µ_B).
    PotentialError if the folder holds something else, the student has no weights, or no label is good.
    """
    student, recipe = three[0], replace(recipe, seed=protocol.seed)
    if not isinstance(student, GraphPotential):
        raise PotentialError(f"{student.key} has no weights to train.")
    request = dict(zip(("model", "teacher", "second"), [one.key for one in three], strict=True))
    request |= {"protocol": asdict(protocol), "recipe": recipe.record()}
    fixes.claim(out, request, "mending")
    if (out / fixes.RECORD).is_file():
        return fixes.record(out)
    files = [out / "frames.extxyz", out / "crystals.extxyz"]
    if not files[1].is_file():
        for path, members in zip(files, frames(student, protocol, tested() if protocol.strict else frozenset(), progress), strict=True):
            results.atomically(path, lambda target, members=members: ase.io.write(target, members, format="extxyz"))
    labels, replay, left_out = label(*(ase.io.read(path, ":") for path in files), three, protocol, progress)
    trained = fine_tune.fine_tune(student, [*labels, *replay], recipe, checkpoint=out / "training.pt", progress=progress)
    about: dict[str, Any] = {"method": "universal", "trained": True, "request": request, "left_out": left_out}
    about |= {"n_labels": len(labels), "n_replay": len(replay), "frames": Counter(one.atoms.info["kind"] for one in labels)}
    about["base_sha256"] = student.describe()["weights_sha256"]
    stages = {"before": student, "after": trained.potential}
    if replay and hasattr(student.network, "site_wise"):
        asked = [AseAtomsAdaptor.get_structure(one.atoms) for one in replay]
        old, new = ([one.network.predict_structure(crystal, task="em")["m"] for crystal in asked] for one in stages.values())
        about["moments_change"] = float(np.abs(np.concatenate(new) - np.concatenate(old)).mean())
    if held := [labels[k] for k in trained.validation if k < len(labels)]:
        about |= {name: learning_curve.errors(held, one.evaluate(known.atoms for known in held)) for name, one in stages.items()}
    fixes.save(out, trained.potential, student.key, about)
    return fixes.record(out)


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per benchmark, and one for the mending itself; KeyError if a set is unknown."""
    slow = ("migration", "phonons")
    judged = {"strict": ("", *(name for name in JUDGED if name not in slow)), "slow": slow, LIVE: ("",)}
    pairs = [(name, what) for name in chosen_sets(SETS, sets) for what in judged[name]]
    return [Case(f"{name}/{what or 'mending'}", name, what, {}, {}, {"benchmark": what}) for name, what in pairs]


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Mend the potential as each case says and test it; a tidy table as the module's docstring says."""
    protocol, parts = protocol or Protocol(), []
    for case in cases:
        what, out = case.info["benchmark"], results.runs_dir() / "mended" / results.file_name(potential.key)
        if case.set == LIVE:
            with TemporaryDirectory() as place:
                about = mend([potential, *[trial.stiffer(potential)] * 2], Path(place), replace(protocol, **FEW), SHORT)
        else:
            three = [potential, *(potentials.load(key, potential.device) for key in (TEACHER, SECOND))]
            about = mend(three, out, replace(protocol, strict=True), progress=progress)
        if what:
            mended = potentials.load(f"file:{out}", potential.device)
            mended.key = potential.key
            made = _KNOWN[what].run(mended, benchmarks.sample(what), _KNOWN[what].Protocol()).drop(columns="functional", errors="ignore")
            made = made[~made["property"].isin(["band", "dos"])].round({"value": 5})
            made = made.astype(dict.fromkeys({"set", "property", "component"} & {*made}, str))
            parts.append(made.assign(sample=made["set"], property=made["set"] + "/" + made["property"], set=case.set, **case.info))
            continue
        counts = {"labels": about["n_labels"], "refused": sum(about["left_out"].values()), "moments_change": about["moments_change"]}
        errors = {stage: {name: about[stage][name] for name in ("slope", "force_mae")} for stage in ("before", "after")}
        for sample, numbers in {"": counts, **errors}.items():
            parts.append(table(trial.error_rows(partial(row, potential.key, case, sample=sample), numbers)))
    return pd.concat(parts, ignore_index=True)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the slope of each property of each sample."""
    good = table[(table["status"] == "ok") & table["reference"].notna()]
    grouped = good.groupby(["model", "benchmark", "sample", "property"], observed=True)[["reference", "value"]]
    return grouped.apply(lambda part: softening.softening_scale(part["reference"], part["value"])).rename("slope").reset_index()
