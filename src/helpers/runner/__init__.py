"""Run a benchmark: cases into shards, shards over processes or a cluster, shards into one table with its provenance.

Whoever computes a shard, this process writes it. So nothing needs a common file system, there is one writer and nothing is written
twice, and a worker that dies leaves no half file. The price: a shard that is done but not yet written is lost with this process.

A run can be killed at any moment. The same command then finishes what is missing and yields the same table;
once the table is complete, the same command changes nothing. Shards are named by a fingerprint of everything
that decides their content (weights, protocol, cases), so results of different settings never mix.
"""

from __future__ import annotations

import ctypes
import datetime
import errno
import functools
import hashlib
import json
import math
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from helpers import benchmarks, potentials, registry, results
from helpers.benchmarks import Case
from helpers.potentials import OutOfTimeError, Potential
from helpers.runner import cluster
from helpers.runner.cluster import RunError

__all__ = [
    "ROW_KEYS",
    "Job",
    "Limits",
    "LiveCheckError",
    "Run",
    "RunError",
    "compute_here",
    "compute_shard",
    "fingerprint",
    "keep_memory",
    "live_check",
    "run",
    "run_cases",
    "shards",
    "workers",
]

# A shard is the unit of loss and of parallel work: about half a minute of CHGNet on one core where each structure is evaluated a few
# times. A benchmark that evaluates its structures more often has an ATOMS_PER_SHARD of its own.
_ATOMS_PER_SHARD = 1500


def fingerprint(benchmark: str, potential: Potential, protocol: object, cases: Sequence[Case]) -> str:
    """Return a hash of everything that decides a result table."""
    digest = hashlib.sha256()
    digest.update(json.dumps([benchmark, potential.describe(), asdict(protocol)], sort_keys=True, default=str).encode())
    for case in cases:
        digest.update(case.name.encode())
        for role in sorted(case.structures):
            atoms = case.structures[role]
            # Rounding makes the hash the same on machines whose last digits differ.
            for array in (atoms.numbers, np.round(atoms.positions, 6) + 0.0, np.round(atoms.cell.array, 6) + 0.0):
                digest.update(np.ascontiguousarray(array).tobytes())
        for name in sorted(case.reference):
            digest.update(np.round(np.asarray(case.reference[name], dtype=float), 6).tobytes())
    return digest.hexdigest()


def shards(cases: Sequence[Case], atoms_per_shard: int = _ATOMS_PER_SHARD) -> list[list[Case]]:
    """Split cases, in order, into pieces of about equal numbers of atoms."""
    pieces: list[list[Case]] = []
    size = math.inf
    for case in cases:
        n_atoms = sum(len(atoms) for atoms in case.structures.values()) or 100
        if size + n_atoms > atoms_per_shard:
            pieces.append([])
            size = 0
        pieces[-1].append(case)
        size += n_atoms
    return pieces


# Columns that, where a benchmark has them, tell the rows of one case and property apart.
ROW_KEYS = ("stage", "held_out", "epoch", "frame", "atom", "component", "displacement", "quantile", "q", "branch", "frequency_thz", "image")


@dataclass(frozen=True)
class Limits:
    """How far a run may go.

    Attributes
    ----------
    deadline : float or None
        Time (:func:`time.time`, s) after which nothing more is evaluated; None for no limit.
    keep_going : bool
        A case that breaks the benchmark's code becomes a failed row with the exception as its reason, instead of ending the run.
    """

    deadline: float | None = None
    keep_going: bool = False


@dataclass(frozen=True)
class Job:
    """What all shards of a run have in common. It travels to the worker with each of them.

    ``potential`` is the description and ``versions`` the software of the process that asked; a worker that has others must not answer.
    """

    benchmark: str
    key: str
    device: str
    trust: bool
    protocol: object
    potential: dict[str, object]
    versions: dict[str, str]
    limits: Limits = Limits()
    compiled: bool = False


def compute_shard(
    benchmark: str, potential: Potential, cases: Sequence[Case], protocol: object, limits: Limits | None = None
) -> pd.DataFrame | None:
    """Return the table of one shard; ``attrs`` say how many seconds it took, where, and on what device. None if there was no time."""
    limits = limits or Limits()
    keep_memory()
    start = time.perf_counter()
    if limits.deadline is not None and time.time() > limits.deadline:
        return None
    potential.deadline = limits.deadline
    try:
        table = _table(benchmark, potential, cases, protocol, limits.keep_going)
    except OutOfTimeError:
        return None
    finally:
        potential.deadline = None
    table.attrs = {
        "seconds": time.perf_counter() - start,
        "process": f"{platform.node()}/{os.getpid()}",
        "device": results.device_name(str(potential.device)),
        "compiled": getattr(potential, "is_compiled", False),
    }
    return table


@functools.cache
def keep_memory() -> bool:
    """Let this process keep the memory that one evaluation frees for the next one. Return whether the C library can be told so.

    Glibc gives large arrays back to the system and asks for them again, and the first touch of each page then costs a fault: up to a
    seventh of the time of small batches. Only glibc has these two settings; elsewhere nothing is changed.
    """
    if sys.platform != "linux":
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    # 32 MiB is the largest that the second one takes. More than 1 GiB of free memory, as after one very large cell, is given back.
    return bool(mallopt(mmap_threshold, 32 * 2**20) and mallopt(trim_threshold, 2**30))


def _table(benchmark: str, potential: Potential, cases: Sequence[Case], protocol: object, keep_going: bool) -> pd.DataFrame:
    """Return the rows of some cases. If asked to keep going, a case whose computation raises is one failed row."""
    try:
        return benchmarks.module(benchmark).run(potential, cases, protocol)
    except (OutOfTimeError, OSError):
        # A full disk is no fault of a case.
        raise
    except Exception as error:
        if not keep_going:
            raise
        if len(cases) == 1:
            reason = f"{type(error).__name__}: {error}"
            return benchmarks.table([benchmarks.row(potential.key, cases[0], "", math.nan, math.nan, "", error=reason)])
    return pd.concat([_table(benchmark, potential, [case], protocol, keep_going) for case in cases], ignore_index=True)


def compute_here(job: Job, cases: Sequence[Case]) -> pd.DataFrame | None:
    """Compute a shard in a worker, on this machine or another: the potential is loaded once and kept.

    Raises
    ------
    RunError
        If this worker would compute something else than the process that asked.
    """
    here, wanted = _versions(), job.versions
    different = [f"{name} {here.get(name, 'missing')} instead of {wanted[name]}" for name in wanted if here.get(name) != wanted[name]]
    if different:
        raise RunError(
            f"the worker on {platform.node()} has {', '.join(different)}. "
            "Let client and workers use one environment and one copy of the project, then restart the workers."
        )
    if not _busy.acquire(blocking=False):
        raise RunError(f"the worker on {platform.node()} has several threads, and a potential serves one. Start it with --nthreads 1.")
    try:
        return compute_shard(job.benchmark, _same_potential(job), cases, job.protocol, job.limits)
    finally:
        _busy.release()


_busy = threading.Lock()


def _same_potential(job: Job) -> Potential:
    """Load the potential of a job and make sure that it is the one meant."""
    try:
        potential = _potential_here(job.key, job.device, job.trust, job.compiled)
    except Exception as error:
        raise RunError(f"the worker on {platform.node()} cannot load {job.key}: {error}") from error
    # As the description will look on arrival: a tuple may have become a list.
    mine, theirs = (json.loads(json.dumps(about, default=str)) for about in (potential.describe(), job.potential))
    different = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
    if different:
        raise RunError(
            f"the worker on {platform.node()} has another potential under the name {job.key}: its {', '.join(different)} differ(s) "
            f"(weights there: {mine.get('weights_sha256')}, here: {theirs.get('weights_sha256')}). "
            "Let client and workers read the same weight files (SOFTENING_CACHE, SOFTENING_MIRROR), then restart the workers."
        )
    return potential


@functools.lru_cache(maxsize=1)
def _potential_here(key: str, device: str, trust: bool, compiled: bool) -> Potential:
    """Load the potential once per process; one thread each, because the processes fill the cores."""
    torch.set_num_threads(1)
    return potentials.load(key, device, trust=trust, compiled=compiled)


@functools.cache
def _versions() -> dict[str, str]:
    """Return the software that decides a result: packages (without the build's tag, such as +cpu) and the code of the helpers."""
    code = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        code.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    packages = results.package_versions() | {name: version(name) for name in ("pandas", "pyarrow")}
    packages = {name: found.split("+")[0] for name, found in packages.items()}
    return {**packages, "python": "{}.{}".format(*sys.version_info), "helpers": f"(source {code.hexdigest()[:12]})"}


@contextmanager
def workers(device: str | torch.device, processes: int | None = None) -> Iterator[Executor | None]:
    """Yield processes for one or several runs; None where one is enough, which is then this one.

    Parameters
    ----------
    device : str or torch.device
    processes : int, optional
        By default one per core on a CPU, one on a GPU.
    """
    number = processes or (1 if torch.device(device).type == "cuda" else os.cpu_count() or 1)
    if number == 1:
        yield None
        return
    # A forked PyTorch can hang; a spawned process starts clean.
    pool = ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=cluster.end_with_parent)
    try:
        yield pool
    except BaseException:
        # Whatever went wrong would go wrong again, or nobody waits for the rest any more.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@dataclass(frozen=True)
class Run:
    """What :func:`run_cases` computed or found.

    Attributes
    ----------
    table : DataFrame
        Tidy.
    missing : list of Case
        Those for which there was no time; the same call goes on with them.
    made : dict
        Provenance, as :func:`helpers.results.provenance` reads it.
    """

    table: pd.DataFrame
    missing: list[Case]
    made: dict[str, object]


def run(
    benchmark: str,
    key: str,
    *,
    device: str = "auto",
    protocol: object | None = None,
    sets: Iterable[str] | None = None,
    processes: int | None = None,
    scheduler: str | None = None,
    trust: bool = False,
    compiled: bool = False,
    force: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Run a benchmark with a model, or read its table if it is complete.

    Parameters
    ----------
    benchmark : str
        A name of :data:`helpers.benchmarks.CATALOGUE`.
    key : str
        A potential, as :func:`helpers.potentials.load` takes it.
    device : str
        ``auto``, ``cpu``, ``cuda``, …
    protocol : dataclass, optional
        The benchmark's ``Protocol``; its default if None.
    sets : iterable of str, optional
        Reference sets to run; all that are available if None.
    processes : int, optional
        Worker processes; by default one per core on a CPU, one on a GPU. Through SLURM: jobs.
    scheduler : str, optional
        Compute on a Dask cluster, as :func:`helpers.runner.cluster.connect` takes it: ``local``, an address, a scheduler file or a
        SLURM file.
    trust : bool
        Allow a model file whose checksum is not known.
    compiled : bool
        Compile the network first (:meth:`helpers.potentials.base.GraphPotential.compiled`); worth it for runs of ten minutes and more.
    force : bool
        Compute again what is complete.
    progress : bool
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        The tidy table, as written to ``data/results``.

    Raises
    ------
    RunError
        If the same run is going on in another process, workers died, the scheduler was lost or the disk is full. What is done is kept.
    """
    module = benchmarks.module(benchmark)
    protocol = module.Protocol() if protocol is None else protocol
    if scheduler is not None:
        cluster.check(scheduler, processes)
    # The workers of a cluster may have a GPU where this process has none; here the potential only says what it is.
    potential = potentials.load(key, "cpu" if scheduler and not key.startswith("ase:") else device, trust=trust, compiled=compiled)
    cases = module.cases(protocol, None if sets is None else list(sets))
    with workers(potential.device, 1 if scheduler else processes) as pool:
        cluster_options = {"scheduler": scheduler, "processes": processes, "device": device, "trust": trust} if scheduler else {}
        options = {"compiled": compiled, "force": force, "progress": progress, **cluster_options}
        return run_cases(benchmark, potential, cases, protocol, pool=pool, **options).table


def run_cases(
    benchmark: str,
    potential: Potential,
    cases: Sequence[Case],
    protocol: object | None = None,
    *,
    base: Path | None = None,
    atoms_per_shard: int | None = None,
    limits: Limits | None = None,
    pool: Executor | None = None,
    scheduler: str | None = None,
    processes: int | None = None,
    device: str | None = None,
    trust: bool = False,
    compiled: bool = False,
    force: bool = False,
    progress: bool = True,
) -> Run:
    """Run a benchmark on given cases; what :func:`run` does once it has them.

    Parameters
    ----------
    benchmark : str
    potential : Potential
        Where several processes compute, they load it anew by its key.
    cases : sequence of Case
        All, or some.
    protocol : dataclass, optional
        The benchmark's ``Protocol``; its default if None.
    base : Path, optional
        Folder for ``results`` and ``runs``; by default the data folder. Where it is another one, a complete table of the same run
        in the data folder is used as it is, and nothing is written there.
    atoms_per_shard : int, optional
        Size of the pieces; by default the benchmark's own.
    limits : Limits, optional
        By default there are none.
    pool : Executor, optional
        From :func:`workers`; by default everything is computed in this process.
    scheduler, processes
        A Dask cluster and its number of workers, as for :func:`run`, instead of a pool.
    device : str, optional
        For the workers; by default that of the potential.
    trust : bool
        Workers may load a model file whose checksum is not known.
    compiled : bool
        Workers compile the network, as the potential given here is.
    force : bool
        Compute again what is complete.
    progress : bool
        Show a progress bar.

    Raises
    ------
    RunError
        As for :func:`run`.
    """
    protocol = benchmarks.module(benchmark).Protocol() if protocol is None else protocol
    mark = fingerprint(benchmark, potential, protocol, cases)
    for place in dict.fromkeys((base, None)):
        if not force and (complete := _complete(benchmark, potential.key, mark, place)):
            _clear(_folder(benchmark, potential.key, mark, place))
            return complete
    folder = _folder(benchmark, potential.key, mark, base)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The operating system frees the lock of a killed process.
    lock = FileLock(folder.parent / f"{folder.name}.lock")
    try:
        with lock.acquire(timeout=0):
            if force:
                _clear(folder)
            job = Job(
                benchmark,
                potential.key,
                device or str(potential.device),
                trust,
                protocol,
                potential.describe(),
                _versions(),
                limits or Limits(),
                compiled,
            )
            pieces = shards(cases, atoms_per_shard or getattr(benchmarks.module(benchmark), "ATOMS_PER_SHARD", _ATOMS_PER_SHARD))
            return _run_locked(job, potential, pieces, mark, folder, base, pool, scheduler, processes, progress)
    except Timeout:
        raise RunError(f"{benchmark} with {potential.key} is already running (lock {lock.lock_file}); wait for it, or stop it.") from None


def _folder(benchmark: str, key: str, mark: str, base: Path | None) -> Path:
    return results.runs_dir(base) / benchmark / f"{results.file_name(key)}-{mark[:16]}"


def _complete(benchmark: str, key: str, mark: str, base: Path | None) -> Run | None:
    """Return the table of just this run. One killed between table and provenance leaves a table nothing vouches for."""
    try:
        made = results.provenance(benchmark, key, base)
        table = results.read_table(results.table_path(benchmark, key, base)) if made.get("fingerprint") == mark else None
    except results.ResultsError:
        # Missing or damaged: it is computed again.
        return None
    return None if table is None or len(table) != made["rows"] else Run(table, [], made)


def _is_done(shard: Path) -> bool:
    """Tell whether a shard is there and whole. One that a crash of the machine has damaged is computed again."""
    try:
        return "seconds" in results.read_table(shard).attrs
    except results.ResultsError:
        shard.unlink(missing_ok=True)
        return False


def _run_locked(job, potential, pieces, mark, folder, base, pool, scheduler, processes, progress) -> Run:
    benchmark, key = job.benchmark, job.key
    paths = [folder / f"{number:05d}.parquet" for number in range(len(pieces))]
    todo = [number for number, path in enumerate(paths) if not _is_done(path)]
    # The largest first: one that is begun last would hold up everything.
    todo.sort(key=lambda number: -_n_atoms(pieces[number]))
    took_part = set()
    try:
        total, left = sum(map(len, pieces)), sum(len(pieces[number]) for number in todo)
        with tqdm(total=total, initial=total - left, disable=not progress, unit="case", desc=f"{benchmark} {key}") as bar:
            for number, table in _compute(job, potential, pieces, todo, pool, scheduler, processes, bar.write if progress else None):
                if table is not None:
                    took_part.add(table.attrs["process"])
                    results.write_parquet(table, paths[number])
                    bar.update(len(pieces[number]))

        done = [path.is_file() for path in paths]
        tables = [pd.read_parquet(path) for path, there in zip(paths, done, strict=True) if there]
        computed, missing = (
            [case for piece, there in zip(pieces, done, strict=True) if there is which for case in piece] for which in (True, False)
        )
        made = _provenance(benchmark, potential, job.protocol, computed, mark, tables, took_part)
        table = pd.concat(tables, ignore_index=True) if tables else benchmarks.table([])
        table.attrs = {}
        if not missing:
            results.write(benchmark, key, table, made, base)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(f"the disk is full ({error}). {_kept(paths)} Make room, then give the same command again.") from error
    except (RunError, BrokenProcessPool) as error:
        what = "a process died, perhaps for want of memory (--processes takes fewer)." if isinstance(error, BrokenProcessPool) else error
        raise RunError(f"{what} {_kept(paths)} The same command goes on from there.") from error
    if not missing:
        _clear(folder)
    return Run(table, missing, {"benchmark": benchmark, "model": key, **made})


def _n_atoms(cases: Sequence[Case]) -> int:
    return sum(len(atoms) for case in cases for atoms in case.structures.values())


def _kept(paths: Sequence[Path]) -> str:
    return f"{sum(path.is_file() for path in paths)} of {len(paths)} shards are done and kept."


def _compute(job, potential, pieces, todo, pool, scheduler, processes, tell) -> Iterator[tuple[int, pd.DataFrame | None]]:
    """Compute shards here, in several processes or on a cluster; yield the number and the table of each as it is done."""
    if not todo:
        return
    if scheduler is not None:
        if processes is None and scheduler == "local":
            processes = 1 if potentials.resolve_device(job.device).type == "cuda" else os.cpu_count() or 1
        names = [f"{pieces[number][0].name} to {pieces[number][-1].name}" for number in todo]
        tasks = [(job, pieces[number]) for number in todo]
        for position, table in cluster.each(compute_here, tasks, names, scheduler=scheduler, workers=processes, tell=tell):
            yield todo[position], table
        return
    if pool is None or len(todo) == 1:
        for number in todo:
            yield number, compute_shard(job.benchmark, potential, pieces[number], job.protocol, job.limits)
        return
    jobs = {pool.submit(compute_here, job, pieces[number]): number for number in todo}
    try:
        for done in as_completed(list(jobs)):
            yield jobs.pop(done), done.result()
    finally:
        # After a failure or Ctrl-C nothing that has not begun is begun.
        for waiting in jobs:
            waiting.cancel()


def _clear(folder: Path) -> None:
    """Remove the shards of a run, if there are any."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _provenance(benchmark, potential, protocol, cases, mark, tables, took_part) -> dict[str, object]:
    counts = Counter(case.set for case in cases)
    sources = [name for chosen in counts for name in benchmarks.module(benchmark).SETS[chosen]]
    here = results.device_name(str(potential.device))
    return {
        "fingerprint": mark,
        "potential": potential.describe(),
        "protocol": asdict(protocol),
        "cases": dict(counts),
        "data_sha256": {name: registry.expected_sha256(registry.lookup(name)) for name in sources},
        "rows": sum(len(table) for table in tables),
        "failed_rows": sum(int((table["status"] == "failed").sum()) for table in tables),
        "core_seconds": round(sum(table.attrs["seconds"] for table in tables), 1),
        "processes": max(len(took_part), 1),
        "device": "; ".join(sorted({table.attrs.get("device") or here for table in tables}) or [here]),
        "compiled": any(table.attrs.get("compiled", False) for table in tables),
        "packages": results.package_versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


class LiveCheckError(AssertionError):
    """The code no longer produces the committed numbers."""


def live_check(
    benchmark: str, key: str, *, sets: Iterable[str] | None = None, protocol: object | None = None, limit: int | None = None
) -> pd.DataFrame:
    """Recompute some cases and compare them with the committed table.

    Parameters
    ----------
    benchmark, key : str
    sets : iterable of str, optional
        Sets to recompute; by default the benchmark's ``LIVE`` set, which needs no external file.
    protocol : dataclass, optional
    limit : int, optional
        Recompute at most so many cases of each set, evenly spread.

    Returns
    -------
    pandas.DataFrame
        One row per value, with columns ``value`` (now), ``committed`` and ``difference``.

    Raises
    ------
    LiveCheckError
        If a value differs by more than the benchmark's ``TOLERANCES`` allow, a row is missing, or nothing was compared.
    """
    module = benchmarks.module(benchmark)
    protocol = module.Protocol() if protocol is None else protocol
    chosen = benchmarks.chosen_sets(module.SETS, module.LIVE if sets is None else sets)
    cases = []
    for name in chosen:
        members = module.cases(protocol, [name])
        step = 1 if limit is None else max(1, math.ceil(len(members) / limit))
        cases += members[::step]
    if not cases:
        raise LiveCheckError(f"nothing of {benchmark} was compared: {', '.join(chosen)} has no cases.")
    now = module.run(potentials.load(key), cases, protocol)
    keys = ["set", "case", "property", *[column for column in ROW_KEYS if column in now]]
    committed = results.read(benchmark, key).rename(columns={"value": "committed", "status": "was"})
    committed = committed.loc[committed["set"].isin(chosen), [*keys, "committed", "was"]]
    both = now.merge(committed, on=keys, how="left", validate="one_to_one")
    both["difference"] = both["value"] - both["committed"]
    allowed = both["property"].map(module.TOLERANCES).astype(float)
    wrong = (both["was"] != both["status"]) | (both["difference"].abs() > allowed) | (both["value"].isna() != both["committed"].isna())
    if not wrong.any() and (both["difference"].isna() | allowed.isna()).all():
        raise LiveCheckError(f"nothing of {benchmark} was compared with the table of {key}: {len(both)} rows, none with two values.")
    if wrong.any():
        raise LiveCheckError(
            f"{int(wrong.sum())} of {len(both)} values of {benchmark} differ from the committed table of {key}; "
            f"recompute it (softening run {benchmark} --model {key} --force) or find out what changed:\n"
            + both.loc[wrong, [*keys, "value", "committed", "status", "was"]].head(10).to_string()
        )
    return both
