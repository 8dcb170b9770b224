"""Labels checked by themselves, and written for the trainers: each trainer's own reader finds the numbers again."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from conftest import EMT_KEY, frames_of_copper
from typer.testing import CliRunner

from helpers import cli
from helpers.potentials.mace import contained
from helpers.training import label_check, labels

GPA_PER_EV_A3 = 160.21766208


def command(*arguments: object) -> tuple[int, str]:
    """Run ``softening labels`` beside EMT and return its exit status and what it says."""
    outcome = CliRunner().invoke(cli.app, ["labels", *map(str, arguments), "-m", EMT_KEY])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.output


def spoiled(atoms, **answers):
    """Return a copy with other answers; those that are None are taken away."""
    copy = atoms.copy()
    results = {name: value for name, value in {**atoms.calc.results, **answers}.items() if value is not None}
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Names of files are long here; a table that does not fit the terminal would be written in blocks."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.traj"
    ase.io.write(path, frames_of_copper(6))
    return path


@pytest.fixture
def mixed(tmp_path):
    """Six good frames, one without forces, one with gradients, one repeated."""
    images = frames_of_copper(8)
    images[3] = spoiled(images[3], forces=None)
    images[5] = spoiled(images[5], forces=-images[5].calc.results["forces"])
    path = tmp_path / "mixed.traj"
    ase.io.write(path, [*images, images[0]])
    return path


def test_good_labels(good):
    status, said = command(good, "--strict")
    assert status == 0
    assert said.count("energy forces stress  good") == 6
    assert "6 good" in said


def test_each_frame_has_a_verdict_and_a_reason(mixed, tmp_path):
    status, said = command(mixed, "--json", tmp_path / "found.json")
    assert status == 2
    assert "6 good, 2 bad, 1 duplicate" in said
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {row["frame"]: row for row in found["frames"]}
    assert [rows[k]["verdict"] for k in range(9)] == ["good"] * 3 + ["bad", "good", "bad"] + ["good"] * 2 + ["duplicate"]
    assert "no forces" in rows[3]["reason"]
    assert not rows[3]["forces"]
    assert "change their sign" in rows[5]["reason"]
    assert "the same structure as" in rows[8]["reason"]
    assert found["model"] == EMT_KEY


def test_what_is_wrong_with_all_frames_is_so_of_each(tmp_path):
    images = [spoiled(atoms, forces=atoms.calc.results["forces"] / 51.4221) for atoms in frames_of_copper(6)]
    ase.io.write(tmp_path / "labels.traj", images)
    status, said = command(tmp_path / "labels.traj", "--json", tmp_path / "a.json")
    assert status == 2
    assert "hartree/bohr" in said
    assert "6 bad" in said
    assert all("hartree/bohr" in row["reason"] for row in json.loads((tmp_path / "a.json").read_text())["frames"])


def test_the_exit_status_of_warnings(tmp_path):
    images = frames_of_copper(6)
    ase.io.write(tmp_path / "labels.traj", [*images, images[2]])
    assert command(tmp_path / "labels.traj")[0] == 0
    assert command(tmp_path / "labels.traj", "--strict")[0] == 1


def test_forces_only_ignores_a_wrong_stress(tmp_path):
    images = [spoiled(atoms, stress=-atoms.calc.results["stress"]) for atoms in frames_of_copper(6)]
    ase.io.write(tmp_path / "labels.traj", images)
    status, said = command(tmp_path / "labels.traj")
    assert status == 2
    assert "wrong sign" in said
    assert command(tmp_path / "labels.traj", "--forces-only")[0] == 0


def test_many_good_frames_are_counted_not_listed(tmp_path):
    images = frames_of_copper(cli.MANY + 1)
    images[7] = spoiled(images[7], forces=None)
    ase.io.write(tmp_path / "labels.traj", images)
    status, said = command(tmp_path / "labels.traj")
    assert status == 2
    assert f"{cli.MANY} good, 1 bad" in said
    assert said.count("Cu") < 5


@pytest.mark.parametrize("trainer", label_check.TRAINERS)
def test_good_frames_are_written_and_read_again(mixed, tmp_path, trainer):
    out = tmp_path / "clean.extxyz"
    status, said = command(mixed, "--write", out, "--for", trainer)
    assert status == 2
    assert f"written for {trainer}" in said
    again, before = labels.read(out), labels.read(mixed)
    assert len(again) == 6
    for frame, k in zip(again, (0, 1, 2, 4, 6, 7), strict=True):
        np.testing.assert_allclose(frame.forces, before[k].forces, atol=1e-7)
        np.testing.assert_allclose(frame.stress, before[k].stress, atol=1e-7)
        assert frame.energy == pytest.approx(before[k].energy, abs=1e-7)
    assert command(out, "--strict")[0] == 0


@pytest.mark.slow
def test_mace_reads_it(good, tmp_path):
    out = tmp_path / "clean.extxyz"
    command(good, "--write", out, "--for", "mace")
    with contained():
        from mace.data.utils import KeySpecification, load_from_xyz, update_keyspec_from_kwargs
        from mace.tools.default_keys import DefaultKeys

    keys = update_keyspec_from_kwargs(KeySpecification(), DefaultKeys.keydict())
    _, configurations = load_from_xyz(str(out), key_specification=keys)
    assert len(configurations) == 6
    for configuration, atoms in zip(configurations, frames_of_copper(6), strict=True):
        assert configuration.properties["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(configuration.properties["forces"], atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(configuration.properties["stress"], atoms.get_stress(), atol=1e-7)
        assert {configuration.property_weights[name] for name in ("energy", "forces", "stress")} == {1.0}


@pytest.mark.slow
def test_matgl_reads_it(good, tmp_path):
    from matgl.utils.training import MGLDatasetLoader

    out = tmp_path / "clean.extxyz"
    command(good, "--write", out, "--for", "matgl")
    dataset = MGLDatasetLoader.from_extxyz(out, element_types=("Cu",), save_cache=False, root=str(tmp_path / "cache"))
    assert len(dataset) == 6
    for k, atoms in enumerate(frames_of_copper(6)):
        np.testing.assert_allclose(dataset.labels["forces"][k], atoms.get_forces(), atol=1e-6)
        stress = np.asarray(dataset.labels["stresses"][k]) / GPA_PER_EV_A3
        np.testing.assert_allclose(full_3x3_to_voigt_6_stress(stress), atoms.get_stress(), atol=1e-7)


def test_sevennet_finds_a_free_energy(good, tmp_path):
    """It asks ASE for the energy that the forces belong to."""
    command(good, "--write", tmp_path / "clean.xyz", "--for", "sevennet")
    for atoms, before in zip(ase.io.read(tmp_path / "clean.xyz", ":"), frames_of_copper(6), strict=True):
        assert atoms.get_potential_energy(force_consistent=True) == pytest.approx(before.get_potential_energy(), abs=1e-7)


def test_what_a_trainer_cannot_take_is_left_out_and_said(tmp_path):
    images = frames_of_copper(6)
    images[1] = spoiled(images[1], energy=None)
    images[2] = spoiled(images[2], stress=None)
    held = images[4].calc.results["forces"].copy()
    held[0] = 0
    images[4] = spoiled(images[4], forces=held)
    path = tmp_path / "labels.traj"
    ase.io.write(path, images)
    status, said = command(path, "--write", tmp_path / "m.extxyz", "--for", "matgl")
    assert status == 0
    assert "no stress was written" in said
    assert "matgl needs energies" in said
    assert "forces of held atoms are zero" in said
    assert [frame.stress for frame in labels.read(tmp_path / "m.extxyz")] == [None] * 4
    command(path, "--write", tmp_path / "n.extxyz", "--for", "mace")
    assert [frame.stress is None for frame in labels.read(tmp_path / "n.extxyz")] == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.extxyz"], "no such file"),
        (["GOOD", "--write", "there.extxyz"], "nothing is overwritten"),
        (["GOOD", "--write", "no/there.extxyz"], "there is no folder"),
        (["GOOD", "--write", "clean.cif"], "must end with .extxyz or .xyz"),
        (["GOOD", "--json", "there.extxyz"], "must end with .json"),
        (["GOOD", "--write", "new.extxyz", "--for", "gap"], "none of mace, matgl, sevennet"),
    ],
)
def test_refusals(good, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.extxyz").write_text("mine")
    with pytest.raises(ValueError, match=said):
        command(*(good if argument == "GOOD" else argument for argument in arguments))
    assert (tmp_path / "there.extxyz").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"good.traj", "there.extxyz"}


def test_no_good_frame_writes_nothing(tmp_path):
    ase.io.write(tmp_path / "labels.traj", [spoiled(atoms, forces=None) for atoms in frames_of_copper(3)])
    with pytest.raises(ValueError, match="no good frame is left"):
        command(tmp_path / "labels.traj", "--write", tmp_path / "clean.extxyz")
    assert not (tmp_path / "clean.extxyz").exists()


def test_what_is_read_back_must_be_the_same(good, tmp_path, monkeypatch):
    written = label_check.as_written
    monkeypatch.setattr(label_check, "as_written", lambda frame, trainer: spoiled(written(frame, trainer), energy=frame.energy + 1e-3))
    with pytest.raises(ValueError, match="was removed"):
        command(good, "--write", tmp_path / "clean.extxyz")
    assert {path.name for path in tmp_path.iterdir()} == {"good.traj"}
