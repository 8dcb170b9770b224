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

import torch
from e3nn.o3 import FullyConnectedTensorProduct, TensorProduct, wigner_3j


def even(receiver: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """Return the edges of each atom in rows of one length.

    Parameters
    ----------
    receiver : int tensor, shape (E,)
        The atom that each edge belongs to, in ascending order.
    n_atoms : int
        N.

    Returns
    -------
    int tensor, shape (N, K)
        Indices of edges; K is the largest number of edges that an atom has, and E stands where one has fewer.
    """
    counts = torch.bincount(receiver, minlength=n_atoms)
    edges = torch.arange(len(receiver), device=receiver.device)
    rows = receiver.new_full((n_atoms, int(counts.max())), len(receiver))
    rows[receiver, edges - (torch.cumsum(counts, 0) - counts)[receiver]] = edges
    return rows


class Convolution(torch.nn.Module):
    """A tensor product of the features of neighbours with the harmonics of edges, summed over the edges of each atom.

    Parameters
    ----------
    product : e3nn.o3.TensorProduct
        Each path multiplies every channel with the only channel of the harmonics and has a weight for it (``uvu``).

    Attributes
    ----------
    irreps_out : e3nn.o3.Irreps
        Of the sums.

    Raises
    ------
    ValueError
        If the product is of another kind.
    """

    def __init__(self, product: TensorProduct) -> None:
        super().__init__()
        self.features, self.harmonics, self.irreps_out = product.irreps_in1, product.irreps_in2, product.irreps_out
        paths = product.instructions
        known = all(path.connection_mode == "uvu" and path.has_weight and self.harmonics[path.i_in2].mul == 1 for path in paths)
        if not known or [path.i_out for path in paths] != list(range(len(self.irreps_out))):
            raise ValueError(f"{product} is no product of features with harmonics, one path for each output")
        self.paths = [(path.i_in1, path.i_in2) for path in paths]
        for number, path in enumerate(paths):
            l1, l2, l3 = self.features[path.i_in1].ir.l, self.harmonics[path.i_in2].ir.l, self.irreps_out[path.i_out].ir.l
            coefficients = path.path_weight * wigner_3j(l1, l2, l3, dtype=torch.float64).permute(2, 1, 0).reshape(2 * l3 + 1, -1)
            self.register_buffer(f"coefficients_{number}", coefficients, persistent=False)

    def forward(self, x: torch.Tensor, harmonics: torch.Tensor, weights: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """Return the sums.

        Parameters
        ----------
        x : tensor, shape (N, features)
            Of the atoms, in e3nn's order (channel before component).
        harmonics : tensor, shape (E, components)
        weights : tensor, shape (E, sum of the paths' channels)
        edge_index : int tensor, shape (2, E)
            Row 0: the neighbour, which sends. Row 1: the atom whose sum it is, in ascending order.

        Returns
        -------
        tensor, shape (N, irreps_out.dim)
        """
        sender, receiver = edge_index
        rows = even(receiver, len(x))
        if rows.numel() > len(sender):  # an edge of zeros fills the empty places
            fill = rows.view(-1)
            sender = torch.cat([sender, sender.new_zeros(1)])[fill]
            harmonics, weights = (torch.cat([part, part.new_zeros(1, part.shape[1])])[fill] for part in (harmonics, weights))
        neighbours = [
            torch.index_select(part.view(len(x), mul, ir.dim).transpose(1, 2).contiguous(), 0, sender)
            for part, (mul, ir) in zip(x.split([one.dim for one in self.features], dim=1), self.features, strict=True)
        ]
        edges = harmonics.view(*rows.shape, -1).transpose(1, 2).split([one.dim for one in self.harmonics], dim=1)
        sums = []
        for number, ((i, j), weight) in enumerate(
            zip(self.paths, weights.split([self.features[i].mul for i, _ in self.paths], dim=1), strict=True)
        ):
            weighted = (weight[:, None, :] * neighbours[i]).view(*rows.shape, -1)
            summed = torch.bmm(edges[j], weighted).view(len(x), -1, weight.shape[1])
            sums.append(torch.matmul(getattr(self, f"coefficients_{number}"), summed).transpose(1, 2).reshape(len(x), -1))
        return torch.cat(sums, dim=1)


class ElementLinear(torch.nn.Module):
    """A linear layer with weights for each element: the product of features with a row of numbers, the only 1 of which marks the element.

    Parameters
    ----------
    product : e3nn.o3.FullyConnectedTensorProduct
        Of the features and as many scalars as there are elements, with a weight for each path (``uvw``). Its weights are shared.

    Raises
    ------
    ValueError
        If the product is of another kind.
    """

    def __init__(self, product: FullyConnectedTensorProduct) -> None:
        super().__init__()
        known = len(product.irreps_in2) == 1 and product.irreps_in2.lmax == 0 and product.internal_weights
        if not known or any(path.connection_mode != "uvw" or not path.has_weight for path in product.instructions):
            raise ValueError(f"{product} is no linear layer with weights for each element")
        self._product = [product]  # in a list, so that its weights have one name only

    def forward(self, x: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
        """Return the new features.

        Parameters
        ----------
        x : tensor, shape (N, irreps_in1.dim)
        elements : tensor, shape (N, elements)
            A single 1 in each row.
        """
        product = self._product[0]
        which = elements.argmax(dim=1)
        atoms = [(element, torch.nonzero(which == element).squeeze(1)) for element in torch.unique(which).tolist()]
        inputs = x.split([one.dim for one in product.irreps_in1], dim=1)
        outputs = [x.new_zeros(len(x), one.mul, one.ir.dim) for one in product.irreps_out]
        for path, weight in zip(product.instructions, product.weight_views(), strict=True):
            mul, ir = product.irreps_in1[path.i_in1]
            features = inputs[path.i_in1].view(len(x), mul, ir.dim)
            factor = path.path_weight / ir.dim**0.5
            for element, rows in atoms:
                part = torch.einsum("uw,nui->nwi", factor * weight[:, element], features[rows])
                outputs[path.i_out] = outputs[path.i_out].index_add(0, rows, part)
        return torch.cat([output.flatten(1) for output in outputs], dim=1)
