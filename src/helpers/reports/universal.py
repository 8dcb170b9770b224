"""Mend a universal potential with a stiffer one in the place of DFT.

*Frames* of many crystals are made: rattled, strained, hot, with a defect, cut. A *teacher* labels them, a second potential says which
labels to trust, and the *student* is trained on the rest (:func:`helpers.training.fine_tune.fine_tune`).

What the mended potential is tested on must not be among them. The variant ``strict`` leaves out each crystal that has the composition of
anything that a benchmark tests, and any mixture of a tested solid solution's elements (:func:`tested`): an element whose bulk, slab,
vacancy or dynamics is tested comes in compounds only. ``all`` leaves out nothing.

Energies of two potentials have different zeros: one constant per element, fitted to crystals at rest, brings the teacher's to that of the
student. *Replay*: the student's own answers for crystals at rest are labels too, and hold what it knew.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import numpy as np
from ase.data import covalent_radii
from ase.geometry import get_distances
from ase.neighborlist import neighbor_list
from pymatgen.core import Composition
from pymatgen.io.ase import AseAtomsAdaptor
from tqdm.auto import tqdm

from helpers import benchmarks, engine, potentials, registry, results, softening, structures
from helpers.benchmarks import elasticity
from helpers.potentials import fixes
from helpers.potentials.base import GraphPotential, Potential, PotentialError, Prediction
from helpers.training import fine_tune, trial
from helpers.training.fine_tune import Label, Recipe

KINDS = ("rattle", "large rattle", "compression", "shear", "hot", "vacancy", "antisite", "slab", "hop")
VARIANTS = ("strict", "all")

# Crystals that are built: a primitive cell, and which of three species sits where, in fractions of it. Covalent radii and a relaxation
# set the size.
_FCC = 1 - np.eye(3)
_LATTICES: list[tuple[np.ndarray, list[tuple[int, tuple[float, float, float]]]]] = [
    (_FCC, [(0, (0, 0, 0))]),
    (_FCC - np.eye(3), [(0, (0, 0, 0))]),  # bcc
    (np.eye(3), [(0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)), (2, (0.5, 0.5, 0)), (2, (0.5, 0, 0.5)), (2, (0, 0.5, 0.5))]),  # perovskite
    (_FCC, [(0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)), (2, (0.25, 0.25, 0.25))]),  # half-Heusler
]
# Structures in one batch of dynamics; frames whose answers are kept in one file.
_HOT_BATCH, _PIECE = 16, 100


@dataclass(frozen=True)
class Protocol:
    """Settings of frames and labels."""

    n_frames: int = 1000
    variant: str = "strict"
    kinds: tuple[str, ...] = KINDS  # in turn
    min_atoms: int = 8
    max_atoms: int = 32
    built: float = 0.25  # share of frames from crystals that are built; the others are published binaries
    n_built: int = 120  # such crystals that are tried
    small_a: tuple[float, float] = (0.02, 0.1)  # displacement of each coordinate (standard deviation), Å
    large_a: tuple[float, float] = (0.15, 0.35)
    strain: tuple[float, float] = (-0.08, 0.04)  # of all lengths
    shear: float = 0.12  # largest component of the strain
    temperature_k: tuple[float, float] = (300.0, 2500.0)
    steps: int = 40  # of the student's molecular dynamics
    time_step_fs: float = 2.0
    # Labels are left out where root mean squares of forces say |F₁ − F₂| > disagreement · (|F₁| + floor), or a force is above the largest.
    disagreement: float = 0.3
    floor_ev_per_a: float = 0.1
    max_force_ev_per_a: float = 20.0
    replay: float = 0.25  # crystals at rest with the student's own answers, per frame
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds or self.variant not in VARIANTS or self.n_frames < 1:
            what = f"kinds {', '.join(self.kinds) or 'none'}, variant {self.variant!r}, {self.n_frames} frames"
            raise ValueError(f"{what}: kinds are of {', '.join(KINDS)}, the variant of {', '.join(VARIANTS)}, and one frame is needed.")


# Of squared and absolute errors the better on held-out labels of a teacher, after a hundred labels; weights were not varied.
RECIPE = Recipe(epochs=6, energy_weight=10.0, force_weight=10.0, stress_weight=0.1, batch_size=8)


def names(atoms: ase.Atoms) -> tuple[str, str]:
    """Return the reduced formula and the elements, each the same for every order: ``MgO`` and ``Mg-O``."""
    composition = Composition(atoms.get_chemical_formula())
    return composition.reduced_formula, composition.chemical_system


def tested() -> frozenset[str]:
    """Return reduced formulas of all structures of all cases whose files are here, and the systems of solid solutions (``Mo-Nb``)."""
    found: set[str] = set()
    for name in set(benchmarks.CATALOGUE) - set(benchmarks.EXPERIMENTS):
        known = benchmarks.module(name)
        for case in known.cases(sets=[one for one in known.SETS if registry.available(known.SETS[one])]):
            for formula, system in map(names, case.structures.values()):
                found |= {formula, system} if name == "solid_solutions" else {formula}
    return frozenset(found)


# ---- Crystals and frames --------------------------------------------------------------------------


def published(elements: frozenset[int], protocol: Protocol) -> list[ase.Atoms]:
    """Return the binaries of the elasticity benchmark's source, tested or not, that are small enough, in the order of their identifiers."""
    found = [structures.from_dict(record["structure"]) for record in sorted(elasticity.records(), key=lambda record: record["mp_id"])]
    return [atoms for atoms in found if len(atoms) <= protocol.max_atoms // 2 and elements.issuperset(atoms.numbers.tolist())]


def build(student: Potential, protocol: Protocol, excluded: frozenset[str]) -> list[ase.Atoms]:
    """Return crystals of one element and of three, as the student relaxes them; those that it cannot relax are missing."""
    rng = np.random.default_rng([protocol.seed, 1])
    elements = np.array(sorted(student.elements))
    drawn = []
    for number in range(protocol.n_built):
        cell, sites = _LATTICES[number % len(_LATTICES)]
        chosen = rng.choice(elements, 3, replace=False)
        crystal = ase.Atoms([chosen[k] for k, _ in sites], scaled_positions=[at for _, at in sites], cell=3 * cell, pbc=True)
        first, second, distance = neighbor_list("ijd", crystal, 7.0)
        radii = np.maximum(covalent_radii[crystal.numbers], 0.7)
        crystal.set_cell(crystal.cell * ((radii[first] + radii[second]) / distance).max(), scale_atoms=True)
        drawn += [crystal] * excluded.isdisjoint(names(crystal))
    relaxed = engine.relax(student, drawn, cell="full", fmax=0.1, smax=6e-3, max_steps=60)
    return [one.atoms for one in relaxed if one.converged]


def _distorted(kind: str, crystal: ase.Atoms, protocol: Protocol, rng: np.random.Generator) -> ase.Atoms:
    """Return a frame of one kind; a hot one as it starts."""
    atoms = crystal.copy()
    if kind == "slab":
        miller = ((1, 0, 0), (1, 1, 0), (1, 1, 1))[rng.integers(3)]
        layer = len(ase.build.surface(crystal, miller, 1))
        atoms = ase.build.surface(crystal, miller, max(1, min(protocol.max_atoms // layer, 6)), vacuum=5.0)
        atoms.pbc = True
    while kind != "slab" and len(atoms) < protocol.min_atoms:
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
            if np.isfinite(same).any():
                hopping = int(np.argmin(same))
                atoms.positions[hopping] -= vectors[0, hopping] / 2
        del atoms[site]
    atoms.positions += rng.normal(0, rng.uniform(*(protocol.large_a if kind == "large rattle" else protocol.small_a)), (len(atoms), 3))
    return atoms


def frames(
    student: Potential, protocol: Protocol, excluded: frozenset[str], progress: bool = False
) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """Make frames, in a random order in which the first n are a fair sample, and return them and crystals at rest.

    ``info`` of a frame holds ``kind``, ``host`` (the crystal's reduced formula), ``formula`` (the frame's own), ``number`` and ``seed``.
    Neither formula is among those excluded. Frames whose dynamics broke down are missing. Crystals at rest are all hosts, and as many
    others as replay asks for.
    """
    known = [atoms for atoms in published(student.elements, protocol) if excluded.isdisjoint(names(atoms))]
    built = build(student, protocol, excluded)
    made, hosts = [], []
    number = 0
    while len(made) < protocol.n_frames:
        rng = np.random.default_rng([protocol.seed, 3, number])
        pool = built if built and (not known or rng.random() < protocol.built) else known
        host, kind = pool[rng.integers(len(pool))], protocol.kinds[len(made) % len(protocol.kinds)]
        number += 1
        if kind == "antisite" and len(set(host.numbers)) < 2:
            continue
        atoms = _distorted(kind, host, protocol, rng)
        if not excluded.isdisjoint(names(atoms)) or len(atoms) > protocol.max_atoms:
            continue
        atoms.info = {"kind": kind, "host": names(host)[0], "formula": names(atoms)[0], "number": number, "seed": protocol.seed}
        made.append(atoms)
        hosts.append(host)
    hot = [atoms for atoms in made if atoms.info["kind"] == "hot"]
    steps = {"steps": protocol.steps, "every": protocol.steps, "time_step_fs": protocol.time_step_fs, "friction_per_ps": 10.0}
    moved = []
    for first in tqdm(range(0, len(hot), _HOT_BATCH), disable=not progress, desc="hot frames"):
        part = hot[first : first + _HOT_BATCH]
        kelvin = np.random.default_rng([protocol.seed, 2, first]).uniform(*protocol.temperature_k, len(part))
        *_, last = engine.move(student, part, kelvin.tolist(), seed=first, **steps)
        for number, positions in last.positions.items():
            part[number].positions = positions
            part[number].info["temperature_k"] = float(kelvin[number])
            moved.append(part[number])
    made = sorted([atoms for atoms in made if atoms.info["kind"] != "hot"] + moved, key=lambda atoms: atoms.info["number"])
    rng = np.random.default_rng([protocol.seed, 4])
    others = [known[k] for k in rng.permutation(len(known))[: round(protocol.replay * protocol.n_frames)]]
    distinct = {structures.content(atoms): atoms for atoms in [*others, *hosts]}
    return made, list(distinct.values())


# ---- Labels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """What the student is to learn."""

    labels: list[Label]  # the teacher's, on the student's zero
    replay: list[Label]  # the student's own, of crystals at rest
    constants: dict[str, float]  # eV per atom of an element, added to the teacher's energies
    residual: float  # of their fit, root mean square, eV/atom
    left_out: dict[str, int]  # why → how many frames


def zero(crystals: Sequence[ase.Atoms], difference: np.ndarray) -> tuple[dict[str, float], float]:
    """Return one constant per element, and the residual (eV/atom), from differences of two energies per atom (eV, shape (n,)).

    Least squares; where crystals do not tell elements apart, the smallest constants that do. The residual is the root mean square over the
    degrees of freedom that are left, NaN if there are none.
    """
    shares = np.array([np.bincount(atoms.numbers, minlength=119) / len(atoms) for atoms in crystals])
    seen = np.flatnonzero(shares.any(axis=0))
    found, _, rank, _ = np.linalg.lstsq(shares[:, seen], difference, rcond=None)
    rest, free = np.square(shares[:, seen] @ found - difference).sum(), len(crystals) - rank
    return dict(zip(ase.Atoms(numbers=seen).symbols, found.tolist(), strict=True)), float(np.sqrt(rest / free)) if free else float("nan")


def refused(first: Prediction, second: Prediction, protocol: Protocol) -> str:
    """Return why a label of the first potential is left out, by itself or beside the second's; nothing if it is good."""
    if not (first.ok and second.ok):
        return "a potential failed"
    if np.abs(first.forces).max() > protocol.max_force_ev_per_a:
        return f"a force is above {protocol.max_force_ev_per_a:g} eV/Å"
    away, size = (np.sqrt(np.mean(np.square(values))) for values in (first.forces - second.forces, first.forces))
    return "the two potentials disagree" if away > protocol.disagreement * (size + protocol.floor_ev_per_a) else ""


def label(
    made: Sequence[ase.Atoms], crystals: Sequence[ase.Atoms], three: Sequence[Potential], protocol: Protocol, folder=None, progress=False
) -> Labelled:
    """Label frames and crystals at rest, given student, teacher and second potential; answers that the folder (a Path) holds are taken.

    PotentialError if no label is good.
    """
    student, teacher, second = three
    at_rest = {one: _answers(one, crystals, folder, "crystals", progress) for one in (student, teacher)}
    good = [k for k in range(len(crystals)) if all(answers[k].ok for answers in at_rest.values())]
    own, other = ([answers[k] for k in good] for answers in at_rest.values())
    known = [crystals[k] for k in good]
    gap = np.array([(a.energy - b.energy) / len(a.forces) for a, b in zip(own, other, strict=True)])
    constants, residual = zero(known, gap)
    labels, left_out = [], {}
    first, beside = (_answers(one, made, folder, "frames", progress) for one in (teacher, second))
    for atoms, answer, check in zip(made, first, beside, strict=True):
        why = refused(answer, check, protocol) or ("" if constants.keys() >= set(atoms.symbols) else "an element is in no crystal at rest")
        if why:
            left_out[why] = left_out.get(why, 0) + 1
            continue
        energy = answer.energy + sum(constants[symbol] for symbol in atoms.symbols)
        labels.append(Label(atoms, energy, answer.forces, answer.stress))
    if not labels:
        raise PotentialError(f"no label of {teacher.key} is good: {', '.join(f'{why} ({n})' for why, n in left_out.items())}")
    n = round(protocol.replay * len(made))
    replay = [Label(atoms, answer.energy, answer.forces, answer.stress) for atoms, answer in zip(known[:n], own[:n], strict=True)]
    return Labelled(labels, replay, constants, residual, left_out)


def _answers(potential: Potential, asked: Sequence[ase.Atoms], folder: Path | None, name: str, progress: bool) -> list[Prediction]:
    """Evaluate piece by piece, each of which stays in the folder, if there is one."""
    found: list[Prediction] = []
    known = re.sub(r"[^\w.-]", "_", potential.key)
    for first in tqdm(range(0, len(asked), _PIECE), disable=not progress, desc=f"{name}: {potential.key}"):
        path = folder / f"{name}-{first:05d}-{known}.json" if folder else None
        if path is None or not path.is_file():
            answers = potential.evaluate(asked[first : first + _PIECE], stress=True)
            rows: Any = [
                [a.energy, a.forces.tolist(), np.asarray(a.stress).tolist(), None] if a.ok else [0, [], [], a.error] for a in answers
            ]
            if path:
                results.write_json({"answers": rows}, path)
        else:
            rows = results.read_json(path)["answers"]
        found += [Prediction(energy, np.array(forces), np.array(stress), error) for energy, forces, stress, error in rows]
    return found


# ---- Training -------------------------------------------------------------------------------------


def moments(potential: GraphPotential, crystals: Sequence[ase.Atoms]) -> np.ndarray:
    """Return CHGNet's magnetic moments of all atoms, as its package computes them: µ_B, without sign."""
    with contextlib.redirect_stdout(io.StringIO()):
        return np.concatenate([potential.network.predict_structure(AseAtomsAdaptor.get_structure(one), task="em")["m"] for one in crystals])


def scores(potential: Potential, labels: Sequence[Label]) -> dict[str, float]:
    """Return ``n``, the ``slope`` of the forces, their error (``force_mae``, eV/Å) and that of energies (``energy_mae``, eV/atom)."""
    answers = potential.evaluate([one.atoms for one in labels])
    reference, predicted = trial.forces(labels, answers)
    errors = np.abs(predicted - reference).mean(), np.abs(trial.energy_errors(labels, answers)).mean()
    found = dict(zip(("force_mae", "energy_mae"), map(float, errors), strict=True))
    return found | {"n": len(labels), "slope": softening.softening_scale(reference, predicted)}


def mend(
    model: str, teacher: str, second: str, out: Path, protocol: Protocol = Protocol(), recipe=RECIPE, *, device="auto", progress=False
) -> dict[str, Any]:
    """Make frames, label them, train, and save a mended potential (:mod:`helpers.potentials.fixes`); the same call goes on.

    Returns what is saved with it: numbers of frames by kind and of those left out, constants and residual of the energies, :func:`scores`
    of the teacher's held-out labels (``before``, ``after``), mean change of the moments (µ_B). PotentialError if the folder holds another
    mending, the student has no weights, or no label is good.
    """
    three = [potentials.load(key, device) for key in (model, teacher, second)]
    student = three[0]
    if not isinstance(student, GraphPotential):
        raise PotentialError(f"{model} has no weights to train.")
    request = {"model": model, "teacher": teacher, "second": second, "protocol": asdict(protocol), "recipe": recipe.record()}
    request, started = json.loads(json.dumps(request)), out / "started.json"
    if started.is_file() and results.read_json(started) != request:
        raise PotentialError(f"{out} holds a mending with other settings; repeat those, or choose a new folder.")
    if (out / fixes.RECORD).is_file():
        return fixes.record(out)
    out.mkdir(parents=True, exist_ok=True)
    results.write_json(request, started)
    files = [out / "frames.extxyz", out / "crystals.extxyz"]
    if not files[1].is_file():
        excluded = tested() if protocol.variant == "strict" else frozenset()
        for path, members in zip(files, frames(student, protocol, excluded, progress), strict=True):
            with results.aside(path) as made:
                ase.io.write(made, members, format="extxyz")
    data = label(*(ase.io.read(path, ":") for path in files), three, protocol, out, progress)
    outcome = fine_tune.fine_tune(student, [*data.labels, *data.replay], recipe, checkpoint=out / "training.pt", progress=progress)
    held = [data.labels[k] for k in outcome.validation if k < len(data.labels)]
    about: dict[str, Any] = {"method": "universal", "trained": True, "request": request}
    about["base_sha256"] = student.describe()["weights_sha256"]
    about |= {"n_labels": len(data.labels), "frames": Counter(one.atoms.info["kind"] for one in data.labels), "left_out": data.left_out}
    about |= {"constants": data.constants, "residual_ev_per_atom": data.residual}
    if data.replay and hasattr(student.network, "site_wise"):
        old, new = (moments(one, [label.atoms for label in data.replay]) for one in (student, outcome.potential))
        about["moments_change"] = float(np.abs(new - old).mean())
    stages = {"before": student, "after": outcome.potential}
    fixes.save(out, outcome.potential, model, about | {name: scores(one, held) for name, one in stages.items() if held})
    return fixes.record(out)
