"""Losses that need no label: what they are for a potential whose forces are derivatives, and what they do in training."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from ase.build import bulk
from conftest import needs_mirror

from helpers import potentials, results
from helpers.experiments import weak_labels
from helpers.potentials.base import PotentialError
from helpers.training import fine_tune, trial, weak_supervision
from helpers.training.fine_tune import Label, Recipe
from helpers.training.weak_supervision import Weak


def rattled(seed=0, size=0.05):
    atoms = bulk("Si", cubic=True)
    atoms.positions += np.random.default_rng(seed).normal(0, size, atoms.positions.shape)
    return atoms


@pytest.fixture(scope="module")
def chgnet64(load_model):
    return load_model("chgnet-0.3.0", torch.float64)


def graph_of(potential, *structures):
    return potential.collate([potential.system(atoms) for atoms in structures])


def unit(n_atoms, seed=0):
    return weak_supervision.directions(n_atoms, torch.Generator().manual_seed(seed), torch.device("cpu"))


@pytest.mark.slow
def test_displaced_energies_are_those_of_the_displaced_structure(chgnet64):
    """Bonds are kept, which changes nothing but at the cutoff, where they weigh nothing."""
    atoms = rattled()
    d = 0.03 * unit(8)
    moved = atoms.copy()
    moved.positions += d.numpy()
    graph = graph_of(chgnet64, atoms)
    found = weak_supervision.energies_alone(chgnet64, weak_supervision.displaced(graph, d))
    assert found.item() == pytest.approx(chgnet64.evaluate([moved])[0].energy, abs=1e-4)


def test_the_residual_is_half_of_the_curvature(chgnet64):
    """E(r + d) − E(r) + d·F(r) = ½ d·H d + O(d³), with H d from forces on both sides."""
    graph = graph_of(chgnet64, rattled())
    u = unit(8)
    h = 1e-3
    plus, minus = (chgnet64.compute(weak_supervision.displaced(graph, sign * h * u))[1].detach() for sign in (1, -1))
    curvature = float(-((plus - minus) / (2 * h) * u).sum())
    for step in (3e-3, 1e-2):
        # Both ways, so that the third order cancels.
        residuals = [weak_supervision.taylor_residual(chgnet64, graph, sign * step * u).item() for sign in (1, -1)]
        assert np.mean(residuals) == pytest.approx(0.5 * step**2 * curvature, rel=0.05)
    there = weak_supervision.spatial_residual(chgnet64, graph, 3e-3 * u, torch.zeros_like(u)).item()
    assert there == pytest.approx(weak_supervision.taylor_residual(chgnet64, graph, 3e-3 * u).item(), rel=1e-9)


def test_residuals_are_sums_per_structure(chgnet64):
    first, second = rattled(1), rattled(2)
    d = 0.01 * unit(16, seed=3)
    together = weak_supervision.taylor_residual(chgnet64, graph_of(chgnet64, first, second), d)
    apart = [
        weak_supervision.taylor_residual(chgnet64, graph_of(chgnet64, *pair), part) for pair, part in (([first], d[:8]), ([second], d[8:]))
    ]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-8, rtol=1e-6)


def test_a_factor_on_the_energy_multiplies_the_loss_by_its_square(chgnet64):
    """So the loss falls when the potential softens, whatever the labels say: its derivative at c = 1 is twice itself."""
    settings = Weak(taylor_weight=1.0, spatial_weight=2.0, step_a=0.02)

    def loss(c):
        potential = chgnet64.scaled(c)
        graph = graph_of(potential, rattled())
        return weak_supervision.loss(potential, graph, potential.compute(graph)[:2], settings, torch.Generator().manual_seed(5)).item()

    assert loss(0.7) == pytest.approx(0.49 * loss(1.0), rel=1e-9)
    h = 1e-4
    assert (loss(1 + h) - loss(1 - h)) / (2 * h) == pytest.approx(2 * loss(1.0), rel=1e-6)


def test_an_adversarial_direction_finds_more_curvature(chgnet64):
    graph = graph_of(chgnet64, rattled())
    for seed in range(3):
        u = unit(8, seed)
        chosen = weak_supervision.adversarial(chgnet64, graph, u, 0.01)
        np.testing.assert_allclose(torch.linalg.norm(chosen, dim=1), 0.01)
        random, worst = (weak_supervision.taylor_residual(chgnet64, graph, d).item() for d in (0.01 * u, chosen))
        assert worst > random


def test_the_best_scale_minimises_the_loss():
    rng = np.random.default_rng(0)
    forces = [rng.normal(size=(n, 3)) for n in (4, 7)]
    reference = [1.3 * f + 0.1 * rng.normal(size=f.shape) for f in forces]
    residuals = [0.2, 0.4]
    weights = {"force_weight": 2.0, "weak_weight": 5.0}

    def loss(c):
        supervised = sum(np.mean((c * f - x) ** 2) for f, x in zip(forces, reference, strict=True))
        return weights["force_weight"] * supervised + weights["weak_weight"] * sum((c * r) ** 2 for r in residuals)

    c = weak_supervision.best_scale(reference, forces, residuals, **weights)
    assert loss(c) < min(loss(c + 1e-3), loss(c - 1e-3))
    free = weak_supervision.best_scale(reference, forces, [0, 0], **weights)
    assert c < free == pytest.approx(1.3, abs=0.05)


@pytest.mark.parametrize(("settings", "message"), [({"direction": "up"}, "must be 'random' or"), ({"step_a": 0.0}, "must be positive")])
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Weak(**settings)


def label():
    potential = potentials.load("chgnet-0.3.0")
    answer = potential.scaled(1.2).evaluate([rattled()])[0]
    return potential, Label(rattled(), None, answer.forces)


RECIPE = Recipe(epochs=4, learning_rate=3e-4, force_weight=1.0, energy_weight=0.0, validation_fraction=0.0, keep="last")


def test_training_with_the_loss_makes_the_surface_flatter():
    potential, one = label()
    found = {}
    for name, weak in (("plain", None), ("weak", Weak(taylor_weight=1e7, step_a=0.03))):
        tuned = fine_tune.fine_tune(potential, [one], dataclasses.replace(RECIPE, weak=weak)).potential
        residual = weak_labels.taylor_residuals(tuned, [one], 0.03, seed=9)[0, 0]
        found[name] = (residual, np.linalg.norm(tuned.evaluate([one.atoms])[0].forces))
    assert found["weak"][0] < 0.95 * found["plain"][0]
    assert found["weak"][1] < found["plain"][1]


@pytest.mark.slow
def test_a_training_cut_off_goes_on_with_the_same_directions(tmp_path, killed_after):
    potential, one = label()
    recipe = dataclasses.replace(RECIPE, weak=Weak(spatial_weight=1e5, step_a=0.02))
    whole = fine_tune.fine_tune(potential, [one], recipe)
    with killed_after(2):
        fine_tune.fine_tune(potential, [one], recipe, checkpoint=tmp_path / "state.pt")
    resumed = fine_tune.fine_tune(potential, [one], recipe, checkpoint=tmp_path / "state.pt")
    assert [entry["loss"] for entry in resumed.history] == pytest.approx([entry["loss"] for entry in whole.history], rel=1e-4)
    with pytest.raises(PotentialError, match="another recipe"):
        fine_tune.fine_tune(potential, [one], RECIPE, checkpoint=tmp_path / "state.pt")


def test_unknown_set():
    with pytest.raises(KeyError, match="unknown set"):
        weak_labels.cases(sets=["germanium"])


@needs_mirror
def test_all_methods_see_the_same_labels_and_no_test_frame():
    cases = weak_labels.cases(sets=["labels", "steps"])
    assert len({case.name for case in cases}) == len(cases)
    seen = {}
    for case in cases:
        labels, tests = trial.labels_of(case), trial.labels_of(case, "test")
        assert len(labels) == case.info["n_labels"]
        assert len(tests) == weak_labels.Protocol().n_tests
        assert not {member.energy for member in labels} & {member.energy for member in tests}
        energies = tuple(member.energy for member in labels)
        assert seen.setdefault((case.info["n_labels"], case.info["seed"]), energies) == energies
    assert len({energies for (n, _), energies in seen.items() if n == 10}) == 3
    assert all(case.info["n_labels"] == 0 or len(case.structures) > weak_labels.Protocol().n_tests for case in cases)


def test_differences_are_taken_draw_by_draw():
    common = {"set": "labels", "property": "slope", "labels": "energy", "n_labels": 1, "status": "ok"}
    table = pd.DataFrame(
        [
            common | {"method": method, "seed": seed, "value": value}
            for method, values in (("plain", (0.6, 0.7)), ("taylor", (0.59, 0.68)), ("spatial", (0.6, 0.71)))
            for seed, value in enumerate(values)
        ]
    )
    found = weak_labels.differences(table, "slope").set_index(["method", "seed"])["difference"]
    assert found["taylor", 0] == pytest.approx(-0.01)
    assert found["spatial", 1] == pytest.approx(0.01)


def test_the_committed_table_is_that_of_the_protocol():
    made = results.provenance("weak_labels", "chgnet-0.3.0")
    assert made["cases"]["teacher"] == len(weak_labels.cases(sets=["teacher"]))
    assert made["protocol"]["gradient_steps"] == weak_labels.Protocol().gradient_steps
    assert made["failed_rows"] == 0
