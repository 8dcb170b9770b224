"""What labels do to a soft potential: one factor, or fine-tuning of the weights.

Both are from Deng et al., npj Comput. Mater. 11, 9 (2025):

* :func:`linear_correction` multiplies the energy by one constant fitted to the forces of one or more labels.
  It is what gradient descent finds when a single scalar is trained and everything else is frozen.
* :func:`fine_tune` trains the weights on a few labels. One loop serves every graph network here. It can also train less than all weights:
  a part of them (:func:`part`), or corrections of low rank to all of them (Hu et al., ICLR (2022), arXiv 2106.09685). What the
  potential knew of other elements can be held, with its own answers on crystals of these: they are labels too (replay), or weights
  that mattered for them are held (elastic weight consolidation: Kirkpatrick et al., PNAS 114, 3521 (2017)). Labels may bring force
  constants.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.stress import voigt_6_to_full_3x3_stress
from torch.nn.utils import parametrize
from tqdm.auto import tqdm

from helpers import results, softening, structures
from helpers.potentials.base import Graph, GraphPotential, Potential, PotentialError, Prediction, StructureError, System

EV_PER_A3_IN_GPA = 160.21766208


@dataclass(frozen=True)
class Label:
    """A structure with its DFT answer."""

    atoms: ase.Atoms
    energy: float | None  # total, eV; None if it is not known
    # eV/Å, shape (n_atoms, 3); NaN where a component does not count, as of an atom that was held. It is left out of every sum.
    forces: np.ndarray
    stress: np.ndarray | None = None  # eV/Å³, shape (3, 3), ASE's sign
    crystal: ase.Atoms | None = None  # from which the atoms are displaced
    force_constants: np.ndarray | None = None  # those of the crystal, eV/Å², shape (3 n_atoms, 3 n_atoms)

    def __post_init__(self) -> None:
        # Lists, and Voigt's six numbers, are what other programs hand over.
        if self.forces is not None:
            object.__setattr__(self, "forces", np.asarray(self.forces, dtype=float))
        if self.stress is not None:
            stress = np.asarray(self.stress, dtype=float)
            object.__setattr__(self, "stress", voigt_6_to_full_3x3_stress(stress) if stress.shape == (6,) else stress)

    @property
    def total_energy(self) -> float:
        """The energy, eV; ValueError if it is not known."""
        if self.energy is None:
            raise ValueError(f"{self.atoms.get_chemical_formula()} has no energy")
        return self.energy


LOSSES = ("squared", "huber", "absolute")

# What each method sets in a recipe (:func:`recipe_of`). Where few numbers are trained they have further to go. The strength of
# consolidation is the best of 1, 100 and 10,000 for rattled MgO with a stiffer teacher.
METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "full": {},
    "partial": {"trained": ("last-layer",), "learning_rate": 1e-2},
    "low-rank": {"rank": 4, "learning_rate": 1e-2},
    "replay": {"replay_weight": 1.0},
    "consolidation": {"consolidation": 100.0},
    "curvature": {"curvature_weight": 1.0},
}
_REPLAYED = 4  # crystals beside each batch of labels


@dataclass(frozen=True)
class Recipe:
    """Settings of fine-tuning; the defaults are the paper's where it gives them.

    The loss is a weighted sum of mean errors, squared unless ``loss`` says otherwise, of the energy per atom (eV/atom), the force
    components (eV/Å) and the stress components (GPa).
    """

    epochs: int = 100
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5  # cosine schedule
    energy_weight: float = 0.1  # 0, or labels without energy: the energy is not trained on
    force_weight: float = 100.0
    stress_weight: float = 0.1  # 0, or labels without stress: the stress is not computed
    batch_size: int = 1  # structures evaluated together; not given in the paper
    max_gradient_norm: float | None = None  # longer gradients are shortened to this; what training from random weights needs
    validation_fraction: float = 0.1  # 0: all labels are trained on; then keep must be "last"
    keep: str = "best"  # "best": lowest validation force MAE; "last": last epoch
    seed: int = 0
    trained: tuple[str, ...] = ()  # beginnings of the names of the parameters that are trained, see `part`; empty: all
    rank: int = 0  # above 0: the weights stay as they are and get corrections of this rank
    loss: str = "squared"  # or "absolute", or "huber": half the square up to huber_delta, linear beyond
    huber_delta: float = 0.1  # in the units of each error; the value CHGNet was trained with
    # What the potential knew of other elements: so many crystals of them, and the weight of their energies, per (eV/atom)².
    sample: int = 32
    sample_energy_weight: float = 10.0
    replay_weight: float = 0.0  # of their loss, beside that of the labels
    consolidation: float = 0.0  # strength of elastic weight consolidation; 1: to second order, and weight by weight, as much as replay
    curvature_weight: float = 0.0  # of H·d, every second step, for random directions d in which every atom moves by 1 Å; per (eV/Å)²

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}; there are: {', '.join(LOSSES)}")

    def record(self) -> dict[str, object]:
        """Return all settings, those that came later only where their loss is used: records from before stay valid."""
        used = {"loss": self.loss != "squared", "sample": self.replay_weight or self.consolidation}
        used |= {"huber_delta": used["loss"], "sample_energy_weight": used["sample"]}
        used |= {name: getattr(self, name) for name in ("replay_weight", "consolidation", "curvature_weight")}
        return {name: value for name, value in asdict(self).items() if used.get(name, True)}


@dataclass
class FineTuned:
    """The outcome of :func:`fine_tune`."""

    potential: GraphPotential  # the fine-tuned one; the original is not changed
    # Per epoch: ``epoch``, ``learning_rate``, ``loss`` (training), ``train_force_mae`` and ``validation_force_mae`` (eV/Å).
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0  # the epoch whose weights were kept
    # Which labels were used for what.
    train: list[int] = field(default_factory=list)
    validation: list[int] = field(default_factory=list)
    n_trained: int = 0  # how many numbers were trained


def recipe_of(method: str, potential: Potential, recipe: Recipe) -> Recipe:
    """Return a recipe with what a method of :data:`METHODS` sets, as far as the recipe has the default there; ValueError if unknown.

    ``trained`` may name a part of the network (:func:`part`).
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are: {', '.join(METHODS)}")
    default = Recipe()
    recipe = replace(recipe, **{name: v for name, v in METHODS[method].items() if getattr(recipe, name) == getattr(default, name)})
    named = len(recipe.trained) == 1 and recipe.trained[0] in ("readout", "last-layer") and isinstance(potential, GraphPotential)
    return replace(recipe, trained=part(potential, recipe.trained[0])) if named else recipe


def linear_correction(potential: Potential, labels: Sequence[Label], method: str = "inverse_slope") -> Potential:
    """Return c·E with c fitted to the labels' forces, by a method of :func:`helpers.softening.correction`; one label is enough.

    StructureError if a label cannot be evaluated; ValueError if a label has no forces, or not as many as atoms.
    """
    _check(labels)
    reference = np.concatenate([label.forces.ravel() for label in labels])
    counted = ~np.isnan(reference)
    predictions = potential.evaluate([label.atoms for label in labels])
    for label, prediction in zip(labels, predictions, strict=True):
        if not prediction.ok:
            raise StructureError(f"label {label.atoms.get_chemical_formula()}: {prediction.error}")
    predicted = np.concatenate([prediction.forces.ravel() for prediction in predictions])
    return potential.scaled(softening.correction(reference[counted], predicted[counted], method=method))


def _check(labels: Sequence[Label], *, energy: bool = False, stress: bool = False) -> None:
    """Refuse labels whose answers cannot be used: NumPy would broadcast them, or a sum would be empty, or a NaN, in silence."""
    for k, label in enumerate(labels):
        n, forces, wrong = len(label.atoms), label.forces, ""
        if forces is None or forces.shape != (n, 3):
            wrong = f"forces of shape {np.shape(forces)}, but {n} atom(s) need ({n}, 3)"
        elif np.isinf(forces).any() or np.isnan(forces).all():
            wrong = "a force is infinite" if np.isinf(forces).any() else "no force is a number"
        elif energy and not np.isfinite(label.total_energy):
            wrong = f"the energy is not a number: {label.energy}"
        elif stress and label.stress is not None and not (label.stress.shape == (3, 3) and np.isfinite(label.stress).all()):
            wrong = "the stress is not 3 × 3, or 6, numbers"
        if wrong:
            raise ValueError(f"label {k} ({label.atoms.get_chemical_formula()}): {wrong}")


def split(n_labels: int, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Divide labels into training and validation (at least one each, or all for both when there is only one; no validation if asked)."""
    if recipe.validation_fraction == 0:
        return list(range(n_labels)), []
    if n_labels == 1:
        return [0], [0]
    order = np.random.default_rng(recipe.seed).permutation(n_labels)
    n_validation = max(1, round(recipe.validation_fraction * n_labels))
    return sorted(order[n_validation:].tolist()), sorted(order[:n_validation].tolist())


@contextlib.contextmanager
def _memory_named() -> Iterator[None]:
    """Turn the errors with which PyTorch and Python run out of memory into one that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        remedy = "label smaller cells, lower the recipe's batch_size if it is above 1, or train on another device (--device)"
        raise PotentialError(f"the memory does not suffice for training: {remedy}. ({' '.join(str(error).split())[:200]})") from error


@_memory_named()
def fine_tune(
    potential: GraphPotential,
    labels: Sequence[Label],
    recipe: Recipe | None = None,
    *,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> FineTuned:
    """Train the weights of a graph network on DFT labels.

    Adam with a cosine learning-rate schedule. A copy of the potential is trained. Labels are split into training and validation with
    ``recipe.seed``; neighbour lists and graphs are built once and reused in every epoch. The state of the training is saved to the
    checkpoint after every epoch; if that file exists, training resumes from it. PotentialError if the potential has no weights to train,
    the loss becomes NaN, the memory does not suffice, or a checkpoint is of another training; StructureError if a label cannot be
    evaluated; ValueError if a label has no forces, not as many as atoms, or an energy or stress that is no number.
    """
    recipe = recipe or Recipe()
    if not isinstance(potential, GraphPotential):
        raise PotentialError(f"{potential.key} has no weights to train; use the linear correction.")
    if not labels:
        raise ValueError("fine-tuning needs at least one label")
    if recipe.validation_fraction == 0 and recipe.keep != "last":
        raise ValueError('without validation no epoch is the best: set keep="last"')
    with_energy = recipe.energy_weight > 0 and all(label.energy is not None for label in labels)
    with_stress = recipe.stress_weight > 0 and all(label.stress is not None for label in labels)
    _check(labels, energy=with_energy, stress=with_stress)
    if recipe.curvature_weight and any(label.force_constants is None for label in labels):
        raise ValueError("training on curvature needs labels with force constants; some have none")
    train, validation = split(len(labels), recipe)

    tuned = copy.deepcopy(potential)
    tuned.key = f"{potential.key}+{len(labels)}"
    if recipe.rank:
        _add_low_rank(tuned, recipe)
    parameters = _trainable(tuned, recipe)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=recipe.learning_rate)
    generator = torch.Generator().manual_seed(recipe.seed)
    # Of its own, so that the order of the labels is the same whatever the method.
    moves = torch.Generator().manual_seed(recipe.seed)

    systems = [tuned.system(label.atoms) for label in labels]

    def batch(members: Sequence[int]) -> _Batch:
        return _batch(tuned, [systems[k] for k in members], [labels[k] for k in members], with_energy, with_stress)

    memory = _Memory(tuned, parameters, labels, recipe) if recipe.replay_weight or recipe.consolidation else None

    groups = [validation[first : first + recipe.batch_size] for first in range(0, len(validation), recipe.batch_size)]
    held = [batch(group) for group in groups]
    # Alone, a structure is the same batch in every epoch.
    singles = {index: batch([index]) for index in train} if recipe.batch_size == 1 else {}
    result = FineTuned(tuned, train=train, validation=validation, n_trained=sum(parameter.numel() for parameter in parameters))
    best_weights, start = copy.deepcopy(tuned.network.state_dict()), 0
    best_error, mark = math.inf, _mark(tuned, labels)
    if checkpoint is not None and checkpoint.is_file():
        try:
            saved = torch.load(checkpoint, map_location=tuned.device, weights_only=True)
            other = saved["recipe"] != recipe.record() or saved["mark"] != mark
            if not other:
                tuned.network.load_state_dict(saved["network"])
                optimiser.load_state_dict(saved["optimiser"])
                generator.set_state(saved["generator"].cpu())
                moves.set_state(saved["moves"].cpu())
                best_weights, best_error = saved["best_weights"], saved["best_error"]
                result.history, result.best_epoch, start = saved["history"], saved["best_epoch"], saved["epoch"] + 1
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # foreign bytes make the reader raise whatever they lead to
            raise PotentialError(f"{checkpoint} is damaged or no checkpoint of a training; delete it to begin anew.") from error
        if other:
            raise PotentialError(f"{checkpoint} was written with another recipe, other labels or other weights; delete it or use the same.")

    bar = tqdm(range(start, recipe.epochs), initial=start, total=recipe.epochs, disable=not progress, desc=tuned.key, unit="epoch")
    for epoch in bar:
        rate = learning_rate(epoch, recipe)
        for group in optimiser.param_groups:
            group["lr"] = rate
        order = [train[k] for k in torch.randperm(len(train), generator=generator).tolist()]
        loss_sum, error_sum = 0.0, 0.0
        for first in range(0, len(order), recipe.batch_size):
            members = order[first : first + recipe.batch_size]
            optimiser.zero_grad()
            # H·d takes twice as long as all else: every second step, and each label every second epoch.
            curved = recipe.curvature_weight and (epoch + first // recipe.batch_size) % 2 == 0
            chosen = singles[members[0]] if singles else batch(members)
            loss, error = _loss(tuned, chosen, recipe, training=True, moves=moves if curved else None)
            if memory is not None:
                loss = loss + memory.loss(moves)
            loss.backward()
            if recipe.max_gradient_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.max_gradient_norm)
            optimiser.step()
            loss_sum += loss.item() * len(members)
            error_sum += error * len(members)
        if not math.isfinite(loss_sum):
            raise PotentialError(f"the loss became NaN in epoch {epoch}; lower the learning rate ({recipe.learning_rate:g}).")
        errors = [_loss(tuned, group, recipe, training=False)[1] for group in held]
        validation_error = float(np.average(errors, weights=[len(group) for group in groups])) if groups else math.nan
        entry = {"epoch": epoch, "learning_rate": rate, "loss": loss_sum / len(train), "train_force_mae": error_sum / len(train)}
        result.history.append(entry | {"validation_force_mae": validation_error})
        if recipe.keep == "last" or validation_error < best_error:
            best_error, result.best_epoch = validation_error, epoch
            best_weights = copy.deepcopy(tuned.network.state_dict())
        bar.set_postfix(error=f"{validation_error if groups else error_sum / len(train):.3f} eV/Å")
        if checkpoint is not None:
            state = {
                "recipe": recipe.record(),
                "mark": mark,
                "epoch": epoch,
                "network": tuned.network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "generator": generator.get_state(),
                "moves": moves.get_state(),
                "best_weights": best_weights,
                "best_error": best_error,
                "best_epoch": result.best_epoch,
                "history": result.history,
            }
            _save(state, checkpoint)
    tuned.network.load_state_dict(best_weights)
    if recipe.rank:
        _merge_low_rank(tuned)
    tuned.network.requires_grad_(False)
    return result


# ---- Training less than all weights ---------------------------------------------------------------


# The layers behind the message passing, and the lists of layers whose last ones pass the last message.
_PARTS = {
    "CHGNet": (("readout_norm.", "mlp."), ("atom_conv_layers",)),
    "M3GNet": (("final_layer.",), ("graph_layers",)),
    "TensorNet": (("out_norm.", "linear.", "final_layer."), ("layers",)),
    "Nequix": (("readout",), ("layers",)),
    "MACE": (("readouts.",), ("interactions", "products")),
}


def part(potential: GraphPotential, name: str) -> tuple[str, ...]:
    """Return how the names of the parameters of a part of a network begin, for ``Recipe.trained``; PotentialError if they are not known.

    Parts are ``readout``, the layers that turn the features of an atom into its energy, and ``last-layer``, these and the last message
    passing.
    """
    network, family = potential.network, str(potential.describe()["family"])
    if family not in _PARTS:
        raise PotentialError(f"the parts of a {family} are not known; name its parameters in Recipe.trained.")
    if name not in ("readout", "last-layer"):
        raise PotentialError(f"unknown part {name!r}; there are: readout, last-layer")
    readout, lists = _PARTS[family]
    return readout if name == "readout" else (*readout, *(f"{one}.{len(getattr(network, one)) - 1}." for one in lists))


def _trainable(potential: GraphPotential, recipe: Recipe) -> list[torch.nn.Parameter]:
    """Return the parameters that a recipe trains."""
    chosen = []
    for name, parameter in potential.network.named_parameters():
        # The corrections' names, here and in MACE's package.
        correction = ".low_rank_" in name or ".lora_" in name
        if name.startswith(potential.untrained) or correction != bool(recipe.rank):
            continue
        if not recipe.trained or name.startswith(recipe.trained):
            chosen.append(parameter)
    if not chosen:
        raise PotentialError(f"{potential.key} has no parameter to train whose name begins with {', '.join(recipe.trained) or 'anything'}")
    return chosen


class _LowRank(torch.nn.Module):
    """A weight matrix plus a product of two thin ones, zero at the start."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        rank = min(rank, rows, columns)
        self.low_rank_in = torch.nn.Parameter(torch.randn(rank, columns).to(weight) / math.sqrt(columns))
        self.low_rank_out = torch.nn.Parameter(torch.zeros(rows, rank).to(weight))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.low_rank_out @ self.low_rank_in


def _add_low_rank(potential: GraphPotential, recipe: Recipe) -> None:
    """Give every linear layer a correction of low rank; MACE's equivariant layers get those of its own package."""
    # Both draw from PyTorch's global generator; whoever called is not to notice.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if potential.describe()["family"] == "MACE":
            from helpers.potentials.mace import contained

            with contained():
                from mace.modules.lora import inject_lora
            # The package divides the product by the rank; here, as for other networks, it counts in full.
            inject_lora(potential.network, rank=recipe.rank, alpha=recipe.rank)
            potential.network.requires_grad_(False)
            return
        linear = [
            (name, module)
            for name, module in potential.network.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.startswith(potential.untrained)
        ]
        for _, module in linear:
            parametrize.register_parametrization(module, "weight", _LowRank(module.weight, recipe.rank))


def _merge_low_rank(potential: GraphPotential) -> None:
    """Add the corrections to the weights, so that the network is again of the kind it was."""
    if potential.describe()["family"] == "MACE":
        from helpers.potentials.mace import contained

        with contained():
            from mace.modules.lora import merge_lora_weights
        merge_lora_weights(potential.network)
        return
    for module in list(potential.network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def learning_rate(epoch: int, recipe: Recipe) -> float:
    """Return the learning rate of an epoch: half a cosine from the first to the last value."""
    fraction = epoch / max(1, recipe.epochs - 1)
    span = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + 0.5 * span * (1 + math.cos(math.pi * fraction))


@dataclass
class _Batch:
    graph: Graph
    energy: torch.Tensor | None
    forces: torch.Tensor
    weights: torch.Tensor  # of each force component in the mean, 0 where it does not count
    stress: torch.Tensor | None
    curved: tuple[Graph, torch.Tensor] | None  # crystals with force constants, and these, a block each


class _Memory:
    """The loss that holds on to what a potential knew, from its own answers on crystals of elements that no label has."""

    def __init__(self, potential: GraphPotential, parameters: list[torch.nn.Parameter], labels: Sequence[Label], recipe: Recipe) -> None:
        self.potential, self.parameters, self.recipe = potential, parameters, recipe
        self.of_sample = replace(recipe, energy_weight=recipe.sample_energy_weight, curvature_weight=0.0)
        crystals, answers = sample_of(potential, {z for label in labels for z in label.atoms.numbers.tolist()}, recipe.sample, recipe.seed)
        known = [Label(atoms, p.energy, p.forces, p.stress) for atoms, p in zip(crystals, answers, strict=True)]
        groups = [known[first : first + _REPLAYED] for first in range(0, len(known), _REPLAYED)]
        stress = recipe.stress_weight > 0
        self.batches = [_batch(potential, [potential.system(label.atoms) for label in group], group, True, stress) for group in groups]
        self.start = [parameter.detach().clone() for parameter in parameters]
        self.fisher = self._fisher() if recipe.consolidation else []

    def _fisher(self, draws: int = 4) -> list[torch.Tensor]:
        """Return the diagonal of the Fisher information of energies and forces, whose variances are those that the loss stands for.

        Answers are drawn around the potential's own; the squared derivatives of their likelihood by each weight are averaged.
        """
        generator = torch.Generator().manual_seed(self.recipe.seed)
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        for batch in self.batches:
            answers = self.potential.compute(batch.graph, training=True)[:2]
            sizes = [(self.of_sample.energy_weight / len(answers[0])) ** 0.5 / batch.graph.n_atoms]
            sizes.append((self.of_sample.force_weight * batch.weights) ** 0.5)
            for _ in range(draws):
                noise = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.device) for one in sizes]
                drawn = sum((a * b * c).sum() for a, b, c in zip(sizes, noise, answers, strict=True))
                slopes = torch.autograd.grad(drawn, self.parameters, retain_graph=True, allow_unused=True)
                for one, slope in zip(total, slopes, strict=True):
                    if slope is not None:
                        one += slope**2 / (draws * len(self.batches))
        return total

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64, device=self.potential.device)
        if self.recipe.replay_weight:
            batch = self.batches[int(torch.randint(len(self.batches), (1,), generator=generator))]
            loss = loss + self.recipe.replay_weight * _loss(self.potential, batch, self.of_sample, training=True)[0]
        for size, now, then in zip(self.fisher, self.parameters, self.start, strict=False):
            loss = loss + self.recipe.consolidation * torch.sum(size * (now - then) ** 2)
        return loss


def sample_of(potential: GraphPotential, without: Collection[int], number: int, seed: int) -> tuple[list[ase.Atoms], list[Prediction]]:
    """Return crystals spread over the elements of a potential but for some (atomic numbers), and its answers, with stresses.

    What it cannot evaluate is left out. PotentialError if it knows no other element.
    """
    others = potential.elements - set(without)
    crystals = structures.spread(others, number, seed) if others else []
    pairs = [(a, p) for a, p in zip(crystals, potential.evaluate(crystals, stress=True), strict=True) if p.ok]
    if not pairs:
        raise PotentialError(f"{potential.key} knows no element that the labels do not have; replay and consolidation need some.")
    return [a for a, _ in pairs], [p for _, p in pairs]


def forgetting(before: GraphPotential, after: Potential, without: Collection[int], number: int = 24, seed: int = 2**31) -> dict[str, float]:
    """Return by how much answers changed on crystals of elements that no label has (:func:`sample_of`; of a seed that no training has).

    ``n`` crystals of ``n_elements``; the mean change of ``forces`` (eV/Å per component) and of the ``energy`` (eV/atom), and
    ``forces_before``, the mean size of forces before (eV/Å).
    """
    crystals, old = sample_of(before, without, number, seed)
    new = after.evaluate(crystals)
    found = {"n": len(crystals), "n_elements": len({z for crystal in crystals for z in crystal.numbers.tolist()})}
    found["energy"] = float(np.mean([abs(a.energy - b.energy) / len(a.forces) for a, b in zip(new, old, strict=True)]))
    found["forces"] = float(np.mean([np.abs(a.forces - b.forces).mean() for a, b in zip(new, old, strict=True)]))
    return found | {"forces_before": float(np.mean([np.abs(p.forces).mean() for p in old]))}


def _batch(potential: GraphPotential, systems: Sequence[System], labels: Sequence[Label], with_energy: bool, with_stress: bool) -> _Batch:
    def tensor(array) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array), dtype=torch.float64, device=potential.device)

    graph = potential.collate(systems)
    forces = tensor(np.concatenate([label.forces for label in labels]))
    counted = ~torch.isnan(forces)
    pairs = [(potential.system(one.crystal), tensor(one.force_constants)) for one in labels if one.crystal is not None]
    n_counted = torch.zeros_like(graph.n_atoms).index_add(0, graph.system, counted.sum(dim=1))
    return _Batch(
        graph=graph,
        energy=tensor([label.energy for label in labels]) if with_energy else None,
        forces=torch.nan_to_num(forces),
        # Every structure counts once, however many atoms it has.
        weights=(1 / (n_counted * len(labels)))[graph.system, None] * counted,
        stress=tensor(np.stack([label.stress for label in labels if label.stress is not None])) if with_stress else None,
        curved=(potential.collate([one for one, _ in pairs]), torch.block_diag(*(two for _, two in pairs))) if pairs else None,
    )


def _loss(
    potential: GraphPotential, batch: _Batch, recipe: Recipe, *, training: bool, moves: torch.Generator | None = None
) -> tuple[torch.Tensor, float]:
    """Return the weighted loss and the force MAE (eV/Å), each the mean over the batch's structures."""
    with_stress = training and batch.stress is not None
    energies, forces, stresses = potential.compute(batch.graph, stress=with_stress, training=training)
    error = forces - batch.forces
    n_atoms = batch.graph.n_atoms
    loss = recipe.force_weight * torch.sum(batch.weights * _penalty(error, recipe))
    if batch.energy is not None:
        loss = loss + recipe.energy_weight * torch.mean(_penalty((energies - batch.energy) / n_atoms, recipe))
    if with_stress:
        loss = loss + recipe.stress_weight * torch.mean(_penalty((stresses - batch.stress) * EV_PER_A3_IN_GPA, recipe))
    if moves is not None and batch.curved is not None:
        crystals, constants = batch.curved
        drawn = torch.randn(error.shape, generator=moves, dtype=torch.float64)
        d = torch.nn.functional.normalize(drawn, dim=1).to(error.device)  # every atom moves by 1 Å
        found = potential.hessian_vector(crystals, d, training=True) - (constants @ d.ravel()).reshape(d.shape)
        loss = loss + recipe.curvature_weight * torch.mean(_penalty(found, recipe))
    return loss, float(torch.sum(batch.weights * error.detach().abs()))


def _penalty(error: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    if recipe.loss == "absolute":
        return error.abs()
    if recipe.loss == "huber":
        return torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=recipe.huber_delta)
    return error**2


def _mark(potential: GraphPotential, labels: Sequence[Label]) -> str:
    """Return what tells a training from others of the same recipe: the weights that it starts from, and its structures."""
    digest = hashlib.sha256(repr(potential.scale).encode())
    for tensor in potential.network.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    for label in labels:
        digest.update(structures.content(label.atoms))
    return digest.hexdigest()


def _save(state: dict[str, object], path: Path) -> None:
    # Through memory: written straight to a full disk, PyTorch raises a RuntimeError that does not say so.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    results.write_bytes(buffer.getvalue(), path)
