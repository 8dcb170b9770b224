"""Figures: every kind is drawn from synthetic data, says the right numbers, and has its alternative text and caption."""

import base64
import io
import json
import re
import shutil
import subprocess

import matplotlib as mpl
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from ase.build import bulk, fcc111
from bs4 import BeautifulSoup
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from helpers import figures, softening
from helpers.figures import interactive, style
from helpers.potentials import CATALOGUE
from helpers.registry import data_dir

PAPER_MODELS = ["chgnet-0.3.0", "m3gnet-mp-2021.2.8", "mace-mp-0-medium"]


def scalars(models=PAPER_MODELS, slope=0.8, noise=0.005):
    rng = np.random.default_rng(0)
    reference = rng.uniform(0.05, 0.2, 40)
    parts = [
        pd.DataFrame(
            {
                "model": model,
                "set": "s",
                "material": np.repeat(["Cu", "Ni", "Mo", "W"], 10),
                "case": [f"case {i}" for i in range(40)],
                "property": "gamma_static",
                "value": slope * reference + rng.normal(0, noise, 40),
                "reference": reference,
                "unit": "eV/Å²",
                "status": "ok",
                "reason": "",
            }
        )
        for model in models
    ]
    return pd.concat(parts, ignore_index=True)


def forces(models=PAPER_MODELS, n_materials=12):
    parts = []
    for model in models:
        for number in range(n_materials):
            rng = np.random.default_rng(number)
            x = rng.normal(size=60)
            y = rng.normal(0.8, 0.1) * x + rng.normal(0, 0.1, 60)
            parts.append(pd.DataFrame({"model": model, "material": f"mp-{number}", "value": y, "reference": x}))
    return pd.concat(parts, ignore_index=True).assign(set="s", case="c", property="force", unit="eV/Å", status="ok", reason="")


def fits(models=PAPER_MODELS):
    return softening.per_material(forces(models))


def words(figure):
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible()).replace("\u00a0", " ")


def drawn(figure):
    """Render, and fail if nothing but white came out."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    assert (pixels != 255).any(axis=2).mean() > 0.01
    return pixels


# --- the language


def test_every_model_has_a_colour_and_a_marker_of_its_own():
    assert set(figures.COLOURS) == set(figures.MARKERS) == {"DFT", *CATALOGUE}
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert len(set(figures.MARKERS.values())) == len(figures.MARKERS)
    markers = {*figures.MARKERS.values(), figures.marker("chgnet-0.3.0*1.2"), figures.marker("chgnet-0.3.0+1"), figures.marker("ase:a.b")}
    assert len(markers) == len(figures.MARKERS) + 3
    assert markers <= set(style._PLOTLY_SYMBOL)


def lab(colour, matrix=None):
    """Return CIE L*a*b* of a colour, seen through a matrix on linear RGB."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if matrix is not None:
        linear = np.clip(matrix @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Full protanopia and deuteranopia: Machado, Oliveira and Fernandes, IEEE Trans. Vis. Comput. Graph. 15, 1291 (2009).
VISION = {
    "full": None,
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
}


@pytest.mark.parametrize("vision", VISION)
def test_the_papers_three_models_are_told_apart_by_colour_alone(vision):
    seen = [lab(figures.colour(model), VISION[vision]) for model in ("DFT", *PAPER_MODELS)]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 20


def test_coloured_text_has_contrast():
    for model in [*figures.COLOURS, "ase:a.b"]:
        rgb = np.array(style._readable(model))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("chgnet-0.3.0", "CHGNet 0.3.0"),
        ("chgnet-0.3.0*1.2500", "CHGNet 0.3.0 × 1.25"),
        ("chgnet-0.3.0+10", "CHGNet 0.3.0 + 10 labels"),
        ("chgnet-0.3.0+1", "CHGNet 0.3.0 + 1 label"),
        ("chgnet-0.3.0+10*1.1000", "CHGNet 0.3.0 + 10 labels × 1.10"),
        ("ase:my+module.make*it", "ase:my+module.make*it"),
    ],
)
def test_labels(key, name):
    assert figures.label(key) == name


def test_derived_models_keep_the_colour():
    assert figures.colour("chgnet-0.3.0*1.2500") == figures.colour("chgnet-0.3.0+10") == figures.colour("chgnet-0.3.0")


def test_order_is_that_of_the_catalogue():
    models = ["ase:a.b", "mace-mp-0-medium", "chgnet-0.3.0*1.2", "chgnet-0.3.0"]
    assert figures.in_order(models) == ["chgnet-0.3.0", "chgnet-0.3.0*1.2", "mace-mp-0-medium", "ase:a.b"]


@pytest.mark.parametrize(
    ("name", "n", "mae"),
    [
        ("fig2a", 146, {"m3gnet-mp-2021.2.8": 0.047, "chgnet-0.3.0": 0.042, "mace-mp-0-medium": 0.032}),
        ("fig2b", 129, {"chgnet-0.3.0": 1.296, "mace-mp-0-medium": 0.974}),
    ],
)
def test_digitised_points_give_the_printed_mae(name, n, mae):
    points = figures.paper_points(name)
    assert np.isfinite(points[["value", "reference"]].to_numpy()).all()
    for model, expected in mae.items():
        part = points[points["model"] == model]
        assert len(part) == n
        assert np.abs(part["value"] - part["reference"]).mean() == pytest.approx(expected, abs=0.002)


def test_paper_names():
    assert set(figures.paper_points("fig2c")["model"]) == set(PAPER_MODELS)
    with pytest.raises(ValueError, match="no model 'SevenNet'"):
        figures.paper_key("SevenNet")
    with pytest.raises(FileNotFoundError):
        figures.paper_points("fig9z")


def test_figures_leave_the_global_style_alone(monkeypatch):
    before = dict(mpl.rcParams)
    figures.parity(scalars(), "surface energy")
    figures.scale_distribution(fits())
    assert dict(mpl.rcParams) == before
    with mpl.rc_context():
        figures.apply_style()
        assert mpl.rcParams["font.size"] == figures.STYLE["font.size"]


# --- static figures


def paper_table(name):
    return pd.read_csv(data_dir() / "paper" / f"{name}.csv")


FIGURES = {
    "parity, three models, paper": lambda: figures.parity(scalars(), "surface energy", paper=figures.paper_points("fig2a")),
    "parity, one model": lambda: figures.parity(scalars(PAPER_MODELS[:1]), "surface energy", clusters=None),
    "parity, four models": lambda: figures.parity(scalars([*PAPER_MODELS, "ase:a.b"]), "surface energy"),
    "forces, three models": lambda: figures.force_parity(forces()),
    "forces, two models": lambda: figures.force_parity(forces(PAPER_MODELS[:2])),
    "scales": lambda: figures.scale_distribution(fits(), paper_table("fig5b_stats")),
    "errors, all models": lambda: figures.mae_cmae(fits(list(CATALOGUE)), paper_table("fig6b_quartiles")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_fit_for_a_page(name):
    """Something is drawn, the figure is narrow enough, its text is large enough, and none of it is cut off at the edge."""
    figure = FIGURES[name]()
    drawn(figure)
    assert figure.get_figwidth() <= 9
    width, height = figure.canvas.get_width_height()
    # Labels of ticks beyond the limits of their axis exist without being drawn.
    undrawn = set()
    for axis in figure.findobj(Axis):
        shown = {tick.label1 for tick in axis._update_ticks()}
        undrawn |= {tick.label1 for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())} - shown
        if not axis.axes.axison:
            undrawn |= set(axis.findobj(Text))
    for text in figure.findobj(Text):
        if text in undrawn or not text.get_visible() or not text.get_text():
            continue
        assert text.get_fontsize() >= 9, text.get_text()
        box = text.get_window_extent(figure.canvas.get_renderer())
        assert box.x0 >= -1, text.get_text()
        assert box.y0 >= -1, text.get_text()
        assert box.x1 <= width + 1, text.get_text()
        assert box.y1 <= height + 1, text.get_text()


def test_parity_says_what_the_statistics_say():
    table = scalars(PAPER_MODELS[:1])
    text = words(figures.parity(table, "surface energy"))
    summary = softening.scalar_summary(table["value"], table["reference"], table["material"])
    assert "n = 40" in text
    assert f"slope {summary['slope']:.2f} [{summary['slope_low']:.2f}, {summary['slope_high']:.2f}]" in text
    assert f"MAE {summary['mae']:.4f} eV/Å²" in text
    assert "DFT surface energy (eV/Å²)" in text
    assert "CHGNet 0.3.0" in text


def test_parity_axes_are_equal_and_the_line_has_the_slope():
    figure = figures.parity(scalars(noise=0), "surface energy")
    for axes in figure.axes[:3]:
        assert axes.get_xlim() == axes.get_ylim()
        assert axes.get_aspect() == 1
        slopes = [np.ptp(line.get_ydata()) / np.ptp(line.get_xdata()) for line in axes.get_lines() if len(line.get_xdata()) == 2]
        assert sorted(slopes) == pytest.approx([0.8, 1.0])


def test_paper_points_are_open_and_only_behind_the_papers_models():
    table = scalars(["chgnet-0.3.0", "chgnet-0.3.0*1.2500"])
    figure = figures.parity(table, "surface energy", paper=figures.paper_points("fig2a"))
    theirs = [[line for line in axes.get_lines() if line.get_markerfacecolor() == "none"] for axes in figure.axes[:2]]
    assert [len(lines) for lines in theirs] == [1, 0]
    assert theirs[0][0].get_marker() == figures.marker("chgnet-0.3.0")
    assert theirs[0][0].get_markeredgecolor() == figures.colour("chgnet-0.3.0")
    assert "paper" in words(figure)


def test_failed_rows_are_not_drawn_and_other_faults_are_named():
    table = scalars(PAPER_MODELS[:1])
    table.loc[0, ["status", "value"]] = ["failed", np.nan]
    assert "n = 39" in words(figures.parity(table, "γ"))
    with pytest.raises(ValueError, match=r"1 rows with status 'ok' .* 'case 0'"):
        figures.parity(table.assign(status="ok"), "γ")
    with pytest.raises(ValueError, match="every row of property 'gamma_static' failed"):
        figures.parity(table.assign(status="failed"), "γ")
    both = pd.concat([scalars(), scalars().assign(property="gamma_relaxed")])
    with pytest.raises(ValueError, match=r"gamma_relaxed.*gamma_static"):
        figures.parity(both, "γ")
    assert "n = 40" in words(figures.parity(both, "γ", quantity="gamma_relaxed"))
    with pytest.raises(ValueError, match="no rows"):
        figures.parity(both, "γ", quantity="energy")
    with pytest.raises(ValueError, match="one unit"):
        figures.parity(pd.concat([scalars(), scalars().assign(unit="J/m²")]), "γ")
    with pytest.raises(ValueError, match="no good rows of mace-mpa-0-medium"):
        figures.parity(scalars(), "γ", models=["mace-mpa-0-medium"])
    with pytest.raises(ValueError, match="no good rows of mace-mpa-0-medium"):
        figures.force_parity(forces(), models=["mace-mpa-0-medium"])


def test_force_parity_counts_every_component():
    table = forces(PAPER_MODELS[:1])
    fitted = softening.fit(table["reference"], table["value"])
    figure = figures.force_parity(table, limit=1.5)
    text = words(figure)
    outside = np.count_nonzero((table[["value", "reference"]].abs() > 1.5).any(axis=1))
    assert f"slope {fitted.slope:.3f}" in text
    assert f"MAE {fitted.mae:.3f}\ncMAE {fitted.cmae:.3f} eV/Å" in text
    assert f"n = {len(table)}\n{outside} outside" in text
    hexagons = figure.axes[0].collections[0]
    assert hexagons.get_array().sum() == len(table) - outside


def test_scale_distribution_says_median_and_share():
    table = fits()
    figure = figures.scale_distribution(table, paper_table("fig5b_stats"))
    part = table[table["model"] == "chgnet-0.3.0"]["slope"]
    assert f"median {part.median():.2f}\n{(part < 1).mean():.0%} below 1\nn = 12" in words(figure)
    opened = [line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "white"]
    assert sorted(line.get_xdata()[0] for line in opened) == pytest.approx([0.7708, 0.7935, 0.8032])


def test_values_far_out_are_counted_not_dropped():
    table = fits(PAPER_MODELS[:1])
    table.loc[0, "slope"] = -3.0
    text = words(figures.scale_distribution(table))
    assert "← 1 more" in text
    assert "n = 12" in text


def test_distributions_refuse():
    table = fits()
    for draw in (figures.scale_distribution, figures.mae_cmae):
        with pytest.raises(ValueError, match="more than once"):
            draw(pd.concat([table, table.assign(set="other")]))
        with pytest.raises(ValueError, match="no material"):
            draw(table.assign(status="failed"))


def test_mae_cmae_shows_medians_and_paper():
    table = fits(PAPER_MODELS[:1])
    figure = figures.mae_cmae(table, paper_table("fig6b_quartiles"))
    text = words(figure)
    assert f"MAE {table['mae'].median():.3f}" in text
    assert f"cMAE {table['cmae'].median():.3f}" in text
    medians = sorted(line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_linewidth() == 2.2)
    assert medians == pytest.approx(sorted([table["mae"].median(), table["cmae"].median(), 0.2018, 0.1720]))


# --- interactive


def test_interactive_parity_names_cases():
    figure = figures.interactive_parity(scalars(), "surface energy")
    assert [trace.type for trace in figure.data] == ["scatter"] * 4
    ours = figure.data[1]
    assert ours.name == "CHGNet 0.3.0"
    assert ours.marker.color == figures.colour("chgnet-0.3.0")
    assert ours.marker.symbol == "circle"
    assert list(ours.text[:2]) == ["case 0", "case 1"]
    assert "%{text}" in ours.hovertemplate
    assert figure.layout.yaxis.scaleanchor == "x"
    assert figure.layout.width is None
    assert "gamma" not in figures.interactive_parity(scalars(), "x", label_column="material").data[1].text
    with pytest.raises(ValueError, match="no column 'formula'"):
        figures.interactive_parity(scalars(), "x", label_column="formula")


def slab_and_crystal():
    return {"slab <1>": fcc111("Cu", (1, 1, 3), vacuum=5, periodic=True), "rock salt": bulk("MgO", "rocksalt", 4.21, cubic=True)}


def test_structure_view_has_picture_text_atoms_and_cell():
    soup = BeautifulSoup(figures.structure_view(slab_and_crystal(), "Two structures.")._repr_html_(), "html.parser")
    pictures = soup.find_all("img")
    assert [picture["alt"] for picture in pictures] == ["Two structures. slab <1>: Cu3.", "Two structures. rock salt: Mg4O4."]
    for picture in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",")[1])))
        assert min(image.size) > 300
    assert "slab <1>" in soup.get_text()
    script = soup.find("script").string
    assert script.count("createViewer") == 2
    assert json.loads(re.search(r"loadOnce\((\".*?\")\)\.then", script).group(1)) == "../_static/3Dmol-min.js"
    assert script.count("Cu ") == 3
    edges = [json.loads(found) for found in re.findall(r"of (\[\[.*?\]\]\])\)", script)]
    assert [len(part) for part in edges] == [12, 12]
    lengths = np.linalg.norm(np.diff(edges[1], axis=1), axis=-1)
    np.testing.assert_allclose(lengths, 4.21)


def test_cell_edges_are_the_edges():
    cell = np.array([[3.0, 0, 0], [1, 2, 0], [0.5, 0.2, 4]])
    edges = interactive._cell_edges(cell)
    fractional = edges @ np.linalg.inv(cell)
    corners, counts = np.unique(fractional.round(6).reshape(-1, 3), axis=0, return_counts=True)
    assert len(corners) == 8
    assert (counts == 3).all()
    assert len(np.unique(edges.round(6).reshape(12, 6), axis=0)) == 12


def test_a_molecule_without_cell_has_no_box():
    atoms = bulk("Cu")
    atoms.cell = np.zeros((3, 3))
    assert "of [])" in figures.structure_view({"atom": atoms}, "An atom.")._repr_html_()


def test_several_viewers_on_a_page_have_their_own_places():
    view = figures.structure_view(slab_and_crystal(), "Two structures.")
    soup = BeautifulSoup(view._repr_html_() + view._repr_html_(), "html.parser")
    places = [place["id"] for place in soup.select(".structure-viewer")]
    assert len(set(places)) == 4
    for place in places:
        assert f'getElementById("{place}")' in str(soup)


def test_structure_view_refuses():
    with pytest.raises(ValueError, match="no structure"):
        figures.structure_view({}, "x")
    with pytest.raises(ValueError, match="alternative text"):
        figures.structure_view(slab_and_crystal(), " ")
    with pytest.raises(ValueError, match="'nothing' has no atoms"):
        figures.structure_view({"nothing": bulk("Cu")[:0]}, "x")


@pytest.mark.skipif(shutil.which("node") is None, reason="checks the syntax of the JavaScript with node")
@pytest.mark.parametrize("kind", ["structures", "plot"])
def test_scripts_are_javascript(kind, tmp_path):
    figure = (
        figures.structure_view(slab_and_crystal(), "x") if kind == "structures" else figures.interactive_parity(scalars(), "x </script>")
    )
    shown = figures.show(figure, "What it shows.")._repr_html_()
    (script,) = BeautifulSoup(shown, "html.parser").find_all("script")
    path = tmp_path / "script.js"
    path.write_text(script.string)
    subprocess.run([shutil.which("node"), "--check", str(path)], check=True)


# --- captions


def provenance(model, device="NVIDIA H200", date="2026-01-02", package="chgnet 0.4"):
    return {"model": model, "device": device, "date": date, "potential": {"package": package}, "packages": {}}


def test_caption():
    made = [
        provenance("chgnet-0.3.0"),
        provenance("mace-mp-0-medium", package="mace-torch 0.3"),
        provenance("chgnet-0.2.0", device="a CPU"),
    ]
    assert figures.caption(made, "Bars: 95 %.") == (
        "CHGNet 0.3.0 (chgnet 0.4), MACE-MP-0 (mace-torch 0.3): NVIDIA H200, 2026-01-02; "
        "CHGNet 0.2.0 (chgnet 0.4): a CPU, 2026-01-02. Bars: 95 %."
    )
    bare = {"model": "chgnet-0.3.0", "device": "a CPU", "date": "2026-01-02"}
    assert figures.caption([bare]) == "CHGNet 0.3.0: a CPU, 2026-01-02."
    with pytest.raises(ValueError, match="lacks device, date"):
        figures.caption([{"model": "chgnet-0.3.0"}])
    with pytest.raises(ValueError, match="at least one"):
        figures.caption([])


def test_show_matplotlib():
    figure = figures.parity(scalars(), "surface energy")
    shown = figures.show(figure, 'Soft "by" <20 %> & more', "a < b & c", "foot <b>")
    soup = BeautifulSoup(shown._repr_html_(), "html.parser")
    assert soup.figure["class"] == ["result"]
    assert soup.img["alt"] == 'Soft "by" <20 %> & more'
    assert soup.figcaption.find(string=True, recursive=False) == "a < b & c"
    assert soup.figcaption.small.string == "foot <b>"
    image = Image.open(io.BytesIO(base64.b64decode(soup.img["src"].removeprefix("data:image/png;base64,"))))
    assert image.width == pytest.approx(2 * int(soup.img["width"]), abs=2)
    assert "Soft" in repr(shown)
    assert BeautifulSoup(figures.show(figure, "x")._repr_html_(), "html.parser").figcaption is None


def test_same_table_same_page():
    """A rebuilt book must not differ where nothing has changed."""
    one, two = (figures.show(figures.scale_distribution(fits()), "x")._repr_html_() for _ in range(2))
    assert one == two


def test_show_plotly_and_structures():
    plot = figures.show(figures.interactive_parity(scalars(), "</script> energy"), "A plot.", "c", script="lib.js")
    soup = BeautifulSoup(plot._repr_html_(), "html.parser")
    place = soup.select_one(".plotly-graph-div")
    assert place["aria-label"] == "A plot."
    (script,) = soup.find_all("script")
    assert 'loadOnce("lib.js")' in script.string
    data = re.search(r"const plot = (\{.*\});$", script.string, re.MULTILINE).group(1)
    assert len(go.Figure(json.loads(data)).data) == 4
    view = figures.show(figures.structure_view(slab_and_crystal(), "Two structures."), "Two structures.", "c")
    assert len(BeautifulSoup(view._repr_html_(), "html.parser").figure.find_all("img")) == 2


def test_show_refuses_a_figure_without_words():
    with pytest.raises(ValueError, match="alternative text"):
        figures.show(figures.parity(scalars(), "γ"), "  ")


# ---------------------------------------------------------------------------------------------------
# Lanes, choices of labels, histogram, hero, tables


def lanes():
    rows = [
        {"model": model, "material": material, "slope": 0.7 + 0.1 * k, "slope_low": 0.6 + 0.1 * k, "slope_high": 0.8 + 0.1 * k}
        for k, model in enumerate(PAPER_MODELS)
        for material in ("Cu", "W")
    ]
    return pd.DataFrame(rows)


def test_by_material_draws_every_model_in_every_lane():
    figure = figures.by_material(lanes(), "slope", "slope", order=["W", "Cu"])
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["W", "Cu"]
    drawn = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert set(drawn) == {figures.label(model) for model in PAPER_MODELS}
    assert drawn[figures.label("chgnet-0.3.0")].get_xdata().tolist() == pytest.approx([0.7, 0.7])
    low, high = axes.get_ylim()
    for line in drawn.values():
        assert ((line.get_ydata() < low) & (line.get_ydata() > high)).all(), "a marker lies outside its lane"


def test_label_choices_shows_the_median_of_every_choice():
    choices = pd.concat(
        pd.DataFrame({"model": model, "material": material, "ratio": [0.5, 0.6, 0.9, 5.0], "status": ["ok", "ok", "ok", "failed"]})
        for model in PAPER_MODELS[:2]
        for material in ("Si", "Mo")
    )
    axes = figures.label_choices(choices, "MAE after / before").axes[0]
    medians = [line.get_xdata() for line in axes.lines if line.get_label() == figures.label("chgnet-0.3.0")]
    assert np.allclose(np.ravel(medians), 0.6), "failed choices do not count"
    assert axes.get_xlim() == (0.0, 2.0)


def test_force_histogram_names_sets_with_their_medians():
    forces = pd.DataFrame({"set": ["a"] * 3 + ["b"] * 3, "reference": [0.1, -0.2, 0.3, 1.0, -2.0, 0.0]})
    figure = figures.force_histogram(forces, {"a": "training", "b": "test"})
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["training (median 0.200 eV/Å)", "test (median 1.50 eV/Å)"]


def test_hero_has_three_panels_with_their_numbers():
    scalar = scalars(["chgnet-0.3.0"])
    force = scalar.assign(property="force", unit="eV/Å")
    figure = figures.hero(force, force.assign(value=force["reference"]), scalar, model="chgnet-0.3.0")
    assert len(figure.axes) == 3
    words = [" ".join(text.get_text() for text in axes.texts) for axes in figure.axes]
    assert "slope 0.8" in words[0]
    assert "slope 1.00" in words[2]


def test_a_table_is_escaped_captioned_and_reachable_by_keyboard():
    shown = figures.show_table(pd.DataFrame({"a<b": [1.5, np.nan]}, index=["<x>", "y"]), caption="n < 2", footer="CPU & date")
    soup = BeautifulSoup(shown._repr_html_(), "html.parser")
    assert soup.select_one("figure.result > div.table-wrapper[tabindex='0'] > table") is not None
    assert soup.select_one("tbody th").get_text() == "<x>"
    assert soup.select("tbody td")[1].get_text() == "–"
    assert soup.figcaption.get_text() == "n < 2CPU & date"


def test_parity_without_fit_has_no_slope():
    words = [text.get_text() for text in figures.parity(scalars(), "surface energy", fit=False).axes[0].texts]
    assert all("slope" not in word for word in words)


def test_with_interval_formats_numbers():
    frame = pd.DataFrame({"s": [0.8, 0.9], "s_low": [0.7, np.nan], "s_high": [0.87, np.nan]})
    assert figures.with_interval(frame, "s") == ["0.80\u00a0[0.70,\u00a00.87]", "0.90"]
    assert figures.with_interval(frame, "s", 0, scale=100) == ["80\u00a0[70,\u00a087]", "90"]
