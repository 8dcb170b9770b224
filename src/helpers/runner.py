"""Run a benchmark: cases into shards, shards over processes, shards into one table with its provenance.

A run can be killed at any moment. The same command then finishes what is missing and yields the same table;
once the table is complete, the same command changes nothing. Shards are named by a fingerprint of everything
that decides their content (weights, protocol, cases), so results of different settings never mix.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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

# A shard is the unit of loss and of parallel work: about half a minute of CHGNet on one core where each structure is evaluated a few
# times. A benchmark that evaluates its structures more often has an ATOMS_PER_SHARD of its own.
_ATOMS_PER_SHARD = 1500


class RunError(Exception):
    """A run cannot go on as asked."""


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
ROW_KEYS = (
    "stage",
    "held_out",
    "epoch",
    "frame",
    "atom",
    "component",
    "displacement",
    "quantile",
    "q",
    "branch",
    "frequency_thz",
    "image",
)

_worker_potential: Potential | None = None


def _start_worker(key: str, device: str, trust: bool) -> None:
    """Load the potential once per process; one thread each, because the processes fill the cores."""
    global _worker_potential
    torch.set_num_threads(1)
    _worker_potential = potentials.load(key, device, trust=trust)


def _run_in_worker(benchmark: str, cases: list[Case], protocol: object, path: Path, limits: Limits) -> bool:
    return _run_shard(benchmark, _worker_potential, cases, protocol, path, limits)


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


def _run_shard(benchmark: str, potential: Potential, cases: list[Case], protocol: object, path: Path, limits: Limits) -> bool:
    """Compute one shard and write it, with the seconds it took; return False if the time did not suffice."""
    start = time.perf_counter()
    if limits.deadline is not None and time.time() > limits.deadline:
        return False
    potential.deadline = limits.deadline
    try:
        table = _table(benchmark, potential, cases, protocol, limits.keep_going)
    except OutOfTimeError:
        return False
    finally:
        potential.deadline = None
    table.attrs = {"seconds": time.perf_counter() - start}
    results.write_parquet(table, path)
    return True


def _table(benchmark: str, potential: Potential, cases: list[Case], protocol: object, keep_going: bool) -> pd.DataFrame:
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


@contextmanager
def workers(key: str, device: str | torch.device, trust: bool = False, processes: int | None = None) -> Iterator[Executor | None]:
    """Yield processes that hold the potential, for several runs; None where one is enough, which is then this one.

    Parameters
    ----------
    key, device, trust
        As for :func:`helpers.potentials.load`.
    processes : int, optional
        By default one per core on a CPU, one on a GPU.
    """
    number = processes or (1 if torch.device(device).type == "cuda" else os.cpu_count() or 1)
    if number == 1:
        yield None
        return
    # A forked PyTorch can hang; a spawned process starts clean.
    start = {"mp_context": get_context("spawn"), "initializer": _start_worker, "initargs": (key, str(device), trust)}
    with ProcessPoolExecutor(number, **start) as pool:
        yield pool


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
    trust: bool = False,
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
        Worker processes; by default one per core on a CPU, one on a GPU.
    trust : bool
        Allow a model file whose checksum is not known.
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
        If the same run is going on in another process.
    """
    module = benchmarks.module(benchmark)
    protocol = module.Protocol() if protocol is None else protocol
    potential = potentials.load(key, device, trust=trust)
    cases = module.cases(protocol, None if sets is None else list(sets))
    with workers(key, potential.device, trust, processes) as pool:
        return run_cases(benchmark, potential, cases, protocol, pool=pool, force=force, progress=progress).table


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
    force: bool = False,
    progress: bool = True,
) -> Run:
    """Run a benchmark on given cases; what :func:`run` does once it has them.

    Parameters
    ----------
    benchmark : str
    potential : Potential
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
    force : bool
        Compute again what is complete.
    progress : bool
        Show a progress bar.

    Raises
    ------
    RunError
        If the same run is going on in another process.
    """
    protocol = benchmarks.module(benchmark).Protocol() if protocol is None else protocol
    mark = fingerprint(benchmark, potential, protocol, cases)
    for place in dict.fromkeys((base, None)):
        if not force and _is_complete(benchmark, potential.key, mark, place):
            _clear(_folder(benchmark, potential.key, mark, place))
            table = pd.read_parquet(results.table_path(benchmark, potential.key, place))
            return Run(table, [], results.provenance(benchmark, potential.key, place))
    folder = _folder(benchmark, potential.key, mark, base)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The operating system frees the lock of a killed process.
    lock = FileLock(folder.parent / f"{folder.name}.lock")
    try:
        with lock.acquire(timeout=0):
            if force:
                _clear(folder)
            pieces = shards(cases, atoms_per_shard or getattr(benchmarks.module(benchmark), "ATOMS_PER_SHARD", _ATOMS_PER_SHARD))
            return _run_locked(benchmark, potential, protocol, pieces, mark, folder, base, limits or Limits(), pool, progress)
    except Timeout:
        raise RunError(f"{benchmark} with {potential.key} is already running (lock {lock.lock_file}); wait for it, or stop it.") from None


def _folder(benchmark: str, key: str, mark: str, base: Path | None) -> Path:
    return results.runs_dir(base) / benchmark / f"{results.file_name(key)}-{mark[:16]}"


def _is_complete(benchmark: str, key: str, mark: str, base: Path | None) -> bool:
    if not results.table_path(benchmark, key, base).is_file():
        return False
    return results.provenance(benchmark, key, base).get("fingerprint") == mark


def _run_locked(benchmark, potential, protocol, pieces, mark, folder, base, limits, pool, progress) -> Run:
    paths = [folder / f"{number:05d}.parquet" for number in range(len(pieces))]
    todo = [(piece, path) for piece, path in zip(pieces, paths, strict=True) if not path.is_file()]
    cases = [case for piece in pieces for case in piece]
    with tqdm(total=len(cases), disable=not progress, unit="case", desc=f"{benchmark} {potential.key}") as bar:
        bar.update(len(cases) - sum(len(piece) for piece, _ in todo))
        for n_cases in _compute(benchmark, potential, protocol, todo, limits, pool):
            bar.update(n_cases)

    done = [path.is_file() for path in paths]
    tables = [pd.read_parquet(path) for path, there in zip(paths, done, strict=True) if there]
    seconds = sum(table.attrs["seconds"] for table in tables)
    table = pd.concat(tables, ignore_index=True) if tables else benchmarks.table([])
    table.attrs = {}
    missing = [case for piece, there in zip(pieces, done, strict=True) if not there for case in piece]
    computed = [case for piece, there in zip(pieces, done, strict=True) if there for case in piece]
    made = _provenance(benchmark, potential, protocol, computed, mark, seconds, 1 if pool is None else pool._max_workers, table)
    if not missing:
        results.write(benchmark, potential.key, table, made, base)
        _clear(folder)
    return Run(table, missing, {"benchmark": benchmark, "model": potential.key, **made})


def _compute(benchmark, potential, protocol, todo, limits, pool) -> Iterator[int]:
    """Compute shards, here or in several processes; yield the number of cases of each as it is done."""
    if pool is None or len(todo) == 1:
        for piece, path in todo:
            if _run_shard(benchmark, potential, piece, protocol, path, limits):
                yield len(piece)
        return
    jobs = {pool.submit(_run_in_worker, benchmark, piece, protocol, path, limits): len(piece) for piece, path in todo}
    try:
        for job in as_completed(jobs):
            if job.result():
                yield jobs[job]
    finally:
        # After a failure or Ctrl-C nothing that has not begun is begun.
        for job in jobs:
            job.cancel()


def _clear(folder: Path) -> None:
    """Remove the shards of a run, if there are any."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _provenance(benchmark, potential, protocol, cases, mark, seconds, n_workers, table) -> dict[str, object]:
    counts = Counter(case.set for case in cases)
    sources = [name for chosen in counts for name in benchmarks.module(benchmark).SETS[chosen]]
    return {
        "fingerprint": mark,
        "potential": potential.describe(),
        "protocol": asdict(protocol),
        "cases": dict(counts),
        "data_sha256": {name: registry.expected_sha256(registry.lookup(name)) for name in sources},
        "rows": len(table),
        "failed_rows": int((table["status"] == "failed").sum()),
        "core_seconds": round(seconds, 1),
        "processes": n_workers,
        "device": results.device_name(str(potential.device)),
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
        If a value differs by more than the benchmark's ``TOLERANCES`` allow, or a row is missing.
    """
    module = benchmarks.module(benchmark)
    protocol = module.Protocol() if protocol is None else protocol
    chosen = [module.LIVE] if sets is None else list(sets)
    cases = []
    for name in chosen:
        members = module.cases(protocol, [name])
        step = 1 if limit is None else max(1, math.ceil(len(members) / limit))
        cases += members[::step]
    now = module.run(potentials.load(key), cases, protocol)
    keys = ["set", "case", "property", *[column for column in ROW_KEYS if column in now]]
    committed = results.read(benchmark, key)
    committed = committed.loc[committed["set"].isin(chosen), [*keys, "value", "status"]]
    committed = committed.rename(columns={"value": "committed", "status": "was"})
    both = now.merge(committed, on=keys, how="left", validate="one_to_one")
    both["difference"] = both["value"] - both["committed"]
    allowed = both["property"].map(module.TOLERANCES).astype(float)
    wrong = (both["was"] != both["status"]) | (both["difference"].abs() > allowed)
    if wrong.any():
        raise LiveCheckError(
            f"{int(wrong.sum())} of {len(both)} values of {benchmark} differ from the committed table of {key}; "
            f"recompute it (softening run {benchmark} --model {key} --force) or find out what changed:\n"
            + both.loc[wrong, [*keys, "value", "committed", "status", "was"]].head(10).to_string()
        )
    return both
