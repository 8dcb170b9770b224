"""The benchmark of molecular dynamics: a crystal's trajectories against what theory says of them, and how frames of DFT become cases."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from conftest import needs_mirror

from helpers import figures, results
from helpers.benchmarks import Case
from helpers.benchmarks import dynamics as md
from helpers.potentials.ase import ASEPotential

EMT_POTENTIAL = ASEPotential("emt", EMT())
SHORT = md.Protocol(steps=450, nve_steps=300, time_step_fs=4.0, every=5)
COPPER = bulk("Cu", cubic=True).repeat(2)


class Free(Calculator):
    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def crystal(temperature_k, start=COPPER, chosen="metals", seed=0):
    info = {"temperature_k": temperature_k, "nominal_k": temperature_k, "seed": seed, "n_frames": 0}
    return Case(f"{chosen}/Cu-{temperature_k:.0f}K/{seed}", chosen, "Cu", {"start": start}, {}, info)


@pytest.fixture(scope="module")
def cold():
    """A run so cold that copper is harmonic."""
    return md.run(EMT_POTENTIAL, [crystal(30.0)], SHORT)


def of(table, name):
    return table[table["property"] == name]


def test_a_cold_crystal_is_the_harmonic_one(cold):
    results.check(cold, md.KEYS)
    (u2,), (harmonic,) = (of(cold, name).itertuples() for name in ("u2", "u2_harmonic"))
    assert u2.standard_error < 0.15 * u2.value
    assert abs(u2.value - harmonic.value) < 4 * u2.standard_error
    (temperature,) = of(cold, "temperature").itertuples()
    assert abs(temperature.value - 30) < 4 * temperature.standard_error < 10
    assert abs(of(cold, "drift")["value"].item()) < 0.05


def test_its_velocities_tell_the_frequencies_of_its_force_constants(cold):
    dos = of(cold, "dos")
    step = SHORT.dos_step_thz
    assert dos["value"].sum() * step == pytest.approx(1, abs=0.05)
    assert dos["harmonic"].sum() * step == pytest.approx(1, abs=0.01)
    mean, harmonic = ((dos["frequency_thz"] * dos[name]).sum() * step for name in ("value", "harmonic"))
    assert mean == pytest.approx(harmonic, rel=0.1)


def test_the_neighbours_of_a_shell_are_counted(cold):
    rdf = of(cold, "rdf")
    r = rdf["distance_a"].to_numpy()
    density = len(COPPER) / COPPER.get_volume()
    inside = r < 3.0
    n = (4 * np.pi * density * r**2 * rdf["value"])[inside].sum() * SHORT.rdf_step_a
    assert n == pytest.approx(12, rel=0.02)


def test_half_a_surface_has_half_the_curvatures():
    whole, half = (md.curvatures(p, COPPER, 0.01) for p in (EMT_POTENTIAL, EMT_POTENTIAL.scaled(0.5)))
    np.testing.assert_allclose(half[3:], whole[3:] / 2, rtol=1e-6)
    assert md.harmonic_u2(half, 300) == pytest.approx(md.harmonic_u2(whole, 600))
    assert np.abs(whole[:3]).max() < 1e-6


def test_a_correlation_of_one_frequency_is_one_peak():
    times = 0.02 * np.arange(80)
    found = md.density_of_states(np.cos(2 * np.pi * 7 * times), 0.02, SHORT)
    nu = np.arange(0, 20.5, 0.5)
    width = SHORT.dos_width_thz
    np.testing.assert_allclose(found, np.exp(-(((nu - 7) / width) ** 2) / 2) / (width * (2 * np.pi) ** 0.5), atol=5e-3)


def test_a_run_is_the_same_alone_and_in_company_and_another_with_another_seed():
    protocol = replace(SHORT, steps=40, nve_steps=10)
    cases = [crystal(300.0, seed=seed) for seed in (0, 1)]
    both = md.run(EMT_POTENTIAL, cases, protocol)
    alone = md.run(EMT_POTENTIAL, cases[1:], protocol)
    pd.testing.assert_frame_equal(both[both["seed"] == 1].reset_index(drop=True), alone)
    first, second = of(both, "u2")["value"]
    assert first != second


def test_an_explosion_is_told_with_step_and_temperature():
    wild = COPPER.copy()
    wild.rattle(0.4, seed=0)
    table = md.run(EMT_POTENTIAL, [crystal(1.0, wild)], SHORT)
    results.check(table, md.KEYS)
    lost = table[table["property"] != "u2_harmonic"]
    assert set(lost["property"]) == set(md.TOLERANCES) - {"u2_harmonic"}
    assert (lost["status"] == "failed").all()
    assert lost["reason"].str.fullmatch(r"\d+ K by step \d+").all()
    assert of(table, "u2_harmonic")["reason"].str.startswith("no harmonic crystal").all()


def test_atoms_that_fly_away_have_no_sites_but_a_distribution():
    table = md.run(ASEPotential("free", Free()), [crystal(2000.0), crystal(2000.0, chosen="melts")], SHORT)
    found = table[(table["set"] == "metals") & (table["property"] == "u2")]
    assert found["reason"].str.fullmatch(r"an atom has left its site by step \d+").all()
    assert (of(table, "rdf")["status"] == "ok").all()
    assert set(table.loc[table["set"] == "melts", "property"]) == {"kinetic_temperature", "energy_per_atom", "drift", "rdf", "dos"}


def test_the_error_is_that_of_blocks_or_of_seeds_and_of_frames():
    rows = []
    for seed, value in enumerate((1.0, 1.2, 1.4)):
        row = {"model": "m", "set": "silicon", "material": "Si", "temperature_k": 300.0, "nominal_k": 300.0}
        row |= {"property": "u2", "status": "ok", "seed": seed}
        rows.append(row | {"value": value, "standard_error": 0.03, "reference": 1.0, "reference_error": 0.05, "n_frames": 20})
    (found,) = md.summarise(pd.DataFrame(rows)).itertuples()
    assert found.n_runs == 3
    assert found.u2 == found.u2_ratio == pytest.approx(1.2)
    assert found.u2_error == pytest.approx(0.2 / 3**0.5)
    relative = np.hypot(found.u2_error / 1.2, 0.05)
    assert (found.u2_ratio_high - found.u2_ratio_low) / 2 == pytest.approx(2.093 * relative * 1.2, rel=1e-3)
    (alike,) = md.summarise(pd.DataFrame(rows).assign(value=1.0)).itertuples()
    assert alike.u2_error == pytest.approx(0.03 / 3**0.5)


@needs_mirror
def test_frames_of_silicon_become_trajectories():
    protocol = md.Protocol()
    cases = md.cases(protocol, ["silicon"])
    assert [case.name for case in cases] == [f"silicon/Si-{t}K/0" for t in (300, 843, 1518)]
    for case in cases:
        reference = case.reference
        assert abs(reference["temperature"] - case.info["temperature_k"]) < 2 * reference["temperature_error"]
        np.testing.assert_allclose(md.displacements(case.structures["start"]), 0, atol=1e-6)
    u2 = [case.reference["u2"] for case in cases]
    assert u2 == sorted(u2)
    assert cases[0].reference["rdf"].max() > cases[-1].reference["rdf"].max() > 2


@needs_mirror
def test_the_ladder_has_no_dft_and_other_seeds_are_a_set_of_their_own():
    ladder, again = (md.cases(sets=[name]) for name in ("ladder", "again"))
    (silicon, *_) = md.cases(sets=["silicon"])
    for case, kelvin in zip(ladder, md.Protocol().ladder_k, strict=True):
        assert (case.material, case.info["temperature_k"], case.info["n_frames"], case.reference) == ("Si", kelvin, 0, {})
        assert case.structures["start"] == silicon.structures["start"]
    assert {case.info["seed"] for case in again} == {1, 2}
    assert {case.material for case in again} == {"Si", "Mo", "Li"}
    assert all("u2" in case.reference for case in again)


def test_the_temperature_of_equal_displacements_is_the_factor_of_a_uniformly_soft_crystal():
    """Harmonic: ⟨u²⟩ of cE at cT is that of E at T; with errors of the frames the share has their interval."""
    kelvin, soft = np.array([100.0, 150.0, 200.0, 300.0, 600.0]), 0.5
    summary = pd.DataFrame({"model": "m", "material": "Si", "temperature_k": kelvin, "u2": 1e-4 * kelvin / soft})
    summary["u2_dft"] = np.where(kelvin >= 300, 1e-4 * kelvin, np.nan)
    summary["u2_ratio"] = summary["u2"] / summary["u2_dft"]
    summary["u2_ratio_high"] = 1.1 * summary["u2_ratio"]
    cold, hot = md.matching_temperatures(summary).itertuples()
    assert (cold.match_k, cold.share) == (pytest.approx(150), pytest.approx(soft))
    assert (hot.match_k, hot.share) == (pytest.approx(300), pytest.approx(soft))
    assert (cold.share_low, cold.share_high) == (pytest.approx(soft * np.exp(-0.1)), pytest.approx(soft * np.exp(0.1)))
    stiff = md.matching_temperatures(summary.assign(u2=1e-4 * kelvin / 2))
    assert stiff["share"].isna().tolist() == [False, True], "beyond the trajectories nothing is known"


@pytest.mark.slow
@needs_mirror
def test_metals_move_at_the_temperature_of_their_forces_and_melts_are_the_rest():
    metals, melts = (md.cases(sets=[name]) for name in ("metals", "melts"))
    assert all(case.info["temperature_k"] == round(case.reference["temperature"]) for case in metals)
    assert {(case.material, case.info["nominal_k"]) for case in metals} & {
        (case.material, case.info["nominal_k"]) for case in melts
    } == set()
    assert all("u2" not in case.reference and case.info["seed"] == 0 for case in melts)
    assert {case.material for case in metals} == {"Mo", "Li"}
    lithium = {round(case.structures["start"].get_volume() / 54, 1) for case in metals if case.material == "Li"}
    assert lithium == {20.1}


# -- figures ----------------------------------------------------------------------------------------


def test_displacements_stand_at_their_temperatures_beside_those_of_dft():
    rows = {"temperature_k": [300.0, 100.0, 300.0], "u2": [0.02, 0.01, 0.018], "u2_error": 1e-3}
    rows |= {"u2_dft": [0.018, np.nan, 0.018], "u2_dft_error": [5e-4, np.nan, 5e-4]}
    summary = pd.DataFrame(rows | {"model": ["chgnet-0.3.0"] * 2 + ["sevennet-0"], "material": "Si"})
    (panel,) = figures.displacements(summary).axes
    drawn = [container[0].get_xydata().tolist() for container in panel.containers]
    assert drawn == [[[300, 0.018]], [[100, 0.01], [300, 0.02]], [[300, 0.018]]]
    assert [panel.get_xscale(), panel.get_yscale()] == ["log", "log"]
    with pytest.raises(ValueError, match="u2_error"):
        figures.displacements(summary.drop(columns="u2_error"))


@pytest.mark.parametrize(("known", "dashed"), [("reference", 1), ("harmonic", 2)])
def test_profiles_are_means_over_seeds_beside_what_is_known(known, dashed):
    rows = pd.DataFrame({"distance_a": [1.0, 2.0, 1.0, 2.0], "value": [0.0, 1.0, 0.0, 3.0], "seed": [0, 0, 1, 1], known: [0.0, 4.0] * 2})
    rows = pd.concat([rows.assign(model=model) for model in ("chgnet-0.3.0", "sevennet-0")])
    rows = rows.assign(material="Si", temperature_k=300.0, status="ok")
    (panel,) = figures.profiles(rows, "distance_a", "distance (Å)|g", known).axes
    lines = {line.get_linestyle(): [] for line in panel.lines} | {}
    for line in panel.lines:
        lines[line.get_linestyle()].append(line.get_ydata().tolist())
    assert lines == {"-": [[0, 2]] * 2, "--": [[0, 4]] * dashed}
