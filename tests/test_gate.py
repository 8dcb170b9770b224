"""The gate: conditions on a report card, the badge, two cards on one page, and what the JSON promises."""

import json
import xml.etree.ElementTree as ET

import jsonschema
import pytest
from typer.testing import CliRunner

from helpers import cli, registry
from helpers.potentials import PotentialError
from helpers.reports import gate, report_card, report_card_page

SLOPES = {"surfaces-built": ("surfaces", 0.85, 1.1), "phonons": ("phonons", 0.9, 1.05), "forces-wbm": ("off_equilibrium", 1.0, 1.0)}


def card(**slopes):
    """A card as read from disk, with slopes by family in the place of the usual ones; None for a family that is not there."""
    lanes = []
    for lane, (benchmark, slope, inverse) in SLOPES.items():
        slope = slopes.get(lane.replace("-", "_"), slope)
        if slope is not None:
            entry = {"lane": lane, "name": lane.title(), "benchmark": benchmark, "against": "DFT", "slope": slope}
            lanes.append(entry | {"inverse_slope": inverse, "mae": 0.1})
    about = {"schema": gate.SCHEMA, "name": "Mine", "date": "2026-01-01", "cases": 10}
    return about | {"lanes": lanes, "failed_cases": {"surfaces": 0, "phonons": 2, "off_equilibrium": 0}}


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ("surfaces<0.9", ["surfaces-built: slope 0.85 < 0.9"]),
        ("surfaces-built < .8", []),
        ("surfaces<0.9, phonons<0.95,forces-wbm<1", ["surfaces-built: slope 0.85 < 0.9", "phonons: slope 0.9 < 0.95"]),
        ("any inverse_slope>1.04", ["surfaces-built: inverse_slope 1.1 > 1.04", "phonons: inverse_slope 1.05 > 1.04"]),
        ("any failed>0", ["phonons: failed 2 > 0"]),
        ("phonons drop>0.03", ["phonons: drop 0.05 > 0.03"]),
        ("surfaces drop>0.03", []),
        ("forces-wbm drop > -0.01", ["forces-wbm: drop 0 > -0.01"]),
        ("phonons mae>1e-2", ["phonons: mae 0.1 > 0.01"]),
        ("phonons-pbe failed>1", ["phonons: failed 2 > 1"]),
    ],
)
def test_conditions(conditions, told):
    assert gate.failing(card(), conditions, card(phonons=0.95)) == told


def test_what_was_not_measured_has_not_passed():
    assert gate.failing(card(phonons=None), "phonons<0.1") == ["phonons: slope was not measured"]
    assert gate.failing(card(), "phonons-pbe<0.1") == ["phonons-pbe: slope was not measured"]
    assert gate.failing(card(), "phonons drop>0.5", card(phonons=None)) == ["phonons: drop was not measured in both cards"]


def test_a_family_that_the_new_version_has_lost_has_not_passed():
    """A potential that fails on every phonon has no slope of phonons: that is worse than any drop."""
    assert gate.failing(card(phonons=None), "any drop>0.5", card()) == ["phonons: drop was not measured in both cards"]
    empty = card()
    empty["lanes"][1]["slope"] = None
    assert gate.failing(empty, "any drop>0.5", card()) == ["phonons: drop was not measured in both cards"]
    assert "(2 families)" in gate.badge(empty)


def test_the_schema_knows_every_verdict():
    schema = json.loads((registry.data_dir() / "reference" / "report_card.schema.json").read_text())
    known = set(schema["properties"]["lanes"]["items"]["properties"]["verdict"]["enum"])
    assert known == {*report_card_page.VERDICTS, *report_card.RELATIVE.values()}


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("surfaces", "'surfaces' cannot be understood; wanted: FAMILY"),
        ("surfaces slop<0.9", r"Did you mean slope\?"),
        ("surface<0.9", r"names surface, no family; there are any, .*Did you mean surfaces\?"),
        ("phonons drop>0.1", "--against must name the earlier card"),
        (" , ", "no condition"),
    ],
)
def test_conditions_that_mean_nothing_are_refused(conditions, message):
    with pytest.raises(ValueError, match=message):
        gate.failing(card(), conditions)


def test_the_badge_says_the_median_and_how_many():
    root = ET.fromstring(gate.badge(card()))  # noqa: S314  (our own)
    assert root.get("aria-label") == "softening: s = 0.90 (3 families)"
    assert "not measured" in gate.badge(card() | {"lanes": []})
    assert len({gate.badge(card(phonons=slope)) for slope in (0.9, 0.91)}) == 2


def test_another_version_or_another_file_is_no_card(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(card() | {"schema": 0}))
    with pytest.raises(PotentialError, match="version 0; 1 is wanted"):
        gate.read(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(PotentialError, match="is no report card"):
        gate.read(tmp_path / "report.json")


@pytest.mark.slow
def test_the_command_judges_and_its_json_is_what_the_schema_says(tmp_path, monkeypatch):
    """EMT against itself half as steep: both cards, the page, the exit status; a finished card is judged at once."""
    from helpers.benchmarks import Sample

    monkeypatch.setenv(registry.OFFLINE_VARIABLE, "1")
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(
        report_card, "plans", lambda full, quick, plans=report_card.plans: plans(full, {"surfaces": {"tran-rebuilt": Sample(4)}})
    )
    (tmp_path / "half.py").write_text(
        "from ase.calculators.emt import EMT\n\nclass Half(EMT):\n    def calculate(self, *args, **kwargs):\n"
        "        super().calculate(*args, **kwargs)\n        self.results = {k: v / 2 for k, v in self.results.items()}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    first, second = tmp_path / "first", tmp_path / "second"

    def report(key, *rest):
        return CliRunner().invoke(cli.app, ["report", "-m", key, "--processes", "1", *map(str, rest)])

    done = report("ase:ase.calculators.emt.EMT", "-o", first)
    assert done.exit_code == 0, done.output
    schema = json.loads((registry.data_dir() / "reference" / "report_card.schema.json").read_text())
    assert schema["properties"]["schema"]["const"] == gate.SCHEMA
    jsonschema.validate(gate.read(first), schema)
    assert (first / "badge.svg").is_file()
    judged = report("ase:half.Half", "-o", second, "--against", first, "--fail-if", "surfaces drop>0.1")
    assert judged.exit_code == 1, judged.output
    assert "gate: surfaces-built: drop" in judged.output
    assert "surfaces-built: drop" in (second / "against" / "report.html").read_text()
    again = report("ase:half.Half", "-o", second, "--against", first, "--fail-if", "surfaces<0.01")
    assert again.exit_code == 0, again.output
    jsonschema.validate(gate.read(second), schema)
