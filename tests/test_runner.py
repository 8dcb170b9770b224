"""Runs that survive being killed, tables with provenance, the live check."""

import copy
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from ase.calculators.emt import EMT as ASE_EMT
from conftest import EMT_KEY as EMT
from typer.testing import CliRunner

from helpers import cli, potentials, registry, results, runner
from helpers.benchmarks import surfaces
from helpers.potentials.ase import ASEPotential
from helpers.runner import worker

METALS = ("Cu", "Au", "Ni", "Al", "Pd", "Ag", "Pt")


@pytest.fixture
def few_cases(monkeypatch):
    """Only surfaces of metals that EMT knows, in small shards."""
    whole = surfaces.cases

    def chosen(protocol=None, sets=None):
        return [case for case in whole(protocol, ["tran-rebuilt"]) if case.material in METALS][:6]

    monkeypatch.setattr(surfaces, "cases", chosen)
    monkeypatch.setattr(runner, "shards", lambda cases, *_: [[case] for case in cases])
    return chosen


def ordered(table):
    return table.sort_values(["case", "property"]).reset_index(drop=True)


def tidy(model, *sets):
    """Return a table with a row for each set."""
    told = {
        "material": "Cu",
        "case": "Cu",
        "property": "force",
        "value": 1.0,
        "reference": 1.0,
        "unit": "eV/Å",
        "status": "ok",
        "reason": "",
    }
    return pd.DataFrame([{"model": model, "set": name, **told} for name in sets])


WRONG = {
    "lacks unit": lambda table: table.drop(columns="unit"),
    "neither ok nor failed": lambda table: table.assign(status="perhaps"),
    "ok without a finite value": lambda table: table.assign(value=np.inf),
    "failed without one": lambda table: table.assign(status="failed"),
    "ok with a reason": lambda table: table.assign(reason="it is late"),
    "several units in one set": lambda table: pd.concat([table, table.assign(case="Al", unit="eV/atom")]),
    r"of the same thing \(told apart by atom\)": lambda table: pd.concat([table, table]),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_table_that_is_not_tidy_is_not_written(data, words):
    table = tidy("model", "a", "b")
    results.write("surfaces", "model", pd.concat([table.assign(atom=atom) for atom in (0, 1)]), {}, keys=["atom"])
    with pytest.raises(results.ResultsError, match=words):
        results.write("surfaces", "other", WRONG[words](table.assign(atom=0)), {}, keys=["atom"])
    assert results.models("surfaces") == ["model"]


def test_a_model_of_which_a_set_is_missing_is_left_out(data, capsys):
    whole = tidy("whole", "a", "b")
    results.write("surfaces", "whole", whole, {})
    results.write("surfaces", "part", tidy("part", "a"), {})
    assert set(results.read("surfaces")["model"]) == {"whole", "part"}
    assert set(results.read("surfaces", sets=["a"])["model"]) == {"whole", "part"}
    assert capsys.readouterr().out == ""
    pd.testing.assert_frame_equal(results.read("surfaces", sets=["a", "b"]), whole)
    assert "part is left out: its table of surfaces lacks b. softening run surfaces --model part" in capsys.readouterr().out
    with pytest.raises(results.ResultsError, match="has all of c in its table of surfaces"):
        results.read("surfaces", sets=["c"])


@pytest.mark.slow
def test_a_run_writes_a_table_with_its_provenance(data, few_cases):
    table = runner.run("surfaces", EMT, processes=1, progress=False)
    assert (table["status"] == "ok").all()
    made = results.provenance("surfaces", EMT)
    assert made["cases"] == {"tran-rebuilt": 6}
    assert made["rows"] == len(table) > 0
    assert made["protocol"]["fmax_ev_per_a"] == surfaces.Protocol().fmax_ev_per_a
    assert made["packages"]["ase"]
    assert made["device"]
    assert made["core_seconds"] > 0
    pd.testing.assert_frame_equal(table, results.read("surfaces", EMT))
    assert not [path for path in results.runs_dir().glob("*/*") if path.is_dir()], "the shards of a finished run are removed"


@pytest.mark.slow
def test_the_network_may_be_compiled(data, few_cases, monkeypatch):
    load = potentials.load
    asked = []

    class Compiled(ASEPotential):
        is_compiled = True

    def loaded(key, device="auto", *, compiled=False, **options):
        asked.append(compiled)
        potential = load(key, device, **options)
        potential.__class__ = Compiled if compiled else ASEPotential
        return potential

    monkeypatch.setattr(potentials, "load", loaded)
    worker.potential_here.cache_clear()
    plain = runner.run("surfaces", EMT, processes=1, progress=False)
    assert results.provenance("surfaces", EMT)["compiled"] is False
    # Results are the same but for rounding, so a complete table stays, and so would shards.
    pd.testing.assert_frame_equal(runner.run("surfaces", EMT, processes=1, compiled="on", progress=False), plain)
    fast = runner.run("surfaces", EMT, processes=1, compiled="on", force=True, progress=False)
    pd.testing.assert_frame_equal(ordered(fast), ordered(plain))
    assert results.provenance("surfaces", EMT)["compiled"] is True
    assert asked == [False, True, True]
    with runner.workers("cpu", 2) as pool:
        # A worker compiles too; EMT, which cannot be compiled, shows that it is told to.
        monkeypatch.undo()
        job = ("surfaces", EMT, "cpu", False, surfaces.Protocol(), potentials.load(EMT).describe(), worker.versions())
        job = runner.Job(*job, compiled="on")
        with pytest.raises(runner.RunError, match="cannot be compiled"):
            pool.submit(runner.compute_here, job, []).result()


def test_auto_compiles_where_that_saves_more_time_than_it_takes(data, few_cases, monkeypatch):
    class Compiled(ASEPotential):
        is_compiled = True

    class Plain(ASEPotential):
        compiled_saves = 0.5

        def compiled(self):
            twin = copy.copy(self)
            twin.__class__ = Compiled
            return twin

    potential = potentials.load(EMT)
    potential.__class__ = Plain
    monkeypatch.setattr(worker, "_pace", {})
    cases = surfaces.cases()
    job = runner.Job("surfaces", EMT, "cpu", False, surfaces.Protocol(), potential.describe(), {}, compiled="auto", atoms_each=1e9)
    sample, following = (worker.compute_job(job, potential, [case]) for case in cases[:2])
    assert [table.attrs["compiled"] for table in (sample, following)] == [False, True]
    short = worker.compute_job(dataclasses.replace(job, atoms_each=1e-9), potential, cases[:1])
    assert not short.attrs["compiled"]
    assert "takes about" in short.attrs["compiling"], "the reason"
    monkeypatch.setattr(Plain, "compiled_saves", 0.0)
    assert "not known to save time" in worker.compute_job(job, potential, cases[:1]).attrs["compiling"]


@pytest.mark.parametrize(
    ("options", "compiled"), [([], "auto"), (["--compile"], "on"), (["--compile", "off"], "off"), (["--compile=auto"], "auto")]
)
def test_compile_alone_means_on(options, compiled, monkeypatch):
    told = []
    monkeypatch.setattr(runner, "run", lambda *_, **how: told.append(how["compiled"]) or pd.DataFrame({"status": [], "reason": []}))
    outcome = CliRunner().invoke(cli.app, ["run", "--model", EMT, *options, "surfaces"])
    assert told == [compiled], outcome.output
    outcome = CliRunner().invoke(cli.app, ["run", "surfaces", "--model", EMT, "--compile=maybe"])
    assert "choose one of off, on, auto" in str(outcome.exception)


def test_the_code_of_every_room_is_what_workers_must_share(tmp_path, monkeypatch):
    rooms = tmp_path / "helpers"
    (rooms / "runner").mkdir(parents=True)
    monkeypatch.setattr(worker, "__file__", str(rooms / "runner" / "worker.py"))
    found = set()
    for line in ("FMAX = 0.05", "FMAX = 0.01"):
        (rooms / "surfaces.py").write_text(line)
        found.add(worker.versions.__wrapped__()["helpers"])
    assert len(found) == 2


@pytest.mark.slow
def test_processes_may_load_what_the_user_trusts(data, few_cases, monkeypatch):
    """A worker loads the potential anew, and must be told that its file is trusted."""
    told = []

    class Here:
        def submit(self, function, job, cases):
            told.append((job.trust, job.device))
            done = Future()
            done.set_result(function(job, cases))
            return done

    monkeypatch.setattr(runner, "workers", lambda *_: nullcontext(Here()))
    runner.run("surfaces", EMT, trust=True, progress=False)
    assert told == [(True, "cpu")] * 6


@pytest.mark.slow
def test_the_same_command_twice_changes_nothing(data, few_cases, monkeypatch):
    runner.run("surfaces", EMT, processes=1, progress=False)
    path = results.table_path("surfaces", EMT)
    before = path.read_bytes(), path.stat().st_mtime_ns, path.with_suffix(".json").read_text()
    monkeypatch.setattr(surfaces, "run", lambda *_: pytest.fail("computed again"))
    runner.run("surfaces", EMT, processes=1, progress=False)
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.with_suffix(".json").read_text()) == before


@pytest.mark.slow
def test_other_settings_are_another_run(data, few_cases):
    runner.run("surfaces", EMT, processes=1, progress=False)
    first = results.provenance("surfaces", EMT)["fingerprint"]
    runner.run("surfaces", EMT, processes=1, progress=False, protocol=surfaces.Protocol(min_vacuum_a=12.0))
    assert results.provenance("surfaces", EMT)["fingerprint"] != first


@pytest.mark.slow
def test_a_failing_shard_loses_only_itself(data, few_cases, monkeypatch):
    work = surfaces.run
    calls = []

    def breaks_on_the_fourth(potential, cases, protocol):
        calls.append(cases[0].name)
        if len(calls) == 4:
            raise OSError("disk full")
        return work(potential, cases, protocol)

    monkeypatch.setattr(surfaces, "run", breaks_on_the_fourth)
    with pytest.raises(OSError, match="disk full"):
        runner.run("surfaces", EMT, processes=1, progress=False)
    assert not results.table_path("surfaces", EMT).exists(), "half a table must not look like a whole one"
    calls.clear()
    calls.extend(["kept"] * 10)
    table = runner.run("surfaces", EMT, processes=1, progress=False)
    assert len(calls) == 13, "three shards were kept, three computed"
    assert table["case"].nunique() == 6


DAMAGE = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "a page": lambda content: b"<html></html>",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_computed_again(data, few_cases, monkeypatch, damage):
    work = surfaces.run
    calls = []

    def breaks_on_the_fourth(potential, cases, protocol):
        calls.append(cases[0].name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return work(potential, cases, protocol)

    monkeypatch.setattr(surfaces, "run", breaks_on_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        runner.run("surfaces", EMT, processes=1, progress=False)
    shard = sorted(results.runs_dir().glob("*/*/*.parquet"))[0]
    shard.write_bytes(damage(shard.read_bytes()))
    calls.extend(["kept"] * 10)
    table = runner.run("surfaces", EMT, processes=1, progress=False)
    assert len(calls) == 4 + 10 + 4, "two shards were kept, three had not begun, one was damaged"
    assert table["case"].nunique() == 6
    pd.testing.assert_frame_equal(ordered(table), ordered(runner.run("surfaces", EMT, processes=1, progress=False, force=True)))


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("ending", [".parquet", ".json"])
def test_a_damaged_table_is_computed_again_and_named_by_who_reads_it(data, few_cases, damage, ending):
    table = runner.run("surfaces", EMT, processes=1, progress=False)
    path = results.table_path("surfaces", EMT).with_suffix(ending)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(results.ResultsError, match=f"{path.name} is .*damaged"):
        results.read("surfaces") if ending == ".parquet" else results.provenance("surfaces", EMT)
    again = runner.run("surfaces", EMT, processes=1, progress=False)
    pd.testing.assert_frame_equal(ordered(again), ordered(table))
    pd.testing.assert_frame_equal(ordered(results.read("surfaces", EMT)), ordered(table))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_results_have_the_rights_that_the_user_gives_to_files(data, umask, mode):
    before = os.umask(umask)
    try:
        results.write("surfaces", "model", tidy("model", "a"), {})
    finally:
        os.umask(before)
    path = results.table_path("surfaces", "model")
    assert {path.stat().st_mode & 0o777, path.with_suffix(".json").stat().st_mode & 0o777} == {mode}


@pytest.mark.parametrize("device", ["cuda:x", "cuda:7", "cuda:-1", "mps", "", "gpu", "cuda:0:0"])
def test_a_device_that_is_not_here_is_answered_by_those_that_are(monkeypatch, device):
    """As on a machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(potentials.PotentialError, match=f"device '{device}' is none of .*here there are: auto, cpu, cuda:0, cuda:1.$"):
        runner.run("surfaces", "chgnet-0.3.0", device=device, progress=False)
    assert [str(potentials.resolve_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]


@pytest.mark.parametrize("scheduler", [None, "local"])
def test_the_device_of_a_calculator_is_its_own_affair_and_said_before_any_work(data, few_cases, monkeypatch, scheduler):
    monkeypatch.setattr(surfaces, "run", lambda *_: pytest.fail("computed"))
    with pytest.raises(potentials.PotentialError, match=r"the device belongs to the calculator; .* leave --device out"):
        runner.run("surfaces", EMT, device="cuda", scheduler=scheduler, progress=False)


SLOW = """
    import time
    from ase.calculators.emt import EMT

    class Slow(EMT):
        def calculate(self, *args, **kwargs):
            time.sleep(0.02)
            super().calculate(*args, **kwargs)
"""

COMMAND = """
    import sys
    from helpers import runner
    from helpers.benchmarks import surfaces

    metals = {metals!r}
    whole = surfaces.cases
    surfaces.cases = lambda protocol=None, sets=None: [c for c in whole(protocol, ["tran-rebuilt"]) if c.material in metals][:6]
    runner.shards = lambda cases, *_: [[case] for case in cases]
    if __name__ == "__main__":
        runner.run("surfaces", "ase:slow.Slow", processes=2, progress=False)
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_finishes_the_rest(data, tmp_path):
    """SIGKILL leaves no chance to tidy up; the same command must still yield the table of an undisturbed run."""
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    script = tmp_path / "command.py"
    script.write_text(textwrap.dedent(COMMAND).format(metals=METALS))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    job = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(results.runs_dir().glob("*/*/*.parquet"))) < 2:
        assert job.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    kept = {path: path.stat().st_mtime_ns for path in results.runs_dir().glob("*/*/0*.parquet")}
    assert 2 <= len(kept) < 6
    assert not results.table_path("surfaces", "ase:slow.Slow").exists()
    subprocess.run(command, env=environment, check=True)
    cases = [case for case in surfaces.cases(sets=["tran-rebuilt"]) if case.material in METALS][:6]
    undisturbed = surfaces.run(ASEPotential("ase:slow.Slow", ASE_EMT()), cases, surfaces.Protocol())
    pd.testing.assert_frame_equal(ordered(results.read("surfaces", "ase:slow.Slow")), ordered(undisturbed))


@pytest.mark.slow
def test_two_runs_at_once_are_refused(data, few_cases, monkeypatch):
    work = surfaces.run

    def starts_again(potential, cases, protocol):
        monkeypatch.setattr(surfaces, "run", work)
        with pytest.raises(runner.RunError, match="already running"):
            runner.run("surfaces", EMT, processes=1, progress=False)
        return work(potential, cases, protocol)

    monkeypatch.setattr(surfaces, "run", starts_again)
    assert runner.run("surfaces", EMT, processes=1, progress=False)["case"].nunique() == 6


def test_shards_keep_every_case_once():
    cases = surfaces.cases(sets=["tran-rebuilt"])
    pieces = runner.shards(cases, atoms_per_shard=60)
    assert [case.name for piece in pieces for case in piece] == [case.name for case in cases]
    assert len(pieces) > 1


@pytest.mark.slow
def test_live_check_passes_and_catches_a_change(data, few_cases):
    runner.run("surfaces", EMT, processes=1, progress=False)
    checked = runner.live_check("surfaces", EMT, limit=3)
    assert np.abs(checked["difference"]).max() < 1e-6
    path = results.table_path("surfaces", EMT)
    table = pd.read_parquet(path)
    table.loc[0, "value"] += 0.01
    results.write_parquet(table, path)
    with pytest.raises(runner.LiveCheckError, match="differ from the committed table"):
        runner.live_check("surfaces", EMT)


def test_what_all_tables_share_is_stored_once(data, few_cases):
    """Numbers, columns and their order stay; a model that is added later stands whole until the tables are condensed again."""

    def of(model, factor, n):
        rows = [{"case": f"c{k // 3}", "atom": k // 3, "component": "xyz"[k % 3], "reference": np.float32(k / 7)} for k in range(n)]
        table = pd.DataFrame(rows).assign(model=model, set="s", material="M", property="force", unit="eV/Å", status="ok", reason="")
        table = table.assign(value=(factor * table["reference"]).astype(np.float32), pressure=np.nan, own=factor)
        return table.astype({"component": "category"})[[*results.COLUMNS, "pressure", "own", "component", "atom"]]

    keys = ("atom", "component")
    before = {model: of(model, factor, n) for model, factor, n in (("soft", 0.5, 300), ("stiff", 0.9, 270), ("other", 1.0, 330))}
    for model in ("soft", "stiff"):
        results.write("forces", model, before[model], {}, keys=keys)
    folder = results.results_dir() / "forces"
    for added in ("stiff", "other"):
        if added == "other":
            results.write("forces", added, before[added], {}, keys=keys)
        results.condense("forces", keys)
        for model in results.models("forces"):
            pd.testing.assert_frame_equal(results.read("forces", model), before[model], check_categorical=False)
        (shared,) = (list(pd.read_parquet(path)) for path in folder.glob("rows-*"))
        assert shared == [name for name in before["soft"] if name in shared], "the same file from every process"
        assert not {"reference", "case", "pressure"} & set(pd.read_parquet(folder / "soft.parquet"))
        assert "own" in pd.read_parquet(folder / "soft.parquet")
    assert results.models("forces") == ["other", "soft", "stiff"]
    next(folder.glob("rows-*")).unlink()
    with pytest.raises(results.ResultsError, match=r"soft\.parquet is missing or damaged .*rows-"):
        results.read("forces", "soft")


def test_a_missing_table_names_the_command(data):
    with pytest.raises(results.ResultsError, match=r"softening run surfaces --model chgnet-0\.3\.0"):
        results.read("surfaces", "chgnet-0.3.0")


def test_writing_is_atomic(data, monkeypatch):
    table = pd.DataFrame({"value": [1.0]})
    path = data / "results" / "surfaces" / "model.parquet"
    results.write_parquet(table, path)

    def fails(self, *args, **kwargs):
        args[0].write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fails)
    with pytest.raises(OSError, match="disk full"):
        results.write_parquet(table, path)
    assert pd.read_parquet(path)["value"].tolist() == [1.0]
    assert [p.name for p in path.parent.iterdir()] == ["model.parquet"]


@pytest.mark.slow
def test_committed_tables_have_complete_provenance():
    """Every table in the project says how it was made, and with which weights and data."""
    for source in sorted(results.results_dir().glob("*/*.json")):
        made = json.loads(source.read_text())
        path = source.with_suffix(".parquet")
        table = results.read_table(path)
        assert made["rows"] == len(table), path
        assert made["failed_rows"] == int((table["status"] == "failed").sum()), path
        assert set(table["model"]) == {made["model"]}, path
        assert (table.loc[table["status"] == "failed", "reason"] != "").all(), path
        for key, digest in made["data_sha256"].items():
            assert digest == registry.lookup(key).sha256, f"{path}: {key}"
        assert path.stat().st_size < 4_000_000, path


@pytest.mark.slow
def test_a_benchmark_may_ask_for_smaller_shards(data, few_cases, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "shards", lambda cases, size: asked.append(size) or [cases])
    runner.run("surfaces", EMT, processes=1, progress=False)
    monkeypatch.setattr(surfaces, "ATOMS_PER_SHARD", 7, raising=False)
    runner.run("surfaces", EMT, processes=1, progress=False, force=True)
    assert asked == [runner.ATOMS_PER_SHARD, 7]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_a_run_keeps_its_memory():
    """Counted in a process of its own: pages that are touched for the first time while arrays come and go.

    Left to itself, glibc raises its threshold as arrays are freed, and whether memory returns to the system then depends on what happens
    to lie at the end of the heap. Set by hand, the threshold that it starts with (128 KiB) stays.
    """
    script = """
        import ctypes, resource
        import torch
        from helpers import runner
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                arrays = [torch.ones(200_000) for _ in range(20)]
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        M_MMAP_THRESHOLD = -3
        assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 2**10)
        left = faults()
        assert runner.keep_memory()
        faults()
        print(left, faults())
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    left, kept = map(int, subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.split())
    # 80,000 against none on an idle machine. One that is short of memory takes pages back by itself, a few hundred of them.
    assert left > 10_000
    assert kept < left / 20
