"""What the processor allows: operations of a network against measured matrix throughput and memory bandwidth.

After Williams, Waterman and Patterson, Commun. ACM 52, 65 (2009). Matrix products are counted by PyTorch. All other operations
(multiplications, activations, gathers, sums) do little arithmetic for each number that they read and write, so their limit is the traffic,
counted here as if each operation read its inputs and wrote its outputs once.

Times are processor time on one thread, so that other work on the machine hardly counts. Call ``torch.set_num_threads(1)`` first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ase
import numpy as np
import torch
from ase.build import bulk
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from helpers.potentials.base import GraphPotential


@dataclass(frozen=True)
class Count:
    """Operations of one evaluation of energy and forces."""

    flop: float  # floating-point operations of matrix products; a multiplication and an addition are two
    # Read and written by matrix products, and by all other operations.
    bytes_products: float
    bytes_others: float
    operations: int  # calls


class Traffic(TorchDispatchMode):
    """Add up the bytes of tensors that operations read and write. Views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.others = 0.0
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run an operation and count it."""
        result = function(*args, **(kwargs or {}))
        if function.is_view or function in _WITHOUT_TRAFFIC:
            return result
        size = sum(_bytes(part) for part in (*args, *(kwargs or {}).values())) + _bytes(result)
        if function.overloadpacket in _PRODUCTS:
            self.products += size
        else:
            self.others += size
        self.operations += 1
        return result


_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
_WITHOUT_TRAFFIC = {torch.ops.aten.empty.memory_format, torch.ops.aten.detach.default, torch.ops.aten._unsafe_view.default}


def _bytes(value: object) -> float:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(part) for part in value) if isinstance(value, list | tuple) else 0.0


def count(potential: GraphPotential, atoms: ase.Atoms) -> Count:
    """Count the operations of an evaluation of energy and forces, without building the graph.

    Parameters
    ----------
    potential : GraphPotential
    atoms : ase.Atoms
    """
    graph = potential.collate([potential.system(atoms)])
    with FlopCounterMode(display=False) as products:
        potential.compute(graph)
    with Traffic() as traffic:
        potential.compute(graph)
    return Count(float(products.get_total_flops()), traffic.products, traffic.others, traffic.operations)


def crystal(seed: int = 0) -> ase.Atoms:
    """Return MgO, 16 atoms, displaced at random: a typical cell of the data sets that such potentials are used on."""
    atoms = bulk("MgO", "rocksalt", a=4.212, cubic=True) * (2, 1, 1)
    atoms.positions += np.random.default_rng(seed).normal(0.0, 0.05, atoms.positions.shape)
    return atoms


def least_seconds(works: Mapping[str, Callable[[], object]], turns: int = 30) -> dict[str, float]:
    """Return the least processor time of one call of each, s.

    They take turns, so that what slows the machine for a while (a neighbour, its clock) meets all of them. A turn is at least a
    hundredth of a second of calls: short ones find their arrays in the cache again.
    """
    least = dict.fromkeys(works, float("inf"))
    for _ in range(turns):
        for name, work in works.items():
            spent = 0.0
            while spent < 0.01:
                start = time.process_time()
                work()
                taken = time.process_time() - start
                least[name] = min(least[name], taken)
                spent += taken
    return least


def product(rows: int = 1024, inner: int = 1024, columns: int = 1024) -> tuple[Callable[[], object], float]:
    """Return a product of single-precision matrices, and its operations."""
    left, right, out = torch.rand(rows, inner), torch.rand(inner, columns), torch.empty(rows, columns)
    return lambda: torch.mm(left, right, out=out), 2.0 * rows * inner * columns


def addition(megabytes: float) -> tuple[Callable[[], object], float]:
    """Return an addition of two arrays of the given size into a third, and the bytes it reads and writes."""
    n = int(megabytes * 1e6 / 4)
    left, right, out = torch.rand(n), torch.rand(n), torch.empty(n)
    return lambda: torch.add(left, right, out=out), 12.0 * n
