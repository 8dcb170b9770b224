"""What CONTRIBUTING.md and README.md show must work: their code is run here, and the template is a chapter."""

import re
import sys
import tomllib
import types
from pathlib import Path

import ase.io
import nbformat
import numpy as np
import pytest
import test_catalogue
import torch
import yaml
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_forces
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from conftest import book_script
from packaging.requirements import Requirement

from helpers import benchmarks, potentials
from helpers.potentials.ase import ASEPotential
from helpers.training import labels

ROOT = Path(__file__).resolve().parents[1]


def shown(name, page="CONTRIBUTING.md"):
    """Return a block of a page as a module."""
    text = (ROOT / page).read_text()
    (block,) = re.findall(rf"<!-- tested: {name} -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    module = types.ModuleType(f"shown_{name}")
    sys.modules[module.__name__] = module  # dataclasses look themselves up
    exec(block, module.__dict__)  # noqa: S102
    return module


@pytest.fixture(scope="module")
def morse():
    return shown("model").load("morse-ar", torch.device("cpu"), torch.float64)


def test_the_model_that_is_shown_has_the_right_forces(morse):
    argon = bulk("Ar", "fcc", a=5.3, cubic=True)
    argon.rattle(0.2, seed=0)
    argon.calc = morse.calculator()
    assert argon.get_forces() == pytest.approx(calculate_numerical_forces(argon, eps=1e-4), abs=1e-6)


def test_the_model_that_is_shown_does_not_depend_on_its_company(morse):
    small, large = bulk("Ar", "fcc", a=5.3), bulk("Ar", "fcc", a=5.0, cubic=True)
    together, alone = morse.evaluate([small, large]), [morse.evaluate([atoms])[0] for atoms in (small, large)]
    assert [p.energy for p in together] == pytest.approx([p.energy for p in alone])
    assert morse.evaluate([bulk("Cu")])[0].error is not None


def test_the_benchmark_that_is_shown_runs(monkeypatch):
    from ase.calculators.emt import EMT

    module = shown("benchmark")
    monkeypatch.setattr(benchmarks, "CATALOGUE", (*benchmarks.CATALOGUE, "lattice"))
    found = module.run(ASEPotential("emt", EMT()), module.cases())
    assert list(found.columns[: len(benchmarks.COLUMNS)]) == benchmarks.COLUMNS
    assert (found["status"] == "ok").all()
    # EMT was made for these metals.
    assert found["value"].to_numpy() == pytest.approx(found["reference"].to_numpy(), rel=0.03)
    assert module.summarise(found)["slope"].iloc[0] == pytest.approx(1, abs=0.03)
    assert set(module.TOLERANCES) == set(found["property"])
    assert module.LIVE in module.SETS
    # What the tests of all benchmarks ask of it.
    monkeypatch.setattr(benchmarks, "module", lambda name: module)
    test_catalogue.test_a_benchmark_has_the_names_of_all("lattice")
    test_catalogue.test_a_family_of_the_paper_says_how_it_is_read_and_sampled("lattice")


@pytest.mark.slow
def test_what_the_readme_shows_mends_frames_of_all_kinds(tmp_path, monkeypatch):
    """Frames of different sizes, one with atoms that are held and one that cannot be evaluated; labels are 1.25 times the forces."""
    frames = [bulk("Cu", cubic=True), bulk("Cu", cubic=True) * (2, 1, 1), bulk("Au", cubic=True), bulk("Cu")]
    frames[3].set_cell(frames[3].cell.array * 10)
    potential = potentials.load("chgnet-0.3.0", "cpu")
    for number, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=number)
        (prediction,) = potential.evaluate(atoms)
        forces = 1.25 * prediction.forces if prediction.ok else np.full((len(atoms), 3), 9.0)
        atoms.calc = SinglePointCalculator(atoms, energy=1.25 * np.nan_to_num(prediction.energy), forces=forces)
    frames[1].set_constraint(FixAtoms([0, 1, 2]))
    ase.io.write(tmp_path / "my.extxyz", frames)
    assert ase.io.read(tmp_path / "my.extxyz", 1).constraints
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="1 of 4 frames have no prediction and are left out: 3"):
        found = shown("snippet", "README.md")
    assert found.s == pytest.approx(0.8, abs=1e-4)
    assert found.mended.evaluate(frames[0])[0].forces == pytest.approx(frames[0].calc.results["forces"], abs=1e-3)


@pytest.mark.slow
def test_what_stands_for_dft_in_the_open_project_writes_labels(tmp_path, monkeypatch):
    soft, frames = potentials.load("chgnet-0.3.0", "cpu"), [bulk("MgO", "rocksalt", a=4.2, cubic=True) for _ in range(2)]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=number)
    (tmp_path / "labels").mkdir()
    ase.io.write(tmp_path / "labels" / "frames.extxyz", frames)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(potentials, "load", {"tensornet-matpes-pbe-2025.1": soft.scaled(1.25)}.__getitem__)
    shown("label", "book/teaching.md")
    for one, prediction in zip(labels.read("labels/labels.extxyz"), soft.evaluate(frames), strict=True):
        assert one.forces == pytest.approx(1.25 * prediction.forces, abs=1e-3)
        assert one.energy == pytest.approx(1.25 * prediction.energy)


def test_steps_that_are_named_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:src|data|tests|notebooks|book)/[\w./]+)`", text):
        if path not in ("notebooks/lattice_constants.ipynb",):
            assert (ROOT / path).exists(), path


def test_the_template_has_the_anatomy_of_a_chapter():
    sys.path.insert(0, str(ROOT / "tests"))
    from test_book import test_chapters_have_the_house_anatomy as anatomy

    anatomy(ROOT / "book" / "template.ipynb")


def test_a_new_chapter_is_a_copy_with_its_title(tmp_path):
    chapter = book_script("new_chapter")
    path = chapter.copy("lattice_constants", 'Lattice "constants"', tmp_path)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith('# Lattice "constants"\n')
    for name, title, why in (("lattice_constants", "x", "exists"), ("Two words", "x", "lower-case"), ("y", " ", "title")):
        with pytest.raises(ValueError, match=why):
            chapter.copy(name, title, tmp_path)


def test_dead_links_of_sources_are_found(tmp_path):
    check = book_script("check")
    (tmp_path / "there.md").write_text("x")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md#here) [b](gone.md) [c](https://doi.org/1) `[d](gone.md)`\n```\n[e](gone.md)\n```\n")
    assert check.dead_links(page) == ["gone.md"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("[x](no.ipynb)")])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    assert check.dead_links(tmp_path / "n.ipynb") == ["no.ipynb"]
    assert check.sources() == 0


def test_hooks_use_tools_of_the_lock():
    locked = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "requirements.lock").read_text().split()}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in hooks:
        tool = Path(hook["entry"].split()[0]).name
        assert tool == "python" or tool in locked, tool


def test_container_and_binder_install_the_lock():
    """Neither names a version of its own, so they cannot drift from the lock."""
    docker, binder = (ROOT / "Dockerfile").read_text(), (ROOT / ".binder" / "postBuild").read_text()
    assert "make .venv/.lab" in docker
    assert "-c requirements.lock" in binder
    minor = re.search(r"FROM python:3\.(\d+)", docker).group(1)
    assert f"python-3.{minor}" in (ROOT / ".binder" / "runtime.txt").read_text()
    for text in (docker, binder):
        assert not re.search(r"[a-z]==\d", text)


def test_printing_without_a_browser_says_what_to_install(monkeypatch):
    served = book_script("served")
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(served.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="install Chromium"):
        served.chromium()
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    with pytest.raises(FileNotFoundError, match="CHROMIUM=/no/such/browser"):
        served.chromium()


def test_forms_for_issues_are_valid():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.stem != "config":
            assert {"name", "description", "body"} <= set(form)
            ids = [part["id"] for part in form["body"]]
            assert len(ids) == len(set(ids)) == len(form["body"])
            assert all(set(part) <= {"type", "id", "attributes", "validations"} for part in form["body"])


def test_spelling_and_printing_tools_are_requirements_of_developers():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(entry).name for entry in project["optional-dependencies"]["dev"]}
    assert {"codespell", "pre-commit", "pypdf", "ruff", "nbstripout", "pytest"} <= names
