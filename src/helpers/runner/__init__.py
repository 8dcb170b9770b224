"""Run a benchmark: cases into shards, shards over processes or a cluster, shards into one table with its provenance.

Whoever computes a shard, this process writes it. So nothing needs a common file system, there is one writer and nothing is written
twice, and a worker that dies leaves no half file. The price: a shard that is done but not yet written is lost with this process.

A run can be killed at any moment. The same command then finishes what is missing and yields the same table;
once the table is complete, the same command changes nothing. Shards are named by a fingerprint of everything
that decides their content (weights, protocol, cases), so results of different settings never mix.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from helpers import benchmarks, potentials, registry, results
from helpers.benchmarks import Case
from helpers.potentials import Potential
from helpers.runner import cluster
from helpers.runner.cluster import RunError
from helpers.runner.worker import Job, Limits, compute_here, compute_job, compute_shard, keep_memory, versions

# A shard is the unit of loss and of parallel work: about half a minute of CHGNet on one core where each structure is evaluated a few
# times. A benchmark that evaluates its structures more often has an ATOMS_PER_SHARD of its own.
ATOMS_PER_SHARD = 1500


def fingerprint(benchmark: str, potential: Potential, protocol: Any, cases: Sequence[Case]) -> str:
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


def shards(cases: Sequence[Case], atoms_per_shard: int = ATOMS_PER_SHARD) -> list[list[Case]]:
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


@contextmanager
def workers(device: str | torch.device, processes: int | None = None) -> Iterator[Executor | None]:
    """Yield processes, by default one per core on a CPU, one on a GPU, for several runs; None where this one is enough."""
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
class Where:
    """Where and how shards are computed; by default in this process."""

    pool: Executor | None = None  # processes of this machine, from :func:`workers`
    scheduler: str | None = None  # a Dask cluster instead, as for :func:`run`
    processes: int | None = None  # its number of workers
    device: str | None = None  # for the workers; by default that of the potential
    trust: bool = False  # workers may load a model file whose checksum is not known
    compiled: str = "off"  # workers compile the network: off; on, as the potential that is given is; or auto
    atoms_per_shard: int | None = None  # size of the pieces; by default the benchmark's own


@dataclass(frozen=True)
class Run:
    """What :func:`run_cases` computed or found."""

    table: pd.DataFrame  # tidy
    missing: list[Case]  # those for which there was no time; the same call goes on with them
    made: dict[str, object]  # provenance, as :func:`helpers.results.provenance` reads it


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
    compiled: str = "auto",
    force: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Run a benchmark with a model, or read its table if it is complete; return the tidy table, as written to ``data/results``.

    ``benchmark``, ``key``: a name of :data:`helpers.benchmarks.CATALOGUE`; a potential, as :func:`helpers.potentials.load` takes it.
    ``protocol``, ``sets``: the benchmark's ``Protocol``, its default if None; the reference sets to run, all that are available if None.
    ``processes``: worker processes; by default one per core on a CPU, one on a GPU. Through SLURM: jobs.
    ``scheduler``: compute on a Dask cluster, as :func:`helpers.runner.cluster.connect` takes it: ``local``, an address, a scheduler file or
        a SLURM file.
    ``trust``, ``force``: allow a model file whose checksum is not known; compute again what is complete.
    ``compiled`` ({"off", "on", "auto"}): compile the network (:meth:`helpers.potentials.base.GraphPotential.compiled`): not; first; or as
        soon as the pace of the first shards shows that it saves time.

    RunError if the same run is going on in another process, workers died, the scheduler was lost or the disk is full. What is done is kept.
    """
    module = benchmarks.module(benchmark)
    protocol = module.Protocol() if protocol is None else protocol
    if scheduler is not None:
        cluster.check(scheduler, processes)
    # The workers of a cluster may have a GPU where this process has none; here the potential only says what it is.
    potential = potentials.load(key, "cpu" if scheduler and not key.startswith("ase:") else device, trust=trust, compiled=compiled == "on")
    cases = module.cases(protocol, None if sets is None else list(sets))
    with workers(potential.device, 1 if scheduler else processes) as pool:
        where = Where(pool, scheduler, processes, device if scheduler else None, trust, compiled)
        return run_cases(benchmark, potential, cases, protocol, where=where, force=force, progress=progress).table


def run_cases(
    benchmark: str,
    potential: Potential,
    cases: Sequence[Case],
    protocol: object | None = None,
    *,
    where: Where | None = None,
    limits: Limits | None = None,
    base: Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> Run:
    """Run a benchmark on given cases, all or some; what :func:`run`, whose arguments and errors it shares, does once it has them.

    Where several processes compute, they load the potential anew by its key; by default everything is computed in this process, without
    limits. ``base`` is the folder for ``results`` and ``runs``; by default the data folder. Where it is another one, a complete table of
    the same run in the data folder is used as it is, and nothing is written there.
    """
    module, where = benchmarks.module(benchmark), where or Where()
    protocol = module.Protocol() if protocol is None else protocol
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
                where.device or str(potential.device),
                where.trust,
                protocol,
                potential.describe(),
                versions(),
                limits or Limits(),
                where.compiled,
            )
            pieces = shards(cases, where.atoms_per_shard or getattr(module, "ATOMS_PER_SHARD", ATOMS_PER_SHARD))
            return _run_locked(_Plan(job, potential, pieces, mark, folder, base), where, progress)
    except Timeout:
        raise RunError(f"{benchmark} with {potential.key} is already running (lock {lock.lock_file}); wait for it, or stop it.") from None


@dataclass(frozen=True)
class _Plan:
    """One run: what is asked, in which pieces, and where they are kept until its table is complete."""

    job: Job
    potential: Potential
    pieces: list[list[Case]]
    mark: str
    folder: Path
    base: Path | None


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


def _run_locked(plan: _Plan, where: Where, progress: bool) -> Run:
    benchmark, key, pieces = plan.job.benchmark, plan.job.key, plan.pieces
    paths = [plan.folder / f"{number:05d}.parquet" for number in range(len(pieces))]
    todo = [number for number, path in enumerate(paths) if not _is_done(path)]
    # The largest first: one that is begun last would hold up everything.
    todo.sort(key=lambda number: -_n_atoms(pieces[number]))
    took_part, told = set(), set()
    try:
        total, left = sum(map(len, pieces)), sum(len(pieces[number]) for number in todo)
        with tqdm(total=total, initial=total - left, disable=not progress, unit="case", desc=f"{benchmark} {key}") as bar:
            for number, table in _compute(plan, todo, where, bar.write if progress else None):
                if table is not None:
                    took_part.add(table.attrs["process"])
                    if progress and (why := table.attrs.get("compiling")) and (how := table.attrs["compiled"]) not in told:
                        told.add(how)
                        bar.write(f"{'' if how else 'not '}compiled: {why}")
                    results.write_parquet(table, paths[number])
                    bar.update(len(pieces[number]))

        done = [path.is_file() for path in paths]
        tables = [pd.read_parquet(path) for path, there in zip(paths, done, strict=True) if there]
        computed, missing = (
            [case for piece, there in zip(pieces, done, strict=True) if there is which for case in piece] for which in (True, False)
        )
        made = _provenance(plan, computed, tables, took_part)
        table = pd.concat(tables, ignore_index=True) if tables else benchmarks.table([])
        table.attrs = {}
        if not missing:
            results.write(benchmark, key, table, made, plan.base, keys=benchmarks.module(benchmark).KEYS)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(f"the disk is full ({error}). {_kept(paths)} Make room, then give the same command again.") from error
    except (RunError, BrokenProcessPool) as error:
        what = "a process died, perhaps for want of memory (--processes takes fewer)." if isinstance(error, BrokenProcessPool) else error
        raise RunError(f"{what} {_kept(paths)} The same command goes on from there.") from error
    if not missing:
        _clear(plan.folder)
    return Run(table, missing, {"benchmark": benchmark, "model": key, **made})


def _n_atoms(cases: Sequence[Case]) -> int:
    return sum(len(atoms) for case in cases for atoms in case.structures.values())


def _kept(paths: Sequence[Path]) -> str:
    return f"{sum(path.is_file() for path in paths)} of {len(paths)} shards are done and kept."


def _compute(
    plan: _Plan, todo: Sequence[int], where: Where, tell: Callable[[str], None] | None
) -> Iterator[tuple[int, pd.DataFrame | None]]:
    """Compute shards here, in several processes or on a cluster; yield the number and the table of each as it is done."""
    if not todo:
        return
    pieces, pool = plan.pieces, where.pool
    # How many share the work is not known of every cluster; then nothing is compiled.
    many = math.inf if where.scheduler not in (None, "local") else os.cpu_count() or 1
    at_once = where.processes or (1 if pool is None and where.scheduler is None else many)
    job = replace(plan.job, atoms_each=sum(_n_atoms(pieces[number]) for number in todo) / at_once)
    if where.scheduler is not None:
        processes = where.processes
        if processes is None and where.scheduler == "local":
            processes = 1 if potentials.resolve_device(job.device).type == "cuda" else os.cpu_count() or 1
        names = [f"{pieces[number][0].name} to {pieces[number][-1].name}" for number in todo]
        tasks = [(job, pieces[number]) for number in todo]
        for position, table in cluster.each(compute_here, tasks, names, scheduler=where.scheduler, workers=processes, tell=tell):
            yield todo[position], table
        return
    if pool is None or len(todo) == 1:
        for number in todo:
            yield number, compute_job(job, plan.potential, pieces[number])
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


def _provenance(plan: _Plan, cases: Sequence[Case], tables: Sequence[pd.DataFrame], took_part: set[str]) -> dict[str, object]:
    counts = Counter(case.set for case in cases)
    sources = [name for chosen in counts for name in benchmarks.module(plan.job.benchmark).SETS[chosen]]
    here = results.device_name(str(plan.potential.device))
    return {
        "fingerprint": plan.mark,
        "potential": plan.job.potential,
        "protocol": asdict(plan.job.protocol),
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
    """Recompute some cases and compare them with the committed table: ``value`` (now), ``committed`` and ``difference``, row by row.

    Sets are by default the benchmark's ``LIVE`` set, which needs no external file; at most ``limit`` cases of each, evenly spread.
    LiveCheckError if a value differs by more than the benchmark's ``TOLERANCES`` allow, a row is missing, or nothing was compared.
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
    keys = ["set", "case", "property", *[column for column in module.KEYS if column in now]]
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
