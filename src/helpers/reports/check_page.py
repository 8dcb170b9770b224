"""The page of a check: what is expected of a potential on one crystal, property by property, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import figures
from helpers.reports import page


@dataclass
class Check:
    """What :func:`helpers.reports.check.check` found; ``answers`` has an entry per family."""

    folder: Path
    about: dict[str, Any]
    answers: list[dict[str, Any]]
    recommendation: str
    command: str
    reasons: list[str]
    notes: list[str]


def answer_table(check: Check) -> pd.DataFrame:
    """Return the answers as they should read, a row per family."""
    rows = {}
    for line in check.answers:
        known = line["status"] != "not known"
        scale = f"{line['scale']:.2f} [{line['low']:.2f}, {line['high']:.2f}]" if known else "not known"
        source = {"predicted": "slopes", "constant": "tested materials", "not known": "–"}[line["status"]]
        told = {"from": source, "yours → DFT": line["dft"] or "–", "to expect": "; ".join(filter(None, (line.get("errs"), line["reason"])))}
        rows[line["name"]] = {"scale [90 %]": scale, **told}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("property")


def nearest_text(line: dict[str, Any]) -> str:
    """Return the nearest tested materials of an answer, with what was measured and how far they are."""
    return ", ".join(f"{one['material']} ({one['chemistry']}) {one['measured']:.2f} at {one['distance']:.1f}" for one in line["nearest"])


def _stiff(check: Check) -> list[page.Block]:
    rows = {
        line["name"]: {
            **{figures.label(key): f"{line['each'][key]:.2f}" if key in line["each"] else "–" for key in check.about["stiff"]},
            "their mean": f"{line['slope']:.2f}",
            "they differ by": f"{line['spread']:.0%}" if len(line["each"]) > 1 else "–",
            "values": f"{line['n']:,}",
        }
        for line in check.answers
        if line["each"]
    }
    if not rows:
        return [page.Text("None was asked.")]
    caption = (
        "Slope of the potential on each stiff one, on the same structures. Stiff potentials are soft, too: the scale is corrected for it."
    )
    blocks: list[page.Block] = [page.Table(pd.DataFrame.from_dict(rows, orient="index").rename_axis("property"), caption, numbers=True)]
    if kinds := next((line["kinds"] for line in check.answers if line["kinds"]), {}):
        shown = pd.DataFrame({"slope": [f"{value:.2f}" for value in kinds.values()]}, index=list(kinds)).rename_axis("frames")
        blocks.append(page.Table(shown, "Of the forces, by kind of frame.", numbers=True))
    return blocks


def write(check: Check, rules: Sequence[str]) -> None:
    """Write ``report.html`` and ``report.md``."""
    about, name = check.about, figures.label(check.about["model"])
    short: list[page.Block] = [page.Text(f"Recommendation: {check.recommendation}.", strong=True), page.Bullets(check.reasons)]
    short += [page.Code(check.command)] if check.command else []
    caption = "Scale: expected model over DFT, 1 is right, below is soft; the interval is meant to hold for nine chemistries in ten."
    each: list[page.Block] = [page.Table(answer_table(check), caption)]
    known = [line for line in check.answers if line["status"] != "not known"]
    if known:
        drawn = (
            pd.DataFrame(known).rename(columns={"name": "material", "low": "scale_low", "high": "scale_high"}).assign(model=about["model"])
        )
        said = ", ".join(f"{line['name']} {line['scale']:.2f}" for line in known)
        picture = figures.by_material(drawn, "scale", "expected scale (model over DFT)", order=list(drawn["material"]))
        each.append(page.Picture(picture, f"Expected scales: {said}.", "Expected scales with 90 % intervals."))
    sections = [page.Section("In short", short), page.Section("Property by property", each)]
    sections.append(page.Section("What stiffer potentials say", _stiff(check)))
    near = {line["name"]: nearest_text(line) for line in check.answers if line["nearest"]}
    caption = "Elements, measured scale, and distance on Pettifor's chemical scale, of places from 1 to 103."
    if near:
        table = pd.DataFrame({"nearest": list(near.values())}, index=list(near)).rename_axis("property")
        sections.append(page.Section("The nearest tested materials", [page.Table(table, caption)]))
    if check.notes:
        sections.append(page.Section("To know", [page.Bullets(check.notes)]))
    sections.append(page.Section("How the recommendation is found", [page.Bullets(rules)]))
    facts = {name.replace("_", " "): value for name, value in about.items() if name != "packages"}
    facts |= {"minutes": f"{about['minutes']:.1f}", "stiff": ", ".join(about["stiff"]) or "none"}
    facts["packages"] = ", ".join(f"{package} {version}" for package, version in about["packages"].items())
    sections.append(page.Section("Where it comes from", [page.facts(facts)]))
    lead = f"How soft it is expected to be for {about['formula']} ({about['atoms']} atoms), before any DFT. {about['date']}."
    footer = "Written by softening check. Method: the chapter Before any DFT."
    page.write(check.folder, f"{name} on {about['formula']}", lead, sections, footer)
