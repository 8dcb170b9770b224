"""The MatGL adapter: present and older conventions, against MatGL itself, plain loops and published values."""

import copy
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from conftest import needs_mirror
from matgl.apps.pes import Potential as MatGLModel
from matgl.ext.pymatgen import Structure2Graph
from matgl.models import M3GNet, TensorNet
from matgl.utils.cutoff import polynomial_cutoff
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.optimization.neighbors import find_points_in_spheres
from scipy.optimize import brentq

from helpers import potentials, registry
from helpers.potentials import PotentialError, matgl
from helpers.potentials.base import Graph, System

ELEMENTS = ("O", "Mg", "Si", "Ga", "As")
GPA = 160.21766208  # in one eV/Å³


def rattled(atoms: Atoms, amplitude: float = 0.1, seed: int = 1) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(amplitude, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def structures() -> list[Atoms]:
    """Small, of different sizes, with atoms outside the cell and a triclinic cell."""
    outside = rattled(bulk("MgO", "rocksalt", a=4.21, cubic=True))
    outside.positions += [7.3, -9.1, 0.4]
    skewed = rattled(bulk("GaAs", "zincblende", a=5.75) * (2, 1, 1))
    skewed.set_cell(skewed.cell.array + np.array([[0.1, 0.2, 0], [0, 0.3, -0.1], [0.4, 0, 0]]), scale_atoms=True)
    return [outside, skewed, rattled(bulk("Si", a=5.43))]


def small_model(kind: str, **settings) -> MatGLModel:
    """Return a small MatGL potential with random weights, in double precision."""
    torch.manual_seed(0)
    settings = {"element_types": ELEMENTS, "units": 16, "nblocks": 2, "is_intensive": False, "use_smooth": True} | settings
    if kind == "M3GNet":
        network = M3GNet(dim_node_embedding=16, dim_edge_embedding=16, **settings)
        # Initial weights are small: larger ones make every term count, the three-body terms above all.
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.mul_(10 if "three_body" in name else 2)
    else:
        network = TensorNet(rbf_type="SphericalBessel", use_warp=False, **settings)
    return MatGLModel(
        model=network, data_mean=0.7, data_std=2.5, element_refs=np.array([-1.1, 0.4, -3.2, 2.0, -0.3]), calc_stresses=True
    ).double()


@pytest.fixture(
    scope="module", params=[("M3GNet", True), ("M3GNet", False), ("TensorNet", True)], ids=["M3GNet", "M3GNet-rough", "TensorNet"]
)
def small(request) -> MatGLModel:
    kind, smooth = request.param
    return small_model(kind, use_smooth=smooth)


def wrap(model: MatGLModel, convention: matgl.Convention = matgl.CURRENT) -> matgl.MatGLPotential:
    return matgl.from_network("small", model, convention=convention, dtype=torch.float64)


def matgl_itself(model: MatGLModel, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Return energy, forces and stress (eV/Å³) by MatGL's own graph and potential."""
    converter = Structure2Graph(model.model.element_types, model.model.cutoff)
    graph, lattice, state = converter.get_graph(AseAtomsAdaptor.get_structure(atoms))
    energy, forces, stress, _ = model.eval()(graph, lattice, torch.tensor(state))
    return energy.item(), forces.detach().numpy(), stress.detach().numpy() / GPA


@pytest.mark.slow
def test_current_convention_equals_matgl(small, structures):
    for atoms, prediction in zip(structures, wrap(small).evaluate(structures, stress=True), strict=True):
        energy, forces, stress = matgl_itself(small, atoms)
        # MatGL's graph holds single-precision coordinates.
        assert prediction.energy == pytest.approx(energy, abs=1e-5)
        np.testing.assert_allclose(prediction.forces, forces, atol=1e-5)
        np.testing.assert_allclose(prediction.stress, stress, atol=1e-6)


def test_conventions_side_by_side(small, structures):
    """Old and new live in one process, and neither changes the other, MatGL or the network that it was made from."""
    weights = copy.deepcopy(small.state_dict())
    itself = [matgl_itself(small, atoms)[0] for atoms in structures]
    current, legacy = wrap(small), wrap(small, matgl.LEGACY)
    before = [p.energy for p in current.evaluate(structures)]
    old = [p.energy for p in legacy.evaluate(structures)]
    np.testing.assert_array_equal([p.energy for p in current.evaluate(structures)], before)
    np.testing.assert_array_equal([p.energy for p in legacy.evaluate(structures)], old)
    assert [matgl_itself(small, atoms)[0] for atoms in structures] == itself
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    # Two compounds (the third structure is an element, in which TensorNet knows no difference).
    assert np.abs(np.subtract(before, old)[:2]).min() > 1e-3


def pymatgen_edges(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bonds in the order that legacy MatGL had."""
    positions = np.ascontiguousarray(atoms.positions)
    centre, neighbour, image, distance = find_points_in_spheres(
        positions, positions, r=cutoff, pbc=np.ones(3, dtype=np.int64), lattice=np.ascontiguousarray(atoms.cell.array), tol=1e-8
    )
    bond = (centre != neighbour) | (distance > 1e-8)
    return centre[bond], neighbour[bond], image[bond]


def collate(structures: list[Atoms], cutoff: float) -> Graph:
    systems = [System.build(a.numbers, a.positions, a.cell.array, cutoff) for a in structures]
    return Graph.collate(systems, torch.device("cpu"))


@pytest.mark.parametrize("seed", range(4))
def test_legacy_order_is_that_of_pymatgen(seed):
    generator = np.random.default_rng(seed)
    batch = []
    for n_atoms in (1, 5, 12):
        cell = np.eye(3) * (12 * n_atoms) ** (1 / 3) + generator.uniform(-0.6, 0.6, (3, 3))
        # Far outside the cell, too.
        batch.append(Atoms(f"Si{n_atoms}", cell=cell, pbc=True, scaled_positions=generator.uniform(-2, 2, (n_atoms, 3))))
    graph = collate(batch, 5.0)
    order = matgl.legacy_order(graph, 5.0)
    mine = torch.cat([graph.edge_index[:, order].T, graph.shifts[order].to(torch.int64)], dim=1).numpy()
    theirs, first = [], 0
    for atoms in batch:
        centre, neighbour, image = pymatgen_edges(atoms, 5.0)
        theirs.append(np.column_stack([centre + first, neighbour + first, image]).astype(int))
        first += len(atoms)
    np.testing.assert_array_equal(mine, np.concatenate(theirs))


def legacy_m3gnet_by_loops(model: MatGLModel, atoms: Atoms) -> float:
    """Evaluate a legacy M3GNet bond by bond and triple by triple, as the module's docstring says it."""
    network = model.model
    centre, neighbour, image = pymatgen_edges(atoms, network.cutoff)
    vectors = torch.tensor(atoms.positions[neighbour] - atoms.positions[centre] + image @ atoms.cell.array)
    lengths = vectors.norm(dim=1)
    radial = network.bond_expansion(lengths)
    weights = polynomial_cutoff(lengths, network.threebody_cutoff)
    rows = torch.tensor([ELEMENTS.index(symbol) for symbol in atoms.symbols])
    short = [bond for bond in range(len(centre)) if lengths[bond] <= network.threebody_cutoff]
    v, e, _ = network.embedding(rows, radial, None)
    for three_body, block in zip(network.three_body_interactions, network.graph_layers, strict=True):
        u = three_body.update_network_atom(v)
        sums = torch.zeros(len(centre), u.shape[1], dtype=torch.float64)
        for a, ij in enumerate(short):
            for b, ik in enumerate(short):
                if ij == ik or centre[ij] != centre[ik]:
                    continue
                cosine = (vectors[ij] @ vectors[ik] / lengths[ij] / lengths[ik]).clamp(-1 + 1e-7, 1 - 1e-7)
                basis = network.basis_expansion(lengths[ik][None], cosine[None], torch.zeros(1, dtype=torch.float64))[0]
                # a and b count short bonds; here they pick from all bonds.
                sums[a] += basis * u[neighbour[b]] * weights[a] * weights[b]
        e = e + three_body.update_network_bond(sums)
        e = e + block.conv.edge_update_func(torch.cat([v[centre], v[neighbour], e], 1)) * block.conv.edge_weight_func(radial)
        messages = block.conv.node_update_func(torch.cat([v[centre], v[neighbour], e], 1)) * block.conv.node_weight_func(radial)
        new = v.clone()
        for bond, j in enumerate(neighbour):
            new[j] += messages[bond]
        v = new
    return float(model.data_std * network.final_layer(v).sum() + model.data_mean + model.element_refs.property_offset[rows].sum())


@pytest.mark.slow
def test_legacy_m3gnet_by_loops(structures):
    model = small_model("M3GNet")
    with torch.no_grad():
        expected = [legacy_m3gnet_by_loops(model, atoms) for atoms in structures]
    found = [p.energy for p in wrap(model, matgl.LEGACY).evaluate(structures)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    # The stand-ins matter in a network that has not learned to do without triples.
    right = [p.energy for p in wrap(model, matgl.LEGACY_RIGHT_TRIPLES).evaluate(structures)]
    assert np.abs(np.subtract(right, found)).max() > 1e-4


def test_legacy_tensornet_sums_onto_the_neighbour(structures):
    """The exchanged layer equals the old definition: messages of (centre, neighbour) summed onto the neighbour."""
    model = small_model("TensorNet")
    network = copy.deepcopy(model.model)
    embedding = network.tensor_embedding
    for atoms in structures[:2]:
        centre, neighbour, image = pymatgen_edges(atoms, network.cutoff)
        vectors = torch.tensor(atoms.positions[neighbour] - atoms.positions[centre] + image @ atoms.cell.array)
        edges = torch.tensor(np.stack([centre, neighbour]))
        rows = torch.tensor([ELEMENTS.index(symbol) for symbol in atoms.symbols])
        lengths = vectors.norm(dim=1)
        radial = network.bond_expansion(lengths)
        # On this copy alone, the embedding sums onto the neighbour; the later layers see reversed edges.
        aggregate = type(embedding).aggregate
        embedding.aggregate = lambda messages, _, dim_size, add=aggregate, onto=edges[1]: add(embedding, messages, onto, dim_size)
        with torch.no_grad():
            tensors, _ = embedding(rows, edges, radial, lengths, vectors)
            for layer in network.layers:
                tensors = layer(edges.flip(0), lengths, radial, tensors)
            transposed = tensors.transpose(-1, -2)
            trace = tensors.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(3, dtype=torch.float64)
            parts = trace, (tensors - transposed) / 2, (tensors + transposed) / 2 - trace
            features = torch.cat([(part**2).sum((-2, -1)) for part in parts], dim=-1)
            atomic = network.final_layer(network.linear(network.out_norm(features)))
        expected = float(model.data_std * atomic.sum() + model.data_mean + model.element_refs.property_offset[rows].sum())
        assert wrap(model, matgl.LEGACY).evaluate([atoms])[0].energy == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("convention", [matgl.CURRENT, matgl.LEGACY, matgl.LEGACY_RIGHT_TRIPLES], ids=["current", "legacy", "right"])
def test_forces_and_stress_are_derivatives(small, structures, convention):
    potential = wrap(small, convention)
    check_derivatives(potential, structures[1])


def check_derivatives(potential: matgl.MatGLPotential, atoms: Atoms, step: float = 1e-4) -> None:
    """Compare a force component and two of the stress with central differences.

    With stand-ins the energy jumps where the numbering of the bonds changes: they are differences at fixed numbering.
    """
    graph = potential.collate([potential.system(atoms)])

    def energy(moved: Atoms) -> float:
        if not potential.convention.stand_ins:
            return potential.evaluate([moved])[0].energy
        same = copy.copy(graph)
        same.positions, same.cells = torch.tensor(moved.positions), torch.tensor(moved.cell.array)[None]
        return potential.compute(same)[0].item()

    prediction = potential.evaluate([atoms], stress=True)[0]
    assert energy(atoms) == pytest.approx(prediction.energy, abs=1e-10)
    pair = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 2] += sign * step
        pair.append(energy(moved))
    assert prediction.forces[1, 2] == pytest.approx((pair[1] - pair[0]) / (2 * step), abs=5e-6)
    for i, j in ((0, 0), (1, 2)):
        pair = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            pair.append(energy(strained))
        assert prediction.stress[i, j] == pytest.approx((pair[0] - pair[1]) / (2 * step) / atoms.get_volume(), abs=5e-7)
    np.testing.assert_allclose(prediction.forces.sum(0), 0, atol=1e-9)


@pytest.mark.parametrize("convention", [matgl.CURRENT, matgl.LEGACY], ids=["current", "legacy"])
def test_batch_equals_one_by_one(small, structures, convention):
    potential = wrap(small, convention)
    # In the last structure no two bonds are within the three-body cutoff.
    sparse = bulk("Si", "sc", a=4.5)
    batch = [*structures, sparse]
    together = potential.evaluate(batch, stress=True)
    for atoms, prediction in zip(batch, together, strict=True):
        alone = potential.evaluate([atoms], stress=True)[0]
        assert prediction.ok
        assert prediction.energy == pytest.approx(alone.energy, abs=1e-10)
        np.testing.assert_allclose(prediction.forces, alone.forces, atol=1e-10)
        np.testing.assert_allclose(prediction.stress, alone.stress, atol=1e-10)


@pytest.mark.parametrize("convention", [matgl.CURRENT, matgl.LEGACY], ids=["current", "legacy"])
def test_a_loss_on_forces_can_be_differentiated(small, structures, convention):
    potential = wrap(small, convention)
    potential.network.requires_grad_(True)
    graph = potential.collate([potential.system(atoms) for atoms in structures])
    _, forces, _ = potential.compute(graph, training=True)
    forces.square().sum().backward()
    without = [name for name, p in potential.network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # A constant added to an atom's energy has no force.
    assert all(name.startswith("final_layer") and name.endswith("bias") for name in without)


def variants(atoms: Atoms) -> list[tuple[Atoms, np.ndarray, np.ndarray]]:
    """Return the same crystal in other guises: atoms, their original indices, and the rotation of its forces."""
    generator = np.random.default_rng(0)
    same = np.arange(len(atoms))
    order = generator.permutation(len(atoms))
    permuted = atoms[order]
    moved = atoms.copy()
    moved.translate([3.1, -7.7, 1.3])
    moved.wrap()
    turned = atoms.copy()
    turned.rotate(33, (1, 2, 3), rotate_cell=True)
    rotation = np.linalg.solve(atoms.cell.array, turned.cell.array)
    larger = atoms * (2, 2, 2)
    return [
        (permuted, order, np.eye(3)),
        (moved, same, np.eye(3)),
        (turned, same, rotation),
        (larger, np.tile(same, 8), np.eye(3)),
    ]


def largest_differences(potential: matgl.MatGLPotential, atoms: Atoms) -> tuple[float, float]:
    """Return the largest differences of energy (eV/atom) and forces (eV/Å) between a crystal and its variants."""
    reference = potential.evaluate([atoms])[0]
    per_atom, forces = [], []
    for variant, index, rotation in variants(atoms):
        prediction = potential.evaluate([variant])[0]
        per_atom.append(abs(prediction.energy / len(variant) - reference.energy / len(atoms)))
        forces.append(np.abs(prediction.forces - reference.forces[index] @ rotation).max())
    return max(per_atom), max(forces)


@pytest.mark.parametrize("kind", ["M3GNet", "TensorNet"])
@pytest.mark.parametrize("convention", [matgl.CURRENT, matgl.LEGACY_RIGHT_TRIPLES], ids=["current", "right"])
def test_invariance(kind, convention, structures):
    model = small_model(kind)
    # MatGL adds the mean once per structure, not per atom: without it, eight cells have eight times the energy.
    model.data_mean.zero_()
    energy, forces = largest_differences(wrap(model, convention), structures[0])
    assert energy < 1e-10
    assert forces < 1e-9


def test_what_cannot_be_evaluated_is_refused():
    intensive = small_model("M3GNet", is_intensive=True)
    with pytest.raises(PotentialError, match="sums over atoms"):
        wrap(intensive)
    with pytest.raises(PotentialError, match="use_phi"):
        wrap(small_model("M3GNet", use_phi=True))
    proper = small_model("TensorNet", equivariance_invariance_group="SO(3)")
    with pytest.raises(PotentialError, match="O\\(3\\)"):
        wrap(proper, matgl.LEGACY)
    strange = small_model("M3GNet")
    strange.model = torch.nn.Linear(1, 1)
    with pytest.raises(PotentialError, match="Linear"):
        wrap(strange)


def test_unknown_convention_is_refused(tmp_path):
    """Weights that MatGL has just saved: nothing in the files says which convention they follow."""
    model = small_model("M3GNet")
    model.save(tmp_path)
    paths = [tmp_path / name for name in ("model.json", "model.pt", "state.pt")]
    for trust in (False, True):
        with pytest.raises(PotentialError, match="convention of these weights is not known"):
            matgl.load("mine", paths, torch.device("cpu"), trust=trust)
    with pytest.raises(PotentialError, match=r"state\.pt not among"):
        matgl.load("mine", paths[:2], torch.device("cpu"))


def registered(key: str, **settings) -> matgl.MatGLPotential:
    paths = [registry.fetch(name) for name in potentials.CATALOGUE[key].weights]
    return matgl.load(key, paths, torch.device("cpu"), **settings)


@pytest.fixture(scope="module")
def m3gnet() -> matgl.MatGLPotential:
    return registered("m3gnet-mp-2021.2.8", dtype=torch.float64)


@needs_mirror
@pytest.mark.parametrize(
    ("key", "atoms", "expected"),
    [
        ("m3gnet-mp-2021.2.8", bulk("MgO", "rocksalt", a=4.21), -5.9505),
        ("tensornet-matpes-pbe-2025.1", bulk("MgO", "rocksalt", a=4.21), -5.8644),
        ("tensornet-matpes-pbe-2025.1", bulk("Si", a=5.43), -5.2407),
        ("tensornet-matpes-pbe-2025.1", bulk("Cu", a=3.62), -3.7599),
    ],
)
def test_known_energies(key, atoms, expected):
    potential = potentials.load(key, "cpu")
    assert potential.evaluate([atoms])[0].energy / len(atoms) == pytest.approx(expected, abs=6e-5)


@needs_mirror
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda a: bulk("GaAs", "zincblende", a=a), 5.7504),
        (lambda a: bulk("Mo", a=a), 3.1640),
        (lambda a: bulk("Au", a=a), 4.1720),
    ],
    ids=["GaAs", "Mo", "Au"],
)
def test_known_lattice_parameters(m3gnet, build, expected):
    def pressure(a: float) -> float:
        return np.trace(m3gnet.evaluate([build(a)], stress=True)[0].stress)

    assert brentq(pressure, expected - 0.05, expected + 0.05, xtol=1e-5) == pytest.approx(expected, abs=5e-4)


@needs_mirror
def test_released_weights_in_the_wrong_convention_give_nonsense():
    """The same weights, old and new convention, side by side."""
    mgo = bulk("MgO", "rocksalt", a=4.21)
    for key, wrong in (("m3gnet-mp-2021.2.8", -2.114), ("tensornet-matpes-pbe-2025.1", -2.298)):
        assert registered(key, convention=matgl.CURRENT).evaluate([mgo])[0].energy / 2 == pytest.approx(wrong, abs=1e-3)


@pytest.mark.slow
@needs_mirror
@pytest.mark.parametrize("key", ["m3gnet-mp-2021.2.8", "m3gnet-matpes-pbe-2025.1", "tensornet-matpes-pbe-2025.1"])
def test_released_weights_are_nearly_invariant(key):
    """What the module's docstring says about the legacy triples, in numbers."""
    legacy, right = registered(key, dtype=torch.float64), registered(key, dtype=torch.float64, convention=matgl.LEGACY_RIGHT_TRIPLES)
    for atoms in (rattled(bulk("Si", a=5.43, cubic=True)), rattled(bulk("MgO", "rocksalt", a=4.21, cubic=True))):
        exact = key.startswith("tensornet")
        energy, forces = largest_differences(legacy, atoms)
        assert energy < (1e-9 if exact else 2e-5)
        assert forces < (1e-9 if exact else 1e-3)
        energy, forces = largest_differences(right, atoms)
        assert energy < 1e-9
        assert forces < 1e-9
        one, other = legacy.evaluate([atoms])[0], right.evaluate([atoms])[0]
        assert abs(one.energy - other.energy) / len(atoms) < 3e-4
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-3)


@needs_mirror
@pytest.mark.parametrize("key", ["m3gnet-mp-2021.2.8", "tensornet-matpes-pbe-2025.1"])
def test_released_weights_have_forces_that_are_derivatives(key, structures):
    check_derivatives(registered(key, dtype=torch.float64), structures[1])


@needs_mirror
@pytest.mark.parametrize("key", ["m3gnet-mp-2021.2.8", "m3gnet-matpes-pbe-2025.1", "tensornet-matpes-pbe-2025.1"])
def test_precision_and_description(key, structures):
    single, double = potentials.load(key, "cpu"), potentials.load(key, "cpu", dtype=torch.float64)
    assert (single.network_dtype, double.network_dtype) == (torch.float32, torch.float64)
    for one, other, atoms in zip(single.evaluate(structures), double.evaluate(structures), structures, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=2e-5 * len(atoms))
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-3)
    description = single.describe()
    assert description["convention"] == "MatGL <= 2 (legacy)"
    assert description["weights_sha256"] == registry.lookup(potentials.CATALOGUE[key].weights[2]).sha256
    assert len(description["elements"]) == 89
    assert description["cutoff_a"] == 5.0
    json.dumps(description)


@needs_mirror
def test_old_m3gnet_has_a_smooth_variant_beside_it():
    """The same weights and key, the right triples, and no change to the potential that was asked."""
    potential = potentials.load("m3gnet-mp-2021.2.8")
    smooth = potential.smooth()
    assert smooth.key == potential.key
    assert smooth.network is potential.network
    assert potential.convention == matgl.LEGACY
    assert smooth.convention == matgl.LEGACY_RIGHT_TRIPLES
    assert smooth.describe()["convention"] != potential.describe()["convention"]
    assert smooth.smooth() is smooth
    crystal = bulk("MgO", "rocksalt", a=4.21)
    one, other = (p.evaluate([crystal])[0].energy for p in (potential, smooth))
    assert one == pytest.approx(other, abs=1e-3)
    assert potentials.load("tensornet-matpes-pbe-2025.1").smooth().convention == matgl.LEGACY
