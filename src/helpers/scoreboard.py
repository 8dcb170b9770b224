"""Paper against ours, one line per published number.

A verdict follows from a rule, not from taste. The *effect* of a published number is its distance from *not soft*: one for slopes and
ratios, one half for shares, zero for errors, DFT's value for a frequency, *as before* (one) for what a cure leaves of an error. Around
the published number lies a band, a fifth of the effect (:data:`WITHIN`) to either side.

``agrees``
    all of our interval lies in the band.
``compatible``
    our interval and the band only overlap: undecided.
``same sign``
    they do not, but all of our interval lies on the paper's side of *not soft*. Absolute errors have no sign.
``differs``
    none of these.
``published by others``
    there is no result table of ours; ours is what others computed with these weights, and is not judged.
``missing``
    nor is there that; the command that makes a table stands in the comment.

An interval is the 95 % interval, in Fig. 6a the range over choices of the label or draws of labels; a value without one is its own.
The paper's test sets are public in part only, so most lines compare the same quantity on other systems, and some on those few frames
that are public: ``compared`` says which, and ``ours_on`` what ours is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers import OTHER_FUNCTIONAL, benchmarks, figures, potentials, results, softening
from helpers.benchmarks import off_equilibrium, phonons, solid_solutions
from helpers.experiments import alchemy, coverage, fine_tuning
from helpers.registry import data_dir

PUBLISHED = "published by others"
VERDICTS = ("agrees", "compatible", "same sign", "differs", PUBLISHED, "missing")
WITHIN = 0.2  # half width of the band around a published number, as a share of its effect
LIKE, PART, OTHER = "like for like", "a part of the same", "other systems"

# What kind a number is: the value that says "not soft", and whether it has a side of it.
_SLOPE, _SHARE, _MEAN_ERROR, _ERROR = (1.0, True), (0.5, True), (0.0, True), (0.0, False)


def printed(figure: str, panel: str, model: str, quantity: str) -> float:
    """Return a number printed in the paper (``data/paper/printed_values.csv``); KeyError if there is not exactly one."""
    table = pd.read_csv(data_dir() / "paper" / "printed_values.csv", dtype={"figure": str})
    chosen = table[(table["figure"] == figure) & (table["panel"] == panel) & (table["model"] == model) & (table["quantity"] == quantity)]
    if len(chosen) != 1:
        raise KeyError(f"{len(chosen)} printed values for figure {figure}{panel}, {model}, {quantity}")
    return float(chosen["value"].iloc[0])


def verdict(
    paper: float, ours: float, low: float = np.nan, high: float = np.nan, not_soft: float = 1.0, signed: bool = True, within: float = WITHIN
) -> str:
    """Compare two numbers in one unit by the rule in the module's docstring; return one of :data:`VERDICTS`, but for what others published.

    An end of our interval that is not finite is ``ours`` itself. ``signed`` tells whether the two sides of ``not_soft``, the value of a
    potential that is not soft, mean different things; ``within`` is the half width of the band, as a share of the paper's effect.
    """
    if not np.isfinite(paper):
        raise ValueError(f"the published number is {paper}: nothing can be compared with it")
    if not np.isfinite(ours):
        return "missing"
    low, high = (end if np.isfinite(end) else ours for end in (low, high))
    if low > high:
        raise ValueError(f"the interval [{low}, {high}] has its ends the wrong way round")
    reach = within * abs(paper - not_soft)
    if paper - reach <= low and high <= paper + reach:
        return "agrees"
    if low <= paper + reach and high >= paper - reach:
        return "compatible"
    same_side = high < not_soft if paper < not_soft else low > not_soft and paper > not_soft
    return "same sign" if signed and same_side else "differs"


def judge(board: pd.DataFrame, within: float = WITHIN, against: str = "paper") -> list[str]:
    """Return the verdict on each line of a board, for a band of another width or another column of published numbers."""
    columns = [against, "ours", "ours_low", "ours_high", "not_soft", "signed"]
    words = [verdict(*line, within=within) for line in board[columns].itertuples(index=False)]
    return [PUBLISHED if by_others else word for word, by_others in zip(words, board["by_others"], strict=True)]


def counts(board: pd.DataFrame, within: Sequence[float] = (0.1, WITHIN, 0.3)) -> pd.DataFrame:
    """Count verdicts: a row for each width of the band and each way of comparing, and for both; a column for each verdict."""
    ways = {way: board["compared"] == way for way in (LIKE, PART, OTHER)} | {"all": board["compared"].notna()}
    found = {}
    for share in within:
        words = pd.Series(judge(board, share), index=board.index)
        found |= {(f"{100 * share:.0f} %", way): words[chosen].value_counts() for way, chosen in ways.items()}
    return pd.DataFrame(found).T.reindex(columns=VERDICTS).fillna(0).astype(int).rename_axis(["band", "lines"])


def _line(
    figure, quantity, unit, entry, paper, source, found, name, kind, ours_on, benchmark, *, compared=OTHER, digitised=np.nan, family="",
    by_others=False,
):  # fmt: skip
    """Return one line. ``digitised``: what the figure shows where it contradicts the number printed in it; ``ours_on`` is a template."""
    comment = f"softening run {benchmark} --model {entry.key}"
    if found is not None:
        n, failed = int(found["n"]), int(found.get("n_failed", 0))
        comment = ours_on.format(**found | {"n": f"{n} of {n + failed}" if failed else n})
    found = found or {"n": 0}
    value, low, high = (float(found.get(column, np.nan)) for column in (name, f"{name}_low", f"{name}_high"))
    return {
        "figure": figure,
        "quantity": quantity,
        "unit": unit,
        "model": entry.label,
        "key": entry.key,
        "paper": float(paper),
        "paper_source": source,
        "paper_digitised": digitised,
        "ours": value,
        "ours_low": low,
        "ours_high": high,
        "not_soft": kind[0],
        "signed": kind[1],
        "n": int(found["n"]),
        "benchmark": benchmark,
        "family": family or benchmark.replace("_", " "),
        "compared": compared,
        "by_others": by_others,
        "ours_on": comment,
    }


def _lines(figure: str, entry, benchmark: str, found, ours_on: str, numbers: Iterable[tuple], **more: object) -> list[dict[str, Any]]:
    """Return lines of one figure and model; numbers are (name, quantity, unit, paper, source, kind)."""
    return [
        _line(figure, quantity, unit, entry, paper, source, found, name, kind, ours_on, benchmark, **more)
        for name, quantity, unit, paper, source, kind in numbers
    ]


def _ours(benchmark: str, key: str, **where: str) -> dict[str, Any] | None:
    """Return a row of a benchmark's summary; None if the model has no table."""
    if key not in results.models(benchmark):
        return None
    table = results.read(benchmark, key)
    # Of a table of many sets that one is enough, unless the summary makes it of others.
    own = table[table["set"] == where["set"]]
    summary = benchmarks.module(benchmark).summarise(own if len(own) else table)
    return dict(summary[(summary[list(where)].astype(str) == pd.Series(where)).all(axis=1)].iloc[0])


def _digitised(points: pd.DataFrame, key: str) -> dict[str, float]:
    of_model = points[points["model"] == key]
    return softening.scalar_summary(of_model["value"], of_model["reference"])


def _surface_lines(label: str, entry: potentials.Entry) -> list[dict[str, Any]]:
    digitised = _digitised(figures.paper_points("fig2a"), entry.key)
    found = _ours("surfaces", entry.key, set="slabs-109", property="gamma_relaxed")
    numbers = (
        ("mae", "surface energy, MAE", "eV/Å²", printed("2", "a", label, "MAE"), "printed", _ERROR),
        ("mean_error", "surface energy, mean error", "eV/Å²", digitised["mean_error"], "digitised", _MEAN_ERROR),
        ("share_below", "surface energy, share below DFT", "1", digitised["share_below"], "digitised", _SHARE),
    )
    return _lines("2a", entry, "surfaces", found, "{n} slabs, relaxed", numbers)


def _defect_lines(label: str, entry: potentials.Entry) -> list[dict[str, Any]]:
    digitised = _digitised(figures.paper_points("fig2b"), entry.key)
    found = _ours("defects", entry.key, set="all", property="relaxed")
    numbers = (
        ("mae", "defect energy, MAE", "eV", printed("2", "b", label, "MAE"), "printed", _ERROR),
        ("slope", "defect energy, slope", "1", digitised["slope"], "digitised", _SLOPE),
        ("share_below", "defect energy, share below DFT", "1", digitised["share_below"], "digitised", _SHARE),
    )
    return _lines("2b", entry, "defects", found, "{n} vacancies and combinations of defects in alloys", numbers)


def _solution_lines(label: str, entry: potentials.Entry) -> list[dict[str, Any]]:
    lowest = "lowest formation energy at x_Ca=0.5 (arrow label)"
    means = solid_solutions.paper_curves().pivot_table(index="x", columns="model", values="mean")
    slope = softening.softening_scale(means["DFT"], means[entry.key])
    has_table = entry.key in results.models("solid_solutions")
    found = solid_solutions.against_paper(results.read("solid_solutions", entry.key)) if has_table else None
    ratio = printed("2", "c", label, lowest) / printed("2", "c", "DFT", lowest)
    where = "Ca-Mg-O, {n} orderings of a 16-cation cell"
    numbers = (
        ("lowest_ratio", "formation energy, lowest at x = ½ over DFT", "1", ratio, "printed", _SLOPE),
        ("slope", "formation energy, slope of composition means", "1", slope, "digitised", _SLOPE),
    )
    return _lines("2c", entry, "solid_solutions", found, where, numbers)


def _csf_peaks() -> pd.Series:
    peaks = pd.read_csv(data_dir() / "paper" / "fig4a_maxima.csv")
    return peaks[peaks["feature"].str.startswith("peak")].groupby("source")["parabola_max_THz"].max()


def csf_maxima() -> dict[str, float]:
    """Return the highest frequency of CsF that the paper's Fig. 4a shows for each of its models, THz, by catalogue key."""
    peaks = _csf_peaks()
    return {entry.key: float(peaks[label]) for label, entry in potentials.papers("4a").items()}


def _phonon_lines(label: str, entry: potentials.Entry) -> list[dict[str, Any]]:
    stats = pd.read_csv(data_dir() / "paper" / "fig4b_stats.csv").set_index("model")
    dft = float(_csf_peaks()["DFT"])
    found = _ours("phonons", entry.key, set="phonondb", property="omega_max", subset="all")
    csf, by_others = None, False
    if found is None and label == "MACE" and (made := results.models("phonons")):
        published = phonons.summarise(phonons.authors(results.read("phonons", made[0])))
        found, by_others = dict(published.query("subset == 'all'").iloc[0]), True
    elif found is not None:
        table = results.read("phonons", entry.key)
        csf = {"n": 1, "value": table.loc[(table["set"] == "csf") & (table["property"] == "omega_max"), "value"].iloc[0]}
    below = printed("4", "b", label, "fraction max(w_MLIP)/max(w_DFT) < 1") / 100
    mean, median = stats.loc[label, ["mean", "median"]]
    highest = [("value", "CsF, highest frequency", "THz", csf_maxima()[entry.key], "digitised", (dft, True))]
    numbers = (
        ("ratio_mean", "highest frequency / DFT, mean", "1", mean, "digitised", _SLOPE),
        ("ratio_median", "highest frequency / DFT, median", "1", median, "digitised", _SLOPE),
        ("share_below_one", "share of compounds below DFT", "1", below, "printed", _SHARE),
    )
    lines = _lines("4a", entry, "phonons", csf, "CsF (mp-1784)", highest, compared=LIKE)
    where = "{n} compounds, the paper's own" + (", its authors' table" if by_others else "")
    return lines + _lines("4b", entry, "phonons", found, where, numbers, compared=LIKE, by_others=by_others)


def _migration_lines(label: str, entry: potentials.Entry) -> list[dict[str, Any]]:
    stats = pd.read_csv(data_dir() / "paper" / "fig3b_stats.csv").set_index("model").loc[label]
    found = _ours("migration", entry.key, set="hops-Mg", property="barrier")
    below = printed("3", "b", label, "fraction barrier underpredicted") / 100
    where = "{n} Mg hops of other compounds, barriers from many papers"
    return [
        _line("3b", quantity, unit, entry, paper, source, found, name, kind, where, "migration", digitised=float(drawn))
        for name, quantity, unit, paper, source, kind, drawn in (
            ("mae", "Mg barrier, MAE", "eV", printed("3", "text", label, "KRA barrier MAE"), "printed", _ERROR, np.nan),
            ("mean_error", "Mg barrier, mean error", "eV", stats["kde_mean"], "digitised", _MEAN_ERROR, np.nan),
            ("share_below", "Mg barrier, share below DFT", "1", below, "printed", _SHARE, stats["frac_below"]),
        )
    ]


def _force_lines(label: str, entry: potentials.Entry) -> list[dict[str, Any]]:
    stats = pd.read_csv(data_dir() / "paper" / "fig5b_stats.csv").set_index("model").loc[label]
    quartiles = pd.read_csv(data_dir() / "paper" / "fig6b_quartiles.csv").set_index(["model", "quantity"])["median"][label]
    own, many = (_ours("off_equilibrium", entry.key, set=name) for name in ("wbm-21", "mattersim-tp"))
    own, many = (found and found | {"n": found["n_materials"]} for found in (own, many))
    below = printed("5", "b", label, "fraction softening scale < 1") / 100
    scale = "softening scale s, median", "1", stats["median"]
    error = "force MAE, median", "eV/Å", quartiles["MAE"]
    # Most compounds of WBM-21 have one frame: too little for a scale of their own, so all are fitted together.
    pooled = PART, own, "{n_frames} of the paper's frames, {n} compounds, one fit"
    single, tp = (PART, own, "{n_frames} of the paper's frames, {n} compounds"), (OTHER, many, "MatterSim-TP, {n} compounds")
    lines = []
    for figure, name, (quantity, unit, paper), source, kind, (compared, found, ours_on), drawn in (
        ("5b", "slope", scale, "digitised", _SLOPE, pooled, np.nan),
        ("5b", "slope_median", scale, "digitised", _SLOPE, tp, np.nan),
        ("5b", "share_below_one", ("share with s < 1", "1", below), "printed", _SHARE, tp, float(stats["frac_below"])),
        ("6b", "mae_median", error, "digitised", _ERROR, single, np.nan),
        ("6b", "mae_median", error, "digitised", _ERROR, tp, np.nan),
        ("6b", "cmae_median", ("force cMAE, median", "eV/Å", quartiles["cMAE"]), "digitised", _ERROR, tp, np.nan),
    ):
        values = paper, source, found, name, kind, ours_on, "off_equilibrium"
        lines.append(_line(figure, quantity, unit, entry, *values, compared=compared, digitised=drawn))
    return lines


def one_label(key: str = "chgnet-0.3.0") -> pd.DataFrame:
    """Correct the forces in crystals with one label and one scalar: every choice of the label, both factors, by temperature.

    A scalar that is trained with a squared loss becomes s' (DFT on model); the paper's formula divides by s. The labels of one run of
    molecular dynamics share a temperature, and so do the frames that test them. This is :func:`helpers.softening.one_label_corrections`
    for labels that have a factor, with ``factor`` (``s′``, ``1/s``) and ``frames`` (nominal ``300 K`` …, or ``all temperatures``).
    """
    crystals = off_equilibrium.crystals(results.read("off_equilibrium", key))
    runs = {f"{kelvin:.0f} K": part for kelvin, part in crystals.groupby("temperature_k")} | {"all temperatures": crystals}
    found = [
        softening.one_label_corrections(part, method).assign(factor=factor, frames=frames)
        for frames, part in runs.items()
        for factor, method in {"s′": "least_squares", "1/s": "inverse_slope"}.items()
    ]
    return pd.concat(found, ignore_index=True).query("status == 'ok'")


def _cure_lines() -> list[dict[str, Any]]:
    entry = potentials.CATALOGUE["chgnet-0.3.0"]
    one, ten = None, None
    if entry.key in results.models("off_equilibrium"):
        choices = one_label(entry.key).query("material == 'Si' and factor == 's′' and frames != 'all temperatures'")
        one = _spread({"slope": choices["slope_after"], "mae_ratio": choices["ratio"]}, "median", (0.025, 0.975))
    if entry.key in results.models("fine_tuning"):
        summary = fine_tuning.summarise(results.read("fine_tuning", entry.key)).query("set == 'ten-labels' and material == 'Si'")
        before, after = (summary[summary["stage"] == stage] for stage in ("before", "after"))
        ten = _spread({"slope": after["slope"], "mae_ratio": after["mae"] / before["mae"].iloc[0]}, "mean", (0, 1))
    untouched = printed("5", "a", "CHGNet", "force MAE")
    on_one, on_ten = "Si crystal, scalar s′; 95 % of {n} labels", "Si; range of {n} draws"
    lines = []
    for word, panel, found, where, benchmark in (
        ("one label", ("a-left", "CHGNet linear corrected, 1 structure"), one, on_one, "off_equilibrium"),
        ("ten labels", ("a-right", "CHGNet fine tuned, 10 structure"), ten, on_ten, "fine_tuning"),
    ):
        slope, mae = (printed("6", *panel, quantity) for quantity in ("slope", "force MAE"))
        for quantity, name, paper in (("slope", "slope", slope), ("MAE after / before", "mae_ratio", mae / untouched)):
            lines.append(
                _line("6a", f"{quantity}, {word}", "1", entry, paper, "printed", found, name, _SLOPE, where, benchmark, family="mending")
            )
    return lines


def _spread(columns: dict[str, pd.Series], middle: str, ends: tuple[float, float]) -> dict[str, float]:
    found: dict[str, float] = {"n": len(next(iter(columns.values())))}
    for name, values in columns.items():
        found |= {name: values.agg(middle), f"{name}_low": values.quantile(ends[0]), f"{name}_high": values.quantile(ends[1])}
    return found


def table(*chosen: str) -> pd.DataFrame:
    """Return the scoreboard: one row per published number and model, in the order of the paper's figures; of some, or of all.

    KeyError if the board has no such figure.
    """
    of_models = {"2a": _surface_lines, "2b": _defect_lines, "2c": _solution_lines, "3b": _migration_lines}
    of_models |= {"4a 4b": _phonon_lines, "5b 6b": _force_lines}
    known = [*" ".join(of_models).split(), "6a"]
    if unknown := [name for name in chosen if name not in known]:
        raise KeyError(f"the board has no figure {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    found = [
        line
        for names, lines_of in of_models.items()
        if not chosen or set(names.split()) & set(chosen)
        for label, entry in potentials.papers(names[:2]).items()
        for line in lines_of(label, entry)
    ]
    lines = pd.DataFrame(found + (_cure_lines() if not chosen or "6a" in chosen else [])).sort_values("figure", kind="stable")
    lines = lines[lines["figure"].isin(chosen or lines["figure"])].reset_index(drop=True)
    lines["verdict"] = judge(lines)
    # A missing model needs one line per quantity, not one per set.
    return lines[~(lines.duplicated(["figure", "quantity", "key"]) & (lines["verdict"] == "missing"))].reset_index(drop=True)


def told(board: pd.DataFrame, figure: str, key: str) -> str:
    """Say in a sentence's words what the board says of a figure and a model: ``compatible (slope), differs (MAE)``."""
    lines = board[(board["figure"] == figure) & (board["key"] == key)]
    names = lines["quantity"].str.replace(r"^\w+ (energy|barrier), ", "", regex=True).groupby(lines["verdict"]).agg(", ".join)
    return names.index[0] if len(names) == 1 else ", ".join(f"{word} ({names[word]})" for word in VERDICTS if word in names)


def hero(key: str = "chgnet-0.3.0", material: str = "Si") -> Figure:
    """Draw softening in one picture, from the result tables: forces before and after ten labels, and surface energies."""
    tuned = results.read("fine_tuning", key)
    tuned = tuned[(tuned["material"] == material) & (tuned["property"] == "force") & (tuned["seed"] == 0)]
    slabs = results.read("surfaces", key)
    slabs = slabs[(slabs["set"] == "slabs-109") & (slabs["property"] == "gamma_relaxed")]
    return figures.hero(tuned[tuned["stage"] == "before"], tuned[tuned["stage"] == "after"], slabs, model=key)


def readable(board: pd.DataFrame, *, family: bool = False) -> pd.DataFrame:
    """Return the scoreboard as a reader wants to see it: numbers with their intervals as text, digitised ones with a star.

    Where a figure of the paper contradicts the number printed in it, both stand there. ``family`` adds a column.
    """
    missing = board["verdict"] == "missing"
    star = board["paper_source"].map({"digitised": "\u00a0*", "printed": ""})
    signs = [OTHER_FUNCTIONAL * bool(benchmarks.functional(family.replace(" ", "_"))) for family in board["family"]]
    drawn = board["paper_digitised"].map("; {:.3f}\u00a0*".format).where(board["paper_digitised"].notna(), "")
    shown = pd.DataFrame(
        {
            "quantity": [
                " ".join(filter(None, (q, f"({u})" * (u != "1"), sign)))
                for q, u, sign in zip(board["quantity"], board["unit"], signs, strict=True)
            ],
            "model": board["model"],
            "verdict": board["verdict"],
            "paper": (board["paper"].map("{:.3f}".format) + star + drawn).str.replace("-", "−"),
            "ours": np.where(missing, "–", [text.replace("-", "−") for text in figures.with_interval(board, "ours", 3)]),
            "compared": board["compared"],
            "ours is on": np.where(missing, "no table yet", board["ours_on"]),
            "figure": board["figure"],
        }
    )
    return (shown.assign(family=board["family"]) if family else shown).set_index("quantity")


def ideas(key: str = "chgnet-0.3.0") -> pd.DataFrame:
    """Return what became of the related ideas, in words: the question, what was measured (from the chapters' tables), the answer."""
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

    tried = pd.read_csv(data_dir() / "reference" / "weak_labels_tried.csv").query("labels == 'energy and forces' and direction == 'random'")
    slope = tried.groupby(["set", "method", "n_labels", "step_a"])["slope"].mean()
    ten, step = tried["n_labels"].max(), tried["step_a"].max()
    plain, heavy = slope["labels", "plain", ten, 0.0], slope["steps", "taylor", ten, step]

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
    shown = pd.DataFrame.from_dict(lines, orient="index", columns=["question", "measured", "answer"])
    return shown.rename_axis("idea")
