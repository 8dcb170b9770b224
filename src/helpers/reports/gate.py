"""A gate for potentials: conditions on a report card, alone or beside an earlier one; its badge; two cards on one page.

A condition is true where something is wrong. Several are separated by commas:

    surfaces<0.9, phonons drop>0.03, forces-wbm inverse_slope>1.2, any failed>0

A *family* is a lane of the card, a benchmark (all its lanes against DFT), or ``any``. What is compared is its ``slope`` if nothing is
said, its ``inverse_slope``, ``mae`` (in the unit of the family), ``drop`` (by how much the slope has fallen since the earlier card), or
``failed`` (cases of its benchmark). A family that was not measured meets every condition: what was not looked at has not passed. For
``any`` that means a family of the earlier card which this one has lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import benchmarks
from helpers.potentials import PotentialError
from helpers.registry import nearest
from helpers.reports import page

SCHEMA = 1
"""Version of ``report.json``, which ``data/reference/report_card.schema.json`` describes. It counts up when a key changes its meaning."""

_FAMILIES = benchmarks.families("", "control", "card")  # those against DFT
QUANTITIES = ("slope", "inverse_slope", "mae", "drop", "failed")
_CONDITION = re.compile(r"([\w-]+)(?:\s+(\w+))?\s*([<>])\s*([+-]?\d*\.?\d+(?:e[+-]?\d+)?)")
_GREEN, _AMBER, _RED = "#256b3c", "#8a5a00", "#a32222"  # white words on them keep a contrast above 4.5


def read(path: Path | str) -> dict[str, Any]:
    """Read ``report.json``, or that of a card's folder; PotentialError if there is none, or if it is of another version."""
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        lanes, version = found["lanes"], found.get("schema", 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PotentialError(f"{path} is no report card: {error}") from error
    if version != SCHEMA or not isinstance(lanes, list):
        raise PotentialError(f"{path} is a report card of version {version}; {SCHEMA} is wanted: make it again with softening report.")
    return found


def parse(text: str, compared: bool = True) -> list[tuple[str, str, str, float]]:
    """Return conditions as family, quantity, comparison, limit; ValueError for a wrong one, or a drop if no card is ``compared``."""
    names = list(dict.fromkeys(["any", *(family.benchmark for family in _FAMILIES.values()), *_FAMILIES]))
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _CONDITION.fullmatch(part)
        if not match or (match[2] or "slope") not in QUANTITIES:
            guess = nearest(match[2] or "", QUANTITIES) if match else ""
            wanted = f"FAMILY [{' | '.join(QUANTITIES)}] < or > NUMBER, as in surfaces<0.9.{guess}"
            raise ValueError(f"--fail-if {part!r} cannot be understood; wanted: {wanted}")
        if match[1] not in names:
            raise ValueError(f"--fail-if names {match[1]}, no family; there are {', '.join(names)}.{nearest(match[1], names)}")
        if match[2] == "drop" and not compared:
            raise ValueError("--fail-if asks for a drop: --against must name the earlier card")
        found.append((match[1], match[2] or "slope", match[3], float(match[4])))
    if not found:
        raise ValueError("--fail-if has no condition; give one, as in surfaces<0.9")
    return found


def failing(card: Mapping[str, Any], conditions: str, before: Mapping[str, Any] | None = None) -> list[str]:
    """Return a sentence for each condition that holds, and for each family of one that was not measured.

    ``card``, ``before``: what :func:`read` returns. ValueError as :func:`parse` raises it.
    """
    now, then = ({lane["lane"]: dict(lane) for lane in one["lanes"] if lane["against"] == "DFT"} for one in (card, before or {"lanes": []}))
    lanes, told = {name: {"benchmark": lane["benchmark"]} for name, lane in then.items()} | now, []
    for name, lane in lanes.items():
        before_it, now_it = then.get(name, {}).get("slope"), lane.get("slope")
        lane["drop"] = None if before_it is None or now_it is None else before_it - now_it
    for family, quantity, sign, limit in parse(conditions, before is not None):
        if quantity == "failed":
            counted = _FAMILIES[family].benchmark if family in _FAMILIES else family
            values = {name: n for name, n in card["failed_cases"].items() if counted in ("any", name)}
        else:
            values = {name: lane.get(quantity) for name, lane in lanes.items() if family in ("any", name, lane["benchmark"])}
        for name, value in (values or {family: None}).items():
            if value is None or not np.isfinite(value):
                told.append(f"{name}: {quantity} was not measured{' in both cards' if quantity == 'drop' else ''}")
            elif value < limit if sign == "<" else value > limit:
                told.append(f"{name}: {quantity} {value:.3g} {sign} {limit:g}")
    return told


def badge(card: Mapping[str, Any]) -> str:
    """Return an SVG badge: the median slope of the families against DFT, and how many there are."""
    slopes = [lane["slope"] for lane in card["lanes"] if lane["against"] == "DFT" and lane["slope"] is not None]
    middle = float(np.median(slopes)) if slopes else np.nan
    words = f"s = {middle:.2f} ({len(slopes)} famil{'y' if len(slopes) == 1 else 'ies'})" if slopes else "not measured"
    colour = _RED if not abs(middle - 1) < 0.25 else _AMBER if abs(middle - 1) > 0.1 else _GREEN
    left, right = 70, 12 + 7 * len(words)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" aria-label="softening: {words}">'
        f'<rect width="{left}" height="20" fill="#444"/><rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle"><text x="{left / 2}" y="14">'
        f'softening</text><text x="{left + right / 2}" y="14">{words}</text></g></svg>\n'
    )


def side_by_side(card: Mapping[str, Any], before: Mapping[str, Any], out: Path, failed: Sequence[str] = ()) -> None:
    """Write a page with both cards, family by family, into a folder."""
    pair = {side: pd.DataFrame(one["lanes"]).set_index("name") for side, one in (("before", before), ("now", card)) if one["lanes"]}
    rows = {}
    for name in dict.fromkeys(name for lanes in pair.values() for name in lanes.index):
        rows[name] = {
            f"{what} {side}": f"{pair[side].loc[name, column]:.3g}" if side in pair and name in pair[side].index else "–"
            for what, column in (("s", "slope"), ("s′", "inverse_slope"), ("MAE", "mae"))
            for side in ("before", "now")
        }
    table = page.Table(
        pd.DataFrame.from_dict(rows, orient="index").rename_axis("family"), "Slopes and errors as in the cards.", numbers=True
    )
    verdict = page.Bullets(failed) if failed else page.Text("No condition of the gate was met, or none was set.")
    lead = " ".join(f"{when}: {one['name']}, {one['date']}, {one['cases']:,} cases." for when, one in (("Before", before), ("Now", card)))
    page.write(out, "Two report cards", lead, [page.Section("Gate", [verdict]), page.Section("Family by family", [table])])
