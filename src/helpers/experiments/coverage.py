"""Does more varied data hurt a potential that can learn only so much? Linear potentials of silicon, family by family.

After Gibson et al., Phys. Rev. Mater. 9, 043802 (2025), arXiv 2409.07610, who found with UF3 and amorphous silicon nitride that training
data can be too varied for a potential of fixed capacity. This is an analogue: their data are not used. DFT labels of one element are
divided into families; linear potentials (:mod:`helpers.training.linear`) of several capacities are fitted to one family, two, three …, and
each is asked for all families, on frames that none has seen. Beside the error stand both slopes of :mod:`helpers.softening`: does
softening follow?

Sets
----
``silicon``
    Frames of Zuo et al., J. Phys. Chem. A 124, 731 (2020), in the families of :data:`FAMILIES`.
``teacher``
    Rattled Si, little (``near``) and much (``far``), labelled by the potential that is run: no file is needed, and nothing but the choice
    of frames differs. The live check.

The potential that is "run" is the one to compare with: it is asked for the same test frames, and its speed is measured side by side.

What varies (columns of the table)
----------------------------------
``capacity`` (a key of :attr:`Protocol.capacities`; empty for the potential itself), ``series``, ``families`` (trained on, joined by ``+``),
``n_frames``, ``penalty`` (factor on the penalties of the fit) and ``seed`` (which frames are drawn). The series are

* ``equal``: one family after the other, always :attr:`Protocol.n_equal` frames, shared evenly;
* ``growing``: the same steps with a fixed share of all frames there are, so that data are only added;
* ``alone`` and ``together``: :attr:`Protocol.n_alone` frames of one family, or as many of all;
* ``penalty``: the last step of ``growing`` with other penalties;
* ``potential`` and ``speed``: no fit.

The table
---------
Columns beyond these and the standard ones: ``held_out``, the family tested, or ``training`` for the frames of the fit themselves; in series
``speed`` what was timed. Properties: ``force_rmse`` and ``force_mae`` (eV/Å), ``slope``, ``inverse_slope`` and ``r2`` of forces (1; not for
families whose frames are relaxed), ``energy_rmse`` (eV/atom) and ``energy_slope`` (1), both of the energy above the perfect crystal,
``n_free`` (coefficients), ``seconds`` (processor time of energy and forces of one frame), and in series ``potential`` what each family
holds: ``n_tests``, ``n_training`` (frames) and ``force_rms`` (of DFT's forces in the tests, eV/Å). There is no reference.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import pandas as pd
from ase.build import bulk

from helpers import softening
from helpers.benchmarks import Case, Rows, chosen_sets, off_equilibrium, row, table
from helpers.potentials.base import Potential, PotentialError, Prediction
from helpers.training import linear, trial
from helpers.training.fine_tune import Label
from helpers.training.linear import Capacity, Weights

SETS: dict[str, tuple[str, ...]] = {"silicon": off_equilibrium.single_element_keys("Si"), "teacher": ()}
LIVE = "teacher"
KEYS = ("held_out",)
MODELS = {"chgnet-0.3.0": tuple(SETS)}

# Twenty fits (a case without structures counts as 100 atoms); a process finds the features of all frames once.
ATOMS_PER_SHARD = 2000

# A linear fit has one answer, but its labels here are those of a float32 network, and far from its data it magnifies their last digits.
TOLERANCES = {"force_rmse": 0.05, "force_mae": 0.05, "slope": 0.03, "inverse_slope": 0.1, "r2": 0.03, "energy_rmse": 0.01}
TOLERANCES |= {"energy_slope": 0.1, "n_free": 0, "n_tests": 0, "n_training": 0, "force_rms": 5e-3}

FAMILIES = ("vibrations", "strained", "vacancy", "slabs", "melt")

# Melts lie at least 0.6 eV/atom above the perfect crystal, the hottest crystals and those with a vacancy below 0.4.
_MOLTEN_EV = 0.5

# Families whose frames are relaxed have no forces to take a slope of, eV/Å (root mean square).
_MIN_FORCE = 0.05

_TEACHER_STEPS = {"near": ("near",), "near and far": ("near", "far")}
_TEACHER_RATTLE_A = {"near": 0.03, "far": 0.12}
_TEACHER_FRAMES = 4
_TEACHER_CAPACITIES = 2  # the first ones


@dataclass(frozen=True)
class Protocol:
    """Settings."""

    # Name → how much the potential can learn.
    capacities: Mapping[str, Capacity] = field(
        default_factory=lambda: {
            "pairs": Capacity(triangle_intervals=0),
            "coarse triangles": Capacity(triangle_intervals=3),
            "fine triangles": Capacity(triangle_intervals=6),
        }
    )
    weights: Weights = field(default_factory=Weights)  # of the fit; the same for all capacities
    held_out_share: float = 1 / 3  # of each family's frames that are not mirror images of each other
    n_equal: int = 36  # frames in series ``equal``
    n_alone: int = 9  # frames in series ``alone`` and ``together``
    share: float = 0.8  # of the frames not held out, in series ``growing``; so there is something to draw
    other_penalties: tuple[float, ...] = (0.1, 10.0)  # factors on the penalties in series ``penalty``
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # draws of frames
    n_timed: int = 5  # frames that the speed is measured on, each with the largest number of atoms that is common in the set


@dataclass(frozen=True)
class Pool:
    """Labelled frames, by family: to fit to and to test on, and the perfect crystal, whose energy is the zero."""

    training: dict[str, tuple[Label, ...]]
    tests: dict[str, tuple[Label, ...]]
    crystal: Label


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per fit, and one each for the potential itself and for the speed; KeyError if a set is unknown."""
    protocol = protocol or Protocol()
    chosen = chosen_sets(SETS, sets)
    found = []
    for name in chosen:
        for info in (_variants if name == "silicon" else _teacher_variants)(protocol):
            label = "/".join(str(value) for value in info.values() if value != "").replace(" ", "-")
            found.append(Case(f"{name}/{label}", name, "Si", {}, {}, info))
    return found


def _info(series: str, capacity: str = "", families: Sequence[str] = (), n_frames: int = 0, seed: int = 0, penalty: float = 1.0) -> dict:
    names = ("series", "capacity", "families", "n_frames", "penalty", "seed")
    return dict(zip(names, (series, capacity, "+".join(families), n_frames, penalty, seed), strict=True))


def _variants(protocol: Protocol) -> Rows:
    found = [_info("potential"), _info("speed")]
    steps = [FAMILIES[: number + 1] for number in range(len(FAMILIES))]
    for capacity in protocol.capacities:
        for seed in protocol.seeds:
            for step in steps:
                found.append(_info("equal", capacity, step, protocol.n_equal, seed))
                found.append(_info("growing", capacity, step, 0, seed))
            found += [_info("alone", capacity, (family,), protocol.n_alone, seed) for family in FAMILIES]
            found.append(_info("together", capacity, FAMILIES, protocol.n_alone, seed))
            found += [_info("penalty", capacity, FAMILIES, 0, seed, factor) for factor in protocol.other_penalties]
    return found


def _teacher_variants(protocol: Protocol) -> Rows:
    steps = _TEACHER_STEPS.values()
    return [
        _info("potential"),
        *[_info("growing", capacity, step) for capacity in list(protocol.capacities)[:_TEACHER_CAPACITIES] for step in steps],
    ]


# ---- Frames ---------------------------------------------------------------------------------------


def family_of(frame: Case, crystal_ev: float) -> str:
    """Return the family of a frame of mlearn, given the energy per atom of the perfect crystal, eV.

    Whether a frame of molecular dynamics is molten is read from its energy: the temperatures in the descriptions of the vacancy frames of
    Si are interchanged (those of "300 K" lie 0.7 eV/atom above the crystal, those of "3374 K" 0.1).
    """
    group = frame.info["group"]
    if group in ("Elastic", "Surface"):
        return "strained" if group == "Elastic" else "slabs"
    if frame.reference["energy"] / len(frame.structures["frame"]) - crystal_ev > _MOLTEN_EV:
        return "melt"
    return "vibrations" if group == "AIMD-NVT" else "vacancy"


@lru_cache(maxsize=1)
def silicon(held_out_share: float) -> Pool:
    """Return the frames of silicon by family; which are held out does not depend on anything else."""
    frames = off_equilibrium.single_element("Si")
    undeformed = (trial.of_frame(frame) for frame in frames if frame.info["group"] == "Elastic")
    crystal = min(undeformed, key=lambda label: label.total_energy / len(label.atoms))
    per_atom = crystal.total_energy / len(crystal.atoms)
    members: dict[str, list[Label]] = {name: [] for name in FAMILIES}
    for frame in frames:
        members[family_of(frame, per_atom)].append(trial.of_frame(frame))
    training, tests = {}, {}
    for name, labels in members.items():
        # Cells strained one way and the other are mirror images: to a potential the same frame. They stay on one side.
        energies = np.round([label.energy for label in labels], 4)
        groups = list(dict.fromkeys(energies.tolist()))
        held, _ = trial.divide(groups, round(held_out_share * len(groups)))
        is_held = np.isin(energies, held)
        training[name] = tuple(label for label, there in zip(labels, is_held, strict=True) if not there)
        tests[name] = tuple(label for label, there in zip(labels, is_held, strict=True) if there)
    return Pool(training, tests, crystal)


@lru_cache(maxsize=2)
def taught(teacher: Potential) -> Pool:
    """Return rattled silicon, labelled by a potential; half of the frames are held out."""
    # The legacy generator: NumPy guarantees its numbers for all time.
    random = np.random.RandomState(2025)
    perfect = bulk("Si", cubic=True)
    training, tests = {}, {}
    for name, size in _TEACHER_RATTLE_A.items():
        labels = tuple(trial.labelled(teacher, trial.rattled([perfect] * (2 * _TEACHER_FRAMES), size, random)))
        training[name], tests[name] = labels[:_TEACHER_FRAMES], labels[_TEACHER_FRAMES:]
    return Pool(training, tests, trial.labelled(teacher, [perfect])[0])


def draw(pool: Pool, families: Sequence[str], n_frames: int, share: float, seed: int) -> list[tuple[str, int]]:
    """Return which frames to fit to, as (family, number); ValueError if a family has too few.

    The frames are shared evenly among the families, the first ones get what is left over; with ``n_frames`` 0 it is a share of all. With
    one seed the first few are the same whatever the number.
    """
    drawn = []
    for position, family in enumerate(families):
        there = len(pool.training[family])
        wanted = n_frames // len(families) + (position < n_frames % len(families)) if n_frames else round(share * there)
        if wanted > there:
            raise ValueError(f"{wanted} frames of {family} are asked for, but there are {there}")
        order = np.random.default_rng([seed, *family.encode()]).permutation(there)
        drawn += [(family, int(number)) for number in order[:wanted]]
    return drawn


# ---- Fitting and testing --------------------------------------------------------------------------


class Fitter:
    """Linear potentials of one capacity, fitted to any choice of a pool's frames; each frame's features are found once."""

    def __init__(self, pool: Pool, capacity: Capacity, weights: Weights) -> None:
        self.weights = weights
        self.basis = linear.Basis(pool.crystal.atoms.get_chemical_symbols()[0], capacity)
        self._features = {
            (part, family, number): self.basis.features(label.atoms)
            for part, families in (("training", pool.training), ("tests", pool.tests))
            for family, labels in families.items()
            for number, label in enumerate(labels)
        }
        self._crystal = self.basis.features(pool.crystal.atoms)
        self._equations = {
            (family, number): linear.equations(
                self.basis, self._features["training", family, number], label.total_energy, label.forces, weights
            )
            for family, labels in pool.training.items()
            for number, label in enumerate(labels)
        }

    def fit(self, drawn: Sequence[tuple[str, int]], penalty: float = 1.0) -> np.ndarray:
        """Return the coefficients fitted to some training frames, with penalties times a factor."""
        weights = dataclasses.replace(self.weights, ridge=self.weights.ridge * penalty, curvature=self.weights.curvature * penalty)
        return linear.fit(self.basis, [self._equations[key] for key in drawn], weights)

    def predict(self, coefficients: np.ndarray, part: str, keys: Sequence[tuple[str, int]]) -> list[Prediction]:
        """Return predictions for frames of ``training`` or ``tests``."""
        return [linear.predict(self._features[part, *key], coefficients) for key in keys]

    def crystal(self, coefficients: np.ndarray) -> float:
        """Return the energy of the perfect crystal, eV."""
        return linear.predict(self._crystal, coefficients).energy


@lru_cache(maxsize=4)
def _fitter(name: str, potential: Potential | None, capacity: Capacity, weights: Weights, held_out_share: float) -> Fitter:
    return Fitter(silicon(held_out_share) if potential is None else taught(potential), capacity, weights)


def errors(labels: Sequence[Label], predictions: Sequence[Prediction], crystal: Label, crystal_ev: float) -> dict[str, float]:
    """Return errors and slopes over some frames, by the properties of the module's docstring.

    The perfect crystal is the zero of DFT's energy per atom, and its energy (eV) in the potential the zero of that.
    """
    reference, predicted = trial.forces(labels, predictions)
    found = {
        "force_rmse": float(np.sqrt(np.mean((predicted - reference) ** 2))),
        "force_mae": float(np.abs(predicted - reference).mean()),
    }
    if np.sqrt(np.mean(reference**2)) > _MIN_FORCE:
        fitted = softening.fit(reference, predicted)
        found |= {name: getattr(fitted, name) for name in ("slope", "inverse_slope", "r2")}
    sizes = np.array([len(label.atoms) for label in labels])
    wanted = np.array([label.energy for label in labels]) / sizes - crystal.total_energy / len(crystal.atoms)
    given = np.array([prediction.energy for prediction in predictions]) / sizes - crystal_ev / len(crystal.atoms)
    found["energy_rmse"] = float(np.sqrt(np.mean((given - wanted) ** 2)))
    found["energy_slope"] = softening.softening_scale(wanted, given)
    return found


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Fit and test as each case says; a tidy table as the module's docstring says."""
    protocol = protocol or Protocol()
    rows: trial.Rows = []
    for case in cases:
        teacher = potential if case.set == "teacher" else None
        pool = silicon(protocol.held_out_share) if teacher is None else taught(teacher)
        if case.info["series"] == "speed":
            found = _timed(potential, pool, protocol)
        elif case.info["series"] == "potential":
            found = _untouched(potential, pool)
        else:
            found = _fitted(case, pool, teacher, protocol)
        for held_out, values in found.items():
            rows += trial.error_rows(partial(row, potential.key, case), values, held_out=held_out)
    return table(rows)


def _untouched(potential: Potential, pool: Pool) -> dict[str, dict[str, float]]:
    """Return the errors of the potential itself, by family."""
    (crystal,) = potential.evaluate([pool.crystal.atoms])
    found = {}
    for family, labels in pool.tests.items():
        predictions = potential.evaluate([label.atoms for label in labels])
        if bad := trial.fault(predictions):
            raise PotentialError(f"{potential.key} cannot evaluate a frame of {family}: {bad}")
        found[family] = errors(labels, predictions, pool.crystal, crystal.energy)
        force_rms = float(np.sqrt(np.mean(np.concatenate([label.forces for label in labels]) ** 2)))
        found[family] |= {"n_tests": len(labels), "n_training": len(pool.training[family]), "force_rms": force_rms}
    return found


def _fitted(case: Case, pool: Pool, teacher: Potential | None, protocol: Protocol) -> dict[str, dict[str, float]]:
    """Return the errors of a fit, by family and on its own frames."""
    info = case.info
    capacity = protocol.capacities[info["capacity"]]
    fitter = _fitter(case.set, teacher, capacity, protocol.weights, protocol.held_out_share)
    share = protocol.share if teacher is None else 1.0
    drawn = draw(pool, info["families"].split("+"), info["n_frames"], share, info["seed"])
    coefficients = fitter.fit(drawn, info["penalty"])
    crystal_ev = fitter.crystal(coefficients)
    found = {}
    for family, labels in pool.tests.items():
        predictions = fitter.predict(coefficients, "tests", [(family, number) for number in range(len(labels))])
        found[family] = errors(labels, predictions, pool.crystal, crystal_ev)
    own = [pool.training[family][number] for family, number in drawn]
    found["training"] = errors(own, fitter.predict(coefficients, "training", drawn), pool.crystal, crystal_ev)
    found["training"]["n_free"] = fitter.basis.n_free
    return found


def _timed(potential: Potential, pool: Pool, protocol: Protocol) -> dict[str, dict[str, float]]:
    """Return the processor time (s) of energy and forces of one frame, all on the same frames, taken in turn."""
    from uf3.data.geometry import get_supercell
    from uf3.forcefield.calculator import UFCalculator
    from uf3.regression.least_squares import WeightedLinearModel

    frames = [label.atoms for label in pool.tests["vibrations"][: protocol.n_timed]]
    everything = draw(pool, FAMILIES, 0, protocol.share, 0)
    verbs = {"potential": lambda atoms: potential.evaluate([atoms])}
    for name, capacity in protocol.capacities.items():
        fitter = _fitter("silicon", None, capacity, protocol.weights, protocol.held_out_share)
        coefficients = fitter.fit(everything)
        verbs[name] = lambda atoms, fitter=fitter, coefficients=coefficients: fitter.basis.evaluate(atoms, coefficients)
    seconds: dict[str, list[float]] = {name: [] for name in verbs}
    for atoms in [frames[0], *frames]:
        for name, verb in verbs.items():
            start = time.process_time()
            verb(atoms)
            seconds[name].append(time.process_time() - start)
    # The package's own calculator takes so long that one frame has to do; the first one compiles. Its sum of the energies of single atoms,
    # which costs nothing, fails with NumPy 2, so its parts are called one by one.
    model = WeightedLinearModel(fitter.basis.splines)
    model.coefficients = coefficients
    calculator = UFCalculator(model)
    for atoms in (pool.tests["slabs"][0].atoms, frames[0]):
        start = time.process_time()
        block = get_supercell(atoms, r_cut=calculator.r_cut)
        calculator.energy_2b(atoms, block)
        calculator.energy_3b(atoms, block)
        calculator.get_forces(atoms)
        package = time.process_time() - start
    # The first round warms up.
    found = {name: {"seconds": float(np.median(times[1:]))} for name, times in seconds.items()}
    return found | {"package, " + name: {"seconds": package}, "atoms": {"n_atoms": float(np.median([len(atoms) for atoms in frames]))}}


# ---- Analysis -------------------------------------------------------------------------------------


def over_seeds(made: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Return ``mean, low, high, draws`` of a property over the draws, with what varies and ``step``, the number of families."""
    good = made[(made["property"] == quantity) & (made["status"] == "ok") & (made["capacity"] != "")]
    by = ["set", "series", "capacity", "families", "n_frames", "penalty", "held_out"]
    found = trial.over_seeds(good, by)
    return found.assign(step=found["families"].str.count(r"\+") + 1)


def harm(made: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Return what the last family (the melt) does to each of the others, draw by draw.

    Columns ``capacity, held_out, seed, before`` (trained on all families but the last), ``after`` and ``ratio``.
    """
    rows = made[(made["set"] == "silicon") & (made["series"] == "growing") & (made["property"] == quantity)]
    wide = rows.pivot_table(index=["capacity", "held_out", "seed"], columns="families", values="value", observed=True, sort=False)
    before, after = (wide["+".join(FAMILIES[:number])] for number in (len(FAMILIES) - 1, len(FAMILIES)))
    return pd.DataFrame({"before": before, "after": after, "ratio": after / before}).reset_index()


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return errors and slopes of all fits, mean and range over the draws, one row per property and family."""
    properties = ("force_rmse", "slope", "inverse_slope", "r2", "energy_rmse", "energy_slope")
    return pd.concat([over_seeds(table, name).assign(property=name) for name in properties], ignore_index=True)
