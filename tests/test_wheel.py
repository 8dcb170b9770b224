"""The package as it is installed: a wheel, in an empty folder, without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import ase.build
import ase.io
import pytest
from ase.calculators.emt import EMT

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 40e6  # bytes; package indexes take 100 MB

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install the wheel into a folder of its own; return how to run Python there, in an empty folder and with a home of its own."""
    built, site, here = (tmp_path_factory.mktemp(name) for name in ("built", "site", "empty"))
    source = built / "source"
    source.mkdir()
    # A copy, since building leaves its traces.
    for name in ("src", "data"):
        ignored = shutil.ignore_patterns("runs", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT / name, source / name, copy_function=os.symlink, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", built, source], check=True)
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Without the module site, the editable installation of the tests' environment is not seen; its other packages are.
    packages = next(folder for folder in sys.path if folder.endswith("site-packages"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SOFTENING_")}
    environment |= {"PYTHONPATH": f"{site}{os.pathsep}{packages}", "OMP_NUM_THREADS": "1", "SOFTENING_OFFLINE": "1"}
    environment |= {"XDG_DATA_HOME": str(here.parent / "home"), "SOFTENING_CACHE": str(here.parent / "cache")}

    def run(*arguments):
        done = subprocess.run([sys.executable, "-S", *arguments], cwd=here, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run, site, here


def test_the_public_name_offers_what_it_lists_and_reads_the_data_that_came_along(installed):
    run, site, _ = installed
    code = (
        "import pathlib, softening; assert len(dir(softening)) > 10; found = [getattr(softening, name) for name in dir(softening)];"
        "from helpers import registry; print(pathlib.Path(softening.load.__code__.co_filename).parents[2]);"
        "print(registry.data_dir(), len(registry.files()))"
    )
    lines = run("-c", code).split()
    assert lines[0] == str(site)
    assert lines[1] == str(site / "softening" / "data")
    assert int(lines[2]) > 100


def test_a_run_goes_to_the_users_own_folder_and_is_found_beside_what_came_along(installed):
    run, site, here = installed
    home = here.parent / "home" / "pes-softening"
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*.parquet")}
    script = here / "run.py"
    script.write_text(
        "from helpers import results, runner\n"
        "if __name__ == '__main__':\n"
        "    runner.run('strained_cells', 'ase:ase.calculators.emt.EMT', sets=['al-shear'], processes=1, progress=False)\n"
        "    print(*results.models('strained_cells'))\n"
    )
    assert {"chgnet-0.3.0", "ase:ase.calculators.emt.EMT"} <= set(run(str(script)).split())
    assert list((home / "results" / "strained_cells").glob("*.parquet"))
    assert {path: path.stat().st_mtime_ns for path in site.rglob("*.parquet")} == before


def test_the_commands_run_in_an_empty_folder(installed):
    run, _, here = installed
    crystal = ase.build.bulk("Cu", cubic=True)
    crystal.rattle(0.05, seed=1)
    frames = []
    for seed in range(4):
        frame = crystal.copy()
        frame.rattle(0.1, seed=seed)
        frame.calc = EMT()
        frame.get_forces()
        frames.append(frame)
    ase.io.write(here / "labels.extxyz", frames)
    ase.io.write(here / "copper.cif", crystal)
    command = ("-m", "helpers.cli")
    assert "chgnet-0.3.0" in run(*command, "models")
    assert "4" in run(*command, "labels", "labels.extxyz", "--model", "chgnet-0.3.0")
    run(*command, "fix", "--model", "chgnet-0.3.0", "--labels", "labels.extxyz", "--out", "fixed")
    assert (here / "fixed" / "report.html").is_file()
    run(*command, "check", "copper.cif", "--model", "chgnet-0.3.0", "--out", "checked")
    assert (here / "checked" / "report.json").is_file()
