"""Phonons: closed forms, symmetry, the reference cases, and the way from a potential to a table."""

import dataclasses

import ase
import numpy as np
import pandas as pd
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal as build_crystal
from ase.spacegroup.symmetrize import check_symmetry
from conftest import emt, needs_mirror
from pymatgen.io.ase import AseAtomsAdaptor

from helpers import benchmarks, registry, results
from helpers.benchmarks import Case, phonons
from helpers.engine import symmetric
from helpers.potentials.ase import ASEPotential

STATIC = phonons.Protocol(relax=False)
K, REST = 2.0, 2.8  # eV/Å², Å


class Springs(Calculator):
    """A crystal of springs between nearest neighbours, for distances within a fifth of the rest length."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, distance, vector = neighbor_list("idD", atoms, 1.2 * REST)
        pull = (K * (distance - REST) / distance)[:, None] * vector
        self.results["energy"] = 0.5 * K * ((distance - REST) ** 2).sum() / 2
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pull)
        self.results["forces"] = forces
        stress = np.einsum("na,nb->ab", pull, vector) / 2 / atoms.get_volume()
        self.results["stress"] = stress.ravel()[[0, 4, 8, 5, 2, 1]]


def springs() -> ASEPotential:
    return ASEPotential("springs", Springs(), elements=frozenset({13}))


def layered(z: float = 0.335, a: float = 2.9, c: float = 9.0) -> ase.Atoms:
    """CuAu2 in the conventional cell of MoSi2 (I4/mmm): two formula units, and one coordinate z that no symmetry fixes."""
    return build_crystal(["Cu", "Au"], [(0, 0, 0), (0, 0, z)], spacegroup=139, cellpar=[a, a, c, 90, 90, 90])


BODY_CENTRED = np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])


def own_case(
    name: str, unit_cell: ase.Atoms, repeats: int = 2, primitive_matrix=None, reference: ASEPotential | None = None, **changes
) -> Case:
    """A case whose reference forces are those of a potential."""
    matrices = {
        "supercell_matrix": repeats * np.eye(3, dtype=int),
        "primitive_matrix": np.eye(3) if primitive_matrix is None else primitive_matrix,
    }
    made = phonons.dynamics(phonons.to_phonopy(unit_cell), *matrices.values())
    made.generate_displacements(distance=0.01)
    displacements = [(first["number"], np.array(first["displacement"])) for first in made.dataset["first_atoms"]]
    supercells = phonons.displaced(phonons.to_ase(made.supercell), displacements)
    forces = {} if reference is None else {"forces": np.array([p.forces for p in reference.evaluate(supercells)])}
    case = {
        "name": name,
        "set": "phonondb",
        "material": name,
        "structures": {"unit_cell": unit_cell, **{f"displaced {n}": s for n, s in enumerate(supercells, 1)}},
        "reference": matrices | forces,
        "info": {"formula": unit_cell.get_chemical_formula(), "magnetic": False},
    }
    return Case(**{**case, **changes})


def scalars(result: pd.DataFrame, column: str = "value") -> pd.Series:
    return result[result["property"].str.startswith(("omega", "volume"))].set_index(["case", "property"])[column]


# -- physics ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fcc_crystal_of_springs():
    """With springs k between nearest neighbours the highest frequency is √(8k/m), longitudinal, at X and L."""
    result = scalars(phonons.run(springs(), [own_case("Al", bulk("Al", "fcc", a=4.05), 4)], phonons.Protocol()))
    mass = phonons.to_phonopy(bulk("Al")).masses[0]
    expected = np.sqrt(8 * K / mass) / (2 * np.pi) * units.second * 1e-12
    # The relaxation has found the rest length, from 2 % away.
    assert result["Al", "volume_per_atom"] == pytest.approx(REST**3 / np.sqrt(2), rel=1e-3)
    assert result["Al", "omega_max"] == pytest.approx(expected, rel=2e-3)
    assert result["Al", "omega_min"] == pytest.approx(0, abs=1e-3)
    assert 0.5 * expected < result["Al", "omega_mean"] < expected


@pytest.mark.slow
def test_bands_and_dos_of_springs():
    """At X of the fcc crystal the transverse modes have half of the longitudinal one's square, at L a quarter."""
    case = own_case("Al", bulk("Al", "fcc", a=4.05), 4, reference=springs())
    protocol = phonons.Protocol(bands=(("Al", "GX,GL"),), band_points=21, dos_mesh_a=50.0)
    result = phonons.run(springs(), [case], protocol)
    bands = result[result["property"] == "band"]
    assert set(bands["label"]) == {"", "G", "X", "L"}
    assert len(bands) == 21 * 3
    for label, ratio in {"X": 0.5, "L": 0.25}.items():
        at = np.sort(bands[bands["label"] == label]["value"])
        assert (at[:2] / at[2]) ** 2 == pytest.approx(ratio, rel=5e-3)
    along = bands.drop_duplicates("q")["distance"].to_numpy()
    # Γ–X of an fcc lattice is 2π/a, Γ–L √3 π/a, and the path jumps back to Γ without a distance.
    assert along[-1] == pytest.approx((2 + np.sqrt(3)) * np.pi / 4.05, rel=1e-6)
    assert (np.diff(along) >= 0).all()
    dos = result[result["property"] == "dos"]
    for column in ("value", "reference"):
        assert np.trapezoid(dos[column], dos["frequency_thz"]) == pytest.approx(3, rel=0.03)


def test_scaling_the_energy_scales_frequencies_by_the_root():
    case = own_case("CuAu", bulk("CuAu", "cesiumchloride", a=3.1), reference=emt())
    plain, scaled = (phonons.run(potential, [case], phonons.Protocol()) for potential in (emt(), emt().scaled(1.44)))
    ratio = scalars(scaled) / scalars(plain)
    assert ratio["CuAu", "omega_max"] == pytest.approx(1.2, rel=1e-3)
    # The three translations are zero but for rounding, whose sign decides whether they count as real: 3 of the 3072 modes of the mesh.
    assert ratio["CuAu", "omega_mean"] == pytest.approx(1.2, rel=1e-3 + 3 / 3072)
    assert ratio["CuAu", "volume_per_atom"] == pytest.approx(1, rel=1e-4)


def test_one_displacement_mends_a_model_that_is_soft_by_a_factor():
    case = own_case("CuAu", bulk("CuAu", "cesiumchloride", a=3.1), reference=emt().scaled(1.3))
    result = phonons.run(emt(), [case], STATIC)
    slopes = result[result["property"] == "displacement_slope"]
    assert len(slopes) == 2
    np.testing.assert_allclose(slopes["value"], 1 / 1.3, rtol=1e-6)
    mended = phonons.one_displacement_corrections(result)
    np.testing.assert_allclose(mended["c"], 1.3, rtol=1e-6)
    np.testing.assert_allclose(mended["needed"], 1.3, rtol=1e-6)
    np.testing.assert_allclose(mended["error_after"], 0, atol=1e-6)
    assert (mended["error_before"] < -0.1).all()


def test_a_potential_agrees_with_itself_at_an_unrelaxed_cell():
    """The cell has residual forces, which must not count: neither in slopes nor in frequencies."""
    case = own_case("CuAu2", layered(z=0.345), 2, BODY_CENTRED, reference=emt())
    residual = np.abs(emt().evaluate([case.structures["unit_cell"]])[0].forces).max()
    assert residual > 0.1
    result = phonons.run(emt(), [case], STATIC)
    slopes = result[result["property"] == "displacement_slope"]
    assert slopes["residual_removed"].all()
    np.testing.assert_allclose(slopes["value"], 1, atol=0.03)
    pd.testing.assert_series_equal(scalars(result), scalars(result, "reference"), check_names=False, rtol=2e-3, atol=2e-2)


# -- cells and symmetry ----------------------------------------------------------------------------


def test_unit_cell_follows_its_primitive_cell():
    unit_cell = layered()
    made = phonons.dynamics(phonons.to_phonopy(unit_cell), 2 * np.eye(3), BODY_CENTRED)
    primitive = phonons.to_ase(made.primitive)
    stretch = np.diag([1.02, 1.02, 0.97])
    wanted = layered(z=0.33, a=2.9 * 1.02, c=9.0 * 0.97)

    relaxed = primitive.copy()
    moved = relaxed.positions @ stretch
    gold = relaxed.symbols == "Au"
    # The two gold atoms lie at ±z: they move by the change of z, in opposite directions.
    up = np.isclose((relaxed.get_scaled_positions() @ relaxed.cell.array / 9.0)[:, 2] % 1, 0.335)
    moved[gold & up, 2] -= 0.005 * 9.0 * 0.97
    moved[gold & ~up, 2] += 0.005 * 9.0 * 0.97
    relaxed.set_cell(relaxed.cell.array @ stretch)
    relaxed.positions = moved
    relaxed.rotate(35, (1, 2, 3), rotate_cell=True)

    result = phonons.carried_over(made, relaxed)
    np.testing.assert_allclose(result.cell.array, wanted.cell.array, atol=1e-9)
    apart = result.get_scaled_positions() - wanted.get_scaled_positions()
    np.testing.assert_allclose(apart - np.rint(apart), 0, atol=1e-9)
    assert (result.numbers == unit_cell.numbers).all()


def test_relaxation_keeps_the_symmetry_and_finds_the_minimum():
    start = layered()
    relaxed = phonons.relax(emt(), start, phonons.Protocol(max_steps=200))
    assert check_symmetry(relaxed, 1e-5).number == check_symmetry(start, 1e-5).number == 139
    result = emt().evaluate([relaxed], stress=True)[0]
    assert np.abs(result.forces).max() < 1e-3
    assert np.abs(result.stress).max() * relaxed.get_volume() / len(relaxed) < 1.1e-3
    assert result.energy < emt().evaluate([start])[0].energy - 0.1


@pytest.mark.slow
def test_primitive_and_conventional_cell_give_the_same_phonons():
    conventional = own_case("conventional", bulk("Cu", cubic=True), 2, np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]))
    primitive = own_case("primitive", bulk("Cu"), 4)
    result = scalars(phonons.run(emt(), [conventional, primitive], phonons.Protocol()))
    # Supercells of other shapes: equal at Γ, and at the zone boundary that both hold.
    volume, top = (result.xs(name, level="property") for name in ("volume_per_atom", "omega_max"))
    assert np.ptp(volume) < 1e-4
    assert np.ptp(top) < 0.01 * top.max()


def test_sampling_holds_gamma_the_zone_boundary_and_the_whole_mesh():
    case = own_case("Cu", bulk("Cu"), reference=emt())
    (found,) = phonons.phonons(emt(), [case], STATIC)
    qpoints, weights = phonons.sampling(found.reference, STATIC)
    assert weights.sum() == STATIC.mesh**3
    for wanted in ([0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0], [0.5, 0.5, 0.5], [-0.5, 0.5, 0.5]):
        # A point or its opposite, which has the same frequencies.
        assert min(np.abs(qpoints - wanted).max(axis=1).min(), np.abs(qpoints + wanted).max(axis=1).min()) < 1e-9, wanted
    on_lines = qpoints[weights == 0]
    # 13 lines: no two the same, nor opposite.
    ends = {tuple(end) for end in np.round(on_lines[phonons.Protocol().line_points - 1 :: STATIC.line_points], 6)}
    assert len(ends) == 13
    assert not {tuple(-np.array(end)) for end in ends} & ends


# -- residual forces -------------------------------------------------------------------------------


def test_residual_comes_from_opposite_displacements():
    rng = np.random.default_rng(0)
    residual = rng.normal(size=(5, 3))
    effects = rng.normal(size=(2, 5, 3))
    displacements = [(0, np.array([0.01, 0, 0])), (0, np.array([-0.01, 0, 0])), (3, np.array([0, 0.01, 0]))]
    forces = residual + np.array([effects[0], -effects[0], effects[1]])
    left, removed = phonons.without_residual(displacements, forces)
    assert removed
    np.testing.assert_allclose(left, [effects[0], -effects[0], effects[1]], atol=1e-12)


def test_without_opposite_displacements_nothing_is_removed():
    forces = np.ones((2, 4, 3))
    # The same direction for two atoms is no pair.
    left, removed = phonons.without_residual([(0, np.array([0.01, 0, 0])), (1, np.array([-0.01, 0, 0]))], forces)
    assert not removed
    np.testing.assert_array_equal(left, forces)


# -- cases -----------------------------------------------------------------------------------------


def test_module_has_the_common_names():
    assert phonons.SETS[phonons.LIVE] == ()
    assert list(phonons.SETS) == ["phonondb", "csf", "phonondb-pbe", "prototypes"]
    known = {file.key for file in registry.files("phonons")}
    assert {key for keys in phonons.SETS.values() for key in keys} <= known
    assert len(phonons.SETS["phonondb"]) == 229
    assert len(phonons.SETS["csf"]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DIM = 2 3 4\n", np.diag([2, 3, 4])),
        ("PRIMITIVE_AXIS = 0 1/2 1/2 1/2 0 1/2 1/2 1/2 0\nDIM = -1 1 1 1 -1 1 1 1 -1", [[-1, 1, 1], [1, -1, 1], [1, 1, -1]]),
    ],
)
def test_supercell_matrix(text, expected):
    np.testing.assert_array_equal(phonons.supercell_matrix(text, "here"), expected)


@pytest.mark.parametrize(("text", "number"), [("DIM = 2 2\n", 2), ("MESH = 8 8 8\n", 0)])
def test_supercell_matrix_that_is_none_is_refused(text, number):
    with pytest.raises(ValueError, match=f"here: DIM needs 3 or 9 numbers, not {number}"):
        phonons.supercell_matrix(text, "here")


def test_unknown_set_is_named():
    with pytest.raises(KeyError, match="nonsense"):
        phonons.cases(sets=["nonsense"])


def test_prototypes_need_no_file(monkeypatch, tmp_path):
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv(registry.OFFLINE_VARIABLE, "1")
    found = {case.material: case for case in phonons.cases(phonons.Protocol(displacement_a=0.02), [phonons.LIVE])}
    assert list(found) == ["MgO", "NaCl", "CsCl", "Si", "Al"]
    # One displacement for each kind of atom: the symmetry gives the rest.
    assert {name: case.info["n_displacements"] for name, case in found.items()} == {"MgO": 2, "NaCl": 2, "CsCl": 2, "Si": 1, "Al": 1}
    ((_, vector),) = phonons.prepared(found["Al"]).displacements
    assert np.linalg.norm(vector) == pytest.approx(0.02)
    with pytest.raises(registry.RegistryError, match="is not on this machine"):
        phonons.cases(sets=["csf"])


@needs_mirror
def test_dft_frequencies_are_those_of_the_authors():
    """Of a rocksalt crystal, of one with a body-centred and one with a low-symmetry primitive cell, and of one with imaginary modes."""
    published = phonons.authors(results.read("phonons", "chgnet-0.3.0")).set_index("material")["reference"]
    assert len(published) == published.notna().sum() == 229
    for material in ("mp-1265", "mp-1105", "mp-2763", "mp-12637", "mp-661"):
        item = phonons.prepared(phonons.compound(material))
        qpoints, weights = phonons.sampling(item.reference, STATIC)
        figures = phonons.numbers_of(phonons.frequencies(item.reference, qpoints), qpoints, weights)
        assert figures["omega_max"] == pytest.approx(published[material], rel=1e-3), material
        assert (figures["omega_min"] > -0.1) == (material != "mp-12637")


@needs_mirror
def test_csf():
    (case,) = phonons.cases(sets=["csf"])
    assert case.info == {
        "formula": "CsF",
        "functional": "PBEsol",
        "magnetic": False,
        "n_atoms": 8,
        "n_displacements": 2,
        "supercell_atoms": 64,
    }
    item = phonons.prepared(case)
    qpoints, _ = phonons.sampling(item.reference, STATIC)
    assert phonons.frequencies(item.reference, qpoints).max() == pytest.approx(6.652, abs=1e-3)
    # The displaced atom is pulled back.
    for (atom, vector), forces in zip(item.displacements, case.reference["forces"], strict=True):
        assert np.linalg.norm(vector) == pytest.approx(0.01)
        assert forces[atom] @ vector < 0


@pytest.mark.slow
@needs_mirror
def test_all_of_phonondb_is_there():
    found = phonons.cases(sets=["phonondb"])
    assert sum(case.info["magnetic"] for case in found) == 39
    assert {case.material for case in found} == set(phonons.authors(results.read("phonons", "chgnet-0.3.0"))["material"])
    for case in found:
        assert case.reference["forces"].shape == (case.info["n_displacements"], case.info["supercell_atoms"], 3)
        volume = case.structures["displaced 1"].get_volume() / case.structures["unit_cell"].get_volume()
        assert volume == pytest.approx(np.linalg.det(case.reference["supercell_matrix"]))


@needs_mirror
def test_pbe_frequencies_belong_to_their_structures(monkeypatch):
    """At Γ the PBE and PBEsol frequencies of one crystal differ by per cents, those of two crystals by far more."""
    read = phonons.ase.io.read
    wanted = ("mp-1265", "mp-661")
    monkeypatch.setattr(phonons.ase.io, "read", lambda *args: [atoms for atoms in read(*args) if atoms.info["mp_id"] in wanted])
    found = phonons.cases(sets=["phonondb-pbe"])
    assert {case.material: case.info["supercell_atoms"] for case in found} == {"mp-1265": 512, "mp-661": 300}
    for case in found:
        given = case.reference
        assert given["weights"].sum() == {"mp-1265": 19**3, "mp-661": 19 * 19 * 15}[case.material]
        assert given["frequencies"].shape == (
            len(given["qpoints"]),
            3 * len(case.structures["unit_cell"]) // (4 if len(case.structures["unit_cell"]) == 8 else 1),
        )
        item = phonons.prepared(phonons.compound(case.material))
        pbesol = phonons.frequencies(item.reference, np.zeros((1, 3))).max()
        assert given["frequencies"][0].max() == pytest.approx(pbesol, rel=0.06)


# -- run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_metals() -> pd.DataFrame:
    stiff = emt().scaled(1.21)
    chosen = [own_case(name, bulk(name), 3, reference=stiff) for name in ("Cu", "Au")]
    return phonons.run(emt(), chosen, STATIC)


def test_table(two_metals):
    assert list(two_metals.columns[: len(benchmarks.COLUMNS)]) == benchmarks.COLUMNS
    assert (two_metals["status"] == "ok").all()
    assert set(two_metals["property"]) == {
        "omega_max",
        "omega_mean",
        "omega_min",
        "omega_gamma",
        "volume_per_atom",
        "displacement_slope",
    }
    assert set(phonons.TOLERANCES) >= set(two_metals["property"])
    assert two_metals["dft_stable"].eq(True).all()
    assert (two_metals["seconds"] > 0).all()
    assert two_metals[two_metals["property"] == "displacement_slope"][["displacement", "element"]].to_numpy().tolist() == [
        [1, "Cu"],
        [1, "Au"],
    ]


def test_all_supercells_are_evaluated_in_one_call():
    calls = []

    class Counting(ASEPotential):
        def evaluate(self, structures, **options):
            calls.append([len(atoms) for atoms in structures])
            return super().evaluate(structures, **options)

    phonons.run(Counting("emt", EMT()), [own_case(name, bulk(name)) for name in ("Cu", "Ag")], STATIC)
    assert calls == [[8, 8, 8, 8]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FixSymmetry adjust_cell")
def test_failures_are_rows_with_reasons_and_do_not_disturb_others():
    good = own_case("good", bulk("Cu"), reference=emt())
    iron = own_case("iron", bulk("Fe"))
    twice = own_case("twice", bulk("Cu"), reference=emt())
    twice.structures["displaced 1"].positions[3] += 0.02
    other = own_case("other", bulk("Cu"))
    other.structures["displaced 1"].symbols[0] = "Au"
    nothing = dataclasses.replace(good, name="nothing", structures={"unit_cell": good.structures["unit_cell"]})
    short = own_case("short", bulk("Cu"), reference=emt())
    short.reference["forces"] = short.reference["forces"][:, :5]
    wild = own_case("wild", bulk("Cu", a=4.6), reference=emt())
    result = phonons.run(emt(), [iron, twice, other, nothing, short, wild, good], phonons.Protocol(max_steps=3))
    rows = result[result["property"] == "omega_max"].set_index("case")
    assert "not trained on: Fe" in rows.loc["iron", "reason"]
    assert rows.loc["twice", "reason"] == "displaced 1 has 2 displaced atoms, not one"
    assert "has not the atoms" in rows.loc["other", "reason"]
    assert rows.loc["nothing", "reason"] == "there are no displaced supercells"
    assert rows.loc["short", "reason"] == "reference forces have the shape (1, 5, 3), not (1, 8, 3)"
    assert "not converged in 3 steps" in rows.loc["wild", "reason"]
    # The reference stays: a failure is counted in its subset.
    assert np.isfinite(rows.loc["wild", "reference"])
    bad = rows.drop(index="good")
    assert (bad["status"] == "failed").all()
    assert bad["value"].isna().all()
    alone = phonons.run(emt(), [good], phonons.Protocol(max_steps=3))
    assert rows.loc["good", "status"] == "ok"
    assert rows.loc["good", "value"] == pytest.approx(alone["value"].iloc[0], rel=1e-9)


def test_case_without_its_matrices_is_refused():
    case = own_case("Cu", bulk("Cu"))
    del case.reference["primitive_matrix"]
    with pytest.raises(ValueError, match="primitive_matrix"):
        phonons.run(emt(), [case], STATIC)


def test_frequencies_instead_of_forces():
    """A case with DFT frequencies is compared on their own q-points."""
    plain = own_case("Cu", bulk("Cu"), 3)
    (found,) = phonons.phonons(emt(), [plain], STATIC)
    qpoints = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    given = {"qpoints": qpoints, "weights": np.array([1.0, 3.0]), "frequencies": 1.1 * phonons.frequencies(found.model, qpoints)}
    case = dataclasses.replace(plain, reference=plain.reference | given)
    result = phonons.run(emt(), [case], STATIC)
    ratio = (scalars(result) / scalars(result, "reference"))["Cu"]
    assert ratio["omega_max"] == pytest.approx(1 / 1.1)
    assert ratio["omega_mean"] == pytest.approx(1 / 1.1)
    assert "displacement_slope" not in set(result["property"])


# -- animation -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_softest_optical_mode_at_gamma_moves_the_sublattices_apart():
    case = own_case("CuAu", bulk("CuAu", "cesiumchloride", a=3.1), 3)
    frames = phonons.softest_mode(emt(), case, phonons.Protocol(), amplitude_a=0.3, n_frames=8)
    assert len(frames) == 8
    still = sum(frame.positions for frame in frames) / 8
    moved = frames[0].positions - still
    copper, gold = (moved[frames[0].symbols == symbol] for symbol in ("Cu", "Au"))
    assert np.ptp(copper, axis=0).max() < 1e-6
    assert np.linalg.norm(copper[0]) == pytest.approx(0.3, rel=1e-6)
    masses = dict(zip(("Cu", "Au"), phonons.to_phonopy(bulk("CuAu", "cesiumchloride", a=3.1)).masses, strict=True))
    np.testing.assert_allclose(gold[0], -masses["Cu"] / masses["Au"] * copper[0], atol=1e-6)
    gamma = scalars(phonons.run(emt(), [case], phonons.Protocol()))["CuAu", "omega_gamma"]
    assert frames[0].info["frequency_thz"] == pytest.approx(gamma, rel=1e-6)


def test_softest_mode_at_the_zone_boundary_has_the_period_of_two_cells():
    frames = phonons.softest_mode(emt(), own_case("Cu", bulk("Cu"), 2), STATIC, q=(0.5, 0.5, 0.5), n_frames=4)
    moved = frames[0].positions - sum(frame.positions for frame in frames) / 4
    origin, neighbour = moved[0], moved[1]
    np.testing.assert_allclose(neighbour, -origin, atol=1e-6)
    with pytest.raises(ValueError, match="no optical mode"):
        phonons.softest_mode(emt(), own_case("Cu", bulk("Cu"), 2), STATIC)


# -- summary ---------------------------------------------------------------------------------------


def line(material: str, value: float, reference: float, **columns) -> dict:
    return {
        "model": "m",
        "set": "phonondb",
        "material": material,
        "formula": material,
        "case": f"phonondb/{material}",
        "property": "omega_max",
        "value": value,
        "reference": reference,
        "unit": "THz",
        "status": "ok" if np.isfinite(value) else "failed",
        "reason": "",
        "magnetic": False,
        "dft_stable": True,
        **columns,
    }


def test_summary_by_hand():
    table = pd.DataFrame(
        [
            line("A", 9.0, 10.0),
            line("B", 8.0, 10.0, magnetic=True),
            line("C", 11.0, 10.0, dft_stable=False),
            line("D", np.nan, 10.0),
            line("Z", 5.0, np.nan, set="prototypes", dft_stable=None),
            line("A", 4.0, 5.0, property="omega_mean"),
            line("A", -0.2, -0.1, property="omega_min"),
        ]
    )
    summary = phonons.summarise(table).set_index(["set", "property", "subset"])
    top = summary.loc[("phonondb", "omega_max")]
    assert top.loc["all", ["n", "n_failed"]].tolist() == [3, 1]
    assert top.loc["all", "ratio_mean"] == pytest.approx(28 / 30)
    assert top.loc["all", "ratio_median"] == pytest.approx(0.9)
    assert top.loc["all", "share_below_one"] == pytest.approx(2 / 3)
    assert top.loc["dft_stable", "ratio_mean"] == pytest.approx(0.85)
    assert top.loc["dft_stable", "n_failed"] == 1
    assert top.loc["non_magnetic", "ratio_mean"] == pytest.approx(1.0)
    assert top.loc["all", "ratio_mean_low"] < 28 / 30 < top.loc["all", "ratio_mean_high"]
    mean = summary.loc[("phonondb", "omega_mean", "all")]
    assert mean["ratio_mean"] == pytest.approx(0.8)
    assert np.isnan(mean["ratio_mean_low"])
    assert set(summary.index.get_level_values("set")) == {"phonondb"}
    assert "omega_min" not in set(summary.index.get_level_values("property"))


def test_summary_of_failures_only():
    assert phonons.summarise(pd.DataFrame([line("A", np.nan, 10.0)])).empty


def test_summary_without_any_reference():
    assert phonons.summarise(phonons.run(emt(), [own_case("Cu", bulk("Cu"))], STATIC)).empty


def test_summary_of_a_run(two_metals):
    summary = phonons.summarise(two_metals)
    chosen = summary[(summary["property"] == "omega_max") & (summary["subset"] == "all")].iloc[0]

    assert chosen["ratio_mean"] == pytest.approx(1 / 1.1, rel=1e-6)
    assert chosen["share_below_one"] == 1.0


def test_a_slope_that_is_not_positive_mends_nothing():
    slope = {"property": "displacement_slope", "element": "X", "unit": ""}
    table = pd.DataFrame(
        [line("A", 9.0, 10.0), line("A", 0.81, 1.0, displacement=1, **slope), line("A", -0.1, 1.0, displacement=2, **slope)]
    )
    result = phonons.one_displacement_corrections(table).set_index("displacement")
    assert result.loc[1, "after"] == pytest.approx(10.0)
    assert result.loc[1, "error_before"] == pytest.approx(-1.0)
    assert result.loc[1, "error_after"] == pytest.approx(0.0, abs=1e-12)
    assert result.loc[1, "needed"] == pytest.approx(1 / 0.81)
    assert result.loc[2, "status"] == "failed"
    assert np.isnan(result.loc[2, "after"])


def test_functional_and_model_multiply():
    rows = []
    for name, gamma, top, model_gamma, model_top in [("phonondb", 10.0, 12.0, 8.0, 9.0), ("phonondb-pbe", 9.0, 11.5, 8.0, 9.2)]:
        rows.append(line("mp-1", model_gamma, gamma, set=name, property="omega_gamma"))
        rows.append(line("mp-1", model_top, top, set=name))
    rows.append(line("mp-2", 3.0, 4.0, property="omega_gamma"))
    result = phonons.functionals(pd.DataFrame(rows))
    assert result["material"].tolist() == ["mp-1"]
    one = result.iloc[0]
    assert one["pbe_over_pbesol"] == pytest.approx(0.9)
    assert one["model_over_pbesol"] == pytest.approx(one["model_over_pbe"] * one["pbe_over_pbesol"])
    assert one["max_over_pbesol"] == pytest.approx(0.75)
    assert one["max_over_pbe"] == pytest.approx(0.8)
    assert phonons.functionals(pd.DataFrame(rows[:2])).empty


# -- at the cell of the reference, and one displacement ----------------------------------------------


def test_small_crystals_are_computed_at_the_cell_of_the_reference_as_well():
    """A crystal given larger than the model wants it is softer there, and what is tabulated is what a run without relaxation gives."""
    case = own_case("Cu", bulk("Cu", a=3.7), 2, reference=emt())
    both = phonons.run(emt(), [case], phonons.Protocol(static_atoms=8))
    static = scalars(phonons.run(emt(), [case], STATIC))
    found = scalars(both)
    assert found["Cu", "omega_max_static"] == pytest.approx(static["Cu", "omega_max"], rel=1e-9)
    assert found["Cu", "omega_mean_static"] == pytest.approx(static["Cu", "omega_mean"], rel=1e-9)
    assert found["Cu", "omega_max"] > 1.05 * found["Cu", "omega_max_static"]
    (row,) = phonons.relaxation(both).itertuples()
    assert row.static == pytest.approx(1, rel=1e-6)
    assert row.relaxed > 1.05
    assert row.volume < 0.99
    without = phonons.run(emt(), [case], phonons.Protocol(static_atoms=7))
    assert not without["property"].str.endswith("_static").any()


def test_a_crystal_of_ones_own():
    case = phonons.own(bulk("NaCl", "rocksalt", a=5.6), (2, 2, 3))
    assert case.name == "own/NaCl"
    assert case.info["supercell_atoms"] == 24
    assert case.info["n_displacements"] == 2
    with pytest.raises(KeyError, match="mp-0 is not among them"):
        phonons.compound("mp-0")


def own_scalars(potential: ASEPotential, crystal) -> pd.Series:
    return scalars(phonons.run(potential, [phonons.own(crystal, 2)], phonons.Protocol())).droplevel("case")


@pytest.mark.slow
@pytest.mark.parametrize("crystal", [bulk("Cu"), bulk("Au", cubic=True), bulk("Cu", "hcp", a=2.55, c=4.2)], ids=["fcc", "cubic", "hcp"])
def test_a_left_handed_cell_has_the_phonons_of_a_right_handed_one(crystal):
    left = crystal.copy()
    left.set_cell(left.cell.array[[1, 0, 2]])
    assert np.linalg.det(left.cell.array) < 0
    right, mirrored = (own_scalars(emt(), each) for each in (crystal, left))
    for name, value in right.items():
        assert mirrored[name] == pytest.approx(value, abs=phonons.TOLERANCES[name])
    assert mirrored["volume_per_atom"] == pytest.approx(right["volume_per_atom"], rel=1e-6)
    assert mirrored["volume_per_atom"] > 0


@pytest.mark.slow
def test_a_crystal_of_ones_own_comes_in_any_form():
    """As pymatgen's Structure, or with constraints, which must change nothing."""
    crystal = bulk("Cu")
    held = crystal.copy()
    held.set_constraint(FixAtoms([0]))
    forms = (crystal, held, AseAtomsAdaptor.get_structure(crystal), [crystal])
    plain, *others = (own_scalars(emt(), form) for form in forms)
    assert plain["omega_max"] > 5
    for other in others:
        assert other["omega_max"] == pytest.approx(plain["omega_max"], abs=1e-6)
    assert phonons.relax(emt(), held, phonons.Protocol()).get_volume() == pytest.approx(plain["volume_per_atom"], rel=1e-3)


@pytest.mark.parametrize(
    ("crystal", "repeats", "error", "message"),
    [
        ("POSCAR", 2, TypeError, "str 'POSCAR' is no structure"),
        ([bulk("Cu"), bulk("Cu")], 2, ValueError, "one crystal is wanted, not 2"),
        ([], 2, ValueError, "one crystal is wanted, not 0"),
        (bulk("Cu") + bulk("Cu"), 2, ValueError, r"atoms 0 and 1 lie in one place \(0 Å apart\)"),
        (molecule("H2O"), 2, ValueError, "not periodic in all three directions"),
        (ase.Atoms("Cu", positions=[[np.nan, 0, 0]], cell=np.eye(3) * 3, pbc=True), 2, ValueError, "position of atom 0 is not a number"),
        *((bulk("Cu"), repeats, ValueError, "are no numbers of cells") for repeats in (0, -1, 2.5, (2, 2), "2", [[2] * 3] * 3, None)),
    ],
)
def test_what_is_no_crystal_is_refused_in_a_line(crystal, repeats, error, message):
    with pytest.raises(error, match=message) as raised:
        phonons.own(crystal, repeats)
    assert "\n" not in str(raised.value)


class Magnet(EMT):
    """Stronger where there are moments; it fails without them."""

    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        strength = np.abs(atoms.get_initial_magnetic_moments()).mean()
        assert strength > 0
        self.results = {name: strength * np.asarray(value) for name, value in self.results.items()}


def test_magnetic_moments_travel_into_the_supercells():
    crystal = bulk("Cu")
    plain = own_scalars(emt(), crystal)
    crystal.set_initial_magnetic_moments([4.0])
    magnetic = own_scalars(ASEPotential("magnet", Magnet()), crystal)
    assert magnetic["omega_max"] == pytest.approx(2 * plain["omega_max"], rel=1e-4)


def test_a_relaxation_that_rattles_is_accepted_below_its_limit():
    start = layered()
    loose = dataclasses.replace(phonons.Protocol(), fmax_ev_per_a=1e-12, max_steps=60)
    assert len(phonons.relax(emt(), start, loose)) == len(start)
    with pytest.raises(ValueError, match="not converged in 1 steps"):
        phonons.relax(emt(), start, dataclasses.replace(loose, max_steps=1))


def test_a_relaxation_that_fails_begins_again_with_shorter_steps(monkeypatch):
    start, protocol, begun = layered(), phonons.Protocol(), []
    expected = phonons.relax(emt(), start, protocol)
    descend = symmetric.descend

    def first_without_success(free, curvature, *thresholds):
        begun.append(curvature)
        return descend(free, curvature, *thresholds) if len(begun) > 1 else np.inf

    monkeypatch.setattr(symmetric, "descend", first_without_success)
    found = phonons.relax(emt(), start, protocol)
    assert len(begun) == 2
    assert begun[0] < begun[1]
    np.testing.assert_allclose(found.cell.array, expected.cell.array, atol=1e-2)


def test_effect_of_one_displacement_by_hand():
    """Two choices for A, one of which is right; one for B, which overshoots."""
    slope = {"property": "displacement_slope", "element": "X", "unit": ""}
    rows = [line("A", 9.0, 10.0), line("A", 0.81, 1.0, displacement=1, **slope), line("A", 1.0, 1.0, displacement=2, **slope)]
    rows += [line("B", 9.0, 10.0), line("B", 0.25, 1.0, displacement=1, **slope)]
    effect = phonons.effect_of_one_displacement(phonons.one_displacement_corrections(pd.DataFrame(rows))).set_index("material")
    assert effect.loc["A", ["labels", "before", "after"]].tolist() == pytest.approx([2, 0.9, 0.95])
    assert effect.loc["A", ["mae_before", "mae_after", "helps"]].tolist() == pytest.approx([1.0, 0.5, 0.5])
    assert effect.loc["B", ["after", "mae_after", "helps"]].tolist() == pytest.approx([1.8, 8.0, 0.0])
    summary = phonons.summarise_corrections(effect.reset_index()).loc["m"]
    assert summary[["n", "labels", "helps", "mae_after"]].tolist() == pytest.approx([2, 3, 0.25, 4.25])
    assert summary["spread_before"] == pytest.approx(0)
    assert summary["spread_after"] == pytest.approx(0.425)


def test_both_slopes_by_hand():
    table = pd.DataFrame([line("A", 1.0, 2.0), line("B", 4.0, 4.0), line("C", np.nan, 3.0)])
    slopes = phonons.both_slopes(table).loc["m"]
    assert slopes["slope"] == pytest.approx(18 / 20)
    assert slopes["inverse_slope"] == pytest.approx(18 / 17)
    assert slopes["n"] == 2


# -- thermal conductivity ---------------------------------------------------------------------------


def test_published_conductivities_stand_beside_the_frequencies_of_the_same_crystals():
    found = phonons.conductivities(results.read("phonons", ["chgnet-0.3.0", "sevennet-0"]))
    assert set(found.groupby("model").size()) == {103}
    mgo = found[(found["model"] == "chgnet-0.3.0") & (found["material"] == "mp-1265")].iloc[0]
    assert (mgo["kappa"], mgo["kappa_dft"]) == (22.2164, 47.5887)
    assert mgo["kappa_ratio"] == pytest.approx(22.2164 / 47.5887)
    rows = results.read("phonons", "chgnet-0.3.0").query("set == 'phonondb-pbe' and material == 'mp-1265'").set_index("property")
    assert mgo["omega_max"] == rows.loc["omega_max", "value"] / rows.loc["omega_max", "reference"]
    successor = found[found["model"] == "MACE-MP-0b medium"]
    assert successor["omega_max"].mean() == pytest.approx(0.91, abs=0.005)
    assert successor["omega_mean"].isna().all()
    assert found.loc[found["model"] == "m3gnet-mp-2021.2.8", "omega_max"].isna().all(), "its table was not given"
    with pytest.raises(ValueError, match="no frequencies of phonondb-pbe"):
        phonons.conductivities(results.read("phonons", "chgnet-0.3.0").query("set == 'csf'"))


@pytest.mark.parametrize(("power", "share"), [(3.0, 1.0), (6.0, 0.5), (2.0, 1.5)])
def test_softness_is_all_of_an_error_that_is_the_third_power(power, share):
    ratio = np.array([0.7, 0.8, 0.9, 0.95])
    table = pd.DataFrame({"model": "m", "kappa_ratio": ratio**power, "omega_max": ratio, "omega_mean": np.nan})
    failed = pd.DataFrame({"model": "m", "kappa_ratio": [np.nan], "omega_max": [0.1], "omega_mean": [np.nan]})
    found = phonons.heat_from_softness(pd.concat([table, failed])).loc["m"]
    assert (found["n"], found["n_failed"]) == (4, 1)
    assert [found[f"share_max{end}"] for end in ("", "_low", "_high")] == pytest.approx([share] * 3)
    assert found["r_max"] == pytest.approx(1)
    assert found["soft_max"] == pytest.approx(np.median(ratio**3), rel=0.02)
    assert "share_mean" not in found
