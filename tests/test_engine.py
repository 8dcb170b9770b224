"""Batched relaxation against ASE, one structure at a time."""

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixCartesian, FixedPlane, FixScaled
from ase.filters import UnitCellFilter
from ase.optimize import FIRE
from pymatgen.io.ase import AseAtomsAdaptor

from helpers import engine, potentials
from helpers import structures as door
from helpers.engine import batched
from helpers.potentials import base
from helpers.potentials.ase import ASEPotential


@pytest.fixture(scope="module")
def chgnet():
    return potentials.load("chgnet-0.3.0", "cpu")


def rattled(atoms, seed, amplitude=0.06):
    atoms = atoms.copy()
    atoms.pbc = True
    atoms.positions += np.random.default_rng(seed).normal(0, amplitude, atoms.positions.shape)
    return atoms


@pytest.fixture
def structures():
    return [
        rattled(bulk("MgO", "rocksalt", a=4.3), 0),
        rattled(fcc111("Cu", (1, 1, 5), vacuum=7), 1),
        rattled(bulk("Si", cubic=True), 2),
        rattled(bulk("NaCl", "rocksalt", a=5.6), 3),
    ]


def in_ase(potential, atoms, cell, fmax):
    atoms = atoms.copy()
    atoms.calc = potential.calculator()
    optimiser = FIRE(UnitCellFilter(atoms) if cell == "full" else atoms, logfile=None)
    assert optimiser.run(fmax=fmax, steps=500)
    return atoms


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["fixed", "full"])
def test_batched_relaxation_equals_ase(chgnet, structures, cell):
    relaxed = engine.relax(chgnet, structures, cell=cell, fmax=0.01, smax=1e-4)
    for atoms, result in zip(structures, relaxed, strict=True):
        assert result.converged
        assert result.error is None
        reference = in_ase(chgnet, atoms, cell, 0.005)
        assert abs(result.energy - reference.get_potential_energy()) / len(atoms) < 1e-3
        assert np.linalg.norm(result.forces, axis=1).max() < 0.01
        # The record describes the geometry it comes with.
        assert chgnet.evaluate([result.atoms])[0].energy == pytest.approx(result.energy, abs=1e-4)


@pytest.mark.parametrize("steps", [0, -3, float("nan")])
def test_a_relaxation_without_steps_is_refused(chgnet, structures, steps):
    """One step was taken all the same."""
    with pytest.raises(ValueError, match=rf"^max_steps={steps}; give one step or more"):
        engine.relax(chgnet, structures[:1], max_steps=steps)
    assert engine.relax(chgnet, structures[:1], fmax=1e-6, max_steps=1)[0].steps == 1


def test_the_input_is_not_changed(chgnet, structures):
    before = [atoms.positions.copy() for atoms in structures]
    engine.relax(chgnet, structures[:2], max_steps=3)
    assert all(np.array_equal(a, b.positions) for a, b in zip(before, structures, strict=True))


def test_the_stress_switch_is_given_back(chgnet, structures):
    engine.relax(chgnet, structures[:1], cell="full", max_steps=2)
    assert chgnet.compute_stress is False


def test_out_of_plane_keeps_the_film_on_its_substrate():
    potential = ASEPotential("emt", EMT())
    film = bulk("Cu", cubic=True)
    film.set_cell(film.cell.array * [[1.02], [1.02], [1.0]], scale_atoms=True)
    [result] = engine.relax(potential, [film], cell="out-of-plane", fmax=0.005, smax=1e-5)
    assert result.converged
    assert np.allclose(result.atoms.cell.array[:2], film.cell.array[:2])
    # Stretched in the plane, copper shrinks along the normal; the normal stress vanishes, the others do not.
    assert result.atoms.cell[2, 2] < film.cell[2, 2]
    stress = potential.evaluate([result.atoms], stress=True)[0].stress
    assert abs(stress[2, 2]) < 1e-5 < abs(stress[0, 0])


def test_out_of_plane_refuses_a_tilted_plane(chgnet):
    [result] = engine.relax(chgnet, [bulk("Cu")], cell="out-of-plane")
    assert "xy plane" in result.error


def test_failures_are_alone(chgnet, structures):
    broken = structures[0].copy()
    broken.positions[0] = np.nan
    gas = bulk("Cu", a=40.0)
    isolated = molecule("H2O")
    results = engine.relax(chgnet, [broken, structures[1], gas, isolated, structures[2]], fmax=0.05)
    assert [result.error is None for result in results] == [False, True, False, False, True]
    assert "not a number" in results[0].error
    assert "no neighbour" in results[2].error
    assert "not periodic" in results[3].error
    alone = engine.relax(chgnet, [structures[1]], fmax=0.05)[0]
    assert results[1].energy == pytest.approx(alone.energy, abs=1e-3)


def test_a_structure_that_explodes_leaves_the_batch():
    class Explodes(EMT):
        """Fails on gold once, on the way, as a network far from its training data may."""

        calls = 0

        def calculate(self, atoms=None, *args, **kwargs):
            super().calculate(atoms, *args, **kwargs)
            if "Au" in atoms.symbols:
                type(self).calls += 1
                if self.calls == 5:
                    self.results["forces"] = np.full_like(self.results["forces"], np.nan)

    potential = ASEPotential("explodes", Explodes())
    gold, copper = rattled(bulk("Au", cubic=True), 1, 0.1), rattled(bulk("Cu", cubic=True), 2, 0.1)
    bad, good = engine.relax(potential, [gold, copper], fmax=0.02)
    assert not bad.converged
    assert "NaN" in bad.error
    assert good.converged


def test_not_converged_says_so(chgnet, structures):
    [result] = engine.relax(chgnet, [structures[2]], fmax=1e-4, max_steps=3)
    assert not result.converged
    assert result.steps == 3
    assert "not converged in 3 steps" in result.error
    assert np.isfinite(result.energy)


@pytest.mark.slow
def test_out_of_memory_halves_the_batch(chgnet, structures, monkeypatch):
    plain = engine.relax(chgnet, structures, fmax=0.05)
    compute = type(chgnet).compute
    largest = []

    def small_memory(self, graph, **kwargs):
        if graph.n_systems > 2:
            raise torch.OutOfMemoryError("pretend")
        largest.append(graph.n_systems)
        return compute(self, graph, **kwargs)

    monkeypatch.setattr(type(chgnet), "compute", small_memory)
    monkeypatch.setattr(batched, "memory_limit", lambda potential: 1e4)
    results = engine.relax(chgnet, structures, fmax=0.05)
    assert max(largest) <= 2
    assert [r.energy for r in results] == pytest.approx([r.energy for r in plain], abs=4e-3)


def test_unknown_cell_mode(chgnet, structures):
    with pytest.raises(ValueError, match="out-of-plane"):
        engine.relax(chgnet, structures, cell="isotropic")


@pytest.mark.slow
def test_held_coordinates_equal_ase_constraints(monkeypatch):
    """Each structure has other coordinates held, and they leave a small batch at different times."""
    monkeypatch.setattr(batched, "memory_limit", lambda potential: 600.0)
    potential = ASEPotential("emt", EMT())
    metals = ("Cu", "Al", "Au", "Ag")
    given = [rattled(bulk(metal, cubic=True), seed, 0.1) for seed, metal in enumerate(metals)]
    constraints = [
        [FixAtoms([0, 2])],
        [],
        [FixCartesian([1], [True, False, False]), FixAtoms([3])],
        [FixCartesian([0, 2], [False, True, True])],
    ]
    held = [np.zeros((4, 3), dtype=bool), None, np.zeros((4, 3), dtype=bool), np.zeros((4, 3), dtype=bool)]
    held[0][[0, 2]] = True
    held[2][1, 0] = held[2][3] = True
    held[3][[0, 2], 1:] = True
    relaxed = engine.relax(potential, given, fmax=0.002, held=held)
    assert len({result.steps for result in relaxed}) > 1
    for atoms, constraint, mask, result in zip(given, constraints, held, relaxed, strict=True):
        assert result.converged
        reference = atoms.copy()
        reference.calc = EMT()
        reference.set_constraint(constraint)
        assert FIRE(reference, logfile=None).run(fmax=0.001, steps=500)
        assert result.energy == pytest.approx(reference.get_potential_energy(), abs=1e-4)
        if mask is not None:
            assert np.array_equal(result.atoms.positions[mask], atoms.positions[mask])
            assert (result.forces[mask] == 0).all()
            assert (result.atoms.positions[~mask] != atoms.positions[~mask]).all()


def test_constraints_are_held_and_come_back(structures):
    """Several constraints and held coordinates add up; the record describes the atoms that it comes with."""
    potential = ASEPotential("emt", EMT())
    given = [rattled(bulk(metal, cubic=True), seed, 0.1) for seed, metal in enumerate(("Cu", "Al", "Au", "Ag"))]
    given[0].set_constraint([FixAtoms([0]), FixCartesian([1], [True, False, True])])
    given[1].set_constraint(FixScaled(2, [True, False, False]))
    given[2].set_constraint([FixAtoms([0]), FixedPlane(1, (0, 0, 1))])
    extra = np.zeros((4, 3), dtype=bool)
    extra[2, 1] = True
    results = engine.relax(potential, given, fmax=0.005, held=[extra, None, None, None])
    held = extra.copy()
    held[0] = held[1, [0, 2]] = True
    found = results[0]
    assert found.converged
    assert np.array_equal(found.atoms.positions[held], given[0].positions[held])
    assert (found.atoms.positions[~held] != given[0].positions[~held]).all()
    assert len(found.atoms.constraints) == 2
    (again,) = potential.evaluate([door.enter(found.atoms)])
    assert again.energy == pytest.approx(found.energy, abs=1e-9)
    assert again.forces[~held] == pytest.approx(found.forces[~held], abs=1e-9)
    assert np.abs(again.forces[held]).max() > 0.01
    for refused, name in ((results[1], "FixScaled"), (results[2], "FixedPlane")):
        assert refused.error == f"its constraint {name} cannot be kept, only FixAtoms and FixCartesian: take it off with set_constraint()"
    assert results[3].converged


def test_a_cell_does_not_relax_beside_constraints():
    potential = ASEPotential("emt", EMT())
    held, free = bulk("Cu", cubic=True), bulk("Cu", cubic=True)
    held.set_constraint(FixAtoms([0]))
    refused, good = engine.relax(potential, [held, free], cell="full")
    assert "FixAtoms cannot be kept in a cell that relaxes" in refused.error
    assert good.converged


def mirrored(atoms):
    """The same crystal with a left-handed cell: two of its vectors change places."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    assert np.linalg.det(atoms.cell.array) < 0
    return atoms


@pytest.mark.parametrize("cell", ["fixed", "full", "out-of-plane"])
def test_a_left_handed_cell_relaxes_like_a_right_handed_one(cell):
    potential = ASEPotential("emt", EMT())
    crystal = bulk("Cu", a=3.7, cubic=True)
    crystal.positions[0] += 0.05
    crystal.set_cell(crystal.cell.array * [[1.0], [1.02], [1.0]], scale_atoms=True)
    right, left = engine.relax(potential, [crystal, mirrored(crystal)], cell=cell, fmax=1e-3, smax=1e-5)
    assert right.converged
    assert left.converged
    assert left.energy == pytest.approx(right.energy, abs=1e-8)
    assert left.atoms.cell.array == pytest.approx(right.atoms.cell.array[[1, 0, 2]], abs=1e-6)
    assert left.atoms.positions == pytest.approx(right.atoms.positions, abs=1e-6)
    if cell == "full":
        # 8.09 Å where the volume has the sign of the cell.
        assert left.atoms.get_volume() ** (1 / 3) == pytest.approx(3.59, abs=0.005)


def test_a_network_relaxes_a_left_handed_cell(chgnet):
    crystal = bulk("MgO", "rocksalt", a=4.3)
    right, left = engine.relax(chgnet, [crystal, mirrored(crystal)], cell="full", fmax=0.01, smax=1e-4)
    assert left.converged
    assert left.atoms.get_volume() == pytest.approx(right.atoms.get_volume(), rel=1e-3)
    assert np.linalg.det(left.atoms.cell.array) < 0


class _Charged(LennardJones):
    """Its pairs attract as strongly as the structure's total charge and its atoms' tags and moments say."""

    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        strength = atoms.info["charge"] * atoms.get_tags().sum() * atoms.get_initial_magnetic_moments().sum()
        self.results = {name: strength * np.asarray(value) for name, value in self.results.items()}


def test_charge_tags_and_moments_travel_through_a_relaxation():
    potential = ASEPotential("charged", _Charged(sigma=2.5, epsilon=0.1, rc=5.0, smooth=True))
    given = [rattled(bulk("Ar", a=4.0, cubic=True), seed, 0.05) for seed in range(3)]
    for charge, atoms in enumerate(given, 1):
        atoms.info["charge"] = charge
        atoms.set_tags([1, 0, 1, 0])
        atoms.set_initial_magnetic_moments([1.0, 0.5, 0.0, 0.0])
    results = engine.relax(potential, given, cell="full", fmax=0.005)
    for atoms, result in zip(given, results, strict=True):
        assert result.converged
        assert result.energy == pytest.approx(potential.evaluate([result.atoms])[0].energy, abs=1e-9)
        assert result.atoms.info == atoms.info
        assert result.atoms.get_initial_magnetic_moments().tolist() == [1.0, 0.5, 0.0, 0.0]
    assert results[2].energy == pytest.approx(3 * results[0].energy, rel=1e-3)


def test_structures_of_any_kind_are_relaxed():
    potential = ASEPotential("emt", EMT())
    copper = bulk("Cu", a=3.7)
    (expected,) = engine.relax(potential, copper, cell="full")
    ways = [engine.relax(potential, way, cell="full")[0] for way in ((copper,), iter([copper]), AseAtomsAdaptor.get_structure(copper))]
    assert [way.energy for way in ways] == pytest.approx([expected.energy] * 3, abs=1e-6)
    with pytest.raises(TypeError, match=r"^str 'POSCAR' is no structure; give ase.Atoms or an ordered pymatgen Structure"):
        engine.relax(potential, "POSCAR")


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError(ALLOCATOR), MemoryError("Unable to allocate 9 GiB")])
def test_a_cpu_without_memory_halves_the_batch_and_goes_on(chgnet, structures, monkeypatch, error):
    plain = engine.relax(chgnet, structures, fmax=0.05)
    compute = type(chgnet).compute
    calls = []

    def memory_shrinks(self, graph, **kwargs):
        calls.append(graph.n_systems)
        if len(calls) > 5 and graph.n_systems > 2:
            raise error
        return compute(self, graph, **kwargs)

    monkeypatch.setattr(type(chgnet), "compute", memory_shrinks)
    monkeypatch.setattr(batched, "memory_limit", lambda potential: 1e4)
    results = engine.relax(chgnet, structures, fmax=0.05)
    assert [result.error for result in results] == [None] * 4
    assert [r.energy for r in results] == pytest.approx([r.energy for r in plain], abs=6e-3)


def test_what_a_cell_without_memory_has_reached_is_not_lost(chgnet, structures, monkeypatch):
    compute = type(chgnet).compute
    calls = []

    def memory_ends(self, graph, **kwargs):
        calls.append(graph.n_systems)
        if len(calls) > 3:
            raise RuntimeError(ALLOCATOR)
        return compute(self, graph, **kwargs)

    monkeypatch.setattr(type(chgnet), "compute", memory_ends)
    (result,) = engine.relax(chgnet, [structures[2]], fmax=1e-3)
    assert result.error == "out of memory after 2 steps"
    before, after = (np.linalg.norm(compute_forces(chgnet, atoms, compute)) for atoms in (structures[2], result.atoms))
    assert after < before


def compute_forces(potential, atoms, compute):
    return compute(potential, potential.collate([potential.system(atoms)]))[1].numpy()


def test_other_errors_are_not_taken_for_a_lack_of_memory(structures):
    class Full(EMT):
        def calculate(self, *args, **kwargs):
            raise RuntimeError("disk full")

    (result,) = engine.relax(ASEPotential("full", Full()), structures[1])
    assert result.error == "RuntimeError: disk full"


def test_a_cell_beyond_the_free_memory_is_refused_before_it_starts(chgnet, structures, monkeypatch):
    large = bulk("Si", cubic=True) * (3, 3, 3)
    need = chgnet.system(large).n_edges * chgnet.bytes_per_edge
    free = type(base.psutil.virtual_memory())(*[int(need * 0.9)] * len(base.psutil.virtual_memory()))
    monkeypatch.setattr(base.psutil, "virtual_memory", lambda: free)
    seen = []
    compute = type(chgnet).compute
    monkeypatch.setattr(type(chgnet), "compute", lambda self, graph, **kw: seen.append(len(graph.numbers)) or compute(self, graph, **kw))
    first, refused, last = engine.relax(chgnet, [structures[0], large, structures[3]], fmax=0.05)
    assert first.converged
    assert last.converged
    assert f"need up to {need / 1e9:.3g} GB of memory, and {0.9 * need / 1e9:.3g} GB are free" in refused.error
    predictions = chgnet.evaluate([structures[0], large, structures[3]])
    assert [one.ok for one in predictions] == [True, False, True]
    assert predictions[1].error == refused.error
    assert max(seen) < len(large)


def test_a_structure_that_breaks_the_network_leaves_the_others_alone(chgnet, structures, monkeypatch):
    energies = type(chgnet).energies

    def picky(self, graph):
        if (graph.numbers == 11).any():
            raise ValueError("no sodium today")
        return energies(self, graph)

    monkeypatch.setattr(type(chgnet), "energies", picky)
    results = engine.relax(chgnet, structures, cell="full", fmax=0.05)
    assert results[3].error == "ValueError: no sodium today"
    assert [result.converged for result in results] == [True, True, True, False]


def test_held_coordinates_that_do_not_fit_are_refused(chgnet, structures):
    with pytest.raises(ValueError, match="fixed cell"):
        engine.relax(chgnet, structures[:1], cell="full", held=[None])
    with pytest.raises(ValueError, match="2 structures but 1"):
        engine.relax(chgnet, structures[:2], held=[None])
    with pytest.raises(ValueError, match=r"held\[1\] has shape"):
        engine.relax(chgnet, structures[:2], held=[None, np.array([0])])
