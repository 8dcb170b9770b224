"""MACE: the published foundation models, and any MACE model file.

A MACE file is a pickle, and a pickle is code. A file is opened only when its SHA-256 stands in the
registry, or when the caller says ``trust=True``.

Source: Batatia et al., Advances in Neural Information Processing Systems 35, 11423 (2022);
the foundation models: Batatia et al., J. Chem. Phys. 163, 184110 (2025).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from helpers import registry
from helpers.potentials.base import Graph, GraphPotential, PotentialError

_TRAINING_SETS = {
    "mace-mp-0-medium": "MPtrj (PBE, PBE+U)",
    "mace-mpa-0-medium": "MPtrj + sAlex (PBE, PBE+U)",
}
_CITATION = "Batatia et al., J. Chem. Phys. 163, 184110 (2025)"

UNSAFE_UNPICKLING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

# Peak memory of energy, forces and stress per directed edge, in units of one edge's messages in the widest
# layer. Measured on networks of 16 to 128 channels in both precisions: 3 (scalars only) to 6.2.
_COPIES_OF_MESSAGES = 7


class MACEPotential(GraphPotential):
    """MACE behind the common interface."""

    head = 0
    takes_mixtures = True

    def __init__(self, key: str, network: torch.nn.Module, **settings: Any) -> None:
        super().__init__(key, network, **settings)
        # In a list of Python's, so that the network stays the package's. They hold constants only, no weights.
        self._convolutions = [_convolution(interaction) for interaction in network.interactions]

    def topology(self, graph: Graph, distances: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: D102
        from helpers.potentials.equivariant import by_element, even

        elements = (graph.numbers[:, None] == self.network.atomic_numbers).int().argmax(dim=1)
        order, sizes = by_element(elements, len(self.network.atomic_numbers))
        return {"rows": even(graph.edge_index[0], len(graph.numbers)), "by_element": order, "of_element": sizes}

    def energies(self, graph: Graph) -> torch.Tensor:  # noqa: D102
        network = _with_less_work(self.network, self._convolutions, graph.topology)
        if graph.weights is not None:
            network = _weighted(network, graph)
        # MACE takes positions and lattice shifts and forms r[receiver] − r[sender] + shift. The bond vectors are already
        # known, to double precision: they go in as the shifts of atoms that all sit at the origin. The centre receives.
        data = {
            "positions": graph.vectors.new_zeros(len(graph.numbers), 3),
            "shifts": -graph.vectors,
            "edge_index": graph.edge_index.flip(0),
            "cell": graph.cells.to(graph.vectors.dtype),
            "node_attrs": (graph.numbers[:, None] == network.atomic_numbers).to(graph.vectors.dtype),
            "batch": graph.system,
            "ptr": torch.nn.functional.pad(torch.cumsum(graph.n_atoms, 0), (1, 0)),
            "head": torch.full((graph.n_systems,), self.head, device=graph.vectors.device),
        }
        per_atom = network(data, compute_force=False)["node_energy"].to(torch.float64)
        if graph.weights is not None:
            per_atom = per_atom * graph.weights
        return per_atom.new_zeros(graph.n_systems).index_add(0, graph.system, per_atom)


def _convolution(interaction: torch.nn.Module) -> torch.nn.Module | None:
    """Return this project's version of what makes and sums the messages; None if the network has another kind than the published ones."""
    # Not at the top: the first import of e3nn must be MACE's, see contained().
    from e3nn.o3 import TensorProduct

    from helpers.potentials.equivariant import Convolution

    if type(interaction.conv_tp) is not TensorProduct or hasattr(interaction, "conv_fusion"):
        return None
    weights = next(interaction.parameters())
    try:
        return Convolution.like(interaction.conv_tp).to(weights.device, weights.dtype)
    except ValueError:
        return None


def _with_less_work(
    network: torch.nn.Module, convolutions: Sequence[torch.nn.Module | None], topology: Mapping[str, torch.Tensor]
) -> torch.nn.Module:
    """Return a MACE that shares all parameters with another one, with this project's versions of some layers in its interactions."""
    from e3nn.o3 import FullyConnectedTensorProduct

    from helpers.potentials.equivariant import ElementLinear

    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    interactions = []
    for interaction, convolution in zip(network.interactions, convolutions, strict=True):
        other = copy.copy(interaction)
        other._modules = dict(interaction._modules)
        if convolution is not None:
            del other.conv_tp  # what takes its place is no module
            other.conv_tp = functools.partial(convolution, rows=topology["rows"])
            other.conv_fusion = True  # the package's word for a conv_tp that also sums
        if type(interaction.skip_tp) is FullyConnectedTensorProduct:
            del other.skip_tp
            other.skip_tp = functools.partial(ElementLinear(interaction.skip_tp), groups=(topology["by_element"], topology["of_element"]))
        interactions.append(other)
    twin.interactions = torch.nn.ModuleList(interactions)
    return twin


class _WeightedRadial(torch.nn.Module):
    """The radial embedding, with the factors of messages where the interactions expect the cutoff function, which they multiply by."""

    def __init__(self, inner: torch.nn.Module, factors: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.factors = inner, factors

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, cutoff = self.inner(*inputs)
        return features, self.factors if cutoff is None else cutoff * self.factors


class _WeightedPairs(torch.nn.Module):
    """The pair repulsion of MACE, each pair multiplied by the factor of its message."""

    def __init__(self, inner: torch.nn.Module, factors: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.factors = inner, factors

    def forward(
        self, lengths: torch.Tensor, node_attrs: torch.Tensor, edge_index: torch.Tensor, atomic_numbers: torch.Tensor
    ) -> torch.Tensor:
        # The package adds up the pairs of each atom. Here every pair has two atoms of its own, so that the sum is over one.
        sender, receiver = edge_index
        n_edges = len(sender)
        apart = torch.arange(2 * n_edges, device=sender.device).view(2, n_edges)
        pairs = self.inner(lengths, node_attrs[torch.cat([sender, receiver])], apart, atomic_numbers)[n_edges:]
        return pairs.new_zeros(len(node_attrs)).index_add(0, receiver, pairs * self.factors[:, 0])


def _weighted(network: torch.nn.Module, graph: Graph) -> torch.nn.Module:
    """Return a MACE that shares all parameters with another one and weights messages as a mixture asks for."""
    factors = graph.weight_of_messages(target=graph.edge_index[0], source=graph.edge_index[1])
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    twin.radial_embedding = _WeightedRadial(network.radial_embedding, factors)
    if hasattr(network, "pair_repulsion_fn"):
        twin.pair_repulsion_fn = _WeightedPairs(network.pair_repulsion_fn, factors)
    return twin


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Let MACE be imported without lasting effects on the process.

    On import MACE sets an environment variable that turns off safe unpickling for everything loaded later,
    and prints. The variable is put back as it was. (e3nn, below MACE, unpickles a table of its own that holds slices.)
    """
    before = os.environ.get(UNSAFE_UNPICKLING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.serialization.safe_globals([slice]):
            warnings.filterwarnings("ignore", message=f"Environment variable {UNSAFE_UNPICKLING}")
            yield
    finally:
        if before is None:
            os.environ.pop(UNSAFE_UNPICKLING, None)
        else:
            os.environ[UNSAFE_UNPICKLING] = before


def load(
    key: str, paths: Sequence[Path], device: torch.device, dtype: torch.dtype = torch.float32, *, trust: bool = False
) -> MACEPotential:
    """Load a MACE foundation model from its file, as :mod:`helpers.potentials` asks of a family; errors are those of :func:`load_file`."""
    (path,) = paths
    return _load(key, Path(path), device, dtype, trust, training_set=_TRAINING_SETS[key], citation=_CITATION)


def load_file(key: str, path: Path, device: torch.device, dtype: torch.dtype = torch.float32, *, trust: bool = False) -> MACEPotential:
    """Load any MACE model file: a whole model, as written by ``mace_run_train``; the key is ``file:PATH``.

    With ``trust`` also one whose SHA-256 is not in the registry, which can run any code. PotentialError, which names the file, if it is
    missing, must not be trusted, cannot be read, or holds something other than a MACE network for energies.
    """
    return _load(key, Path(path), device, dtype, trust, training_set="not stated", citation="not stated")


def _load(
    key: str, path: Path, device: torch.device, dtype: torch.dtype, trust: bool, *, training_set: str, citation: str
) -> MACEPotential:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PotentialError(f"cannot read the model file {path}: {error.strerror}") from error
    if registry.is_web_page(content):
        raise PotentialError(f"{path} is a web page, such as a proxy or a login sends instead of a file; fetch the model file again.")
    # The bytes that are checked are the bytes that are unpickled.
    found = hashlib.sha256(content).hexdigest()
    if not trust and found not in {file.sha256 for file in registry.files()}:
        raise PotentialError(
            f"{path}: SHA-256 {found} is not in the registry, and a model file can run any code when it is opened. "
            "If you trust where it comes from, pass trust=True (on the command line: --trust)."
        )
    network = _unpickle(path, content)
    cutoff = round(float(network.r_max), 6)
    head, name = _head(path, getattr(network, "heads", None) or ["Default"])
    network = network.to(dtype)
    potential = MACEPotential(
        key,
        network,
        cutoff=cutoff,
        bytes_per_edge=bytes_per_edge(network, dtype),
        device=device,
        elements=frozenset(network.atomic_numbers.tolist()),
        description={
            "family": "MACE",
            "package": f"mace-torch {version('mace-torch')}",
            "weights_sha256": found,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "training_set": training_set,
            "cutoff_a": cutoff,
            "convention": f"package, head {name}",
            "citation": citation,
        },
    )
    potential.head = head
    return potential


def _unpickle(path: Path, content: bytes) -> torch.nn.Module:
    with contained():
        from mace.modules.models import MACE, ScaleShiftMACE

        try:
            network = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
        except Exception as error:  # a damaged pickle raises whatever its bytes spell
            raise PotentialError(
                f"{path} cannot be opened as a MACE model file ({type(error).__name__}: {error}). "
                "Is the file complete, and was it written by torch.save with a version of mace-torch close to this one?"
            ) from error
    # Subclasses need further inputs (charges, fields) that a structure does not have.
    if type(network) not in (MACE, ScaleShiftMACE):
        raise PotentialError(f"{path} holds a {type(network).__name__}, not a MACE network for energies (MACE or ScaleShiftMACE).")
    if hasattr(network, "joint_embedding"):
        raise PotentialError(f"{path} asks for {', '.join(network.embedding_specs)} besides the structure; such models are not supported.")
    return network


def _head(path: Path, heads: Sequence[str]) -> tuple[int, str]:
    """Return the index and name of the energy head: the only one, or the one called ``default`` as in MACE's own calculator."""
    if len(heads) == 1:
        return 0, heads[0]
    for index, name in enumerate(heads):
        if name.lower() == "default":
            return index, name
    raise PotentialError(f"{path} has the heads {', '.join(heads)}; extract one of them with mace_select_head and load that file.")


def bytes_per_edge(network: torch.nn.Module, dtype: torch.dtype) -> float:
    """Estimate the peak memory per directed edge from the width of the widest layer's messages."""
    width = max(interaction.conv_tp.irreps_out.dim for interaction in network.interactions)
    return float(_COPIES_OF_MESSAGES * width * dtype.itemsize)
