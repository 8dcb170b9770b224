"""Figures: every kind is drawn from synthetic data, says the right numbers, and has its alternative text and caption."""

import base64
import io
import itertools
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

from helpers import benchmarks, figures, softening
from helpers.figures import interactive, style
from helpers.potentials import CATALOGUE, at_home
from helpers.registry import data_dir
from helpers.reports import page

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
    drawn = ["DFT", *CATALOGUE]
    for look in (figures.colour, figures.marker):
        assert len({look(model) for model in drawn}) == len(drawn)
    markers = {*map(figures.marker, drawn), figures.marker("chgnet-0.3.0*1.2"), figures.marker("chgnet-0.3.0+1"), figures.marker("ase:a.b")}
    assert len(markers) == len(drawn) + 3
    assert markers <= set(style.PLOTLY_SYMBOL)


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
    for model in ["DFT", *CATALOGUE, "ase:a.b"]:
        rgb = np.array(style.readable(model))
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
        ("ase:my+module.make*it", "Your model (my+module.make*it)"),
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
        ("fig2a", 146, {"m3gnet-tf-2021.2.8": 0.047, "chgnet-0.3.0": 0.042, "mace-mp-0-medium": 0.032}),
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
    # The weights that a figure shows: single values tell.
    assert set(figures.paper_points("fig2b")["model"]) == set(PAPER_MODELS)
    assert set(figures.paper_points("fig2c")["model"]) == {"chgnet-0.3.0", "m3gnet-tf-2021.2.8", "mace-mp-0-medium"}
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


def orderings(models=PAPER_MODELS):
    """Return energies 1.2 x (1 − x) ± 0.02 of two orderings per composition; the lower one stands for three times as many."""
    x = np.repeat(np.linspace(0, 1, 9), 2)
    spread = np.tile([-0.02, 0.02], 9)
    parts = [pd.DataFrame({"model": model, "x": x, "value": 1.2 * x * (1 - x) + spread * (x * (1 - x) > 0)}) for model in models]
    return pd.concat(parts, ignore_index=True).assign(multiplicity=np.tile([3, 1], 9 * len(models)), status="ok")


def paper_orderings():
    x = np.linspace(0, 1, 9)
    return pd.concat([pd.DataFrame({"model": model, "x": x, "value": 1.5 * x * (1 - x)}) for model in ("DFT", *PAPER_MODELS)])


def gaps():
    """Return binodals of regular solutions, T = 2 Tc (1 − 2x) / ln((1 − x) / x), and their tops."""
    x = np.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
    tops = pd.DataFrame(
        [("chgnet-0.3.0", "ours", 0.5, 2000.0), ("chgnet-0.3.0", "paper", 0.5, 2200.0), ("DFT", "DFT", 0.5, 2500.0)],
        columns=["model", "source", "x", "temperature_k"],
    )
    lines = [
        pd.DataFrame({"model": m, "source": s, "x": x, "temperature_k": 2 * t * (1 - 2 * x) / np.log((1 - x) / x)})
        for m, s, _, t in tops.itertuples(index=False)
    ]
    return pd.concat(lines, ignore_index=True), tops


def losses(models=PAPER_MODELS):
    """Return a ratio of 1 − loss / 2 with steps around it, for vacancies and two facets of five metals."""
    rows = [
        {"model": model, "element": str(n), "kind": kind, "coordination_loss": loss, "ratio": 1 - loss / 2 + 0.01 * (n - 2)}
        for model in models
        for kind, loss in (("vacancy", 1 / 12), ("1 1 1", 0.25), ("1 0 0", 1 / 3))
        for n in range(5)
    ]
    return pd.DataFrame(rows)


def paper_table(name):
    return pd.read_csv(data_dir() / "paper" / f"{name}.csv")


def compositions():
    """Lattice parameters and mixing energies from the most sources that one figure takes; the last has no lattice parameters."""
    x = np.linspace(0, 1, 9)
    parts = [
        pd.DataFrame({"source": f"source number {n} of a solid solution", "x": x, "deviation": 0.01 * n, "mixing_energy": 0.1 * n})
        for n in range(5)
    ]
    parts[-1]["deviation"] = np.nan
    return pd.concat(parts)


def arms():
    names = [f"student number {n} of an experiment" for n in range(20)]
    rows = [
        {"arm": arm, "panel": panel, "mean": 0.9 + 0.01 * n, "low": 0.85 + 0.01 * n, "high": 0.95 + 0.01 * n}
        for n, arm in enumerate(names)
        for panel in (300.0, 2000.0)
    ]
    return pd.DataFrame(rows)


FIGURES = {
    "parity, three models, paper": lambda: figures.parity(scalars(), "surface energy", paper=figures.paper_points("fig2a")),
    "parity, one model": lambda: figures.parity(scalars(PAPER_MODELS[:1]), "surface energy", clusters=None),
    "parity, four models": lambda: figures.parity(scalars([*PAPER_MODELS, "ase:a.b"]), "surface energy"),
    "forces, three models": lambda: figures.force_parity(forces()),
    "forces, two models": lambda: figures.force_parity(forces(PAPER_MODELS[:2])),
    "scales": lambda: figures.scale_distribution(fits(), paper_table("fig5b_stats")),
    "orderings, three models": lambda: figures.by_composition(orderings(), paper_orderings()),
    "orderings, one model": lambda: figures.by_composition(orderings(PAPER_MODELS[:1]), paper_orderings()),
    "continuous composition": lambda: figures.continuous_composition(compositions()),
    "phase diagram": lambda: figures.phase_diagram(*gaps()),
    "parity, all models": lambda: figures.parity(scalars(at_home(CATALOGUE)), "surface energy"),
    "forces, all models": lambda: figures.force_parity(forces(at_home(CATALOGUE))),
    "lost neighbours": lambda: figures.error_against_coordination(losses()),
    "choices, many materials": lambda: figures.label_choices(many_choices(18), "MAE after / before"),
    "arms": lambda: figures.arms(arms(), {300.0: "copper at 300 K: softening scale", 2000.0: "copper at 2000 K: softening scale"}),
    "errors, all models": lambda: figures.mae_cmae(fits(at_home(CATALOGUE)), paper_table("fig6b_quartiles")),
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
        shown = set(axis._update_ticks())
        beyond = {*axis.get_major_ticks(), *axis.get_minor_ticks()} - shown
        undrawn |= {name for tick in beyond for name in (tick.label1, tick.label2)}
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


@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_nothing_lies_on_the_points(n):
    """The numbers stand above the panel and the fit below the points; more than four panels stand in lines of three."""
    figure = figures.parity(scalars([*PAPER_MODELS, "chgnet-0.2.0", "sevennet-0"][:n]), "surface energy")
    drawn(figure)
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == n
    assert shown[0].get_subplotspec().get_gridspec().ncols == {1: 1, 3: 3, 4: 2, 5: 3}[n]
    for axes in shown:
        points = max(axes.get_lines(), key=lambda line: len(line.get_xdata()))
        assert points.get_zorder() > max(line.get_zorder() for line in axes.get_lines() if line is not points)
        (numbers,) = axes.texts
        assert numbers.get_text().startswith("slope 0.")
        box = numbers.get_window_extent()
        assert box.y0 >= axes.bbox.y1
        assert box.x1 <= min([other.bbox.x0 for other in shown if other.bbox.x0 > axes.bbox.x1], default=figure.bbox.x1)
    (legend,) = figure.legends
    assert legend.get_window_extent().y0 > max(axes.bbox.y1 for axes in shown)


@pytest.mark.parametrize("vision", VISION)
def test_a_cure_never_looks_like_a_model(vision):
    hues = [hue for hue, _, _ in style.METHODS]
    far = [np.linalg.norm(lab(hue) - lab(entry.colour)) for hue in hues for entry in CATALOGUE.values()]
    assert min(far) > 35
    apart = [np.linalg.norm(lab(a, VISION[vision]) - lab(b, VISION[vision])) for a, b in itertools.combinations(hues[:4], 2)]
    assert min(apart) > 14, "markers and dashes differ as well"
    looks = figures.error_curves(
        pd.DataFrame({"material": "Cu", "method": "full", "n_labels": [1, 10], "mean": 0.1, "low": 0.1, "high": 0.1, "before": 0.2}),
        ["Cu"],
        {"full": "all weights"},
        "error",
    )
    assert hues[0] in {line.get_color() for line in looks.axes[0].get_lines()}


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
    with pytest.raises(ValueError, match="no rows"):
        figures.parity(both[:0], "γ")
    with pytest.raises(ValueError, match="one unit"):
        figures.parity(pd.concat([scalars(), scalars().assign(unit="J/m²")]), "γ")
    with pytest.raises(ValueError, match="no good rows of mace-mpa-0-medium"):
        figures.force_parity(forces(), models=["mace-mpa-0-medium"])


def test_force_parity_counts_every_component():
    table = forces(PAPER_MODELS[:1])
    fitted = softening.fit(table["reference"], table["value"])
    figure = figures.force_parity(table)
    text = words(figure)
    limit = 1.05 * np.quantile(table["reference"].abs(), 0.999)
    outside = np.count_nonzero((table[["value", "reference"]].abs() > limit).any(axis=1))
    assert f"slope {fitted.slope:.2f}\nMAE {fitted.mae:.3f}, cMAE {fitted.cmae:.3f}\nn = {len(table)}, {outside} outside" in text
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
    assert ours.hovertemplate.count(":.3g} eV/Å²") == 2
    named = figures.interactive_parity(scalars().assign(case=[f"snap/Cu/{i}" for i in range(120)]), "surface energy")
    assert named.data[1].text[1] == "Cu 1"
    assert figure.layout.legend.y > 1
    assert figure.layout.yaxis.scaleanchor == "x"
    assert figure.layout.width is None
    shown = {button.label: list(button.args[1]) for button in figure.layout.updatemenus[0].buttons}
    assert shown["all models"] == [True] * 4
    assert shown["CHGNet 0.3.0"] == [True, True, False, False]
    with_guest = figures.interactive_parity(scalars(["sevennet-0", "chgnet-0.3.0", "m3gnet-mp-2021.2.8"]), "x")
    shown = {button.label: list(button.args[1]) for button in with_guest.layout.updatemenus[0].buttons}
    seen = {trace.name for trace, visible in zip(with_guest.data, shown["the paper's models"], strict=True) if visible}
    assert seen == {"model = DFT", figures.label("chgnet-0.3.0"), figures.label("m3gnet-mp-2021.2.8")}
    assert "gamma" not in figures.interactive_parity(scalars(), "x", label_column="material").data[1].text
    with pytest.raises(ValueError, match="no column 'formula'"):
        figures.interactive_parity(scalars(), "x", label_column="formula")


def slab_and_crystal():
    return {"slab <1>": fcc111("Cu", (1, 1, 3), vacuum=5, periodic=True), "rock salt": bulk("MgO", "rocksalt", 4.21, cubic=True)}


def placed(script):
    """Return the atoms of each view in a script."""
    return [json.loads(found) for found in re.findall(r"addAtoms\((\[.*\])\);", script)]


def loops(script):
    """Return what each loop of a script runs over: edges, arrows and empty sites of the first view, then of the next."""
    return [json.loads(found) for found in re.findall(r"^  for \(const .* of (\[.*\])\) \{$", script, re.MULTILINE)]


def script_of(view):
    return BeautifulSoup(view._repr_html_(), "html.parser").find("script").string


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
    assert [[atom["elem"] for atom in atoms] for atoms in placed(script)] == [["Cu"] * 3, ["Mg", "O"] * 4]
    edges = loops(script)[::3]
    assert [len(part) for part in edges] == [12, 12]
    lengths = np.linalg.norm(np.diff(edges[1], axis=1), axis=-1)
    np.testing.assert_allclose(lengths, 4.21)


def test_cell_edges_are_the_edges():
    cell = np.array([[3.0, 0, 0], [1, 2, 0], [0.5, 0.2, 4]])
    edges = interactive.cell_edges(cell)
    fractional = edges @ np.linalg.inv(cell)
    corners, counts = np.unique(fractional.round(6).reshape(-1, 3), axis=0, return_counts=True)
    assert len(corners) == 8
    assert (counts == 3).all()
    assert len(np.unique(edges.round(6).reshape(12, 6), axis=0)) == 12


def test_a_molecule_without_cell_has_no_box():
    atoms = bulk("Cu")
    atoms.cell = np.zeros((3, 3))
    assert loops(script_of(figures.structure_view({"atom": atoms}, "An atom."))) == [[], [], []]


def vacancy():
    """Return a small cell with an empty site at its centre, displacements towards it, and the site."""
    crystal = bulk("Al", cubic=True) * (2, 2, 2)
    site = crystal.positions[np.argmin(np.linalg.norm(crystal.positions - crystal.cell.array.sum(axis=0) / 2, axis=1))].copy()
    atoms = crystal[np.linalg.norm(crystal.positions - site, axis=1) > 0.1]
    away = atoms.positions - site
    distance = np.linalg.norm(away, axis=1)
    # The nearest twelve move by 0.05 Å, the next by 0.01, the rest by less than 2 % of the largest.
    nearest = distance < 1.2 * distance.min()
    size = np.where(nearest, 0.05, np.where(distance < 1.5 * distance.min(), 0.01, 1e-4))
    return atoms, -away / distance[:, None] * size[:, None], site


def test_arrows_have_direction_and_scale_and_short_ones_are_left_out():
    atoms, moves, site = vacancy()
    views = {"bulk": bulk("Al"), "vacancy": atoms}
    view = figures.structure_view(views, "A vacancy.", arrows={"vacancy": moves}, sites={"vacancy": [site]}, arrow_scale=20)
    _, none, nowhere, _, arrows, sites = loops(script_of(view))
    assert none == nowhere == []
    seen = np.linalg.norm(moves, axis=1) > 1e-3
    assert len(arrows) == seen.sum() < len(atoms)
    starts, ends = np.moveaxis(np.array(arrows), 1, 0)
    np.testing.assert_allclose(ends - starts, 20 * moves[seen], atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(starts - atoms.positions[seen], axis=1), interactive.BALL, atol=2e-4)
    np.testing.assert_allclose(sites, [site], atol=1e-4)
    soup = BeautifulSoup(view._repr_html_(), "html.parser")
    assert soup.find_all("img")[1]["alt"] == f"A vacancy. vacancy: {atoms.get_chemical_formula()}, empty site, displacement × 20."
    (key,) = soup.select(".structure-key")
    assert "displacement × 20" in key.get_text()


def test_the_picture_shows_arrows_and_sites_where_the_atoms_are():
    """Atoms move straight towards the empty site, so in the picture, too, every arrow starts at a ball and points to the site."""
    atoms, moves, site = vacancy()
    atoms.positions += atoms.cell.array.sum(axis=0) / 2 - site
    atoms.wrap()
    centre = atoms.cell.array.sum(axis=0) / 2
    moves = -(atoms.positions - centre) * 0.05
    view = figures.structure_view({"x": atoms}, "A vacancy.", arrows={"x": moves}, sites={"x": [centre]})
    scene = interactive.Scene(atoms, interactive.arrow_ends(atoms, view.arrows["x"], 10), view.sites["x"])
    axes = interactive.drawing(scene).axes[0]
    (hole,) = [patch for patch in axes.patches if patch.get_alpha()]
    balls = [patch for patch in axes.patches if getattr(patch, "radius", None) == interactive.BALL]
    (arrows,) = [artist for artist in axes.collections if hasattr(artist, "U")]
    assert len(balls) == len(atoms) == len(arrows.U)
    from_balls = np.linalg.norm(arrows.XY[:, None] - [ball.center for ball in balls], axis=-1)
    assert (from_balls.min(axis=1) <= interactive.BALL + 1e-9).all(), "an arrow starts away from its atom"
    towards = np.array(hole.center) - arrows.XY
    across = towards[:, 0] * arrows.V - towards[:, 1] * arrows.U
    np.testing.assert_allclose(across, 0, atol=1e-9)
    assert ((towards * np.column_stack([arrows.U, arrows.V])).sum(axis=1) >= -1e-9).all()


def test_arrows_and_sites_are_checked():
    atoms, moves, site = vacancy()
    for words, extra in {
        "arrows are given for 'y'": {"arrows": {"y": moves}},
        r"arrows of 'x' must have shape \(31, 3\), not \(30, 3\)": {"arrows": {"x": moves[1:]}},
        r"sites of 'x' must have shape \(k, 3\), not \(3,\)": {"sites": {"x": site}},
        "sites of 'x' hold values that are not finite": {"sites": {"x": [site * np.nan]}},
        "arrow_scale must be positive, not 0": {"arrow_scale": 0},
    }.items():
        with pytest.raises(ValueError, match=words):
            figures.structure_view({"x": atoms}, "A vacancy.", **extra)
    assert loops(script_of(figures.structure_view({"x": atoms}, "At rest.", arrows={"x": 0 * moves})))[1] == []


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("mixed", [("Ca", "Mg", "O"), ("Nb", "Mo"), ("Ta", "W"), ("Si", "C", "Al", "N"), ("Ni", "Al")])
def test_elements_that_are_mixed_are_told_apart(mixed, vision):
    colours = interactive.element_colours(mixed)
    seen = [lab(colours[symbol], VISION[vision]) for symbol in mixed]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]) > 20


def test_picture_view_and_key_have_the_same_colours():
    view = figures.structure_view(slab_and_crystal(), "Two structures.")
    colours = interactive.element_colours(["Mg", "O"])
    scheme = json.loads(re.findall(r"setStyle\(\{\}, (\{.*\})\);", script_of(view))[1])["sphere"]["colorscheme"]["map"]
    assert scheme == {symbol: int(hue[1:], 16) for symbol, hue in colours.items()}
    (key,) = BeautifulSoup(view._repr_html_(), "html.parser").select(".structure-key")
    assert key.get_text().split() == ["Mg", "O"]
    assert all(hue in str(key) for hue in colours.values())
    scene = interactive.Scene(slab_and_crystal()["rock salt"], np.empty((0, 2, 3)), np.empty((0, 3)))
    faces = {
        tuple(np.round(patch.get_facecolor()[:3], 3)) for patch in interactive.drawing(scene).axes[0].patches if hasattr(patch, "radius")
    }
    assert faces == {tuple(np.round(to_rgb(hue), 3)) for hue in colours.values()}


def test_only_neighbours_are_joined():
    """Rock salt joins ions of opposite charge only, fcc all nearest neighbours that are in the picture, bcc not the second ones."""
    salt = bulk("CaO", "rocksalt", 4.81, cubic=True) * (2, 2, 2)
    salt.symbols[[i for i in range(len(salt)) if salt[i].symbol == "Ca"][::2]] = "Mg"
    for atom, bonded in zip(salt, interactive.joined(salt), strict=True):
        assert {salt[other].symbol == "O" for other in bonded} == {atom.symbol != "O"}
    assert max(map(len, interactive.joined(salt))) == 6
    assert max(map(len, interactive.joined(bulk("Al", cubic=True) * (3, 3, 3)))) == 12
    assert max(map(len, interactive.joined(bulk("Mo", cubic=True) * (3, 3, 3)))) == 8
    bonds = interactive.joined(salt)
    assert all(atom in bonds[other] for atom, bonded in enumerate(bonds) for other in bonded)
    assert interactive.joined(bulk("Cu")) == [[]]


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
    atoms, moves, site = vacancy()
    figure = (
        figures.structure_view({"x": atoms, **slab_and_crystal()}, "x", arrows={"x": moves}, sites={"x": [site]})
        if kind == "structures"
        else figures.interactive_parity(scalars(), "x </script>")
    )
    shown = figures.show(figure, "What it shows.")._repr_html_()
    (script,) = BeautifulSoup(shown, "html.parser").find_all("script")
    path = tmp_path / "script.js"
    path.write_text(script.string)
    subprocess.run([shutil.which("node"), "--check", str(path)], check=True)


# --- captions


def provenance(model, device="NVIDIA H200", date="2026-01-02", package="chgnet 0.4"):
    return {"model": model, "device": device, "date": date, "potential": {"package": package}, "packages": {}}


def test_a_sign_on_a_name_has_its_note_below():
    omat = figures.label("nequix-omat-1")
    assert omat.endswith("‡")
    assert "‡" not in figures.label("nequix-oam-1"), "its last labels are those of the Materials Project"
    drawn = style.blank(2)
    drawn.text(0, 0, omat)
    assert figures.show(drawn, "alt", "Words.").caption.startswith("Words. ‡ Learned from PBE with newer pseudopotentials")
    other = benchmarks.families("")["phonons"].name
    for frame in (pd.DataFrame({"s": [1]}, index=[other]), pd.DataFrame({other: [1]}), pd.DataFrame({"family": [other]})):
        assert figures.show_table(frame, "Words.").caption == "Words. † The DFT has another functional than the training data (PBE)."
        assert "another functional" in page.Table(frame, "Words.").html()
    assert figures.show_table(pd.DataFrame({"s": [1]}), "Words.").caption == "Words."


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
    named = provenance("mine") | {"potential": {"label": "Mine, untrained", "package": "mine 1.0"}}
    assert figures.caption([named]).startswith("Mine, untrained (mine 1.0): ")
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
    assert soup.figcaption.details.find(string=True, recursive=False) == "foot <b>"
    assert soup.figcaption.summary.string == "Source"
    assert not soup.figcaption.details.has_attr("open")
    image = Image.open(io.BytesIO(base64.b64decode(soup.img["src"].removeprefix("data:image/png;base64,"))))
    assert image.width == pytest.approx(2 * int(soup.img["width"]), abs=2)
    assert "Soft" in repr(shown)
    assert BeautifulSoup(figures.show(figure, "x")._repr_html_(), "html.parser").figcaption is None


def test_a_finger_moves_the_page_past_a_structure():
    atoms = bulk("Cu", cubic=True)
    for view in (figures.structure_view({"Cu": atoms}, alt="Copper"), figures.animation_view([atoms, atoms], alt="Copper")):
        script = view._repr_html_()
        assert 'box.style.touchAction = "pan-y"' in script
        assert "event.preventDefault = () => {}" in script


def test_same_table_same_page():
    """A rebuilt book must not differ where nothing has changed."""
    one, two = (figures.show(figures.scale_distribution(fits()), "x")._repr_html_() for _ in range(2))
    assert one == two


def test_show_plotly_and_structures():
    plot = figures.show(figures.interactive_parity(scalars(), "</script> energy"), "A plot.", "c")
    soup = BeautifulSoup(plot._repr_html_(), "html.parser")
    place = soup.select_one(".plotly-graph-div")
    assert place["aria-label"] == "A plot."
    (script,) = soup.find_all("script")
    assert 'loadOnce("../_static/vendor/plotly-basic.min.js")' in script.string
    data = re.search(r"const plot = (\{.*\});$", script.string, re.MULTILINE).group(1)
    assert len(go.Figure(json.loads(data)).data) == 4
    view = figures.show(figures.structure_view(slab_and_crystal(), "Two structures."), "Two structures.", "c")
    assert len(BeautifulSoup(view._repr_html_(), "html.parser").figure.find_all("img")) == 2


def test_show_refuses_a_figure_without_words():
    with pytest.raises(ValueError, match="alternative text"):
        figures.show(figures.parity(scalars(), "γ"), "  ")


# ---------------------------------------------------------------------------------------------------
# Solid solutions and defects


def lines_of(axes, **wanted):
    """Return the lines of a panel with these properties, such as ``marker="o"``."""
    return [line for line in axes.get_lines() if all(getattr(line, f"get_{name}")() == value for name, value in wanted.items())]


def test_by_composition_draws_orderings_means_and_the_paper():
    figure = figures.by_composition(orderings(), paper_orderings())
    axes = figure.axes[0]
    hue, x = figures.colour("chgnet-0.3.0"), np.linspace(0, 1, 9)
    (points,) = [line for line in lines_of(axes, color=hue, linestyle="None") if line.get_markerfacecolor() != "none"]
    ours = orderings(["chgnet-0.3.0"])
    np.testing.assert_allclose(points.get_xydata(), ours[["x", "value"]])
    (mean,) = lines_of(axes, color=hue, linestyle="-")
    # Three of four arrangements are 0.02 below, one is 0.02 above.
    np.testing.assert_allclose(mean.get_xydata(), np.column_stack([x, 1.2 * x * (1 - x) - 0.01 * (x * (1 - x) > 0)]), atol=1e-9)
    (dft,) = lines_of(axes, color=figures.colour("DFT"), linestyle="-")
    np.testing.assert_allclose(dft.get_xydata(), np.column_stack([x, 1.5 * x * (1 - x)]), atol=1e-9)
    (theirs,) = lines_of(axes, markerfacecolor="none")
    assert theirs.get_marker() == figures.marker("chgnet-0.3.0")
    np.testing.assert_allclose(theirs.get_ydata(), 1.5 * x * (1 - x), atol=1e-9)
    shift = theirs.get_xdata() - x
    assert (shift > 0).all()
    assert (shift < 1 / 16).all(), "a point lies nearer to the next composition"
    assert len({panel.get_ylim() for panel in figure.axes[:3]}) == 1


def test_by_composition_without_multiplicity_has_the_plain_mean_and_leaves_failures_out():
    table = orderings(["chgnet-0.2.0"])
    table.loc[2, ["status", "value"]] = ["failed", np.nan]
    for given in (table.drop(columns="multiplicity"), table.assign(multiplicity=np.nan)):
        axes = figures.by_composition(given, paper_orderings()).axes[0]
        (mean,) = lines_of(axes, color=figures.colour("chgnet-0.2.0"), linestyle="-")
        x = np.linspace(0, 1, 9)
        expected = 1.2 * x * (1 - x) + 0.02 * (x == 1 / 8)
        np.testing.assert_allclose(mean.get_ydata(), expected, atol=1e-9)
        assert not lines_of(axes, markerfacecolor="none"), "the paper does not have this model"
    with pytest.raises(ValueError, match="one property"):
        figures.by_composition(pd.concat([table.assign(property="a"), table.assign(property="b")]))


def test_phase_diagram_joins_the_consolute_point_and_tells_sources_apart():
    figure = figures.phase_diagram(*gaps())
    axes = figure.axes[0]
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 1]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-"]
    assert [line.get_color() for line in lines] == [figures.colour("chgnet-0.3.0")] * 2 + [figures.colour("DFT")]
    for line, top in zip(lines, (2000, 2200, 2500), strict=True):
        x, temperature = line.get_xydata().T
        assert (np.diff(x) > 0).all()
        assert temperature.max() == top
        assert x[temperature.argmax()] == 0.5
        np.testing.assert_allclose(temperature, temperature[::-1])
    marks = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
    assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks] == [(0.5, 2000), (0.5, 2200), (0.5, 2500)]
    assert marks[1].get_markerfacecolor() == "white"
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["DFT (paper)", "CHGNet 0.3.0", "ours", "paper"]


def test_phase_diagram_refuses():
    lines, tops = gaps()
    with pytest.raises(ValueError, match="unknown source 'theirs'"):
        figures.phase_diagram(lines.assign(source="theirs"))
    with pytest.raises(ValueError, match="more than one consolute point"):
        figures.phase_diagram(lines, pd.concat([tops, tops]))
    with pytest.raises(ValueError, match=r"consolute point of DFT \(DFT\) has no binodal"):
        figures.phase_diagram(lines[lines["model"] != "DFT"], tops)


def test_error_against_coordination_marks_kinds_and_medians():
    figure = figures.error_against_coordination(losses())
    for axes in figure.axes[:3]:
        vacancies, surfaces = ([line for line in axes.get_lines() if line.get_marker() == shape] for shape in ("p", "d"))
        np.testing.assert_allclose(vacancies[0].get_xdata(), [1 / 12] * 5)
        assert len(surfaces[0].get_xdata()) == 10
        medians = {tuple(line.get_xdata().round(2)): line.get_ydata()[0] for line in lines_of(axes, linewidth=2.2)}
        assert medians == pytest.approx({(0.01, 0.14): 1 - 1 / 24, (0.16, 0.29): 0.875, (0.31, 0.44): 1 - 1 / 6})
        boxes = [collection.get_paths()[0].vertices[:, 1] for collection in axes.collections]
        assert [np.ptp(box) for box in boxes] == pytest.approx([0.02] * 3), "quartiles of steps of 0.01"
        assert "n = 15" in [text.get_text() for text in axes.texts]
    with pytest.raises(ValueError, match=r"loss of 0\.8 lies outside the bins"):
        figures.error_against_coordination(losses().assign(coordination_loss=0.8))
    with pytest.raises(ValueError, match="one property"):
        figures.error_against_coordination(pd.concat([losses().assign(property="relaxed"), losses().assign(property="unrelaxed")]))


def test_error_against_coordination_counts_what_lies_far_out():
    table = losses(PAPER_MODELS[:1])
    table.loc[0, "ratio"] = 9.0
    axes = figures.error_against_coordination(table).axes[0]
    assert "n = 15, 1 outside" in [text.get_text() for text in axes.texts]
    assert axes.get_ylim()[1] < 2


NEW = {
    "by_composition": (figures.by_composition, orderings, "value"),
    "phase_diagram": (figures.phase_diagram, lambda: gaps()[0], "temperature_k"),
    "error_against_coordination": (figures.error_against_coordination, losses, "ratio"),
    "label_choices": (lambda table: figures.label_choices(table, "ratio"), lambda: many_choices(3), "ratio"),
}


@pytest.mark.parametrize("name", NEW)
def test_nothing_to_draw_missing_columns_and_bad_numbers_are_named(name):
    draw, make, column = NEW[name]
    table = make().reset_index(drop=True)
    with pytest.raises(ValueError, match=r"nothing to draw|failed"):
        draw(table.assign(status="failed"))
    with pytest.raises(ValueError, match=f"no column {column}"):
        draw(table.drop(columns=column))
    table[column] = table[column].astype(float)
    table.loc[1, column] = np.inf
    with pytest.raises(ValueError, match=r"1 rows .*not finite"):
        draw(table)


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


def many_choices(n, models=PAPER_MODELS):
    rng = np.random.default_rng(0)
    rows = [(model, f"mp-{k:02d}", ratio, "ok") for model in models for k in range(n) for ratio in rng.uniform(0.5, 1.1, 12)]
    return pd.DataFrame(rows, columns=["model", "material", "ratio", "status"])


@pytest.mark.parametrize("n", [3, 20])
def test_choices_of_neighbouring_models_do_not_mix(n):
    figure = figures.label_choices(many_choices(n), "MAE after / before", order=[f"mp-{k:02d}" for k in reversed(range(n))])
    axes = figure.axes[0]
    assert axes.get_yticklabels()[0].get_text() == f"mp-{n - 1:02d}"
    hues = [figures.colour(model) for model in figures.in_order(PAPER_MODELS)]
    spans = []
    for row in range(n):
        for hue in hues:
            heights = np.concatenate([line.get_ydata() for line in lines_of(axes, color=hue, linestyle="None")])
            inside = heights[np.abs(heights - row) < 0.5]
            spans.append((inside.min(), inside.max()))
    assert all(above[1] < below[0] for above, below in itertools.pairwise(spans))
    # Markers keep clear of each other, and names of lanes too.
    figure.canvas.draw()
    place = np.diff(axes.transData.transform([(0, 0), (0, 0.8 / 3)])[:, 1])[0] / figure.dpi * 72
    assert abs(place) > 6.5
    boxes = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    assert all(upper.y0 > lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert figure.get_figheight() < 12


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
    assert soup.figcaption.get_text() == "n < 2SourceCPU & date"


@pytest.mark.parametrize(
    ("text", "low"),
    [
        ("Mg in V2O3(SO4)2, LiVPO4F", "Mg in V₂O₃(SO₄)₂, LiVPO₄F"),
        ("UF3, C11 and Si8, M3GNet, SevenNet-0, HSE06, V_Al1, mp-149", None),
    ],
)
def test_the_digits_of_formulas_and_of_nothing_else_stand_low(text, low):
    assert figures.style.formulas(text) == (low or text)
    soup = BeautifulSoup(figures.show_table(pd.DataFrame({"case": [text]}), caption="x")._repr_html_(), "html.parser")
    assert soup.select_one("tbody td").get_text() == text, "as it is searched and sorted"
    assert ("".join(one.string for one in soup.select("sub")) == "23424") is bool(low)


def test_names_and_dates_in_a_table_stay_whole():
    shown = figures.show_table(pd.DataFrame({"SevenNet-0": ["2026-12-01", "a-b"]}), caption="x")._repr_html_()
    assert [one.string for one in BeautifulSoup(shown, "html.parser").select(".whole")] == ["SevenNet-0", "2026-12-01"]


def test_parity_without_fit_has_no_slope():
    words = [text.get_text() for text in figures.parity(scalars(), "surface energy", fit=False).axes[0].texts]
    assert all("slope" not in word for word in words)


def test_with_interval_formats_numbers():
    frame = pd.DataFrame({"s": [0.8, 0.9, np.nan], "s_low": [0.7, np.nan, np.nan], "s_high": [0.87, np.nan, np.nan]})
    assert figures.with_interval(frame, "s") == ["0.80 [0.70,\u00a00.87]", "0.90", "–"]
    assert figures.with_interval(frame, "s", 0, scale=100) == ["80 [70,\u00a087]", "90", "–"]


def test_a_summary_names_orders_and_rounds():
    table = pd.DataFrame({"s": [0.8, 0.9], "s_low": [0.7, np.nan], "s_high": [0.87, np.nan], "e": [-0.0125, np.nan], "n": [3, 4]})
    table.index = pd.Index(["sevennet-0", "chgnet-0.3.0"], name="model")
    shown = figures.summary(table, {"cases": "n", "s": "s", "error (%)": ("e", 1, 100), "none": "gone"}, "words", "where")
    assert list(shown.frame.index) == ["CHGNet 0.3.0", "SevenNet-0"]
    assert shown.frame.to_dict("list") == {"cases": [4, 3], "s": ["0.90", "0.80 [0.70,\u00a00.87]"], "error (%)": ["–", "−1.2"]}
    assert (shown.caption, shown.footer) == ("words", "where")
    nested = figures.summary(table.assign(set="a"), {"n": "n"}, "", rows=["set as family", "model"])
    assert list(nested.frame.index) == [("a", "CHGNet 0.3.0"), ("a", "SevenNet-0")]
    assert list(nested.frame.index.names) == ["family", "model"]
    twice = pd.concat([table.assign(set=name).reset_index() for name in ("b", "a")])
    groups = figures.summary(twice, {"n": "n"}, "", rows=["set", "model"]).frame.index
    assert list(groups) == [(name, model) for name in ("b", "a") for model in ("CHGNet 0.3.0", "SevenNet-0")]
    with pytest.raises(ValueError, match="no column kind to name its rows"):
        figures.summary(table, {"n": "n"}, "", rows="kind")


def test_tables_have_minus_signs_no_negative_zero_and_cases_without_their_source():
    table = pd.DataFrame({"case": ["snap/Cu/111", "own"], "e": [-1e-5, -0.25], "s": -0.001, "s_low": -0.002, "s_high": 0.3})
    shown = figures.summary(table, {"e": "e", "s": "s"}, "", rows="case")
    assert list(shown.frame.index) == ["Cu 111", "own"]
    assert shown.frame["e"].tolist() == ["0.00", "−0.25"]
    assert shown.frame["s"].tolist() == ["0.00 [0.00,\u00a00.30]"] * 2
    cells = BeautifulSoup(figures.show_table(pd.DataFrame({"e": [-0.5, 0.5]}), "")._repr_html_(), "html.parser").select("tbody td")
    assert [cell.get_text() for cell in cells] == ["−0.5", "0.5"]


def test_only_a_table_of_several_names_is_grouped():
    frame = pd.DataFrame({"set": ["a", "a"], "model": ["b", "c"], "n": [1, 2]})
    for names, grouped in ((["set"], False), (["set", "model"], True)):
        table = BeautifulSoup(figures.show_table(frame.set_index(names), "")._repr_html_(), "html.parser").table
        assert ("grouped" in table["class"]) == grouped


def test_a_long_table_shows_the_papers_models_and_the_readers_first():
    own = "file:fixes/my-fix"
    models = ["chgnet-0.3.0", "sevennet-0", own, "m3gnet-mp-2021.2.8", "nequix-mp-1", "tensornet-matpes-pbe-2025.1"]
    table = pd.DataFrame([{"set": name, "model": model, "n": 1} for name in "ab" for model in models])
    shown = figures.summary(table, {"n": "n"}, "", rows=["set", "model"])
    kept = {model for place, (_, model) in enumerate(shown.frame.index) if place not in shown.folded}
    assert kept == {figures.label(key) for key in ("chgnet-0.3.0", "m3gnet-mp-2021.2.8", own)}
    assert f"data-folded='{list(shown.folded)}'" in shown._repr_html_()
    rows = [row.select("th, td") for row in BeautifulSoup(shown._repr_html_(), "html.parser").select("tbody tr")]
    assert [row[0].get_text() for row in rows if row[0].get_text()] == ["a", "b"], "a group is named once"
    rest = figures.summary(table, {"n": "n"}, "", rows=["set", "model"], first=["nequix-mp-1"])
    rows = [row.select("th, td") for row in BeautifulSoup(rest._repr_html_(), "html.parser").select("tbody tr")]
    assert [row[0].get_text() for place, row in enumerate(rows) if place not in rest.folded] == ["a", "", "b", ""]
    other = figures.summary(table, {"n": "n"}, "", rows=["set", "model"], first=["nequix-mp-1"])
    assert {model for place, (_, model) in enumerate(other.frame.index) if place not in other.folded} == {
        "Nequix MP",
        "Your model (my-fix)",
    }
    assert figures.summary(table[:8], {"n": "n"}, "", rows=["set", "model"]).folded == ()
    many = pd.DataFrame([{"set": number, "model": model, "n": 1} for number in range(8) for model in models])
    long = figures.summary(many, {"n": "n"}, "", rows=["set", "model"])
    seen = [row for place, row in enumerate(long.frame.index) if place not in long.folded]
    assert len(seen) == 10, "of many rows of these models the first are seen"
    assert {model for _, model in seen} == kept
    # Without a model that comes first, as without models, the first rows do.
    assert figures.summary(table[table["model"] == "sevennet-0"], {"n": "n"}, "", rows=["set", "model"]).folded == ()
    assert figures.show_table(pd.DataFrame({"n": range(14)}), "").folded == (10, 11, 12, 13)
    assert figures.show_table(pd.DataFrame({"n": range(12)}), "").folded == ()


def test_a_legend_that_does_not_fit_in_is_no_figure():
    figure = style.blank(2.0, 3.0)
    figure.subplots().plot([0, 1], label="a name that is far longer than this narrow figure is wide, whatever the font")
    figure.legend()
    with pytest.raises(ValueError, match="wide is cut off: give it fewer columns"):
        figures.show(figure, "A line.")._repr_html_()


def test_a_readers_own_potential_has_a_readable_name():
    assert figures.label("file:fixes/my-fix/") == "Your model (my-fix)"
    assert figures.label("ase:my.factory") == "Your model (my.factory)"
    assert figures.label("ase:~/folder/mine.py:make") == "Your model (mine.py:make)"
    assert figures.label("ase:ase.calculators.emt.EMT") == "EMT of ASE"


def test_steps_are_drawn_for_every_panel_and_refuse_what_is_missing():
    rows = [
        {"held_out": panel, "capacity": name, "step": step, "mean": 0.1 * step, "low": 0.05, "high": 0.6}
        for panel in ("a", "b", "c")
        for name in ("small", "large")
        for step in (1, 2)
    ]
    curves = pd.DataFrame(rows)
    names = {"small": "few coefficients", "large": "many"}
    figure = figures.stepwise(
        curves,
        {"a": "A", "b": "B", "c": "C"},
        names,
        ["first", "+ second"],
        "error",
        enters={"a": 1, "b": 2, "c": 2},
        model=("chgnet-0.3.0", {"a": 0.1, "b": 0.2, "c": 0.3}),
        limits=(0.0, 0.15),
    )
    drawn = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert [axis.get_title(loc="left") for axis in drawn] == ["A", "B", "C"]
    # What lies beyond the limits is marked, with its value.
    assert [text.get_text() for text in drawn[0].texts] == ["0.2", "0.2"]
    with pytest.raises(ValueError, match="nothing to draw for d"):
        figures.stepwise(curves, {"d": "D"}, names, ["first"], "error")
    with pytest.raises(ValueError, match="7 lines"):
        figures.stepwise(curves, {"a": "A"}, dict.fromkeys("tuvwxyz", ""), ["first"], "error")
