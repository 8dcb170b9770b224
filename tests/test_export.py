"""Mended potentials that leave the project: each is loaded by its own package, and a file that is not the mended potential is not left."""

from __future__ import annotations

import os
import re
import shutil

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from chgnet.model import CHGNet, CHGNetCalculator
from conftest import build_mace, needs_mirror
from typer.testing import CliRunner

from helpers import cli, potentials
from helpers.potentials import PotentialError, export, fixes
from helpers.potentials.ase import ASEPotential
from helpers.potentials.ase import load as load_ase
from helpers.potentials.mace import UNSAFE_UNPICKLING, contained
from helpers.training import fine_tune
from helpers.training.fine_tune import Label, Recipe

FACTOR = 1.2


def crystal(formula: str = "MgO", a: float = 4.25, seed: int = 7):
    """Return a distorted rock salt that is none of those the command compares."""
    atoms = bulk(formula, "rocksalt", a=a, cubic=True)
    atoms.set_cell(atoms.cell.array + np.diag([0.1, -0.05, 0.0]), scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def mended(folder, key: str, change=lambda potential: potential.scaled(FACTOR), method: str = "linear") -> str:
    """Write a mended potential and return its key."""
    base = potentials.load(key, "cpu", trust=True)
    folder.mkdir()
    about = {"method": method, "n_labels": 1, "trained": method != "linear", "base_sha256": base.describe()["weights_sha256"]}
    fixes.save(folder, change(base), key, about)
    return f"file:{folder}"


def trained(potential):
    """Return a potential after two steps of training."""
    atoms = crystal()
    (answer,) = potential.scaled(FACTOR).evaluate([atoms])
    recipe = Recipe(epochs=2, learning_rate=1e-3, validation_fraction=0, keep="last")
    return fine_tune.fine_tune(potential, [Label(atoms, answer.energy, answer.forces)], recipe).potential


def assert_same(calculator, key: str, atoms, forces: float = 1e-4) -> None:
    """Compare a calculator with the potential of a key, which must be another one than the potential it was made from."""
    potential = potentials.load(key, "cpu", trust=True)
    base = fixes.record(fixes.folder_of(key))["base"]["key"]
    (expected,) = potential.evaluate([atoms], stress=True)
    (found,) = ASEPotential("exported", calculator).evaluate([atoms], stress=True)
    assert found.error is None
    assert found.energy == pytest.approx(expected.energy, abs=1e-4)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=forces)
    np.testing.assert_allclose(found.stress, expected.stress, rtol=0, atol=1e-5)
    if base in potentials.CATALOGUE:
        (before,) = potentials.load(base, "cpu").evaluate([atoms])
        assert np.abs(found.forces - before.forces).max() > 10 * forces


@pytest.fixture(scope="module")
def chgnet_fix(tmp_path_factory):
    return mended(tmp_path_factory.mktemp("chgnet") / "fix", "chgnet-0.3.0")


@pytest.mark.slow
def test_fix_prints_the_command_that_exports(tmp_path, monkeypatch):
    """From labels to a file that CHGNet loads, as a user types it."""
    monkeypatch.chdir(tmp_path)
    frames = []
    for seed in range(2):
        atoms = crystal(seed=seed)
        (answer,) = potentials.load("chgnet-0.3.0", "cpu").scaled(FACTOR).evaluate([atoms])
        atoms.calc = SinglePointCalculator(atoms, energy=answer.energy, forces=answer.forces)
        frames.append(atoms)
    ase.io.write("my.extxyz", frames)
    fixed = CliRunner().invoke(cli.app, ["fix", "-m", "chgnet-0.3.0", "-l", "my.extxyz", "-o", "my-fix"])
    assert fixed.exit_code == 0, fixed.output
    (command,) = re.findall("softening (export .*)", fixed.output)
    exported = CliRunner().invoke(cli.app, command.split())
    assert exported.exit_code == 0, exported.output
    assert "forces" in exported.output
    assert "CHGNet.from_file('chgnet_my_fix.pth.tar')" in exported.output
    assert_same(CHGNetCalculator(CHGNet.from_file("chgnet_my_fix.pth.tar"), use_device="cpu"), "file:my-fix", crystal(), forces=3e-4)


@pytest.mark.slow
def test_chgnet_after_training(tmp_path):
    key = mended(tmp_path / "fix", "chgnet-0.3.0", trained, "full")
    path = tmp_path / "net.pth.tar"
    differences, _ = export.export(key, "chgnet", path)
    assert set(differences) == {"energy", "forces", "stress"}
    assert max(differences.values()) < 5e-4
    assert_same(CHGNetCalculator(CHGNet.from_file(str(path)), use_device="cpu"), key, crystal(), forces=3e-4)


def test_an_older_chgnet_takes_its_settings_along(tmp_path):
    key = mended(tmp_path / "fix", "chgnet-0.2.0")
    path = tmp_path / "net.pth.tar"
    export.export(key, "chgnet", path)
    assert_same(CHGNetCalculator(CHGNet.from_file(str(path)), use_device="cpu"), key, crystal(), forces=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scale and shift", "pair repulsion", "plain"])
def test_mace(tmp_path, kind):
    """MACE's own calculator and torch-sim's wrapper load it; the factor multiplies reference energies and repulsion as well."""
    settings = {"pair_repulsion": True, "distance_transform": "Agnesi"} if kind == "pair repulsion" else {}
    network = build_mace(scale_shift=kind != "plain", **settings)
    torch.save(network, tmp_path / "base.model")
    key = mended(tmp_path / "fix", f"file:{tmp_path / 'base.model'}")
    before = torch.get_default_dtype()
    path = tmp_path / "net.model"
    export.export(key, "mace", path, trust=True)
    assert torch.get_default_dtype() == before
    with contained():
        from mace.calculators import MACECalculator
        from torch_sim.models.mace import MaceModel

        os.environ[UNSAFE_UNPICKLING] = "1"
        calculators = [MACECalculator(model_paths=str(each), device="cpu") for each in (path, tmp_path / "base.model")]
        wrapper = MaceModel(torch.load(path, weights_only=False), device=torch.device("cpu"), dtype=torch.float64)
    torch.set_default_dtype(before)
    atoms = crystal("FeO", 4.3)
    assert_same(calculators[0], key, atoms)
    new, old = (ASEPotential("mace", calculator).evaluate([atoms])[0] for calculator in calculators)
    assert new.energy == pytest.approx(FACTOR * old.energy, rel=1e-9)
    import torch_sim as ts

    torch.set_default_dtype(before)
    assert wrapper(ts.io.atoms_to_state([atoms], "cpu", torch.float64))["energy"].item() == pytest.approx(new.energy, rel=1e-9)


def test_a_factor_that_mace_has_no_place_for(tmp_path):
    torch.save(build_mace(scale_shift=False, pair_repulsion=True, distance_transform="Agnesi"), tmp_path / "base.model")
    key = mended(tmp_path / "fix", f"file:{tmp_path / 'base.model'}")
    with pytest.raises(PotentialError, match=r"no weight multiplies.*Use --to ase"):
        export.export(key, "mace", tmp_path / "net.model", trust=True)


@pytest.mark.slow
@needs_mirror
@pytest.mark.parametrize("change", ["factor", "training"])
def test_a_legacy_tensornet_is_written_in_matgls_present_convention(tmp_path, change):
    import matgl
    from matgl.ext.ase import PESCalculator

    how = (trained, "full") if change == "training" else ()
    key = mended(tmp_path / "fix", "tensornet-matpes-pbe-2025.1", *how)
    export.export(key, "matgl", tmp_path / "net")
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"model.json", "model.pt", "state.pt"}
    assert_same(PESCalculator(matgl.load_model(tmp_path / "net"), stress_unit="eV/A3"), key, crystal())


@needs_mirror
def test_a_legacy_m3gnet_is_refused_for_matgl(tmp_path):
    key = mended(tmp_path / "fix", "m3gnet-mp-2021.2.8")
    with pytest.raises(PotentialError, match=r"far end of each bond.*Use --to ase"):
        export.export(key, "matgl", tmp_path / "net")
    assert "--to ase --out ase_fix.py" in export.command(key, potentials.load(key, "cpu"))


def test_a_module_stands_by_itself(chgnet_fix, tmp_path):
    """The folder it was made from may be gone."""
    folder = shutil.copytree(fixes.folder_of(chgnet_fix), tmp_path / "gone")
    path = tmp_path / "my_fix.py"
    export.export(f"file:{folder}", "ase", path)
    shutil.rmtree(folder)
    assert_same(load_ase(f"ase:{path}:calculator").wrapped, chgnet_fix, crystal())
    assert str(tmp_path) not in path.read_text()


def test_a_calculator_of_ones_own_goes_into_a_module(tmp_path):
    key = mended(tmp_path / "fix", "ase:ase.calculators.emt.EMT")
    record = fixes.folder_of(key) / fixes.RECORD
    record.write_text(record.read_text().replace('"format"', '"elements": ["Cu", "Au"], "format"', 1))
    with pytest.raises(PotentialError, match="Use --to ase"):
        export.export(key, "mace", tmp_path / "net.model", trust=True)
    differences, _ = export.export(key, "ase", tmp_path / "my_fix.py", trust=True)
    assert differences == {"energy": 0.0, "forces": 0.0, "stress": 0.0}


@pytest.mark.parametrize(
    ("model", "form", "out", "said"),
    [
        ("file:nowhere", "chgnet", "a.tar", "is no mended potential"),
        ("chgnet-0.3.0", "chgnet", "a.tar", "is no mended potential"),
        (None, "lammps", "a.tar", "none of chgnet, matgl, mace, ase"),
        (None, "mace", "a.model", r"made from chgnet-0.3.0, of another architecture. Use --to chgnet"),
        (None, "chgnet", "there.tar", "nothing is overwritten"),
        (None, "chgnet", "no/a.tar", "there is no folder"),
        (None, "ase", "my-fix.py", "could not be imported"),
        (None, "ase", "my_fix.txt", "could not be imported"),
    ],
)
def test_refusals(chgnet_fix, tmp_path, monkeypatch, model, form, out, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.tar").write_text("mine")
    with pytest.raises((PotentialError, ValueError), match=said):
        export.export(model or chgnet_fix, form, out)
    assert [path.name for path in tmp_path.iterdir()] == ["there.tar"]
    assert (tmp_path / "there.tar").read_text() == "mine"


def test_a_folder_without_a_record_and_one_that_was_changed(chgnet_fix, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PotentialError, match=r"without mended\.json"):
        export.export(f"file:{tmp_path / 'empty'}", "chgnet", tmp_path / "a.tar")
    folder = shutil.copytree(fixes.folder_of(chgnet_fix), tmp_path / "changed")
    text = (folder / fixes.RECORD).read_text()
    (folder / fixes.RECORD).write_text(re.sub(r'("weights_sha256": ")\w', r"\g<1>x", text))
    with pytest.raises(PotentialError, match="Mend it again"):
        export.export(f"file:{folder}", "chgnet", tmp_path / "a.tar")


@pytest.mark.parametrize("fault", ["wrong", "failing"])
def test_what_differs_is_removed(chgnet_fix, tmp_path, monkeypatch, fault):
    wrong = {"wrong": potentials.load(chgnet_fix, "cpu").scaled(1.001), "failing": ASEPotential("nothing", None)}[fault]
    monkeypatch.setattr(export, "_loaded", lambda form, path: wrong.calculator())
    with pytest.raises(PotentialError, match=r"a\.tar was removed: on crystal 1 of the 20"):
        export.export(chgnet_fix, "chgnet", tmp_path / "a.tar")
    assert not list(tmp_path.iterdir())
