"""Recipes for potentials with environments of their own: what can be tried without their weights is tried where their packages are."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from helpers import potentials

ROOT = Path(__file__).resolve().parents[1]
FACTORIES = ROOT / "examples" / "potentials.py"
SEVENNET = ("sevennet_may", "sevennet_l3i5", "sevennet_mf_pbe", "sevennet_mf_r2scan")


def answers(factory):
    """Evaluate a strained crystal through the door of a reader's own calculator; forces must be the slope of the energy."""
    atoms = bulk("Si", a=5.5, cubic=True)
    atoms.rattle(0.05, seed=2)
    step = np.zeros((8, 3))
    step[3, 0] = 5e-3
    moved = [atoms.copy(), atoms.copy(), atoms.copy()]
    moved[1].positions += step
    moved[2].positions -= step
    middle, plus, minus = potentials.load(f"ase:{FACTORIES}:{factory}").evaluate(moved, stress=True)
    assert not any(one.error for one in (middle, plus, minus))
    assert middle.forces[3, 0] == pytest.approx(-(plus.energy - minus.energy) / 1e-2, abs=2e-2)
    assert np.abs(middle.forces.sum(axis=0)).max() < 1e-3
    return middle


@pytest.mark.skipif(not find_spec("sevenn"), reason="needs make env-sevennet")
@pytest.mark.parametrize("factory", SEVENNET)
def test_the_models_that_sevennets_package_carries(factory):
    assert -18 < answers(factory).energy / 4 < -10


@pytest.mark.skipif(not find_spec("orb_models"), reason="needs make env-orb")
def test_orb_with_random_weights(monkeypatch):
    from orb_models.forcefield import pretrained

    monkeypatch.setattr(pretrained, "load_model", lambda model, *args, **kwargs: model.eval())
    answers("orb")


@pytest.mark.skipif(not find_spec("mattersim"), reason="needs make env-mattersim")
def test_mattersim_with_random_weights(monkeypatch):
    from mattersim.forcefield import Potential
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet

    monkeypatch.setattr(Potential, "from_checkpoint", lambda load_path, device, **_: Potential(M3Gnet(device=device), device=device))
    answers("mattersim")


def test_the_page_lists_every_recipe():
    """Each factory, and the environment that it needs."""
    page = (ROOT / "book" / "own-environment.md").read_text()
    factories = {one.name for one in ast.parse(FACTORIES.read_text()).body if isinstance(one, ast.FunctionDef)}
    listed = dict(re.findall(r"^\| `(\w+)` \| `env-(\w+)` \|", page, re.M))
    assert set(listed) == {name for name in factories if not name.startswith("_")}
    assert all((ROOT / "environments" / f"{name}.txt").is_file() for name in listed.values())
