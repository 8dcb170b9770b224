"""Figures of phonons and of migration paths: what is drawn where, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from helpers import figures

MODELS = ("chgnet-0.3.0", "m3gnet-mp-2021.2.8")


def band_rows(model, factor, case="csf/x"):
    """Return two branches along Γ-X, U-K, with a jump between X and U, and a density of states."""
    rows = []
    labels = {0: "G", 3: "X", 4: "U", 6: "K"}
    distances = [0, 1, 2, 3, 3, 4, 5]
    for q, distance in enumerate(distances):
        for branch in range(2):
            reference = 1.0 + distance + branch
            common = {"model": model, "case": case, "status": "ok", "property": "band", "q": float(q), "branch": float(branch)}
            rows.append(
                common | {"distance": float(distance), "label": labels.get(q, ""), "value": factor * reference, "reference": reference}
            )
    for frequency in np.arange(0, 8, 0.5):
        rows.append(
            {"model": model, "case": case, "status": "ok", "property": "dos", "frequency_thz": frequency, "value": 1.0, "reference": 2.0}
        )
    return rows


@pytest.fixture
def bands():
    return pd.DataFrame(band_rows(MODELS[0], 0.9) + band_rows(MODELS[1], 0.7))


def test_bands_of_dft_and_model_share_a_panel(bands):
    figure = figures.bands(bands, paper={MODELS[0]: 6.3})
    assert len(figure.axes) == 2
    panel = figure.axes[0]
    assert panel.get_title(loc="left") == "CHGNet 0.3.0"
    curves = [line for line in panel.lines if len(line.get_xdata()) > 2]
    tops = {line.get_color(): line.get_ydata().max() for line in curves}
    assert tops == pytest.approx({"black": 7.0, figures.colour(MODELS[0]): 6.3})
    # The path jumps from X to U: two pieces for each of two branches, for DFT and model.
    assert len(curves) == 8
    assert all(np.ptp(line.get_xdata()) <= 3 for line in curves)
    assert [text.get_text() for text in panel.get_xticklabels()] == ["Γ", "X|U", "K"]
    assert any("highest 6.30, DFT 7.00" in text.get_text() for text in panel.texts)
    (published,) = [line for line in panel.lines if line.get_marker() == "o"]
    assert float(published.get_ydata()[0]) == 6.3
    assert not [line for line in figure.axes[1].lines if line.get_marker() == "s"]


def test_bands_of_two_crystals_are_refused(bands):
    both = pd.concat([bands, pd.DataFrame(band_rows(MODELS[0], 0.9, case="other/y"))])
    with pytest.raises(ValueError, match="bands of one crystal"):
        figures.bands(both)


def test_bands_given_twice_are_refused_not_averaged(bands):
    again = bands[(bands["property"] == "band") & (bands["model"] == MODELS[0])].assign(value=lambda rows: rows["value"] * 0.9)
    with pytest.raises(ValueError, match=f"twice, first for {MODELS[0]}"):
        figures.bands(pd.concat([bands, again]))


def test_no_bands_are_refused(bands):
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.bands(bands[bands["property"] == "dos"])


@pytest.fixture
def images():
    rows = []
    for material, top in (("A", 0.6), ("B", 0.4)):
        for model, factor in zip(MODELS, (0.8, 0.5), strict=True):
            for at in (0.0, 0.5, 1.0):
                reference = top if at == 0.5 else 0.0
                rows.append(
                    {
                        "model": model,
                        "material": material,
                        "case": f"{material}/{at}",
                        "path_coordinate": at,
                        "value": factor * reference,
                        "reference": reference,
                        "status": "ok",
                        "unit": "eV",
                        "property": "image_energy",
                    }
                )
    return pd.DataFrame(rows)


def test_profiles_have_a_panel_for_each_path(images):
    figure = figures.energy_profiles(images)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["A", "B"]
    heights = {line.get_color(): line.get_ydata().max() for line in figure.axes[0].lines if len(line.get_xdata()) == 3}
    assert heights == pytest.approx({figures.colour("DFT"): 0.6, figures.colour(MODELS[0]): 0.48, figures.colour(MODELS[1]): 0.3})


def test_profiles_leave_out_failures_and_refuse_doubles(images):
    failed = images.assign(status=np.where((images["model"] == MODELS[0]) & (images["material"] == "A"), "failed", "ok"))
    lines = [line for line in figures.energy_profiles(failed).axes[0].lines if len(line.get_xdata()) == 3]
    assert figures.colour(MODELS[0]) not in {line.get_color() for line in lines}
    with pytest.raises(ValueError, match="an image of A more than once"):
        figures.energy_profiles(pd.concat([images, images.iloc[:1]]))


@pytest.fixture
def barriers():
    rng = np.random.default_rng(0)
    reference = rng.uniform(0.3, 1.0, 40)
    rows = [
        {
            "model": MODELS[0],
            "case": str(k),
            "property": "barrier",
            "value": x - 0.1 - 0.001 * k,
            "reference": x,
            "unit": "eV",
            "status": "ok",
        }
        for k, x in enumerate(reference)
    ]
    rows[0]["value"] = rows[0]["reference"] + 0.2
    rows.append(rows[1] | {"case": "far", "value": rows[1]["reference"] + 30.0})
    return pd.DataFrame(rows)


def test_errors_are_drawn_with_their_numbers_and_the_papers(barriers):
    stats = pd.DataFrame({"model": ["CHGNet"], "q25": [-0.5], "median": [-0.24], "q75": [-0.03]})
    figure = figures.error_distribution(barriers, stats)
    (axes,) = figure.axes
    words = "\n".join(text.get_text() for text in axes.texts)
    assert "95% below 0" in words
    assert "n = 41" in words
    assert "2 more →" in words
    assert axes.get_xlim()[1] < 1
    assert axes.get_xlabel() == "barrier, model − DFT (eV)"
    assert any(np.allclose(np.ravel(line.get_xdata()), -0.24) for line in axes.lines)
    assert any(np.allclose(line.get_xdata(), [-0.5, -0.03]) for line in axes.lines if len(line.get_xdata()) == 2)


def test_errors_of_a_case_given_twice_are_refused(barriers):
    with pytest.raises(ValueError, match="more than once"):
        figures.error_distribution(pd.concat([barriers, barriers.iloc[:1]]))


def test_ratios_have_their_own_axis_and_a_median_without_quartiles():
    fits = pd.DataFrame({"model": MODELS[0], "material": list("abcdef"), "slope": np.linspace(0.7, 0.95, 6), "status": "ok"})
    stats = pd.DataFrame({"model": ["CHGNet"], "q25": [np.nan], "median": [0.906], "q75": [np.nan]})
    (axes,) = figures.scale_distribution(fits, stats, what="frequency, model / DFT").axes
    assert axes.get_xlabel() == "frequency, model / DFT"
    assert any(np.allclose(np.ravel(line.get_xdata()), 0.906) for line in axes.lines)
    # Nothing with a NaN in it is drawn.
    assert not any(np.isnan(np.ravel(line.get_xdata()).astype(float)).any() for line in axes.lines)


def test_conductivities_stand_beside_what_softness_alone_would_do():
    found = pd.DataFrame({"model": MODELS[0], "kappa_ratio": [0.5, 1e-5, np.nan, 0.3], "omega_max": [0.8, 0.9, 0.9, np.nan]})
    figure = figures.conductivity(pd.concat([found, found.assign(model=MODELS[1], kappa_ratio=np.nan)]))
    (panel,) = figure.axes  # of the other model nothing is known
    ideal, points, dft = panel.lines
    assert ideal.get_ydata() == pytest.approx(np.asarray(ideal.get_xdata()) ** 3)
    assert [*zip(points.get_xdata(), points.get_ydata(), strict=True)] == [(0.8, 0.5), (0.9, 1e-5)]
    assert (dft.get_xdata()[0], dft.get_ydata()[0]) == (1, 1)
    assert [text.get_text() for text in panel.texts] == ["n = 2, 1 outside"]
