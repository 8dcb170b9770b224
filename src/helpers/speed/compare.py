"""How fast this project computes, beside the ways of other packages: same frames, same model, one run.

Every way (:mod:`helpers.speed.routes`) lives in a process of its own, so that memory is its own and nobody's import slows another. The
processes take turns: each round, every way computes the same task once, and every second round in the opposite order. What drifts on the
machine meets all of them alike; ratios are taken within a round.

The table has one row per measurement. ``set`` is the kind of the task, ``route`` the way, and ``property`` one of

``wall_time``, ``processor_time``
    of one round, s;
``peak_memory``
    of the way's process and its children while it computes this task, MB;
``energy_difference``, ``force_difference``, ``relative_force_difference``
    largest deviation from this project's results in double precision: eV/atom, eV/Å, and as a fraction of the largest force
    (see :data:`AGREEMENT`).

The set ``roofline`` holds what the processor allows (:mod:`helpers.speed.roofline`). The set ``tried`` of the project's own tables holds
what was once tried to be faster; there ``route`` is the variant.

The table is written after each task, and the same call goes on where the last one stopped. :mod:`helpers.speed.devices` measures likewise
on a GPU; there the ways come one after the other, so that each has the memory for itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import ase
import numpy as np
import pandas as pd
import psutil
import torch

from helpers import benchmarks, potentials, registry, results
from helpers.benchmarks import Case, off_equilibrium, phonons
from helpers.potentials.base import out_of_memory
from helpers.runner import cluster, worker
from helpers.runner.cluster import RunError
from helpers.speed import roofline, throughput
from helpers.speed.routes import COMPARED, ROUTES, Answer, Task, chosen, in_double_precision

NAME = "speed"

# A MACE of the size of MACE-MP-0 small with random weights: speed does not depend on their values, and the file need not be downloaded.
RANDOM_MACE = "mace-random-weights"

# Among what was tried, what the others are compared with.
AS_IT_IS = "as it is"

# So long a way may take for an answer, s; else its process hangs.
PATIENCE_S = 300

MODELS = ("chgnet-0.3.0", "m3gnet-mp-2021.2.8", RANDOM_MACE)

# Largest deviation that counts as agreement: in energies, eV/atom; in forces, a fraction of the largest force of the structure, or eV/Å
# where that is below 1 eV/Å.
AGREEMENT = 1e-5

# Networks run in single precision. A deviation from double precision counts as rounding up to so many times our own.
ROUNDING = 3.0


@dataclass(frozen=True)
class Rules:
    """How tasks are measured, whichever they are."""

    rounds: int = 5  # how often everything is measured
    in_turns: bool = True  # the ways take turns; else one has its rounds of all tasks, then the next
    # Of one kind of task and one size of cell, a way gets no more structures than those that fail or take longer than this, s. None: all.
    longest_s: float | None = None
    compared: tuple[str, ...] = COMPARED  # kinds of tasks whose results are compared
    # Also measure the ways that use PyTorch's threads. Beside other work threads wait for each other, up to a hundred times as long.
    threads: bool = True
    compiled: bool = True  # also the compiled network beside what the processor allows: compiling takes minutes
    seed: int = 0


@dataclass(frozen=True)
class Protocol(Rules):
    """What is measured beside other packages."""

    # Compounds of MatterSim-TP, drawn at random, and frames of each, for statics.
    materials: int = 5
    frames: int = 3
    relaxed: int = 4  # so many of these frames are relaxed,
    steps: int = 5  # in a fixed cell, for so many steps
    supercell: int = 2  # displaced supercells are rutile TiO2, so many cells along each vector
    # Rocksalt cells: conventional cells along each vector, and number of structures.
    scaling: tuple[tuple[int, int], ...] = ((1, 1), (1, 4), (1, 16), (2, 2), (3, 1))


QUICK = Protocol(
    materials=2,
    frames=2,
    relaxed=2,
    steps=2,
    scaling=((1, 1), (1, 4), (2, 1)),
    rounds=3,
    threads=False,
    compiled=False,
)


def tasks(protocol: Protocol) -> list[Task]:
    """Return what is to be computed; the frames come from a registered file."""
    frames, groups = _frames(protocol)
    some = np.linspace(0, len(frames) - 1, min(protocol.relaxed, len(frames))).round().astype(int)
    made = [
        Task("statics", "MatterSim-TP", tuple(frames), tuple(groups)),
        Task("relaxation", "MatterSim-TP", tuple(frames[number] for number in some), steps=protocol.steps),
        Task("displacements", "TiO2", tuple(_displaced(protocol))),
    ]
    cells = throughput.Protocol(seed=protocol.seed)
    for repeat, n in protocol.scaling:
        structures = throughput.structures(cells, repeat, n)
        made.append(Task("scaling", f"{n} × {len(structures[0])} atoms", tuple(structures)))
    return [*made, Task("roofline", "MgO, 16 atoms", (roofline.crystal(),))]


def _frames(protocol: Protocol) -> tuple[list[ase.Atoms], list[str]]:
    """Draw compounds, and the first frames of each. matcalc fits one array per compound, so its frames must have equally many atoms."""
    limits = off_equilibrium.Protocol()
    of_material: dict[str, list[Case]] = {}
    for case in off_equilibrium.cases(sets=["mattersim-tp"]):
        if limits.pressure_min_gpa < case.info["pressure_gpa"] < limits.pressure_max_gpa:
            of_material.setdefault(case.material, []).append(case)
    usable = {
        name: found[: protocol.frames]
        for name, found in of_material.items()
        if len(found) >= protocol.frames and len({len(case.structures["frame"]) for case in found[: protocol.frames]}) == 1
    }
    names = sorted(usable)
    drawn = np.random.default_rng(protocol.seed).choice(len(names), protocol.materials, replace=False)
    cases = [case for number in sorted(drawn) for case in usable[names[number]]]
    return [case.structures["frame"] for case in cases], [case.material for case in cases]


def _displaced(protocol: Protocol) -> list[ase.Atoms]:
    """Return the displaced supercells that the phonons of rutile need (lattice constants: Wyckoff, Crystal Structures (1963))."""
    a, c, u = 4.594, 2.958, 0.305
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [u, u, 0], [-u, -u, 0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    rutile = ase.Atoms("Ti2O4", scaled_positions=places, cell=[a, a, c], pbc=True)
    case = phonons.own(rutile, protocol.supercell)
    return [atoms for role, atoms in case.structures.items() if role != "unit_cell"]


def random_mace(path: Path, *, channels: int = 128, seed: int = 0) -> None:
    """Write a MACE with random weights, in the architecture of MACE-MP-0 small, to a file.

    128 scalar channels, spherical harmonics up to l = 3, correlation order 3, two layers, cutoff 6 Å, 89 elements:
    Batatia et al., J. Chem. Phys. 163, 184110 (2025).
    """
    from helpers.potentials.mace import contained

    with contained(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from e3nn import o3
        from mace import modules

        elements = sorted(set(range(1, 95)) - set(range(84, 89)))
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(seed)
        try:
            network = modules.ScaleShiftMACE(
                r_max=6.0,
                num_bessel=10,
                num_polynomial_cutoff=5,
                max_ell=3,
                interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
                interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
                num_interactions=2,
                num_elements=len(elements),
                hidden_irreps=o3.Irreps(f"{channels}x0e"),
                MLP_irreps=o3.Irreps("16x0e"),
                atomic_energies=np.zeros(len(elements)),
                avg_num_neighbors=61.97,
                atomic_numbers=elements,
                correlation=3,
                gate=torch.nn.functional.silu,
                radial_MLP=[64, 64, 64],
                atomic_inter_scale=0.8,
                atomic_inter_shift=0.0,
            )
        finally:
            torch.set_default_dtype(default)
        torch.save(network, path)


def random_about() -> dict[str, str]:
    """Return what a provenance says of :data:`RANDOM_MACE`."""
    return {"key": RANDOM_MACE, "label": "MACE, random weights", "package": f"mace-torch {version('mace-torch')}"}


# ---------------------------------------------------------------------------------------------------
# A way in its process


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _processor_time() -> float:
    """Return the processor time of this process and its children, s."""
    total = time.process_time()
    for child in _children():
        with contextlib.suppress(psutil.Error):
            used = child.cpu_times()
            total += used.user + used.system
    return total


def forget_peak(device: str = "cpu") -> None:
    """Let the peak memory be measured anew: by Linux, of this process and its children; elsewhere it is that of the process's life."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    for pid in (os.getpid(), *(child.pid for child in _children())):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak_mb(device: str = "cpu") -> float:
    """Return the largest memory (MB) of this process and its children, added up (resident set); on a GPU that of this process's tensors."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1e6
    total = 0.0
    for pid in (os.getpid(), *(child.pid for child in _children())):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            total += float(status.split("VmHWM:")[1].split()[0]) / 1e3
        except (OSError, IndexError):
            with contextlib.suppress(psutil.Error):
                total += psutil.Process(pid).memory_info().rss / 1e6
    return total


def _serve(connection: Connection, key: str, name: str, jobs: Sequence[Task], cores: int, device: str) -> None:
    """Make a way, then compute what is asked for, until nothing is."""
    try:
        route = ROUTES[name]
        torch.set_num_threads(route.threads or cores)
        compute = route.make(key, cores, device)
    except Exception as error:  # noqa: BLE001  (another package may raise anything; the reason becomes a row)
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while (number := connection.recv()) is not None:
        gc.collect()
        try:
            forget_peak(device)
            processor, start = _processor_time(), time.perf_counter()
            answer = compute(jobs[number])
            taken = time.perf_counter() - start, _processor_time() - processor, _peak_mb(device)
            if not all(np.isfinite(forces).all() for forces in answer.forces):
                raise ValueError("the forces are no numbers")
            connection.send((answer, *taken))
        except Exception as error:  # noqa: BLE001
            memory = "out of memory: " if out_of_memory(error) else ""
            connection.send(memory + "".join(traceback.format_exception_only(error)).strip().splitlines()[0][:300])


class Way:
    """A way in its process, seen from outside."""

    def __init__(self, key: str, name: str, jobs: Sequence[Task], cores: int, device: str = "cpu") -> None:
        self.name, self.route = name, ROUTES[name]
        self.made_of = key, name, list(jobs), cores, device
        self.start()

    def start(self) -> None:
        """Begin a process."""
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, *self.made_of))
        self.process.start()
        other.close()
        self.failure: str | None = None

    def wait(self) -> None:
        """Wait until the way is made, or has failed. All are made at the same time."""
        self.failure = self._receive()

    def _receive(self):
        try:
            if not self.connection.poll(PATIENCE_S):
                self.process.kill()
                return f"its process died (no answer in {PATIENCE_S} s)"
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return f"its process died (exit code {self.process.exitcode})"

    def compute(self, number: int) -> tuple[Answer, float, float, float] | str:
        """Return answer, wall time, processor time and peak memory; or why not.

        A process that has died, or whose GPU an error has made useless, begins anew.
        """
        if self.failure is not None:
            return self.failure
        self.connection.send(number)
        found = self._receive()
        if isinstance(found, str) and ("process died" in found or "CUDA error" in found):
            self.process.kill()
            self.start()
            self.wait()
        return found

    def close(self) -> None:
        """Let the process end, or make it."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()


# ---------------------------------------------------------------------------------------------------
# The measurement


def check(key: str) -> None:
    """Raise ValueError for what is neither a key of the catalogue nor :data:`RANDOM_MACE`."""
    if key != RANDOM_MACE and key not in potentials.CATALOGUE:
        near = registry.nearest(key, potentials.CATALOGUE)
        raise ValueError(f"{key!r} cannot be measured beside others; choose a model of the catalogue, or {RANDOM_MACE}.{near}")


def measure(
    key: str,
    protocol: Rules | None = None,
    *,
    jobs: Sequence[Task] | None = None,
    routes: Sequence[str] | None = None,
    progress: bool = False,
    device: str = "cpu",
    kept: Sequence[Mapping[str, Any]] = (),
    deadline: float = math.inf,
) -> Iterator[list[dict[str, Any]]]:
    """Measure all ways that can compute with a model; yield rows of the table of the module's docstring, task by task.

    Parameters
    ----------
    key : str
        A catalogue key, or :data:`RANDOM_MACE`.
    jobs : sequence of Task, optional
        By default those of the protocol (:func:`tasks`). ``roofline`` is one of ours alone.
    routes : sequence of str, optional
        Keys of :data:`helpers.speed.routes.ROUTES`; all that fit the model if None. ``ours`` is always among them.
    device : str
    kept : sequence of dict
        Rows that were measured before; what they hold is not measured again.
    deadline : float
        Time (:func:`time.time`, s) after which no task is begun.

    Raises
    ------
    ValueError
        If there is no way to compute with this model, or no way of such a name.
    RunError
        If this project's own way fails.
    """
    protocol = protocol or Protocol()
    check(key)
    names = [name for name in chosen(key, routes) if protocol.threads or ROUTES[name].threads]
    jobs = tasks(cast("Protocol", protocol)) if jobs is None else jobs
    cores, rows, exact = os.cpu_count() or 1, list(kept), {}
    if not any(_is_left(rows, name, job, protocol) for name in names for job in jobs):
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        there = key
        if key == RANDOM_MACE:
            random_mace(Path(folder) / "random.model")
            there = f"file:{Path(folder) / 'random.model'}"
        ways = [Way(there, name, jobs, cores, device) for name in names]
        for way in ways:
            opened.callback(way.close)
        for way in ways:
            way.wait()
        if ways[0].failure:
            raise RunError(f"{key}: {ways[0].failure}")
        for group in [ways] if protocol.in_turns else [[way] for way in ways]:
            for number, job in enumerate(jobs):
                able = [way for way in group if _is_left(rows, way.name, job, protocol)]
                if not able or time.time() > deadline:
                    continue
                if progress:
                    print(f"{key}: {job.kind}, {job.case}{'' if protocol.in_turns else f', {able[0].route.label}'}", flush=True)
                if job.kind == "roofline":
                    new = _bound(key, there, job, protocol, device)
                else:
                    if job.kind in protocol.compared and number not in exact:
                        exact[number] = in_double_precision(there, job)
                    new = _measured(key, able, number, job, protocol, exact.get(number))
                n_atoms = sum(map(len, job.structures))
                new = [row | {"n_structures": len(job.structures), "n_atoms": n_atoms, "steps": job.steps} for row in new]
                rows += new
                yield new
            for way in group:
                way.close()


def _is_left(rows: Sequence[Mapping[str, Any]], name: str, job: Task, protocol: Rules) -> bool:
    """Tell whether a way is to do a task: it can, has not done it, and was not given up with fewer structures of this size."""
    if job.kind == "roofline":
        return name == "ours" and not any(row["set"] == job.kind for row in rows)
    if job.kind not in ROUTES[name].kinds:
        return False
    n, n_atoms, limit = len(job.structures), sum(map(len, job.structures)), protocol.longest_s
    for row in rows:
        if (row["route"], row["set"]) == (name, job.kind):
            slow = row["status"] == "failed" or (row["property"] == "wall_time" and limit is not None and row["value"] > limit)
            given_up = limit is not None and slow and row["n_structures"] < n and row["n_atoms"] * n == n_atoms * row["n_structures"]
            if given_up or row["case"] == f"{job.kind}/{job.case}":
                return False
    return True


def _row(key: str, kind: str, case: str, route: str, name: str, value: float, unit: str, turn: int = -1, error: str | None = None):
    about = Case(f"{kind}/{case}", kind, case, {})
    return benchmarks.row(key, about, name, float(value), math.nan, unit, error=error, route=route, round=turn)


def _bound(key: str, there: str, job: Task, protocol: Rules, device: str) -> list[dict[str, Any]]:
    """Measure what the device allows, in a process of its own."""
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=cluster.end_with_parent) as pool:
            found = pool.submit(roofline.measure, there, job.structures, protocol.compiled, device).result()
    except Exception as error:  # noqa: BLE001  (its memory may not suffice; what else is measured does not need it)
        return [_row(key, "roofline", job.case, "ours", "compute_time", math.nan, "s", error=f"{type(error).__name__}: {error}"[:300])]
    return [_row(key, "roofline", job.case, "ours", *one) for one in found]


def _measured(
    key: str, ways: Sequence[Way], number: int, job: Task, protocol: Rules, exact: tuple[Answer, Answer] | None
) -> list[dict[str, Any]]:
    """Return the rows of a task: one turn of each way that warms up and is compared, then the rounds that count."""
    rows, running = [], []

    def add(way: Way, name: str, value: float, unit: str, turn: int = -1, error: str | None = None) -> None:
        rows.append(_row(key, job.kind, job.case, way.name, name, value, unit, turn, error))

    for way in ways:
        first = way.compute(number)
        if not (protocol.in_turns or isinstance(first, str)):
            first = way.compute(number)  # in which TorchScript compiles; on a GPU that can take longer than anything that is measured
        if isinstance(first, str):
            add(way, "wall_time", math.nan, "s", error=first)
            continue
        running.append(way)
        if exact is not None:
            rows += _differences(key, job, way.name, first[0], exact[0] if way.name.startswith("ours") else exact[1])
    peaks, over = {way.name: 0.0 for way in running}, set()
    for turn in range(protocol.rounds):
        for way in running if turn % 2 == 0 else running[::-1]:
            if way in over:
                continue
            found = way.compute(number)
            if isinstance(found, str):
                add(way, "wall_time", math.nan, "s", turn, found)
                continue
            _, wall, processor, peak = found
            peaks[way.name] = max(peaks[way.name], peak)
            add(way, "wall_time", wall, "s", turn)
            add(way, "processor_time", processor, "s", turn)
            if protocol.longest_s is not None and wall > protocol.longest_s:
                over.add(way)
    for way in running:
        add(way, "peak_memory", peaks[way.name], "MB")
    return rows


def _differences(key: str, job: Task, name: str, answer: Answer, expected: Answer) -> Iterator[dict[str, object]]:
    sizes = np.array([len(atoms) for atoms in job.structures])
    if answer.energies is not None:
        energy = float(np.max(np.abs(answer.energies - expected.energies) / sizes))
        yield _row(key, job.kind, job.case, name, "energy_difference", energy, "eV/atom")
    pairs = list(zip(answer.forces, expected.forces, strict=True))
    differences = np.array([np.max(np.abs(one - other)) for one, other in pairs])
    largest = np.array([max(1.0, np.max(np.abs(other))) for _, other in pairs])
    yield _row(key, job.kind, job.case, name, "force_difference", differences.max(), "eV/Å")
    yield _row(key, job.kind, job.case, name, "relative_force_difference", (differences / largest).max(), "")


def read(keys: Sequence[str], out: Path | None = None, name: str = NAME) -> pd.DataFrame:
    """Read tables that :func:`record` wrote."""
    return pd.concat([results.read_table(results.table_path(name, key, out)) for key in keys], ignore_index=True)


def record(key: str, out: Path | None = None, protocol: Rules | None = None, *, name: str = NAME, device: str = "cpu", **how: Any) -> Path:
    """Measure a model and write the table with its provenance below a folder; into the project's own data if None.

    What the same code and packages have measured by the same protocol is kept. ``name`` is that of the tables; ``how`` goes to
    :func:`measure`, whose errors it shares.
    """
    protocol = protocol or Protocol()
    table, made = _kept(name, key, protocol, out)
    before, start = os.getloadavg()[0], time.perf_counter() - made.get("wall_seconds", 0.0)
    about = None
    for rows in measure(key, protocol, device=device, kept=table.to_dict("records"), **how):
        table = pd.concat([table, benchmarks.table(rows)], ignore_index=True) if rows else table
        about = about or (random_about() if key == RANDOM_MACE else potentials.load(key, "cpu").describe())
        made = throughput.provenance(
            table,
            protocol,
            about,
            device,
            data_sha256=_data_sha256() if isinstance(protocol, Protocol) else {},
            core_seconds=round(float(table.loc[table["property"] == "processor_time", "value"].sum()), 1),
            wall_seconds=round(time.perf_counter() - start, 1),
            cores=os.cpu_count(),
            load_average={"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
            versions=worker.versions(),
        )
        results.write(name, key, table, made, out, keys=("route", "round"))
    return results.table_path(name, key, out)


def _kept(name: str, key: str, protocol: Rules, out: Path | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a table and its provenance, empty unless this code and these packages measured it by this protocol."""
    with contextlib.suppress(results.ResultsError):
        table, made = results.read_table(results.table_path(name, key, out)), results.provenance(name, key, out)
        same = (made.get("versions"), made["protocol"]) == (worker.versions(), json.loads(json.dumps(asdict(protocol))))
        if same and made["rows"] == len(table):  # one killed between table and provenance leaves a table nothing vouches for
            return table, made
    return pd.DataFrame(), {}


def _data_sha256() -> dict[str, str]:
    names = off_equilibrium.SETS["mattersim-tp"]
    return {name: registry.expected_sha256(registry.lookup(name)) for name in names}


# ---------------------------------------------------------------------------------------------------
# What the table says


# Of an evaluation: neighbour lists, their way to the device, what a network derives from them, and the network.
PARTS = ("neighbours", "transfer", "topology", "network")

VERDICTS = ("to 1e-5", "to rounding", "no")


def agreement(difference: float, own: float) -> str:
    """Judge a deviation from double precision, given ours in single precision.

    Both energies (eV/atom) or both forces (fractions of the largest).
    """
    return VERDICTS[0] if difference < AGREEMENT else VERDICTS[1] if difference <= ROUNDING * own else VERDICTS[2]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model, kind, case and way.

    Returns
    -------
    pandas.DataFrame
        ``structures_per_s`` and ``atoms_per_s``: medians over the rounds, on the clock; for relaxations, of whole relaxations.
        ``ratio``, ``ratio_low``, ``ratio_high``: time of the way over that of ``ours`` in the same round, on the clock; median and range.
        ``ratio_all``, ``ratio_all_low``, ``ratio_all_high``: over that of ours with one process per core.
        ``processor_ratio``: as ``ratio``, of processor time. ``memory_mb``; the differences; ``agreement``, the worst of their verdicts
        (:func:`agreement`); ``status`` and ``reason`` as in the table.
    """
    rows = []
    timed = table[~table["set"].isin(["roofline", "tried"])]
    for (model, kind, case), part in timed.groupby(["model", "set", "case"], sort=False):
        time_of = {
            name: part[(part["property"] == name) & (part["status"] == "ok")].pivot_table(index="round", columns="route", values="value")
            for name in ("wall_time", "processor_time")
        }
        single = part[part["round"] == -1].pivot_table(index="route", columns="property", values="value")
        failed = part[part["status"] == "failed"].drop_duplicates("route").set_index("route")["reason"]
        first = part.iloc[0]
        for route in dict.fromkeys(part["route"]):
            row: dict[str, Any] = {
                "model": model,
                "kind": kind,
                "case": case.split("/", 1)[1],
                "route": route,
                "status": "ok",
                "reason": "",
            }
            row |= {"n_structures": int(first["n_structures"]), "n_atoms": int(first["n_atoms"]), "steps": int(first["steps"])}
            if route in failed:
                rows.append(row | {"status": "failed", "reason": failed[route]})
                continue
            wall = time_of["wall_time"]
            median = wall[route].median()
            row |= {"structures_per_s": row["n_structures"] / median, "atoms_per_s": row["n_atoms"] / median}
            for name, against in (("ratio", "ours"), ("ratio_all", "ours-processes")):
                if against in wall:
                    ratio = wall[route] / wall[against]
                    row |= {name: ratio.median(), f"{name}_low": ratio.min(), f"{name}_high": ratio.max()}
            if "ours" in (processor := time_of["processor_time"]):
                row["processor_ratio"] = (processor[route] / processor["ours"]).median()
            here = single.loc[route]
            row["memory_mb"] = here["peak_memory"]
            row |= {name: here.get(name, np.nan) for name in ("energy_difference", "force_difference", "relative_force_difference")}
            compared = ("energy_difference", "relative_force_difference")
            verdicts = [agreement(row[name], single.loc["ours", name]) for name in compared if np.isfinite(row[name])]
            rows.append(row | {"agreement": max(verdicts, key=VERDICTS.index, default="–")})
    return pd.DataFrame(rows)


def limits(table: pd.DataFrame) -> pd.DataFrame:
    """Return what the device allows and what the network takes, one row per model; of a CPU one core.

    Returns
    -------
    pandas.DataFrame
        Indexed by model: the measured properties of the set ``roofline``; ``products_s``, the time of the matrix products at the
        throughput of a product of the network's shape; ``others_s``, of the traffic of all other operations at the bandwidth
        of arrays that fit into the cache; ``limit_s``, their sum; ``ratio``, the measured time of the network over it, and
        ``ratio_compiled``, that of the compiled network (NaN where it was not measured). ``memory_limit_s``, ``memory_ratio`` and
        ``memory_ratio_compiled`` are the same with the traffic at the bandwidth of main memory. ``of_products`` and ``of_bandwidth``,
        what the network does per second as a share of large products and of that bandwidth. :data:`PARTS`: shares of an evaluation.

    Notes
    -----
    The sum, not the larger of the two: operations follow one another, so products and traffic do not overlap.
    """
    wide = table[table["set"] == "roofline"].pivot_table(index="model", columns="property", values="value", sort=False)
    times = ("neighbours_time", "transfer_time", "graph_time", "compute_time", "compiled_time")
    needed = (*times, "flop", "bytes_others", "throughput_layer", "throughput_square", "bandwidth_cache", "bandwidth_memory")
    wide = wide.reindex(columns=[*wide, *(name for name in needed if name not in wide)])  # not everything is measured everywhere
    wide["products_s"] = wide["flop"] / wide["throughput_layer"]
    wide["others_s"] = wide["bytes_others"] / wide["bandwidth_cache"]
    for limit, bandwidth in {"": "bandwidth_cache", "memory_": "bandwidth_memory"}.items():
        wide[f"{limit}limit_s"] = wide["products_s"] + wide["bytes_others"] / wide[bandwidth]
        wide[f"{limit}ratio"] = wide["compute_time"] / wide[f"{limit}limit_s"]
        wide[f"{limit}ratio_compiled"] = wide["compiled_time"] / wide[f"{limit}limit_s"]
    wide["of_products"] = wide["flop"] / wide["compute_time"] / wide["throughput_square"]
    wide["of_bandwidth"] = wide["bytes_others"] / wide["compute_time"] / wide["bandwidth_memory"]
    topology = (wide["graph_time"] - wide["transfer_time"]).clip(lower=0.0)
    parts = wide["neighbours_time"], wide["transfer_time"], topology, wide["compute_time"]
    return wide.assign(**{name: seconds / sum(parts) for name, seconds in zip(PARTS, parts, strict=True)})


def tried(table: pd.DataFrame) -> pd.DataFrame:
    """Return what was tried: one row per model and variant.

    Returns
    -------
    pandas.DataFrame
        ``ratio``, ``ratio_low``, ``ratio_high``: processor time of the variant over that of the evaluation as it is, in the same round;
        median and range. ``force_difference`` (eV/Å) between the two. ``reason``, if the variant did not run.
    """
    rows = []
    for model, part in table[table["set"] == "tried"].groupby("model", sort=False):
        taken = part[part["property"] == "processor_time"].pivot_table(index="round", columns="route", values="value")
        difference = part[part["property"] == "force_difference"].set_index("route")["value"]
        failed = part[part["status"] == "failed"].set_index("route")["reason"]
        for name in dict.fromkeys(part["route"]):
            row = {"model": model, "variant": name, "reason": failed.get(name, "")}
            if not row["reason"]:
                ratio = taken[name] / taken[AS_IT_IS]
                row |= {"ratio": ratio.median(), "ratio_low": ratio.min(), "ratio_high": ratio.max(), "force_difference": difference[name]}
            rows.append(row)
    return pd.DataFrame(rows, columns=["model", "variant", "ratio", "ratio_low", "ratio_high", "force_difference", "reason"])


def bars(summary: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return how much faster ours is on all cores than the ASE loop and matcalc at their best, for the statics of a model.

    At their best: on one thread or on all, whichever takes less time.
    """
    part = summary[(summary["model"] == key) & (summary["kind"] == "statics") & (summary["status"] == "ok")].set_index("route")
    found = {}
    for name in ("ase", "matcalc"):
        there = [route for route in (name, f"{name}-threads") if route in part.index]
        if there:
            best = part.loc[there].sort_values("ratio_all").iloc[0]
            found[name] = {"route": best.name, "ratio": best["ratio_all"], "low": best["ratio_all_low"], "high": best["ratio_all_high"]}
    return pd.DataFrame.from_dict(found, orient="index", columns=["route", "ratio", "low", "high"])


def readable(summary: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the rows of a kind as a reader wants to see them, numbers as text."""
    part = summary[summary["kind"] == kind]
    several = len(set(part["case"])) > 1
    done = part["status"] == "ok"

    def text(column: str, form: str) -> list[str]:
        return [form.format(value) if ok and np.isfinite(value) else "–" for value, ok in zip(part[column], done, strict=True)]

    shown = {
        "structures/s": text("structures_per_s", "{:.3g}"),
        "atoms/s": text("atoms_per_s", "{:.3g}"),
        "time, ours = 1": [
            f"{row.ratio:.2f} ({row.ratio_low:.2f}–{row.ratio_high:.2f})" if row.status == "ok" else "–" for row in part.itertuples()
        ],
        "processor time, ours = 1": text("processor_ratio", "{:.2f}"),
        "peak memory (MB)": text("memory_mb", "{:.0f}"),
        "largest ΔF (eV/Å)": text("force_difference", "{:.0e}"),
        "agrees": [row.agreement if row.status == "ok" else f"not run: {row.reason}" for row in part.itertuples()],
    }
    names = [ROUTES[route].label for route in part["route"]]
    index = [f"{name}, {case}" for name, case in zip(names, part["case"], strict=True)] if several else names
    return pd.DataFrame(shown, index=pd.Index(index, name="way"))
