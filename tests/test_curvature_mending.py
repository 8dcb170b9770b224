"""Fine-tuning for curvature: which labels are drawn, and that a stiffer teacher's phonons are learned."""

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from conftest import needs_mirror

from helpers import potentials
from helpers.experiments import curvature_mending as mending
from helpers.training import fine_tune
from helpers.training.fine_tune import Label, Recipe
from helpers.training.trial import labels_of


@pytest.mark.slow
@needs_mirror
def test_labels_never_come_from_a_compound_that_is_held_out():
    cases = mending.cases(mending.Protocol(seeds=(0, 1)), sets=["displacements"])
    assert [case.info["seed"] for case in cases] == [0, 1]
    held = [{role for role in case.structures if role.startswith("held/")} for case in cases]
    assert held[0] == held[1]
    assert len(held[0]) == mending.Protocol().n_held_out
    first, second = (labels_of(case) for case in cases)
    assert len(first) == len(second) == mending.Protocol().n_labels
    formulas = {case.structures[role].get_chemical_formula(empirical=True) for case in cases for role in case.structures if "held" in role}
    for label in (*first, *second):
        assert label.energy is None
        assert label.stress is None
        assert label.forces.shape == label.atoms.positions.shape
        assert len(label.atoms) <= mending.Protocol().max_label_atoms
        assert label.atoms.get_chemical_formula(empirical=True) not in formulas
    assert {label.atoms.get_chemical_formula() for label in first} != {label.atoms.get_chemical_formula() for label in second}


@pytest.mark.slow
@needs_mirror
def test_csf_and_the_metals_have_the_labels_there_are():
    protocol = mending.Protocol(elements=("Cu", "Ni"))
    cases = {case.material: case for case in mending.cases(protocol, sets=["csf", "vacancy-hops"])}
    assert len(labels_of(cases["CsF"])) == 2
    for metal in ("Cu", "Ni"):
        labels = labels_of(cases[metal])
        assert len(labels) == 10
        assert all(label.stress is not None and len(label.atoms) == 107 for label in labels)


def test_unknown_set():
    with pytest.raises(KeyError, match="unknown set"):
        mending.cases(sets=["surfaces"])


def test_too_few_compounds_are_refused():
    with pytest.raises(ValueError, match="do not suffice"):
        mending.divided([], mending.Protocol())


@pytest.fixture(scope="module")
def taught():
    potential = potentials.load("chgnet-0.3.0")
    return mending.run(potential, mending.cases(sets=["teacher"]), mending.Protocol())


@pytest.mark.slow
def test_phonons_follow_a_stiffer_teacher(taught):
    """E → c E makes the frequencies √c times as high, and a few epochs go some of the way."""
    summary = mending.summarise(taught).set_index(["stage", "property"])
    before, after = (summary.loc[(stage, "omega_max"), "ratio_median"] for stage in ("before", "after"))
    assert before == pytest.approx(1 / np.sqrt(1.25), abs=2e-3)
    assert abs(after - 1) < 0.8 * abs(before - 1)
    assert summary.loc[("before", "omega_max"), "share_below"] == 1.0


@pytest.mark.slow
def test_training_is_recorded(taught):
    training = taught[taught["stage"] == "training"]
    assert (training["property"] == "validation_force_mae").sum() == 6
    assert (training["property"] == "best_epoch").sum() == 1


def test_labels_without_energy_train_on_forces_alone():
    """The energy's weight makes no difference where there is no energy, and a wrong energy would."""
    potential = potentials.load("chgnet-0.3.0")
    rng = np.random.default_rng(0)
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    answer = potential.scaled(1.2).evaluate([atoms])[0]
    losses = {}
    for name, energy, weight in (("none", None, 10.0), ("unweighted", answer.energy + 50, 0.0), ("wrong", answer.energy + 50, 10.0)):
        recipe = Recipe(epochs=1, energy_weight=weight)
        losses[name] = fine_tune.fine_tune(potential, [Label(atoms, energy, answer.forces)], recipe).history[0]["loss"]
    assert losses["none"] == pytest.approx(losses["unweighted"], rel=1e-6)
    assert losses["wrong"] > 100 * losses["none"]


def test_before_stands_beside_every_draw_after():
    common = {"model": "m", "set": "displacements", "material": "ten compounds", "status": "ok", "property": "omega_max"}
    rows = []
    for stage, seed, factor in (("before", 0, 0.8), ("after", 0, 0.9), ("after", 1, 0.95)):
        for held, reference in (("a", 10.0), ("b", 20.0)):
            rows.append(
                common
                | {"case": f"x/seed-{seed}", "seed": seed, "stage": stage, "held_out": held}
                | {"value": factor * reference, "reference": reference}
            )
    found = mending.before_and_after(pd.DataFrame(rows)).set_index("seed")
    assert found["ratio_median_before"].tolist() == pytest.approx([0.8, 0.8])
    assert found["ratio_median"].tolist() == pytest.approx([0.9, 0.95])
    assert found["mae_before"].tolist() == pytest.approx([3.0, 3.0])
    assert found["n"].tolist() == [2, 2]


def test_the_bands_of_the_tuned_model_are_those_of_a_model_of_its_own():
    row = {"model": "m", "set": "csf", "stage": "after", "property": "band", "held_out": "csf/mp-1784", "case": "csf/CsF/seed-0"}
    table = pd.DataFrame([row, row | {"stage": "before"}, row | {"property": "omega_max"}])
    (found,) = mending.bands(table).to_dict("records")
    assert found["model"] == "m+2"
    assert found["case"] == "csf/mp-1784"
