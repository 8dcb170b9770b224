"""The report card as one page: what :mod:`helpers.reports.report_card` found, in sections of :mod:`helpers.reports.page`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from helpers import explanations, figures, potentials
from helpers.reports import page

VERDICTS = {word: word for word in ("soft", "stiff", "wrong sign")}
VERDICTS |= {"calibrated": "calibrated (shrunken)", "right": "right size", "unclear": "not clear"}


@dataclass(frozen=True)
class Card:
    """What :func:`helpers.reports.report_card.make` found."""

    folder: Path
    # ``model``, ``name`` (to be shown), ``mode``, ``seed``, ``date``, ``cases`` and ``failed_cases``, ``common_factor``,
    # ``atoms_per_second`` (of one process, energies and forces of single frames; None if not measured), ``trainable``, and ``benchmarks``:
    # for each its provenance, with the number of cases there are (``of``) and seconds.
    about: dict[str, Any]
    # One row per family: ``lane, name, benchmark, against`` (``DFT``, or the model of the book that stands in), ``unit, power``, the
    # columns of :func:`helpers.explanations.slopes`, ``mae``, ``verdict`` (:func:`helpers.softening.verdict`), ``factor`` (that brings s to
    # one), ``removed_own`` and ``removed_common`` (share of the MAE that this factor, and one for all families, removes), ``rank`` among
    # ``n_ranked`` models by MAE on ``n_common`` values that all have.
    lanes: pd.DataFrame
    beside: pd.DataFrame  # :func:`helpers.reports.report_card.beside` of each lane
    failures: pd.DataFrame  # from :func:`helpers.reports.report_card.failures`
    not_run: pd.DataFrame  # ``benchmark, set, cases, reason, command``
    # From :func:`helpers.reports.report_card.advise`.
    recommendation: str
    reasons: list[str]
    points: dict[str, pd.DataFrame] = field(default_factory=dict)  # by lane, the values behind it; empty for a card read from disk


_HEADLINES = {
    "scalar fix": "Recommendation: a scalar fix. One factor on the energy removes most of the error.",
    "fine-tuning": "Recommendation: fine-tuning. The model is soft, and one factor does not suffice.",
    "neither": "Recommendation: neither a scalar fix nor fine-tuning.",
    "no advice: nothing was measured": "No advice: nothing was measured. This says neither that the model is soft nor that it is not.",
    "no advice: too little was measured": "No advice: too little was measured to say whether the model is soft.",
}

_SLOPES = (
    "Slope s: least-squares line of the model on DFT, through zero. Inverse slope s′: of DFT on the model. R² = s s′. Below one, s is "
    "softness or shrinkage; s′ above one is softness. Intervals hold 95 %, from resampling materials."
)

_ERRORS = (
    "MAE: mean absolute error. Rank: by MAE, among the models below, on the values that all have. Its own factor multiplies the energy so "
    "that s becomes one (1/s; 1/s² for frequencies). Removes: the share of the MAE that it takes away, and the share that one factor for "
    "all families does, {common}."
)


def _plain(model: str) -> str:
    """Return a model's name as matplotlib shows it: a dollar sign would begin a formula."""
    return model.replace("$", r"\$")


def _named(table: pd.DataFrame, card: Card) -> pd.DataFrame:
    """Return a table with the card's model by the name that readers see."""
    own = table["model"] == card.about["model"]
    shown = card.about["name"] if str(card.about["model"]).startswith(("ase:", "file:")) else card.about["model"]
    return table.assign(model=table["model"].mask(own, _plain(str(shown))))


def slopes_figure(card: Card) -> Figure:
    """Draw the softening scale of each family measured against DFT, of the model and of the book's models on the same cases."""
    lanes = _lanes(card)
    if lanes.empty:
        raise ValueError("there is nothing to draw: no family was measured against DFT")
    columns = ["lane", "model", "slope", "slope_low", "slope_high"]
    own = lanes.assign(model=card.about["model"])[columns]
    parts = [own]
    if len(card.beside):
        # The model's own row on the common cases would hide the one on all of its cases.
        parts.append(card.beside.loc[card.beside["model"] != card.about["model"], columns])
    table = pd.concat(parts, ignore_index=True)
    names = lanes.set_index("lane")["name"]
    shown = _named(table.assign(material=table["lane"].map(names)), card)
    return figures.by_material(shown, "slope", "softening scale s (model on DFT)", order=list(names))


def parity_figure(card: Card) -> Figure:
    """Draw the model against DFT, a panel for each family; ValueError for a card read from disk, where single values are not kept."""
    lanes = _lanes(card)
    panels = {
        lane["name"]: (_named(card.points[lane["lane"]], card), lane["unit"], _is_dense(lane["lane"]))
        for lane in lanes.to_dict("records")
        if lane["lane"] in card.points
    }
    return figures.families(panels)


def _is_dense(lane: str) -> bool:
    return explanations.FAMILIES[lane].kind == "force" if lane in explanations.FAMILIES else False


def _interval(row: object, name: str) -> str:
    return figures.with_interval(pd.DataFrame([row]), name)[0]


def _percent(value: object) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.0%}"


def lane_table(card: Card, against_dft: bool = True) -> pd.DataFrame:
    """Return the slopes of each family as they should read, with their intervals; of those against DFT, or of the others."""
    rows = {}
    for lane in _lanes(card, against_dft).to_dict("records"):
        shown = {
            "slope s": _interval(lane, "slope"),
            "inverse slope s′": _interval(lane, "inverse_slope"),
            "R²": f"{lane['r2']:.2f}",
            "values": f"{lane['n']:,}",
            "materials": f"{lane['n_materials']:,}",
        }
        rows[lane["name"]] = {"verdict": VERDICTS[lane["verdict"]], **shown} if against_dft else shown
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("family")


def error_table(card: Card) -> pd.DataFrame:
    """Return the error of each family against DFT, what a factor would remove of it, and the rank."""
    rows = {}
    for lane in _lanes(card).to_dict("records"):
        ranked = lane["rank"] is not None and not pd.isna(lane["rank"])
        rows[lane["name"]] = {
            "MAE": f"{lane['mae']:.3g} {lane['unit']}",
            "rank": f"{lane['rank']:.0f} of {lane['n_ranked']:.0f}" if ranked else "–",
            "its own factor": f"{lane['factor']:.2f}" if not pd.isna(lane["factor"]) else "–",
            "… removes": _percent(lane["removed_own"]),
            "one for all removes": _percent(lane["removed_common"]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("family")


def _lanes(card: Card, against_dft: bool = True) -> pd.DataFrame:
    return card.lanes[(card.lanes["against"] == "DFT") == against_dft] if len(card.lanes) else card.lanes


def beside_table(card: Card) -> pd.DataFrame:
    """Return s and MAE of all models on the cases that all of them have: families in rows, models in columns."""
    if card.beside.empty:
        return pd.DataFrame()
    names = card.lanes.set_index("lane")[["name", "unit"]]
    models = figures.in_order(card.beside["model"])
    rows = {}
    for lane, part in card.beside.groupby("lane", sort=False):
        found = part.set_index("model")
        name = f"{names.loc[lane, 'name']} ({names.loc[lane, 'unit']}, n = {int(found['n'].iloc[0]):,})"
        rows[name] = {
            _shown(model, card): f"{found.loc[model, 'slope']:.2f}; {found.loc[model, 'mae']:.3g}" if model in found.index else "–"
            for model in models
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("family: s; MAE")


def _shown(model: str, card: Card) -> str:
    return str(card.about["name"]) if model == card.about["model"] else figures.label(model)


def _short(card: Card) -> page.Section:
    blocks: list[page.Block] = [page.Text(_HEADLINES[card.recommendation], strong=True), page.Bullets(card.reasons)]
    key = str(card.about["model"])
    if card.recommendation in ("scalar fix", "fine-tuning") and key.startswith(("ase:", "file:")) | (key in potentials.CATALOGUE):
        method = " --method full" if card.recommendation == "fine-tuning" and card.about["trainable"] else ""
        command = f"softening fix --model {shlex.quote(key)} --labels my.extxyz{method} --out my-fix"
        blocks += [page.Text("With your own DFT frames as labels:"), page.Code(command)]
    return page.Section("In short", blocks)


def _families(card: Card) -> page.Section:
    measured = lane_table(card)
    if measured.empty:
        return page.Section("Softening by family", [page.Text("No family could be measured against DFT.")])
    said = ", ".join(f"{lane['name']} {lane['slope']:.2f}" for lane in _lanes(card).to_dict("records"))
    common = card.about["common_factor"]
    blocks: list[page.Block] = [
        page.Table(measured, _SLOPES, numbers=True),
        page.Table(error_table(card), _ERRORS.format(common="there is none" if common is None else f"{common:.2f}"), numbers=True),
        page.Picture(
            slopes_figure(card),
            f"Softening scale of {card.about['name']} by family, beside the models of the book: {said}.",
            "Softening scale with 95 % intervals; the other models on the same cases. A perfect model lies on the dashed line.",
        ),
    ]
    if card.points:
        blocks.append(
            page.Picture(
                parity_figure(card),
                f"{card.about['name']} against DFT, a panel for each family with the line fitted through zero.",
                "Model against DFT. Forces and stresses as a density of components.",
            )
        )
    return page.Section("Softening by family", blocks)


def _beside(card: Card) -> list[page.Section]:
    table = beside_table(card)
    if table.empty:
        return []
    caption = (
        "All models on the same cases: those that every one of them has. Slope s, then mean absolute error. The book's models are read "
        "from its result tables; one that lacks more than a tenth of the cases is left out."
    )
    return [page.Section("Beside the models of the book", [page.Table(table, caption, numbers=True)])]


def _without_dft(card: Card) -> list[page.Section]:
    table = lane_table(card, against_dft=False)
    if table.empty:
        return []
    models = card.lanes.loc[card.lanes["against"] != "DFT", "against"].unique()
    caption = (
        f"These sets need no file but have no DFT values; the reference is {', '.join(figures.label(model) for model in models)} on the "
        "same cases. The slopes say how much softer or stiffer than that model this one is. They take no part in the recommendation."
    )
    return [page.Section("Against a model of the book, where there is no DFT", [page.Table(table, caption, numbers=True)])]


def _failed(card: Card) -> page.Section:
    if card.failures.empty:
        return page.Section("What failed", [page.Text("Nothing failed.")])
    shown = card.failures.assign(benchmark=card.failures["benchmark"].str.replace("_", " ")).set_index("benchmark")
    shown = shown[["cases", "kinds", "example", "reason"]].rename(columns={"kinds": "variants"}).rename_axis("family")
    caption = (
        "How many cases have values that failed. Reasons that differ only in numbers and chemical symbols are counted together, as "
        "variants of the one that is shown."
    )
    return page.Section("What failed", [page.Table(shown, caption)])


def _not_run(card: Card) -> page.Section:
    blocks: list[page.Block] = []
    if card.about["mode"] == "quick":
        blocks.append(
            page.Text(f"A sample: {card.about['cases']:,} of {card.about['of']:,} cases in the sets that were run. --full runs all.")
        )
    if len(card.not_run):
        shown = card.not_run.assign(benchmark=card.not_run["benchmark"].str.replace("_", " ")).set_index("benchmark").rename_axis("family")
        blocks.append(page.Table(shown.rename(columns={"command": "how to get it"})))
    elif not blocks:
        blocks.append(page.Text("Everything was run."))
    return page.Section("What was not run", blocks)


def _provenance(card: Card) -> page.Section:
    made: Mapping[str, Mapping[str, Any]] = card.about["benchmarks"]
    potential = card.about["request"]["potential"]
    some = next(iter(made.values()), {})
    speed = card.about["atoms_per_second"]
    facts = {
        "model": card.about["name"],
        "kind": ", ".join(str(potential[name]) for name in ("family", "package", "training_set") if potential.get(name)),
        "SHA-256 of its weights": potential.get("weights_sha256") or "not known",
        "factor on its energy": f"{potential['scale']:g}",
        "exam": " ".join(card.about["exam"]) or ("not needed" if card.about["trainable"] else "energy, forces and stress belong together"),
        "mode, seed": f"{card.about['mode']}, {card.about['seed']}",
        "computing time": f"{sum(entry['core_seconds'] for entry in made.values()):,.0f} s of one core, or of one GPU",
        "speed": f"{speed:,.0f} atoms per second and process (energy and forces, frame by frame)" if speed else "not measured",
        "device": some.get("device", ""),
        "packages": ", ".join(f"{name} {number}" for name, number in some.get("packages", {}).items()),
        "date": card.about["date"],
    }
    rows, settings = {}, {}
    for benchmark, entry in made.items():
        name = benchmark.replace("_", " ")
        rows[name] = {
            "cases, by set": ", ".join(f"{one} {count}" for one, count in entry["cases"].items()) or "none",
            "failed": card.about["failed_cases"][benchmark],
            "seconds": f"{entry['core_seconds']:,.0f}",
        }
        settings[f"settings: {name}"] = ", ".join(f"{one} {json.dumps(value)}" for one, value in entry["protocol"].items())
    caption = "Cases that were run; those of them with a failed value; seconds of one core."
    table = page.Table(pd.DataFrame.from_dict(rows, orient="index").rename_axis("family"), caption)
    return page.Section("Where it comes from", [table, page.facts(facts | settings)])


def write(card: Card, rules: Sequence[str]) -> None:
    """Write ``report.html`` and ``report.md`` into the card's folder, with the rules by which the recommendation was found."""
    sections = [_short(card), _families(card), *_beside(card), *_without_dft(card), _failed(card), _not_run(card)]
    sections += [page.Section("How the recommendation is found", [page.Bullets(rules)]), _provenance(card)]
    what = "a sample of the book's cases" if card.about["mode"] == "quick" else "all cases that are here"
    lead = f"How soft it is, family by family, on {what}: {card.about['cases']:,} cases. {card.about['date']}."
    footer = "Written by softening report. Method: Deng et al., npj Comput. Mater. 11, 9 (2025)."
    page.write(card.folder, f"Report card of {card.about['name']}", lead, sections, footer)
