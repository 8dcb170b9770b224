"""What the processor allows: operations of a network against measured matrix throughput and memory bandwidth.

After Williams, Waterman and Patterson, Commun. ACM 52, 65 (2009). Matrix products are counted by PyTorch. All other operations
(multiplications, activations, gathers, sums) do little arithmetic for each number that they read and write, so their limit is the traffic,
counted here as if each operation read its inputs and wrote its outputs once.

Times are processor time on one thread, so that other work on the machine hardly counts. Call ``torch.set_num_threads(1)`` first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
    """Operations of one evaluation of energy and forces.

    Attributes
    ----------
    flop : float
        Floating-point operations of matrix products; a multiplication and an addition are two.
    bytes_products, bytes_others : float
        Read and written by matrix products, and by all other operations.
    operations : int
        Calls.
    """

    flop: float
    bytes_products: float
    bytes_others: float
    operations: int


class _Traffic(TorchDispatchMode):
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
    with _Traffic() as traffic:
        potential.compute(graph)
    return Count(float(products.get_total_flops()), traffic.products, traffic.others, traffic.operations)


def crystal(seed: int = 0) -> ase.Atoms:
    """Return MgO, 16 atoms, displaced at random: a typical cell of the data sets that such potentials are used on."""
    atoms = bulk("MgO", "rocksalt", a=4.212, cubic=True) * (2, 1, 1)
    atoms.positions += np.random.default_rng(seed).normal(0.0, 0.05, atoms.positions.shape)
    return atoms


def _best(work: Callable[[], object], seconds: float = 0.3) -> float:
    """Return the least processor time of one call, s, of as many as fit into some seconds; it is that of one thread."""
    work()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def matrix_throughput(rows: int = 1024, inner: int = 1024, columns: int = 1024) -> float:
    """Measure a product of single-precision matrices on one thread; operations per second."""
    left, right = torch.rand(rows, inner), torch.rand(inner, columns)
    out = torch.empty(rows, columns)
    return 2.0 * rows * inner * columns / _best(lambda: torch.mm(left, right, out=out))


def bandwidth(megabytes: float) -> float:
    """Measure the traffic of an addition of two arrays of the given size into a third; bytes per second."""
    n = int(megabytes * 1e6 / 4)
    left, right, out = torch.rand(n), torch.rand(n), torch.empty(n)
    return 12.0 * n / _best(lambda: torch.add(left, right, out=out))


def evaluation_seconds(potential: GraphPotential, atoms: ase.Atoms) -> tuple[float, float]:
    """Measure an evaluation on one thread, s: energy and forces from the ready graph, and from the structure."""
    graph = potential.collate([potential.system(atoms)])
    return _best(lambda: potential.compute(graph), 2.0), _best(lambda: potential.evaluate([atoms]), 2.0)
