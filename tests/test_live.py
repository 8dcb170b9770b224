"""The committed tables against the code, for every model that can be run here."""

import functools
import itertools
from functools import partial

import pytest
from conftest import RUNNABLE, needs_mirror

from helpers import benchmarks, potentials, results, runner
from helpers.benchmarks import off_equilibrium, phonons, surfaces

HERE = potentials.at_home(key for key in RUNNABLE if key in potentials.CATALOGUE)
FAMILIES = ("surfaces", "defects", "solid_solutions", "off_equilibrium")


@pytest.mark.slow
@pytest.mark.parametrize("key", HERE)
@pytest.mark.parametrize("benchmark", FAMILIES)
def test_the_live_set_gives_the_committed_numbers(benchmark, key):
    """What the book recomputes for one model, here for all: structures the project builds itself."""
    checked = runner.live_check(benchmark, key, limit=2)
    assert len(checked) >= 4


CURVATURE = [
    (benchmark, key)
    for benchmark in ("phonons", "elasticity", "strained_cells", "migration")
    for key in results.models(benchmark)
    if key in RUNNABLE and key in potentials.CATALOGUE and benchmarks.module(benchmark).LIVE in results.provenance(benchmark, key)["cases"]
]


@pytest.mark.slow
@pytest.mark.parametrize(("benchmark", "key"), CURVATURE)
def test_curvatures_and_barriers_give_the_committed_numbers(benchmark, key):
    """One case of the live set of each model with a table; the book recomputes the whole set with one model."""
    checked = runner.live_check(benchmark, key, limit=1)
    assert checked["value"].notna().all()


@pytest.mark.slow
@needs_mirror
@pytest.mark.parametrize("key", HERE)
def test_dft_frames_give_the_committed_numbers(key):
    assert len(runner.live_check("off_equilibrium", key, sets=["wbm-21", "mattersim-tp"], limit=5)) > 100
    assert len(runner.live_check("surfaces", key, sets=["slabs-109"], protocol=surfaces.Protocol(relax=False), limit=8)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["fine_tuning", "mending"])
def test_the_training_loop_gives_the_committed_numbers(benchmark):
    checked = runner.live_check(benchmark, "chgnet-0.3.0")
    forces = checked[checked["property"] == "force"]
    error = (forces["value"] - forces["reference"]).abs().groupby(forces["stage"]).mean()
    assert error["after"] < 0.7 * error["before"]


# Experiments take their frames from these: of each set the files are read once.
READERS = {module: module.cases for module in (off_equilibrium, phonons)}


@functools.cache
def read_once(module, name):
    return READERS[module](sets=[name])


@pytest.mark.slow
@needs_mirror
@pytest.mark.parametrize("benchmark", [name for name in benchmarks.CATALOGUE if results.models(name)])
def test_a_run_would_find_the_committed_tables_complete(benchmark, load_model, monkeypatch):
    """Potential, protocol and cases have the fingerprint that the table has; else the same command would compute it again."""
    for source in READERS:
        known = partial(lambda source, protocol=None, sets=(): [case for name in sets for case in read_once(source, name)], source)
        monkeypatch.setattr(source, "cases", known)
    module, cases = benchmarks.module(benchmark), {}
    for key in results.models(benchmark):
        if key in potentials.CATALOGUE and key not in RUNNABLE:
            continue
        made = results.provenance(benchmark, key)
        sets = tuple(name for name in module.SETS if name in made["cases"])
        if sets not in cases:
            cases[sets] = module.cases(module.Protocol(), list(sets))
        assert runner.fingerprint(benchmark, load_model(key), module.Protocol(), cases[sets]) == made["fingerprint"], key


def test_every_model_that_runs_here_has_its_tables():
    for benchmark in FAMILIES:
        assert set(HERE) <= set(results.models(benchmark))


# Models of other environments, which are not recomputed here: their tables may lack sets, but not the one that chapters quote.
HEADLINE = {"surfaces": "slabs-109", "off_equilibrium": "mattersim-tp", "defects": "vacancies", "solid_solutions": "ca-mg-o"}


def elsewhere(key):
    return key in potentials.CATALOGUE and potentials.CATALOGUE[key].environment is not None


def test_models_of_other_environments_have_the_sets_that_chapters_quote():
    for benchmark, headline in HEADLINE.items():
        for key in filter(elsewhere, results.models(benchmark)):
            assert headline in results.provenance(benchmark, key)["cases"], (benchmark, key)


def test_tables_hold_every_set_they_should():
    for key in itertools.filterfalse(elsewhere, results.models("off_equilibrium")):
        made = results.provenance("off_equilibrium", key)["cases"]
        assert set(made) >= set(off_equilibrium.SETS) - {"wbm-full"}, key
    for benchmark in ("surfaces", "defects", "solid_solutions", "mending"):
        for key in itertools.filterfalse(elsewhere, results.models(benchmark)):
            assert set(results.provenance(benchmark, key)["cases"]) == set(benchmarks.module(benchmark).SETS), (benchmark, key)
