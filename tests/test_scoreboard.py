"""The scoreboard's rule, and that its numbers come from where it says."""

import numpy as np
import pandas as pd
import pytest

from helpers import potentials, results, scoreboard
from helpers.benchmarks import defects, off_equilibrium, surfaces


@pytest.mark.parametrize(
    ("paper", "ours", "low", "high", "soft", "expected"),
    [
        (0.80, 0.84, np.nan, np.nan, "below one", "reproduced"),  # within a tenth
        (0.80, 0.95, 0.75, 1.10, "below one", "reproduced"),  # inside the interval
        (0.80, 0.95, 0.90, 0.99, "below one", "same direction"),
        (0.80, 1.05, 1.01, 1.10, "below one", "not reproduced"),
        (-0.04, -0.02, -0.03, -0.01, "negative", "same direction"),
        (-0.04, 0.02, 0.01, 0.03, "negative", "not reproduced"),
        (0.97, 0.40, 0.30, 0.50, "majority", "not reproduced"),
        (0.80, np.nan, np.nan, np.nan, "below one", "missing"),
    ],
)
def test_verdict_follows_the_rule(paper, ours, low, high, soft, expected):
    assert scoreboard.verdict(paper, ours, low, high, soft) == expected


def test_printed_numbers_are_the_papers():
    assert scoreboard.printed("2", "a", "CHGNet", "MAE") == 0.042
    assert scoreboard.printed("6", "a-right", "CHGNet fine tuned, 10 structure", "slope") == 0.995
    with pytest.raises(KeyError, match="0 printed values"):
        scoreboard.printed("2", "a", "CHGNet", "colour")


def test_digitised_errors_agree_with_the_printed_mae():
    points = pd.read_csv(scoreboard.data_dir() / "paper" / "fig2a_digitised.csv")
    for label in ("M3GNet", "CHGNet", "MACE"):
        mae = (points[f"{label}_eV_per_A2"] - points["DFT_eV_per_A2"]).abs().mean()
        assert mae == pytest.approx(scoreboard.printed("2", "a", label, "MAE"), abs=1.5e-3)


def test_the_board_is_complete_and_comes_from_the_tables():
    board = scoreboard.table()
    labels = {entry.label for entry in potentials.CATALOGUE.values() if entry.paper_label}
    assert labels == set(board["model"])
    assert set(board["verdict"]) <= {"reproduced", "same direction", "not reproduced", "missing"}
    for line in board.itertuples():
        families = {"2a": "surfaces", "2b": "defects", "2c": "solid_solutions", "3b": "migration", "4a": "phonons", "4b": "phonons"}
        benchmark = "fine_tuning" if "ten labels" in line.quantity else families.get(line.figure, "off_equilibrium")
        missing = line.key not in results.models(benchmark)
        assert (line.verdict == "missing") == missing
        assert np.isfinite(line.ours) != missing
        if missing:
            assert line.ours_on.startswith("softening run ")
    chgnet = board[(board["key"] == "chgnet-0.3.0") & (board["quantity"] == "surface energy, MAE")].iloc[0]
    summary = surfaces.summarise(results.read("surfaces", "chgnet-0.3.0")).set_index(["set", "property"])
    assert chgnet["ours"] == pytest.approx(summary.loc[("slabs-109", "gamma_relaxed"), "mae"])
    found = board[(board["key"] == "chgnet-0.3.0") & (board["figure"] == "2b")].set_index("quantity")["ours"]
    summary = defects.summarise(results.read("defects", "chgnet-0.3.0")).set_index(["set", "property"]).loc[("all", "relaxed")]
    assert found["defect energy, MAE"] == pytest.approx(summary["mae"])
    assert found["defect energy, slope"] == pytest.approx(summary["slope"])
    scales = board[(board["key"] == "chgnet-0.3.0") & (board["quantity"] == "softening scale s, median")]["ours"].tolist()
    summary = off_equilibrium.summarise(results.read("off_equilibrium", "chgnet-0.3.0")).set_index("set")
    assert scales == pytest.approx([summary.loc["wbm-21", "slope_median"], summary.loc["mattersim-tp", "slope_median"]])
    # A model that has no phonons for some compounds is compared on the others, and says so.
    for key in ("chgnet-0.3.0", "m3gnet-mp-2021.2.8"):
        highest = results.read("phonons", key).query("set == 'phonondb' and property == 'omega_max'")
        n = int((highest["status"] == "ok").sum())
        shown = set(board.loc[(board["key"] == key) & (board["figure"] == "4b"), "ours_on"])
        assert shown == {"the same 229 compounds" if n == 229 else f"{n} of the same 229 compounds"}


def test_readable_marks_digitised_and_missing_numbers():
    shown = scoreboard.readable(scoreboard.table())
    assert shown["paper"].str.endswith("*").any()
    assert (shown.loc[shown["verdict"] == "missing", "ours"] == "–").all()
    assert shown.loc[shown["verdict"] != "missing", "ours"].str.contains(r"^-?\d").all()


def test_ideas_are_told_with_the_numbers_of_their_tables():
    ideas = scoreboard.ideas()
    labels = results.read("weak_labels", "chgnet-0.3.0")
    heavy = labels[(labels["set"] == "steps") & (labels["method"] == "taylor") & (labels["labels"] == "energy and forces")]
    heavy = heavy[(heavy["direction"] == "random") & (heavy["step_a"] == heavy["step_a"].max()) & (heavy["property"] == "slope")]
    assert f"{heavy['value'].iloc[0]:.2f} with the loss" in ideas.loc["Physics-informed weak supervision", "measured"]
    assert not ideas.isin([""]).any(axis=None)
    assert not ideas["measured"].str.contains("nan").any()


def test_ideas_need_their_tables(monkeypatch, tmp_path):
    (tmp_path / "registry.csv").write_text("")
    monkeypatch.setenv("SOFTENING_DATA", str(tmp_path))
    with pytest.raises(results.ResultsError, match="weak_labels"):
        scoreboard.ideas()
