"""The command line, as a new user would try it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import EMT_KEY as EMT
from typer.testing import CliRunner

from helpers import benchmarks, cli, registry, results, runner
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


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Tables are as wide as they like: what runs the tests may claim a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-h"],
        ["models", "-h"],
        ["fetch", "-h"],
        ["run", "-h"],
        ["run-all", "-h"],
        ["fix", "-h"],
        ["report", "-h"],
        ["bench", "-h"],
        ["status", "-h"],
    ],
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


@pytest.mark.slow
def test_fetch_offline_says_what_is_missing(no_data):
    outcome = softening("fetch", "weights")
    assert outcome.returncode == 1
    assert "2023-12-03-mace-128-L1_epoch-199.model" in outcome.stderr
    assert "https://github.com/ACEsuit" in outcome.stderr
    assert str(no_data) in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.slow
def test_fetch_knows_what_a_benchmark_reads_of_another_ones_files(no_data):
    """The pure metals of the alloys are listed in the registry under the surfaces."""
    outcome = softening("fetch", "solid_solutions")
    assert outcome.returncode == 1
    assert "NbMo_SS.json" in outcome.stderr
    assert "Nb_Elastic.json" in outcome.stderr


RUN = ["run", "surfaces", "-m", "chgnet-0.3.0"]
MISTAKES = [
    (["run", "surface", "-m", "chgnet-0.3.0"], r"there are: surfaces, .*Did you mean surfaces\?"),
    (["run", "surfaces", "-m", "chgnet"], r"Known: chgnet-0.3.0, .*chgnet may be chgnet-0.3.0 or chgnet-0.2.0: name one\."),
    (["run", "surfaces", "-m", "mace-mp0-medium"], r"Did you mean mace-mp-0-medium\?"),
    (["run", "surfaces", "-m", ""], r"unknown model ''.*file:PATH\.$"),
    (["run", "surfaces", "-m", "file:"], r"unknown model 'file:'\. Known: "),
    (["run", "surfaces", "-m", "ase:"], "'ase:': write ase:module.factory"),
    (["run", "surfaces", "-m", "page.model"], "Write file:page.model for that file or folder"),
    (["run", "surfaces", "-m", "file:page.model", "--trust"], "page.model is a web page"),
    (["run", "surfaces", "-m", "file:empty.model", "--trust"], "empty.model cannot be opened"),
    (["run", "surfaces", "-m", "file:missing.model"], "missing.model"),
    (["run", "surfaces", "-m", "ase:no.such.Thing"], "No module named"),
    ([*RUN, "--sets", "slab-109"], r"there are: slabs-109, .*Did you mean slabs-109\?"),
    ([*RUN, "--sets", ","], "no set is given; there are: slabs-109"),
    ([*RUN, "--sets", "slabs-109", "--force"], "is not on this machine"),
    ([*RUN, "--sets", "tran-rebuilt"], "replace it by a smaller one"),
    ([*RUN, "--scheduler", "somewhere"], "it takes local, an address"),
    ([*RUN, "--scheduler", "missing.yaml"], "there is no such file"),
    ([*RUN, "--device", "mps"], "here there are: auto, cpu"),
    ([*RUN, "--device", ""], "here there are: auto, cpu"),
    ([*RUN, "--device", "cuda:x"], "sees no CUDA GPU|here there are"),
    (["run", "surfaces", "-m", EMT, "--device", "cuda"], "the device belongs to the calculator"),
    (["report", "-m", EMT, "-o", "out", "--device", "cuda"], "the device belongs to the calculator"),
    (["fix", "-m", EMT, "-o", "out", "-l", "page.model", "--device", "cuda"], "the device belongs to the calculator"),
    (["report", "-m", "chgnt-0.3.0", "-o", "out"], r"Did you mean chgnet-0.3.0\?"),
    (["fix", "-m", "chgnt-0.3.0", "-o", "out", "-l", "page.model"], r"Did you mean chgnet-0.3.0\?"),
    (["fix", "-m", "chgnet-0.3.0", "-o", "out", "-l", "page.model", "--method", "lineer"], "method must be one of linear, full"),
    (["bench", "-m", "chgnt-0.3.0", "--quick"], r"Did you mean chgnet-0.3.0\?"),
    (["bench", "-m", "chgnet-0.3.0", "--quick", "--route", "matcal"], r"Did you mean matcalc\?"),
    (["bench", "--quick", "--out", "page.model"], "page.model"),
    (["report", "-m", EMT, "-o", "/proc/zz"], r"--out /proc/zz: this folder cannot be made or written to"),
    (["fix", "-m", EMT, "-o", "page.model/deep/out", "-l", "x"], r"--out page.model/deep/out: this folder cannot be made"),
    (["bench", "--quick", "-o", "/proc/zz/out"], r"--out /proc/zz/out: this folder cannot be made"),
    (["fix", "-m", EMT, "-o", "out", "-l", "x", "--learning-rate", "0"], r"--learning-rate 0: a positive number is wanted"),
    (["fix", "-m", EMT, "-o", "out", "-l", "x", "--learning-rate", "nan"], r"--learning-rate nan: a positive number is wanted"),
    (["fetch", "weight"], r"It has: .*Did you mean weights\?"),
    (["fetch", ""], "It has: "),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_mistakes_are_one_line_and_a_status(no_data, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(no_data)
    (no_data / "page.model").write_text("<!doctype html><title>Sign in</title>")
    (no_data / "empty.model").touch()
    monkeypatch.setattr(sys, "argv", ["softening", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("softening: ")
    assert re.search(words, line)
    assert not (no_data / "out").exists()


def test_a_mirror_that_does_not_exist_is_one_line(no_data, monkeypatch, capsys):
    monkeypatch.setenv(registry.MIRROR_VARIABLE, str(no_data / "nowhere"))
    monkeypatch.setattr(sys, "argv", ["softening", "models"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert re.fullmatch(r"softening: SOFTENING_MIRROR=.*nowhere is not a folder\.\n", capsys.readouterr().err)


SEEDS = [[command, "-m", EMT, "-o", "out", "--seed", seed] for command, seed in (("fix", "-1"), ("report", "-1"), ("report", str(2**32)))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["modles"], ["run"], [*RUN, "--procesess", "2"], [*RUN, "--processes", "0"], ["status", "x"], *SEEDS]
)
def test_mistakes_of_form_have_no_traceback(arguments):
    outcome = softening(*arguments)
    assert outcome.returncode == 2
    assert "Usage: softening" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize("where", ["helpers.registry", "helpers.potentials", "helpers.reports.report_card", "helpers.potentials.exam"])
def test_an_interruption_is_one_line_wherever_it_comes(where, tmp_path):
    """Ctrl-C while modules are imported, before and in main, and while a command works; the process really gets the signal."""
    program = f"""
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
found = builtins.__import__
def interrupted(name, *rest, **options):
    module = found(name, *rest, **options)
    if {where!r} in sys.modules and builtins.__import__ is interrupted:
        builtins.__import__ = found
        os.kill(os.getpid(), signal.SIGINT)
    return module
builtins.__import__ = interrupted
sys.argv = ["softening", "report", "-m", {EMT!r}, "-o", {str(tmp_path / "out")!r}]
from helpers.cli import main
main()
"""
    outcome = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert outcome.stderr == "softening: interrupted; the same command goes on where it stopped\n"
    assert outcome.returncode == 130


def test_a_damaged_model_file_is_named_and_the_others_are_listed(no_data, monkeypatch):
    file = registry.lookup("ACEsuit/mace-mp/mace-mpa-0-medium.model")
    path = no_data / file.mirror_path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>")
    outcome = CliRunner().invoke(cli.app, ["models"])
    assert outcome.exit_code == 0
    assert "mace-mpa-0-medium.model is not the registered" in outcome.output
    assert re.search(r"mace-mpa-0-medium +MACE-MPA-0 .*damaged, see above", outcome.output)
    assert re.search(r"mace-mp-0-medium .*to be downloaded \(44.4 MB\)", outcome.output)


@pytest.fixture
def given(monkeypatch):
    """Let ``softening run surfaces`` come to a table that the test gives."""

    def run(table, summarise=surfaces.summarise):
        monkeypatch.setattr(runner, "run", lambda *_, **__: table)
        monkeypatch.setattr(results, "models", lambda _: [])
        monkeypatch.setattr(results, "provenance", lambda *_: {"fingerprint": "x"})
        monkeypatch.setattr(surfaces, "summarise", summarise)
        return CliRunner().invoke(cli.app, ["run", "surfaces", "-m", EMT])

    return run


def rows(*statuses):
    case = benchmarks.Case("tran-rebuilt/Cu/111", "tran-rebuilt", "Cu", {})
    errors = [None if status == "ok" else "no Cu here" for status in statuses]
    return benchmarks.table([benchmarks.row(EMT, case, "gamma", 0.1, 0.1, "eV/Å²", error=error) for error in errors])


def test_a_run_without_failures_counts_none(given):
    """A category that does not occur would be counted, 0 times."""
    table = rows("ok", "ok").assign(reason=pd.Categorical(["", ""], ["", "not converged"]))
    outcome = given(table, lambda table: pd.DataFrame({"model": [EMT], "slope": [0.1234567]}))
    assert outcome.exit_code == 0
    assert "2 rows, 0 failed" in outcome.output
    assert "×" not in outcome.output
    assert outcome.output.splitlines()[-1].split() == [EMT, "0.12346"]


def fails(_):
    raise ValueError("a slope needs at least two values, got 1")


@pytest.mark.parametrize(
    ("summarise", "words"), [(lambda table: table[:0], "No summary: these cases are too few"), (fails, "No summary: a slope needs")]
)
def test_nothing_to_summarise_is_said_in_words(given, summarise, words):
    outcome = given(rows("ok", "failed"), summarise)
    assert outcome.exit_code == 0
    assert "2 rows, 1 failed" in outcome.output
    assert "  1 × no Cu here" in outcome.output
    assert words in outcome.output
    assert "Empty DataFrame" not in outcome.output


@pytest.mark.parametrize(("statuses", "words"), [(["failed"] * 3, "every row failed"), ([], "there were no cases")])
def test_a_run_whose_every_case_fails_ends_with_a_status(given, statuses, words):
    outcome = given(rows(*statuses))
    assert outcome.exit_code == 1
    assert f"{len(statuses)} rows, {len(statuses)} failed" in outcome.output
    assert f"No summary: {words}" in outcome.output


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", benchmarks.CATALOGUE)
def test_every_summary_fits_a_terminal_of_80_columns(benchmark, monkeypatch, capsys):
    """Wide tables become blocks of lines; what is piped elsewhere stays a table."""
    model = results.models(benchmark)[0]
    table, summarise = results.read(benchmark, model), benchmarks.module(benchmark).summarise
    monkeypatch.setenv("COLUMNS", "80")
    cli.print_summary(summarise, table)
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 80
    monkeypatch.delenv("COLUMNS")
    cli.print_summary(summarise, table)
    wide = capsys.readouterr().out
    assert len(wide.splitlines()) == len(summarise(table)) + 1
    assert set(narrow.split()) == set(wide.split())


@pytest.mark.parametrize("command", ["models", "status"])
def test_lists_fit_a_terminal_of_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = CliRunner().invoke(cli.app, [command])
    assert outcome.exit_code == 0
    # Sentences below the lists may be longer.
    assert all(len(line) <= 80 for line in outcome.output.splitlines() if not line.startswith(("unfinished: ", "Also: ")))
    assert "chgnet-0.3.0" in outcome.output


def test_run_and_status(data, monkeypatch):
    """A benchmark from the command line to its table."""
    whole = surfaces.cases
    monkeypatch.setattr(surfaces, "cases", lambda protocol=None, sets=None: [c for c in whole(protocol, sets) if c.material == "Cu"])
    command = ["run", "surfaces", "-m", EMT, "--sets", "tran-rebuilt", "--processes", "1"]
    run = CliRunner().invoke(cli.app, command)
    assert run.exit_code == 0, run.output
    assert "0 failed" in run.output
    assert "Nothing to do" not in run.output
    assert "Nothing to do: the table is complete" in CliRunner().invoke(cli.app, command).output
    assert len(results.read("surfaces", EMT)) > 0
    status = CliRunner().invoke(cli.app, ["status"])
    assert EMT in status.output


@pytest.mark.slow
def test_a_question_about_the_options_imports_nothing_heavy():
    program = "import sys; sys.argv = ['softening', '--help']\ntry:\n    from helpers.cli import main\n    main()\nfinally:\n    "
    program += "print(sorted({'torch', 'pandas', 'numpy', 'ase', 'requests'} & set(sys.modules)))"
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "Measure how soft" in outcome.stdout
    assert outcome.stdout.splitlines()[-1] == "[]"
