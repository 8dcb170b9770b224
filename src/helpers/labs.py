"""Checks for the course labs: every answer is checked at once, and a wrong one gets a hint instead of the solution.

A :class:`Question` knows the right answer, as reference code that is called with the student's own data, and the usual *slips*:
what someone answers who forgets that a slab has two faces, or regresses the wrong way round, with a hint. :func:`check` compares an answer
with both. An answer may be a number, an array or the student's own function, which is then called with the data and with others. No
expected number is typed anywhere, and no message contains one.

A wrong answer raises :class:`NotYet`, which is what nbgrader counts. In a notebook it shows as a sentence, not as a traceback.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
import pandas as pd
from ase.neighborlist import neighbor_list

from helpers import results, softening
from helpers.benchmarks.surfaces import J_PER_M2
from helpers.benchmarks.surfaces import surface_energy as _gamma
from helpers.engine import Relaxed
from helpers.potentials.base import Potential

# An answer that is computed differently may differ in the last digits.
TOLERANCE = 1e-3

# √(1 eV/Å² / 1 u) / 2π in THz: CODATA 2018 values.
_ELEMENTARY_CHARGE, _ATOMIC_MASS = 1.602176634e-19, 1.66053906660e-27
THZ = float(np.sqrt(_ELEMENTARY_CHARGE * 1e20 / _ATOMIC_MASS) / (2 * np.pi) * 1e-12)


class NotYet(AssertionError):  # noqa: N818
    """An answer is not right yet; the message says what to look at."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of a traceback."""
        return [f"Not yet. {self}"]


@dataclass(frozen=True)
class Question:
    """Something a lab asks for."""

    name: str  # as it is called in the messages
    reference: Callable[..., object]  # maps the data to the right answer
    # Specific ones first: what one answers who makes a usual mistake, from the data, and what to look at, without the answer in it.
    slips: tuple[tuple[Callable[..., object], str], ...] = ()
    tolerance: float = TOLERANCE  # relative


# ---- Comparing ------------------------------------------------------------------------------------


def _as_numbers(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    """Return an answer as an array of the expected shape, or say what is odd about it."""
    if value is None or value is Ellipsis:
        raise NotYet(f"{name}: there is no answer. Does the function end with `return`, and is the gap filled?")
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise NotYet(
            f"{name}: the answer should be {'a number' if shape == () else 'numbers'}, but it is a {type(value).__name__}."
        ) from None
    if shape == () and array.size == 1:
        array = array.reshape(())
    if array.shape != shape:
        wanted = "a single number" if shape == () else f"an array of shape {shape}"
        raise NotYet(f"{name}: the answer should be {wanted}, but it has shape {array.shape}. Is a sum or a mean missing, or one too many?")
    bad = np.count_nonzero(~np.isfinite(array))
    if bad:
        raise NotYet(f"{name}: {bad} of {array.size} numbers are infinite or not a number. Is something divided by zero?")
    return array


def _close(value: np.ndarray, wanted: object, tolerance: float) -> bool:
    wanted = np.asarray(wanted, dtype=float)
    if wanted.shape != value.shape or not np.isfinite(wanted).all():
        return False
    return bool(np.abs(value - wanted).max() <= tolerance * np.abs(wanted).max() + 1e-12)


# Mistakes that can happen everywhere: the factor by which the answer is then wrong.
_COMMON = {
    -1.0: "the size is right, but the sign is not. A force is *minus* the derivative of the energy; a difference is model minus reference.",
    1e3: "it is a thousand times too large. Is it in meV where eV is asked for?",
    1e-3: "it is a thousand times too small. Is it in eV where meV was meant, or divided by 1000 twice?",
    100.0: "it is a hundred times too large. Is it in per cent where a fraction is asked for?",
    2.0: "it is twice what it should be. Look for a factor of 2 in the formula.",
    0.5: "it is half of what it should be. Look for a factor of 2 in the formula.",
}


def check_number(
    name: str, value: object, expected: object, tolerance: float = TOLERANCE, hints: Iterable[tuple[object, str]] = ()
) -> None:
    """Compare an answer with the expected one and raise with a hint if it is wrong.

    NotYet if the answer is missing, of the wrong kind, or not within the tolerance.

    ``value`` is the answer, a number or an array, ``expected`` what reference code computes, to whose largest number the tolerance is
    relative. Hints are pairs: a wrong value, and what to look at. The first that fits is given; a wrong value that cannot be told from
    the right one is skipped.
    """
    _compare(name, value, expected, tolerance, hints)
    print(f"✓ {name}: right.")


def _compare(name: str, value: object, expected: object, tolerance: float, hints: Iterable[tuple[object, str]]) -> None:
    wanted = np.asarray(expected, dtype=float)
    answer = _as_numbers(name, value, wanted.shape)
    if _close(answer, wanted, tolerance):
        return
    for wrong, hint in hints:
        if not _close(wanted, wrong, tolerance) and _close(answer, wrong, tolerance):
            raise NotYet(f"{name}: {hint}")
    for factor, hint in _COMMON.items():
        if _close(answer, factor * wanted, tolerance):
            raise NotYet(f"{name}: {hint}")
    if wanted.size == 1:
        found = (
            "the sign is not right, nor is the size"
            if answer * wanted < 0
            else f"it is too {'large' if abs(answer) > abs(wanted) else 'small'}"
        )
        raise NotYet(f"{name}: {found}. Write the formula down once more, with the units of each term.")
    n_wrong = int(np.count_nonzero(np.abs(answer - wanted) > tolerance * np.abs(wanted).max()))
    raise NotYet(f"{name}: {n_wrong} of {wanted.size} numbers are not right. Try it by hand for the first of them.")


def call(name: str, function: Callable[..., object], *data: object) -> object:
    """Call a student's function with copies of the data, and turn what goes wrong into a message."""
    copied = [copy.deepcopy(item) if isinstance(item, np.ndarray | list | ase.Atoms) else item for item in data]
    try:
        return function(*copied)
    except NotImplementedError:
        raise NotYet(f"{name}: this is still a gap. Fill it in, run its cell, then this one.") from None
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise NotYet(f"{name}: your function stopped with {text}. Call it by hand with a small example to see where.") from error


def check(key: str, answer: object, *data: object, tolerance: float | None = None) -> None:
    """Check the answer to a question of :data:`QUESTIONS`.

    NotYet as for :func:`check_number`, if the function fails, and if it is right for these data only.

    An answer that is a function is called with the data, as the question's reference is, and with others, so that a typed number or a
    function of other variables than its arguments is told from a formula; the tolerance is relative.
    """
    question = QUESTIONS[key]
    name, tolerance = question.name, tolerance or question.tolerance
    value = call(name, answer, *data) if callable(answer) else answer
    hints = ((slip(*data), hint) for slip, hint in question.slips)
    _compare(name, value, question.reference(*data), tolerance, hints)
    if callable(answer):
        others = _changed(data)
        wanted = np.asarray(question.reference(*others), dtype=float)
        _general(name, _close(_as_numbers(name, call(name, answer, *others), wanted.shape), wanted, tolerance))
    print(f"✓ {name}: right.")


def _changed(data: object, factor: float = 1.0) -> Any:
    """Return other data of the same kind: every number and array larger, by factors of their own; counts and structures as they are."""
    if isinstance(data, tuple | list):
        return type(data)(_changed(item, factor + 0.1 * (k + 1)) for k, item in enumerate(data))
    return factor * data if isinstance(data, float | np.floating) or (isinstance(data, np.ndarray) and data.dtype.kind == "f") else data


def _general(name: str, right: bool) -> None:
    if not right:
        raise NotYet(
            f"{name}: right for these data, but not for others. Is it computed from the arguments of the function, and from nothing else?"
        )


def check_interval(answer: object, reference: np.ndarray, predicted: np.ndarray, groups: np.ndarray) -> None:
    """Check a 95 % bootstrap interval of the slope; two right ones differ a little, because both are drawn.

    ``answer`` is a pair, or a function that is called with the three arrays, shape (n,). ``groups`` says which material a value belongs to;
    materials are drawn, not values. Either end may lie off by a share of the width.
    """
    name = "bootstrap interval"
    pair = _as_numbers(name, call(name, answer, reference, predicted, groups) if callable(answer) else answer, (2,))
    if pair[0] > pair[1]:
        raise NotYet(f"{name}: the lower end comes first.")
    wanted = _percentiles(reference, predicted, groups, (2.5, 97.5))
    width = wanted[1] - wanted[0]
    tolerance = 0.15

    if np.abs(pair - wanted).max() < tolerance * width:
        if callable(answer):  # with forces a tenth larger, so are the slopes
            larger = _as_numbers(name, call(name, answer, reference, 1.1 * predicted, groups), (2,))
            _general(name, np.abs(larger - 1.1 * wanted).max() < 1.1 * tolerance * width)
        print(f"✓ {name}: right.")
        return
    slips = {
        "this is the interval from drawing single force components. Those of one material are alike and are no independent evidence: "
        "draw whole materials, each with all its components.": _percentiles(reference, predicted, np.arange(len(reference)), (2.5, 97.5)),
        "it covers about two thirds of the samples. Which quantiles leave 2.5 % on either side?": _percentiles(
            reference, predicted, groups, (16, 84)
        ),
        "it covers 90 % of the samples. How much must be left on *either* side?": _percentiles(reference, predicted, groups, (5, 95)),
        "this is the interval of the other slope, DFT on model.": _percentiles(predicted, reference, groups, (2.5, 97.5)),
    }
    # Intervals are alike: the nearest is meant.
    off, hint = min((np.abs(pair - other).max(), hint) for hint, other in slips.items())
    if off < tolerance * width:
        raise NotYet(f"{name}: {hint}")
    relative = (pair[1] - pair[0]) / width
    found = "too narrow" if relative < 0.85 else "too wide" if relative > 1.15 else "in the wrong place"
    raise NotYet(
        f"{name}: it is {found}. Each sample draws as many materials as there are, with replacement, and fits one slope to all of them."
    )


def need(**answers: object) -> None:
    """Refuse to go on while an answer of the cell above is missing: ``need(slab=slab)``."""
    missing = [name for name, value in answers.items() if value is None or value is Ellipsis]
    if missing:
        raise NotYet(f"{' and '.join(missing)}: there is no answer yet. Fill the gap, run its cell, then this one.")


def check_relaxed(
    name: str, answer: object, potential: Potential, fmax: float, smax: float | None = None, start: ase.Atoms | None = None
) -> None:
    """Check that a structure is relaxed with a potential, by evaluating it once more.

    ``answer`` is what :func:`helpers.engine.relax` returns for one structure; ``fmax`` the largest force, eV/Å; ``smax`` the largest
    component of the stress, eV/Å³, by default any: then the cell must be that of the structure at the ``start``.
    """
    if isinstance(answer, list) and answer:
        raise NotYet(f"{name}: `relax` returns a list, one entry per structure. Take its first entry.")
    if not isinstance(answer, Relaxed):
        raise NotYet(f"{name}: this should be what `engine.relax` returns for one structure, but it is a {type(answer).__name__}.")
    found = potential.evaluate([answer.atoms], stress=smax is not None)[0]
    force = float(np.linalg.norm(found.forces, axis=1).max()) if found.ok else np.inf
    if not force < 1.05 * fmax + 1e-4:
        raise NotYet(f"{name}: the largest force is {force:.3f} eV/Å. Which `fmax` was asked for, and is it this potential's?")
    if smax is not None and (found.stress is None or np.abs(found.stress).max() > 1.05 * smax + 1e-5):
        raise NotYet(f"{name}: the crystal is still under stress. Its cell has to relax, too: look at the argument `cell`.")
    if start is not None and not np.allclose(answer.atoms.cell, start.cell, atol=1e-6):
        raise NotYet(f"{name}: the cell has changed. The slab sits on a bulk that it cannot pull along: look at the argument `cell`.")
    print(f"✓ {name}: right.")


def check_slab(answer: object, crystal: ase.Atoms, n_layers: int, vacuum: float) -> None:
    """Check a slab with one atom per layer, cut from a relaxed crystal, and the vacuum on *each* side, Å."""
    name = "slab"
    if not isinstance(answer, ase.Atoms):
        raise NotYet(f"{name}: this should be an ase.Atoms, but it is a {type(answer).__name__}.")
    if not answer.pbc.all():
        raise NotYet(f"{name}: it is not periodic in all three directions. The engine wants that; the vacuum keeps the images apart.")
    if len(answer) != n_layers:
        raise NotYet(f"{name}: it has {len(answer)} atoms. One atom per layer is enough: look at `size`.")
    bond, wanted = (neighbor_list("d", atoms, 4.0).min() for atoms in (answer, crystal))
    if abs(bond - wanted) > 1e-3:
        raise NotYet(f"{name}: its atoms are not as far apart as in the relaxed bulk. Whose lattice parameter was taken?")
    height = float(answer.cell[2, 2] - np.ptp(answer.positions[:, 2]))
    if abs(height - 2 * vacuum) > 0.1:
        raise NotYet(f"{name}: the empty height is {height:.1f} Å. In ASE `vacuum` is what is added on *each* side.")
    print(f"✓ {name}: right.")


def _percentiles(x: np.ndarray, y: np.ndarray, groups: np.ndarray, quantiles: tuple[float, float]) -> np.ndarray:
    """Return quantiles of the slope of y on x over resampled groups."""
    codes, names = pd.factorize(np.asarray(groups))
    xx, xy = np.bincount(codes, x * x), np.bincount(codes, x * y)
    drawn = np.random.default_rng(0).integers(len(names), size=(4000, len(names)))
    return np.percentile(xy[drawn].sum(axis=1) / xx[drawn].sum(axis=1), quantiles)


# ---- Data -----------------------------------------------------------------------------------------


def variant(name: object, choices: Sequence[Any]) -> Any:
    """Return what a name chooses of several, always the same; capitals and blanks do not count. Without a name it is the first."""
    words = "".join(str(name or "").split()).casefold()
    chosen = choices[int(hashlib.sha256(words.encode()).hexdigest(), 16) % len(choices) if words else 0]
    print(f"Your variant: {chosen}." if words else f"There is no name yet; without one the variant is {chosen}.")
    return chosen


def forces(chosen: str, material: str | None = None, temperature_k: float | None = None, model: str = "chgnet-0.3.0") -> pd.DataFrame:
    """Return force components of a model beside those of DFT, from the committed table.

    One row per component: ``value`` (model) and ``reference`` (DFT), eV/Å, with ``material`` and ``case`` (the frame).

    ``chosen`` is a set of :mod:`helpers.benchmarks.off_equilibrium`; at a temperature only dynamics of the perfect crystal or melt counts.
    """
    rows = results.read("off_equilibrium", model)
    keep = (rows["set"] == chosen) & (rows["property"] == "force") & (rows["status"] == "ok")
    if material is not None:
        keep &= rows["material"] == material
    if temperature_k is not None:
        keep &= (rows["temperature_k"] == temperature_k) & (rows["group"] == "AIMD-NVT")
    found = rows[keep]
    if found.empty:
        raise ValueError(f"the table has no forces of {material or 'anything'} in {chosen!r} at {temperature_k or 'any temperature'}")
    return found.reset_index(drop=True)


def frames(rows: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (DFT forces, model forces) of each frame of a table, eV/Å, one-dimensional arrays of equal length."""
    return [(part["reference"].to_numpy(), part["value"].to_numpy()) for _, part in rows.groupby("case", observed=True, sort=False)]


# ---- The questions --------------------------------------------------------------------------------


def _mae(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.abs(np.asarray(y) - x).mean())


def _s(x: np.ndarray, y: np.ndarray) -> float:
    return softening.softening_scale(x, y)


def _reverse(x: np.ndarray, y: np.ndarray) -> float:
    return softening.inverse_slope(x, y)


def _mean_ratio(x: np.ndarray, y: np.ndarray) -> float:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    return float((y[x != 0] / x[x != 0]).mean())


def _error_left(c: float, x: np.ndarray, y: np.ndarray) -> float:
    return _mae(x, c * y) / _mae(x, y)


def _every_label(pairs: list[tuple[np.ndarray, np.ndarray]], own: bool = False, scale: Callable = _s) -> np.ndarray:
    """Return what the factor 1/s of each frame leaves of the error of the others (or, as a slip, of all)."""
    left = []
    for k, (x, y) in enumerate(pairs):
        others = [pair for j, pair in enumerate(pairs) if own or j != k]
        left.append(_error_left(1 / scale(x, y), *(np.concatenate(side) for side in zip(*others, strict=True))))
    return np.array(left)


def _frequency(k: float, mass: float) -> float:
    return THZ * float(np.sqrt(k / mass))


def _displaced_forces(crystal: ase.Atoms, potential: Potential, step: float, atoms: tuple[int, ...] = (0,)) -> np.ndarray:
    """Return the force along x on the first atom after some have been displaced by +step and by −step along x."""
    moved = [crystal.copy(), crystal.copy()]
    for sign, copied in zip((1, -1), moved, strict=True):
        copied.positions[list(atoms), 0] += sign * step
    return np.array([prediction.forces[0, 0] for prediction in potential.evaluate(moved)], dtype=float)


def _at_gamma(crystal: ase.Atoms, potential: Potential, repeats: int, step: float) -> np.ndarray:
    """Return the frequencies of a crystal at Γ, THz, in ascending order."""
    # Phonopy takes a second to import; only one lab needs it.
    from helpers.benchmarks import phonons

    protocol = phonons.Protocol(displacement_a=step, relax=False)
    found = phonons.phonons(potential, [phonons.own(crystal, repeats, protocol)], protocol)[0]
    if found.error:
        raise ValueError(found.error)
    return phonons.frequencies(found.model, np.zeros((1, 3)))[0]


def _two_sided(change: float, step: float) -> float:
    return -change / (2 * step)


def _rmse(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(((y - x) ** 2).mean()))


def _size_ratio(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.abs(y).sum() / np.abs(x).sum())


def _face(cell: np.ndarray, first: int = 0, second: int = 1) -> float:
    return float(np.linalg.norm(np.cross(cell[first], cell[second])))


def _gammas(energies: Sequence[float], layers: Sequence[int], bulk: float, area: float) -> np.ndarray:
    return np.array([_gamma(e, n, bulk, area) for e, n in zip(energies, layers, strict=True)])


_APART = "how far apart are the two positions, one at +step, one at −step?"
_SIGN_AND_APART = "the sign, and how far apart the two positions are."
_BLIND = "It ignores whether model and DFT agree in direction."
_SQUARE = "this is the root of the mean *square*. The mean of the sizes is asked for."

QUESTIONS: dict[str, Question] = {
    # Lab 1
    "force": Question(
        "force from energies",
        lambda e_plus, e_minus, step: _two_sided(e_plus - e_minus, step),
        (
            (lambda p, m, step: (p - m) / (2 * step), "the sign. A force points to where the energy *falls*."),
            (lambda p, m, step: -(p - m) / step, _APART),
            (lambda p, m, step: (p - m) / step, _SIGN_AND_APART),
            (lambda p, m, step: m - p, "an energy difference is no force yet. Its unit is eV, not eV/Å."),
            (lambda p, m, step: 1000 * _two_sided(p - m, step), "that is in meV/Å; eV/Å is asked for."),
        ),
        tolerance=0.02,
    ),
    "slope": Question(
        "softening scale s",
        _s,
        (
            (_reverse, "this is the slope of DFT on the model. Which of the two is on the vertical axis, and whose squares divide?"),
            (lambda x, y: 1 / _s(x, y), "this is 1/s, the factor that mends. The slope itself is asked for."),
            (
                lambda x, y: 1 / _reverse(x, y),
                "this line minimises the distances along the DFT axis. Which is predicted from which?",
            ),
            (_mean_ratio, "a mean of ratios y/x is not the least-squares slope: components near zero dominate it."),
            (lambda x, y: float(np.corrcoef(x, y)[0, 1]), "this is the correlation coefficient: how much points scatter, not how steep."),
            (_size_ratio, f"this is a ratio of sizes. {_BLIND}"),
            (lambda x, y: float(np.sqrt((y @ y) / (x @ x))), f"this is a ratio of spreads. {_BLIND}"),
        ),
    ),
    "inverse slope": Question(
        "inverse slope s'",
        _reverse,
        (
            (_s, "this is s, the model on DFT, once more. Now DFT is predicted from the model."),
            (lambda x, y: 1 / _s(x, y), "the other regression is not the same line turned over: 1/s and s' agree only if R² is one."),
            (lambda x, y: 1 / _reverse(x, y), "this is 1/s'. Whose sum of squares divides?"),
        ),
    ),
    "MAE": Question(
        "MAE",
        _mae,
        (
            (_rmse, _SQUARE),
            (lambda x, y: float((y - x).mean()), "errors of both signs cancel. Take their sizes first."),
            (lambda x, y: float(np.abs(y - x).sum()), "this is the sum over all components, not yet the mean."),
        ),
    ),
    "cMAE": Question(
        "cMAE",
        lambda x, y: _mae(x, y / _s(x, y)),
        (
            (_mae, "this is the MAE as it is. The model's forces have to be corrected first."),
            (lambda x, y: _mae(x, y * _s(x, y)), "multiplied with s the forces become smaller still. A soft model needs larger ones."),
            (lambda x, y: _mae(x, y * _reverse(x, y)), "this uses the factor s'. The cMAE turns the cloud onto the diagonal, with 1/s."),
            (lambda x, y: _mae(x / _s(x, y), y), "here the DFT forces were divided. It is the model's that are corrected."),
            (lambda x, y: _mae(_s(x, y) * x, y), "this is the scatter about the fitted line. Correct the model, then compare with DFT."),
            (lambda x, y: _rmse(x, y / _s(x, y)), _SQUARE),
        ),
    ),
    # Lab 2
    "energy per atom": Question(
        "energy per atom",
        lambda energy, n_atoms: energy / n_atoms,
        (
            (lambda energy, n_atoms: energy, "this is the energy of the whole cell. How many atoms are in it?"),
            (lambda energy, n_atoms: energy * n_atoms, "per atom means divided by the number of atoms."),
        ),
    ),
    "area": Question(
        "area of one face",
        _face,
        (
            (lambda cell: 2 * _face(cell), "this is the area of both faces; one is asked for."),
            (
                lambda cell: float(np.linalg.norm(cell[0]) * np.linalg.norm(cell[1])),
                "the two vectors in the plane are not at right angles: a product of lengths is the area of a rectangle.",
            ),
            (lambda cell: float(abs(np.linalg.det(cell))), "this is the volume of the cell. Only the two vectors in the plane count."),
            (lambda cell: _face(cell, 0, 2), "this face stands on the surface. Which two vectors lie in it?"),
        ),
    ),
    "surface energy": Question(
        "surface energy",
        _gamma,
        (
            (lambda e, n, b, a: 2 * _gamma(e, n, b, a), "how many surfaces does a slab have?"),
            (lambda e, n, b, a: (e - b) / (2 * a), "the bulk energy is per atom, the slab's is for all its atoms."),
            (lambda e, n, b, a: (e / n - b) / (2 * a), "this is per atom and area. The cost of the whole slab belongs to its two faces."),
            (lambda e, n, b, a: -_gamma(e, n, b, a), "cutting costs energy: γ is positive. Which of the two energies is higher?"),
            (lambda e, n, b, a: e / (2 * a), "what would the atoms of the slab have had in the bulk? That has to be taken off."),
            (lambda e, n, b, a: J_PER_M2 * _gamma(e, n, b, a), "this is in J/m² already; eV/Å² is asked for."),
        ),
    ),
    "J/m²": Question(
        "surface energy in J/m²",
        lambda gamma: gamma * J_PER_M2,
        (
            (lambda gamma: gamma, "this is still in eV/Å²."),
            (lambda gamma: gamma / J_PER_M2, "the conversion goes the other way: 1 eV/Å² is *many* J/m²."),
            (lambda gamma: gamma * 10 * J_PER_M2, "that is the factor between eV/Å³ and GPa. How many Å² are in a m²?"),
            (lambda gamma: gamma * J_PER_M2 / 10, "the digits are right, the power of ten is not. How many Å² are in a m²?"),
            (lambda gamma: gamma * J_PER_M2 * 1e-20, "an eV is converted, the Å² is not. How many Å² are in a m²?"),
        ),
    ),
    "surface ratio": Question(
        "γ(model) / γ(DFT)",
        lambda gamma, dft_j_per_m2: gamma * J_PER_M2 / dft_j_per_m2,
        (
            (lambda gamma, dft: gamma / dft, "one is in eV/Å², the other in J/m². A ratio needs both in one unit."),
            (lambda gamma, dft: dft / (gamma * J_PER_M2), "this is DFT over model. A soft model has a ratio below one."),
            (lambda gamma, dft: gamma * J_PER_M2 - dft, "this is a difference, in J/m². A ratio is asked for."),
            (lambda gamma, dft: 1 - gamma * J_PER_M2 / dft, "this is the missing part. The part that is there is asked for."),
            (lambda gamma, dft: gamma * 10 * J_PER_M2 / dft, "the conversion to J/m² is off by a power of ten; mend it first."),
            (lambda gamma, dft: gamma / J_PER_M2 / dft, "the unit was converted the wrong way: 1 eV/Å² is *many* J/m²."),
        ),
    ),
    "share below": Question(
        "share below DFT",
        lambda x, y: float((np.asarray(y) < np.asarray(x)).mean()),
        (
            (lambda x, y: float((np.asarray(y) > np.asarray(x)).mean()), "this is the share *above* DFT."),
            (lambda x, y: float((np.asarray(y) < np.asarray(x)).sum()), "this is how many there are. Of how many?"),
        ),
    ),
    "layers": Question(
        "surface energy for each number of layers",
        _gammas,
        (
            (lambda *data: 2 * _gammas(*data), "how many surfaces does a slab have?"),
            (lambda e, n, bulk, area: _gammas(e, [n[-1]] * len(e), bulk, area), "each slab has its own number of atoms."),
        ),
    ),
    # Lab 3
    "displaced forces": Question(
        "forces at +step and −step",
        _displaced_forces,
        (
            (
                lambda *data: -_displaced_forces(*data),
                "the signs. The force on the displaced atom pulls back, that on the other one is its opposite; "
                "the first number belongs to +step.",
            ),
            (lambda *data: _displaced_forces(*data, atoms=(0, 1)), "both atoms moved, so nothing happened. Displace the first only."),
            (
                lambda crystal, potential, step: _displaced_forces(crystal, potential, step / 2),
                "the atom was moved by half a step. It goes to +step and to −step.",
            ),
            (
                lambda crystal, potential, step: np.array([_displaced_forces(crystal, potential, step)[0], 0.0]),
                "the second displacement started from the first. Move a fresh copy of the crystal each time.",
            ),
        ),
        tolerance=0.01,
    ),
    "frequency at Γ": Question(
        "highest frequency at Γ",
        lambda *data: float(_at_gamma(*data)[-1]),
        (
            (lambda *data: float(_at_gamma(*data)[0]), "this is the lowest, an acoustic mode: zero, as the crystal may be moved freely."),
            (lambda *data: float(2 * np.pi * _at_gamma(*data)[-1]), "this is an angular frequency. phonopy gives THz as it is."),
        ),
        tolerance=0.02,
    ),
    "spring constant": Question(
        "spring constant",
        lambda f_plus, f_minus, step: _two_sided(f_plus - f_minus, step),
        (
            (lambda p, m, step: (p - m) / (2 * step), "the sign. The force pulls back, so k is positive."),
            (lambda p, m, step: -(p - m) / step, _APART),
            (lambda p, m, step: (p - m) / step, _SIGN_AND_APART),
            (lambda p, m, step: -p / step, "one displacement only: an anharmonic part is left in. Use both, so that it cancels."),
        ),
    ),
    "reduced mass": Question(
        "reduced mass",
        lambda m1, m2: m1 * m2 / (m1 + m2),
        (
            (lambda m1, m2: m1 + m2, "this is the total mass. Here the two atoms move *against* each other."),
            (lambda m1, m2: (m1 + m2) / 2, "this is the mean. The lighter atom moves more: how do inverse masses add?"),
            (lambda m1, m2: 1 / m1 + 1 / m2, "this is 1/μ."),
            (lambda m1, m2: float(np.sqrt(m1 * m2)), "this geometric mean is in the dynamical matrix. How do inverse masses add?"),
            (lambda m1, m2: m1, "one atom alone is not what vibrates: both move."),
            (lambda m1, m2: m2, "one atom alone is not what vibrates: both move."),
        ),
    ),
    "frequency": Question(
        "frequency",
        _frequency,
        (
            (lambda k, m: 2 * np.pi * _frequency(k, m), "this is the *angular* frequency. How many radians are in one period?"),
            (lambda k, m: _frequency(k, m) ** 2, "this is the square of it."),
            (lambda k, m: float(np.sqrt(k / m)), "k is in eV/Å² and the mass in u. What are these in kg and s?"),
            (lambda k, m: float(np.sqrt(k / m)) / (2 * np.pi), "k is in eV/Å² and the mass in u. What are these in kg and s?"),
            (lambda k, m: 1e12 * _frequency(k, m), "this is in Hz; THz is asked for."),
            (lambda k, m: 2e12 * np.pi * _frequency(k, m), "this is the angular frequency, in 1/s; a frequency in THz is asked for."),
            (lambda k, m: THZ * float(np.sqrt(m / k)), "a stiffer spring vibrates faster, a heavier atom slower."),
        ),
    ),
    "scaled frequency": Question(
        "frequency after E → cE",
        lambda omega, c: omega * float(np.sqrt(c)),
        (
            (lambda omega, c: omega * c, "the *curvature* becomes c times as large. What is the frequency of a spring c times as stiff?"),
            (lambda omega, c: omega * c**2, "the curvature becomes c times as large. The frequency goes with a root, not with a square."),
            (lambda omega, c: omega / float(np.sqrt(c)), "a stiffer spring vibrates faster."),
            (lambda omega, c: omega, "did the scaled potential enter at all?"),
        ),
    ),
    "factor from frequency": Question(
        "factor that mends a frequency",
        lambda model, dft: (dft / model) ** 2,
        (
            (lambda model, dft: dft / model, "with this c, the frequency grows by √c only."),
            (lambda model, dft: float(np.sqrt(dft / model)), "the root is on the wrong side: ω goes with √c, so c goes with …"),
            (lambda model, dft: (model / dft) ** 2, "this makes a soft crystal softer still."),
            (lambda model, dft: model / dft, "this is the ratio of the frequencies. Which c brings the model's onto DFT's?"),
        ),
    ),
    "frequency ratio": Question(
        "ω(model) / ω(DFT)",
        lambda model, dft: model / dft,
        (
            (lambda model, dft: dft / model, "this is DFT over model. A soft model has a ratio below one."),
            (lambda model, dft: model - dft, "this is a difference, in THz. A ratio is asked for."),
            (lambda model, dft: (model / dft) ** 2, "this is the ratio of the curvatures; that of the frequencies is asked for."),
        ),
    ),
    # Lab 4
    "factor": Question(
        "factor c",
        lambda x, y: 1 / _s(x, y),
        (
            (_s, "this is s. Multiplied with it, forces that are too small become smaller still."),
            (_reverse, "this is s', the other constant. Here the cloud is to be turned onto the diagonal: c = 1/s."),
            (lambda x, y: 1 / _reverse(x, y), "this is 1/s'. The reciprocal of the slope of the *model on DFT* is asked for."),
            (lambda x, y: 1 / _mean_ratio(x, y), "a mean of ratios is not the least-squares slope: components near zero dominate it."),
            (lambda x, y: 1 / _size_ratio(x, y), f"this is a ratio of sizes. {_BLIND}"),
        ),
    ),
    "least-squares factor": Question(
        "factor of least squared error",
        _reverse,
        (
            (lambda x, y: 1 / _s(x, y), "this is 1/s. Write down Σ(c y − x)² and set its derivative with respect to c to zero."),
            (_s, "this is s. Write down Σ(c y − x)² and set its derivative with respect to c to zero."),
            (lambda x, y: 1 / _reverse(x, y), "this is the reciprocal. Whose sum of squares stays in the denominator?"),
        ),
    ),
    "error left": Question(
        "MAE after / before",
        _error_left,
        (
            (lambda c, x, y: _mae(x, c * y), "this is the error after, in eV/Å. Divide it by the error before."),
            (lambda c, x, y: 1 / _error_left(c, x, y), "this is before over after."),
            (lambda c, x, y: _error_left(1 / c, x, y), "the forces were divided by c. E → cE multiplies them."),
            (lambda c, x, y: _mae(c * x, y) / _mae(x, y), "here the DFT forces were multiplied. It is the model that is mended."),
            (lambda c, x, y: 1 - _error_left(c, x, y), "this is the part that was removed. The part that is left is asked for."),
            (
                lambda c, x, y: _rmse(x, c * y) / _rmse(x, y),
                "this is a ratio of root mean *square* errors. That of the mean sizes is asked for.",
            ),
        ),
    ),
    "every label": Question(
        "error left, for every label",
        _every_label,
        (
            (lambda pairs: _every_label(pairs, own=True), "the label is among its tests. A test must not contain what was fitted."),
            (lambda pairs: _every_label(pairs, scale=lambda x, y: 1 / _reverse(x, y)), "here c = s' was used. Use 1/s of the label."),
            (lambda pairs: _every_label(pairs, scale=lambda x, y: 1 / _s(x, y)), "here c = s was used. What mends a soft model is 1/s."),
            (
                lambda pairs: np.array([_error_left(1 / _s(*pair), *pair) for pair in pairs]),
                "each factor was tested on its own label. Test it on all the *other* frames.",
            ),
        ),
        tolerance=1e-6,
    ),
    "mended forces": Question(
        "forces of the mended potential",
        lambda c, f: c * np.asarray(f),
        (
            (lambda c, f: np.asarray(f) / c, "they were divided by c."),
            (lambda c, f: np.asarray(f), "these are the forces of the potential as it was. `scaled` returns a *new* potential."),
            (lambda c, f: c**2 * np.asarray(f), "c is in it twice."),
        ),
    ),
    "forgotten": Question(
        "change of the forces, relative to their mean size",
        lambda before, after: _mae(before, after) / float(np.abs(before).mean()),
        (
            (lambda before, after: _mae(before, after), "this is in eV/Å. Divide it by the mean size of the forces before."),
            (lambda before, after: _mae(before, after) / float(np.abs(after).mean()), "relative to the forces *before* the training."),
            (
                lambda before, after: float(abs(np.abs(after).mean() - np.abs(before).mean()) / np.abs(before).mean()),
                "this compares mean sizes. Compare component by component, then take the mean.",
            ),
        ),
    ),
}
