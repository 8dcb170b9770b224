"""The three ways to the same environment: lock, pyproject, conda."""

import re
import shutil
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from conftest import book_script
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {normal(name): pin for name, pin in (line.split("==") for line in lines if line.strip() and not line.startswith("#"))}


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = [re.match(r"[A-Za-z0-9_.-]+", line)[0] for line in project["dependencies"]]
    extras = [re.match(r"[A-Za-z0-9_.-]+", line)[0] for group in project["optional-dependencies"].values() for line in group]
    return {normal(name) for name in core}, {normal(name) for name in extras}


def test_everything_declared_is_pinned():
    core, extras = declared()
    assert core | extras <= set(lock())


def test_the_tests_run_in_the_locked_environment():
    core, _ = declared()
    wrong = {name: (version(name), lock()[name]) for name in core if version(name).split("+")[0] != lock()[name]}
    assert not wrong, f"installed and locked versions differ: {wrong}"


def test_conda_gives_the_same_versions():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert "-c requirements.lock" in pip, "what is not named here must come from the lock, too"
    assert "-e ." in pip
    pins = {normal(name): pin for name, pin in (line.split("==") for line in pip if "==" in line)}
    core, _ = declared()
    assert set(pins) >= core
    assert pins == {name: lock()[name] for name in pins}


def test_the_lock_names_no_address():
    assert "://" not in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_the_makefile_has(path):
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    asked = re.findall(r"\bmake ([a-z-]+)", "\n".join(step.get("run", "") for job in jobs for step in job["steps"]))
    assert asked
    assert set(asked) <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_tests_run_on_every_python_that_is_allowed():
    versions = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    allowed = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    assert versions == [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}.0" in allowed]


def test_a_release_says_what_is_missing_and_passes_when_all_agree(tmp_path):
    release = book_script("release")
    for name in ("pyproject.toml", "CITATION.cff", ".zenodo.json", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    number = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    news = (tmp_path / "CHANGELOG.md").read_text()
    (tmp_path / "CHANGELOG.md").write_text(re.sub("^## .*$", f"## {number} (2030-01-02)", news, count=1, flags=re.MULTILINE))
    citation = "\n".join(line for line in (ROOT / "CITATION.cff").read_text().splitlines() if not line.startswith("date-released"))
    (tmp_path / "CITATION.cff").write_text(citation + "\ndate-released: 2030-01-02\n")
    assert release.problems(tmp_path, "2030-01-02") == []
    wrong = release.problems(tmp_path, "2030-01-03")
    assert len(wrong) == 2
    assert "CITATION.cff has date-released" in wrong[0]
    assert "CHANGELOG.md begins with" in wrong[1]
    (tmp_path / "CITATION.cff").write_text(citation.replace(f"version: {number}", "version: 9.9").replace("softening", "hardening"))
    assert {text.split()[0] for text in release.problems(tmp_path, "2030-01-02")} == {"CITATION.cff", ".zenodo.json"}
