"""Statistics of softening, on synthetic data whose answer is known."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from helpers import softening
from helpers.potentials.base import Prediction

SEEDS = range(5)


def cloud(seed=0, n=20_000, s=0.8, noise=0.3, spread=1.0):
    """Reference with standard deviation ``spread`` and y = s x + noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, spread, n)
    return x, s * x + rng.normal(0, noise, n)


def frames(seed=0, n_frames=8, n_atoms=12, s=0.8, noise=0.1):
    """Forces (frames, atoms, 3) that sum to zero in each frame, in reference and prediction."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_frames, n_atoms, 3))
    e = rng.normal(0, noise, size=x.shape)
    x -= x.mean(axis=1, keepdims=True)
    e -= e.mean(axis=1, keepdims=True)
    return x, s * x + e


def force_table(scales, model="m", set_="wbm", n_frames=4, n_atoms=5, noise=0.2, seed=0):
    parts = []
    for number, s in enumerate(scales):
        x, y = frames(seed * 10_000 + number, n_frames, n_atoms, s, noise)
        case = np.repeat([f"mat{number:03d}/{frame}" for frame in range(n_frames)], 3 * n_atoms)
        parts.append(
            pd.DataFrame(
                {
                    "model": model,
                    "set": set_,
                    "material": f"mat{number:03d}",
                    "case": case,
                    "property": "force",
                    "value": y.ravel(),
                    "reference": x.ravel(),
                    "unit": "eV/Å",
                    "status": "ok",
                    "reason": "",
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


@st.composite
def points(draw, most=30):
    """Reference and prediction that have both slopes, with an intercept and without. Whole numbers, so that sums are exact."""
    n = draw(st.integers(3, most))
    x, y = (np.array(draw(st.lists(st.integers(-50, 50), min_size=n, max_size=n)), dtype=float) for _ in range(2))
    assume(x @ y != 0 and n * (x @ y) != x.sum() * y.sum() and np.ptp(x) > 0 and np.ptp(y) > 0)
    return x, y


identity = settings(max_examples=40, derandomize=True, deadline=None)


# --- one cloud of points


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("s", [0.3, 0.8, 1.0, 1.4])
def test_exact_line(s, intercept):
    x = np.linspace(-2, 3, 31)
    fitted = softening.fit(x, s * x, intercept)
    assert fitted.slope == pytest.approx(s)
    assert fitted.inverse_slope == pytest.approx(1 / s)
    assert fitted.r2 == pytest.approx(1)
    assert fitted.cmae == pytest.approx(0, abs=1e-12)
    assert fitted.mae == pytest.approx(abs(s - 1) * np.abs(x).mean())
    assert fitted.intercept == pytest.approx(0, abs=1e-12)


def test_masked_complex_and_no_numbers_are_refused_in_one_line():
    """Masks were passed over: the slope was that of the values under them."""
    x = np.linspace(-2, 3, 12).reshape(4, 3)
    masked = np.ma.masked_array(0.8 * x, mask=x > 2.5)
    for reference, predicted in ((x, masked), (masked, x), ([x, x], [x, masked]), (x.ravel(), masked.ravel())):
        with pytest.raises(ValueError, match=r"^2 of 12 values are masked: leave them out"):
            softening.softening_scale(reference, predicted)
    assert softening.softening_scale(x, np.ma.masked_array(0.8 * x)) == pytest.approx(0.8), "nothing is masked"
    kept = ~masked.mask
    assert softening.softening_scale(x[kept], masked[kept]) == pytest.approx(0.8)
    for wrong, word in (
        (0.8j * x, "complex128"),
        ([0.8j * x[:2], x[2:]], "complex128"),
        ([Prediction(0.0, x), Prediction(0.0, x)], "Prediction"),
    ):
        for function in (softening.softening_scale, softening.correction, softening.fit):
            with pytest.raises(ValueError, match=rf"^real numbers are wanted, not {word}.*one.forces"):
                function([x, x] if word == "Prediction" else x, wrong)


def test_intercept_is_found_and_removed_in_cmae():
    x = np.linspace(1, 3, 11)
    fitted = softening.fit(x, 0.5 + 0.7 * x, intercept=True)
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.7, 0.5))
    assert fitted.cmae == pytest.approx(0, abs=1e-12)
    assert softening.softening_scale(x, 0.5 + 0.7 * x) > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_agrees_with_other_implementations(seed):
    x, y = cloud(seed, n=300)
    line = stats.linregress(x, y)
    fitted = softening.fit(x, y, intercept=True)
    assert fitted.slope == pytest.approx(line.slope)
    assert fitted.intercept == pytest.approx(line.intercept)
    assert fitted.r2 == pytest.approx(line.rvalue**2)
    assert fitted.inverse_slope == pytest.approx(stats.linregress(y, x).slope)
    assert softening.softening_scale(x, y) == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])


@pytest.mark.parametrize("seed", SEEDS)
def test_both_lines_agree_for_forces_that_sum_to_zero(seed):
    x, y = frames(seed)
    for function in (softening.softening_scale, softening.inverse_slope, softening.r_squared):
        assert function(x, y, intercept=True) == pytest.approx(function(x, y), abs=1e-12)
    shifted = y + 0.2  # forces that do not sum to zero tell the two lines apart
    assert softening.softening_scale(x + 0.5, shifted, intercept=True) != pytest.approx(
        softening.softening_scale(x + 0.5, shifted), abs=1e-3
    )


@identity
@given(points(), st.booleans())
def test_product_of_slopes_is_r_squared(xy, intercept):
    slope, inverse = softening.softening_scale(*xy, intercept), softening.inverse_slope(*xy, intercept)
    fitted = softening.fit(*xy, intercept)
    assert softening.r_squared(*xy, intercept) == pytest.approx(slope * inverse)
    assert 0 <= slope * inverse <= 1 + 1e-12
    assert (fitted.slope, fitted.inverse_slope, fitted.r2) == pytest.approx((slope, inverse, slope * inverse))


@identity
@given(points(), st.booleans())
def test_exchanging_the_sides_exchanges_the_slopes(xy, intercept):
    one, two = softening.fit(*xy, intercept), softening.fit(*reversed(xy), intercept)
    assert (two.slope, two.inverse_slope, two.r2) == pytest.approx((one.inverse_slope, one.slope, one.r2))
    assert (two.mae, two.rmse) == pytest.approx((one.mae, one.rmse))


@identity
@given(points(), st.floats(0.1, 10))
def test_scaling_the_prediction(xy, c):
    x, y = xy
    one, two = softening.fit(x, y), softening.fit(x, c * y)
    assert two.slope == pytest.approx(c * one.slope)
    assert two.inverse_slope == pytest.approx(one.inverse_slope / c)
    assert (two.r2, two.cmae) == pytest.approx((one.r2, one.cmae))
    assert softening.robust_slope(x, c * y) == pytest.approx(c * softening.robust_slope(x, y))


@identity
@given(points(), st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(xy, random):
    order = random.sample(range(xy[0].size), xy[0].size)
    for function in (softening.softening_scale, softening.inverse_slope, softening.r_squared, softening.robust_slope):
        assert function(*(side[order] for side in xy)) == pytest.approx(function(*xy)), function


def test_calibrated_predictor_has_slope_r2_and_inverse_slope_one():
    """x = y + independent noise: y is the conditional mean of x, and still its slope is below one."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=400_000)
    x = y + rng.normal(0, 0.5, y.size)
    fitted = softening.fit(x, y)
    assert fitted.inverse_slope == pytest.approx(1, abs=0.005)
    assert fitted.slope == pytest.approx(0.8, abs=0.005)
    assert fitted.slope == pytest.approx(fitted.r2, abs=0.005)


@pytest.mark.parametrize(
    ("reference", "predicted", "message"),
    [
        ([1, 2, 3], [1, 2], "shape"),
        ([1.0], [1.0], "at least two"),
        ([1, np.nan, 2], [1, 2, 3], "1 of 3 values of the reference"),
        ([1, 2, 3], [1, np.inf, np.nan], "2 of 3 values of the prediction"),
        ([2, 2, 2], [1, 2, 3], "reference is constant"),
    ],
)
@pytest.mark.parametrize(
    "function", [softening.softening_scale, softening.inverse_slope, softening.r_squared, softening.fit, softening.robust_slope]
)
def test_refuses(function, reference, predicted, message):
    with pytest.raises(ValueError, match=message):
        function(reference, predicted)


def test_refuses_constant_prediction_and_zero_slope():
    for function in (softening.inverse_slope, softening.r_squared, softening.fit):
        with pytest.raises(ValueError, match="prediction is constant"):
            function([1, 2, 3], [0, 0, 0])
    with pytest.raises(ValueError, match="uncorrelated"):
        softening.fit([-1, 0, 1], [1, -2, 1])


# --- frames


def unequal(s=0.8):
    """Three frames of different numbers of atoms, and a model that is soft by a factor."""
    rng = np.random.default_rng(3)
    reference = [rng.normal(size=(n, 3)) for n in (4, 2, 7)]
    return reference, [s * x for x in reference]


SLOPES = {
    softening.softening_scale: 0.8,
    softening.inverse_slope: 1.25,
    softening.r_squared: 1.0,
    softening.robust_slope: 0.8,
    softening.correction: 1.25,
    lambda x, y: softening.fit(x, y).slope: 0.8,
}


@pytest.mark.parametrize("function", SLOPES)
def test_frames_of_different_sizes(function, recwarn):
    reference, predicted = unequal()
    for x, y in ((reference, predicted), (tuple(reference), iter(predicted)), (np.array(reference, dtype=object), predicted)):
        assert function(x, y) == pytest.approx(SLOPES[function])
    assert not recwarn


@pytest.mark.parametrize("function", SLOPES)
@pytest.mark.parametrize("equal", [False, True])
def test_failed_frames_are_left_out_with_a_warning(function, equal):
    reference, predicted = unequal()
    if equal:
        reference, predicted = ([frame[:2] for frame in side] for side in (reference, predicted))
    predicted[1] = np.full((2, 3), np.nan)
    reference[1] = 1e3 * reference[1]
    with pytest.warns(UserWarning, match=r"^1 of 3 frames have no prediction and are left out: 1$") as said:
        assert function(reference, predicted) == pytest.approx(SLOPES[function])
    assert said[0].filename == __file__


def test_frames_that_do_not_fit_are_named():
    reference, predicted = unequal()
    for change, message in (
        (lambda x, y: y.pop(), "reference has 3 frames, but the prediction has 2"),
        (lambda x, y: y.__setitem__(1, y[1][:1]), r"frame 1: reference has shape \(2, 3\), but the prediction has shape \(1, 3\)"),
        (lambda x, y: y.__setitem__(2, np.where(np.eye(7, 3), np.nan, y[2])), "frame 2: 3 of 21 values of the prediction are not finite"),
        (lambda x, y: x.__setitem__(0, np.full((4, 3), np.nan)), "frame 0: 12 of 12 values of the reference are not finite"),
    ):
        x, y = list(reference), list(predicted)
        change(x, y)
        with pytest.raises(ValueError, match=message):
            softening.softening_scale(x, y)
    with pytest.raises(ValueError, match="none of 3 frames has a prediction"):
        softening.fit(reference, [np.nan * y for y in predicted])


# --- robust slope


def brute_least_absolute(x, y):
    candidates = y / x
    return candidates[np.argmin([np.abs(y - s * x).sum() for s in candidates])]


@pytest.mark.parametrize("seed", SEEDS)
def test_robust_slope_minimises_absolute_deviations(seed):
    x, y = cloud(seed, n=101)
    assert softening.robust_slope(x, y) == pytest.approx(brute_least_absolute(x, y))


def test_robust_slope_resists_outliers_and_zeros():
    x, y = cloud(3, n=2000, noise=0.05)
    y[:200] = 50.0 * np.sign(x[:200])
    assert softening.softening_scale(x, y) > 2
    assert softening.robust_slope(x, y) == pytest.approx(0.8, abs=0.02)
    x[500:900] = 0.0
    assert softening.robust_slope(x, y) == pytest.approx(0.8, abs=0.02)


def test_robust_slope_takes_the_middle_of_a_tie():
    assert softening.robust_slope([1, -1], [1, -2]) == pytest.approx(1.5)


# --- bootstrap


def test_interval_is_reproducible_and_holds_the_estimate():
    sums = np.random.default_rng(0).normal(1, 0.3, size=(40, 1))
    sums = np.hstack([sums, np.ones((40, 1))])
    mean = lambda t: t[..., 0] / t[..., 1]  # noqa: E731
    one, two = (softening.bootstrap_over(sums, mean, seed=4) for _ in range(2))
    assert one == two
    assert one != softening.bootstrap_over(sums, mean, seed=5)
    assert one.low < one.estimate < one.high
    wide = softening.bootstrap_over(sums, mean, seed=4, level=0.99)
    assert wide.low < one.low < one.high < wide.high
    half_width = stats.t.ppf(0.975, 39) * sums[:, 0].std(ddof=1) / np.sqrt(40)
    assert (one.high - one.low) / 2 == pytest.approx(half_width, rel=0.1)


def test_same_as_scipy_but_for_the_expansion():
    rng = np.random.default_rng(2)
    x = rng.normal(size=60)
    y = 0.8 * x + rng.normal(0, 0.4, 60)
    ours = softening.bootstrap_over(np.stack([x * x, x * y], axis=1), lambda t: t[..., 1] / t[..., 0], n_resamples=20_000)
    slope = lambda x, y, axis=-1: (x * y).sum(axis) / (x * x).sum(axis)  # noqa: E731
    level = 2 * stats.norm.cdf(np.sqrt(60 / 59) * stats.t.ppf(0.975, 59)) - 1
    theirs = stats.bootstrap(
        (x, y), slope, paired=True, n_resamples=20_000, method="percentile", confidence_level=level, rng=rng
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_coverage_with_few_groups():
    """Five groups are enough for the mean of normal data; an unexpanded percentile interval covers 85 % there."""
    covered = 0
    for seed in range(300):
        values = np.random.default_rng(seed).normal(1, 0.1, 5)
        sums = np.stack([values, np.ones(5)], axis=1)
        interval = softening.bootstrap_over(sums, lambda t: t[..., 0] / t[..., 1], n_resamples=500, seed=seed)
        covered += interval.low < 1 < interval.high
    assert 0.88 < covered / 300 < 0.98


@pytest.mark.slow
def test_coverage_over_materials():
    """About 95 % of intervals hold the true mean scale; an interval over single components would be far too narrow."""
    hits, hits_naive, trials = 0, 0, 300
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        scale = rng.normal(0.8, 0.15, size=30)
        x = rng.normal(size=(30, 40))
        y = scale[:, None] * x + rng.normal(0, 0.2, x.shape)
        sums = np.stack([(x * x).sum(1), (x * y).sum(1)], axis=1)
        slope = lambda t: t[..., 1] / t[..., 0]  # noqa: E731
        interval = softening.bootstrap_over(sums, slope, n_resamples=500, seed=seed)
        hits += interval.low < 0.8 < interval.high
        naive = softening.bootstrap_over(np.stack([(x * x).ravel(), (x * y).ravel()], axis=1), slope, n_resamples=100, seed=seed)
        hits_naive += naive.low < 0.8 < naive.high
    assert 0.89 < hits / trials < 0.985
    assert hits_naive / trials < 0.6


@pytest.mark.parametrize(
    ("groups", "level", "message"),
    [
        (np.ones((1, 2)), 0.95, "at least two groups"),
        (np.ones(4), 0.95, "shape"),
        (np.full((3, 2), np.nan), 0.95, "not finite"),
        (np.ones((3, 2)), 95, "between 0 and 1"),
    ],
)
def test_bootstrap_refuses(groups, level, message):
    with pytest.raises(ValueError, match=message):
        softening.bootstrap_over(groups, lambda t: t[..., 0], level=level)


def test_undefined_statistic_gives_nan_ends():
    interval = softening.bootstrap_over(np.ones((4, 1)), lambda t: t[..., 0] * np.nan)
    assert np.isnan([interval.low, interval.high]).all()


# --- tables


def test_per_material_is_fit_of_each():
    table = pd.concat([force_table([0.7, 0.8, 0.9]), force_table([1.1, 1.2], model="n", seed=1)]).sample(frac=1, random_state=0)
    fits = softening.per_material(table)
    assert list(fits["model"]) == ["m"] * 3 + ["n"] * 2
    for _, row in fits.iterrows():
        part = table[(table["model"] == row["model"]) & (table["material"] == row["material"])]
        fitted = softening.fit(part["reference"], part["value"])
        for name in ("n", "slope", "inverse_slope", "r2", "mae", "cmae", "rmse"):
            assert row[name] == pytest.approx(getattr(fitted, name)), name
    assert (fits["n_cases"] == 4).all()
    assert (fits["status"] == "ok").all()


def test_failed_rows_are_counted_and_left_out():
    table = force_table([0.7, 0.8, 0.9])
    clean = softening.per_material(table)
    bad = table[table["material"].isin(["mat000", "mat001"])].groupby("material").head(3).copy()
    bad["status"], bad["value"], bad["reason"] = "failed", np.nan, "no"
    everything_failed = bad.head(2).assign(material="aaa")
    other = table.head(4).assign(property="stress", value=np.nan)
    fits = softening.per_material(pd.concat([table, bad, everything_failed, other]))
    assert list(fits["n_failed"]) == [2, 3, 3, 0]
    assert fits.iloc[0][["status", "reason", "n", "n_cases"]].tolist() == ["failed", "every row failed", 0, 0]
    pd.testing.assert_frame_equal(fits.iloc[1:].drop(columns="n_failed").reset_index(drop=True), clean.drop(columns="n_failed"))
    total = softening.pooled(pd.concat([table, bad]))
    assert total.loc[0, "n_failed"] == 6
    assert total.loc[0, "slope"] == softening.pooled(table).loc[0, "slope"]


def test_all_failed():
    fits = softening.per_material(force_table([0.7]).assign(status="failed"))
    assert fits["status"].tolist() == ["failed"]
    assert np.isnan(fits.loc[0, "slope"])


def test_material_without_slope_has_a_reason():
    table = force_table([0.7, 0.8, 0.9])
    table.loc[table["material"] == "mat000", "reference"] = 0.0
    table.loc[table["material"] == "mat001", "value"] = 0.0
    table = pd.concat([table, table.tail(1).assign(material="mat003")])
    fits = softening.per_material(table)
    assert fits["reason"].tolist() == ["the reference is constant", "the prediction is constant", "", "fewer than two values"]
    assert np.isnan(fits["slope"]).tolist() == [True, True, False, True]


def test_tables_refuse():
    table = force_table([0.8])
    with pytest.raises(ValueError, match="no column case"):
        softening.per_material(table.drop(columns="case"))
    with pytest.raises(ValueError, match="no rows of property 'force'"):
        softening.pooled(table[:0])
    table.loc[0, "value"] = np.nan
    with pytest.raises(ValueError, match=r"1 rows with status 'ok' .* 'mat000'"):
        softening.per_material(table)


def test_pooled_is_fit_of_all():
    table = force_table(np.random.default_rng(0).normal(0.8, 0.1, 25))
    total = softening.pooled(table).iloc[0]
    fitted = softening.fit(table["reference"], table["value"])
    for name in ("slope", "inverse_slope", "r2", "mae", "cmae", "rmse"):
        assert total[name] == pytest.approx(getattr(fitted, name)), name
        assert total[f"{name}_low"] < total[name] < total[f"{name}_high"]
    assert total["n_clusters"] == 25


@settings(identity, max_examples=10)
@given(st.lists(st.floats(0.4, 1.4), min_size=2, max_size=5), st.integers(0, 99))
def test_every_material_twice_says_the_same_more_surely(scales, seed):
    table = force_table(scales, seed=seed)
    twice = pd.concat([table, table.assign(material=table["material"] + "'", case=table["case"] + "'")])
    names = ["slope", "inverse_slope", "r2", "mae", "cmae", "rmse"]
    one, two = (softening.pooled(rows, n_resamples=200).iloc[0] for rows in (table, twice))
    assert two[names].tolist() == pytest.approx(one[names].tolist())
    assert two["n_clusters"] == 2 * one["n_clusters"]
    fits = softening.per_material(twice)
    np.testing.assert_allclose(fits[names][0::2], fits[names][1::2])


def test_tabulated_cmae_matches_a_direct_bootstrap():
    table = force_table(np.random.default_rng(1).normal(0.8, 0.2, 12), n_frames=3)
    total = softening.pooled(table, n_resamples=400, seed=3).iloc[0]
    parts = [part for _, part in table.groupby("material")]

    def cmae(counts):
        chosen = pd.concat([part for part, times in zip(parts, counts, strict=True) for _ in range(int(times))])
        return softening.fit(chosen["reference"], chosen["value"]).cmae

    # A material whose only sum is one: the totals are how often each is drawn.
    direct = softening.bootstrap_over(np.eye(12), lambda totals: np.apply_along_axis(cmae, -1, totals), 400, 3)
    assert (total["cmae_low"], total["cmae_high"]) == pytest.approx((direct.low, direct.high), rel=1e-4)


def test_pooled_over_frames_and_one_cluster():
    table = force_table([0.8], n_frames=10)
    alone = softening.pooled(table).iloc[0]
    assert np.isnan([alone["slope_low"], alone["cmae_high"]]).all()
    assert alone["slope"] == pytest.approx(0.8, abs=0.05)
    by_frame = softening.pooled(table, clusters="case").iloc[0]
    assert by_frame["n_clusters"] == 10
    assert by_frame["slope_low"] < alone["slope"] < by_frame["slope_high"]


def test_distribution():
    scales = np.random.default_rng(5).normal(0.8, 0.1, 60)
    fits = softening.per_material(force_table(scales, noise=0.01))
    row = softening.distribution(fits).iloc[0]
    assert row["slope_median"] == pytest.approx(np.median(scales), abs=0.005)
    assert row["slope_mean"] == pytest.approx(scales.mean(), abs=0.002)
    assert row["share_below_one"] == pytest.approx((scales < 1).mean())
    assert row["slope_median_low"] < row["slope_median"] < row["slope_median_high"]
    assert row["slope_q25"] < row["slope_median"] < row["slope_q75"]
    with pytest.raises(ValueError, match="has a slope"):
        softening.distribution(fits.assign(status="failed"))


@pytest.mark.slow
def test_large_table_is_fast():
    rng = np.random.default_rng(0)
    n = 1_000_000
    codes = rng.integers(0, 500, n)
    x = rng.normal(size=n)
    names = np.array([f"mp-{i}" for i in range(500)], dtype=object)
    table = pd.DataFrame(
        {"model": "m", "set": "s", "material": names[codes], "case": names[codes], "property": "force", "value": 0.8 * x, "reference": x}
    )
    table["status"] = "ok"
    start = time.perf_counter()
    fits = softening.per_material(table)
    softening.pooled(table)
    assert time.perf_counter() - start < 60
    np.testing.assert_allclose(fits["slope"], 0.8)


# --- scalars


def test_scalar_summary_of_known_data():
    x = np.linspace(0.05, 0.2, 40)
    y = 0.75 * x + 0.002 * np.where(np.arange(40) % 2, 1, -1)
    result = softening.scalar_summary(y, x)
    assert result["n"] == result["n_clusters"] == 40
    assert result["slope"] == pytest.approx((x @ y) / (x @ x))
    assert result["inverse_slope"] == pytest.approx((x @ y) / (y @ y))
    assert result["mean_error"] == pytest.approx((y - x).mean())
    assert result["mae"] == pytest.approx(np.abs(y - x).mean())
    assert result["r2"] == pytest.approx(stats.pearsonr(x, y).statistic ** 2)
    for name in ("slope", "inverse_slope", "mean_error", "mae", "r2"):
        assert result[f"{name}_low"] < result[name] < result[f"{name}_high"]


def test_share_below_at_its_limit_keeps_an_open_end():
    x = np.linspace(1, 2, 10)
    result = softening.scalar_summary(0.8 * x, x)
    assert (result["share_below"], result["share_below_high"]) == (1, 1)
    assert result["share_below_low"] == pytest.approx(stats.binomtest(10, 10).proportion_ci(method="exact").low)
    above = softening.scalar_summary(1.2 * x, x)
    assert (above["share_below"], above["share_below_low"]) == (0, 0)
    assert above["share_below_high"] == pytest.approx(stats.binomtest(0, 10).proportion_ci(method="exact").high)


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), 20)
    x = rng.uniform(1, 2, 240)
    y = x * np.repeat(rng.normal(0.8, 0.1, 12), 20)
    alone, together = softening.scalar_summary(y, x), softening.scalar_summary(y, x, clusters)
    assert together["slope"] == pytest.approx(alone["slope"])
    assert together["slope_high"] - together["slope_low"] > 2 * (alone["slope_high"] - alone["slope_low"])
    one = softening.scalar_summary(y, x, ["a"] * 240)
    assert np.isnan(one["slope_low"])
    assert one["r2"] == pytest.approx(alone["r2"])


def test_r2_keeps_its_digits_far_from_zero():
    x, y = cloud(0, n=200)
    near, far = softening.scalar_summary(y, x)["r2"], softening.scalar_summary(y + 1e6, x + 1e6)["r2"]
    assert far == pytest.approx(near, rel=1e-6)


def test_scalar_summary_refuses():
    with pytest.raises(ValueError, match="2 cluster labels"):
        softening.scalar_summary([1, 2, 3], [1, 2, 4], [0, 1])
    with pytest.raises(ValueError, match="labels are missing"):
        softening.scalar_summary([1, 2, 3], [1, 2, 4], ["a", None, "b"])
    with pytest.raises(ValueError, match="reference is constant"):
        softening.scalar_summary([1, 2, 3], [2, 2, 2])


# --- one label


@pytest.mark.parametrize("seed", SEEDS)
def test_correction_does_what_it_says(seed):
    x, y = cloud(seed, n=400, noise=0.5)
    turn, best = softening.correction(x, y), softening.correction(x, y, "least_squares")
    assert softening.softening_scale(x, turn * y) == pytest.approx(1)
    assert softening.inverse_slope(x, best * y) == pytest.approx(1)
    assert best / turn == pytest.approx(softening.r_squared(x, y))
    errors = [softening.fit(x, c * y).rmse for c in (best - 1e-3, best, best + 1e-3, turn)]
    assert np.argmin(errors) == 1


def test_correction_refuses():
    x, y = cloud(n=50)
    with pytest.raises(ValueError, match="method must be"):
        softening.correction(x, y, "best")
    with pytest.raises(ValueError, match="the right way"):
        softening.correction(x, -y)


def test_the_advised_factor_follows_the_scatter():
    """1/s where R² is above 0.98, s′ below; none where the slope is not positive."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=3000)
    for noise, method in ((0.02, "inverse_slope"), (0.3, "least_squares")):
        y = 0.8 * x + noise * rng.normal(size=len(x))
        assert softening.correction(x, y, "advised") == pytest.approx(softening.correction(x, y, method))
    with pytest.raises(ValueError, match="the right way"):
        softening.correction(x, -x, "advised")


@pytest.mark.parametrize("method", ["inverse_slope", "least_squares"])
def test_one_label_by_hand(method):
    table = force_table([0.8], n_frames=5)
    result = softening.one_label_corrections(table, method)
    assert len(result) == 5
    for _, row in result.iterrows():
        own = table["case"] == row["label"]
        label, others = table[own], table[~own]
        one = softening.fit(label["reference"], label["value"])
        c = 1 / one.slope if method == "inverse_slope" else one.inverse_slope
        before = softening.fit(others["reference"], others["value"])
        after = softening.fit(others["reference"], c * others["value"])
        assert row["c"] == pytest.approx(c)
        assert (row["mae_before"], row["slope_before"]) == pytest.approx((before.mae, before.slope))
        assert (row["mae_after"], row["slope_after"]) == pytest.approx((after.mae, after.slope))
        assert (row["n_label"], row["n_others"]) == (15, 60)


def test_one_label_mends_pure_softening_entirely():
    result = softening.one_label_corrections(force_table([0.8, 0.6], noise=0.0))
    assert result["material"].tolist() == ["mat000"] * 4 + ["mat001"] * 4
    np.testing.assert_allclose(result["c"], np.repeat([1.25, 1 / 0.6], 4))
    np.testing.assert_allclose(result["mae_after"], 0, atol=1e-12)
    np.testing.assert_allclose(result["slope_after"], 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_two_factors_differ_by_r2_and_trade_slope_for_error(seed):
    table = force_table([0.8], noise=0.5, n_frames=6, n_atoms=60, seed=seed)
    turned = softening.one_label_corrections(table, "inverse_slope")
    trained = softening.one_label_corrections(table, "least_squares")
    for i, label in enumerate(turned["label"]):
        part = table[table["case"] == label]
        assert trained["c"][i] / turned["c"][i] == pytest.approx(softening.r_squared(part["reference"], part["value"]))
    assert (trained["slope_after"] < turned["slope_after"]).all()
    assert trained["mae_after"].mean() < turned["mae_after"].mean()
    assert trained["slope_after"].mean() < 0.9
    assert turned["slope_after"].mean() == pytest.approx(1, abs=0.05)


def test_one_label_in_chunks(monkeypatch):
    table = force_table([0.8], n_frames=9)
    whole = softening.one_label_corrections(table)
    monkeypatch.setattr(softening, "_MAX_ELEMENTS", 300)
    pd.testing.assert_frame_equal(softening.one_label_corrections(table), whole)


def test_one_label_failures():
    table = force_table([0.8])
    first = table["case"] == "mat000/0"
    table.loc[first, "value"] *= -1
    result = softening.one_label_corrections(table)
    assert result["status"].tolist() == ["failed", "ok", "ok", "ok"]
    assert np.isnan(result.loc[0, ["c", "mae_after", "slope_after"]].astype(float)).all()
    assert np.isfinite(result.loc[0, "mae_before"])
    (alone,) = softening.one_label_corrections(force_table([0.8], n_frames=1)).to_dict("records")
    assert (alone["status"], alone["reason"]) == ("failed", "no other frame to test it on")
    assert np.isnan([alone["c"], alone["ratio"], alone["slope_after"]]).all()
    with pytest.raises(ValueError, match="method must be"):
        softening.one_label_corrections(table, "best")


def test_factors_are_transferred_within_a_material():
    scalars = pd.DataFrame(
        {"model": "m", "material": ["Si", "Si", "Cu"], "value": [0.4, 0.8, 0.5], "reference": [0.8, 1.6, 1.0], "status": "ok"}
    )
    factors = pd.DataFrame({"model": "m", "material": ["Si", "Si", "Mo"], "label": ["a", "b", "c"], "c": [2.0, 1.5, 9.0], "status": "ok"})
    moved = softening.transferred(scalars, factors)
    assert moved["label"].tolist() == ["a", "b"]
    assert moved["needed"].tolist() == pytest.approx([2.0, 2.0])
    assert moved["ratio"].tolist() == pytest.approx([0.0, 0.5])
    # One value, as the vacancy energy of an element, is enough.
    alone = softening.transferred(scalars.iloc[:1], factors)
    assert alone["needed"].tolist() == pytest.approx([2.0, 2.0])


def test_a_corrected_table_names_its_factor():
    table = pd.DataFrame({"model": ["chgnet-0.3.0"], "value": [0.5]})
    after = softening.corrected(table, 1.25)
    assert after["value"].tolist() == [0.625]
    assert after["model"].tolist() == ["chgnet-0.3.0*1.2500"]
    assert table["value"].tolist() == [0.5]


def test_transfer_matrix_mends_its_own_condition_only():
    x = np.array([1.0, -2.0, 0.5, 1.5])
    table = pd.DataFrame(
        {
            "model": "m",
            "material": "Si",
            "case": "a",
            "property": "force",
            "status": "ok",
            "reference": np.tile(x, 2),
            "value": np.concatenate([0.5 * x, 1.0 * x + [0.1, 0.1, -0.1, 0.1]]),
            "temperature_k": np.repeat([300.0, 3000.0], 4),
        }
    )
    matrix = softening.transfer_matrix(table, "temperature_k")
    assert matrix.loc[300.0, 300.0] == pytest.approx(0.0, abs=1e-12)
    assert matrix.loc[300.0, 3000.0] > 5, "the cold factor ruins the hot frames"
    assert 0.9 < matrix.loc[3000.0, 300.0] < 1.1
