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
from typing import Any

import sevenn
import torch
from sevenn.util import load_checkpoint

from helpers.potentials.base import Graph, GraphPotential, PotentialError
from helpers.potentials.equivariant import Convolution, even, even_edges
from helpers.registry import sha256

# The package's own checkpoint of 11 July 2024, by SHA-256: a checkpoint is a pickle, and a pickle is code.
WEIGHTS = {
    "sevennet-0": (
        "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
    ),
}

# Peak memory of energy, forces and stress per directed edge: measured on MgO, Si and Cu.
BYTES_PER_EDGE = 65_000


class SevenNetPotential(GraphPotential):
    """SevenNet behind the common interface."""

    def __init__(self, key: str, network: torch.nn.Module, **settings: Any) -> None:
        super().__init__(key, network, **settings)
        layers = {name: layer for name, layer in network.named_children() if name.endswith("_convolution")}
        # In a dictionary of Python's, so that the network stays the package's. They hold constants only, no weights.
        self._sums = {name: Convolution.like(layer.convolution).to(self.device, self.network_dtype) for name, layer in layers.items()}

    def topology(self, graph: Graph, distances: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: D102
        return {"rows": even(graph.edge_index[0], len(graph.numbers))}

    def energies(self, graph: Graph) -> torch.Tensor:  # noqa: D102
        vectors, edge_index, _ = even_edges(graph, self.cutoff)
        data = {"x": self.network.z_to_onehot_tensor.to(self.device)[graph.numbers], "edge_vec": vectors}
        for name, layer in self.network.named_children():
            if name == "reduce_total_enegy":  # the package's spelling
                break
            if name in self._sums:
                # The edges are as many for every atom already, so that the rows fill no further place.
                made = data["x"], data["edge_attr"], layer.weight_nn(data["edge_embedding"])
                data["x"] = self._sums[name](*made, edge_index, graph.topology["rows"]).div(layer.denominator)
            else:
                data = layer(data)
            if name == "onehot_idx_to_onehot":  # the package makes it in single precision, whatever the network's is
                data = {key: value.to(self.network_dtype) if value.dtype == torch.float32 else value for key, value in data.items()}
        per_atom = data["atomic_energy"].view(-1).to(torch.float64)
        return per_atom.new_zeros(graph.n_systems).index_add(0, graph.system, per_atom)


def load(key: str, device: torch.device, dtype: torch.dtype = torch.float32) -> SevenNetPotential:
    """Load SevenNet-0 from its package; PotentialError if the checkpoint there is not the one this project knows."""
    relative, expected = WEIGHTS[key]
    path = Path(sevenn.__file__).parent / "pretrained_potentials" / relative
    found = sha256(path)
    if found != expected:
        raise PotentialError(f"{path}: SHA-256 {found}, expected {expected}. Install the version that environments/sevennet.txt names.")
    with contextlib.redirect_stdout(io.StringIO()):
        network = load_checkpoint(str(path)).build_model().to(dtype)
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
