"""MACE: the numbers of its own calculator and of torch-sim's wrapper, and files that must not be opened."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import ase
import numpy as np
import pytest
import torch
import torch_sim as ts
from ase.build import bulk
from conftest import build_mace, distorted

from helpers import potentials, registry
from helpers.potentials import PotentialError
from helpers.potentials import mace as adapter
from helpers.potentials.mace import contained
from helpers.training import fine_tune
from helpers.training.fine_tune import Label, Recipe

CPU = torch.device("cpu")


def load(path, dtype=torch.float64):
    return potentials.load(f"file:{path}", CPU, dtype=dtype, trust=True)


def mace_calculator(network: torch.nn.Module, dtype: str = "float64", **options):
    with contained():
        from mace.calculators import MACECalculator

    return MACECalculator(models=[copy.deepcopy(network)], device="cpu", default_dtype=dtype, **options)


def structures() -> list[ase.Atoms]:
    """Return small structures of iron, oxygen and silicon."""
    zincblende = bulk("SiO", "zincblende", a=4.6, cubic=True)
    zincblende.rattle(0.1, seed=2)
    return [*distorted("Fe", "O", 4.3).values(), zincblende]


def compare(potential, calculator, energy_per_atom: float, force: float, stress: float) -> None:
    chosen = structures()
    predictions = potential.evaluate(chosen, stress=True)
    largest = 0.0
    for atoms, prediction in zip(chosen, predictions, strict=True):
        assert prediction.error is None
        atoms.calc = calculator
        assert abs(prediction.energy - atoms.get_potential_energy()) / len(atoms) < energy_per_atom
        np.testing.assert_allclose(prediction.forces, atoms.get_forces(), rtol=0, atol=force)
        np.testing.assert_allclose(prediction.stress, atoms.get_stress(voigt=False), rtol=0, atol=stress)
        largest = max(largest, np.abs(prediction.forces).max())
    assert largest > 0.1, "forces this small would prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize("scale_shift", [True, False], ids=["ScaleShiftMACE", "MACE"])
def test_agrees_with_maces_calculator(tmp_path, scale_shift):
    network = build_mace(scale_shift=scale_shift)
    if not scale_shift:
        # Random weights without the scale give forces too small to compare.
        with torch.no_grad():
            for readout in network.readouts:
                for weight in readout.parameters():
                    weight *= 10
    path = tmp_path / "network.model"
    torch.save(network, path)
    compare(load(path), mace_calculator(network), 1e-9, 1e-9, 1e-10)


@pytest.mark.slow
def test_agrees_in_single_precision(mace_file):
    network = torch.load(mace_file, weights_only=False)
    potential = load(mace_file, torch.float32)
    assert potential.network_dtype == torch.float32
    compare(potential, mace_calculator(network, "float32"), 1e-5, 1e-4, 1e-5)
    compare(potential, mace_calculator(network, "float64"), 1e-5, 1e-4, 1e-5)


# What mace-torch 0.3.16 keeps in a network and 0.3.3, of the time of MACE-MP-0, did not.
YOUNGER = {
    "apply_cutoff", "cueq_config", "edge_irreps", "heads", "lammps_mliap", "num_heads", "oeq_config", "use_agnostic_product",
    "use_edge_irreps_first", "use_last_readout_only", "use_reduced_cg", "use_so3",
}  # fmt: skip


def age(network: torch.nn.Module) -> None:
    """Take from a network what files of the time of MACE-MP-0 lack."""
    lost = set()
    for module in network.modules():
        young = [name for name in vars(module) if name in YOUNGER]
        lost.update(young)
        for name in young:
            del vars(module)[name]
        if type(module).__name__ == "Contraction":
            for name in [name for name, _ in module.named_buffers() if name.endswith("_zeroed")]:
                delattr(module, name)
    assert lost == YOUNGER
    network.radial_embedding.cutoff_fn.p = network.radial_embedding.cutoff_fn.p.double()  # became an integer later


def test_a_file_of_the_time_of_mace_mp_0(tmp_path):
    """It gives what the whole network gives, describes itself and can be trained."""
    network = build_mace(use_reduced_cg=False)
    calculator = mace_calculator(network)
    age(network)
    path = tmp_path / "old.model"
    torch.save(network, path)
    potential = load(path)
    compare(potential, calculator, 1e-9, 1e-9, 1e-10)
    assert potential.describe()["convention"] == "package, head Default"
    atoms = structures()[0]
    (answer,) = potential.scaled(1.3).evaluate([atoms])
    labels = [Label(atoms, answer.energy, answer.forces)]
    recipe = Recipe(epochs=2, learning_rate=1e-3, energy_weight=0, validation_fraction=0, keep="last")
    outcome = fine_tune.fine_tune(potential, labels, recipe)
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


def test_agrees_with_torch_sims_wrapper(mace_file):
    with contained():
        from torch_sim.models.mace import MaceModel

    network = torch.load(mace_file, weights_only=False)
    state = ts.io.atoms_to_state(structures(), CPU, torch.float64)
    expected = MaceModel(network, device=CPU, dtype=torch.float64)(state)
    potential = load(mace_file)
    potential.compute_stress = True
    found = potential(state)
    for name in ("energy", "forces", "stress"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_the_default_head_is_used(tmp_path):
    network = build_mace(heads=["pretrained", "Default"])
    path = tmp_path / "heads.model"
    torch.save(network, path)
    potential = load(path)
    assert potential.describe()["convention"] == "package, head Default"
    compare(potential, mace_calculator(network, head="Default"), 1e-9, 1e-9, 1e-10)
    (ours,) = potential.evaluate(structures()[:1])
    atoms = structures()[0]
    atoms.calc = mace_calculator(network, head="pretrained")
    assert abs(ours.energy - atoms.get_potential_energy()) > 0.1


def test_heads_without_a_default_are_refused(tmp_path):
    path = tmp_path / "heads.model"
    torch.save(build_mace(heads=["mp", "omat"]), path)
    with pytest.raises(PotentialError, match=r"heads.model has the heads mp, omat; extract one of them with mace_select_head"):
        load(path)


def test_describe(mace_file):
    potential = load(mace_file)
    described = potential.describe()
    assert described["elements"] == ["O", "Si", "Fe"]
    assert described["weights_sha256"] == registry.sha256(mace_file)
    assert described["cutoff_a"] == potential.cutoff == 4.5
    assert described["training_set"] == "not stated"
    assert load(mace_file, torch.float32).bytes_per_edge == potential.bytes_per_edge / 2 > 1000


def test_an_unknown_file_is_not_opened(mace_file):
    with pytest.raises(PotentialError, match=r"small.model: SHA-256 [0-9a-f]{64} is not in the registry.*trust=True.*--trust"):
        potentials.load(f"file:{mace_file}", "cpu")


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (self.mark, "w")


@pytest.mark.parametrize("key", ["file:", "mace-mp-0-medium", "mace-mpa-0-medium"])
def test_code_in_an_unknown_file_does_not_run(tmp_path, key):
    path, mark = tmp_path / "bomb.model", tmp_path / "mark"
    torch.save(Bomb(str(mark)), path)
    with pytest.raises(PotentialError, match=r"bomb.model: SHA-256 .* is not in the registry"):
        potentials.load(f"file:{path}", "cpu") if key == "file:" else adapter.load(key, [path], CPU)
    assert not mark.exists()
    with pytest.raises(PotentialError, match=r"bomb.model holds a TextIOWrapper, not a MACE network"):
        potentials.load(f"file:{path}", "cpu", trust=True)
    assert mark.exists()


def test_a_registered_file_is_opened(mace_file, monkeypatch):
    row = registry.RegisteredFile("x", "weights", "https://example.org/x", registry.sha256(mace_file), 0, "x", "MIT", "none")
    monkeypatch.setattr(registry, "files", lambda: [row])
    assert potentials.load(f"file:{mace_file}", "cpu").describe()["family"] == "MACE"
    potential = adapter.load("mace-mp-0-medium", [mace_file], CPU)
    assert potential.key == "mace-mp-0-medium"
    assert potential.describe()["training_set"] == "MPtrj (PBE, PBE+U)"


def test_the_registered_checksum_and_size_of_mace_mp_0():
    """The checksum is the one published with the weights. A wrong size would refuse the right file."""
    (name,) = potentials.CATALOGUE["mace-mp-0-medium"].weights
    assert registry.lookup(name).sha256 == "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845"
    assert registry.lookup(name).size == 44_422_970


def test_files_that_are_no_mace(tmp_path, mace_file):
    with pytest.raises(PotentialError, match=r"cannot read the model file .*missing.model: No such file"):
        load(tmp_path / "missing.model")
    with pytest.raises(PotentialError, match="cannot read the model file"):
        load(tmp_path)

    text = tmp_path / "text.model"
    text.write_text("this is no model")
    truncated = tmp_path / "truncated.model"
    truncated.write_bytes(mace_file.read_bytes()[:20_000])
    empty = tmp_path / "empty.model"
    empty.touch()
    unknown_class = tmp_path / "class.model"
    unknown_class.write_bytes(b"cno_such_module\nNoSuchClass\n.")
    for path in (text, truncated, empty, unknown_class):
        with pytest.raises(PotentialError, match=f"{path.name} cannot be opened as a MACE model file"):
            load(path)

    linear = tmp_path / "linear.model"
    torch.save(torch.nn.Linear(2, 2), linear)
    weights = tmp_path / "weights.model"
    torch.save(torch.nn.Linear(2, 2).state_dict(), weights)
    for path, kind in ((linear, "Linear"), (weights, "OrderedDict")):
        with pytest.raises(PotentialError, match=f"{path.name} holds a {kind}, not a MACE network for energies"):
            load(path)


@pytest.mark.slow
def test_safe_unpickling_stays_on(mace_file, tmp_path):
    """In a fresh process, where MACE is imported for the first time."""
    bomb = tmp_path / "bomb.pt"
    torch.save(Bomb(str(tmp_path / "mark")), bomb)
    program = f"""
import os, pickle, sys, torch
from ase.build import bulk
from helpers import potentials
assert "mace" not in sys.modules
before = dict(os.environ)
potential = potentials.load({f"file:{mace_file}"!r}, "cpu", trust=True)
assert "mace" in sys.modules
assert potential.evaluate([bulk("Fe")])[0].ok
assert dict(os.environ) == before
assert torch.serialization.get_safe_globals().count(slice) == 0
try:
    torch.load({str(bomb)!r})
except pickle.UnpicklingError:
    print("refused")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_FORCE")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_the_environment_is_put_back(monkeypatch, value):
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)

    def fail() -> None:
        with contained():
            os.environ[name] = "1"
            raise pickle.UnpicklingError("also when something goes wrong")

    with pytest.raises(pickle.UnpicklingError):
        fail()
    assert os.environ.get(name) == value


@pytest.mark.slow
@pytest.mark.parametrize("how", ["low-rank", "last-layer"])
def test_less_than_all_weights_are_fine_tuned(mace_file, how):
    """Low-rank corrections, those of MACE's package, leave the network as it was built, and equivariant."""
    potential = load(mace_file)
    frames = structures()[:2]
    answers = potential.scaled(1.3).evaluate(frames)
    labels = [Label(atoms, p.energy, p.forces) for atoms, p in zip(frames, answers, strict=True)]
    less = {"rank": 2} if how == "low-rank" else {"trained": fine_tune.part(potential, how)}
    recipe = Recipe(epochs=5, learning_rate=1e-2, energy_weight=0, validation_fraction=0, keep="last", **less)
    outcome = fine_tune.fine_tune(potential, labels, recipe)
    assert outcome.history[-1]["loss"] < 0.97 * outcome.history[0]["loss"]
    assert 0 < outcome.n_trained < sum(p.numel() for p in potential.network.parameters())
    old, new = potential.network.state_dict(), outcome.potential.network.state_dict()
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    if how == "last-layer":
        assert all(name.startswith(("readouts.", "interactions.1.", "products.1.")) for name in changed)

    atoms = labels[0].atoms.copy()
    (straight,) = outcome.potential.evaluate([atoms])
    # The merged network is one that MACE's own calculator can use.
    atoms.calc = mace_calculator(outcome.potential.network)
    np.testing.assert_allclose(straight.forces, atoms.get_forces(), rtol=0, atol=1e-9)
    atoms.rotate(37, (1, 2, 3), rotate_cell=True)
    (turned,) = outcome.potential.evaluate([atoms])
    assert turned.energy == pytest.approx(straight.energy, abs=1e-8)
    np.testing.assert_allclose(np.linalg.norm(turned.forces, axis=1), np.linalg.norm(straight.forces, axis=1), atol=1e-8)


@pytest.mark.parametrize("trust", [False, True])
def test_a_web_page_is_no_model_file_and_no_matter_of_trust(tmp_path, trust):
    """What a proxy sent in its place, saved under the name of the model."""
    path = tmp_path / "network.model"
    path.write_bytes(b"<!doctype html><title>Sign in</title>")
    with pytest.raises(PotentialError, match=r"network.model is a web page, .*fetch the model file again"):
        potentials.load(f"file:{path}", "cpu", trust=trust)


def test_a_path_is_a_model_file(mace_file):
    assert potentials.load(mace_file, "cpu", trust=True).key == f"file:{mace_file}"
    with pytest.raises(PotentialError, match=f"unknown model '{mace_file}'.*Write file:{mace_file} for that file or folder"):
        potentials.load(str(mace_file), "cpu", trust=True)
