"""The first release of M3GNet: its checkpoint is read without TensorFlow, and gives what TensorFlow gives."""

import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from conftest import needs_mirror
from scipy.optimize import brentq

from helpers import potentials, registry
from helpers.potentials import m3gnet_tf
from helpers.training import fine_tune

pytestmark = needs_mirror
KEY = "m3gnet-tf-2021.2.8"


def eight_elements() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=4.7, cubic=True)
    atoms.symbols = ["La", "O", "Fe", "S", "Li", "F", "Mn", "P"]
    atoms.rattle(0.15, seed=9)
    atoms.set_cell(atoms.cell.array @ [[1.02, 0.03, 0], [0, 0.97, 0.01], [0.02, 0, 1.01]], scale_atoms=True)
    return atoms


@pytest.fixture(scope="module")
def double():
    return potentials.load(KEY, "cpu", dtype=torch.float64)


def files():
    return [registry.fetch(name) for name in potentials.CATALOGUE[KEY].weights]


# Energies per atom, forces and stress below are those of M3GNet 0.2.4 with TensorFlow 2.13, which computes in single precision.
@pytest.mark.parametrize(
    ("atoms", "energy"),
    [
        (bulk("MgO", "rocksalt", a=4.2564), -5.977262),
        (bulk("MgO", "rocksalt", a=4.21), -5.971721),
        (bulk("CaO", "rocksalt", a=4.84), -6.428338),
        (bulk("Si", a=5.45), -5.359024),
        (bulk("Mo", a=3.168), -10.859206),
        (bulk("Au", a=4.17), -3.264396),
        (eight_elements(), -5.418456),
    ],
    ids=lambda value: value.get_chemical_formula() if isinstance(value, Atoms) else "",
)
def test_energies_are_those_of_tensorflow(double, atoms, energy):
    for potential in (double, potentials.load(KEY, "cpu")):
        assert potential.evaluate([atoms])[0].energy / len(atoms) == pytest.approx(energy, abs=3e-6)


def test_forces_and_stress_are_those_of_tensorflow(double):
    found = double.evaluate([eight_elements()], stress=True)[0]
    forces = [
        [-0.12394, 6.50316, -0.70482],
        [-0.05746, 1.1098, 0.11127],
        [0.23882, -0.21008, 0.34722],
        [0.0616, -0.09471, -1.73237],
        [-0.0193, -0.10965, -0.21493],
        [-0.01295, 0.30885, -0.10788],
        [0.17496, -0.93771, 0.93481],
        [-0.26173, -6.56966, 1.3667],
    ]
    stress = [[-0.046652, 0.002944, 0.003247], [0.002944, -0.368809, 0.010042], [0.003247, 0.010042, -0.047265]]
    np.testing.assert_allclose(found.forces, forces, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.stress, stress, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "structure", "expected"),
    [("GaAs", "zincblende", 5.7491), ("Mo", "bcc", 3.1681), ("Au", "fcc", 4.1729), ("Si", "diamond", 5.4497), ("MgO", "rocksalt", 4.2564)],
)
def test_relaxed_lattice_constants(double, name, structure, expected):
    """As relaxations with TensorFlow give them; the first four are in the authors' list."""

    def pressure(a: float) -> float:
        return np.trace(double.evaluate([bulk(name, structure, a=a)], stress=True)[0].stress)

    assert brentq(pressure, expected - 0.05, expected + 0.05, xtol=1e-5) == pytest.approx(expected, abs=2e-4)


def test_the_energy_knows_neither_the_order_of_atoms_nor_the_cell_nor_the_batch(double):
    """The triples belong to the right bonds, unlike those of the older weights of MatGL."""
    atoms = eight_elements()
    order = np.random.default_rng(0).permutation(len(atoms))
    moved = atoms.copy()
    moved.translate([3.1, -7.7, 1.3])
    moved.wrap()
    turned = atoms.copy()
    turned.rotate(33, (1, 2, 3), rotate_cell=True)
    same = [atoms, atoms[order], moved, turned, bulk("Si", "sc", a=4.5), atoms * (2, 1, 1)]
    one, permuted, *others, larger = double.evaluate(same)
    alone = double.evaluate([atoms])[0]
    np.testing.assert_allclose([p.energy for p in (one, permuted, *others[:2])], alone.energy, rtol=0, atol=1e-9)
    assert larger.energy == pytest.approx(2 * alone.energy, abs=1e-9)
    np.testing.assert_allclose(permuted.forces, alone.forces[order], atol=1e-9)
    assert double.smooth() is double


@pytest.mark.parametrize("cutoff", [4.0, 5.0])
def test_neither_energy_nor_forces_jump_at_a_cutoff(double, cutoff):
    """An atom moves through the cutoff of its neighbour, in a crystal with others."""
    atoms = eight_elements() * (2, 2, 1)
    lengths = atoms.get_all_distances(mic=True)
    i, j = np.argwhere((np.abs(lengths - cutoff) < 0.6) & (lengths > 0))[0]
    away = atoms.get_distance(i, j, mic=True, vector=True) / lengths[i, j]
    frames = []
    for beyond in (-3e-5, -1e-5, 1e-5, 3e-5):
        frames.append(atoms.copy())
        frames[-1].positions[j] += (cutoff - lengths[i, j] + beyond) * away
    found = double.evaluate(frames)
    energies, forces = np.array([p.energy for p in found]), np.array([p.forces[j] @ away for p in found])
    np.testing.assert_allclose(-np.diff(energies) / 2e-5, (forces[1:] + forces[:-1]) / 2, atol=1e-5)
    assert np.diff(forces, n=2) == pytest.approx(0, abs=1e-7)


def test_only_the_released_files_are_read(tmp_path):
    copies = [shutil.copy(path, tmp_path) for path in files()]
    potential = m3gnet_tf.load(KEY, copies, torch.device("cpu"))
    assert potential.description["weights_sha256"] == registry.lookup(potentials.CATALOGUE[KEY].weights[1]).sha256
    with pytest.raises(potentials.PotentialError, match=r"m3gnet\.index not among"):
        m3gnet_tf.load(KEY, copies[1:], torch.device("cpu"))
    for path in map(tmp_path.joinpath, m3gnet_tf.FILES):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for trust in (False, True):
            with pytest.raises(potentials.PotentialError, match=f"is not the {path.name}"):
                m3gnet_tf.load(KEY, copies, torch.device("cpu"), trust=trust)
        path.write_bytes(content)


def test_the_checkpoint_is_read_to_its_last_number():
    index, shard, _ = files()
    found = m3gnet_tf.read_checkpoint(index, shard)
    assert len(found) == 80
    assert found["featurizer/atom_network/embedding/embeddings"].shape == (95, 64)
    # The rest describes objects, as text.
    assert 0 < shard.stat().st_size - sum(array.nbytes for array in found.values()) < 30_000


@pytest.mark.slow
def test_it_learns():
    """Labels that are a quarter stiffer than the network are half learned in a dozen steps."""
    potential, rng = potentials.load(KEY, "cpu"), np.random.default_rng(0)
    frames = [bulk("MgO", "rocksalt", a=4.21) for _ in range(5)]
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    teacher = potential.scaled(1.25).evaluate(frames, stress=True)
    labels = [fine_tune.Label(atoms, p.energy, p.forces, p.stress) for atoms, p in zip(frames, teacher, strict=True)]
    before = potential.evaluate(frames)
    outcome = fine_tune.fine_tune(potential, labels, fine_tune.Recipe(epochs=12, learning_rate=3e-4, validation_fraction=0.2))
    errors = [
        np.mean([np.abs(p.forces - label.forces).mean() for p, label in zip(answers, labels, strict=True)])
        for answers in (before, outcome.potential.evaluate(frames))
    ]
    assert errors[1] < 0.5 * errors[0]
