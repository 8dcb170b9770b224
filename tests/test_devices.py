"""All potentials on one device: the plan, growing batches, lack of memory, going on, and a tiny measurement on the CPU."""

import dataclasses
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers import cli, potentials, results
from helpers.speed import compare, devices, roofline, routes
from helpers.speed.devices import QUICK
from helpers.speed.routes import Answer

MODEL = "chgnet-0.3.0"


@pytest.fixture
def in_threads(monkeypatch):
    """Let threads stand for processes, which take long to start. One computes at a time: what processes load apart, threads share."""
    lock = threading.Lock()

    def alone(function, *arguments):
        with lock:
            return function(*arguments)

    class Threads(ThreadPoolExecutor):
        def submit(self, function, /, *arguments):
            return super().submit(alone, function, *arguments)

    monkeypatch.setattr(compare, "ProcessPoolExecutor", lambda n, *_: Threads(n))
    # Before every measurement; neither is what is tested, and both take long.
    monkeypatch.setattr(compare, "forget_peak", lambda device: None)
    monkeypatch.setattr(compare.gc, "collect", lambda: None)


@pytest.fixture
def toys(in_threads, monkeypatch):
    """Ways that compute nothing; of ours the memory suffices for two structures. Yields what was computed."""
    computed = []

    def make(name):
        def compute(task):
            computed.append((name, task.kind, len(task.structures)))
            if name == "ours" and task.kind == "scaling" and len(task.structures) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return Answer(np.zeros(len(task.structures)), [np.zeros((len(atoms), 3)) for atoms in task.structures])

        return lambda key, cores, device: compute

    for name, route in routes.ROUTES.items():
        monkeypatch.setitem(routes.ROUTES, name, dataclasses.replace(route, make=make(name)))
    zero = lambda key, task: (make("exact")("", 1, "cpu")(task),) * 2  # noqa: E731
    monkeypatch.setattr(compare, "in_double_precision", zero)
    monkeypatch.setattr(roofline, "measure", lambda *_: [("compute_time", 1.0, "s")])
    return computed


LONGER = dataclasses.replace(QUICK, most_atoms=64)


def test_lack_of_memory_is_a_row_and_ends_the_growth_of_that_way(toys, tmp_path):
    name, keys, in_time = devices.record("cpu", [MODEL], tmp_path, LONGER)
    assert in_time
    assert keys == [MODEL]
    table = compare.read(keys, tmp_path, name)
    results.check(table, ("route", "round"))
    failed = table[table["status"] == "failed"]
    assert failed[["route", "set", "n_structures"]].to_numpy().tolist() == [["ours", "scaling", 4]]
    assert failed["reason"].item() == "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"
    assert ("ours", "scaling", 8) not in toys
    assert {("ase", "scaling", 8), ("ours", "training", 8), ("ours-ase", "dynamics", 8)} <= set(toys)
    assert not {"ase-threads", "ours-processes", "matcalc"} & {name for name, *_ in toys}
    shown = devices.fastest(compare.summarise(table)).set_index("kind")
    assert shown.loc["scaling", "n"] <= 2
    assert shown.loc["scaling", "failed"].startswith("ours, 4: out of memory")


def test_the_same_command_goes_on_where_it_stopped(toys, tmp_path, monkeypatch):
    devices.record("cpu", [MODEL], tmp_path, LONGER, routes=["ours"])
    before, first = compare.read([MODEL], tmp_path, devices.name_of("cpu")), list(toys)
    toys.clear()
    devices.record("cpu", [MODEL], tmp_path, LONGER, routes=["ours"])
    assert not toys, "what is there is not measured again"
    devices.record("cpu", [MODEL], tmp_path, LONGER)
    assert {name for name, *_ in toys if name != "exact"} == {"ase", "ours-ase", "chgnet-batch"}
    after = compare.read([MODEL], tmp_path, devices.name_of("cpu"))
    assert after.head(len(before)).equals(before)
    made = results.provenance(devices.name_of("cpu"), MODEL, tmp_path)
    assert made["rows"] == len(after)
    assert {"device", "date", "packages", "versions"} <= set(made)
    toys.clear()
    monkeypatch.setattr(compare.worker, "versions", lambda: {"helpers": "other code"})
    devices.record("cpu", [MODEL], tmp_path, LONGER, routes=["ours"])
    assert toys == first, "other code is measured anew"


def test_it_stops_when_its_time_is_up(toys, tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(compare.time, "time", lambda: now + 20.0 * len(toys))
    _, keys, in_time = devices.record("cpu", [MODEL], tmp_path, LONGER, minutes=1.0)
    assert keys
    assert not in_time
    assert ("ours", "statics", 2) in toys
    assert len(toys) < 8


def test_a_slow_way_grows_no_further(toys, tmp_path):
    devices.record("cpu", [MODEL], tmp_path, dataclasses.replace(LONGER, longest_s=0.0))
    assert max(n for _, kind, n in toys if kind != "statics") == 1


def test_one_of_each_architecture_comes_first(monkeypatch, tmp_path):
    order = []
    monkeypatch.setattr(compare, "record", lambda key, *_, jobs, **__: order.append((key, len(jobs) == 1)))
    keys = [MODEL, "chgnet-0.2.0", "nequix-mp-1", "nequix-oam-1"]
    devices.record("cpu", keys, tmp_path, QUICK)
    assert order[:4] == [(key, True) for key in keys], "all of them beside the CPU first"
    assert [key for key, _ in order[4:]] == [MODEL, "nequix-mp-1", "chgnet-0.2.0", "nequix-oam-1"]


def test_a_mace_stands_in(monkeypatch):
    monkeypatch.setattr(potentials, "runnable", lambda key: not key.startswith("mace"))
    assert devices.models()[-1] == compare.RANDOM_MACE
    monkeypatch.setattr(potentials, "runnable", lambda key: True)
    assert compare.RANDOM_MACE not in devices.models()


def test_small_crystals_are_in_their_cells():
    made = devices.crystals(20)
    assert len({atoms.get_chemical_formula() for atoms in made}) == 20
    assert max(map(len, made)) <= 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:7"], "cuda:7"),
        (["--device", "cpu", "-m", "chgnt-0.3.0"], r"Did you mean chgnet-0.3.0\?"),
        (["--device", "cpu", "-m", MODEL, "-r", "as"], r"no way called as"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(options, message):
    outcome = CliRunner().invoke(cli.app, ["bench", *options])
    assert isinstance(outcome.exception, cli.expected_errors())
    assert re.search(message, str(outcome.exception))
    assert "\n" not in str(outcome.exception)


def test_a_tiny_measurement_on_the_cpu(in_threads, tmp_path):
    name, keys, in_time = devices.record("cpu", [MODEL], tmp_path, QUICK, routes=["ase", "ours-ase"])
    assert in_time
    assert devices.names(tmp_path) == [name]
    table = compare.read(keys, tmp_path, name)
    assert not table.loc[table["status"] != "ok", ["case", "route", "reason"]].to_numpy().tolist()
    summary = compare.summarise(table)
    assert set(summary["kind"]) == {"statics", "scaling", "dynamics", "relaxation", "training"}
    assert (summary.loc[summary["kind"] == "statics", "agreement"] != "no").all()
    agreement, speed, bound = devices.told(table).values()
    assert agreement["agrees"].item() != "no"
    assert len(speed) == 4
    assert "times as fast as ASE loop" in speed
    assert np.isclose(compare.limits(table)[list(compare.PARTS)].sum(axis=1), 1.0).all()
    assert "of matrix products" in bound


def test_the_command_prints_what_it_wrote_and_whether_it_is_done(toys, tmp_path):
    command = ["bench", "--device", "cpu", "--quick", "-m", MODEL, "-o", str(tmp_path)]
    outcome = CliRunner().invoke(cli.app, command)
    assert outcome.exit_code == 0, outcome.output
    assert "times as fast as ASE loop" in outcome.output
    assert "goes on" not in outcome.output
    (table,) = tmp_path.glob("results/speed-*/*.parquet")
    table.unlink()
    outcome = CliRunner().invoke(cli.app, [*command, "--minutes", "1e-9"])
    assert outcome.exit_code == 2, "less than a measurement is no time"
