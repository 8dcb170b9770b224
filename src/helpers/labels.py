"""Labelled frames from files: reading them, and finding what is wrong with them before anything is fitted.

:func:`read` takes every format that ASE reads. :func:`inspect` looks at each frame alone, :func:`compare` at the frames beside a model's
own answer, which betrays wrong units, a wrong sign and energies from elsewhere. Nothing is repaired or dropped silently: both return
:class:`Problem` records, and the caller decides. Frames are counted from 0, as ASE counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.io.formats import UnknownFileTypeError, filetype
from ase.stress import voigt_6_to_full_3x3_stress
from vesin import NeighborList

from helpers import softening
from helpers.finetune import EV_PER_A3_IN_GPA, Label
from helpers.potentials.base import Prediction, StructureError, check_structure

# Names under which DFT answers stand in files, in the order of preference; upper and lower case are the same.
# A calculator's results, which ASE fills from most formats, come between the two groups.
_SOURCES = ("ref", "dft", "vasp", "reference", "target", "true", "label")
_NAMED = {
    what: tuple(name for source in _SOURCES for name in (f"{source}_{what}", f"{what}_{source}"))
    for what in ("forces", "force", "energy", "stress", "virial")
}
_PLAIN = {"forces": ("forces", "force"), "energy": ("energy", "total_energy", "free_energy"), "stress": ("stress",), "virial": ("virial",)}

# Formats of ASE that run what the file says.
_UNSAFE_FORMATS = ("py",)

MIN_DISTANCE = 0.5  # Å; no bond is shorter (H–H: 0.74)
SAME_PLACE = 1e-3  # Å; frames that differ by less are one structure
NO_FORCE = 1e-8  # eV/Å

# What a unit is in eV/Å, eV or GPa.
_FORCE_UNITS = {
    "hartree/bohr": 51.4221,
    "hartree/Å": 27.2114,
    "rydberg/bohr": 25.7110,
    "eV/bohr": 1.88973,
    "kcal/mol/Å": 0.0433641,
    "kJ/mol/Å": 0.0103643,
    "meV/Å or kJ/mol/nm": 0.001,
}
_ENERGY_UNITS = {"hartree": 27.2114, "rydberg": 13.6057, "kcal/mol": 0.0433641, "kJ/mol": 0.0103643, "meV": 0.001}
_STRESS_UNITS = {"GPa": 1 / EV_PER_A3_IN_GPA, "kbar": 0.1 / EV_PER_A3_IN_GPA, "hartree/bohr³": 183.63}

# Model over label: no universal potential is softer or stiffer than this on labels it can be compared with at all.
_PLAUSIBLE = (0.25, 1.65)
_SMALL_FORCES = 0.05  # eV/Å
_CORRELATED = 0.7  # below this correlation a slope says nothing about units

# Energies: eV/atom beyond the fitted reference energies, and in units of the robust standard deviation.
_OUTLIER_FLOOR = 0.1
_OUTLIER_WIDTHS = 6.0


class LabelError(ValueError):
    """Labels cannot be used as they are; the message names file, frame and remedy."""


@dataclass(frozen=True)
class Frame:
    """A structure as read, with what the file says of it.

    Attributes
    ----------
    file : str
    number : int
        In the file, from 0.
    atoms : ase.Atoms
    energy : float or None
        eV.
    forces : ndarray or None
        eV/Å, in whatever shape the file has.
    stress : ndarray of shape (3, 3), or None
        eV/Å³, ASE's sign.
    names : str
        Under which names the answers were found.
    """

    file: str
    number: int
    atoms: ase.Atoms
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None = None
    names: str = ""

    def label(self) -> Label:
        """Return the frame as a label for :mod:`helpers.finetune`."""
        return Label(self.atoms, self.energy, self.forces, self.stress)


@dataclass(frozen=True)
class Problem:
    """Something wrong with labels.

    Attributes
    ----------
    kind : {"file", "frame", "duplicate"}
        ``file``: a whole file is meant, and leaving out frames does not help. ``frame``: one frame. ``duplicate``: the last of the frames
        repeats the first.
    text : str
        What is wrong, with the value, and what to do about it.
    frames : tuple of int
        Positions in the list of frames.
    """

    kind: str
    text: str
    frames: tuple[int, ...]


# ---------------------------------------------------------------------------------------------------
# Reading


def read(paths: Iterable[Path | str]) -> list[Frame]:
    """Read all frames of all files, in order.

    Energies, forces and stresses are taken from arrays and entries named for DFT (``REF_forces``, ``dft_energy``, …), else from the
    results of a calculator, else from plain names (``forces``, ``energy``, ``stress``; ``virial`` is turned into stress, σ = −W/V).

    Raises
    ------
    LabelError
        If a file is missing, holds no frames, cannot be read, or has a format that could run code.
    """
    frames: list[Frame] = []
    for path in map(Path, paths):
        images = _images(path)
        if not images:
            raise LabelError(f"{path} holds no frames.")
        frames += [_frame(str(path), number, atoms) for number, atoms in enumerate(images)]
    if not frames:
        raise LabelError("no label files were given.")
    return frames


def from_labels(labels: Sequence[Label], source: str = "labels") -> list[Frame]:
    """Return labels that are in memory as frames."""
    return [Frame(source, number, one.atoms, one.energy, one.forces, one.stress) for number, one in enumerate(labels)]


def _images(path: Path) -> list[ase.Atoms]:
    if not path.is_file():
        raise LabelError(f"{path}: no such file.")
    try:
        kind = filetype(str(path))
        if kind in _UNSAFE_FORMATS:
            raise LabelError(f"{path}: files of the format {kind!r} can run code and are not read; convert it to extxyz.")
        return ase.io.read(path, index=":", format=kind, do_not_split_by_at_sign=True)
    except UnknownFileTypeError as error:
        raise LabelError(
            f"{path}: ASE does not recognise the format ({error}). It goes by names such as .extxyz, .traj, .db, vasprun.xml, OUTCAR."
        ) from error
    except LabelError:
        raise
    except Exception as error:  # a damaged file makes ASE's readers raise whatever its bytes lead to
        reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
        raise LabelError(f"{path} cannot be read by ASE ({reason}). Is the file complete, and is its name that of its format?") from error


def _frame(file: str, number: int, atoms: ase.Atoms) -> Frame:
    found = {what: _find(atoms, what) for what in ("forces", "energy", "stress")}
    forces, energy, stress = (found[what][1] for what in ("forces", "energy", "stress"))
    names = ", ".join(name for name, _ in found.values() if name)
    bare = atoms.copy()
    # Nothing of the answers stays in the structure, where it could be mistaken for a model's.
    bare.info, bare.arrays = {}, {name: bare.arrays[name] for name in ("numbers", "positions")}
    return Frame(
        file=file,
        number=number,
        atoms=bare,
        energy=None if energy is None else float(np.asarray(energy).reshape(-1)[0]),
        forces=None if forces is None else np.asarray(forces, dtype=float),
        stress=None if stress is None else _tensor(stress),
        names=names,
    )


def _find(atoms: ase.Atoms, what: str) -> tuple[str, object | None]:
    """Return the name under which an answer was found, and the answer."""
    named = _NAMED[what] + (_NAMED["force"] if what == "forces" else ())
    for name, value in _entries(atoms, named):
        return name, value
    if what == "stress":
        for name, value in _entries(atoms, _NAMED["virial"]):
            return name, _stress_of(value, atoms)
    results = getattr(atoms.calc, "results", None) or {}
    for name in _PLAIN[what]:
        if results.get(name) is not None:
            return f"{name} (calculator)", results[name]
    for name, value in _entries(atoms, _PLAIN[what]):
        return name, value
    if what == "stress":
        for name, value in _entries(atoms, _PLAIN["virial"]):
            return name, _stress_of(value, atoms)
    return "", None


def _entries(atoms: ase.Atoms, names: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Yield the arrays and entries of a structure with these names, in the order of the names."""
    there = {name.lower(): (name, value) for store in (atoms.info, atoms.arrays) for name, value in store.items()}
    return (there[name] for name in names if name in there)


def _tensor(stress: object) -> np.ndarray:
    """Return a stress of 6 (Voigt) or 9 numbers as a matrix; anything else as NaN, which :func:`inspect` reports."""
    values = np.asarray(stress, dtype=float).ravel()
    if values.size == 6:
        return voigt_6_to_full_3x3_stress(values)
    return values.reshape(3, 3) if values.size == 9 else np.full((3, 3), np.nan)


def _stress_of(virial: object, atoms: ase.Atoms) -> np.ndarray:
    volume = abs(np.linalg.det(atoms.cell.array))
    return -_tensor(virial) / volume if volume > 0 else np.full((3, 3), np.nan)


# ---------------------------------------------------------------------------------------------------
# Each frame alone


def inspect(frames: Sequence[Frame], elements: frozenset[int]) -> list[Problem]:
    """Find frames that no model could be fitted to, and frames that occur twice.

    Parameters
    ----------
    frames : sequence of Frame
    elements : frozenset of int
        Atomic numbers that the model knows.
    """
    found = [Problem("frame", text, (k,)) for k, frame in enumerate(frames) if (text := _fault(frame, elements))]
    bad = {problem.frames[0] for problem in found}
    for first, second in duplicates(frames, [k for k in range(len(frames)) if k not in bad]):
        text = f"the same structure as {_name(frames[first])} (all atoms within {SAME_PLACE:g} Å)"
        found.append(Problem("duplicate", text, (first, second)))
    return found


def _fault(frame: Frame, elements: frozenset[int]) -> str:
    """Return what is wrong with a frame, or an empty text."""
    atoms, forces = frame.atoms, frame.forces
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        return "no periodic cell in all three directions; set cell and pbc (with vacuum around a molecule or slab)"
    try:
        check_structure(atoms.numbers, atoms.positions, atoms.cell.array, elements)
    except StructureError as error:
        return str(error)
    if forces is None:
        return "no forces; write them as forces or REF_forces (eV/Å)"
    if forces.shape != (len(atoms), 3):
        return f"forces of shape {forces.shape}, but {len(atoms)} atoms need ({len(atoms)}, 3)"
    wrong = np.flatnonzero(~np.isfinite(forces).all(axis=1))
    if len(wrong):
        return f"force on atom {wrong[0]} is not a number: {forces[wrong[0]]}"
    if np.abs(forces).max() < NO_FORCE:
        return "all forces are zero: a perfect crystal by symmetry, or forces that were never written; it says nothing about softening"
    if frame.energy is not None and not np.isfinite(frame.energy):
        return f"the energy is not a number: {frame.energy}"
    if frame.stress is not None and not np.isfinite(frame.stress).all():
        return "the stress is not 6 or 9 numbers; mend it, or use --forces-only"
    search = NeighborList(cutoff=MIN_DISTANCE, full_list=False)
    left, right, distance = search.compute(points=atoms.positions, box=atoms.cell.array, periodic=True, quantities="ijd")
    if len(distance):
        k = int(np.argmin(distance))
        return f"atoms {left[k]} and {right[k]} are {distance[k]:.2f} Å apart (less than {MIN_DISTANCE:g} Å); are positions in Å?"
    return ""


def duplicates(frames: Sequence[Frame], chosen: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs (first, repeated) of frames with the same cell and the same atoms, in the same order, within :data:`SAME_PLACE`."""
    groups: dict[bytes, list[int]] = {}
    for k in chosen:
        groups.setdefault(frames[k].atoms.numbers.tobytes(), []).append(k)
    pairs = []
    for members in groups.values():
        cells = np.stack([frames[k].atoms.cell.array for k in members])
        positions = np.stack([frames[k].atoms.positions for k in members])
        repeated: set[int] = set()
        for here, first in enumerate(members):
            if here in repeated:
                continue
            near = here + 1 + np.flatnonzero(np.abs(cells[here + 1 :] - cells[here]).max(axis=(1, 2), initial=0) < SAME_PLACE)
            step = (positions[near] - positions[here]) @ np.linalg.inv(cells[here])
            apart = np.abs((step - np.round(step)) @ cells[here]).max(axis=(1, 2), initial=0)
            for other in near[apart < SAME_PLACE]:
                repeated.add(int(other))
                pairs.append((first, members[other]))
    return sorted(pairs, key=lambda pair: pair[::-1])


# ---------------------------------------------------------------------------------------------------
# Beside the model's own answer


def compare(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> tuple[list[Problem], list[str]]:
    """Compare labels with a model's answers, file by file.

    Units are recognised by the slope of model against label, a robust one for forces: a soft model has 0.7 to 1, hartree/bohr gives about
    50. Energies are compared after a reference energy per element has been fitted, so a constant offset between codes does no harm.

    Parameters
    ----------
    frames : sequence of Frame
        Without those that :func:`inspect` finds fault with.
    predictions : sequence of Prediction
        Of the same frames; with stress if that is to be checked.

    Returns
    -------
    problems : list of Problem
    notes : list of str
        What is allowed but should be known.
    """
    problems = [
        Problem("frame", f"the model cannot evaluate it: {prediction.error}", (k,))
        for k, prediction in enumerate(predictions)
        if not prediction.ok
    ]
    notes: list[str] = []
    good = [k for k, prediction in enumerate(predictions) if prediction.ok]
    for file, members in groupby(good, key=lambda k: frames[k].file):
        chosen = list(members)
        for text in (_forces_off, _stress_off):
            if fault := text(frames, predictions, chosen, notes):
                problems.append(Problem("file", f"{file}: {fault}", tuple(chosen)))
    with_energy = [k for k in good if frames[k].energy is not None]
    if not problems and len(with_energy) > 1:
        problems += _energies_off(frames, predictions, with_energy, notes)
    notes += _states(frames)
    return problems, notes


def _unit(slope: float, units: dict[str, float]) -> str | None:
    """Return the unit that would make a slope of model on label the most plausible, or None if no unit does."""
    low, high = _PLAUSIBLE
    fitting = {name: abs(np.log(slope / factor / 0.85)) for name, factor in units.items() if low <= slope / factor <= high}
    return min(fitting, key=fitting.get) if fitting else None


def _joined(frames: Sequence[Frame], predictions: Sequence[Prediction], chosen: Sequence[int], what: str) -> tuple[np.ndarray, np.ndarray]:
    label = np.concatenate([np.asarray(getattr(frames[k], what)).ravel() for k in chosen])
    return label, np.concatenate([np.asarray(getattr(predictions[k], what)).ravel() for k in chosen])


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    length = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / length) if length > 0 else 0.0


def _forces_off(frames, predictions, chosen, notes) -> str:
    """Return what is wrong with the forces of a file as a whole, or an empty text."""
    label, model = _joined(frames, predictions, chosen, "forces")
    if model.min() == model.max():
        return ""
    size = float(np.sqrt(np.mean(label**2)))
    if size < _SMALL_FORCES:
        notes.append(
            f"{frames[chosen[0]].file}: the forces are small ({size:.3f} eV/Å, root mean square). Relaxed structures say little about "
            "softening; frames from molecular dynamics, or with displaced atoms, say more."
        )
    r, slope = _correlation(label, model), softening.robust_slope(label, model)
    if r < -0.5:
        return f"the forces point against the model's (correlation {r:.2f}): they look like gradients; change their sign."
    if r < _CORRELATED:
        notes.append(
            f"{frames[chosen[0]].file}: labels and model hardly agree on forces (correlation {r:.2f}). Check that the order of the "
            "atoms is the same for positions and forces."
        )
        return ""
    if _PLAUSIBLE[0] <= slope <= _PLAUSIBLE[1]:
        return ""
    beginning = f"the model's forces are {slope:.3g} times the labels'"
    unit = _unit(slope, _FORCE_UNITS)
    if unit is None:
        return f"{beginning}, which fits no unit known here; forces must be in eV/Å."
    factor = _FORCE_UNITS[unit]
    return f"{beginning}, as if those were in {unit}; they must be in eV/Å: multiply them by {factor:.6g} (and see to the energies)."


def _stress_off(frames, predictions, chosen, notes) -> str:
    """Return what is wrong with the stresses of a file as a whole, or an empty text."""
    chosen = [k for k in chosen if frames[k].stress is not None and predictions[k].stress is not None]
    if not chosen:
        return ""
    label, model = _joined(frames, predictions, chosen, "stress")
    r, ratio = _correlation(label, model), np.sqrt((model @ model) / max(label @ label, 1e-300))
    remedy = "mend them, or leave stresses and energies out with --forces-only."
    if r < -_CORRELATED:
        return f"the stresses have the wrong sign (correlation with the model {r:.2f}); ASE's stress is positive under tension: {remedy}"
    # A model may well see stress where a relaxed DFT cell has none, but not the other way round.
    unit = _unit(ratio, _STRESS_UNITS)
    if ratio < 0.05 or (ratio > 20 and r > _CORRELATED):
        looks = f", as if those were in {unit}" if unit else ""
        return f"the model's stresses are {ratio:.2g} times the labels'{looks}; they must be in eV/Å³: {remedy}"
    return ""


def counts(frames: Sequence[Frame | Label]) -> np.ndarray:
    """Return how many atoms of each element (columns: those that occur) each frame has."""
    elements = np.unique(np.concatenate([frame.atoms.numbers for frame in frames]))
    return np.stack([(frame.atoms.numbers[:, None] == elements).sum(axis=0) for frame in frames]).astype(float)


def _energies_off(frames, predictions, chosen, notes) -> list[Problem]:
    """Find energies of a wrong unit, and frames whose energy does not belong with the others."""
    table = counts([frames[k] for k in chosen])
    size = table.sum(axis=1)
    label = np.array([frames[k].energy for k in chosen])
    model = np.array([predictions[k].energy for k in chosen])
    spare = len(chosen) - np.linalg.matrix_rank(table)
    if spare < 1:
        notes.append("Energies cannot be checked: there are no more frames than reference energies of elements.")
        return []
    if spare >= 2 and (text := _energy_unit(table, label, model)):
        return [Problem("file", f"{frames[chosen[0]].file}: {text}", tuple(chosen))]
    rest = (label - model) / size - (table / size[:, None]) @ _robust_shift(table / size[:, None], (label - model) / size)
    centre = np.median(rest)
    width = 1.4826 * np.median(np.abs(rest - centre))
    limit = max(_OUTLIER_FLOOR, _OUTLIER_WIDTHS * width)
    outside = np.abs(rest - centre) > limit
    if not outside.any():
        outside = _second_group(rest)
    if spare < 2 and outside.any():
        # Two frames disagree, but not even a majority can say which of them is wrong.
        notes.append(
            f"The energies of the frames disagree by up to {np.ptp(rest):.2f} eV/atom beyond the model's; check that they are of one kind."
        )
        return []
    text = (
        "energy {:+.2f} eV/atom off the other frames (model and reference energies of elements subtracted); another functional or setting?"
    )
    return [Problem("frame", text.format(rest[n] - np.median(rest[~outside])), (chosen[n],)) for n in np.flatnonzero(outside)]


def _energy_unit(table: np.ndarray, label: np.ndarray, model: np.ndarray) -> str:
    """Return what the slope of energies, compositions taken out, says about their unit; an empty text if that is plausible."""
    inside = table @ np.linalg.pinv(table)
    x, y = label - inside @ label, model - inside @ model
    if (x @ x) < 1e-8 * len(x) or _correlation(x, y) < 0.9:
        return ""
    slope = float(x @ y / (x @ x))
    if 0.2 <= slope <= 2.5:
        return ""
    units = _ENERGY_UNITS | {"eV per atom instead of eV per cell": float(table.sum(axis=1).mean())}
    unit = _unit(slope, units)
    looks = f", as if those were in {unit}" if unit else ", which fits no unit known here"
    return f"energy differences of the model are {slope:.3g} times the labels'{looks}; they must be in eV, for the whole cell."


def _robust_shift(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the solution of table · x = values that minimises the sum of absolute errors (iteratively reweighted least squares)."""
    weight = np.ones(len(values))
    for _ in range(50):
        solution = np.linalg.lstsq(table * weight[:, None], values * weight, rcond=None)[0]
        weight = 1 / np.sqrt(np.maximum(np.abs(values - table @ solution), 1e-6))
    return solution


def _second_group(rest: np.ndarray) -> np.ndarray:
    """Mark the smaller part if a gap much wider than either part's spread divides the values: two sources in one set."""
    order = np.argsort(rest)
    gaps = np.diff(rest[order])
    at = int(np.argmax(gaps))
    low, high = order[: at + 1], order[at + 1 :]
    marked = np.zeros(len(rest), dtype=bool)
    if gaps[at] > max(_OUTLIER_FLOOR, 3 * np.ptp(rest[low]), 3 * np.ptp(rest[high])):
        marked[min(low, high, key=len)] = True
    return marked


def _states(frames: Sequence[Frame]) -> list[str]:
    """Return what a set is made of, where it is not the same throughout."""
    formulas = sorted({frame.atoms.get_chemical_formula(mode="hill", empirical=True) for frame in frames})
    found = []
    if len(formulas) > 1:
        shown = ", ".join(formulas[:8]) + (", …" if len(formulas) > 8 else "")
        found.append(
            f"The labels are of {len(formulas)} compositions ({shown}): one factor, or one set of weights, has to serve all of them."
        )
    for what in ("energy", "stress"):
        n = sum(getattr(frame, what) is None for frame in frames)
        if 0 < n < len(frames):
            found.append(f"{n} of {len(frames)} frames have no {what}; full fine-tuning then trains on no {what} at all.")
    return found


# ---------------------------------------------------------------------------------------------------
# In words


def _name(frame: Frame) -> str:
    return f"{frame.file}, frame {frame.number}"


def listed(frames: Sequence[Frame], problems: Sequence[Problem]) -> list[str]:
    """Return problems as lines, one per file and text, with the numbers of all frames it holds for."""
    lines: dict[tuple[str, str], list[int]] = {}
    for problem in problems:
        frame = frames[problem.frames[-1]]
        numbers = lines.setdefault(("" if problem.kind == "file" else frame.file, problem.text), [])
        numbers.append(frame.number)
    return [text if not file else f"{file}, {_numbers(numbers)}: {text}" for (file, text), numbers in lines.items()]


def _numbers(numbers: Sequence[int]) -> str:
    """Return frame numbers in words, runs joined: ``frames 0–3, 7``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"frame{'s' if len(numbers) > 1 else ''} {text}"
