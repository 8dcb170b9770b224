"""Ways to compute energies and forces of given structures with one model: this project's, and those of other packages.

Each way (:class:`Route`) is made in a process of its own (:mod:`helpers.speed.compare`) and then called with one task after another. The
others' ways are written as their documentation shows them, with the same weights, and compute what they compute by default: the
calculators of CHGNet, MatGL and MACE give stress whether asked or not.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.optimize import FIRE

from helpers import engine, potentials, runner
from helpers.potentials.base import Potential

# A force threshold, eV/Å, that nothing reaches: all relaxations take the same number of steps.
_NEVER = 1e-9


@dataclass(frozen=True)
class Task:
    """What is to be computed."""

    kind: str  # ``statics``, ``relaxation``, ``displacements`` or ``scaling``
    case: str  # its name
    structures: tuple[ase.Atoms, ...]
    groups: tuple[str, ...] = ()  # material of each structure; matcalc wants frames sorted so
    steps: int = 0  # steps of a relaxation in a fixed cell; 0 for energies and forces of the structures as they are


@dataclass(frozen=True)
class Answer:
    """Energies (eV, shape (n,)), None where the way gives none, and forces (eV/Å, one array for each structure)."""

    energies: np.ndarray | None
    forces: list[np.ndarray]


Compute = Callable[[Task], Answer]


@dataclass(frozen=True)
class Route:
    """A way."""

    label: str  # for tables
    make: Callable[[str, int], Compute]  # from the model's key and the number of cores to a function that computes
    families: tuple[str, ...]  # modules of :mod:`helpers.potentials` whose models it can compute
    kinds: tuple[str, ...]  # kinds of tasks that it can do
    # 0 stands for all cores.
    threads: int = 1
    processes: int = 1


def _relaxed(potential: Potential, task: Task) -> Answer:
    found = engine.relax(potential, task.structures, fmax=_NEVER, max_steps=task.steps)
    return Answer(np.array([one.energy for one in found]), [one.forces for one in found])


def _computed(potential: Potential, task: Task, stress: bool = False) -> Answer:
    if task.steps:
        return _relaxed(potential, task)
    found = potential.evaluate(task.structures, stress=stress)
    return Answer(np.array([one.energy for one in found]), [one.forces for one in found])


def _ours(key: str, cores: int) -> Compute:
    runner.keep_memory()  # as in a run
    return functools.partial(_computed, potentials.load(key, "cpu", trust=True))


def _ours_with_stress(key: str, cores: int) -> Compute:
    runner.keep_memory()
    return functools.partial(_computed, potentials.load(key, "cpu", trust=True), stress=True)


@functools.lru_cache(maxsize=1)
def _potential_here(key: str) -> Potential:
    torch.set_num_threads(1)
    runner.keep_memory()
    return potentials.load(key, "cpu", trust=True)


def _ready(key: str) -> int:
    """Load the potential in a worker of the pool; wait a little, so that another takes the next of these calls."""
    _potential_here(key)
    time.sleep(0.2)
    return os.getpid()


def _computed_here(key: str, task: Task) -> Answer:
    """Compute in a worker of the pool, which loads the potential once."""
    return _computed(_potential_here(key), task)


def _ours_in_processes(key: str, cores: int) -> Compute:
    opened = contextlib.ExitStack()
    n_workers = max(cores, 2)
    pool: Any = opened.enter_context(runner.workers("cpu", n_workers))
    loaded: set[int] = set()
    while len(loaded) < n_workers:
        loaded |= set(pool.map(_ready, [key] * n_workers))

    def compute(task: Task, _pool_lives_with_this: object = opened) -> Answer:
        order = sorted(range(len(task.structures)), key=lambda number: -len(task.structures[number]))
        # Dealt out like cards, four hands for each process, so that hands are of about equal size.
        n_hands = min(len(order), 4 * cores)
        hands = [order[first::n_hands] for first in range(n_hands)]
        parts = [replace(task, structures=tuple(task.structures[number] for number in hand), groups=()) for hand in hands]
        energies, forces = np.empty(len(order)), [np.empty(0)] * len(order)
        for hand, answer in zip(hands, pool.map(functools.partial(_computed_here, key), parts), strict=True):
            for number, energy, force in zip(hand, answer.energies, answer.forces, strict=True):
                energies[number], forces[number] = energy, force
        return Answer(energies, forces)

    return compute


def reference(key: str, dtype: torch.dtype = torch.float32) -> Potential:
    """Return this project's potential with which other packages are compared, and whose network they get.

    It is the potential itself, except for an M3GNet whose weights are older than MatGL's present conventions: MatGL's own calculator
    reads them in the present one, in which they mean nothing but take as long, and so does this.
    """
    if potentials.CATALOGUE.get(key) and potentials.CATALOGUE[key].family == "matgl":
        from helpers import registry
        from helpers.potentials import matgl

        potential = potentials.load(key, "cpu", dtype=dtype)
        if getattr(potential, "convention", matgl.CURRENT).stand_ins:
            paths = [registry.fetch(name) for name in potentials.CATALOGUE[key].weights]
            return matgl.load(key, paths, torch.device("cpu"), dtype, convention=matgl.CURRENT)
        return potential
    return potentials.load(key, "cpu", dtype=dtype, trust=True)


def in_double_precision(key: str, task: Task) -> tuple[Answer, Answer]:
    """Return this project's results in double precision: as the potential is used, and as other packages read its weights."""
    double = torch.float64
    return _computed(potentials.load(key, "cpu", dtype=double, trust=True), task), _computed(reference(key, double), task)


# ---------------------------------------------------------------------------------------------------
# Other packages


def package_calculator(key: str, *, stress: bool = True) -> ase.calculators.calculator.Calculator:
    """Return the ASE calculator of the model's own package, with weights that require gradients, as the packages leave them."""
    family = potentials.CATALOGUE[key].family if key in potentials.CATALOGUE else "mace"
    potential = reference(key)
    network = copy.deepcopy(potential.network).requires_grad_(True)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if family == "chgnet":
            from chgnet.model.dynamics import CHGNetCalculator

            return CHGNetCalculator(network, use_device="cpu")
        if family == "matgl":
            from matgl.apps.pes import Potential as MatGLModel
            from matgl.ext.ase import PESCalculator

            numbers = (value.to(torch.float32) for value in (potential.mean, potential.std, potential.element_energy))
            model = MatGLModel(network, *numbers, calc_stresses=stress)
            return PESCalculator(model, stress_unit="eV/A3")
        if family == "sevennet":
            from sevenn.calculator import SevenNetCalculator

            return SevenNetCalculator("7net-0", device="cpu")
        from helpers.potentials.mace import contained

        with contained():
            from mace.calculators import MACECalculator

            return MACECalculator(models=[network], device="cpu", default_dtype="float32")


def _one_by_one(calculator, task: Task) -> Answer:
    energies, forces = [], []
    for structure in task.structures:
        calculator.reset()  # ASE's calculators remember the last structure, which the next round begins with
        atoms = structure.copy()
        atoms.calc = calculator
        if task.steps:
            FIRE(atoms, logfile=None).run(fmax=_NEVER, steps=task.steps)
        forces.append(atoms.get_forces())
        energies.append(atoms.get_potential_energy())
    return Answer(np.array(energies, dtype=float), forces)


def _ase(key: str, cores: int) -> Compute:
    return functools.partial(_one_by_one, package_calculator(key))


def _ase_without_stress(key: str, cores: int) -> Compute:
    return functools.partial(_one_by_one, package_calculator(key, stress=False))


def _matcalc(key: str, cores: int) -> Compute:
    # On import it asks a server for a list of models, again and again where there is no network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from matcalc.benchmark import SofteningBenchmark
    from monty.json import MontyEncoder
    from pymatgen.io.ase import AseAtomsAdaptor

    logging.getLogger("matcalc").setLevel(logging.ERROR)
    calculator = package_calculator(key)
    prepared: dict[int, SofteningBenchmark] = {}  # reading its file is not timed: it happens in the turn that warms up

    def ready(task: Task) -> SofteningBenchmark:
        # Its file of frames: material → frame → structure and DFT forces. The forces only enter the fit of a slope; any will do here.
        content: dict[str, dict[str, object]] = {}
        for number, (group, atoms) in enumerate(zip(task.groups, task.structures, strict=True)):
            record = {"structure": AseAtomsAdaptor.get_structure(atoms), "vasp_f": np.ones((len(atoms), 3)).tolist()}
            content.setdefault(group, {})[str(number)] = record
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "frames.json"
            path.write_text(json.dumps(content, cls=MontyEncoder))
            return SofteningBenchmark(path)

    def compute(task: Task) -> Answer:
        if id(task) not in prepared:
            prepared[id(task)] = ready(task)
        found = prepared[id(task)].run(calculator, "model", include_full_results=True).set_index("material_id")["raw_force_predictions"]
        # Within a material the frames keep their order.
        of_group = {group: iter(found[group]) for group in dict.fromkeys(task.groups)}
        return Answer(None, [np.asarray(next(of_group[group])) for group in task.groups])

    return compute


def _chgnet_batches(key: str, cores: int) -> Compute:
    from pymatgen.io.ase import AseAtomsAdaptor

    network = copy.deepcopy(reference(key).network).requires_grad_(True)

    def compute(task: Task) -> Answer:
        structures = [AseAtomsAdaptor.get_structure(atoms) for atoms in task.structures]
        found = network.predict_structure(structures, task="ef", batch_size=16)
        found = found if isinstance(found, list) else [found]
        energies = [float(one["e"]) * len(atoms) for one, atoms in zip(found, task.structures, strict=True)]
        return Answer(np.array(energies), [np.asarray(one["f"]) for one in found])

    return compute


def _torch_sim(key: str, cores: int) -> Compute:
    import torch_sim as ts

    from helpers.potentials.mace import contained

    with contained():
        from torch_sim.models.mace import MaceModel

        network = copy.deepcopy(reference(key).network).requires_grad_(True)
        model = MaceModel(network, device=torch.device("cpu"), dtype=torch.float32, compute_stress=False)

    def statics(structures: Sequence[ase.Atoms]) -> Answer:
        found = ts.static(list(structures), model)
        return Answer(np.array([float(one["potential_energy"]) for one in found]), [one["forces"].numpy() for one in found])

    def compute(task: Task) -> Answer:
        if not task.steps:
            return statics(task.structures)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the number of steps is used up, as is meant
            state = ts.optimize(
                list(task.structures),
                model,
                optimizer=ts.optimizers.fire,
                max_steps=task.steps,
                steps_between_swaps=task.steps,
                convergence_fn=lambda state, _: torch.ones(state.n_systems, dtype=torch.bool),
            )
        sizes = [len(atoms) for atoms in task.structures]
        return Answer(state.energy.numpy(), np.split(state.forces.numpy(), np.cumsum(sizes)[:-1]))

    return compute


_ALL = ("statics", "relaxation", "displacements", "scaling")
FAMILIES = ("chgnet", "matgl", "mace", "sevennet")

ROUTES: dict[str, Route] = {
    "ours": Route("ours", _ours, FAMILIES, _ALL),
    "ours-stress": Route("ours, with stress", _ours_with_stress, FAMILIES, ("statics",)),
    "ours-processes": Route("ours, one process per core", _ours_in_processes, FAMILIES, _ALL, processes=0),
    "ase": Route("ASE loop", _ase, FAMILIES, _ALL),
    "ase-threads": Route("ASE loop, all cores", _ase, FAMILIES, ("statics", "relaxation", "displacements"), threads=0),
    "ase-no-stress": Route("ASE loop, stress switched off", _ase_without_stress, ("matgl",), ("statics", "displacements")),
    "matcalc": Route("matcalc SofteningBenchmark", _matcalc, ("chgnet", "matgl"), ("statics",)),
    "matcalc-threads": Route("matcalc SofteningBenchmark, all cores", _matcalc, ("chgnet", "matgl"), ("statics",), threads=0),
    "chgnet-batch": Route("CHGNet's own batches", _chgnet_batches, ("chgnet",), ("statics", "displacements", "scaling")),
    "torch-sim": Route("torch-sim's MACE", _torch_sim, ("mace",), _ALL),
}
