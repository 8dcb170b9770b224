"""The command line, as a new user would try it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers import benchmarks, cli, registry, results
from helpers.benchmarks import surfaces


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    """Nothing mirrored, nothing downloaded, no network."""
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv(registry.OFFLINE_VARIABLE, "1")
    return tmp_path


def softening(*arguments):
    """Run the installed command."""
    command = [str(Path(sys.executable).parent / "softening"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})


@pytest.mark.parametrize(
    "arguments",
    [["-h"], ["models", "-h"], ["fetch", "-h"], ["run", "-h"], ["fix", "-h"], ["report", "-h"], ["bench", "-h"], ["status", "-h"]],
)
def test_every_command_explains_itself(arguments):
    outcome = CliRunner().invoke(cli.app, arguments)
    assert outcome.exit_code == 0
    assert "Usage" in outcome.output


def test_models_lists_the_catalogue(no_data):
    outcome = CliRunner().invoke(cli.app, ["models"])
    assert outcome.exit_code == 0
    lines = outcome.output.splitlines()
    assert any(line.startswith("chgnet-0.3.0") and "ready" in line for line in lines)
    assert any(line.startswith("mace-mp-0-medium") and "to be downloaded" in line for line in lines)
    assert any(line.startswith("sevennet-0") and ("make env-sevennet" in line or "ready" in line) for line in lines)


def test_fetch_offline_says_what_is_missing(no_data):
    outcome = softening("fetch", "weights")
    assert outcome.returncode == 1
    assert "2023-12-03-mace-128-L1_epoch-199.model" in outcome.stderr
    assert "https://github.com/ACEsuit" in outcome.stderr
    assert str(no_data) in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_fetch_knows_what_a_benchmark_reads_of_another_ones_files(no_data):
    """The pure metals of the alloys are listed in the registry under the surfaces."""
    outcome = softening("fetch", "solid_solutions")
    assert outcome.returncode == 1
    assert "NbMo_SS.json" in outcome.stderr
    assert "Nb_Elastic.json" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "surface", "-m", "chgnet-0.3.0"], "there are: surfaces"),
        (["run", "surfaces", "-m", "chgnet"], "Known: chgnet-0.3.0"),
        (["run", "surfaces", "-m", "chgnet-0.3.0", "--sets", "slabs"], "it has: slabs-109"),
        (["run", "surfaces", "-m", "ase:no.such.Thing"], "No module named"),
        (["run", "surfaces", "-m", "file:missing.model"], "missing.model"),
        (["run", "surfaces", "-m", "chgnet-0.3.0", "--sets", "slabs-109", "--force"], "is not on this machine"),
        (["run", "surfaces", "-m", "chgnet-0.3.0", "--sets", "tran-rebuilt"], "replace it by a smaller one"),
        (["run", "surfaces", "-m", "chgnet-0.3.0", "--scheduler", "somewhere"], "it takes local, an address"),
        (["run", "surfaces", "-m", "chgnet-0.3.0", "--scheduler", "missing.yaml"], "there is no such file"),
        (["fetch", "nothing"], "It has: "),
    ],
)
def test_mistakes_are_one_line_and_a_status(no_data, arguments, words):
    outcome = softening(*arguments)
    assert outcome.returncode == 2
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_run_and_status(tmp_path, monkeypatch):
    """A benchmark from the command line to its table."""
    for name in ("reference", "paper"):
        (tmp_path / name).symlink_to(registry.data_dir() / name)
    (tmp_path / "registry.csv").symlink_to(registry.data_dir() / "registry.csv")
    monkeypatch.setenv(registry.DATA_VARIABLE, str(tmp_path))
    whole = surfaces.cases
    monkeypatch.setattr(surfaces, "cases", lambda protocol=None, sets=None: [c for c in whole(protocol, sets) if c.material == "Cu"])
    command = ["run", "surfaces", "-m", "ase:ase.calculators.emt.EMT", "--sets", "tran-rebuilt", "--processes", "1"]
    run = CliRunner().invoke(cli.app, command)
    assert run.exit_code == 0, run.output
    assert "0 failed" in run.output
    assert "Nothing to do" not in run.output
    assert "Nothing to do: the table is complete" in CliRunner().invoke(cli.app, command).output
    assert len(results.read("surfaces", "ase:ase.calculators.emt.EMT")) > 0
    status = CliRunner().invoke(cli.app, ["status"])
    assert "ase:ase.calculators.emt.EMT" in status.output


def test_every_benchmark_keeps_the_contract():
    for name in benchmarks.CATALOGUE:
        module = benchmarks.module(name)
        for part in ("Protocol", "cases", "run", "summarise", "SETS", "LIVE", "TOLERANCES"):
            assert hasattr(module, part), f"{name} lacks {part}"
        assert module.SETS[module.LIVE] == (), "the live set must need no external file"
        for keys in module.SETS.values():
            for key in keys:
                registry.lookup(key)
