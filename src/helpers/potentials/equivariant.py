"""Layers of equivariant networks that give what the packages' give, with less work. The parameters stay the packages'.

**Sums over neighbours as matrix products.** MACE and SevenNet make a message for every edge, the tensor product of a neighbour's features
with the spherical harmonics of the edge, and add up those of an atom's edges. A message has thousands of numbers, and most of the time goes
into writing and reading them. But each path (l1, l2) → l3 of the product is linear in the harmonics Y:

    ∑_e ∑_m1,m2 C(m1, m2, m3) w_e x_e(m1) Y_e(m2) = ∑_m1,m2 C(m1, m2, m3) [∑_e Y_e(m2) w_e x_e(m1)]

The bracket is one matrix product for each atom, and the Clebsch-Gordan coefficients C are applied to its result: once for an atom, not for
each of its edges.

**A matrix for each element.** MACE multiplies features by a matrix that depends on the element, as the product with a row of 89 numbers of
which one is 1 and all others are 0. Here each element that is there multiplies its own atoms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

with torch.serialization.safe_globals([slice]):  # the package unpickles a table of its own that holds slices
    from e3nn.o3 import FullyConnectedTensorProduct, Irreps, TensorProduct, spherical_harmonics, wigner_3j

from helpers.potentials.base import Graph, counts

__all__ = ["Convolution", "ElementLinear", "Irreps", "by_element", "even", "even_edges", "spherical_harmonics"]


def even(receiver: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """Return the edges of each atom in rows of one length, int tensor of shape (N, K), given the atom that each belongs to, ascending.

    K is the largest number of edges that an atom has; E, the number of all, stands where one has fewer.
    """
    sizes = counts(receiver, n_atoms)
    edges = torch.arange(len(receiver), device=receiver.device)
    rows = receiver.new_full((n_atoms, int(sizes.max())), len(receiver))
    rows[receiver, edges - (torch.cumsum(sizes, 0) - sizes)[receiver]] = edges
    return rows


def by_element(elements: torch.Tensor, n_elements: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return atoms sorted by element, shape (N,), and how many there are of each, shape (n_elements,), on the CPU.

    ``elements``, shape (N,), are the numbers of the atoms' elements, below ``n_elements``.
    """
    return torch.argsort(elements, stable=True), counts(elements, n_elements).cpu()


def even_edges(graph: Graph, cutoff: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the edges of a graph so that all atoms have as many; those that fill the places are as long as the cutoff (Å).

    There a radial basis is zero. The graph's topology must hold ``rows``, what :func:`even` makes of its centres. Returned are vectors (Å,
    shape (N K, 3)), neighbours and centres (shape (2, N K)), and which of the graph's edges each one is (shape (N K,)), E for one that
    fills a place.
    """
    rows = graph.topology["rows"]
    fill = rows.view(-1)
    vectors = torch.cat([graph.vectors, torch.nn.functional.pad(graph.vectors.new_full((1, 1), cutoff), (2, 0))])[fill]
    sender = torch.cat([graph.edge_index[1], graph.edge_index.new_zeros(1)])[fill]
    receiver = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
    return vectors, torch.stack([sender, receiver]), fill


class Convolution(torch.nn.Module):
    """A tensor product of the features of neighbours with the harmonics of edges, summed over the edges of each atom.

    Each path multiplies every channel with the only channel of the harmonics, has a weight for it, and an output of its own. ``paths`` say
    for each output which of the features, which of the harmonics, and the constant that the product is multiplied by.
    """

    def __init__(self, features: Irreps, harmonics: Irreps, irreps_out: Irreps, paths: Sequence[tuple[int, int, float]]) -> None:
        super().__init__()
        self.features, self.harmonics, self.irreps_out = features, harmonics, irreps_out
        self.paths = [(i, j) for i, j, _ in paths]
        for number, ((i, j, constant), (_, ir)) in enumerate(zip(paths, irreps_out, strict=True)):
            clebsch_gordan = wigner_3j(features[i].ir.l, harmonics[j].ir.l, ir.l, dtype=torch.float64)
            self.register_buffer(
                f"coefficients_{number}", constant * clebsch_gordan.permute(2, 1, 0).reshape(2 * ir.l + 1, -1), persistent=False
            )

    @classmethod
    def like(cls, product: TensorProduct) -> Convolution:
        """Make the layer that gives what a product of e3nn gives after summing; ValueError if the product is of another kind."""
        paths, harmonics = product.instructions, product.irreps_in2
        known = all(path.connection_mode == "uvu" and path.has_weight and harmonics[path.i_in2].mul == 1 for path in paths)
        if not known or [path.i_out for path in paths] != list(range(len(product.irreps_out))):
            raise ValueError(f"{product} is no product of features with harmonics, one path for each output")
        constants = [(path.i_in1, path.i_in2, path.path_weight) for path in paths]
        return cls(product.irreps_in1, harmonics, product.irreps_out, constants)

    def forward(
        self,
        x: torch.Tensor,
        harmonics: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the sums, shape (N, irreps_out.dim), channel before component, as e3nn has it.

        ``x`` (shape (N, features)): of the atoms, channel before component.
        ``harmonics``, ``weights`` (shapes (E, components) and (E, sum of the paths' channels)): of the edges.
        ``edge_index`` (shape (2, E)): the neighbour, which sends, and the atom whose sum it is, in ascending order.
        ``rows`` (shape (N, K)): what :func:`even` makes of the latter. To find it once for all layers saves time.
        """
        sender, receiver = edge_index
        rows = even(receiver, len(x)) if rows is None else rows
        if rows.numel() > len(sender):  # an edge of zeros fills the empty places
            fill = rows.view(-1)
            sender = torch.cat([sender, sender.new_zeros(1)])[fill]
            harmonics, weights = (torch.cat([part, part.new_zeros(1, part.shape[1])])[fill] for part in (harmonics, weights))
        parts = [
            part.view(len(x), mul, ir.dim).transpose(1, 2).contiguous()
            for part, (mul, ir) in zip(x.split([one.dim for one in self.features], dim=1), self.features, strict=True)
        ]
        return torch.cat([part.transpose(1, 2).reshape(len(x), -1) for part in self.sums(parts, harmonics, weights, sender)], dim=1)

    def sums(
        self, parts: Sequence[torch.Tensor], harmonics: torch.Tensor, weights: torch.Tensor, sender: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the sums where every atom has as many edges, shape (N, 2l + 1, channels) for each path.

        ``parts`` (shapes (N, 2l + 1, channels)): the features of the atoms, component before channel.
        ``harmonics``, ``weights`` (shapes (N K, components) and (N K, sum of the paths' channels)): the edges of the first atom, then those
            of the second, and so on.
        ``sender`` (shape (N K,)): the neighbours.
        """
        n_atoms = len(parts[0])
        neighbours = [torch.index_select(part, 0, sender) for part in parts]
        edges = harmonics.view(n_atoms, -1, harmonics.shape[1]).transpose(1, 2).split([one.dim for one in self.harmonics], dim=1)
        sums = []
        for number, ((i, j), weight) in enumerate(
            zip(self.paths, weights.split([self.features[i].mul for i, _ in self.paths], dim=1), strict=True)
        ):
            weighted = (weight[:, None, :] * neighbours[i]).view(n_atoms, edges[j].shape[2], -1)
            summed = torch.bmm(edges[j], weighted).view(n_atoms, -1, weight.shape[1])
            sums.append(torch.matmul(getattr(self, f"coefficients_{number}"), summed))
        return sums


class ElementLinear(torch.nn.Module):
    """A linear layer with weights for each element: the product of features with a row of numbers, the only 1 of which marks the element.

    The weights are those of the product, which has as many scalars as there are elements, and a weight for each path (``uvw``). ValueError
    if it is of another kind.
    """

    def __init__(self, product: FullyConnectedTensorProduct) -> None:
        super().__init__()
        known = len(product.irreps_in2) == 1 and product.irreps_in2.lmax == 0 and product.internal_weights
        if not known or any(path.connection_mode != "uvw" or not path.has_weight for path in product.instructions):
            raise ValueError(f"{product} is no linear layer with weights for each element")
        self._product = [product]  # in a list, so that its weights have one name only

    def forward(self, x: torch.Tensor, elements: torch.Tensor, groups: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Return the new features of atoms, given the old, shape (N, irreps_in1.dim), and the elements, a single 1 in each row.

        ``groups``: the atoms by element, from :func:`by_element`. To find them once for all layers saves time.
        """
        product = self._product[0]
        order, sizes = groups or by_element(elements.argmax(dim=1), elements.shape[1])
        present = [(element, size) for element, size in enumerate(sizes.tolist()) if size]
        inputs = x[order].split([one.dim for one in product.irreps_in1], dim=1)
        outputs = [x.new_zeros(len(x), one.mul, one.ir.dim) for one in product.irreps_out]
        for path, weight in zip(product.instructions, product.weight_views(), strict=True):
            mul, ir = product.irreps_in1[path.i_in1]
            features = inputs[path.i_in1].view(len(x), mul, ir.dim)
            factor = path.path_weight / ir.dim**0.5
            parts = zip(present, features.split([size for _, size in present]), strict=True)
            multiplied = [torch.einsum("uw,nui->nwi", factor * weight[:, element], part) for (element, _), part in parts]
            outputs[path.i_out] = outputs[path.i_out] + torch.cat(multiplied)
        result = torch.cat([output.flatten(1) for output in outputs], dim=1)
        return torch.zeros_like(result).index_copy(0, order, result)
