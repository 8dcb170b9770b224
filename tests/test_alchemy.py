"""Continuous composition: its limits are the plain potential, its derivatives those of its energy, and bad input is refused."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from ase.build import bulk
from conftest import needs_mirror

from helpers import potentials
from helpers.benchmarks import elasticity
from helpers.experiments import alchemy as benchmark
from helpers.potentials import PotentialError, StructureError, mace
from helpers.training import alchemy

# Of each network two elements that mix, beside oxygen. MACE is the small one with random weights.
PAIRS = {"chgnet-0.3.0": ("Mg", "Ca"), "chgnet-0.2.0": ("Mg", "Ca"), "mace-small": ("Si", "Fe")}


def crystal(first, a=4.4):
    """Return a distorted rocksalt cell, so that no force or stress vanishes by symmetry."""
    rng = np.random.default_rng(3)
    atoms = bulk(f"{first}O", "rocksalt", a=a, cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
    return atoms


@pytest.fixture(scope="module", params=PAIRS)
def network(request, load_model):
    return load_model(request.param, torch.float64), *PAIRS[request.param]


def same(one, other, tolerance=1e-9):
    assert one.ok
    assert other.ok
    assert one.energy == pytest.approx(other.energy, abs=tolerance)
    assert one.forces == pytest.approx(other.forces, abs=tolerance)
    assert one.stress == pytest.approx(other.stress, abs=tolerance)


@pytest.mark.slow
def test_with_one_weight_the_mixture_is_the_plain_potential(network):
    potential, first, second = network
    for pure in (first, second):
        mixed = alchemy.mix(potential, {first: float(pure == first), second: float(pure == second)})
        for site in (first, second):  # whichever element stands on the sites
            (found,) = mixed.evaluate([crystal(site)], stress=True)
            (plain,) = potential.evaluate([crystal(pure)], stress=True)
            same(found, plain)


def test_without_weight_the_sites_are_empty(network):
    potential, first, _ = network
    full = crystal(first)
    empty = full[[atom.symbol != first for atom in full]]
    (found,) = alchemy.mix(potential, {first: 0.0}).evaluate([full], stress=True)
    (plain,) = potential.evaluate([empty], stress=True)
    assert found.energy == pytest.approx(plain.energy, abs=1e-9)
    assert found.stress == pytest.approx(plain.stress, abs=1e-9)
    oxygen = [atom.symbol != first for atom in full]
    assert found.forces[oxygen] == pytest.approx(plain.forces, abs=1e-9)
    assert np.abs(found.forces[np.logical_not(oxygen)]).max() == 0


def test_two_halves_of_one_element_are_not_the_whole(network):
    """The rules join a species to itself at full weight, so the weights of a mixture matter between the limits."""
    potential, first, second = network
    half = alchemy.mix(potential, {first: 0.5, second: 0.5}).evaluate([crystal(first)])[0].energy
    ends = [potential.evaluate([crystal(pure)])[0].energy for pure in (first, second)]
    assert abs(half - np.mean(ends)) > 1e-3


def test_a_structure_without_mixed_sites_is_left_alone(network):
    potential, first, second = network
    oxygen = bulk("O", "fcc", a=4.0)
    mixed = alchemy.mix(potential, {first: 0.4, second: 0.6})
    same(mixed.evaluate([oxygen], stress=True)[0], potential.evaluate([oxygen], stress=True)[0])
    (response,) = mixed.responses([oxygen])
    assert set(response.energy_gradient.values()) == {0.0}


def test_derivatives_in_the_weights_are_those_of_energy_and_stress(network):
    potential, first, second = network
    atoms, weights, h = crystal(first), {first: 0.45, second: 0.35}, 1e-5
    (response,) = alchemy.mix(potential, weights).responses([atoms])
    for element in weights:
        ends = [
            alchemy.mix(potential, {**weights, element: weights[element] + sign * h}).evaluate([atoms], stress=True)[0] for sign in (1, -1)
        ]
        assert response.energy_gradient[element] == pytest.approx((ends[0].energy - ends[1].energy) / (2 * h), rel=1e-6, abs=1e-7)
        in_stress = np.trace(ends[0].stress - ends[1].stress) / 3 / (2 * h)
        assert response.stress_gradient[element] == pytest.approx(in_stress, rel=1e-5, abs=1e-8)


def test_forces_and_stress_are_derivatives_of_the_mixed_energy(network):
    potential, first, second = network
    mixed, atoms, h = alchemy.mix(potential, {first: 0.3, second: 0.7}), crystal(first), 1e-5
    (found,) = mixed.evaluate([atoms], stress=True)

    def energy(changed):
        return mixed.evaluate([changed])[0].energy

    for atom, axis in ((0, 0), (1, 2)):
        moved = [atoms.copy(), atoms.copy()]
        for sign, one in zip((1, -1), moved, strict=True):
            one.positions[atom, axis] += sign * h
        assert found.forces[atom, axis] == pytest.approx(-(energy(moved[0]) - energy(moved[1])) / (2 * h), rel=1e-5, abs=1e-6)
    grown, shrunk = alchemy.resized(atoms, 1 + h), alchemy.resized(atoms, 1 - h)
    in_length = (energy(grown) - energy(shrunk)) / (2 * h)
    assert np.trace(found.stress) == pytest.approx(in_length / atoms.get_volume(), rel=1e-5)


def test_a_batch_gives_what_single_structures_give(network):
    potential, first, second = network
    mixed = alchemy.mix(potential, {first: 0.6, second: 0.4})
    # The last one has no angles in CHGNet's line graph, the others have.
    structures = [crystal(first), crystal(second, a=4.7), bulk(f"{first}O", "rocksalt", a=6.1)]
    for together, alone in zip(
        mixed.evaluate(structures, stress=True), [mixed.evaluate([atoms], stress=True)[0] for atoms in structures], strict=True
    ):
        same(together, alone)


def test_a_scaled_potential_gives_a_scaled_mixture(network):
    potential, first, second = network
    weights = {first: 0.5, second: 0.5}
    plain = alchemy.mix(potential, weights).evaluate([crystal(first)])[0]
    for scaled in (alchemy.mix(potential.scaled(1.3), weights), alchemy.mix(potential, weights).scaled(1.3)):
        (found,) = scaled.evaluate([crystal(first)])
        assert found.energy == pytest.approx(1.3 * plain.energy)
        assert found.forces == pytest.approx(1.3 * plain.forces, abs=1e-9)
    assert potential.scale == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "options"),
    [
        ("RealAgnosticDensityResidualInteractionBlock", {"pair_repulsion": True, "distance_transform": "Agnesi"}),
        ("RealAgnosticResidualNonLinearInteractionBlock", {"apply_cutoff": False}),
    ],
)
def test_later_kinds_of_mace_can_be_mixed(block, options):
    """Messages divided by a density, the short-range repulsion of newer foundation models, a cutoff that is not in the radial basis."""
    with mace.contained(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The TorchScript type system")
        from e3nn import o3
        from mace import modules

        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            torch.manual_seed(0)
            network = modules.ScaleShiftMACE(
                r_max=4.5,
                num_bessel=6,
                num_polynomial_cutoff=5,
                max_ell=2,
                interaction_cls=modules.interaction_classes[block],
                interaction_cls_first=modules.interaction_classes[block],
                num_interactions=2,
                num_elements=3,
                hidden_irreps=o3.Irreps("8x0e+8x1o"),
                MLP_irreps=o3.Irreps("8x0e"),
                atomic_energies=np.linspace(-4.0, -2.0, 3),
                avg_num_neighbors=20.0,
                atomic_numbers=[8, 14, 26],
                correlation=2,
                gate=torch.nn.functional.silu,
                radial_MLP=[16, 16],
                atomic_inter_scale=np.array([15.0]),
                atomic_inter_shift=np.array([0.1]),
                **options,
            )
        finally:
            torch.set_default_dtype(default)
    elements = frozenset({8, 14, 26})
    potential = mace.MACEPotential(
        "small", network, cutoff=4.5, bytes_per_edge=1e4, device=torch.device("cpu"), elements=elements, description={}
    )
    atoms, h = crystal("Si", a=3.6), 1e-5
    same(
        alchemy.mix(potential, {"Si": 1.0, "Fe": 0.0}).evaluate([atoms], stress=True)[0],
        potential.evaluate([atoms], stress=True)[0],
    )
    (response,) = alchemy.mix(potential, {"Si": 0.5, "Fe": 0.4}).responses([atoms])
    ends = [alchemy.mix(potential, {"Si": 0.5, "Fe": 0.4 + sign * h}).evaluate([atoms])[0].energy for sign in (1, -1)]
    assert response.energy_gradient["Fe"] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_a_mace_file_by_path_can_be_mixed(mace_file):
    potential = potentials.load(f"file:{mace_file}", "cpu", trust=True)
    mixed = alchemy.mix(potential, {"Si": 0.5, "Fe": 0.5})
    assert mixed.evaluate([crystal("Si")])[0].ok
    assert mixed.describe()["mixture"] == {"Si": 0.5, "Fe": 0.5}
    assert mixed.describe()["weights_sha256"] == potential.describe()["weights_sha256"]


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({}, "at least one element"),
        ({"Mg": 0.5, "Xx": 0.5}, "'Xx'"),
        ({"Mg": 0.5, "Po": 0.5}, "not trained on Po"),
        ({"Mg": 1.5, "Ca": -0.5}, "Mg 1.5, Ca -0.5"),
        ({"Mg": float("nan"), "Ca": 0.5}, "Mg nan"),
        ({"Mg": 0.7, "Ca": 0.6}, "sum to 1.3"),
    ],
)
def test_what_is_no_composition_is_refused(load_model, weights, complaint):
    with pytest.raises(PotentialError, match=complaint):
        alchemy.mix(load_model("chgnet-0.3.0"), weights)


def test_other_potentials_are_refused(load_model):
    with pytest.raises(PotentialError, match="ase:EMT cannot mix"):
        alchemy.mix(load_model("emt"), {"Cu": 0.5, "Au": 0.5})
    mixed = alchemy.mix(load_model("chgnet-0.3.0"), {"Mg": 0.5, "Ca": 0.5})
    with pytest.raises(PotentialError, match="cannot mix"):
        alchemy.mix(mixed, {"Mg": 0.5, "Ca": 0.5})


@pytest.fixture(scope="module")
def chgnet(load_model):
    return load_model("chgnet-0.3.0", torch.float64)


def test_the_equilibrium_has_no_stress_and_is_the_lowest_energy(chgnet):
    found = alchemy.equilibrium(chgnet, bulk("MgO", "rocksalt", a=4.5))
    (at_rest,) = chgnet.evaluate([found.atoms], stress=True)
    assert np.trace(at_rest.stress) / 3 == pytest.approx(0, abs=1e-5)
    for factor in (0.99, 1.01):
        assert chgnet.evaluate([alchemy.resized(found.atoms, factor)])[0].energy > found.energy
    scaled = alchemy.equilibrium(chgnet.scaled(1.2), bulk("MgO", "rocksalt", a=4.5))
    assert alchemy.lattice_parameter(scaled.atoms) == pytest.approx(alchemy.lattice_parameter(found.atoms), abs=1e-4)
    assert scaled.bulk_modulus == pytest.approx(1.2 * found.bulk_modulus, rel=1e-3)
    assert 100 < found.bulk_modulus_gpa < 200


def test_the_search_for_an_equilibrium_says_why_it_fails(chgnet, load_model):
    with pytest.raises(StructureError, match="no equilibrium within 15%"):
        alchemy.equilibrium(chgnet, bulk("MgO", "rocksalt", a=5.6))
    with pytest.raises(StructureError, match="not trained on: Po"):
        alchemy.equilibrium(chgnet, bulk("Po", "sc", a=3.3))


@pytest.mark.slow
def test_the_slope_of_the_lattice_parameter_is_that_of_its_curve(chgnet):
    h, start = 2e-3, bulk("MgO", "rocksalt", a=4.5)

    def length(x):
        mixed = alchemy.mix(chgnet, {"Mg": 1 - x, "Ca": x})
        return mixed, alchemy.equilibrium(mixed, start).atoms

    mixed, atoms = length(0.25)
    found = alchemy.lattice_parameter(atoms) * alchemy.length_slope(mixed, atoms, "Ca", "Mg", strain=1e-4)
    ends = [alchemy.lattice_parameter(length(0.25 + sign * h)[1]) for sign in (1, -1)]
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=0.02)
    with pytest.raises(PotentialError, match="Sr is not in the mixture"):
        alchemy.length_slope(mixed, atoms, "Sr", "Mg")


@pytest.mark.slow
def test_a_composition_is_designed_for_a_lattice_parameter(chgnet):
    start = bulk("MgO", "rocksalt", a=4.5)
    found = alchemy.design(chgnet, start, gained="Ca", lost="Mg", target=4.6)
    again = alchemy.equilibrium(alchemy.mix(chgnet, {"Ca": found.x, "Mg": 1 - found.x}), start)
    assert alchemy.lattice_parameter(again.atoms) == pytest.approx(4.6, abs=5e-4)
    assert 0.4 < found.x < 0.65
    assert found.steps[-1] == (found.x, found.lattice_parameter)
    with pytest.raises(ValueError, match="5 Å is out of reach"):
        alchemy.design(chgnet, start, gained="Ca", lost="Mg", target=5.0)


# ---------------------------------------------------------------------------------------------------
# The benchmark


def test_short_range_order_of_known_alloys():
    sites = bulk("Cu", "fcc", a=4.0, cubic=True) * 2
    pairs = benchmark.shells(sites, 4.0)
    assert [len(shell) for shell in pairs] == [12 * len(sites), 6 * len(sites)]
    layers = (np.rint(sites.positions[:, 2] / 2.0) % 2).astype(bool)  # L1_0: 8 of 12 neighbours are unlike, none of the 6 next
    assert benchmark.short_range_order(pairs, layers) == pytest.approx([1 - (8 / 12) / 0.5, 1.0])


def test_orderings_are_close_to_random_and_differ_between_seeds():
    made = benchmark.cases(dataclasses.replace(benchmark.Protocol(), seeds=(0, 1)), ["explicit"])
    assert len(made) == 6
    for case in made:
        alloy = case.structures["alloy"]
        assert len(alloy) == 64
        assert (alloy.symbols == "Ca").mean() * 2 == case.info["x"]
        cations = alloy[[atom.symbol != "O" for atom in alloy]]
        order = benchmark.short_range_order(benchmark.shells(cations, (8 * alloy.get_volume() / 64) ** (1 / 3)), cations.symbols == "Ca")
        assert np.abs(order).max() < 0.05
    assert not np.array_equal(made[0].structures["alloy"].numbers, made[1].structures["alloy"].numbers)
    with pytest.raises(KeyError, match="nosuch"):
        benchmark.cases(sets=["nosuch"])


@pytest.mark.slow
def test_the_mixed_crystal_joins_the_end_members(load_model):
    protocol = dataclasses.replace(benchmark.Protocol(), intervals=2)
    table = benchmark.run(load_model("chgnet-0.3.0"), benchmark.cases(protocol, ["rocksalt"]), protocol)
    assert (table["status"] == "ok").all()
    wide = table.pivot_table(index="x", columns="property", values="value")
    assert wide.loc[[0.0, 1.0], "mixing_energy"].to_numpy() == pytest.approx(0, abs=1e-4)
    a = wide["lattice_parameter"]
    assert a[0.0] < a[0.5] < a[1.0]
    assert wide.loc[0.5, "energy_slope"] == pytest.approx(wide.loc[0.5, "energy_slope_differences"], abs=5e-3)
    summary = benchmark.summarise(table).set_index(["property", "x"])
    assert summary.loc[("lattice_parameter", 0.5), "mean"] == a[0.5]
    assert benchmark.vegard(0.25, 4.0, 5.0) == 4.25


def test_the_mean_over_orderings_weighs_them(load_model):
    rows = {
        "model": "m",
        "set": "ca-mg-o",
        "property": "formation_energy",
        "status": "ok",
        "x": 0.5,
        "value": [0.2, 0.6],
        "multiplicity": [3.0, 1.0],
        "volume_a3_per_atom": [8.0, 8.0],
    }
    (found,) = benchmark.enumerated(pd.DataFrame(rows)).to_dict("records")
    assert found["mixing_energy"] == pytest.approx(0.3)
    assert found["lattice_parameter"] == pytest.approx(4.0)
    assert (found["lowest"], found["highest"]) == (0.2, 0.6)


def test_a_failure_is_a_row_with_its_reason(chgnet):
    far = bulk("MgO", "rocksalt", a=6.0)
    case = benchmark.Case("rocksalt/far", "rocksalt", "Ca-Mg-O", {"crystal": far}, {}, {"x": 0.5, "ordering": ""})
    (failed,) = benchmark.run(chgnet, [case]).to_dict("records")
    assert failed["status"] == "failed"
    assert "no equilibrium" in failed["reason"]


@needs_mirror
def test_a_compound_of_the_elasticity_source_by_name():
    assert elasticity.compound("mp-1265").info["formula"] == "MgO"
    with pytest.raises(KeyError, match="mp-0"):
        elasticity.compound("mp-0")


@pytest.mark.slow
@needs_mirror
def test_one_label_is_a_label_and_the_rest_is_the_test():
    made = benchmark.cases(sets=["one-label"])
    assert len(made) == 6
    for case in made:
        assert len(case.structures) == 10
        assert case.reference["forces/label/0"].shape == case.structures["label/0"].positions.shape
        assert case.reference["lattice_parameter/MgO"] < case.reference["lattice_parameter/CaO"]
