"""What makes a student soft in the cold crystal: the arms, what they see, and what is measured."""

import dataclasses
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.spacegroup.symmetrize import check_symmetry

from helpers import figures, potentials
from helpers.experiments import valley_floor
from helpers.experiments.valley_floor import ARMS, METALS, Protocol, Student
from helpers.training import trial


@pytest.fixture(scope="module")
def teacher():
    return potentials.load("ase:ase.calculators.emt.EMT")


def test_single_arms_vary_one_thing():
    standard, arms = Student(), ARMS["single"]
    assert Student(**arms["standard"]) == standard
    for name, changes in arms.items():
        assert len(changes) == (name != "standard"), name
        for key, value in changes.items():
            assert value != getattr(standard, key)
    every = [Student(**changes) for chosen in ("single", "combined") for changes in ARMS[chosen].values()]
    assert len(set(every)) == len(every)
    # Combinations are of things that were varied alone; only the length of the training has a second value.
    alone = {pair for changes in arms.values() for pair in changes.items()}
    for name, changes in ARMS["combined"].items():
        assert len(changes) > 1, name
        assert {pair for pair in changes.items() if pair[0] != "steps"} <= alone, name


def test_every_arm_has_every_seed():
    found = valley_floor.cases(Protocol(), ["single", "combined"])
    assert len({case.name for case in found}) == len(found)
    assert len(found) == 3 * (len(ARMS["single"]) + len(ARMS["combined"]))


def test_compounds_are_all_metals_and_all_pairs_in_cells_of_eight():
    crystals = valley_floor.compounds()
    assert len(crystals) == 105
    assert {len(atoms) for atoms, _ in crystals} == {8}
    makeup = {frozenset(atoms.symbols) for atoms, _ in crystals}
    assert len(makeup) == 7 + 21
    assert set().union(*makeup) == set(METALS)
    # Neighbours in every crystal are as far apart as in metals.
    for atoms, _ in crystals:
        distances = (atoms * (2, 2, 2)).get_all_distances(mic=True)
        assert 2.2 < distances[distances > 0].min() < 3.0, atoms


def test_ordered_alloys():
    assert check_symmetry(valley_floor.ordered(("Au", "Cu", "Cu", "Cu")), 1e-4).number == 221  # L1₂
    layered = valley_floor.ordered(("Cu", "Cu", "Au", "Au"))
    assert check_symmetry(layered, 1e-4).number == 123  # L1₀
    assert len({z for z, symbol in zip(layered.positions[:, 2], layered.symbols, strict=True) if symbol == "Cu"}) == 1


@pytest.mark.parametrize("diet", ["compounds", "symmetric"])
def test_symmetry_forbids_forces(teacher, diet):
    seen = valley_floor.frames(teacher, diet, 60, dataclasses.replace(Protocol(), relaxation_steps=3), 0)
    assert len(seen) == 60
    largest = [np.abs(label.forces).max() for label in seen]
    on_sites = [symmetric for _, symmetric in valley_floor.compounds() for _ in range(2)][:60]
    for force, symmetric in zip(largest, on_sites, strict=True):
        assert (force < 1e-6) == (symmetric and diet == "symmetric")
    # The cells are wrong all the same: there is something to learn.
    energies = [label.energy for label in seen[:8]]
    assert all(after < before for before, after in list(pairwise(energies))[::2])


def test_shear_moduli_are_those_of_the_stress(teacher):
    cell = bulk("Cu", "fcc", a=3.59, cubic=True)
    found = valley_floor.shear_moduli(teacher, cell, 0.01)
    gpa, step = 160.21766208, 1e-3
    sheared, stretched = cell.copy(), cell.copy()
    sheared.set_cell(cell.cell.array @ (np.eye(3) + step / 2 * (np.eye(3)[[1, 0, 2]] - np.diag([0, 0, 1]))), scale_atoms=True)
    stretched.set_cell(cell.cell.array @ np.diag([1 + step / 2, 1 - step / 2, 1]), scale_atoms=True)
    one, two = teacher.evaluate([sheared, stretched], stress=True)
    assert found["c44"] == pytest.approx(one.stress[0, 1] / step * gpa, rel=0.02)
    assert found["c_prime"] == pytest.approx((two.stress[0, 0] - two.stress[1, 1]) / 2 / step * gpa, rel=0.02)
    assert valley_floor.shear_moduli(teacher.scaled(0.8), cell, 0.01)["c44"] == pytest.approx(0.8 * found["c44"])


@pytest.mark.slow
def test_a_teacher_made_soft_comes_out_soft(teacher):
    """The measurement itself: the teacher scaled by 0.8 must come out with 0.8 everywhere, at every temperature."""
    case = valley_floor.cases(Protocol(), ["small"])[0]
    case.info["diet"] = "compounds"
    made = trial.filled(pd.DataFrame(valley_floor.examine(teacher, teacher.scaled(0.8), case, Protocol())))
    found = valley_floor.scales(made)
    assert found["slope"].to_numpy() == pytest.approx(0.8, abs=1e-3)
    assert found["inverse_slope"].to_numpy() == pytest.approx(1.25, abs=1e-3)
    shear = made[made["property"] == "shear_modulus"]
    assert (shear["value"] / shear["reference"]).to_numpy() == pytest.approx(0.8)


def test_the_summary_keeps_the_order_of_the_arms():
    made = pd.DataFrame(
        {
            "model": "m",
            "set": "single",
            "arm": np.repeat(["symmetric", "standard"], 4),
            "seed": [0, 0, 1, 1] * 2,
            "asked": "Cu",
            "temperature_k": 300.0,
            "property": "force",
            "status": "ok",
            "reference": [1.0, -1.0] * 4,
            "value": [0.5, -0.5, 0.7, -0.7, 1.0, -1.0, 1.1, -1.1],
        }
    )
    found = valley_floor.summarise(made)
    assert list(found["arm"]) == ["standard", "symmetric"]
    assert found["slope"].to_numpy() == pytest.approx([1.05, 0.6])
    assert found[["slope_low", "slope_high"]].to_numpy()[1] == pytest.approx([0.5, 0.7])


def test_arms_without_values_are_refused():
    made = pd.DataFrame({"arm": ["standard"], "panel": [300.0], "mean": [1.0], "low": [0.9], "high": [1.1]})
    assert len(figures.arms(made, {300.0: "cold"}).axes) == 1
    with pytest.raises(ValueError, match="nothing to draw for 2000"):
        figures.arms(made, {300.0: "cold", 2000.0: "hot"})
