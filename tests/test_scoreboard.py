"""The scoreboard's rule, and that its numbers come from where it says."""

import numpy as np
import pandas as pd
import pytest

from helpers import potentials, results, scoreboard
from helpers.benchmarks import defects, off_equilibrium, surfaces

SLOPE, SHARE, MEAN_ERROR, ERROR = (1.0, True), (0.5, True), (0.0, True), (0.0, False)


@pytest.mark.parametrize(
    ("paper", "ours", "low", "high", "kind", "expected"),
    [
        (0.75, 0.76, 0.72, 0.79, SLOPE, "agrees"),  # the band is 0.70 to 0.80
        (0.75, 0.80, 0.70, 0.80, SLOPE, "agrees"),  # its edges belong to it
        (0.75, 0.75, 0.40, 1.10, SLOPE, "compatible"),  # a wide interval decides nothing, even around the paper's number
        (0.75, 0.75, 0.40, 0.90, SLOPE, "compatible"),
        (0.75, 0.85, 0.80, 0.90, SLOPE, "compatible"),  # touches the band from outside
        (0.75, 0.85, 0.81, 0.90, SLOPE, "same sign"),
        (0.75, 0.90, 0.81, 1.00, SLOPE, "differs"),  # the interval holds one
        (0.75, 0.50, 0.40, 0.60, SLOPE, "same sign"),  # softer than the paper's
        (0.75, 1.25, 1.20, 1.30, SLOPE, "differs"),  # the opposite side of one
        (1.25, 1.50, 1.40, 1.60, SLOPE, "same sign"),  # the paper's number on the stiff side
        (1.25, 0.75, 0.70, 0.80, SLOPE, "differs"),
        (0.97, 0.90, 0.88, 0.95, SHARE, "agrees"),  # what counts is the distance from one half
        (0.97, 0.70, 0.60, 0.80, SHARE, "same sign"),
        (0.97, 0.60, 0.45, 0.70, SHARE, "differs"),
        (0.97, 0.30, 0.20, 0.40, SHARE, "differs"),
        (-0.04, -0.02, -0.03, -0.01, MEAN_ERROR, "same sign"),
        (-0.04, -0.02, -0.05, 0.01, MEAN_ERROR, "compatible"),
        (-0.04, 0.04, 0.03, 0.05, MEAN_ERROR, "differs"),
        (0.04, 0.02, 0.01, 0.03, ERROR, "differs"),  # an absolute error has no sign
        (0.04, 0.04, 0.035, 0.045, ERROR, "agrees"),
        (0.04, 0.03, 0.02, 0.035, ERROR, "compatible"),
        (0.75, 0.79, np.nan, np.nan, SLOPE, "agrees"),  # a value without an interval is its own
        (0.75, 0.85, np.nan, np.nan, SLOPE, "same sign"),
        (0.75, 1.00, np.nan, np.nan, SLOPE, "differs"),
        (0.75, 0.78, np.nan, 0.85, SLOPE, "compatible"),  # half an interval
        (1.00, 0.90, 0.80, 0.95, SLOPE, "differs"),  # no effect in the paper: no band, no side
        (1.00, 0.90, 0.80, 1.05, SLOPE, "compatible"),
        (1.00, 1.00, np.nan, np.nan, SLOPE, "agrees"),
        (0.75, np.nan, np.nan, np.nan, SLOPE, "missing"),
        (5.0, 5.2, np.nan, np.nan, (6.0, True), "agrees"),  # a frequency against DFT's
        (5.0, 5.6, np.nan, np.nan, (6.0, True), "same sign"),
        (5.0, 6.1, np.nan, np.nan, (6.0, True), "differs"),
    ],
)
def test_verdict_follows_the_rule(paper, ours, low, high, kind, expected):
    assert scoreboard.verdict(paper, ours, low, high, *kind) == expected


@pytest.mark.parametrize(("within", "expected"), [(0.1, "same sign"), (0.2, "compatible"), (0.3, "agrees")])
def test_a_wider_band_is_kinder(within, expected):
    assert scoreboard.verdict(0.5, 0.62, 0.60, 0.64, within=within) == expected


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="published number is nan"):
        scoreboard.verdict(np.nan, 0.8)
    with pytest.raises(ValueError, match=r"\[0.9, 0.7\] has its ends the wrong way round"):
        scoreboard.verdict(0.8, 0.8, 0.9, 0.7)


def test_counts_are_per_band_and_way():
    board = pd.DataFrame(
        {
            "paper": [0.5, 0.5, 0.5],
            "ours": [0.62, 0.5, np.nan],
            "ours_low": [0.60, np.nan, np.nan],
            "ours_high": [0.64, np.nan, np.nan],
            "not_soft": 1.0,
            "signed": True,
            "compared": ["like for like", "other systems", "other systems"],
            "by_others": False,
        }
    )
    counts = scoreboard.counts(board)
    assert counts.columns.tolist() == ["agrees", "compatible", "same sign", "differs", "published by others", "missing"]
    assert counts.loc["10 %", "like for like"].tolist() == [0, 0, 1, 0, 0, 0]
    assert counts.loc["20 %", "like for like"].tolist() == [0, 1, 0, 0, 0, 0]
    assert counts.loc["30 %", "all"].tolist() == [2, 0, 0, 0, 0, 1]
    by_others = scoreboard.counts(board.assign(by_others=[True, False, False]))
    assert by_others.loc["20 %", "like for like"].tolist() == [0, 0, 0, 0, 1, 0], "what others computed is not judged"


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


@pytest.mark.slow
def test_the_board_is_complete_and_comes_from_the_tables(board):
    labels = {entry.label for entry in potentials.CATALOGUE.values() if entry.paper_label}
    assert labels == set(board["model"])
    assert set(board["verdict"]) <= set(scoreboard.VERDICTS)
    for line in board.itertuples():
        families = {"2a": "surfaces", "2b": "defects", "2c": "solid_solutions", "3b": "migration", "4a": "phonons", "4b": "phonons"}
        benchmark = "fine_tuning" if "ten labels" in line.quantity else families.get(line.figure, "off_equilibrium")
        missing = line.key not in results.models(benchmark)
        by_others = missing and line.figure == "4b"
        assert (line.verdict == "published by others") == line.by_others == by_others
        assert (line.verdict == "missing") == (missing and not by_others)
        assert np.isfinite(line.ours) == (by_others or not missing)
        if line.verdict == "missing":
            assert line.ours_on.startswith("softening run ")
    chgnet = board[(board["key"] == "chgnet-0.3.0") & (board["quantity"] == "surface energy, MAE")].iloc[0]
    summary = surfaces.summarise(results.read("surfaces", "chgnet-0.3.0")).set_index(["set", "property"])
    assert chgnet["ours"] == pytest.approx(summary.loc[("slabs-109", "gamma_relaxed"), "mae"])
    found = board[(board["key"] == "chgnet-0.3.0") & (board["figure"] == "2b")].set_index("quantity")["ours"]
    summary = defects.summarise(results.read("defects", "chgnet-0.3.0")).set_index(["set", "property"]).loc[("all", "relaxed")]
    assert found["defect energy, MAE"] == pytest.approx(summary["mae"])
    assert found["defect energy, slope"] == pytest.approx(summary["slope"])
    scales = board[(board["key"] == "chgnet-0.3.0") & (board["quantity"] == "softening scale s, median")].set_index("compared")["ours"]
    summary = off_equilibrium.summarise(results.read("off_equilibrium", "chgnet-0.3.0")).set_index("set")
    # The paper's frames are too few for a scale of each compound.
    assert scales["a part of the same"] == pytest.approx(summary.loc["wbm-21", "slope"])
    assert scales["other systems"] == pytest.approx(summary.loc["mattersim-tp", "slope_median"])


@pytest.mark.slow
def test_a_board_of_some_figures_is_that_part_of_the_whole(board):
    for chosen in (("2c", "4b"), ("6a",)):
        pd.testing.assert_frame_equal(scoreboard.table(*chosen), board[board["figure"].isin(chosen)].reset_index(drop=True))
    with pytest.raises(KeyError, match="no figure 9z; it has 2a, 2b"):
        scoreboard.table("2a", "9z")


@pytest.mark.slow
def test_a_line_says_how_many_of_its_cases_there_are(board):
    for key in ("chgnet-0.3.0", "m3gnet-mp-2021.2.8"):
        lines = board[board["key"] == key]
        highest = results.read("phonons", key).query("set == 'phonondb' and property == 'omega_max'")
        n = int((highest["status"] == "ok").sum())
        count = "229" if n == 229 else f"{n} of 229"
        assert set(lines.loc[lines["figure"] == "4b", "ours_on"]) == {f"{count} compounds, the paper's own"}
        point = lines[lines["figure"] == "2b"].iloc[0]
        failed = defects.summarise(results.read("defects", key)).set_index(["set", "property"]).loc[("all", "relaxed"), "n_failed"]
        assert point["ours_on"].startswith(f"{point['n']} of {point['n'] + failed} " if failed else f"{point['n']} ")
    for key in ("chgnet-0.3.0", "m3gnet-tf-2021.2.8"):
        mixed = board[(board["key"] == key) & (board["figure"] == "2c")]
        assert mixed["ours_on"].str.contains(f" {mixed['n'].iloc[0]} orderings").all()


def test_a_chapter_tells_the_boards_verdicts():
    board = pd.DataFrame(
        {
            "figure": ["2b", "2b", "2b", "3b", "4a"],
            "key": "one",
            "quantity": ["defect energy, MAE", "defect energy, slope", "defect energy, share", "Mg barrier, MAE", "CsF, frequency"],
            "verdict": ["differs", "compatible", "compatible", "same sign", "agrees"],
        }
    )
    assert scoreboard.told(board, "2b", "one") == "compatible (slope, share), differs (MAE)"
    assert scoreboard.told(board, "3b", "one") == "same sign"
    assert scoreboard.told(board, "4a", "one") == "agrees"


@pytest.mark.slow
def test_only_the_papers_own_structures_are_like_for_like(board):
    like = board[board["compared"] == "like for like"]
    assert set(like["figure"]) == {"4a", "4b"}
    assert (board.loc[board["figure"].isin(["4a", "4b"]), "compared"] == "like for like").all()
    part = board[board["compared"] == "a part of the same"]
    assert set(part["figure"]) == {"5b", "6b"}
    assert part.loc[part["verdict"] != "missing", "ours_on"].str.contains("paper's frames").all()
    # Forces of many other compounds: no line may claim more than the sign, which is what the chapter says.
    tp = board[(board["figure"] == "5b") & (board["compared"] == "other systems") & (board["verdict"] != "missing")]
    assert set(tp["verdict"]) <= {"same sign", "differs"}
    assert len(tp) == 4


@pytest.mark.slow
def test_what_the_papers_figures_show_stands_beside_what_it_prints(board):
    shown = scoreboard.readable(board).reset_index().set_index(["figure", "quantity", "model"])["paper"]
    for quantity, figure, printed, drawn in (
        ("share with s < 1", "5b", (0.930, 0.981, 0.965), (0.923, 0.879, 0.867)),
        ("Mg barrier, share below DFT", "3b", (0.851, 0.828, 0.738), (0.791, 0.780, 0.702)),
    ):
        for model, one, other in zip(("M3GNet 2021.2.8", "CHGNet 0.3.0", "MACE-MP-0"), printed, drawn, strict=True):
            assert set(shown[[(figure, quantity, model)]]) == {f"{one:.3f}; {other:.3f}\u00a0*"}


@pytest.mark.slow
def test_readable_marks_digitised_and_missing_numbers(board):
    shown = scoreboard.readable(board)
    assert shown["paper"].str.endswith("*").any()
    assert (shown.loc[shown["verdict"] == "missing", "ours"] == "–").all()
    assert shown.loc[shown["verdict"] != "missing", "ours"].str.contains(r"^−?\d").all()


def test_ideas_are_told_with_the_numbers_of_their_tables():
    ideas = scoreboard.ideas()
    labels = pd.read_csv(scoreboard.data_dir() / "reference" / "weak_labels_tried.csv")
    heavy = labels[(labels["set"] == "steps") & (labels["method"] == "taylor") & (labels["labels"] == "energy and forces")]
    heavy = heavy[(heavy["direction"] == "random") & (heavy["step_a"] == heavy["step_a"].max())]
    assert f"{heavy['slope'].mean():.2f} with the loss" in ideas.loc["Physics-informed weak supervision", "measured"]
    assert not ideas.isin([""]).any(axis=None)
    assert not ideas["measured"].str.contains("nan").any()


def test_ideas_need_their_tables(monkeypatch, tmp_path):
    (tmp_path / "registry.csv").write_text("")
    monkeypatch.setenv("SOFTENING_DATA", str(tmp_path))
    with pytest.raises(results.ResultsError, match="coverage"):
        scoreboard.ideas()
