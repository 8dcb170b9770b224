"""Is it softening, or does it only look so? What is left of 1 − s after each other explanation.

Every benchmark ends in a softening scale s, the slope of predictions on DFT. A slope below one has other causes than a flat energy
surface, and this module sets them side by side for all families of properties:

regression to the mean
    Shrinkage alone makes a calibrated predictor's slope R² (:mod:`helpers.softening`).
geometry
    A model-relaxed value holds the error of the energy surface *and* what re-optimisation adds. Where a table has the same
    quantity at the DFT geometry, the two can be told apart.
selection
    Systems for which the reference is another calculation than the one that the model learned (+U), or for which the number is no
    well-defined property (unstable crystals, magnetic elements).
functional
    PhononDB is PBEsol, the models learned PBE. What that does is known for a few compounds only, so it stands beside the others
    (:func:`one_at_a_time`, :func:`typical`), and no slope of that set is split.

What no cause explains has bounds rather than a value: 1 − 1/s' if all scatter is what the model cannot know (a calibrated, shrunken
prediction), 1 − s if all of it is noise (:func:`slopes`). A soft model with noise looks like a calibrated one.

Moments are taken about zero, as everywhere in :mod:`helpers.softening`. That is right also for quantities of one sign: a
calibrated predictor obeys E[xy] = E[y²] whatever its mean, so that s' = 1 and s = R² with *this* R². Pearson's R², about the
means, tells how well a model ranks the systems, and is no product of these slopes.

Tables of :func:`rows` have one row per value (for forces: per component) with ``model``, ``material`` (what is resampled), ``case``,
``formula`` (its elements; the material's name if the table has none), ``value``, ``reference``; ``static``, the value at the DFT geometry
(NaN if there is none); ``kept``, whether the row belongs to the selection; ``functional_ratio``, PBE over the reference's functional for
that material (NaN if unknown). A ``part`` is the rows of one model, at least two. ``n_resamples`` is that of
:func:`helpers.softening.bootstrap_over`: materials are resampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from helpers import benchmarks, potentials, results, softening
from helpers.benchmarks import Family

_KEYS = ["model", "material", "case"]
COLUMNS = [*_KEYS, "formula", "value", "reference", "static", "kept", "functional_ratio"]
"""Of :func:`rows`; further ones tell the values of a case apart."""

FAMILIES: dict[str, Family] = benchmarks.families("", "control")


def rows(family: Family, table: pd.DataFrame | None = None, *, as_energy: bool = False) -> pd.DataFrame:
    """Return the values of a family for every model that has a table, with the columns of the module's text.

    Failed rows and rows that hold no number are left out; ``attrs["n_failed"]`` counts them per model. The benchmark's table is by default
    what is on disk. ``as_energy`` is on the footing of quantities that go with the energy: ω², with its sign, in place of ω.
    """
    if table is None:
        if not results.models(family.benchmark):
            return pd.DataFrame(columns=COLUMNS)
        table = results.read(family.benchmark, potentials.at_home(results.models(family.benchmark)))
    found = family.read(table)
    for name, default in (("formula", found["material"]), ("static", np.nan), ("kept", True), ("functional_ratio", np.nan)):
        if name not in found:
            found = found.assign(**{name: default})
    if as_energy:
        numbers = ["value", "reference", "static", "functional_ratio"]
        found = found.assign(**{name: np.sign(found[name]) * found[name].abs() ** (1 / family.power) for name in numbers})
    good = (found["status"] == "ok") & np.isfinite(found[["value", "reference"]].astype(float)).all(axis=1)
    # Components of one atom stay apart when two models are compared.
    detail = [name for name in benchmarks.module(family.benchmark).KEYS if name in found and found[name].notna().any()]
    kept = found.loc[good, [*COLUMNS, *detail]].reset_index(drop=True)
    kept[_KEYS] = kept[_KEYS].astype(str)
    kept.attrs["n_failed"] = {str(model): int(count) for model, count in (~good).groupby(found["model"].astype(str)).sum().items()}
    return kept


def places(table: pd.DataFrame) -> list[str]:
    """Return the columns of :func:`rows` that tell one model's values apart."""
    return ["case", *[name for name in table if name not in COLUMNS]]


def read(families: Mapping[str, Family] = FAMILIES, guests: Collection[str] = ()) -> dict[str, pd.DataFrame]:
    """Return :func:`rows` of each family that has any, by key."""
    names = {family.benchmark for family in families.values()}
    tables = {name: results.read(name, potentials.at_home(results.models(name), guests)) for name in names if results.models(name)}
    found = {key: rows(family, tables[family.benchmark]) for key, family in families.items() if family.benchmark in tables}
    return {key: part for key, part in found.items() if len(part)}


# ---- Both slopes ----------------------------------------------------------------------------------


def _sums(part: pd.DataFrame, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return Σxx, Σyy, Σxy of each pair (x, y) for each material, shape (n_materials, 3 n_pairs)."""
    codes, names = pd.factorize(part["material"])
    terms = [term for x, y in pairs for term in (x * x, y * y, x * y)]
    return np.stack([np.bincount(codes, weights=term, minlength=len(names)) for term in terms], axis=1)


def _numbers(part: pd.DataFrame, *names: str) -> list[np.ndarray]:
    return [part[name].to_numpy(dtype=float) for name in names]


def _pair(part: pd.DataFrame, value: str = "value") -> tuple[np.ndarray, np.ndarray]:
    return part["reference"].to_numpy(dtype=float), part[value].to_numpy(dtype=float)


def _need(part: pd.DataFrame) -> None:
    if len(part) < 2:
        raise ValueError(f"a slope needs at least two values, got {len(part)}")


def slopes(part: pd.DataFrame, n_resamples: int = 2000) -> dict[str, float]:
    """Return both slopes of the values of one model, or of a simulation.

    They are ``n``, ``n_materials``; with ``_low`` and ``_high``: ``slope`` (s), ``inverse_slope`` (s'), ``inverse`` (1/s') and ``r2`` = s
    s', all about the origin; ``pearson_r2``, about the means.
    """
    _need(part)
    x, y = _pair(part)
    sums = _sums(part, [(x, y)])
    found: dict[str, float] = {"n": len(part), "n_materials": len(sums)}
    statistics = {
        "slope": lambda s: s[..., 2] / s[..., 0],
        "inverse_slope": lambda s: s[..., 2] / s[..., 1],
        "inverse": lambda s: s[..., 1] / s[..., 2],
        "r2": lambda s: s[..., 2] ** 2 / (s[..., 0] * s[..., 1]),
    }
    return found | softening.estimates(sums, statistics, n_resamples) | {"pearson_r2": softening.r_squared(x, y, intercept=True)}


def overview(families: Mapping[str, pd.DataFrame], n_resamples: int = 2000) -> pd.DataFrame:
    """Return :func:`slopes` of each family and model that has at least two values, one row each."""
    records = []
    for key, table in families.items():
        for model, part in table.groupby("model", sort=True):
            if len(part) >= 2:
                failed = table.attrs.get("n_failed", {}).get(model, 0)
                records.append({"family": key, "model": model, "n_failed": failed, **slopes(part, n_resamples)})
    return pd.DataFrame(records)


# ---- What is left ---------------------------------------------------------------------------------

EXPLANATIONS = ("selection", "geometry", "regression", "left")
"""In the order in which they are taken away; ``left`` is what none of them explains."""


def _stages(part: pd.DataFrame, family: Family) -> tuple[np.ndarray, list[str]]:
    """Return the sums of all stages, and the explanations that lead from one to the next."""
    # The stages are paired: where a geometry is compared, all of them hold the cases that have both.
    has_static = bool(family.geometry) and part["static"].notna().any()
    part = part[part["static"].notna()] if has_static else part
    x, y, static = _numbers(part, "reference", "value", "static")
    kept = part["kept"].to_numpy(dtype=bool)
    used, pairs = [], [(x, y)]
    if family.selection and not kept.all() and kept.any():
        used.append("selection")
        pairs.append((x * kept, y * kept))
    if has_static:
        used.append("geometry")
        weight = kept if "selection" in used else 1.0
        pairs.append((x * weight, static * weight))
    return _sums(part, pairs), used


def _parts(sums: np.ndarray, used: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the parts of 1 − s from totals of shape (..., k)."""
    xx, yy, xy = (sums[..., i::3] for i in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_slopes = np.log(xy / xx)
        total = log_slopes[..., 0]
        logs = {name: log_slopes[..., i] - log_slopes[..., i + 1] for i, name in enumerate(used)}
        logs["regression"] = np.log(xy[..., -1] ** 2 / (xx[..., -1] * yy[..., -1]))
        logs["left"] = np.log(yy[..., -1] / xy[..., -1])
        # The logarithmic mean of 1 and s turns logarithms into parts of 1 − s.
        mean = np.where(total == 0, 1.0, np.expm1(total) / total)
    return {name: -mean * value for name, value in logs.items()} | {"total": -np.expm1(total)}


def explain(part: pd.DataFrame, family: Family, n_resamples: int = 2000) -> pd.DataFrame:
    """Split 1 − s of one model into the explanations that apply, and what is left.

    They are taken away one after the other, in the order of :data:`EXPLANATIONS`: the slope of all systems is a product of ratios,

        s = (s_all / s_selected) · (s_selected / s_static) · R² · 1/s',

    with s' and R² of the last stage. ``regression`` is what scatter accounts for if the prediction is calibrated; if the scatter is noise,
    it belongs to what is left. The logarithms of the factors are carried over to 1 − s with the logarithmic mean (1 − s) / (−ln s), so that
    the parts add up exactly (additive logarithmic-mean decomposition: Ang, Energy Policy 33, 867 (2005)). Another order would give other
    parts: explanations overlap. See :func:`one_at_a_time`.

    ``explanation`` (``total``, those that apply, ``left``) with ``part``, ``part_low``, ``part_high``: parts of 1 − s. A negative part
    works the other way: it hides softening. All parts of a resample come from the same materials. ValueError if there are fewer than two
    values, or the slope is not positive.
    """
    _need(part)
    sums, used = _stages(part, family)
    if (totals := sums.sum(axis=0))[2] <= 0:
        raise ValueError(f"a slope of {totals[2] / totals[0]:.3g} is no product that could be split")
    names = ["total", *[name for name in EXPLANATIONS if name in (*used, "regression", "left")]]
    found = softening.estimates(sums, {name: lambda s, name=name: _parts(s, used)[name] for name in names}, n_resamples)
    ends = {"part": "", "part_low": "_low", "part_high": "_high"}
    return pd.DataFrame([{"explanation": name} | {part: found[name + end] for part, end in ends.items()} for name in names])


def explain_all(families: Mapping[str, pd.DataFrame], known: Mapping[str, Family] = FAMILIES, n_resamples: int = 2000) -> pd.DataFrame:
    """Return :func:`explain` of each family and model, stacked, with the columns ``family`` and ``model`` in front.

    Models with fewer than two values of a family, or without a positive slope, have no rows, nor has a family whose reference is
    another functional.
    """
    records = []
    for key, table in families.items():
        for model, part in () if known[key].functional else table.groupby("model", sort=True):
            if len(part) >= 2 and (part["value"].astype(float) * part["reference"].astype(float)).sum() > 0:
                records.append(explain(part, known[key], n_resamples).assign(family=key, model=model))
    found = pd.concat(records, ignore_index=True)
    return found[["family", "model", *[name for name in found if name not in ("family", "model")]]]


def one_at_a_time(part: pd.DataFrame, family: Family) -> pd.DataFrame:
    """Return what s becomes when a single explanation is taken away, each from the full set of systems.

    Columns ``explanation``, ``n``, ``before`` and ``after``: the slope on the systems that are compared, and the slope without that cause.
    ``geometry`` compares the systems that have both geometries, ``selection`` all with the selected ones, ``regression`` s with
    1/s', ``functional`` divides by the geometric mean of PBE over the reference's functional (``n`` counts what it comes from).
    """
    _need(part)
    before = softening.softening_scale(*_pair(part))
    found = []
    kept = part[part["kept"].astype(bool)]
    if family.selection and 2 <= len(kept) < len(part):
        found.append(("selection", len(kept), before, softening.softening_scale(*_pair(kept))))
    both = part[part["static"].notna()]
    if family.geometry and len(both) >= 2:
        moved, fixed = (softening.softening_scale(*_pair(both, name)) for name in ("value", "static"))
        found.append(("geometry", len(both), moved, fixed))
    ratio = part["functional_ratio"].dropna().astype(float)
    if len(ratio):
        found.append(("functional", len(ratio), before, before / float(np.exp(np.log(ratio).mean()))))
    found.append(("regression", len(part), before, 1 / softening.inverse_slope(*_pair(part))))
    return pd.DataFrame(found, columns=["explanation", "n", "before", "after"])


# ---- The same network, other data -----------------------------------------------------------------


def pair(table: pd.DataFrame, first: str, second: str, n_resamples: int = 2000) -> dict[str, float] | None:
    """Compare two models on the cases of :func:`rows` that both have, with the same resamples; None if these are fewer than two.

    They are ``n``, ``n_materials``, and with intervals ``slope_first``, ``slope_second``, ``slope_gain`` (second − first), and the same of
    ``inverse`` = 1/s'.
    """
    keys = ["material", *places(table)]
    sides = [table[table["model"] == model][[*keys, "value", "reference"]] for model in (first, second)]
    both = sides[0].merge(sides[1].drop(columns="reference"), on=keys, suffixes=("", "_second"), validate="one_to_one")
    if len(both) < 2:
        return None
    x, y, z = _numbers(both, "reference", "value", "value_second")
    sums = _sums(both, [(x, y), (x, z)])
    statistics = {}
    for name, top, bottom in (("slope", 2, 0), ("inverse", 1, 2)):
        first_of, second_of = (lambda s, i=top + at, j=bottom + at: s[..., i] / s[..., j] for at in (0, 3))
        statistics |= {f"{name}_first": first_of, f"{name}_second": second_of}
        statistics[f"{name}_gain"] = lambda s, one=first_of, other=second_of: other(s) - one(s)
    return {"n": len(both), "n_materials": len(sums), **softening.estimates(sums, statistics, n_resamples)}


def pairs(families: Mapping[str, pd.DataFrame], first: str, second: str, n_resamples: int = 2000) -> pd.DataFrame:
    """Return :func:`pair` for each family in which both models have values."""
    found = {key: pair(table, first, second, n_resamples) for key, table in families.items()}
    return pd.DataFrame([{"family": key, "first": first, "second": second, **entry} for key, entry in found.items() if entry])


def shared(table: pd.DataFrame, models: Sequence[str], n_resamples: int = 2000) -> dict[str, float]:
    """Compare how soft several models are with how much they differ, on the cases of :func:`rows` that all of them have.

    For models that learned from the same frames: what none of them avoids is not a network's choice. They are ``n``, ``n_materials``, and
    with intervals ``avoided_by_none``, 1 − s of the least soft model; ``differ``, the largest s minus the smallest; and ``beyond``, the
    former minus the latter. ValueError if there are fewer than two models or cases, or a model has no values there.
    """
    if missing := [model for model in models if model not in set(table["model"])]:
        raise ValueError(f"no values of {', '.join(missing)}; there are those of {', '.join(sorted(set(table['model']))) or 'no model'}")
    if len(set(models)) < 2:
        raise ValueError(f"at least two models are compared, not {', '.join(models) or 'none'}")
    keys = ["material", *places(table)]
    sides = [table[table["model"] == model].set_index(keys)[["reference", "value"]] for model in models]
    columns = {"reference": sides[0]["reference"]} | {f"value_{model}": side["value"] for model, side in zip(models, sides, strict=True)}
    both = pd.concat(columns, axis=1, join="inner").reset_index()
    _need(both)
    x, *values = _numbers(both, *columns)
    sums = _sums(both, [(x, y) for y in values])

    def slopes_of(totals: np.ndarray) -> np.ndarray:
        return totals[..., 2::3] / totals[..., ::3]

    statistics = {
        "avoided_by_none": lambda s: 1 - slopes_of(s).max(axis=-1),
        "differ": lambda s: np.ptp(slopes_of(s), axis=-1),
        "beyond": lambda s: 1 - 2 * slopes_of(s).max(axis=-1) + slopes_of(s).min(axis=-1),
    }
    return {"n": len(both), "n_materials": len(sums), **softening.estimates(sums, statistics, n_resamples)}


# ---- Where on the axis ----------------------------------------------------------------------------


def with_sizes(forces: pd.DataFrame) -> pd.DataFrame:
    """Add ``size_reference`` and ``size_value``, the length of an atom's force vector in DFT and in the model, to rows of forces."""
    atoms = forces.groupby(["model", "case", "atom"], sort=False)
    squares = forces[["reference", "value"]].astype(float) ** 2
    codes = atoms.ngroup().to_numpy()
    return forces.assign(**{f"size_{name}": np.sqrt(np.bincount(codes, weights=squares[name]))[codes] for name in squares})


def binned(part: pd.DataFrame, edges: Sequence[float], on: str, min_values: int = 300, n_resamples: int = 2000) -> pd.DataFrame:
    """Return the ratio of model to DFT in bins of size, chosen by DFT or by the model.

    Which axis the bins lie on decides what is held fixed, and with it what scatter does:

    * bins of the **reference**: Σxy/Σxx, the slope of prediction on DFT. One for a model with unbiased noise, R² for a calibrated one.
    * bins of the **prediction**: Σyy/Σxy, the inverse of the slope of DFT on prediction. One for a calibrated model.

    Both are one for a perfect model and below one for a soft one.

    One row per bin: ``low``, ``high``, ``size`` (root mean square of what the bins are of),
    ``n``, ``n_materials``, ``ratio`` with its interval.

    ``part``: from :func:`with_sizes`.
    ``edges``: of the bins.
    ``on`` ({"reference", "value"}): whose size makes the bins.
    ``min_values``: A bin with fewer values, or of a single material, is left out.
    """
    if on not in ("reference", "value"):
        raise ValueError(f"bins are made on 'reference' or 'value', not {on!r}")
    size = part[f"size_{on}"].to_numpy(dtype=float)
    found = []
    for low, high in itertools.pairwise(edges):
        inside = part[(size >= low) & (size < high)]
        if len(inside) < min_values or inside["material"].nunique() < 2:
            continue
        sums = _sums(inside, [_pair(inside)])
        top, bottom = (2, 0) if on == "reference" else (1, 2)
        ratio = softening.estimates(sums, {"ratio": lambda s, i=top, j=bottom: s[..., i] / s[..., j]}, n_resamples)
        mean = float(np.sqrt((inside[f"size_{on}"].astype(float) ** 2).mean()))
        found.append({"low": low, "high": high, "size": mean, "n": len(inside), "n_materials": len(sums), **ratio})
    return pd.DataFrame(found)


# ---- Errors in the label --------------------------------------------------------------------------


def reliability(rms: float, noise: float) -> float:
    """Return λ = 1 − σ²/⟨x²⟩, the share of the reference's mean square that is no noise; ``rms``, of the reference, includes the noise σ.

    Noise in the reference that is independent of everything multiplies s by λ and leaves s' alone, because there the
    reference is the regressand (Fuller, Measurement Error Models (Wiley, 1987), sec. 1.1).
    """
    return 1 - (noise / rms) ** 2


def label_noise(families: Mapping[str, pd.DataFrame], noise: Sequence[float], model: str) -> pd.DataFrame:
    """Return how much noise of the DFT forces, of these standard deviations σ (eV/Å), could matter for a model's s, by family of forces.

    Columns ``rms`` (eV/Å), ``slope``; for each σ, ``lost_σ`` = (1 − λ), the fraction of s that it costs; ``needed``, the
    noise (eV/Å) that would bring a perfect model down to s (NaN for s ≥ 1).
    """
    found = []
    for key, table in families.items():
        part = table[table["model"] == model]
        if key not in FAMILIES or FAMILIES[key].quantity != "force" or len(part) < 2:
            continue
        x, y = _pair(part)
        rms, slope = float(np.sqrt(np.mean(x * x))), softening.softening_scale(x, y)
        lost = {f"lost_{sigma:g}": 1 - reliability(rms, sigma) for sigma in noise}
        found.append({"family": key, "rms": rms, "slope": slope, **lost, "needed": rms * np.sqrt(1 - slope) if slope < 1 else np.nan})
    return pd.DataFrame(found)


# ---- Simulated models, whose defects are known ----------------------------------------------------

ARCHETYPES = ("noisy", "calibrated", "soft", "soft and noisy")


def simulate(kind: str, r2: float = 0.8, n: int = 4000, mean: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Draw truth and prediction of a made-up model.

    The truth x is normal with the given mean and standard deviation 1. The models are

    ``noisy``
        y = x + e with independent noise: nothing is wrong with the slope.
    ``calibrated``
        x = y + e: the model predicts the mean of x given what it knows; the noise is in what it cannot know.
    ``soft``
        y = R² x, no noise at all: the same s as ``calibrated``, for another reason.
    ``soft and noisy``
        y = R² x + e, with so much noise that all second moments are those of ``calibrated`` (for mean 0: the same distribution).

    ``model``, ``material``, ``case``, ``value``, ``reference``, and the sizes |x| and |y| that :func:`binned` wants.

    ``r2``: squared correlation of the models with noise, about the mean; the slope of the soft one.
    ``n``: number of values; each is a material of its own.
    ``mean``: of the truth, in standard deviations. Forces have 0; quantities of one sign do not.
    """
    if kind not in ARCHETYPES:
        raise ValueError(f"there are {', '.join(ARCHETYPES)}, but no model {kind!r}")
    if not 0 < r2 < 1:
        raise ValueError(f"R² lies between 0 and 1, not at {r2}")
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, n))
    if kind == "calibrated":
        y = mean + np.sqrt(r2) * first
        x = y + np.sqrt(1 - r2) * second
    else:
        x = mean + first
        factor, noise = {"noisy": (1.0, 1 / r2 - 1), "soft": (r2, 0.0), "soft and noisy": (r2, r2 * (1 - r2))}[kind]
        y = factor * x + np.sqrt(noise) * second
    names = [str(i) for i in range(n)]
    found = pd.DataFrame({"model": kind, "material": names, "case": names, "value": y, "reference": x})
    return found.assign(size_reference=np.abs(x), size_value=np.abs(y))


# ---- The fix --------------------------------------------------------------------------------------


def corrections(forces: pd.DataFrame) -> pd.DataFrame:
    """Correct each material with the factor from one of its frames, by both methods, for every choice of the frame.

    Forces are rows of :mod:`helpers.benchmarks.off_equilibrium`; materials with a single frame are left out. The result is that of
    :func:`helpers.softening.one_label_corrections`, with ``r2`` of the material (all frames), which says how much scatter a single factor
    cannot touch.
    """
    frames = forces.groupby(["model", "set", "material"], observed=True)["case"].transform("nunique")
    usable = forces[frames > 1]
    if usable.empty:
        raise ValueError("no material has two frames: nothing is left to test a correction on")
    found = pd.concat([softening.one_label_corrections(usable, method) for method in ("inverse_slope", "least_squares")])
    fits = softening.per_material(usable)[["model", "set", "material", "r2"]]
    found = found.merge(fits, on=["model", "set", "material"], how="left")
    return found.assign(ratio=found["mae_after"] / found["mae_before"])


def typical(part: pd.DataFrame, family: Family, n_resamples: int = 2000) -> pd.DataFrame:
    """Return the geometric mean of model over DFT, each value counting once, and what it becomes without each cause.

    A mean of ratios weighs all systems alike, a slope weighs them with x². So it answers whether the *level* is too low. Scatter acts on
    it in another way than on slopes: to second order in the relative scatter v, unbiased noise lowers the geometric mean by v/2 and
    leaves the arithmetic one; in a calibrated prediction the geometric mean rises by v/2, and the arithmetic one by v.

    Pairs that are not both positive have no ratio and are left out.

    ``explanation`` (``none``; ``arithmetic``, the other mean of the same ratios; ``selection`` and ``geometry``, on the systems
    concerned; ``same systems``, the value that the latter is to be compared with; ``functional``, all systems over the geometric
    mean of PBE over the reference's functional), ``n``, and ``ratio`` with its interval.
    """
    positive = part[(part["value"] > 0) & (part["reference"] > 0)]
    _need(positive)
    log_ratio = {name: np.log(positive[name].where(positive[name] > 0) / positive["reference"]) for name in ("value", "static")}
    effect = np.log(positive["functional_ratio"].astype(float))
    chosen = {"none": log_ratio["value"]}
    if family.selection and not positive["kept"].all():
        chosen["selection"] = log_ratio["value"].where(positive["kept"].astype(bool))
    if family.geometry:
        chosen["same systems"] = log_ratio["value"].where(log_ratio["static"].notna())
        chosen["geometry"] = log_ratio["static"]
    codes, names = pd.factorize(positive["material"])

    def sums(values: pd.Series) -> np.ndarray:
        known = values.notna().to_numpy()
        terms = (known.astype(float), np.where(known, values.to_numpy(dtype=float), 0.0))
        return np.stack([np.bincount(codes, weights=term, minlength=len(names)) for term in terms], axis=1)

    found = []
    for name, values in [("none", chosen.pop("none")), ("arithmetic", np.exp(log_ratio["value"])), *chosen.items()]:
        back = np.exp if name != "arithmetic" else np.asarray
        ratio = softening.estimates(sums(values), {"ratio": lambda s, back=back: back(s[..., 1] / s[..., 0])}, n_resamples)
        found.append({"explanation": name, "n": int(values.notna().sum()), **ratio})
    if effect.notna().any():
        both = np.hstack([sums(log_ratio["value"]), sums(effect)])
        ratio = softening.estimates(both, {"ratio": lambda s: np.exp(s[..., 1] / s[..., 0] - s[..., 3] / s[..., 2])}, n_resamples)
        found.append({"explanation": "functional", "n": int(effect.notna().sum()), **ratio})
    return pd.DataFrame(found)
