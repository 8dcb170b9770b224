"""Linear potentials of two- and three-body splines: UF3, fitted by least squares.

The Ultra-Fast Force Field (Xie, Rupp, Hennig, npj Comput. Mater. 9, 162 (2023)) writes the energy as sums over pairs and triangles of
atoms, with functions of one and of three distances that are cubic B-splines:

    E = Σ_i e_0 + Σ_i Σ_j V(r_ij) + Σ_i Σ_{j<k} W(r_ij, r_ik, r_jk),      V = Σ c_n B_n,   W = Σ c_lmn B_l B_m B_n.

It is linear in all coefficients, so a fit is one system of linear equations, and how much it can learn is fixed beforehand by the number
of splines. Splines, symmetry, penalties and the solution are those of the package ``uf3``. What is done here is the sum over atoms: the
package sums over a block of periodic images and so visits each triangle about a hundred times; here a neighbour list gives each once.
Both agree (test).

The potential knows one element. Units: eV, Å.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import ase
import numpy as np
from ase.data import chemical_symbols
from scipy import sparse
from vesin import NeighborList

from helpers.potentials.base import PotentialError, Prediction


@dataclass(frozen=True)
class Capacity:
    """How much a linear potential can learn."""

    pair_intervals: int = 16  # intervals between knots of the two-body spline
    triangle_intervals: int = 6  # the same for the two legs of a triangle (the side opposite has twice as many); 0: no three-body term
    shortest_a: float = 1.5  # First knot, Å. The potential knows no shorter distance.
    # Last knots, Å; the side opposite reaches twice as far as the legs.
    pair_cutoff_a: float = 5.5
    leg_cutoff_a: float = 4.5


@dataclass(frozen=True)
class Features:
    """What a linear potential sees of a structure: energy = ``energy`` @ c, forces = ``forces`` @ c."""

    energy: np.ndarray  # shape (n_features,); the first is the number of atoms, then come pairs and triangles
    forces: np.ndarray  # shape (3 n_atoms, n_features); minus its derivative, 1/Å

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.forces) // 3


Side = tuple[np.ndarray, np.ndarray, np.ndarray]  # of triangles: where they start and end, atoms' numbers, and unit vectors


class Basis:
    """The splines of one element (a chemical symbol) at one capacity."""

    def __init__(self, element: str, capacity: Capacity) -> None:
        # Compiling and plotting make its import slow: only when a linear potential is asked for.
        from uf3.data.composition import ChemicalSystem
        from uf3.representation.bspline import BSplineBasis

        self.element, self.capacity = element, capacity
        pair, trio = (element,) * 2, (element,) * 3
        low, leg, number = capacity.shortest_a, capacity.leg_cutoff_a, capacity.triangle_intervals
        triangles = bool(number)
        self.splines = BSplineBasis(
            ChemicalSystem([element], degree=3 if triangles else 2),
            r_min_map={pair: low} | ({trio: [low] * 3} if triangles else {}),
            r_max_map={pair: capacity.pair_cutoff_a} | ({trio: [leg, leg, 2 * leg]} if triangles else {}),
            resolution_map={pair: capacity.pair_intervals} | ({trio: [number, number, 2 * number]} if triangles else {}),
        )
        self._pair, self._trio = pair, trio

    @property
    def n_features(self) -> int:
        """Number of coefficients, among them those that are held at zero so that the potential ends smoothly."""
        return self.splines.n_feats

    @property
    def n_free(self) -> int:
        """Number of coefficients that are fitted."""
        return self.splines.n_feats - len(self.splines.col_idx)

    @cached_property
    def _compression(self) -> sparse.csr_array:
        """The package's way from a grid of products of splines to coefficients that respect symmetry, as a matrix."""
        shape = tuple(len(knots) - 4 for knots in self.splines.knots_map[self._trio])
        columns = []
        for place in np.ndindex(shape):
            grid = np.zeros(shape)
            grid[place] = 1.0
            columns.append(sparse.csr_array(self.splines.compress_3B(grid, self._trio)[None]))
        return sparse.csr_array(sparse.vstack(columns))

    def features(self, atoms: ase.Atoms) -> Features:
        """Return a structure's features; PotentialError for another element, no periodic cell, or atoms closer than the first knot."""
        centre, neighbour, vectors, lengths = self._neighbours(atoms)
        parts = [self._pairs(len(atoms), centre, neighbour, vectors, lengths)]
        if self.capacity.triangle_intervals:
            parts.append(self._triangles(len(atoms), centre, neighbour, vectors, lengths))
        energy = np.concatenate([[len(atoms)], *[part[0] for part in parts]])
        return Features(energy, np.hstack([np.zeros((3 * len(atoms), 1)), *[part[1] for part in parts]]))

    def _neighbours(self, atoms: ase.Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return both ends, vector and length of every directed pair."""
        others = {chemical_symbols[number] for number in set(atoms.numbers.tolist())} - {self.element}
        if others or not atoms.pbc.all():
            raise PotentialError(f"{atoms.get_chemical_formula()}: this potential knows periodic structures of {self.element} only")
        reach = max(self.capacity.pair_cutoff_a, self.capacity.leg_cutoff_a if self.capacity.triangle_intervals else 0.0)
        search = NeighborList(cutoff=reach, full_list=True)
        centre, neighbour, vectors = search.compute(points=atoms.positions, box=atoms.cell.array, periodic=True, quantities="ijD")
        lengths = np.linalg.norm(vectors, axis=1)
        if len(lengths) and lengths.min() <= self.capacity.shortest_a:
            raise PotentialError(f"two atoms are {lengths.min():.2f} Å apart; the splines begin at {self.capacity.shortest_a:g} Å")
        return centre.astype(int), neighbour.astype(int), vectors, lengths

    def _pairs(self, n_atoms, centre, neighbour, vectors, lengths) -> tuple[np.ndarray, np.ndarray]:
        near = lengths < self.capacity.pair_cutoff_a
        values, slopes = self._pair_splines(lengths[near])
        moved = _derivative(n_atoms, centre[near], neighbour[near], vectors[near] / lengths[near, None])
        return values.sum(axis=0), -(moved @ slopes)

    def _pair_splines(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        splines = self.splines.basis_functions[self._pair]
        values, slopes = np.zeros((2, len(lengths), len(splines)))
        for number in range(len(splines) - self.splines.trailing_trim):
            values[:, number] = np.nan_to_num(splines[number](lengths))
            slopes[:, number] = np.nan_to_num(splines[number](lengths, nu=1))
        return values, slopes

    def _triangles(self, n_atoms, centre, neighbour, vectors, lengths) -> tuple[np.ndarray, np.ndarray]:
        sides, splines, index = self._triangle_splines(centre, neighbour, vectors, lengths)
        rows = np.repeat(np.arange(len(index)), index[0].size)
        n_products = self._compression.shape[0]

        def products(*columns: int) -> sparse.csr_array:
            weights = np.einsum("ti,tj,tk->tijk", *(splines[:, :, column] for column in columns))
            grid = sparse.coo_array((weights.ravel(), (rows, index.ravel())), shape=(len(index), n_products))
            return sparse.csr_array(grid) @ self._compression

        forces = np.zeros((3 * n_atoms, self._compression.shape[1]))
        for columns, side in zip(_SLOPES, sides, strict=True):
            forces -= (_derivative(n_atoms, *side) @ products(*columns)).toarray()
        return np.asarray(products(*_VALUES).sum(axis=0)).ravel(), forces

    def _triangle_splines(self, centre, neighbour, vectors, lengths) -> tuple[list[Side], np.ndarray, np.ndarray]:
        """Return, for T triangles, their sides (start, end, direction), their splines (T, 4, 6) and the products' places (T, 4, 4, 4)."""
        from uf3.representation.angles import evaluate_triplet_derivatives

        near = np.flatnonzero(lengths < self.capacity.leg_cutoff_a)
        near = near[np.argsort(centre[near], kind="stable")]
        _, starts, counts = np.unique(centre[near], return_index=True, return_counts=True)
        couples = [near[start + np.array(np.triu_indices(count, 1))] for start, count in zip(starts, counts, strict=True)]
        first, second = np.hstack(couples) if couples else np.zeros((2, 0), dtype=int)
        opposite = vectors[second] - vectors[first]
        ends = (
            (centre[first], neighbour[first], vectors[first]),
            (centre[second], neighbour[second], vectors[second]),
            (neighbour[first], neighbour[second], opposite),
        )
        reaches = [np.linalg.norm(vector, axis=1) for _, _, vector in ends]
        knots = self.splines.knots_map[self._trio]
        # For the four splines of each side that are not zero there: values (columns 0 to 2) and slopes (3 to 5).
        splines, places = evaluate_triplet_derivatives(
            *reaches, self.splines.basis_functions[self._trio], knots, n_trail=self.splines.trailing_trim
        )
        splines, places = splines.reshape(-1, 4, 6), places.reshape(-1, 4, 3)
        where = (places[:, :, None, None, 0], places[:, None, :, None, 1], places[:, None, None, :, 2])
        index = np.ravel_multi_index(where, [len(sequence) - 4 for sequence in knots], mode="clip")
        sides = [(start, end, vector / reach[:, None]) for (start, end, vector), reach in zip(ends, reaches, strict=True)]
        return sides, splines, index

    def evaluate(self, atoms: ase.Atoms, coefficients: np.ndarray) -> Prediction:
        """Return energy and forces of a structure, as :func:`predict` does from its features, but faster; errors are the same."""
        centre, neighbour, vectors, lengths = self._neighbours(atoms)
        near = lengths < self.capacity.pair_cutoff_a
        values, slopes = self._pair_splines(lengths[near])
        pairs = coefficients[1 : 1 + values.shape[1]]
        energy = len(atoms) * coefficients[0] + (values @ pairs).sum()
        pulls = [(centre[near], neighbour[near], vectors[near] / lengths[near, None], slopes @ pairs)]
        if self.capacity.triangle_intervals:
            sides, splines, index = self._triangle_splines(centre, neighbour, vectors, lengths)
            products = (self._compression @ coefficients[1 + values.shape[1] :])[index]

            def summed(*columns: int) -> np.ndarray:
                return np.einsum("tijk,ti,tj,tk->t", products, *(splines[:, :, column] for column in columns), optimize=True)

            energy += summed(*_VALUES).sum()
            pulls += [(*side, summed(*columns)) for side, columns in zip(sides, _SLOPES, strict=True)]
        forces = np.zeros((len(atoms), 3))
        for start, end, direction, slope in pulls:
            np.add.at(forces, start, slope[:, None] * direction)
            np.subtract.at(forces, end, slope[:, None] * direction)
        return Prediction(float(energy), forces)


# Which columns of the splines of the three sides are multiplied: for the energy, and for its derivative by each side.
_VALUES = (0, 1, 2)
_SLOPES = ((3, 1, 2), (0, 4, 2), (0, 1, 5))


def _derivative(n_atoms: int, start: np.ndarray, end: np.ndarray, directions: np.ndarray) -> sparse.csr_array:
    """Return the derivative of distances with respect to positions, shape (3 n_atoms, n_distances)."""
    columns = np.repeat(np.arange(len(start)), 3)
    axes = np.tile(np.arange(3), len(start))
    rows = np.concatenate([3 * np.repeat(end, 3) + axes, 3 * np.repeat(start, 3) + axes])
    values = np.concatenate([directions.ravel(), -directions.ravel()])
    return sparse.csr_array(sparse.coo_array((values, (rows, np.tile(columns, 2))), shape=(3 * n_atoms, len(start))))


@dataclass(frozen=True)
class Weights:
    """What an error counts in the fit, and what roughness does.

    Minimised is the mean over frames of (ΔE/N)²/energy_ev² + mean(ΔF²)/force_ev_per_a², plus |P c|², with P the penalty matrix of the
    package: differences of neighbouring coefficients times ``curvature``, and coefficients times ``ridge``.
    """

    energy_ev: float = 0.01  # error of the energy per atom that counts one, eV
    force_ev_per_a: float = 0.1  # error of a force component that counts one, eV/Å
    # 1/eV. The values have about the smallest error for all capacities when silicon's frames are divided for cross-validation.
    ridge: float = 1e-3
    curvature: float = 1e-2


@dataclass(frozen=True)
class Equations:
    """A frame's contribution to the normal equations: ``gram`` (n, n) and ``ordinate`` (n,), without what is held at zero."""

    gram: np.ndarray
    ordinate: np.ndarray


def equations(basis: Basis, features: Features, energy: float, forces: np.ndarray, weights: Weights) -> Equations:
    """Return what a labelled frame (energy in eV, forces in eV/Å of shape (n_atoms, 3)) adds to the normal equations."""
    forces = np.asarray(forces, dtype=float).ravel()
    if len(forces) != len(features.forces):
        raise ValueError(f"forces of {len(forces) // 3} atoms for a structure of {features.n_atoms}")
    free = np.setdiff1d(np.arange(basis.n_features), basis.splines.col_idx)
    scale_e = 1 / (features.n_atoms * weights.energy_ev)
    scale_f = 1 / (np.sqrt(len(forces)) * weights.force_ev_per_a)
    rows = np.vstack([features.energy[None] * scale_e, features.forces * scale_f])[:, free]
    wanted = np.concatenate([[energy * scale_e], forces * scale_f])
    return Equations(rows.T @ rows, rows.T @ wanted)


def fit(basis: Basis, parts: Sequence[Equations], weights: Weights) -> np.ndarray:
    """Return the coefficients, shape (n_features,), that minimise the loss of :class:`Weights` over some frames, at least one."""
    if not parts:
        raise ValueError("a fit needs at least one labelled frame")
    from uf3.regression.least_squares import WeightedLinearModel

    penalty = basis.splines.get_regularization_matrix(
        ridge_map={1: 0.0, 2: weights.ridge, 3: weights.ridge}, curvature_map={2: weights.curvature, 3: weights.curvature}
    )
    model = WeightedLinearModel(basis.splines, regularizer=penalty)
    model.fit_with_gram(sum(part.gram for part in parts) / len(parts), sum(part.ordinate for part in parts) / len(parts))
    return model.coefficients


def predict(features: Features, coefficients: np.ndarray) -> Prediction:
    """Return energy and forces of a structure."""
    return Prediction(float(features.energy @ coefficients), (features.forces @ coefficients).reshape(-1, 3))
