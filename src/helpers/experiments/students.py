"""A controlled experiment: what a potential learns from data near equilibrium, and what from data sampled broadly.

One potential, the *teacher*, plays the part of DFT: it labels every structure, so that nothing but the choice of the structures differs.
*Students* with random weights learn from two kinds of frames of one compound, and from mixtures of the two:

* ``relaxation``: frames along relaxations from slightly wrong cells and positions, as those of the Materials Project are.
* ``broad``: molecular dynamics from 300 to 2500 K of perfect and strained crystals, crystals with vacancies, and slabs.

Students see the same number of frames and take the same number of gradient steps. They are then asked for the forces of hot crystals
that none of them has seen, for surfaces, a vacancy and phonons, against the teacher's answers.

The potential that is "run" is the teacher: ``softening run students --model ase:ase.calculators.emt.EMT --sets copper``.

Sets
----
``copper``
    Cu as face-centred cubic, hexagonal and body-centred cubic crystal.
``magnesia``
    MgO as rocksalt, wurtzite and caesium chloride crystal. Only the share of broad frames is varied.
``small``
    Two copper students of few frames and few steps: the live check.

What varies (columns of the table)
----------------------------------
``share`` (of broad frames in the training data), ``n_frames``, ``start_a`` (Å, how far from equilibrium the relaxations start),
``architecture``, ``channels``, ``steps`` (of the training) and ``seed`` (data and weights alike). One thing about the standard student
(:class:`Protocol`) is varied at a time.

The table
---------
``reference`` is the teacher's answer. Columns beyond these: ``stage`` (``trained``, or ``mended``: fine-tuned on one hot frame),
``temperature_k``, ``frame``, ``atom``, ``component``, ``displacement``, ``quantile``.
Properties: ``force`` (hot frames, one row per component), ``surface_energy`` (eV/Å², unrelaxed, ``frame`` names the facet),
``vacancy_energy`` (eV, unrelaxed; of a pair of neighbouring ions in MgO), ``omega_max`` (THz, at the student's own cell), ``pull`` (eV/Å,
the force on one atom pulled towards a neighbour), ``training_force`` (eV/Å, quantiles of the sizes of the teacher's force components in
the training data; ``value`` and ``reference`` are equal), ``training_mae`` and ``validation_mae`` (eV/Å).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import ase
import ase.build
import numpy as np
import pandas as pd
from ase import units
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE

from helpers import softening
from helpers.benchmarks import Case, chosen_sets, phonons, row, table
from helpers.potentials.base import GraphPotential, Potential, StructureError
from helpers.structures import area
from helpers.training import fine_tune, trial
from helpers.training.fine_tune import Label

SETS: dict[str, tuple[str, ...]] = {"copper": (), "magnesia": (), "small": ()}
LIVE = "small"
KEYS = ("stage", "frame", "atom", "component", "displacement", "quantile")
MODELS = {"ase:ase.calculators.emt.EMT": ("copper", "small"), "tensornet-matpes-pbe-2025.1": ("magnesia",)}

# Each student is a piece of work of its own.
ATOMS_PER_SHARD = 1

# Training amplifies the last digits of float32.
TOLERANCES = {"force": 0.1, "surface_energy": 5e-3, "vacancy_energy": 0.1, "omega_max": 0.3, "pull": 0.1}
TOLERANCES |= {"training_force": 1e-3, "training_mae": 0.02, "validation_mae": 0.02}

_FACETS = {"Cu": ("111", "100", "110"), "MgO": ("100", "110")}
_PHONON_REPEATS = 3
_TEST_TEMPERATURES_K = (300, 1000, 2000)
_MD_STEP_FS = 3.0
_QUANTILES = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Protocol:
    """Settings; the standard student, and what is varied about it."""

    n_frames: int = 100  # training frames
    channels: int = 16  # width of the standard student, a MACE
    # Root mean square displacement of each coordinate where relaxations start, Å. With the standard value the forces of the frames are
    # spread about as those of MPtrj are, the training data of the published models.
    start_a: float = 0.08
    start_strain: float = 0.05  # largest change of the lattice parameter where relaxations start
    # Values that are tried besides.
    shares: tuple[float, ...] = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
    other_channels: tuple[int, ...] = (4, 32)
    other_frames: tuple[int, ...] = (25, 400)
    other_starts_a: tuple[float, ...] = (0.03, 0.15, 0.3)
    other_steps: tuple[int, ...] = (150, 2400)
    chgnet_channels: int = 32  # width of the students with CHGNet's architecture
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 600  # gradient steps of a training
    batch_size: int = 10  # structures per step
    # For the set ``small``.
    n_small_frames: int = 20
    n_small_steps: int = 20
    # See :class:`helpers.training.fine_tune.Recipe`.
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-4
    energy_weight: float = 10.0
    force_weight: float = 10.0
    mending_epochs: int = 100  # of the fine-tuning on one frame
    mending_learning_rate: float = 1e-3


@dataclass(frozen=True)
class Student:
    """What makes a student; the columns of the table."""

    architecture: str
    channels: int
    share: float
    n_frames: int
    start_a: float
    steps: int
    seed: int


def students(protocol: Protocol) -> list[Student]:
    """Return all students of an experiment: the standard one at every share of broad frames, and one thing varied at a time."""
    found: dict[Student, None] = {}
    for seed in protocol.seeds:
        standard = Student("mace", protocol.channels, 0.0, protocol.n_frames, protocol.start_a, protocol.steps, seed)
        varied = [dataclasses.replace(standard, share=share) for share in protocol.shares]
        for share in (0.0, 1.0):
            at = dataclasses.replace(standard, share=share)
            varied += [dataclasses.replace(at, channels=channels) for channels in protocol.other_channels]
            varied.append(dataclasses.replace(at, architecture="chgnet", channels=protocol.chgnet_channels))
        varied += [dataclasses.replace(standard, n_frames=number) for number in protocol.other_frames]
        varied += [dataclasses.replace(standard, start_a=start) for start in protocol.other_starts_a]
        varied += [dataclasses.replace(standard, steps=steps) for steps in protocol.other_steps]
        found |= dict.fromkeys(varied)
    return list(found)


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per student; KeyError if a set is unknown. Frames are made, and labelled by the teacher, when the case is run."""
    protocol = protocol or Protocol()
    found = []
    for name in chosen_sets(SETS, sets):
        material = "MgO" if name == "magnesia" else "Cu"
        chosen = students(protocol)
        if name == "magnesia":
            # The second compound asks whether the answer is copper's alone; a universal teacher takes too long for every variation.
            chosen = [
                Student("mace", protocol.channels, share, protocol.n_frames, protocol.start_a, protocol.steps, seed)
                for seed in protocol.seeds
                for share in protocol.shares
            ]
        if name == "small":
            standard = Student("mace", protocol.channels, 0.0, protocol.n_small_frames, protocol.start_a, protocol.n_small_steps, 0)
            chosen = [standard, dataclasses.replace(standard, share=1.0)]
        for student in chosen:
            info = dataclasses.asdict(student)
            text = "/".join(f"{key}-{value:g}" if not isinstance(value, str) else value for key, value in info.items())
            found.append(Case(f"{name}/{text}", name, material, {}, {}, info))
    return found


# ---- Structures -----------------------------------------------------------------------------------


def crystal(material: str) -> ase.Atoms:
    """Return the primitive cell of the stable crystal, near the teachers' lattice parameter."""
    if material == "Cu":
        return ase.build.bulk("Cu", "fcc", a=3.61)
    return ase.build.bulk("MgO", "rocksalt", a=4.24)


def polymorphs(material: str) -> list[ase.Atoms]:
    """Return cells of 8 atoms of three crystal structures."""
    if material == "Cu":
        return [
            ase.build.bulk("Cu", "fcc", a=3.61, cubic=True) * (2, 1, 1),
            ase.build.bulk("Cu", "hcp", a=2.55, c=4.17) * (2, 2, 1),
            ase.build.bulk("Cu", "bcc", a=2.87, cubic=True) * (2, 2, 1),
        ]
    return [
        ase.build.bulk("MgO", "rocksalt", a=4.24, cubic=True),
        ase.build.bulk("MgO", "wurtzite", a=3.32, c=5.10) * (2, 1, 1),
        ase.build.bulk("MgO", "cesiumchloride", a=2.66) * (2, 2, 1),
    ]


def conventional(primitive: ase.Atoms) -> ase.Atoms:
    """Return the cubic cell of a primitive one of face-centred cubic or rocksalt structure."""
    a = (4 * primitive.get_volume()) ** (1 / 3)
    if len(primitive) == 1:
        return ase.build.bulk(str(primitive.symbols), "fcc", a=a, cubic=True)
    return ase.build.bulk(str(primitive.symbols), "rocksalt", a=a, cubic=True)


def slab(cell: ase.Atoms, facet: str) -> ase.Atoms:
    """Return a slab of four layers of a cubic cell with 6 Å of vacuum on both sides."""
    made = ase.build.surface(cell, tuple(int(digit) for digit in facet), 4, vacuum=6.0)
    made.pbc = True
    return made


@lru_cache(maxsize=12)
def relaxation_frames(teacher: Potential, material: str, n_frames: int, start_a: float, strain: float, seed: int) -> tuple[Label, ...]:
    """Return frames along the teacher's relaxations from wrong cells and positions, eight of each, evenly spread over its steps.

    Initial displacements have the root mean square ``start_a`` (Å, each coordinate), initial strains are drawn from ± ``strain``, half of
    it for shears.
    """
    rng = np.random.default_rng([seed, 0])
    frames: list[Label] = []
    for start in itertools.cycle(polymorphs(material)):
        if len(frames) >= n_frames:
            break
        atoms = start.copy()
        change = rng.uniform(-strain, strain, (3, 3)) / 2
        change = (change + change.T) / 2 + np.eye(3) * rng.uniform(-strain, strain)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + change), scale_atoms=True)
        atoms.positions += rng.normal(0, start_a, atoms.positions.shape)
        frames += descent(teacher, atoms, 8, 60)
    return tuple(frames[:n_frames])


def descent(teacher: Potential, start: ase.Atoms, n_frames: int, steps: int, cell: type = FrechetCellFilter) -> list[Label]:
    """Return up to ``n_frames`` of a relaxation of positions and cell (ASE's filter) of at most so many steps, evenly spread over them."""
    atoms = start.copy()
    atoms.calc = teacher.calculator()
    passed: list[ase.Atoms] = []
    moves = FIRE(cell(atoms), logfile=None)
    moves.attach(lambda: passed.append(atoms.copy()))
    moves.run(fmax=0.02, steps=steps)
    chosen = np.unique(np.linspace(0, len(passed) - 1, n_frames).round().astype(int))
    return trial.labelled(teacher, [passed[number] for number in chosen])


@lru_cache(maxsize=12)
def broad_frames(teacher: Potential, material: str, n_frames: int, seed: int) -> tuple[Label, ...]:
    """Return frames of the teacher's molecular dynamics: crystals, strained crystals, crystals with vacancies, and slabs, 300 to 2500 K."""
    rng = np.random.default_rng([seed, 1])
    frames: list[Label] = []
    kinds = itertools.cycle(("perfect", "vacancy", "strained", "slab"))
    shapes = itertools.cycle(polymorphs(material))
    facets = itertools.cycle(_FACETS[material])
    while len(frames) < n_frames:
        kind, atoms = next(kinds), next(shapes).copy()
        if kind == "vacancy":
            atoms = atoms * (2, 1, 1)
            atoms = without_vacancy_sites(atoms, int(rng.integers(len(atoms))))
        elif kind == "strained":
            change = rng.normal(0, 0.06, (3, 3))
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + (change + change.T) / 2), scale_atoms=True)
        elif kind == "slab":
            atoms = slab(conventional(crystal(material)), next(facets))
        frames += dynamics(teacher, atoms, float(rng.choice([300, 800, 1500, 2500])), 5, rng)
    return tuple(frames[:n_frames])


def without_vacancy_sites(atoms: ase.Atoms, site: int) -> ase.Atoms:
    """Remove an atom, and in a compound its nearest neighbour of the other kind too."""
    drop = [site]
    if len(set(atoms.numbers)) > 1:
        other = np.flatnonzero(atoms.numbers != atoms.numbers[site])
        drop.append(int(other[np.argmin(atoms.get_distances(site, other, mic=True))]))
    kept = atoms.copy()
    del kept[drop]
    return kept


def dynamics(
    teacher: Potential, atoms: ase.Atoms, temperature_k: float, n_frames: int, rng: np.random.Generator, every: int = 20
) -> list[Label]:
    """Return frames of a Langevin run of the teacher, one every ``every`` steps of 3 fs, the start left out."""
    moving = atoms.copy()
    moving.calc = teacher.calculator()
    thermalize_momenta(moving, temperature_K=temperature_k, rng=rng)
    run = Langevin(moving, _MD_STEP_FS * units.fs, temperature_K=temperature_k, friction=0.02 / units.fs, rng=rng, fixcm=False)
    passed: list[ase.Atoms] = []
    run.attach(lambda: passed.append(moving.copy()), interval=every)
    run.run(n_frames * every)
    return trial.labelled(teacher, passed[-n_frames:])


def training_frames(teacher: Potential, material: str, student: Student, protocol: Protocol) -> list[Label]:
    """Return what a student sees: relaxation frames, of which a share has been replaced by broad ones."""
    n_broad = round(student.share * student.n_frames)
    frames: list[Label] = []
    if n_broad < student.n_frames:
        near = relaxation_frames(teacher, material, student.n_frames, student.start_a, protocol.start_strain, student.seed)
        frames += _spread(near, student.n_frames - n_broad)
    if n_broad:
        frames += _spread(broad_frames(teacher, material, student.n_frames, student.seed), n_broad)
    return frames


def _spread(frames: Sequence[Label], number: int) -> list[Label]:
    """Return some of the frames, evenly spread."""
    return [frames[int(k)] for k in np.linspace(0, len(frames) - 1, number).round()]


@lru_cache(maxsize=4)
def hot_frames(teacher: Potential, material: str, small: bool = False) -> tuple[tuple[float, int, Label], ...]:
    """Return the frames that students are tested on: (temperature in K, number, label); the stable crystal, 32 or 64 atoms."""
    size = (2, 2, 2) if material == "Cu" else (2, 2, 1)
    atoms = conventional(crystal(material)) * size
    found = []
    for temperature in _TEST_TEMPERATURES_K[-1:] if small else _TEST_TEMPERATURES_K:
        # Seeds of two numbers that the training data do not use.
        rng = np.random.default_rng([temperature, 99])
        for run in range(1 if small else 2):
            frames = dynamics(teacher, atoms, temperature, 3, rng, every=40)
            found += [(float(temperature), 3 * run + number, label) for number, label in enumerate(frames)]
    return tuple(found)


# ---- Running --------------------------------------------------------------------------------------


def train(teacher: Potential, material: str, student: Student, protocol: Protocol) -> tuple[fine_tune.FineTuned, list[Label]]:
    """Train a student from random weights; return it and the frames it saw."""
    frames = training_frames(teacher, material, student, protocol)
    network = trial.untaught(frames, student.architecture, student.channels, student.seed)
    recipe = trial.student_recipe(protocol, len(frames), student.steps, seed=student.seed)
    return fine_tune.fine_tune(network, frames, recipe), frames


def run(teacher: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Train each student on the teacher's labels and compare it with the teacher; a tidy table as the module's docstring says."""
    protocol = protocol or Protocol()
    rows: trial.Rows = []
    for case in cases:
        small, student = case.set == "small", Student(**case.info)
        record = partial(row, teacher.key, case, stage="trained")
        try:
            trained, frames = train(teacher, case.material, student, protocol)
        except StructureError as error:
            rows.append(record("training_mae", np.nan, np.nan, "eV/Å", error=str(error)))
            continue
        rows += trial.mae_rows(record, trained)
        sizes = np.quantile(np.abs(np.concatenate([label.forces.ravel() for label in frames])), _QUANTILES)
        rows += [record("training_force", v, v, "eV/Å", quantile=round(float(q), 2)) for q, v in zip(_QUANTILES, sizes, strict=True)]
        rows += examine(teacher, trained.potential, case, "trained")
        if student.share == 0 and not small:
            rows += examine(teacher, fine_tuned(teacher, trained.potential, case.material, student, protocol), case, "mended")
    return trial.filled(table(rows))


def fine_tuned(teacher: Potential, soft: GraphPotential, material: str, student: Student, protocol: Protocol) -> GraphPotential:
    """Fine-tune all weights of a student on one hot frame that it is not tested on."""
    rng = np.random.default_rng([student.seed, 2])
    (label,) = dynamics(teacher, conventional(crystal(material)) * (2, 2, 1), 2000.0, 1, rng, every=80)
    recipe = trial.recipe(
        protocol,
        epochs=protocol.mending_epochs,
        learning_rate=protocol.mending_learning_rate,
        stress_weight=0.0,
        batch_size=1,
        max_gradient_norm=10.0,
        seed=student.seed,
        keep="last",
    )
    return fine_tune.fine_tune(soft, [label], recipe).potential


def examine(teacher: Potential, student: Potential, case: Case, stage: str) -> trial.Rows:
    """Return the student's answers beside the teacher's."""
    small, record = case.set == "small", partial(row, teacher.key, case, stage=stage)
    frames = [({"temperature_k": t, "frame": f"{t:g}K/{number}"}, label) for t, number, label in hot_frames(teacher, case.material, small)]
    rows = trial.force_rows(record, frames, student.evaluate([label.atoms for _, label in frames]))
    answers = zip(_scalars(teacher, teacher, case.material), _scalars(student, teacher, case.material), strict=True)
    for (name, unit, extra, wanted), (_, _, _, value) in answers:
        error = None if np.isfinite(value) else f"{name}: the student's answer is not a number"
        rows.append(record(name, value, wanted, unit, error=error, **extra))
    if not small:
        wanted, reason = highest_frequency(teacher, case.material)
        value, error = highest_frequency(student, case.material)
        rows.append(record("omega_max", value, wanted, "THz", error=error or reason))
    return rows


def _scalars(potential: Potential, teacher: Potential, material: str) -> list[tuple[str, str, dict[str, Any], float]]:
    """Return a potential's surface and vacancy energies and its force on a pulled atom, as (property, unit, further columns, value)."""
    cell = conventional(teacher_cell(teacher, material))
    names: list[tuple[str, str, dict[str, Any]]] = []
    structures = [cell]
    for facet in _FACETS[material]:
        structures.append(slab(cell, facet))
        names.append(("surface_energy", "eV/Å²", {"frame": facet}))
    supercell = cell * (2, 2, 2)
    structures.append(without_vacancy_sites(supercell, 0))
    names.append(("vacancy_energy", "eV", {}))
    first, vector = nearest_pair(supercell)
    for step in _pulls(vector):
        moved = supercell.copy()
        moved.positions[first] += step * vector / np.linalg.norm(vector)
        structures.append(moved)
        names.append(("pull", "eV/Å", {"displacement": round(float(step), 3)}))
    answers = potential.evaluate(structures)
    per_atom = answers[0].energy / len(cell)
    found = []
    for (name, unit, extra), atoms, answer in zip(names, structures[1:], answers[1:], strict=True):
        excess = answer.energy - per_atom * len(atoms)
        value = excess
        if name == "surface_energy":
            value = excess / (2 * area(atoms))
        elif name == "pull":
            value = float(answer.forces[first] @ vector / np.linalg.norm(vector))
        found.append((name, unit, extra, value))
    return found


def nearest_pair(atoms: ase.Atoms) -> tuple[int, np.ndarray]:
    """Return an atom and the vector (Å) to a nearest neighbour of it."""
    first, vectors = neighbor_list("iD", atoms, 3.2)
    at = int(np.argmin(np.linalg.norm(vectors, axis=1).round(6)))
    return int(first[at]), vectors[at]


def _pulls(vector: np.ndarray) -> np.ndarray:
    """Return displacements (Å) up to a quarter of the way to the neighbour."""
    return np.linspace(0, 0.25 * np.linalg.norm(vector), 11)[1:]


@lru_cache(maxsize=4)
def teacher_cell(teacher: Potential, material: str) -> ase.Atoms:
    """Return the primitive cell at the teacher's lattice parameter."""
    return phonons.relax(teacher, crystal(material), phonons.Protocol())


@lru_cache(maxsize=4)
def highest_frequency(potential: Potential, material: str) -> tuple[float, str | None]:
    """Return the highest phonon frequency (THz) at the potential's own lattice parameter, and why there is none."""
    rows = phonons.run(potential, [phonons.own(crystal(material), _PHONON_REPEATS)], phonons.Protocol())
    (found,) = rows[rows["property"] == "omega_max"].to_dict("records")
    return float(found["value"]), found["reason"] or None


# ---- Analysis -------------------------------------------------------------------------------------

# What is varied about the standard student besides its training data and its network.
_VARIED = ("channels", "n_frames", "start_a", "steps")

STUDENT = ["architecture", "channels", "share", "n_frames", "start_a", "steps", "seed"]


def scales(made: pd.DataFrame, by: Sequence[str] = ("model", "set", "stage", "temperature_k", *STUDENT)) -> pd.DataFrame:
    """Return ``slope``, ``inverse_slope``, ``r2``, ``mae`` and ``cmae`` (eV/Å) of every student's forces, by stage and temperature."""
    forces = made[(made["property"] == "force") & (made["status"] == "ok")]
    records = []
    for key, group in forces.groupby(list(by), observed=True):
        fitted = softening.fit(group["reference"], group["value"])
        numbers = {name: getattr(fitted, name) for name in ("slope", "inverse_slope", "r2", "mae", "cmae")}
        records.append(dict(zip(by, key, strict=True)) | numbers)
    return pd.DataFrame(records)


def ratios(made: pd.DataFrame) -> pd.DataFrame:
    """Return student over teacher for surface energies (mean over facets), vacancy energy and phonon, one row per student and stage."""
    scalars = made[made["property"].isin(["surface_energy", "vacancy_energy", "omega_max"]) & (made["status"] == "ok")]
    scalars = scalars.assign(ratio=scalars["value"] / scalars["reference"])
    return scalars.groupby(["model", "set", "stage", "property", *STUDENT], observed=True, as_index=False)["ratio"].mean()


def standard(rows: pd.DataFrame, protocol: Protocol | None = None) -> pd.DataFrame:
    """Return the rows of the standard student, whatever its share of broad frames and its seed."""
    protocol = protocol or Protocol()
    wanted = {"architecture": "mace"} | {name: getattr(protocol, name) for name in _VARIED}
    return rows[np.logical_and.reduce([rows[name] == value for name, value in wanted.items()])]


def overview(made: pd.DataFrame, protocol: Protocol | None = None) -> pd.DataFrame:
    """Return student over teacher (``ratio``; of forces: the slope) for every quantity and seed.

    ``student`` is the standard student of ``near`` frames, the same fine-tuned (``mended``), or that of ``broad`` frames.
    """
    slopes = scales(made)
    slopes = slopes.assign(quantity="forces at " + slopes["temperature_k"].map("{:.0f} K".format), ratio=slopes["slope"])
    names = {"surface_energy": "surface energy", "vacancy_energy": "vacancy energy", "omega_max": "highest frequency"}
    scalars = ratios(made).rename(columns={"property": "quantity"}).replace({"quantity": names})
    rows = standard(pd.concat([slopes, scalars]), protocol)
    rows = rows[rows["share"].isin([0.0, 1.0])]
    kind = np.where(rows["share"] == 1, "broad", np.where(rows["stage"] == "mended", "mended", "near"))
    return rows.assign(student=kind)[["model", "set", "quantity", "student", "seed", "ratio"]]


def curves(values: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a number against each thing that was varied, mean and range over seeds: what :func:`helpers.figures.seed_curves` draws.

    The values have one row per student (one stage, temperature or property), as from :func:`scales` or :func:`ratios`. Panels are ``share``
    (percent; kind ``mixed``), ``start_a``, ``n_frames``, ``steps`` (kind ``near``) and ``channels`` (kinds ``near`` and ``broad``).
    """
    protocol = Protocol()
    parts = []
    for panel in ("share", *_VARIED):
        chosen = values[values["architecture"] == "mace"]
        for name in _VARIED:
            if name != panel:
                chosen = chosen[chosen[name] == getattr(protocol, name)]
        if panel in ("start_a", "n_frames", "steps"):
            chosen = chosen[chosen["share"] == 0]
        elif panel == "channels":
            chosen = chosen[chosen["share"].isin([0.0, 1.0])]
        kind = "mixed" if panel == "share" else np.where(chosen["share"] == 0, "near", "broad")
        x = 100 * chosen["share"] if panel == "share" else chosen[panel]
        parts.append(chosen.assign(panel=panel, kind=kind, x=x))
    return trial.over_seeds(pd.concat(parts), ["model", "set", "panel", "kind", "x"], column, sort=True)


def corrected_by_one_factor(made: pd.DataFrame) -> pd.DataFrame:
    """Correct the near-equilibrium students' forces with the factor of one frame, for every choice of it, at the hottest temperature.

    As :func:`helpers.softening.one_label_corrections`, with the columns of :class:`Student`.
    """
    forces = made[(made["property"] == "force") & (made["stage"] == "trained") & (made["share"] == 0)]
    forces = forces[forces["temperature_k"] == forces["temperature_k"].max()]
    # A student is what a material is elsewhere: what one factor is meant for.
    found = softening.one_label_corrections(forces.assign(material=forces["case"], case=forces["frame"]))
    who = forces[["case", *STUDENT]].drop_duplicates().rename(columns={"case": "material"})
    return found.merge(who, on="material")


def summarise(made: pd.DataFrame) -> pd.DataFrame:
    """Return the slopes on the hottest frames, mean and range over seeds."""
    found = scales(made)
    if found.empty:
        return found
    hottest = found[found["temperature_k"] == found["temperature_k"].max()]
    return trial.over_seeds(hottest, ["model", "set", "stage", "temperature_k", *STUDENT[:-1]], "slope", sort=True)
