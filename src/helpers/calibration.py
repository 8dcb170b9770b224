"""How soft a potential is for a material before any DFT, from its slope against stiffer potentials.

For one family of :data:`FAMILIES`, one model and one material, with x of DFT, y of the model and k the mean of some stiff models, all on
the same structures, and sums over the material's values:

    measured scale  s = Σxy / Σx²          slope against the stiff  p = Σky / Σk²          prediction  ŝ = c p

Stiff models are not DFT. The factor c, the median of s/p, takes away what they have in common with the soft ones, family by family. A
*chemistry*, which is a set of elements, has one vote, the median of its materials.

The interval is conformal (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (Springer, 2005)), by the jackknife (Barber
et al., Ann. Stat. 49, 486 (2021)), with scores that are weighted locally (Lei et al., J. Am. Stat. Assoc. 113, 1094 (2018)): a slope far
from one errs more. Chemistry g is left out, c is taken from the others, and its score is the largest error of its materials as a factor,
over what their slopes let expect, R_g = max |ln(s / c₋g p)| / w(p): a scale of half and one of twice what was predicted are equally wrong.
w = a + b |ln p| is fitted to these errors by least squares, with a and b not negative. With q the ⌈0.9 (n + 1)⌉-th smallest of n scores,
the interval goes from ŝ e^(−q w) to ŝ e^(q w). It is meant to hold all materials of nine chemistries in ten, if new ones are like those
tested, and c and w hardly move when one is left out. The jackknife has no theorem for that, so :func:`leave_out` measures it: the chemistry
that is asked about takes part in nothing.

Where ŝ is not clearly better than the median s of the other chemistries, this *constant* is the answer: the same formulas with p = w = 1.
Those chemistries that calibrate also choose. It is the answer as well where no stiff model could be asked. In what follows ``found``
holds :func:`materials` of one model, by family.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from pymatgen.core import Element
from scipy.optimize import nnls

from helpers import benchmarks, explanations

FAMILIES = benchmarks.families("", "card")

STIFF = ("tensornet-matpes-pbe-2025.1", "sevennet-0", "nequix-oam-1")
"""Stiff potentials by default, of other networks and data than each other and the paper's. Those that have values of a family are used."""

POOLS: dict[str, tuple[str, ...]] = {
    "forces": ("forces-wbm", "forces-tp", "forces-md", "forces-cold"),
    "surfaces": ("surfaces", "surfaces-built"),
    "strains": ("stress-stretch", "stress-shear", "bulk-modulus", "shear-modulus"),
}
"""Where a family has fewer than :data:`FEWEST` chemistries, those of its pool lend scores; a family without a pool is *not known*."""

LEVEL = 0.9  # of the interval
FEWEST = 10  # chemistries: when one of them is left out, the largest score of the other nine is the quantile
FEWEST_OWN = 3  # chemistries for a factor of its own, with scores that are lent
AGREED = 0.95  # quantile of the spreads of the materials that calibrate, beyond which a prediction is refused
LEAST_WEIGHT = 0.01  # of a material: what stiff models agree on to rounding
CLEARLY = 2  # standard errors of the mean gain over the constant


def chemistry(formula: str) -> str:
    """Return the elements that a formula names, in alphabetical order, as ``Al-C-N-Si``; empty if it names none, or something else."""
    found = sorted(set(re.findall("[A-Z][a-z]?", formula)))
    return "-".join(found) if all(map(Element.is_valid_symbol, found)) else ""


def against(value: np.ndarray, stiff: np.ndarray, codes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return p of each material, and the *spread*: the largest slope against a single stiff model minus the smallest, over p.

    Values, shape (n,), and those of the stiff models, shape (n, n_models), are in one unit; ``codes``, shape (n,), number the materials (by
    default there is one). Both results have the shape (n_materials,); NaN where all values are zero.
    """
    codes = np.zeros(len(value), dtype=int) if codes is None else codes
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = (stiff.mean(axis=1), *stiff.T)
        slope, *single = (np.bincount(codes, weights=k * value) / np.bincount(codes, weights=k * k) for k in columns)
        return slope, np.ptp(single, axis=0) / np.abs(slope)


def materials(table: pd.DataFrame, model: str, stiff: Sequence[str] = STIFF) -> pd.DataFrame:
    """Return the scales of all materials of a family, from its table of :func:`helpers.explanations.read`.

    Columns ``material, chemistry, n`` (values that the model and the stiff ones share), ``measured`` (s), ``slope`` (p), ``spread``,
    ``status`` and ``reason``: a material of which not all is known, or whose p is not positive, is *not known*. ``attrs["stiff"]`` lists
    the stiff models that p is of. ValueError if the model or all of these have no values.
    """
    there = sorted(set(table["model"]))
    used = [key for key in dict.fromkeys(stiff) if key in there and key != model]
    if model not in there or not used:
        lacking = f"a stiff model ({', '.join(stiff)})" if model in there else model
        raise ValueError(f"there are no values of {lacking}; there are those of {', '.join(there) or 'no model'}")
    keys = ["material", *explanations.places(table)]
    sides = {key: table[table["model"] == key].set_index(keys) for key in (model, *used)}
    columns = {"x": sides[model]["reference"]} | {key: side["value"] for key, side in sides.items()}
    values = pd.concat(columns, axis=1, join="inner").astype(float)
    codes, names = pd.factorize(values.index.get_level_values("material"))
    y = values[model].to_numpy()
    (measured, _), (slope, spread) = (against(y, values[of].to_numpy(), codes) for of in (["x"], used))
    scales = pd.DataFrame({"n": np.bincount(codes), "measured": measured, "slope": slope, "spread": spread}, index=names)
    found = table.drop_duplicates("material").set_index("material")["formula"].map(chemistry).to_frame("chemistry")
    found = found.join(scales).rename_axis("material").reset_index().fillna({"n": 0})
    reasons = {
        "its elements are not known": found["chemistry"] == "",
        "not all models have values": found["n"] == 0,
        "DFT gives no measured scale": ~np.isfinite(found["measured"]),
        "the slope against stiffer potentials is not positive": ~(found["slope"] > 0),
    }
    found["reason"] = np.select([*reasons.values()], [*reasons], "")
    found["status"] = np.where(found["reason"] == "", "ok", "not known")
    found.attrs["stiff"] = used
    return found


@dataclass(frozen=True)
class Calibration:
    """What the tables say of a family and model. ``status``: *predicted*, ŝ = ``factor`` · p; *constant*, ŝ = ``factor``; *not known*."""

    status: str
    reason: str
    factor: float = np.nan
    band: float = np.inf  # q
    error: float = np.nan  # mean |s − ŝ| of chemistries left out
    agreed: float = np.nan  # the largest spread of what calibrates
    guess: float = np.nan  # the median s
    pool: str = ""  # which lent scores
    tested: tuple[float, float] = (0.0, np.inf)  # least and largest slope of those that calibrate
    weights: tuple[float, float] = (1.0, 0.0)  # a and b

    def half_width(self, slope: float) -> float:
        """Return the logarithm of the factor from the scale to either end of its interval, for a slope p."""
        return self.band * (self.weights[0] + self.weights[1] * abs(np.log(slope)) if self.status == "predicted" else 1.0)


def calibrate(found: Mapping[str, pd.DataFrame], family: str, slopes: bool = True) -> Calibration:
    """Calibrate a family on its good materials, and on those of the families of its pool if it needs them; ValueError if unknown.

    Without ``slopes`` the answer is the constant, for one who has no slope.
    """
    return _fit(family, *_lenders(found, family), slopes)


def _lenders(found: Mapping[str, pd.DataFrame], family: str) -> tuple[str, dict[str, pd.DataFrame]]:
    if family not in found:
        raise ValueError(f"nothing is known of a family {family!r}; there are: {', '.join(found) or 'none'}")
    used = ["chemistry", "measured", "slope", "spread"]
    parts = {key: part.loc[part["status"] == "ok", used].astype({"chemistry": object}) for key, part in found.items()}
    if parts[family]["chemistry"].nunique() >= FEWEST:
        return "", {family: parts[family]}
    pool = next((name for name, members in POOLS.items() if family in members), "")
    return pool, {key: parts[key] for key in POOLS.get(pool, ()) if key in parts}


def _fit(family: str, pool: str, parts: Mapping[str, pd.DataFrame], slopes: bool = True) -> Calibration:
    parts = {key: part for key, part in parts.items() if part["chemistry"].nunique() >= FEWEST_OWN}
    if family not in parts:
        return Calibration("not known", "too few chemistries were tested")
    # Of all that calibrate: the largest spread of four materials would refuse nothing.
    agreed = float(np.quantile(np.concatenate([part["spread"] for part in parts.values()]), AGREED, method="higher"))
    parts = {key: part[part["spread"] <= agreed] for key, part in parts.items()}
    predicted = {key: _one_out(part, part["slope"].to_numpy()) for key, part in parts.items()}
    constant = {key: _one_out(part, np.ones(len(part))) for key, part in parts.items()}
    gain = np.concatenate([constant[key][2] - predicted[key][2] for key in parts])
    better = slopes and gain.mean() > CLEARLY * gain.std(ddof=1) / np.sqrt(len(gain))
    fits = predicted if better else constant
    of_tested = np.concatenate([part["slope"] for part in parts.values()])
    far, apart, weights = np.abs(np.log(of_tested)), pd.concat([each for _, each, _ in fits.values()]), (1.0, 0.0)
    if better:
        told = np.isfinite(apart.to_numpy())
        (least, grows), _ = nnls(np.column_stack([np.ones(told.sum()), far[told]]), apart[told])
        weights = max(float(least), LEAST_WEIGHT), float(grows)
    # A chemistry has one score, the largest, also if several families hold it.
    scores = np.sort((apart / (weights[0] + weights[1] * far)).groupby(level=0).max())
    place, factor = int(np.ceil(round(LEVEL * (len(scores) + 1), 9))), fits[family][0]
    known = Calibration("predicted", "", factor, np.inf, float(fits[family][2].mean()), agreed, constant[family][0], pool, weights=weights)
    if place > len(scores) or not np.isfinite(scores[place - 1]):
        reason = "too many measured scales are not positive" if place <= len(scores) else "too few chemistries were tested"
        return replace(known, status="not known", reason=reason)
    known = replace(known, band=float(scores[place - 1]), tested=(of_tested.min(), of_tested.max()))
    reason = "slopes against stiffer potentials tell no more than the median" if slopes else "no stiffer potential was asked"
    return known if better else replace(known, status="constant", reason=reason)


def _one_out(part: pd.DataFrame, slope: np.ndarray) -> tuple[float, pd.Series, np.ndarray]:
    """Return c, and with each chemistry left out in turn |ln(s/ŝ)| of its materials and its mean |s − ŝ|, with ŝ = c times ``slope``."""
    measured, (codes, _) = part["measured"].to_numpy(), pd.factorize(part["chemistry"])
    votes = pd.Series(measured / slope).groupby(codes).median().to_numpy()
    rank, ordered = votes.argsort().argsort(), np.sort(votes)
    # The middle one or two of those that stay: whoever stands behind the one left out moves up by a place.
    middle = [ordered[k + (k >= rank)] for k in ((len(votes) - 2) // 2, (len(votes) - 1) // 2)]
    predicted = np.mean(middle, axis=0)[codes] * slope
    error = np.abs(measured - predicted)
    # A scale that is not positive is no factor away from one that is.
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.where((measured > 0) & (predicted > 0), np.abs(np.log(measured / predicted)), np.inf)
    return float(np.median(votes)), pd.Series(apart, part["chemistry"]), np.bincount(codes, weights=error) / np.bincount(codes)


class Answer(NamedTuple):
    """The scale of a material with its interval, NaN if it is *not known*; ``status`` and ``reason`` as those of the calibration."""

    scale: float
    low: float
    high: float
    status: str
    reason: str


def predict(known: Calibration, slope: float, spread: float) -> Answer:
    """Return what is known of a material, from its p and spread (:func:`against`) with the stiff models of the calibration."""
    reason = known.reason if known.status == "not known" else ""
    if not reason and not slope > 0:
        reason = "the slope against stiffer potentials is not positive"
    if not reason and not spread <= known.agreed:
        reason = f"the stiffer potentials differ by {spread:.0%}; where they were tested, by {known.agreed:.0%} at most"
    if not reason and known.status == "predicted" and not known.tested[0] <= slope <= known.tested[1]:
        reason = f"the slope against stiffer potentials is {slope:.2f}; of tested materials, {known.tested[0]:.2f} to {known.tested[1]:.2f}"
    if reason:
        return Answer(np.nan, np.nan, np.nan, "not known", reason)
    scale = known.factor * (slope if known.status == "predicted" else 1.0)
    half = known.half_width(slope)
    return Answer(scale, scale * np.exp(-half), scale * np.exp(half), known.status, known.reason)


def leave_out(found: Mapping[str, pd.DataFrame], family: str) -> pd.DataFrame:
    """Return the good materials of a family with the :class:`Answer` that is given without their chemistry, in any family.

    Added are ``scale, low, high``, ``answer`` (its status), ``reason``, and ``guess``, the median of the other chemistries.
    """
    pool, parts = _lenders(found, family)
    good = found[family].query("status == 'ok'").drop(columns="reason")
    told = {}
    for chosen, part in good.groupby("chemistry"):
        known = _fit(family, pool, {key: one[one["chemistry"] != chosen] for key, one in parts.items()})
        told |= {line.Index: (*predict(known, line.slope, line.spread), known.guess) for line in part.itertuples()}
    columns = ["scale", "low", "high", "answer", "reason", "guess"]
    return good.join(pd.DataFrame.from_dict(told, orient="index", columns=columns)).reset_index(drop=True)


def summarise(left: pd.DataFrame) -> pd.DataFrame:
    """Return one row per ``family`` and ``model`` of :func:`leave_out`, with these columns.

    ``materials, chemistries``; of those with an answer ``answered`` (%), ``error`` and ``error_median`` (mean |s − ŝ| of the answer and of
    the guess), ``coverage`` (% of chemistries all of whose materials lie in the interval), ``width`` (median); ``verdict``, the commonest.
    """
    records = []
    for (family, model), part in left.groupby(["family", "model"], sort=False):
        known = part[part["answer"] != "not known"]
        inside = known["measured"].between(known["low"], known["high"]).groupby(known["chemistry"]).all()
        line = {"family": family, "model": model, "materials": len(part), "chemistries": part["chemistry"].nunique()}
        line |= {"answered": 100 * len(known) / len(part), "coverage": 100 * inside.mean()}
        line |= {name: (known["measured"] - known[of]).abs().mean() for name, of in (("error", "scale"), ("error_median", "guess"))}
        line |= {"width": (known["high"] - known["low"]).median()}
        records.append(line | {"verdict": (part if known.empty else known)["answer"].mode().iloc[0]})
    return pd.DataFrame(records)


def nearest(found: Mapping[str, pd.DataFrame], family: str, elements: Collection[str], n: int = 5) -> pd.DataFrame:
    """Return the n tested materials whose elements are nearest, with their measured scales and the ``distance``, the nearest first.

    It is the mean distance of an element to the nearest of the other set, on Pettifor's chemical scale (Solid State Commun. 51, 31
    (1984)), averaged over both sets. ValueError if the family or an element is unknown.
    """
    _lenders(found, family)  # refuses a family that is unknown
    if not elements or (wrong := [symbol for symbol in elements if not Element.is_valid_symbol(symbol)]):
        raise ValueError(f"elements are wanted, such as Si, not {', '.join(wrong) if elements else 'none'}")

    def apart(other: str) -> float:
        first, second = (np.array([Element(symbol).mendeleev_no for symbol in of]) for of in (list(elements), other.split("-")))
        table = np.abs(first[:, None] - second)
        return float(table.min(axis=0).mean() + table.min(axis=1).mean()) / 2

    part = found[family].query("chemistry != '' and measured == measured")
    part = part.assign(distance=part["chemistry"].map(apart)).sort_values("distance", kind="stable")
    return part[["material", "chemistry", "distance", "measured"]].head(n)
