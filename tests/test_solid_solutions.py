"""Solid solutions: orderings and their multiplicities, the way from a potential to a table, and the thermodynamics."""

from math import comb

import numpy as np
import pandas as pd
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from conftest import emt, needs_mirror

from helpers import benchmarks, potentials, registry
from helpers.benchmarks import Case
from helpers.benchmarks import solid_solutions as solutions
from helpers.potentials.ase import ASEPotential

STATIC = solutions.Protocol(relax=False)
RADII = {"Mg": 0.72, "Ca": 1.00, "O": 1.40}


class Springs(Calculator):
    """Rocksalt of springs: every pair of first and second neighbours at the sum of the radii, plus a bond energy of unlike cations."""

    implemented_properties = ("energy", "forces", "stress")
    bond_ev = 0.01

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        # Between the second and the third shell.
        cutoff = 0.79 * (8 * atoms.get_volume() / len(atoms)) ** (1 / 3)
        i, j, distance, vector = neighbor_list("ijdD", atoms, cutoff)
        symbols = np.array(atoms.get_chemical_symbols())
        radius = np.array([RADII[symbol] for symbol in symbols])
        anion = symbols == "O"
        # Two anions, or two cations, are √2 times as far apart as a cation and an anion.
        cation_size = np.where(anion[i] & anion[j], radius[~anion].mean(), (radius[i] + radius[j]) / 2)
        rest = np.where(anion[i] != anion[j], radius[i] + radius[j], np.sqrt(2) * (cation_size + RADII["O"]))
        stiffness = np.where(anion[i] != anion[j], 6.0, 1.0)
        unlike = ~anion[i] & ~anion[j] & (symbols[i] != symbols[j])
        stretch = distance - rest
        # Half, because every pair is listed from both ends.
        pull = (stiffness * stretch / distance)[:, None] * vector
        self.results["energy"] = (0.5 * stiffness * stretch**2 + self.bond_ev * unlike).sum() / 2
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pull)
        self.results["forces"] = forces
        stress = np.einsum("na,nb->ab", pull, vector) / 2 / atoms.get_volume()
        self.results["stress"] = stress.ravel()[[0, 4, 8, 5, 2, 1]]


def springs() -> ASEPotential:
    return ASEPotential("springs", Springs(), elements=frozenset({8, 12, 20}))


def copper_gold(name: str = "alloy", set_name: str = "nb-mo", **changes) -> Case:
    """A case with a DFT-like geometry: one gold atom in four."""
    alloy = bulk("Cu", cubic=True, a=3.75)
    alloy.symbols[2] = "Au"
    alloy.rattle(0.05, seed=2)
    case = {
        "name": f"{set_name}/{name}",
        "set": set_name,
        "material": "Cu-Au",
        "structures": {"alloy": alloy, "first": bulk("Cu", cubic=True), "second": bulk("Au", cubic=True)},
        "reference": {"energy": -0.04},
        "info": {"x": 0.25, "multiplicity": 4.0, "relaxed_in_dft": True, "geometry": "DFT"},
    }
    return Case(**{**case, **changes})


def points(set_name: str, x: np.ndarray, value: np.ndarray, **columns) -> pd.DataFrame:
    """A table as run makes it, from energies per formula unit."""
    frame = pd.DataFrame({"x": x, "value": value})
    frame = frame.assign(
        model="m",
        set=set_name,
        case=[f"{set_name}/{number}" for number in range(len(frame))],
        property=solutions.SYSTEMS[set_name].quantity,
        reference=np.nan,
        status="ok",
        multiplicity=1.0,
        relaxed_in_dft=set_name != "ca-mg-o",
        geometry="built" if set_name == "ca-mg-o" else "DFT",
    )
    return frame.assign(**columns)


@pytest.fixture(scope="module")
def rocksalt() -> list[Case]:
    return solutions.cases(sets=["ca-mg-o"])


# -- formula ---------------------------------------------------------------------------------------


def test_formula_by_hand():
    # Four units at −10 eV in all; end members at −3 (three quarters) and −2 eV: −2.5 against −2.75.
    assert solutions.mixing_energy(-10.0, 4, 0.25, -3.0, -2.0) == pytest.approx(0.25)


def test_end_members_do_not_mix():
    assert solutions.mixing_energy(-9.0, 3, 0.0, -3.0, 7.0) == 0.0
    assert solutions.mixing_energy(21.0, 3, 1.0, -3.0, 7.0) == 0.0


# -- orderings -------------------------------------------------------------------------------------


def burnside(permutations: np.ndarray) -> list[int]:
    """Number of distinct colourings by number of coloured sites, from the cycle index of the group."""
    n_sites = permutations.shape[1]
    total = np.zeros(n_sites + 1)
    for permutation in permutations:
        unvisited, polynomial = set(range(n_sites)), np.ones(1)
        while unvisited:
            site, length = unvisited.pop(), 1
            while (site := int(permutation[site])) in unvisited:
                unvisited.remove(site)
                length += 1
            factor = np.zeros(length + 1)
            factor[[0, -1]] = 1
            polynomial = np.convolve(polynomial, factor)
        total += polynomial
    return [round(count) for count in total / len(permutations)]


def test_necklaces_and_bracelets():
    """Closed form: two-coloured necklaces of six beads are 14, bracelets 13."""
    rotations = np.array([np.roll(np.arange(6), shift) for shift in range(6)])
    assert len(np.unique(solutions.canonical_orderings(rotations))) == 14
    assert len(np.unique(solutions.canonical_orderings(np.vstack([rotations, rotations[:, ::-1]])))) == 13


def test_space_group_of_the_rocksalt_cell():
    cell = solutions.rocksalt_cell(4.2)
    permutations = solutions.site_permutations(cell[cell.symbols == "Mg"])
    # 48 point operations times 16 translations, all different.
    assert permutations.shape == (768, 16)
    assert len(np.unique(permutations, axis=0)) == 768
    # A group holds the products of its members.
    rng = np.random.default_rng(0)
    members = {tuple(permutation) for permutation in permutations.tolist()}
    for first, second in rng.integers(0, 768, size=(50, 2)):
        assert tuple(permutations[first][permutations[second]].tolist()) in members


def test_counts_agree_with_burnside(rocksalt):
    cell = solutions.rocksalt_cell(4.2)
    expected = burnside(solutions.site_permutations(cell[cell.symbols == "Mg"]))
    assert expected == [1, 1, 2, 5, 12, 16, 29, 34, 40, 34, 29, 16, 12, 5, 2, 1, 1]
    n_ca = [round(16 * case.info["x"]) for case in rocksalt]
    assert np.bincount(n_ca).tolist() == expected


def test_multiplicities_count_every_configuration_once(rocksalt):
    for n in range(17):
        assert sum(case.info["multiplicity"] for case in rocksalt if case.info["x"] == n / 16) == comb(16, n)


def test_distinct_orderings_have_distinct_neighbourhoods(rocksalt):
    """Two Ca atoms in the cell: either nearest neighbours or second neighbours, twelve and three pairs per Ca."""
    pairs = [case for case in rocksalt if case.info["x"] == 2 / 16]
    shells = {}
    for case in pairs:
        alloy = case.structures["alloy"]
        calcium = alloy[alloy.symbols == "Ca"]
        shells[round(calcium.get_distance(0, 1, mic=True) / alloy.cell.lengths()[0] * np.sqrt(3), 4)] = case.info["multiplicity"]
    assert shells == {round(np.sqrt(0.5), 4): 16 * 12 / 2, 1.0: 16 * 3 / 2}


def test_rocksalt_cases(rocksalt):
    assert len(rocksalt) == len({case.name for case in rocksalt}) == 240
    for case in rocksalt[::40]:
        alloy = case.structures["alloy"]
        assert len(alloy) == 32
        assert (alloy.symbols == "O").sum() == 16
        assert (alloy.symbols == "Ca").mean() * 2 == case.info["x"]
        a = (alloy.get_volume() / 4) ** (1 / 3)
        assert a == pytest.approx(4.21 + case.info["x"] * 0.60)
        i, j = neighbor_list("ij", alloy, 0.55 * a)
        assert (np.bincount(i) == 6).all()
        assert ((alloy.numbers[i] == 8) != (alloy.numbers[j] == 8)).all()
        assert np.isnan(case.reference["energy"])


@pytest.mark.slow
def test_random_alloy_of_a_bond_model(rocksalt):
    """With an energy w per bond of unlike neighbours, the mean over all configurations of N sites is known: z w x(1 − x) N/(N − 1).

    Two distinct sites hold different species with probability 2x(1 − x) N/(N − 1).
    """
    w, rows = 0.03, []
    for case in rocksalt:
        alloy = case.structures["alloy"]
        cations = alloy[alloy.numbers != 8]
        i, j = neighbor_list("ij", cations, 0.8 * (alloy.get_volume() / 4) ** (1 / 3))
        bonds = (cations.numbers[i] != cations.numbers[j]).sum() / 2
        rows.append((case.info["x"], w * bonds / 8, case.info["multiplicity"]))
    x, value, multiplicity = np.array(rows).T
    curve = solutions.mixing_curve(points("ca-mg-o", x, value, multiplicity=multiplicity))
    np.testing.assert_allclose(curve["mean"], 2 * 12 * w * curve["x"] * (1 - curve["x"]) * 16 / 15, atol=1e-12)
    # Layers of MgO and CaO along [001] break the fewest bonds that this cell allows.
    assert curve.set_index("x").loc[0.5, "minimum"] == value[x == 0.5].min()
    found = solutions.miscibility(points("ca-mg-o", x, value, multiplicity=multiplicity), n_resamples=20).iloc[0]
    assert found["omega"] == pytest.approx(12 * w * 16 / 15)
    assert found["omega_1"] == pytest.approx(0.0, abs=1e-12)
    assert found["t_c_k"] == pytest.approx(12 * w * 16 / 15 / (2 * units.kB))


# -- cases -----------------------------------------------------------------------------------------


def test_module_has_the_common_names():
    assert benchmarks.module("solid_solutions") is solutions
    assert solutions.SETS[solutions.LIVE] == ()
    assert set(solutions.SYSTEMS) == set(solutions.SETS)
    known = {file.key for file in registry.files()}
    assert {key for keys in solutions.SETS.values() for key in keys} <= known
    assert len(solutions.SETS["sic-aln"]) == 155


def test_unknown_set_is_named():
    with pytest.raises(KeyError, match="nonsense"):
        solutions.cases(sets=["nonsense"])


# -- run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spring_cases(rocksalt) -> list[Case]:
    return [case for case in rocksalt if case.info["ordering"] in ("00-01", "01-01", "16-01")]


@pytest.fixture(scope="module")
def spring_table(spring_cases) -> pd.DataFrame:
    return solutions.run(springs(), spring_cases, solutions.Protocol())


def test_springs_are_the_derivative_of_their_energy(rocksalt):
    """The toy of these tests must itself be right."""
    alloy = rocksalt[20].structures["alloy"].copy()
    alloy.rattle(0.03, seed=0)
    alloy.calc = Springs()
    step = 1e-5
    for atom, axis in [(0, 0), (17, 2)]:
        energies = []
        for sign in (1, -1):
            moved = alloy.copy()
            moved.calc = Springs()
            moved.positions[atom, axis] += sign * step
            energies.append(moved.get_potential_energy())
        assert alloy.get_forces()[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-6)
    strained = []
    for sign in (1, -1):
        copy = alloy.copy()
        copy.set_cell(copy.cell.array @ (np.eye(3) + sign * step * np.diag([0, 1, 0])), scale_atoms=True)
        copy.calc = Springs()
        strained.append(copy.get_potential_energy())
    assert alloy.get_stress()[1] == pytest.approx((strained[0] - strained[1]) / (2 * step) / alloy.get_volume(), rel=1e-5)


def test_end_members_are_zero(spring_table):
    ends = spring_table[spring_table["x"].isin([0.0, 1.0])]
    assert len(ends) == 4
    assert (ends["status"] == "ok").all()
    np.testing.assert_allclose(ends["value"], 0.0, atol=1e-6)


def test_relaxation_is_downhill_from_the_models_own_lattice(spring_table):
    one = spring_table[spring_table["case"] == "ca-mg-o/01-01"].set_index("property")
    assert one["value"]["formation_energy"] < one["value"]["formation_energy_unrelaxed"] - 1e-3
    # The springs' own lattice parameters are known: twice the sum of the radii.
    a = (15 * 2 * (0.72 + 1.40) + 2 * (1.00 + 1.40)) / 16
    assert (8 * one["volume_a3_per_atom"]["formation_energy_unrelaxed"]) ** (1 / 3) == pytest.approx(a, rel=2e-3)


def test_a_shard_gives_what_the_whole_gives(spring_cases, spring_table):
    alone = solutions.run(springs(), [spring_cases[1]], solutions.Protocol())
    both = alone.merge(spring_table, on=["case", "property"], validate="one_to_one")
    assert len(both) == 2
    np.testing.assert_allclose(both["value_x"], both["value_y"], atol=1e-6)


def test_table_layout(spring_table):
    assert list(spring_table.columns[: len(benchmarks.COLUMNS)]) == benchmarks.COLUMNS
    assert set(spring_table["property"]) == {"formation_energy", "formation_energy_unrelaxed"}
    assert set(spring_table["property"]) <= set(solutions.TOLERANCES)
    assert spring_table["reference"].isna().all()
    assert set(spring_table["unit"]) == {"eV/f.u."}
    assert {"x", "ordering", "multiplicity", "n_atoms", "relaxed_in_dft", "volume_a3_per_atom"} <= set(spring_table.columns)


def test_static_energies_by_hand():
    case = copper_gold()
    result = solutions.run(emt(), [case], solutions.Protocol())
    assert result["property"].tolist() == ["mixing_energy_static"]
    energies = {}
    for role, atoms in case.structures.items():
        copy = atoms.copy()
        copy.calc = EMT()
        energies[role] = copy.get_potential_energy() / 4
    expected = energies["alloy"] - 0.75 * energies["first"] - 0.25 * energies["second"]
    assert result["value"].iloc[0] == pytest.approx(expected, abs=1e-9)
    assert result["reference"].iloc[0] == -0.04
    assert result["unit"].iloc[0] == "eV/atom"


def test_formula_unit_of_two_atoms_and_own_end_members():
    """Per two atoms twice the energy per atom; relaxed, alloy and end members are all at the model's minimum."""
    case = copper_gold(set_name="sic-aln")
    result = solutions.run(emt(), [case], solutions.Protocol(fmax_ev_per_a=0.01)).set_index("property")
    per_atom = solutions.run(emt(), [copper_gold()], STATIC)
    assert result.loc["mixing_energy_static", "value"] == pytest.approx(2 * per_atom["value"].iloc[0])
    moved = case.structures["alloy"].copy()
    moved.rattle(0.03, seed=5)
    other = copper_gold(set_name="sic-aln", structures={**case.structures, "alloy": moved})
    again = solutions.run(emt(), [other], solutions.Protocol(fmax_ev_per_a=0.01)).set_index("property")
    assert again.loc["mixing_energy", "value"] == pytest.approx(result.loc["mixing_energy", "value"], abs=5e-4)
    assert result.loc["mixing_energy", "volume_a3_per_atom"] != result.loc["mixing_energy_static", "volume_a3_per_atom"]


def test_scaling_the_energy_scales_everything():
    case = copper_gold(reference={"energy": 0.1, "forces": np.zeros((4, 3))})
    plain, scaled = (solutions.run(p, [case], STATIC) for p in (emt(), emt().scaled(1.3)))
    np.testing.assert_allclose(scaled["value"], 1.3 * plain["value"], atol=1.3e-4)
    assert scaled["value"].iloc[0] == pytest.approx(1.3 * plain["value"].iloc[0], rel=1e-9)


def test_forces_are_paired_with_their_references():
    reference = np.arange(12.0).reshape(4, 3)
    case = copper_gold(reference={"energy": 0.1, "forces": reference})
    forces = solutions.run(emt(), [case], STATIC).query("property == 'force'")
    assert len(forces) == 12
    alloy = case.structures["alloy"].copy()
    alloy.calc = EMT()
    for i, k in [(0, 0), (2, 1), (3, 2)]:
        one = forces[(forces["atom"] == i) & (forces["component"] == k)].iloc[0]
        assert one["value"] == pytest.approx(alloy.get_forces()[i, k], abs=5e-5 + 1e-9)
        assert one["reference"] == reference[i, k]


def test_everything_is_evaluated_once_and_together():
    calls = []

    class Counting(ASEPotential):
        def evaluate(self, structures, **options):
            calls.append([atoms.get_chemical_formula() for atoms in structures])
            return super().evaluate(structures, **options)

    solutions.run(Counting("emt", EMT()), [copper_gold("a"), copper_gold("b"), copper_gold("c", "ta-w")], STATIC)
    assert [sorted(call) for call in calls if call] == [["Au4", "AuCu3", "Cu4"]]


def test_failures_are_rows_with_reasons_and_do_not_disturb_others(rocksalt):
    good = copper_gold("good")
    iron = copper_gold("iron", reference={"energy": 0.1, "forces": np.zeros((4, 3))})
    iron.structures["alloy"].symbols[:] = "Fe"
    other_end = copper_gold("other end", structures={**good.structures, "second": bulk("Fe", cubic=True)})
    oxide = rocksalt[1]
    result = solutions.run(emt(), [iron, other_end, oxide, good], solutions.Protocol())
    energies = result[result["property"] != "force"].set_index(["case", "property"])
    reasons = energies["reason"]
    assert "not trained on: Fe" in reasons["nb-mo/iron", "mixing_energy_static"]
    assert reasons["nb-mo/other end", "mixing_energy_static"].startswith("Fe: ")
    for name in ("formation_energy", "formation_energy_unrelaxed"):
        assert "not trained on" in reasons[oxide.name, name]
    failed = energies["status"] == "failed"
    assert energies.loc[failed, "value"].isna().all()
    assert energies.index[~failed].tolist() == [("nb-mo/good", "mixing_energy_static")]
    forces = result[result["property"] == "force"]
    assert forces[["case", "status"]].to_numpy().tolist() == [["nb-mo/iron", "failed"]]
    alone = solutions.run(emt(), [good], STATIC)
    assert energies.loc[("nb-mo/good", "mixing_energy_static"), "value"] == pytest.approx(alone["value"].iloc[0], abs=1e-12)


def test_relaxation_that_does_not_converge():
    result = solutions.run(emt(), [copper_gold(set_name="sic-aln")], solutions.Protocol(max_steps=1)).set_index("property")
    assert result.loc["mixing_energy_static", "status"] == "ok"
    assert result.loc["mixing_energy", "status"] == "failed"
    assert "not converged" in result.loc["mixing_energy", "reason"]
    assert np.isnan(result.loc["mixing_energy", "value"])


# -- curves and thermodynamics ---------------------------------------------------------------------


def test_curve_by_hand():
    table = points("nb-mo", np.array([0.5, 0.5, 0.5, 0.25]), np.array([-0.10, -0.04, np.nan, -0.02]))
    table["multiplicity"] = [1.0, 3.0, 5.0, 1.0]
    table["reference"] = [-0.08, -0.08, -0.08, -0.01]
    table["status"] = ["ok", "ok", "failed", "ok"]
    # Unrelaxed frames are at another volume and do not count.
    table = pd.concat([table, table.assign(relaxed_in_dft=False, value=9.0)], ignore_index=True)
    curve = solutions.mixing_curve(table).set_index(["model", "x"])
    half = curve.loc["m", 0.5]
    assert (half["n"], half["n_failed"]) == (2, 1)
    assert half["mean"] == pytest.approx((-0.10 - 3 * 0.04) / 4)
    assert half["minimum"] == -0.10
    assert half["std"] == pytest.approx(np.sqrt(0.75 * 0.25) * 0.06)
    assert curve.loc[("DFT", 0.5), "mean"] == pytest.approx(-0.08)
    assert curve.loc[("DFT", 0.5), "n"] == 3


PAPER = {label: entry.key for label, entry in potentials.papers("2c").items()}


def test_a_model_made_of_the_papers_dft_has_its_slope():
    """A table whose means are 0.8 times the paper's DFT means has a slope of 0.8, without scatter."""
    dft = solutions.paper_curves().query("model == 'DFT'")
    table = pd.DataFrame(
        {"model": "m", "set": "ca-mg-o", "case": "c" + dft["x"].astype(str), "x": dft["x"], "multiplicity": 1.0, "geometry": "built"}
    ).assign(property="formation_energy", value=0.8 * dft["mean"], reference=np.nan, status="ok", relaxed_in_dft=False)
    found = solutions.against_paper(table)
    assert [found[name] for name in ("slope", "slope_low", "slope_high")] == pytest.approx([0.8] * 3)
    half = dft[dft["x"] == 0.5].iloc[0]
    assert found["lowest_ratio"] == pytest.approx(0.8 * half["mean"] / half["minimum"])
    assert found["n"] == len(dft)


def test_outlines_of_gaps_close_at_the_top():
    columns = ["model", "source", "set", "omega_0", "omega_1"]
    rows = [
        ("a", "ours", "s", 0.2, 0.0),
        ("DFT", "ours", "s", 0.2, 0.05),
        ("orders", "ours", "s", -0.3, 0.0),
        ("a", "ours", "other", 0.9, 0.0),
    ]
    fits = pd.DataFrame(rows, columns=columns)
    fits["t_c_sub_regular_k"] = solutions.consolute_temperature(fits["omega_0"], fits["omega_1"])
    lines, tops = solutions.miscibility_gaps(fits, "s")
    assert set(zip(lines["model"], lines["source"], strict=True)) == {("a", "ours"), ("DFT", "DFT")}
    symmetric = lines[lines["model"] == "a"]
    by_temperature = symmetric.groupby("temperature_k")["x"]
    np.testing.assert_allclose(by_temperature.sum(), 1, atol=2e-3)
    widths = by_temperature.max() - by_temperature.min()
    assert (np.diff(widths) <= 1e-3).all()
    assert widths.iloc[-1] < 0.1
    top = tops.set_index("model")
    assert top.loc["a", "x"] == pytest.approx(0.5)
    assert top.loc["a", "temperature_k"] == pytest.approx(0.2 / (2 * units.kB))
    assert top.loc["DFT", "x"] < 0.5


def test_paper_curves_hold_the_numbers_that_the_paper_quotes():
    curves = solutions.paper_curves()
    assert curves.groupby("model")["n"].sum().to_dict() == dict.fromkeys(["DFT", *PAPER.values()], 190)
    assert set(curves["x"]) == {n / 16 for n in range(17)}
    lowest = curves[curves["x"] == 0.5].set_index("model")["minimum"]
    for label, value in {"DFT": 0.34, "M3GNet": 0.25, "CHGNet": 0.30, "MACE": 0.24}.items():
        model = PAPER.get(label, label)
        assert lowest[model] == pytest.approx(value, abs=0.01)


def test_fits_recover_the_parameters():
    x = np.array([0.0, 0.1, 0.3, 0.4, 0.8, 1.0])
    for omega_0, omega_1 in [(0.4, 0.0), (0.4, -0.1), (-0.2, 0.05)]:
        h = x * (1 - x) * (omega_0 + omega_1 * (1 - 2 * x))
        np.testing.assert_allclose(solutions.sub_regular(x, h), [omega_0, omega_1], atol=1e-12)
    assert solutions.regular_solution(x, 0.4 * x * (1 - x)) == pytest.approx(0.4)
    # One composition, two values: the weighted mean.
    assert solutions.regular_solution([0.5, 0.5], [0.1, 0.2], [3.0, 1.0]) == pytest.approx(4 * 0.125)
    with pytest.raises(ValueError, match="compositions between the end members"):
        solutions.sub_regular([0.0, 0.5, 1.0], [0.0, 0.1, 0.0])


def test_gap_of_the_regular_solution_has_a_closed_form():
    """The binodal of a regular solution obeys kT ln[(1 − x)/x] = Ω(1 − 2x)."""
    omega = 0.3
    t_c = omega / (2 * units.kB)
    assert solutions.consolute_temperature(omega) == pytest.approx(t_c)
    gap = solutions.binodal(t_c * np.array([0.3, 0.6, 0.9, 0.99, 1.01, 1.5]), omega)
    inside = gap.iloc[:4]
    np.testing.assert_allclose(inside["x_low"] + inside["x_high"], 1.0, atol=1e-9)
    for line in inside.itertuples():
        around = np.array([line.x_low - 5e-4, line.x_low + 5e-4])
        balance = units.kB * line.temperature_k * np.log((1 - around) / around) - omega * (1 - 2 * around)
        assert balance[0] > 0 > balance[1]
    assert gap.iloc[4:][["x_low", "x_high"]].isna().all(axis=None)


def test_gap_of_the_sub_regular_solution_is_a_common_tangent_that_closes():
    omega_0, omega_1 = 0.3, 0.08
    t_c = float(solutions.consolute_temperature(omega_0, omega_1))
    assert t_c > omega_0 / (2 * units.kB)
    x = np.linspace(1e-6, 1 - 1e-6, 200_001)
    kt = units.kB * 0.7 * t_c
    g = x * (1 - x) * (omega_0 + omega_1 * (1 - 2 * x)) + kt * (x * np.log(x) + (1 - x) * np.log(1 - x))
    slope = np.gradient(g, x)
    line = solutions.binodal(0.7 * t_c, omega_0, omega_1).iloc[0]
    low, high = (int(np.abs(x - end).argmin()) for end in (line["x_low"], line["x_high"]))
    chord = (g[high] - g[low]) / (x[high] - x[low])
    assert slope[low] == pytest.approx(chord, abs=2e-3)
    assert slope[high] == pytest.approx(chord, abs=2e-3)
    near = solutions.binodal([0.99 * t_c, 1.01 * t_c], omega_0, omega_1)
    assert near["x_low"].notna().tolist() == [True, False]
    # A positive Ω1 raises h at small x: the critical point lies there.
    assert near.iloc[0][["x_low", "x_high"]].mean() < 0.45


def test_no_gap_where_species_order_and_a_full_one_at_zero_temperature():
    assert np.isnan(solutions.consolute_temperature(-0.2))
    assert solutions.binodal([300.0], -0.2)[["x_low", "x_high"]].isna().all(axis=None)
    cold = solutions.binodal([0.0], 0.2).iloc[0]
    assert (cold["x_low"], cold["x_high"]) == (0.0, 1.0)


def test_miscibility_counts_sites():
    """The same energies per formula unit mean half the Ω where two sites share them; the paper's points come along for its system."""
    x = np.repeat(np.arange(1, 16) / 16, 3)
    h = 0.8 * x * (1 - x)
    for name, sites, sources in [("ca-mg-o", 2, {"ours", "paper"}), ("sic-aln", 2, {"ours"}), ("nb-mo", 1, {"ours"})]:
        found = solutions.miscibility(points(name, x, h), n_resamples=50)
        assert set(found["source"]) == sources
        mine = found.iloc[0]
        assert mine["n"] == 45
        for column in ("omega", "omega_low", "omega_high", "omega_0"):
            assert mine[column] == pytest.approx(0.8 / sites)
        assert mine["t_c_k"] == pytest.approx(0.8 / sites / (2 * units.kB))
        assert mine["t_c_sub_regular_k"] == pytest.approx(0.8 / sites / (2 * units.kB))


def test_miscibility_of_unlike_cells_is_least_squares_over_orderings():
    rng = np.random.default_rng(3)
    x = rng.choice([0.25, 1 / 3, 0.5, 0.625], size=40)
    h = 0.8 * x * (1 - x) + rng.normal(0, 0.05, 40)
    table = points("sic-aln", x, h, multiplicity=np.nan, reference=2 * h)
    found = solutions.miscibility(table).set_index("model")
    direct = (h / 2 * x * (1 - x)).sum() / (x**2 * (1 - x) ** 2).sum()
    assert found.loc["m", "omega"] == pytest.approx(direct)
    assert found.loc["DFT", "omega"] == pytest.approx(2 * direct)
    terms = np.column_stack([x * (1 - x), x * (1 - x) * (1 - 2 * x)])
    np.testing.assert_allclose(found.loc["m", ["omega_0", "omega_1"]].astype(float), np.linalg.lstsq(terms, h / 2, rcond=None)[0])
    assert found.loc["m", "omega_low"] < direct < found.loc["m", "omega_high"]
    # The scatter that was put in, carried through the fit.
    spread = 0.025 / np.sqrt((x**2 * (1 - x) ** 2).sum())
    assert 2.5 * spread < found.loc["m", "omega_high"] - found.loc["m", "omega_low"] < 5 * spread
    # No random alloy is defined by such cells.
    assert solutions.mixing_curve(table)["mean"].isna().all()


def test_example_orderings(rocksalt):
    chosen = [case for case in rocksalt if case.info["x"] == 0.5]
    table = pd.DataFrame(
        {
            "model": "m",
            "case": [case.name for case in chosen],
            "property": "formation_energy",
            "status": "ok",
            "x": 0.5,
            "value": np.arange(40.0),
        },
        index=np.arange(100, 140),
    )
    table.loc[139, "status"] = "failed"
    found = solutions.example_orderings(table, 8)
    assert (found["lowest"].name, found["highest"].name) == ("ca-mg-o/08-01", "ca-mg-o/08-39")
    assert found["lowest"].structures["alloy"].get_chemical_formula() == "Ca8Mg8O16"
    with pytest.raises(ValueError, match="at 7 Ca atoms"):
        solutions.example_orderings(table, 7)


# -- summary ---------------------------------------------------------------------------------------


def test_summary_by_hand():
    x = np.array([0.0, 0.25, 0.5, 0.5, 0.75])
    reference = np.array([0.0, 0.20, 0.30, 0.40, 0.25])
    compared = points("sic-aln", x, 0.8 * reference, reference=reference, multiplicity=np.nan)
    compared.loc[3, ["status", "value"]] = ["failed", np.nan]
    enumerated = points("ca-mg-o", x, 0.8 * x * (1 - x) + np.array([0, 0, 0.01, -0.01, 0]))
    force = compared.assign(property="force")
    result = solutions.summarise(pd.concat([compared, enumerated, force], ignore_index=True)).set_index("set")
    assert len(result) == 2
    mine = result.loc["sic-aln"]
    assert (mine["n"], mine["n_failed"], mine["n_clusters"]) == (3, 1, 3)
    assert mine["slope"] == pytest.approx(0.8)
    assert mine["mae"] == pytest.approx(0.2 * 0.25)
    assert np.isnan(mine["omega"])
    ours = result.loc["ca-mg-o"]
    assert np.isnan(ours["slope"])
    assert (ours["n"], ours["n_failed"]) == (5, 0)
    assert ours["omega"] == pytest.approx(0.4)
    assert ours["t_c_k"] == pytest.approx(0.4 / (2 * units.kB))


def test_summary_of_a_table_too_small_for_any_fit():
    one = points("ca-mg-o", np.array([0.5]), np.array([0.3]))
    result = solutions.summarise(one)
    assert result["n"].tolist() == [1]
    assert "omega" not in result
    with pytest.raises(ValueError, match="one model"):
        solutions.against_paper(one.iloc[:0])
    # Of the miscibility there is only what the paper says.
    assert set(solutions.miscibility(one)["source"]) == {"paper"}
    assert solutions.miscibility(points("nb-mo", np.array([0.5]), np.array([0.3]))).empty


# -- the DFT data ----------------------------------------------------------------------------------


@needs_mirror
def test_sic_aln_is_complete():
    found = solutions.cases(sets=["sic-aln"])
    assert len({case.name for case in found}) == 155
    energies = np.array([case.reference["energy"] for case in found])
    ends = [case.info["x"] in (0.0, 1.0) for case in found]
    assert sum(ends) == 2
    assert (energies[ends] == 0.0).all()
    assert energies[np.logical_not(ends)].min() > 0
    not_wurtzite = 0
    for case in found:
        symbols = case.structures["alloy"].symbols
        # Stoichiometric: as many Si as C, as many Al as N.
        assert (symbols == "Si").sum() == (symbols == "C").sum()
        assert (symbols == "Al").sum() == (symbols == "N").sum()
        # Metals bond to non-metals; in wurtzite every atom has four neighbours.
        i, j = neighbor_list("ij", case.structures["alloy"], 2.4)
        cation = np.isin(case.structures["alloy"].numbers, [13, 14])
        assert (cation[i] != cation[j]).all()
        not_wurtzite += bool((np.bincount(i) != 4).any())
    # The module's text says so.
    assert not_wurtzite == 9


@needs_mirror
def test_vasp_energy_is_the_one_without_smearing():
    """For a little smearing it lies half-way between free and internal energy (Kresse and Furthmüller 1996)."""
    path = registry.fetch("sekocha/pyclupan/examples/SiC-AlN/DFT/2-0-1/vasprun.xml")
    atoms, energy, _ = solutions.read_vasprun(path)
    free, entropy = -57.17496311, 0.01238482
    assert energy == pytest.approx(free + entropy / 2, abs=1e-7)
    assert sorted(atoms.get_chemical_symbols()) == ["Al", "C", "C", "C", "N", "Si", "Si", "Si"]
    assert atoms.get_volume() == pytest.approx(85.96563993, abs=1e-5)


@needs_mirror
def test_mixed_settings_are_refused(monkeypatch, tmp_path):
    odd = solutions.SETS["sic-aln"][7]
    text = registry.fetch(odd).read_text()
    assert text.count('name="ENCUT">    600.0') == 1
    text = text.replace('name="ENCUT">    600.0', 'name="ENCUT">    500.0')
    (tmp_path / "vasprun.xml").write_text(text)
    fetch = registry.fetch
    monkeypatch.setattr(registry, "fetch", lambda key: tmp_path / "vasprun.xml" if key == odd else fetch(key))
    with pytest.raises(ValueError, match=f"{odd}.*other settings"):
        solutions.cases(sets=["sic-aln"])


@needs_mirror
@pytest.mark.parametrize(("name", "volumes"), [("nb-mo", (18.34, 15.89)), ("ta-w", (18.34, 16.23))])
def test_metals_are_all_orderings_of_a_bcc_cell(name, volumes):
    found = solutions.cases(sets=[name])
    assert len({case.name for case in found}) == 658
    for relaxed in (False, True):
        chosen = [case for case in found if case.info["relaxed_in_dft"] is relaxed]
        assert len(chosen) == 329
        for n in range(1, 16):
            assert sum(case.info["multiplicity"] for case in chosen if case.info["x"] == n / 16) == comb(16, n)
    # Same number, same ordering: the relaxed atoms are where the unrelaxed ones were, in species as in place.
    pairs = {}
    for case in found:
        pairs.setdefault(case.info["ordering"], []).append(case.structures["alloy"])
    for first, second in pairs.values():
        assert (first.numbers == second.numbers).all()
        apart = first.get_scaled_positions() - second.get_scaled_positions()
        assert np.abs(apart - np.rint(apart)).max() < 0.03
    # Ideal sites at one of two volumes, and forces in all but the 20 frames that are too symmetric for any.
    unrelaxed = [case for case in found if not case.info["relaxed_in_dft"]]
    for case in unrelaxed:
        volume = case.structures["alloy"].get_volume() / 16
        assert volume == pytest.approx(volumes[0] if case.info["x"] <= 0.5 else volumes[1], abs=0.01)
    assert sum("forces" in case.reference for case in found) == sum("forces" in case.reference for case in unrelaxed) == 309
    energy = {case.name: case.reference["energy"] for case in found}
    ordered = [f"{name}/{number}" for number in pairs]
    assert all(energy[f"{start}/relaxed"] < energy[f"{start}/unrelaxed"] for start in ordered)
