"""MatGL networks (M3GNet, TensorNet), also those whose weights are older than MatGL's present conventions.

The networks, their layers and their parameters are MatGL's own. This module feeds them a batch of bonds
and, for older weights, restores what MatGL has changed since they were trained:

1. *Messages.* An edge i → j carries a message made of (features of i, features of j, features of the edge).
   Until MatGL 2 the messages were summed onto j; since MatGL 3.0 they are summed onto i.
2. *Triples* (M3GNet only). For every pair of bonds i → j and i → k shorter than the three-body cutoff, the
   three-body term takes the angle and the length r_ik, the features of atom k and the cutoff weights of both
   bonds, and adds the result to bond i → j. Until MatGL 4.0.3 the angle and the length were those of the right
   bonds, but all else was looked up under the bonds' numbers *among the short bonds*, in arrays of *all* bonds.
   The n-th short bond of a structure was thus stood in for by its n-th bond, whatever that is.

Nothing in MatGL is patched: each potential carries its own :class:`Convention`, so old and new weights work
side by side in one process.

What the second point means
---------------------------
"The n-th bond" depends on the order of the neighbour list, and the released weights were used with that of
pymatgen's ``find_points_in_spheres``: by centre atom, then by the cube of space in which the neighbour lies,
then by image and atom, descending. :func:`legacy_order` reproduces it. Bonds are numbered within each
structure, so a result does not depend on what else is in the batch. It does depend, slightly, on the order of
the atoms, the choice of the cell, and the position and orientation of the structure in space; a perfect crystal
keeps forces of up to 0.3 meV/Å; and the energy jumps, by some 0.01 meV, when a bond crosses the cutoff or a cube's
face (a shear strain of a cell with edges along x, y or z does so at once). Forces and stress are the derivatives
at fixed numbering. That all this is so little has a plausible reason: networks that see their triples in an
arbitrary order during training learn to do almost without them. On rattled crystals another order changes energies
by less than 0.02 meV/atom and forces by less than 1 meV/Å (checked in the tests).

:data:`LEGACY_RIGHT_TRIPLES` evaluates the same weights with the right bonds. That is exactly invariant and
smooth, and within 0.3 meV/atom and 1 meV/Å of :data:`LEGACY`. It is what to use where tiny forces or
differences matter (:meth:`M3GNetPotential.smooth`); the default remains what the weights were released with.

What is known about weight files
--------------------------------
``model.json`` does not tell the convention: M3GNet has been "model version 2" before and after both changes,
and TensorNet, 1 before and 2 after, carries no version of MatGL either. So weights are recognised by their
SHA-256, and others are refused. A network that is an object already comes in through :func:`from_network`.

Sources: Chen and Ong, Nat. Comput. Sci. 2, 718 (2022), M3GNet; Simeon and De Fabritiis, NeurIPS (2023),
TensorNet; Ko et al., npj Comput. Mater. 11, 253 (2025), MatGL; Kaplan et al., arXiv:2503.04070, MatPES.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers

from helpers.potentials.base import Graph, GraphPotential, PotentialError, angles, counts, linear_on_parts
from helpers.registry import sha256

with warnings.catch_warnings():
    # torch_geometric, which MatGL imports, still uses torch.jit.
    warnings.simplefilter("ignore", DeprecationWarning)
    from matgl.apps.pes import Potential as MatGLModel
    from matgl.models import M3GNet, TensorNet
    from matgl.utils.cutoff import cosine_cutoff, polynomial_cutoff


@dataclass(frozen=True)
class Convention:
    """What a network does with edges and triples."""

    name: str  # for descriptions and messages
    receiver: int  # the row of ``edge_index`` onto which messages are summed: 0, the centre, or 1, the neighbour
    stand_ins: bool  # whether the n-th short bond of a structure is stood in for by its n-th bond in the three-body terms


CURRENT = Convention("MatGL >= 4.0.4", receiver=0, stand_ins=False)
LEGACY = Convention("MatGL <= 2 (legacy)", receiver=1, stand_ins=True)
LEGACY_RIGHT_TRIPLES = Convention("MatGL <= 2 (legacy) with the right triples", receiver=1, stand_ins=False)


@dataclass(frozen=True)
class _Weights:
    architecture: str
    convention: Convention
    training_set: str
    citation: str


# By the SHA-256 of state.pt.
_KNOWN = {
    "a9aa723705bd1a242ec8749332f137811c4a94e17995a564f8f94a9aca68061b": _Weights(
        "M3GNet", LEGACY, "MPF.2021.2.8 (PBE, PBE+U)", "Chen and Ong, Nat. Comput. Sci. 2, 718 (2022); retrained in MatGL"
    ),
    "9f710eac88ec2c666c8e488883c59768cf11c116f177e9d82896ae56f3fc338d": _Weights(
        "M3GNet", LEGACY, "MatPES-PBE 2025.1 (PBE)", "Kaplan et al., arXiv:2503.04070"
    ),
    "d2dfa51a65d23a47fd935eb0628177d2a1088584562091ef3350ce3a002fce6a": _Weights(
        "TensorNet", LEGACY, "MatPES-PBE 2025.1 (PBE)", "Kaplan et al., arXiv:2503.04070"
    ),
}


class MatGLPotential(GraphPotential):
    """An energy that is a sum over atoms: data_std · Σ network + data_mean + Σ reference energies of the elements."""

    # Peak memory of energy, forces and stress per directed edge in float32: the largest of Si, MgO, Au and Li (100 to 200 atoms).
    bytes_measured: float
    compiles = True

    def __init__(
        self, key: str, model: MatGLModel, convention: Convention, *, device: torch.device, description: dict[str, object]
    ) -> None:
        network = model.model
        numbers = [atomic_numbers[symbol] for symbol in network.element_types]
        super().__init__(
            key,
            network,
            cutoff=network.cutoff,
            bytes_per_edge=self.bytes_measured * next(network.parameters()).dtype.itemsize / 4,
            device=device,
            elements=frozenset(numbers),
            description=description,
        )
        self.convention = convention
        # Sums over atoms are taken in double precision: float32 would lose 1e-4 eV in a large cell.
        self.mean = model.data_mean.to(device, torch.float64)
        self.std = model.data_std.to(device, torch.float64)
        # Row of each element in the network's embedding and in the reference energies. -1 is never looked up.
        self.element_row = torch.full((max(numbers) + 1,), -1, device=device)
        self.element_row[numbers] = torch.arange(len(numbers), device=device)
        if model.element_refs is None:
            self.element_energy = torch.zeros(len(numbers), dtype=torch.float64, device=device)
        else:
            self.element_energy = model.element_refs.property_offset.to(device, torch.float64)

    def energies(self, graph: Graph) -> torch.Tensor:  # noqa: D102
        rows = self.element_row[graph.numbers]
        network_energies = self.maybe_compiled(type(self).atomic_energies)(self, graph, rows)
        per_atom = self.std * network_energies.to(torch.float64) + self.element_energy[rows]
        return self.mean + per_atom.new_zeros(graph.n_systems).index_add(0, graph.system, per_atom)

    @abstractmethod
    def atomic_energies(self, graph: Graph, rows: torch.Tensor) -> torch.Tensor:
        """Return the network's output for each atom, shape (N,). ``rows`` are the rows of the atoms' elements."""


class M3GNetPotential(MatGLPotential):
    """M3GNet in any of the three conventions."""

    bytes_measured, compiled_saves = 40_000, 0.35

    def smooth(self) -> M3GNetPotential:
        """Return the same weights with the right triples (:data:`LEGACY_RIGHT_TRIPLES`) if they were released with others."""
        if not self.convention.stand_ins:
            return self
        twin = copy.copy(self)
        twin.convention = replace(self.convention, name=LEGACY_RIGHT_TRIPLES.name, stand_ins=False)
        twin.description = {**self.description, "convention": twin.convention.name}
        return twin

    def topology(self, graph: Graph, distances: torch.Tensor) -> dict[str, torch.Tensor]:
        """List the triples: two bonds of an atom shorter than the three-body cutoff, and the bonds that stand in for them."""
        cutoff = self.network.threebody_cutoff
        # angles() takes bonds shorter than its cutoff, MatGL those not longer.
        _, left, right = angles(graph.edge_index[0], distances, math.nextafter(cutoff, math.inf))
        if not self.convention.stand_ins:
            return {"left": left, "right": right, "stands_left": left, "stands_right": right}
        stand_in = stand_ins(graph, distances, self.cutoff, cutoff)
        return {"left": left, "right": right, "stands_left": stand_in[left], "stands_right": stand_in[right]}

    def atomic_energies(self, graph: Graph, rows: torch.Tensor) -> torch.Tensor:  # noqa: D102
        network, top, edge_index = self.network, graph.topology, graph.edge_index
        lengths = torch.linalg.norm(graph.vectors, dim=1)
        directions = graph.vectors / lengths[:, None]
        radial = network.bond_expansion(lengths)
        cosines = (directions[top["left"]] * directions[top["right"]]).sum(1)
        # As in MatGL, whose weights were trained so.
        cosines = cosines.clamp(-1 + 1e-7, 1 - 1e-7)
        basis = network.basis_expansion
        # The radial part depends on one bond only: it is evaluated once per bond, not once per triple. Its columns are those of degree 0,
        # then those of degree 1, and so on.
        spherical = basis.shf(cosines, torch.zeros_like(cosines)).repeat_interleave(basis.max_n, dim=1)
        left, right = top["stands_left"], top["stands_right"]
        weights = polynomial_cutoff(lengths, network.threebody_cutoff)
        angular = basis.sbf(lengths)[top["right"]] * spherical * (weights[left] * weights[right])[:, None]
        ends = edge_index[1][right]

        atoms, edges, _ = network.embedding(rows, radial, None)
        for three_body, block in zip(network.three_body_interactions, network.graph_layers, strict=True):
            # As the package does; but that makes the zeros to sum onto on the CPU.
            bonds = edges.new_zeros(len(edges), angular.shape[1]).index_add(0, left, angular * three_body.update_network_atom(atoms)[ends])
            edges = edges + three_body.update_network_bond(bonds)
            layer = block.conv
            edges = edges + _gated(layer.edge_update_func, atoms, edges, edge_index) * layer.edge_weight_func(radial)
            messages = _gated(layer.node_update_func, atoms, edges, edge_index) * layer.node_weight_func(radial)
            atoms = atoms.index_add(0, edge_index[self.convention.receiver], messages)
        return network.final_layer(atoms).view(-1)


def _gated(mlp: torch.nn.Module, atoms: torch.Tensor, edges: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
    """Apply a gated MLP to the features of the two atoms of each edge and of the edge, side by side, shape (E, units)."""
    branches = mlp.layers, mlp.gates
    parts = [(atoms, edge_index[0]), (atoms, edge_index[1]), (edges, None)]
    total = linear_on_parts([branch[0] for branch in branches], parts)
    core, gate = (branch[1:](half) for branch, half in zip(branches, total.chunk(2, dim=1), strict=True))
    return core * gate


class TensorNetPotential(MatGLPotential):
    """TensorNet. Legacy weights are turned into current ones when they are loaded (:func:`exchange_ends`).

    MatGL writes the three irreducible parts of a tensor as a 3 × 3 matrix each, for every edge. Here a tensor has its nine independent
    components (:data:`_TO_MATRIX`), and what depends on one atom only is computed per atom: the same numbers with a third of the memory
    traffic, which is what the network spends its time on. The layers and their parameters are MatGL's own.
    """

    bytes_measured, compiled_saves = 140_000, 0.15

    def __init__(self, key: str, model: MatGLModel, convention: Convention, **settings: Any) -> None:
        super().__init__(key, model, convention, **settings)
        matrices = (one.to(self.device, self.network_dtype) for one in (_TO_MATRIX, torch.linalg.inv(_TO_MATRIX)))
        self.forms = _Forms(*matrices, torch.tensor(_PART, device=self.device))

    def atomic_energies(self, graph: Graph, rows: torch.Tensor) -> torch.Tensor:  # noqa: D102
        network = self.network
        lengths = torch.linalg.norm(graph.vectors, dim=1)
        radial = network.bond_expansion(lengths)
        cutoff = cosine_cutoff(lengths, network.cutoff)[:, None]
        tensors = _embedded(network.tensor_embedding, rows, graph.edge_index, graph.vectors / lengths[:, None], radial, cutoff, self.forms)
        for layer in network.layers:
            tensors = _interacted(layer, tensors, graph.edge_index, radial, cutoff, self.forms)
        features = network.linear(network.out_norm(torch.cat(_squares(tensors), dim=1)))
        return network.final_layer(features).view(-1)


# A real 3 × 3 matrix is a multiple of the unit matrix, a skew matrix and a symmetric one without trace. Its nine independent components:
# the multiple; the vector a with a × r = A r; and xx, yy, xy, xz, yz of the symmetric one.
_PARTS = ((0, 1), (1, 4), (4, 9))
_PART = [number for number, (start, stop) in enumerate(_PARTS) for _ in range(start, stop)]
# From components to matrix elements in the order xx, xy, xz, yx, …, zz.
_TO_MATRIX = torch.tensor(
    [
        [1, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, -1, 0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0, 0, 0],
        [0, -1, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, -1, 0, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, -1, -1, 0, 0, 0],
    ],
    dtype=torch.float64,
)


@dataclass(frozen=True)
class _Forms:
    """What turns tensors from one form into the other, and the part that each component belongs to; it lies where the network does."""

    to_matrix: torch.Tensor
    to_components: torch.Tensor
    part: torch.Tensor

    def matrices(self, tensors: torch.Tensor) -> torch.Tensor:
        """Return tensors, shape (N, 9, units), as matrices, shape (N, 3, 3, units)."""
        return (self.to_matrix @ tensors).unflatten(1, (3, 3))

    def components(self, matrices: torch.Tensor) -> torch.Tensor:
        """Return matrices, shape (N, 3, 3, units), as tensors, shape (N, 9, units)."""
        return self.to_components @ matrices.flatten(1, 2)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the matrix product of each unit, shape (N, 3, 3, units)."""
    return (left[:, :, :, None] * right[:, None]).sum(2)


def _squares(tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the squared Frobenius norms of the three parts, shape (N, units) each."""
    multiple, skew, symmetric = (tensors[:, start:stop] for start, stop in _PARTS)
    diagonal, off_diagonal = symmetric[:, :2], symmetric[:, 2:]
    last = diagonal.sum(1)
    return (
        3 * multiple[:, 0] ** 2,
        2 * (skew**2).sum(1),
        (diagonal**2).sum(1) + last**2 + 2 * (off_diagonal**2).sum(1),
    )


def _mixed(layers: Sequence[torch.nn.Module], tensors: torch.Tensor) -> torch.Tensor:
    """Mix the units of each part with the part's own layer."""
    return torch.cat([layer(tensors[:, start:stop]) for layer, (start, stop) in zip(layers, _PARTS, strict=True)], dim=1)


def _summed(messages: Sequence[torch.Tensor], centre: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """Return the sums over each atom's bonds of messages, one tensor of shape (E, …, units) for each part."""
    return torch.cat([part.new_zeros(n_atoms, *part.shape[1:]).index_add(0, centre, part) for part in messages], dim=1)


def _embedded(
    embedding: torch.nn.Module,
    rows: torch.Tensor,
    edge_index: torch.Tensor,
    directions: torch.Tensor,
    radial: torch.Tensor,
    cutoff: torch.Tensor,
    forms: _Forms,
) -> torch.Tensor:
    """Return the first tensors of the atoms, shape (N, 9, units): sums over neighbours of the outer products of the bonds' directions."""
    centre, neighbour = edge_index
    units = embedding.units
    # A linear layer of two atoms' features side by side is the sum of one for each.
    elements, weight = embedding.emb(rows), embedding.emb2.weight
    of_centre = elements @ weight[:, :units].T + embedding.emb2.bias
    of_neighbour = elements @ weight[:, units:].T
    pair = (of_centre[centre] + of_neighbour[neighbour]) * cutoff
    multiple, skew, symmetric = (
        project(radial) * pair for project in (embedding.distance_proj1, embedding.distance_proj2, embedding.distance_proj3)
    )
    x, y, z = directions.unbind(1)
    square = torch.stack([x * x - 1 / 3, y * y - 1 / 3, x * y, x * z, y * z], dim=1)
    messages = [multiple[:, None], directions[:, :, None] * skew[:, None], square[:, :, None] * symmetric[:, None]]
    tensors = _summed(messages, centre, len(rows))

    norm = embedding.init_norm(sum(_squares(tensors)))
    for linear in embedding.linears_scalar:
        norm = embedding.act(linear(norm))
    return _mixed(embedding.linears_tensor, tensors) * norm.unflatten(1, (units, 3)).movedim(2, 1)[:, forms.part]


def _interacted(
    layer: torch.nn.Module, tensors: torch.Tensor, edge_index: torch.Tensor, radial: torch.Tensor, cutoff: torch.Tensor, forms: _Forms
) -> torch.Tensor:
    """Return the tensors after one interaction, shape (N, 9, units)."""
    centre, neighbour = edge_index
    weights = radial
    for linear in layer.linears_scalar:
        weights = layer.act(linear(weights))
    weights = (weights * cutoff).unflatten(1, (layer.units, 3)).movedim(2, 1).contiguous()

    tensors = tensors / (sum(_squares(tensors)) + 1)[:, None]
    own = _mixed(layer.linears_tensor[:3], tensors)
    messages = [own[neighbour, start:stop] * weights[:, part, None] for part, (start, stop) in enumerate(_PARTS)]
    received = forms.matrices(_summed(messages, centre, len(own)))
    own = forms.matrices(own)
    if layer.equivariance_invariance_group == "O(3)":
        change = _product(received, own) + _product(own, received)
    else:
        change = 2 * _product(own, received)
    change = change / ((change**2).sum((1, 2)) + 1)[:, None, None]
    change = _mixed(layer.linears_tensor[3:], forms.components(change))
    matrix = forms.matrices(change)
    return tensors + change + forms.components(_product(matrix, matrix))


def exchange_ends(network: TensorNet) -> None:
    """Turn a TensorNet of the legacy convention into one of the current convention, in place and exactly.

    Every edge i → j has its reverse. A message of (i, j) summed onto j is, seen from the reverse edge, a message of (neighbour, centre)
    summed onto the centre, with the opposite bond vector. The order of the two atoms enters one linear layer only, whose two halves are
    exchanged here; the sign of all bond vectors is an inversion of space, under which the energy of an O(3) network does not change.
    PotentialError if the network is not O(3)-invariant.
    """
    if network.equivariance_invariance_group != "O(3)":
        raise PotentialError("a legacy TensorNet that is not O(3)-invariant cannot be turned into a current one")
    layer = network.tensor_embedding.emb2
    with torch.no_grad():
        layer.weight.copy_(layer.weight.roll(layer.in_features // 2, dims=1))


def stand_ins(graph: Graph, distances: torch.Tensor, cutoff: float, three_body_cutoff: float) -> torch.Tensor:
    """Return, for each short bond, the bond that stands in for it in the legacy three-body terms, shape (E,); -1 for long bonds.

    That is, for the n-th bond of a structure among those not longer than ``three_body_cutoff`` (Å), the n-th bond of that structure, both
    counted in the order of :func:`legacy_order`.
    """
    order = legacy_order(graph, cutoff)
    short = order[distances[order] <= three_body_cutoff]
    system = graph.edge_system
    n_edges = counts(system, graph.n_systems)
    n_short = counts(system[short], graph.n_systems)
    first_edge = torch.cumsum(n_edges, 0) - n_edges
    first_short = torch.cumsum(n_short, 0) - n_short
    number = torch.arange(len(short), device=short.device) - first_short[system[short]]
    result = torch.full_like(order, -1)
    result[short] = order[first_edge[system[short]] + number]
    return result


def legacy_order(graph: Graph, cutoff: float) -> torch.Tensor:
    """Return the edges of a batch, shape (E,), in the order in which pymatgen's ``find_points_in_spheres`` lists them.

    It lays cubes with an edge of ``cutoff`` (Å) from the corner ``min(positions) − cutoff`` of each structure, and lists for each centre
    the neighbours in the 27 cubes around its own, x slowest; within a cube, from the last of the periodic images to the first (counted from
    the atoms wrapped into the cell, x slowest) and within an image from the last atom to the first.
    """
    tolerance = 1e-8
    centre, neighbour = graph.edge_index
    system = graph.edge_system
    corner = graph.positions.new_full((graph.n_systems, 3), torch.inf)
    corner = corner.scatter_reduce(0, graph.system[:, None].expand(-1, 3), graph.positions, "amin") - cutoff - tolerance

    def cube(positions: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        return torch.floor((positions - corner[owner] + tolerance) / cutoff)

    home = cube(graph.positions, graph.system)
    images = graph.positions[neighbour] + torch.einsum("es,esx->ex", graph.shifts, graph.cells[system])
    step = (cube(images, system) - home[centre] + 1).to(torch.int64)

    fractional = torch.einsum("nx,nxs->ns", graph.positions, torch.linalg.inv_ex(graph.cells).inverse[graph.system])
    image = (graph.shifts + torch.floor(fractional)[neighbour]).to(torch.int64)
    image = image.max(dim=0).values - image
    span = image.max(dim=0).values + 1

    key = centre
    for axis in range(3):
        key = key * 3 + step[:, axis]
    for axis in range(3):
        key = key * span[axis] + image[:, axis]
    n_atoms = len(graph.numbers)
    return torch.argsort(key * n_atoms + (n_atoms - 1 - neighbour))


_FAMILIES = {M3GNet: M3GNetPotential, TensorNet: TensorNetPotential}


def from_network(
    key: str,
    model: MatGLModel,
    *,
    convention: Convention = CURRENT,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    description: dict[str, object] | None = None,
) -> MatGLPotential:
    """Wrap a MatGL potential that is an object already: one just built, trained, or loaded by MatGL. It is copied, not changed.

    ``model`` is an M3GNet or a TensorNet with its data mean, scale and reference energies, ``convention`` the one its weights were trained
    in, ``description`` what else to say about it (:meth:`~helpers.potentials.Potential.describe`). PotentialError if the network is of
    another kind, or has parts that this adapter does not evaluate.
    """
    # A network that has been used keeps its last features, with their autograd history; those are left out of the copy.
    features = getattr(model.model, "feature_dict", None)
    model = copy.deepcopy(model, {id(features): None})
    network = model.model
    family = _FAMILIES.get(type(network))
    if family is None:
        names = " and ".join(kind.__name__ for kind in _FAMILIES)
        raise PotentialError(f"{type(network).__name__} networks cannot be evaluated here, only {names}")
    if network.is_intensive or network.include_state or model.calc_repuls or model.calc_charge:
        raise PotentialError("only energies that are sums over atoms, without state features, repulsion or charges, can be evaluated")
    if any(getattr(block, "dropout", None) is not None for block in getattr(network, "graph_layers", ())):
        raise PotentialError("networks with dropout cannot be evaluated")
    if getattr(getattr(network, "basis_expansion", None), "use_phi", False):
        raise PotentialError("networks with a second angle in their triples (use_phi) cannot be evaluated")
    if isinstance(network, TensorNet) and convention.receiver == 1:
        exchange_ends(network)
    network.to(dtype)
    return family(
        key,
        model,
        convention,
        device=torch.device(device),
        description={
            "family": type(network).__name__,
            "package": f"matgl {version('matgl')}",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "cutoff_a": network.cutoff,
            "convention": convention.name,
            **(description or {}),
        },
    )


def load(
    key: str,
    paths: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    trust: bool = False,
    convention: Convention | None = None,
) -> MatGLPotential:
    """Load MatGL weights from ``model.json`` and ``state.pt``, as :mod:`helpers.potentials` asks of a family.

    No file can run code: the architecture is read from ``model.json``, the parameters by PyTorch's restricted unpickler, and ``model.pt``,
    which says the same as ``model.json``, is not opened. ``trust`` makes no difference: an unknown convention cannot be trusted away.
    ``convention`` evaluates the weights in another one than their own, to see what it does. PotentialError if the weights are not among
    those whose convention is known.
    """
    files = {Path(path).name: Path(path) for path in paths}
    missing = {"model.json", "state.pt"} - set(files)
    if missing:
        raise PotentialError(f"{key}: {' and '.join(sorted(missing))} not among the files given")
    found = sha256(files["state.pt"])
    header = json.loads(files["model.json"].read_text())
    architecture = header["kwargs"]["model"]
    name = architecture["@class"]
    known = _KNOWN.get(found)
    if known is None or known.architecture != name:
        raise PotentialError(
            f"{files['state.pt']} ({name}, model version {architecture.get('@model_version')}, SHA-256 {found}): the message-passing "
            "convention of these weights is not known, and the wrong one gives wrong energies without any other sign. "
            "Load them with the MatGL that they were trained with, or wrap the loaded potential with from_network()."
        )
    # dtype: the file's is a string, and the network is converted below. use_warp: MatGL's GPU kernels store tensors in another layout.
    arguments = {argument: value for argument, value in architecture["init_args"].items() if argument != "dtype"}
    network = TensorNet(**arguments, use_warp=False) if name == "TensorNet" else M3GNet(**arguments)
    state = torch.load(files["state.pt"], map_location="cpu", weights_only=True)
    prefix = "model."
    network.load_state_dict({part.removeprefix(prefix): value for part, value in state.items() if part.startswith(prefix)})
    model = MatGLModel(
        model=network,
        data_mean=state["data_mean"],
        data_std=state["data_std"],
        element_refs=state["element_refs.property_offset"],
        calc_repuls=header["kwargs"].get("calc_repuls", False),
    )
    return from_network(
        key,
        model,
        convention=convention or known.convention,
        device=device,
        dtype=dtype,
        description={"weights_sha256": found, "training_set": known.training_set, "citation": known.citation},
    )
