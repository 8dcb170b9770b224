"""SevenNet-0, which runs in an environment of its own: there everything is tested, here that one is sent there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from helpers import potentials, results

ROOT = Path(__file__).resolve().parents[1]
KEY = "sevennet-0"

here = pytest.mark.skipif(not potentials.installed(KEY), reason="needs make env-sevennet")


@pytest.mark.skipif(potentials.installed(KEY), reason="SevenNet is installed here")
def test_one_is_sent_to_its_environment():
    assert not potentials.runnable(KEY)
    with pytest.raises(potentials.PotentialError, match="make env-sevennet"):
        potentials.load(KEY)


@here
def test_it_gives_what_its_own_calculator_gives():
    from sevenn.calculator import SevenNetCalculator

    rng = np.random.default_rng(1)
    frames = [bulk("MgO", "rocksalt", a=4.21, cubic=True), bulk("Si", a=5.43), bulk("Cu", a=3.6) * (2, 1, 1)]
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    calculator = SevenNetCalculator("7net-0", device="cpu")
    for atoms, ours in zip(frames, potentials.load(KEY, "cpu").evaluate(frames, stress=True), strict=True):
        atoms.calc = calculator
        assert ours.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5 * len(atoms))
        assert np.abs(ours.forces - atoms.get_forces()).max() < 1e-5
        assert np.abs(ours.stress - atoms.get_stress(voigt=False)).max() < 1e-6


@here
def test_only_the_known_checkpoint_is_opened(monkeypatch):
    from helpers.potentials import sevennet

    monkeypatch.setitem(sevennet.WEIGHTS, KEY, (sevennet.WEIGHTS[KEY][0], "0" * 64))
    with pytest.raises(potentials.PotentialError, match="SHA-256"):
        potentials.load(KEY)


@here
def test_forces_are_the_slope_of_the_energy():
    double = potentials.load(KEY, "cpu", dtype=torch.float64)
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.rattle(0.1, seed=3)
    step = np.zeros((4, 3))
    step[2, 1] = 1e-4
    plus, minus, middle = double.evaluate([_moved(atoms, step), _moved(atoms, -step), atoms])
    assert middle.forces[2, 1] == pytest.approx(-(plus.energy - minus.energy) / 2e-4, abs=1e-6)
    single = potentials.load(KEY, "cpu").evaluate([atoms])[0]
    assert np.abs(single.forces - middle.forces).max() < 1e-5


def _moved(atoms, by):
    moved = atoms.copy()
    moved.positions += by
    return moved


def test_its_tables_name_its_packages():
    families = ("surfaces", "defects", "solid_solutions", "phonons", "elasticity", "migration", "off_equilibrium", "strained_cells")
    made = [results.provenance(name, KEY) for name in families]
    for provenance in made:
        assert provenance["packages"]["sevenn"] in (ROOT / "environments" / "sevennet.txt").read_text()
        assert provenance["potential"]["weights_sha256"].startswith("7052cb42")


@pytest.mark.parametrize("path", sorted((ROOT / "environments").glob("*.txt")), ids=lambda path: path.stem)
def test_environments_take_from_the_lock_what_they_do_not_pin(path):
    locked = {line.split("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines()}
    for line in path.read_text().replace("-r core.txt", "").splitlines():
        name = re.match(r"[A-Za-z0-9_.-]+", line)
        if name and "==" not in line:
            assert name[0].lower() in locked, line
