"""The potentials keep their contract: physics, batching, failures of single structures, torch-sim, and their packages' own numbers."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
import torch_sim as ts
from ase.build import bulk, fcc111
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCartesian
from conftest import structures_for, tolerance
from pymatgen.core import Lattice, Species, Structure
from pymatgen.electronic_structure.core import Magmom
from pymatgen.io.ase import AseAtomsAdaptor
from torch_sim.models.interface import validate_model_outputs

from helpers import potentials, softening, structures
from helpers.potentials import PotentialError, StructureError, base
from helpers.potentials.ase import ASEPotential
from helpers.potentials.base import Prediction

GPA_PER_EV_A3 = 160.21766208


def assert_same(found: Prediction, expected: Prediction, energy_per_atom: float = 1e-5, force: float = 1e-4) -> None:
    """Compare two predictions (eV/atom, eV/Å)."""
    assert found.error == expected.error
    if expected.ok:
        assert abs(found.energy - expected.energy) / len(expected.forces) < energy_per_atom
        np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=force)
        if expected.stress is not None:
            np.testing.assert_allclose(found.stress, expected.stress, rtol=0, atol=force / 10)


def displaced(atoms: ase.Atoms, directions: np.ndarray, step: float) -> list[ase.Atoms]:
    """Return copies moved by ±step along each direction, (n_directions, n_atoms, 3): plus and minus in turn."""
    moved = []
    for direction in directions:
        for sign in (1, -1):
            copy = atoms.copy()
            copy.positions += sign * step * direction
            moved.append(copy)
    return moved


def strained(atoms: ase.Atoms, strains: Sequence[np.ndarray], step: float) -> list[ase.Atoms]:
    """Return copies strained by ±step times each strain tensor."""
    moved = []
    for strain in strains:
        for sign in (1, -1):
            copy = atoms.copy()
            copy.set_cell(atoms.cell.array @ (np.eye(3) + sign * step * strain), scale_atoms=True)
            moved.append(copy)
    return moved


def central_difference(potential, structures: list[ase.Atoms], step: float) -> np.ndarray:
    """Return (E₊ − E₋) / 2h for structures that come in pairs."""
    predictions = potential.evaluate(structures)
    assert [p.error for p in predictions] == [None] * len(predictions)
    energies = np.array([p.energy for p in predictions]).reshape(-1, 2)
    return (energies[:, 0] - energies[:, 1]) / (2 * step)


def check_derivatives(potential, atoms: ase.Atoms, step: float = 1e-5) -> None:
    """Forces are −dE/dr and stress is V⁻¹ dE/dε, by central differences along random directions."""
    rng = np.random.default_rng(3)
    (prediction,) = potential.evaluate([atoms], stress=True)
    assert prediction.error is None
    directions = rng.normal(size=(3, len(atoms), 3))
    slopes = central_difference(potential, displaced(atoms, directions, step), step)
    expected = -np.einsum("dnx,nx->d", directions, prediction.forces)
    np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-6)

    strains = rng.normal(size=(3, 3, 3))
    strains = strains + strains.transpose(0, 2, 1)
    slopes = central_difference(potential, strained(atoms, strains, step), step)
    expected = atoms.get_volume() * np.einsum("dxy,xy->d", strains, prediction.stress)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compound", "skewed", "slab"])
def test_forces_and_stress_are_derivatives_of_the_energy(network64, name):
    assert network64.network_dtype == torch.float64
    check_derivatives(network64, structures_for(network64)[name])


@pytest.mark.parametrize("name", ["compound", "slab"])
def test_forces_and_stress_of_an_ase_calculator_are_derivatives(load_model, name):
    emt = load_model("emt")
    check_derivatives(emt, structures_for(emt)[name])


def test_forces_sum_to_zero_and_stress_is_symmetric(network):
    for prediction in network.evaluate(list(structures_for(network).values()), stress=True):
        np.testing.assert_allclose(prediction.forces.sum(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(prediction.stress, prediction.stress.T, atol=1e-12)


def test_batched_equals_ase_one_by_one(potential):
    structures = list(structures_for(potential).values())
    batched = potential.evaluate(structures, stress=True)
    assert [p.error for p in batched] == [None] * len(structures)
    for atoms, prediction in zip(structures, batched, strict=True):
        atoms.calc = potential.calculator()
        single = Prediction(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False))
        assert_same(prediction, single)


def test_order_and_batch_do_not_matter(network, monkeypatch):
    structures = list(structures_for(network).values())
    together = network.evaluate(structures, stress=True)
    order = [2, 0, 3, 1]
    for index, prediction in zip(order, network.evaluate([structures[i] for i in order], stress=True), strict=True):
        assert_same(prediction, together[index])
    sizes = []
    compute = network.compute

    def counting(graph, **options):
        sizes.append(graph.n_systems)
        return compute(graph, **options)

    monkeypatch.setattr(network, "max_edges", lambda: 1)
    monkeypatch.setattr(network, "compute", counting)
    for prediction, reference in zip(network.evaluate(structures, stress=True), together, strict=True):
        assert_same(prediction, reference)
    assert sizes == [1] * len(structures)


def test_a_supercell_has_the_same_energy_per_atom(network):
    atoms = structures_for(network)["compound"]
    single, double = network.evaluate([atoms, atoms * (2, 1, 1)], stress=True)
    expected = Prediction(2 * single.energy, np.tile(single.forces, (2, 1)), single.stress)
    assert_same(double, expected, **tolerance(network))


def test_rotation_and_translation(network):
    atoms = structures_for(network)["compound"]
    turned = atoms.copy()
    turned.rotate(35, (1, 2, 3), rotate_cell=True)
    # Move by a fraction of a cell and wrap: the same crystal with other shifts.
    turned.positions += 0.37 * turned.cell.array.sum(axis=0)
    turned.wrap()
    rotation = np.linalg.solve(atoms.cell.array, turned.cell.array)
    assert np.abs(rotation - np.eye(3)).max() > 0.1
    original, other = network.evaluate([atoms, turned], stress=True)
    expected = Prediction(original.energy, original.forces @ rotation, rotation.T @ original.stress @ rotation)
    assert_same(other, expected, **tolerance(network))


def broken(good: ase.Atoms, unknown: str) -> dict[str, tuple[ase.Atoms, str]]:
    """Return structures that nothing can evaluate, with what the reason must say."""
    nan = good.copy()
    nan.positions[2, 1] = np.nan
    flat = good.copy()
    flat.set_cell([[4, 0, 0], [0, 4, 0], [4, 4, 0]])
    no_cell = ase.Atoms(good.symbols[:2], positions=[[0, 0, 0], [0, 0, 2]])
    foreign = good.copy()
    foreign.symbols[0] = unknown
    infinite = good.copy()
    infinite.cell[0, 0] = np.inf
    return {
        "nan": (nan, "position of atom 2 is not a number"),
        "flat": (flat, "cell volume"),
        "no cell": (no_cell, "volume|periodic"),
        "foreign": (foreign, unknown),
        "infinite": (infinite, "the cell holds values that are not numbers"),
        "empty": (ase.Atoms(cell=np.eye(3) * 4, pbc=True), "no atoms"),
    }


def check_failures(potential, good: list[ase.Atoms], bad: dict[str, tuple[ase.Atoms, str]]) -> None:
    """Each bad structure fails with its reason; the good ones around them come out as if they were alone."""
    alone = potential.evaluate(good, stress=True)
    mixed = [good[0], *[atoms for atoms, _ in bad.values()], *good[1:]]
    predictions = potential.evaluate(mixed, stress=True)
    assert len(predictions) == len(mixed)
    failed = predictions[1 : 1 + len(bad)]
    for prediction, (atoms, reason) in zip(failed, bad.values(), strict=True):
        assert not prediction.ok
        assert re.search(reason, prediction.error), prediction.error
        assert np.isnan(prediction.energy)
        assert prediction.forces.shape == (len(atoms), 3)
        assert np.isnan(prediction.forces).all()
        assert prediction.stress is None
    for prediction, reference in zip([predictions[0], *predictions[1 + len(bad) :]], alone, strict=True):
        assert prediction.ok
        assert_same(prediction, reference, energy_per_atom=1e-6, force=1e-6)


def test_a_bad_structure_fails_alone(network):
    good = list(structures_for(network).values())
    bad = broken(good[0], "Rn")
    isolated = ase.Atoms("FeO", positions=[[0, 0, 0], [10, 10, 10]], cell=np.eye(3) * 20, pbc=True)
    bad["isolated"] = (isolated, "atom 0 has no neighbour within the model's cutoff of")
    sheet = good[0].copy()
    sheet.pbc = (True, True, False)
    bad["sheet"] = (sheet, "not periodic in all three directions; set pbc=True")
    check_failures(network, good, bad)


def test_a_bad_structure_fails_alone_with_an_ase_calculator(load_model):
    emt = load_model("emt")
    good = list(structures_for(emt).values())
    check_failures(emt, good, broken(good[0], "Fe"))


def test_structures_come_in_any_form(potential):
    """One, several, a generator, pymatgen's: always the same answers."""
    structures = list(structures_for(potential).values())
    expected = potential.evaluate(structures)
    forms = [tuple(structures), (atoms for atoms in structures), [AseAtomsAdaptor.get_structure(atoms) for atoms in structures]]
    for form in forms:
        for prediction, reference in zip(potential.evaluate(form), expected, strict=True):
            assert_same(prediction, reference, **tolerance(potential))
    for alone in (structures[0], AseAtomsAdaptor.get_structure(structures[0])):
        (prediction,) = potential.evaluate(alone)
        assert_same(prediction, expected[0], **tolerance(potential))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("slab.vasp", TypeError, r"^str 'slab.vasp' is no structure; give ase.Atoms .* \(ase.io.read reads a file\)$"),
        (Path("slab.vasp"), TypeError, "PosixPath"),
        ({"a": bulk("Cu")}, TypeError, "^dict .* is no structure"),
        (3, TypeError, "^int 3 is no structure"),
        (None, TypeError, "^NoneType None is no structure"),
        ([bulk("Cu"), "POSCAR"], TypeError, "^structure 1 is str 'POSCAR'; give ase.Atoms"),
        ([np.eye(3)], TypeError, "^structure 0 is ndarray array"),
        (Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]]), ValueError, "^the structure, Cu0.5 Au0.5, is disordered"),
    ],
)
def test_what_is_no_structure_is_refused_in_a_line(potential, given, error, message):
    with pytest.raises(error, match=message) as raised:
        potential.evaluate(given)
    assert "\n" not in str(raised.value)


def test_constraints_change_no_answer(potential):
    """Forces of held atoms are those of the energy, not zero; the calculator's user gets what ASE makes of his constraints."""
    free = structures_for(potential)["slab"]
    held = free.copy()
    held.set_constraint([FixAtoms([0]), FixCartesian([1], [True, False, False])])
    expected, found = potential.evaluate([free, held], stress=True)
    assert np.abs(expected.forces[0]).max() > 0.01
    assert_same(found, expected, **tolerance(potential))
    assert len(held.constraints) == 2
    held.calc = potential.calculator()
    assert (held.get_forces()[0] == 0).all()
    assert held.get_forces(apply_constraint=False) == pytest.approx(expected.forces, abs=1e-4)


def test_a_slab_with_its_lower_half_held_is_soft_by_the_factor_of_its_labels(load_model):
    """2.607 instead of 1.25 where the forces on held atoms are zero."""
    slab = fcc111("Cu", (2, 2, 6), vacuum=8.0, periodic=True)
    slab.rattle(0.08, seed=0)
    slab.set_constraint(FixAtoms(indices=range(12)))
    slab.calc = EMT()
    labels = 1.25 * slab.get_forces(apply_constraint=False)
    (prediction,) = load_model("emt").evaluate(slab)
    assert softening.correction(labels, prediction.forces) == pytest.approx(1.25, abs=1e-6)
    assert softening.correction(labels, slab.get_forces()) > 2


@pytest.mark.parametrize("name", ["compound", "skewed"])
def test_a_left_handed_cell_gives_the_same(potential, name):
    right = structures_for(potential)[name]
    left = right.copy()
    left.set_cell(left.cell.array[[1, 0, 2]])
    assert np.linalg.det(left.cell.array) * np.linalg.det(right.cell.array) < 0
    expected, found = potential.evaluate([right, left], stress=True)
    assert_same(found, expected, **tolerance(potential))


def test_what_a_calculator_may_read_travels_with_the_structure():
    atoms = bulk("Cu", cubic=True)
    atoms.info = {"charge": -1, "spin": 2}
    atoms.set_initial_magnetic_moments([1.0, -1.0, 2.0, 0.0])
    atoms.set_initial_charges([0.5, -0.5, 0.0, 0.0])
    atoms.set_tags([0, 1, 2, 3])
    atoms.set_array("spin_up", np.arange(4.0))
    atoms.set_constraint(FixAtoms([0]))
    entered = structures.enter(atoms)
    assert entered.info == atoms.info
    assert entered.info is not atoms.info
    assert set(entered.arrays) == set(atoms.arrays)
    assert all(np.array_equal(entered.arrays[name], atoms.arrays[name]) for name in atoms.arrays)
    assert not entered.constraints
    assert atoms.constraints


def test_what_pymatgen_knows_of_its_sites_travels():
    sites = {
        "magmom": [Magmom(2.0), None, -1.5],
        "charge": [1.0, None, -1.0],
        "selective_dynamics": [[False] * 3, [True] * 3, [True, True, False]],
    }
    species = ["Fe", "Cu", "O"]
    crystal = Structure(Lattice.cubic(4.0), species, np.eye(3) / 2, site_properties=sites, charge=1, properties={"spin": 3})
    (atoms,) = structures.many(crystal)
    assert atoms.get_initial_magnetic_moments().tolist() == [2.0, 0.0, -1.5]
    assert atoms.get_initial_charges().tolist() == [1.0, 0.0, -1.0]
    assert atoms.info == {"charge": 1, "spin": 3}
    fixed, partly = atoms.constraints
    assert fixed.index.tolist() == [0]
    assert (partly.index.tolist(), partly.mask.tolist()) == ([2], [False, False, True])
    assert structures.many([Structure(Lattice.cubic(4.0), [Species("Fe", 3, spin=5)], [[0, 0, 0]])])[
        0
    ].get_initial_magnetic_moments().tolist() == [5.0]
    canted = Structure(Lattice.cubic(4.0), ["Fe", "Fe"], [[0, 0, 0], [0.5] * 3], site_properties={"magmom": [[1, 0, 2], [0, 1, 0]]})
    assert structures.many(canted)[0].get_initial_magnetic_moments().tolist() == [[1, 0, 2], [0, 1, 0]]


def test_nothing_in_nothing_out(potential):
    assert potential.evaluate([]) == []


def test_stress_only_when_asked_for(potential):
    atoms = structures_for(potential)["skewed"]
    assert potential.evaluate([atoms])[0].stress is None
    assert potential.evaluate([atoms], stress=True)[0].stress.shape == (3, 3)


def test_calculator_raises_with_the_reason(load_model):
    potential = load_model("mace-small")
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.calc = potential.calculator()
    with pytest.raises(StructureError, match=r"ClNa: .*not trained on: Na, Cl"):
        atoms.get_potential_energy()


def test_scaled(potential):
    structures = list(structures_for(potential).values())
    plain = potential.evaluate(structures, stress=True)
    doubled = potential.scaled(2.0).evaluate(structures, stress=True)
    other = potential.scaled(1.3).evaluate(structures, stress=True)
    for a, b, c in zip(plain, doubled, other, strict=True):
        # Doubling is exact in binary arithmetic.
        assert b.energy == 2 * a.energy
        np.testing.assert_array_equal(b.forces, 2 * a.forces)
        np.testing.assert_array_equal(b.stress, 2 * a.stress)
        assert c.energy == pytest.approx(1.3 * a.energy, rel=1e-12)
        np.testing.assert_allclose(c.forces, 1.3 * a.forces, rtol=0, atol=1e-4)
        np.testing.assert_allclose(c.stress, 1.3 * a.stress, rtol=0, atol=1e-5)
    twice = potential.scaled(1.25).scaled(2.0)
    assert twice.scale == 2.5
    assert twice.key == f"{potential.key}*2.5000"
    assert twice.describe()["scale"] == 2.5
    assert potential.scale == 1.0
    assert "*" not in potential.key


@pytest.mark.parametrize("c", [0.0, -1.0, float("nan"), float("inf"), "1.2", None, 1j, [1.2, 1.3]])
def test_scaled_refuses(potential, c):
    with pytest.raises(PotentialError, match="positive number") as raised:
        potential.scaled(c)
    assert repr(c) in str(raised.value)


@pytest.mark.parametrize("c", [2, np.float32(2), np.array(2.0), torch.tensor(2.0)])
def test_scaled_takes_any_number(potential, c):
    assert potential.scaled(c).scale == 2.0


def test_describe(network):
    described = network.describe()
    told = {"key", "family", "weights_sha256", "parameters", "training_set", "cutoff_a", "citation", "elements", "scale"}
    if described["family"] != "Nequix":  # which is written out in this project
        told.add("package")
    assert told <= set(described)
    assert re.fullmatch(r"[0-9a-f]{64}", described["weights_sha256"])
    assert described["parameters"] == sum(p.numel() for p in network.network.parameters())
    assert {"Fe", "O"} <= set(described["elements"])
    assert described["cutoff_a"] == pytest.approx(network.cutoff)
    json.dumps(described)


def test_torch_sim_contract(network, monkeypatch):
    monkeypatch.setattr(network, "compute_stress", False)
    validate_model_outputs(network, torch.device("cpu"), torch.float64)


def test_torch_sim_static(potential, monkeypatch):
    monkeypatch.setattr(potential, "compute_stress", True)
    structures = list(structures_for(potential).values())
    results = ts.static(structures, potential)
    for result, prediction in zip(results, potential.evaluate(structures, stress=True), strict=True):
        found = Prediction(result["potential_energy"].item(), result["forces"].numpy(), result["stress"].squeeze(0).numpy())
        assert_same(found, prediction)


def test_torch_sim_marks_a_bad_structure_only(network):
    good = structures_for(network)["compound"]
    bad = good.copy()
    bad.symbols[0] = "Rn"
    output = network(ts.io.atoms_to_state([good, bad, good], torch.device("cpu"), torch.float64))
    (expected,) = network.evaluate([good])
    n = len(good)
    assert torch.isnan(output["energy"]).tolist() == [False, True, False]
    assert torch.isnan(output["forces"][n : 2 * n]).all()
    for start in (0, 2 * n):
        np.testing.assert_allclose(output["forces"][start : start + n].numpy(), expected.forces, atol=1e-4)


def test_molecular_dynamics_conserves_energy(load_model):
    model = load_model("chgnet-0.3.0", torch.float64)
    structures = [bulk("FeO", "rocksalt", a=4.3), bulk("Fe", "bcc", a=2.85, cubic=True)]
    state = ts.io.atoms_to_state(structures, torch.device("cpu"), torch.float64)
    femtosecond = 1e-3 * ts.units.UnitSystem.metal.time
    temperature = 600 * ts.units.UnitSystem.metal.temperature
    start, step = ts.nve(model, dt=torch.tensor(femtosecond).double(), kT=torch.tensor(temperature).double(), seed=1)
    state = start(state)
    kinetic, total = [], []
    for _ in range(25):
        state = step(state)
        energy = ts.calc_kinetic_energy(momenta=state.momenta, masses=state.masses, system_idx=state.system_idx)
        kinetic.append(energy.numpy())
        total.append((energy + state.energy).numpy())
    exchanged = np.ptp(kinetic, axis=0)
    assert (exchanged > 0.005).all()
    assert (np.ptp(total, axis=0) < 0.01 * exchanged).all()


def test_torch_sim_integrates(load_model):
    model = load_model("chgnet-0.3.0")
    atoms = bulk("FeO", "rocksalt", a=4.3)
    final = ts.integrate([atoms, atoms], model, integrator=ts.nve, n_steps=3, temperature=300, timestep=0.001)
    assert torch.isfinite(final.positions).all()
    assert (final.positions.numpy()[:2] != atoms.positions).any()


def test_out_of_memory_halves_the_batch(load_model, monkeypatch):
    model = load_model("mace-small")
    structures = list(structures_for(model).values()) + list(structures_for(model).values())[:1]
    expected = model.evaluate(structures, stress=True)
    compute, sizes = model.compute, []

    def small_memory(graph, **options):
        sizes.append(graph.n_systems)
        if graph.n_systems > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(graph, **options)

    monkeypatch.setattr(model, "compute", small_memory)
    for prediction, reference in zip(model.evaluate(structures, stress=True), expected, strict=True):
        assert_same(prediction, reference, energy_per_atom=1e-6, force=1e-5)
    assert sizes == [5, 2, 3, 1, 2]


def test_a_structure_too_large_for_the_memory_fails_alone(load_model, monkeypatch):
    model = load_model("mace-small")
    structures = list(structures_for(model).values())
    expected = model.evaluate(structures)
    largest = max(len(atoms) for atoms in structures)
    compute = model.compute

    def small_memory(graph, **options):
        if graph.n_atoms.max() == largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(graph, **options)

    monkeypatch.setattr(model, "compute", small_memory)
    for atoms, prediction, reference in zip(structures, model.evaluate(structures), expected, strict=True):
        if len(atoms) == largest:
            assert "OutOfMemoryError" in prediction.error
        else:
            assert_same(prediction, reference, energy_per_atom=1e-6, force=1e-6)


class Odd(Calculator):
    """A calculator with the flaws of the wild, by the first atom: gold raises, silver returns NaN. It has no stress."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        first = self.atoms.symbols[0]
        if first == "Au":
            raise ZeroDivisionError("no gold today")
        self.results = {"energy": np.nan if first == "Ag" else 1.5, "forces": np.full((len(self.atoms), 3), 0.25)}


def test_flaws_of_a_foreign_calculator_are_recorded():
    odd = ASEPotential("ase:odd", Odd())
    copper, gold, silver = odd.evaluate([bulk(symbol, "fcc", a=4.0) for symbol in ("Cu", "Au", "Ag")], stress=True)
    assert copper.ok
    assert (copper.energy, copper.stress) == (1.5, None)
    assert gold.error == "ZeroDivisionError: no gold today"
    assert silver.error == "the calculator returned values that are not numbers"
    atoms = bulk("Cu", "fcc", a=4.0)
    atoms.calc = odd.calculator()
    with pytest.raises(PropertyNotImplementedError, match="ase:odd has no stress"):
        atoms.get_stress()


def test_an_ase_calculator_gives_its_own_numbers(load_model):
    emt = load_model("emt")
    atoms = structures_for(emt)["vacancy"]
    (prediction,) = potentials.load("ase:ase.calculators.emt.EMT").evaluate([atoms], stress=True)
    atoms.calc = EMT()
    assert_same(prediction, Prediction(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)), 1e-12, 1e-12)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("MACE-MP-0", "mace-mp-0-medium"),
        ("M3GNet-MP-2021.2.8-PES", "m3gnet-mp-2021.2.8"),
        ("TensorNet-MatPES-PBE-v2025.1-PES", "tensornet-matpes-pbe-2025.1"),
        ("CHGNet-0.3.0", "chgnet-0.3.0"),
        ("SevenNet-0", "sevennet-0"),
        ("file:CHGNet-0.3.0", "file:CHGNet-0.3.0"),
    ],
)
def test_names_that_others_give_to_the_same_weights(theirs, ours):
    assert potentials.check(theirs) == ours
    assert set(potentials.ALIASES.values()) <= set(potentials.CATALOGUE)
    assert not set(potentials.ALIASES) & set(potentials.CATALOGUE)


def test_a_potential_by_another_name_is_the_same():
    assert potentials.load("CHGNet-0.3.0", "cpu").key == "chgnet-0.3.0"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("chgnet", "unknown model 'chgnet'. Known: chgnet-0.3.0, .*ase:module.factory, file:PATH"),
        ("ase:EMT", "write ase:module.factory"),
        ("ase:no_such_module_here.factory", "No module named"),
        ("ase:ase.calculators.emt.NoSuchThing", "NoSuchThing"),
        ("ase:builtins.dict", "returned dict, not an ASE calculator"),
        ("ase:os.system", r"the factory, called without arguments, raised TypeError: system\(\) missing .*\(pos 1\)$"),
    ],
)
def test_keys_that_do_not_load(key, message):
    with pytest.raises(PotentialError, match=message):
        potentials.load(key)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def make():\n    return open('weights-that-are-missing.pt')", r"raised FileNotFoundError: .*missing.pt.*faulty.py, line 2\)"),
        ("1 / 0", r"importing faulty raised ZeroDivisionError: .*faulty.py, line 1\)"),
        ("import math\nmath.no_such_thing", r"importing faulty raised AttributeError: .*no_such_thing.*faulty.py, line 2\)"),
        ("def make(:", r"importing faulty raised SyntaxError: .*faulty.py, line 1\)$"),
    ],
)
def test_a_factory_that_raises_is_named_with_its_line(source, message, tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    with pytest.raises(PotentialError, match=message):
        potentials.load("ase:faulty.make")


def test_devices_that_do_not_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PotentialError, match="PyTorch sees no CUDA GPU here; use --device cpu or auto"):
        potentials.load("chgnet-0.3.0", device="cuda")
    for device in ("tpu", "mps"):
        with pytest.raises(PotentialError, match=f"device '{device}' .*cpu, cuda"):
            potentials.load("chgnet-0.3.0", device=device)
    assert potentials.load("chgnet-0.3.0", device="auto").device == torch.device("cpu")


def chgnet_structures() -> dict[str, ase.Atoms]:
    """Return structures on which a graph construction of one's own could go wrong."""
    rng = np.random.default_rng(11)
    perovskite = AseAtomsAdaptor.get_atoms(
        Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.95), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]])
    )
    forsterite = Structure.from_spacegroup(
        "Pnma",
        Lattice.orthorhombic(10.21, 5.98, 4.76),
        ["Mg", "Mg", "Si", "O", "O", "O"],
        [[0, 0, 0], [0.277, 0.25, 0.992], [0.094, 0.25, 0.426], [0.091, 0.25, 0.766], [0.447, 0.25, 0.222], [0.163, 0.033, 0.278]],
    )
    slab = fcc111("Cu", (1, 1, 5), a=3.6, vacuum=7)
    slab.pbc = True
    skewed = bulk("W", "bcc", a=3.16)
    skewed.set_cell(skewed.cell.array @ np.array([[1, 0.1, 0.3], [0, 1, -0.2], [0, 0, 1.05]]), scale_atoms=True)
    # Layers 4 Å apart: atoms without a bond short enough for the line graph.
    sparse = ase.Atoms("He2", positions=[[0, 0, 0], [2.1, 2.1, 2.1]], cell=np.eye(3) * 4.2, pbc=True)
    chosen = {
        "metal": bulk("Al", "fcc", a=4.05),
        "rocksalt": bulk("MgO", "rocksalt", a=4.2, cubic=True),
        "diamond": bulk("Si", "diamond", a=5.43) * (2, 1, 1),
        "perovskite": perovskite,
        "forsterite": AseAtomsAdaptor.get_atoms(forsterite),
        "slab": slab,
        "skewed": skewed,
        "supercell": bulk("NaCl", "rocksalt", a=5.6) * (2, 2, 2),
        "hexagonal": bulk("ZnO", "wurtzite", a=3.25, c=5.2),
        "sparse": sparse,
    }
    for name, atoms in chosen.items():
        if name != "sparse":
            atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
    return chosen


@pytest.mark.parametrize("number", ["0.3.0", "0.2.0"])
def test_chgnet_agrees_with_its_package(load_model, number):
    from chgnet.model import CHGNet

    package = CHGNet.load(model_name=number, use_device="cpu", verbose=False)
    structures = chgnet_structures()
    predictions = load_model(f"chgnet-{number}").evaluate(list(structures.values()), stress=True)
    for (name, atoms), prediction in zip(structures.items(), predictions, strict=True):
        assert prediction.error is None, name
        reference = package.predict_structure(AseAtomsAdaptor.get_structure(atoms), task="efs")
        assert prediction.energy / len(atoms) == pytest.approx(float(reference["e"]), abs=1e-5), name
        # Nearly straight angles amplify rounding in single precision: the package's own noise there is 1e-4 of the forces.
        tolerance = 1e-4 * max(1.0, np.abs(reference["f"]).max())
        np.testing.assert_allclose(prediction.forces, reference["f"], rtol=0, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(prediction.stress * GPA_PER_EV_A3, reference["s"], rtol=0, atol=5e-3, err_msg=name)


def test_a_linear_layer_on_parts_equals_one_on_joined_rows():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(7, 5, dtype=torch.float64), torch.nn.Linear(7, 3, dtype=torch.float64)]
    atoms, bonds = (torch.randn(n, d, generator=generator, dtype=torch.float64) for n, d in ((4, 3), (6, 2)))
    angles = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    of_atom, of_bond = (torch.randint(n, (9,), generator=generator) for n in (4, 6))
    joined = torch.cat([atoms[of_atom], angles, bonds[of_bond]], dim=1)
    expected = torch.cat([layer(joined) for layer in layers], dim=1)
    parts = [(atoms, of_atom), (angles, None), (bonds, of_bond)]
    assert torch.allclose(base.linear_on_parts(layers, parts), expected, atol=1e-12)
    # Also where no part is taken as it is.
    parts = [(atoms, of_atom), (angles, torch.arange(9)), (bonds, of_bond)]
    assert torch.allclose(base.linear_on_parts(layers, parts), expected, atol=1e-12)


def test_a_potential_is_smooth_unless_it_says_otherwise():
    potential = potentials.load("chgnet-0.3.0")
    assert potential.smooth() is potential


class _Springs(base.GraphPotential):
    """Half a spring along every edge: a potential that compiles in seconds."""

    compiles = True
    stiffness = 1.0

    def energies(self, graph):
        return self.maybe_compiled(_Springs.of_edges)(self, graph)

    def of_edges(self, graph):
        lengths = self.network(torch.linalg.norm(graph.vectors, dim=1, keepdim=True)).squeeze(1)
        energies = self.stiffness * 0.5 * torch.sin(lengths) ** 2
        return energies.new_zeros(graph.n_systems).index_add(0, graph.edge_system, energies)


@pytest.fixture
def springs():
    options = {"cutoff": 4.0, "bytes_per_edge": 500, "device": torch.device("cpu"), "elements": frozenset({13}), "description": {}}
    return _Springs("springs", torch.nn.Linear(1, 1).double(), **options)


@pytest.mark.slow
def test_a_compiled_potential_gives_the_same(springs):
    frames = [bulk("Al", cubic=True) * (n, 1, 1) for n in (1, 2, 3)]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=number)
    compiled = springs.compiled()
    assert (compiled.key, compiled.describe()) == (springs.key, springs.describe())
    assert not springs.is_compiled
    for plain, fast in ((springs, compiled), (springs.scaled(2.0), compiled.scaled(2.0))):
        for found, expected in zip(fast.evaluate(frames, stress=True), plain.evaluate(frames, stress=True), strict=True):
            assert_same(found, expected, 1e-12, 1e-12)
    # Whatever a variant of the potential changes must reach the compiled code.
    stiffer = compiled.scaled(1.0)
    stiffer.stiffness = 3.0
    np.testing.assert_allclose(stiffer.evaluate(frames)[0].forces, 3 * springs.evaluate(frames)[0].forces, rtol=1e-9, atol=1e-12)


def test_a_compiled_potential_is_not_trained(springs):
    graph = springs.collate([springs.system(bulk("Al", cubic=True))])
    with pytest.raises(PotentialError, match="cannot be trained"):
        springs.compiled().compute(graph, training=True)


def test_compiling_needs_a_compiler(springs, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PotentialError, match="no-such-compiler"):
        springs.compiled()


def test_what_was_compiled_is_kept_for_later_runs(springs, monkeypatch, tmp_path):
    variable = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv("SOFTENING_CACHE", str(tmp_path))
    monkeypatch.setenv(variable, f"{tempfile.gettempdir()}/torchinductor_me")
    springs.compiled()
    assert os.environ[variable] == str(tmp_path / "compiled")
    monkeypatch.setenv(variable, "/data/of/a/user")
    springs.compiled()
    assert os.environ[variable] == "/data/of/a/user"


def test_what_cannot_be_compiled_says_so():
    with pytest.raises(PotentialError, match="cannot be compiled"):
        potentials.load("ase:ase.calculators.emt.EMT", compiled=True)
