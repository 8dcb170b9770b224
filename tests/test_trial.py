"""The bench of the trained experiments: labels, draws, the teacher, recipes, rows and means over draws."""

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from helpers.potentials import StructureError
from helpers.potentials.ase import ASEPotential
from helpers.potentials.base import Prediction
from helpers.results import Case, row, table
from helpers.training import trial
from helpers.training.fine_tune import Label, Recipe

RECORD = functools.partial(row, "model", Case("case", "set", "Cu", {}, {}, {"seed": 0}))


@pytest.fixture(scope="module")
def emt():
    return ASEPotential("emt", EMT())


def test_labels_come_back_from_a_case_as_they_were_put_in():
    case = Case("case", "set", "Cu", {}, {})
    full = Label(bulk("Cu"), -1.0, np.ones((1, 3)), np.eye(3))
    bare = Label(bulk("Cu"), None, np.zeros((1, 3)))
    trial.put(case, label=[full, bare], labelled=[bare])
    assert len(trial.labels_of(case, "labelled")) == 1
    first, second = trial.labels_of(case)
    assert (first.energy, second.energy, second.stress) == (-1.0, None, None)
    np.testing.assert_array_equal(first.stress, np.eye(3))
    assert "energy/label/1" not in case.reference


def test_what_is_held_out_is_never_drawn():
    held, pool = trial.divide(range(30), 10)
    assert len(held) == 10
    assert sorted(held + pool) == list(range(30))
    assert trial.divide(range(30), 10) == (held, pool)
    assert trial.draw(pool, 20, seed=0) == pool
    assert set(trial.draw(pool, 5, seed=0)) != set(trial.draw(pool, 5, seed=1))
    with pytest.raises(ValueError, match="10 frames do not suffice to hold 10 out"):
        trial.divide(range(10), 10)


def test_a_stiffer_teacher_labels_with_larger_forces(emt):
    (frame,) = trial.rattled([bulk("Cu", cubic=True)], 0.1, np.random.default_rng(0))
    assert np.abs(frame.positions - bulk("Cu", cubic=True).positions).max() > 0.05
    own, stiff = (trial.labelled(potential, [frame], stress=True)[0] for potential in (emt, trial.stiffer(emt)))
    for name in trial.QUANTITIES:
        np.testing.assert_allclose(getattr(stiff, name), 1.25 * getattr(own, name))
    assert trial.labelled(emt, [frame])[0].stress is None
    with pytest.raises(StructureError, match="the teacher cannot label Si"):
        trial.labelled(emt, [bulk("Si")])


def test_a_recipe_takes_what_it_knows_from_a_protocol():
    @dataclass(frozen=True)
    class Protocol(trial.PaperProtocol):
        seeds: tuple[int, ...] = (0, 1)
        epochs: int = 7

    assert trial.recipe(Protocol(), seed=1, learning_rate=0.5) == Recipe(epochs=7, seed=1, learning_rate=0.5)
    # Ninety of a hundred frames are trained on, ten at a time: nine steps an epoch.
    made = trial.student_recipe(Protocol(batch_size=10), 100, 90, seed=3)
    assert (made.epochs, made.stress_weight, made.max_gradient_norm, made.seed) == (10, 0.0, 10.0, 3)


def test_a_frame_without_an_answer_is_one_failed_row():
    labels = [Label(bulk("Cu"), 0.0, np.array([[1.0, 2.0, 3.0]]))] * 2
    answers = [Prediction(0.0, np.array([[0.5, 1.0, 1.5]])), Prediction(np.nan, np.full((1, 3), np.nan), error="lost")]
    made = trial.filled(table(trial.force_rows(RECORD, trial.numbered(labels), answers)))
    assert made["status"].tolist() == ["ok"] * 3 + ["failed"]
    assert made["component"].tolist() == ["x", "y", "z", ""]
    assert made["atom"].tolist() == [0, 0, 0, -1]
    assert made["held_out"].tolist() == ["000"] * 3 + ["001"]
    assert made["value"].tolist()[:3] == [0.5, 1.0, 1.5]
    assert trial.fault(answers) == "lost"


def test_errors_have_the_units_of_what_they_are_errors_of():
    names = {"force_mae": "eV/Å", "energy_rmse": "eV/atom", "energy_drift": "eV/atom", "cmae": "eV/Å", "slope": "1", "n_free": "1"}
    made = table(trial.error_rows(RECORD, dict.fromkeys(names, 1.0), held_out="all"))
    assert dict(zip(made["property"], made["unit"], strict=True)) == names


def test_energy_errors_are_per_atom():
    label = Label(bulk("Cu", cubic=True), -4.0, np.zeros((4, 3)))
    assert trial.energy_errors([label], [Prediction(-2.0, np.zeros((4, 3)))]).tolist() == [0.5]


def test_rows_of_another_benchmark_keep_their_reason_and_the_columns_asked_for():
    inner = Case("inner", "set", "Cu", {}, {}, {"q": 3})
    made = table([row("other", inner, "band", 1.0, 2.0, "THz"), row("other", inner, "band", np.nan, 2.0, "THz", error="soft")])
    first, second = trial.rows_of(RECORD, made, ["q", "branch"])
    assert (first["model"], first["case"], first["held_out"], first["q"], first["status"]) == ("model", "case", "inner", 3, "ok")
    assert (second["status"], second["reason"]) == ("failed", "soft")
    assert "branch" not in first
    assert trial.rows_of(RECORD, made, name="frequency")[0]["property"] == "frequency"


def test_draws_are_summed_up_by_mean_and_range():
    made = pd.DataFrame({"method": ["b", "b", "a"], "value": [1.0, 3.0, 5.0]})
    assert trial.over_seeds(made, ["method"]).to_dict("records") == [
        {"method": "b", "mean": 2.0, "low": 1.0, "high": 3.0, "draws": 2},
        {"method": "a", "mean": 5.0, "low": 5.0, "high": 5.0, "draws": 1},
    ]
    staged = pd.DataFrame({"material": "Cu", "stage": ["before", "after", "after"], "slope": [0.5, 0.8, 1.0]})
    found = trial.compare_stages(staged, ["slope"]).loc["Cu"]
    assert found.tolist() == pytest.approx([2, 0.5, 0.9, 0.8, 1.0])
    single = trial.compare_stages(staged[:2], ["slope"]).loc["Cu"]
    assert single["slope"] == 0.8
    assert single[["slope_low", "slope_high"]].isna().all()
