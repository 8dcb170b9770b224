"""Simulated models with known defects, and what is left of 1 − s."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from helpers import explanations, figures, potentials, results, softening
from helpers.benchmarks import Family

R2 = 0.7


@pytest.mark.parametrize(
    ("kind", "slope", "inverse_slope"),
    [("noisy", 1.0, R2), ("calibrated", R2, 1.0), ("soft", R2, 1 / R2), ("soft and noisy", R2, 1.0)],
)
def test_archetypes_have_the_slopes_of_their_construction(kind, slope, inverse_slope):
    cloud = explanations.simulate(kind, R2, n=60_000, seed=3)
    found = explanations.slopes(cloud, n_resamples=20)
    assert found["slope"] == pytest.approx(slope, abs=0.01)
    assert found["inverse_slope"] == pytest.approx(inverse_slope, abs=0.02)
    assert found["inverse"] == pytest.approx(1 / found["inverse_slope"])
    assert found["r2"] == pytest.approx(found["slope"] * found["inverse_slope"])


def test_a_calibrated_predictor_is_calibrated_about_the_origin_too():
    """E[xy] = E[y²] whatever the mean; R² about the origin is the product of the slopes, Pearson's is not."""
    found = explanations.slopes(explanations.simulate("calibrated", R2, n=60_000, mean=3, seed=3), n_resamples=20)
    assert found["inverse_slope"] == pytest.approx(1, abs=0.005)
    about_origin = (9 + R2) / (9 + 1)
    assert found["slope"] == pytest.approx(about_origin, abs=0.005)
    assert found["r2"] == pytest.approx(about_origin, abs=0.005)
    assert found["pearson_r2"] == pytest.approx(R2, abs=0.01)


def test_second_moments_do_not_tell_calibrated_from_soft_and_noisy():
    first, second = (explanations.simulate(kind, R2, n=200_000, seed=5) for kind in ("calibrated", "soft and noisy"))
    np.testing.assert_allclose(first[["value", "reference"]].cov(), second[["value", "reference"]].cov(), atol=0.02)


def test_simulation_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="no model 'hard'"):
        explanations.simulate("hard")
    with pytest.raises(ValueError, match="between 0 and 1"):
        explanations.simulate("soft", r2=1.2)


def test_slopes_need_two_values_and_one_material_has_no_interval():
    cloud = explanations.simulate("noisy", n=50)
    with pytest.raises(ValueError, match="at least two values, got 1"):
        explanations.slopes(cloud.iloc[:1])
    found = explanations.slopes(cloud.assign(material="Si"))
    assert found["n_materials"] == 1
    assert np.isnan(found["slope_low"])
    assert np.isfinite(found["slope"])


# ---------------------------------------------------------------------------------------------------
# What is left

FAMILY = Family("made up", "made up", "none", "energy", lambda table: table, "static", "selected")


def made_up(soft=0.8, relaxation=0.9, functional=0.95, off=0.5, n=400, noise=0.0):
    """Return a model that is soft, relaxes too far, is measured against another functional, and fails on a tenth of the systems."""
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 3, n)
    kept = np.arange(n) >= n // 10
    static = soft * functional * x * np.where(kept, 1, off) + noise * rng.normal(size=n)
    names = [str(i) for i in range(n)]
    return pd.DataFrame(
        {
            "model": "m",
            "material": names,
            "case": names,
            "value": relaxation * static,
            "static": static,
            "reference": x,
            "kept": kept,
            "functional_ratio": np.where(np.arange(n) % 7 == 0, functional, np.nan),
        }
    )


def test_each_cause_is_found_again_and_the_parts_add_up():
    found = explanations.explain(made_up(functional=1.0), FAMILY, n_resamples=50).set_index("explanation")["part"]
    assert list(found.index) == ["total", *explanations.EXPLANATIONS]
    assert found.drop("total").sum() == pytest.approx(found["total"])
    s = 1 - found["total"]
    mean = (1 - s) / -np.log(s)
    assert found["geometry"] == pytest.approx(-mean * np.log(0.9))
    assert found["left"] == pytest.approx(-mean * np.log(0.8))
    assert found["regression"] == pytest.approx(0, abs=1e-9)
    assert found["selection"] > 0


@pytest.mark.parametrize("kind", ["calibrated", "soft", "noisy"])
def test_without_other_explanations_it_is_the_decomposition_of_the_slope(kind):
    cloud = explanations.simulate(kind, R2, n=2000).assign(static=np.nan, kept=True, functional_ratio=np.nan)
    found = explanations.explain(cloud, FAMILY, n_resamples=50).set_index("explanation")
    assert list(found.index) == ["total", "regression", "left"]
    fitted = softening.fit(cloud["reference"], cloud["value"])
    mean = (1 - fitted.slope) / -np.log(fitted.slope)
    assert found.loc["total", "part"] == pytest.approx(1 - fitted.slope)
    assert found.loc["regression", "part"] == pytest.approx(-mean * np.log(fitted.r2), abs=1e-9)
    assert found.loc["left", "part"] == pytest.approx(mean * np.log(fitted.inverse_slope), abs=1e-9)
    assert found.loc["left", "part_low"] - 1e-9 <= found.loc["left", "part"] <= found.loc["left", "part_high"] + 1e-9


def test_only_cases_with_both_geometries_are_compared():
    part = made_up()
    part.loc[part.index[::2], "static"] = np.nan
    found = explanations.explain(part, FAMILY, n_resamples=20).set_index("explanation")["part"]
    expected = softening.softening_scale(*(part[part["static"].notna()][name] for name in ("reference", "value")))
    assert 1 - found["total"] == pytest.approx(expected)


def test_a_negative_slope_is_refused():
    part = made_up()
    with pytest.raises(ValueError, match="no product that could be split"):
        explanations.explain(part.assign(value=-part["value"]), FAMILY)
    assert explanations.explain_all({"x": part}, {"x": FAMILY}, 20)["model"].unique().tolist() == ["m"]


def test_no_slope_is_split_whose_reference_is_another_functional():
    families = {"x": FAMILY, "y": dataclasses.replace(FAMILY, functional="PBEsol")}
    found = explanations.explain_all(dict.fromkeys(families, made_up()), families, 20)
    assert found["family"].unique().tolist() == ["x"]
    # PhononDB is PBEsol: what that does to its slope is known for four compounds, at one point of reciprocal space.
    assert [key for key, family in explanations.FAMILIES.items() if family.functional] == ["phonons"]


def test_one_at_a_time_takes_away_one_cause():
    part = made_up()
    found = explanations.one_at_a_time(part, FAMILY).set_index("explanation")
    before = softening.softening_scale(part["reference"], part["value"])
    assert found.loc["functional", "after"] == pytest.approx(before / 0.95)
    assert found.loc["geometry", "after"] == pytest.approx(before / 0.9)
    assert found.loc["selection", "after"] == pytest.approx(0.8 * 0.9 * 0.95)
    assert found.loc["regression", "after"] == pytest.approx(1 / softening.inverse_slope(part["reference"], part["value"]))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "geometric", "arithmetic"), [("noisy", -0.5, 0.0), ("calibrated", 0.5, 1.0)])
def test_scatter_moves_mean_ratios_to_second_order(kind, geometric, arithmetic):
    # Truth at 8 standard deviations from zero; R² about the mean of 0.5: the noise has variance 1 (noisy) or 0.5 (calibrated).
    cloud = explanations.simulate(kind, 0.5, n=100_000, mean=8.0).assign(static=np.nan, kept=True, functional_ratio=np.nan)
    scatter = {"noisy": 1.0, "calibrated": 0.5}[kind] / 8.0**2
    found = explanations.typical(cloud, FAMILY, n_resamples=50).set_index("explanation")["ratio"]
    assert found["none"] == pytest.approx(1 + geometric * scatter, abs=0.25 * scatter)
    assert found["arithmetic"] == pytest.approx(1 + arithmetic * scatter, abs=0.25 * scatter)


def test_mean_ratios_know_no_regression_to_the_mean():
    rng = np.random.default_rng(2)
    log_y = rng.normal(size=20_000)
    log_x = log_y + rng.normal(size=20_000)
    names = [str(i) for i in range(len(log_x))]
    part = pd.DataFrame({"material": names, "value": np.exp(log_y), "reference": np.exp(log_x), "static": np.nan, "kept": True})
    found = explanations.typical(part.assign(functional_ratio=np.nan), FAMILY, n_resamples=50)
    assert found["explanation"].tolist() == ["none", "arithmetic", "same systems", "geometry"]
    assert found["ratio"].iloc[0] == pytest.approx(1, abs=0.03)


def test_mean_ratios_find_each_cause_and_leave_out_what_has_no_ratio():
    part = made_up()
    part.loc[part.index[-1], "value"] = -1.0
    found = explanations.typical(part, FAMILY, n_resamples=20).set_index("explanation")
    assert found.loc["none", "n"] == len(part) - 1
    assert found.loc["selection", "ratio"] == pytest.approx(0.8 * 0.9 * 0.95)
    assert found.loc["geometry", "ratio"] / found.loc["same systems", "ratio"] == pytest.approx(1 / 0.9)
    assert found.loc["functional", "ratio"] == pytest.approx(found.loc["none", "ratio"] / 0.95)


# ---------------------------------------------------------------------------------------------------
# Pairs of models, bins, label noise, corrections


def test_a_pair_is_compared_on_the_cases_that_both_have():
    part = made_up(off=1.0)
    other = part.assign(model="n", value=part["reference"]).iloc[:-100]
    found = explanations.pair(pd.concat([part, other]), "m", "n", n_resamples=50)
    assert found["n"] == len(part) - 100
    assert found["slope_second"] == pytest.approx(1)
    assert found["slope_gain"] == pytest.approx(1 - 0.8 * 0.9 * 0.95)
    assert found["slope_gain_low"] - 1e-9 <= found["slope_gain"] <= found["slope_gain_high"] + 1e-9
    assert explanations.pair(part, "m", "absent") is None
    assert explanations.pairs({"x": part}, "m", "absent").empty


@pytest.mark.parametrize(
    ("scales", "avoided", "differ"),
    [((0.4, 0.5, 0.6), 0.4, 0.2), ((0.5, 0.9, 0.95), 0.05, 0.45), ((1.1, 0.9, 1.0), -0.1, 0.2), ((0.7, 0.7, 0.7), 0.3, 0.0)],
)
def test_softness_that_no_network_avoids_is_told_from_what_they_differ_by(scales, avoided, differ):
    """The least soft of three models leaves what none avoids; values that one of them lacks do not count."""
    part = explanations.simulate("soft", n=40, seed=2)
    table = pd.concat([part.assign(model=str(k), value=scale * part["reference"]) for k, scale in enumerate(scales)])
    table.loc[(table["model"] == "2") & (table["case"] == "7"), "case"] = "another"
    found = explanations.shared(table.drop(columns=["size_reference", "size_value"]), ["0", "1", "2"], n_resamples=50)
    assert found["n"] == 39
    for name, value in {"avoided_by_none": avoided, "differ": differ, "beyond": avoided - differ}.items():
        assert [found[f"{name}{end}"] for end in ("", "_low", "_high")] == pytest.approx([value] * 3, abs=1e-9)
    with pytest.raises(ValueError, match="no values of absent; there are those of 0, 1, 2"):
        explanations.shared(table, ["0", "absent"])
    for models in (["0"], ["0", "0"], []):
        with pytest.raises(ValueError, match="at least two models are compared"):
            explanations.shared(table, models)


def test_diets_show_what_networks_share_and_where_a_diet_leads():
    board = pd.DataFrame(
        [("mo", "chgnet-0.3.0", 0.4), ("mo", "nequix-mp-1", 0.5), ("mo", "nequix-omat-1", 0.8), ("si", "chgnet-0.3.0", 0.6)],
        columns=["family", "model", "slope"],
    )
    alike, steps = ("chgnet-0.3.0", "nequix-mp-1"), [("nequix-mp-1", "nequix-omat-1"), ("nequix-mp-1", "nequix-oam-1")]
    (axes,) = figures.diets(board, {"mo": "molybdenum", "si": "silicon", "absent": "no table"}, alike, steps).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["molybdenum", "silicon"]
    assert [end for bar in axes.patches for end in (bar.get_x(), bar.get_width())] == pytest.approx([0.4, 0.1, 0.6, 0.0])
    (arrow,) = axes.texts
    assert (arrow.xyann[0], arrow.xy[0]) == (0.5, 0.8)
    diets = [key for key, entry in potentials.CATALOGUE.items() if entry.family == "nequix"]
    full = pd.DataFrame([("mo", key, 0.5) for key in [*alike, *diets]], columns=["family", "model", "slope"])
    everything = figures.diets(
        full, {"mo": "a family with a long name"}, (*alike, "sevennet-0"), [("nequix-mp-1", key) for key in diets[1:]]
    )
    assert "base64" in figures.show(everything, "All diets.")._repr_html_(), "the legend fits in"


@pytest.mark.parametrize(("kind", "by_truth", "by_prediction"), [("noisy", 1.0, 1 / R2), ("calibrated", R2, 1.0), ("soft", R2, R2)])
def test_bins_show_what_their_axis_makes_them_show(kind, by_truth, by_prediction):
    cloud = explanations.simulate(kind, R2, n=40_000, seed=1)
    for on, expected in (("reference", by_truth), ("value", by_prediction)):
        found = explanations.binned(cloud, (0.5, 1, 2), on, n_resamples=50)
        np.testing.assert_allclose(found["ratio"], expected, atol=0.04)
    with pytest.raises(ValueError, match="not 'size'"):
        explanations.binned(cloud, (0.5, 1), "size")


def test_small_bins_are_left_out():
    assert explanations.binned(explanations.simulate("noisy", n=200), (0, 10), "value").empty


def test_sizes_are_lengths_of_force_vectors():
    rows = pd.DataFrame(
        {"model": "m", "case": "a", "atom": [0, 0, 0, 1, 1, 1], "value": [3, 4, 0, 0, 0, 2], "reference": [0, 0, 1, 2, 3, 6]}
    )
    found = explanations.with_sizes(rows)
    assert found["size_value"].tolist() == [5, 5, 5, 2, 2, 2]
    assert found["size_reference"].tolist() == [1, 1, 1, 7, 7, 7]


def test_label_noise_attenuates_s_and_not_the_reverse_slope():
    rng = np.random.default_rng(0)
    x = rng.normal(size=100_000)
    measured = x + 0.5 * rng.normal(size=x.size)
    rms = np.sqrt(np.mean(measured**2))
    assert softening.softening_scale(measured, x) == pytest.approx(explanations.reliability(rms, 0.5), abs=0.01)
    assert softening.inverse_slope(measured, x) == pytest.approx(1, abs=0.01)
    forces = pd.DataFrame({"model": "m", "material": "a", "reference": measured, "value": 0.75 * measured})
    found = explanations.label_noise({"forces-wbm": forces, "surfaces": forces}, (0.5,), "m")
    assert found["family"].tolist() == ["forces-wbm"]
    assert found["lost_0.5"].iloc[0] == pytest.approx(0.25 / rms**2)
    # So much noise would make a perfect model look as soft as this one.
    assert explanations.reliability(rms, found["needed"].iloc[0]) == pytest.approx(0.75)


def frames(noise, soft):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 300))
    y = soft * x + noise * rng.normal(size=x.shape)
    case = np.repeat([f"frame {i}" for i in range(len(x))], x.shape[1])
    return pd.DataFrame(
        {
            "model": "m",
            "set": "s",
            "material": "a",
            "case": case,
            "property": "force",
            "value": y.ravel(),
            "reference": x.ravel(),
            "status": "ok",
        }
    )


def test_a_factor_mends_what_is_soft_and_not_what_is_calibrated():
    soft = explanations.corrections(frames(0.01, 0.7)).groupby("method")["ratio"].median()
    assert (soft < 0.1).all()
    calibrated = explanations.corrections(frames(np.sqrt(0.7 * 0.3), 0.7))
    ratio = calibrated.groupby("method")["ratio"].median()
    assert ratio["inverse_slope"] > 1.1
    assert ratio["least_squares"] == pytest.approx(1, abs=0.05)
    assert calibrated["r2"].iloc[0] == pytest.approx(0.7, abs=0.05)
    with pytest.raises(ValueError, match="no material has two frames"):
        explanations.corrections(frames(0.1, 0.7).query("case == 'frame 0'"))


# ---------------------------------------------------------------------------------------------------
# The families


def test_failed_rows_are_counted_and_left_out():
    table = pd.DataFrame(
        {
            "model": "m",
            "set": "binaries",
            "material": ["a", "b", "c", "d"],
            "case": ["a", "b", "c", "d"],
            "property": "bulk_modulus",
            "value": [1.0, np.nan, 3.0, 4.0],
            "reference": [1.0, 2.0, 3.0, np.nan],
            "status": ["ok", "failed", "ok", "ok"],
        }
    )
    found = explanations.rows(explanations.FAMILIES["bulk-modulus"], table)
    assert found["case"].tolist() == ["a", "c"]
    assert found.attrs["n_failed"] == {"m": 2}
    assert found["kept"].all()
    assert found["static"].isna().all()


def test_models_without_a_table_are_no_error(monkeypatch):
    have = results.models("surfaces")
    monkeypatch.setattr(results, "models", lambda benchmark: have if benchmark == "surfaces" else [])
    found = explanations.read()
    assert list(found) == ["surfaces"]
    assert explanations.rows(explanations.FAMILIES["phonons"]).empty


@pytest.fixture(scope="module")
def families():
    return explanations.read({key: explanations.FAMILIES[key] for key in ("surfaces", "sic-aln", "path-livpo4f", "phonons-pbe")})


def test_slopes_are_those_of_the_chapters(families):
    from helpers.benchmarks import surfaces

    expected = (
        surfaces.summarise(results.read("surfaces", "chgnet-0.3.0")).set_index(["set", "property"]).loc[("slabs-109", "gamma_relaxed")]
    )
    found = explanations.overview(families, 200).set_index(["family", "model"]).loc[("surfaces", "chgnet-0.3.0")]
    assert found["slope"] == pytest.approx(expected["slope"])
    assert found["inverse_slope"] == pytest.approx(expected["inverse_slope"])
    assert found["pearson_r2"] == pytest.approx(expected["r2"])


def test_every_split_of_the_tables_adds_up(families):
    found = explanations.explain_all(families, n_resamples=20)
    wide = found.pivot_table(index=["family", "model"], columns="explanation", values="part")
    np.testing.assert_allclose(wide.drop(columns="total").sum(axis=1), wide["total"], atol=1e-9)
    # A single path is a single material: no interval, but a split.
    path = found[(found["family"] == "path-livpo4f") & (found["explanation"] == "left")]
    assert path["part"].notna().all()
    assert path["part_low"].isna().all()


def test_figures_are_drawn(families):
    names = {key: explanations.FAMILIES[key].name for key in families}
    board = explanations.overview(families, 50)
    explained = explanations.explain_all(families, n_resamples=20)
    models = ["chgnet-0.3.0", "m3gnet-mp-2021.2.8"]
    simulated = pd.concat([explanations.simulate(kind, n=400) for kind in explanations.ARCHETYPES])
    bins = [
        explanations.binned(part, (0.1, 1, 10), on, min_values=50, n_resamples=20).assign(model="chgnet-0.3.0", family="x", on=on)
        for part in [explanations.simulate("noisy", n=400)]
        for on in ("reference", "value")
    ]
    drawn = [
        figures.clouds(simulated, {kind: kind for kind in explanations.ARCHETYPES}),
        figures.slope_plane(board, names),
        figures.parts(explained, names, models),
        figures.model_pairs(explanations.pairs(families, *models, n_resamples=20), names),
        figures.ratio_by_size(pd.concat(bins), {"x": "made up"}),
    ]
    for figure in drawn:
        assert isinstance(figure, Figure)
        figure.canvas.draw()
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.slope_plane(board, {"absent": "absent"})
    with pytest.raises(ValueError, match="no good rows of absent"):
        figures.parts(explained, names, ["absent"])
