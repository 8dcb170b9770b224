"""Molecular dynamics: what statistical mechanics says of a crystal, and how runs end."""

import numpy as np
import pytest
import torch
import torch_sim as ts
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.geometry import find_mic

from helpers import engine, potentials
from helpers.engine import torchsim
from helpers.potentials import StructureError

STIFFNESS = 2.0  # eV/Å²
COPPER = bulk("Cu", cubic=True) * (3, 3, 3)


class Springs(Calculator):
    """Every atom of the copper crystal hangs on its site: E = ½ k Σ|u|²."""

    implemented_properties = ("energy", "forces")
    stiffness = STIFFNESS

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        u = find_mic(atoms.positions - COPPER.positions[: len(atoms)], atoms.cell)[0]
        self.results = {"energy": self.stiffness / 2 * (u**2).sum(), "forces": -self.stiffness * u}


class Free(Springs):
    stiffness = 0.0


@pytest.fixture(scope="module")
def springs():
    return potentials.load(f"ase:{__name__}.Springs")


@pytest.fixture(scope="module")
def emt():
    return potentials.load("ase:ase.calculators.emt.EMT")


def blocks(values, n=8):
    """Return a mean and its standard error from means of blocks."""
    means = [part.mean() for part in np.array_split(np.asarray(values), n)]
    return np.mean(means), np.std(means, ddof=1) / n**0.5


def square_displacement(potential, temperature, steps=1000):
    shots = engine.move(potential, COPPER, temperature, steps=steps, time_step_fs=4.0, friction_per_ps=5.0, every=10, seed=1)
    return blocks([((shot.positions[0] - COPPER.positions) ** 2).sum(axis=1).mean() for shot in shots if shot.step >= 200])


@pytest.mark.slow
def test_atoms_on_springs_have_the_displacements_of_their_temperature_and_softness_is_heat(springs):
    """⟨u²⟩ = 3kT/k; scaling the surface by c is scaling the temperature by 1/c."""
    expected = 3 * units.kB * 300 / STIFFNESS
    for potential, temperature in ((springs, 300.0), (springs.scaled(0.5), 150.0), (springs.scaled(0.5), 300.0)):
        found, error = square_displacement(potential, temperature)
        wanted = expected * temperature / 300 / potential.scale
        assert error < 0.05 * wanted
        assert abs(found - wanted) < 4 * error


@pytest.mark.slow
def test_half_of_a_metal_at_half_the_temperature_is_the_metal(emt):
    """An anharmonic crystal: potential energies of E at 600 K and of E/2 at 300 K are one distribution, but for the factor."""
    cell = bulk("Cu", cubic=True) * (2, 2, 2)
    static = emt.evaluate([cell])[0].energy
    found = []
    for potential, temperature in ((emt, 600.0), (emt.scaled(0.5), 300.0)):
        shots = engine.move(potential, cell, temperature, steps=400, time_step_fs=4.0, friction_per_ps=5.0, seed=3)
        found.append(
            blocks([np.mean([e / potential.scale - static for e in shot.energies.values()]) for shot in shots if shot.step >= 100])
        )
    (one, error), (other, its_error) = found
    assert abs(one - other) < 4 * np.hypot(error, its_error)
    assert error < 0.1 * one


def test_temperatures_are_those_asked_for_each_structure_its_own(springs):
    shots = list(engine.move(springs, [COPPER] * 2, [100.0, 1000.0], steps=600, time_step_fs=4.0, friction_per_ps=10.0, every=20))
    for number, asked in enumerate((100.0, 1000.0)):
        assert np.mean([shot.temperatures[number] for shot in shots[8:]]) == pytest.approx(asked, rel=0.06)
    assert shots[0].temperatures[0] == pytest.approx(100, rel=0.3)


def test_without_a_thermostat_the_energy_is_kept_to_second_order(emt):
    cell = bulk("Cu", cubic=True) * (2, 2, 2)
    spread = {}
    for time_step in (2.0, 4.0):
        every = int(8 / time_step)
        shots = engine.move(emt, cell, 600.0, steps=every * 25, time_step_fs=time_step, friction_per_ps=None, every=every, seed=5)
        total = [shot.energies[0] + 1.5 * (len(cell) - 1) * units.kB * shot.temperatures[0] for shot in shots]
        spread[time_step] = np.ptp(total) / len(cell)
    assert spread[2.0] < 1e-3  # eV per atom
    assert spread[4.0] == pytest.approx(4 * spread[2.0], rel=0.5)


def test_atoms_that_leave_the_cell_are_followed():
    free = potentials.load(f"ase:{__name__}.Free")
    cell = bulk("Cu", cubic=True)
    shots = list(engine.move(free, cell, 3000.0, steps=400, time_step_fs=2.0, friction_per_ps=None, every=20))
    expected = cell.positions + shots[0].velocities[0] * 0.8  # ps
    np.testing.assert_allclose(shots[-1].positions[0], expected, atol=1e-6)
    assert np.abs(shots[-1].positions[0] - cell.positions).max() > cell.cell.lengths().max()
    assert shots[-1].positions[0].sum() == pytest.approx(cell.positions.sum()), "the whole does not drift"


def test_atoms_of_all_masses_begin_at_the_temperature():
    free, salt = potentials.load(f"ase:{__name__}.Free"), bulk("LiH", "rocksalt", a=4.08)
    (first, _) = engine.move(free, [salt] * 400, 300.0, steps=1, every=1, friction_per_ps=None)
    assert np.mean(list(first.temperatures.values())) == pytest.approx(300, rel=0.15)
    momentum = [salt.get_masses() @ velocity for velocity in first.velocities.values()]
    np.testing.assert_allclose(momentum, 0, atol=1e-9)


def test_fast_atoms_in_a_small_cell_are_followed_between_snapshots_and_what_is_seen_changes_nothing():
    free, cell = potentials.load(f"ase:{__name__}.Free"), bulk("Li", cubic=True)
    settings = {"steps": 400, "time_step_fs": 1.0, "friction_per_ps": None, "seed": 2}
    *_, often = engine.move(free, [cell] * 3, 1500.0, every=10, **settings)
    first, last = engine.move(free, [cell] * 3, 1500.0, every=400, **settings)
    for number in range(3):
        np.testing.assert_allclose(last.positions[number], cell.positions + 0.4 * first.velocities[number], atol=1e-6)
        np.testing.assert_allclose(last.positions[number], often.positions[number], atol=1e-9)


def test_the_same_seed_moves_the_same_way_and_leaves_the_numbers_of_others_alone(springs):
    torch.manual_seed(7)
    first = [shot.positions[0] for shot in engine.move(springs, COPPER, 300.0, steps=20, seed=1)]
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    second = [shot.positions[0] for shot in engine.move(springs, COPPER, 300.0, steps=20, seed=1)]
    other = [shot.positions[0] for shot in engine.move(springs, COPPER, 300.0, steps=20, seed=2)]
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first[-1], other[-1])


def test_what_explodes_ends_with_a_reason_and_the_others_go_on(springs):
    wild = COPPER.copy()
    wild.rattle(0.3, seed=0)
    shots = list(engine.move(springs, [COPPER, wild, COPPER], [300.0, 1.0, 600.0], steps=100, time_step_fs=4.0))
    (ended,) = [shot for shot in shots if shot.ended]
    assert set(ended.ended) == {1}
    assert " K by step " in ended.ended[1]
    assert set(shots[0].positions) == {0, 1, 2}
    assert set(shots[-1].positions) == set(shots[-1].temperatures) == {0, 2}
    assert shots[-1].step == 100
    alone = list(engine.move(springs, wild, 1.0, steps=100, time_step_fs=4.0))
    assert alone[-1].ended
    assert not alone[-1].positions


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"steps": 15}, "multiple of every=10"),
        ({"steps": 0}, "multiple"),
        ({"steps": 10, "time_step_fs": 0.0}, "must be positive"),
        ({"steps": 10, "temperatures_k": -1.0}, "must be positive"),
        ({"steps": 10, "friction_per_ps": 0.0}, "must be positive"),
    ],
)
def test_settings_without_sense_are_refused_at_once(springs, asked, complaint):
    with pytest.raises(ValueError, match=complaint):
        engine.move(springs, COPPER, asked.pop("temperatures_k", 300.0), **asked)


def test_a_structure_that_cannot_be_evaluated_is_named(springs):
    slab = COPPER.copy()
    slab.pbc = (True, True, False)
    with pytest.raises(StructureError, match="structure 1: not periodic"):
        engine.move(springs, [COPPER, slab], 300.0, steps=10)


@pytest.mark.skipif(not torchsim.NEWER, reason="needs torch-sim 0.4 or later, which needs Python 3.12")
def test_newer_states_draw_the_noise_that_older_ones_drew(springs):
    """Later versions draw from a generator of the state: the number alone decides there, too."""
    state = ts.initialize_state([COPPER], springs.device, springs.dtype)
    torchsim.seed(state, 3)
    assert torch.equal(torch.randn(4, generator=state.rng), torch.randn(4))
