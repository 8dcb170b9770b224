"""The comparison of speeds: what is computed, how it is compared, what the table says. No test measures time."""

import dataclasses
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from ase.build import bulk
from conftest import needs_mirror
from typer.testing import CliRunner

from helpers import benchmarks, cli, potentials, results
from helpers.benchmarks import Case
from helpers.speed import compare, roofline, routes
from helpers.speed.routes import ROUTES, Task

MODEL = "chgnet-0.3.0"


@pytest.fixture(scope="module")
def frames():
    """Two distorted crystals of different size."""
    rng = np.random.default_rng(1)
    made = [bulk("MgO", "rocksalt", a=4.2, cubic=True), bulk("NaCl", "rocksalt", a=5.6)]
    for atoms in made:
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return tuple(made)


def assert_same(answer, exact, sizes):
    """Single precision against double: a hundred times closer than any error of a model."""
    if answer.energies is not None:
        assert np.abs((answer.energies - exact.energies) / sizes).max() < 1e-5
    for one, other in zip(answer.forces, exact.forces, strict=True):
        assert np.abs(one - other).max() < 1e-4


@pytest.mark.parametrize("name", ["ours", "ours-stress", "ase", "chgnet-batch"])
def test_ways_agree_on_chgnet(name, frames):
    task = Task("statics", "two", frames)
    assert_same(ROUTES[name].make(MODEL, 1, "cpu")(task), routes.in_double_precision(MODEL, task)[1], [8, 2])


@pytest.mark.slow
@pytest.mark.skipif(not potentials.runnable("m3gnet-mp-2021.2.8"), reason="needs the weights of M3GNet")
@pytest.mark.parametrize("name", ["ase", "ase-no-stress"])
def test_matgl_agrees_in_its_own_convention(name, frames):
    key = "m3gnet-mp-2021.2.8"
    task = Task("statics", "two", frames)
    as_used, in_matgl = routes.in_double_precision(key, task)
    assert_same(ROUTES[name].make(key, 1, "cpu")(task), in_matgl, [8, 2])
    assert_same(ROUTES["ours"].make(key, 1, "cpu")(task), as_used, [8, 2])
    assert abs(as_used.energies[0] - in_matgl.energies[0]) > 1, "what is timed has the convention that the weights were trained in"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "ase", "torch-sim"])
def test_ways_agree_on_mace(name, mace_file):
    rng = np.random.default_rng(1)
    atoms = bulk("FeO", "rocksalt", a=4.3, cubic=True)
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    key = f"file:{mace_file}"
    task = Task("statics", "one", (atoms, atoms[:8]))
    assert_same(ROUTES[name].make(key, 1, "cpu")(task), routes.in_double_precision(key, task)[1], [8, 8])


@pytest.mark.slow
def test_the_random_mace_is_a_potential_for_all_elements(tmp_path):
    compare.random_mace(tmp_path / "random.model", channels=4)
    potential = potentials.load(f"file:{tmp_path / 'random.model'}", "cpu", trust=True)
    assert len(potential.elements) == 89
    assert potential.evaluate([bulk("MgO", "rocksalt", a=4.2)])[0].ok


@pytest.mark.parametrize("name", ["ours", "ase"])
def test_relaxations_take_the_steps_they_are_told(name, frames, monkeypatch):
    """One gradient for the start and one for each step, whoever steps."""
    counted = []
    network = type(potentials.load(MODEL, "cpu").network)
    if name == "ours":
        original = potentials.base.GraphPotential.compute
        monkeypatch.setattr(potentials.base.GraphPotential, "compute", lambda *a, **k: counted.append(1) or original(*a, **k))
    else:
        original = network.predict_graph
        monkeypatch.setattr(network, "predict_graph", lambda *a, **k: counted.append(1) or original(*a, **k))
    ROUTES[name].make(MODEL, 1, "cpu")(Task("relaxation", "one", frames[:1], steps=3))
    assert len(counted) == 4


def test_a_calculator_computes_anew_what_it_computed_last(frames, monkeypatch):
    """ASE's calculators remember; a time of nothing would be the result."""
    network = type(potentials.load(MODEL, "cpu").network)
    counted, original = [], network.predict_graph
    monkeypatch.setattr(network, "predict_graph", lambda *a, **k: counted.append(1) or original(*a, **k))
    compute = ROUTES["ase"].make(MODEL, 1, "cpu")
    for _ in range(2):
        compute(Task("scaling", "one", frames[:1]))
    assert len(counted) == 2


@pytest.mark.slow
@needs_mirror
def test_tasks_are_the_same_every_time():
    protocol = compare.Protocol(materials=2, frames=2, relaxed=1)
    first, again = compare.tasks(protocol), compare.tasks(protocol)
    assert [job.kind for job in first[:3]] == ["statics", "relaxation", "displacements"]
    assert first[-1].kind == "roofline"
    assert len(first[0].structures) == len(first[0].groups) == 4
    for job, other in zip(first, again, strict=True):
        for one, two in zip(job.structures, other.structures, strict=True):
            assert np.array_equal(one.positions, two.positions)
    supercells = first[2].structures
    assert len(supercells) > 1
    assert len({len(atoms) for atoms in supercells}) == 1


def measured(kind, route, name, value, unit="", turn=-1, error=None):
    case = Case(f"{kind}/some", kind, "some", {})
    return benchmarks.row("m", case, name, value, np.nan, unit, error=error, route=route, round=turn)


def made_table():
    """A table as a measurement would give: ours, one way twice as slow, one that disagrees and one that is not installed."""
    rows = []
    for turn, slow in enumerate((1.0, 3.0)):
        for route, seconds in (("ours", 1.0), ("ours-processes", 0.5), ("ase", 2.0), ("ase-threads", 1.5), ("chgnet-batch", 4.0)):
            for name in ("wall_time", "processor_time"):
                rows.append(measured("statics", route, name, seconds * slow, "s", turn))
    for route in ("ours", "ours-processes", "ase", "ase-threads", "chgnet-batch"):
        wrong = 1e-3 if route == "chgnet-batch" else 1e-7
        rows += [measured("statics", route, "peak_memory", 100.0, "MB")]
        rows += [measured("statics", route, name, wrong, "") for name in ("energy_difference", "force_difference")]
        rows += [measured("statics", route, "relative_force_difference", wrong, "")]
    rows.append(measured("statics", "matcalc", "wall_time", np.nan, "s", error="ModuleNotFoundError: No module named 'matcalc'"))
    rows = [row | {"n_structures": 10, "n_atoms": 80, "steps": 0} for row in rows]
    values = {
        "flop": 4e9,
        "throughput_layer": 1e11,
        "bytes_others": 1e9,
        "bandwidth_cache": 5e10,
        "bandwidth_memory": 1.25e10,
        "compute_time": 0.09,
        "compiled_time": 0.06,
        "evaluation_time": 0.1,
    }
    rows += [measured("roofline", "ours", name, value, "") for name, value in values.items()]
    return benchmarks.table(rows)


def test_ratios_are_taken_within_a_round():
    summary = compare.summarise(made_table()).set_index("route")
    assert summary.loc["ase", ["ratio", "ratio_low", "ratio_high"]].tolist() == [2, 2, 2], "what slows a round slows both"
    assert summary.loc["ase", "ratio_all"] == 4
    assert summary.loc["ours", "structures_per_s"] == pytest.approx(10 / 2)
    assert summary.loc["ours", "atoms_per_s"] == pytest.approx(80 / 2)
    assert summary.loc["ase", "agreement"] == "to 1e-5"
    assert summary.loc["chgnet-batch", "agreement"] == "no"
    assert summary.loc["matcalc", "status"] == "failed"
    bar = compare.bars(compare.summarise(made_table()), "m")
    assert bar.loc["ase", ["route", "ratio"]].tolist() == ["ase-threads", 3], "against the best that the other can do"
    assert "matcalc" not in bar.index


def test_rounding_is_told_from_disagreement():
    assert compare.agreement(9e-6, 1e-7) == "to 1e-5"
    assert compare.agreement(4e-5, 2e-5) == "to rounding"
    assert compare.agreement(4e-5, 1e-5) == "no"


def test_the_limit_is_products_and_traffic_one_after_the_other():
    limit = compare.limits(made_table()).loc["m"]
    assert limit["limit_s"] == pytest.approx(0.04 + 0.02)
    assert limit["ratio"] == pytest.approx(1.5)
    assert limit["ratio_compiled"] == pytest.approx(1.0)
    assert limit["memory_limit_s"] == pytest.approx(0.04 + 0.08)
    assert limit["memory_ratio"] == pytest.approx(0.75)


def test_the_table_says_what_did_not_run_and_what_disagrees():
    shown = compare.readable(compare.summarise(made_table()), "statics")
    assert shown["agrees"]["CHGNet's own batches"] == "no"
    assert shown["agrees"]["ASE loop"] == "to 1e-5"
    assert shown["time, ours = 1"]["ASE loop"] == "2.00 (2.00–2.00)"
    assert shown["agrees"]["matcalc SofteningBenchmark"].startswith("not run: ModuleNotFoundError")


def test_operations_are_counted():
    """A potential that is one matrix product, forward and backward."""
    potential = potentials.load(MODEL, "cpu")
    small, large = roofline.crystal(), roofline.crystal() * (2, 1, 1)
    one, two = roofline.count(potential, [small]), roofline.count(potential, [large])
    assert two.flop == pytest.approx(2 * one.flop, rel=0.02), "twice the crystal, twice the products"
    assert two.bytes_others == pytest.approx(2 * one.bytes_others, rel=0.1)
    assert two.operations == pytest.approx(one.operations, abs=20)
    left, right = torch.rand(10, 20), torch.rand(20, 30)
    with roofline.Traffic() as traffic:
        _ = (left @ right).relu().view(-1)
    assert traffic.bytes_products == 4 * (200 + 600 + 300)
    assert traffic.bytes_others == 4 * (300 + 300)


@pytest.mark.slow
@needs_mirror
def test_a_small_measurement_in_processes_of_their_own():
    protocol = dataclasses.replace(compare.QUICK, materials=1, frames=1, relaxed=1, steps=1, supercell=1, scaling=(), rounds=1)
    table = benchmarks.table(row for rows in compare.measure(MODEL, protocol, routes=["ase"]) for row in rows)
    summary = compare.summarise(table).set_index(["kind", "route"])
    assert set(summary.index.get_level_values("route")) == {"ours", "ase"}
    assert (summary["status"] == "ok").all()
    assert (summary["agreement"] != "no").loc["statics"].all()
    assert (summary["memory_mb"] > 50).all()
    assert (table["value"].dropna() >= 0).all()
    assert compare.limits(table).loc[MODEL, "flop"] > 1e8


def test_a_model_or_way_that_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="cannot be measured"):
        list(compare.measure("ase:a.b"))
    with pytest.raises(ValueError, match="no way called nonsense"):
        list(compare.measure(MODEL, routes=["nonsense"]))
    outcome = CliRunner().invoke(cli.app, ["bench", "--model", "ase:a.b"])
    assert isinstance(outcome.exception, ValueError)


@pytest.mark.slow
def test_a_way_whose_process_dies_is_a_reason_and_begins_anew(frames):
    way = compare.Way(MODEL, "ours", [Task("statics", "one", frames[1:])], 1)
    try:
        assert way.failure() is None
        os.kill(way.pid.result(), signal.SIGKILL)
        assert way.compute(0) == "its process died"
        assert len(way.compute(0)[0].energies) == 1
    finally:
        way.close()


def test_the_committed_tables_are_complete():
    keys = results.models(compare.NAME)
    assert {"chgnet-0.3.0", "m3gnet-mp-2021.2.8"} <= set(keys)
    summary = compare.summarise(compare.read(keys))
    for key in keys:
        made = results.provenance(compare.NAME, key)
        assert made["cores"] >= 1
        assert made["load_average"]["before"] >= 0
        part = summary[summary["model"] == key]
        family = potentials.CATALOGUE[key].family if key in potentials.CATALOGUE else "mace"
        expected = {name for name, route in ROUTES.items() if family in route.families and "statics" in route.kinds}
        assert set(part.loc[part["kind"] == "statics", "route"]) <= expected
        assert {"ours", "ours-processes", "ase"} <= set(part.loc[part["status"] == "ok", "route"])
    assert isinstance(summary, pd.DataFrame)


def test_speed_is_remembered_by_day_and_device(tmp_path, monkeypatch):
    """One line for a model, a day and a device; the committed lines repeat what the tables say."""
    key, days = "chgnet-0.3.0", iter(["2026-01-01", "2026-01-02", "2026-01-02"])
    made = results.provenance(compare.NAME, key)
    table = results.table_path(compare.NAME, key)
    (tmp_path / "results" / compare.NAME).mkdir(parents=True)
    shutil.copy(table, results.table_path(compare.NAME, key, tmp_path))
    monkeypatch.setattr(results, "provenance", lambda *_: made | {"date": next(days)})
    for n in (1, 2, 2):
        assert len(compare.remember([key], tmp_path)) == n
    history = pd.read_csv(tmp_path / "results" / compare.NAME / compare.HISTORY)
    rows = compare.read([key]).query("set == 'statics' and property == 'wall_time' and status == 'ok'")
    wall = rows.pivot_table(index="round", columns="route", values="value")
    assert history["atoms_per_s"].tolist() == [round(rows["n_atoms"].iloc[0] / wall["ours"].median(), 1)] * 2
    singles = [name for name in wall if not name.startswith("ours") and ROUTES[name].threads == 1]
    assert history["ratio"].iloc[0] == round(min((wall[name] / wall["ours"]).median() for name in singles), 2)
    committed = pd.read_csv(results.results_dir() / compare.NAME / compare.HISTORY)
    newest = committed[(committed["model"] == key) & (committed["date"] == made["date"])]
    assert newest["atoms_per_s"].item() == history["atoms_per_s"].iloc[0]
