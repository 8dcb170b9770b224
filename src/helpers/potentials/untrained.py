"""Networks with random weights, for training from scratch: the architectures of the published potentials at any size."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import ase.data
import numpy as np
import torch

from helpers.potentials.base import GraphPotential, PotentialError

ARCHITECTURES = ("mace", "chgnet")

# Å. MACE's cutoff; CHGNet keeps the 6 Å of its published version.
_MACE_CUTOFF_A = 4.5


def build(
    architecture: str,
    reference_energies: Mapping[str, float],
    *,
    channels: int,
    force_rms: float,
    seed: int,
    max_l: int = 0,
    dtype: torch.dtype = torch.float32,
    settings: Mapping[str, Any] | None = None,
) -> GraphPotential:
    """Return an untrained potential on the CPU; PotentialError if there is no such architecture, or it has no such features.

    ``architecture`` ({"mace", "chgnet"}): MACE with two layers and body order 4 (correlation 2 per layer), or CHGNet as published but for
        its width.
    ``reference_energies``: element → energy per atom (eV), which the network's output is added to. Also the elements that it takes.
    ``channels``: MACE's channels, or CHGNet's features of atoms, bonds and angles.
    ``force_rms``: root mean square of the training forces, eV/Å: the scale of MACE's output, as mace-torch's own training sets it.
    ``seed``: of the random weights, which are drawn in single precision.
    ``max_l``: largest angular momentum of what MACE's layers hand on: 0, scalars only, or more, equivariant features. CHGNet has none.
    ``settings``: arguments of mace-torch's network that replace those of the small one.
    """
    if architecture not in ARCHITECTURES:
        raise PotentialError(f"no architecture {architecture!r}; there are: {', '.join(ARCHITECTURES)}")
    if architecture == "chgnet" and max_l:
        raise PotentialError(f"CHGNet's features are scalars; max_l must be 0, not {max_l}")
    # Both packages draw their weights from PyTorch's global generator; whoever called is not to notice.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "mace":
            return _mace(dict(reference_energies), channels, force_rms, max_l, dtype, settings or {})
        return _chgnet(dict(reference_energies), channels, dtype)


def _description(family: str, package: str, network: torch.nn.Module, cutoff: float) -> dict[str, object]:
    return {
        "family": family,
        "package": f"{package} {version(package)}",
        "weights_sha256": None,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "training_set": "none",
        "cutoff_a": cutoff,
        "convention": "package",
    }


def _mace(
    energies: dict[str, float], channels: int, force_rms: float, max_l: int, dtype: torch.dtype, settings: Mapping[str, Any]
) -> GraphPotential:
    from helpers.potentials import mace

    numbers = sorted(ase.data.atomic_numbers[element] for element in energies)
    with mace.contained(), warnings.catch_warnings():
        # TorchScript comments on e3nn's annotations once per block.
        warnings.filterwarnings("ignore", message="The TorchScript type system")
        from e3nn import o3
        from mace import modules

        block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
        arguments: dict[str, Any] = {
            "r_max": _MACE_CUTOFF_A,
            "num_bessel": 8,
            "num_polynomial_cutoff": 5,
            "max_ell": 2,
            "interaction_cls": block,
            "interaction_cls_first": block,
            "num_interactions": 2,
            "num_elements": len(numbers),
            "hidden_irreps": o3.Irreps([(channels, (order, (-1) ** order)) for order in range(max_l + 1)]),
            "MLP_irreps": o3.Irreps("16x0e"),
            "atomic_energies": np.array([energies[ase.data.chemical_symbols[number]] for number in numbers]),
            "avg_num_neighbors": 30.0,
            "atomic_numbers": numbers,
            "correlation": 2,
            "gate": torch.nn.functional.silu,
            "radial_MLP": [32, 32],
            "atomic_inter_scale": np.array([force_rms]),
            "atomic_inter_shift": np.array([0.0]),
        }
        arguments |= settings
        network = modules.ScaleShiftMACE(**arguments).to(dtype)
    return mace.MACEPotential(
        "mace-untrained",
        network,
        cutoff=arguments["r_max"],
        bytes_per_edge=mace.bytes_per_edge(network, dtype),
        device=torch.device("cpu"),
        elements=frozenset(numbers),
        description=_description("MACE", "mace-torch", network, arguments["r_max"]),
    )


def _chgnet(energies: dict[str, float], channels: int, dtype: torch.dtype) -> GraphPotential:
    from chgnet.model import CHGNet

    from helpers.potentials import chgnet

    # CHGNet announces itself on the standard output; a library should not.
    with contextlib.redirect_stdout(io.StringIO()):
        network = CHGNet(
            atom_fea_dim=channels,
            bond_fea_dim=channels,
            angle_fea_dim=channels,
            atom_conv_hidden_dim=channels,
            bond_conv_hidden_dim=channels,
            mlp_hidden_dims=(channels, channels, channels),
        ).to(dtype)
    numbers = [ase.data.atomic_numbers[element] for element in energies]
    with torch.no_grad():
        network.composition_model.fc.weight.zero_()
        for number, energy in zip(numbers, energies.values(), strict=True):
            network.composition_model.fc.weight[0, number - 1] = energy
    cutoff = network.graph_converter.atom_graph_cutoff
    return chgnet.CHGNetPotential(
        "chgnet-untrained",
        network,
        cutoff=cutoff,
        bytes_per_edge=chgnet.BYTES_PER_EDGE,
        device=torch.device("cpu"),
        elements=frozenset(numbers),
        description=_description("CHGNet", "chgnet", network, cutoff),
    )
