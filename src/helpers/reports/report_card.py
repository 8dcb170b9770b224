"""A report card of any potential: every family of the book, on a part of its cases or on all, judged by the same statistics.

::

    from helpers.reports import report_card
    card = report_card.make("ase:my_module.my_factory", out="my-card")
    print(card.recommendation, card.reasons)

The folder that comes out holds ``report.html`` (one page, :mod:`helpers.reports.report_card_page`), ``report.md``, ``report.json``, and the
tables in ``results``, laid out like ``data/results``. A card can be interrupted: the same call goes on where it stopped, and does nothing
once all is done. Nothing but that folder is ever written to.

Which cases? Without ``full`` a sample is drawn (:func:`helpers.benchmarks.drawn`), as each benchmark declares it. Only sets whose files
are on this machine are run; where a family has none of these, a set without DFT values takes its place, and the model is compared with
a model of the book instead.

A bad calculator makes bad rows, not a crash: what raises, returns values that are not numbers, or lacks the stress is counted with its
reason, and a time limit for each family (``budget_minutes``) keeps a slow one from taking all day.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import benchmarks, explanations, figures, potentials, results, runner, softening
from helpers.benchmarks import Case, Family, Sample, off_equilibrium
from helpers.potentials import Potential, PotentialError, exam
from helpers.potentials.base import GraphPotential
from helpers.reports import gate, report_card_page
from helpers.reports.report_card_page import Card

AGAINST_DFT = benchmarks.families("", "control", "card")
AGAINST_BOOK = benchmarks.families("stand-in")

# Scalars before forces, energies before curvatures.
_ORDERED = sorted(AGAINST_DFT.values(), key=lambda family: (family.kind == "force", family.order))
BENCHMARKS = tuple(name for name in dict.fromkeys(family.benchmark for family in _ORDERED) if benchmarks.module(name).QUICK)

QUICK: dict[str, dict[str, Sample]] = {name: benchmarks.module(name).QUICK for name in BENCHMARKS}
"""The sample of a quick card: benchmark → set → how many."""

STARTED, RECORD = "started.json", "report.json"
_VERSION = 1

# Atoms in a piece of a sample, and pieces that it has at least: a killed or overdue card loses little, and no process waits for long.
ATOMS_PER_SHARD, _MIN_SHARDS = 200, 8

# The model that stands in for DFT where there is none. Its weights are in its package, so that anyone can run it.
BOOK_MODEL = "chgnet-0.3.0"

# How far energies of one structure (eV) may differ if the potential is to count as the same as before the interruption.
_SAME_ENERGY = 1e-3


# ---- Which cases ----------------------------------------------------------------------------------


def plans(full: bool, quick: Mapping[str, Mapping[str, Sample]] | None) -> tuple[dict[str, dict[str, Sample | None]], list[dict[str, str]]]:
    """Return what is to be run, set by set (None: all of it), and what cannot be run, with the reason."""
    plan: dict[str, dict[str, Sample | None]] = {}
    absent = []
    sample = QUICK if quick is None else quick
    for benchmark in BENCHMARKS if full else sample:
        wanted: dict[str, Sample | None] = dict.fromkeys(benchmarks.module(benchmark).SETS) if full else dict(sample[benchmark])
        plan[benchmark] = benchmarks.at_hand(benchmark, wanted)
        for name in wanted:
            if name not in plan[benchmark]:
                reason, command = "its files are not on this machine", f"softening fetch {benchmark}"
                absent.append({"benchmark": benchmark, "set": name, "cases": "all", "reason": reason, "command": command})
    return plan, absent


# ---- What is judged -------------------------------------------------------------------------------


def _joined(benchmark: str, own: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return a table with the same cases of the book's models below it."""
    parts = [own.astype({name: object for name in own.select_dtypes("category")})]
    wanted = set(own["case"].astype(str))
    for model in potentials.at_home(results.models(benchmark)):
        if model != key:
            table = results.read(benchmark, model)
            table = table[table["case"].isin(wanted)]
            parts.append(table.astype({name: object for name in table.select_dtypes("category")}))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def beside(rows: pd.DataFrame, key: str, n_resamples: int = 2000) -> pd.DataFrame:
    """Compare the card's model with the others on the cases of :func:`helpers.explanations.rows` that all of them have.

    A model that lacks more than a tenth of its values is left out: with it the others would be compared on few cases. One row per model:
    ``model``, ``rank`` (1 is the smallest MAE), ``mae``, and the columns of :func:`helpers.explanations.slopes`. Empty if there is nothing
    to compare.
    """
    names = explanations.places(rows)
    places = {str(model): pd.MultiIndex.from_frame(part[names]) for model, part in rows.groupby("model", observed=True)}
    if key not in places:
        return pd.DataFrame()
    common = own = places[key]
    compared = [model for model, place in places.items() if own.isin(place).mean() >= 0.9]
    for model in compared:
        common = common[common.isin(places[model])]
    if len(compared) < 2 or len(common) < 2:
        return pd.DataFrame()
    found = []
    for model in figures.in_order(compared):
        part = rows[(rows["model"] == model).to_numpy() & pd.MultiIndex.from_frame(rows[names]).isin(common)]
        found.append({"model": model, "mae": _mae(part), **explanations.slopes(part, n_resamples)})
    table = pd.DataFrame(found)
    table.insert(1, "rank", table["mae"].rank(method="min").astype(int))
    return table


def _mae(part: pd.DataFrame, factor: float = 1.0) -> float:
    return float((factor * part["value"].astype(float) - part["reference"].astype(float)).abs().mean())


def judge(
    key: str, family: Family, rows: pd.DataFrame, unit: str, against: str = "DFT", n_resamples: int = 2000
) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """Return what the card says of one family (:attr:`Card.lanes`), and :func:`beside`.

    Rows are those of :func:`helpers.explanations.rows`, ``against`` says what their reference is. There is no slope, and None is returned,
    if there are fewer than two values, or all are the same, as of a flat potential.
    """
    own = rows[rows["model"] == key]
    if len(own) < 2 or np.ptp(own["value"]) == 0:
        return None
    slopes = explanations.slopes(own, n_resamples)
    s, p = slopes["slope"], family.power
    others = beside(rows, key, n_resamples) if against == "DFT" else pd.DataFrame()
    ranked = others.set_index("model") if len(others) else None
    mae = _mae(own)
    lane = {
        "lane": family.key,
        "name": family.name,
        "benchmark": family.benchmark,
        "against": against,
        "unit": unit,
        "power": p,
        **slopes,
        "mae": mae,
        "verdict": _verdict(slopes) if against == "DFT" else RELATIVE.get(_verdict(slopes), _verdict(slopes)),
        "factor": s ** (-1 / p) if s > 0 else np.nan,
        "removed_own": 1 - _mae(own, 1 / s) / mae if s > 0 and mae > 0 else np.nan,
        "rank": None if ranked is None else int(ranked.loc[key, "rank"]),
        "n_ranked": None if ranked is None else len(ranked),
        "n_common": None if ranked is None else int(ranked.loc[key, "n"]),
    }
    return lane, others.assign(lane=family.key)


# An interval around one that still says that the size is right.
RIGHT = (0.9, 1.1)

# The words against a model of the book, which is no truth.
RELATIVE = {"soft": "softer", "stiff": "stiffer", "right": "alike"}


def _verdict(slopes: Mapping[str, float]) -> str:
    """Return :func:`helpers.softening.verdict` or ``wrong sign``, or ``unclear`` where the intervals do not bear it out."""
    low, high = slopes["slope_low"], slopes["slope_high"]
    word = softening.verdict(slopes["slope"], slopes["inverse_slope"]) if slopes["slope"] > 0 else "wrong sign"
    borne_out = {
        "wrong sign": high < 0,
        "soft": high < 1 < slopes["inverse_slope_low"],
        "calibrated": high < 1,
        "right": RIGHT[0] <= low and high <= RIGHT[1],
        "stiff": low > 1,
    }
    return word if borne_out[word] else "unclear"


def _against_book(benchmark: str, joined: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return the model's rows of the ``LIVE`` set with the values of the book's model as reference."""
    module = benchmarks.module(benchmark)
    live = joined[joined["set"] == module.LIVE]
    keys = ["set", "case", "property", *[name for name in module.KEYS if name in live]]
    book = live[(live["model"] == BOOK_MODEL) & (live["status"] == "ok")][[*keys, "value"]].rename(columns={"value": "reference"})
    return live[live["model"] == key].drop(columns="reference").merge(book, on=keys, how="left", validate="one_to_one")


def _is_flat(table: pd.DataFrame) -> bool:
    """Tell whether all that a model gives for what has a reference is zero."""
    good = table[(table["status"] == "ok") & table["reference"].notna()]
    return len(good) > 1 and not good["value"].astype(float).abs().max() > 0


def _judged(key: str, benchmark: str, table: pd.DataFrame, n_resamples: int) -> Iterator[tuple[dict, pd.DataFrame, pd.DataFrame]]:
    """Yield, for each family of a benchmark of which there is something: the lane, the other models, the model's own rows."""
    if not (table["status"] == "ok").any():
        return
    joined = _joined(benchmark, table, key)
    for families, against in ((AGAINST_DFT, "DFT"), (AGAINST_BOOK, BOOK_MODEL)):
        if against == key:
            continue
        source = joined if against == "DFT" else _against_book(benchmark, joined, key)
        for family in families.values():
            if family.benchmark == benchmark:
                rows = explanations.rows(family, source)
                units = family.read(source)["unit"]
                judged = judge(key, family, rows, str(units.iloc[0]) if len(units) else "", against, n_resamples)
                if judged is not None:
                    yield *judged, rows[rows["model"] == key].reset_index(drop=True)


def with_common_factor(lanes: pd.DataFrame, points: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, float]:
    """Add ``removed_common``: the share of each family's error that one factor for all families removes; return that factor, too.

    The factor is the median over benchmarks of the factors that they ask for, each the median over its families; geometric, and
    without the control. Lanes are rows of :func:`judge`, points the values that they were judged by.
    """
    factors = _by_benchmark(lanes)
    if factors["factor"].isna().all():
        return lanes.assign(removed_common=np.nan), np.nan
    common = float(np.exp(np.log(factors["factor"]).median()))
    removed = []
    for lane in lanes.itertuples():
        before = _mae(points[lane.lane])
        removed.append(1 - _mae(points[lane.lane], common**lane.power) / before if before > 0 else np.nan)
    return lanes.assign(removed_common=removed), common


def _counted(lanes: pd.DataFrame) -> pd.DataFrame:
    """Return the lines that the advice rests on: against DFT, of three values or more, no control."""
    if not len(lanes):
        return lanes
    return lanes[(lanes["against"] == "DFT") & ~lanes["lane"].isin(benchmarks.families("control")) & (lanes["n"] >= 3)]


def _by_benchmark(lanes: pd.DataFrame) -> pd.DataFrame:
    """Return one row per benchmark that was measured: the median of its lines, and their verdict."""
    records = []
    for benchmark, part in _counted(lanes).groupby("benchmark", sort=False) if len(lanes) else ():
        share = part["verdict"].value_counts(normalize=True)
        soft, unclear = share.get("soft", 0.0), share.get("unclear", 0.0)
        record = {"benchmark": benchmark, "factor": float(np.exp(np.log(part["factor"].astype(float)).median()))}
        others = share.drop(["soft", "unclear"], errors="ignore")
        record["verdict"] = "soft" if soft > 0.5 else "unclear" if soft + unclear > 0.5 else others.idxmax()
        record |= {name: part[name].median() for name in ("slope", "inverse_slope", "r2", "removed_own") if name in part}
        if "removed_common" in part:
            record["removed_common"] = part["removed_common"].mean()
        records.append(record)
    return pd.DataFrame(records, columns=None if records else ["factor"])


# ---- Advice ---------------------------------------------------------------------------------------

NOTHING, TOO_LITTLE = "no advice: nothing was measured", "no advice: too little was measured"
ADVICE = ("scalar fix", "fine-tuning", "neither", NOTHING, TOO_LITTLE)

# Largest over smallest factor up to which families agree.
AGREE = 1.25

# R² below which the scatter about the line is more than the line.
SCATTER = 0.5

# Families below which there is no advice; materials below which intervals are too narrow (helpers.softening.bootstrap_over).
ENOUGH, _FEW = 3, 5

RULES = (
    "A family is soft if most of its lines are: slope s below 0.97 and inverse slope s′ above 1.03. With s low and s′ near one, "
    "the model is calibrated (shrunken). A line is not clear if its interval allows something else: one (or zero) where it is called "
    "soft, stiff, calibrated (or of the wrong sign), less than 0.9 or more than 1.1 where the size is called right.",
    "No advice: nothing, or fewer than 3 families, could be measured against DFT; most cases failed; or families that are not clear decide "
    "whether more than half are soft.",
    "Neither: not more than half of the families are soft, or R² = s s′ is below 0.5 in most, so that scatter is the larger part.",
    "Scalar fix: one factor for all families, the median of those that they ask for, removes at least half of the error of the median "
    "family, the largest of these factors is at most 1.25 times the smallest, and no family has the wrong sign.",
    "Fine-tuning: soft, but no scalar fix. If the one factor removes at least a fifth of the error it is a first step.",
    "Families count alike, whatever their number of cases; the control (frames of the training data) does not count. A frequency goes "
    "with the root of the energy, so its factor is 1/s².",
)


def advise(lanes: pd.DataFrame, common: float, lost: float = 0.0) -> tuple[str, list[str]]:
    """Recommend a cure, by :data:`RULES`, from :func:`with_common_factor` and the share of the cases of which nothing is left (``lost``).

    Returned are one of :data:`ADVICE`, and the reasons, a sentence or two each: what is soft and what is not, what follows, what it rests
    on.
    """
    families, counted = _by_benchmark(lanes), _counted(lanes)
    if families.empty:
        return NOTHING, ["Nothing was measured against DFT: it is not known whether this potential is soft."]
    said = {"soft": [], "other": []}
    for row in families.itertuples():
        word = "" if row.verdict == "soft" else f", {report_card_page.VERDICTS[row.verdict]}"
        said["other" if word else "soft"].append(f"{_words(row.benchmark)} (s = {row.slope:.2f}{word})")
    first = f"{len(said['soft'])} of {len(families)} families are soft{': ' * bool(said['soft'])}{', '.join(said['soft'])}."
    first += f" Not soft, or not for certain: {', '.join(said['other'])}." if said["other"] else ""
    advice, reasons = _decide(families, common)
    if len(families) < ENOUGH or lost > 0.5:
        why = f"Fewer than {ENOUGH} families" if len(families) < ENOUGH else f"The {1 - lost:.0%} of the cases that have values"
        advice, reasons = TOO_LITTLE, [f"{why} are no basis for advice."]
    if wrong := counted.loc[counted["verdict"] == "wrong sign", "name"].tolist():
        reasons.append(f"The sign is wrong in {', '.join(wrong)}: no factor helps there.")
    few = [f"{lane.name} ({lane.n_materials})" for lane in counted[counted["n_materials"] < _FEW].itertuples(index=False)]
    if few or len(families) < len(BENCHMARKS):
        of_few = f" The intervals of fewer than {_FEW} materials are too narrow: {', '.join(few)}." if few else ""
        reasons.append(f"This rests on {len(families)} of the {len(BENCHMARKS)} families of the book.{of_few}")
    return advice, [reason.replace("= -", "= −") for reason in (first, *reasons)]


def _decide(families: pd.DataFrame, common: float) -> tuple[str, list[str]]:
    """Return the advice and why, given the families that were measured."""
    n_soft, n_open = ((families["verdict"] == word).sum() for word in ("soft", "unclear"))
    if n_soft <= len(families) / 2 < n_soft + n_open:
        return TOO_LITTLE, [f"The intervals of {n_open} are too wide to tell. More cases (--full, softening fetch) make them narrower."]
    if 2 * n_soft <= len(families):
        return "neither", [f"The slope of the median family is {families['slope'].median():.2f}: there is no common softness to be fixed."]
    reasons: list[str] = []
    if families["r2"].median() < SCATTER:
        reasons.append(
            f"Scatter is the larger part of the error (median R² {families['r2'].median():.2f}). A factor would amplify it, and a few "
            "labels fix one material, not the model."
        )
        return "neither", reasons
    share = families["removed_common"].median()
    low, high = families.loc[families["factor"].idxmin()], families.loc[families["factor"].idxmax()]
    agree = high["factor"] <= AGREE * low["factor"] and not (families["verdict"] == "wrong sign").any()
    spread = (
        f"The families ask for factors from {low['factor']:.2f} ({_words(low['benchmark'])}) to {high['factor']:.2f} "
        f"({_words(high['benchmark'])}): they {'agree' if agree else 'do not agree on one'}."
    )
    worst = families.loc[families["removed_common"].idxmin()]
    removes = f"One factor for all, {common:.2f}, "
    removes += f"removes {share:.0%} of the error of the median family" if share >= 0 else "makes the median family worse"
    if worst["removed_common"] < 0:
        removes += f"; the error of {_words(worst['benchmark'])} grows by {-worst['removed_common']:.0%}"
    reasons += [f"{removes}.", spread]
    if share >= softening.SUFFICES and agree:
        reasons.append("One number removes most of it, and keeps every symmetry and every equilibrium geometry.")
        return "scalar fix", reasons
    if share >= softening.WORTH_HAVING:
        reasons.append(
            "The factor is a cheap first step; what is left needs trained weights. For one property, take that property's factor."
        )
    else:
        own = families["removed_own"].median()
        reasons.append(
            f"A factor is not worth having here. One of its own would remove {own:.0%} of the error of the median family: train the "
            "weights, with labels of what the model is for."
        )
    return "fine-tuning", reasons


def _words(benchmark: str) -> str:
    return benchmark.replace("_", " ")


# ---- The card -------------------------------------------------------------------------------------


_FAILURES = ["benchmark", "cases", "reason", "kinds", "example"]
_NOT_RUN = ["benchmark", "set", "cases", "reason", "command"]
_NO_TIME = "no time left"


def make(
    model: str | Potential,
    out: Path | str,
    *,
    full: bool = False,
    quick: Mapping[str, Mapping[str, Sample]] | None = None,
    seed: int = 0,
    device: str = "auto",
    processes: int | None = None,
    budget_minutes: float | None = None,
    trust: bool = False,
    n_resamples: int = 2000,
    progress: bool = False,
) -> Card:
    """Run the benchmarks with a potential and write its report card.

    ``model`` is a key, as :func:`helpers.potentials.load` takes it with device and trust; or a potential, which is then run in this
    process. ``out`` is a new or empty folder, or that of the same call before. ``full`` takes all cases of all sets that are here, and
    complete tables in ``data/results`` as they are; ``quick`` is the sample if not all, by default :data:`QUICK`, drawn with the seed.
    ``processes`` is as for :func:`helpers.runner.workers`, ``n_resamples`` as for :func:`helpers.softening.bootstrap_over`.
    ``budget_minutes`` is the time for each benchmark: what does not fit is listed as not run, and the same call goes on with it.
    PotentialError if the potential cannot be loaded, or the folder holds something else; ValueError if the budget is not positive, or a
    sample names what does not exist; RunError if the same card is being made by another process.
    """
    if budget_minutes is not None and not budget_minutes > 0:
        raise ValueError(f"the budget must be a positive number of minutes, not {budget_minutes}")
    for benchmark, sets in (quick or {}).items():
        if unknown := sorted(set(sets) - set(benchmarks.module(benchmark).SETS)):
            raise ValueError(f"{benchmark} has no set {', '.join(unknown)}")
    out = Path(out)
    potential = potentials.load(model, device, trust=trust) if isinstance(model, str) else model
    plan, not_run = plans(full, quick)
    request = _request(potential, "full" if full else "quick", seed, plan)
    if _finished(out, request):
        return read(out)
    notes = exam.examine(potential)
    out.mkdir(parents=True, exist_ok=True)
    results.write_json(request, out / STARTED)

    tables, made = {}, {}
    number = processes if isinstance(model, str) else 1
    with runner.workers(potential.device, number) as pool:
        for benchmark, sets in plan.items():
            protocol = benchmarks.module(benchmark).Protocol()
            cases, total = benchmarks.drawn(benchmark, sets, seed)
            limits = runner.Limits(None if budget_minutes is None else time.time() + 60 * budget_minutes, keep_going=True)
            size = None if full else min(ATOMS_PER_SHARD, 1 + _n_atoms(cases) // _MIN_SHARDS)
            where = runner.Where(pool, trust=trust, atoms_per_shard=size)
            done = runner.run_cases(benchmark, potential, cases, protocol, where=where, limits=limits, base=out, progress=progress)
            tables[benchmark] = done.table
            made[benchmark] = {**done.made, "of": total, "atoms": _n_atoms(cases, done.missing)}
            not_run += _overdue(benchmark, done.missing)
    card = _card(out, potential, request, tables, made, pd.DataFrame(not_run, columns=_NOT_RUN), notes, n_resamples)
    write(card)
    (out / STARTED).unlink(missing_ok=True)
    return card


def _request(potential: Potential, mode: str, seed: int, plan: Mapping[str, Mapping[str, Sample | None]]) -> dict[str, object]:
    """Return what makes a card: the potential, with its answers for some crystals, and what is run."""
    crystals = {case.material: case.structures["frame"] for case in off_equilibrium.cases(sets=[off_equilibrium.LIVE])}
    answers = potential.evaluate(list(crystals.values()))
    return {
        "version": _VERSION,
        "potential": potential.describe(),
        "energies_ev": [answer.energy if answer.ok else None for answer in answers],
        "mode": mode,
        "seed": seed,
        "plan": {name: {one: None if sample is None else asdict(sample) for one, sample in sets.items()} for name, sets in plan.items()},
    }


def _finished(out: Path, request: dict[str, object]) -> bool:
    """Tell whether the folder holds this very card, complete; PotentialError if it holds anything but this card, complete or not."""
    if out.exists() and not out.is_dir():
        raise PotentialError(f"{out} is a file; choose a new folder for --out.")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not names:
        return False
    # A card that is gone on with has both; what it is of stands in either.
    for name in (STARTED, RECORD):
        if name in names:
            content = json.loads((out / name).read_text())
            break
    else:
        raise PotentialError(f"{out} is not empty and holds something else; choose a new folder for --out.")
    before = content.get("request", content) if isinstance(content, dict) else {}
    now = json.loads(json.dumps(request))
    other = [name for name in now if name != "energies_ev" and before.get(name) != now[name]]
    if not other and not _same(before.get("energies_ev"), now["energies_ev"]):
        other = ["the potential's energies"]
    if other:
        raise PotentialError(f"{out} holds another report card (different: {', '.join(other)}); choose a new folder for --out.")
    if STARTED in names:
        return False
    return not any(entry["reason"] == _NO_TIME for entry in content["not_run"])


def _same(before: object, now: Sequence[float | None]) -> bool:
    if not isinstance(before, list) or len(before) != len(now):
        return False
    return all((a is None) == (b is None) and (a is None or abs(a - b) < _SAME_ENERGY) for a, b in zip(before, now, strict=True))


def _n_atoms(cases: Sequence[Case], missing: Sequence[Case] = ()) -> int:
    absent = {case.name for case in missing}
    return sum(len(atoms) for case in cases if case.name not in absent for atoms in case.structures.values())


def _overdue(benchmark: str, missing: Sequence[Case]) -> list[dict[str, str]]:
    command = "the same command again goes on; --budget sets the minutes for each family"
    counts: dict[str, int] = {}
    for case in missing:
        counts[case.set] = counts.get(case.set, 0) + 1
    return [{"benchmark": benchmark, "set": name, "cases": str(n), "reason": _NO_TIME, "command": command} for name, n in counts.items()]


def failures(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Count the cases that have failed rows, by benchmark and reason.

    Reasons that differ only in numbers, chemical symbols and formulas are counted together: ``reason`` (the first of its kind), ``kinds``
    (how many different ones) and ``example`` (the case that it is the reason of).
    """
    records = []
    for benchmark, table in tables.items():
        bad = table[table["status"] == "failed"].astype({"reason": str, "case": str})
        bad = bad.assign(kind=bad["reason"].map(_kind))
        for _, part in bad.groupby("kind", sort=False):
            first = part.iloc[0]
            entry = {"benchmark": benchmark, "cases": part["case"].nunique(), "reason": first["reason"]}
            records.append(entry | {"kinds": part["reason"].nunique(), "example": first["case"]})
    return pd.DataFrame(records, columns=_FAILURES).sort_values(["benchmark", "cases"], ascending=[True, False], ignore_index=True)


def _kind(reason: str) -> str:
    """Return a reason without what changes from case to case."""
    without = re.sub(r"^(slab|bulk|host|strained|([A-Z][a-z]?\d*)+): ", "", reason)
    return re.sub(r"\b([A-Z][a-z]?\d*)+\b|[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "…", without)


def shown_name(key: str) -> str:
    """Return a model's name for readers, without the folders that a file lies in."""
    kind, _, place = key.partition(":")
    return f"{kind}:{Path(place).name}" if kind in ("ase", "file") else figures.label(key)


def _card(
    out: Path,
    potential: Potential,
    request: dict[str, object],
    tables: Mapping[str, pd.DataFrame],
    made: dict[str, dict[str, Any]],
    not_run: pd.DataFrame,
    notes: list[str],
    n_resamples: int,
) -> Card:
    lanes, others, points = [], [], {}
    for benchmark, table in tables.items():
        for lane, compared, rows in _judged(potential.key, benchmark, table, n_resamples):
            lanes.append(lane)
            others.append(compared)
            points[lane["lane"]] = rows
    if flat := [name for name, table in tables.items() if _is_flat(table)]:
        notes = [*notes, f"All values of {', '.join(flat).replace('_', ' ')} are zero: this potential is flat there, and has no slope."]
    judged, common = with_common_factor(pd.DataFrame(lanes), points) if lanes else (pd.DataFrame(), np.nan)
    left = sum(table.loc[table["status"] == "ok", "case"].nunique() for table in tables.values())
    bad = {name: table.loc[table["status"] == "failed", "case"].nunique() for name, table in tables.items()}
    n_cases, n_bad = sum(sum(entry["cases"].values()) for entry in made.values()), sum(bad.values())
    advice, reasons = advise(judged, common, 1 - left / max(n_cases, 1))
    if 2 * n_bad > n_cases:
        most = failures(tables).sort_values("cases").iloc[-1]
        rest = "The numbers are of the others." if len(judged) else f"Most often: {most['reason']}."
        reasons.append(f"Uncertain: {n_bad} of {n_cases} cases failed, at least in part. {rest}")
    if advice in (NOTHING, TOO_LITTLE):
        if commands := [command for command in not_run["command"].unique() if command.startswith("softening fetch")]:
            reasons.append(f"With DFT data a card in a new folder says more: {'; '.join(commands)}.")
        reasons.append("With labels of your own material, softening fix says how soft it is there.")
    reasons += notes
    trainable = isinstance(potential, GraphPotential)
    if advice == "fine-tuning" and not trainable:
        reasons.insert(0, "This potential has no weights that softening fix could train: train it with its own code.")
    # Where forces are what is measured, single frames are evaluated.
    single = [made[name] for name in {family.benchmark for family in AGAINST_DFT.values() if family.quantity == "force"} if name in made]
    seconds = sum(entry["core_seconds"] for entry in single)
    speed = sum(entry["atoms"] for entry in single) / seconds if seconds > 0 else None
    about = {
        "request": request,
        "model": potential.key,
        "name": shown_name(potential.key),
        "mode": request["mode"],
        "seed": request["seed"],
        "date": max((str(entry["date"]) for entry in made.values()), default=""),
        "cases": n_cases,
        "of": sum(entry["of"] for entry in made.values()),
        "failed_cases": bad,
        "common_factor": None if np.isnan(common) else common,
        "atoms_per_second": speed,
        "trainable": trainable,
        "exam": notes,
        "benchmarks": made,
    }
    compared = pd.concat(others, ignore_index=True) if others else pd.DataFrame()
    return Card(out, about, judged, compared, failures(tables), not_run, advice, reasons, points)


# ---- On disk --------------------------------------------------------------------------------------


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Return rows for JSON, which knows no NaN."""
    return json.loads(frame.to_json(orient="records", double_precision=15)) if len(frame) else []


def content(card: Card) -> dict[str, object]:
    """Return a card as JSON holds it; numbers that do not exist are null."""
    return {
        "schema": gate.SCHEMA,
        **card.about,
        "recommendation": card.recommendation,
        "reasons": card.reasons,
        "lanes": _records(card.lanes),
        "beside": _records(card.beside),
        "failures": _records(card.failures),
        "not_run": _records(card.not_run),
    }


def write(card: Card) -> None:
    """Write a card as HTML, Markdown and JSON; the JSON last, so that it vouches for the others."""
    report_card_page.write(card, RULES)
    results.write_bytes(gate.badge(content(card)).encode(), card.folder / "badge.svg")
    results.write_json(content(card), card.folder / RECORD)


def read(folder: Path | str) -> Card:
    """Read a card from its folder; PotentialError if there is none."""
    folder = Path(folder)
    try:
        found = json.loads((folder / RECORD).read_text())
        frames = {name: pd.DataFrame(found.pop(name)) for name in ("lanes", "beside", "failures", "not_run")}
        advice, reasons = found.pop("recommendation"), found.pop("reasons")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise PotentialError(f"{folder} holds no report card: {error}") from error
    for name, columns in (("failures", _FAILURES), ("not_run", _NOT_RUN)):
        frames[name] = frames[name].reindex(columns=columns)
    return Card(folder, found, recommendation=advice, reasons=reasons, **frames)
