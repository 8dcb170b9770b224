"""The report card: which cases, what is said of them, bad calculators, resuming, the page."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pytest
from ase import units
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from typer.testing import CliRunner

from helpers import NOTES, OTHER_FUNCTIONAL, benchmarks, cli, explanations, registry, results, runner, softening
from helpers.benchmarks import Case, Sample, surfaces
from helpers.figures import style
from helpers.potentials import PotentialError
from helpers.potentials.ase import ASEPotential
from helpers.reports import page, report_card, report_card_page
from helpers.reports.report_card import AGAINST_DFT

# What EMT knows, and needs no file.
TINY = {
    "surfaces": {"tran-rebuilt": Sample(4)},
    "elasticity": {"prototypes": Sample(6)},
    "off_equilibrium": {"rattled-crystals": Sample(18)},
}


@pytest.fixture
def few(monkeypatch):
    """Three copper surfaces, aluminium and copper to strain, and a rattled copper crystal: seconds with EMT."""
    for name, metals in (("surfaces", ("Cu", "Al")), ("elasticity", ("Al", "Cu")), ("off_equilibrium", ("Cu", "MgO"))):
        module = benchmarks.module(name)
        whole = module.cases

        def chosen(protocol=None, sets=None, whole=whole, metals=metals):
            return [case for case in whole(protocol, sets) if case.material in metals]

        monkeypatch.setattr(module, "cases", chosen)


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    """Nothing mirrored, nothing downloaded, no network."""
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(registry.OFFLINE_VARIABLE, "1")


def emt(**options):
    return ASEPotential("ase:EMT", EMT(), **options)


def make(calculator, out, **options):
    """Make a small card of a calculator, or of a potential."""
    potential = calculator if isinstance(calculator, ASEPotential) else ASEPotential("ase:mine.Calculator", calculator)
    return report_card.make(potential, out, quick=TINY, n_resamples=50, **options)


# ---------------------------------------------------------------------------------------------------
# Which cases


def invented(name, material, atoms=4):
    return Case(name, "set", material, {"crystal": [None] * atoms})


CASES = [invented(f"{material}/{number}", material, 2 * number + 2) for material in "abcdef" for number in range(4)]


def test_the_sample_is_the_same_every_time_and_grows_with_its_size():
    names = [[case.name for case in benchmarks.draw("surfaces", CASES, Sample(n))] for n in (6, 6, 10)]
    assert names[0] == names[1]
    assert set(names[0]) < set(names[2])
    assert len({name[0] for name in names[0]}) == 6, "every material once before any twice"
    other = [case.name for case in benchmarks.draw("surfaces", CASES, Sample(6), seed=1)]
    assert other != names[0]
    assert names[0] == sorted(names[0]), "in the order in which they were given"


def test_materials_are_drawn_whole_and_large_cases_left_out():
    whole = benchmarks.draw("surfaces", CASES, Sample(2, whole=True))
    assert len(whole) == 8
    assert len({case.material for case in whole}) == 2
    small = benchmarks.draw("surfaces", CASES, Sample(99, max_atoms=4))
    assert {len(case.structures["crystal"]) for case in small} == {2, 4}
    assert benchmarks.draw("surfaces", CASES, Sample(9, max_atoms=1)) == []


def test_the_card_has_the_families_in_the_order_of_the_book():
    energies, curvatures = ("surfaces", "defects", "solid_solutions", "migration"), ("phonons", "elasticity")
    assert (*energies, *curvatures, "off_equilibrium") == report_card.BENCHMARKS


def test_without_data_the_sets_that_need_no_file_take_their_place(no_data):
    plan, absent = report_card.plans(full=False, quick=None)
    for benchmark, sets in plan.items():
        assert sets, benchmark
        assert all(benchmarks.module(benchmark).SETS[name] == () for name in sets)
    assert {entry["set"] for entry in absent} >= {"slabs-109", "phonondb", "wbm-21"}
    assert all(entry["command"] == f"softening fetch {entry['benchmark']}" for entry in absent)


def test_end_members_are_not_drawn():
    cases = benchmarks.module("solid_solutions").cases(sets=["ca-mg-o"])
    assert all(0 < case.info["x"] < 1 for case in benchmarks.draw("solid_solutions", cases, Sample(1000)))


# ---------------------------------------------------------------------------------------------------
# Ranks and advice, on tables whose answers are known


def made_up(slopes, n=30, noise=0.0, seed=0):
    """Return rows of models that are off by these factors, on the same cases."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=n)
    parts = []
    for model, slope in slopes.items():
        value = slope * reference + noise * rng.normal(size=n)
        names = [f"case {k}" for k in range(n)]
        parts.append(pd.DataFrame({"model": model, "material": names, "case": names, "value": value, "reference": reference}))
    return pd.concat(parts, ignore_index=True)


def judged(key="mine", name="surfaces", **slopes):
    rows = made_up({key: 0.8, **slopes})
    return report_card.judge(key, AGAINST_DFT[name], rows, "eV", n_resamples=50)


def test_the_rank_is_by_the_error_on_common_cases():
    lane, others = judged(better=0.9, worse=0.5)
    assert (lane["rank"], lane["n_ranked"], lane["n_common"]) == (2, 3, 30)
    assert lane["slope"] == pytest.approx(0.8)
    assert lane["inverse_slope"] == pytest.approx(1.25)
    assert lane["removed_own"] == pytest.approx(1)
    assert others.set_index("model")["rank"].to_dict() == {"better": 1, "mine": 2, "worse": 3}


def test_models_with_few_of_the_cases_do_not_shrink_the_comparison():
    rows = made_up({"mine": 0.8, "better": 0.9, "sparse": 1.0, "nearly": 0.7})
    rows = rows[~((rows["model"] == "sparse") & (rows.index % 2 == 0))]
    rows = rows[~((rows["model"] == "nearly") & (rows["case"] == "case 3"))]
    others = report_card.beside(rows, "mine", n_resamples=50)
    assert set(others["model"]) == {"mine", "better", "nearly"}
    assert set(others["n"]) == {29}


def test_a_single_model_has_no_rank():
    lane, others = judged()
    assert lane["rank"] is None
    assert others.empty


def test_frequencies_go_with_the_root():
    lane, _ = judged(name="phonons")
    assert lane["factor"] == pytest.approx(1 / 0.8**2)


def advice(slopes, noise=0.0):
    """Return the advice for a model with these slopes in some families."""
    lanes, points = [], {}
    for number, (name, slope) in enumerate(slopes.items()):
        points[name] = made_up({"mine": slope}, noise=noise, seed=number)
        lanes.append(report_card.judge("mine", AGAINST_DFT[name], points[name], "eV", n_resamples=50)[0])
    return report_card.advise(*report_card.with_common_factor(pd.DataFrame(lanes), points))


def test_one_common_factor_is_a_scalar_fix():
    found, reasons = advice({"surfaces": 0.8, "defects": 0.78, "phonons": np.sqrt(0.8), "forces-wbm": 0.82})
    assert found == "scalar fix"
    assert "4 of 4 families are soft" in reasons[0]
    assert "1.25" in reasons[1]


def test_families_that_disagree_need_fine_tuning():
    found, reasons = advice({"surfaces": 0.5, "defects": 0.9, "phonons": 0.95, "forces-wbm": 0.8})
    assert found == "fine-tuning"
    assert any("do not agree" in reason and "surfaces" in reason for reason in reasons)


def test_a_model_that_is_not_soft_needs_neither():
    found, reasons = advice({"surfaces": 1.0, "defects": 0.99, "phonons": 1.1, "forces-wbm": 0.8})
    assert found == "neither"
    assert "1 of 4" in reasons[0]


def test_scatter_is_not_mended():
    found, reasons = advice({"surfaces": 0.5, "defects": 0.5, "forces-wbm": 0.5}, noise=0.51)
    assert found == "neither"
    assert "Scatter" in reasons[1] or "0 of 3" in reasons[0]


def test_the_control_and_other_references_do_not_count():
    lanes = pd.DataFrame([judged(name=name)[0] for name in ("surfaces", "forces-control")])
    lanes.loc[0, "against"] = "chgnet-0.3.0"
    found, reasons = report_card.advise(*report_card.with_common_factor(lanes, {name: made_up({"mine": 0.8}) for name in lanes["lane"]}))
    assert found == "no advice: nothing was measured"
    assert "not known whether" in reasons[0]


def test_a_wrong_sign_is_no_softness():
    """Five soft families and one of the wrong sign: it counts, is named, and no factor is for all."""
    soft = {"surfaces": 0.8, "defects": 0.8, "phonons": np.sqrt(0.8), "forces-wbm": 0.8, "bulk-modulus": 0.8}
    assert advice(soft)[0] == "scalar fix"
    found, reasons = advice({**soft, "barriers-metals": -0.3})
    assert found == "fine-tuning"
    assert reasons[0].startswith("5 of 6 families are soft")
    assert "migration (s = −0.30, wrong sign)" in reasons[0]
    assert any("sign is wrong in barriers" in reason for reason in reasons)
    only, reasons = advice({"barriers-metals": -0.3})
    assert only == "no advice: too little was measured"
    assert reasons[0].startswith("0 of 1 families are soft.")
    assert any("sign is wrong in barriers" in reason for reason in reasons)


def test_a_wrong_sign_beside_soft_lines_of_its_family_is_named():
    found, reasons = advice({"bulk-modulus": 0.8, "shear-modulus": -0.2, "surfaces": 0.8, "phonons": 1.0, "defects": 1.0})
    assert "1 of 4 families are soft: surfaces (s = 0.80). Not soft, or not for certain: elasticity" in reasons[0]
    assert any("sign is wrong in shear modulus" in reason for reason in reasons)
    assert found == "neither"


def test_stiff_families_stand_beside_the_soft_ones():
    _, reasons = advice({"surfaces": 0.8, "defects": 0.8, "phonons": 1.2})
    assert "2 of 3 families are soft" in reasons[0]
    assert "phonons (s = 1.20, stiff)" in reasons[0]


def test_a_verdict_is_as_strong_as_its_interval():
    """Three materials whose slopes are 0.5, 0.8 and 1.4: s is below one, but nothing is known."""
    rows = pd.DataFrame({"model": "mine", "material": list("aabbcc"), "case": list("uvwxyz"), "reference": [1.0, -1.0] * 3})
    rows["value"] = rows["reference"] * [0.5, 0.5, 0.8, 0.8, 1.4, 1.4]
    lane, _ = report_card.judge("mine", AGAINST_DFT["surfaces"], rows, "eV", n_resamples=500)
    assert lane["slope"] == pytest.approx(0.9)
    assert lane["slope_high"] > 1
    assert lane["verdict"] == "unclear"
    found, reasons = report_card.advise(*report_card.with_common_factor(pd.DataFrame([lane]), {"surfaces": rows}))
    assert found == "no advice: too little was measured"
    assert reasons[0] == "0 of 1 families are soft. Not soft, or not for certain: surfaces (s = 0.90, not clear)."
    # One material has no interval, and no verdict.
    lane, _ = report_card.judge("mine", AGAINST_DFT["surfaces"], rows[:2].assign(value=[0.5, -0.5]), "eV", n_resamples=50)
    assert lane["verdict"] == "unclear"


@pytest.mark.parametrize("slopes", [{"surfaces": 0.6}, {"surfaces": 0.8, "defects": 0.8}, {"surfaces": 1.0}])
def test_one_or_two_families_are_no_basis(slopes):
    """One family "agreed" with itself, and fine-tuning was recommended for it."""
    found, reasons = advice(slopes)
    assert found == "no advice: too little was measured"
    assert reasons[1] == "Fewer than 3 families are no basis for advice."
    assert not any("agree" in reason or "train" in reason for reason in reasons)
    assert advice({**dict.fromkeys(("surfaces", "defects"), 0.8), "forces-wbm": 0.8})[0] == "scalar fix"


def test_most_cases_lost_are_no_basis():
    lanes = pd.DataFrame([judged(name=name)[0] for name in ("surfaces", "defects", "bulk-modulus", "forces-wbm")])
    every = report_card.with_common_factor(lanes, {name: made_up({"mine": 0.8}) for name in lanes["lane"]})
    assert report_card.advise(*every, 0.5)[0] == "scalar fix"
    found, reasons = report_card.advise(*every, 0.75)
    assert found == "no advice: too little was measured"
    assert reasons[1] == "The 25% of the cases that have values are no basis for advice."


@pytest.mark.slow
def test_fine_tuning_of_what_cannot_be_trained_here_says_so_first(few, tmp_path, monkeypatch):
    monkeypatch.setattr(report_card, "advise", lambda *_: ("fine-tuning", ["5 of 7 families are soft."]))
    card = make(EMT(), tmp_path)
    assert card.reasons[0].startswith("This potential has no weights that softening fix could train")
    assert "--method full" not in (tmp_path / "report.html").read_text()


def test_it_says_what_it_rests_on():
    _, reasons = advice({"surfaces": 0.8})
    assert reasons[-1] == "This rests on 1 of the 7 families of the book."
    every = ("surfaces", "defects", "sic-aln", "barriers-metals", "phonons", "bulk-modulus", "forces-wbm")
    assert not any("rests on" in reason for reason in advice(dict.fromkeys(every, 0.8))[1])


def test_a_model_of_the_book_is_no_truth():
    """Softer than CHGNet is not soft: the words differ."""
    words = [
        report_card.judge("mine", AGAINST_DFT["surfaces"], made_up({"mine": s}), "eV", "chgnet-0.3.0", 50)[0]["verdict"]
        for s in (0.8, 1, 1.2)
    ]
    assert words == ["softer", "alike", "stiffer"]


def test_the_rules_name_the_thresholds():
    text = " ".join(report_card.RULES)
    assert f"{1 - softening.NO_SOFTNESS:.2f}" in text
    assert f"{report_card.AGREE:g}" in text
    assert f"{report_card.SCATTER:g}" in text
    assert str(report_card.RIGHT[0]) in text
    assert str(report_card.RIGHT[1]) in text
    assert softening.SUFFICES == 0.5
    assert "half" in text
    assert softening.WORTH_HAVING == 0.2
    assert "fifth" in text


@pytest.mark.parametrize(
    ("slopes", "word"), [((1.1, 0.9), "stiff"), ((1.0, 1.0), "right"), ((0.8, 1.0), "calibrated"), ((0.8, 1.2), "soft")]
)
def test_two_slopes_in_a_word(slopes, word):
    assert softening.verdict(*slopes) == word


# ---------------------------------------------------------------------------------------------------
# A whole card


@pytest.mark.slow
def test_a_card_of_emt(few, tmp_path):
    """A potential of factor 0.8 has 0.8 times the slopes, and the failures are counted with their reasons."""
    cards = {c: make(emt() if c == 1 else emt().scaled(c), tmp_path / str(c)) for c in (1, 0.8)}
    scale = {c: card.lanes.set_index("lane")["slope"] for c, card in cards.items()}
    np.testing.assert_allclose(scale[0.8] / scale[1], 0.8, rtol=2e-3)
    assert {"surfaces-built", "live-forces", "live-bulk", "live-shear"} == set(scale[1].index)
    card = cards[1]
    assert card.lanes.set_index("lane").loc["live-forces", "against"] == report_card.BOOK_MODEL
    assert "No EMT-potential for Mg" in card.failures.set_index("benchmark").loc["off_equilibrium", "reason"]
    assert card.about["cases"] > 0
    assert card.about["atoms_per_second"] > 0
    assert results.table_path("surfaces", "ase:EMT", tmp_path / "1").is_file()
    html = (tmp_path / "1" / "report.html").read_text()
    for words in (
        "surface energies, built",
        "No EMT-potential for Mg",
        "No advice: too little was measured",
        "What was not run",
        'alt="Softening scale',
    ):
        assert words in html
    assert not re.search(r"(src|href)=\"(?!data:)", html), "nothing is fetched"
    assert (tmp_path / "1" / "report.md").read_text().startswith("# Report card of")


@pytest.mark.slow
def test_json_holds_the_whole_card(few, tmp_path):
    card = make(EMT(), tmp_path)
    again = report_card.read(tmp_path)
    assert json.loads(json.dumps(report_card.content(card))) == report_card.content(again)
    assert "NaN" not in (tmp_path / "report.json").read_text()
    pd.testing.assert_frame_equal(card.lanes, again.lanes[card.lanes.columns], check_dtype=False)
    with pytest.raises(PotentialError, match="no report card"):
        report_card.read(tmp_path / "nothing")


@pytest.mark.slow
def test_the_same_call_again_does_nothing_and_another_one_is_refused(few, tmp_path, monkeypatch):
    make(EMT(), tmp_path)
    before = (tmp_path / "report.html").stat().st_mtime_ns
    monkeypatch.setattr(runner, "run_cases", lambda *_, **__: pytest.fail("computed again"))
    make(EMT(), tmp_path)
    assert (tmp_path / "report.html").stat().st_mtime_ns == before
    with pytest.raises(PotentialError, match=r"another report card .*seed"):
        make(EMT(), tmp_path, seed=1)
    with pytest.raises(PotentialError, match="energies"):
        make(EMT(asap_cutoff=True), tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(PotentialError, match="holds something else"):
        make(EMT(), other)


SLOW = """
    import time
    from ase.calculators.emt import EMT

    class Slow(EMT):
        def calculate(self, *args, **kwargs):
            time.sleep(0.03)
            super().calculate(*args, **kwargs)
"""

COMMAND = """
    import sys
    from helpers.benchmarks import Sample, surfaces
    from helpers.reports import report_card

    whole = surfaces.cases
    surfaces.cases = lambda protocol=None, sets=None: [c for c in whole(protocol, sets) if c.material in ("Cu", "Al", "Ni", "Pd")]
    report_card.ATOMS_PER_SHARD = 1
    report_card.make("ase:slow.Slow", sys.argv[1], quick={"surfaces": {"tran-rebuilt": Sample(5)}}, processes=1, n_resamples=50)
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    (tmp_path / "command.py").write_text(textwrap.dedent(COMMAND))
    out = tmp_path / "card"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(tmp_path / "command.py"), str(out)]
    job = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(out.glob("runs/*/*/0*.parquet"))) < 2:
        assert job.poll() is None, "the card was done before it could be killed"
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/0*.parquet")}
    assert not (out / "report.json").exists()
    assert len(kept) >= 2
    assert (out / "started.json").exists()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command.py", str(out)])
    for module, name in ((surfaces, "cases"), (report_card, "ATOMS_PER_SHARD")):  # the command changes them for good
        monkeypatch.setattr(module, name, getattr(module, name))
    runpy.run_path(str(tmp_path / "command.py"))
    card = report_card.read(out)
    assert card.about["cases"] == 5
    assert card.lanes.set_index("lane").loc["surfaces-built", "n"] == 5
    assert not (out / "started.json").exists()


# ---------------------------------------------------------------------------------------------------
# Bad calculators


class Raises(EMT):
    def calculate(self, *args, **kwargs):
        raise RuntimeError("licence expired on day 17")


class NotANumber(EMT):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["forces"] = np.full_like(self.results["forces"], np.nan)


class NoStress(Calculator):
    """EMT without its stress."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        inner = EMT()
        self.results = {"energy": inner.get_potential_energy(self.atoms), "forces": inner.get_forces(self.atoms)}


class VerySlow(EMT):
    def calculate(self, *args, **kwargs):
        time.sleep(0.05)
        super().calculate(*args, **kwargs)


@pytest.mark.parametrize(("calculator", "words"), [(Raises, "licence expired"), (NotANumber, "not numbers")])
def test_a_calculator_that_breaks_has_a_card_all_the_same(few, tmp_path, calculator, words):
    card = make(calculator(), tmp_path)
    assert set(card.failures["benchmark"]) == set(TINY)
    told = card.failures[card.failures["reason"].str.contains(words)]
    assert set(told["benchmark"]) == set(TINY)
    assert (told["cases"] > 1).all(), "counted together"
    assert card.lanes.empty
    assert card.recommendation == "no advice: nothing was measured"
    said = " ".join(card.reasons)
    assert "cases failed" in said
    assert words in said
    assert "softening fix" in said
    html = (tmp_path / "report.html").read_text()
    assert words in html
    assert "No advice: nothing was measured" in html
    assert "neither a scalar fix" not in html
    assert report_card.read(tmp_path).recommendation == card.recommendation


class Flat(Calculator):
    """Nothing costs anything: the softest potential there is."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": -4.0 * len(self.atoms), "forces": np.zeros((len(self.atoms), 3)), "stress": np.zeros(6)}


@pytest.mark.slow
def test_a_flat_potential_has_a_card_that_says_so(few, tmp_path):
    card = make(Flat(), tmp_path)
    assert card.lanes.empty
    assert "All values of surfaces are zero: this potential is flat there" in " ".join(card.reasons)
    assert "flat there" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_with_nothing_measured_the_card_says_what_to_fetch(few, no_data, tmp_path):
    quick = {"phonons": {"phonondb": Sample(2)}, "off_equilibrium": {"wbm-21": Sample(2)}}
    card = report_card.make(emt(), tmp_path, quick=quick, n_resamples=50)
    assert card.recommendation == "no advice: nothing was measured"
    assert set(card.lanes["against"]) <= {report_card.BOOK_MODEL}
    for text in (" ".join(card.reasons), (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()):
        assert "softening fetch phonons" in text
        assert "softening fetch off_equilibrium" in text
    assert json.loads((tmp_path / "report.json").read_text())["recommendation"] == card.recommendation


@pytest.mark.slow
def test_with_one_family_measured_the_card_says_what_to_fetch(few, no_data, tmp_path):
    quick = {"surfaces": {"slabs-109": Sample(2), "tran-rebuilt": Sample(4)}, "phonons": {"phonondb": Sample(2)}}
    card = report_card.make(emt(), tmp_path, quick=quick, n_resamples=50)
    assert card.recommendation == "no advice: too little was measured"
    said = " ".join(card.reasons)
    assert "softening fetch surfaces" in said
    assert "softening fetch phonons" in said
    assert "agree" not in said
    assert "No advice: too little was measured" in (tmp_path / "report.html").read_text()


def test_a_calculator_that_contradicts_itself_gets_no_card(few, tmp_path):
    """A stress in GPa was "stiff, slope 160"."""

    class Gigapascal(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["stress"] = self.results["stress"] / units.GPa

    with pytest.raises(PotentialError, match=r"the stress is 160\.2 times"):
        make(Gigapascal(), tmp_path / "card")
    assert not (tmp_path / "card").exists()


@pytest.mark.slow
def test_without_stress_only_what_needs_it_fails(few, tmp_path):
    card = make(NoStress(), tmp_path)
    reasons = card.failures.set_index("benchmark")["reason"]
    assert "gives no stress" in reasons["elasticity"]
    assert "gives no stress" in reasons["surfaces"]
    assert list(card.lanes["lane"]) == ["live-forces"]


@pytest.mark.slow
def test_phonons_without_stress_say_so(tmp_path):
    quick = {"phonons": {"prototypes": Sample(5)}}
    card = report_card.make(ASEPotential("ase:NoStress", NoStress()), tmp_path, quick=quick, n_resamples=50)
    assert card.failures["reason"].str.contains("gives no stress").any()


@pytest.mark.slow
def test_a_slow_calculator_does_not_take_all_day(few, tmp_path, monkeypatch):
    monkeypatch.setattr(report_card, "ATOMS_PER_SHARD", 1)
    card = make(VerySlow(), tmp_path, budget_minutes=0.4 / 60)
    overdue = card.not_run[card.not_run["reason"] == "no time left"]
    assert "elasticity" in set(overdue["benchmark"])
    assert "no time left" in (tmp_path / "report.html").read_text()
    # With time, the same call goes on; the shards that were done are kept.
    monkeypatch.setattr(VerySlow, "calculate", EMT.calculate)
    card = make(VerySlow(), tmp_path)
    assert card.not_run.empty
    assert set(card.lanes["benchmark"]) == set(TINY)


@pytest.mark.slow
def test_code_that_breaks_on_a_case_costs_that_case_only(few, tmp_path, monkeypatch):
    module = benchmarks.module("surfaces")
    work = module.run

    def breaks(potential, cases, protocol):
        if any(case.material == "Al" for case in cases):
            raise TypeError("unsupported operand")
        return work(potential, cases, protocol)

    monkeypatch.setattr(module, "run", breaks)
    card = make(EMT(), tmp_path)
    failed = card.failures.set_index("benchmark").loc["surfaces"]
    assert "TypeError: unsupported operand" in failed["reason"]
    assert card.lanes.set_index("lane").loc["surfaces-built", "n"] >= 2
    monkeypatch.setattr(module, "run", breaks)
    with pytest.raises(TypeError):
        runner.run_cases("surfaces", emt(), module.cases(sets=["tran-rebuilt"]), base=tmp_path / "strict", progress=False)


def test_a_broken_structure_does_not_spoil_the_next():
    """EMT keeps half of what it began with an element that it does not know."""
    from ase.build import bulk

    metals = [bulk("Cu", cubic=True), bulk("Ca", cubic=True), bulk("Cu", cubic=True) * (2, 1, 1)]
    fine, failed, after = emt().evaluate(metals)
    assert fine.ok
    assert "Ca" in failed.error
    assert after.ok
    assert after.energy == pytest.approx(2 * fine.energy)


def test_reasons_that_differ_in_numbers_and_elements_are_counted_together():
    reasons = ["bulk: No EMT-potential for Si", "No EMT-potential for W", "not converged in 300 steps: largest force 0.12 eV/Å"]
    reasons += ["slab: not converged in 300 steps: largest force 2.51 eV/Å"]
    table = pd.DataFrame({"case": list("abcd"), "status": "failed", "reason": reasons})
    found = report_card.failures({"surfaces": table})
    assert list(found["cases"]) == [2, 2]
    assert list(found["kinds"]) == [2, 2]
    assert found["reason"].iloc[0] == reasons[0]


# ---------------------------------------------------------------------------------------------------
# The page and the command


HOSTILE = '<script>alert("x")</script> $a_{$ & `|`\n# heading'


@pytest.mark.slow
def test_hostile_names_and_reasons_stay_text(few, tmp_path):
    class Hostile(EMT):
        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            if "O" in atoms.symbols:
                raise ValueError(HOSTILE)
            super().calculate(atoms, properties, system_changes)

    make(ASEPotential(f"ase:{HOSTILE}", Hostile()), tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    outside = re.sub(r"^(```+)\n.*?^\1$", "", (tmp_path / "report.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert "\n# heading" not in outside
    assert "<script" not in outside


def test_paths_of_files_are_not_shown():
    assert report_card.shown_name("file:/home/someone/secret/my-fix") == "file:my-fix"
    assert report_card.shown_name("ase:~/secret/mine.py:make") == "ase:mine.py:make"
    assert report_card.shown_name("ase:ase.calculators.emt.EMT") == "ase:ase.calculators.emt.EMT"
    assert report_card.shown_name("chgnet-0.3.0") == "CHGNet 0.3.0"


def test_signs_in_a_picture_and_a_table_are_explained_below_them():
    picture = style.blank(2)
    picture.text(0, 0, f"barriers: ions {OTHER_FUNCTIONAL}")
    for block in (page.Picture(picture, "alt", "Words."), page.Table(pd.DataFrame({"s": [0.8]}, index=["ions †"]), "Words.")):
        assert [block.html().count(NOTES[OTHER_FUNCTIONAL]), block.markdown().count(NOTES[OTHER_FUNCTIONAL])] == [1, 1]
    assert page.Picture(style.blank(2), "alt", "Words.").caption == "Words."


def test_figures_of_an_empty_card_say_so(few, tmp_path):
    card = make(Raises(), tmp_path)
    for figure in (report_card_page.slopes_figure, report_card_page.parity_figure):
        with pytest.raises(ValueError, match="nothing to draw"):
            figure(card)


@pytest.mark.slow
def test_the_command(few, tmp_path, monkeypatch):
    monkeypatch.setattr(report_card, "QUICK", TINY)
    arguments = ["report", "-m", "ase:ase.calculators.emt.EMT", "--out", str(tmp_path / "card"), "--processes", "1"]
    outcome = CliRunner().invoke(cli.app, arguments)
    assert outcome.exit_code == 0, outcome.output
    for words in ("surface energies, built", "No EMT-potential for Mg", "recommendation:", "report.html"):
        assert words in outcome.output
    again = CliRunner().invoke(cli.app, arguments)
    assert again.exit_code == 0
    assert "recommendation:" in again.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "chgnet"], "Known: chgnet-0.3.0"),
        (["-m", "ase:no.such.Thing"], "No module named"),
        (["-m", "file:missing.model"], "missing.model"),
        (["-m", "ase:ase.calculators.emt.EMT", "--budget", "0"], "positive number of minutes"),
    ],
)
def test_mistakes_are_one_line_and_a_status(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["softening", "report", "--out", str(tmp_path / "card"), *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "Traceback" not in said


def test_an_unverified_pickle_is_refused(tmp_path, monkeypatch, capsys):
    """Nothing is unpickled: the bytes below would write a file."""
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    (tmp_path / "evil.model").write_bytes(pickle.dumps(Evil()))
    monkeypatch.setattr(sys, "argv", ["softening", "report", "-m", f"file:{tmp_path / 'evil.model'}", "--out", str(tmp_path / "card")])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--trust" in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_complete_tables_are_used_in_full(tmp_path, data, monkeypatch, few):
    """What data/results holds is not computed again, and nothing is written there."""
    module = benchmarks.module("surfaces")
    cases = module.cases(sets=["tran-rebuilt"])
    first = runner.run_cases("surfaces", emt(), cases, progress=False)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*.parquet")}
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("computed again"))
    again = runner.run_cases("surfaces", emt(), cases, base=tmp_path / "card", progress=False)
    pd.testing.assert_frame_equal(first.table, again.table)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.parquet")} == before
    assert explanations.rows(AGAINST_DFT["surfaces-built"], again.table).shape[0] == len(cases)
