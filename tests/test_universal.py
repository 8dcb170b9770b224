"""A universal mending: what is kept apart, labels that two potentials agree on, the magnetic head, and a small one from end to end."""

from dataclasses import replace

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from conftest import emt, needs_mirror
from pymatgen.core import Composition
from typer.testing import CliRunner

from helpers import benchmarks, cli, explanations, potentials, registry, results
from helpers.experiments import universal
from helpers.experiments.universal import Protocol
from helpers.potentials import PotentialError, fixes
from helpers.potentials.base import Prediction
from helpers.training import trial

FEW = Protocol(n_frames=9, n_built=8, steps=2, max_atoms=16, built=0.5, replay=0.5)
BINARIES = [bulk("CuPd", "cesiumchloride", a=3.0), bulk("AgAu", "rocksalt", a=5.3), bulk("AlNi", "cesiumchloride", a=2.9)]
COLD = tuple(kind for kind in universal.KINDS if kind != "hot")


@pytest.fixture(scope="module")
def chgnet():
    return potentials.load("chgnet-0.3.0", "cpu")


@pytest.fixture
def few(monkeypatch):
    """The published crystals are three, of EMT's metals, and built ones are of these metals too."""
    monkeypatch.setattr(universal.elasticity, "records", lambda: [{"mp_id": str(k), "structure": k} for k in range(3)])
    from_dict = universal.structures.from_dict
    monkeypatch.setattr(universal.structures, "from_dict", lambda given: BINARIES[given] if isinstance(given, int) else from_dict(given))
    metals = [bulk("Cu"), bulk("Pt")]
    monkeypatch.setattr(universal, "build", lambda _, __, excluded: [one for one in metals if excluded.isdisjoint(universal.names(one))])


def test_every_kind_is_what_its_name_says(few, chgnet):
    made, crystals = universal.frames(chgnet, replace(FEW, n_frames=18), frozenset())
    assert {atoms.info["kind"] for atoms in made} == set(universal.KINDS)
    for atoms in made:
        host = Composition(atoms.info["host"])
        whole = len(atoms) % host.num_atoms == 0
        assert whole != (atoms.info["kind"] in ("vacancy", "hop")) or host.num_atoms == 1
        assert len(atoms) <= FEW.max_atoms
        assert atoms.info["formula"] == universal.names(atoms)[0]
    assert all(len(atoms) <= 2 for atoms in crystals)


def test_frames_are_the_seeds_and_the_first_of_more_are_the_same(few, chgnet):
    cold = replace(FEW, kinds=COLD, n_frames=16)
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


@needs_mirror
def test_strict_frames_show_no_compound_of_wbm_and_no_tested_element(chgnet, monkeypatch):
    """As the slow test, of two sets of a benchmark, and of those that need no file."""
    forces = benchmarks.module("off_equilibrium")
    read = {forces.SETS["wbm-21"], forces.SETS["single-element-md"], ()}
    monkeypatch.setattr(universal.registry, "available", lambda keys: tuple(keys) in read)
    excluded = universal.tested()
    wbm = {universal.names(case.structures["frame"])[0] for case in forces.cases(sets=["wbm-21"])}
    assert len(wbm) == 14  # compounds of the 21 frames
    assert wbm | {"Si", "Mo", "Cu", "Ni", "Li", "MgO"} <= excluded
    made, crystals = universal.frames(chgnet, Protocol(n_frames=60, n_built=4, kinds=COLD), excluded)
    found = {universal.names(atoms)[0] for atoms in [*made, *crystals]} | {atoms.info["host"] for atoms in made}
    assert len(found) > 40
    assert not found & excluded
    # They are kept apart by this, not by chance.
    free, _ = universal.frames(chgnet, Protocol(n_frames=60, n_built=4, kinds=COLD), frozenset())
    assert {universal.names(atoms)[0] for atoms in free} & excluded


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
    made, crystals = universal.frames(chgnet, replace(FEW, kinds=COLD), frozenset())
    settings = replace(FEW, max_force_ev_per_a=1e6)
    labels, replay, left_out = universal.label(made, crystals, (chgnet, emt(), _Disagrees()), settings)
    assert left_out == {"the two potentials disagree": 1}
    assert len(labels) == len(made) - 1
    shifts = []
    for one in labels:
        (answer,) = emt().evaluate([one.atoms])
        assert one.forces == pytest.approx(answer.forces)
        shifts.append((one.atoms.get_chemical_symbols(), one.energy - answer.energy))
    # One constant per element explains all shifts.
    elements = sorted({symbol for symbols, _ in shifts for symbol in symbols})
    counts = np.array([[symbols.count(element) for element in elements] for symbols, _ in shifts])
    _, _, rank, _ = np.linalg.lstsq(counts, [shift for _, shift in shifts], rcond=None)
    fitted = counts @ np.linalg.lstsq(counts, [shift for _, shift in shifts], rcond=None)[0]
    assert rank < len(shifts)
    assert fitted == pytest.approx([shift for _, shift in shifts], abs=1e-6)
    own = chgnet.evaluate([one.atoms for one in replay])
    assert replay
    assert [one.energy for one in replay] == pytest.approx([one.energy for one in own])


@pytest.fixture(scope="module")
def mended(tmp_path_factory):
    """A small mending by the command, its folder and what it said; teacher and second potential are the student, a quarter stiffer."""
    folder = tmp_path_factory.mktemp("mended") / "new"
    protocol, load = Protocol, potentials.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(universal, "RECIPE", universal.SHORT)
        patch.setattr(universal.mend, "__defaults__", (universal.SHORT, False))
        patch.setattr(universal, "Protocol", lambda **given: protocol(**given | universal.FEW))
        patch.setattr(potentials, "load", lambda key, *rest: load(key, *rest) if key == "chgnet-0.3.0" else _stiffer(key))
        command = ["mend", "chgnet-0.3.0", "--out", str(folder), "--device", "cpu"]
        said = CliRunner().invoke(cli.app, command)
        again = CliRunner().invoke(cli.app, command)
    return folder, said, again


def _stiffer(key):
    found = trial.stiffer(potentials.load("chgnet-0.3.0", "cpu"))
    found.key = key
    return found


def test_the_command_mends(mended, chgnet):
    folder, said, again = mended
    assert said.exit_code == 0, said.output
    about = fixes.record(folder)
    assert said.output.rstrip().endswith(f"potential: file:{folder}")
    assert about["n_labels"] == sum(about["frames"].values())
    assert f"{about['n_labels']} labels of nequix-oam-1" in said.output
    assert about["before"]["slope"] == pytest.approx(1 / trial.STIFFER, abs=0.01)
    assert about["after"]["slope"] > about["before"]["slope"] + 0.02
    # The same command finds all done.
    assert again.exit_code == 0
    told = f"{about['n_labels']} labels of"
    assert again.output.strip() == told + said.output.rpartition(told)[2].rstrip()


def test_the_magnetic_head_stays_and_moments_hardly_change(mended, chgnet):
    folder = mended[0]
    after = fixes.load(f"file:{folder}", folder, torch.device("cpu"))
    old, new = (one.network.state_dict() for one in (chgnet, after))
    head = [name for name in old if name.startswith("site_wise")]
    assert head
    assert all(torch.equal(old[name], new[name]) for name in head)
    assert any(not torch.equal(old[name], new[name]) for name in old)
    assert 0 < fixes.record(folder)["moments_change"] < 0.05


def test_the_same_seed_gives_the_same_weights(mended, chgnet, tmp_path):
    stiff = [_stiffer(key) for key in (universal.TEACHER, universal.SECOND)]
    settings = replace(Protocol(), **universal.FEW)
    found = universal.mend([chgnet, *stiff], tmp_path / "again", settings, universal.SHORT)
    assert found["weights_sha256"] == fixes.record(mended[0])["weights_sha256"]
    with pytest.raises(PotentialError, match=r"another mending \(different: protocol, recipe\)"):
        universal.mend([chgnet, *stiff], tmp_path / "again", replace(settings, seed=1), universal.SHORT)


def test_it_can_be_exported(mended, tmp_path):
    said = CliRunner().invoke(cli.app, ["export", f"file:{mended[0]}", "--to", "chgnet", "--out", str(tmp_path / "new.pth.tar")])
    assert said.exit_code == 0, said.output
    from chgnet.model import CHGNet

    salt = bulk("NaCl", "rocksalt", a=5.6)
    (own,) = fixes.load(f"file:{mended[0]}", mended[0], torch.device("cpu")).evaluate([salt])
    package = CHGNet.from_file(str(tmp_path / "new.pth.tar"))
    found = package.predict_structure(universal.AseAtomsAdaptor.get_structure(salt), task="e")["e"]
    assert float(found) * len(salt) == pytest.approx(own.energy, abs=1e-4)


def test_a_student_without_weights_is_refused(tmp_path):
    with pytest.raises(PotentialError, match="no weights"):
        universal.mend([emt(), emt(), emt()], tmp_path / "new", FEW)


def test_names_do_not_hang_on_the_order_of_elements():
    assert universal.names(ase.Atoms("SiC")) == universal.names(ase.Atoms("C2Si2")) == ("SiC", "C-Si")


@needs_mirror
def test_the_committed_table_is_of_the_quick_samples():
    """Every family has the same values before and after."""
    made = results.read("universal", "chgnet-0.3.0").query("set in ['strict', 'slow']")
    for name in made["benchmark"].unique():
        if not name:
            continue
        part = made[made["benchmark"] == name]
        assert set(part["case"].astype(str)) == {case.name for case in benchmarks.sample(name)}
        before = results.read(name, "chgnet-0.3.0")
        for family in benchmarks.families("", "control", "card").values():
            if family.benchmark == name and len(family.read(part.assign(set=part["sample"]))):
                after = explanations.rows(family, part.assign(set=part["sample"]))
                own = explanations.rows(family, before[before["case"].isin(set(after["case"]))])
                assert sorted(after["reference"].round(3)) == sorted(own["reference"].round(3))
