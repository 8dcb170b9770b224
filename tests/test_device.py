"""Everything that a potential does, on a pretended device: nothing is left on the CPU, and the CPU seldom waits."""

from __future__ import annotations

import functools

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from conftest import GRAPH_MODELS
from pretended_device import DEVICE, Pretended, PretendedDevice

from helpers import engine, potentials
from helpers.potentials.base import GraphPotential
from helpers.potentials.mace import MACEPotential
from helpers.training import alchemy, fine_tune, trial
from helpers.training.fine_tune import Recipe

# One for each network and each way of making it.
NETWORKS = [key for key in GRAPH_MODELS if key not in ("chgnet-0.2.0", "m3gnet-matpes-pbe-2025.1", "mace-mp-0-medium", "mace-mpa-0-medium")]
MIXING = [key for key in NETWORKS if key.startswith(("chgnet", "mace", "nequix"))]

# For a mixture in CHGNet, which lists the most: two for its atoms and edges, four for bonds and angles, two in the network, three results.
MOST_WAITS = 11

TRAININGS = {
    "plain": {},
    "huber": {"batch_size": 2, "loss": "huber"},
    "low-rank": {"rank": 2, "max_gradient_norm": 1.0},
}
# Nequix has none of PyTorch's linear layers, which get the corrections of low rank.
TRAINED = [(key, how) for key in NETWORKS for how in TRAININGS if (key, how) != ("nequix-mp-1", "low-rank")]


@pytest.fixture
def device():
    with PretendedDevice() as pretended:
        yield pretended


@pytest.fixture(scope="module")
def make_there(mace_file):
    """Load a model onto the device; used within ``device``."""

    def make(name: str) -> GraphPotential:
        key = f"file:{mace_file}" if name == "mace-small" else name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(potentials, "resolve_device", torch.device)
            return potentials.load(key, DEVICE, trust=name == "mace-small")

    return make


@pytest.fixture(scope="module")
def load_there(make_there):
    """The same, once per model."""
    return functools.cache(make_there)


def oxide(symbol: str = "Fe", a: float = 4.3) -> ase.Atoms:
    atoms = bulk(f"{symbol}O", "rocksalt", a=a)
    atoms.set_cell(atoms.cell.array @ np.array([[1.01, 0.02, 0], [0, 1, 0], [0, 0, 0.99]]), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def same(found, expected, energy: float = 1e-4, force: float = 1e-3):
    for one, other in zip(found, expected, strict=True):
        assert one.error is None
        assert one.energy == pytest.approx(other.energy, abs=energy)
        np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=force)


@pytest.mark.slow
@pytest.mark.parametrize("key", NETWORKS)
def test_energies_forces_and_stress(device, load_there, load_model, key):
    here, there, frames = load_model(key), load_there(key), [oxide(), oxide("Si", 4.6)]
    assert all(isinstance(tensor, Pretended) for tensor in there.network.state_dict().values())
    found, expected = (potential.evaluate(frames, stress=True) for potential in (there, here))
    same(found, expected)
    np.testing.assert_allclose(found[0].stress, expected[0].stress, rtol=0, atol=1e-5)
    # One by one as well, and scaled, as an ASE calculator does.
    frames[0].calc = there.scaled(2.0).smooth().calculator()
    assert frames[0].get_potential_energy() == pytest.approx(2 * expected[0].energy, abs=1e-3)
    assert np.abs(frames[0].get_stress() - frames[0].calc.results["stress"]).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("key", NETWORKS)
def test_a_step_of_atoms_and_cell(device, load_there, load_model, key):
    relaxed(load_there(key), load_model(key), [oxide()], cell="full", max_steps=1)


@pytest.mark.parametrize("cell", engine.CELL_MODES)
def test_every_relaxation(device, cell):
    frames = [oxide(), oxide(a=4.4)]
    for frame in frames:
        frame.set_cell([[3.1, 0, 0], [1.5, 2.7, 0], [1.5, 0.9, 2.5]], scale_atoms=True)
    held = {"held": [np.eye(2, 3, dtype=bool), None]} if cell == "fixed" else {}
    relaxed(Springs(), Springs(device=torch.device("cpu")), frames, cell=cell, max_steps=5, **held)


def relaxed(there, here, frames, max_steps: int, **settings) -> None:
    """Refuse a relaxation on the device that goes elsewhere than the one on the CPU."""
    found, expected = (engine.relax(potential, frames, fmax=1e-4, max_steps=max_steps, **settings) for potential in (there, here))
    for one, other, frame in zip(found, expected, frames, strict=True):
        assert one.error.startswith(f"not converged in {max_steps} steps")
        assert np.abs(one.atoms.positions - frame.positions).max() > 1e-4
        np.testing.assert_allclose(one.atoms.positions, other.atoms.positions, rtol=0, atol=1e-4)
        np.testing.assert_allclose(one.atoms.cell.array, other.atoms.cell.array, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("key", MIXING)
def test_mixtures(device, load_there, load_model, key):
    there, here = (alchemy.mix(load(key), {"Fe": 0.3, "Si": 0.6}) for load in (load_there, load_model))
    same(there.evaluate([oxide(), oxide("Si")], stress=True), here.evaluate([oxide(), oxide("Si")], stress=True))
    found, expected = (potential.responses([oxide()])[0] for potential in (there, here))
    assert found.energy_gradient == pytest.approx(expected.energy_gradient, abs=1e-3)
    assert found.stress_gradient == pytest.approx(expected.stress_gradient, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "how"), TRAINED)
def test_training(device, load_there, make_there, load_model, monkeypatch, key, how):
    there, frames = load_there(key), [oxide(), oxide(a=4.4)]
    if key == "mace-small":
        # e3nn copies its code through a file of TorchScript's, into which only tensors with a storage of their own can go.
        monkeypatch.setattr(MACEPotential, "__deepcopy__", lambda self, memo: make_there(key), raising=False)
    labels = trial.labelled(trial.stiffer(load_model(key)), frames, stress=True)
    before = {name: tensor.cpu() for name, tensor in there.network.state_dict().items()}
    recipe = Recipe(epochs=1, validation_fraction=0.5, **TRAININGS[how])
    tuned = fine_tune.fine_tune(there, labels, recipe)
    # Labels are a quarter larger than what the network says of them.
    (trained,) = (labels[number].forces for number in tuned.train)
    assert tuned.history[0]["train_force_mae"] == pytest.approx(np.abs(trained).mean() * (1 - 1 / trial.STIFFER), rel=1e-2)
    after = tuned.potential.network.state_dict()
    assert all(isinstance(tensor, Pretended) for tensor in after.values())
    assert any(not torch.equal(tensor.cpu(), before[name]) for name, tensor in after.items())
    assert np.isfinite(tuned.potential.evaluate(frames)[0].energy)


@pytest.mark.slow
@pytest.mark.parametrize("key", NETWORKS)
def test_the_cpu_seldom_waits(device, load_there, key):
    potential = load_there(key)
    few(device, potential)
    if key in MIXING:
        few(device, alchemy.mix(potential, {"Fe": 0.3, "Si": 0.6}))


def few(device: PretendedDevice, potential: GraphPotential) -> None:
    """Refuse a potential whose evaluation of a batch waits often; or twice at one place, as it does in a loop over elements or layers."""
    device.waits.clear()
    assert all(prediction.ok for prediction in potential.evaluate([oxide(), oxide("Si")], stress=True))
    assert max(device.waits.values()) == 1, device.waits
    assert device.waits.total() <= MOST_WAITS, device.waits


# ---------------------------------------------------------------------------------------------------
# Mistakes on purpose


class Springs(GraphPotential):
    """A toy network: bonds are springs, and a layer of one number turns what they hold into energy."""

    def __init__(self, mistake: str = "", device: torch.device = DEVICE) -> None:
        network = torch.nn.ModuleDict({"head": torch.nn.Linear(1, 1)})
        torch.nn.init.ones_(network["head"].weight)
        super().__init__("springs", network, cutoff=4.0, bytes_per_edge=1, device=device, elements=frozenset({8, 14, 26}), description={})
        self.mistake = mistake
        if mistake == "a layer on the CPU":
            network["head"] = torch.nn.Linear(1, 1)

    def energies(self, graph):
        stretch = (torch.linalg.norm(graph.vectors, dim=1) - 2) ** 2
        if self.mistake == "arange":
            stretch = stretch * (1 + torch.arange(len(stretch)))
        if self.mistake == "mask":
            stretch = torch.where(torch.ones(len(stretch), dtype=torch.bool), stretch, 0.0)
        if self.mistake == "numpy":
            stretch = stretch * float(np.asarray(graph.numbers).max())
        if self.mistake == "item":
            for element in (8, 14, 26):
                stretch = stretch * (1 + (graph.numbers == element).sum().item())
        energies = self.network["head"](stretch[:, None])[:, 0]
        return energies.new_zeros(graph.n_systems).index_add(0, graph.edge_system, energies)


def test_the_toy_without_a_mistake(device):
    few(device, Springs())


@pytest.mark.parametrize("mistake", ["a layer on the CPU", "arange", "mask"])
def test_what_is_left_on_the_cpu_is_found(device, mistake):
    (found,) = Springs(mistake).evaluate([oxide()])
    assert "expected all tensors to be on the same device" in found.error


def test_numpy_without_cpu_is_found(device):
    with pytest.raises(TypeError, match="can't convert lazy device type tensor to numpy"):
        Springs("numpy").evaluate([oxide()])


def test_a_number_for_each_element_is_found(device):
    with pytest.raises(AssertionError, match=r"_local_scalar_dense at tests/test_device\.py"):
        few(device, Springs("item"))


def test_a_real_network_with_a_part_on_the_cpu_is_found(device, make_there, load_model):
    potential = make_there("chgnet-0.3.0")
    potential.network.mlp = load_model("chgnet-0.3.0").network.mlp
    assert "expected all tensors to be on the same device" in potential.evaluate([oxide()])[0].error
