"""Off-equilibrium forces: every file format, the columns that filters need, failures, and what scaling a model does to its slope."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections import Counter
from pathlib import Path

import ase
import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import needs_mirror

from helpers import figures, registry, results, softening, structures
from helpers.benchmarks import COLUMNS, Case
from helpers.benchmarks import off_equilibrium as off
from helpers.potentials.ase import ASEPotential
from helpers.potentials.base import Prediction
from helpers.sources import Frame, snap, trajectories

# Softness of EMT against the made-up reference of these tests.
SOFT = 0.8


@pytest.fixture
def emt():
    return ASEPotential("ase:EMT", EMT())


def rattled_cu(seed: int, a: float = 3.6) -> ase.Atoms:
    atoms = bulk("Cu", "fcc", a=a, cubic=True)
    atoms.positions += np.random.default_rng(seed).normal(0, 0.1, atoms.positions.shape)
    return atoms


def with_results(atoms: ase.Atoms, seed: int = 0, **info: object) -> ase.Atoms:
    """Attach made-up results in ASE's units; they differ from frame to frame."""
    random = np.random.default_rng(seed)
    stress = random.normal(0, 0.05, (3, 3))
    stress = stress + stress.T
    forces = random.normal(0, 1, (len(atoms), 3))
    atoms = atoms.copy()
    atoms.info.update(info)
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0 * len(atoms) + seed, forces=forces, stress=stress)
    return atoms


def pymatgen_dict(atoms: ase.Atoms) -> dict:
    """Return what pymatgen's ``Structure.as_dict`` holds of a structure."""
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": abc.tolist(), "xyz": xyz.tolist(), "label": symbol}
        for symbol, abc, xyz in zip(atoms.get_chemical_symbols(), atoms.get_scaled_positions(wrap=False), atoms.positions, strict=True)
    ]
    return {"@module": "pymatgen.core.structure", "@class": "Structure", "lattice": {"matrix": atoms.cell.array.tolist()}, "sites": sites}


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """Give the registry's keys files that a test has written: ``publish(key, name)`` returns the path to write to."""
    paths = {}

    def place(key: str, name: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        paths[key] = path
        return path

    monkeypatch.setattr(registry, "fetch", paths.__getitem__)
    return place


def made_up_cases(potential, chosen: str = "extreme", n_materials: int = 2, n_frames: int = 3, **info: object) -> list[Case]:
    """Return Cu frames whose reference forces are the potential's own divided by ``SOFT``."""
    found = []
    for material in range(n_materials):
        for frame in range(n_frames):
            atoms = rattled_cu(100 * material + frame)
            prediction = potential.evaluate([atoms], stress=True)[0]
            reference = {"energy": prediction.energy, "forces": prediction.forces / SOFT, "stress": prediction.stress}
            name = f"{chosen}/Cu{material}/{frame}"
            found.append(Case(name, chosen, f"Cu{material}", {"frame": atoms}, reference, off.INFO | info))
    return found


# ---------------------------------------------------------------------------------------------------
# What filters need


@pytest.mark.parametrize(
    ("formula", "flag"),
    [
        ("NiO", True),
        ("VF4", True),
        ("Fe2O3", True),
        ("MgO", False),
        ("FeS", False),
        ("Zn2TiO4", False),
        ("LiF", False),
        ("W", False),
        ("ZrMoO3", True),
    ],
)
def test_u_flag(formula, flag):
    assert structures.has_u_metal_with_o_or_f(ase.Atoms(formula).get_chemical_symbols()) is flag


def test_pressure_is_positive_under_compression():
    assert off.pressure_gpa(-np.eye(3) * units.GPa) == pytest.approx(1.0)
    for a, sign in ((3.4, 1), (3.8, -1)):
        atoms = bulk("Cu", "fcc", a=a)
        atoms.calc = EMT()
        assert np.sign(off.pressure_gpa(atoms.get_stress(voigt=False))) == sign


# ---------------------------------------------------------------------------------------------------
# File formats


def test_mattersim_trajectories(publish):
    """Shuffled frames are put in order; a compound is a stretch of ids, whether primitive cell or supercell, and polymorphs differ."""
    rocksalt, caesium = bulk("NiO", "rocksalt", a=4.2), bulk("NiO", "cesiumchloride", a=2.6)
    other = bulk("MgS", "rocksalt", a=5.2)
    frames = [rocksalt, rocksalt.repeat((2, 1, 1)), rocksalt, other, other, caesium, caesium]
    first, second = off.SETS["mattersim-tp"]
    written = [with_results(atoms, seed, internal_id=f"mpf-TP-{seed:06d}") for seed, atoms in enumerate(frames)]
    ase.io.write(publish(first, "mpf-TP.xyz"), [written[i] for i in (6, 2, 4, 0, 5, 1, 3)], format="extxyz")
    alone = with_results(other, 9, internal_id="mpf-alkali-TP-000000")
    ase.io.write(publish(second, "mpf-alkali-TP.xyz"), [alone], format="extxyz")

    found = off.cases(sets=["mattersim-tp"])
    assert [case.name for case in found[:7]] == [f"mattersim-tp/mpf-TP-{i:06d}" for i in range(7)]
    assert [case.material for case in found] == ["NiO"] * 3 + ["MgS"] * 2 + ["NiO (2)"] * 2 + ["MgS (2)"]
    assert [case.info["source_file"] for case in found] == ["mpf-TP.xyz"] * 7 + ["mpf-alkali-TP.xyz"]
    assert [case.info["has_u_metal_with_o_or_f"] for case in found] == [True] * 3 + [False] * 2 + [True] * 2 + [False]
    for case, atoms in zip(found, [*written, alone], strict=True):
        assert case.reference["energy"] == pytest.approx(atoms.get_potential_energy())
        assert case.reference["forces"] == pytest.approx(atoms.get_forces(), abs=1e-7)
        assert case.reference["stress"] == pytest.approx(atoms.get_stress(voigt=False))
        assert case.info["pressure_gpa"] == pytest.approx(-np.trace(atoms.get_stress(voigt=False)) / 3 * 160.21766)
        assert case.structures["frame"].calc is None
        assert case.structures["frame"].pbc.all()


def test_wbm_21(publish):
    (key,) = off.SETS["wbm-21"]
    atoms = with_results(bulk("MgO", "rocksalt", a=4.2), 3)
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    plain = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    plain.info.update(REF_energy=-11.5, REF_stress=stress.ravel())
    plain.arrays["REF_forces"] = forces
    plain.set_initial_magnetic_moments([1.0, 0.0])
    ase.io.write(publish(key, "valid.xyz"), plain, format="extxyz")
    (case,) = off.cases(sets=["wbm-21"])
    assert (case.material, case.reference["energy"]) == ("MgO", -11.5)
    assert case.reference["forces"] == pytest.approx(forces, abs=1e-7)
    assert case.reference["stress"] == pytest.approx(stress)
    assert not case.structures["frame"].has("initial_magmoms")


def test_mptrj(publish):
    (key,) = off.SETS["mptrj-1k"]
    frames = [with_results(rattled_cu(i), i, mptrj_traj_id="mp-30", mptrj_snapshot_id=f"mp-30-0-{i}") for i in range(2)]
    ase.io.write(publish(key, "mptrj.xyz"), frames, format="extxyz")
    found = off.cases(sets=["mptrj-1k"])
    assert [case.name for case in found] == ["mptrj-1k/mp-30-0-0", "mptrj-1k/mp-30-0-1"]
    assert {case.material for case in found} == {"mp-30"}
    assert found[1].reference["forces"] == pytest.approx(frames[1].get_forces(), abs=1e-7)


def test_single_elements(publish, monkeypatch):
    """Two layouts, two orders of the shears, kbar with the opposite sign, and frames that are in both sources."""
    keys = [key for key in off.SETS["single-element-md"] if "/Cu/" in key or "/Li/" in key]
    monkeypatch.setitem(off.SETS, "single-element-md", tuple(keys))
    kbar = [10.0, 20.0, 30.0, 1.0, 2.0, 3.0]
    shared, own = rattled_cu(1), rattled_cu(2)
    forces = np.random.default_rng(0).normal(size=(2, 4, 3)).tolist()

    def mlearn(element, atoms, description, group, number):
        outputs = {"energy": -16.0 - number, "forces": forces[number][: len(atoms)], "virial_stress": kbar}
        return {"structure": pymatgen_dict(atoms), "element": element, "group": group, "description": description, "outputs": outputs}

    def snap(atoms, number):
        outputs = {"energy": -16.0 - number, "forces": forces[number], "stress": [10.0, 20.0, 30.0, 1.0, 3.0, 2.0]}
        return {"structure": pymatgen_dict(atoms), "group": "Cu", "params": {}, "outputs": outputs}

    lithium = bulk("Li", "bcc", a=3.44)
    content = {
        "mlearn/data/Li/training.json": [mlearn("Li", lithium, "Li 1x1x1 cell, mode 4, strain 0.01", "Elastic", 0)],
        "mlearn/data/Li/test.json": [],
        "mlearn/data/Cu/test.json": [mlearn("Cu", shared, "Snapshot 6 of 40 of AIMD NVT simulation at 1000 K", "AIMD-NVT", 0)],
        "snap/Cu/training/AIMD.json": [snap(shared, 0), snap(own, 1)],
        "snap/Cu/training/Vacancy.json": [],
    }
    for key in keys:
        (name,) = [name for name in content if key.endswith(name)]
        publish(key, name).write_text(json.dumps(content[name]))

    li, mlearn_cu, snap_cu = off.cases(sets=["single-element-md"])
    assert [case.material for case in (li, mlearn_cu, snap_cu)] == ["Li", "Cu", "Cu"]
    assert [case.info["split"] for case in (li, mlearn_cu, snap_cu)] == ["train", "test", "train"]
    assert [case.info["group"] for case in (li, mlearn_cu, snap_cu)] == ["Elastic", "AIMD-NVT", "AIMD-NVT"]
    assert mlearn_cu.info["temperature_k"] == 1000
    assert np.isnan([li.info["temperature_k"], snap_cu.info["temperature_k"]]).all()
    # 10 kbar are 1 GPa, and compression is negative in ASE's convention.
    assert mlearn_cu.info["pressure_gpa"] == pytest.approx(2.0)
    in_gpa = {case.name: case.reference["stress"] / units.GPa for case in (li, mlearn_cu, snap_cu)}
    assert np.diag(in_gpa[li.name]) == pytest.approx([-1, -2, -3])
    assert in_gpa[li.name][[1, 0, 0], [2, 2, 1]] == pytest.approx([-0.2, -0.3, -0.1])
    assert in_gpa[mlearn_cu.name][[1, 0, 0], [2, 2, 1]] == pytest.approx([-0.3, -0.2, -0.1])
    assert in_gpa[snap_cu.name] == pytest.approx(in_gpa[mlearn_cu.name])
    assert snap_cu.reference["energy"] == -17.0
    assert snap_cu.structures["frame"].positions == pytest.approx(own.positions)


def wbm_record(atoms: ase.Atoms) -> dict:
    return {"structure": pymatgen_dict(atoms), "vasp_f": atoms.get_forces().tolist(), "vasp_e": atoms.get_potential_energy()}


@pytest.fixture
def wbm_full(monkeypatch, tmp_path):
    """Put a small file of the figshare layout into an otherwise empty download cache."""
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path))
    (key,) = off.SETS["wbm-full"]
    path = tmp_path / registry.lookup(key).mirror_path
    frames = {str(i): with_results(rattled_cu(i), i) for i in range(2)}
    content = {"mp-973966": {name: wbm_record(atoms) | {"vasp_s": (100 * np.eye(3)).tolist()} for name, atoms in frames.items()}}
    content["wbm-1-2"] = {"0": wbm_record(with_results(bulk("NiO", "rocksalt", a=4.2)))}

    def write():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    return write, frames, content


def test_wbm_full(wbm_full):
    write, frames, _ = wbm_full
    write()
    found = off.cases(sets=["wbm-full"])
    assert [case.material for case in found] == ["mp-973966", "mp-973966", "wbm-1-2"]
    assert found[1].reference["forces"] == pytest.approx(frames["1"].get_forces())
    assert found[1].structures["frame"].positions == pytest.approx(frames["1"].positions)
    assert found[0].info["pressure_gpa"] == pytest.approx(10.0)
    assert found[0].reference["stress"] == pytest.approx(-10 * units.GPa * np.eye(3))
    assert np.isnan(found[2].info["pressure_gpa"])
    assert found[2].info["has_u_metal_with_o_or_f"]


def test_wbm_full_is_in_the_default_only_if_it_is_local(wbm_full, monkeypatch):
    write, _, _ = wbm_full
    monkeypatch.setattr(off, "SETS", {name: off.SETS[name] for name in ("wbm-full", "rattled-crystals")})
    assert {case.set for case in off.cases()} == {"rattled-crystals"}
    write()
    assert {case.set for case in off.cases()} == {"wbm-full", "rattled-crystals"}


def test_broken_reference_is_refused(wbm_full):
    write, _, content = wbm_full
    del content["mp-973966"]["1"]["vasp_f"][0]
    write()
    with pytest.raises(ValueError, match="wbm-full/mp-973966/1: 4 atoms, but forces of shape"):
        off.cases(sets=["wbm-full"])


def test_unknown_set():
    with pytest.raises(KeyError, match="wbm-22"):
        off.cases(sets=["wbm-22"])


def test_every_registered_file_belongs_to_a_set():
    registered = {file.key for file in registry.files("off_equilibrium")}
    assert registered == {key for keys in off.SETS.values() for key in keys}


# ---------------------------------------------------------------------------------------------------
# The live set


def test_rattled_crystals_are_always_the_same():
    first, second = off.cases(sets=[off.LIVE]), off.cases(sets=[off.LIVE])
    assert len(first) == 18
    assert len({case.name for case in first}) == 18
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.structures["frame"].positions, other.structures["frame"].positions)
        assert one.reference == {}
    other_seed = off.cases(off.Protocol(seed=1), sets=[off.LIVE])
    assert not np.allclose(first[0].structures["frame"].positions, other_seed[0].structures["frame"].positions)
    # NumPy keeps the stream of this generator for ever: the first atom of the first crystal sits at 0.1 Å times its first numbers.
    expected = 0.1 * np.random.RandomState(2025).standard_normal(3)
    assert first[0].structures["frame"].positions[0] == pytest.approx(expected)


def test_rattled_crystals_are_crystals():
    """Composition, density and nearest distances are those of the named compound; strain changes the cell alone."""
    exact = off.cases(off.Protocol(rattle_a=0.0), sets=[off.LIVE])
    nearest = {"MgO": 2.106, "Si": 2.352, "Cu": 2.556, "CsCl": 3.571, "CaF2": 2.366, "SrTiO3": 1.9525}
    for case in exact:
        atoms, strain = case.structures["frame"], float(case.name.split("/")[-1])
        assert trajectories.formula(atoms) == case.material
        distances = atoms.repeat(2).get_all_distances(mic=True)
        assert distances[distances > 0].min() == pytest.approx(nearest[case.material] * (1 + strain), abs=2e-3)
    assert Counter(case.name.split("/")[-1] for case in exact) == {"-0.030": 6, "+0.000": 6, "+0.030": 6}


@pytest.mark.slow
def test_live_set_with_the_embedded_model(load_model):
    found = off.cases(sets=[off.LIVE])
    table = off.run(load_model("chgnet-0.3.0"), found)
    assert (table["status"] == "ok").all()
    assert table["reference"].isna().all()
    assert np.isfinite(table["value"]).all()
    forces = table[table["property"] == "force"]
    assert len(forces) == 3 * sum(len(case.structures["frame"]) for case in found)
    assert set(table["property"]) <= set(off.TOLERANCES)
    assert off.headline(table).empty


# ---------------------------------------------------------------------------------------------------
# Tables


def test_table(emt):
    found = made_up_cases(emt, n_materials=1, n_frames=2, pressure_gpa=3.0, group="AIMD-NVT")
    table = off.run(emt, found, off.Protocol(stress=True))
    assert list(table.columns) == [*COLUMNS, *off.INFO, "atom", "component"]
    assert len(table) == 2 * (12 + 1 + 6)
    strings = ["model", "set", "material", "case", "property", "unit", "status", "reason", "component", "group"]
    assert all(isinstance(table[column].dtype, pd.CategoricalDtype) for column in strings)
    assert table["value"].dtype == table["reference"].dtype == np.float32
    assert (table["status"] == "ok").all()
    assert (table["reason"] == "").all()
    assert (table["pressure_gpa"] == 3).all()

    case = found[1]
    prediction = emt.evaluate([case.structures["frame"]], stress=True)[0]
    rows = table[table["case"] == case.name]
    forces = rows[rows["property"] == "force"].pivot_table(index="atom", columns="component", values=["value", "reference"], observed=True)
    assert forces["value"].to_numpy() == pytest.approx(prediction.forces, abs=5.1e-5)
    assert forces["reference"].to_numpy() == pytest.approx(prediction.forces / SOFT, abs=5.1e-5)
    assert set(rows.loc[rows["property"] == "force", "unit"]) == {"eV/Å"}
    (energy,) = rows.loc[rows["property"] == "energy_per_atom", "value"]
    assert energy == pytest.approx(prediction.energy / 4, abs=1e-6)
    stress = rows[rows["property"] == "stress"].set_index(rows.loc[rows["property"] == "stress", "component"].astype(str))
    for name, (i, j) in {"xx": (0, 0), "yy": (1, 1), "zz": (2, 2), "yz": (1, 2), "xz": (0, 2), "xy": (0, 1)}.items():
        assert stress.loc[name, "value"] == pytest.approx(prediction.stress[i, j], abs=1e-6)
        assert stress.loc[name, "reference"] == stress.loc[name, "value"]


def test_forces_are_rounded(emt):
    table = off.run(emt, made_up_cases(emt, n_materials=1, n_frames=1))
    forces = table.loc[table["property"] == "force", ["value", "reference"]].to_numpy(dtype=float)
    assert forces * 1e4 == pytest.approx(np.round(forces * 1e4), abs=1e-2)


def test_no_cases(emt):
    table = off.run(emt, [], off.Protocol(stress=True))
    assert table.empty
    assert list(table.columns[: len(COLUMNS)]) == COLUMNS


def test_a_failed_frame_is_one_row(emt):
    found = made_up_cases(emt)
    found[1].structures["frame"].positions[0, 0] = np.nan
    table = off.run(emt, found)
    assert table["case"].nunique() == len(found)
    (row,) = table[table["case"] == found[1].name].to_dict("records")
    assert (row["property"], row["status"], row["atom"], row["component"]) == ("force", "failed", -1, "")
    assert np.isnan(row["value"])
    assert "not a number" in row["reason"]
    (summary,) = off.summarise(table).to_dict("records")
    assert (summary["n_frames"], summary["n_failed_frames"], summary["n_components"]) == (6, 1, 60)
    assert summary["slope"] == pytest.approx(SOFT, rel=1e-3)


def test_a_set_that_failed_altogether_keeps_its_row(emt):
    found = made_up_cases(emt) + made_up_cases(emt, "mptrj-1k", n_materials=1, n_frames=1)
    found[-1].structures["frame"].positions[:] = np.inf
    summary = off.summarise(off.run(emt, found)).set_index("set")
    assert summary.loc["mptrj-1k", ["n_frames", "n_failed_frames"]].tolist() == [1, 1]
    assert np.isnan(summary.loc["mptrj-1k", "slope"])
    assert summary.loc["extreme", "slope"] == pytest.approx(SOFT, rel=1e-3)
    only_failures = off.summarise(off.run(emt, found[-1:]))
    assert only_failures["n_failed_frames"].tolist() == [1]


class Stressless(Calculator):
    """A calculator of forces alone."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.ones((len(atoms), 3))}


def test_a_model_without_stress_says_so(emt):
    found = made_up_cases(emt, n_materials=1, n_frames=2)
    table = off.run(ASEPotential("ase:stressless", Stressless()), found, off.Protocol(stress=True))
    stress = table[table["property"] == "stress"]
    assert len(stress) == 2
    assert (stress["status"] == "failed").all()
    assert (stress["reason"] == "the model gives no stress").all()
    assert (table.loc[table["property"] == "force", "status"] == "ok").all()


@pytest.mark.slow
def test_joined_shards_give_the_same_numbers(emt, tmp_path):
    """Categories of different shards differ: joined, written and read back, a table must still say the same."""
    found = made_up_cases(emt, "mattersim-tp", pressure_gpa=1.0)
    whole = off.run(emt, found)
    joined = pd.concat([off.run(emt, found[:4]), off.run(emt, found[4:])], ignore_index=True)
    joined.to_parquet(tmp_path / "joined.parquet")
    read = pd.read_parquet(tmp_path / "joined.parquet")
    pd.testing.assert_frame_equal(off.summarise(whole), off.summarise(read))
    pd.testing.assert_frame_equal(off.sensitivity(whole), off.sensitivity(read))


# ---------------------------------------------------------------------------------------------------
# Analysis


@pytest.mark.parametrize("c", [0.5, 1.25, 2.0])
def test_scaling_the_energy_scales_the_slope(emt, c):
    """E → cE gives F → cF, hence s → cs, for every material and for all together; the correlation stays."""
    found = made_up_cases(emt)
    plain, scaled = (off.summarise(off.run(potential, found)).iloc[0] for potential in (emt, emt.scaled(c)))
    for name in ("slope", "slope_low", "slope_high", "slope_median", "slope_mean"):
        assert scaled[name] == pytest.approx(c * plain[name], rel=2e-4)
    assert plain["slope"] == pytest.approx(SOFT, rel=2e-4)
    assert scaled["inverse_slope"] == pytest.approx(plain["inverse_slope"] / c, rel=2e-4)
    assert scaled["r2"] == pytest.approx(plain["r2"], rel=2e-4)
    assert scaled["share_below_one"] == (c * SOFT < 1)


def test_the_correction_mends_a_purely_soft_model(emt):
    summary = off.summarise(off.run(emt.scaled(1 / SOFT), made_up_cases(emt))).iloc[0]
    assert summary["slope"] == pytest.approx(1, rel=2e-4)
    assert summary["mae"] < 1e-4


def test_materials_at_rest_have_no_slope_of_their_own(emt):
    """A slope fitted to forces of 0.01 eV/Å would be noise; the pooled fit keeps them, the distribution does not."""
    found = made_up_cases(emt, "extreme", n_materials=3, n_frames=3)
    for case in found[:3]:
        case.reference["forces"] = case.reference["forces"] * 0.01
    table = off.run(emt, found)
    (summary,) = off.summarise(table).to_dict("records")
    assert (summary["n_frames"], summary["n_components"], summary["n_materials"]) == (9, 108, 2)
    assert summary["slope_mean"] == pytest.approx(SOFT, rel=1e-3)
    assert off.summarise(table, off.Protocol(min_rms_force_ev_per_a=0.0)).loc[0, "slope_mean"] > 10
    weak = float(np.sqrt(np.mean([np.square(case.reference["forces"]).mean() for case in found[:3]])))
    for factor, n_materials in ((0.99, 3), (1.01, 2)):
        assert off.summarise(table, off.Protocol(min_rms_force_ev_per_a=factor * weak)).loc[0, "n_materials"] == n_materials
    nothing_left = off.summarise(table, off.Protocol(min_rms_force_ev_per_a=1e3))
    assert nothing_left.loc[0, "n_components"] == 108
    assert "slope_mean" not in nothing_left


@pytest.mark.parametrize(("n_frames", "has_scales"), [(1, False), (2, False), (3, True)])
def test_compounds_of_few_frames_have_no_scale_of_their_own(emt, n_frames, has_scales):
    """Their errors need no fit and stay; so do the pooled slopes, both with intervals."""
    (summary,) = off.summarise(off.run(emt, made_up_cases(emt, "wbm-21", n_materials=5, n_frames=n_frames))).to_dict("records")
    fitted = ("slope_mean", "slope_median", "slope_q25", "inverse_slope_median", "cmae_median", "share_below_one")
    assert [bool(np.isfinite(summary[name])) for name in fitted] == [has_scales] * len(fitted)
    for name in ("slope", "inverse_slope", "mae_median"):
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    assert summary["n_materials"] == 5


def test_the_papers_frames_do_not_establish_that_m3gnet_is_soft():
    """Eleven of the fourteen compounds have one frame: only pooled slopes, and M3GNet's s' has one in its interval, CHGNet's not."""
    tables = {key: results.read("off_equilibrium", key).query("set == 'wbm-21'") for key in ("m3gnet-mp-2021.2.8", "chgnet-0.3.0")}
    m3gnet, chgnet = (off.summarise(table).iloc[0] for table in tables.values())
    frames = tables["chgnet-0.3.0"].groupby("material")["case"].nunique()
    assert (len(frames), (frames == 1).sum()) == (14, 11)
    ends = [m3gnet[f"inverse_slope{end}"] for end in ("", "_low", "_high")]
    assert ends == pytest.approx([1.03, 0.91, 1.28], abs=0.006)
    assert chgnet["inverse_slope_low"] > 1
    assert np.isnan([m3gnet["slope_median"], chgnet["cmae_median"]]).all()


# ---------------------------------------------------------------------------------------------------
# Temperatures


class Springs:
    """fcc copper whose nearest neighbours are bound by springs: frames at a temperature, and the forces of a softer copy."""

    def __init__(self, stiffness: float = 2.0, repeat: int = 2):  # eV/Å²
        self.ideal = bulk("Cu", cubic=True).repeat(repeat)
        n = len(self.ideal)
        apart = self.ideal.get_all_distances(mic=True, vector=True)
        length = np.linalg.norm(apart, axis=2)
        unit = np.divide(apart, length[..., None], out=np.zeros_like(apart), where=length[..., None] > 0)
        bound = stiffness * ((length > 0) & (length < 1.01 * length[length > 0].min()))
        blocks = -bound[..., None, None] * unit[..., :, None] * unit[..., None, :]
        blocks[np.arange(n), np.arange(n)] = -blocks.sum(axis=1)
        self.hessian = blocks.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n)
        self.curvature, self.modes = np.linalg.eigh(self.hessian)
        self.soft = self.curvature < 1e-8  # the three translations

    def frames(self, kelvin: float, number: int, random) -> list[ase.Atoms]:
        """Draw from the canonical ensemble, with a drift and with atoms wrapped into other images."""
        width = np.sqrt(units.kB * kelvin / np.where(self.soft, np.inf, self.curvature))
        found = []
        for _ in range(number):
            atoms = self.ideal.copy()
            atoms.positions += (self.modes @ (width * random.normal(size=width.shape))).reshape(-1, 3)
            atoms.positions += random.normal(size=3) + random.integers(-1, 2, (len(atoms), 3)) @ atoms.cell.array
            found.append(atoms)
        return found

    def forces(self, atoms: ase.Atoms, factor=lambda curvature: 1.0) -> np.ndarray:
        moved = off.displacements(atoms).ravel()
        amplitude = self.modes.T @ moved
        return -(self.modes @ (factor(self.curvature) * self.curvature * amplitude)).reshape(-1, 3)


class Given:
    """A potential that has its answers already."""

    key = "given"

    def __init__(self, forces):
        self.forces = forces

    def evaluate(self, frames, stress=False, progress=False):
        return [Prediction(0.0, forces) for forces in self.forces]


def thermal_cases(frames, forces, kelvin=300.0):
    return [
        off.frame_case(f"md/{number}", "single-element-md", "Cu", atoms, 0.0, f, np.zeros((3, 3)), group="AIMD-NVT", temperature_k=kelvin)
        for number, (atoms, f) in enumerate(zip(frames, forces, strict=True))
    ]


@pytest.fixture(scope="module")
def springs():
    return Springs()


def test_a_harmonic_crystal_has_the_temperature_it_was_sampled_at(springs):
    """And a copy that is softer by c has the ratio c, which unbiased noise in either force does not move, while it moves s."""
    random = np.random.default_rng(7)
    frames = springs.frames(300.0, 60, random)
    exact = [springs.forces(atoms) for atoms in frames]
    noise = 0.5 * np.sqrt(np.mean(np.square(exact)))
    noisy = [f + noise * random.normal(size=f.shape) for f in exact]
    model = [0.8 * f + noise * random.normal(size=f.shape) for f in exact]
    (row,) = off.by_temperature(off.run(Given(model), thermal_cases(frames, noisy))).to_dict("records")
    assert (row["material"], row["crystal"], row["n_frames"], row["temperature_k"]) == ("Cu 300 K", "Cu", 60, 300)
    # Degenerate modes, and so the frames, are another choice on each machine: a 95 % interval misses on one in twenty, so twice its width.
    assert row["label_k"] == pytest.approx(300, abs=row["label_k_high"] - row["label_k_low"])
    assert row["label_k_high"] - row["label_k_low"] < 30
    assert row["virial_ratio"] == pytest.approx(0.8, abs=row["virial_ratio_high"] - row["virial_ratio_low"])
    assert row["virial_ratio"] == pytest.approx(0.8, abs=0.02)
    assert row["slope"] == pytest.approx(0.8 / 1.25, abs=0.02)
    # What the label says is no matter of what the frames are said to be.
    other = off.by_temperature(off.run(Given(model), thermal_cases(frames, noisy, kelvin=500.0))).iloc[0]
    assert (other["temperature_k"], other["label_k"]) == (500, row["label_k"])


@pytest.mark.slow
def test_the_ratio_weighs_modes_by_energy_and_the_slope_by_curvature(springs):
    """Where only the stiff modes are soft, s is lower than the ratio, which is the plain mean over modes."""
    frames = springs.frames(300.0, 400, np.random.default_rng(3))
    stiff = springs.curvature > np.median(springs.curvature)
    model = [springs.forces(atoms, lambda _: np.where(stiff, 0.6, 1.0)) for atoms in frames]
    cases = thermal_cases(frames, [springs.forces(atoms) for atoms in frames])
    row = off.by_temperature(off.run(Given(model), cases)).iloc[0]
    kept = ~springs.soft
    assert row["virial_ratio"] == pytest.approx(np.where(stiff, 0.6, 1.0)[kept].mean(), abs=0.01)
    assert row["slope"] == pytest.approx(np.average(np.where(stiff, 0.6, 1.0)[kept], weights=springs.curvature[kept]), abs=0.01)
    assert row["slope"] < row["virial_ratio"] - 0.05


def test_frames_that_are_alike_need_blocks():
    """Each frame written twice is no more evidence: in blocks of two the interval is that of the single frames."""
    top, bottom = (pd.Series(values) for values in np.random.default_rng(0).normal(5, 1, (2, 30)))
    once, doubled = off.ratio_of_sums(top, bottom, 1), off.ratio_of_sums(top.repeat(2), bottom.repeat(2), 2)
    assert doubled == pytest.approx(once)
    assert off.ratio_of_sums(top.repeat(2), bottom.repeat(2), 1)[1] > once[1]
    assert np.isnan(off.ratio_of_sums(top, bottom, 30)[1:]).all()


def test_intervals_of_three_frames_cover():
    """Cu and Ni have three frames: Student's t must give 95 %."""
    draws = np.random.default_rng(1).normal(300, 25, (2000, 3))
    one = pd.Series(np.ones(3))
    ends = np.array([off.ratio_of_sums(pd.Series(draw), one, 1)[1:] for draw in draws])
    assert np.mean((ends[:, 0] < 300) & (ends[:, 1] > 300)) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("element", ["Si", "Li", "Ni"])
def test_displacements_do_not_mind_origin_and_images(element):
    random = np.random.default_rng(2)
    atoms = bulk(element, cubic=True).repeat(2)
    moved = random.normal(0, 0.1, atoms.positions.shape)
    moved -= moved.mean(axis=0)
    atoms.positions += moved + random.normal(size=3) + random.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
    order = random.permutation(len(atoms))
    assert off.displacements(atoms[order]) == pytest.approx(moved[order], abs=1e-9)


def test_a_crystal_that_has_lost_its_order_is_a_failed_row(springs):
    frames = springs.frames(300.0, 3, np.random.default_rng(5))
    forces = [springs.forces(atoms) for atoms in frames]
    frames[1].positions[0] = frames[1].positions[1] + 0.1
    table = off.run(Given(forces), thermal_cases(frames, forces))
    virials = table[table["property"] == "virial"]
    assert virials["status"].tolist() == ["ok", "failed", "ok"]
    assert virials["reason"].tolist() == ["", "an atom has left its site", ""]
    assert off.by_temperature(table)[["n_clusters", "n_frames"]].to_numpy().tolist() == [[3, 2]]
    with pytest.raises(ValueError, match="31 atoms are no cubic supercell"):
        off.displacements(frames[0][1:])


def test_molten_frames_and_other_groups_have_no_virial(springs):
    (frame,) = springs.frames(300.0, 1, np.random.default_rng(5))
    forces = [springs.forces(frame)]
    for kelvin, expected in ((off.MELTING_K["Cu"] - 1, 1), (off.MELTING_K["Cu"] + 1, 0), (np.nan, 0)):
        table = off.run(Given(forces), thermal_cases([frame], forces, kelvin))
        assert (table["property"] == "virial").sum() == expected
    (case,) = thermal_cases([frame], forces)
    case.info["group"] = "Vacancy"
    assert (off.run(Given(forces), [case])["property"] != "virial").all()


def test_volumes_are_told_apart(springs):
    """Li comes at three volumes, which share a temperature."""
    random = np.random.default_rng(4)
    cases = []
    for strain in (0.967, 1.0, 1.032):
        for number in range(2):
            atoms = bulk("Li", cubic=True).repeat(2)
            atoms.set_cell(atoms.cell * strain, scale_atoms=True)
            forces = random.normal(size=atoms.positions.shape)
            atoms.positions -= 0.1 * forces
            (case,) = thermal_cases([atoms], [forces])
            cases.append(dataclasses.replace(case, name=f"md/{strain}/{number}", material="Li"))
    table = off.run(Given([case.reference["forces"] for case in cases]), cases)
    found = off.by_temperature(table)
    assert found["material"].tolist() == ["Li 300 K, −10 %", "Li 300 K, ±0 %", "Li 300 K, +10 %"]
    assert found["crystal"].tolist() == ["Li, −10 %", "Li, ±0 %", "Li, +10 %"]
    assert found["n_clusters"].tolist() == [2, 2, 2]
    assert off.by_temperature(table.drop(columns="volume_a3_per_atom"))["material"].tolist() == ["Li 300 K"]
    drawn = figures.scale_against_temperature(found.assign(model="chgnet-0.3.0"), off.MELTING_K)
    assert [axes.get_title(loc="left") for axes in drawn.axes if axes.lines] == ["Li, −10 %", "Li, ±0 %", "Li, +10 %"]


def amended(table, cases):
    path = Path(__file__).resolve().parents[1] / "data" / "amend_off_equilibrium.py"
    return runpy.run_path(str(path))["amended"](table, cases)


def test_old_tables_are_amended_without_a_model(springs):
    frames = springs.frames(300.0, 4, np.random.default_rng(6))
    forces = [springs.forces(atoms) for atoms in frames]
    cases = [*thermal_cases(frames, forces), *off.cases(sets=["rattled-crystals"])[:1]]
    frames.append(cases[-1].structures["frame"])
    cases[2].structures["frame"].positions[0] = cases[2].structures["frame"].positions[1]
    new = off.run(Given([*forces, np.zeros((len(frames[-1]), 3))]), cases)
    old = new[new["property"] != "virial"].drop(columns="volume_a3_per_atom")
    once = amended(old, cases)
    twice = amended(once, cases)
    keys = ["case", "property", "atom", "component"]
    plain = [table.astype({"property": str, "component": str, "reason": str}) for table in (new, once, twice)]
    first, *others = (table.sort_values(keys, ignore_index=True) for table in plain)
    for other in others:
        pd.testing.assert_frame_equal(first, other, check_categorical=False, check_dtype=False)


LABELS = {"Si": 310, "Mo": 507, "Cu": 358, "Ni": 232}  # K, where the sources say 300 K


@pytest.fixture(scope="module")
def heated():
    return off.by_temperature(results.read("off_equilibrium").query("set == 'single-element-md'"))


@pytest.mark.slow
def test_nominal_300_k(heated):
    """What the committed tables say of the frames at 300 K; the same with the table of every model, as DFT's forces are the same."""
    at = heated[heated["temperature_k"] == 300].set_index(["model", "crystal"])
    for model in results.models("off_equilibrium"):
        found = at.loc[model]
        assert {name: round(found.loc[name, "label_k"]) for name in LABELS} == LABELS
        assert found.loc[["Li, +10 %", "Li, ±0 %", "Li, −10 %"], "n_frames"].tolist() == [17, 12, 18]
        lithium = found[found["element"] == "Li"]
        assert np.average(lithium["label_k"], weights=lithium["n_frames"]) == pytest.approx(275, abs=0.5)
        has_300 = (found["label_k_low"] < 300) & (found["label_k_high"] > 300)
        # Of copper there are three frames only.
        assert set(found.index[has_300]) == {"Si", "Cu"}


@pytest.mark.slow
@needs_mirror
def test_committed_virials_are_those_of_the_frames(everything):
    """Computed here from the sources alone, with sites that are the frames' own means, as far as these are independent of a frame."""
    found = {}
    for element, sem in (("Si", 8), ("Ni", 20)):
        chosen = [c for c in members(everything, "single-element-md") if c.material == element and c.info["group"] == "AIMD-NVT"]
        chosen = [case for case in chosen if case.info["temperature_k"] == 300]
        positions = np.stack([case.structures["frame"].get_scaled_positions(wrap=False) for case in chosen])
        positions -= np.rint(positions - positions[0])
        cartesian = positions @ chosen[0].structures["frame"].cell.array
        cartesian -= cartesian.mean(axis=1, keepdims=True)
        moved = (cartesian - cartesian.mean(axis=0)) * len(chosen) / (len(chosen) - 1)
        forces = np.stack([case.reference["forces"] for case in chosen])
        found[element] = -(moved * forces).sum() / len(chosen) / (3 * (forces.shape[1] - 1) * units.kB)
        assert found[element] == pytest.approx(LABELS[element], abs=sem)


@pytest.mark.slow
@needs_mirror
def test_committed_tables_are_amended_from_these_frames(everything):
    table = results.read("off_equilibrium", "chgnet-0.3.0").query("set == 'single-element-md'")
    again = amended(table, members(everything, "single-element-md"))
    both = [t[t["property"] == "virial"].sort_values("case")[["value", "reference"]].to_numpy() for t in (table, again)]
    assert len(both[0]) == 201
    assert both[1] == pytest.approx(both[0], abs=1e-3)
    made = results.provenance("off_equilibrium", "chgnet-0.3.0")
    assert made["amended"]["added"] == "virial, volume_a3_per_atom"
    assert made["rows"] == len(results.read("off_equilibrium", "chgnet-0.3.0"))


def test_headline_filters_by_pressure_and_frames(emt):
    def tp(material, pressures, **info):
        found = made_up_cases(emt, "mattersim-tp", n_materials=1, n_frames=len(pressures), **info)
        for number, (case, pressure) in enumerate(zip(found, pressures, strict=True)):
            case.info["pressure_gpa"] = pressure
            found[number] = Case(f"{material}/{number}", case.set, material, case.structures, case.reference, case.info)
        return found

    found = [
        *tp("all", [-19.9, 0.0, 14.9]),
        *tp("some", [0.0, 1.0, 2.0, 15.1, 400.0]),
        *tp("too few", [0.0, 1.0, 25.0, 26.0]),
        *tp("limits", [-20.0, 15.0, 1.0, 2.0]),
        *tp("U", [0.0, 1.0, 2.0], has_u_metal_with_o_or_f=True),
        *made_up_cases(emt, "extreme", n_materials=1, n_frames=1, pressure_gpa=900.0),
    ]
    for group in ("AIMD-NVT", "Vacancy", "Elastic", "Surface"):
        case = made_up_cases(emt, "single-element-md", n_materials=1, n_frames=1, group=group)[0]
        found.append(Case(f"md/{group}", case.set, "Cu", case.structures, case.reference, case.info))
    table = off.run(emt, found)
    kept = off.headline(table)
    frames = kept[["set", "material", "case"]].drop_duplicates()
    tp_frames = frames[frames["set"] == "mattersim-tp"]
    assert Counter(tp_frames["material"]) == {"all": 3, "some": 3, "U": 3}
    assert set(frames.loc[frames["set"] == "single-element-md", "case"]) == {"md/AIMD-NVT", "md/Vacancy"}
    assert (frames["set"] == "extreme").sum() == 1
    more = off.headline(table, off.Protocol(min_frames=2, pressure_max_gpa=1000.0))
    assert more.loc[more["set"] == "mattersim-tp", "material"].nunique() == 5

    counts = off.sensitivity(table).set_index(["with_u_systems", "pressure_max_gpa"])[["n_frames", "n_materials"]]
    assert counts.loc[(True, 15.0)].tolist() == [9, 3]
    assert counts.loc[(False, 15.0)].tolist() == [6, 2]
    assert counts.loc[(True, 30.0)].tolist() == [9 + 1 + 4 + 3, 5]
    assert counts.loc[(True, np.inf)].tolist() == [3 + 5 + 4 + 4 + 3, 5]
    assert len(counts) == 8


def test_the_filter_does_not_look_at_the_model(emt):
    """A compound whose frame the model fails on stays in, so that all models are judged on the same frames."""
    found = made_up_cases(emt, "mattersim-tp", n_materials=1, pressure_gpa=1.0)
    found[0].structures["frame"].positions[0] = np.nan
    kept = off.headline(off.run(emt, found))
    assert kept["case"].nunique() == 3


def test_sensitivity_needs_its_set(emt):
    with pytest.raises(ValueError, match="mattersim-tp"):
        off.sensitivity(off.run(emt, made_up_cases(emt)))


# ---------------------------------------------------------------------------------------------------
# The real files


@pytest.fixture(scope="module")
def everything():
    return off.cases(sets=[name for name in off.SETS if name not in ("wbm-full", "rattled-crystals")])


def members(found, chosen):
    return [case for case in found if case.set == chosen]


def median_force(found) -> float:
    return float(np.median(np.linalg.norm(np.concatenate([case.reference["forces"] for case in found]), axis=1)))


@needs_mirror
@pytest.mark.parametrize(
    ("chosen", "n_frames", "n_materials", "force"),
    [
        ("wbm-21", 21, 14, 1.281),
        ("mattersim-tp", 1529, 306, 2.425),
        ("extreme", 693, 147, 2.099),
        ("mptrj-1k", 1000, 998, 0.0915),
        ("single-element-md", 968, 5, 0.834),
    ],
)
def test_sets(everything, chosen, n_frames, n_materials, force):
    """Frames, compounds and the median |force| in eV/Å: a wrong unit would move it."""
    found = members(everything, chosen)
    assert len(found) == n_frames
    assert len({case.material for case in found}) == n_materials
    assert median_force(found) == pytest.approx(force, abs=1e-3)
    for case in found:
        assert case.info.keys() == off.INFO.keys()
        assert np.isfinite(case.info["pressure_gpa"])
        # Forces on a periodic crystal sum to zero but for the noise of DFT.
        assert np.abs(case.reference["forces"].mean(axis=0)).max() < 0.05


@needs_mirror
def test_names_are_unique(everything):
    assert len({case.name for case in everything}) == len(everything)


@needs_mirror
def test_mattersim_compounds(everything):
    found = members(everything, "mattersim-tp")
    sizes = Counter(Counter(case.material for case in found).values())
    assert sizes == {5: 305, 4: 1}
    moderate = Counter(case.material for case in found if -20 < case.info["pressure_gpa"] < 15)
    assert (len(moderate), sum(moderate.values())) == (151, 643)
    headline = [n for n in moderate.values() if n >= 3]
    assert (len(headline), sum(headline)) == (128, 613)
    assert sum(case.info["has_u_metal_with_o_or_f"] for case in found) == 310


@needs_mirror
def test_single_element_frames(everything):
    found = members(everything, "single-element-md")
    silicon = Counter((case.info["group"], case.info["split"]) for case in found if case.material == "Si")
    assert (silicon["AIMD-NVT", "train"], silicon["Vacancy", "train"]) == (90, 57)
    assert Counter(case.material for case in found) == {"Li": 270, "Si": 239, "Mo": 217, "Cu": 175, "Ni": 67}
    thermal = [case for case in found if case.info["group"] in ("AIMD-NVT", "Vacancy")]
    unlike = {(case.material, round(case.reference["energy"], 4), float(np.abs(case.reference["forces"]).sum())) for case in thermal}
    assert len(unlike) == len(thermal) == 752
    # The strained cell of lowest energy is the crystal at rest, or nearly: it has the Materials Project's energy.
    energies = {}
    for case in found:
        if case.info["group"] == "Elastic":
            per_atom = case.reference["energy"] / len(case.structures["frame"])
            energies[case.material] = min(per_atom, energies.get(case.material, 0.0))
    expected = {"Cu": -4.101, "Ni": -5.781, "Mo": -10.850, "Si": -5.4253, "Li": -1.899}
    assert energies == pytest.approx(expected, abs=0.01)
    assert {case.info["temperature_k"] for case in found if case.material == "Mo" and case.info["group"] == "AIMD-NVT"} == {300, 3000, 6000}


@needs_mirror
def test_shears_of_frames_that_two_sources_share(everything):
    """The Cu test frames are in mlearn and in snap, so their stress must be the same in both, shears included."""
    theirs = snap.frames(["materialsvirtuallab/snap/Cu/training/AIMD.json"])
    ours = [case for case in everything if case.name.startswith("single-element-md/mlearn/Cu") and case.info["group"] == "AIMD-NVT"]
    assert len(ours) == 12
    for case in ours:
        ours_as_frame = Frame("", "Cu", case.structures["frame"], *(case.reference[name] for name in ("energy", "forces", "stress")))
        (twin,) = [frame for frame in theirs if snap.same(frame, ours_as_frame)]
        assert case.reference["stress"] == pytest.approx(twin.stress, abs=1e-6)


@needs_mirror
@pytest.mark.parametrize(("element", "group"), [("Si", "AIMD-NVT"), ("Si", "Elastic"), ("Mo", "AIMD-NVT"), ("Li", "AIMD-NVT")])
def test_shears_agree_with_a_model(everything, load_model, element, group):
    """Where nothing documents the order of the shears, an independent model decides: the other order fits it much worse."""
    chosen = [case for case in members(everything, "single-element-md") if (case.material, case.info["group"]) == (element, group)][::12]
    predictions = load_model("chgnet-0.3.0").evaluate([case.structures["frame"] for case in chosen], stress=True)
    shears = np.array([prediction.stress[[1, 0], [2, 2]] for prediction in predictions])
    reference = np.array([case.reference["stress"][[1, 0], [2, 2]] for case in chosen])
    as_read, swapped = np.square(reference - shears).sum(), np.square(reference[:, ::-1] - shears).sum()
    assert as_read < 0.5 * swapped


@needs_mirror
def test_chgnet_on_the_papers_frames(everything, load_model):
    """CHGNet is soft on the paper's own frames; stress has the right sign and size."""
    table = off.run(load_model("chgnet-0.3.0"), members(everything, "wbm-21"), off.Protocol(stress=True))
    summary = off.summarise(table).iloc[0]
    assert summary["slope"] == pytest.approx(0.8592, abs=2e-3)
    assert summary["mae"] == pytest.approx(0.1828, abs=1e-3)
    assert summary["cmae"] == pytest.approx(0.1732, abs=1e-3)
    stress = table[table["property"] == "stress"]
    fitted = softening.fit(stress["reference"], stress["value"])
    assert softening.r_squared(stress["reference"], stress["value"], intercept=True) > 0.81
    assert 0.7 < fitted.slope < 1.3


def elements_of_mptrj():
    """Count elements and kinds of distortion in the sample of MPtrj (``data/reference/mptrj_1k_elements.csv`` holds the result).

    Index ``element``; ``frames`` that hold it; of these ``alone`` (they hold nothing else), ``at_rest`` (no atom of it feels more than
    0.01 eV/Å), ``displaced`` (one feels more than 0.5 eV/Å), ``sheared`` (shear stress above 1 GPa: half the difference of the largest
    and the smallest principal stress); and ``largest_force``, the median over frames of the largest DFT force on an atom of it (eV/Å).
    """
    rows = []
    for case in off.cases(sets=["mptrj-1k"]):
        (atoms,) = case.structures.values()
        largest = pd.Series(np.linalg.norm(case.reference["forces"], axis=1)).groupby(atoms.get_chemical_symbols()).max()
        principal = np.linalg.eigvalsh(case.reference["stress"]) / units.GPa
        kinds = {"alone": len(largest) == 1, "at_rest": largest < 0.01, "displaced": largest > 0.5}
        rows.append(pd.DataFrame({"frames": 1, **kinds, "sheared": np.ptp(principal) > 2, "largest_force": largest}))
    found = pd.concat(rows).rename_axis("element").groupby(level=0)
    return found.agg({name: "median" if name == "largest_force" else "sum" for name in rows[0]})


@needs_mirror
def test_the_stored_count_of_elements_is_that_of_the_sample():
    stored = pd.read_csv(registry.data_dir() / "reference" / "mptrj_1k_elements.csv", keep_default_na=False).set_index("element")
    pd.testing.assert_frame_equal(elements_of_mptrj().round(3), stored)
    frames = ase.io.read(registry.fetch(off.SETS["mptrj-1k"][0]), ":")
    assert stored.loc["Mo", "frames"] == sum("Mo" in frame.symbols for frame in frames)
