"""What makes a potential soft at the bottom of the valley? Students of relaxation frames, with one thing varied at a time.

CHGNet is soft in cold crystals; the students of :mod:`helpers.experiments.students` are right there and soft in hot ones. Here is tried
what tells the training of CHGNet from theirs: loss, weights, precision, length, network and diet. The potential that is "run" is the
teacher, ASE's EMT, which knows seven metals and their alloys.

Diets (:func:`frames`), equally many frames of cells of 8 atoms:

* ``copper``: relaxations of three crystals of copper from wrong cells and displaced atoms, eight frames each.
* ``compounds``: relaxations of 105 crystals, seven metals and all their pairs in several prototypes, two frames each.
* ``symmetric``: the same, but the metals and the L1₂ alloys start with their atoms on their sites, in a cell of the wrong volume. Then
  symmetry forbids any force on an atom, as in half of the cells of MPtrj with up to four atoms.

Sets: ``single`` (the standard student, and one thing varied at a time), ``combined`` (diets and something else) and ``small`` (one student
of few frames and few steps: the live check).

The table: ``reference`` is the teacher's answer; ``arm`` (:data:`ARMS`) and the columns of :class:`Student` name the student. Properties:
``force`` (eV/Å; ``asked`` is the crystal, Cu or Cu3Au in L1₂, at ``temperature_k``), ``shear_modulus`` (GPa, of copper, its atoms not
relaxed; ``frame`` is ``c44`` or ``c_prime``), ``training_mae`` and ``validation_mae`` (eV/Å).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from typing import Any

import ase
import numpy as np
import pandas as pd
import torch
from ase import units
from ase.build import bulk
from ase.data import atomic_numbers, reference_states
from ase.filters import UnitCellFilter

from helpers.benchmarks import Case, chosen_sets, row, table
from helpers.experiments import students
from helpers.potentials.base import Potential
from helpers.training import fine_tune, trial
from helpers.training.fine_tune import Label

SETS: dict[str, tuple[str, ...]] = {"single": (), "combined": (), "small": ()}
LIVE = "small"
KEYS = ("frame", "atom", "component")
MODELS = {"ase:ase.calculators.emt.EMT": tuple(SETS)}
ATOMS_PER_SHARD = 1

# Training amplifies the last digits of float32.
TOLERANCES = {"force": 0.1, "shear_modulus": 10.0, "training_mae": 0.02, "validation_mae": 0.02}

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")


@dataclass(frozen=True)
class Student:
    """The standard student; :data:`ARMS` says what else there is. ``max_l`` as in :func:`helpers.potentials.untrained.build`."""

    diet: str = "copper"
    loss: str = "squared"
    energy_weight: float = 10.0
    force_weight: float = 10.0
    steps: int = 250
    precision: str = "float32"
    architecture: str = "mace"
    max_l: int = 0


ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "single": {
        "standard": {},
        "energy 100 : 1": {"force_weight": 0.1},
        "forces 1 : 100": {"energy_weight": 0.1},
        "Huber loss": {"loss": "huber"},
        "absolute loss": {"loss": "absolute"},
        "float64": {"precision": "float64"},
        "60 steps": {"steps": 60},
        "120 steps": {"steps": 120},
        "equivariant": {"max_l": 1},
        "CHGNet's network": {"architecture": "chgnet"},
        "compounds": {"diet": "compounds"},
        "symmetric": {"diet": "symmetric"},
    },
    "combined": {
        "compounds, 120 steps": {"diet": "compounds", "steps": 120},
        "compounds, 1000 steps": {"diet": "compounds", "steps": 1000},
        "symmetric, 120 steps": {"diet": "symmetric", "steps": 120},
        "symmetric, 1000 steps": {"diet": "symmetric", "steps": 1000},
        "symmetric, Huber loss": {"diet": "symmetric", "loss": "huber"},
        "symmetric, absolute loss": {"diet": "symmetric", "loss": "absolute"},
        "symmetric, equivariant": {"diet": "symmetric", "max_l": 1},
        "symmetric, CHGNet's network": {"diet": "symmetric", "architecture": "chgnet"},
    },
    "small": {"quick": {"diet": "compounds", "loss": "huber", "steps": 60}},
}


@dataclass(frozen=True)
class Protocol:
    """What no arm varies, named as in :class:`students.Protocol`; ``relaxation_steps`` at most of a compound, ``shear`` for the moduli."""

    n_frames: int = 210
    n_small_frames: int = 30
    channels: int = 16
    start_a: float = 0.08
    start_strain: float = 0.05
    relaxation_steps: int = 15
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 10
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-4
    shear: float = 0.02


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per arm and seed; KeyError if a set is unknown. Frames are made and labelled when the case is run."""
    seeds = (protocol or Protocol()).seeds
    found = []
    for name in chosen_sets(SETS, sets):
        for seed, (arm, changes) in itertools.product(seeds[:1] if name == LIVE else seeds, ARMS[name].items()):
            info = asdict(Student(**changes)) | {"arm": arm, "seed": seed}
            found.append(Case(f"{name}/{arm}/{seed}", name, "Cu", {}, {}, info))
    return found


def compounds() -> list[tuple[ase.Atoms, bool]]:
    """Return 105 crystals in cells of 8 atoms, and whether a ``symmetric`` diet keeps their atoms on their sites."""
    lengths = {symbol: reference_states[atomic_numbers[symbol]]["a"] for symbol in METALS}
    found = []
    for one, a in lengths.items():
        fcc, hexagonal = bulk(one, "fcc", a=a, cubic=True), bulk(one, "hcp", a=a / 2**0.5, c=a * (4 / 3) ** 0.5)
        bcc = bulk(one, "bcc", a=a / 2 ** (1 / 3), cubic=True)
        found += [(fcc * (2, 1, 1), True), (hexagonal * (2, 2, 1), True), (bcc * (2, 2, 1), True)]
    for one, two in itertools.combinations(METALS, 2):
        found += [(ordered(sites) * (2, 1, 1), True) for sites in ([two, one, one, one], [one, two, two, two])]
        found.append((ordered([one, one, two, two]) * (2, 1, 1), False))
        a = (np.mean([lengths[one] ** 3, lengths[two] ** 3]) / 2) ** (1 / 3)
        found.append((bulk(one + two, "cesiumchloride", a=a) * (2, 2, 1), False))
    return found


def ordered(sites: Sequence[str]) -> ase.Atoms:
    """Return the cubic face-centred cell with these elements on its four sites: L1₂, or L1₀ with planes along z; the volume is the mean."""
    volume = np.mean([reference_states[atomic_numbers[symbol]]["a"] ** 3 for symbol in sites])
    atoms = bulk("Cu", "fcc", a=volume ** (1 / 3), cubic=True)
    order = np.argsort(atoms.positions[:, 2], kind="stable")
    atoms.symbols = np.array(sites)[np.argsort(order)]
    return atoms


@lru_cache(maxsize=4)
def frames(teacher: Potential, diet: str, n_frames: int, protocol: Protocol, seed: int) -> tuple[Label, ...]:
    """Return what a student sees: ``n_frames`` of a diet, labelled by the teacher."""
    if diet == "copper":
        return students.relaxation_frames(teacher, "Cu", n_frames, protocol.start_a, protocol.start_strain, seed)
    rng = np.random.default_rng([seed, 3])
    found: list[Label] = []
    for start, on_sites in itertools.cycle(compounds()):
        if len(found) >= n_frames:
            break
        atoms, strain = start.copy(), protocol.start_strain
        change = np.eye(3) * rng.uniform(-strain, strain)
        shear, moves = rng.uniform(-strain, strain, (3, 3)) / 2, rng.normal(0, protocol.start_a, atoms.positions.shape)
        displaced = diet == "compounds" or not on_sites
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + change + displaced * (shear + shear.T) / 2), scale_atoms=True)
        atoms.positions += displaced * moves
        found += students.descent(teacher, atoms, 2, protocol.relaxation_steps, UnitCellFilter)
    return tuple(found[:n_frames])


@lru_cache(maxsize=4)
def asked(teacher: Potential, alloys: bool, small: bool) -> tuple[tuple[dict[str, object], Label], ...]:
    """Return the frames that students are tested on, with the columns that name them."""
    found = [("Cu", *frame) for frame in students.hot_frames(teacher, "Cu", small)]
    for temperature in (300.0, 2000.0) if alloys and not small else ():
        rng = np.random.default_rng([int(temperature), 98])
        moved = students.dynamics(teacher, ordered(("Au", "Cu", "Cu", "Cu")) * (2, 2, 2), temperature, 3, rng, every=40)
        found += [("Cu3Au", temperature, number, label) for number, label in enumerate(moved)]
    return tuple(({"asked": name, "temperature_k": t, "frame": f"{name}/{t:g}K/{number}"}, label) for name, t, number, label in found)


def shear_moduli(potential: Potential, cell: ase.Atoms, shear: float) -> dict[str, float]:
    """Return C44 and C′ = (C11 − C12)/2 of a cubic cell, GPa, from second differences of the energy over ± ``shear``."""
    ways = {"c44": np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]), "c_prime": np.diag([0.5, -0.5, 0])}
    strained = [cell.copy() for _ in range(5)]
    for atoms, (way, sign) in zip(strained[1:], itertools.product(ways.values(), (1, -1)), strict=True):
        atoms.set_cell(cell.cell.array @ (np.eye(3) + sign * shear * way), scale_atoms=True)
    middle, *ends = [answer.energy for answer in potential.evaluate(strained)]
    second = [(plus + minus - 2 * middle) / shear**2 for plus, minus in zip(ends[::2], ends[1::2], strict=True)]
    return {name: value / cell.get_volume() / units.GPa for name, value in zip(ways, second, strict=True)}


def run(teacher: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Train each student on the teacher's labels and compare it with the teacher; a tidy table as the module's docstring says."""
    protocol = protocol or Protocol()
    rows: trial.Rows = []
    for case in cases:
        student, seed = Student(**{field.name: case.info[field.name] for field in fields(Student)}), case.info["seed"]
        seen = frames(teacher, student.diet, protocol.n_small_frames if case.set == LIVE else protocol.n_frames, protocol, seed)
        options = {"max_l": student.max_l, "dtype": getattr(torch, student.precision)}
        network = trial.untaught(seen, student.architecture, protocol.channels, seed, **options)
        settings = {"loss": student.loss, "energy_weight": student.energy_weight, "force_weight": student.force_weight}
        trained = fine_tune.fine_tune(network, seen, trial.student_recipe(protocol, len(seen), student.steps, seed=seed, **settings))
        rows += trial.mae_rows(partial(row, teacher.key, case), trained)
        rows += examine(teacher, trained.potential, case, protocol)
    return trial.filled(table(rows))


def examine(teacher: Potential, student: Potential, case: Case, protocol: Protocol) -> trial.Rows:
    """Return the student's forces and shear moduli beside the teacher's."""
    record = partial(row, teacher.key, case)
    frames = asked(teacher, case.info["diet"] != "copper", case.set == LIVE)
    rows = trial.force_rows(record, frames, student.evaluate([label.atoms for _, label in frames]))
    cell = students.conventional(students.teacher_cell(teacher, "Cu"))
    wanted, found = (shear_moduli(potential, cell, protocol.shear) for potential in (teacher, student))
    return rows + [record("shear_modulus", found[name], wanted[name], "GPa", asked="Cu", frame=name) for name in wanted]


def scales(made: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`students.scales` of every student, crystal and temperature, in the order of :data:`ARMS`."""
    found = students.scales(made, ("model", "set", "arm", "seed", "asked", "temperature_k"))
    order = [arm for arms in ARMS.values() for arm in arms]
    return found if found.empty else found.sort_values("arm", key=lambda arm: arm.map(order.index), kind="stable", ignore_index=True)


def summarise(made: pd.DataFrame) -> pd.DataFrame:
    """Return slopes over seeds (mean, lowest, highest), one row per arm, crystal and temperature."""
    found = scales(made)
    if found.empty:
        return found
    ways = {"": "mean", "_low": "min", "_high": "max"}
    columns = {f"{name}{end}": (name, how) for name in ("slope", "inverse_slope") for end, how in ways.items()}
    return found.groupby(["model", "set", "arm", "asked", "temperature_k"], sort=False).agg(**columns).reset_index()
