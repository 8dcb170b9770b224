"""Paper against ours, one line per published number.

A verdict follows from a rule, not from taste:

``reproduced``
    the paper's value lies in our 95 % interval, or ours differs from it by less than a tenth of it.
``same direction``
    both say that the potential is soft (or that a cure helps), by different amounts.
``not reproduced``
    ours does not show what the paper's shows.
``missing``
    there is no result table for the model; the command that makes one stands in the comment.

The paper's test sets are public in part only, so most lines compare the same quantity on other systems: the column ``ours_on``
says on which.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers import figures, potentials, results, softening
from helpers.benchmarks import (
    alchemy,
    coverage,
    defects,
    fine_tuning,
    migration,
    off_equilibrium,
    phonons,
    solid_solutions,
    weak_labels,
)
from helpers.registry import data_dir

CLOSE = 0.1  # relative difference below which two values count as equal

_BELOW_ONE = "below one"
_NEGATIVE = "negative"
_MAJORITY = "majority"
_ANY = "any"

# What it takes for a number to say "soft".
_SOFT: dict[str, Callable[[float], bool]] = {
    _BELOW_ONE: lambda value: value < 1,
    _NEGATIVE: lambda value: value < 0,
    _MAJORITY: lambda value: value > 0.5,
    _ANY: lambda value: True,
}


def printed(figure: str, panel: str, model: str, quantity: str) -> float:
    """Return a number printed in the paper (``data/paper/printed_values.csv``).

    Raises
    ------
    KeyError
        If there is not exactly one such number.
    """
    table = pd.read_csv(data_dir() / "paper" / "printed_values.csv", dtype={"figure": str})
    chosen = table[(table["figure"] == figure) & (table["panel"] == panel) & (table["model"] == model) & (table["quantity"] == quantity)]
    if len(chosen) != 1:
        raise KeyError(f"{len(chosen)} printed values for figure {figure}{panel}, {model}, {quantity}")
    return float(chosen["value"].iloc[0])


def verdict(paper: float, ours: float, low: float, high: float, soft_when: str) -> str:
    """Compare two numbers by the rule in the module's docstring."""
    if not np.isfinite(ours):
        return "missing"
    inside = np.isfinite(low) and low <= paper <= high
    if inside or abs(ours - paper) < CLOSE * abs(paper):
        return "reproduced"
    soft = _SOFT[soft_when]
    return "same direction" if soft(paper) == soft(ours) else "not reproduced"


def _line(
    figure, quantity, unit, label, paper, source, found, name, soft_when, ours_on, benchmark, key, is_interval=True
) -> dict[str, object]:
    """Return one line. ``is_interval``: whether low and high bound the uncertainty, or only the spread over choices."""
    value, low, high, n = np.nan, np.nan, np.nan, 0
    comment = ours_on
    if found is None:
        comment = f"softening run {benchmark} --model {key}"
    else:
        value, low, high = (float(found.get(column, np.nan)) for column in (name, f"{name}_low", f"{name}_high"))
        n = int(found["n"])
    return {
        "figure": figure,
        "quantity": quantity,
        "unit": unit,
        "model": label,
        "key": key,
        "paper": paper,
        "paper_source": source,
        "ours": value,
        "ours_low": low,
        "ours_high": high,
        "n": n,
        "family": "mending" if figure == "6a" else benchmark.replace("_", " "),
        "verdict": verdict(paper, value, *((low, high) if is_interval else (np.nan, np.nan)), soft_when),
        "ours_on": comment,
    }


def _paper_models() -> list[potentials.Entry]:
    order = ("M3GNet", "CHGNet", "MACE")
    return sorted((e for e in potentials.CATALOGUE.values() if e.paper_label), key=lambda entry: order.index(entry.paper_label))


def _digitised_surfaces(label: str) -> dict[str, float]:
    points = pd.read_csv(data_dir() / "paper" / "fig2a_digitised.csv")
    error = points[f"{label}_eV_per_A2"] - points["DFT_eV_per_A2"]
    return {"mean_error": float(error.mean()), "share_below": float((error < 0).mean())}


def _surface_lines() -> list[dict[str, object]]:
    lines = []
    for entry in _paper_models():
        found = None
        if entry.key in results.models("surfaces"):
            table = results.read("surfaces", entry.key)
            chosen = table[(table["set"] == "slabs-109") & (table["property"] == "gamma_relaxed") & (table["status"] == "ok")]
            found = softening.scalar_summary(chosen["value"], chosen["reference"], clusters=chosen["material"])
        digitised = _digitised_surfaces(entry.paper_label)
        for name, quantity, unit, paper, source, soft in (
            ("mae", "surface energy, MAE", "eV/Å²", printed("2", "a", entry.paper_label, "MAE"), "printed", _ANY),
            ("mean_error", "surface energy, mean error", "eV/Å²", digitised["mean_error"], "digitised", _NEGATIVE),
            ("share_below", "surface energy, share below DFT", "1", digitised["share_below"], "digitised", _MAJORITY),
        ):
            ours_on = "109 slabs, relaxed"
            lines.append(_line("2a", quantity, unit, entry.label, paper, source, found, name, soft, ours_on, "surfaces", entry.key))
    return lines


def _defect_lines() -> list[dict[str, object]]:
    points = figures.paper_points("fig2b")
    lines = []
    for entry in _paper_models():
        found = None
        if entry.key in results.models("defects"):
            summary = defects.summarise(results.read("defects", entry.key)).set_index(["set", "property"])
            found = dict(summary.loc[("all", "relaxed")])
        of_model = points[points["model"] == entry.key]
        digitised = softening.scalar_summary(of_model["value"], of_model["reference"])
        for name, quantity, unit, paper, source, soft in (
            ("mae", "defect energy, MAE", "eV", printed("2", "b", entry.paper_label, "MAE"), "printed", _ANY),
            ("slope", "defect energy, slope", "1", digitised["slope"], "digitised", _BELOW_ONE),
            ("share_below", "defect energy, share below DFT", "1", digitised["share_below"], "digitised", _MAJORITY),
        ):
            where = "38 vacancies, 11 combinations in alloys"
            lines.append(_line("2b", quantity, unit, entry.label, paper, source, found, name, soft, where, "defects", entry.key))
    return lines


def _solution_lines() -> list[dict[str, object]]:
    lowest = "lowest formation energy at x_Ca=0.5 (arrow label)"
    points = figures.paper_points("fig2c")
    lines = []
    for entry in _paper_models():
        found = None
        if entry.key in results.models("solid_solutions"):
            found = solid_solutions.against_paper(results.read("solid_solutions", entry.key))
        of_model = points[points["model"] == entry.key]
        ratio = printed("2", "c", entry.paper_label, lowest) / printed("2", "c", "DFT", lowest)
        slope = softening.softening_scale(of_model["reference"], of_model["value"])
        for name, quantity, paper, source in (
            ("lowest_ratio", "lowest formation energy at x = ½, model / DFT", ratio, "printed"),
            ("slope", "formation energy, slope", slope, "digitised"),
        ):
            where = "Ca-Mg-O, all orderings of a 16-cation cell"
            lines.append(
                _line("2c", quantity, "1", entry.label, paper, source, found, name, _BELOW_ONE, where, "solid_solutions", entry.key)
            )
    return lines


def csf_maxima() -> dict[str, float]:
    """Return the highest frequency of CsF that the paper's Fig. 4a shows for each of its models, THz, by catalogue key."""
    peaks = pd.read_csv(data_dir() / "paper" / "fig4a_maxima.csv")
    peaks = peaks[peaks["feature"].str.startswith("peak")].groupby("source")["parabola_max_THz"].max()
    return {entry.key: float(peaks[entry.paper_label]) for entry in _paper_models()}


def _phonon_lines() -> list[dict[str, object]]:
    stats = pd.read_csv(data_dir() / "paper" / "fig4b_stats.csv").set_index("model")
    maxima = csf_maxima()
    lines = []
    for entry in _paper_models():
        csf, found = None, None
        if entry.key in results.models("phonons"):
            table = results.read("phonons", entry.key)
            highest = table[(table["set"] == "csf") & (table["property"] == "omega_max")]
            csf = {"n": 1, "value": highest["value"].iloc[0]}
            summary = phonons.summarise(table).set_index(["set", "property", "subset"])
            found = dict(summary.loc[("phonondb", "omega_max", "all")])
        below = printed("4", "b", entry.paper_label, "fraction max(w_MLIP)/max(w_DFT) < 1") / 100
        mean, median = stats.loc[entry.paper_label, ["mean", "median"]]
        where = "the same 229 compounds"
        if found is not None and found["n_failed"]:
            where = f"{found['n']:.0f} of {where}"
        for figure, name, quantity, unit, paper, source, given, soft, ours_on in (
            ("4a", "value", "CsF, highest frequency", "THz", maxima[entry.key], "digitised", csf, _ANY, "CsF (mp-1784)"),
            ("4b", "ratio_mean", "highest frequency / DFT, mean", "1", mean, "digitised", found, _BELOW_ONE, where),
            ("4b", "ratio_median", "highest frequency / DFT, median", "1", median, "digitised", found, _BELOW_ONE, where),
            ("4b", "share_below_one", "share of compounds below DFT", "1", below, "printed", found, _MAJORITY, where),
        ):
            lines.append(_line(figure, quantity, unit, entry.label, float(paper), source, given, name, soft, ours_on, "phonons", entry.key))
    return lines


def _migration_lines() -> list[dict[str, object]]:
    stats = pd.read_csv(data_dir() / "paper" / "fig3b_stats.csv").set_index("model")
    lines = []
    for entry in _paper_models():
        found = None
        if entry.key in results.models("migration"):
            summary = migration.summarise(results.read("migration", entry.key)).set_index(["set", "property"])
            found = dict(summary.loc[("hops-Mg", "barrier")])
        label = entry.paper_label
        below = printed("3", "b", label, "fraction barrier underpredicted") / 100
        for name, quantity, unit, paper, source, soft in (
            ("mae", "Mg barrier, MAE", "eV", printed("3", "text", label, "KRA barrier MAE"), "printed", _ANY),
            ("mean_error", "Mg barrier, mean error", "eV", float(stats.loc[label, "kde_mean"]), "digitised", _NEGATIVE),
            ("share_below", "Mg barrier, share below DFT", "1", below, "printed", _MAJORITY),
        ):
            where = "62 Mg hops of other compounds, barriers from many papers"
            lines.append(_line("3b", quantity, unit, entry.label, paper, source, found, name, soft, where, "migration", entry.key))
    return lines


# The like-for-like frames first, then the many compounds.
_FORCE_SETS = {
    "wbm-21": "WBM-21, 14 compounds",
    "mattersim-tp": "MatterSim-TP",
}


def _force_lines() -> list[dict[str, object]]:
    stats = pd.read_csv(data_dir() / "paper" / "fig5b_stats.csv").set_index("model")
    quartiles = pd.read_csv(data_dir() / "paper" / "fig6b_quartiles.csv").set_index(["model", "quantity"])["median"]
    lines = []
    for entry in _paper_models():
        label, summary = entry.paper_label, None
        if entry.key in results.models("off_equilibrium"):
            summary = off_equilibrium.summarise(results.read("off_equilibrium", entry.key)).set_index("set")
        below = printed("5", "b", label, "fraction softening scale < 1") / 100
        for chosen, ours_on in _FORCE_SETS.items():
            found = None if summary is None else {**summary.loc[chosen], "n": summary.loc[chosen, "n_materials"]}
            for figure, name, quantity, unit, paper, source, soft in (
                ("5b", "slope_median", "softening scale s, median", "1", stats.loc[label, "median"], "digitised", _BELOW_ONE),
                ("5b", "share_below_one", "share with s < 1", "1", below, "printed", _MAJORITY),
                ("6b", "mae_median", "force MAE, median", "eV/Å", quartiles[label, "MAE"], "digitised", _ANY),
                ("6b", "cmae_median", "force cMAE, median", "eV/Å", quartiles[label, "cMAE"], "digitised", _ANY),
            ):
                lines.append(
                    _line(
                        figure, quantity, unit, entry.label, float(paper), source, found, name, soft, ours_on, "off_equilibrium", entry.key
                    )
                )
    return lines


def _fix_lines() -> list[dict[str, object]]:
    key = "chgnet-0.3.0"
    label = potentials.CATALOGUE[key].label
    one, ten = None, None
    if key in results.models("off_equilibrium"):
        silicon = off_equilibrium.crystals(results.read("off_equilibrium", key)).query("material == 'Si'")
        choices = softening.one_label_corrections(silicon)
        choices = choices[choices["status"] == "ok"]
        one = {"n": len(choices)}
        for name, column in (("slope", "slope_after"), ("mae_ratio", None)):
            values = choices[column] if column else choices["mae_after"] / choices["mae_before"]
            one |= {name: values.median(), f"{name}_low": values.quantile(0.025), f"{name}_high": values.quantile(0.975)}
    if key in results.models("fine_tuning"):
        summary = fine_tuning.summarise(results.read("fine_tuning", key))
        silicon = summary[(summary["set"] == "ten-labels") & (summary["material"] == "Si")]
        before = silicon[silicon["stage"] == "before"]["mae"].iloc[0]
        after = silicon[silicon["stage"] == "after"]
        ten = {"n": len(after), "slope": after["slope"].mean(), "mae_ratio": (after["mae"] / before).mean()}
        ten |= {"slope_low": after["slope"].min(), "slope_high": after["slope"].max()}
        ratio = after["mae"] / before
        ten |= {"mae_ratio_low": ratio.min(), "mae_ratio_high": ratio.max()}
    before = printed("5", "a", "CHGNet", "force MAE")
    scalar, tuned = "CHGNet linear corrected, 1 structure", "CHGNet fine tuned, 10 structure"
    on_one, on_ten = (
        "Si crystal; 95 % of the labels",
        "Si; range of three draws",
    )
    lines = []
    for quantity, name, paper, found, benchmark, where in (
        ("slope, one label", "slope", printed("6", "a-left", scalar, "slope"), one, "off_equilibrium", on_one),
        (
            "MAE after / before, one label",
            "mae_ratio",
            printed("6", "a-left", scalar, "force MAE") / before,
            one,
            "off_equilibrium",
            on_one,
        ),
        ("slope, ten labels", "slope", printed("6", "a-right", tuned, "slope"), ten, "fine_tuning", on_ten),
        ("MAE after / before, ten labels", "mae_ratio", printed("6", "a-right", tuned, "force MAE") / before, ten, "fine_tuning", on_ten),
    ):
        soft = _BELOW_ONE if name == "mae_ratio" else _ANY
        lines.append(_line("6a", quantity, "1", label, paper, "printed", found, name, soft, where, benchmark, key, is_interval=False))
    return lines


def table() -> pd.DataFrame:
    """Return the scoreboard: one row per published number and model, in the order of the paper's figures."""
    lines = pd.DataFrame(
        _surface_lines() + _defect_lines() + _solution_lines() + _migration_lines() + _phonon_lines() + _force_lines() + _fix_lines()
    ).sort_values("figure", kind="stable", ignore_index=True)
    # A missing model needs one line per quantity, not one per set.
    return lines[~(lines.duplicated(["figure", "quantity", "key"]) & (lines["verdict"] == "missing"))].reset_index(drop=True)


def hero(key: str = "chgnet-0.3.0", material: str = "Si") -> Figure:
    """Draw softening in one picture, from the result tables: forces before and after ten labels, and surface energies."""
    tuned = results.read("fine_tuning", key)
    tuned = tuned[(tuned["material"] == material) & (tuned["property"] == "force") & (tuned["seed"] == 0)]
    slabs = results.read("surfaces", key)
    slabs = slabs[(slabs["set"] == "slabs-109") & (slabs["property"] == "gamma_relaxed")]
    return figures.hero(tuned[tuned["stage"] == "before"], tuned[tuned["stage"] == "after"], slabs, model=key)


def readable(board: pd.DataFrame, *, family: bool = False) -> pd.DataFrame:
    """Return the scoreboard as a reader wants to see it: numbers with their intervals as text, digitised ones with a star.

    ``family``: with a column that names the family of properties, for a table that has several.
    """
    missing = board["verdict"] == "missing"
    star = board["paper_source"].map({"digitised": "\u00a0*", "printed": ""})
    shown = pd.DataFrame(
        {
            "figure": board["figure"],
            "quantity": [f"{q} ({u})" if u != "1" else q for q, u in zip(board["quantity"], board["unit"], strict=True)],
            "model": board["model"],
            "paper": board["paper"].map("{:.3f}".format) + star,
            "ours": np.where(missing, "–", figures.with_interval(board, "ours", 3)),
            "verdict": board["verdict"],
            "ours is on": np.where(missing, "no table yet", board["ours_on"]),
        }
    )
    if family:
        shown.insert(1, "family", board["family"])
    return shown.set_index("figure")


def ideas(key: str = "chgnet-0.3.0") -> pd.DataFrame:
    """Return what became of the related ideas: the question, what was measured, the verdict.

    Returns
    -------
    DataFrame
        Indexed by ``idea``, in words for a reader; the numbers are read from the tables of the three chapters.

    Raises
    ------
    ResultsError
        If one of the tables is not there.
    """
    labels = results.read("weak_labels", key)
    labels = labels[(labels["status"] == "ok") & (labels["labels"] == "energy and forces") & (labels["seed"] == 0)]
    slope = weak_labels.over_seeds(labels, "slope").set_index(["set", "method", "direction", "n_labels", "step_a"])["mean"]
    ten, step = labels["n_labels"].max(), labels["step_a"].max()
    plain, heavy = slope["labels", "plain", "random", ten, 0.0], slope["steps", "taylor", "random", ten, step]

    silicon = results.read("coverage", key)
    silicon = silicon[(silicon["status"] == "ok") & (silicon["series"] == "growing") & (silicon["held_out"] == coverage.FAMILIES[0])]
    largest = silicon[silicon["capacity"] == list(coverage.Protocol().capacities)[-1]]
    error, reverse = (coverage.over_seeds(largest, name).set_index("families")["mean"] for name in ("force_rmse", "inverse_slope"))
    one, five = coverage.FAMILIES[0], "+".join(coverage.FAMILIES)

    mixed = results.read("alchemy", key)
    mixed = mixed[(mixed["status"] == "ok") & (mixed["set"] == "rocksalt")].pivot_table(index="x", columns="property", values="value")
    real = alchemy.enumerated(results.read("solid_solutions", key)).set_index("x")
    shared = [x for x in mixed.index.intersection(real.index) if 0 < x < 1]
    mixing = mixed.loc[shared, "mixing_energy"].sum() / real.loc[shared, "mixing_energy"].sum()
    apart = (mixed.loc[shared, "lattice_parameter"] - real.loc[shared, "lattice_parameter"]).abs().mean()

    lines = {
        "Physics-informed weak supervision": (
            "Do losses that tie energy and forces together mend softening with few labels?",
            f"{ten} labels: s {plain:.2f} without, {heavy:.2f} with the loss at full weight and steps of {step:g} Å",
            "no: for forces that are derivatives they penalise curvature, and soften",
        ),
        "Coverage at fixed capacity": (
            "Does more varied data hurt, and is that softening?",
            f"hot crystal of Si, from one family of frames to five: error × {error[five] / error[one]:.1f}, "
            f"s′ {reverse[one]:.2f} → {reverse[five]:.2f}",
            "yes, it hurts; softening follows, but little",
        ),
        "Alchemical atoms": (
            "Can a composition be continuous, and what does softness do to it?",
            f"(Ca,Mg)O against real alloys: lattice parameter to {1000 * apart:.0f} mÅ, mixing energy × {mixing:.1f}",
            "good for gradients and for seeking a composition, not for mixing energies",
        ),
    }
    shown = pd.DataFrame.from_dict(lines, orient="index", columns=["question", "measured", "verdict"])
    return shown.rename_axis("idea")
