"""Nequix: its own package's values, its file, and that nothing else is read."""

import io
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from conftest import needs_mirror

from helpers import potentials, registry
from helpers.potentials import PotentialError, nequix
from helpers.training.alchemy import mix

# Energy (eV), norm of all forces (eV/Å) and xy component of the stress (eV/Å³) of the three structures below: package of commit 0ffdf881,
# JAX 0.7, single precision on a CPU, 30 November 2026.
PACKAGE = {
    "nequix-mp-1": [(-46.80096, 5.88726, 0.002549), (-12.35178, 0.44774, -0.000671), (-50.98037, 3.70239, -0.004765)],
    "nequix-mp-1-pft": [(-46.80235, 5.82946, 0.002592), (-11.81418, 0.47250, -0.000687), (-51.16677, 3.55746, -0.003822)],
    "nequix-mp-1-pft-nocotrain": [(-46.43223, 5.85497, 0.002277), (-10.93398, 0.79870, -0.001261), (-50.92494, 5.89681, 0.003227)],
    "nequix-omat-1": [(-46.41810, 5.87824, 0.001429), (-11.02697, 0.97310, -0.002260), (-50.60723, 5.93044, 0.010012)],
    "nequix-oam-1": [(-46.84534, 5.82517, 0.001688), (-11.39790, 0.92064, -0.002027), (-50.68928, 5.67658, 0.007584)],
    "nequix-oam-1-pft": [(-46.81589, 5.86286, 0.001840), (-11.21148, 0.88916, -0.002305), (-50.68269, 5.85829, 0.008486)],
}


def structures() -> list[Atoms]:
    """An oxide, four elements without a symmetry in large distances, and a strained metal; all rattled."""
    rng = np.random.default_rng(7)
    oxide = bulk("MgO", "rocksalt", a=4.21, cubic=True)
    oxide.positions += rng.normal(0, 0.1, oxide.positions.shape)
    mixed = bulk("CsCl", "cesiumchloride", a=4.1) * (2, 1, 1)
    mixed.symbols[:] = ["Li", "Fe", "O", "Si"]
    mixed.positions += rng.normal(0, 0.15, mixed.positions.shape)
    metal = bulk("W", "bcc", a=3.17, cubic=True) * (2, 1, 1)
    metal.set_cell(metal.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    metal.positions += rng.normal(0, 0.2, metal.positions.shape)
    return [oxide, mixed, metal]


@needs_mirror
@pytest.mark.parametrize("key", PACKAGE)
def test_all_six_give_what_the_package_gives(key):
    potential = potentials.load(key, "cpu")
    for atoms, (energy, norm, shear), found in zip(structures(), PACKAGE[key], potential.evaluate(structures(), stress=True), strict=True):
        assert found.energy == pytest.approx(energy, abs=1e-5 * len(atoms))
        assert np.linalg.norm(found.forces) == pytest.approx(norm, abs=3e-5)
        assert found.stress[0, 1] == pytest.approx(shear, abs=2e-6)
    told = potential.describe()
    assert (told["parameters"], len(told["elements"])) == (707_658, 89)
    assert told["training_set"] == potentials.CATALOGUE[key].training_set


@needs_mirror
@pytest.mark.parametrize(("key", "energy"), [("nequix-mp-1", -11.946), ("nequix-omat-1", -11.855), ("nequix-oam-1", -11.955)])
def test_energy_of_magnesia(key, energy):
    assert potentials.load(key, "cpu").evaluate([bulk("MgO", "rocksalt", a=4.21)])[0].energy == pytest.approx(energy, abs=6e-4)


SETTINGS = {
    "atomic_numbers": [8, 12, 14],
    "cutoff": 4.0,
    "hidden_irreps": "8x0e + 4x1o + 2x2e",
    "lmax": 2,
    "n_layers": 3,
    "radial_basis_size": 4,
    "radial_mlp_size": 8,
    "radial_mlp_layers": 2,
    "radial_polynomial_p": 6.0,
    "index_weights": False,
    "layer_norm": True,
    "shift": 0.1,
    "scale": 0.8,
    "avg_n_neighbors": 20.0,
}
# For each layer the radial network, the maps before, after and around the sum, and the scales.
LAYERS = [
    [(4, 8), (8, 8), (8, 9), (3, 3), (3, 14), (3, 4), (3, 2), (3, 14), (14,), (4,), (2,)],
    [(4, 8), (8, 8), (8, 48), (8, 8), (4, 4), (2, 2), (14, 14), (18, 4), (16, 2), (8, 14), (4, 4), (2, 2), (14,), (4,), (2,)],
    [(4, 8), (8, 8), (8, 14), (8, 8), (4, 4), (2, 2), (14, 8), (8, 8), (8,)],
]


def write(path, settings=SETTINGS, beyond=()):
    rng = np.random.default_rng(3)
    shapes = [(3,), *(shape for layer in LAYERS for shape in layer), (8, 1)]
    with path.open("wb") as file:
        file.write(json.dumps(settings).encode() + b"\n")
        for array in (*(rng.normal(0, 1, shape).astype(np.float32) for shape in shapes), *beyond):
            np.save(file, array)
        file.write(b"\n")
    return path


@pytest.fixture
def small(tmp_path):
    """A small network with random weights, in double precision."""
    return nequix.load("small", [write(tmp_path / "small.nqx")], torch.device("cpu"), torch.float64)


def mixed_oxide() -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True)
    atoms.symbols[0] = "Si"
    atoms.rattle(0.1, seed=2)
    return atoms


def test_energy_is_the_same_for_turned_mirrored_and_reordered_atoms(small):
    atoms = mixed_oxide()
    turned = atoms.copy()
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    mirrored = atoms.copy()
    mirrored.set_cell(-mirrored.cell.array, scale_atoms=True)
    reordered = atoms[[3, 1, 0, 2, 7, 5, 6, 4]]
    found = small.evaluate([atoms, turned, mirrored, reordered])
    assert [one.energy for one in found] == pytest.approx([found[0].energy] * 4, abs=1e-9)
    np.testing.assert_allclose(found[2].forces, -found[0].forces, atol=1e-9)


def test_forces_and_stress_are_slopes_of_the_energy(small):
    atoms, step = mixed_oxide(), 1e-4
    found = small.evaluate([atoms], stress=True)[0]
    assert np.abs(found.forces).max() > 0.1
    energies = []
    for sign in (1, -1):
        moved, strained = atoms.copy(), atoms.copy()
        moved.positions[2, 1] += sign * step
        strained.set_cell(atoms.cell.array @ (np.eye(3) + sign * step / 2 * np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])), scale_atoms=True)
        energies.append([one.energy for one in small.evaluate([moved, strained])])
    slopes = (np.array(energies[0]) - energies[1]) / (2 * step)
    assert found.forces[2, 1] == pytest.approx(-slopes[0], abs=1e-6)
    assert found.stress[0, 1] * atoms.get_volume() == pytest.approx(slopes[1], abs=1e-5)


def test_an_atom_that_comes_into_reach_changes_the_energy_smoothly(small):
    pair = Atoms("MgO", positions=[[0, 0, 0], [0, 0, 2.0]], cell=[12, 12, 12], pbc=True)
    third = [pair + Atoms("O", positions=[[0, 0, z]]) for z in (3.9999, 4.0, 4.0001)]
    near, at, far = (one.energy for one in small.evaluate(third))
    assert near == pytest.approx(at, abs=1e-3)
    assert at == pytest.approx(far, abs=1e-3)


def test_a_mixture_between_its_limits(small):
    """With the whole weight on one element it is that element's crystal; in between, the energy lies near a line of its slope."""
    atoms = bulk("MgO", "rocksalt", a=4.21)
    plain = small.evaluate([atoms])[0].energy
    assert mix(small, {"Mg": 1.0, "Si": 0.0}).evaluate([atoms])[0].energy == pytest.approx(plain, abs=1e-9)
    halves = mix(small, {"Mg": 0.5, "Si": 0.5}).evaluate([atoms, atoms.copy()])
    assert halves[0].energy == pytest.approx(halves[1].energy, abs=1e-9)
    assert halves[0].energy != pytest.approx(plain, abs=1e-3)


def test_training_reaches_every_weight(small):
    small.network.requires_grad_(True)
    graph = small.collate([small.system(mixed_oxide())])
    energies, forces, _ = small.compute(graph, training=True)
    (energies.sum() + forces.square().sum()).backward()
    without = {name for name, weight in small.network.named_parameters() if weight.grad is None or not weight.grad.abs().max() > 0}
    assert not without
    assert small.untrained == ("atom_energies",)  # what fine-tuning leaves alone


def test_a_description_that_stands_again_after_the_weights_is_passed_over(tmp_path, small):
    again = nequix.load("again", [write(tmp_path / "a.nqx", beyond=(np.float32(6.0), np.float32(0.5)))], torch.device("cpu"), torch.float64)
    assert again.evaluate([mixed_oxide()])[0].energy == small.evaluate([mixed_oxide()])[0].energy


def test_other_files_are_refused(tmp_path):
    def tried(path):
        return nequix.load("x", [path], torch.device("cpu"))

    (tmp_path / "page.nqx").write_text("<html>404</html>\n")
    with pytest.raises(PotentialError, match=r"page\.nqx is no file of Nequix's weights"):
        tried(tmp_path / "page.nqx")
    whole = write(tmp_path / "whole.nqx").read_bytes()
    (tmp_path / "cut.nqx").write_bytes(whole[:-200])
    with pytest.raises(PotentialError, match=r"cut\.nqx is no file of Nequix's weights"):
        tried(tmp_path / "cut.nqx")
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.nqx").write_bytes(json.dumps(SETTINGS).encode() + b"\n" + pickled.getvalue() + b"\n")
    with pytest.raises(PotentialError, match="allow_pickle"):
        tried(tmp_path / "pickle.nqx")
    for changed in ({"index_weights": True}, {"layer_norm": False}):
        with pytest.raises(PotentialError, match="not known here"):
            tried(write(tmp_path / "other.nqx", SETTINGS | changed))
    with pytest.raises(PotentialError, match="shape"):
        tried(write(tmp_path / "wide.nqx", SETTINGS | {"radial_mlp_size": 16}))


@needs_mirror
def test_registered_files_are_whole():
    for key in PACKAGE:
        (name,) = potentials.CATALOGUE[key].weights
        settings, arrays = nequix.read(registry.fetch(name))
        assert settings["n_layers"] == 4
        assert len(arrays) >= 63
