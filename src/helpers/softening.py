"""The statistics of softening: how much smaller than DFT a model's forces are, and how sure that is.

Throughout, x is the reference (DFT) and y the prediction (model). A model is *soft* when y is smaller than x.

**Which line?** Two least-squares lines go through one cloud of points, and they differ whenever there is scatter:

* y on x, slope s = Σxy / Σx²: the *softening scale* of Deng et al., npj Comput. Mater. 11, 9 (2025);
* x on y, inverse slope s' = Σxy / Σy²: the factor that the model's forces should be multiplied by.

Their product is R² (both through the origin, or both with an intercept). A model trained by least squares
predicts the mean of x among all structures that look alike to it. For such a *calibrated* predictor
s' = 1 and s = R² < 1: the slope is below one without any defect of the energy surface (regression to the
mean; Galton, J. Anthropol. Inst. 15, 246 (1886)). So s alone does not prove softening; s' above one does.
:func:`helpers.explanations.explain` splits 1 − s accordingly.

**Why through the origin?** Forces sum to zero over the atoms of a cell, for each direction and each frame, in the
model and in DFT. So the means of x and y vanish, and the line with a free intercept goes through the
origin by itself: both slopes agree. For scalar properties the origin is imposed: the correction E → c E
that a slope stands for has no constant in it.

Tables are the tidy tables of :mod:`helpers.benchmarks`: for forces, one row per force component. ``by`` names the columns that make a
group, ``n_resamples`` and ``seed`` are those of :func:`bootstrap_over`. ``reference`` and ``predicted`` are those of
:func:`softening_scale`, with its errors; a constant prediction has no inverse slope, and no R².
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

# Resolution of the correction factor at which the corrected MAE of a bootstrap sample is tabulated.
_N_FACTORS = 65

# Elements of the largest intermediate array in one_label_corrections (64 MB of float64).
_MAX_ELEMENTS = 8_000_000

# Below this fraction of the raw sum of squares a centred one is rounding error, not spread.
_ROUNDING = 1e-12


# ---- One cloud of points --------------------------------------------------------------------------


def _pair(reference: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as flat float arrays, of frames those that have a prediction, after refusing what has no slope."""
    x, y = _values(reference), _values(predicted)
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        several, left, right = False, [x], [y]
    else:
        several, left, right = True, list(x), list(y)
    if len(left) != len(right):
        raise ValueError(f"reference has {len(left)} frames, but the prediction has {len(right)}")
    failed = [number for number, frame in enumerate(right) if several and frame.size and np.isnan(frame).all()]
    kept = sorted(set(range(len(left))) - set(failed))
    for number in kept:
        where, one, other = f"frame {number}: " * several, left[number], right[number]
        if one.shape != other.shape:
            raise ValueError(f"{where}reference has shape {one.shape}, but the prediction has shape {other.shape}")
        for name, array in (("reference", one), ("prediction", other)):
            bad = np.count_nonzero(~np.isfinite(array))
            if bad:
                raise ValueError(f"{where}{bad} of {array.size} values of the {name} are not finite numbers")
    if not kept:
        raise ValueError(f"none of {len(left)} frames has a prediction")
    if failed:
        named = ", ".join(map(str, failed[:10])) + ", …" * (len(failed) > 10)
        warnings.warn(f"{len(failed)} of {len(left)} frames have no prediction and are left out: {named}", stacklevel=3)
    x, y = (np.concatenate([side[number].ravel() for number in kept]) for side in (left, right))
    if x.size < 2:
        raise ValueError(f"a slope needs at least two values, got {x.size}")
    if x.min() == x.max():
        raise ValueError(f"the reference is constant ({x[0]:g}): it determines no slope")
    return x, y


def _values(given: Any) -> np.ndarray | list[np.ndarray]:
    """Return plain values as an array, and those of several frames, of whatever sizes, as a list of arrays."""
    given = given if hasattr(given, "__len__") else list(given)
    for frame in given if isinstance(given, (list, tuple)) else [given]:
        if np.ma.is_masked(frame):
            raise ValueError(
                f"{np.ma.count_masked(frame)} of {np.size(frame)} values are masked: leave them out of reference and prediction"
            )
    try:
        array = _real(given)
    except (TypeError, ValueError):  # frames of different sizes
        return [_real(frame) for frame in given]
    return list(array) if array.ndim > 2 else array


def _real(given: Any) -> np.ndarray:
    array = np.asarray(given)
    first = array.flat[0] if array.size else 0.0
    if array.dtype.kind == "c" or hasattr(first, "forces"):
        raise ValueError(f"real numbers are wanted, not {type(first).__name__} (of predictions give [one.forces for one in predictions])")
    return array.astype(float)


def _moments(x: np.ndarray, y: np.ndarray, intercept: bool) -> tuple[float, float, float]:
    """Return Σx², Σy², Σxy, about the means if there is an intercept."""
    if intercept:
        x, y = x - x.mean(), y - y.mean()
    return float(x @ x), float(y @ y), float(x @ y)


def softening_scale(reference: ArrayLike, predicted: ArrayLike, intercept: bool = False) -> float:
    """Return the softening scale s, the least-squares slope of the prediction on the reference.

    s = Σxy / Σx²; with an intercept the sums are taken about the means. s < 1 is softening *or* shrinkage (see the module's text).

    Dimensionless. ValueError if shapes differ, there are fewer than two values, one is masked or not finite, or the reference is constant.
    A frame is named.

    ``reference``, ``predicted``: DFT and model forces of one material (all 3N components of all its frames, eV/Å), or any other pair of
        quantities in equal units. Frames may have different numbers of atoms. A frame whose prediction failed (all NaN) is left out, with a
        warning.
    ``intercept``: fit y = a + s x instead of y = s x. The default has no intercept, because no force must stay no force. For forces, which
        sum to zero in each frame, both give the same s.

    >>> round(softening_scale([-2.0, 1.0, 1.0], [-1.6, 0.8, 0.8]), 6)
    0.8

    References
    ----------
    Deng et al., npj Comput. Mater. 11, 9 (2025), Fig. 5.
    """
    xx, _, xy = _moments(*_pair(reference, predicted), intercept)
    return xy / xx


def inverse_slope(reference: ArrayLike, predicted: ArrayLike, intercept: bool = False) -> float:
    """Return s' = Σxy / Σy², the least-squares slope of the *reference* on the *prediction*.

    It is 1 for a calibrated predictor, whatever its scatter, and above 1 for a soft one; it is also the factor c that
    minimises Σ(c y − x)².
    """
    _, yy, xy = _moments(*_predicted_varies(*_pair(reference, predicted)), intercept)
    return xy / yy


def _predicted_varies(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if y.min() == y.max():
        raise ValueError(f"the prediction is constant ({y[0]:g}): the slope of the reference on it does not exist")
    return x, y


def r_squared(reference: ArrayLike, predicted: ArrayLike, intercept: bool = False) -> float:
    """Return R² = (Σxy)² / (Σx² Σy²), which is the product of the two slopes.

    With an intercept it is the square of Pearson's correlation. Without, moments are taken about zero, so that for
    quantities of one sign it is close to one whatever the model: for those read it with ``intercept=True``.
    """
    xx, yy, xy = _moments(*_predicted_varies(*_pair(reference, predicted)), intercept)
    return xy * xy / (xx * yy)


@dataclass(frozen=True)
class Fit:
    """What a cloud of (reference, prediction) points says."""

    n: int  # number of values (for forces: components)
    slope: float  # softening scale s, prediction on reference
    intercept: float  # of that line, in units of the values; 0 if it was held there
    inverse_slope: float  # s', reference on prediction
    r2: float  # slope × inverse_slope
    mae: float  # mean absolute error, in units of the values
    # MAE after the prediction has been turned onto the diagonal, mean of |(y − intercept) / s − x| (Deng et al. 2025, Fig. 5a, 6b).
    cmae: float
    rmse: float  # root mean square error


def fit(reference: ArrayLike, predicted: ArrayLike, intercept: bool = False) -> Fit:
    """Return slopes, R² and errors of a cloud of points; ValueError if the slope is exactly zero: then there is no corrected MAE."""
    x, y = _predicted_varies(*_pair(reference, predicted))
    xx, yy, xy = _moments(x, y, intercept)
    if xy == 0.0:
        raise ValueError("prediction and reference are uncorrelated: a slope of zero cannot be corrected for")
    slope = xy / xx
    offset = float(y.mean() - slope * x.mean()) if intercept else 0.0
    error = y - x
    return Fit(
        n=x.size,
        slope=slope,
        intercept=offset,
        inverse_slope=xy / yy,
        r2=xy * xy / (xx * yy),
        mae=float(np.abs(error).mean()),
        cmae=float(np.abs((y - offset) / slope - x).mean()),
        rmse=float(np.sqrt(error @ error / x.size)),
    )


def robust_slope(reference: ArrayLike, predicted: ArrayLike) -> float:
    """Return the slope through the origin that minimises Σ|y − s x| (least absolute deviations).

    The minimiser is the median of the ratios y/x, each weighted with |x|: exact, O(n log n), no parameter (Laplace's méthode de situation;
    Birkes and Dodge, Alternative Methods of Regression (Wiley, 1993), ch. 4). Half of the weight can be wrong before it breaks, against a
    single wrong value for least squares. It guards against wild predictions; x is assumed sound. Theil–Sen and Siegel slopes need all
    O(n²) pairs and a free intercept.
    """
    x, y = _pair(reference, predicted)
    used = x != 0.0
    x, y = x[used], y[used]
    ratio = y / x
    order = np.argsort(ratio)
    weight = np.cumsum(np.abs(x)[order])
    middle = weight[-1] / 2
    at = int(np.searchsorted(weight, middle))
    # A weight that falls exactly on the half leaves an interval of minimisers: take its middle, as a median does.
    if weight[at] == middle:
        return float(ratio[order[at : at + 2]].mean())
    return float(ratio[order[at]])


# ---- Intervals ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


def bootstrap_over(
    groups: ArrayLike, statistic: Callable[[np.ndarray], np.ndarray], n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return a confidence interval from resampling whole groups (materials), not single values.

    The components of one material's forces are alike, so they are no independent evidence; materials are drawn
    with replacement and each brings all its values (cluster bootstrap: Davison and Hinkley, Bootstrap Methods and
    their Application (1997), sec. 3.8). A material enters through sums over its values only, so that all
    resamples are one matrix product.

    The ends are quantiles of the resampled statistic (percentile interval: Efron and Tibshirani, An Introduction to
    the Bootstrap (1993), ch. 13), moved outwards for the number of groups as Student's t moves the normal's (expanded
    percentile: Hesterberg, Am. Stat. 69, 371 (2015), sec. 3). Measured coverage of a nominal 95 % is 91 to 95 % from
    five groups on; with two or three groups the interval is still too narrow (49 % and 74 %). The accelerated
    interval (BCa) covers less here: a few violent materials dominate Σx², and their skewness is noise.

    ``groups`` are k additive quantities of each group, as Σxx and Σxy, shape (n_groups, k); ``statistic`` maps totals of shape (..., k)
    to values of shape (...). Resamples for which it is not finite (such as one group drawn every time, which has no correlation) are left
    out; if they are more than half, both ends are NaN. ValueError if there are fewer than two groups, a sum is not finite, or ``level`` is
    not between 0 and 1.
    """
    sums = np.asarray(groups, dtype=float)
    if sums.ndim == 2 and len(sums) < 2:
        raise ValueError(f"an interval over groups needs at least two groups, got {len(sums)}")
    return Interval(*estimates(sums, {"": statistic}, n_resamples, seed, level).values())


def estimates(
    groups: ArrayLike,
    statistics: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, float]:
    """Return statistics by name with the ends ``_low`` and ``_high`` of :func:`bootstrap_over`, all of the same resamples.

    The ends are NaN if there is one group only.
    """
    sums = np.asarray(groups, dtype=float)
    if sums.ndim != 2:
        raise ValueError(f"groups must have the shape (n_groups, k), not {sums.shape}")
    if not np.isfinite(sums).all():
        raise ValueError("the groups hold sums that are not finite numbers")
    drawn = _resampled_counts(len(sums), n_resamples, seed) @ sums if len(sums) > 1 else None
    found = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, statistic in statistics.items():
            ends = (np.nan, np.nan) if drawn is None else _ends(np.asarray(statistic(drawn)), len(sums), level)
            found |= _entry(name, float(statistic(sums.sum(axis=0))), *ends)
    return found


def _entry(name: str, estimate: float, low: float, high: float) -> dict[str, float]:
    return {name: estimate, f"{name}_low": low, f"{name}_high": high}


def _resampled_counts(n_groups: int, n_resamples: int, seed: int) -> np.ndarray:
    """Return how often each group is drawn in each resample, shape (n_resamples, n_groups)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples).astype(float)


def _ends(resampled: np.ndarray, n_groups: int, level: float = 0.95) -> tuple[float, float]:
    """Return the expanded percentile interval of resampled values."""
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, not at {level}")
    finite = resampled[np.isfinite(resampled)]
    if 2 * len(finite) < len(resampled):
        return np.nan, np.nan
    tail = stats.norm.cdf(np.sqrt(n_groups / (n_groups - 1)) * stats.t.ppf((1 - level) / 2, n_groups - 1))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


# ---- Tables of force components -------------------------------------------------------------------


def _select(table: pd.DataFrame, quantity: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows of one property, after checking that the table has what is needed."""
    missing = [column for column in (*columns, "property", "value", "reference", "status") if column not in table]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}")
    chosen = table[table["property"] == quantity]
    if chosen.empty:
        raise ValueError(f"the table has no rows of property {quantity!r}; it has {sorted(table['property'].unique())}")
    return chosen


def _good(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that did not fail."""
    good = rows[rows["status"] == "ok"]
    bad = ~np.isfinite(good[["value", "reference"]].to_numpy(dtype=float)).all(axis=1)
    if bad.any():
        first = good[bad].iloc[0]
        raise ValueError(f"{bad.sum()} rows with status 'ok' hold values that are not finite, first in material {first['material']!r}")
    return good


@dataclass(frozen=True)
class _Grouped:
    """Values sorted by group, so that sums over groups are contiguous."""

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, codes: np.ndarray) -> _Grouped:
        order = np.argsort(codes, kind="stable")
        sizes = np.bincount(codes)
        return cls(x[order], y[order], np.cumsum(sizes) - sizes, sizes)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Return sums of values (last axis) over each group."""
        return np.add.reduceat(values, self.starts, axis=-1)

    def spread(self, per_group: np.ndarray) -> np.ndarray:
        """Repeat a value of each group for each of its members."""
        return np.repeat(per_group, self.sizes)


def per_material(table: pd.DataFrame) -> pd.DataFrame:
    """Fit the forces of each model, set and material on their own.

    One row per material, in sorted order: these, ``n`` (components), ``n_cases`` (frames), ``n_failed`` (rows that failed and are left
    out), the columns of :class:`Fit` but the intercept (which is zero), and ``status``, ``reason``: a material without a slope
    is a ``failed`` row. ValueError if a column is missing, there are no forces, or an ``ok`` row is not finite.
    """
    by = ["model", "set", "material"]
    rows = _select(table, "force", [*by, "case"])
    good = _good(rows)[[*by, "case", "reference", "value"]].astype({"reference": float, "value": float})
    x, y = good["reference"], good["value"]
    good = good.assign(xx=x * x, yy=y * y, xy=x * y, error=(y - x).abs(), square=(y - x) ** 2)
    groups = good.groupby(by, observed=True)
    found = groups[["xx", "yy", "xy"]].sum().assign(n=groups.size(), n_cases=groups["case"].nunique())
    found = found.join(groups[["error", "square"]].mean().rename(columns={"error": "mae"}))
    reasons = {
        "fewer than two values": found["n"] < 2,
        "the reference is constant": groups["reference"].min() == groups["reference"].max(),
        "the prediction is constant": groups["value"].min() == groups["value"].max(),
        "the slope is zero": found["xy"] == 0,
    }
    found["reason"] = np.select(list(reasons.values()), list(reasons), default="")
    xx, yy, xy = (found[name].where(found["reason"] == "") for name in ("xx", "yy", "xy"))
    found = found.assign(slope=xy / xx, inverse_slope=xy / yy, r2=xy * xy / (xx * yy), rmse=np.sqrt(found["square"]))
    turned = (y / found["slope"].to_numpy()[groups.ngroup()] - x).abs()
    found["cmae"] = turned.groupby([good[name] for name in by], observed=True).mean()
    # Materials that failed altogether have no values.
    n_rows = rows.groupby(by, observed=True).size()
    found = found.reindex(n_rows.index).fillna({"n": 0, "n_cases": 0, "reason": "every row failed"}).astype({"n": int, "n_cases": int})
    found = found.assign(n_failed=n_rows - found["n"], status=np.where(found["reason"] == "", "ok", "failed"))
    numbers = ["n", "n_cases", "n_failed", "slope", "inverse_slope", "r2", "mae", "cmae", "rmse"]
    return found[[*numbers, "status", "reason"]].reset_index()


# Columns of the additive sums of a group.
_N, _XX, _YY, _XY, _ABS, _SQ = range(6)


def _slope(sums: np.ndarray) -> np.ndarray:
    return sums[..., _XY] / sums[..., _XX]


def _inverse(sums: np.ndarray) -> np.ndarray:
    return sums[..., _XY] / sums[..., _YY]


_POOLED = {
    "slope": _slope,
    "inverse_slope": _inverse,
    "r2": lambda sums: _slope(sums) * _inverse(sums),
    "mae": lambda sums: sums[..., _ABS] / sums[..., _N],
    "rmse": lambda sums: np.sqrt(sums[..., _SQ] / sums[..., _N]),
}


def pooled(
    table: pd.DataFrame, clusters: str = "material", by: Sequence[str] = ("model", "set"), n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Fit the forces of all materials of each model and set together, with intervals from resampling materials.

    The pooled slope weights each material with its Σx²: violent frames of large cells count most. Compare it with :func:`distribution`,
    in which each material counts once.

    The values of the column ``clusters`` are resampled. For a set of one material use ``"case"``, and remember that frames of one
    trajectory are alike.

    One row per group: ``n``, ``n_clusters``, ``n_failed``, and each of slope, inverse_slope, r2, mae, rmse, cmae with ``_low`` and
    ``_high``, which are NaN when there is one cluster only. ValueError as for :func:`per_material`, and if a group has no slope.

    The corrected MAE is no function of additive sums, because each resample has its own slope s. But for a fixed factor
    c = 1/s the sum of |c y − x| is additive, and it is convex and piecewise linear in c. It is tabulated for each material
    on a grid of c that spans the resampled 1/s, and read off at each resample's own c; with thousands of components
    the interpolation error is far below the sampling error.
    """
    by = list(by)
    records = []
    for key, group in _select(table, "force", [*by, clusters, "material"]).groupby(by, observed=True, sort=True):
        good = _good(group)
        if good.empty:
            continue
        x, y = _pair(good["reference"], good["value"])
        data = _Grouped.of(x, y, pd.factorize(good[clusters])[0])
        x, y = data.x, data.y
        terms = (np.ones_like(x), x * x, y * y, x * y, np.abs(y - x), (y - x) ** 2)
        sums = np.stack([data.total(term) for term in terms], axis=1)
        record = {"n": x.size, "n_clusters": len(sums), "n_failed": len(group) - x.size, **estimates(sums, _POOLED, n_resamples, seed)}
        ends = _cmae_ends(data, sums, n_resamples, seed) if len(sums) > 1 else (np.nan, np.nan)
        records.append(dict(zip(by, key, strict=True)) | record | _entry("cmae", fit(x, y).cmae, *ends))
    return pd.DataFrame(records)


def _cmae_ends(data: _Grouped, sums: np.ndarray, n_resamples: int, seed: int) -> tuple[float, float]:
    """Return the ends of the interval of the corrected MAE (see :func:`pooled`)."""
    counts = _resampled_counts(len(sums), n_resamples, seed)
    factor = 1 / _slope(counts @ sums)
    # With few, unlike materials a resample's slope may vanish or change sign: then 1/s spans everything and no grid would do.
    if not np.isfinite(factor).all() or factor.min() <= 0:
        return np.nan, np.nan
    grid = np.geomspace(factor.min(), factor.max(), _N_FACTORS)
    curves = np.stack([data.total(np.abs(c * data.y - data.x)) for c in grid], axis=1)
    return _ends(_read_off(grid, counts @ curves, factor) / (counts @ sums[:, _N]), len(sums))


def _read_off(grid: np.ndarray, curves: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate row i of curves (n, len(grid)) at ``at[i]``."""
    right = np.clip(np.searchsorted(grid, at), 1, len(grid) - 1)
    left = right - 1
    width = grid[right] - grid[left]
    share = np.divide(at - grid[left], width, out=np.zeros_like(at), where=width > 0)
    row = np.arange(len(at))
    return (1 - share) * curves[row, left] + share * curves[row, right]


def distribution(fits: pd.DataFrame, by: Sequence[str] = ("model", "set")) -> pd.DataFrame:
    """Summarise the fits of :func:`per_material`, each material counting once; ValueError if no material of a group has a slope.

    One row per group: ``n_materials``, ``n_failed``, and each of ``slope_mean``, ``slope_median``, ``share_below_one`` and, as far as there
    are such columns, ``inverse_slope_median``, ``mae_median``, ``cmae_median`` with ``_low`` and ``_high``, and the quartiles
    ``slope_q25``, ``slope_q75``. The ends are as in :func:`bootstrap_over`, and NaN for one material.
    """
    by = list(by)
    columns = ["slope", *[name for name in ("inverse_slope", "mae", "cmae") if name in fits]]
    records = []
    for key, group in fits.groupby(by, observed=True, sort=True):
        values = group.loc[group["status"] == "ok", columns].to_numpy()
        if len(values) == 0:
            raise ValueError(f"no material of {key} has a slope")
        draws = np.random.default_rng(0).integers(0, len(values), size=(2000, len(values)))
        record = dict(zip(by, key, strict=True)) | {"n_materials": len(values), "n_failed": len(group) - len(values)}
        record |= dict(zip(["slope_q25", "slope_q75"], np.quantile(values[:, 0], [0.25, 0.75]), strict=True))
        statistics: dict[str, tuple[np.ndarray, Callable[..., np.ndarray]]] = {
            "slope_mean": (values[:, 0], np.mean),
            "slope_median": (values[:, 0], np.median),
            **{f"{name}_median": (values[:, at], np.median) for at, name in enumerate(columns) if at},
            "share_below_one": ((values[:, 0] < 1).astype(float), np.mean),
        }
        for name, (value, statistic) in statistics.items():
            ends = _ends(statistic(value[draws], axis=1), len(values)) if len(values) > 1 else (np.nan, np.nan)
            record |= _entry(name, float(statistic(value)), *ends)
        record |= _opened(record, "share_below_one", len(values))
        records.append(record)
    return pd.DataFrame(records)


# ---- Scalar properties ----------------------------------------------------------------------------


def scalar_summary(value: ArrayLike, reference: ArrayLike, clusters: Collection | np.ndarray | None = None) -> dict[str, float]:
    """Summarise predictions of a scalar property (surface energies, barriers, …) against the reference.

    Mind the order of the arguments: that of the table's columns, value first.

    ``n``, ``n_clusters``, and with ``_low`` and ``_high`` each: ``mean_error`` (of value − reference), ``mae``,
    ``slope`` and ``inverse_slope`` (both through the origin), ``r2`` (square of Pearson's correlation, about the
    means: quantities of one sign correlate about zero whatever the model) and
    ``share_below`` (fraction of value < reference). The ends are NaN when there is one cluster only.

    A share of exactly 0 or 1 does not vary under resampling; there the open end is the exact binomial bound with one trial per cluster
    (Clopper and Pearson, Biometrika 26, 404 (1934)). ValueError as for :func:`inverse_slope`, and if ``clusters`` has another length or
    misses entries.

    ``value``, ``reference`` (shape (n,)): prediction and DFT, in equal units.
    ``clusters`` (shape (n,)): what each value belongs to (the element of a surface, …): values of one cluster are resampled together. By
        default each value stands for itself.
    """
    x, y = _predicted_varies(*_pair(reference, value))
    if clusters is None:
        codes = np.arange(x.size)
    else:
        if len(clusters) != x.size:
            raise ValueError(f"there are {x.size} values but {len(clusters)} cluster labels")
        codes, _ = pd.factorize(np.asarray(clusters))
        if (codes < 0).any():
            raise ValueError("some cluster labels are missing")
    data = _Grouped.of(x, y, codes)
    x, y = data.x, data.y
    # Correlation from sums loses digits when the mean is large: take the sums about the means of the whole.
    u, v = x - x.mean(), y - y.mean()
    terms = (np.ones_like(x), x * x, y * y, x * y, y - x, np.abs(y - x), y < x, u, v, u * u, v * v, u * v)
    sums = np.stack([data.total(np.asarray(term, dtype=float)) for term in terms], axis=1)
    statistics = {
        "mean_error": lambda s: s[..., 4] / s[..., 0],
        "mae": lambda s: s[..., 5] / s[..., 0],
        "slope": lambda s: s[..., 3] / s[..., 1],
        "inverse_slope": lambda s: s[..., 3] / s[..., 2],
        "r2": lambda s: _pearson_squared(*(s[..., i] for i in (0, 7, 8, 9, 10, 11))),
        "share_below": lambda s: s[..., 6] / s[..., 0],
    }
    found = {"n": x.size, "n_clusters": len(sums), **estimates(sums, statistics)}
    return found | _opened(found, "share_below", len(sums))


def scalar_summaries(table: pd.DataFrame, by: Sequence[str] = ("model", "set", "property"), clusters: str = "material") -> pd.DataFrame:
    """Return ``n``, ``n_failed`` and :func:`scalar_summary` of each group of a tidy table, NaN for fewer than two different values."""
    records = []
    for key, group in table.groupby(list(by), sort=False):
        good = group[group["status"] == "ok"]
        record = dict(zip(by, key, strict=True)) | {"n": len(good), "n_failed": len(group) - len(good)}
        if good["value"].nunique() >= 2 and good["reference"].nunique() >= 2:
            record |= scalar_summary(good["value"], good["reference"], clusters=good[clusters])
        records.append(record)
    return pd.DataFrame(records)


def _opened(found: Mapping[str, float], name: str, n_clusters: int) -> dict[str, float]:
    """Return a share that is 0 or 1, with the open end of its interval, which resampling cannot give."""
    bound = 0.025 ** (1 / n_clusters)
    ends = {0.0: (0.0, 1 - bound), 1.0: (bound, 1.0)}.get(found[name]) if n_clusters > 1 else None
    return _entry(name, found[name], *ends) if ends else {}


def _pearson_squared(n: np.ndarray, u: np.ndarray, v: np.ndarray, uu: np.ndarray, vv: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Return the squared correlation from sums; NaN where one side has no spread."""
    spread_u, spread_v = uu - u * u / n, vv - v * v / n
    flat = (spread_u <= _ROUNDING * uu) | (spread_v <= _ROUNDING * vv)
    return np.where(flat, np.nan, (uv - u * v / n) ** 2 / (spread_u * spread_v))


# ---- In words -------------------------------------------------------------------------------------

# A slope this near to one is no softness worth a correction.
NO_SOFTNESS = 0.03

# Share of the error that a factor removes: from here on it suffices, below that it is not worth having.
SUFFICES, WORTH_HAVING = 0.5, 0.2

# Above this R² the two factors of :func:`correction` are as good as each other; below, 1/s amplifies scatter.
TIGHT_R2 = 0.98


def verdict(slope: float, inverse_slope: float) -> str:
    """Say in a word what s and s' mean: ``stiff``, ``right``, ``calibrated`` (s low, s' near one: a shrunken prediction) or ``soft``."""
    if slope > 1 + NO_SOFTNESS:
        return "stiff"
    if slope >= 1 - NO_SOFTNESS:
        return "right"
    return "calibrated" if inverse_slope <= 1 + NO_SOFTNESS else "soft"


# ---- One label ------------------------------------------------------------------------------------


def correction(reference: ArrayLike, predicted: ArrayLike, method: str = "inverse_slope") -> float:
    """Return the factor c of the linear correction E → c E, which turns forces f into c f (Deng et al. 2025).

    ``inverse_slope``
        c = 1/s = Σx² / Σxy, which turns the cloud onto the diagonal: the slope of the *prediction* becomes 1.
    ``least_squares``
        c = s' = Σxy / Σy², which minimises Σ(c y − x)²: what training the scalar with a squared loss converges to.

    ``advised``
        The first where R² is above :data:`TIGHT_R2`, and the second below.

    These are the two regressions of the module's text. Their ratio is R², so ``least_squares`` is the smaller factor, and they
    agree only for R² = 1. The first leaves larger errors, the second a slope below one.

    ValueError if the method is unknown, or if the slope is not positive: no factor helps there.

    >>> round(correction([-2.0, 1.0, 1.0], [-1.6, 0.8, 0.8]), 6)
    1.25
    """
    if method != "advised":
        _check_method(method)
    x, y = _predicted_varies(*_pair(reference, predicted))
    xx, yy, xy = _moments(x, y, intercept=False)
    if xy <= 0:
        raise ValueError(f"the slope is {xy / xx:.3g}: a factor helps only forces that point the right way")
    return float(advised_factor(xx, xy, yy)) if method == "advised" else xx / xy if method == "inverse_slope" else xy / yy


def advised_factor(xx: ArrayLike, xy: ArrayLike, yy: ArrayLike) -> np.ndarray:
    """Return the factor ``advised`` of :func:`correction` from Σx², Σxy and Σy² (of one shape); NaN where the slope is not positive."""
    xx, xy, yy = (np.asarray(one, dtype=float) for one in (xx, xy, yy))
    return np.where(xy > 0, np.where(xy**2 > TIGHT_R2 * xx * yy, xx / xy, xy / yy), np.nan)


def _check_method(method: str) -> None:
    if method not in ("inverse_slope", "least_squares"):
        raise ValueError(f"method must be 'inverse_slope' or 'least_squares', not {method!r}")


def one_label_corrections(table: pd.DataFrame, method: str = "inverse_slope", quantity: str = "force") -> pd.DataFrame:
    """Correct a material's forces with a factor from one labelled frame, for every choice of that frame.

    c comes from the 3N components of the labelled frame alone, and is tested on all other frames.

    One row per label: ``model, set, material, label, method, c``, ``n_label`` and ``n_others`` (components), and, on all *other* frames,
    ``mae_before, mae_after, ratio`` (after over before), ``slope_before, slope_after``; ``status`` and ``reason`` (a frame whose slope is
    not positive, or that has no others, gives no correction: a ``failed`` row with NaN for c and what follows from it). ValueError if the
    method is unknown, or as for :func:`per_material`.

    ``table``: tidy table, one row per force component; ``case`` names the frame. Each combination of model, set and material in it is
        treated on its own. Failed rows are left out.
    ``method`` ({"inverse_slope", "least_squares"}): how c is found; see :func:`correction`.
    ``quantity``: the property to correct.
    """
    _check_method(method)
    by = ["model", "set", "material"]
    good = _good(_select(table, quantity, [*by, "case"]))
    results = []
    for key, group in good.groupby(by, observed=True, sort=True):
        codes, labels = pd.factorize(group["case"])
        data = _Grouped.of(group["reference"].to_numpy(dtype=float), group["value"].to_numpy(dtype=float), codes)
        frame = pd.DataFrame({"label": np.asarray(labels), "method": method, **_correct(data, method)})
        for position, (name, entry) in enumerate(zip(by, key, strict=True)):
            frame.insert(position, name, entry)
        results.append(frame)
    return pd.concat(results, ignore_index=True)


def _correct(data: _Grouped, method: str) -> dict[str, np.ndarray]:
    """Return c of each frame and what it does to the other frames."""
    x, y, n = data.x, data.y, data.sizes
    xx, yy, xy = data.total(x * x), data.total(y * y), data.total(x * y)
    others = x.size - n
    usable = (xy > 0) & (others > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        c = np.where(usable, xx / xy if method == "inverse_slope" else xy / yy, np.nan)
        slope_before = (xy.sum() - xy) / (xx.sum() - xx)
    error = data.total(np.abs(y - x))
    after = np.empty(len(n))
    step = max(1, _MAX_ELEMENTS // x.size)
    for first in range(0, len(n), step):
        chosen = np.arange(first, min(first + step, len(n)))
        # Rows are labels, columns frames; a label's own frame is taken out of its sum.
        summed = data.total(np.abs(c[chosen, None] * y - x))
        after[chosen] = summed.sum(axis=1) - summed[np.arange(len(chosen)), chosen]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, mae_before, mae_after = after / (error.sum() - error), (error.sum() - error) / others, after / others
    return {
        "c": c,
        "n_label": n,
        "n_others": others,
        "mae_before": mae_before,
        "mae_after": mae_after,
        "ratio": ratio,
        "slope_before": slope_before,
        "slope_after": c * slope_before,
        "status": np.where(usable, "ok", "failed"),
        "reason": np.select([usable, others == 0], ["", "no other frame to test it on"], "the slope of the labelled frame is not positive"),
    }


def over_choices(choices: pd.DataFrame, by: Sequence[str] = ("model",)) -> pd.DataFrame:
    """Return what a correction (:func:`one_label_corrections`, :func:`transferred`) does over all choices of its label that give a factor.

    Columns ``by``, ``n``, medians of the numbers of the table, ``ratio_low`` and ``ratio_high`` (10 and 90 % of the choices), and
    ``helps``, the share of choices with a ratio below one, %.
    """
    groups = choices[choices["status"] == "ok"].groupby(list(by), observed=True, sort=False)
    found = groups.median(numeric_only=True).assign(n=groups.size())
    found["ratio_low"], found["ratio_high"] = groups["ratio"].quantile(0.1), groups["ratio"].quantile(0.9)
    found["helps"] = groups["ratio"].apply(lambda ratio: 100 * (ratio < 1).mean())
    return found.reset_index()


def corrected(table: pd.DataFrame, c: float) -> pd.DataFrame:
    """Return a copy of a table with its values multiplied by c, and c in the name of the model (as ``Potential.scaled`` names it)."""
    return table.assign(value=c * table["value"], model=table["model"].astype(str) + f"*{c:.4f}")


def transferred(scalars: pd.DataFrame, factors: pd.DataFrame) -> pd.DataFrame:
    """Apply factors of :func:`one_label_corrections` to another property of the same material, a scalar (surface energies, …).

    One row per label of each model and material that both tables have: ``model, material, label, c, needed, mae_before, mae_after,
    ratio, status``, with ``needed`` = 1/s, the factor that the scalars themselves ask for.
    """
    good = _good(scalars)
    labels = factors[factors["status"] == "ok"]
    parts = []
    for (model, material), group in good.groupby(["model", "material"], observed=True):
        chosen = labels[(labels["model"] == model) & (labels["material"] == material)]
        if chosen.empty:
            continue
        x, y = group["reference"].to_numpy(dtype=float), group["value"].to_numpy(dtype=float)
        before = np.abs(y - x).mean()
        after = np.abs(chosen["c"].to_numpy()[:, None] * y - x).mean(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # values without error have no ratio
            ratio = after / before
        part = chosen[["model", "material", "label", "c", "status"]].assign(mae_before=before, mae_after=after, ratio=ratio)
        # A single value has no slope, but it asks for a factor all the same.
        parts.append(part.assign(needed=(x @ x) / (x @ y)))
    return pd.concat(parts, ignore_index=True)


def transfer_matrix(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Correct one model's forces under one condition (a column: temperature, …) with the factor c = 1/s of another, for all pairs.

    MAE after over MAE before: the condition that gave the factor in the rows, the condition it is tested on in the columns.
    """
    good = _good(_select(table, "force", [condition])).astype({"reference": float, "value": float})
    pairs = {value: (part["reference"], part["value"]) for value, part in good.groupby(condition, observed=True)}
    factors = {value: 1 / softening_scale(x, y) for value, (x, y) in pairs.items()}
    ratios = {
        tested: {source: np.abs(c * y - x).mean() / np.abs(y - x).mean() for source, c in factors.items()}
        for tested, (x, y) in pairs.items()
    }
    return pd.DataFrame(ratios).rename_axis(index="factor from", columns="tested on")
