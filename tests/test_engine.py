"""Batched relaxation against ASE, one structure at a time."""

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCartesian
from ase.filters import UnitCellFilter
from ase.optimize import FIRE

from helpers import engine, potentials
from helpers.potentials.ase import ASEPotential


@pytest.fixture(scope="module")
def chgnet():
    return potentials.load("chgnet-0.3.0", "cpu")


def rattled(atoms, seed, amplitude=0.06):
    atoms = atoms.copy()
    atoms.pbc = True
    atoms.positions += np.random.default_rng(seed).normal(0, amplitude, atoms.positions.shape)
    return atoms


@pytest.fixture
def structures():
    return [
        rattled(bulk("MgO", "rocksalt", a=4.3), 0),
        rattled(fcc111("Cu", (1, 1, 5), vacuum=7), 1),
        rattled(bulk("Si", cubic=True), 2),
        rattled(bulk("NaCl", "rocksalt", a=5.6), 3),
    ]


def in_ase(potential, atoms, cell, fmax):
    atoms = atoms.copy()
    atoms.calc = potential.calculator()
    optimiser = FIRE(UnitCellFilter(atoms) if cell == "full" else atoms, logfile=None)
    assert optimiser.run(fmax=fmax, steps=500)
    return atoms


@pytest.mark.parametrize("cell", ["fixed", "full"])
def test_batched_relaxation_equals_ase(chgnet, structures, cell):
    relaxed = engine.relax(chgnet, structures, cell=cell, fmax=0.01, smax=1e-4)
    for atoms, result in zip(structures, relaxed, strict=True):
        assert result.converged
        assert result.error is None
        reference = in_ase(chgnet, atoms, cell, 0.005)
        assert abs(result.energy - reference.get_potential_energy()) / len(atoms) < 1e-3
        assert np.linalg.norm(result.forces, axis=1).max() < 0.01
        # The record describes the geometry it comes with.
        assert chgnet.evaluate([result.atoms])[0].energy == pytest.approx(result.energy, abs=1e-4)


def test_the_input_is_not_changed(chgnet, structures):
    before = [atoms.positions.copy() for atoms in structures]
    engine.relax(chgnet, structures[:2], max_steps=3)
    assert all(np.array_equal(a, b.positions) for a, b in zip(before, structures, strict=True))


def test_the_stress_switch_is_given_back(chgnet, structures):
    engine.relax(chgnet, structures[:1], cell="full", max_steps=2)
    assert chgnet.compute_stress is False


def test_out_of_plane_keeps_the_film_on_its_substrate():
    potential = ASEPotential("emt", EMT())
    film = bulk("Cu", cubic=True)
    film.set_cell(film.cell.array * [[1.02], [1.02], [1.0]], scale_atoms=True)
    [result] = engine.relax(potential, [film], cell="out-of-plane", fmax=0.005, smax=1e-5)
    assert result.converged
    assert np.allclose(result.atoms.cell.array[:2], film.cell.array[:2])
    # Stretched in the plane, copper shrinks along the normal; the normal stress vanishes, the others do not.
    assert result.atoms.cell[2, 2] < film.cell[2, 2]
    stress = potential.evaluate([result.atoms], stress=True)[0].stress
    assert abs(stress[2, 2]) < 1e-5 < abs(stress[0, 0])


def test_out_of_plane_refuses_a_tilted_plane(chgnet):
    [result] = engine.relax(chgnet, [bulk("Cu")], cell="out-of-plane")
    assert "xy plane" in result.error


def test_failures_are_alone(chgnet, structures):
    broken = structures[0].copy()
    broken.positions[0] = np.nan
    gas = bulk("Cu", a=40.0)
    isolated = molecule("H2O")
    results = engine.relax(chgnet, [broken, structures[1], gas, isolated, structures[2]], fmax=0.05)
    assert [result.error is None for result in results] == [False, True, False, False, True]
    assert "not a number" in results[0].error
    assert "no neighbour" in results[2].error
    assert "not periodic" in results[3].error
    alone = engine.relax(chgnet, [structures[1]], fmax=0.05)[0]
    assert results[1].energy == pytest.approx(alone.energy, abs=1e-3)


def test_a_structure_that_explodes_leaves_the_batch():
    class Explodes(EMT):
        """Fails on gold once, on the way, as a network far from its training data may."""

        calls = 0

        def calculate(self, atoms=None, *args, **kwargs):
            super().calculate(atoms, *args, **kwargs)
            if "Au" in atoms.symbols:
                type(self).calls += 1
                if self.calls == 5:
                    self.results["forces"] = np.full_like(self.results["forces"], np.nan)

    potential = ASEPotential("explodes", Explodes())
    gold, copper = rattled(bulk("Au", cubic=True), 1, 0.1), rattled(bulk("Cu", cubic=True), 2, 0.1)
    bad, good = engine.relax(potential, [gold, copper], fmax=0.02)
    assert not bad.converged
    assert "NaN" in bad.error
    assert good.converged


def test_not_converged_says_so(chgnet, structures):
    [result] = engine.relax(chgnet, [structures[2]], fmax=1e-4, max_steps=3)
    assert not result.converged
    assert result.steps == 3
    assert "not converged in 3 steps" in result.error
    assert np.isfinite(result.energy)


def test_out_of_memory_halves_the_batch(chgnet, structures, monkeypatch):
    plain = engine.relax(chgnet, structures, fmax=0.05)
    compute = type(chgnet).compute
    largest = []

    def small_memory(self, graph, **kwargs):
        if graph.n_systems > 2:
            raise torch.OutOfMemoryError("pretend")
        largest.append(graph.n_systems)
        return compute(self, graph, **kwargs)

    monkeypatch.setattr(type(chgnet), "compute", small_memory)
    monkeypatch.setattr(engine, "_memory_limit", lambda potential: 1e4)
    results = engine.relax(chgnet, structures, fmax=0.05)
    assert max(largest) <= 2
    assert [r.energy for r in results] == pytest.approx([r.energy for r in plain], abs=4e-3)


def test_unknown_cell_mode(chgnet, structures):
    with pytest.raises(ValueError, match="out-of-plane"):
        engine.relax(chgnet, structures, cell="isotropic")


def test_held_coordinates_equal_ase_constraints(monkeypatch):
    """Each structure has other coordinates held, and they leave a small batch at different times."""
    monkeypatch.setattr(engine, "_memory_limit", lambda potential: 600.0)
    potential = ASEPotential("emt", EMT())
    metals = ("Cu", "Al", "Au", "Ag")
    given = [rattled(bulk(metal, cubic=True), seed, 0.1) for seed, metal in enumerate(metals)]
    constraints = [
        [FixAtoms([0, 2])],
        [],
        [FixCartesian([1], [True, False, False]), FixAtoms([3])],
        [FixCartesian([0, 2], [False, True, True])],
    ]
    held = [np.zeros((4, 3), dtype=bool), None, np.zeros((4, 3), dtype=bool), np.zeros((4, 3), dtype=bool)]
    held[0][[0, 2]] = True
    held[2][1, 0] = held[2][3] = True
    held[3][[0, 2], 1:] = True
    relaxed = engine.relax(potential, given, fmax=0.002, held=held)
    assert len({result.steps for result in relaxed}) > 1
    for atoms, constraint, mask, result in zip(given, constraints, held, relaxed, strict=True):
        assert result.converged
        reference = atoms.copy()
        reference.calc = EMT()
        reference.set_constraint(constraint)
        assert FIRE(reference, logfile=None).run(fmax=0.001, steps=500)
        assert result.energy == pytest.approx(reference.get_potential_energy(), abs=1e-4)
        if mask is not None:
            assert np.array_equal(result.atoms.positions[mask], atoms.positions[mask])
            assert (result.forces[mask] == 0).all()
            assert (result.atoms.positions[~mask] != atoms.positions[~mask]).all()


def test_held_coordinates_that_do_not_fit_are_refused(chgnet, structures):
    with pytest.raises(ValueError, match="fixed cell"):
        engine.relax(chgnet, structures[:1], cell="full", held=[None])
    with pytest.raises(ValueError, match="2 structures but 1"):
        engine.relax(chgnet, structures[:2], held=[None])
    with pytest.raises(ValueError, match=r"held\[1\] has shape"):
        engine.relax(chgnet, structures[:2], held=[None, np.array([0])])
