"""What a process does that computes shards, here or on another machine: it proves that it would compute the same, and computes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from helpers import benchmarks, potentials, results
from helpers.benchmarks import Case
from helpers.potentials import OutOfTimeError, Potential
from helpers.runner.cluster import RunError


@dataclass(frozen=True)
class Limits:
    """How far a run may go."""

    deadline: float | None = None  # time (:func:`time.time`, s) after which nothing more is evaluated; None for no limit
    # A case that breaks the benchmark's code becomes a failed row with the exception as its reason, instead of ending the run.
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
    protocol: Any
    potential: dict[str, object]
    versions: dict[str, str]
    limits: Limits = Limits()
    compiled: str = "off"  # ``off``, ``on``, or ``auto``: as soon as it saves time
    atoms_each: float = 0.0  # atoms of all shards that are left, over the number of processes


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


_pace: dict[tuple[str, str], tuple[float, int]] = {}  # of each benchmark and potential: processor time and atoms in this process


def compute_job(job: Job, potential: Potential, cases: Sequence[Case]) -> pd.DataFrame | None:
    """Compute a shard of a job as :func:`compute_shard` does, compiled where ``auto`` finds that it saves time.

    The first shard of a process is the sample. If what is left would at its pace take so long that the compiled network saves more than
    compiling takes, the next ones are compiled; ``attrs["compiling"]`` says why, or why not.
    """
    place, n_atoms, why = (job.benchmark, job.key), sum(len(atoms) for case in cases for atoms in case.structures.values()), ""
    spent, done = _pace.get(place, (0.0, 0))
    if job.compiled == "auto" and done:
        potential, why = potential.compiled_if_saves(spent / done * max(job.atoms_each - done, 0.0))
    start = time.process_time()
    table = compute_shard(job.benchmark, potential, cases, job.protocol, job.limits)
    if table is not None:
        table.attrs["compiling"] = why
        if not table.attrs["compiled"]:
            _pace[place] = spent + time.process_time() - start, done + n_atoms
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

    RunError if this worker would compute something else than the process that asked.
    """
    here, wanted = versions(), job.versions
    different = [f"{name} {here.get(name, 'missing')} instead of {wanted[name]}" for name in wanted if here.get(name) != wanted[name]]
    if different:
        raise RunError(
            f"the worker on {platform.node()} has {', '.join(different)}. "
            "Let client and workers use one environment and one copy of the project, then restart the workers."
        )
    if not busy.acquire(blocking=False):
        raise RunError(f"the worker on {platform.node()} has several threads, and a potential serves one. Start it with --nthreads 1.")
    try:
        return compute_job(job, _same_potential(job), cases)
    finally:
        busy.release()


busy = threading.Lock()  # held while this process computes


def _same_potential(job: Job) -> Potential:
    """Load the potential of a job and make sure that it is the one meant."""
    try:
        potential = potential_here(job.key, job.device, job.trust, job.compiled == "on")
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
def potential_here(key: str, device: str, trust: bool, compiled: bool) -> Potential:
    """Load the potential once per process; one thread each, because the processes fill the cores."""
    torch.set_num_threads(1)
    return potentials.load(key, device, trust=trust, compiled=compiled)


@functools.cache
def versions() -> dict[str, str]:
    """Return the software that decides a result: packages (without the build's tag, such as +cpu) and the code of the helpers."""
    code = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        code.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    packages = results.package_versions() | {name: version(name) for name in ("pandas", "pyarrow")}
    packages = {name: found.split("+")[0] for name, found in packages.items()}
    return {**packages, "python": "{}.{}".format(*sys.version_info), "helpers": f"(source {code.hexdigest()[:12]})"}
