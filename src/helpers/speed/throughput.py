"""How fast a potential and this machinery are, measured; and what that means for many structures, projected.

:func:`measure` takes processor time, not time on the clock, so that other work on the machine hardly matters. :func:`projection` turns the
measured table into the time that N structures take on P workers. What it assumes beyond the table are its arguments.
"""

from __future__ import annotations

import datetime
import math
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pandas as pd
import torch
from ase.build import bulk
from numpy.polynomial import Polynomial

from helpers import benchmarks, potentials, results
from helpers.benchmarks import Case
from helpers.runner import cluster
from helpers.speed import roofline

NAME = "throughput"


@dataclass(frozen=True)
class Protocol:
    """What is measured. Rocksalt cells, all atoms displaced at random, as a typical inorganic density."""

    formula: str = "NaCl"
    lattice_constant_a: float = 5.64
    repeats: tuple[int, ...] = (1, 2, 3)  # 8, 64 and 216 atoms
    displacement_a: float = 0.05
    atoms_per_shard: tuple[int, ...] = (1500, 15000)  # two sizes, to tell the cost of a shard from that of its structures
    n_shards: tuple[int, ...] = (200, 50)
    n_repetitions: int = 3  # the fastest counts: what disturbs only ever adds
    rows_per_structure: int = 2
    seed: int = 0


def structures(protocol: Protocol, repeat: int, n: int) -> list[ase.Atoms]:
    """Return n distorted rocksalt cells of ``repeat`` cubed conventional cells."""
    rng = np.random.default_rng(protocol.seed)
    cell = bulk(protocol.formula, "rocksalt", a=protocol.lattice_constant_a, cubic=True) * (repeat, repeat, repeat)
    made = [cell.copy() for _ in range(n)]
    for atoms in made:
        atoms.positions += rng.normal(0.0, protocol.displacement_a, atoms.positions.shape)
    return made


def measure(key: str = "chgnet-0.3.0", protocol: Protocol | None = None) -> pd.DataFrame:
    """Measure a graph network on one core, and what a shard costs the process that hands it out and writes it.

    Returns a tidy table (``property``, ``value``, ``unit``); ``set`` is ``structure`` (then ``n_atoms`` says of what size) or ``shard``.
    Times are processor time of the calling process. With Dask the scheduler of a cluster on this machine lives in that process, so
    ``dispatch_dask`` holds scheduler and client, as they add up where one machine is both.
    """
    protocol = protocol or Protocol()
    start = time_to_start(key)
    sizes = zip(protocol.atoms_per_shard, protocol.n_shards, strict=True)
    rows = [row for n_atoms, n in sizes for row in _of_shards(key, protocol, n_atoms, n, start)]
    return pd.concat([measure_structures(key, protocol), benchmarks.table(rows)], ignore_index=True)


def measure_structures(key: str = "chgnet-0.3.0", protocol: Protocol | None = None) -> pd.DataFrame:
    """Measure only what structures cost on one thread: ``evaluation`` in all, its parts ``graph``, and of that ``neighbours``."""
    protocol, rows = protocol or Protocol(), []
    torch.set_num_threads(1)
    potential = potentials.load(key, "cpu")
    for repeat in protocol.repeats:
        n_atoms = len(structures(protocol, repeat, 1)[0])
        n = max(1, round(protocol.atoms_per_shard[0] / n_atoms))
        taken = roofline.least_seconds(roofline.parts(potential, structures(protocol, repeat, n)), protocol.n_repetitions)
        taken["graph_time"] += taken["neighbours_time"]
        for name in ("evaluation", "neighbours", "graph"):
            rows.append(_row(key, protocol, "structure", n_atoms, n_atoms, name, taken[f"{name}_time"] / n, "s"))
    return benchmarks.table(rows)


def _row(key: str, protocol: Protocol, kind: str, size: int, n_atoms: int, name: str, value: float, unit: str) -> dict[str, object]:
    label = f"{protocol.formula}/{size}" if kind == "structure" else f"{size} structures"
    case = Case(name=label, set=kind, material=protocol.formula, structures={})
    return benchmarks.row(key, case, name, float(value), math.nan, unit, n_atoms=n_atoms)


def _shard(protocol: Protocol, atoms_per_shard: int) -> tuple[list[Case], pd.DataFrame]:
    """Return the cases of a shard of the middle size, and a table as a benchmark would make of them."""
    repeat = protocol.repeats[len(protocol.repeats) // 2]
    n_atoms = len(structures(protocol, repeat, 1)[0])
    frames = structures(protocol, repeat, max(1, round(atoms_per_shard / n_atoms)))
    cases = [Case(f"frame/{i}", "frames", f"material-{i}", {"frame": atoms}, {"energy": 0.0}) for i, atoms in enumerate(frames)]
    values = np.random.default_rng(protocol.seed).normal(size=protocol.rows_per_structure)
    table = benchmarks.table(
        benchmarks.row("model", case, f"property_{k}", value, value, "eV") for case in cases for k, value in enumerate(values)
    )
    table.attrs = {"seconds": 0.0, "process": "", "device": ""}
    return cases, table


def _answer(cases: Sequence[Case], table: pd.DataFrame) -> pd.DataFrame:
    """Stand for the computation of a shard; takes no time."""
    return table


def time_to_start(key: str) -> float:
    """Return the processor time of a process that does nothing but get ready to compute, seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys; from helpers import runner; runner.potentials.load(sys.argv[1], 'cpu')"
    subprocess.run([sys.executable, "-c", code, key], check=True)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _spent(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _of_shards(key: str, protocol: Protocol, atoms_per_shard: int, n: int, start: float) -> list[dict[str, object]]:
    cases, table = _shard(protocol, atoms_per_shard)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.parquet"
        written = _spent(lambda: [results.write_parquet(table, path) for _ in range(n)]) / n
        joining = _spent(lambda: pd.concat([pd.read_parquet(path) for _ in range(n)], ignore_index=True)) / n
        size, joined = path.stat().st_size, pd.read_parquet(path).memory_usage(deep=True).sum()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=cluster.end_with_parent) as pool:
        pool.submit(_answer, cases, table).result()
        by_processes = _spent(lambda: list(pool.map(_answer, [cases] * n, [table] * n))) / n
    # The cluster is made and ended once with few calls and once with many; the difference is the calls.
    few, many = (
        _spent(lambda m=m: list(cluster.each(_answer, [(cases, table)] * m, ["shard"] * m, scheduler="local", workers=1)))
        for m in (1, 1 + n)
    )
    measured = [
        ("start", start, "s"),
        ("dispatch_processes", by_processes, "s"),
        ("dispatch_dask", max(0.0, (many - few) / n), "s"),
        ("write", written, "s"),
        ("join", joining, "s"),
        ("structures", len(cases), ""),
        ("bytes_sent", len(pickle.dumps(cases)), "B"),
        ("bytes_received", len(pickle.dumps(table)), "B"),
        ("bytes_on_disk", size, "B"),
        ("bytes_joined", joined, "B"),
    ]
    return [_row(key, protocol, "shard", len(cases), len(cases[0].structures["frame"]), *one) for one in measured]


def record(key: str = "chgnet-0.3.0", protocol: Protocol | None = None) -> Path:
    """Measure, and write the table with its provenance to ``data/results/throughput``."""
    protocol = protocol or Protocol()
    start = time.process_time()
    table = measure(key, protocol)
    seconds = round(time.process_time() - start, 1)
    made = provenance(table, protocol, potentials.load(key, "cpu").describe(), core_seconds=seconds)
    return results.write(NAME, key, table, made, keys=("n_atoms",))


def provenance(table: pd.DataFrame, protocol: Any, about: Mapping[str, object], device: str = "cpu", **more: object) -> dict[str, Any]:
    """Return how a table of times was made: by which protocol (a dataclass), with which potential, where and when, and what else."""
    return {
        "potential": about,
        "protocol": asdict(protocol),
        "cases": {str(name): int(number) for name, number in table.groupby("set")["case"].nunique().items()},
        "data_sha256": {},
        "rows": len(table),
        "failed_rows": int((table["status"] == "failed").sum()),
        "processes": 1,
        "device": results.device_name(device),
        "packages": results.package_versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **more,
    }


def line(m: Sequence[float], seconds: Sequence[float]) -> Polynomial:
    """Return the cost of a shard of m structures, s, as the straight line through two measurements; noise must not make a part negative."""
    each = max(0.0, (seconds[1] - seconds[0]) / (m[1] - m[0]))
    return Polynomial([max(0.0, seconds[0] - each * m[0]), each])


@dataclass(frozen=True)
class Costs:
    """The measured costs that a projection needs. Seconds of one core."""

    n_atoms: int  # size of the structures
    # Per structure: the neighbour list, which stays on the CPU, and all else, which goes to the accelerator.
    neighbours: float
    network: float
    start: float  # until a worker has imported the code and loaded the potential
    # Per shard, in the one process that hands out and writes. The first two pass while workers compute, the last at the end.
    dispatch: Polynomial
    write: Polynomial
    join: Polynomial
    structures_per_shard: int  # as the runner cuts them by default
    # Per structure: as it is sent to a worker, in the file, and in memory when all shards are joined.
    bytes_case: float
    bytes_on_disk: float
    bytes_joined: float

    @classmethod
    def from_table(cls, table: pd.DataFrame, dispatch: str = "dispatch_dask") -> Costs:
        """Take the costs from a table of :func:`measure`, for structures of the size that its shards have."""
        shard = table[table["set"] == "shard"].pivot_table(index="case", columns="property", values="value").sort_values("structures")
        size = int(table.loc[table["set"] == "shard", "n_atoms"].iloc[0])
        one = table[(table["set"] == "structure") & (table["n_atoms"] == size)].set_index("property")["value"]
        m, small = shard["structures"].tolist(), shard.iloc[0]
        lines = [line(m, shard[column].tolist()) for column in (dispatch, "write", "join")]
        per_structure = small[["bytes_sent", "bytes_on_disk", "bytes_joined"]] / m[0]
        return cls(
            n_atoms=size,
            neighbours=one["neighbours"],
            network=one["evaluation"] - one["neighbours"],
            start=small["start"],
            dispatch=lines[0],
            write=lines[1],
            join=lines[2],
            structures_per_shard=int(m[0]),
            bytes_case=per_structure["bytes_sent"],
            bytes_on_disk=per_structure["bytes_on_disk"],
            bytes_joined=per_structure["bytes_joined"],
        )


def projection(
    costs: Costs,
    n_structures: float,
    workers: int,
    *,
    evaluations: int = 1,
    factor: float = 1.0,
    straggler: float = 1.0,
    larger: float = 1.0,
) -> dict[str, float | str]:
    """Project the time that N structures take on P workers, from measured costs.

    With the structures in S = N/m shards and t seconds per structure on a worker,

    wall = b + max(N t / P, S (d + w)) + σ m t + S j,

    where b is the start of a worker, d the dispatch of a shard, w its writing, j its joining and σ the straggler ratio. The tail σ m t is
    what the last shard can add at most; where no worker has a second shard it is there already, and only its excess (σ − 1) counts.

    ``evaluations``: how often each structure is evaluated: 1 for static forces, a hundred or so for a relaxation.
    ``factor``: how many times faster than one core a worker's accelerator runs the network. An assumption; the neighbour list gains
        nothing.
    ``straggler``: time of the slowest shard over the mean.
    ``larger``: how many times larger a shard is than the runner's default.

    Returned are ``start``, ``compute``, ``client``, ``tail``, ``join``, ``wall`` (s); ``most``, which of them is the largest part;
    ``efficiency``, the share of the workers' time that is computation; ``most_workers``, beyond which the one process that hands out is the
    limit; ``disk_gb`` and ``memory_gb`` of the table, and ``cases_gb`` of the structures, which the command keeps in memory.
    """
    m = min(costs.structures_per_shard * larger, n_structures)
    shards = math.ceil(n_structures / m)
    t = evaluations * (costs.neighbours + costs.network / factor)
    handling = costs.dispatch(m) + costs.write(m)
    # No more workers than shards can be busy.
    compute, client = n_structures * t / min(workers, shards), shards * handling
    tail = (straggler if shards > workers else straggler - 1.0) * m * t
    join = shards * costs.join(m)
    wall = costs.start + max(compute, client) + tail + join
    # Of the two that overlap only the larger is in the sum.
    terms = {"start": costs.start, "workers": compute, "handing out": client, "tail": tail, "joining": join}
    terms.pop("handing out" if compute >= client else "workers")
    return {
        "start": costs.start,
        "compute": compute,
        "client": client,
        "tail": tail,
        "join": join,
        "wall": wall,
        "most": max(terms, key=lambda name: terms[name]),
        "efficiency": n_structures * t / (workers * wall),
        "most_workers": m * t / handling,
        "disk_gb": n_structures * costs.bytes_on_disk / 1e9,
        "cases_gb": n_structures * costs.bytes_case / 1e9,
        "memory_gb": n_structures * costs.bytes_joined / 1e9,
    }
