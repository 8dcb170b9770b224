"""What every potential in this project is: one object with five verbs.

A :class:`Potential` evaluates many structures at once (:meth:`~Potential.evaluate`), serves as an ASE
calculator (:meth:`~Potential.calculator`), *is* a torch-sim model (so torch-sim relaxes and moves atoms
with it), can be multiplied by a constant (:meth:`~Potential.scaled`, the linear correction of softening)
and says what it is (:meth:`~Potential.describe`).

Graph networks subclass :class:`GraphPotential` and write a single method, the energy as a function of
bond vectors. Batching, forces, stress, failures of single structures and the training graph are the same
for all of them and live here; neighbour lists are found in :mod:`helpers.potentials.neighbours`.

Units: Å, eV, eV/Å; stress in eV/Å³ with ASE's sign (positive under tension).
"""

from __future__ import annotations

import copy
import functools
import os
import shutil
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import ase
import numpy as np
import psutil
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.calculator import PropertyNotImplementedError as _NoSuchProperty
from ase.stress import full_3x3_to_voigt_6_stress
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState
from tqdm.auto import tqdm

from helpers import registry
from helpers.potentials.neighbours import SKIN_A, Crystal, StructureError, System, find, still_serve
from helpers.structures import many

# On a CPU larger batches only spill out of the caches; on a GPU the memory decides. Measured on cells of 32 atoms, time per structure
# against one at a time: with 40,000 edges TensorNet takes twice as long, M3GNet and CHGNet a fifth longer; with 3,000 all take as long.
_MAX_EDGES_CPU = 3_000

# Processor time of the first compilation of a network, s; measured: M3GNet 103, TensorNet 117. From the cache TensorNet takes 26.
COMPILING_S = 120.0


class PotentialError(Exception):
    """A potential cannot be loaded or used as asked; the message says what to do."""


class OutOfTimeError(Exception):
    """The time at which a potential was to stop (:attr:`Potential.deadline`) is over."""


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory did not suffice. On a CPU, torch raises a plain RuntimeError; so do CUDA's libraries."""
    said = any(words in str(error) for words in ("out of memory", "can't allocate memory", "ALLOC_FAILED"))
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (isinstance(error, RuntimeError) and said)


@dataclass
class Prediction:
    """The result for one structure.

    Attributes
    ----------
    energy : float
        Total energy, eV. NaN when the structure failed.
    forces : ndarray, shape (n_atoms, 3)
        Forces, eV/Å.
    stress : ndarray, shape (3, 3), or None
        Stress, eV/Å³, ASE's sign. None unless it was asked for.
    error : str or None
        Why the structure failed; None when it did not.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the structure was evaluated."""
        return self.error is None

    @classmethod
    def failed(cls, n_atoms: int, error: str) -> Prediction:
        """Return the record of a structure that could not be evaluated."""
        return cls(energy=np.nan, forces=np.full((n_atoms, 3), np.nan), error=error)


@dataclass
class Graph:
    """A batch of structures as tensors; the input of a graph network.

    Shapes: N atoms, E directed edges, B structures.

    Attributes
    ----------
    numbers : int tensor, shape (N,)
        Atomic numbers.
    system : int tensor, shape (N,)
        Structure of each atom.
    n_systems : int
        B.
    edge_index : int tensor, shape (2, E)
        Row 0: the centre atom i, in ascending order. Row 1: its neighbour j.
    shifts : float tensor, shape (E, 3)
        Lattice translation of j, in lattice vectors.
    positions : float tensor, shape (N, 3)
        Å, float64.
    cells : float tensor, shape (B, 3, 3)
        Lattice vectors as rows, Å, float64.
    topology : dict of tensors
        What the network derives from the edges alone (CHGNet's line graph, say). Built once per batch.
    vectors : float tensor, shape (E, 3)
        r_j − r_i, in the network's dtype; differentiable in positions and strain. Empty until the forward pass sets them.
    species : int tensor, shape (N,), or None
        In a mixture (:mod:`helpers.training.alchemy`), which of its weights each atom has; −1 for ordinary atoms. None: no mixture.
    weights : float tensor, shape (N,), or None
        In a mixture, the weight λ of each atom, 1 for ordinary ones; in the network's dtype, differentiable.
    """

    numbers: torch.Tensor
    system: torch.Tensor
    n_systems: int
    edge_index: torch.Tensor
    shifts: torch.Tensor
    positions: torch.Tensor
    cells: torch.Tensor
    topology: dict[str, torch.Tensor] = field(default_factory=dict)
    vectors: torch.Tensor = field(default_factory=lambda: torch.empty(0, 3))
    species: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    @property
    def n_atoms(self) -> torch.Tensor:
        """Atoms in each structure, shape (B,)."""
        return counts(self.system, self.n_systems)

    @property
    def edge_system(self) -> torch.Tensor:
        """Structure of each edge, shape (E,)."""
        return self.system[self.edge_index[0]]

    @torch.no_grad()
    def distances(self) -> torch.Tensor:
        """Return the lengths of the edges, Å, shape (E,)."""
        centre, neighbour = self.edge_index
        offset = torch.einsum("es,esx->ex", self.shifts, self.cells[self.edge_system])
        return torch.linalg.norm(self.positions[neighbour] - self.positions[centre] + offset, dim=1)

    def weight_of_messages(self, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Return the factors of messages in a mixture: the source's weight where the target is an ordinary atom, else 1.

        Parameters
        ----------
        target, source : int tensors, shape (n,)
            Atoms.

        Returns
        -------
        tensor, shape (n, 1)
        """
        if self.weights is None:
            return self.vectors.new_ones(len(target), 1)
        return torch.where(self.ordinary(target), self.weights[source], self.weights.new_ones(()))[:, None]

    def ordinary(self, atoms: torch.Tensor) -> torch.Tensor:
        """Tell which of some atoms, shape (n,), belong to no species of a mixture."""
        return torch.ones_like(atoms, dtype=torch.bool) if self.species is None else self.species[atoms] < 0

    @classmethod
    def collate(cls, systems: Sequence[System], device: torch.device) -> Graph:
        """Join structures into one batch."""
        sizes = np.array([len(system.numbers) for system in systems])
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        edges = np.stack(
            [
                np.concatenate([system.centre + offset for system, offset in zip(systems, offsets, strict=True)]),
                np.concatenate([system.neighbour + offset for system, offset in zip(systems, offsets, strict=True)]),
            ]
        )

        def tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(array).to(device=device, dtype=dtype, non_blocking=True)

        return cls(
            numbers=tensor(np.concatenate([system.numbers for system in systems]), torch.int64),
            system=tensor(np.repeat(np.arange(len(systems)), sizes), torch.int64),
            n_systems=len(systems),
            edge_index=tensor(edges, torch.int64),
            shifts=tensor(np.concatenate([system.shift for system in systems]), torch.float64),
            positions=tensor(np.concatenate([system.positions for system in systems]), torch.float64),
            cells=tensor(np.stack([system.cell for system in systems]), torch.float64),
        )


def counts(members: torch.Tensor, n: int) -> torch.Tensor:
    """Return how often each of the numbers below n occurs, int tensor of shape (n,): ``torch.bincount``, but nothing waits for a GPU."""
    return members.new_zeros(n).index_add(0, members, torch.ones_like(members))


def angles(centre: torch.Tensor, distances: torch.Tensor, cutoff: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """List all ordered pairs of distinct edges that leave the same atom and are shorter than ``cutoff`` (Å).

    Returns
    -------
    centre, left, right : int tensors, shape (n_angles,)
        The atom in the middle and the two directed edges.
    """
    short = torch.nonzero(distances < cutoff).squeeze(1)
    short = short[torch.argsort(centre[short], stable=True)]
    owner = centre[short]
    # Each short edge meets every other short edge of its atom: repeat it that often, and number the partners.
    first = torch.searchsorted(owner, owner)
    partners = torch.searchsorted(owner, owner, right=True) - first - 1
    left = torch.arange(len(short), device=short.device).repeat_interleave(partners)
    block = torch.cumsum(partners, 0) - partners
    right = first[left] + torch.arange(len(left), device=short.device) - block[left]
    right = right + (right >= left)  # past the edge itself
    return owner[left], short[left], short[right]


def undirected_bonds(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """Match each directed edge (i, j, S) with its reverse (j, i, −S).

    Returns
    -------
    bond : int tensor, shape (E,)
        Undirected bond of each directed edge.
    first : int tensor, shape (E / 2,)
        One directed edge of each bond.
    """
    centre, neighbour = graph.edge_index
    shifts = graph.shifts.to(torch.int64)
    largest = shifts.abs().max() if len(shifts) else shifts.new_zeros(())
    forward = _edge_number(centre, neighbour, shifts, largest, len(graph.numbers))
    reverse = _edge_number(neighbour, centre, -shifts, largest, len(graph.numbers))
    number, order = torch.sort(torch.minimum(forward, reverse), stable=True)
    if len(number) % 2 or not ((number[::2] == number[1::2]).all() & (number[1:-1:2] != number[2::2]).all()):
        raise ValueError("the neighbour list does not hold every pair in both directions")
    bond = torch.empty_like(order)
    bond[order] = torch.arange(len(order), device=order.device) // 2
    return bond, order[::2]


def _edge_number(centre: torch.Tensor, neighbour: torch.Tensor, shifts: torch.Tensor, largest: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """Return one whole number for each edge, in the order of (centre, neighbour, shift); sorting these is faster than sorting rows."""
    number = centre * n_atoms + neighbour
    for axis in range(3):
        number = number * (2 * largest + 1) + shifts[:, axis] + largest
    return number


def linear_on_parts(layers: Sequence[torch.nn.Linear], parts: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
    """Apply linear layers to features that stand side by side, without putting them there.

    Networks join the features of two atoms, of bonds and of an angle into one row for every angle. A linear layer of such rows is a sum of
    linear layers of their parts, and what belongs to an atom or a bond needs to be multiplied once, not for every angle it is part of.

    Parameters
    ----------
    layers : sequence of torch.nn.Linear
        With the same input; their outputs are joined.
    parts : sequence of (tensor of shape (n, features), int tensor of shape (rows,), or None)
        In the order of the layers' input: features, and which of them each row takes; None if row k takes the k-th.

    Returns
    -------
    tensor, shape (rows, sum of the layers' outputs)
    """
    weight = torch.cat([layer.weight for layer in layers])
    columns = torch.split(weight, [features.shape[1] for features, _ in parts], dim=1)
    total = torch.cat([layer.bias for layer in layers])
    # First the features that are taken as they are, to which the others are added in place.
    for (features, rows), part in sorted(zip(parts, columns, strict=True), key=lambda item: item[0][1] is not None):
        if total.dim() == 1:
            total = torch.addmm(total, features, part.T)
            total = total if rows is None else torch.index_select(total, 0, rows)
        else:
            added = features @ part.T
            total = total.add_(added if rows is None else torch.index_select(added, 0, rows))
    return total


class Potential(ModelInterface):
    """An interatomic potential. See the module's docstring for the idea, :meth:`evaluate` for daily use.

    Attributes
    ----------
    key : str
        Canonical name, such as ``chgnet-0.3.0``.
    scale : float
        The constant that energies, forces and stresses are multiplied by; 1 unless made by :meth:`scaled`.
    elements : frozenset of int
        Atomic numbers the potential was trained on.
    deadline : float or None
        Time (:func:`time.time`, s) after which an evaluation raises :class:`OutOfTimeError` instead of starting; None for no limit.
    """

    def __init__(self, key: str, *, device: torch.device, elements: frozenset[int], description: dict[str, object]) -> None:
        super().__init__()
        self.key = key
        self.elements = elements
        self.scale = 1.0
        self.deadline: float | None = None
        self.description = description
        self._device = device
        # torch-sim integrates in double precision whatever the network's own precision is.
        self._dtype = torch.float64
        self._compute_forces = True
        self._compute_stress = False
        self._memory_scales_with = "n_atoms_x_density"

    @ModelInterface.compute_stress.setter
    def compute_stress(self, value: bool) -> None:  # noqa: D102  (documented by torch-sim)
        self._compute_stress = value

    @abstractmethod
    def evaluate(self, structures: Iterable[ase.Atoms], *, stress: bool = False, progress: bool = False) -> list[Prediction]:
        """Predict energy, forces and, if asked for, stress of many structures.

        Parameters
        ----------
        structures : ase.Atoms, pymatgen Structure, or iterable of either
            Periodic structures. An empty list gives an empty list. Constraints change no answer: forces are those of the energy.
        stress : bool
            Stress costs time; ask only when it is needed.
        progress : bool
            Show a progress bar.

        Returns
        -------
        list of Prediction
            One per structure, in order. A structure that cannot be evaluated has ``error`` set and NaN
            values; the others are not affected.

        Raises
        ------
        TypeError, ValueError
            If something is no structure, see :func:`helpers.structures.many`.
        """

    def forward(self, state: SimState, structures: Sequence[ase.Atoms] | None = None, **_: object) -> dict[str, torch.Tensor]:
        """Evaluate a torch-sim state, and pass on of each of its structures what a state does not hold: charge, spin, moments, tags."""
        placed = state.to_atoms() if structures is None else [atoms.copy() for atoms in structures]
        for atoms, now in zip(placed, state.to_atoms(), strict=True):
            atoms.cell, atoms.positions = now.cell, now.positions
        found = self.evaluate(placed, stress=self.compute_stress)
        output = {"energy": [one.energy for one in found], "forces": np.concatenate([one.forces for one in found])}
        if self.compute_stress:
            output["stress"] = np.stack([np.full((3, 3), np.nan) if one.stress is None else one.stress for one in found])
        return {name: torch.as_tensor(values, dtype=state.dtype, device=state.device) for name, values in output.items()}

    def calculator(self) -> Calculator:
        """Return an ASE calculator."""
        return PotentialCalculator(self)

    def scaled(self, c: float) -> Potential:
        """Return the linearly corrected potential E → c·E, hence F → c·F.

        With c = 1/s, s the softening scale, this is the one-parameter fix of Deng et al. (2025). The network is shared, not copied.

        Parameters
        ----------
        c : float
            Positive, finite, dimensionless.
        """
        number = np.asarray(c)
        if number.dtype.kind not in "iuf" or number.size != 1 or not 0 < number.item() < np.inf:
            raise PotentialError(f"the scale must be a positive number, not {c!r}")
        twin = copy.copy(self)
        # The modules themselves are shared, the dictionary that names them is not: replacing one's network leaves the other alone.
        twin._modules = dict(self._modules)
        twin.scale = self.scale * number.item()
        base = self.key.split("*")[0]
        twin.key = f"{base}*{twin.scale:.4f}"
        return twin

    def smooth(self) -> Potential:
        """Return the variant of the potential to use where tiny forces decide, as in phonons and elastic constants.

        That is the potential itself, unless its energy jumps as atoms move (see :mod:`helpers.potentials.matgl`). The key stays.
        """
        return self

    def compiled(self) -> Potential:
        """Return the variant whose network is compiled (:func:`torch.compile`) at its first evaluation. The key stays.

        Raises
        ------
        PotentialError
            If this potential has no such variant, or no compiler is found.
        """
        raise PotentialError(f"{self.key} cannot be compiled; leave that out.")

    def compiled_if_saves(self, left: float) -> tuple[Potential, str]:
        """Return the compiled variant if it saves more than compiling takes of the processor time that is left (s), else this; and why."""
        share = getattr(self, "compiled_saves", 0.0)
        if not share or self.device.type != "cpu":
            return self, f"with {self.key} on this device it is not known to save time"
        saved = left * share
        why = f"saves about {saved:.0f} of the {left:.0f} s that are left to each process, and takes about {COMPILING_S:.0f} s"
        try:
            return (self.compiled() if saved > COMPILING_S else self), why
        except PotentialError as error:
            return self, str(error)

    def check_time(self) -> None:
        """Raise :class:`OutOfTimeError` after the deadline. Called before every evaluation."""
        if self.deadline is not None and time.time() > self.deadline:
            raise OutOfTimeError(f"{self.key}: the time is used up")

    def describe(self) -> dict[str, object]:
        """Return what identifies the potential: family, version, hash of the weights, parameters, training set, elements."""
        return {
            "key": self.key,
            **self.description,
            "scale": self.scale,
            "elements": [ase.data.chemical_symbols[z] for z in sorted(self.elements)],
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key} on {self.device}>"


@functools.cache
def _compiled(function: Callable) -> Callable:
    """Compile a function once per process, for arrays of any length."""
    return torch.compile(function, dynamic=True)


class GraphPotential(Potential):
    """A graph network. Subclasses set ``network`` and ``cutoff`` and write :meth:`energies`.

    Parameters
    ----------
    network : torch.nn.Module
        Its parameters; float32 or float64.
    cutoff : float
        Å.
    bytes_per_edge : float
        Peak memory of an energy-and-forces evaluation per directed edge, measured; it sets the batch size.

    Attributes
    ----------
    untrained : tuple of str
        Prefixes of parameters that fine-tuning leaves alone.
    takes_mixtures : bool
        Whether :meth:`energies` minds the graph's ``species`` and ``weights``.
    compiles : bool
        Whether :meth:`energies` has a part that it runs through :meth:`maybe_compiled`.
    compiled_saves : float
        The share of its time that the compiled network saves on one core, measured; 0 if none.
    """

    untrained: tuple[str, ...] = ()
    takes_mixtures = False
    compiles = False
    compiled_saves = 0.0

    def __init__(
        self,
        key: str,
        network: torch.nn.Module,
        *,
        cutoff: float,
        bytes_per_edge: float,
        device: torch.device,
        elements: frozenset[int],
        description: dict[str, object],
    ) -> None:
        super().__init__(key, device=device, elements=elements, description=description)
        self.network = network.to(device).eval().requires_grad_(False)
        self.cutoff = float(cutoff)
        self.bytes_per_edge = bytes_per_edge
        first = next(network.parameters(), None)
        self.network_dtype = torch.float32 if first is None else first.dtype
        self.is_compiled = False
        self._kept: tuple[dict[int, System], Graph | None] = {}, None

    def compiled(self) -> GraphPotential:
        """Return the variant whose network is compiled at its first evaluation. The key stays.

        Operations are joined into loops that read and write less (:attr:`compiled_saves`), but compiling takes minutes. What the compiler
        made is kept in the cache folder, for other processes and later runs. Results change by rounding. It cannot be trained, for its
        forces cannot be differentiated again.
        """
        if not self.compiles:
            return super().compiled()
        wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
        if not any(map(shutil.which, wanted)):
            raise PotentialError(f"compiling needs a C++ compiler, and there is no {' or '.join(wanted)}: install one, or set CXX to it.")
        # PyTorch's own folder is a temporary one, and packages may have set it already.
        temporary = tempfile.gettempdir()
        if os.environ.get("TORCHINDUCTOR_CACHE_DIR", temporary).startswith(temporary):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(registry.cache_dir() / "compiled")
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        twin.is_compiled = True
        return twin

    def maybe_compiled(self, function: Callable) -> Callable:
        """Return a function, compiled if this potential is. What belongs to the potential must be among its arguments."""
        return _compiled(function) if self.is_compiled else function

    @abstractmethod
    def energies(self, graph: Graph) -> torch.Tensor:
        """Return the total energies (eV), shape (B,), as a differentiable function of ``graph.vectors``."""

    def topology(self, graph: Graph, distances: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return index tensors that depend on the edges and their lengths (Å) but are not differentiated."""
        return {}

    def collate(self, systems: Sequence[System]) -> Graph:
        """Join structures into a batch, with everything that can be reused from one evaluation to the next."""
        graph = Graph.collate(systems, self.device)
        graph.topology = self.topology(graph, graph.distances())
        return graph

    def compute(
        self, graph: Graph, *, stress: bool = False, training: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return energies (B,), forces (N, 3) and stresses (B, 3, 3) of a batch.

        Forces are −∂E/∂r and stresses V⁻¹ ∂E/∂ε by automatic differentiation, with the strain ε applied
        to positions and cells alike (ASE's convention).

        Parameters
        ----------
        training : bool
            Keep the graph of the derivatives so that a loss on forces can be differentiated again.
        """
        self.check_time()
        if training and self.is_compiled:
            raise PotentialError(f"{self.key} is compiled and cannot be trained; load it without that.")
        with torch.enable_grad():
            # Who differentiates once more brings positions of their own.
            positions = graph.positions if graph.positions.requires_grad else graph.positions.detach().requires_grad_(True)
            cells = graph.cells.detach()
            inputs = [positions]
            if stress:
                strain = torch.zeros_like(cells, requires_grad=True)
                inputs.append(strain)
                symmetric = 0.5 * (strain + strain.transpose(1, 2))
                moved = positions + torch.einsum("nx,nxy->ny", positions, symmetric[graph.system])
                cells = cells + cells @ symmetric
            else:
                moved = positions
            centre, neighbour = graph.edge_index
            offset = torch.einsum("es,esx->ex", graph.shifts, cells[graph.edge_system])
            vectors = moved[neighbour] - moved[centre] + offset
            batch = copy.copy(graph)
            batch.positions, batch.cells = moved, cells
            batch.vectors = vectors.to(self.network_dtype)
            energies = self.scale * self.energies(batch).to(torch.float64)
            gradients = torch.autograd.grad(energies.sum(), inputs, create_graph=training)
        forces = -gradients[0]
        stresses = None
        if stress:
            volume = torch.linalg.det(graph.cells).abs()
            stresses = gradients[1] / volume[:, None, None]
        return energies, forces, stresses

    def hessian_vector(self, graph: Graph, direction: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """Return H·d, the second derivatives of the energies times a displacement of the atoms (Å); both have shape (N, 3), H·d is in eV/Å.

        By differentiating twice, which never forms H (Pearlmutter, Neural Comput. 6, 147 (1994)); in training, weights can learn from it.
        """
        at = copy.copy(graph)
        at.positions = graph.positions.detach().requires_grad_(True)
        forces = self.compute(at, training=True)[1]
        return torch.autograd.grad(-(forces * direction).sum(), at.positions, create_graph=training)[0]

    def forward(self, state: SimState, structures: Sequence[ase.Atoms] | None = None, **_: object) -> dict[str, torch.Tensor]:
        """Evaluate a torch-sim state. A structure that cannot be evaluated gets NaN; the others are not affected.

        Neighbour lists reach beyond the cutoff and are kept from one call to the next, as long as they serve. ``structures`` tell which
        of the lists belongs to which structure after others have left the state; without them it is the order.
        """
        try:
            graph = self._graph_of(state, range(state.n_systems) if structures is None else [id(atoms) for atoms in structures])
            e, f, s = self.compute(graph, stress=self.compute_stress)
        except (RuntimeError, ValueError, IndexError) as error:
            if out_of_memory(error):
                raise
            return super().forward(state, structures)  # where each structure fails alone
        lonely = (counts(graph.edge_index[0], len(graph.numbers)) == 0).to(e.dtype)
        e = torch.where(e.new_zeros(len(e)).index_add(0, graph.system, lonely) > 0, torch.nan, e)
        output = {"energy": e, "forces": f} | ({} if s is None else {"stress": s})
        return {name: values.detach().to(state.device, state.dtype) for name, values in output.items()}

    def _graph_of(self, state: SimState, names: Sequence[int]) -> Graph:
        """Return a torch-sim state as a batch, of the lists that were kept under these names, or new ones where they no longer serve."""
        ends = np.cumsum(state.n_atoms_per_system.tolist())[:-1]
        placed = state.positions.detach().to(torch.float64), state.row_vector_cell.detach().to(torch.float64)
        # Copies: what moves the atoms may write into its state.
        numbers, positions, cells = (tensor.cpu().numpy().copy() for tensor in (state.atomic_numbers, *placed))
        crystals = list(zip(np.split(numbers, ends), np.split(positions, ends), cells, [True] * len(cells), strict=True))
        kept, wide = self._kept
        before = [kept.get(name) for name in names]
        serve = still_serve(before, crystals, self.cutoff)
        made = self._find((one for one, good in zip(crystals, serve, strict=True) if not good), self.cutoff + SKIN_A)
        systems = [system if good else _listed(next(made)) for system, good in zip(before, serve, strict=True)]
        if wide is None or len(kept) != len(systems) or any(one is not other for one, other in zip(kept.values(), systems, strict=True)):
            wide = Graph.collate(systems, self.device)
        self._kept = dict(zip(names, systems, strict=True)), wide
        graph = copy.copy(wide)
        graph.positions, graph.cells = (tensor.to(self.device) for tensor in placed)
        distances = graph.distances()
        near = torch.nonzero(distances < self.cutoff).squeeze(1)
        graph.edge_index, graph.shifts = graph.edge_index[:, near], graph.shifts[near]
        graph.topology = self.topology(graph, distances[near])
        return graph

    def _find(self, crystals: Iterable[Crystal], cutoff: float) -> Iterator[System | StructureError]:
        return find(crystals, self.elements, cutoff, self.device)

    def system(self, atoms: ase.Atoms) -> System:
        """Return a structure with its neighbour list.

        Raises
        ------
        StructureError
            If the potential cannot evaluate it.
        """
        return _listed(next(self.systems([atoms])))

    def systems(self, structures: Sequence[ase.Atoms]) -> Iterator[System | StructureError]:
        """Yield each structure with its neighbour list, or the error that says why it cannot be evaluated."""
        return self._find(((atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc) for atoms in structures), self.cutoff)

    def check_memory(self, system: System) -> None:
        """Raise :class:`StructureError` for a structure that main memory cannot hold: the system would end the whole process."""
        need, free = system.n_edges * self.bytes_per_edge, psutil.virtual_memory().available
        if self.device.type == "cpu" and need > free:
            raise StructureError(
                f"{len(system.numbers):,} atoms with {system.n_edges:,} edges need up to {need / 1e9:.3g} GB of memory, "
                f"and {free / 1e9:.3g} GB are free; use a smaller cell, or a machine with more memory"
            )

    def max_edges(self) -> int:
        """Return how many directed edges fit into one batch, from the memory that is free now."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return max(1, int(0.7 * free / self.bytes_per_edge))
        free = psutil.virtual_memory().available
        return max(1, min(_MAX_EDGES_CPU, int(0.3 * free / self.bytes_per_edge)))

    def evaluate(self, structures: Iterable[ase.Atoms], *, stress: bool = False, progress: bool = False) -> list[Prediction]:  # noqa: D102
        structures = many(structures)
        predictions: list[Prediction | None] = [None] * len(structures)
        with tqdm(total=len(structures), disable=not progress, unit="structure", desc=self.key) as bar:
            batches = self.batches(structures, predictions)
            # On a CPU the thread would only take from the network what it gives.
            for batch in batches if self.device.type == "cpu" else _one_ahead(batches):
                for (index, _), prediction in zip(batch, self._evaluate_batch([s for _, s in batch], stress), strict=True):
                    predictions[index] = prediction
                bar.update(sum(p is not None for p in predictions) - bar.n)
            bar.update(len(structures) - bar.n)
        return cast("list[Prediction]", predictions)

    def batches(self, structures: Sequence[ase.Atoms], predictions: list[Prediction | None]) -> Iterator[list[tuple[int, System]]]:
        """Group structures so that a batch fits into memory; those that fail at once are recorded in ``predictions``."""
        limit = self.max_edges()
        batch: list[tuple[int, System]] = []
        n_edges = 0
        for index, found in enumerate(self.systems(structures)):
            try:
                system = _listed(found)
                if system.n_edges > limit:
                    self.check_memory(system)
            except StructureError as error:
                predictions[index] = Prediction.failed(len(structures[index]), str(error))
                continue
            if batch and n_edges + system.n_edges > limit:
                yield batch
                batch, n_edges = [], 0
            batch.append((index, system))
            n_edges += system.n_edges
        if batch:
            yield batch

    def _evaluate_batch(self, systems: list[System], stress: bool) -> list[Prediction]:
        """Evaluate a batch; halve it when the memory does not suffice or something in it fails."""
        try:
            energies, forces, stresses = self.compute(self.collate(systems), stress=stress)
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            if len(systems) == 1:
                return [Prediction.failed(len(systems[0].numbers), f"{type(error).__name__}: {error}")]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(systems) // 2
            return self._evaluate_batch(systems[:half], stress) + self._evaluate_batch(systems[half:], stress)
        energies = energies.detach().cpu().numpy()
        split = np.cumsum([len(system.numbers) for system in systems])[:-1]
        forces = np.split(forces.detach().cpu().numpy(), split)
        stresses = [None] * len(systems) if stresses is None else list(stresses.detach().cpu().numpy())
        return [
            Prediction(float(e), f, s)
            if np.isfinite(e) and np.isfinite(f).all()
            else Prediction.failed(len(f), "the model returned values that are not numbers")
            for e, f, s in zip(energies, forces, stresses, strict=True)
        ]


def _listed(found: System | StructureError) -> System:
    if isinstance(found, StructureError):
        raise found
    return found


def _one_ahead(batches: Iterator[list[tuple[int, System]]]) -> Iterator[list[tuple[int, System]]]:
    """Yield the batches; while one is evaluated, a thread makes the next."""
    with ThreadPoolExecutor(1) as worker:
        following = worker.submit(lambda: next(batches, None))
        while (batch := following.result()) is not None:
            following = worker.submit(lambda: next(batches, None))
            yield batch


class PotentialCalculator(Calculator):
    """ASE calculator around a :class:`Potential`."""

    implemented_properties = ("energy", "free_energy", "forces", "stress")

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def calculate(self, atoms: ase.Atoms | None = None, properties=("energy",), system_changes=all_changes) -> None:
        """Evaluate one structure.

        Raises
        ------
        StructureError
            If the potential cannot evaluate it.
        """
        super().calculate(atoms, properties, system_changes)
        prediction = self.potential.evaluate([self.atoms], stress="stress" in properties)[0]
        if not prediction.ok:
            raise StructureError(f"{self.atoms.get_chemical_formula()}: {prediction.error}")
        self.results = {"energy": prediction.energy, "free_energy": prediction.energy, "forces": prediction.forces}
        if "stress" in properties:
            if prediction.stress is None or not np.isfinite(prediction.stress).all():
                raise _NoSuchProperty(f"{self.potential.key} has no stress")
            self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress)
