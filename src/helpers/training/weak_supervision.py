"""Losses that need no label: energies near a structure must agree with its forces.

After Takamoto, Zaverkin, Niepert, Proc. Mach. Learn. Res. 267, 58282 (2025), arXiv 2408.05215. For a displacement d of all atoms,

* PITC (Taylor-expansion consistency): E(r + d) against E(r) − Σ_i d_i · F_i(r);
* PISC (spatial consistency): E(r + d) against E(r + d′) − Σ_i (d − d′)_i · F_i(r + d′).

Both ask of a model what holds for any energy whose forces are its derivative. A network whose forces *are* the derivative fulfils it to
first order by construction. What remains is the next order,

    E(r + d) − E(r) + d · F(r) = ½ d · H d + O(d³),

half of the curvature along d (for PISC, along d − d′). To make it small is to make the energy surface flat: multiply the energy by c, and
the loss is multiplied by c². See :func:`best_scale` for what that does beside labels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from helpers.potentials.base import Graph, GraphPotential


@dataclass(frozen=True)
class Weak:
    """Settings of the losses."""

    taylor_weight: float = 0.0  # of PITC, per (eV/atom)², the unit of :attr:`helpers.training.fine_tune.Recipe.energy_weight`
    spatial_weight: float = 0.0  # of PISC
    step_a: float = 0.01  # how far every atom is moved, Å
    direction: str = "random"  # of each atom; or "adversarial", the one in which PITC's loss grows fastest, seen from there
    seed: int = 0  # of the random directions

    def __post_init__(self) -> None:
        if self.direction not in ("random", "adversarial"):
            raise ValueError(f"direction must be 'random' or 'adversarial', not {self.direction!r}")
        if not self.step_a > 0:
            raise ValueError(f"the step must be positive, not {self.step_a:g} Å")


def displaced(graph: Graph, displacement: torch.Tensor) -> Graph:
    """Return a batch with its atoms moved (shape (N, 3), Å); bonds and angles stay the same ones, which is exact but at the cutoff."""
    moved = copy.copy(graph)
    moved.positions = graph.positions + displacement
    return moved


def directions(n_atoms: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Return a random unit vector for each atom, shape (n_atoms, 3)."""
    drawn = torch.randn(n_atoms, 3, generator=generator, dtype=torch.float64)
    return (drawn / torch.linalg.norm(drawn, dim=1, keepdim=True)).to(device)


def adversarial(potential: GraphPotential, graph: Graph, start: torch.Tensor, step_a: float) -> torch.Tensor:
    """Return the displacement of ``step_a`` per atom along which PITC's residual grows fastest at ``step_a * start``.

    The residual's derivative by d is F(r) − F(r + d) ≈ H d: a step of the power iteration towards the largest curvature.
    """
    forces = [potential.compute(at)[1].detach() for at in (graph, displaced(graph, step_a * start))]
    slope = forces[0] - forces[1]
    return step_a * slope / torch.linalg.norm(slope, dim=1, keepdim=True).clamp_min(1e-12)


def energies_alone(potential: GraphPotential, graph: Graph) -> torch.Tensor:
    """Return energies without forces, which would double the time."""
    centre, neighbour = graph.edge_index
    offset = torch.einsum("es,esx->ex", graph.shifts, graph.cells[graph.edge_system])
    batch = copy.copy(graph)
    batch.vectors = (graph.positions[neighbour] - graph.positions[centre] + offset).to(potential.network_dtype)
    return potential.scale * potential.energies(batch).to(torch.float64)


def taylor_residual(
    potential: GraphPotential,
    graph: Graph,
    displacement: torch.Tensor,
    *,
    known: tuple[torch.Tensor, torch.Tensor] | None = None,
    training: bool = False,
) -> torch.Tensor:
    """Return E(r + d) − E(r) + Σ_i d_i · F_i(r), eV, shape (B,): one sum per structure.

    The graph is at r; d has shape (N, 3), Å; energies and forces at r may be ``known``. In training the graph of derivatives is kept, so
    that the residual can be differentiated by the weights.
    """
    energies, forces = known or potential.compute(graph, training=training)[:2]
    with torch.set_grad_enabled(training):
        there = energies_alone(potential, displaced(graph, displacement))
    work = torch.zeros_like(energies).index_add(0, graph.system, (displacement * forces).sum(dim=1))
    return there - energies + work


def spatial_residual(
    potential: GraphPotential, graph: Graph, displacement: torch.Tensor, other: torch.Tensor, *, training: bool = False
) -> torch.Tensor:
    """Return E(r + d) − E(r + d′) + Σ_i (d − d′)_i · F_i(r + d′), eV, shape (B,); see :func:`taylor_residual`."""
    return taylor_residual(potential, displaced(graph, other), displacement - other, training=training)


def loss(
    potential: GraphPotential,
    graph: Graph,
    known: tuple[torch.Tensor, torch.Tensor],
    settings: Weak,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the weighted loss: squared residuals per atom, the mean over structures, each in a direction drawn anew.

    Energies and forces at r that are ``known`` must be differentiable by the weights.
    """
    n_atoms = graph.n_atoms
    first, second = (directions(len(graph.positions), generator, graph.positions.device) for _ in range(2))
    d = adversarial(potential, graph, first, settings.step_a) if settings.direction == "adversarial" else settings.step_a * first
    total = torch.zeros((), dtype=torch.float64, device=graph.positions.device)
    if settings.taylor_weight:
        residual = taylor_residual(potential, graph, d, known=known, training=True)
        total = total + settings.taylor_weight * torch.mean((residual / n_atoms) ** 2)
    if settings.spatial_weight:
        residual = spatial_residual(potential, graph, d, settings.step_a * second, training=True)
        total = total + settings.spatial_weight * torch.mean((residual / n_atoms) ** 2)
    return total


def best_scale(
    reference: Sequence[np.ndarray],
    forces: Sequence[np.ndarray],
    residuals: Sequence[float] | np.ndarray,
    *,
    force_weight: float,
    weak_weight: float,
) -> float:
    """Return the factor c on the energy that is best for forces and one of these losses together.

    Each structure counts w_F ⟨(c F − F_ref)²⟩ + w (c R)², R its residual per atom, so that

        c = w_F Σ ⟨F F_ref⟩ / (w_F Σ ⟨F²⟩ + w Σ R²).

    Without the last sum it is the inverse slope s′, the fix of one label; with it, c is smaller, and less than one if the labels ask for
    nothing: the loss softens. R grows with the square of the step, its share with the fourth power.

    ``reference`` and ``forces`` are DFT's and the model's, by structure, shape (n_atoms, 3), eV/Å, residuals in eV/atom; w_F
    (``force_weight``) is in 1/(eV/Å)², w (``weak_weight``) in 1/(eV/atom)².
    """
    along = sum(float(np.mean(f * f_ref)) for f, f_ref in zip(forces, reference, strict=True))
    square = sum(float(np.mean(f * f)) for f in forces)
    return force_weight * along / (force_weight * square + weak_weight * float(np.sum(np.square(residuals))))
