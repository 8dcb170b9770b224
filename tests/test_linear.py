"""Linear potentials: the features are those of the package, the forces are derivatives, and a fit finds what can be found."""

import numpy as np
import pytest
from ase.build import bulk
from uf3.representation.process import BasisFeaturizer

from helpers.potentials.base import PotentialError
from helpers.training import linear
from helpers.training.linear import Basis, Capacity, Weights

SMALL = Capacity(pair_intervals=8, triangle_intervals=3, pair_cutoff_a=4.2, leg_cutoff_a=3.2)
PAIRS = Capacity(pair_intervals=8, triangle_intervals=0, pair_cutoff_a=4.2)


def rattled(seed=0, size=0.1, atoms=None):
    atoms = bulk("Si") if atoms is None else atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0, size, atoms.positions.shape)
    return atoms


def coefficients(basis, seed=0):
    """Random ones, with zeros where the package holds them."""
    values = np.random.default_rng(seed).normal(size=basis.n_features)
    values[basis.splines.col_idx] = 0
    return values


@pytest.mark.parametrize("capacity", [SMALL, PAIRS], ids=["triangles", "pairs"])
def test_features_are_those_of_the_package(capacity):
    """The same splines summed over a neighbour list instead of a block of images."""
    atoms = rattled()
    basis = Basis("Si", capacity)
    features = basis.features(atoms)
    wanted = BasisFeaturizer(basis.splines).evaluate_configuration(atoms, None, 0.0, np.zeros((3, len(atoms))))
    np.testing.assert_allclose(features.energy, wanted["energy"][1:], atol=1e-12)
    forces = np.array([wanted[f"f{axis}_{atom}"][1:] for atom in range(len(atoms)) for axis in "xyz"])
    assert np.abs(forces).max() > 0.1
    np.testing.assert_allclose(features.forces, forces, atol=1e-12)


@pytest.mark.parametrize("capacity", [SMALL, PAIRS], ids=["triangles", "pairs"])
def test_forces_are_minus_the_derivative(capacity):
    basis = Basis("Si", capacity)
    values = coefficients(basis)
    atoms = rattled(1, atoms=bulk("Si", cubic=True))
    found = basis.evaluate(atoms, values)
    h = 1e-4
    for atom, axis in ((0, 0), (3, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * h
            energies.append(basis.evaluate(moved, values).energy)
        assert found.forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), abs=1e-5)


@pytest.mark.parametrize("capacity", [SMALL, PAIRS], ids=["triangles", "pairs"])
def test_the_fast_way_gives_what_features_give(capacity):
    basis = Basis("Si", capacity)
    values = coefficients(basis, 2)
    atoms = rattled(2, atoms=bulk("Si", cubic=True))
    fast, plain = basis.evaluate(atoms, values), linear.predict(basis.features(atoms), values)
    assert fast.energy == pytest.approx(plain.energy, abs=1e-9)
    np.testing.assert_allclose(fast.forces, plain.forces, atol=1e-9)


def test_a_supercell_has_twice_the_energy():
    basis = Basis("Si", SMALL)
    values = coefficients(basis)
    atoms = rattled(3)
    assert basis.evaluate(atoms * (2, 1, 1), values).energy == pytest.approx(2 * basis.evaluate(atoms, values).energy)


def test_a_fit_finds_the_potential_that_made_its_labels():
    """Labels of a member of the family: with next to no penalty, unseen frames come out right."""
    basis = Basis("Si", PAIRS)
    weights = Weights(ridge=0, curvature=1e-8)
    truth = coefficients(basis, 4)
    frames = [rattled(seed, 0.15, bulk("Si", cubic=True)) for seed in range(8)]
    features = [basis.features(atoms) for atoms in frames]
    labels = [linear.predict(found, truth) for found in features]
    parts = [
        linear.equations(basis, found, label.energy, label.forces, weights) for found, label in zip(features[:6], labels[:6], strict=True)
    ]
    fitted = linear.fit(basis, parts, weights)
    for found, label in zip(features[6:], labels[6:], strict=True):
        assert np.abs(linear.predict(found, fitted).forces - label.forces).max() < 1e-2 * np.abs(label.forces).max()


def test_a_heavier_penalty_makes_the_fit_worse_on_its_own_frames():
    basis = Basis("Si", PAIRS)
    truth = coefficients(basis, 5)
    found = basis.features(rattled(5, 0.15, bulk("Si", cubic=True)))
    label = linear.predict(found, truth)
    errors = []
    for curvature in (1e-6, 1e-2, 1e2):
        weights = Weights(ridge=0, curvature=curvature)
        fitted = linear.fit(basis, [linear.equations(basis, found, label.energy, label.forces, weights)], weights)
        errors.append(np.abs(linear.predict(found, fitted).forces - label.forces).mean())
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (bulk("NaCl", "rocksalt", a=5.6), "periodic structures of Si only"),
        (bulk("Si", a=3.0), "apart; the splines begin"),
    ],
)
def test_what_the_potential_does_not_know_is_refused(atoms, message):
    with pytest.raises(PotentialError, match=message):
        Basis("Si", SMALL).features(atoms)


def test_no_label_no_fit():
    with pytest.raises(ValueError, match="at least one"):
        linear.fit(Basis("Si", PAIRS), [], Weights())


def test_forces_must_belong_to_the_structure():
    basis = Basis("Si", PAIRS)
    with pytest.raises(ValueError, match="for a structure of 2"):
        linear.equations(basis, basis.features(rattled()), 0.0, np.zeros((3, 3)), Weights())
