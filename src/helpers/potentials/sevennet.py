"""SevenNet-0, an equivariant network trained on MPtrj, with the weights that its package carries.

The package needs another e3nn than MACE, so it lives in an environment of its own (``make env-sevennet``); result files travel.
The layers and their parameters are the package's; graph, sums over neighbours and derivatives are this project's.

Source: Park et al., J. Chem. Theory Comput. 20, 4857 (2024).
"""

from __future__ import annotations

import contextlib
import io
from importlib.metadata import version
from pathlib import Path

import sevenn
import torch
from e3nn.o3 import wigner_3j
from sevenn.util import load_checkpoint

from helpers.potentials.base import Graph, GraphPotential, PotentialError
from helpers.registry import sha256

# The package's own checkpoint of 11 July 2024, by SHA-256: a checkpoint is a pickle, and a pickle is code.
_WEIGHTS = {
    "sevennet-0": (
        "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
    ),
}

# Peak memory of energy, forces and stress per directed edge: measured on MgO, Si and Cu.
BYTES_PER_EDGE = 130_000


class _Convolution(torch.nn.Module):
    """The package's convolution, with the sums over neighbours as matrix products.

    The package makes a message of 3,136 numbers for every edge and adds the messages of an atom's edges. But a path (l1, l2) → l3 of the
    tensor product is linear in the harmonics Y of the edge: here ∑ Y_m2 · (w · x_m1) over the edges is one matrix product for each atom, and
    the Clebsch-Gordan coefficients are applied to its result, once for an atom instead of for each of its edges.

    Parameters
    ----------
    layer : sevenn.nn.convolution.IrrepsConvolution
        Its parameters are shared, not copied.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.weights = layer.weight_nn
        self.denominator = layer.denominator
        product = layer.convolution
        self.inputs, self.filters = product.irreps_in1, product.irreps_in2
        self.paths = []
        for number, path in enumerate(sorted(product.instructions, key=lambda path: path.i_out)):
            l1, l2, l3 = (irreps[k].ir.l for irreps, k in zip((self.inputs, self.filters, product.irreps_out), path[:3], strict=True))
            coefficients = path.path_weight * wigner_3j(l1, l2, l3).permute(2, 1, 0).reshape(2 * l3 + 1, -1)
            self.register_buffer(f"coefficients_{number}", coefficients.to(self.denominator.dtype), persistent=False)
            self.paths.append((path.i_in1, path.i_in2, f"coefficients_{number}"))
        # The weights of an edge follow the package's order of paths, which is that of the output.
        if [path.i_out for path in product.instructions] != list(range(len(self.paths))):
            raise PotentialError(f"{layer}: unknown order of paths; install the version that environments/sevennet.txt names.")

    def forward(self, x: torch.Tensor, source: torch.Tensor, radial: torch.Tensor, harmonics: torch.Tensor) -> torch.Tensor:
        """Return the sums of messages.

        Parameters
        ----------
        x : tensor, shape (N, features)
            Features of the atoms, in e3nn's order (channel before component).
        source : int tensor, shape (N, K)
            The atom at the other end of each edge; K edges an atom.
        radial : tensor, shape (N, K, 8)
            Radial basis; zero where an atom has fewer than K edges.
        harmonics : tensor, shape (N, K, 9)
            Spherical harmonics.
        """
        n_atoms, n_edges = source.shape
        atoms = [
            torch.index_select(part.view(n_atoms, mul, ir.dim).transpose(1, 2).contiguous(), 0, source.view(-1))
            for part, (mul, ir) in zip(x.split([irreps.dim for irreps in self.inputs], dim=1), self.inputs, strict=True)
        ]
        edges = [part.transpose(1, 2) for part in harmonics.split([irreps.dim for irreps in self.filters], dim=2)]
        weights = self.weights(radial.view(n_atoms * n_edges, -1)).split([self.inputs[i].mul for i, _, _ in self.paths], dim=1)
        sums = []
        for (i, j, name), weight in zip(self.paths, weights, strict=True):
            weighted = (weight[:, None, :] * atoms[i]).view(n_atoms, n_edges, -1)
            summed = torch.bmm(edges[j], weighted).view(n_atoms, -1, weight.shape[1])
            sums.append(torch.matmul(getattr(self, name), summed).transpose(1, 2).reshape(n_atoms, -1))
        return torch.cat(sums, dim=1).div(self.denominator)


class SevenNetPotential(GraphPotential):
    """SevenNet behind the common interface."""

    def __init__(self, key: str, network: torch.nn.Module, **settings: object) -> None:
        for name, layer in list(network.named_children()):
            if name.endswith("_convolution"):
                setattr(network, name, _Convolution(layer))
        super().__init__(key, network, **settings)

    def topology(self, graph: Graph, distances: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the edges of each atom, shape (N, K): K is the largest number of them, and E stands where an atom has fewer."""
        centre = graph.edge_index[0]
        counts = torch.bincount(centre, minlength=len(graph.numbers))
        order = torch.argsort(centre, stable=True)
        slots = centre.new_full((len(counts), int(counts.max())), len(centre))
        rank = torch.arange(len(centre), device=centre.device) - (torch.cumsum(counts, 0) - counts)[centre[order]]
        slots[centre[order], rank] = order
        return {"slots": slots}

    def energies(self, graph: Graph) -> torch.Tensor:  # noqa: D102
        slots = graph.topology["slots"]
        # An edge as long as the cutoff, of which the radial basis is zero, fills the empty places.
        filler = graph.vectors.new_tensor([[0.0, 0.0, self.cutoff]])
        data = {
            "x": self.network.z_to_onehot_tensor.to(self.device)[graph.numbers],
            "edge_vec": torch.cat([graph.vectors, filler])[slots.view(-1)],
        }
        source = torch.cat([graph.edge_index[1], graph.edge_index.new_zeros(1)])[slots]
        for name, layer in self.network.named_children():
            if name == "reduce_total_enegy":  # the package's spelling
                break
            if isinstance(layer, _Convolution):
                radial, harmonics = (data[key].view(*slots.shape, -1) for key in ("edge_embedding", "edge_attr"))
                data["x"] = layer(data["x"], source, radial, harmonics)
            else:
                data = layer(data)
        per_atom = data["atomic_energy"].view(-1).to(torch.float64)
        return per_atom.new_zeros(graph.n_systems).index_add(0, graph.system, per_atom)


def load(key: str, device: torch.device, dtype: torch.dtype = torch.float32) -> SevenNetPotential:
    """Load SevenNet-0 from its package.

    Parameters
    ----------
    key : {"sevennet-0"}
    device : torch.device
    dtype : torch.dtype
        Only float32: the package's layers make their constants in that precision.

    Raises
    ------
    PotentialError
        If the package's checkpoint is not the one this project knows, or another precision is asked for.
    """
    relative, expected = _WEIGHTS[key]
    path = Path(sevenn.__file__).parent / "pretrained_potentials" / relative
    found = sha256(path)
    if found != expected:
        raise PotentialError(f"{path}: SHA-256 {found}, expected {expected}. Install the version that environments/sevennet.txt names.")
    if dtype != torch.float32:
        raise PotentialError("SevenNet runs in single precision only")
    with contextlib.redirect_stdout(io.StringIO()):
        network = load_checkpoint(str(path)).build_model()
    return SevenNetPotential(
        key,
        network,
        cutoff=float(network.cutoff),
        bytes_per_edge=BYTES_PER_EDGE,
        device=device,
        elements=frozenset(network.type_map),
        description={
            "family": "SevenNet",
            "package": f"sevenn {version('sevenn')}",
            "weights_sha256": found,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "training_set": "MPtrj (PBE, PBE+U)",
            "cutoff_a": float(network.cutoff),
            "convention": "package, checkpoint of 11 July 2024",
            "citation": "Park et al., J. Chem. Theory Comput. 20, 4857 (2024)",
        },
    )
