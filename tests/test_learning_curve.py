"""The learning curve: draws that contain each other, tests that no label shows, errors that are what they say."""

import functools

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from conftest import needs_mirror

from helpers import figures, potentials, runner
from helpers.benchmarks import Case, off_equilibrium, row
from helpers.experiments import learning_curve
from helpers.potentials.base import Prediction
from helpers.training import trial
from helpers.training.fine_tune import Label


def label(energy=0.0, forces=((1.0, 0.0, 0.0), (-1.0, 0.0, 0.0)), n=2):
    atoms = bulk("Si", a=5.43)
    return Label(atoms, energy, np.asarray(forces, dtype=float)[:n], np.zeros((3, 3)))


def test_a_small_draw_is_part_of_every_larger_one():
    labels = [label(float(k)) for k in range(30)]
    drawn = {n: [x.energy for x in trial.draw_nested(labels, n, seed=1)] for n in (1, 2, 5, 30)}
    assert drawn[5][:2] == drawn[2]
    assert drawn[2][:1] == drawn[1]
    assert sorted(drawn[30]) == [float(k) for k in range(30)]
    assert [x.energy for x in trial.draw_nested(labels, 5, seed=2)] != drawn[5]
    with pytest.raises(ValueError, match="31 labels are asked for, but there are 30"):
        trial.draw_nested(labels, 31, seed=0)


def test_steps_do_not_grow_with_the_number_of_labels():
    protocol = learning_curve.Protocol(steps_per_label=100, max_steps=250, scratch_steps=300)
    assert [protocol.steps(n) for n in (1, 2, 5, 100)] == [100, 200, 250, 250]
    assert protocol.steps(1, "scratch") == 300
    recipe = protocol.recipe("all", 5, seed=3)
    assert (recipe.epochs, recipe.keep, recipe.validation_fraction, recipe.seed, recipe.rank) == (50, "last", 0.0, 3, 0)
    assert protocol.recipe("low-rank", 5, seed=3).rank == protocol.rank
    assert protocol.recipe("scratch", 100, seed=3).epochs == 3


def test_kinds_of_frames():
    def kind(group, temperature=np.nan):
        frame = Case("x", "single-element-md", "Si", {}, {}, {"group": group, "temperature_k": temperature})
        return learning_curve.kind_of(frame, (300.0, 3374.0))

    assert [kind("AIMD-NVT", t) for t in (300.0, 843.0, 3374.0)] == ["cold", "", "molten"]
    assert [kind("Vacancy", 300.0), kind("Elastic"), kind("Surface")] == ["vacancy", "strained", "slab"]


def test_errors_of_forces():
    labels = [label(), label(forces=((0, 0.5, 0), (0, -0.5, 0)))]
    soft = [Prediction(0.0, 0.8 * x.forces) for x in labels]
    found = learning_curve.errors(labels, soft)
    assert found["slope"] == pytest.approx(0.8)
    assert found["inverse_slope"] == pytest.approx(1.25)
    assert found["cmae"] == pytest.approx(0, abs=1e-12)
    assert found["force_mae"] == pytest.approx(0.2 * 0.5 * (1 + 0.5) / 3)
    # Forces that vanish by symmetry have an error but no slope.
    assert set(learning_curve.errors([label(forces=np.zeros((2, 3)))], [Prediction(0.0, np.full((2, 3), 0.01))])) == {"force_mae"}


def test_one_wild_frame_does_not_decide_what_is_forgotten():
    """The typical error of foreign frames is the median over them."""
    tests = {"all": [label()], "other-chemistry": [label(), label(), label()]}
    case = Case("x", "curve", "Si", {}, {}, {"method": "all"})
    after = {name: [Prediction(0.0, x.forces + 0.03) for x in members] for name, members in tests.items()}
    after["other-chemistry"][1].forces = label().forces + 50.0
    rows = pd.DataFrame(learning_curve.error_rows(functools.partial(row, "model", case), tests, after, after)).set_index(
        ["property", "held_out"]
    )["value"]
    assert rows["frame_mae", "other-chemistry"] == pytest.approx(0.03)
    assert rows["force_mae", "other-chemistry"] > 10


def test_energies_are_compared_after_one_constant_for_the_element():
    """A constant per atom is no error; what differs between the test sets is. Elsewhere the change of the prediction is reported."""
    tests = {"all": [label(1.0), label(3.0)], "slab": [label(5.0)], "Mo": [label(0.0)]}
    case = Case("x", "curve", "Si", {}, {}, {"method": "all"})
    before = {name: [Prediction(x.energy, x.forces) for x in members] for name, members in tests.items()}
    after = {name: [Prediction(x.energy + 2 * 0.7, x.forces) for x in members] for name, members in tests.items()}
    after["slab"] = [Prediction(5.0 + 2 * 0.7 + 2 * 0.1, tests["slab"][0].forces)]
    rows = pd.DataFrame(learning_curve.error_rows(functools.partial(row, "model", case), tests, before, after)).set_index(
        ["property", "held_out"]
    )["value"]
    assert rows["energy_mae", "all"] == pytest.approx(0, abs=1e-12)
    assert rows["energy_mae", "slab"] == pytest.approx(0.1)
    assert rows["energy_drift", "Mo"] == pytest.approx(0.7)
    assert ("energy_mae", "Mo") not in rows
    assert ("frame_mae", "all") not in rows
    # A frame that fails fails its test set alone.
    after["slab"] = [Prediction.failed(2, "no")]
    rows = pd.DataFrame(learning_curve.error_rows(functools.partial(row, "model", case), tests, before, after))
    assert rows.loc[rows["held_out"] == "slab", ["status", "reason"]].to_numpy().tolist() == [["failed", "no"]]
    assert (rows.loc[rows["held_out"] != "slab", "status"] == "ok").all()


@pytest.fixture(scope="module")
def taught():
    potential = potentials.load("chgnet-0.3.0", "cpu")
    return learning_curve.run(potential, learning_curve.cases(sets=["teacher"]), learning_curve.Protocol())


@pytest.mark.slow
def test_what_a_stiffer_teacher_teaches(taught):
    """One scalar is the whole truth here, and it is right for silicon too; weights learn what they see."""
    assert (taught["status"] == "ok").all()
    value = taught.set_index(["method", "n_labels", "property", "held_out"])["value"]
    assert value["none", 0, "slope", "all"] == pytest.approx(0.8, abs=1e-3)
    assert value["scalar", 1, "force_mae", "other-chemistry"] < 1e-4
    assert value["scalar", 1, "n_trained", ""] == 1
    for n in (1, 2):
        assert value["all", n, "force_mae", "all"] < 0.6 * value["none", 0, "force_mae", "all"]
        assert value["all", n, "energy_drift", "other-chemistry"] > 0
    assert value["low-rank", 2, "force_mae", "all"] < 0.6 * value["none", 0, "force_mae", "all"]
    assert 1 < value["low-rank", 2, "n_trained", ""] < 0.1 * value["all", 2, "n_trained", ""]

    summary = learning_curve.summarise(taught).set_index(["method", "n_labels"])
    assert summary.loc[("scalar", 1), "slope"] == pytest.approx(1, abs=1e-4)
    assert summary.loc[("all", 2), "force_mae_before"] == value["none", 0, "force_mae", "all"]
    elsewhere = learning_curve.forgotten(taught).set_index(["method", "n_labels"])["mean"]
    wanted = value["all", 2, "frame_mae", "other-chemistry"] / value["none", 0, "frame_mae", "other-chemistry"]
    assert elsewhere["all", 2] == pytest.approx(wanted)


def test_what_cannot_be_trained_is_a_failed_row():
    potential = potentials.load("ase:ase.calculators.emt.EMT", "cpu")
    gold = bulk("Au", cubic=True)
    gold.rattle(0.1, seed=1)
    (answer,) = potential.scaled(1.2).evaluate([gold])
    frame = Label(gold, answer.energy, answer.forces, np.zeros((3, 3)))
    made = []
    for method in ("scalar", "all", "magic"):
        case = Case(f"curve/Au/{method}", "curve", "Au", {}, {}, {"method": method, "kind": "any", "n_labels": 1, "seed": 0})
        trial.put(case, label=[frame], all=[frame])
        made.append(case)
    table = learning_curve.run(potential, made, learning_curve.Protocol()).set_index("method")
    assert (table.loc["scalar", "status"] == "ok").all()
    assert table.loc["all", ["status", "property"]].tolist() == ["failed", "force_mae"]
    assert "no weights to train" in table.loc["all", "reason"]
    assert "no method 'magic'" in table.loc["magic", "reason"]


def test_a_part_of_a_network_is_trained_and_so_is_one_from_scratch():
    potential = potentials.load("chgnet-0.3.0", "cpu")
    silicon = bulk("Si", a=5.43)
    silicon.rattle(0.1, seed=1)
    (answer,) = potential.scaled(1.25).evaluate([silicon], stress=True)
    frame = Label(silicon, answer.energy, answer.forces, answer.stress)
    protocol = learning_curve.Protocol(scratch_channels=8)
    counts = {m: learning_curve.train(potential, [frame], m, protocol, 0, steps=2).n_trained for m in ("readout", "last-layer", "scratch")}
    assert 1000 < counts["scratch"] < counts["readout"] < counts["last-layer"] < 100_000
    # A network that only knows silicon is tested on silicon only.
    case = Case("curve/Si/scratch", "curve", "Si", {}, {}, {"method": "scratch", "kind": "any", "n_labels": 1, "seed": 0})
    trial.put(case, label=[frame], all=[frame], MgO=[Label(bulk("MgO", "rocksalt", a=4.2), 0.0, np.zeros((2, 3)))])
    table = learning_curve.run(potential, [case], learning_curve.Protocol(scratch_channels=8, scratch_steps=2))
    assert (table["status"] == "ok").all()
    assert set(table["held_out"]) == {"", "all"}


def synthetic():
    """Return a table whose errors halve with every tenfold number of labels, for two seeds that differ."""
    rows = []

    def add(set_name, method, kind, n, seed, held_out, value):
        rows.append(("m", set_name, "Si", f"{method}{n}{seed}{kind}", "force_mae", value, "ok", method, kind, n, seed, held_out))

    for held_out in (*learning_curve.OWN, "other-chemistry", "compounds", "Mo", "Cu"):
        add("curve", "none", "any", 0, 0, held_out, 1.0)
        for seed in (0, 1):
            for n in (1, 10, 100):
                add("curve", "all", "any", n, seed, held_out, 0.5 * 2.0 ** -np.log10(n) * (0.9 if seed else 1.1))
            add("kinds", "all", "slab", 10, seed, held_out, 0.8)
    names = ["model", "set", "material", "case", "property", "value", "status", "method", "kind", "n_labels", "seed", "held_out"]
    made = pd.DataFrame(rows, columns=names)
    elsewhere = made[~made["held_out"].isin(learning_curve.OWN)].assign(property="frame_mae")
    made = pd.concat([made, elsewhere], ignore_index=True)
    made.loc[made["held_out"].eq("Mo") & made["method"].eq("all"), "value"] = 4.0
    made.loc[made["held_out"].eq("Cu") & made["method"].eq("all"), "value"] = 1.0
    return made


def test_tables_are_condensed():
    made = synthetic()
    curve = learning_curve.over_seeds(made, "force_mae")
    at = curve[(curve["set"] == "curve") & (curve["n_labels"] == 10)].iloc[0]
    assert (at["before"], at["mean"], at["low"], at["high"], at["draws"]) == pytest.approx((1, 0.25, 0.225, 0.275, 2))
    assert learning_curve.reached(made, 0.25, "Si", "all") == pytest.approx(10)
    assert learning_curve.reached(made, 0.5 / 2**0.5, "Si", "all") == pytest.approx(10**0.5)
    assert learning_curve.reached(made, 0.6, "Si", "all") == pytest.approx(1)
    assert learning_curve.reached(made, 0.01, "Si", "all") == np.inf
    kinds = learning_curve.by_kind(made, 10).set_index(["kind", "held_out"])["ratio"]
    assert kinds["slab", "cold"] == pytest.approx(0.8)
    assert kinds["any", "cold"] == pytest.approx(0.25)
    elsewhere = learning_curve.forgotten(made).set_index(["set", "n_labels", "elsewhere"])["mean"]
    # Four times the error in Mo, the same in Cu: twice, as factors are averaged.
    assert elsewhere["curve", 10, "other-elements"] == pytest.approx(2)
    assert elsewhere["curve", 10, "compounds"] == pytest.approx(0.25, rel=0.01)


def test_figures_of_learning():
    made = synthetic()
    curve = learning_curve.over_seeds(made, "force_mae")
    curve = curve[curve["set"] == "curve"]
    marked = pd.DataFrame({"material": ["Si"], "n_labels": [10], "value": [0.2]})
    axis = figures.error_curves(curve, ["Si"], {"all": "all weights"}, "force MAE (eV/Å)", marked=("ten", marked)).axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "10", "100"]
    drawn = [line.get_ydata() for line in axis.lines if len(line.get_ydata()) == 3]
    assert drawn[0] == pytest.approx([0.5, 0.25, 0.125])
    assert any(np.array_equal(line.get_ydata(), [0.2]) for line in axis.lines)
    with pytest.raises(ValueError, match="nothing to draw for Mo"):
        figures.error_curves(curve, ["Mo"], {"all": "all weights"}, "force MAE (eV/Å)")

    ratios = learning_curve.by_kind(made, 10)
    figure = figures.kind_matrix(ratios, {"any": "mixed", "slab": "slab", "molten": "melt"}, {"all": "mixed", "cold": "cold"}, ["Si"])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["0.25", "0.25", "0.80", "0.80"]
    with pytest.raises(ValueError, match="nothing to draw for Mo"):
        figures.kind_matrix(ratios, {"any": "mixed"}, {"all": "mixed"}, ["Mo"])

    axis = figures.descent({"Adam": [1.0, 1.1, 1.2]}, {"s′": 1.2, "1/s": 1.3}, "c").axes[0]
    assert [line.get_label() for line in axis.lines] == ["s′", "1/s", "Adam"]
    with pytest.raises(ValueError, match="0 paths"):
        figures.descent({}, {}, "c")


def test_unknown_sets_are_refused():
    with pytest.raises(KeyError, match="there are: curve, kinds, parts, teacher"):
        learning_curve.cases(sets=["curves"])


@pytest.mark.slow
@needs_mirror
def test_labels_and_tests_have_no_frame_in_common():
    protocol = learning_curve.Protocol()
    frames, compounds = (off_equilibrium.cases(sets=[name]) for name in ("single-element-md", "mptrj-1k"))
    for material, n_free in (("Si", 120), ("Mo", 100), ("Li", 188)):
        pool = learning_curve.pool(material, frames, compounds, protocol)
        assert len(pool.labels["any"]) == n_free
        sizes = {name: len(members) for name, members in pool.tests.items()}
        assert (sizes["all"], sizes["strained"], sizes["slab"]) == (44, 8, 4)
        assert (sizes["other-chemistry"], sizes["compounds"]) == (protocol.n_other, protocol.n_compounds)
        assert set(learning_curve.ELEMENTS) - {material} < set(sizes)
        assert all(len(pool.labels[kind]) >= protocol.n_kind for kind in learning_curve.KINDS)

        def content(members):
            return {x.forces.tobytes() + x.atoms.positions.tobytes() for x in members}

        tested = content([x for name in learning_curve.OWN for x in pool.tests[name]])
        assert not tested & content([x for members in pool.labels.values() for x in members])
        assert content(pool.tests["cold"]) < content(pool.tests["all"])
        largest = min(np.sqrt(np.mean(x.forces**2)) for x in pool.labels["largest"])
        assert largest > np.median([np.sqrt(np.mean(x.forces**2)) for x in pool.labels["any"]])
        assert all(material in x.atoms.get_chemical_symbols() for x in pool.tests["compounds"])
        assert not any(material in x.atoms.get_chemical_symbols() for x in pool.tests["other-chemistry"])


@pytest.mark.slow
@needs_mirror
def test_each_training_is_a_shard_of_its_own():
    protocol = learning_curve.Protocol(materials=("Li",))
    cases = learning_curve.cases(protocol)
    assert len({case.name for case in cases}) == len(cases)
    assert len(runner.shards(cases, learning_curve.ATOMS_PER_SHARD)) == len(cases)
    by_name = {case.name: case for case in cases}
    few, many = (by_name[f"curve/Li/all/any/n-{n}/seed-1"] for n in (5, 50))
    assert all(few.structures[f"label/{k}"] == many.structures[f"label/{k}"] for k in range(5))
    # The same draws for every method, so that they differ in nothing else.
    assert by_name["curve/Li/scratch/any/n-5/seed-1"].structures["label/4"] == few.structures["label/4"]
    assert len(learning_curve.tests_of(few)["all"]) == protocol.n_held_out
