"""CHGNet, with the weights that its package carries.

The layers and their parameters are the package's own; graph construction, batching and the order of the products are this
project's (whole batches at once, checked against the package in the tests), because building CHGNet's line graph
one structure at a time takes longer than the network itself.

Source: Deng et al., Nat. Mach. Intell. 5, 1031 (2023).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import chgnet
import torch
from chgnet.model import CHGNet

from helpers.potentials.base import Graph, GraphPotential, PotentialError, angles, counts, linear_on_parts, undirected_bonds
from helpers.registry import sha256

# The packages' own weight files, by SHA-256: a pickle is code, so only these are loaded.
_WEIGHTS = {
    "chgnet-0.3.0": (
        "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
    ),
    "chgnet-0.2.0": (
        "0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
        "ef624f78b6db9d315b4ef256f1bb3207449924191b91720dc17d3f60c5df980e",
    ),
}

# Peak memory of energy, forces and stress per directed edge: 52 to 58 kB measured on MgO (three to four angles per edge), 19 kB on Si.
BYTES_PER_EDGE = 60_000

# Elements of the Materials Project trajectories (MPtrj): hydrogen to plutonium without Po, At, Rn, Fr, Ra.
MPTRJ_ELEMENTS = frozenset(range(1, 95)) - frozenset(range(84, 89))


class CHGNetPotential(GraphPotential):
    """CHGNet behind the common interface."""

    # The package's trainer, too, keeps the composition model (a linear fit of reference energies) as it is.
    untrained = ("composition_model",)
    takes_mixtures = True
    compiles, compiled_saves = True, 0.25

    def topology(self, graph: Graph, distances: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pair the two directions of every bond, and list the angles between bonds shorter than the line graph's cutoff.

        In a mixture a bond belongs to the species that one of its ends, or both, have; bonds of two species make no angle.
        """
        bond, first = undirected_bonds(graph)
        centre, left, right = angles(graph.edge_index[0], distances, self.network.graph_converter.bond_graph_cutoff)
        if graph.species is not None:
            one, other = (graph.species[graph.edge_index[1][edge]] for edge in (left, right))
            kept = torch.nonzero((one < 0) | (other < 0) | (one == other)).squeeze(1)
            centre, left, right = centre[kept], left[kept], right[kept]
        return {"bond": bond, "first": first, "centre": centre, "left": left, "right": right}

    def energies(self, graph: Graph) -> torch.Tensor:  # noqa: D102
        # The package leaves the bonds of a structure without angles as they are, but as soon as there is one
        # angle in a batch it updates all bonds, in 0.2.0 with a constant. Without this split a structure
        # would depend on the others in its batch.
        has_angles = counts(graph.system[graph.topology["centre"]], graph.n_systems) > 0
        if has_angles.all() or not has_angles.any():
            return self._energies(graph)
        energies = graph.vectors.new_zeros(graph.n_systems)
        for chosen in (has_angles, ~has_angles):
            part = subset(graph, chosen)
            part.topology = self.topology(part, torch.linalg.norm(part.vectors.detach(), dim=1))
            energies[chosen] = self._energies(part)
        return energies

    def _energies(self, graph: Graph) -> torch.Tensor:
        network, top = self.network, graph.topology
        # The package measures bonds from neighbour to centre; the sign cancels in lengths and angles.
        lengths = torch.linalg.norm(graph.vectors, dim=1)
        directions = graph.vectors / lengths[:, None]
        encoder = network.bond_basis_expansion
        bond_lengths = lengths[top["first"]]
        cosines_from = directions[top["left"]], directions[top["right"]]
        n_atoms = graph.n_atoms
        per_atom = self.maybe_compiled(CHGNetPotential._per_atom)(
            self,
            graph,
            rbf_ag=encoder.rbf_expansion_ag(bond_lengths),
            rbf_bg=encoder.rbf_expansion_bg(bond_lengths),
            angle_bases=network.angle_basis_expansion(*cosines_from),
        )
        if network.composition_model is not None:
            composition = per_atom.new_zeros(graph.n_systems, network.composition_model.max_num_elements)
            share = per_atom.new_ones(()) if graph.weights is None else graph.weights
            composition = composition.index_put((graph.system, graph.numbers - 1), share, accumulate=True)
            per_atom = per_atom + network.composition_model._get_energy(composition / n_atoms[:, None])
        return per_atom * n_atoms

    def _per_atom(self, graph: Graph, rbf_ag: torch.Tensor, rbf_bg: torch.Tensor, angle_bases: torch.Tensor) -> torch.Tensor:
        """Return the energies per atom, shape (B,), without those of the elements.

        The message passing of the package, with its own layers and parameters, but for one thing: the first linear layer of a gated MLP,
        which the package applies to the features of atoms, bonds and angle side by side, for every angle, is applied to each atom and
        each bond once, and the results are added. On a CPU that is 1.5 times as fast.
        """
        network, top = self.network, graph.topology
        centre, neighbour = graph.edge_index
        bond = top["bond"]
        of_angle = ((top["bond"][top["left"]], 1), (top["bond"][top["right"]], 1), (None, 2), (top["centre"], 0))
        atoms = network.atom_embedding(graph.numbers - 1)
        bonds = network.bond_embedding(rbf_ag)
        atom_weights = network.bond_weights_ag(rbf_ag)[bond]
        has_angles = len(angle_bases) > 0
        if has_angles:
            angles_ = network.angle_embedding(angle_bases)
            weights = network.bond_weights_bg(rbf_bg)
            bond_weights = weights[of_angle[0][0]] * weights[of_angle[1][0]]
        if graph.weights is not None:
            atom_weights = atom_weights * graph.weight_of_messages(centre, neighbour)
            if has_angles:
                bond_weights = bond_weights * self._weight_of_angles(graph)

        def convolved(layer: torch.nn.Module) -> torch.Tensor:
            messages = _gated(layer.twoBody_atom, [(atoms, centre), (bonds, bond), (atoms, neighbour)]) * atom_weights
            return _updated(layer, torch.zeros_like(atoms).index_add(0, centre, messages), atoms, layer.atom_norm)

        layers = zip(network.atom_conv_layers, [*network.bond_conv_layers, None], [*network.angle_layers, None, None], strict=False)
        for atom_layer, bond_layer, angle_layer in layers:
            atoms = convolved(atom_layer)
            if not has_angles or bond_layer is None:
                continue
            inputs = [((atoms, bonds, angles_)[which], index) for index, which in of_angle]
            messages = _gated(bond_layer.twoBody_bond, inputs) * bond_weights
            bonds = _updated(bond_layer, torch.zeros_like(bonds).index_add(0, of_angle[0][0], messages), bonds, bond_layer.bond_norm)
            if angle_layer is not None:
                inputs = [((atoms, bonds, angles_)[which], index) for index, which in of_angle]
                angles_ = _updated(angle_layer, _gated(angle_layer.twoBody_bond, inputs), angles_, angle_layer.angle_norm)
        if network.readout_norm is not None:
            atoms = network.readout_norm(atoms)
        energies = network.mlp(atoms).view(-1)
        if graph.weights is not None:
            energies = energies * graph.weights
        total = energies.new_zeros(graph.n_systems).index_add(0, graph.system, energies)
        return total / graph.n_atoms

    def _weight_of_angles(self, graph: Graph) -> torch.Tensor:
        """Return the factors of the messages from right bond to left bond: as between atoms, with bonds in their place.

        A bond has the weight of the species that it belongs to. Where the centre of the angle is not ordinary, both bonds do.
        """
        centre = graph.topology["centre"]
        target, source = (graph.edge_index[1][graph.topology[side]] for side in ("left", "right"))
        factors = graph.weight_of_messages(target, source)
        return torch.where(graph.ordinary(centre)[:, None], factors, torch.ones_like(factors))


def _gated(mlp: torch.nn.Module, inputs: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
    """Apply a gated MLP to features that stand side by side, each given with the rows to take of it (None: all), in the layer's order."""
    branches = [list(part.layers) for part in (mlp.mlp_core, mlp.mlp_gate)]
    at = next(number for number, layer in enumerate(branches[0]) if isinstance(layer, torch.nn.Linear))
    # Both branches take the same input.
    total = linear_on_parts([branch[at] for branch in branches], inputs)
    core, gate = (torch.nn.Sequential(*branch[at + 1 :])(half) for branch, half in zip(branches, total.chunk(2, dim=1), strict=True))
    if mlp.norm is not None:
        core, gate = mlp.bn1(core), mlp.bn2(gate)
    return mlp.activation(core) * mlp.sigmoid(gate)


def _updated(layer: torch.nn.Module, new: torch.Tensor, old: torch.Tensor, norm: torch.nn.Module | None) -> torch.Tensor:
    """Return what a layer makes of its new and old features."""
    if getattr(layer, "use_mlp_out", False):
        new = layer.mlp_out(new)
    if layer.resnet:
        new = new + old
    return new if norm is None else norm(new)


def subset(graph: Graph, chosen: torch.Tensor) -> Graph:
    """Return the structures of a batch that are marked in ``chosen`` (bool, shape (B,)), without their topology."""
    atoms, edges = chosen[graph.system], chosen[graph.edge_system]
    renumbered_systems, renumbered_atoms = torch.cumsum(chosen, 0) - 1, torch.cumsum(atoms, 0) - 1
    return Graph(
        numbers=graph.numbers[atoms],
        system=renumbered_systems[graph.system[atoms]],
        n_systems=int(chosen.sum()),
        edge_index=renumbered_atoms[graph.edge_index[:, edges]],
        shifts=graph.shifts[edges],
        positions=graph.positions[atoms],
        cells=graph.cells[chosen],
        vectors=graph.vectors[edges],
        species=None if graph.species is None else graph.species[atoms],
        weights=None if graph.weights is None else graph.weights[atoms],
    )


def load(key: str, device: torch.device, dtype: torch.dtype = torch.float32) -> CHGNetPotential:
    """Load a CHGNet from its package; PotentialError if the weight file there is not the one this project knows."""
    relative, expected = _WEIGHTS[key]
    path = Path(chgnet.__file__).parent / "pretrained" / relative
    found = sha256(path)
    if found != expected:
        raise PotentialError(f"{path}: SHA-256 {found}, expected {expected}. Install the chgnet version that the lock file names.")
    # CHGNet announces itself on the standard output; a library should not.
    with contextlib.redirect_stdout(io.StringIO()):
        network = CHGNet.from_file(str(path), mlp_out_bias=key == "chgnet-0.2.0", version=key.removeprefix("chgnet-"))
    network = network.to(dtype)
    return CHGNetPotential(
        key,
        network,
        cutoff=network.graph_converter.atom_graph_cutoff,
        bytes_per_edge=BYTES_PER_EDGE,
        device=device,
        elements=MPTRJ_ELEMENTS,
        description={
            "family": "CHGNet",
            "package": f"chgnet {version('chgnet')}",
            "weights_sha256": found,
            "parameters": network.n_params,
            "training_set": "MPtrj (PBE, PBE+U)",
            "cutoff_a": network.graph_converter.atom_graph_cutoff,
            "convention": "package",
            "citation": "Deng et al., Nat. Mach. Intell. 5, 1031 (2023)",
        },
    )
