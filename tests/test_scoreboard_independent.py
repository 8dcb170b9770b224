"""The scoreboard recomputed, line by line, from the committed tables: plain pandas, nothing of the project's statistics.

Only the board under test is imported. Values and counts must agree to rounding, intervals with a bootstrap of another kind (other
seed, more resamples, rows weighted by how often their material is drawn), verdicts with the rule written once more.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers import results, scoreboard

DATA = Path(__file__).parents[1] / "data"
KEYS = {"M3GNet": "m3gnet-mp-2021.2.8", "CHGNet": "chgnet-0.3.0", "MACE": "mace-mp-0-medium"}
FIRST = KEYS | {"M3GNet": "m3gnet-tf-2021.2.8"}  # the weights of Figs. 2a and 2c
N_RESAMPLES = 8000
WIDTH = 0.12  # how far an end may be off, as a share of the interval's width: both bootstraps are random
MELTING_SI_K = 1687


def rule(paper, ours, low, high, not_soft, signed, within=0.2):
    if np.isnan(ours):
        return "missing"
    low, high = (ours, ours) if np.isnan(low) else (low, high)
    nearest, farthest = paper - within * abs(paper - not_soft), paper + within * abs(paper - not_soft)
    if nearest <= low and high <= farthest:
        return "agrees"
    if max(low, nearest) <= min(high, farthest):
        return "compatible"
    sides = {np.sign(end - not_soft) for end in (low, high)}
    return "same sign" if signed and sides == {np.sign(paper - not_soft)} != {0} else "differs"


def good(benchmark, key):
    path = DATA / "results" / benchmark / f"{key}.parquet"
    if not path.exists():
        return None
    table = results.read_table(path)
    for name in ("set", "material", "case", "property", "status"):
        table[name] = table[name].astype(str)
    return table[table["status"] == "ok"].astype({"value": float, "reference": float})


def ends(drawn, n_groups):
    """Percentiles, moved out as Student's t moves the normal's."""
    tail = stats.norm.cdf(stats.t.ppf(0.025, n_groups - 1) * np.sqrt(n_groups / (n_groups - 1)))
    return tuple(np.percentile(drawn[np.isfinite(drawn)], [100 * tail, 100 * (1 - tail)]))


def counts_of(n_groups):
    """Return how often each group is drawn, shape (N_RESAMPLES, n_groups)."""
    drawn = np.random.default_rng(12345).integers(0, n_groups, size=(N_RESAMPLES, n_groups))
    return np.stack([np.bincount(one, minlength=n_groups) for one in drawn])


def ratio_of_sums(above, below, groups):
    """Return Σ above / Σ below and its interval over groups."""
    sums = pd.DataFrame({"a": np.asarray(above, float), "b": np.asarray(below, float)}).groupby(np.asarray(groups)).sum().to_numpy()
    drawn = counts_of(len(sums)) @ sums
    value = sums[:, 0].sum() / sums[:, 1].sum()
    if value in (0.0, 1.0) and set(np.unique(above)) <= {0.0, 1.0}:  # a share at its end: exact binomial bound
        bound = 0.025 ** (1 / len(sums))
        return (value, bound, 1.0) if value == 1 else (value, 0.0, 1 - bound)
    return value, *ends(drawn[:, 0] / drawn[:, 1], len(sums))


def mae(rows, groups=None):
    return ratio_of_sums((rows["value"] - rows["reference"]).abs(), np.ones(len(rows)), rows["material"] if groups is None else groups)


def mean_error(rows):
    return ratio_of_sums(rows["value"] - rows["reference"], np.ones(len(rows)), rows["material"])


def below(rows):
    return ratio_of_sums((rows["value"] < rows["reference"]).astype(float), np.ones(len(rows)), rows["material"])


def slope(rows, groups=None):
    groups = rows["material"] if groups is None else groups
    return ratio_of_sums(rows["value"] * rows["reference"], rows["reference"] ** 2, groups)


def over_items(values, statistic):
    values = np.asarray(values, float)
    drawn = np.random.default_rng(99).choice(values, size=(N_RESAMPLES, len(values)))
    return float(statistic(values)), *ends(statistic(drawn, axis=1), len(values))


def printed(figure, panel, model, quantity):
    table = pd.read_csv(DATA / "paper" / "printed_values.csv", dtype=str)
    return float(table.query("figure == @figure and panel == @panel and model == @model and quantity == @quantity")["value"].item())


def points(name):
    """Return the points of a digitised parity figure, each model's beside DFT's."""
    wide = pd.read_csv(DATA / "paper" / f"{name}_digitised.csv")
    wide.columns = [next((m for m in ("DFT", *KEYS) if m in column.split("_")), column) for column in wide.columns]
    return {m: wide[["DFT", m]].dropna().rename(columns={"DFT": "reference", m: "value"}) for m in KEYS}


def surfaces(model):
    rows = good("surfaces", FIRST[model])
    rows = None if rows is None else rows.query("set == 'slabs-109' and property == 'gamma_relaxed'")
    drawn = points("fig2a")[model]
    error = drawn["value"] - drawn["reference"]
    yield "surface energy, MAE", printed("2", "a", model, "MAE"), rows, mae, (0, False)
    yield "surface energy, mean error", error.mean(), rows, mean_error, (0, True)
    yield "surface energy, share below DFT", (error < 0).mean(), rows, below, (0.5, True)


def defects(model):
    rows = good("defects", KEYS[model])
    if rows is not None:
        pooled = ["vacancies", "bcc-vacancies", "intermetallics"]
        rows = rows[rows["set"].isin(pooled) & (rows["kind"] != "site preference") & (rows["property"] == "relaxed")]
        rows = rows[rows["material"] != "NiTi"]  # no minimum in DFT
        rows = rows.assign(value=rows["value"] / rows["n_defects"], reference=rows["reference"] / rows["n_defects"])
    drawn = points("fig2b")[model]
    yield "defect energy, MAE", printed("2", "b", model, "MAE"), rows, mae, (0, False)
    line = (drawn["value"] * drawn["reference"]).sum() / (drawn["reference"] ** 2).sum()
    yield "defect energy, slope", line, rows, slope, (1, True)
    yield "defect energy, share below DFT", (drawn["value"] < drawn["reference"]).mean(), rows, below, (0.5, True)


def solutions(model):
    rows = good("solid_solutions", FIRST[model])
    rows = None if rows is None else rows.query("set == 'ca-mg-o' and property == 'formation_energy'")
    drawn = pd.read_csv(DATA / "paper" / "fig2c_digitised.csv").set_index("x_Ca")
    dft = drawn["E_DFT_eV_per_fu"]
    means = drawn.groupby(level=0).mean()

    def by_composition(rows):
        weighted = (rows["value"] * rows["multiplicity"]).groupby(rows["x"]).sum() / rows.groupby("x")["multiplicity"].sum()
        both = pd.DataFrame({"value": weighted, "reference": dft.groupby(level=0).mean()}).dropna()
        return slope(both[(both.index > 0) & (both.index < 1)], groups=np.arange(((both.index > 0) & (both.index < 1)).sum()))

    def lowest(rows):
        return rows.loc[rows["x"] == 0.5, "value"].min() / dft.loc[0.5].min(), np.nan, np.nan

    arrow = "lowest formation energy at x_Ca=0.5 (arrow label)"
    ratio = printed("2", "c", model, arrow) / printed("2", "c", "DFT", arrow)
    yield "formation energy, lowest at x = ½ over DFT", ratio, rows, lowest, (1, True)
    line = (means["E_DFT_eV_per_fu"] * means[f"E_{model}_eV_per_fu"]).sum() / (means["E_DFT_eV_per_fu"] ** 2).sum()
    yield "formation energy, slope of composition means", line, rows, by_composition, (1, True)


def migration(model):
    rows = good("migration", KEYS[model])
    rows = None if rows is None else rows.query("set == 'hops' and mobile_ion == 'Mg' and property == 'barrier'").dropna(subset="reference")
    violin = pd.read_csv(DATA / "paper" / "fig3b_stats.csv").set_index("model").loc[model]
    yield "Mg barrier, MAE", printed("3", "text", model, "KRA barrier MAE"), rows, mae, (0, False)
    yield "Mg barrier, mean error", violin["kde_mean"], rows, mean_error, (0, True)
    yield "Mg barrier, share below DFT", printed("3", "b", model, "fraction barrier underpredicted") / 100, rows, below, (0.5, True)


def phonons(model):
    table = good("phonons", KEYS[model])
    highest = None if table is None else table[table["property"] == "omega_max"]
    csf, many = (None, None) if table is None else (highest.query("set == 'csf'"), highest.query("set == 'phonondb'"))
    if table is None and model == "MACE":
        many = pd.read_csv(DATA / "reference" / "phonondb_omega_max_authors.csv")
        many = many.set_axis(["material", "reference", "value"], axis=1)
    peaks = pd.read_csv(DATA / "paper" / "fig4a_maxima.csv").query("feature.str.startswith('peak')")
    peaks = peaks.groupby("source")["parabola_max_THz"].max()
    violin = pd.read_csv(DATA / "paper" / "fig4b_stats.csv").set_index("model").loc[model]
    share = printed("4", "b", model, "fraction max(w_MLIP)/max(w_DFT) < 1") / 100

    def over(statistic):
        return lambda rows: over_items(rows["value"] / rows["reference"], statistic)

    yield "CsF, highest frequency", peaks[model], csf, lambda rows: (rows["value"].item(), np.nan, np.nan), (peaks["DFT"], True)
    yield "highest frequency / DFT, mean", violin["mean"], many, over(np.mean), (1, True)
    yield "highest frequency / DFT, median", violin["median"], many, over(np.median), (1, True)
    yield "share of compounds below DFT", share, many, lambda rows: over_items(rows["value"] < rows["reference"], np.mean), (0.5, True)


def forces(model):
    table = good("off_equilibrium", KEYS[model])
    own, many, name_of = None, None, "material"
    if table is not None:
        table = table[table["property"] == "force"]
        own = table[table["set"] == "wbm-21"]
        many = table[(table["set"] == "mattersim-tp") & table["pressure_gpa"].between(-20, 15, inclusive="neither")]
        many = many[many.groupby(name_of)["case"].transform("nunique") >= 3]
        strong = (many["reference"] ** 2).groupby(many[name_of]).transform("mean") >= 0.05**2
        many = many[strong]

    def per_compound(rows):
        xy, xx = (rows["value"] * rows["reference"]).groupby(rows[name_of]).sum(), (rows["reference"] ** 2).groupby(rows[name_of]).sum()
        return xy / xx

    def error(rows, corrected=False):
        value = rows["value"] / rows[name_of].map(per_compound(rows)) if corrected else rows["value"]
        return (value - rows["reference"]).abs().groupby(rows[name_of]).mean()

    violin = pd.read_csv(DATA / "paper" / "fig5b_stats.csv").set_index("model").loc[model]
    medians = pd.read_csv(DATA / "paper" / "fig6b_quartiles.csv").set_index(["model", "quantity"]).loc[model, "median"]
    share = printed("5", "b", model, "fraction softening scale < 1") / 100
    yield "softening scale s, median", violin["median"], own, slope, (1, True)
    yield "softening scale s, median", violin["median"], many, lambda rows: over_items(per_compound(rows), np.median), (1, True)
    yield "share with s < 1", share, many, lambda rows: over_items(per_compound(rows) < 1, np.mean), (0.5, True)
    yield "force MAE, median", medians["MAE"], own, lambda rows: over_items(error(rows), np.median), (0, False)
    yield "force MAE, median", medians["MAE"], many, lambda rows: over_items(error(rows), np.median), (0, False)
    yield "force cMAE, median", medians["cMAE"], many, lambda rows: over_items(error(rows, True), np.median), (0, False)


def one_label(by_temperature=True, factor="s′"):
    """Return slope and error ratio of silicon's crystals for every choice of the label, with numpy alone."""
    table = good("off_equilibrium", KEYS["CHGNet"])
    chosen = (table["set"] == "single-element-md") & (table["material"] == "Si") & (table["group"] == "AIMD-NVT")
    table = table[chosen & (table["property"] == "force") & (table["temperature_k"] < MELTING_SI_K)]
    found = []
    for _, run in table.groupby("temperature_k" if by_temperature else (lambda _: 0)):
        for case in run["case"].unique():
            label, others = run[run["case"] == case], run[run["case"] != case]
            x, y = label["reference"].to_numpy(), label["value"].to_numpy()
            c = x @ y / (y @ y) if factor == "s′" else x @ x / (x @ y)
            x, y = others["reference"].to_numpy(), others["value"].to_numpy()
            found.append((x @ (c * y) / (x @ x), np.abs(c * y - x).mean() / np.abs(y - x).mean()))
    return np.array(found)


def cure(model):
    if model != "CHGNet":
        return
    before = printed("5", "a", "CHGNet", "force MAE")
    choices = one_label()
    tuned = good("fine_tuning", KEYS["CHGNet"])
    tuned = tuned[(tuned["set"] == "ten-labels") & (tuned["material"] == "Si") & (tuned["property"] == "force")]
    error = (tuned["value"] - tuned["reference"]).abs().groupby([tuned["stage"].astype(str), tuned["case"]]).mean()
    after = tuned[tuned["stage"] == "after"]
    slopes = after.groupby("case")[["value", "reference"]].apply(
        lambda g: (g["value"] @ g["reference"]) / (g["reference"] @ g["reference"])
    )
    left = error["after"] / error["before"].item()
    for word, panel, label, found, middle, quantiles in (
        ("one label", "a-left", "CHGNet linear corrected, 1 structure", choices, np.median, (2.5, 97.5)),
        ("ten labels", "a-right", "CHGNet fine tuned, 10 structure", np.column_stack([slopes, left]), np.mean, (0, 100)),
    ):
        for column, (quantity, scale) in enumerate({"slope": 1.0, "MAE after / before": before}.items()):
            paper = printed("6", panel, label, "slope" if column == 0 else "force MAE") / scale
            values = found[:, column]
            yield f"{quantity}, {word}", paper, values, lambda v, m=middle, q=quantiles: (m(v), *np.percentile(v, q)), (1, True)


def counted(quantity, rows):
    if quantity.startswith(("softening", "share with", "force")):
        return rows["material"].nunique()
    return len(rows)


@pytest.fixture(scope="module")
def recomputed():
    families = (surfaces, defects, solutions, migration, phonons, forces, cure)
    lines = []
    for family in families:
        for model in KEYS:
            key = (FIRST if family in (surfaces, solutions) else KEYS)[model]
            for quantity, paper, rows, measure, (not_soft, signed) in family(model):
                value, low, high = (np.nan,) * 3 if rows is None else measure(rows)
                n = 0 if rows is None else counted(quantity, rows)
                lines.append((key, quantity, paper, value, low, high, n, not_soft, signed))
    columns = ["key", "quantity", "paper", "ours", "ours_low", "ours_high", "n", "not_soft", "signed"]
    found = pd.DataFrame(lines, columns=columns).drop_duplicates(["key", "quantity", "ours"])
    # Two lines of one quantity and model come in the board's order: the paper's own frames first.
    return found.assign(at=found.groupby(["key", "quantity"]).cumcount()).set_index(["key", "quantity", "at"])


@pytest.fixture(scope="module")
def both(board, recomputed):
    mine = board.assign(at=board.groupby(["key", "quantity"]).cumcount()).set_index(["key", "quantity", "at"])
    assert set(mine.index) == set(recomputed.index)
    return mine, recomputed.loc[mine.index]


@pytest.mark.slow
def test_values_and_counts_agree_line_by_line(both):
    board, mine = both
    assert (board["n"] == mine["n"]).all(), board.index[board["n"] != mine["n"]].tolist()
    for column in ("paper", "ours", "not_soft"):
        off = ~np.isclose(board[column], mine[column], rtol=1e-6, atol=1e-9, equal_nan=True)
        assert not off.any(), f"{column}: {board.index[off].tolist()}"
    assert (board["signed"] == mine["signed"]).all()


@pytest.mark.slow
def test_intervals_agree_with_another_bootstrap(both):
    board, mine = both
    assert (board["ours_low"].isna() == mine["ours_low"].isna()).all()
    width = mine["ours_high"] - mine["ours_low"]
    for end in ("ours_low", "ours_high"):
        off = (board[end] - mine[end]).abs() > WIDTH * width
        assert not off.any(), f"{end}: {[(key, board.loc[key, end], mine.loc[key, end]) for key in board.index[off]]}"


@pytest.mark.slow
@pytest.mark.parametrize("within", [0.1, 0.2, 0.3])
def test_verdicts_follow_the_rule_on_either_interval(both, within):
    board, mine = both
    columns = ["paper", "ours", "ours_low", "ours_high", "not_soft", "signed"]
    judged = scoreboard.judge(board, within)
    if within == 0.2:
        assert judged == board["verdict"].tolist()
    told = [rule(*line, within) for line in board[columns].itertuples(index=False)]
    assert judged == ["published by others" if by_others else word for word, by_others in zip(told, board["by_others"], strict=True)]
    assert board.index[board["by_others"]].get_level_values("key").unique().tolist() == ["mace-mp-0-medium"]
    # With the other bootstrap's ends a line may only change if an end lies on the edge of the band or of "not soft".
    for (key, line), word in zip(mine[columns].iterrows(), judged, strict=True):
        ours = rule(*line, within)
        if ours != word and not board.loc[key, "by_others"]:
            reach = within * abs(line["paper"] - line["not_soft"])
            edges = np.array([line["paper"] - reach, line["paper"] + reach, line["not_soft"]])
            nearest = np.abs(np.array([line["ours_low"], line["ours_high"]])[:, None] - edges).min()
            assert nearest <= WIDTH * (line["ours_high"] - line["ours_low"]), (key, word, ours)


@pytest.mark.slow
def test_counts_add_up(board):
    counted = scoreboard.counts(board)
    assert (counted.xs("all", level="lines").sum(axis=1) == len(board)).all()
    for band in ("10 %", "20 %", "30 %"):
        parts = counted.loc[band]
        assert (parts.loc["like for like"] + parts.loc["a part of the same"] + parts.loc["other systems"]).equals(parts.loc["all"])
    assert counted.loc["20 %", "all"].to_dict() == {word: int((board["verdict"] == word).sum()) for word in scoreboard.VERDICTS}


@pytest.mark.slow
def test_one_label_like_for_like_is_near_the_papers_slope():
    """A trained scalar is s', and one run has one temperature; nothing here knows the paper's 0.965."""
    table = scoreboard.one_label().query("material == 'Si'")
    for factor in ("s′", "1/s"):
        for frames, by_temperature in (("pooled", False), ("apart", True)):
            rows = table[(table["factor"] == factor) & ((table["frames"] == "all temperatures") != by_temperature)]
            mine = one_label(by_temperature, factor)
            assert len(rows) == len(mine) == 60, frames
            np.testing.assert_allclose(np.sort(rows["slope_after"]), np.sort(mine[:, 0]), rtol=1e-6)
            np.testing.assert_allclose(np.sort(rows["ratio"]), np.sort(mine[:, 1]), rtol=1e-6)
    apart = table[table["frames"] != "all temperatures"].groupby(["factor", "frames"])["slope_after"].median()
    assert apart["s′"].round(2).between(0.95, 0.98).all()
    assert len(apart["s′"]) == 3
    assert (apart["1/s"] > apart["s′"]).all()
    pooled = table[table["frames"] == "all temperatures"].groupby("factor")["slope_after"].median()
    assert (pooled > 1.05).all()
