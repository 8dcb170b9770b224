"""The contract of the benchmarks: what each declares of itself, what its tables keep to, and that an added one is found everywhere."""

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from conftest import EMT_KEY
from typer.testing import CliRunner

from helpers import benchmarks, cli, explanations, potentials, registry, results, runner
from helpers.benchmarks import CATALOGUE, EXPERIMENTS, Family
from helpers.potentials.ase import ASEPotential

FAMILIES = benchmarks.families("", "control", "card", "stand-in")
OF_THE_PAPER = [name for name in CATALOGUE if name not in EXPERIMENTS]


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_benchmark_has_the_names_of_all(name):
    module = benchmarks.module(name)
    for part in ("Protocol", "cases", "run", "summarise", "SETS", "LIVE", "TOLERANCES", "KEYS"):
        assert hasattr(module, part), part
    assert module.SETS[module.LIVE] == (), "the live set must need no external file"
    for key in {key for keys in module.SETS.values() for key in keys}:
        registry.lookup(key)
    assert hasattr(module, "MODELS") == (name in EXPERIMENTS)
    assert all(set(sets) <= set(module.SETS) for sets in getattr(module, "MODELS", {}).values())
    with pytest.raises(KeyError, match="there are: "):
        module.cases(sets=["nosuch"])


class Flat(Calculator):
    """A potential that no displacement and no strain costs anything: the softest there is."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": -4.0 * len(atoms), "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_the_softest_potential_gives_a_table(name):
    """What it has no number for (the mean of no real frequency, a modulus) is a failed row, not the end of the run."""
    module = benchmarks.module(name)
    flat = ASEPotential("ase:flat", Flat())
    made = module.run(flat, module.cases(module.Protocol(), [module.LIVE]), module.Protocol())
    results.check(made, module.KEYS)
    assert len(made)


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_a_family_of_the_paper_says_how_it_is_read_and_sampled(name):
    module = benchmarks.module(name)
    against_dft = [family for family in module.FAMILIES if family.role in ("", "card")]
    assert against_dft or not module.FAMILIES
    assert {family.benchmark for family in module.FAMILIES} <= {name}
    assert set(module.QUICK) <= set(module.SETS)
    # A card says something of every sampled benchmark, also where no file is.
    free = any(not module.SETS[chosen] for chosen in module.QUICK)
    assert bool(module.QUICK) == (free or hasattr(module, "STAND_IN"))
    assert hasattr(module, "STAND_IN") == any(family.role == "stand-in" for family in module.FAMILIES)


def test_the_catalogue_has_every_module():
    rooms = {"benchmarks": OF_THE_PAPER, "experiments": EXPERIMENTS}
    for room, listed in rooms.items():
        assert {path.stem for path in (Path(cli.__file__).parent / room).glob("[!_]*.py")} == set(listed)


def test_families_have_one_key_each_and_come_in_the_order_of_the_book():
    declared = [family.key for name in OF_THE_PAPER for family in benchmarks.module(name).FAMILIES]
    assert len(declared) == len(FAMILIES)
    shown = [(family.quantity, family.order, family.kind, family.power) for family in explanations.FAMILIES.values()]
    assert list(dict.fromkeys(shown)) == [
        ("force", 1, "force", 1),
        ("energy", 0, "scalar", 1),
        ("barrier", 0, "scalar", 1),
        ("stress", 1, "force", 1),
        ("frequency", 2, "scalar", 0.5),
        ("curvature", 2, "scalar", 1),
    ]


@pytest.mark.parametrize("name", CATALOGUE)
def test_committed_tables_are_tidy_and_of_the_runs_of_the_book(name):
    """``KEYS`` tell the rows apart, and no table is left that nothing makes again."""
    known = {(benchmark, model): sets for benchmark, model, sets in benchmarks.runs(potentials.CATALOGUE)}
    module, models = benchmarks.module(name), results.models(name)
    assert models
    for model in models:
        table = results.read(name, model)
        results.check(table, module.KEYS)
        assert set(table.loc[table["set"] == module.LIVE, "property"]) <= set(module.TOLERANCES), model
        sets = known[name, model]
        assert sets is None or set(results.provenance(name, model)["cases"]) == set(sets), model
        for chosen, said in table.groupby("set")["functional"].first().items() if "functional" in table else ():
            marked = {"PBE": "", "GGA": "GGA without +U"}.get(said, said)
            assert benchmarks.functional(f"{name}/{chosen}") == marked, "pages mark what rows say"
    assert set(getattr(module, "FUNCTIONALS", {})) <= set(module.SETS)
    if name in EXPERIMENTS:
        assert set(models) == set(module.MODELS)


committed = functools.lru_cache(maxsize=6)(results.read)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_reads_the_committed_tables(family):
    sets = set(benchmarks.module(family.benchmark).SETS)
    for model in results.models(family.benchmark):
        table = committed(family.benchmark, model)
        if family.read(table).empty:  # a share of the sets, of a model that costs more
            assert set(results.provenance(family.benchmark, model)["cases"]) < sets
            assert potentials.CATALOGUE[model].guest
            continue
        assert family.read(table)["unit"].nunique() == 1, "slopes are of one quantity"
        rows = explanations.rows(family, table)
        assert not rows.duplicated(explanations.places(rows)).any()
        if family.role != "stand-in":
            assert len(rows) >= 2
            assert rows["static"].notna().any() == bool(family.geometry)
            assert rows["functional_ratio"].notna().any() == bool(family.functional)
            assert not family.selection or (~rows["kept"]).any()


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_failed_case_is_a_failed_row(name, monkeypatch):
    """By itself in a family of the paper; where something is trained, through the runner."""

    class Broken(EMT):
        def calculate(self, *args, **kwargs):
            raise RuntimeError("licence expired")

    module, potential = benchmarks.module(name), ASEPotential("ase:Broken", Broken())
    case = module.cases(sets=[module.LIVE])[0]
    limits = runner.Limits(keep_going=name in EXPERIMENTS)
    table = runner.compute_shard(name, potential, [case], module.Protocol(), limits)
    results.check(table, module.KEYS)
    assert set(table["case"]) == {case.name}
    assert set(table["status"]) == {"failed"}
    assert name in EXPERIMENTS or table["reason"].str.contains("licence expired").all()


@pytest.fixture(params=CATALOGUE)
def recorded(request):
    """Every benchmark, with a model that has a table of it in which the live set occurs."""
    module = benchmarks.module(request.param)
    for key in results.models(request.param):
        table = results.read(request.param, key)
        if not (table := table[table["set"] == module.LIVE]).empty:
            return request.param, module, key, table
    pytest.fail("no table has the live set")


def test_a_live_check_of_an_unknown_set_is_refused(recorded, monkeypatch):
    benchmark, module, key, _ = recorded
    monkeypatch.setattr(potentials, "load", lambda *_: pytest.fail("loaded"))
    for sets in (["nosuch"], [module.LIVE, "nosuch"], "nosuch", []):
        with pytest.raises(KeyError, match="there are: "):
            runner.live_check(benchmark, key, sets=sets)


def test_a_live_check_that_compares_nothing_fails(recorded, monkeypatch):
    """No cases, no rows, or rows without a value that the table has, or that both lack."""
    benchmark, module, key, table = recorded
    monkeypatch.setattr(potentials, "load", lambda *_: None)
    failed = table.assign(value=float("nan"), status="failed")
    for rows in (table[:0], failed, table.assign(value=float("nan"))):
        monkeypatch.setattr(module, "run", lambda *_, rows=rows: rows)
        with pytest.raises(runner.LiveCheckError):
            runner.live_check(benchmark, key)
    monkeypatch.setattr(results, "read", lambda *_: failed)
    monkeypatch.setattr(module, "run", lambda *_: failed)
    with pytest.raises(runner.LiveCheckError, match=r"nothing of .* was compared .* none with two values"):
        runner.live_check(benchmark, key)
    monkeypatch.setattr(module, "cases", lambda *_: [])
    with pytest.raises(runner.LiveCheckError, match="has no cases"):
        runner.live_check(benchmark, key)


def test_a_sample_is_never_empty_and_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path))
    for name in CATALOGUE:
        sets = {case.set for case in benchmarks.sample(name)}
        assert sets, name
        assert all(benchmarks.module(name).SETS[chosen] == () for chosen in sets), name


def test_all_runs_are_run(monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "run", lambda name, key, device, sets, processes: asked.append((name, key, sets)))
    outcome = CliRunner().invoke(cli.app, ["run-all", "-m", "mine", "-m", "yours"])
    assert outcome.exit_code == 0, outcome.output
    assert {name for name, *_ in asked} == set(CATALOGUE)
    assert [line for line in asked if line[0] == "surfaces"] == [("surfaces", "mine", None), ("surfaces", "yours", None)]
    assert ("students", EMT_KEY, "copper,small") in asked
    asked.clear()
    CliRunner().invoke(cli.app, ["run-all"])
    assert {key for name, key, _ in asked if name == "phonons"} == set(filter(potentials.runnable, potentials.CATALOGUE))


def test_a_family_that_is_no_quantity_is_refused():
    with pytest.raises(ValueError, match="no quantity 'colour'"):
        Family("colours", "colours", "surfaces", "colour", lambda table: table)


# ---------------------------------------------------------------------------------------------------
# Additions

SPRINGS = """
from dataclasses import dataclass

from ase.build import bulk

from helpers.benchmarks import Case, Family, Sample, of, row, table

SETS = {"metals": ()}
LIVE = "metals"
KEYS = ()
QUICK = {"metals": Sample(2)}
TOLERANCES = {"energy": 1e-3}
FAMILIES = (Family("springs", "energies of shifts", "springs", "energy", of("metals", "energy")),)


@dataclass(frozen=True)
class Protocol:
    shift_a: float = 0.2


def cases(protocol=None, sets=None):
    found = [Case(metal, "metals", metal, {"cell": bulk(metal, cubic=True)}, {"energy": 0.25}) for metal in ("Cu", "Al", "Ni")]
    for case in found:
        case.structures["cell"].positions[0, 0] += (protocol or Protocol()).shift_a
    return found


def run(potential, cases, protocol=None, progress=False):
    answers = potential.evaluate([case.structures["cell"] for case in cases])
    return table(
        row(potential.key, case, "energy", answer.energy, case.reference["energy"], "eV", error=answer.error)
        for case, answer in zip(cases, answers, strict=True)
    )


def summarise(table):
    return table.groupby("model")["value"].mean().reset_index()
"""

AGAIN = """
from ase.calculators.emt import EMT

from helpers.potentials.ase import ASEPotential


def load(key, device, dtype):
    return ASEPotential(key, EMT())
"""

ASK = """
import sys

from helpers import benchmarks, potentials

benchmarks.__path__.append(sys.argv[1])
benchmarks.CATALOGUE = (*benchmarks.CATALOGUE, "springs")
potentials.__path__.append(sys.argv[1])
entry = potentials.Entry("springy-emt", "EMT once more", "again", "#123456", "X", "again", "metals", package="ase")
potentials.CATALOGUE[entry.key] = entry

from typer.testing import CliRunner

from helpers import cli, explanations, figures, results
from helpers.reports import report_card

for command in (["models"], ["run", "springs", "-m", "springy-emt", "--processes", "1"], ["status"]):
    outcome = CliRunner().invoke(cli.app, command)
    assert outcome.exit_code == 0, outcome.output
    assert "springy-emt" in outcome.output, command
assert len(results.read("springs", "springy-emt")) == 3
assert "springs" in report_card.BENCHMARKS
assert set(report_card.QUICK["springs"]) == {"metals"}
assert len(benchmarks.sample("springs")) == 2
(found,) = explanations.read({"springs": explanations.FAMILIES["springs"]}).values()
assert len(found) == 3
assert ("springs", "springy-emt", None) in set(benchmarks.runs(["springy-emt"]))
assert (figures.label(entry.key), figures.colour(entry.key), figures.marker(entry.key)) == (entry.label, entry.colour, entry.marker)
"""


@pytest.mark.slow
def test_an_added_benchmark_and_an_added_potential_are_found_everywhere(tmp_path, data):
    """By the commands, the report card, the explanations and the figures; nothing else has to be changed."""
    for name, text in (("springs", SPRINGS), ("again", AGAIN), ("ask", ASK)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    command = [sys.executable, str(tmp_path / "ask.py"), str(tmp_path)]
    outcome = subprocess.run(command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
