"""Runs on a Dask cluster, and what happens when something dies.

Schedulers, workers and clients are real processes, and they are really killed. Nothing is timed: a calculation waits at a gate, a file,
until the test has seen what it waits for.
"""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from conftest import EMT_KEY as EMT
from typer.testing import CliRunner

from helpers import benchmarks, cli, results, runner
from helpers.benchmarks import surfaces
from helpers.runner import cluster, worker

GATED = "ase:gated.Gated"
PATIENCE = 400  # seconds, for a busy machine
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "slurm-gpu.yaml"


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


class InBackground(threading.Thread):
    """Run something beside the test; keep what it returns or raises."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self.work, self.value, self.error = work, None, None
        self.start()

    def run(self):
        try:
            self.value = self.work()
        except Exception as error:  # noqa: BLE001  (the test looks at it)
            self.error = error

    def end(self):
        self.join(PATIENCE)
        assert not self.is_alive(), "it did not end"
        return self


METALS = ("Ag", "Al", "Au", "Cu")
CASES = """
    from helpers import runner
    from helpers.benchmarks import surfaces

    whole = surfaces.cases
    metals = {metals!r}

    def few(protocol=None, sets=None):
        chosen = {{case.material: case for case in whole(protocol, ["tran-rebuilt"]) if case.material in metals}}
        return [chosen[metal] for metal in metals]
"""
CLIENT = """
    surfaces.cases = few
    runner.shards = lambda cases, *_: [[case] for case in cases]
    runner.run("surfaces", {key!r}, scheduler={scheduler!r}, progress=False)
"""


@pytest.fixture
def few_cases(monkeypatch):
    """One surface of each metal that EMT knows, each a shard of its own."""
    whole = surfaces.cases

    def few(protocol=None, sets=None):
        chosen = {case.material: case for case in whole(protocol, ["tran-rebuilt"]) if case.material in METALS}
        return [chosen[metal] for metal in METALS]

    monkeypatch.setattr(surfaces, "cases", few)
    monkeypatch.setattr(runner, "shards", lambda cases, *_: [[case] for case in cases])
    return few


@pytest.fixture
def quick(monkeypatch):
    """A benchmark that computes nothing, for what happens around the computation."""

    def run(potential, cases, protocol):
        rows = []
        for case in cases:
            number = float(case.structures["bulk"].numbers[0])
            rows.append(benchmarks.row(potential.key, case, "gamma_static", number, 2 * number, "eV/Å²"))
        return benchmarks.table(rows)

    monkeypatch.setattr(surfaces, "run", run)


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """EMT that says which process is at work, and stops before the elements that the gate names."""
    code = """
        import os
        import time
        from pathlib import Path

        from ase.calculators.emt import EMT

        HERE = Path(__file__).parent

        class Gated(EMT):
            def calculate(self, atoms=None, *args, **kwargs):
                metal = atoms.get_chemical_symbols()[0]
                while (HERE / "gate").is_file() and metal in (HERE / "gate").read_text().split():
                    (HERE / f"{metal}.waits").write_text(str(os.getpid()))
                    time.sleep(0.02)
                super().calculate(atoms, *args, **kwargs)
    """
    (tmp_path / "gated.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return Gate(tmp_path)


class Gate:
    def __init__(self, folder):
        self.folder = folder

    def close(self, *metals):
        for path in self.folder.glob("*.waits"):
            path.unlink()
        (self.folder / "new").write_text(" ".join(metals))
        os.replace(self.folder / "new", self.folder / "gate")

    def open(self):
        (self.folder / "gate").unlink()

    def process_at(self, metal):
        """Wait until a process stands before the gate; return its number."""
        path = self.folder / f"{metal}.waits"
        wait_for(lambda: path.is_file() and path.read_text(), f"{metal} to be begun")
        return int(path.read_text())


@pytest.fixture
def dask(tmp_path):
    """A scheduler and its workers as processes of their own, which end with the test."""
    with Dask(tmp_path) as started:
        yield started


class Dask:
    def __init__(self, folder):
        self.folder, self.processes = folder, []
        self.file = str(folder / "scheduler.json")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            with_its_own = process.poll() is None
            if with_its_own:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(self, module, *arguments, **variables):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        with open(self.folder / f"{len(self.processes)}.log", "wb") as log:
            command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process

    def scheduler(self, **variables):
        arguments = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", self.file)
        process = self._start("dask_scheduler", *arguments, **variables)
        wait_for(lambda: Path(self.file).is_file(), "the scheduler")
        return process

    def worker(self, *more, **variables):
        arguments = ("--scheduler-file", self.file, "--no-dashboard", "--local-directory", str(self.folder))
        threads = () if "--nthreads" in more else ("--nthreads", "1")
        return self._start("dask_worker", *arguments, *threads, *more, **variables)


def shard_files():
    """Return the finished shards with the times they were written."""
    return {path.name: path.stat().st_mtime_ns for path in results.runs_dir().glob("*/*/[0-9]*.parquet")}


def finished():
    """Take the finished table out of the data folder, so that the next run starts afresh."""
    table = results.read("surfaces", GATED)
    path = results.table_path("surfaces", GATED)
    path.unlink()
    path.with_suffix(".json").unlink()
    return table


@pytest.mark.slow
def test_one_run_after_another_loses_its_worker_its_client_and_its_scheduler(data, few_cases, gate, dask, tmp_path):
    """Whatever dies, the same command yields the table of an undisturbed run; what was done is not done again."""
    runner.run("surfaces", GATED, processes=1, progress=False)
    undisturbed = finished()
    assert undisturbed["case"].nunique() == len(METALS)
    scheduler = dask.scheduler()
    dask.worker("--nworkers", "2")

    # A worker.
    gate.close("Al")
    job = InBackground(lambda: runner.run("surfaces", GATED, scheduler=dask.file, progress=False))
    os.kill(gate.process_at("Al"), signal.SIGKILL)
    gate.open()
    assert job.end().error is None
    assert 1 <= results.provenance("surfaces", GATED)["processes"] <= 3
    pd.testing.assert_frame_equal(finished(), undisturbed)

    # The client.
    script = tmp_path / "client.py"
    script.write_text(textwrap.dedent(CASES.format(metals=METALS) + CLIENT.format(key=GATED, scheduler=dask.file)))
    gate.close("Al")
    client = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    wait_for(lambda: len(shard_files()) == len(METALS) - 1 or client.poll() is not None, "all shards but one")
    gate.process_at("Al")
    assert client.poll() is None
    os.killpg(client.pid, signal.SIGKILL)
    client.wait()
    kept = shard_files()
    assert not results.table_path("surfaces", GATED).exists()
    job = InBackground(lambda: runner.run("surfaces", GATED, scheduler=dask.file, progress=False))
    wait_for(lambda: job.is_alive() or job.error, "the second client")
    assert shard_files() == kept
    gate.open()
    assert job.end().error is None
    pd.testing.assert_frame_equal(finished(), undisturbed)

    # The scheduler; at another metal, since a worker may still be at the Al of the dead client and would stop at its gate for good.
    gate.close("Au")
    job = InBackground(lambda: runner.run("surfaces", GATED, scheduler=dask.file, progress=False))
    wait_for(lambda: len(shard_files()) == len(METALS) - 1 or job.error, "all shards but one")
    gate.process_at("Au")
    kept = shard_files()
    os.killpg(scheduler.pid, signal.SIGKILL)
    error = job.end().error
    assert isinstance(error, runner.RunError)
    assert "scheduler was lost" in str(error)
    assert f"{len(METALS) - 1} of {len(METALS)} shards are done and kept" in str(error)
    assert shard_files() == kept
    gate.open()
    # Another way of computing takes over.
    runner.run("surfaces", GATED, processes=1, progress=False)
    pd.testing.assert_frame_equal(finished(), undisturbed)


def test_the_command_line_hands_its_shards_to_the_cluster(data, few_cases, quick, monkeypatch):
    asked = {}

    def each(function, arguments, names, **settings):
        asked.update(settings, names=names)
        # They come back in any order.
        yield from reversed([(place, function(*items)) for place, items in enumerate(arguments)])

    monkeypatch.setattr(cluster, "each", each)
    arguments = ["run", "surfaces", "-m", EMT, "--sets", "tran-rebuilt", "--processes", "3"]
    outcome = CliRunner().invoke(cli.app, [*arguments, "--scheduler", "local"])
    assert outcome.exit_code == 0, outcome.output
    assert (asked["scheduler"], asked["workers"]) == ("local", 3)
    assert all(metal in name for metal, name in zip(METALS, asked["names"], strict=True))
    assert results.read("surfaces", EMT)["material"].tolist() == list(METALS), "the table keeps the order of the cases"


def test_every_call_is_answered_once_and_the_dashboard_is_mentioned_once(monkeypatch):
    monkeypatch.setattr(cluster, "_AT_LEAST", 4)
    lines = []
    got = list(cluster.each(lambda x: x + 1, [(x,) for x in range(20)], ["x"] * 20, scheduler="local", workers=1, tell=lines.append))
    assert sorted(got) == [(x, x + 1) for x in range(20)]
    assert sum("dashboard" in line for line in lines) == 1


@pytest.mark.slow
def test_what_kills_its_workers_is_named_and_the_rest_is_finished(dask):
    # One death is enough to be suspected, and one more, alone, to be guilty; the third worker stays. Without nannies, which restart
    # workers: one that has hardly started its worker gives up when that dies.
    dask.scheduler(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    for _ in range(3):
        dask.worker("--no-nanny")

    def deadly(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    got = []

    def collect():
        for place, number in cluster.each(deadly, [(n,) for n in range(12)], [f"case-{n}" for n in range(12)], scheduler=dask.file):
            got.append((place, number))

    with pytest.raises(runner.RunError, match="over case-3"):
        collect()
    assert sorted(got) == [(n, n) for n in range(12) if n != 3]

    # What the work raises, on the other hand, is raised here as it is.
    def fails(error):
        raise error

    for error in (OSError(errno.ENOENT, "no such file"), AttributeError("a mistake in a benchmark")):
        with pytest.raises(type(error), match=r"no such file|a mistake"):
            list(cluster.each(fails, [(error,)], ["case-0"], scheduler=dask.file))


@pytest.mark.slow
def test_a_preempted_job_is_replaced_by_another_worker(dask, tmp_path):
    """SLURM sends SIGTERM first."""
    dask.scheduler()
    first = dask.worker()
    gate = tmp_path / "gate"
    gate.touch()
    folder = str(tmp_path)

    def gated(number):
        Path(folder, f"{number}.begun").touch()
        while Path(folder, "gate").is_file():
            time.sleep(0.02)
        return number

    job = InBackground(lambda: list(cluster.each(gated, [(n,) for n in range(3)], ["n"] * 3, scheduler=dask.file)))
    wait_for(lambda: list(tmp_path.glob("*.begun")) or job.error, "a call to be begun")
    first.send_signal(signal.SIGTERM)
    first.wait(PATIENCE)
    dask.worker()
    gate.unlink()
    assert job.end().error is None
    assert sorted(job.value) == [(0, 0), (1, 1), (2, 2)]


def test_a_worker_without_this_project_is_told_so(dask, tmp_path):
    other = tmp_path / "other" / "helpers"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    dask.scheduler()
    dask.worker(PYTHONPATH=str(other.parent))
    with pytest.raises(runner.RunError, match=r"the worker on .* cannot read its task .*Install this project"):
        list(cluster.each(runner.compute_here, [(None, None)], ["case-0"], scheduler=dask.file))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """SLURM's two commands, as far as they are needed: a job is a background process, its number that of its process group."""
    commands = {
        "sbatch": """
            #!{python}
            import os, subprocess, sys
            script = os.path.join({folder!r}, f"job-{{len(os.listdir({folder!r}))}}.sh")
            open(script, "w").write(open(sys.argv[-1]).read())
            with open(script + ".log", "w") as log:
                job = subprocess.Popen(["bash", script], start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            open(script + ".pid", "w").write(str(job.pid))
            print("Submitted batch job", job.pid)
        """,
        "scancel": """
            #!{python}
            import os, signal, sys
            for number in sys.argv[1:]:
                try:
                    os.killpg(int(number), signal.SIGTERM)
                except ProcessLookupError:
                    pass
        """,
    }
    folder = tmp_path / "jobs"
    folder.mkdir()
    (tmp_path / "bin").mkdir()
    for name, code in commands.items():
        path = tmp_path / "bin" / name
        path.write_text(textwrap.dedent(code).strip().format(python=sys.executable, folder=str(folder)) + "\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    yield folder
    for path in folder.glob("*.pid"):
        try:
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.slow
def test_the_slurm_example_starts_jobs_and_replaces_one_that_dies(slurm, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    cluster.import_slurm_cluster()  # the import wants the main thread
    assert signal.getsignal(signal.SIGINT) is before, "Ctrl-C must stay what it is"
    settings = yaml.safe_load(EXAMPLE.read_text())
    # Of the example, only what this machine lacks: a network interface by name, and a module system.
    settings = {name: value for name, value in settings.items() if name not in ("interface", "job_script_prologue", "log_directory")}
    file = tmp_path / "slurm.yaml"
    file.write_text(yaml.safe_dump(settings | {"local_directory": str(tmp_path), "scheduler_options": {"dashboard_address": ":0"}}))
    gate = tmp_path / "gate"
    gate.touch()
    folder = str(tmp_path)

    def gated(number):
        Path(folder, f"{number}.begun").write_text(str(os.getpgid(0)))
        while Path(folder, "gate").is_file():
            time.sleep(0.02)
        return number

    job = InBackground(lambda: list(cluster.each(gated, [(n,) for n in range(3)], ["n"] * 3, scheduler=str(file), workers=1)))
    wait_for(lambda: any(path.read_text() for path in tmp_path.glob("*.begun")) or job.error, "a job to be at work")
    assert job.error is None
    script = (slurm / "job-0.sh").read_text()
    for directive in ("#SBATCH -p gpu", "#SBATCH -A my-project", "#SBATCH --gres=gpu:1", "--nthreads 1", "--lifetime"):
        assert directive in script
    os.killpg(int((slurm / "job-0.sh.pid").read_text()), signal.SIGKILL)
    wait_for(lambda: len(list(slurm.glob("*.pid"))) > 1, "a second job")
    gate.unlink()
    assert job.end().error is None
    assert sorted(job.value) == [(0, 0), (1, 1), (2, 2)]


@pytest.fixture
def job():
    potential = runner.potentials.load(EMT)
    return runner.Job("surfaces", EMT, "cpu", False, surfaces.Protocol(), potential.describe(), worker.versions())


def changed(job, **fields):
    return runner.Job(**{**vars(job), **fields})


def test_a_worker_that_would_compute_something_else_refuses_and_names_itself(job, few_cases, quick, monkeypatch):
    monkeypatch.setattr(worker.platform, "node", lambda: "node17")
    cases = few_cases()[:1]
    assert len(runner.compute_here(job, cases))
    with pytest.raises(runner.RunError, match=r"node17 has torch .* instead of 0.1"):
        runner.compute_here(changed(job, versions=job.versions | {"torch": "0.1"}), cases)
    with pytest.raises(runner.RunError, match=r"node17 has helpers .source .* instead of another"):
        runner.compute_here(changed(job, versions=job.versions | {"helpers": "another"}), cases)
    with pytest.raises(runner.RunError, match=r"node17 has another potential .* weights_sha256 differ"):
        runner.compute_here(changed(job, potential=job.potential | {"weights_sha256": "0" * 64}), cases)
    with pytest.raises(runner.RunError, match=r"node17 cannot load ase:no.such.Thing"):
        runner.compute_here(changed(job, key="ase:no.such.Thing"), cases)
    with worker.busy, pytest.raises(runner.RunError, match=r"node17 has several threads"):
        runner.compute_here(job, cases)


@pytest.fixture
def full_disk(monkeypatch):
    """Name what is to be written; it then lands on a device that is always full."""
    real = results.atomically
    chosen = []

    def replace(path, write):
        def into(target):
            if any(part in path.name for part in chosen):
                target.symlink_to("/dev/full")
            write(target)

        real(path, into)

    monkeypatch.setattr(results, "atomically", replace)
    return chosen


@pytest.mark.parametrize(
    ("full", "n_kept"), [("00000.parquet", 0), ("00002.parquet", 2), ("EMT.parquet", len(METALS)), ("EMT.json", len(METALS))]
)
def test_a_full_disk_leaves_no_half_file_and_the_run_goes_on_later(data, few_cases, quick, full_disk, full, n_kept):
    full_disk.append(full)
    with pytest.raises(runner.RunError, match=r"^the disk is full .*No space left on device.* are done and kept.*again\.$"):
        runner.run("surfaces", EMT, processes=1, progress=False)
    kept = shard_files()
    assert len(kept) == n_kept
    assert not list(results.results_dir().glob("*/*.json")), "an unfinished table has no provenance"
    assert not [path for path in data.rglob(".*") if path.is_symlink() or path.stat().st_size == 0], "no half file"
    full_disk.clear()
    table = runner.run("surfaces", EMT, processes=1, progress=False)
    assert table["case"].nunique() == len(METALS)
    assert not table.duplicated(["case", "property"]).any()


@pytest.mark.slow
def test_a_dead_process_is_one_line(data, few_cases, gate):
    gate.close("Al")
    job = InBackground(lambda: runner.run("surfaces", GATED, processes=2, progress=False))
    os.kill(gate.process_at("Al"), signal.SIGKILL)
    error = job.end().error
    gate.open()
    assert isinstance(error, runner.RunError)
    assert "a process died" in str(error)
    assert "shards are done and kept. The same command goes on" in str(error)


@pytest.mark.slow
def test_a_killed_command_leaves_no_processes_behind(tmp_path):
    script = tmp_path / "parent.py"
    code = """
        import os
        import time
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        from helpers.runner import cluster

        if __name__ == "__main__":
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=cluster.end_with_parent)
            print(pool.submit(os.getpid).result(), flush=True)
            time.sleep(600)
    """
    script.write_text(textwrap.dedent(code))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child to end")


def test_a_run_killed_between_table_and_provenance_is_finished(data, few_cases, quick, monkeypatch):
    real = results.write_json
    monkeypatch.setattr(results, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner.run("surfaces", EMT, processes=1, progress=False)
    monkeypatch.setattr(results, "write_json", real)
    monkeypatch.setattr(surfaces, "run", lambda *_: pytest.fail("computed again"))
    assert runner.run("surfaces", EMT, processes=1, progress=False)["case"].nunique() == len(METALS)
    assert results.provenance("surfaces", EMT)["cases"] == {"tran-rebuilt": len(METALS)}


def test_the_largest_shards_are_begun_first(data, few_cases, quick, monkeypatch):
    order = []
    work = surfaces.run

    def noted(potential, cases, protocol):
        order.append([case.material for case in cases])
        return work(potential, cases, protocol)

    monkeypatch.setattr(surfaces, "run", noted)
    monkeypatch.setattr(runner, "shards", lambda cases, *_: [cases[:1], cases[1:3], cases[3:]])
    table = runner.run("surfaces", EMT, processes=1, progress=False)
    assert order == [["Al", "Au"], ["Ag"], ["Cu"]]
    assert list(table["material"].unique()) == list(METALS), "the table keeps the order of the cases"


@pytest.mark.parametrize(
    ("scheduler", "processes", "words"),
    [
        ("somewhere", None, "is not known; it takes local, an address"),
        ("missing.json", None, "there is no such file"),
        ("missing.yaml", None, "there is no such file"),
        ("slurm", None, "examples/slurm-gpu.yaml"),
        ("tcp://127.0.0.1:8786", 4, "already running"),
    ],
)
def test_a_wrong_scheduler_is_refused_before_any_work(scheduler, processes, words):
    with pytest.raises(runner.RunError, match=words):
        runner.run("surfaces", EMT, scheduler=scheduler, processes=processes)


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(runner.RunError, match=r"needs distributed: pip install .*\[scale\]"):
        runner.run("surfaces", EMT, scheduler="local")
    with pytest.raises(runner.RunError, match="distributed and dask_jobqueue"):
        cluster.check("jobs.yaml")


def test_nobody_answers_at_the_address(monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1")
    import dask.config

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(runner.RunError, match="no connection to the scheduler"),
        cluster.connect("tcp://127.0.0.1:9"),
    ):
        pass


def test_a_slurm_file_with_a_mistake_is_one_line(tmp_path):
    file = tmp_path / "slurm.yaml"
    for text in ("jobs: 2\nno_such_setting: 1\n", "jobs: many\n", "- a list\n", "a: [", ""):
        file.write_text(text)
        with pytest.raises(runner.RunError, match="does not describe SLURM jobs"), cluster.connect(str(file)):
            pass
