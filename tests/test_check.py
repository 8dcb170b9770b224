"""A check before any DFT: what it refuses, that its answers are those of the calibration, and that it goes on."""

import json
import re

import ase
import ase.io
import numpy as np
import pandas as pd
import pytest
from ase.build import bulk, molecule, mx2
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from helpers import calibration, cli, explanations, potentials, results, runner
from helpers.potentials import PotentialError
from helpers.reports import ask, check

CHGNET, TENSORNET = "chgnet-0.3.0", "tensornet-matpes-pbe-2025.1"


def half_heusler():
    """LiAlSi, which is in no table."""
    sites = [[0.5, 0.5, 0.5], [0, 0, 0], [0.25, 0.25, 0.25]]
    return ase.Atoms("LiAlSi", scaled_positions=sites, cell=5.93 / 2 * (1 - np.eye(3)), pbc=True)


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / "LiAlSi.cif"
    ase.io.write(path, half_heusler())
    return path


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(potentials, "runnable", lambda key: key == CHGNET)


# ---------------------------------------------------------------------------------------------------
# What is refused


def written(path, kind):
    lattice = Lattice.cubic(4.2)
    if kind == "shared":
        Structure(lattice, [{"Mg": 0.5, "Ca": 0.5}, "O"], [[0, 0, 0], [0.5] * 3]).to(filename=path)
    elif kind == "empty":
        Structure(lattice, [{"Mg": 0.9}, "O"], [[0, 0, 0], [0.5] * 3]).to(filename=path)
    elif kind == "overlap":
        Structure(lattice, ["Mg", "Mg", "O"], [[0, 0, 0], [0.05, 0, 0], [0.5] * 3]).to(filename=path)
    elif kind == "radon":
        Structure(lattice, ["Rn", "O"], [[0, 0, 0], [0.5] * 3]).to(filename=path)
    elif kind == "molecule":
        ase.io.write(path, molecule("H2O"))
    elif kind == "rubbish":
        path.write_text("no structure\n")
    return path


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("shared", "x.cif", "x.cif is disordered: sites are shared"),
        ("empty", "x.cif", "is disordered"),
        ("overlap", "x.cif", r"Mg \(atom \d\) and Mg \(atom \d\) are 0\.21 Å apart"),
        ("radon", "x.cif", "not trained on: Rn"),
        ("molecule", "x.xyz", "x.xyz has no cell"),
        ("rubbish", "x.cif", "cannot be read as a structure .pymatgen: "),
        ("nothing", "x.cif", "there is no such file"),
    ],
)
def test_a_structure_of_no_use_is_refused_in_a_line_and_leaves_no_folder(tmp_path, kind, name, reason):
    path = written(tmp_path / name, kind)
    with pytest.raises(ValueError, match=reason) as caught:
        check.check(path, CHGNET, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "reason"), [({"asked": ["phonon"]}, "phonon is not known; there are md"), ({"budget_minutes": 0.0}, "budget")]
)
def test_a_wrong_question_is_refused(tmp_path, crystal, wrong, reason):
    with pytest.raises(ValueError, match=reason):
        check.check(crystal, CHGNET, tmp_path / "out", **wrong)


def test_a_folder_of_something_else_is_left_alone(tmp_path, crystal, offline):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(PotentialError, match="holds something else"):
        check.check(crystal, CHGNET, tmp_path)
    other = tmp_path / "other.cif"
    ase.io.write(other, bulk("Cu"))
    check.check(crystal, CHGNET, tmp_path / "out", asked=["phonons"])
    with pytest.raises(PotentialError, match=r"another check \(different: crystal\)"):
        check.check(other, CHGNET, tmp_path / "out", asked=["phonons"])


# ---------------------------------------------------------------------------------------------------
# Probes


def test_the_primitive_cell_is_found_and_a_file_of_ase_is_read(tmp_path):
    ase.io.write(tmp_path / "x.extxyz", half_heusler().repeat(3))
    read = check.read(tmp_path / "x.extxyz")
    assert (len(read), len(check.primitive(read))) == (81, 3)


def test_what_cannot_be_afforded_says_what_would():
    large = half_heusler().repeat((4, 4, 2))
    large.rattle(0.1, seed=0)
    for key in ("phonons", "elasticity"):
        with pytest.raises(ValueError, match=r"--budget \d+ affords them"):
            check.probes(large, key, [], check.EVALUATIONS * check.MINUTES)
        (case,), _ = check.probes(half_heusler(), key, [], check.EVALUATIONS * check.MINUTES)
        assert case.structures


def test_a_smaller_supercell_is_taken_where_a_large_one_is_too_much():
    sizes = [check.probes(half_heusler(), "phonons", [], affordable)[0][0].info["supercell_atoms"] for affordable in (1e5, 60)]
    assert sizes[0] > sizes[1] >= 3


def test_a_layer_has_no_modulus():
    layer = mx2("WSe2", vacuum=8)
    layer.pbc = True
    with pytest.raises(ValueError, match="empty space: a layer"):
        check.probes(layer, "elasticity", [], 1e9)
    assert check.expect("elasticity", "bulk-modulus", CHGNET, layer, {}, "", [])["status"] == "not known"


def test_vacancies_keep_the_composition():
    crystal = bulk("CaF2", "fluorite", a=5.46)
    ((case,), protocol) = check.probes(crystal, "vacancy", [], 1e9)
    assert case.info["combination"] == "1 vac_Ca + 2 vac_F"
    n_cells = round(case.structures["vac_Ca"].get_volume() / crystal.get_volume())
    assert [len(case.structures[role]) for role in ("host", "vac_Ca", "vac_F")] == [3, 3 * n_cells - 1, 3 * n_cells - 1]
    assert (1 / case.structures["vac_F"].cell.reciprocal().lengths() >= protocol.min_length_a - 1e-6).all()
    assert [case.info["miller"] for case in check.probes(crystal, "surfaces", [], 1e9)[0]] == ["1 0 0", "1 1 0", "1 1 1"]


# ---------------------------------------------------------------------------------------------------
# Answers


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory, crystal):
    """CHGNet times 0.7 against itself, under the names of two models that have tables."""
    base = potentials.load(CHGNET)
    named = {key: base.scaled(c) for key, c in ((CHGNET, 0.7), (TENSORNET, 1.0))}
    for key, potential in named.items():
        potential.key = key
    out = tmp_path_factory.mktemp("round") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(potentials, "load", lambda key, *_, **__: named[key])
        patch.setattr(check, "potential_here", lambda key, *_: named[key])
        patch.setattr(check, "SUPERCELLS_A", (6.0,))
        patch.setattr(check, "LEAST_ATOMS", 3)

        def again():
            return check.check(crystal, CHGNET, out, against=[TENSORNET], processes=1)

        yield again(), again, patch


def calibrated(family):
    kind = calibration.FAMILIES[family]
    rows = explanations.rows(kind, results.read(kind.benchmark, [CHGNET, TENSORNET]))
    return calibration.calibrate({family: calibration.materials(rows, CHGNET, [TENSORNET])}, family)


def test_a_scaled_potential_gets_its_scale_times_the_calibration(round_trip):
    found, *_ = round_trip
    answers = {line["family"]: line for line in found.answers}
    assert list(answers) == ["forces-tp", "phonons-pbe", "bulk-modulus", "shear-modulus"]
    for family, line in answers.items():
        expected = 0.7 ** calibration.FAMILIES[family].power
        assert line["slope"] == pytest.approx(expected, rel=0.02), family
        known = calibrated(family)
        assert known.status == line["status"] == "predicted"
        assert line["scale"] == pytest.approx(known.factor * line["slope"])
        half = known.half_width(line["slope"])
        assert (line["low"], line["high"]) == pytest.approx((line["scale"] * np.exp(-half), line["scale"] * np.exp(half)))
    assert set(answers["forces-tp"]["kinds"]) == {*(f"rattled {size:g} Å" for size in check.RATTLES_A), "300 K", "1000 K"}
    assert "too small" in answers["forces-tp"]["errs"]
    value, expected = (float(part.split()[0]) for part in answers["bulk-modulus"]["dft"].split("→"))
    assert value / expected == pytest.approx(answers["bulk-modulus"]["scale"], rel=0.01), "DFT is above a soft potential"


def test_it_is_written_as_a_page_and_as_json(round_trip):
    found, *_ = round_trip
    text = (found.folder / "report.html").read_text()
    assert f"Recommendation: {found.recommendation}" in text
    assert "http" not in text.replace("http://www.w3.org", "")
    record = json.loads((found.folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert [line["scale"] for line in record["answers"]] == pytest.approx([line["scale"] for line in found.answers])
    assert any("One stiff potential alone" in note for note in record["notes"])


def test_the_same_call_takes_up_what_is_done(round_trip):
    found, again, patch = round_trip
    computed, compute = [], runner.compute_job
    patch.setattr(
        runner, "compute_job", lambda job, potential, cases: computed.append((job.benchmark, job.key)) or compute(job, potential, cases)
    )
    assert again().answers == found.answers
    assert computed == []
    results.table_path("phonons", TENSORNET, found.folder).unlink()
    assert again().recommendation == found.recommendation
    assert computed == [("phonons", TENSORNET)]


def test_without_stiff_potentials_tested_materials_answer(tmp_path, crystal, offline):
    found = check.check(crystal, CHGNET, tmp_path / "out", asked=["phonons", "vacancy"])
    for line in found.answers:
        table = results.read(calibration.FAMILIES[line["family"]].benchmark, [CHGNET, TENSORNET])
        scales = calibration.materials(explanations.rows(calibration.FAMILIES[line["family"]], table), CHGNET, [TENSORNET])
        known = calibration.calibrate({line["family"]: scales}, line["family"], slopes=False)
        assert (line["status"], line["n"]) == ("constant", 0)
        assert line["scale"] == pytest.approx(known.factor, rel=0.05), "the median of s, of those that all stiff ones have"
        assert line["low"] < line["scale"] < line["high"]
        assert line["nearest"][0]["distance"] < line["nearest"][-1]["distance"]
    assert any(note.startswith("softening fetch weights") and "highest frequency" in note for note in found.notes)
    assert not (tmp_path / "out" / check.FRAMES).exists()
    assert found.recommendation == "label these frames"
    assert found.command == f"softening ask {crystal} --model {CHGNET} -n 5 --kinds displaced,vacancy --code vasp --out labels"


@pytest.mark.parametrize(("formula", "why"), [("NiO", "with +U"), ("FeAl", "open d or f shell (Fe)")])
def test_magnetic_and_u_compounds_are_flagged(tmp_path, offline, formula, why):
    path = tmp_path / "x.cif"
    ase.io.write(path, bulk(formula, "cesiumchloride", a=3.0))
    found = check.check(path, CHGNET, tmp_path / "out", asked=["phonons"])
    assert [line["status"] for line in found.answers] == ["not known"]
    assert why in found.answers[0]["reason"]
    assert any(note.startswith("No calibration for this material") for note in found.notes)


def tables(own, stiff, model=CHGNET):
    """Return tables of one phonon frequency for a model and TensorNet."""
    line = {"case": "x/1", "property": "omega_max", "unit": "THz", "status": "ok", "reason": ""}
    return {key: pd.DataFrame([line | {"value": value}]) for key, value in ((model, own), (TENSORNET, stiff))}


def phonon_answer(crystal, own, stiff, model=CHGNET):
    return check.expect("phonons", "phonons-pbe", model, crystal, tables(own, stiff, model), "", [TENSORNET])


def test_the_measured_scale_of_the_same_elements_is_not_contradicted():
    line = phonon_answer(bulk("MgO", "rocksalt", a=4.2), 18.0, 15.0)
    assert line["status"] == "not known"
    assert re.search(r"of the same elements, has 0\.85, and slopes say 1\.\d", line["reason"])


def test_a_slope_that_no_tested_material_has_is_not_believed():
    line = phonon_answer(half_heusler(), 40.0, 10.0)
    assert line["status"] == "not known"
    assert line["reason"].startswith("the slope against stiffer potentials is 4.00; of tested materials,")


def test_a_potential_without_tables_is_calibrated_with_the_stand_in():
    line = phonon_answer(half_heusler(), 8.0, 10.0, "ase:mine.factory")
    assert (line["status"], line["calibrated_with"], line["nearest"]) == ("predicted", CHGNET, [])
    assert line["scale"] == pytest.approx(phonon_answer(half_heusler(), 8.0, 10.0)["scale"])
    alone = check.expect("vacancy", "defects", "ase:mine.factory", half_heusler(), {}, "", [])
    assert "a table is needed: softening run defects --model ase:mine.factory" in alone["reason"]


def test_a_potential_that_fails_itself_has_no_answer():
    given = tables(8.0, 10.0)
    given[CHGNET] = given[CHGNET].assign(value=np.nan, status="failed", reason="lost symmetry as it relaxed")
    line = check.expect("phonons", "phonons-pbe", CHGNET, half_heusler(), given, "", [TENSORNET])
    assert (line["status"], line["reason"]) == ("not known", f"{CHGNET} itself failed: lost symmetry as it relaxed")


# ---------------------------------------------------------------------------------------------------
# The recommendation


def known(scale, width=1.2, power=1.0, **left):
    line = {"status": "predicted", "scale": scale, "low": scale / width, "high": scale * width, "power": power, "left": left}
    return line | {"property": "md", "name": f"scale {scale}"}


def test_what_is_recommended():
    unknown = {"status": "not known", "property": "md", "name": "unknown"}

    def said(*answers):
        return check.advise(answers, CHGNET, "x.cif")

    words, _, reasons = said(known(0.95), known(1.04, width=1.5))
    assert words == "use it"
    assert "0.69 to 1.56" in reasons[0]
    # What is not known may be soft.
    assert said(known(0.95), known(1.04), unknown)[0] == "label these frames"
    words, _, reasons = said(known(0.85, factor=0.5))
    assert words == "label these frames"
    assert reasons[0] == "All intervals hold 1: no factor is called for."
    assert said(known(0.7))[2] == ["No slope against a stiffer potential is known."]
    words, line, _ = said(known(0.64, factor=0.5), known(0.8, power=0.5, factor=0.5))
    assert (words, line) == ("multiply the energy by 1.56", f'potentials.load("{CHGNET}").scaled(1.562)')
    words, line, _ = said(known(0.7, **{"factor": 0.5, TENSORNET: 0.4}))
    assert words == "use another: TensorNet MatPES"
    # One factor cannot be right for both.
    words, _, reasons = said(known(0.5, factor=0.2), known(0.9, factor=0.2))
    assert words == "label these frames"
    assert reasons[0].startswith("No factor lies in all intervals")
    assert said(known(0.7, factor=0.95))[0] == "label these frames"
    # An answer from tested materials alone knows nothing of what is left.
    words, _, reasons = said(known(0.7, factor=0.5), known(0.7))
    assert words.startswith("multiply")
    assert reasons[-1] == "Compared in scale 0.7 alone; in the others no stiff potential was asked."
    assert said(known(1.0), unknown, unknown)[2] == ["2 of 3 answers are not known before DFT."]
    # A stiff potential that was asked about one property only is not recommended for all.
    words, _, reasons = said(known(0.7, **{TENSORNET: 0.1, "factor": 0.5}), known(0.7, factor=0.5))
    assert words.startswith("multiply")
    assert reasons[0].endswith("is missing: TensorNet MatPES.")
    # What makes one of the properties worse on tested materials is not recommended, whatever it does to the mean.
    words, _, reasons = said(known(0.7, **{"factor": 0.2, TENSORNET: 0.3}), known(0.7, **{"factor": 1.06, TENSORNET: 0.6}))
    assert words == "use another: TensorNet MatPES"
    assert reasons[-1].startswith("Not a factor of 1.43: more error on tested materials in ")
    assert "(1.06)" in reasons[-1]
    # Where nothing near was tested neither the potential as it is nor a factor is recommended.
    for scale in (0.98, 0.7):
        words, _, reasons = said(known(scale, width=1.01, factor=0.2) | {"far": True})
        assert words == "label these frames"
        assert "nothing near was tested" in " ".join(reasons)


@pytest.mark.parametrize(("asked", "kinds"), [("md", "hot"), ("elasticity", "strained"), ("surfaces", "slab")])
def test_the_frames_to_label_are_of_the_kind_that_was_asked_about(asked, kinds):
    _, line, _ = check.advise([{"status": "not known", "property": asked, "name": "x"}], CHGNET, "x.cif")
    assert f" --kinds {kinds} " in line
    assert set(kinds.split(",")) <= set(ask.KINDS)


def shares(scale):
    """Return what a table of two materials says is left when values are divided."""
    line = {"case": "1", "model": CHGNET, "formula": "x"}
    both = [(name, x, s) for name, s in (("a", 0.8), ("b", 0.9)) for x in (1.0, -2.0)]
    rows = pd.DataFrame([line | {"material": name, "value": x * s, "reference": x} for name, x, s in both])
    rows["case"] = rows.index.astype(str)
    return check.error_left(rows.reindex(columns=explanations.COLUMNS), CHGNET, pd.Series(scale))["factor"]


def test_the_error_that_is_left_is_that_of_the_scale_that_is_used():
    assert shares({"a": 0.8, "b": 0.9}) == pytest.approx(0)
    assert shares({"a": 1.0, "b": 1.0}) == pytest.approx(1)
    assert shares({"a": 0.8 * 0.5, "b": 0.9 * 0.5}) == pytest.approx(2 / 0.3), "a factor that is twice too large"


def test_the_one_factor_is_judged_in_each_property_and_not_each_propertys_own(round_trip):
    found, *_ = round_trip
    factor, why = check.one_factor(found.answers)
    for line in found.answers:
        if why:
            assert "factor" not in line["left"]
            continue
        kind = calibration.FAMILIES[line["family"]]
        rows = explanations.rows(kind, results.read(kind.benchmark, [CHGNET, TENSORNET]))
        scales = calibration.materials(rows, CHGNET, [TENSORNET]).query("status == 'ok'").set_index("material")["slope"]
        used = scales * calibrated(line["family"]).factor / line["scale"] / factor**kind.power
        assert line["left"]["factor"] == pytest.approx(check.error_left(rows, CHGNET, used)["factor"])


def test_a_potential_that_errs_more_than_the_checked_one_is_not_asked():
    """M3GNet MatPES counts as stiff, and errs more than CHGNet in bulk moduli."""
    stiff = "m3gnet-matpes-pbe-2025.1"
    line = {"case": "x/1", "property": "bulk_modulus", "unit": "GPa", "status": "ok", "reason": ""}
    given = {key: pd.DataFrame([line | {"value": value}]) for key, value in ((CHGNET, 80.0), (stiff, 90.0), (TENSORNET, 100.0))}
    found = check.expect("elasticity", "bulk-modulus", CHGNET, half_heusler(), given, "", [stiff, TENSORNET])
    assert list(found["each"]) == [TENSORNET]
    assert found["slope"] == pytest.approx(0.8)
    assert found["dropped"][stiff] > 1


def test_another_question_to_the_same_folder_keeps_the_answers_before(tmp_path, crystal, offline):
    out = tmp_path / "out"
    before = check.check(crystal, CHGNET, out, asked=["vacancy"]).answers
    found = check.check(crystal, CHGNET, out, asked=["phonons"])
    assert [line["property"] for line in found.answers] == ["phonons", "vacancy"]
    assert found.answers[1] == before[0]
    assert "vacancies, " in (out / "report.html").read_text()


def test_one_number_of_several_vacancies_is_called_that():
    assert check.vacancies_name(bulk("Cu")) == "vacancy of Cu"
    assert check.vacancies_name(bulk("CaF2", "fluorite", a=5.46)) == "vacancies, Ca + 2 F together"


def test_a_potential_is_not_asked_about_itself(tmp_path, crystal):
    with pytest.raises(ValueError, match="cannot be asked about itself"):
        check.check(crystal, CHGNET, tmp_path / "out", against=[TENSORNET, CHGNET])
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_answers_and_one_recommendation(tmp_path, crystal, offline):
    result = CliRunner().invoke(cli.app, ["check", str(crystal), "-m", CHGNET, "--for", "phonons", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert result.output.count("recommendation: ") == 1
    assert "highest frequency" in result.output
    assert str(tmp_path / "out" / "report.html") in result.output
