"""Ways to compute energies and forces of given structures with one model: this project's, and those of other packages.

Each way (:class:`Route`) is made on a device and then called with one task after another, in a process of its own beside the others
(:mod:`helpers.speed.compare`) or potential by potential (:mod:`helpers.speed.devices`). The others' ways are written as their documentation
shows them, with the same weights, and compute what they compute by default: the calculators of CHGNet, MatGL and MACE give stress whether
asked or not.
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
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
import torch_sim as ts
from ase import units
from ase.md.langevin import Langevin
from ase.optimize import FIRE

from helpers import engine, potentials, registry, runner
from helpers.engine import torchsim
from helpers.potentials.base import Potential
from helpers.runner.worker import potential_here
from helpers.training.fine_tune import Label, Recipe, fine_tune

# A MACE of the size of MACE-MP-0 small with random weights: speed does not depend on their values, and the file need not be downloaded.
RANDOM_MACE = "mace-random-weights"

# A force threshold, eV/Å, that nothing reaches: all relaxations take the same number of steps.
_NEVER = 1e-9

# Of molecular dynamics with Langevin's thermostat, whose friction is 0.01 per step: torch-sim's default.
_TIMESTEP_FS, _TEMPERATURE_K = 1.0, 300.0

# So many parts of a task each process gets: a batch is faster than its parts.
HANDS = 1


@dataclass(frozen=True)
class Task:
    """What is to be computed."""

    kind: str  # ``statics``, ``relaxation``, ``dynamics``, ``training``, ``displacements`` or ``scaling``
    case: str  # its name
    structures: tuple[ase.Atoms, ...]
    groups: tuple[str, ...] = ()  # material of each structure; matcalc wants frames sorted so
    steps: int = 0  # of a relaxation in a fixed cell, of dynamics or of training; 0 for energies and forces of the structures as they are


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
    make: Callable[[str, int, str], Compute]  # from the model's key, the number of cores and the device to a function that computes
    families: tuple[str, ...]  # modules of :mod:`helpers.potentials` whose models it can compute
    kinds: tuple[str, ...]  # kinds of tasks that it can do
    # 0 stands for all cores.
    threads: int = 1


def _computed(potential: Potential, task: Task, stress: bool = False) -> Answer:
    if task.kind == "dynamics":
        n = task.steps
        *_, last = engine.move(potential, task.structures, _TEMPERATURE_K, steps=n, every=n, time_step_fs=_TIMESTEP_FS)
        return Answer(np.array(list(last.energies.values())), list(last.forces.values()))
    if task.kind == "training":
        # To forces of zero: the time does not depend on what the labels say.
        labels = [Label(atoms, None, np.zeros((len(atoms), 3))) for atoms in task.structures]
        fine_tune(potential, labels, Recipe(epochs=task.steps, batch_size=len(labels), validation_fraction=0.0, keep="last"))
        return Answer(None, [])
    if task.steps:
        relaxed = engine.relax(potential, task.structures, fmax=_NEVER, max_steps=task.steps)
        return Answer(np.array([one.energy for one in relaxed]), [one.forces for one in relaxed])
    found = potential.evaluate(task.structures, stress=stress)
    if failures := [one.error for one in found if not one.ok]:
        raise RuntimeError(failures[0])
    return Answer(np.array([one.energy for one in found]), [one.forces for one in found])


def _langevin(model: ts.models.interface.ModelInterface, task: Task) -> Answer:
    """Move a batch with torch-sim's Langevin integrator, all structures at once."""
    settings = {"n_steps": task.steps, "temperature": _TEMPERATURE_K, "timestep": _TIMESTEP_FS * 1e-3}
    state = ts.integrate(list(task.structures), model, integrator=torchsim.LANGEVIN, **settings)
    return _of_state(state, task)


def _of_state(state: ts.SimState, task: Task) -> Answer:
    ends = np.cumsum([len(atoms) for atoms in task.structures])[:-1]
    return Answer(state.energy.detach().cpu().numpy(), np.split(state.forces.detach().cpu().numpy(), ends))


def _ours(key: str, cores: int, device: str, stress: bool = False, compiled: bool = False) -> Compute:
    runner.keep_memory()  # as in a run
    return functools.partial(_computed, potentials.load(key, device, trust=True, compiled=compiled), stress=stress)


def _ours_one_by_one(key: str, cores: int, device: str) -> Compute:
    return functools.partial(_one_by_one, potentials.load(key, device, trust=True).calculator())


def _computed_here(key: str, task: Task) -> Answer:
    """Compute in a worker of the pool, which loads the potential once."""
    runner.keep_memory()
    return _computed(potential_here(key, "cpu", True, False), task)


def _ours_in_processes(key: str, cores: int, device: str) -> Compute:
    opened = contextlib.ExitStack()
    pool: Any = opened.enter_context(runner.workers("cpu", max(cores, 2)))

    def compute(task: Task, _pool_lives_with_this: object = opened) -> Answer:
        order = sorted(range(len(task.structures)), key=lambda number: -len(task.structures[number]))
        # Dealt out like cards, so that hands are of about equal size.
        hands = [hand for first in range(HANDS * cores) if (hand := order[first :: HANDS * cores])]
        parts = [replace(task, structures=tuple(task.structures[number] for number in hand), groups=()) for hand in hands]
        found = list(pool.map(functools.partial(_computed_here, key), parts))
        place = np.argsort([number for hand in hands for number in hand])
        forces = [one for answer in found for one in answer.forces]
        return Answer(np.concatenate([answer.energies for answer in found])[place], [forces[number] for number in place])

    return compute


def family(key: str) -> str:
    """Return the module of :mod:`helpers.potentials` that loads a model; a file is a MACE."""
    return potentials.CATALOGUE[key].family if key in potentials.CATALOGUE else "mace"


def chosen(key: str, asked: Sequence[str] | None = None) -> list[str]:
    """Return the ways that fit a model, ``ours`` the first; of those that are asked for, if some are.

    ValueError if a way is unknown, or the model is neither a key of the catalogue nor :data:`RANDOM_MACE`.
    """
    if key != RANDOM_MACE and key not in potentials.CATALOGUE:
        near = registry.nearest(key, potentials.CATALOGUE)
        raise ValueError(f"{key!r} cannot be measured beside others; choose a model of the catalogue, or {RANDOM_MACE}.{near}")
    if unknown := sorted(set(asked or ()) - set(ROUTES)):
        raise ValueError(f"no way called {', '.join(unknown)}; there are: {', '.join(ROUTES)}.{registry.nearest(unknown[0], ROUTES)}")
    return [name for name, route in ROUTES.items() if family(key) in route.families and (not asked or name in (*asked, "ours"))]


def reference(key: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Potential:
    """Return this project's potential with which other packages are compared, and whose network they get.

    It is the potential itself, except for an M3GNet whose weights are older than MatGL's present conventions: MatGL's own calculator
    reads them in the present one, in which they mean nothing but take as long, and so does this.
    """
    potential = potentials.load(key, device, dtype=dtype, trust=True)
    if family(key) == "matgl":
        from helpers.potentials import matgl

        if getattr(potential, "convention", matgl.CURRENT).stand_ins:
            paths = [registry.fetch(name) for name in potentials.CATALOGUE[key].weights]
            return matgl.load(key, paths, torch.device(device), dtype, convention=matgl.CURRENT)
    return potential


def in_double_precision(key: str, task: Task) -> tuple[Answer, Answer]:
    """Return this project's results in double precision: as the potential is used, and as other packages read its weights."""
    double = torch.float64
    return _computed(potentials.load(key, "cpu", dtype=double, trust=True), task), _computed(reference(key, double), task)


# ---- Other packages -------------------------------------------------------------------------------


def package_calculator(key: str, *, stress: bool = True, device: str = "cpu") -> ase.calculators.calculator.Calculator:
    """Return the ASE calculator of the model's own package, with weights that require gradients, as the packages leave them."""
    potential = reference(key, device=device)
    network = copy.deepcopy(potential.network).requires_grad_(True)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if family(key) == "chgnet":
            from chgnet.model.dynamics import CHGNetCalculator

            return CHGNetCalculator(network, use_device=device)
        if family(key) == "matgl":
            from matgl.apps.pes import Potential as MatGLModel
            from matgl.ext.ase import PESCalculator

            numbers = (value.to(torch.float32) for value in (potential.mean, potential.std, potential.element_energy))
            model = MatGLModel(network, *numbers, calc_stresses=stress).to(device)
            return PESCalculator(model, stress_unit="eV/A3")
        if family(key) == "sevennet":
            from sevenn.calculator import SevenNetCalculator

            return SevenNetCalculator("7net-0", device=device)
        from helpers.potentials.mace import contained

        with contained():
            from mace.calculators import MACECalculator

            return MACECalculator(models=[network], device=device, default_dtype="float32")


def _one_by_one(calculator, task: Task) -> Answer:
    energies, forces = [], []
    for structure in task.structures:
        calculator.reset()  # ASE's calculators remember the last structure, which the next round begins with
        atoms = structure.copy()
        atoms.calc = calculator
        if task.kind == "dynamics":
            step = _TIMESTEP_FS * units.fs
            Langevin(atoms, step, temperature_K=_TEMPERATURE_K, friction=0.01 / step, fixcm=False).run(task.steps)
        elif task.steps:
            FIRE(atoms, logfile=None).run(fmax=_NEVER, steps=task.steps)
        forces.append(atoms.get_forces())
        energies.append(atoms.get_potential_energy())
    return Answer(np.array(energies, dtype=float), forces)


def _ase(key: str, cores: int, device: str, stress: bool = True) -> Compute:
    return functools.partial(_one_by_one, package_calculator(key, stress=stress, device=device))


def _matcalc(key: str, cores: int, device: str) -> Compute:
    # On import it asks a server for a list of models, again and again where there is no network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from matcalc.benchmark import SofteningBenchmark
    from monty.json import MontyEncoder
    from pymatgen.io.ase import AseAtomsAdaptor

    logging.getLogger("matcalc").setLevel(logging.ERROR)
    calculator = package_calculator(key, device=device)
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


def _chgnet_batches(key: str, cores: int, device: str) -> Compute:
    from pymatgen.io.ase import AseAtomsAdaptor

    network = copy.deepcopy(reference(key, device=device).network).requires_grad_(True)

    def compute(task: Task) -> Answer:
        structures = [AseAtomsAdaptor.get_structure(atoms) for atoms in task.structures]
        found = network.predict_structure(structures, task="ef", batch_size=16)
        found = found if isinstance(found, list) else [found]
        energies = [float(one["e"]) * len(atoms) for one, atoms in zip(found, task.structures, strict=True)]
        return Answer(np.array(energies), [np.asarray(one["f"]) for one in found])

    return compute


def _torch_sim(key: str, cores: int, device: str) -> Compute:
    network = copy.deepcopy(reference(key, device=device).network).requires_grad_(True)
    from helpers.potentials.mace import contained

    with contained():
        from torch_sim.models.mace import MaceModel

        model = MaceModel(network, device=torch.device(device), dtype=torch.float32, compute_stress=False)

    def compute(task: Task) -> Answer:
        if task.kind == "dynamics":
            return _langevin(model, task)
        if not task.steps:
            found = ts.static(list(task.structures), model)
            return Answer(np.array([float(one["potential_energy"]) for one in found]), [one["forces"].cpu().numpy() for one in found])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the number of steps is used up, as is meant
            state = ts.optimize(
                list(task.structures),
                model,
                optimizer=torchsim.FIRE,
                max_steps=task.steps,
                steps_between_swaps=task.steps,
                convergence_fn=lambda state, _: torch.ones(state.n_systems, dtype=torch.bool, device=state.device),
            )
        return _of_state(state, task)

    return compute


COMPARED = ("statics", "relaxation", "displacements", "scaling")
_ALL = (*COMPARED, "dynamics")
FAMILIES = ("chgnet", "matgl", "mace", "sevennet")  # those whose packages have a calculator that can be installed beside ours
_OURS = (*FAMILIES, "nequix", "m3gnet_tf")

ROUTES: dict[str, Route] = {
    "ours": Route("ours", _ours, _OURS, (*_ALL, "training")),
    "ours-stress": Route("ours, with stress", functools.partial(_ours, stress=True), FAMILIES, ("statics",)),
    "ours-compiled": Route("ours, compiled", functools.partial(_ours, compiled=True), ("chgnet", "matgl"), ("statics",)),
    "ours-processes": Route("ours, one process per core", _ours_in_processes, FAMILIES, COMPARED),
    "ours-ase": Route("ours, in an ASE loop", _ours_one_by_one, _OURS, _ALL),
    "ase": Route("ASE loop", _ase, FAMILIES, _ALL),
    "ase-threads": Route("ASE loop, all cores", _ase, FAMILIES, ("statics", "relaxation", "displacements"), threads=0),
    "ase-no-stress": Route(
        "ASE loop, stress switched off", functools.partial(_ase, stress=False), ("matgl",), ("statics", "displacements")
    ),
    "matcalc": Route("matcalc SofteningBenchmark", _matcalc, ("chgnet", "matgl"), ("statics",)),
    "matcalc-threads": Route("matcalc SofteningBenchmark, all cores", _matcalc, ("chgnet", "matgl"), ("statics",), threads=0),
    "chgnet-batch": Route("CHGNet's own batches", _chgnet_batches, ("chgnet",), ("statics", "displacements", "scaling")),
    "torch-sim": Route("torch-sim's wrapper", _torch_sim, ("mace",), _ALL),  # SevenNet's does not take the sevenn of this project
}

BESIDE = tuple(name for name in ROUTES if name != "ours-ase")  # what is measured if no way is asked for
