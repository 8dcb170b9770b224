"""Migration barriers: paths, reference cases, the way from a potential to a table, and corrections with one label."""

import gzip
import json
import zipfile
from itertools import pairwise

import ase
import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.mep import NEB
from ase.optimize import FIRE
from conftest import emt, needs_mirror
from pymatgen.io.ase import AseAtomsAdaptor

from helpers import benchmarks, engine, registry, structures
from helpers.benchmarks import Case, migration
from helpers.potentials.ase import ASEPotential
from helpers.sources import devi

HCP = bulk("Cu", "hcp", a=2.55)
PROTOCOL = migration.Protocol()


def own_case(name: str, images: list[ase.Atoms], **changes) -> Case:
    """A path, which is the first half of one if there is a host."""
    host = changes.pop("host", None)
    roles = {f"image-{number}": image for number, image in enumerate(images)} | ({"host": host} if host else {})
    info = {"mobile_ion": "Cu", "hop": "", "has_u_metal_with_o_or_f": False, "authors_mace": np.nan}
    return Case(**{"name": name, "set": "hops", "material": "Cu", "structures": roles, "info": info, **changes})


def whole(images: list[ase.Atoms]) -> list[ase.Atoms]:
    """Continue the first half of a path as a straight line."""
    ion = migration.moving_ion(images)
    step = images[1].positions[ion] - images[0].positions[ion]
    found = [images[0].copy() for _ in range(5)]
    for number, image in enumerate(found):
        image.positions[ion] += number * step
    return found


@pytest.fixture(scope="module")
def crystals() -> dict[str, ase.Atoms]:
    """Copper as EMT has it."""
    guesses = {"fcc": bulk("Cu"), "hcp": HCP}
    results = engine.relax(emt(), list(guesses.values()), cell="full", fmax=1e-3, smax=1e-5)
    return dict(zip(guesses, [result.atoms for result in results], strict=True))


@pytest.fixture(scope="module")
def hops() -> dict[str, Case]:
    """The three hops of metals, as first halves."""
    sizes = {"fcc": ("fcc", 32), "in-plane": ("hcp", 36), "out-of-plane": ("hcp", 36)}
    guesses = {"fcc": bulk("Cu"), "hcp": HCP}
    return {
        hop: own_case(hop, migration.vacancy_hop(guesses[structure], structure, hop, n_sites), host=guesses[structure], set="elements")
        for hop, (structure, n_sites) in sizes.items()
    }


@pytest.fixture(scope="module")
def metals(hops) -> pd.DataFrame:
    return migration.run(emt(), list(hops.values()), PROTOCOL)


def values(table: pd.DataFrame, quantity: str) -> pd.Series:
    return table[table["property"] == quantity].set_index("case")["value"]


# -- paths -----------------------------------------------------------------------------------------


def test_barrier_by_hand():
    assert migration.barrier([0.0, 0.3, 0.7, 0.2, 0.1]) == pytest.approx(0.7)
    assert migration.barrier([0.1, 0.3, 0.7, 0.2, 0.0]) == pytest.approx(0.7)
    assert migration.barrier([0.1, 0.05, -0.2, 0.0]) == pytest.approx(0.1)


def test_the_way_goes_across_the_edge_of_the_cell():
    images = [ase.Atoms("CuAu", [[x, 0, 0], [5, 5, 5]], cell=[10, 10, 10], pbc=True) for x in (8.0, 9.5, 1.0, 1.5)]
    assert migration.way(images, 0) == pytest.approx([0, 1.5, 3.0, 3.5])
    assert migration.moving_ion(images) == 0


def test_furthest_atom_counts_periodic_images():
    atoms = ase.Atoms("Cu4", [[0.5, 0, 0], [9.5, 0, 0], [4.0, 0, 0], [6.0, 0, 0]], cell=[10, 4, 4], pbc=True)
    assert migration.furthest_atom(atoms, 0) == 3
    assert migration.furthest_atom(atoms, 1) == 2


@pytest.mark.parametrize("hop", ["fcc", "in-plane", "out-of-plane"])
def test_a_hop_goes_from_site_to_vacant_site(hops, hop):
    case = hops[hop]
    images = [case.structures[f"image-{number}"] for number in range(3)]
    ion = migration.moving_ion(images)
    end = 2 * images[2].positions[ion] - images[0].positions[ion]
    filled = images[0] + ase.Atoms("Cu", [end])
    crystal = bulk("Cu") if hop == "fcc" else HCP
    distances = np.sort(filled.get_all_distances(mic=True), axis=1)[:, 1:13]
    nearest = 2.5526 if hop == "fcc" else 2.55
    assert distances.min() == pytest.approx(nearest, abs=1e-3)
    assert np.allclose(distances, distances[0], atol=0.01), "the vacancy filled, every atom has the twelve neighbours of the crystal"
    assert len(filled) % len(crystal) == 0
    assert migration.way(images, ion)[-1] == pytest.approx(filled.get_distance(ion, -1, mic=True) / 2)


def test_half_way_the_surroundings_are_symmetric(hops):
    """At ½ of a hop in fcc, or out of the plane in hcp, inversion pairs the neighbours."""
    for hop in ("fcc", "out-of-plane"):
        images = [hops[hop].structures[f"image-{number}"] for number in range(3)]
        ion = migration.moving_ion(images)
        distances = np.sort(images[2].get_distances(ion, [i for i in range(len(images[2])) if i != ion], mic=True))
        assert np.allclose(distances[0:12:2], distances[1:12:2], atol=1e-6), hop


# -- cases -----------------------------------------------------------------------------------------


def test_module_has_the_common_names():
    assert migration.LIVE in migration.SETS
    assert migration.SETS[migration.LIVE] == ()
    known = {file.key for file in registry.files()}
    assert {key for keys in migration.SETS.values() for key in keys} <= known


def test_unknown_set_is_named():
    with pytest.raises(KeyError, match="nonsense"):
        migration.cases(sets=["nonsense"])


def test_by_default_all_sets_are_wanted(monkeypatch, tmp_path):
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv(registry.OFFLINE_VARIABLE, "1")
    with pytest.raises(registry.RegistryError, match="is not on this machine"):
        migration.cases()
    assert [case.name for case in migration.cases(sets=[migration.LIVE])] == ["own/Al/fcc", "own/Cu/fcc"]


def test_a_sheet_is_read(tmp_path):
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    shared = f"<sst {space}><si><t>name</t></si><si><r><t>Mg</t></r><r><t>O</t></r></si><si><t>value</t></si></sst>"
    rows = (
        '<row><c r="A1" t="s"><v>0</v></c><c r="C1" t="s"><v>2</v></c></row>'
        '<row><c r="A2" t="s"><v>1</v></c><c r="B2"><v>7</v></c><c r="C2"><v>0.5</v></c></row>'
        '<row><c r="A3"><v>3</v></c><c r="C3"/></row>'
    )
    path = tmp_path / "sheet.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/sharedStrings.xml", shared)
        archive.writestr("xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{rows}</sheetData></worksheet>")
    assert devi.read_sheet(path) == [{"name": "MgO", "value": "0.5"}, {"name": "3"}]


# -- run -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_table_has_the_standard_columns(metals):
    assert list(metals.columns[: len(benchmarks.COLUMNS)]) == benchmarks.COLUMNS
    assert set(metals["property"]) == {"barrier", "image_energy_relaxed"}
    assert (metals["status"] == "ok").all()
    assert metals.groupby("case").size().to_dict() == {"fcc": 4, "in-plane": 4, "out-of-plane": 4}
    images = metals[metals["property"] == "image_energy_relaxed"]
    assert images["path_coordinate"].tolist() == pytest.approx([0, 0.25, 0.5] * 3)
    assert (images.loc[images["image"] == 0, "value"] == 0).all()
    assert (metals.loc[metals["property"] == "barrier", "highest_image"] == 0.5).all()


@pytest.mark.parametrize("hop", ["fcc", "in-plane", "out-of-plane"])
def test_the_constrained_images_find_the_saddle_point_of_neb(metals, crystals, hop):
    structure, n_sites = ("fcc", 32) if hop == "fcc" else ("hcp", 36)
    path = whole(migration.vacancy_hop(crystals[structure], structure, hop, n_sites))
    ends = engine.relax(emt(), [path[0], path[-1]], fmax=0.01)
    # With one image between symmetric end points the saddle point is that image, wherever it moves sideways.
    band = [ends[0].atoms, ends[0].atoms.copy(), ends[1].atoms]
    for image in band:
        image.calc = EMT()
    neb = NEB(band, climb=True, method="improvedtangent")
    neb.interpolate(mic=True)
    assert FIRE(neb, logfile=None).run(fmax=0.02, steps=200)
    expected = band[1].get_potential_energy() - ends[0].energy
    assert values(metals, "barrier")[hop] == pytest.approx(expected, abs=0.015)


@pytest.mark.slow
def test_a_straight_path_is_too_high_where_the_path_bends(metals, crystals):
    """As it does in the basal plane of hcp."""
    path = whole(migration.vacancy_hop(crystals["hcp"], "hcp", "in-plane", 36))
    # A cell turned at random, so that no lattice vector is along x.
    for image in path:
        image.rotate(50, (1, 2, 3), rotate_cell=True)
    table = migration.run(emt(), [own_case("path", path)], PROTOCOL)
    held, bent = (values(table, name)["path"] for name in ("barrier", "barrier_bent"))
    assert held > bent + 0.02
    assert bent == pytest.approx(values(metals, "barrier")["in-plane"], abs=0.015)
    images = table[table["property"] == "image_energy_bent"]
    assert images["path_coordinate"].tolist() == pytest.approx(np.arange(9) / 8)
    # The images between add nothing new to a smooth path with its top half-way.
    assert images["value"].to_numpy()[1:5] == pytest.approx(np.sort(images["value"].to_numpy()[1:5]))
    assert images["value"].to_numpy()[5:] == pytest.approx(images["value"].to_numpy()[3::-1], abs=0.03)
    shift = table[table["property"].isin(["barrier", "barrier_bent"])].set_index("property")["ion_shift_a"]
    assert shift["barrier_bent"] > 0.1 > shift["barrier"]


def test_a_case_without_a_path_is_refused():
    with pytest.raises(ValueError, match="'lonely' has image-0; a path needs image-0, image-1"):
        migration.run(emt(), [own_case("lonely", [bulk("Cu")])], PROTOCOL)


def test_straight_paths_are_relaxed_once_if_that_is_asked_for(hops):
    path = whole([hops["fcc"].structures[f"image-{number}"] for number in range(3)])
    table = migration.run(emt(), [own_case("path", path)], migration.Protocol(bend=False, max_steps=1))
    assert set(table["property"]) == {"barrier", "image_energy_relaxed"}


@pytest.mark.slow
def test_without_a_second_atom_held_the_crystal_slides(crystals):
    """Why ApproxNEB holds two atoms."""
    path = migration.vacancy_hop(crystals["fcc"], "fcc", "fcc", 32)
    ion = migration.moving_ion(path)
    both = np.zeros((31, 3), dtype=bool)
    both[[ion, migration.furthest_atom(path[1], ion)]] = True
    alone = both.copy()
    alone[migration.furthest_atom(path[1], ion)] = False
    start, two, one = engine.relax(emt(), [path[0], path[1], path[1]], fmax=0.01, max_steps=1000, held=[None, both, alone])
    assert two.energy - start.energy > 0.3
    assert one.energy - start.energy < 0.01


def test_static_energies_are_those_of_the_dft_images(hops):
    path = whole([hops["fcc"].structures[f"image-{number}"] for number in range(3)])
    for number, image in enumerate(path):
        image.rattle(0.03, seed=number)
    energies = np.array([image.get_potential_energy() for image in (_with_emt(atoms) for atoms in path)])
    energies -= energies[0]
    case = own_case("dft", path, set="livpo4f", reference={"energies": energies, "barrier": migration.barrier(energies)})
    table = migration.run(emt().scaled(0.7), [case], migration.Protocol(max_steps=1))
    static = table[table["property"].isin(["image_energy_static", "barrier_static"])]
    assert len(static) == 6
    np.testing.assert_allclose(static["value"], 0.7 * static["reference"], atol=1e-9)
    assert "barrier_bent" not in set(table["property"]), "a path from DFT is not a straight line"
    relaxed = table[table["property"] == "image_energy_relaxed"]
    assert relaxed["reference"].tolist() == pytest.approx(energies)


def _with_emt(atoms: ase.Atoms) -> ase.Atoms:
    copy = atoms.copy()
    copy.calc = EMT()
    return copy


def test_vacancy_energy_comes_with_the_first_hop_of_a_metal(hops, crystals):
    case = hops["in-plane"]
    with_energy = own_case(
        "a", migration.vacancy_hop(HCP, "hcp", "in-plane", 36), host=HCP, set="elements", reference={"vacancy_energy": 1.0}
    )
    table = migration.run(emt(), [with_energy, case], PROTOCOL)
    [found] = table[table["property"] == "vacancy_energy"]["value"]
    [vacancy] = engine.relax(emt(), [migration.vacancy_hop(crystals["hcp"], "hcp", "in-plane", 36)[0]], fmax=0.05)
    perfect = _with_emt(crystals["hcp"]).get_potential_energy() / 2
    assert found == pytest.approx(vacancy.energy - 35 * perfect, abs=5e-3)


def test_equal_images_are_relaxed_once_and_together(crystals):
    calls = []

    class Counting(ASEPotential):
        def forward(self, state, **options):
            calls.append(state.n_systems)
            return super().forward(state, **options)

    paths = {hop: migration.vacancy_hop(crystals["hcp"], "hcp", hop, 36) for hop in ("in-plane", "out-of-plane")}
    cases = [own_case(hop, path, host=crystals["hcp"]) for hop, path in paths.items()]
    # With such a threshold everything has converged at the start: one host, then the vacancy of both hops, and two images of each.
    migration.run(Counting("emt", EMT()), cases, migration.Protocol(fmax_ev_per_a=100.0))
    assert calls == [1, 5]


@pytest.mark.slow
def test_failures_are_rows_with_reasons_and_do_not_disturb_others(metals, hops):
    iron = [image.copy() for image in whole([hops["fcc"].structures[f"image-{number}"] for number in range(3)])]
    for image in iron:
        image.symbols[:] = "Fe"
    one_bad = whole([hops["fcc"].structures[f"image-{number}"] for number in range(3)])
    one_bad[2].positions[5] = np.nan
    iron_host = own_case("host", migration.vacancy_hop(bulk("Fe", "fcc", a=3.6), "fcc", "fcc", 32), host=bulk("Fe", "fcc", a=3.6))
    table = migration.run(emt(), [own_case("iron", iron), own_case("one", one_bad), iron_host, hops["fcc"]], PROTOCOL)
    barriers = table[table["property"] == "barrier"].set_index("case")
    assert barriers["status"].to_dict() == {"iron": "failed", "one": "failed", "host": "failed", "fcc": "ok"}
    assert "not trained on: Fe" in barriers.loc["iron", "reason"]
    assert barriers.loc["one", "reason"].startswith("image 2: ")
    assert barriers.loc["host", "reason"].startswith("bulk: ")
    images = table[table["property"] == "image_energy_relaxed"]
    assert images[images["case"] == "one"]["status"].tolist() == ["ok", "ok", "failed", "ok", "ok"]
    assert (images.loc[images["case"] == "iron", "status"] == "failed").all()
    assert table[(table["case"] == "one") & (table["property"] == "barrier_bent")]["status"].tolist() == ["failed"]
    assert barriers.loc["fcc", "value"] == pytest.approx(values(metals, "barrier")["fcc"], abs=1e-6)
    assert (table.loc[table["status"] == "failed", "value"].isna()).all()


def test_relaxation_that_does_not_converge(hops):
    table = migration.run(emt(), [hops["fcc"]], migration.Protocol(max_steps=1))
    assert "not converged" in table[table["property"] == "barrier"]["reason"].iloc[0]


def test_an_ion_that_leaves_its_end_point_is_noticed(crystals):
    """This path ends a little before half-way, where there is no site: the ion rolls back."""
    path = migration.vacancy_hop(crystals["fcc"], "fcc", "fcc", 32)
    ion = migration.moving_ion(path)
    path[2].positions[ion] += 0.2 * (path[0].positions - path[2].positions)[ion]
    table = migration.run(emt(), [own_case("lost", path)], migration.Protocol(bend=False))
    assert table["status"].tolist() == ["failed", "ok", "ok", "ok"]
    assert "left its place on the path" in table["reason"].iloc[0]


@pytest.mark.slow
def test_frames_show_the_whole_path(hops, metals):
    frames = migration.path_frames(emt(), hops["out-of-plane"], PROTOCOL)
    assert [frame.info["path_coordinate"] for frame in frames] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    energies = [frame.info["energy_ev"] for frame in frames]
    assert energies[2] == pytest.approx(values(metals, "barrier")["out-of-plane"], abs=1e-6)
    # The atom held against sliding is another one on the other side, so the mirror images agree only nearly.
    assert energies[1] == pytest.approx(energies[3], abs=0.02)
    assert energies[0] == pytest.approx(energies[4], abs=0.005)
    ion = frames[0].info["moving_ion"]
    assert all(np.allclose(frame.cell, frames[0].cell) for frame in frames)
    for before, after in pairwise(frames):
        others = np.delete(before.positions - after.positions, ion, axis=0)
        assert np.abs(others).max() < 0.5
        assert np.linalg.norm(before.positions[ion] - after.positions[ion]) > 0.3


# -- one label -------------------------------------------------------------------------------------


def tidy(rows: list[tuple]) -> pd.DataFrame:
    columns = ["set", "material", "case", "property", "value", "reference", "image", "hop", "mobile_ion", "has_u_metal_with_o_or_f"]
    frame = pd.DataFrame([(*line, *[np.nan, "", "Li", False][len(line) - 6 :]) for line in rows], columns=columns)
    frame["status"] = np.where(frame["value"].isna(), "failed", "ok")
    return frame.assign(model="m", reason="", authors_mace=np.nan)


def test_one_image_mends_a_path_that_is_soft_all_along():
    rows = []
    for kind, scale in (("relaxed", 0.5), ("static", 0.8)):
        dft = [0.0, 0.2, 0.9, 0.4, -0.1]
        rows += [("livpo4f", "LiVPO4F", "p", f"image_energy_{kind}", scale * e, e, k) for k, e in enumerate(dft)]
        rows.append(("livpo4f", "LiVPO4F", "p", "barrier" if kind == "relaxed" else "barrier_static", scale, 1.0))
    found = migration.from_one_image(tidy(rows))
    assert len(found) == 8
    assert found.loc[found["property"] == "image_energy_relaxed", "c"].tolist() == pytest.approx([2.0] * 4)
    assert found.loc[found["property"] == "image_energy_static", "c"].tolist() == pytest.approx([1.25] * 4)
    assert (found["mae_after"] < 1e-12).all()
    assert found["barrier_after"].tolist() == pytest.approx([1.0] * 8)
    assert sorted(set(found["label"])) == [1, 2, 3, 4]


def test_an_image_on_the_wrong_side_gives_no_factor():
    rows = [
        ("livpo4f", "X", "p", f"image_energy_{k}", v, r, n)
        for k in ("relaxed", "static")
        for n, (v, r) in enumerate([(0, 0), (-0.1, 0.2), (0.4, 0.5)])
    ]
    rows += [("livpo4f", "X", "p", name, 0.4, 0.5) for name in ("barrier", "barrier_static")]
    found = migration.from_one_image(tidy(rows)).set_index(["property", "label"])
    assert found.loc[("image_energy_relaxed", 1), "status"] == "failed"
    assert np.isnan(found.loc[("image_energy_relaxed", 1), "barrier_after"])
    # c = 1.25 from image 2, tested on image 1 alone.
    assert found.loc[("image_energy_relaxed", 2), "mae_after"] == pytest.approx(1.25 * 0.1 + 0.2)


def test_a_vacancy_energy_mends_the_barriers_of_its_metal():
    rows = [
        ("elements", "Mg", "Mg/a", "vacancy_energy", 0.4, 0.8),
        ("elements", "Mg", "Mg/a", "barrier", 0.3, 0.5, np.nan, "in-plane"),
        ("elements", "Mg", "Mg/b", "barrier", 0.2, 0.4, np.nan, "out-of-plane"),
        ("elements", "Zn", "Zn/a", "vacancy_energy", -0.1, 0.5),
        ("elements", "Zn", "Zn/a", "barrier", 0.1, 0.3, np.nan, "in-plane"),
        ("elements", "Al", "Al/a", "barrier", 0.1, 0.3, np.nan, "fcc"),
    ]
    found = migration.from_vacancy_energy(tidy(rows))
    assert found[["material", "hop", "status"]].to_numpy().tolist() == [
        ["Mg", "in-plane", "ok"],
        ["Mg", "out-of-plane", "ok"],
        ["Zn", "in-plane", "failed"],
    ]
    assert found["c"].tolist()[:2] == pytest.approx([2.0, 2.0])
    assert found["corrected"].tolist()[:2] == pytest.approx([0.6, 0.4])
    assert np.isnan(found["corrected"].iloc[2])


def test_one_metal_mends_the_others():
    rows = [
        ("elements", "Mg", "Mg/a", "barrier", 0.2, 0.4),
        ("elements", "Mg", "Mg/b", "barrier", 0.3, 0.6),
        ("elements", "Al", "Al/a", "barrier", 0.4, 0.6),
        ("hops", "MgO", "x", "barrier", 9.0, 1.0),
    ]
    found = migration.from_one_element(tidy(rows)).set_index("label")
    assert found.loc["Mg", "c"] == pytest.approx(2.0)
    assert found.loc["Mg", "mae_after"] == pytest.approx(0.2)
    assert found.loc["Al", "c"] == pytest.approx(1.5)
    assert found.loc["Al", "mae_after"] == pytest.approx((0.1 + 0.15) / 2)
    assert found.loc["Al", "n_others"] == 2


# -- summary ---------------------------------------------------------------------------------------


def test_summary_by_hand():
    rows = [
        ("hops", "A", "a", "barrier", 0.2, 0.5, np.nan, "", "Mg", False),
        ("hops", "A", "b", "barrier", 0.4, 0.6, np.nan, "", "Mg", True),
        ("hops", "B", "c", "barrier", 0.9, 0.8, np.nan, "", "Li", False),
        ("hops", "B", "d", "barrier", np.nan, 0.8, np.nan, "", "Li", True),
        ("hops", "A", "a", "image_energy_relaxed", 0.1, np.nan, 1.0, "", "Mg", False),
        ("livpo4f", "L", "p", "image_energy_static", 0.0, 0.0, 0.0),
        ("livpo4f", "L", "p", "image_energy_static", 0.1, 0.2, 1.0),
        ("livpo4f", "L", "p", "image_energy_static", 0.3, 0.6, 2.0),
        ("fcc-metals", "Al", "q", "barrier", 0.3, np.nan),
    ]
    found = migration.summarise(tidy(rows)).set_index(["set", "property"])
    assert sorted(found.index) == sorted(
        [("hops", "barrier"), ("hops-Mg", "barrier"), ("hops-without-U", "barrier"), ("livpo4f", "image_energy_static")]
    )
    assert found.loc[("hops", "barrier"), ["n", "n_failed", "n_clusters"]].tolist() == [3, 1, 2]
    assert found.loc[("hops", "barrier"), "mae"] == pytest.approx((0.3 + 0.2 + 0.1) / 3)
    assert found.loc[("hops", "barrier"), "share_below"] == pytest.approx(2 / 3)
    assert found.loc[("hops-Mg", "barrier"), "mean_error"] == pytest.approx(-0.25)
    assert found.loc[("hops-without-U", "barrier"), "mean_error"] == pytest.approx((-0.3 + 0.1) / 2)
    assert found.loc[("livpo4f", "image_energy_static"), ["n", "slope"]].tolist() == pytest.approx([2, 0.5])


def test_the_authors_values_stand_as_a_model_of_their_own():
    rows = [("hops", "A", "a", "barrier", np.nan, 0.5), ("hops", "B", "b", "barrier", 0.4, 0.6), ("hops", "C", "c", "barrier", 0.4, 0.6)]
    table = tidy(rows).assign(authors_mace=[0.4, 0.7, np.nan])
    found = migration.authors(pd.concat([table, table.assign(model="other")]))
    assert found[["case", "value", "status"]].to_numpy().tolist() == [["a", 0.4, "ok"], ["b", 0.7, "ok"]]
    summary = migration.summarise(pd.concat([table, found]))
    assert set(summary["model"]) == {"m", "MACE (Devi et al.)"}


# -- the DFT data ----------------------------------------------------------------------------------


@needs_mirror
def test_the_path_of_livpo4f():
    [case] = migration.cases(sets=["livpo4f"])
    assert len(case.structures) == 7
    assert case.reference["energies"] == pytest.approx([0, 0.273, 0.595, 0.790, 0.779, 0.394, -0.033], abs=1e-3)
    images = [case.structures[f"image-{number}"] for number in range(7)]
    assert images[0].symbols[migration.moving_ion(images)] == "Li"
    assert (np.diff(migration.way(images, 0)) > 0.6).all()


@needs_mirror
def test_the_held_atoms_are_those_that_dft_held():
    """Two atoms of each image between the end points are still where DFT's relaxation started."""
    with gzip.open(registry.fetch(migration.SETS["livpo4f"][0])) as handle:
        hop = json.load(handle)["hops"]["0+1"]
    for number in range(1, 6):
        before, after = (structures.from_dict(hop[name][number]) for name in ("initial_images", "images"))
        difference = after.get_scaled_positions() - before.get_scaled_positions()
        still = np.flatnonzero(np.abs(difference - np.round(difference)).max(axis=1) < 1e-6)
        assert set(still) == {0, migration.furthest_atom(after, 0)}


@needs_mirror
def test_the_barriers_of_metals():
    found = {case.name: case for case in migration.cases(sets=["elements"])}
    assert len(found) == 45
    assert len({case.material for case in found.values()}) == 30
    assert found["angsten2014/Ni/fcc"].reference == {"barrier": 1.08, "vacancy_energy": 1.43}
    # Where the c axis is long the hop out of the plane is the easy one, where it is short the one in the plane.
    for metal, c_over_a in (("Zn", "long"), ("Cd", "long"), ("Be", "short"), ("Ti", "short"), ("Zr", "short")):
        easy, hard = ("out-of-plane", "in-plane") if c_over_a == "long" else ("in-plane", "out-of-plane")
        assert found[f"angsten2014/{metal}/{easy}"].reference["barrier"] < found[f"angsten2014/{metal}/{hard}"].reference["barrier"]
    assert sum("vacancy_energy" in case.reference for case in found.values()) == 30


@pytest.mark.slow
@needs_mirror
def test_the_hops_are_drawn_fairly():
    everything = migration.cases(migration.Protocol(n_mg_hops=10_000, n_other_hops=10_000, max_atoms=10_000), ["hops"])
    assert len(everything) == 382
    assert sum(case.info["mobile_ion"] == "Mg" for case in everything) == 92
    assert len({case.name for case in everything}) == 382
    out = migration.left_out()
    out = out[out["set"] == "hops"]
    assert len(out) == 619 - 382
    assert (out["reason"].str.len() > 0).all()
    drawn = {
        (n, seed): [case.name for case in migration.cases(migration.Protocol(n_mg_hops=n, n_other_hops=n, seed=seed), ["hops"])]
        for n, seed in ((5, 0), (20, 0), (5, 1))
    }
    assert len(drawn[5, 0]) == 10
    assert set(drawn[5, 0]) < set(drawn[20, 0]) < {case.name for case in everything}
    assert set(drawn[5, 0]) != set(drawn[5, 1])


@needs_mirror
def test_the_images_of_a_hop():
    for case in migration.cases(migration.Protocol(n_mg_hops=10, n_other_hops=10), ["hops"]):
        images = [case.structures[f"image-{number}"] for number in range(5)]
        ion = migration.moving_ion(images)
        ways = migration.way(images, ion)
        assert images[0].symbols[ion] == case.info["mobile_ion"], case.name
        assert ways / ways[-1] == pytest.approx([0, 0.25, 0.5, 0.75, 1]), case.name
        assert ways[-1] == pytest.approx(case.info["hop_length_a"])
        assert ways[-1] < 6
        others = np.delete(images[4].positions - images[0].positions, ion, axis=0)
        assert np.abs(others).max() < 1e-9
        assert case.info["functional"] == "GGA"
        assert 0.05 <= case.reference["barrier"] <= 4


# -- the nudged elastic band, and the paper's path ---------------------------------------------------


@pytest.mark.slow
def test_a_band_in_one_batch_finds_the_barrier_of_the_middle_image():
    """For a symmetric hop the climbing image and the image held half-way are the same saddle point."""
    potential = ASEPotential("emt", EMT(), elements=frozenset({13, 28, 29, 46, 47, 78, 79}))
    case = next(case for case in migration.cases(sets=["fcc-metals"]) if case.material == "Cu")
    table = migration.run(potential, [case], migration.Protocol(fmax_ev_per_a=0.01))
    held = table.loc[table["property"] == "barrier", "value"].iloc[0]
    first, _, middle = migration.planned(case, migration.relaxed_hosts(potential, [case], migration.Protocol(), False)).images
    middle = migration.turned_back(middle, first.cell)
    ion = migration.moving_ion([first, middle])
    last = first.copy()
    last.positions[ion] += 2 * structures.displacements(first, middle)[ion]
    start, end = (result.atoms for result in engine.relax(potential, [first, last], fmax=0.01))
    band = [start, *[start.copy() for _ in range(3)], end]
    NEB(band).interpolate(mic=True)
    before = band[2].positions.copy()
    images, n_calls = engine.neb(potential, band, fmax=0.02)
    energies = [image.info["energy_ev"] for image in images]
    assert migration.barrier(energies) == pytest.approx(held, abs=0.01)
    assert len(images) == 5
    assert n_calls > 1
    # What was given is not changed.
    assert np.array_equal(band[2].positions, before)


def test_a_band_that_cannot_be_is_refused():
    potential = ASEPotential("emt", EMT(), elements=frozenset({29}))
    atoms = bulk("Cu")
    with pytest.raises(ValueError, match="at least three images, not 2"):
        engine.neb(potential, [atoms, atoms])
    gold = bulk("Au")
    with pytest.raises(ValueError, match="cannot be evaluated"):
        engine.neb(potential, [gold, gold, gold])


def crossing(n_images=5):
    """A path of one atom into a vacancy, in copper with a marked atom of gold."""
    start = bulk("Cu", cubic=True) * (2, 2, 1)
    start.symbols[5] = "Au"
    del start[0]
    step = -start.positions[1]
    images = [start.copy() for _ in range(n_images)]
    for number, image in enumerate(images):
        image.positions[1] += step * number / (n_images - 1)
        image.wrap()
    return images


def test_a_path_across_the_cell_is_one():
    engine.check_path(crossing())
    engine.check_path(crossing(2))


@pytest.mark.parametrize("lattice", ["right", "left"])
def test_images_that_are_no_path_are_refused_with_their_atoms(lattice):
    potential = ASEPotential("emt", EMT(), elements=frozenset({29, 79}))
    swapped, other, cell, fewer = (crossing() for _ in range(4))
    swapped[2] = swapped[2][[0, 1, 2, 7, 4, 5, 6, 3, *range(8, 15)]]
    other[1] = other[1][[4, 1, 2, 3, 0, *range(5, 15)]]
    cell[3].set_cell(cell[3].cell.array * 1.01, scale_atoms=True)
    fewer[4] = fewer[4][:-1]
    refused = [
        (swapped, r"^image 2 has its atoms in another order than image 1: atoms 3, 7 there are atoms 7, 3 here; give all images"),
        (other, r"^image 1 has its atoms in another order than image 0: atoms 0, 4 there are atoms 4, 0 here; give all images"),
        (cell, r"^image 3 has another cell than image 2"),
        (fewer, r"^image 4 is Cu4AuCu9 and image 3 Cu4AuCu10: a path keeps its atoms$"),
    ]
    for images, message in refused:
        if lattice == "left":
            for image in images:
                image.set_cell(image.cell.array[[1, 0, 2]])
        with pytest.raises(ValueError, match=message):
            engine.neb(potential, images)
    # In a table it is one failed case among others.
    good = own_case("good", crossing(3))
    found = migration.run(potential, [own_case("swapped", swapped), good], migration.Protocol(bend=False))
    bad = found[found["case"].str.endswith("swapped")]
    assert (bad["status"] == "failed").all()
    assert bad["reason"].str.contains("image 2 has its atoms in another order").all()
    barrier = found[found["case"].str.endswith("good") & (found["property"] == "barrier")]
    assert (barrier["status"] == "ok").all()


@pytest.mark.slow
def test_a_band_of_pymatgen_structures_with_atoms_that_are_held():
    """Held atoms stay, and what is evaluated are the forces of the energy."""
    images = crossing()
    free, _ = engine.neb(ASEPotential("emt", EMT()), [AseAtomsAdaptor.get_structure(image) for image in images], fmax=0.1)
    for image in images:
        image.set_constraint(FixAtoms([10, 11]))
    held, _ = engine.neb(ASEPotential("emt", EMT()), iter(images), fmax=0.1)
    assert np.array_equal(held[2].positions[[10, 11]], images[2].positions[[10, 11]])
    assert migration.barrier([image.info["energy_ev"] for image in held]) >= migration.barrier([image.info["energy_ev"] for image in free])


def test_the_papers_path_has_its_barriers():
    path = migration.published_path()
    tops = path.groupby("model")[["value", "reference"]].max()
    assert tops.loc["chgnet-0.3.0"].tolist() == pytest.approx([0.479, 0.647])
    assert (tops["value"] < tops["reference"]).all()
    assert sorted(path["path_coordinate"].unique()) == pytest.approx(np.arange(7) / 6)
    # It can be corrected with one of its images like any other path.
    found = migration.from_one_image(path)
    assert (found["status"] == "ok").any()
