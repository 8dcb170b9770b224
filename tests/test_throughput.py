"""What structures and shards cost, and what that projects to."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from numpy.polynomial import Polynomial

from helpers import results
from helpers.speed import throughput
from helpers.speed.throughput import Costs, line

COSTS = Costs(
    n_atoms=64,
    neighbours=1e-3,
    network=0.099,
    start=5.0,
    dispatch=Polynomial([0.01, 0.0]),
    write=Polynomial([0.01, 1e-4]),
    join=Polynomial([2e-3, 0.0]),
    structures_per_shard=20,
    bytes_case=2000.0,
    bytes_on_disk=100.0,
    bytes_joined=1000.0,
)


def test_one_worker_is_limited_by_the_network():
    p = throughput.projection(COSTS, 1e4, 1)
    assert p["most"] == "workers"
    assert p["compute"] == pytest.approx(1e4 * 0.1)
    assert p["wall"] == pytest.approx(5 + 1000 + 20 * 0.1 + 500 * 2e-3)
    assert p["efficiency"] == pytest.approx(1000 / p["wall"])


def test_many_workers_are_limited_by_the_process_that_hands_out():
    p = throughput.projection(COSTS, 1e6, 1000)
    assert p["most"] == "handing out"
    assert p["client"] == pytest.approx(50_000 * (0.01 + 0.01 + 20e-4))
    assert p["most_workers"] == pytest.approx(20 * 0.1 / 0.022)
    larger = throughput.projection(COSTS, 1e6, 1000, larger=10)
    assert larger["wall"] < p["wall"]
    assert larger["most_workers"] > p["most_workers"]
    assert throughput.projection(COSTS, 1e6, 1000, evaluations=100)["most"] == "workers"


def test_the_neighbour_list_bounds_what_a_faster_device_gains():
    slow = throughput.projection(COSTS, 1e6, 1)["compute"]
    fast = throughput.projection(COSTS, 1e6, 1, factor=1e9)["compute"]
    assert slow / fast == pytest.approx(0.1 / 1e-3)


def test_more_workers_than_shards_do_not_help():
    assert throughput.projection(COSTS, 100, 5)["wall"] == pytest.approx(throughput.projection(COSTS, 100, 5000)["wall"])
    one = throughput.projection(COSTS, 7, 1)
    assert one["wall"] == pytest.approx(5 + 7 * 0.1 + 2e-3), "one shard is no tail to itself"
    assert one["memory_gb"] == pytest.approx(7e-6)


def test_a_line_through_noise_is_never_negative():
    assert line([10, 20], [1.0, 3.0]) == Polynomial([0.0, 0.2])
    assert line([10, 20], [3.0, 1.0]) == Polynomial([3.0, 0.0])
    assert line([10, 20], [2.0, 3.0]) == Polynomial([1.0, 0.1])


def test_a_small_measurement(monkeypatch):
    """In this process, for speed; processes and clusters have tests of their own."""
    monkeypatch.setattr(throughput, "time_to_start", lambda key: 1.0)
    monkeypatch.setattr(throughput, "ProcessPoolExecutor", lambda n, **_: ThreadPoolExecutor(n))
    monkeypatch.setattr(throughput.cluster, "each", lambda function, tasks, *_, **__: [function(*task) for task in tasks])
    protocol = throughput.Protocol(repeats=(1,), atoms_per_shard=(16, 160), n_shards=(2, 2), n_repetitions=1)
    table = throughput.measure("chgnet-0.3.0", protocol)
    assert (table["value"] >= 0).all()
    costs = Costs.from_table(table)
    assert costs.n_atoms == 8
    assert costs.structures_per_shard == 2
    value = table[table["set"] == "structure"].set_index("property")["value"]
    assert 0 < value["neighbours"] < value["graph"] < value["evaluation"]


def test_the_committed_table_is_complete():
    costs = Costs.from_table(results.read(throughput.NAME, "chgnet-0.3.0"))
    for field in dataclasses.fields(costs):
        value = getattr(costs, field.name)
        assert (value(costs.structures_per_shard) if isinstance(value, Polynomial) else value) > 0, field.name
    made = results.provenance(throughput.NAME, "chgnet-0.3.0")
    assert made["protocol"]["atoms_per_shard"][0] == throughput.Protocol().atoms_per_shard[0]
