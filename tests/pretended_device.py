"""A device that is not there: it computes on the CPU, refuses CPU tensors as a GPU does, and counts what a GPU would make the CPU wait for.

Its tensors wrap tensors of the CPU and say that they lie on PyTorch's ``lazy`` device, which automatic differentiation lets pass in a build
for the CPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE, CPU = torch.device("lazy"), torch.device("cpu")

# For these a GPU has to tell the CPU a number or the length of the result.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "_linalg_check_errors"}
_WAITS |= {"_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"}
# Besides the operations that PyTorch tags as elementwise, those that take a number on the CPU as a tensor without dimensions.
_TAKES_NUMBERS = {"index_put", "index_put_", "_index_put_impl_", "fill_", "masked_fill", "masked_fill_"}


class Pretended(torch.Tensor):
    """A tensor on the pretended device; ``held`` is the one on the CPU that has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on the pretended device, outside of PretendedDevice")

    # PyTorch's own refuse wrappers, with another error than that of a GPU.
    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if not force:
            raise TypeError("can't convert lazy device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        return self.detach().cpu().numpy()

    def __repr__(self) -> str:
        return f"Pretended({self.held!r})"


class PretendedDevice(TorchDispatchMode):
    """Within it tensors can be made on :data:`DEVICE`, moved there and back, and computed with.

    ``waits`` counts what the CPU would wait for, by operation and by the line of code that asked for it. Copies are among it in both
    directions, for PyTorch waits for either, but for one to the GPU that is said to be ``non_blocking``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> PretendedDevice:
        # Otherwise data become tensors below the dispatcher, on a device that has no kernels.
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        tensors = [leaf for leaf in _leaves((*args, *kwargs.values())) if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
        others = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
        onto_device = bool(here)
        if kwargs.get("device") is not None:
            onto_device = torch.device(kwargs["device"]).type == DEVICE.type
            kwargs["device"] = CPU
        if name in ("_to_copy", "copy_"):
            copies = bool(here and others) or (name == "_to_copy" and onto_device != bool(here))
            waits = copies and not (onto_device and kwargs.get("non_blocking"))
        else:
            numbers = torch.Tag.pointwise in func.tags or name in _TAKES_NUMBERS
            if here and any(tensor.dim() or not numbers for tensor in others):
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {DEVICE} and cpu, at {_place()}")
            waits = bool(here) and _waits(name, args, kwargs)
        if waits:
            self.waits[f"{name} at {_place()}"] += 1

        known = {id(tensor): tensor for tensor in others} | {id(tensor.held): tensor for tensor in here}
        out = func(*_each(_held, args), **{key: _each(_held, value) for key, value in kwargs.items()})

        def placed(leaf: object) -> object:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return known[id(leaf)] if id(leaf) in known else Pretended(leaf) if onto_device else leaf

        return _each(placed, out)


def _each(function: Callable, value: object) -> object:
    """Apply a function to what a value or its lists and tuples hold; PyTorch's own tree_map takes ten times as long."""
    return type(value)([_each(function, one) for one in value]) if type(value) in (list, tuple) else function(value)


def _leaves(value: object) -> list:
    return [leaf for one in value for leaf in _leaves(one)] if type(value) in (list, tuple) else [value]


def _held(leaf: object) -> object:
    return leaf.held if isinstance(leaf, Pretended) else leaf


def _waits(name: str, args: tuple, kwargs: dict) -> bool:
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if "index" in name:
        return any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in _leaves(args[1]))
    return name in _WAITS


def _place() -> str:
    """Return the innermost line of code that is neither PyTorch's nor of this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename):
        frame = frame.f_back
    return "?" if frame is None else f"{'/'.join(frame.f_code.co_filename.rsplit('/', 2)[1:])}:{frame.f_lineno}"
