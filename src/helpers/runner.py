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
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from helpers import benchmarks, potentials, registry, results
from helpers.benchmarks import Case
from helpers.potentials import Potential

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
_ROW_KEYS = (
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


def _run_in_worker(benchmark: str, cases: list[Case], protocol: object, path: Path) -> None:
    _run_shard(benchmark, _worker_potential, cases, protocol, path)


def _run_shard(benchmark: str, potential: Potential, cases: list[Case], protocol: object, path: Path) -> None:
    """Compute one shard and write it, with the seconds it took."""
    start = time.perf_counter()
    table = benchmarks.module(benchmark).run(potential, cases, protocol)
    table.attrs = {"seconds": time.perf_counter() - start}
    results.write_parquet(table, path)


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
    chosen = None if sets is None else list(sets)
    cases = module.cases(protocol, chosen)
    mark = fingerprint(benchmark, potential, protocol, cases)

    folder = results.runs_dir() / benchmark / f"{results.file_name(key)}-{mark[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The operating system frees the lock of a killed process.
    lock = FileLock(folder.parent / f"{folder.name}.lock")
    try:
        with lock.acquire(timeout=0):
            return _run_locked(benchmark, key, potential, protocol, cases, mark, folder, processes, trust, force, progress)
    except Timeout:
        raise RunError(f"{benchmark} with {key} is already running (lock {lock.lock_file}); wait for it, or stop it.") from None


def _run_locked(benchmark, key, potential, protocol, cases, mark, folder, processes, trust, force, progress) -> pd.DataFrame:
    final = results.table_path(benchmark, key)
    if force:
        _clear(folder)
    elif final.is_file() and results.provenance(benchmark, key).get("fingerprint") == mark:
        _clear(folder)
        return results.read(benchmark, key)

    pieces = shards(cases, getattr(benchmarks.module(benchmark), "ATOMS_PER_SHARD", _ATOMS_PER_SHARD))
    paths = [folder / f"{number:05d}.parquet" for number in range(len(pieces))]
    todo = [(piece, path) for piece, path in zip(pieces, paths, strict=True) if not path.is_file()]
    workers = min(processes or (1 if potential.device.type == "cuda" else os.cpu_count() or 1), max(len(todo), 1))
    with tqdm(total=len(cases), disable=not progress, unit="case", desc=f"{benchmark} {key}") as bar:
        bar.update(len(cases) - sum(len(piece) for piece, _ in todo))
        for n_cases in _compute(benchmark, key, potential, protocol, todo, workers, trust):
            bar.update(n_cases)

    tables = [pd.read_parquet(path) for path in paths]
    seconds = sum(table.attrs["seconds"] for table in tables)
    table = pd.concat(tables, ignore_index=True)
    table.attrs = {}
    results.write(benchmark, key, table, _provenance(benchmark, potential, protocol, cases, mark, seconds, workers, table))
    _clear(folder)
    return table


def _compute(benchmark, key, potential, protocol, todo, workers, trust) -> Iterator[int]:
    """Compute shards, here or in several processes; yield the number of cases of each as it is done."""
    if workers == 1:
        for piece, path in todo:
            _run_shard(benchmark, potential, piece, protocol, path)
            yield len(piece)
        return
    # A forked PyTorch can hang; a spawned process starts clean.
    start = {"mp_context": get_context("spawn"), "initializer": _start_worker, "initargs": (key, str(potential.device), trust)}
    with ProcessPoolExecutor(workers, **start) as pool:
        jobs = {pool.submit(_run_in_worker, benchmark, piece, protocol, path): len(piece) for piece, path in todo}
        for job in as_completed(jobs):
            job.result()
            yield jobs[job]


def _clear(folder: Path) -> None:
    """Remove the shards of a run, if there are any."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _provenance(benchmark, potential, protocol, cases, mark, seconds, workers, table) -> dict[str, object]:
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
        "processes": workers,
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
    keys = ["set", "case", "property", *[column for column in _ROW_KEYS if column in now]]
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
