"""M3GNet as it was first released, in TensorFlow: other weights than MatGL's M3GNet of the same training set.

The weights are a TensorFlow checkpoint: an index (a sorted table of names, as LevelDB writes it, with one protobuf message per tensor) and
a shard that holds the numbers one after the other. :func:`read_checkpoint` reads both; nothing is unpickled. The network is MatGL's with
the parts that MatGL has changed put back:

- the bonds' radial basis is smooth at the cutoff, that of the triples is not (there the three-body cutoff is);
- gated networks have one layer less, and the one that reads out the atoms' energies two;
- bonds are embedded without a bias, and the radial weights of messages to atoms go through a SiLU.

Messages are summed onto the centre and triples belong to the right bonds, so the energy depends neither on the atoms' order nor on the
choice of the cell, and does not jump at a cutoff.

Sources: Chen and Ong, Nat. Comput. Sci. 2, 718 (2022), whose code is M3GNet 0.2.4; for the checkpoint TensorFlow's
``tensor_bundle.proto`` and LevelDB's description of its tables.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols

from helpers.potentials import matgl
from helpers.potentials.base import PotentialError
from helpers.registry import sha256

_CONVENTION = matgl.Convention("M3GNet 0.2.4 (TensorFlow)", receiver=0, stand_ins=False)
FILES = {
    "m3gnet.index": "7b6cdf0924e0ba9ac8d66c2905bf49ab3365e56def73de90b154d1506cfcc6ce",
    "m3gnet.data-00000-of-00001": "3d6d4bd777eb7af8efe7ccae0804ffbc58cdb9aac946db08b01e7e5f41eb70eb",
    "m3gnet.json": "1aff67d1a07d460185d6e97286147a3e508cf323a532a70412832f374695ff72",
}

# What a name in the checkpoint becomes in MatGL's network, in this order. A Keras pipe counts its layers, torch the activations as well.
_NAMES = (
    (r"feature_adjust/update_func/pipe/layers/0", "embedding.layer_edge_embedding.0"),
    (r"featurizer/atom_network/embedding/embeddings", "embedding.layer_node_embedding.weight"),
    (r"final/layers/0/atom_network/update_func", "final_layer"),
    (r"graph_layers/(\d)/", r"graph_layers.\1.conv."),
    (r"atom_network/bond_dense", "node_update_func"),
    (r"atom_network/weight_update", "node_weight_func.0"),
    (r"bond_network/update_func", "edge_update_func"),
    (r"bond_network/weight_func", "edge_weight_func"),
    (r"three_interactions/(\d)/update_network/", r"three_body_interactions.\1.update_network_atom."),
    (r"three_interactions/(\d)/update_network2/", r"three_body_interactions.\1.update_network_bond."),
    (r"[/.](pipe|gate)/layers/(\d)", lambda found: f".{'layers' if found[1] == 'pipe' else 'gates'}.{2 * int(found[2])}"),
    (r"/kernel", ".weight"),
    (r"/bias", ".bias"),
)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer written seven bits a byte, the lowest first, and where the next thing begins."""
    value = shift = 0
    while data[at] >= 128:
        value |= (data[at] - 128) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _message(data: bytes) -> dict[int, list]:
    """Return the fields of a protobuf message by number: integers, or bytes where a field is no integer."""
    fields, at = defaultdict(list), 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at) if tag & 7 in (0, 2) else ({1: 8, 5: 4}[tag & 7], at)
        if tag & 7:
            value, at = data[at : at + value], at + value
        fields[tag >> 3].append(value)
    return fields


def _block(table: bytes, handle: bytes, at: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a table's block: the key's beginning is that of the key before, up to a length that is given."""
    start, at = _varint(handle, at)
    size, _ = _varint(handle, at)
    block, at, key = table[start : start + size], 0, b""
    end = size - 4 * (1 + int.from_bytes(block[-4:], "little"))  # then come the places where a search may begin
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


def read_checkpoint(index: Path, shard: Path) -> dict[str, np.ndarray]:
    """Read the float32 variables of a TensorFlow checkpoint of one shard, by their names."""
    table, numbers = index.read_bytes(), shard.read_bytes()
    footer = table[-48:]
    _, at = _varint(footer, 0)
    _, at = _varint(footer, at)  # past the handle of another index
    found = {}
    for _, handle in _block(table, footer, at):
        for name, value in _block(table, handle):
            entry = _message(value)
            if name and entry[1] == [1]:  # float32; the message without a name is the header
                shape = [_message(size)[1][0] for size in _message(entry[2][0])[2]] if entry[2] else []
                start = entry[4][0] if entry[4] else 0
                array = np.frombuffer(numbers[start : start + entry[5][0]], "<f4").reshape(shape)
                found[name.decode().removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")] = array
    return found


def _network(config: dict, elements: list[str]) -> matgl.M3GNet:
    """Return MatGL's M3GNet with the layers of the first release."""
    units, max_n, max_l, cutoff = config["units"], config["max_n"], config["max_l"], config["cutoff"]
    network = matgl.M3GNet(
        element_types=elements,
        dim_node_embedding=units,
        dim_edge_embedding=units,
        units=units,
        max_n=max_n,
        max_l=max_l,
        nblocks=config["n_blocks"],
        cutoff=cutoff,
        threebody_cutoff=config["threebody_cutoff"],
        is_intensive=False,
        use_smooth=True,
    )

    def radial() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(max_n, units, bias=False), torch.nn.SiLU())

    network.basis_expansion = type(network.basis_expansion)(max_n, max_l, cutoff, use_smooth=False, use_phi=False)
    network.embedding.layer_edge_embedding = radial()
    gated = type(network.final_layer.gated)
    for block in network.graph_layers:
        block.conv.edge_update_func, block.conv.node_update_func = (gated(3 * units, [units, units]) for _ in range(2))
        block.conv.node_weight_func = radial()
    network.final_layer = gated(units, [units, units, 1], activate_last=False)
    return network


def load(
    key: str, paths: Sequence[Path], device: torch.device, dtype: torch.dtype = torch.float32, *, trust: bool = False
) -> matgl.M3GNetPotential:
    """Load the weights from their three files (:data:`FILES`), as :mod:`helpers.potentials` asks of a family.

    ``trust`` makes no difference: the files run no code, and what an unknown one means is not known. PotentialError if a file is missing or
    is not that of the release.
    """
    files = {Path(path).name: Path(path) for path in paths}
    for name, expected in FILES.items():
        if name not in files:
            raise PotentialError(f"{key}: {name} not among the files given")
        if (found := sha256(files[name])) != expected:
            raise PotentialError(f"{files[name]} (SHA-256 {found}) is not the {name} of M3GNet's first release, the only one that is known")
    index, shard, header = (files[name] for name in FILES)
    # The configuration is JSON in a JSON string.
    config = json.loads(json.loads(header.read_text()))["config"]
    # Elements without data got a reference energy of zero, but for rounding; there is none of number 0.
    numbers = [number for number, energy in enumerate(config["element_refs"]) if abs(energy) > 1e-10]
    network = _network(config, [chemical_symbols[number] for number in numbers])
    weights = network.state_dict()
    for name, array in read_checkpoint(index, shard).items():
        for old, new in _NAMES:
            name = re.sub(old, new, name)
        weights[name] = torch.tensor(array[numbers] if "node_embedding" in name else array.T if array.ndim == 2 else array)
    network.load_state_dict(weights)
    model = matgl.MatGLModel(
        model=network,
        data_mean=config["mean"],
        data_std=config["std"],
        element_refs=np.array(config["element_refs"])[numbers],
    )
    return matgl.from_network(
        key,
        model,
        convention=_CONVENTION,
        device=device,
        dtype=dtype,
        description={
            "weights_sha256": FILES["m3gnet.data-00000-of-00001"],
            "training_set": "MPF.2021.2.8 (PBE, PBE+U)",
            "citation": "Chen and Ong, Nat. Comput. Sci. 2, 718 (2022)",
        },
    )
