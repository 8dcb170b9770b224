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

The set ``roofline`` holds what the processor allows (:mod:`helpers.speed.roofline`).

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
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import ase
import ase.data
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
from helpers.speed.routes import BESIDE, COMPARED, RANDOM_MACE, ROUTES, Answer, Compute, Task, chosen, in_double_precision

NAME = "speed"

# So long a way may take for an answer, s; else its process hangs. Compiling a network takes minutes.
PATIENCE_S = 600

HISTORY = "history.csv"

MODELS = ("chgnet-0.3.0", "m3gnet-mp-2021.2.8", "tensornet-matpes-pbe-2025.1", RANDOM_MACE)

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
    compiled: bool = True  # also the compiled network: compiling takes minutes
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


QUICK = Protocol(rounds=3, threads=False, compiled=False, materials=2, frames=2, relaxed=2, steps=2, scaling=((1, 1), (1, 4), (2, 1)))


def tasks(protocol: Protocol) -> list[Task]:
    """Return what is to be computed; the frames come from a registered file."""
    cases = _frames(protocol)
    frames = tuple(case.structures["frame"] for case in cases)
    some = np.linspace(0, len(frames) - 1, min(protocol.relaxed, len(frames))).round().astype(int)
    cells = throughput.Protocol(seed=protocol.seed)
    grown = [(n, tuple(throughput.structures(cells, repeat, n))) for repeat, n in protocol.scaling]
    return [
        Task("statics", "MatterSim-TP", frames, tuple(case.material for case in cases)),
        Task("relaxation", "MatterSim-TP", tuple(frames[number] for number in some), steps=protocol.steps),
        Task("displacements", "TiO2", _displaced(protocol)),
        *(Task("scaling", f"{n} × {len(structures[0])} atoms", structures) for n, structures in grown),
        Task("roofline", "MgO, 16 atoms", (roofline.crystal(),)),
    ]


def _frames(protocol: Protocol) -> list[Case]:
    """Draw compounds, and the first frames of each. matcalc fits one array per compound, so its frames must have equally many atoms."""
    limits = off_equilibrium.Protocol()
    of_material: dict[str, list[Case]] = {}
    for case in off_equilibrium.cases(sets=["mattersim-tp"]):
        if limits.pressure_min_gpa < case.info["pressure_gpa"] < limits.pressure_max_gpa:
            of_material.setdefault(case.material, []).append(case)
    first = {name: found[: protocol.frames] for name, found in sorted(of_material.items()) if len(found) >= protocol.frames}
    usable = [found for found in first.values() if len({len(case.structures["frame"]) for case in found}) == 1]
    drawn = np.random.default_rng(protocol.seed).choice(len(usable), protocol.materials, replace=False)
    return [case for number in sorted(drawn) for case in usable[number]]


def _displaced(protocol: Protocol) -> tuple[ase.Atoms, ...]:
    """Return the displaced supercells that the phonons of rutile need (lattice constants: Wyckoff, Crystal Structures (1963))."""
    a, c, u = 4.594, 2.958, 0.305
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [u, u, 0], [-u, -u, 0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    rutile = ase.Atoms("Ti2O4", scaled_positions=places, cell=[a, a, c], pbc=True)
    return tuple(atoms for role, atoms in phonons.own(rutile, protocol.supercell).structures.items() if role != "unit_cell")


def random_mace(path: Path, *, channels: int = 128) -> None:
    """Write a MACE with random weights, in the architecture of MACE-MP-0 small (scalar features), to a file.

    128 channels, spherical harmonics up to l = 3, correlation order 3, two layers, cutoff 6 Å, 89 elements:
    Batatia et al., J. Chem. Phys. 163, 184110 (2025).
    """
    from helpers.potentials import chgnet, mace, untrained

    like = {"r_max": 6.0, "num_bessel": 10, "max_ell": 3, "correlation": 3, "avg_num_neighbors": 61.97, "radial_MLP": [64, 64, 64]}
    energies = {ase.data.chemical_symbols[number]: 0.0 for number in chgnet.MPTRJ_ELEMENTS}
    made = untrained.build("mace", energies, channels=channels, force_rms=0.8, seed=0, settings=like)
    with mace.contained():
        torch.save(made.network, path)


# ---- A way in its process -------------------------------------------------------------------------


def _family() -> list[psutil.Process]:
    here = psutil.Process()
    return [here, *here.children(recursive=True)]


def _processor_time() -> float:
    """Return the processor time of this process and its children, s."""
    total = 0.0
    for process in _family():
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def forget_peak(device: str = "cpu") -> None:
    """Let the peak memory be measured anew: by Linux, of this process and its children; elsewhere it is that of the process's life."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    for process in _family():
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def _peak_mb(device: str = "cpu") -> float:
    """Return the largest memory (MB) of this process and its children, added up (resident set); on a GPU that of this process's tensors."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1e6
    total = 0.0
    for process in _family():
        try:
            total += float(Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
        except (OSError, IndexError):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss / 1e6
    return total


_made: dict[str, tuple[Compute, Sequence[Task], str]] = {}  # in a way's process: the way


def _make(key: str, name: str, jobs: Sequence[Task], cores: int, device: str) -> None:
    torch.set_num_threads(ROUTES[name].threads or cores)
    _made[name] = ROUTES[name].make(key, cores, device), jobs, device


def _forget(name: str) -> None:
    """Let go of a way and of the processes that it may have; this one would wait for them for ever."""
    _made.pop(name, None)
    gc.collect()


def _compute(name: str, number: int) -> tuple[Answer, float, float, float]:
    compute, jobs, device = _made[name]
    gc.collect()
    forget_peak(device)
    processor, start = _processor_time(), time.perf_counter()
    answer = compute(jobs[number])
    taken = time.perf_counter() - start, _processor_time() - processor, _peak_mb(device)
    if not all(np.isfinite(forces).all() for forces in answer.forces):
        raise ValueError("the forces are no numbers")
    return answer, *taken


class Way:
    """A way in its process."""

    def __init__(self, key: str, name: str, jobs: Sequence[Task], cores: int, device: str = "cpu") -> None:
        self.name, self.route = name, ROUTES[name]
        self.made_of = key, name, list(jobs), cores, device
        self.start()

    def start(self) -> None:
        """Begin a process, and in it to make the way."""
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), cluster.end_with_parent)
        self.pid, self.made = self.pool.submit(os.getpid), self.pool.submit(_make, *self.made_of)

    def failure(self) -> str | None:
        """Wait until the way is made; say why it cannot be. All are made at the same time."""
        found = self._result(self.made)
        return found if isinstance(found, str) else None

    def _result(self, future: Future) -> Any:
        """Return a result, or why there is none."""
        try:
            return future.result(PATIENCE_S)
        except TimeoutError:
            os.kill(self.pid.result(), getattr(signal, "SIGKILL", signal.SIGTERM))
            return f"its process died (no answer in {PATIENCE_S} s)"
        except BrokenProcessPool:
            return "its process died"
        except Exception as error:  # noqa: BLE001  (another package may raise anything; the reason becomes a row)
            memory = "out of memory: " if out_of_memory(error) else ""
            return memory + "".join(traceback.format_exception_only(error)).strip().splitlines()[0][:300]

    def compute(self, number: int) -> tuple[Answer, float, float, float] | str:
        """Return answer, wall time, processor time and peak memory; or why not.

        A process that has died, or whose GPU an error has made useless, begins anew.
        """
        if failure := self.failure():
            return failure
        try:
            found = self._result(self.pool.submit(_compute, self.name, number))
        except BrokenProcessPool:
            found = "its process died"
        if isinstance(found, str) and ("process died" in found or "CUDA error" in found):
            self.close()
            self.start()
        return found

    def close(self) -> None:
        """Let the process end."""
        with contextlib.suppress(RuntimeError):  # it has ended already
            self.pool.submit(_forget, self.name)
        self.pool.shutdown(wait=False)


# ---- The measurement ------------------------------------------------------------------------------


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
    """Measure ways to compute with a model (a catalogue key, or :data:`RANDOM_MACE`); yield rows of the table above, task by task.

    Tasks are by default those of the protocol (:func:`tasks`), ways those of :data:`~helpers.speed.routes.BESIDE` that fit the model;
    ``ours`` is always among them. ``kept`` are rows that were measured before: what they hold is not measured again. No task is begun after
    the deadline (:func:`time.time`, s).

    Raises ValueError if the model cannot be measured or a way is unknown, and RunError if this project's own way fails.
    """
    protocol = protocol or Protocol()
    names = [name for name in chosen(key, routes or BESIDE) if protocol.threads or ROUTES[name].threads]
    names = [name for name in names if protocol.compiled or name != "ours-compiled"]
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
        failures = [way.failure() for way in ways]
        if failures[0]:
            raise RunError(f"{key}: {failures[0]}")
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
                size = {"n_structures": len(job.structures), "n_atoms": sum(map(len, job.structures)), "steps": job.steps}
                new = [row | size for row in new]
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


def _row(key: str, job: Task, route: str, name: str, value: float, unit: str, turn: int = -1, error: str | None = None) -> dict[str, Any]:
    about = Case(f"{job.kind}/{job.case}", job.kind, job.case, {})
    return benchmarks.row(key, about, name, float(value), math.nan, unit, error=error, route=route, round=turn)


def _bound(key: str, there: str, job: Task, protocol: Rules, device: str) -> list[dict[str, Any]]:
    """Measure what the device allows, in a process of its own."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), cluster.end_with_parent) as pool:
            found = pool.submit(roofline.measure, there, job.structures, protocol.compiled, device).result()
    except Exception as error:  # noqa: BLE001  (its memory may not suffice; what else is measured does not need it)
        return [_row(key, job, "ours", "compute_time", math.nan, "s", error=f"{type(error).__name__}: {error}"[:300])]
    return [_row(key, job, "ours", *one) for one in found]


def _measured(
    key: str, ways: Sequence[Way], number: int, job: Task, protocol: Rules, exact: tuple[Answer, Answer] | None
) -> list[dict[str, Any]]:
    """Return the rows of a task: one turn of each way that warms up and is compared, then the rounds that count."""
    rows, peaks, over = [], {}, set()
    for turn in range(-1, protocol.rounds):
        for way in ways[:: -1 if turn % 2 and turn > 0 else 1]:
            if way in over:
                continue
            found = way.compute(number)
            if turn < 0 and not (protocol.in_turns or isinstance(found, str)):
                found = way.compute(number)  # in which TorchScript compiles; on a GPU that can take longer than anything that is measured
            if isinstance(found, str):
                rows.append(_row(key, job, way.name, "wall_time", math.nan, "s", turn, found))
                if turn < 0:
                    over.add(way)
                continue
            answer, wall, processor, peak = found
            if turn < 0:
                if exact is not None:
                    rows += _differences(key, job, way.name, answer, exact[0] if way.name.startswith("ours") else exact[1])
                continue
            peaks[way.name] = max(peaks.get(way.name, 0.0), peak)
            rows += [
                _row(key, job, way.name, "wall_time", wall, "s", turn),
                _row(key, job, way.name, "processor_time", processor, "s", turn),
            ]
            if protocol.longest_s is not None and wall > protocol.longest_s:
                over.add(way)
    return rows + [_row(key, job, name, "peak_memory", peak, "MB") for name, peak in peaks.items()]


def _differences(key: str, job: Task, name: str, answer: Answer, expected: Answer) -> Iterator[dict[str, Any]]:
    if answer.energies is not None:
        sizes = np.array([len(atoms) for atoms in job.structures])
        energy = np.max(np.abs(answer.energies - expected.energies) / sizes)
        yield _row(key, job, name, "energy_difference", energy, "eV/atom")
    pairs = list(zip(answer.forces, expected.forces, strict=True))
    differences = np.array([np.max(np.abs(one - other)) for one, other in pairs])
    largest = np.array([max(1.0, np.max(np.abs(other))) for _, other in pairs])
    yield _row(key, job, name, "force_difference", differences.max(), "eV/Å")
    yield _row(key, job, name, "relative_force_difference", (differences / largest).max(), "")


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
    sources = off_equilibrium.SETS["mattersim-tp"] if isinstance(protocol, Protocol) else ()
    for rows in measure(key, protocol, device=device, kept=table.to_dict("records"), **how):
        table = pd.concat([table, benchmarks.table(rows)], ignore_index=True) if rows else table
        if about is None and key == RANDOM_MACE:
            about = {"key": key, "label": "MACE, random weights", "package": f"mace-torch {version('mace-torch')}"}
        about = about or potentials.load(key, "cpu").describe()
        made = throughput.provenance(
            table,
            protocol,
            about,
            device,
            data_sha256={source: registry.expected_sha256(registry.lookup(source)) for source in sources},
            core_seconds=round(float(table.loc[table["property"] == "processor_time", "value"].sum()), 1),
            wall_seconds=round(time.perf_counter() - start, 1),
            cores=os.cpu_count(),
            load_average={"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
            versions=worker.versions(),
        )
        results.write(name, key, table, made, out, keys=("route", "round"))
    return results.table_path(name, key, out)


def remember(keys: Sequence[str], out: Path | None = None) -> pd.DataFrame:
    """Add the speed of models to ``history.csv`` beside their tables, and return it: a line for each model, day and device.

    Of the frames that are evaluated: ``atoms_per_s`` of ours on one thread, and ``ratio``, the least time of another package over ours in
    the same round, on one thread, too.
    """
    rows = []
    for key in keys:
        made, summary = results.provenance(NAME, key, out), summarise(read([key], out))
        done = summary[(summary["kind"] == "statics") & (summary["status"] == "ok")].set_index("route")
        others = [name for name in done.index if not name.startswith("ours") and ROUTES[name].threads == 1]
        about = {name: made[name] for name in ("date", "device", "model")}
        rows.append(about | {"atoms_per_s": round(done.loc["ours", "atoms_per_s"], 1), "ratio": round(done.loc[others, "ratio"].min(), 2)})
    path = results.results_dir(out) / NAME / HISTORY
    before = pd.read_csv(path) if path.exists() else pd.DataFrame()
    kept = pd.concat([before, pd.DataFrame(rows)]).drop_duplicates(["date", "device", "model"], keep="last").sort_values(["model", "date"])
    results.write_bytes(kept.to_csv(index=False).encode(), path)
    return kept


def _kept(name: str, key: str, protocol: Rules, out: Path | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a table and its provenance, empty unless this code and these packages measured it by this protocol."""
    with contextlib.suppress(results.ResultsError):
        table, made = results.read_table(results.table_path(name, key, out)), results.provenance(name, key, out)
        same = (made.get("versions"), made["protocol"]) == (worker.versions(), json.loads(json.dumps(asdict(protocol))))
        if same and made["rows"] == len(table):  # one killed between table and provenance leaves a table nothing vouches for
            return table, made
    return pd.DataFrame(), {}


# ---- What the table says --------------------------------------------------------------------------


# Of an evaluation: neighbour lists, their way to the device, what a network derives from them, and the network.
PARTS = ("neighbours", "transfer", "topology", "network")

VERDICTS = ("to 1e-5", "to rounding", "no")

DIFFERENCES = ("energy_difference", "force_difference", "relative_force_difference")


def agreement(difference: float, own: float) -> str:
    """Judge a deviation from double precision, given ours in single precision.

    Both energies (eV/atom) or both forces (fractions of the largest).
    """
    return VERDICTS[0] if difference < AGREEMENT else VERDICTS[1] if difference <= ROUNDING * own else VERDICTS[2]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model, kind, case and way.

    ``structures_per_s`` and ``atoms_per_s`` are medians over the rounds, on the clock; for relaxations, of whole relaxations. ``ratio``,
    ``ratio_low``, ``ratio_high``: time of the way over that of ``ours`` in the same round, on the clock; median and range. ``ratio_all``,
    ``ratio_all_low``, ``ratio_all_high``: over that of ours with one process per core. ``processor_ratio``: as ``ratio``, of processor
        time. ``memory_mb``; the differences; ``agreement``, the worst of their verdicts (:func:`agreement`); ``status`` and ``reason`` as
        in the table.
    """
    rows = []
    timed = table[table["set"] != "roofline"]
    for (model, kind, case), part in timed.groupby(["model", "set", "case"], sort=False):
        done, failed = part[part["status"] == "ok"], part[part["status"] == "failed"]
        wall, processor = (
            done[done["property"] == name].pivot_table(index="round", columns="route", values="value")
            for name in ("wall_time", "processor_time")
        )
        single = part[part["round"] == -1].pivot_table(index="route", columns="property", values="value")
        reasons = dict(zip(failed["route"][::-1], failed["reason"][::-1], strict=True))  # the first of each way
        size = {name: int(part[name].iloc[0]) for name in ("n_structures", "n_atoms", "steps")}
        for route in dict.fromkeys(part["route"]):
            row: dict[str, Any] = {
                "model": model,
                "kind": kind,
                "case": case.split("/", 1)[1],
                "route": route,
                "status": "ok",
                "reason": "",
            }
            rows.append(row := row | size)
            if route in reasons:
                row |= {"status": "failed", "reason": reasons[route]}
                continue
            median, here = wall[route].median(), single.loc[route]
            row |= {"structures_per_s": size["n_structures"] / median, "atoms_per_s": size["n_atoms"] / median}
            for name, against in (("ratio", "ours"), ("ratio_all", "ours-processes")):
                if against in wall:
                    ratio = wall[route] / wall[against]
                    row |= {name: ratio.median(), f"{name}_low": ratio.min(), f"{name}_high": ratio.max()}
            if "ours" in processor:
                row["processor_ratio"] = (processor[route] / processor["ours"]).median()
            row |= {"memory_mb": here["peak_memory"]} | {name: here.get(name, np.nan) for name in DIFFERENCES}
            judged = [name for name in DIFFERENCES if name != "force_difference" and np.isfinite(row[name])]
            verdicts = [agreement(row[name], single.loc["ours", name]) for name in judged]
            row["agreement"] = max(verdicts, key=VERDICTS.index, default="–")
    return pd.DataFrame(rows)


def limits(table: pd.DataFrame) -> pd.DataFrame:
    """Return what the device allows and what the network takes, one row per model; of a CPU one core.

    Indexed by model: the measured properties of the set ``roofline``; ``products_s``, the time of the matrix products at the throughput of
    a product of the network's shape; ``others_s``, of the traffic of all other operations at the bandwidth of arrays that fit into the
    cache; ``limit_s``, their sum, as operations follow one another, so that products and traffic do not overlap; ``ratio``, the measured
    time of the network over it, and ``ratio_compiled``, that of the compiled network (NaN where it was not measured). ``memory_limit_s``,
    ``memory_ratio`` and ``memory_ratio_compiled`` are the same with the traffic at the bandwidth of main memory. ``of_products`` and
    ``of_bandwidth``, what the network does per second as a share of large products and of that bandwidth. :data:`PARTS`: shares of an
    evaluation.
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


def bars(summary: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return how much faster ours is on all cores than the ASE loop and matcalc at their best, for the statics of a model.

    At their best: on one thread or on all, whichever takes less time.
    """
    part = summary[(summary["model"] == key) & (summary["kind"] == "statics") & (summary["status"] == "ok")].set_index("route")
    found = {}
    for name in ("ase", "matcalc"):
        there = part.loc[part.index.isin([name, f"{name}-threads"])]
        if len(there):
            best = there.loc[there["ratio_all"].idxmin()]
            found[name] = {"route": best.name, "ratio": best["ratio_all"], "low": best["ratio_all_low"], "high": best["ratio_all_high"]}
    return pd.DataFrame.from_dict(found, orient="index", columns=["route", "ratio", "low", "high"])


def readable(summary: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the rows of a kind as a reader wants to see them, numbers as text."""
    part = summary[summary["kind"] == kind]
    forms = {
        "structures/s": "{0.structures_per_s:.3g}",
        "atoms/s": "{0.atoms_per_s:.3g}",
        "time, ours = 1": "{0.ratio:.2f} ({0.ratio_low:.2f}–{0.ratio_high:.2f})",
        "processor time, ours = 1": "{0.processor_ratio:.2f}",
        "peak memory (MB)": "{0.memory_mb:.0f}",
        "largest ΔF (eV/Å)": "{0.force_difference:.0e}",
        "agrees": "{0.agreement}",
    }
    rows = [
        {name: form.format(row).replace("nan", "–") for name, form in forms.items()}
        if row.status == "ok"
        else dict.fromkeys(forms, "–") | {"agrees": f"not run: {row.reason}"}
        for row in part.itertuples()
    ]
    several = len(set(part["case"])) > 1
    names = [ROUTES[row.route].label + (f", {row.case}" if several else "") for row in part.itertuples()]
    return pd.DataFrame(rows, pd.Index(names, name="way"), list(forms))
