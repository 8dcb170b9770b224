"""Coverage: families, draws, and what fits to some of them say of others."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from conftest import needs_mirror

from helpers import potentials, results
from helpers.benchmarks import Case, off_equilibrium
from helpers.experiments import coverage
from helpers.potentials.base import Prediction
from helpers.training.fine_tune import Label


def frame(group, energy_per_atom):
    atoms = bulk("Si")
    return Case("x", "s", "Si", {"frame": atoms}, {"energy": energy_per_atom * len(atoms)}, {"group": group})


@pytest.mark.parametrize(
    ("group", "energy", "family"),
    [
        ("Elastic", 0.9, "strained"),
        ("Surface", 0.9, "slabs"),
        ("AIMD-NVT", 0.1, "vibrations"),
        ("AIMD-NVT", 0.8, "melt"),
        ("Vacancy", 0.1, "vacancy"),
        ("Vacancy", 0.7, "melt"),
    ],
)
def test_whether_a_frame_is_molten_is_read_from_its_energy(group, energy, family):
    assert coverage.family_of(frame(group, energy - 5.4), -5.4) == family


@needs_mirror
def test_every_frame_of_silicon_is_in_one_family_and_nothing_held_out_is_trained_on():
    pool = coverage.silicon(1 / 3)
    assert set(pool.training) == set(pool.tests) == set(coverage.FAMILIES)
    trained, tested = ([label.energy for labels in part.values() for label in labels] for part in (pool.training, pool.tests))
    assert len(trained) + len(tested) == 239
    # Nor is a mirror image of it, which has the same energy.
    assert np.abs(np.subtract.outer(trained, tested)).min() > 1e-5
    assert pool.crystal.energy / len(pool.crystal.atoms) == pytest.approx(-5.4253, abs=1e-4)
    # Melts lie far above everything else in molecular dynamics.
    above = {
        family: np.array([label.energy / len(label.atoms) for label in (*pool.training[family], *pool.tests[family])]) + 5.4253
        for family in ("vibrations", "vacancy", "melt")
    }
    assert above["melt"].min() > 0.55
    assert max(above["vibrations"].max(), above["vacancy"].max()) < 0.4
    protocol = coverage.Protocol()
    for info in (case.info for case in coverage.cases(protocol, ["silicon"]) if case.info["capacity"]):
        drawn = coverage.draw(pool, info["families"].split("+"), info["n_frames"], protocol.share, info["seed"])
        assert len(set(drawn)) == len(drawn)
        if info["n_frames"]:
            assert len(drawn) == info["n_frames"]


def small_pool():
    labels = {name: tuple(Label(bulk("Si"), -10.0 - k, np.zeros((2, 3))) for k in range(9)) for name in ("a", "b")}
    return coverage.Pool(labels, labels, labels["a"][0])


def test_draws_share_evenly_and_nest():
    pool = small_pool()
    first, second = (coverage.draw(pool, ("a", "b"), number, 1.0, seed=0) for number in (5, 9))
    assert [family for family, _ in first] == ["a"] * 3 + ["b"] * 2
    assert set(first) < set(second)
    assert set(coverage.draw(pool, ("a",), 4, 1.0, seed=0)) != set(coverage.draw(pool, ("a",), 4, 1.0, seed=1))
    assert len(coverage.draw(pool, ("a", "b"), 0, 0.8, seed=0)) == 14


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="10 frames of a are asked for, but there are 9"):
        coverage.draw(small_pool(), ("a",), 10, 1.0, seed=0)


def test_an_element_without_frames_is_refused():
    with pytest.raises(KeyError, match="no file of 'Ge'"):
        off_equilibrium.single_element("Ge")


def test_unknown_set():
    with pytest.raises(KeyError, match="unknown set"):
        coverage.cases(sets=["germanium"])


def test_errors_are_those_of_a_potential_that_is_too_soft():
    """A potential that is E → c E has slope c in forces and in energies above the crystal, whatever its zero."""
    rng = np.random.default_rng(0)
    crystal = Label(bulk("Si"), -10.0, np.zeros((2, 3)))
    labels = [Label(bulk("Si"), -10 + energy, rng.normal(size=(2, 3))) for energy in (0.2, 0.5, 0.7)]
    soft = [Prediction(3 + 0.8 * (label.energy + 10), 0.8 * label.forces) for label in labels]
    found = coverage.errors(labels, soft, crystal, 3.0)
    assert found["slope"] == pytest.approx(0.8)
    assert found["inverse_slope"] == pytest.approx(1.25)
    assert found["energy_slope"] == pytest.approx(0.8)
    assert found["energy_rmse"] == pytest.approx(0.2 * np.sqrt(np.mean([0.1**2, 0.25**2, 0.35**2])))


def test_relaxed_frames_have_no_slope():
    crystal = Label(bulk("Si"), -10.0, np.zeros((2, 3)))
    labels = [Label(bulk("Si"), energy, np.full((2, 3), 0.001)) for energy in (-9.0, -8.0)]
    assert "slope" not in coverage.errors(labels, [Prediction(label.energy, label.forces) for label in labels], crystal, -10.0)


@pytest.fixture(scope="module")
def live():
    potential = potentials.load("chgnet-0.3.0")
    protocol = coverage.Protocol()
    cases = [case for case in coverage.cases(protocol, ["teacher"]) if case.info["capacity"] in ("", "pairs")]
    return coverage.run(potential, cases, protocol)


@pytest.mark.slow
def test_the_teacher_agrees_with_itself(live):
    own = live[live["series"] == "potential"].pivot_table(index="held_out", columns="property", values="value")
    assert own["force_rmse"].max() < 1e-4
    np.testing.assert_allclose(own["slope"], 1.0, atol=1e-4)


def test_pairs_pay_for_variety(live):
    """Fitted to small displacements, a pair potential fails on large ones; fitted to both, it does worse on the small."""
    error = live[live["property"] == "force_rmse"].set_index(["families", "held_out"])["value"]
    assert error["near", "far"] > 3 * error["near+far", "far"]
    assert error["near+far", "near"] > 1.5 * error["near", "near"]
    assert error["near+far", "training"] > error["near", "training"]


def rows(**columns):
    frame = {
        "set": "silicon",
        "property": "force_rmse",
        "status": "ok",
        "capacity": "pairs",
        "series": "growing",
        "penalty": 1.0,
        "n_frames": 0,
    }
    return frame | columns


def test_harm_is_counted_draw_by_draw():
    before, after = ("+".join(coverage.FAMILIES[:number]) for number in (4, 5))
    table = pd.DataFrame(
        [rows(held_out="vibrations", seed=seed, families=before, value=0.1) for seed in (0, 1)]
        + [rows(held_out="vibrations", seed=seed, families=after, value=0.1 * (2 + seed)) for seed in (0, 1)]
    )
    found = coverage.harm(table, "force_rmse")
    assert found["ratio"].tolist() == pytest.approx([2, 3])
    curve = coverage.over_seeds(table, "force_rmse").set_index("step")
    assert curve.loc[5, ["mean", "low", "high"]].tolist() == pytest.approx([0.25, 0.2, 0.3])
    assert curve.loc[4, "draws"] == 2


def test_the_committed_table_is_that_of_the_protocol():
    made = results.provenance("coverage", "chgnet-0.3.0")
    assert made["protocol"]["weights"] == dataclasses.asdict(coverage.Protocol().weights)
    assert made["cases"] == {"silicon": len(coverage.cases(sets=["silicon"])), "teacher": len(coverage.cases(sets=["teacher"]))}
    assert made["failed_rows"] == 0
