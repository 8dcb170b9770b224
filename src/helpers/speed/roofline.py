"""What a processor or a GPU allows: operations of a network against measured matrix throughput and memory bandwidth.

After Williams, Waterman and Patterson, Commun. ACM 52, 65 (2009). Matrix products are counted by PyTorch. All other operations
(multiplications, activations, gathers, sums) do little arithmetic for each number that they read and write, so their limit is the traffic,
counted here as if each operation read its inputs and wrote its outputs once.

On a CPU times are processor time on one thread, so that other work on the machine hardly counts. On a GPU they are on the clock, until its
work is done.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence

import ase
import numpy as np
import torch
from ase.build import bulk
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from helpers import potentials
from helpers.potentials.base import Graph, GraphPotential
from helpers.runner import keep_memory

Work = Callable[[], object]


class Traffic(TorchDispatchMode):
    """Count operations (calls) and add up the bytes that matrix products, and all others, read and write. Views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_products = self.bytes_others = 0.0
        self.operations = 0
        self.flop = math.nan  # floating-point operations of matrix products, from :func:`count`; a multiplication and an addition are two

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run an operation and count it."""
        result = function(*args, **(kwargs or {}))
        if function.is_view or function in _WITHOUT_TRAFFIC:
            return result
        size = sum(_bytes(part) for part in (*args, *(kwargs or {}).values())) + _bytes(result)
        if function.overloadpacket in _PRODUCTS:
            self.bytes_products += size
        else:
            self.bytes_others += size
        self.operations += 1
        return result


_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
_WITHOUT_TRAFFIC = {torch.ops.aten.empty.memory_format, torch.ops.aten.detach.default, torch.ops.aten._unsafe_view.default}


COUNTED = {"operations": "", "flop": "FLOP", "bytes_products": "B", "bytes_others": "B"}


def _bytes(value: object) -> float:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(part) for part in value) if isinstance(value, list | tuple) else 0.0


def count(potential: GraphPotential, structures: Sequence[ase.Atoms]) -> Traffic:
    """Count the operations of an evaluation of energies and forces, in one batch and without building the graph."""
    graph = potential.collate([potential.system(atoms) for atoms in structures])
    with FlopCounterMode(display=False) as products, Traffic() as traffic:
        potential.compute(graph)
    traffic.flop = float(products.get_total_flops())
    return traffic


def crystal(seed: int = 0) -> ase.Atoms:
    """Return MgO, 16 atoms, displaced at random: a typical cell of the data sets that such potentials are used on."""
    atoms = bulk("MgO", "rocksalt", a=4.212, cubic=True) * (2, 1, 1)
    atoms.positions += np.random.default_rng(seed).normal(0.0, 0.05, atoms.positions.shape)
    return atoms


def _now(device: torch.device | str) -> float:
    """Return the processor time on a CPU, s; else the time at which the device has done all it was given."""
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def least_seconds(works: Mapping[str, Work], turns: int = 30, device: torch.device | str = "cpu") -> dict[str, float]:
    """Return the least time of one call of each, s.

    They take turns, so that what slows the machine for a while (a neighbour, its clock) meets all of them. A turn is at least a
    hundredth of a second of calls: short ones find their arrays in the cache again.
    """
    least = dict.fromkeys(works, float("inf"))
    for _ in range(turns):
        for name, work in works.items():
            spent = 0.0
            while spent < 0.01:
                start = _now(device)
                work()
                taken = _now(device) - start
                least[name] = min(least[name], taken)
                spent += taken
    return least


def product(rows: int, inner: int, columns: int, device: torch.device | str = "cpu") -> tuple[Work, float]:
    """Return a product of single-precision matrices, and its operations."""
    left, right, out = (torch.rand(shape, device=device) for shape in ((rows, inner), (inner, columns), (rows, columns)))
    return lambda: torch.mm(left, right, out=out), 2.0 * rows * inner * columns


def addition(megabytes: float, device: torch.device | str = "cpu") -> tuple[Work, float]:
    """Return an addition of two arrays of the given size into a third, and the bytes it reads and writes."""
    n = int(megabytes * 1e6 / 4)
    left, right, out = (torch.rand(n, device=device) for _ in range(3))
    return lambda: torch.add(left, right, out=out), 12.0 * n


def parts(potential: GraphPotential, structures: Sequence[ase.Atoms]) -> dict[str, Work]:
    """Return an evaluation and, of all structures in one batch, its parts: what ``graph_time`` is the time of includes the transfer."""
    systems = [potential.system(atoms) for atoms in structures]
    graph = potential.collate(systems)
    return {
        "neighbours_time": lambda: list(potential.systems(structures)),
        "transfer_time": lambda: Graph.collate(systems, potential.device),
        "graph_time": lambda: potential.collate(systems),
        "compute_time": lambda: potential.compute(graph),
        "evaluation_time": lambda: potential.evaluate(structures),
    }


def measure(key: str, structures: Sequence[ase.Atoms], compiled: bool = False, device: str = "cpu") -> list[tuple[str, float, str]]:
    """Measure what a device allows, of a CPU one core, and what the network asks of it for one batch; if wanted, also the compiled network.

    Returns properties, values and units; on a GPU without the bandwidth of its cache, as there the start of an operation takes longer than
    such an array.
    """
    torch.set_num_threads(1)
    keep_memory()  # as in a run
    potential = potentials.load(key, device, trust=True)
    assert isinstance(potential, GraphPotential)
    on_gpu = potential.device.type != "cpu"
    counted, works = count(potential, structures), parts(potential, structures)
    if compiled:
        with contextlib.suppress(Exception):  # not every network can be compiled, and a compiler may be missing or fail
            works["compiled_time"] = parts(potential.compiled(), structures)["compute_time"]
            works["compiled_time"]()  # which compiles
    edges = sum(potential.system(atoms).n_edges for atoms in structures)
    side, megabytes = (8192, 2000) if on_gpu else (1024, 200)  # a GPU is not filled by what fills a core
    rates = {
        "throughput_square": (*product(side, side, side, device), "FLOP/s"),
        "throughput_layer": (*product(edges, 64, 128, device), "FLOP/s"),
        "bandwidth_cache": (*addition(0.4, device), "B/s"),
        "bandwidth_memory": (*addition(megabytes, device), "B/s"),
    }
    if on_gpu:
        del rates["bandwidth_cache"]
    least = least_seconds(works | {name: work for name, (work, _, _) in rates.items()}, device=device)
    return [
        *((name, least[name], "s") for name in works),
        ("edges", edges, ""),
        *((name, getattr(counted, name), unit) for name, unit in COUNTED.items()),
        *((name, amount / least[name], unit) for name, (_, amount, unit) in rates.items()),
    ]
