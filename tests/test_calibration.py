"""Scales before any DFT: made-up families whose truth is known, and the committed tables."""

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Element
from scipy import stats

from helpers import calibration, explanations, figures, potentials, results

SOFT, STIFF = "chgnet-0.3.0", ("tensornet-matpes-pbe-2025.1", "sevennet-0")
# Pairs of elements: as many chemistries as one may want.
CHEMISTRIES = [f"{Element.from_Z(3 + n // 40).symbol}{Element.from_Z(30 + n % 40).symbol}" for n in range(400)]


def family(n=40, softness=1.0, noise=0.0, between=0.2, values=8, seed=0, twice=0):
    """Return a table as of explanations.rows: the soft model's scale varies between materials, the stiff ones are soft by a constant.

    ``noise`` is that of log(s/p); the first ``twice`` chemistries have a second material.
    """
    rng = np.random.default_rng(seed)
    position = np.concatenate([np.arange(n), np.arange(twice)])
    names = [f"{CHEMISTRIES[k]}{number}" for number, k in enumerate(position)]
    at = np.repeat(np.arange(len(position)), values)
    x, s = rng.normal(size=len(at)), np.exp(rng.normal(np.log(0.7), between, len(position)))
    k = softness * np.exp(noise * rng.normal(size=len(position)))[at] * x
    one = {"material": np.array(names)[at], "case": np.arange(len(at)).astype(str), "reference": x, "atom": 0.0}
    one["formula"] = np.array(CHEMISTRIES)[position[at]]
    sides = {SOFT: s[at] * x} | dict.fromkeys(STIFF, k)
    return pd.concat([pd.DataFrame(one | {"model": model, "value": value}) for model, value in sides.items()], ignore_index=True)


def scales(**options):
    # One stiff model: two that agree to rounding would be refused for their rounding.
    return {"made-up": calibration.materials(family(**options), SOFT, STIFF[:1])}


def changed(found, factor):
    """Return the scales with the measured ones of the first chemistry multiplied."""
    table = found["made-up"].copy()
    table.loc[table["chemistry"] == table["chemistry"].iloc[0], "measured"] *= factor
    return {"made-up": table}


def test_a_slope_against_dft_itself_is_the_scale():
    found = scales()
    np.testing.assert_allclose(found["made-up"]["slope"], found["made-up"]["measured"])
    known = calibration.calibrate(found, "made-up")
    assert (known.status, known.reason, known.pool) == ("predicted", "", "")
    assert known.factor == pytest.approx(1)
    assert known.band == pytest.approx(0, abs=1e-9)
    left = calibration.leave_out(found, "made-up")
    assert left["scale"].isna().sum() == 2, "the least and the largest slope lie beyond those of the others"
    left = left.dropna(subset="scale")
    np.testing.assert_allclose(left["scale"], left["measured"])


def test_what_stiff_models_have_in_common_is_corrected():
    found = scales(softness=0.85)
    np.testing.assert_allclose(found["made-up"]["slope"] * 0.85, found["made-up"]["measured"])
    assert calibration.calibrate(found, "made-up").factor == pytest.approx(0.85)
    left = calibration.leave_out(found, "made-up")
    assert left["scale"].isna().sum() == 2, "the least and the largest slope lie beyond those of the others"
    left = left.dropna(subset="scale")
    np.testing.assert_allclose(left["scale"], left["measured"])


def test_the_slope_is_on_the_mean_of_the_stiff_and_the_spread_between_them():
    rng = np.random.default_rng(1)
    k = rng.normal(size=(50, 2))
    y = k @ [0.4, 0.4]
    slope, spread = calibration.against(y, k)
    assert slope[0] == pytest.approx(0.8)
    single = [(k[:, i] @ y) / (k[:, i] @ k[:, i]) for i in range(2)]
    assert spread[0] == pytest.approx(np.ptp(single) / 0.8)
    codes = np.repeat([0, 1], 25)
    halves, _ = calibration.against(np.where(codes == 0, 0.5, 2) * k.mean(axis=1), k, codes)
    np.testing.assert_allclose(halves, [0.5, 2])
    assert np.isnan(calibration.against(np.zeros(3), np.zeros((3, 2)))[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "draws"), [(40, 8), (100, 4)])
def test_the_interval_covers_what_it_says(n, draws):
    """On average over draws, all materials of nine chemistries in ten; some have two."""
    covered = []
    for seed in range(draws):
        left = calibration.leave_out(scales(n=n, noise=0.1, seed=seed, twice=n // 4, values=2), "made-up")
        known = left[left["answer"] == "predicted"]
        covered.append(known["measured"].between(known["low"], known["high"]).groupby(known["chemistry"]).all().mean())
    assert 0.85 <= np.mean(covered) <= 0.97


def test_where_slopes_are_low_the_interval_holds_as_many():
    """Errors that grow with the distance of the slope from one: an interval of one width misses a quarter of the lowest third."""
    found = scales(n=300, between=0.25)
    table, rng = found["made-up"], np.random.default_rng(1)
    far = np.abs(np.log(table["slope"]))
    table["measured"] = table["slope"] * np.exp((0.01 + 0.3 * far) * rng.normal(size=len(table)))
    left = calibration.leave_out(found, "made-up").query("answer == 'predicted'").sort_values("slope")
    inside = left["measured"].between(left["low"], left["high"])
    assert 0.82 <= inside.iloc[: len(left) // 3].mean() <= 0.98
    assert 0.85 <= inside.mean() <= 0.95
    width = np.log(left["high"] / left["low"])
    assert width.iloc[0] > 2 * width[(left["slope"] - 1).abs().idxmin()]


@pytest.mark.parametrize("n", [10, 19, 20, 99])
def test_the_quantile_is_that_of_the_finite_sample(n):
    """Of n scores the ⌈0.9 (n + 1)⌉-th smallest: the largest of ten, the eighteenth of nineteen."""
    found = scales(n=n, noise=0.05)
    known = calibration.calibrate(found, "made-up")
    ratio = (found["made-up"]["measured"] / found["made-up"]["slope"]).to_numpy()
    weight = known.weights[0] + known.weights[1] * np.abs(np.log(found["made-up"]["slope"].to_numpy()))
    scores = np.sort([abs(np.log(one / np.median(np.delete(ratio, k)))) / weight[k] for k, one in enumerate(ratio)])
    assert known.band == pytest.approx(scores[int(np.ceil(0.9 * (len(ratio) + 1))) - 1])


def test_the_interval_is_of_factors_and_positive():
    """Of ten chemistries one is half and one twice as soft as its slope says: equally wrong."""
    found = scales(n=10)
    found["made-up"].loc[0, "measured"] *= 0.5
    low = calibration.calibrate(found, "made-up")
    found["made-up"].loc[0, "measured"] *= 4
    slope = found["made-up"]["slope"].iloc[0]
    for known in (low, calibration.calibrate(found, "made-up")):
        assert known.half_width(slope) == pytest.approx(np.log(2))
    answer = calibration.predict(low, slope, 0.0)
    assert (answer.low, answer.high) == pytest.approx((answer.scale / 2, answer.scale * 2))


def test_without_a_slope_the_answer_is_the_median_with_its_own_interval():
    found = scales(n=60)
    known = calibration.calibrate(found, "made-up", slopes=False)
    assert (known.status, known.reason) == ("constant", "no stiffer potential was asked")
    assert known.factor == known.guess
    assert known.band > calibration.calibrate(found, "made-up").band
    assert known.error > calibration.calibrate(found, "made-up").error == pytest.approx(0, abs=1e-9)


def test_a_family_with_too_many_scales_that_are_not_positive_is_not_known():
    found = scales(n=20)
    found["made-up"].loc[:2, "measured"] = -0.1
    known = calibration.calibrate(found, "made-up")
    assert (known.status, known.reason) == ("not known", "too many measured scales are not positive")


def test_a_chemistrys_own_values_never_enter_its_prediction():
    found = scales(noise=0.1, twice=5)
    columns = ["scale", "low", "high", "guess"]
    before, after = (calibration.leave_out(tables, "made-up") for tables in (found, changed(found, 5.0)))
    own = before["chemistry"] == before["chemistry"].iloc[0]
    assert own.sum() == 2
    pd.testing.assert_frame_equal(before.loc[own, columns], after.loc[own, columns])
    assert not np.allclose(before.loc[~own, "low"], after.loc[~own, "low"])


def test_a_chemistry_is_left_out_of_the_families_that_lend_scores_too(monkeypatch):
    monkeypatch.setattr(calibration, "POOLS", {"both": ("few", "many")})
    many = calibration.materials(family(n=30, noise=0.1), SOFT, STIFF)
    few = calibration.materials(family(n=5, noise=0.1, seed=3), SOFT, STIFF)
    wild = many.assign(measured=many["measured"].where(many["chemistry"] != few["chemistry"].iloc[0], 50.0))
    left, other = (calibration.leave_out({"few": few, "many": lender}, "few") for lender in (many, wild))
    assert left.loc[0, ["scale", "low", "high"]].tolist() == other.loc[0, ["scale", "low", "high"]].tolist()


def test_few_chemistries_borrow_from_the_pool_or_are_not_known(monkeypatch):
    few, many = (calibration.materials(family(n=n, noise=0.05, softness=c), SOFT, STIFF) for n, c in ((5, 0.8), (60, 1.0)))
    alone = calibration.calibrate({"few": few, "many": many}, "few")
    assert (alone.status, alone.reason) == ("not known", "too few chemistries were tested")
    assert calibration.predict(alone, 0.8, 0.0).status == "not known"
    monkeypatch.setattr(calibration, "POOLS", {"both": ("few", "many")})
    lent = calibration.calibrate({"few": few, "many": many}, "few")
    assert (lent.status, lent.pool) == ("predicted", "both")
    assert lent.factor == pytest.approx(0.8, abs=0.08), "its own factor, with errors of the pool"
    assert lent.half_width(0.8) == pytest.approx(calibration.calibrate({"many": many}, "many").half_width(0.8), abs=0.03)
    assert calibration.calibrate({"few": few.iloc[:2], "many": many}, "few").status == "not known"
    assert calibration.calibrate({"few": few}, "few").status == "not known", "nobody lends"


def test_where_slopes_tell_nothing_the_answer_is_the_median():
    table = family(n=60, between=0.05)
    stiff = table["model"].isin(STIFF)
    # Slopes that have nothing to do with the scale.
    rng = np.random.default_rng(5)
    factors = {name: np.exp(0.4 * rng.normal()) for name in table["material"].unique()}
    table.loc[stiff, "value"] *= table.loc[stiff, "material"].map(factors)
    found = {"made-up": calibration.materials(table, SOFT, STIFF)}
    known = calibration.calibrate(found, "made-up")
    assert known.status == "constant"
    assert "no more than the median" in known.reason
    assert known.factor == known.guess == pytest.approx(0.7, abs=0.02)
    assert calibration.predict(known, 1.9, 0.0) == calibration.predict(known, 0.5, 0.0)
    line = calibration.summarise(calibration.leave_out(found, "made-up").assign(family="made-up", model=SOFT)).iloc[0]
    assert line["verdict"] == "constant"
    assert line["error"] == line["error_median"]
    assert 80 <= line["coverage"] <= 98


def test_stiff_models_that_disagree_more_than_ever_are_not_believed():
    known = calibration.calibrate(scales(noise=0.1), "made-up")
    answer = calibration.predict(known, 0.8, known.agreed + 0.5)
    assert answer.status == "not known"
    assert "differ by 50%" in answer.reason
    assert np.isnan([answer.scale, answer.low, answer.high]).all()
    assert calibration.predict(known, 0.8, known.agreed).status == "predicted"


@pytest.mark.parametrize("slope", [-0.3, 0.0, np.nan])
def test_a_slope_that_is_not_positive_is_not_known(slope):
    answer = calibration.predict(calibration.calibrate(scales(noise=0.1), "made-up"), slope, 0.0)
    assert (answer.status, answer.reason) == ("not known", "the slope against stiffer potentials is not positive")


@pytest.mark.parametrize("past", [0.99, 1.01])
def test_a_slope_beyond_those_tested_is_not_believed(past):
    found = scales(noise=0.01)
    known, slopes = calibration.calibrate(found, "made-up"), found["made-up"]["slope"]
    end = slopes.min() if past < 1 else slopes.max()
    assert calibration.predict(known, end, 0.0).status == "predicted"
    answer = calibration.predict(known, past * end, 0.0)
    assert answer.status == "not known"
    assert f"{slopes.min():.2f} to {slopes.max():.2f}" in answer.reason


def test_what_has_no_scale_keeps_its_row_with_a_reason():
    table = family(n=20, noise=0.1)
    names = list(table["material"].unique())
    table = table[~((table["material"] == names[0]) & (table["model"] == STIFF[1]))].copy()
    table.loc[(table["material"] == names[1]) & (table["model"] == SOFT), "value"] *= -1
    table.loc[table["material"] == names[2], "reference"] = 0.0
    table.loc[table["material"] == names[3], "formula"] = "mp-1265"
    found = calibration.materials(table, SOFT, STIFF).set_index("material")
    assert len(found) == 20
    reasons = found.loc[names[:4], "reason"].tolist()
    assert reasons == [
        "not all models have values",
        "the slope against stiffer potentials is not positive",
        "DFT gives no measured scale",
        "its elements are not known",
    ]
    assert (found.loc[names[:4], "status"] == "not known").all()
    assert (found.loc[names[4:], "status"] == "ok").all()
    assert len(calibration.leave_out({"made-up": found.reset_index()}, "made-up")) == 16


def test_a_negative_measured_scale_counts_as_an_error():
    """It cannot be known beforehand, so it must not be left out of what the interval is made of."""
    found = scales(n=40, noise=0.05)
    turned = changed(found, -1.0)
    left = calibration.leave_out(turned, "made-up").iloc[0]
    assert left["low"] > 0 > left["measured"]
    assert calibration.calibrate(turned, "made-up").band >= calibration.calibrate(found, "made-up").band


def test_one_stiff_model_is_enough_and_the_model_itself_is_none():
    table = family(n=20, noise=0.05)
    assert calibration.materials(table, SOFT, [*STIFF, SOFT]).attrs["stiff"] == list(STIFF)
    alone = calibration.materials(table, SOFT, STIFF[:1])
    assert (alone["spread"] == 0).all()
    assert calibration.calibrate({"made-up": alone}, "made-up").status == "predicted"


def test_what_is_unknown_is_named():
    table = family(n=12)
    with pytest.raises(ValueError, match=r"no values of file:my-fix; there are those of chgnet-0\.3\.0, sevennet-0, tensornet"):
        calibration.materials(table, "file:my-fix", STIFF)
    with pytest.raises(ValueError, match=r"no values of a stiff model \(nequix-oam-1\)"):
        calibration.materials(table, SOFT, ["nequix-oam-1"])
    for ask in (calibration.calibrate, calibration.leave_out):
        with pytest.raises(ValueError, match="family 'phonon'; there are: made-up"):
            ask(scales(n=12), "phonon")
    with pytest.raises(ValueError, match="family 'phonon'; there are: made-up"):
        calibration.nearest(scales(n=12), "phonon", ["Si"])
    with pytest.raises(ValueError, match="not Xx"):
        calibration.nearest(scales(n=12), "made-up", ["Si", "Xx"])
    with pytest.raises(ValueError, match="not none"):
        calibration.nearest(scales(n=12), "made-up", [])


@pytest.mark.parametrize(
    ("formula", "elements"),
    [("SiC-AlN", "Al-C-N-Si"), ("Mg0.148Ti2S4", "Mg-S-Ti"), ("Cu", "Cu"), ("mp-1265", ""), ("Xx2O3", ""), ("0.25", "")],
)
def test_elements_are_read_from_what_names_them(formula, elements):
    assert calibration.chemistry(formula) == elements


def test_the_nearest_are_chemically_near():
    table = family(n=3).assign(
        formula=lambda rows: rows["material"].map(dict(zip(rows["material"].unique(), ("NaCl", "SrO", "CaO"), strict=True)))
    )
    found = calibration.nearest({"made-up": calibration.materials(table, SOFT, STIFF)}, "made-up", {"O", "Ca"})
    assert found["chemistry"].tolist() == ["Ca-O", "O-Sr", "Cl-Na"]
    assert found["distance"].iloc[0] == 0
    assert found["distance"].is_monotonic_increasing


def test_the_figure_has_a_panel_per_family_and_leaves_out_what_is_not_known():
    left = pd.concat(
        [calibration.leave_out(scales(noise=0.1, seed=seed), "made-up").assign(family=f"f{seed}", model=SOFT) for seed in (0, 1)]
    )
    figure = figures.predicted_scales(left, {"f1": "one", "f0": "nought", "absent": "no table"}, limits=(0.2, 0.8))
    assert [axes.get_title("left") for axes in figure.axes] == ["one", "nought"]
    x, y = figure.axes[1].lines[-1].get_data()
    assert len(x) == (left.query("family == 'f0'")["answer"] == "predicted").sum()
    assert y.max() == 0.8, "beyond the range: on the edge"
    with pytest.raises(ValueError, match=r"nothing to draw|no rows|empty"):
        figures.predicted_scales(left, {"absent": "no table"})


# ---------------------------------------------------------------------------------------------------
# The committed tables


def test_the_stiff_are_known_and_pools_are_of_families_of_one_quantity():
    assert set(calibration.STIFF) <= set(potentials.CATALOGUE)
    for members in calibration.POOLS.values():
        assert set(members) <= set(calibration.FAMILIES)
        assert len({calibration.FAMILIES[key].quantity for key in members} - {"stress", "curvature"}) <= 1


def committed(keys):
    """Return the scales of some families of the paper's models that have tables, by model and family."""
    tables = explanations.read({key: calibration.FAMILIES[key] for key in keys}, guests=calibration.STIFF)
    models = [entry.key for entry in potentials.papers().values() if entry.key in results.models(calibration.FAMILIES[keys[0]].benchmark)]
    return {model: {key: calibration.materials(table, model) for key, table in tables.items()} for model in models}


def test_cold_molybdenum_on_which_the_stiff_disagree_is_not_known():
    found = committed(("forces-wbm", "forces-tp", "forces-md", "forces-cold"))[SOFT]
    molybdenum = found["forces-cold"].set_index("material").loc["Mo"]
    answer = calibration.predict(calibration.calibrate(found, "forces-cold"), molybdenum["slope"], molybdenum["spread"])
    assert answer.status == "not known"
    assert "differ by" in answer.reason


def holds(keys):
    for model, found in committed(keys).items():
        for key in keys:
            line = calibration.summarise(calibration.leave_out(found, key).assign(family=key, model=model)).iloc[0]
            assert line["chemistries"] >= calibration.FEWEST
            # Of a few chemistries one is a large step: there, what nine in ten make likely.
            low, high = 100 * np.array(stats.binom.interval(0.95, line["chemistries"], 0.9)) / line["chemistries"]
            assert min(85, low) <= line["coverage"] <= max(97, high), f"{key}, {model}"
            assert line["verdict"] == "constant" or line["error"] < line["error_median"], f"{key}, {model}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        ("defects",),
        ("barriers-metals", "barriers-ions"),
        ("surfaces-built",),
        ("forces-wbm", "forces-tp"),
        ("phonons", "phonons-pbe"),
        ("bulk-modulus", "shear-modulus"),
    ],
)
def test_intervals_cover_chemistries_that_were_left_out(keys):
    holds(keys)


def test_alloys_are_not_known():
    for found in committed(("sic-aln", "bcc-alloys")).values():
        assert {calibration.calibrate(found, key).status for key in found} == {"not known"}
        assert {chemistry for table in found.values() for chemistry in table["chemistry"]} == {"Al-C-N-Si", "Mo-Nb", "Ta-W"}
