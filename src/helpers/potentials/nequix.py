"""Nequix, one equivariant network that was trained on six sets of data.

A file of weights is a line of JSON and then numpy's arrays; nothing in it is unpickled. The network is written out here, on
:mod:`helpers.potentials.equivariant`: its package needs JAX, or an e3nn that clashes with MACE's. What depends on the length of a
bond alone is computed once for its two directions.

Sources: Koker, Kotak & Smidt, arXiv:2508.16067 (the network); Koker et al., arXiv:2601.07742 (training on Hessians).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.potentials.base import Graph, GraphPotential, PotentialError, undirected_bonds
from helpers.potentials.equivariant import Convolution, Irreps, even, even_edges, spherical_harmonics
from helpers.registry import sha256

# Peak memory of energy, forces and stress per directed edge: measured on MgO, Si and Cu.
BYTES_PER_EDGE = 90_000

# Activations are divided by ⟨silu(x)²⟩^½ for normally distributed x, to keep the size of what goes through them. This is the value that the
# package has, a mean over a million quantiles in single precision; the integral is 0.59647.
_NORM_OF_SILU = 0.5964577


class _Mix(torch.nn.Module):
    """Linear maps of channels, one for each irrep of both sides; an irrep that the input lacks stays zero."""

    def __init__(self, weights: dict[int, torch.nn.Parameter]) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterDict({str(degree): weight for degree, weight in weights.items()})

    def forward(self, parts: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        return {
            degree: part @ (self.weights[str(degree)] / part.shape[-1] ** 0.5)
            for degree, part in parts.items()
            if str(degree) in self.weights
        }


class _Layer(torch.nn.Module):
    """One round of messages, which turns ``features`` of the atoms into ``hidden`` ones.

    ``take`` returns the file's next array, given its shape: the radial network, the maps before and after the sum, the map around it, the
    norm's scales.
    """

    def __init__(self, take: Callable[..., torch.nn.Parameter], features: Irreps, hidden: Irreps, settings: dict[str, Any]) -> None:
        super().__init__()
        harmonics = Irreps.spherical_harmonics(settings["lmax"])
        found = [
            (ir, mul, i, j)
            for i, (mul, one) in enumerate(features)
            for j, (_, other) in enumerate(harmonics)
            for ir in one * other
            if ir in hidden
        ]
        found.sort(key=lambda path: path[0].l)
        outputs = Irreps([(mul, ir) for ir, mul, _, _ in found])
        share = 1 / settings["avg_n_neighbors"]
        self.convolution = Convolution(features, harmonics, outputs, [(i, j, (share * ir.dim) ** 0.5) for ir, _, i, j in found])
        self.sizes = {ir.l: mul for mul, ir in hidden}
        channels = {ir.l: mul for mul, ir in features}
        made = self.sizes | {0: sum(self.sizes.values())}  # with the scalars of the gates
        summed = {degree: sum(mul for ir, mul, _, _ in found if ir.l == degree) for degree in made}
        widths = [settings["radial_basis_size"], *[settings["radial_mlp_size"]] * settings["radial_mlp_layers"], sum(summed.values())]
        self.radial = torch.nn.ParameterList([take(*pair) for pair in pairwise(widths)])
        self.before = _Mix({degree: take(mul, mul) for degree, mul in channels.items()})
        self.after = _Mix({degree: take(summed[degree], mul) for degree, mul in made.items()})
        self.around = _Mix({degree: take(mul, made[degree]) for degree, mul in channels.items() if degree in made})
        self.scales = torch.nn.ParameterDict({str(degree): take(mul) for degree, mul in made.items()})

    def forward(
        self, parts: dict[int, torch.Tensor], radial: torch.Tensor, harmonics: torch.Tensor, which: torch.Tensor, sender: torch.Tensor
    ) -> dict[int, torch.Tensor]:
        for number, weight in enumerate(self.radial):
            radial = (torch.nn.functional.silu(radial) if number else radial) @ weight
        weights = torch.index_select(torch.nn.functional.pad(radial, (0, 0, 0, 1)), 0, which)
        sent = self.before(parts)
        summed = self.convolution.sums([sent[ir.l] for _, ir in self.convolution.features], harmonics, weights, sender)
        joined = {
            degree: torch.cat([one for one, (_, ir) in zip(summed, self.convolution.irreps_out, strict=True) if ir.l == degree], dim=2)
            for degree in self.sizes
        }
        new, kept = self.after(joined), self.around(parts)
        return self._gated(self._normed({degree: part + kept[degree] if degree in kept else part for degree, part in new.items()}))

    def _normed(self, parts: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        # The package weighs each irrep by one over its components, and then takes the mean, not the sum, over them: twice the same factor.
        squares = [part.square().sum(dim=(1, 2)) / (2 * degree + 1) ** 2 for degree, part in parts.items()]
        factor = (torch.stack(squares).sum(dim=0) / len(parts) + 1e-12).rsqrt()
        return {degree: part * self.scales[str(degree)] * factor[:, None, None] for degree, part in parts.items()}

    def _gated(self, parts: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Return scalars as they are activated, and the others multiplied by scalars of their own, which follow those."""
        scalars = torch.nn.functional.silu(parts[0]) / _NORM_OF_SILU
        gates = scalars.split(list(self.sizes.values()), dim=2)
        return {degree: gate if degree == 0 else parts[degree] * gate for degree, gate in zip(self.sizes, gates, strict=True)}


class Network(torch.nn.Module):
    """The network of a file: ``settings`` is its first line, and ``take`` returns its next array, given the shape."""

    def __init__(self, settings: dict[str, Any], take: Callable[..., torch.nn.Parameter]) -> None:
        super().__init__()
        species, layers = settings["atomic_numbers"], settings["n_layers"]
        self.cutoff, self.power = float(settings["cutoff"]), float(settings["radial_polynomial_p"])
        self.scale, self.shift = settings["scale"], settings["shift"]
        self.harmonics = Irreps.spherical_harmonics(settings["lmax"])
        self.atom_energies = take(len(species))
        place = torch.zeros(max(species) + 1, dtype=torch.int64)
        place[species] = torch.arange(len(species))
        self.register_buffer("place", place)
        self.register_buffer("waves", math.pi / self.cutoff * torch.arange(1.0, settings["radial_basis_size"] + 1))
        features, hidden = Irreps(f"{len(species)}x0e"), Irreps(settings["hidden_irreps"])
        self.layers = torch.nn.ModuleList()
        for number in range(layers):
            after = hidden if number < layers - 1 else Irreps([part for part in hidden if part.ir.l == 0])
            self.layers.append(_Layer(take, features, after, settings))
            features = hidden
        self.readout = take(after[0].mul, 1)

    def forward(
        self,
        numbers: torch.Tensor,
        lengths: torch.Tensor,
        vectors: torch.Tensor,
        which: torch.Tensor,
        sender: torch.Tensor,
        shares: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the energies (eV) of the atoms, shape (N,).

        ``numbers`` (shape (N,)): of the elements.
        ``lengths`` (shape (bonds,)): Å.
        ``vectors`` (shape (N K, 3)): of the edges, as many for each atom, Å.
        ``which``, ``sender`` (shape (N K,)): the bond of each edge, ``bonds`` for one that only fills a place; and the atom that sends.
        ``shares`` (shape (N K, 1)): what messages are multiplied by in a mixture; else None.
        """
        x, p = lengths[:, None] / self.cutoff, self.power
        envelope = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        radial = 2 / self.cutoff * torch.sin(self.waves * lengths[:, None]) / lengths[:, None] * envelope * (x < 1)
        harmonics = spherical_harmonics(self.harmonics, vectors, normalize=True, normalization="component")
        if shares is not None:
            harmonics = harmonics * shares
        species = self.place[numbers]
        features = {0: torch.nn.functional.one_hot(species, len(self.atom_energies)).to(vectors.dtype)[:, None, :]}
        for layer in self.layers:
            features = layer(features, radial, harmonics, which, sender)
        scalars = features[0][:, 0, :]
        own = (scalars @ self.readout.view(-1, 1)).squeeze(1) / scalars.shape[1] ** 0.5
        return own * self.scale + self.shift + self.atom_energies[species]


class NequixPotential(GraphPotential):
    """Nequix behind the common interface."""

    untrained = ("atom_energies",)
    takes_mixtures = True
    network: Network

    def topology(self, graph: Graph, distances: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: D102
        bond, first = undirected_bonds(graph)
        return {
            "bond": torch.nn.functional.pad(bond, (0, 1), value=len(first)),
            "first": first,
            "rows": even(graph.edge_index[0], len(graph.numbers)),
        }

    def energies(self, graph: Graph) -> torch.Tensor:  # noqa: D102
        vectors, (sender, receiver), fill = even_edges(graph, self.cutoff)
        lengths = torch.linalg.norm(graph.vectors[graph.topology["first"]], dim=1)
        shares = None if graph.weights is None else graph.weight_of_messages(target=receiver, source=sender)
        per_atom = self.network(graph.numbers, lengths, vectors, graph.topology["bond"][fill], sender, shares).to(torch.float64)
        if graph.weights is not None:
            per_atom = per_atom * graph.weights
        return per_atom.new_zeros(graph.n_systems).index_add(0, graph.system, per_atom)


def read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the settings in a file of weights, and its arrays; PotentialError if it is no such file."""
    arrays = []
    try:
        with path.open("rb") as file:
            settings = json.loads(file.readline())
            end = path.stat().st_size - 1  # a line feed
            while file.tell() < end:
                arrays.append(np.load(file, allow_pickle=False))
    except (ValueError, UnicodeDecodeError, EOFError) as error:
        raise PotentialError(f"{path} is no file of Nequix's weights: {error}") from None
    return settings, arrays


def load(
    key: str, paths: Sequence[Path], device: torch.device, dtype: torch.dtype = torch.float32, *, trust: bool = False
) -> NequixPotential:
    """Load one of the six Nequix models from its file, as :mod:`helpers.potentials` asks of a family; the file holds no code.

    PotentialError if it is no such file, or of a network that is built otherwise.
    """
    (path,) = paths
    settings, arrays = read(path)
    if settings.get("index_weights") or not settings.get("layer_norm"):
        raise PotentialError(f"{path}: a Nequix with weights for each element, or without layer norm, is not known here")
    given = iter(arrays)

    def take(*shape: int) -> torch.nn.Parameter:
        array = next(given, None)
        if array is None or array.shape != shape:
            raise PotentialError(f"{path}: an array of shape {shape} should follow, not {'the end' if array is None else array.shape}")
        return torch.nn.Parameter(torch.as_tensor(array, dtype=dtype))

    network = Network(settings, take).to(dtype)
    return NequixPotential(
        key,
        network,
        cutoff=network.cutoff,
        bytes_per_edge=BYTES_PER_EDGE,
        device=device,
        elements=frozenset(settings["atomic_numbers"]),
        description={
            "family": "Nequix",
            "weights_sha256": sha256(path),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "cutoff_a": network.cutoff,
            "citation": "Koker et al., arXiv:2508.16067 (2025); arXiv:2601.07742 (2026)",
        },
    )
