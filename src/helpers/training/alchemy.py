"""Continuous composition in a graph network: atoms that are one element by a part and another by the rest.

A site of a mixed crystal holds one *alchemical atom* of each species k, all at one place, with weights λ_k. The energy is

    E(r, λ) = Σ_i λ_i [E0(Z_i) + ε_i(r, λ)],

with E0 the reference energy of the element, ε the atom's energy from the network, and λ = 1 for ordinary atoms. Three rules make it a
function of the composition (Nam, Peng and Gómez-Bombarelli, Nat. Commun. 16 (2025), doi 10.1038/s41467-025-59543-2, arXiv 2404.10746):

* an ordinary atom weights every message with the λ of the atom that it comes from;
* alchemical atoms are joined to ordinary atoms and to those of their own species, never to another species;
* alchemical atoms take every message in full.

With one weight at one and the others at zero this is the plain potential, exactly: nothing hears of an atom of weight zero, and its own
energy does not count. Between, an ordinary atom sees the average of its surroundings, and each species a sublattice of its own kind.
E is as smooth in λ as the network is in its features, and automatic differentiation gives ∂E/∂λ.

CHGNet passes messages between bonds as well, across angles. The paper has no such network; here the rules hold for bonds as they
do for atoms, where a bond with an alchemical atom at an end belongs to the species of that atom.

An :class:`AlchemicalPotential` is a potential like any other, so that it relaxes, serves as an ASE calculator and can be scaled.
Where the sites of a crystal sit is not resolved by species: all species of a site share one position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import ase
import ase.data
import numpy as np
import torch
from ase import units
from scipy import optimize

from helpers.potentials.base import Graph, GraphPotential, Potential, PotentialError, StructureError

# Weights may sum to a little more than one by rounding.
_ROUNDING = 1e-9

# Lengths are found to this relative accuracy; single precision gives no more.
_LENGTH_ACCURACY = 1e-6

# Relative change of length over which the slope of the stress is taken: the largest normal strain of the elasticity benchmark.
_STRAIN = 0.01


class AlchemicalPotential(GraphPotential):
    """A graph network in which all atoms of some species are one mixture of them; see the module's text.

    Structures are given as usual. Whichever of the mixed species stands on a site, the site holds the mixture. The base is a CHGNet or a
    MACE, whose network is shared, not copied; weights are by element, each from 0 to 1, and a sum below one leaves sites empty by the rest.
    PotentialError if the potential cannot take mixtures, an element is unknown to it, or the weights make no composition.
    """

    def __init__(self, base: Potential, weights: Mapping[str, float]) -> None:
        if not getattr(base, "takes_mixtures", False):
            raise PotentialError(f"{base.key} cannot mix elements: continuous composition is there for CHGNet and MACE.")
        numbers, values = _checked(base, weights)
        mixture = dict(zip(weights, values, strict=True))
        text = "".join(f"{symbol}{value:.4g}" for symbol, value in mixture.items())
        super().__init__(
            f"{base.key}~{text}",
            base.network,
            cutoff=base.cutoff,
            bytes_per_edge=base.bytes_per_edge * len(numbers),
            device=base.device,
            elements=base.elements,
            description={**base.description, "mixture": mixture},
        )
        self.base, self.mixture = base, mixture
        self.scale, self.deadline, self.untrained = base.scale, base.deadline, base.untrained
        self._numbers = torch.as_tensor(numbers, device=self.device)
        self._lambdas = torch.as_tensor(values, dtype=torch.float64, device=self.device)

    def topology(self, graph: Graph, distances: torch.Tensor) -> dict[str, torch.Tensor]:
        """List the atoms and the edges of the mixture, and what the network derives from them."""
        n_species = len(self._numbers)
        is_mixed = torch.isin(graph.numbers, self._numbers)
        count = torch.where(is_mixed, n_species, 1)
        first = torch.cumsum(count, 0) - count
        site = torch.arange(len(count), device=self.device).repeat_interleave(count)
        place = torch.arange(len(site), device=self.device) - first[site]
        species = torch.where(is_mixed[site], place, -1)
        numbers = torch.where(species < 0, graph.numbers[site], self._numbers[place])

        # Where an end is mixed there is one edge for each species; where both are, between equal ones.
        centre, neighbour = graph.edge_index
        copies = torch.where(is_mixed[centre] | is_mixed[neighbour], n_species, 1)
        edge = torch.arange(len(centre), device=self.device).repeat_interleave(copies)
        which = torch.arange(len(edge), device=self.device) - (torch.cumsum(copies, 0) - copies)[edge]
        ends = torch.stack([first[end][edge] + torch.where(is_mixed[end][edge], which, 0) for end in (centre, neighbour)])
        order = torch.argsort(ends[0], stable=True)  # the edges of an atom one after the other
        edge, ends = edge[order], ends[:, order]

        found = {"site": site, "species": species, "numbers": numbers, "edge": edge, "ends": ends}
        inner = self.base.topology(self._unfolded(graph, found), distances[edge])
        return found | {f"base {name}": tensor for name, tensor in inner.items()}

    def _unfolded(self, graph: Graph, top: Mapping[str, torch.Tensor]) -> Graph:
        """Return the graph in which every alchemical atom is an atom of its own; without weights and topology."""
        site, edge = top["site"], top["edge"]
        return Graph(
            numbers=top["numbers"],
            system=graph.system[site],
            n_systems=graph.n_systems,
            edge_index=top["ends"],
            shifts=graph.shifts[edge],
            positions=graph.positions[site],
            cells=graph.cells,
            vectors=graph.vectors[edge] if len(graph.vectors) else graph.vectors,
            species=top["species"],
        )

    def energies(self, graph: Graph) -> torch.Tensor:  # noqa: D102
        top = graph.topology
        unfolded, species = self._unfolded(graph, top), top["species"]
        unfolded.topology = {name.removeprefix("base "): tensor for name, tensor in top.items() if name.startswith("base ")}
        # Set only where the energy is to be differentiated in the weights: one row for each structure.
        lambdas = top.get("lambdas", self._lambdas.expand(graph.n_systems, -1))
        own = lambdas[unfolded.system, species.clamp(min=0)]
        unfolded.weights = torch.where(species < 0, 1.0, own).to(self.network_dtype)
        return self.base.energies(unfolded)

    def responses(self, structures: Sequence[ase.Atoms]) -> list[Response]:
        """Return energies and their derivatives in the weights, one structure after the other; StructureError if one fails."""
        return [self._response(atoms) for atoms in structures]

    def _response(self, atoms: ase.Atoms) -> Response:
        graph = self.collate([self.system(atoms)])
        lambdas = self._lambdas.expand(graph.n_systems, -1).clone().requires_grad_(True)
        graph.topology = {**graph.topology, "lambdas": lambdas}
        energies, _, stresses = self.compute(graph, stress=True, training=True)
        mean_stress = torch.diagonal(cast(torch.Tensor, stresses)[0]).mean()
        of_energy, of_stress = (
            torch.autograd.grad(value, lambdas, retain_graph=True, allow_unused=True)[0] for value in (energies.sum(), mean_stress)
        )
        return Response(
            energy=float(energies[0].detach()),
            mean_stress=float(mean_stress.detach()),
            energy_gradient=self._named(of_energy),
            stress_gradient=self._named(of_stress),
        )

    def _named(self, gradient: torch.Tensor | None) -> dict[str, float]:
        # A structure without mixed sites does not depend on the weights.
        values = np.zeros(len(self.mixture)) if gradient is None else gradient[0].cpu().numpy()
        return dict(zip(self.mixture, values.tolist(), strict=True))


@dataclass(frozen=True)
class Response:
    """How a mixture answers to its composition."""

    energy: float  # eV
    mean_stress: float  # a third of the trace of the stress, eV/Å³, positive under tension
    energy_gradient: dict[str, float]  # element → ∂E/∂λ, eV
    stress_gradient: dict[str, float]  # element → derivative of the mean stress in λ, eV/Å³


def _checked(base: Potential, weights: Mapping[str, float]) -> tuple[list[int], list[float]]:
    """Return atomic numbers and weights, or say what is wrong with them."""
    if not weights:
        raise PotentialError('a mixture needs at least one element, for example {"Mg": 0.5, "Ca": 0.5}')
    unknown = [symbol for symbol in weights if symbol not in ase.data.atomic_numbers]
    if unknown:
        raise PotentialError(f"{', '.join(map(repr, unknown))} in the mixture is no chemical element")
    numbers = [ase.data.atomic_numbers[symbol] for symbol in weights]
    foreign = [symbol for symbol, number in zip(weights, numbers, strict=True) if number not in base.elements]
    if foreign:
        raise PotentialError(f"{base.key} was not trained on {', '.join(foreign)}")
    values = [float(value) for value in weights.values()]
    # Written so that a value that is no number fails too.
    wrong = {symbol: value for symbol, value in zip(weights, values, strict=True) if not 0 <= value <= 1}
    if wrong:
        raise PotentialError(f"weights lie between 0 and 1; not so: {', '.join(f'{symbol} {value:g}' for symbol, value in wrong.items())}")
    if sum(values) > 1 + _ROUNDING:
        raise PotentialError(f"the weights of a site sum to {sum(values):g}; at most 1 is meant")
    return numbers, values


def mix(potential: GraphPotential, weights: Mapping[str, float]) -> AlchemicalPotential:
    """Return a potential for which all atoms of some elements are one mixture of them, as of ``{"Mg": 0.75, "Ca": 0.25}``."""
    return AlchemicalPotential(potential, weights)


# ---- A crystal with one degree of freedom ---------------------------------------------------------


@dataclass(frozen=True)
class Equilibrium:
    """A crystal at the size at which its mean stress vanishes."""

    atoms: ase.Atoms
    energy: float  # eV
    bulk_modulus: float  # V dσ/dV, with σ the mean stress and all fractional coordinates held, eV/Å³

    @property
    def bulk_modulus_gpa(self) -> float:
        """The same in GPa."""
        return self.bulk_modulus / units.GPa


def resized(atoms: ase.Atoms, factor: float) -> ase.Atoms:
    """Return a copy with all lengths multiplied by a factor; fractional coordinates stay."""
    copied = atoms.copy()
    copied.set_cell(atoms.cell.array * factor, scale_atoms=True)
    return copied


def equilibrium(potential: Potential, crystal: ase.Atoms, *, window: float = 0.15) -> Equilibrium:
    """Resize a crystal until its mean stress vanishes; atoms keep their fractional coordinates.

    For rocksalt and other cubic crystals without free coordinates that is the full relaxation. For an alloy on ideal sites it is the best
    lattice without relaxation of the atoms. The window is how far, as a part of its lengths, the search may go to either side.
    StructureError if the crystal cannot be evaluated, or has no equilibrium within the window.
    """

    def tension(factor: float) -> float:
        return _mean_stress(potential, resized(crystal, factor))[1]

    low, high = tension(1 - window), tension(1 + window)
    if not low < 0 < high:
        raise StructureError(
            f"{crystal.get_chemical_formula()} with {potential.key}: no equilibrium within {window:.0%} of its size "
            f"(mean stress {low:.3g} and {high:.3g} eV/Å³ at the ends); start closer to it"
        )
    factor = optimize.brentq(tension, 1 - window, 1 + window, rtol=_LENGTH_ACCURACY, xtol=_LENGTH_ACCURACY)
    atoms = resized(crystal, factor)
    # dV/V = 3 dl/l.
    return Equilibrium(atoms, _mean_stress(potential, atoms)[0], _slope(potential, atoms, _STRAIN) / 3)


def _slope(potential: Potential, atoms: ase.Atoms, strain: float) -> float:
    """Return the derivative of the mean stress by the relative change of length, taken over ± a strain, eV/Å³."""
    longer, shorter = (_mean_stress(potential, resized(atoms, 1 + sign * strain))[1] for sign in (1, -1))
    return (longer - shorter) / (2 * strain)


def _mean_stress(potential: Potential, atoms: ase.Atoms) -> tuple[float, float]:
    """Return energy (eV) and mean stress (eV/Å³)."""
    (prediction,) = potential.evaluate([atoms], stress=True)
    if not prediction.ok:
        raise StructureError(f"{atoms.get_chemical_formula()}: {prediction.error}")
    if prediction.stress is None:
        raise StructureError(f"{potential.key} gives no stress, which the search for an equilibrium needs")
    return prediction.energy, float(np.trace(prediction.stress)) / 3


def length_slope(mixed: AlchemicalPotential, crystal: ase.Atoms, gained: str, lost: str, strain: float = 1e-3) -> float:
    """Return d ln l/dx of a crystal at its equilibrium: how fast its lengths l grow as one element replaces another.

    The mean stress σ(l, x) stays zero along the equilibrium, so dl/dx = −(∂σ/∂x) / (∂σ/∂l) with ∂σ/∂x from automatic differentiation and
    ∂σ/∂l taken over ± a strain. The crystal is from :func:`equilibrium` with the same potential, x counts the element gained;
    PotentialError if one is not in the mixture.
    """
    missing = [symbol for symbol in (gained, lost) if symbol not in mixed.mixture]
    if missing:
        raise PotentialError(f"{', '.join(missing)} is not in the mixture {mixed.mixture}")
    (response,) = mixed.responses([crystal])
    in_x = response.stress_gradient[gained] - response.stress_gradient[lost]
    return -in_x / _slope(mixed, crystal, strain)


@dataclass(frozen=True)
class Design:
    """A composition with a wanted lattice parameter."""

    x: float  # fraction of the gained element
    lattice_parameter: float  # Å, of the conventional cube
    steps: list[tuple[float, float]]  # compositions on the way, with their lattice parameters (Å)


def lattice_parameter(atoms: ase.Atoms) -> float:
    """Return the lattice parameter (Å) of a rocksalt crystal in any cell: four formula units of two atoms in a cube."""
    return float((8 * atoms.get_volume() / len(atoms)) ** (1 / 3))


def design(
    potential: GraphPotential, crystal: ase.Atoms, *, gained: str, lost: str, target: float, start: float = 0.5, tolerance: float = 5e-4
) -> Design:
    """Find the composition of a rocksalt solid solution that has a wanted lattice parameter, by Newton's method in the composition.

    ValueError if no composition has this lattice parameter.

    ``potential``: A CHGNet or a MACE, not mixed.
    ``crystal``: rocksalt with one of the two elements.
    ``gained``, ``lost``: x is the fraction of the first; the rest is the second.
    ``target``: å.
    ``start``: first x.
    ``tolerance``: å.
    """
    steps: list[tuple[float, float]] = []

    def at(x: float) -> tuple[AlchemicalPotential, ase.Atoms]:
        mixed = mix(potential, {lost: 1 - x, gained: x})
        return mixed, equilibrium(mixed, crystal).atoms

    ends = sorted(lattice_parameter(at(x)[1]) for x in (0.0, 1.0))
    if not ends[0] <= target <= ends[1]:
        raise ValueError(
            f"a lattice parameter of {target:g} Å is out of reach: from {lost} to {gained} it goes {ends[0]:.4f} … {ends[1]:.4f} Å"
        )

    def miss(x: float) -> tuple[float, float]:
        # Newton's steps may leave the range of compositions.
        x = min(max(x, 0.0), 1.0)
        mixed, atoms = at(x)
        a = lattice_parameter(atoms)
        steps.append((x, a))
        # At the goal there is nothing to improve within the accuracy of a.
        return (0.0 if abs(a - target) < tolerance else a - target), a * length_slope(mixed, atoms, gained, lost)

    found = optimize.root_scalar(miss, fprime=True, x0=start, method="newton", xtol=1e-9, maxiter=30)
    if not found.converged:
        raise ValueError(f"no composition with a lattice parameter of {target:g} Å was found in {found.iterations} steps: {steps}")
    x, a = steps[-1]
    return Design(float(x), a, [(float(value), size) for value, size in steps])
