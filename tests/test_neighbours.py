"""Neighbour lists: complete for every kind of cell, kept while they serve, made ahead of a device."""

import threading

import ase
import numpy as np
import pytest
import torch
import torch_sim as ts
from ase.build import bulk, fcc111, graphene
from pretended_device import CPU, DEVICE, PretendedDevice

from helpers import engine
from helpers.potentials import neighbours
from helpers.potentials.base import GraphPotential, OutOfTimeError
from helpers.potentials.neighbours import SKIN_A, StructureError, System, edges_at_once, still_serve

CUTOFF = 5.0


def triclinic() -> ase.Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 1)
    atoms.set_cell(atoms.cell.array @ np.array([[1.0, 0.3, -0.2], [0.1, 1.1, 0.4], [0, -0.1, 0.9]]), scale_atoms=True)
    return atoms


def sheet() -> ase.Atoms:
    atoms = graphene(vacuum=8.0)
    atoms.pbc = True
    return atoms


def slab() -> ase.Atoms:
    return fcc111("Al", (2, 1, 4), vacuum=7.0, periodic=True)


CELLS = {
    "primitive": lambda: bulk("Si"),
    "tiny": lambda: bulk("Fe", "bcc", a=2.5),
    "slab": slab,
    "sheet": sheet,
    "triclinic": triclinic,
    "left-handed": lambda: ase.Atoms("CsCl", cell=np.diag([4.1, 4.1, -4.1]), scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], pbc=True),
    "large": lambda: bulk("Al", cubic=True) * (4, 4, 4),
    "atoms outside": lambda: translated(triclinic()),
}


def translated(atoms: ase.Atoms) -> ase.Atoms:
    atoms.positions += np.outer(np.arange(len(atoms)), atoms.cell.array.sum(0))
    return atoms


def crystal(atoms: ase.Atoms) -> neighbours.Crystal:
    return atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc


def build(atoms: ase.Atoms, cutoff: float) -> System:
    return System.build(*crystal(atoms)[:3], cutoff)


def vectors(system: System, atoms: ase.Atoms) -> np.ndarray:
    return atoms.positions[system.neighbour] - atoms.positions[system.centre] + system.shift @ atoms.cell.array


def edges(system: System, mask: np.ndarray | slice = slice(None)) -> set[tuple[int, ...]]:
    rows = np.column_stack([system.centre, system.neighbour, system.shift.astype(int)])[mask]
    assert len(rows) == len({tuple(row) for row in rows.tolist()}), "a pair is listed twice"
    return {tuple(row) for row in rows.tolist()}


def by_hand(atoms: ase.Atoms, cutoff: float) -> set[tuple[int, ...]]:
    """List the pairs by trying all images that can be near enough."""
    heights = 1 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    spread = np.ptp(np.linalg.solve(atoms.cell.array.T, atoms.positions.T), axis=1)
    reach = np.ceil(cutoff / heights + spread).astype(int)
    shifts = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij"), axis=-1).reshape(-1, 3)
    found = set()
    for shift in shifts:
        apart = np.linalg.norm(atoms.positions[None] - atoms.positions[:, None] + shift @ atoms.cell.array, axis=2)
        if not shift.any():
            np.fill_diagonal(apart, np.inf)
        found |= {(i, j, *shift.tolist()) for i, j in np.argwhere(apart < cutoff).tolist()}
    return found


@pytest.mark.parametrize("name", CELLS)
def test_lists_are_complete(name):
    atoms = CELLS[name]()
    atoms.positions += np.random.default_rng(0).normal(0, 0.02, atoms.positions.shape)
    system = build(atoms, CUTOFF)
    assert edges(system) == by_hand(atoms, CUTOFF)
    assert (np.diff(system.centre) >= 0).all()


def test_many_lists_at_once_are_the_same():
    pytest.importorskip("nvalchemiops", reason="needs the extra gpu: pip install -c requirements.lock -e .[gpu]")
    frames = [CELLS[name]() for name in CELLS]
    for atoms in frames:
        atoms.positions += np.random.default_rng(0).normal(0, 0.02, atoms.positions.shape)
    for some in (frames, frames[:1], [slab(), sheet()]):  # in the last, no atom has as few neighbours as the density says
        found = edges_at_once([crystal(atoms) for atoms in some], CUTOFF, CPU)
        for atoms, found_edges in zip(some, found, strict=True):
            one = System.build(*crystal(atoms)[:3], CUTOFF, found_edges)
            assert edges(one) == edges(build(atoms, CUTOFF))
            assert (np.diff(one.centre) >= 0).all()


def test_a_gpu_finds_many_at_once_and_what_fails_keeps_its_place(monkeypatch):
    calls = []

    def at_once(crystals, cutoff, device):
        calls.append((len(crystals), device.type))
        systems = [System.build(*crystal[:3], cutoff) for crystal in crystals]
        return [(system.centre, system.neighbour, system.shift) for system in systems[:-1]] + [
            (np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3)))
        ]

    monkeypatch.setattr(neighbours, "edges_at_once", at_once)
    monkeypatch.setattr(neighbours.importlib.util, "find_spec", lambda name: name)
    structures = frames(neighbours.AT_ONCE + 2)
    structures[1].symbols[0] = "Rn"
    structures[-1].positions[0] = np.nan
    crystals = [crystal(atoms) for atoms in structures]
    found = list(neighbours.find(crystals, frozenset({13, 29}), CUTOFF, torch.device("cuda")))
    assert calls == [(neighbours.AT_ONCE - 1, "cuda"), (1, "cuda")]
    bad = {k: str(one) for k, one in enumerate(found) if isinstance(one, StructureError)}
    assert [(k, text[:22]) for k, text in bad.items()] == [
        (1, "element(s) the model w"),
        (neighbours.AT_ONCE - 1, "atom 0 has no neighbou"),
        (neighbours.AT_ONCE, "atom 0 has no neighbou"),
        (neighbours.AT_ONCE + 1, "position of atom 0 is "),
    ]
    assert all(edges(one) == edges(build(atoms, CUTOFF)) for one, atoms in zip(found, structures, strict=True) if isinstance(one, System))
    calls.clear()
    assert len(list(neighbours.find(crystals, frozenset({13, 29}), CUTOFF, CPU))) == len(structures)
    assert not calls


@pytest.mark.parametrize("name", CELLS)
def test_lists_hold_every_pair_as_long_as_they_are_said_to_serve(name):
    rng, served = np.random.default_rng(1), 0
    start = CELLS[name]()
    wide = build(start, CUTOFF + SKIN_A)
    for size in np.linspace(0.1, 1.5, 15):
        atoms = start.copy()
        strain = rng.normal(0, 0.02 * size, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        step = rng.normal(0, 1, (len(atoms), 3))
        atoms.positions += 0.2 * size * step / np.linalg.norm(step, axis=1).max()
        (serves,) = still_serve([wide], [crystal(atoms)], CUTOFF)
        served += serves
        if serves:
            near = np.linalg.norm(vectors(wide, atoms), axis=1) < CUTOFF
            assert edges(wide, near) == edges(build(atoms, CUTOFF))
    assert 0 < served < 15


def test_the_worst_that_atoms_and_cell_can_do_is_counted():
    atoms = bulk("Al", cubic=True)
    wide, reach = build(atoms, CUTOFF + SKIN_A), CUTOFF + SKIN_A

    def serves(atoms: ase.Atoms, kept: System | None = wide) -> bool:
        return bool(still_serve([kept], [crystal(atoms)], CUTOFF)[0])

    def changed(shrink: float = 0.0, move: float = 0.0) -> ase.Atoms:
        other = atoms.copy()
        other.set_cell(other.cell.array @ np.diag([1 - shrink, 1, 1]), scale_atoms=True)
        other.positions[2, 1] += move
        return other

    assert serves(changed(move=SKIN_A / 2 - 0.01))
    assert not serves(changed(move=SKIN_A / 2 + 0.01))
    assert serves(changed(shrink=SKIN_A / reach - 0.002))
    assert not serves(changed(shrink=SKIN_A / reach + 0.002))
    assert not serves(changed(shrink=0.6 * SKIN_A / reach, move=0.25 * SKIN_A))
    assert not serves(atoms, None)
    assert not serves(bulk("Cu", cubic=True))
    assert not serves(bulk("Al"))
    assert not serves(changed(move=np.nan))
    assert not serves(changed(shrink=np.nan))


class Pairs(GraphPotential):
    """Atoms that attract and repel each other in pairs, smoothly out to the cutoff."""

    def __init__(self, device: torch.device = CPU) -> None:
        options = {"bytes_per_edge": 500, "device": device, "elements": frozenset({13, 29}), "description": {}}
        super().__init__("pairs", torch.nn.Linear(1, 1).double(), cutoff=CUTOFF, **options)

    def energies(self, graph):
        lengths = torch.linalg.norm(graph.vectors, dim=1)
        strength = graph.numbers[graph.edge_index[1]] * (1 + torch.cos(np.pi * lengths / CUTOFF))
        of_edges = strength * ((2.6 / lengths) ** 6 - (2.6 / lengths) ** 3)
        return of_edges.new_zeros(graph.n_systems).index_add(0, graph.edge_system, of_edges)


@pytest.fixture
def built(monkeypatch):
    """How many lists have been made."""
    made, original = [], System.build.__func__
    monkeypatch.setattr(System, "build", classmethod(lambda cls, *of: made.append(1) or original(cls, *of)))
    return made


def frames(n: int) -> list[ase.Atoms]:
    made = [bulk(symbol, cubic=True) for symbol in ["Al", "Cu"] * n][:n]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.1, seed=seed)
    return made


def assert_as_evaluated(potential, placed, **names):
    output = potential(ts.io.atoms_to_state(placed, CPU, torch.float64), **names)
    expected = potential.evaluate(placed)
    np.testing.assert_allclose(output["energy"], [one.energy for one in expected], atol=1e-12)
    np.testing.assert_allclose(output["forces"], np.concatenate([one.forces for one in expected]), atol=1e-12)


def test_a_state_is_evaluated_with_the_right_lists(built):
    potential, (a, b, c) = Pairs(), frames(3)
    originals, other = [a, b, c], bulk("Al", cubic=True)
    for moving, structures in [
        ([a, b, c], [a, b, c]),
        ([a, c], [a, c]),  # one left
        ([c, a, b], [c, a, b]),  # another order, and one came
        ([a, a], [a, a]),
        ([a, b], [other, b]),  # another structure of the same atoms
        ([a, b], [b, a]),  # the names are wrong
    ]:
        assert_as_evaluated(potential, structures, structures=moving)
        assert_as_evaluated(potential, structures)
    built.clear()
    for step in range(4):
        for atoms in originals:
            atoms.positions += 0.02
            atoms.set_cell(atoms.cell.array * (1 - 0.001 * step), scale_atoms=True)
        potential(ts.io.atoms_to_state(originals, CPU, torch.float64), structures=originals)
    assert len(built) == len(originals)
    assert_as_evaluated(potential, originals, structures=originals)


def test_a_state_that_is_written_into_gets_new_lists():
    potential, (atoms,) = Pairs(), frames(1)
    state = ts.io.atoms_to_state([atoms], CPU, torch.float64)
    potential(state)
    state.positions[0] += torch.tensor([0.3, 0.2, 0.1])
    state.atomic_numbers[:] = 29
    (expected,) = potential.evaluate(state.to_atoms())
    np.testing.assert_allclose(potential(state)["forces"], expected.forces, atol=1e-12)


@pytest.mark.parametrize("cell", ["fixed", "full"])
def test_relaxations_make_few_lists_and_go_where_they_went(built, monkeypatch, cell):
    found = engine.relax(Pairs(), frames(4), cell=cell, fmax=1e-4, smax=1e-6)
    few = len(built)
    built.clear()
    potential = Pairs()
    monkeypatch.setattr(potential, "_graph_of", lambda state, names: potential.collate([potential.system(one) for one in state.to_atoms()]))
    expected = engine.relax(potential, frames(4), cell=cell, fmax=1e-4, smax=1e-6)
    assert few < len(built) / 4
    for one, other in zip(found, expected, strict=True):
        assert one.converged
        assert one.steps == other.steps
        np.testing.assert_allclose(one.atoms.positions, other.atoms.positions, atol=1e-9)
        np.testing.assert_allclose(one.atoms.cell.array, other.atoms.cell.array, atol=1e-9)


def test_an_atom_that_only_the_skin_reaches_has_no_neighbour():
    lonely = ase.Atoms("Al", cell=np.eye(3) * (CUTOFF + SKIN_A / 2), pbc=True)
    potential, good = Pairs(), bulk("Al", cubic=True)
    output = potential(ts.io.atoms_to_state([good, lonely], CPU, torch.float64))
    assert torch.isnan(output["energy"]).tolist() == [False, True]
    (result,) = engine.relax(potential, [lonely])
    assert "no neighbour within the model's cutoff" in result.error


@pytest.fixture
def there(monkeypatch):
    """The same potential on a device that works on its own, with one structure in each batch."""
    with PretendedDevice():
        potential = Pairs(DEVICE)
        monkeypatch.setattr(potential, "max_edges", lambda: 1)
        yield potential


def test_the_next_batch_is_made_while_the_device_computes(there, monkeypatch):
    structures = frames(4)
    made, evaluated = [threading.Event() for _ in structures], []
    build, compute = System.build.__func__, there.compute

    def noted(cls, *of):
        found = build(cls, *of)
        next(event for event in made if not event.is_set()).set()
        return found

    def slow(graph, **options):
        evaluated.append(graph)
        assert all(event.wait(20) for event in made[: len(evaluated) + 1]), "nobody makes the next batch"
        return compute(graph, **options)

    expected = Pairs().evaluate(structures)
    monkeypatch.setattr(System, "build", classmethod(noted))
    monkeypatch.setattr(there, "compute", slow)
    for one, other in zip(there.evaluate(structures), expected, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-12)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-12)
    assert len(evaluated) == len(structures)


def test_what_fails_ahead_fails_as_it_does_otherwise(there, monkeypatch):
    structures, threads = frames(3), threading.active_count()
    structures[1].symbols[0] = "Rn"
    assert [one.ok for one in there.evaluate(structures)] == [True, False, True]
    assert there.evaluate([]) == []
    there.deadline = 0.0
    with pytest.raises(OutOfTimeError):
        there.evaluate(structures)
    monkeypatch.setattr(System, "build", lambda *of: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        there.evaluate(structures)
    assert threading.active_count() == threads
