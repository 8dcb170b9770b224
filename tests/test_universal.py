"""A universal mending: what is kept apart, the zero of energies, labels that two potentials agree on, and a small one from end to end."""

import copy
from dataclasses import replace

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from conftest import emt, needs_mirror
from pymatgen.core import Composition

from helpers import benchmarks, potentials, registry
from helpers.potentials import PotentialError, fixes
from helpers.potentials.base import Prediction
from helpers.reports import universal
from helpers.reports.universal import Protocol

FEW = Protocol(n_frames=9, n_built=8, steps=2, max_atoms=16, built=0.5, replay=0.5)
BINARIES = [bulk("CuPd", "cesiumchloride", a=3.0), bulk("AgAu", "rocksalt", a=5.3), bulk("AlNi", "cesiumchloride", a=2.9)]


@pytest.fixture(scope="module")
def chgnet():
    return potentials.load("chgnet-0.3.0", "cpu")


@pytest.fixture
def few(monkeypatch):
    """The published crystals are three, of EMT's metals, and built ones are of these metals too."""
    monkeypatch.setattr(universal, "published", lambda elements, protocol: BINARIES)
    monkeypatch.setattr(universal, "build", lambda student, protocol, excluded: [bulk("Cu"), bulk("Pt")])


def test_every_kind_is_what_its_name_says(few, chgnet):
    made, crystals = universal.frames(chgnet, replace(FEW, n_frames=18), frozenset())
    assert {atoms.info["kind"] for atoms in made} == set(universal.KINDS)
    for atoms in made:
        host = Composition(atoms.info["host"])
        whole = len(atoms) % host.num_atoms == 0
        assert whole != (atoms.info["kind"] in ("vacancy", "hop")) or host.num_atoms == 1
        assert len(atoms) <= FEW.max_atoms
        assert atoms.info["formula"] == universal.names(atoms)[0]
    assert all("temperature_k" in atoms.info for atoms in made if atoms.info["kind"] == "hot")
    assert all(len(atoms) <= 2 for atoms in crystals)


def test_frames_are_the_seeds_and_the_first_of_more_are_the_same(few, chgnet):
    kinds = tuple(kind for kind in universal.KINDS if kind != "hot")
    cold = replace(FEW, kinds=kinds, n_frames=16)
    made, again, fewer = (universal.frames(chgnet, one, frozenset())[0] for one in (cold, cold, replace(cold, n_frames=8)))
    other = universal.frames(chgnet, replace(cold, seed=1), frozenset())[0]
    assert made == again
    assert made[:8] == fewer
    assert made != other


def test_what_is_excluded_is_in_no_frame_and_is_no_host(few, chgnet):
    excluded = frozenset({"AgAu", "Al-Ni", "Cu", "Pt"})
    made, crystals = universal.frames(chgnet, replace(FEW, n_frames=16), excluded)
    assert len(made) == 16
    for atoms in [*made, *crystals]:
        assert excluded.isdisjoint(universal.names(atoms))
    assert excluded.isdisjoint(atoms.info["host"] for atoms in made)


@pytest.mark.slow
@needs_mirror
def test_strict_frames_share_no_formula_with_any_test(chgnet, monkeypatch):
    own = set()
    for name in set(benchmarks.CATALOGUE) - set(benchmarks.EXPERIMENTS):
        known = benchmarks.module(name)
        found = known.cases(sets=[one for one in known.SETS if registry.available(known.SETS[one])])
        own |= {Composition(atoms.get_chemical_formula()).reduced_formula for case in found for atoms in case.structures.values()}
        # Reading them once takes long enough.
        monkeypatch.setattr(known, "cases", lambda protocol=None, sets=None, found=found: found)
    assert len(own) > 1500
    assert {"MgO", "Si", "Mo", "AlNi"} <= own
    made, crystals = universal.frames(chgnet, Protocol(n_frames=120, n_built=16, steps=2), universal.tested())
    names = {Composition(atoms.get_chemical_formula()).reduced_formula for atoms in [*made, *crystals]}
    assert len(names) > 60
    assert not (names | {atoms.info["host"] for atoms in made}) & own
    # No mixture of a solid solution's elements, whatever its composition.
    assert not {Composition(name).chemical_system for name in names} & {"Mo-Nb", "Ta-W", "Ca-Mg-O", "Al-C-N-Si"}


def test_constants_of_the_elements_are_found():
    crystals = [bulk("NaCl", "rocksalt", a=5.6), bulk("MgO", "rocksalt", a=4.2), bulk("Mg"), bulk("NaO", "rocksalt", a=5.0), bulk("Na")]
    wanted = {"Na": 0.3, "Cl": -1.2, "Mg": 0.1, "O": 0.7}
    gap = np.array([np.mean([wanted[symbol] for symbol in atoms.symbols]) for atoms in crystals])
    found, residual = universal.zero(crystals, gap)
    assert found == pytest.approx(wanted)
    assert residual == pytest.approx(0, abs=1e-12)
    # One degree of freedom is left.
    _, residual = universal.zero(crystals, gap + np.array([0, 0.02, 0, 0, 0]))
    assert residual == pytest.approx(0.02 / np.sqrt(2.5))  # over the direction (0, 1, -½, -1, ½), which the constants cannot say
    assert np.isnan(universal.zero(crystals[:1], gap[:1])[1])


def test_labels_on_which_two_potentials_disagree_are_left_out():
    rng, protocol = np.random.default_rng(0), Protocol()
    forces = rng.normal(0, 1, (8, 3))
    first = Prediction(-1.0, forces, np.zeros((3, 3)))

    def beside(change):
        return universal.refused(first, replace(first, forces=forces + change), protocol)

    assert not beside(0.1)
    assert "disagree" in beside(0.6)
    # Small forces may differ by a share of the floor.
    small = replace(first, forces=forces * 1e-3)
    assert not universal.refused(small, replace(small, forces=small.forces + 0.02), protocol)
    assert "above 20" in universal.refused(replace(first, forces=forces * 30), first, protocol)
    assert "failed" in universal.refused(first, Prediction.failed(8, "no"), protocol)


class _Disagrees:
    """EMT, but for one frame."""

    def __init__(self):
        self.key, self.potential = "second", emt()

    def evaluate(self, frames, **settings):
        found = self.potential.evaluate(frames, **settings)
        return [
            replace(one, forces=-one.forces) if frame.info.get("number") == 1 else one for frame, one in zip(frames, found, strict=True)
        ]


def test_labels_are_the_teachers_on_the_students_zero(few, chgnet):
    kinds = tuple(kind for kind in universal.KINDS if kind != "hot")
    made, crystals = universal.frames(chgnet, replace(FEW, kinds=kinds), frozenset())
    data = universal.label(made, crystals, (chgnet, emt(), _Disagrees()), replace(FEW, max_force_ev_per_a=1e6))
    assert data.left_out == {"the two potentials disagree": 1}
    assert len(data.labels) == len(made) - 1
    for one in data.labels:
        (answer,) = emt().evaluate([one.atoms])
        assert one.forces == pytest.approx(answer.forces)
        assert one.energy == pytest.approx(answer.energy + sum(data.constants[symbol] for symbol in one.atoms.symbols))
    own = chgnet.evaluate([one.atoms for one in data.replay])
    assert data.replay
    assert [one.energy for one in data.replay] == pytest.approx([one.energy for one in own])


@pytest.mark.slow
def test_a_small_mending_from_end_to_end(few, chgnet, tmp_path, monkeypatch):
    known = {"chgnet-0.3.0": chgnet, "teacher": emt(), "second": emt()}
    load = potentials.load
    monkeypatch.setattr(universal.potentials, "load", lambda key, *rest, **more: copy.deepcopy(known.get(key)) or load(key, *rest, **more))
    protocol = replace(FEW, variant="all", max_force_ev_per_a=1e6)
    recipe = replace(universal.RECIPE, epochs=2, batch_size=4, validation_fraction=0.3)
    settings = {"protocol": protocol, "recipe": recipe, "device": "cpu"}
    found = universal.mend("chgnet-0.3.0", "teacher", "second", tmp_path / "mended", **settings)
    assert found["n_labels"] == sum(found["frames"].values())
    assert 0 < found["before"]["n"] == found["after"]["n"]
    assert universal.mend("chgnet-0.3.0", "teacher", "second", tmp_path / "mended", **settings) == found
    mended = fixes.load(f"file:{tmp_path / 'mended'}", tmp_path / "mended", torch.device("cpu"))
    before, after = chgnet.evaluate([BINARIES[0]])[0], mended.evaluate([BINARIES[0]])[0]
    assert after.energy != pytest.approx(before.energy, abs=1e-4)
    with pytest.raises(PotentialError, match="other settings"):
        universal.mend("chgnet-0.3.0", "teacher", "second", tmp_path / "mended", device="cpu")


def test_moments_are_those_of_the_package(chgnet):
    iron, salt = bulk("Fe"), bulk("NaCl", "rocksalt", a=5.6)
    found = universal.moments(chgnet, [iron, salt])
    assert found.shape == (3,)
    assert found[0] > 2
    assert found[1:] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("wrong", [{"variant": "loose"}, {"kinds": ("molten",)}, {"kinds": ()}, {"n_frames": 0}])
def test_settings_that_make_no_frames_are_refused(wrong):
    with pytest.raises(ValueError, match="strict"):
        Protocol(**wrong)


def test_a_student_without_weights_is_refused(tmp_path):
    with pytest.raises(PotentialError, match="no weights"):
        universal.mend("ase:ase.calculators.emt.EMT", "chgnet-0.3.0", "chgnet-0.3.0", tmp_path / "new", device="cpu")


def test_names_do_not_hang_on_the_order_of_elements():
    assert universal.names(ase.Atoms("SiC")) == universal.names(ase.Atoms("C2Si2")) == ("SiC", "C-Si")
