"""Labelled frames from files: reading them, and finding what is wrong with them before anything is fitted.

:func:`read` takes every format that ASE reads. :func:`inspect` looks at each frame alone, :func:`compare` at all frames beside a model's
own answer, which betrays wrong units, a wrong sign, another order of atoms and energies from elsewhere: a frame is judged beside the
others, whatever file it is in. Nothing is repaired or dropped silently: both return :class:`Problem` records, and the caller decides.
Frames are counted from 0, as ASE counts them.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import all_properties
from ase.data import covalent_radii
from ase.io.formats import UnknownFileTypeError, filetype, open_with_compression
from ase.io.vasp import read_vasp_xml
from ase.io.vasp_parsers.vasp_outcar_parsers import outcarchunks
from ase.stress import voigt_6_to_full_3x3_stress
from scipy.optimize import linear_sum_assignment
from vesin import NeighborList

from helpers import softening, structures
from helpers.potentials.base import Prediction, StructureError
from helpers.potentials.neighbours import check_structure
from helpers.training import force_constants
from helpers.training.fine_tune import EV_PER_A3_IN_GPA, Label

# Names under which DFT answers stand in files, in the order of preference; upper and lower case are the same.
# A calculator's results, which ASE fills from most formats, come between those with a source and the plain ones.
_PLAIN = {
    "forces": ("forces", "force"),
    "energy": ("energy", "energies", "total_energy", "free_energy"),
    "stress": ("stress", "stresses"),
    "virial": ("virial", "virials"),
}
_SOURCES = ("ref", "dft", "vasp", "reference", "target", "true", "label")
_NAMED = {
    what: tuple(name for source in _SOURCES for stem in stems for name in (f"{source}_{stem}", f"{stem}_{source}"))
    for what, stems in _PLAIN.items()
}
_ANSWERS = frozenset(all_properties).union(*_PLAIN.values(), *_NAMED.values())
_LIKE_AN_ANSWER = re.compile(r"(?:^|[^a-z])(?:forces?|energ(?:y|ies)|stress(?:es)?|virials?)(?:$|[^a-z])", re.IGNORECASE)
_BESIDES = ("free_energy (calculator)", "energies (calculator)", "stresses (calculator)")  # in every calculator's results

_UNSAFE_FORMATS = ("py",)  # formats of ASE that run what the file says
_TRIES = 10  # damaged frames in a row after which a file is given up
_STEP_ENDS = "FREE ENERGIE OF THE ION-ELECTRON SYSTEM"
_CUT = "the file ends in the middle of this ionic step; was the run killed?"
_UNCONVERGED = "the electronic loop of this ionic step did not converge (EDIFF was not reached within NELM steps): not the forces of DFT"
_NOT_DFT = "this ionic step is of VASP's machine-learned force field (ML_LMLFF), not of DFT"

# Of the sum of two covalent radii. In DFT data under 900 GPa the smallest is 0.44 (K–K at 1.8 Å); H–H in the molecule has 1.19.
CONTACT = 0.4
SAME_PLACE = 1e-3  # Å; frames that differ by less are one structure
NO_FORCE = 1e-8  # eV/Å

# What a unit is in eV/Å, eV or eV/Å³.
_BOHR = 1.889726
_FORCE_UNITS = {
    "hartree/bohr": 51.4221,
    "hartree/Å": 27.2114,
    "rydberg/bohr": 25.7110,
    "eV/bohr": _BOHR,
    "kcal/mol/Å": 0.0433641,
    "kJ/mol/Å": 0.0103643,
    "eV/Å times Å/bohr": 1 / _BOHR,
    "meV/Å (kJ/mol/nm)": 0.001,
}
_LIKE_SOFTNESS = ("eV/bohr", "eV/Å times Å/bohr")
_ENERGY_UNITS = {"hartree": 27.2114, "rydberg": 13.6057, "kcal/mol": 0.0433641, "kJ/mol": 0.0103643, "meV": 0.001}
_STRESS_UNITS = {name: size / EV_PER_A3_IN_GPA for name, size in {"GPa": 1, "kbar": 0.1, "bar": 1e-4, "MPa": 1e-3}.items()}
_STRESS_UNITS |= {"hartree/bohr³": 183.63, "rydberg/bohr³": 91.82, "eV/bohr³": _BOHR**3}

# Six numbers of a stress: ASE's order, where it stands in the matrix, VASP's, LAMMPS's, the others of the shear, rows of a triangle.
_ASE, _VOIGT = "xx,yy,zz,yz,xz,xy", ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
_ORDERS = (_ASE, "xx,yy,zz,xy,yz,xz", "xx,yy,zz,xy,xz,yz", "xx,yy,zz,yz,xy,xz", "xx,yy,zz,xz,yz,xy", "xx,yy,zz,xz,xy,yz")
_ORDERS += ("xx,xy,xz,yy,yz,zz", "xx,xy,yy,xz,yz,zz")

# Model over label: no universal potential is softer or stiffer than this on labels it can be compared with at all.
_PLAUSIBLE = (0.25, 1.65)
_CONCEIVABLE = (0.1, 5.0)  # but it may be as wrong as this where it was hardly trained (CHGNet on EuGa2: 0.17)
_USUAL = (0.5, 1.25)  # beyond, eV/bohr is as likely as softness
_CORRELATED = 0.7  # below this correlation a slope says nothing, about units or softness
_SMALL_FORCES = 0.05  # eV/Å
_NET = 0.02, 0.05  # mean force of a frame: eV/Å, and of its root mean square
_FORCE_NOISE, _STRESS_NOISE = 0.005, 5e-4  # eV/Å, eV/Å³: no label is better
# A frame departs from the others if its error is this many times what is usual for its size; a remedy must make it usual again.
_ODD, _USUAL_AGAIN = 2.0, 1.5
# Beside others that agree with the model this well, an error this many times the usual one is told, whether or not a remedy is known.
_AGREED, _FAR, _LOW = 0.95, 4.0, 0.98
# Distances of nearest neighbours over the sum of covalent radii. In crystals it is 0.85 to 1.3.
_APART = (0.55, 1.55)
_FEW = 4  # frames; of fewer no slope of energies and no order of shears is told

# Energies, eV/atom beyond the model and the reference energies of elements.
_OUTLIER, _OUTLIER_WIDTHS = 0.1, 6.0  # at least, and in robust standard deviations
_OUTLIER_SHARE = 0.4  # of the distance from the others: in molybdenum CHGNet's slope goes from 0.5 to 0.75 with temperature
_GROUPS = 0.02
_ENERGY_NOISE = 0.003  # a model's energy differences below this say nothing


class LabelError(ValueError):
    """Labels cannot be used as they are; the message names file, frame and remedy."""


@dataclass(frozen=True)
class Frame:
    """A structure as read, with what the file says of it."""

    # Counted in the file, from 0.
    file: str
    number: int
    # Without constraints and answers; charge, spin, initial magnetic moments, tags and whatever else a calculator may read stay.
    atoms: ase.Atoms
    energy: float | None  # eV
    forces: np.ndarray | None  # eV/Å, as in the file, in whatever shape it has
    stress: np.ndarray | None = None  # shape (3, 3); eV/Å³, ASE's sign
    names: str = ""  # under which names the answers were found
    fault: str = ""  # why the frame is no DFT label, as far as reading shows; empty if it is one
    remarks: tuple[str, ...] = ()  # what was found in the file and not used
    curvature: Label | None = None  # the same with force constants, where the file is phonopy's

    @property
    def counted(self) -> np.ndarray:
        """Which components of the forces count, shape (n_atoms, 3).

        One of exactly zero among others that are not comes from ``get_forces`` of atoms that were held, not from DFT, or is so by
        symmetry: then nothing is lost.
        """
        if self.forces is None or self.curvature is not None or self.forces.shape != (len(self.atoms), 3):
            return np.ones((len(self.atoms), 3), dtype=bool)
        moved = self.forces != 0
        return moved if moved.any() else ~moved

    def label(self) -> Label:
        """Return the frame as a label for :mod:`helpers.training.fine_tune`; forces that do not count (:attr:`counted`) are NaN."""
        if self.forces is None:
            raise LabelError(f"{self.file}, frame {self.number}: there are no forces")
        if self.curvature is not None:
            return self.curvature
        counted = self.counted
        forces = self.forces if counted.all() else np.where(counted, self.forces, np.nan)
        return Label(self.atoms, self.energy, forces, self.stress)


@dataclass(frozen=True)
class Problem:
    """Something wrong with labels."""

    # ``file``: most of the labels are meant, and leaving out frames does not help. ``frame``: one frame. ``duplicate``: the last of the
    # frames repeats the first.
    kind: str
    text: str  # what is wrong, with the value, and what to do about it
    frames: tuple[int, ...]  # positions in the list of frames


# ---- Reading --------------------------------------------------------------------------------------


def read(sources: Path | str | Iterable[Path | str]) -> list[Frame]:
    """Read all frames of all files, in order.

    Energies, forces and stresses are taken from arrays and entries named for DFT (``REF_forces``, ``dft_energy``, …), else from the results
    of a calculator, else from plain names (``forces``, ``energy``, ``stress``, ``virials``, …; a virial is turned into stress, σ = −W/V).
    Of a vasprun.xml or OUTCAR every ionic step that was begun is a frame, also those that cannot be read or are no DFT. Of a folder, and of
    the folders in it, all files with forces are read, in natural order. LabelError if a file is missing, holds no frames, cannot be read,
    or has a format that could run code.
    """
    paths = [Path(source) for source in ([sources] if isinstance(sources, (str, PathLike)) else sources)]
    if not paths:
        raise LabelError("no label files were given.")
    return [frame for path in paths for frame in (_folder(path) if path.is_dir() else _file(path))]


def from_labels(labels: Sequence[Label], source: str = "labels") -> list[Frame]:
    """Return labels that are in memory as frames; forces may be lists, and a stress may have six numbers (ASE's order)."""
    found = []
    for number, one in enumerate(labels):
        (atoms,) = structures.many(one.atoms)
        found.append(_built(source, number, atoms, {"energy": one.energy, "forces": one.forces, "stress": one.stress}))
    return found


def _folder(folder: Path) -> list[Frame]:
    inside = [
        path for path in folder.rglob("*") if os.path.isfile(path) and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    with_xml = {path.parent for path in inside if "vasprun" in path.name}
    found: list[Frame] = []
    skipped: list[str] = []
    for path in sorted(inside, key=lambda path: _natural(str(path.relative_to(folder)))):
        try:
            frames = [] if path.parent in with_xml and "OUTCAR" in path.name else _file(path)
            reason = "the same steps as its vasprun.xml" if not frames else "no forces"
        except LabelError as error:
            frames, reason = [], str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")
        if any(frame.forces is not None or frame.fault for frame in frames):
            found += frames
        else:
            skipped.append(f"{path.relative_to(folder)} ({reason})")
    if not found:
        raise LabelError(f"{folder} holds no file with forces" + (f"; skipped: {'; '.join(skipped)}" if skipped else "."))
    if skipped:
        # With every frame, since any may be left out.
        remark = f"of the folder {folder} these were skipped: {'; '.join(skipped)}"
        found = [replace(frame, remarks=(*frame.remarks, remark)) for frame in found]
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names as people do: 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]


def _file(path: Path) -> list[Frame]:
    if not os.path.isfile(path):
        pattern = "; no file matched this pattern: were the frames computed?" if set("*?[") & set(str(path)) else ""
        raise LabelError(f"{path}: {'not a regular file' if os.path.exists(path) else 'no such file'}{pattern}.")
    try:
        if force_constants.is_one(path):
            read = enumerate(force_constants.read(path))
            return [Frame(str(path), k, one.atoms, None, one.forces, names="phonopy's forces", curvature=one) for k, one in read]
        kind = filetype(str(path))
        if kind in _UNSAFE_FORMATS:
            raise LabelError(f"{path}: files of the format {kind!r} can run code and are not read; convert it to extxyz.")
        images = list({"vasp-xml": _vasprun, "vasp-out": _outcar}.get(kind, _images)(path, kind))
    except UnknownFileTypeError as error:
        known = "It goes by names such as .extxyz, .traj, .db, vasprun.xml, OUTCAR; write what it does not know (CP2K) as extxyz."
        raise LabelError(f"{path}: ASE does not recognise the format ({error}). {known}") from error
    except LabelError:
        raise
    except Exception as error:  # a damaged file makes ASE's readers raise whatever its bytes lead to
        reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
        reader = "phonopy" if force_constants.is_one(path) else "ASE"
        raise LabelError(
            f"{path} cannot be read by {reader} ({reason}). Is the file complete, and is its name that of its format?"
        ) from error
    if not images:
        raise LabelError(f"{path} holds no frames.")
    return [as_frame(str(path), number, atoms, fault) for number, (atoms, fault) in enumerate(images)]


def _images(path: Path, kind: str) -> list[tuple[ase.Atoms | None, str]]:
    """Return structures with what is wrong with them as labels; a damaged frame among others is passed over."""
    found: list[tuple[ase.Atoms | None, str]] = []
    errors: list[Exception] = []
    while not errors or len(errors) < _TRIES:
        try:
            for atoms in ase.io.iread(str(path), index=slice(len(found), None), format=kind, do_not_split_by_at_sign=True):
                found.append((atoms, ""))
                errors = []
            break
        except Exception as error:  # noqa: BLE001  (a damaged file makes ASE's readers raise whatever its bytes lead to)
            errors.append(error)
            found.append((None, f"it cannot be read ({type(error).__name__}: {error})"))
    if errors and (len(errors) == _TRIES or len(errors) == len(found)):
        raise errors[0]
    if kind == "extxyz":
        with open_with_compression(str(path), "rb") as file:
            begun = sum(b"Lattice=" in line for line in file)
        if begun > len(found):
            found.append((None, f"ASE stops here, though {begun} frames begin in the file: an empty line, or a wrong number of atoms?"))
    return found


def _vasprun(path: Path, kind: str) -> Iterator[tuple[ase.Atoms | None, str]]:
    """Yield the ionic steps of a vasprun.xml, each read by itself, so that one that is damaged takes no other with it."""
    head, *steps = _text(path).split("<calculation>")
    limit = re.search(r'name="NELM">\s*(\d+)', head)
    for step in steps:
        body, end, _ = step.partition("</calculation>")
        n_electronic = body.count("<scstep>")
        unconverged = limit and n_electronic >= int(limit[1])
        fault = _CUT if not end else _NOT_DFT if not n_electronic else _UNCONVERGED if unconverged else ""
        xml = io.StringIO(f"{head}<calculation>{body}</calculation></modeling>")
        yield _step(lambda xml=xml: next(read_vasp_xml(xml, index=slice(None))), fault)


def _outcar(path: Path, kind: str) -> Iterator[tuple[ase.Atoms | None, str]]:
    """Yield the ionic steps of an OUTCAR."""
    text = _text(path)
    file = io.StringIO(text, newline=None)
    file.name = str(path)
    limit = re.search(r"NELM\s*=\s*(\d+)", text)
    for chunk in outcarchunks(file):
        lines = "".join(chunk.lines)
        loops = re.findall(r"Iteration\s+\d+\(\s*(\d+)\)", lines)
        # VASP 5 writes that EDIFF is reached when it gives up, too.
        unconverged = "EDIFF is reached" not in lines or (limit and int(loops[-1] if loops else 1) >= int(limit[1]))
        yield _step(chunk.build, _NOT_DFT if f"ML {_STEP_ENDS}" in lines else _UNCONVERGED if unconverged else "")
    if "Iteration" in text.rpartition(_STEP_ENDS)[2]:
        yield None, _CUT


def _text(path: Path) -> str:
    with open_with_compression(str(path), "rb") as file:
        return file.read().decode(errors="replace")


def _step(build: Callable[[], ase.Atoms], fault: str) -> tuple[ase.Atoms | None, str]:
    if fault in (_CUT, _NOT_DFT):
        return None, fault
    try:
        return build(), fault
    except Exception as error:  # noqa: BLE001  (see _images)
        return None, f"this ionic step cannot be read ({type(error).__name__}: {error})"


def as_frame(file: str, number: int, atoms: ase.Atoms | None, fault: str) -> Frame:
    """Return a structure as a frame, with the answers found in it; ``fault`` says why they cannot be used."""
    if atoms is None:
        return Frame(file, number, ase.Atoms(), None, None, fault=fault)
    answers: dict[str, np.ndarray] = {}
    used, unused = [], []
    for what in ("forces", "energy", "stress"):
        for name, kind, value in _offers(atoms, what):
            answer, reason = _usable(kind, value, atoms)
            if answer is not None and what not in answers:
                answers[what] = answer
                used.append(name)
            elif name not in _BESIDES or what not in answers:
                unused.append(f"{name} ({reason})" if reason else name)
    unused += [
        name
        for name, value in (*atoms.info.items(), *atoms.arrays.items())
        if name.lower() not in _ANSWERS and _LIKE_AN_ANSWER.search(name) and not isinstance(value, str)
    ]
    remarks = (f"found and not used: {', '.join(unused)}",) if unused else ()
    return _built(file, number, atoms, answers, names=", ".join(used), fault=fault, remarks=remarks)


def _offers(atoms: ase.Atoms, what: str) -> Iterator[tuple[str, str, object]]:
    """Yield name, kind and value of everything that may be an answer, the best first."""
    there = {name.lower(): (name, value) for store in (atoms.info, atoms.arrays) for name, value in store.items()}
    results = {name: (f"{name} (calculator)", value) for name, value in (getattr(atoms.calc, "results", None) or {}).items()}
    for table, store in ((_NAMED, there), (_PLAIN, results), (_PLAIN, there)):
        for kind in ("stress", "virial") if what == "stress" else (what,):
            yield from ((store[n][0], kind, store[n][1]) for n in table[kind] if n in store and store[n][1] is not None)


def _usable(kind: str, value: object, atoms: ase.Atoms) -> tuple[np.ndarray | None, str]:
    """Return an answer as numbers, a virial as stress; or None and why it is none."""
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return None, "not numbers"
    if kind == "forces":
        return numbers, ""
    n = len(atoms)
    if n > 1 and numbers.size in ((n,) if kind == "energy" else (6 * n, 9 * n)):
        return None, "one per atom: not the stress of the cell" if kind != "energy" else "one per atom"
    if kind == "virial":
        volume = abs(np.linalg.det(atoms.cell.array))
        numbers = -_tensor(numbers) / volume if volume > 0 else np.full((3, 3), np.nan)
    return numbers, ""


def _built(file: str, number: int, atoms: ase.Atoms, answers: Mapping[str, Any], *, names="", fault="", remarks=()) -> Frame:
    """Return a frame of a bare structure and of answers as arrays."""
    bare = structures.enter(atoms)
    # Nothing of the answers stays in the structure, where it could be mistaken for a model's.
    for store in (bare.info, bare.arrays):
        for name in [name for name in store if name.lower() in _ANSWERS]:
            del store[name]
    energy, forces, stress = (answers.get(what) for what in ("energy", "forces", "stress"))
    stress = None if stress is None else _tensor(stress)
    if stress is not None and not stress.any() and forces is not None and np.any(forces):
        stress = None
        remarks = (*remarks, "the stress is zero beside forces that are not: it was not computed, and is not used")
    return Frame(
        file=file,
        number=number,
        atoms=bare,
        energy=None if energy is None else float(np.asarray(energy).reshape(-1)[0]),
        forces=None if forces is None else np.asarray(forces, dtype=float),
        stress=stress,
        names=names,
        fault=fault,
        remarks=remarks,
    )


def _tensor(stress: object) -> np.ndarray:
    """Return a stress of 6 (Voigt) or 9 numbers as a matrix; anything else as NaN, which :func:`inspect` reports."""
    values = np.asarray(stress, dtype=float).ravel()
    if values.size == 6:
        return voigt_6_to_full_3x3_stress(values)
    return values.reshape(3, 3) if values.size == 9 else np.full((3, 3), np.nan)


# ---- Each frame alone -----------------------------------------------------------------------------


def inspect(frames: Sequence[Frame], elements: frozenset[int]) -> list[Problem]:
    """Find frames that no model could be fitted to, given the atomic numbers that it knows, and frames that occur twice."""
    found = [Problem("frame", text, (k,)) for k, frame in enumerate(frames) if (text := frame.fault or _fault(frame, elements))]
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
        return "; ".join(("no forces; write them as forces or REF_forces (eV/Å)", *frame.remarks))
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
        return "the stress is not 6 or 9 numbers; correct it, or use --forces-only"
    radii = covalent_radii[atoms.numbers]
    search = NeighborList(cutoff=2 * CONTACT * radii.max(), full_list=False)
    left, right, distance = search.compute(points=atoms.positions, box=atoms.cell.array, periodic=True, quantities="ijd")
    limit = CONTACT * (radii[left] + radii[right])
    if (distance < limit).any():
        k = int(np.argmin(distance / limit))
        pair = " and ".join(f"{at} ({atoms.symbols[at]})" for at in (int(left[k]), int(right[k])))
        least = f"{CONTACT:g} of their covalent radii ({limit[k]:.2f} Å)"
        return f"atoms {pair} are {distance[k]:.2f} Å apart, less than {least}; are positions in Å?"
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


# ---- Beside the model's own answer ----------------------------------------------------------------


def compare(frames: Sequence[Frame], predictions: Sequence[Prediction], *, energies: bool = True) -> tuple[list[Problem], list[str]]:
    """Compare labels with a model's answers, each frame beside all others.

    A frame is told from the others by correlation and slope of model against label, and by an error that is large for the size of its
    forces: a soft or noisy model is so on all frames, a wrong sign, unit or order of atoms is not. Where most frames are wrong in the
    same way, that is said of all of them. Energies are compared after slope and a reference energy per element have been fitted, so
    neither softness nor a constant offset between codes does harm. If ``energies`` are not used at all, what is wrong with them is a note.

    Frames come without those that :func:`inspect` finds fault with, predictions with stress if that is to be checked. Returned are
    problems, and notes: what is allowed but should be known.
    """
    bad = [k for k, prediction in enumerate(predictions) if not prediction.ok]
    problems = [Problem("frame", f"the model cannot evaluate it: {predictions[k].error}", (k,)) for k in bad]
    notes = _remarks(frames, predictions)
    good = [k for k in range(len(frames)) if k not in bad]
    found, slope = _forces_off(frames, predictions, good, notes)
    found += _stress_off(frames, predictions, [k for k in good if frames[k].stress is not None and predictions[k].stress is not None])
    problems += found
    sound = [k for k in good if not any(k in problem.frames for problem in found)]
    if slope is not None and sound:
        witnesses = _witnesses(frames, predictions, sound)
        problems += _unit_of_forces(frames, predictions, sound, slope, witnesses, notes)
        if with_energy := [k for k in sound if frames[k].energy is not None]:
            off = _energies_off(frames, predictions, with_energy, witnesses.get("energy differences"), slope, notes)
            problems += off if energies else []
            notes += [] if energies else [f"Not used by this method, but: {line}" for line in listed(frames, off)]
    return problems, notes + _states(frames)


def _remarks(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> list[str]:
    """Return what reading remarked, and what is held, each with the frames it holds for."""
    said: dict[str, list[int]] = {}
    for k, (frame, prediction) in enumerate(zip(frames, predictions, strict=True)):
        held, remarks = ~frame.counted, frame.remarks
        # Where the model has no force either it is symmetry.
        if prediction.ok and (np.abs(prediction.forces[held]) > _FORCE_NOISE).any():
            atoms, single = int(held.all(axis=1).sum()), int(held[~held.all(axis=1)].sum())
            parts = [f"{atoms} atom{'s' * (atoms > 1)} with a force"] * bool(atoms)
            parts += [f"{single} single component{'s' * (single > 1)} of forces"] * bool(single)
            remarks += (f"{' and '.join(parts)} of exactly zero, as get_forces() gives for what is held: left out of every fit",)
        for remark in remarks:
            said.setdefault(remark, []).append(k)
    return [f"{places(frames, members)}: {text}" for text, members in said.items()]


@dataclass(frozen=True)
class _Beside:
    """Labels and model of many frames, side by side: correlation, robust slope, both of most frames, and their usual error."""

    label: list[np.ndarray]
    model: list[np.ndarray]
    r: np.ndarray
    slope: np.ndarray
    common_r: float
    common_slope: float
    usual: tuple[float, float]  # absolute, and as a share of the label's size

    @classmethod
    def of(cls, label: Iterable[np.ndarray], model: Iterable[np.ndarray], noise: float) -> _Beside:
        pairs = list(zip(label, model, strict=True))
        r = np.array([_correlation(x, y) for x, y in pairs])
        slope = np.array([softening.robust_slope(x, y) for x, y in pairs])
        # With as many frames wrong as right, the better half stands for the set.
        trusted = slope[r >= 0.5] if (r >= 0.5).any() else slope
        middle = [float(np.quantile(trusted, 0.5, method=side)) for side in ("lower", "higher")]
        common = min(middle, key=lambda s: abs(np.log(max(s, 1e-9) / 0.85)))
        size, error = np.array([(_rms(x), _rms(y - common * x)) for x, y in pairs]).T
        usual = max(noise, float(np.quantile(error, 0.5, method="lower"))), float(np.quantile(error / size, 0.5, method="lower"))
        return cls([x for x, _ in pairs], [y for _, y in pairs], r, slope, float(np.quantile(r, 0.5, method="higher")), common, usual)

    def odd(self, n: int, label: np.ndarray | None = None) -> float:
        """Return the error of a frame, or of other labels for it, in units of what is usual for labels of its size."""
        error = _rms(self.model[n] - self.common_slope * (self.label[n] if label is None else label))
        return error / max(self.usual[0], self.usual[1] * _rms(self.label[n]))

    def departs(self, n: int) -> str:
        """Tell in what a frame departs far from the set's own spread: ``r``, ``slope``, or nothing (an empty text)."""
        z, slope = np.arctanh(np.clip(self.r, -0.99999, 0.99999)), np.log(np.maximum(self.slope / self.common_slope, 1e-9))
        middle, upper = (float(np.quantile(z, q, method="higher")) for q in (0.5, 0.84))
        if self.r[n] < _LOW * self.common_r and middle - z[n] > _FAR * max(upper - middle, 0.2):
            return "r"
        width = max(1.4826 * float(np.quantile(np.abs(slope), 0.5, method="lower")), 0.05)
        return "slope" if abs(slope[n]) > _FAR * width else ""

    def remedy(self, n: int, others: dict[str, np.ndarray], units: dict[str, float]) -> str:
        """Return the unit, or else which other labels, that would make a frame that departs one of the others; or an empty text."""
        if abs(self.r[n]) > _CORRELATED:
            ratio = abs(self.slope[n] / self.common_slope)
            # Softness differs by as much as eV/bohr from eV/Å: only a set without scatter tells them apart.
            far = {unit: f for unit, f in units.items() if unit not in _LIKE_SOFTNESS and abs(np.log(ratio / f)) < np.log(2)}
            if self.odd(n) > _FAR and self.common_r > _AGREED:
                label = np.sign(self.r[n]) * self.label[n]
                far |= {u: f for u in _LIKE_SOFTNESS if (f := units.get(u)) and self.odd(n, f * label) < _USUAL_AGAIN}
            if unit := _nearest(ratio, far):
                return unit
        odd = {name: self.odd(n, label) for name, label in others.items()}
        best = min(odd, key=lambda name: odd[name])
        return best if odd[best] < min(_USUAL_AGAIN, self.odd(n) / 3) else ""


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    length = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / length) if length > 0 else 0.0


def _as_if(slope: float, units: dict[str, float], usual: float = 0.85) -> tuple[str, str]:
    """Return the unit that would make a slope of model on label the most plausible, and that in words; or empty texts."""
    low, high = _PLAUSIBLE
    unit = _nearest(slope / usual, {name: factor for name, factor in units.items() if low <= slope / factor <= high})
    return unit, f", as if those were in {unit}" if unit else ", which fits no unit known here"


def _nearest(ratio: float, units: dict[str, float]) -> str:
    """Return the unit nearest to a ratio, joined by " or " with those that are within a fifth of it; an empty text if there are none."""
    best = min(units, key=lambda name: abs(np.log(ratio / units[name])), default="")
    return " or ".join([best, *(name for name, f in units.items() if name != best and abs(np.log(f / units[best])) < 0.2)]) if best else ""


def _forces_off(frames, predictions, chosen, notes) -> tuple[list[Problem], float | None]:
    """Return what is wrong with forces, and the slope on those that are right, if that can be told."""
    label, model = ([each[k].forces[frames[k].counted].ravel() for k in chosen] for each in (frames, predictions))
    if not any(y.any() for y in model):
        return [], None
    set_ = _Beside.of(label, model, _FORCE_NOISE)
    r, slope, every = set_.common_r, set_.common_slope, f"{_whole(frames, chosen)}: "
    if (size := _rms(np.concatenate(label))) < _SMALL_FORCES:
        notes.append(
            f"{every}the forces are small ({size:.3f} eV/Å, root mean square). Relaxed structures say little about softening; frames "
            "from molecular dynamics, or with displaced atoms, say more."
        )
    # A model that is lost on all of a set may be as soft as Å/bohr.
    units = {unit: factor for unit, factor in _FORCE_UNITS.items() if unit != _LIKE_SOFTNESS[1]}
    unit, looks = _as_if(slope, units) if r >= _CORRELATED else ("", "")
    text = ""
    if r < _CORRELATED or not _PLAUSIBLE[0] <= slope <= _PLAUSIBLE[1]:
        lengths = [_length_unit(frames[k].atoms) for k in chosen]
        text = next(filter(None, lengths), "") if sum(map(bool, lengths)) > len(chosen) / 2 else ""
    if text:
        pass
    elif r < -_CORRELATED:
        text = f"the forces point against the model's (correlation {r:.2f}): they look like gradients; change their sign."
    elif r >= _CORRELATED and not _PLAUSIBLE[0] <= slope <= _PLAUSIBLE[1]:
        text = f"the model's forces are {slope:.3g} times the labels'{looks}; {_to_ev(unit)}"
        if not unit and _CONCEIVABLE[0] <= slope <= _CONCEIVABLE[1]:
            notes.append(every + text)
            text = ""
    if text:
        return [Problem("file", every + text, tuple(chosen))], None
    judged = {n: _force_off(set_, n, frames[k], predictions[k]) for n, k in enumerate(chosen)} if r >= _CORRELATED else {}
    texts = {n: text for n, text in judged.items() if text}
    _departures(set_, frames, chosen, texts, notes)
    # Where nothing is held, forces add up to zero.
    net = [float(np.linalg.norm(frames[k].forces.mean(axis=0) * frames[k].counted.all(axis=0))) for k in chosen]
    drifting = [n for n, x in enumerate(label) if net[n] > max(_NET[0], _NET[1] * _rms(x))]
    if drifting and np.median(net) < 0.1 * _NET[0]:
        text = "the forces add up to {:.2f} eV/Å per atom, those of other frames to nothing: is a part of them missing, or added?"
        texts = {n: text.format(net[n]) for n in drifting} | texts
    elif drifting:
        most = f"as much as {max(net):.2f} eV/Å per atom, where those of DFT add up to nothing: take their mean off"
        notes.append(f"{places(frames, [chosen[n] for n in drifting])}: the forces add up to {most}.")
    problems = [Problem("frame", text, (chosen[n],)) for n, text in texts.items()]
    sound = [n for n in range(len(chosen)) if n not in texts]
    x, y = (np.concatenate([part[n] for n in sound] or [np.zeros(0)]) for part in (label, model))
    if sound and (r := _correlation(x, y)) < _CORRELATED:
        text = (
            f"labels and model hardly agree on forces (correlation {r:.2f} over all frames; below {_CORRELATED:g} no factor is "
            "written). Is the order of the atoms that of the positions, and are the forces DFT's?"
        )
        return [*problems, Problem("file", every + text, tuple(chosen))], None
    return problems, softening.robust_slope(x, y) if sound else None


def _to_ev(unit: str) -> str:
    factors = " or ".join(f"{_FORCE_UNITS[name]:.6g}" for name in unit.split(" or ")) if unit else ""
    remedy = f": multiply them by {factors} (and see to the energies)" if unit else ""
    return f"they must be in eV/Å{remedy}."


def _departures(set_: _Beside, frames, chosen, texts: dict[int, str], notes: list[str]) -> None:
    """Add frames whose forces depart far from those of others that agree, though no remedy is known; or note them."""
    if set_.common_r < _AGREED or len(chosen) <= _FEW:
        return
    why = {n: set_.departs(n) for n in range(len(chosen)) if n not in texts and set_.odd(n) > _FAR}
    other = [n for n, what in why.items() if what == "slope"]
    if two := len(other) > max(_FEW - 1, len(chosen) // 10):
        rest = [n for n in range(len(chosen)) if n not in why and n not in texts]
        parts = [
            f"{np.median(set_.slope[part]):.2f} times the labels' in {places(frames, [chosen[n] for n in part])}" for part in (rest, other)
        ]
        notes.append(
            f"The labels are of two kinds: the model's forces are {' and '.join(parts)}. That may be two phases, or settings, or units; "
            "one factor is right for neither."
        )
    for n, what in why.items():
        if what == "r" or (what == "slope" and not two):
            texts[n] = (
                f"the error of the forces is {set_.odd(n):.0f} times what is usual beside the others ({_beside(set_, n)}): "
                "are unit, axes, sign and structure those of the others?"
            )
    if noted := [n for n, what in why.items() if not what]:
        worst = max(noted, key=set_.odd)
        most = f"up to {set_.odd(worst):.0f} times what is usual beside the others ({_beside(set_, worst)})"
        notes.append(f"{places(frames, [chosen[n] for n in noted])}: the error of the forces is {most}.")


def _beside(set_: _Beside, n: int) -> str:
    digits = 3 if round(set_.r[n], 1) == round(set_.common_r, 1) else 2
    slopes = f"slope {set_.slope[n]:.3g}, theirs {set_.common_slope:.2f}"
    return f"correlation {set_.r[n]:.{digits}f}, the others' {set_.common_r:.{digits}f}; {slopes}"


def _length_unit(atoms: ase.Atoms) -> str:
    """Say in which unit positions and cell seem to be, if not in Å."""
    radii = covalent_radii[atoms.numbers]
    search = NeighborList(cutoff=5 * radii.max(), full_list=True)
    left, right, distance = search.compute(points=atoms.positions, box=atoms.cell.array, periodic=True, quantities="ijd")
    nearest = np.full(len(atoms), np.inf)
    np.minimum.at(nearest, left, distance / (radii[left] + radii[right]))
    apart = float(np.median(nearest))
    unit, factor = ("bohr", 1 / _BOHR) if apart > 1 else ("Å times Å/bohr", _BOHR)
    if _APART[0] <= apart <= _APART[1] or not _APART[0] <= apart * factor <= _APART[1]:
        return ""
    return (
        f"nearest neighbours are {apart:.2f} of the sum of their covalent radii apart (0.85 to 1.3 in crystals), "
        f"as if positions and cell were in {unit}; multiply both by {factor:.6g}."
    )


def _force_off(set_: _Beside, n: int, frame: Frame, prediction: Prediction) -> str:
    """Return what is wrong with the forces of a frame that departs from the others, or an empty text."""
    if frame.forces is None or set_.odd(n) < _ODD:
        return ""
    if length := _length_unit(frame.atoms):
        return length
    label, model = set_.label[n], set_.model[n]
    turned, free = frame.forces.copy(), frame.counted.any(axis=1)
    order = linear_sum_assignment(-prediction.forces[free] @ turned[free].T)[1]
    turned[free] = turned[free][order]
    remedy = set_.remedy(n, {"sign": -label, "order": turned[frame.counted]}, _FORCE_UNITS)
    beside = f"({_beside(set_, n)})"
    if remedy == "sign":
        return f"the forces point against the model's {beside}: they look like gradients; change their sign."
    if remedy not in ("", "order"):
        times = f"the model's forces are {set_.slope[n]:.3g} times the labels', for the other frames {set_.common_slope:.2f}"
        return f"{times}, as if those were in {remedy}; {_to_ev(remedy)}"
    # A model that is lost on a frame has forces larger than the labels more often than not; with another order they are as large.
    lost = _rms(model) > _PLAUSIBLE[1] * _rms(label)
    unlike = set_.r[n] < 0.25 * set_.common_r and set_.slope[n] < 0.5 * set_.common_slope and not lost
    agree = f"the forces hardly agree with the model's {beside}: is the order of the atoms that of the positions?"
    return agree if remedy == "order" or unlike else ""


def _stress_off(frames, predictions, chosen) -> list[Problem]:
    """Return what is wrong with stresses."""
    if not chosen:
        return []
    label, model = ([each[k].stress.ravel() for k in chosen] for each in (frames, predictions))
    six, model_six = (np.stack([each[k].stress[_VOIGT] for k in chosen]) for each in (frames, predictions))
    set_ = _Beside.of(label, model, _STRESS_NOISE)
    ratios = np.array([_rms(y) / max(_rms(x), 1e-300) for x, y in zip(label, model, strict=True)])
    remedy = "correct them, or leave stresses and energies out with --forces-only."
    sign = "the stresses have the wrong sign (correlation with the model {:.2f}); ASE's stress is positive under tension: " + remedy
    scale = "the model's stresses are {:.2g} times the labels'{}; they must be in eV/Å³: " + remedy
    sheared = np.flatnonzero(six[:, 3:].any(axis=1))
    text, ratio = "", float(np.median(ratios))
    units = _STRESS_UNITS | {"eV (stress times volume)": 1 / float(np.mean([frames[k].atoms.get_volume() for k in chosen]))}
    as_if = _as_if(ratio, units)[1]
    together = _correlation(np.concatenate(label), np.concatenate(model))
    if set_.common_r < -_CORRELATED:
        text = (scale.format(ratio, as_if) + " Besides, " if not 0.05 < ratio < 4 else "") + sign.format(set_.common_r)
    # A model may well see stress where a relaxed DFT cell has none, but not the other way round.
    elif ratio < 0.05 or (ratio > 20 and set_.common_r > _CORRELATED) or (ratio > 4 and set_.common_r > _AGREED):
        text = scale.format(ratio, as_if)
    elif len(sheared) and (order := _order(six[sheared], model_six[sheared])):
        text = f"{order}: {remedy}"
    elif len(chosen) > _FEW and max(together, set_.common_r) < 0.35 and _rms(np.concatenate(model)) > 4 * _STRESS_NOISE:
        text = f"the stresses do not go with the model's (correlation {together:.2f}): are they of these frames? Else {remedy}"
    if text:
        return [Problem("file", f"{_whole(frames, chosen)}: {text}", tuple(chosen))]
    texts: dict[int, str] = {}
    for n in range(len(chosen)):
        if set_.odd(n) > _ODD and (wrong := set_.remedy(n, {"sign": -label[n]}, _STRESS_UNITS)):
            turned = ", and of the wrong sign" * bool(set_.r[n] < 0)
            texts[n] = sign.format(set_.r[n]) if wrong == "sign" else scale.format(ratios[n], f", as if those were in {wrong}{turned}")
    if len(sheared):
        shear = _Beside.of(six[sheared, 3:], model_six[sheared, 3:], _STRESS_NOISE)
        odd = [at for at, n in enumerate(sheared) if n not in texts and shear.odd(at) > _ODD]
        turned = {at: shear.remedy(at, {order: _reordered(six[sheared[at]], order)[3:] for order in _ORDERS}, {}) for at in odd}
        for at, order in turned.items():
            # Three numbers alone fit some order by chance.
            if order and list(turned.values()).count(order) >= _FEW:
                texts[int(sheared[at])] = f"the shear stress fits the model's in the order {order}, not in ASE's {_ASE}: {remedy}"
    return [Problem("frame", text, (chosen[n],)) for n, text in sorted(texts.items())]


def _reordered(six: np.ndarray, order: str) -> np.ndarray:
    """Return stresses whose six numbers stand in another order in ASE's, shape (…, 6)."""
    return six[..., [order.split(",").index(name) for name in _ASE.split(",")]]


def _order(six: np.ndarray, model: np.ndarray) -> str:
    """Return in which order six numbers stand if it is not ASE's; the shear alone tells, the diagonal would hide it."""
    turned = {order: _reordered(six, order) for order in _ORDERS}
    whole = {order: _correlation(numbers.ravel(), model.ravel()) for order, numbers in turned.items()}
    r = {order: _correlation(turned[order][:, 3:].ravel(), model[:, 3:].ravel()) for order in _ORDERS if whole[order] >= whole[_ASE]}
    best = max(r, key=lambda order: r[order])
    # Four standard deviations of Fisher's z, a frame counted as one independent value.
    z = np.arctanh(np.clip([r[best], r[_ASE]], -0.9999, 0.9999))
    if r[best] < _CORRELATED or (z[0] - z[1]) * np.sqrt(len(six)) < 4:
        return ""
    return f"the shear stresses fit the model's in the order {best} (correlation {r[best]:.2f}), not in ASE's {_ASE} ({r[_ASE]:.2f})"


def counts(frames: Sequence[Frame | Label]) -> np.ndarray:
    """Return how many atoms of each element (columns: those that occur) each frame has."""
    elements = np.unique(np.concatenate([frame.atoms.numbers for frame in frames]))
    return np.stack([(frame.atoms.numbers[:, None] == elements).sum(axis=0) for frame in frames]).astype(float)


def _per_atom(frames, predictions, chosen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return compositions as shares of elements, and energies per atom of labels and model."""
    table = counts([frames[k] for k in chosen])
    size = table.sum(axis=1)
    return table / size[:, None], *(np.array([each[k].energy for k in chosen]) / size for each in (frames, predictions))


def _witnesses(frames, predictions, chosen) -> dict[str, float]:
    """Return slopes of the model beside that of forces, as far as they are sure: of energies, compositions taken out, and of stresses."""
    pairs = {}
    if len(with_energy := [k for k in chosen if frames[k].energy is not None]) > 2:
        share, *both = _per_atom(frames, predictions, with_energy)
        x, y = (each - share @ np.linalg.pinv(share) @ each for each in both)
        if len(x) - np.linalg.matrix_rank(share) >= 2 and _rms(x) > 1e-4:
            pairs["energy differences"] = x, y
    if len(with_stress := [k for k in chosen if frames[k].stress is not None and predictions[k].stress is not None]) > 2:
        pairs["stresses"] = (np.concatenate([each[k].stress.ravel() for k in with_stress]) for each in (frames, predictions))
    return {what: float(x @ y / (x @ x)) for what, (x, y) in pairs.items() if _correlation(x, y) >= 0.9}


def _unit_of_forces(frames, predictions, chosen, slope, witnesses, notes) -> list[Problem]:
    """Say what energies and stresses have against a slope of forces that could be softness as well as a unit."""
    others = {"forces": slope, **witnesses}
    stress = others.pop("stresses", slope)
    if all(abs(np.log(stress / other)) > 0.5 for other in others.values()):
        said = ", ".join(f"{what} {each:.2f} times" for what, each in others.items())
        notes.append(
            f"{_whole(frames, chosen)}: the model's stresses are {stress:.2f} times the labels', {said}: are they of the right unit?"
        )
    if _USUAL[0] <= slope <= _USUAL[1]:
        return []
    x, y = (np.concatenate([each[k].forces[frames[k].counted].ravel() for k in chosen]) for each in (frames, predictions))
    said = "".join(f", its {what} {witness:.2f} times" for what, witness in witnesses.items())
    text = f"{_whole(frames, chosen)}: the model's forces are {slope:.2f} times the labels'{said}"
    for factor, looks in ((_BOHR, "eV/bohr"), (1 / _BOHR, "eV/Å times Å/bohr")):
        near = witnesses and all(abs(np.log(slope / witness / factor)) < 0.3 for witness in witnesses.values())
        if near and _correlation(x, y) > 0.9 and _rms(factor * x) > 4 * _SMALL_FORCES:
            text += f"; softness makes these alike. The forces look as if they were in {looks}: multiply them by {factor:.6g}."
            return [Problem("file", text, tuple(chosen))]
    if not witnesses or any(abs(np.log(slope / witness)) > 0.3 for witness in witnesses.values()):
        notes.append(f"{text}: that may be softness, or a unit (eV/bohr instead of eV/Å makes a factor of {_BOHR:.2f}).")
    return []


def _energies_off(frames, predictions, chosen, slope, force_slope, notes) -> list[Problem]:
    """Find energies of a wrong unit, of two kinds, or of single frames that do not belong with the others."""
    share, label, model = _per_atom(frames, predictions, chosen)
    spare = len(chosen) - np.linalg.matrix_rank(share)
    if spare < 1:
        notes.append("Energies cannot be checked: there are no more frames than reference energies of elements.")
        return []
    x, y = (each - share @ np.linalg.pinv(share) @ each for each in (label, model))
    r = _correlation(x, y) if _rms(x) > 1e-9 * max(1.0, _rms(label)) else 0.0
    # Two standard deviations of Fisher's z; forces agree, or nobody would ask for energies.
    z = np.arctanh(np.clip(r, -0.999, 0.999))
    unlike = spare >= _FEW + 2 and _rms(y) > _ENERGY_NOISE and z + 2 / np.sqrt(spare - 1) < np.arctanh(_CORRELATED)
    if slope is not None and not 0.2 <= slope <= 2.5:
        units = _ENERGY_UNITS | {"eV per atom instead of eV per cell": float(np.mean([len(frames[k].atoms) for k in chosen]))}
        text = f"energy differences of the model are {slope:.3g} times the labels'{_as_if(slope, units, force_slope)[1]}"
        return [Problem("file", f"{_whole(frames, chosen)}: {text}; they must be in eV, for the whole cell.", tuple(chosen))]
    # Softness first: hot frames of a soft model are no outliers.
    fitted = slope is not None and spare >= _FEW
    columns, values = (np.column_stack([share, model]), label) if fitted else (share, label - model / (slope or force_slope))
    solution = _least_absolute(columns, values)
    slope = 1 / solution[-1] if fitted and solution[-1] > 0 else slope or force_slope
    # Softness is not the same everywhere: frames far from the others of their composition may be off by a share of that.
    hot = (model - share @ _least_absolute(share, model)) / slope
    kind = np.unique(share.round(6), axis=0, return_inverse=True)[1].ravel()
    spread = np.sqrt(np.bincount(kind, hot**2) / np.bincount(kind))[kind]
    few = 1 + 10 / spare
    if two := _two_groups(columns, values, hot, kind, _GROUPS * few):
        high, gap, sure = two
        parts = [f"{part.sum()} frames ({places(frames, [chosen[n] for n in np.flatnonzero(part)])})" for part in (~high, high)]
        text = (
            f"the energies are of two kinds, {1000 * gap:.0f} meV/atom apart beyond the model and the reference energies of elements: "
            f"{parts[0]}, and higher {parts[1]}. PSTRESS, +U or corrections in one of the two? Make them of one kind, or leave energies "
            "out with --forces-only."
        )
        if sure:
            return [Problem("file", text, tuple(chosen))]
        notes.append(f"{text[0].upper()}{text[1:]} Or the model is wrong about one of two kinds of structures.")
    if unlike:
        text = f"the energies do not go with the model's (correlation {r:.2f} beyond composition), though the forces do"
        return [Problem("file", f"{_whole(frames, chosen)}: {text}: are they of these frames, and is their sign right?", tuple(chosen))]
    rest = values - columns @ solution
    rest = rest - np.median(rest)
    # Composition by composition: a model may be wrong about one, and slope and reference energies are those of all.
    own = np.array([np.median(rest[kind == one]) if (kind == one).sum() > 2 else 0.0 for one in range(kind.max() + 1)])[kind]
    rest = rest - own
    limit = max(_OUTLIER * few * (2 if kind.any() else 1), _OUTLIER_WIDTHS * 1.4826 * np.median(np.abs(rest)))
    if far := sorted({frames[chosen[n]].atoms.get_chemical_formula(empirical=True) for n in np.flatnonzero(np.abs(own) > limit + spread)}):
        notes.append(
            f"The energies of all frames of {_some(far)} lie beside those of the others by more than {limit:.2f} eV/atom: another "
            "functional or setting, or compositions that the model is wrong about."
        )
    outside = np.abs(rest) > np.maximum(limit, _OUTLIER_SHARE * np.maximum(np.abs(hot), spread))
    if spare < 2 and outside.any():
        # Two frames disagree, but not even a majority can say which of them is wrong.
        apart = f"The energies of the frames disagree by up to {np.ptp(rest):.2f} eV/atom beyond the model's"
        notes.append(f"{apart}; check that they are of one kind.")
        return []
    off = rest - np.median(rest[~outside])
    text = (
        "energy {:+.2f} eV/atom off the other frames (model and reference energies of elements taken off); another functional or setting?"
    )
    return [Problem("frame", text.format(off[n]), (chosen[n],)) for n in np.flatnonzero(outside)]


def _least_absolute(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the solution of table · x = values that minimises the sum of absolute errors (iteratively reweighted least squares)."""
    weight = np.ones(len(values))
    for _ in range(50):
        solution = np.linalg.lstsq(table * weight[:, None], values * weight, rcond=None)[0]
        weight = 1 / np.sqrt(np.maximum(np.abs(values - table @ solution), 1e-6))
    return solution


def _two_groups(columns, values, hot, kind, floor: float) -> tuple[np.ndarray, float, bool] | None:
    """Return which values are the upper of two groups, their distance, if that is much larger than either is wide, and if it is sure."""
    n = len(values)
    fewest = max(2, n // 10)
    if n < _FEW + 2:
        return None
    narrowest = np.inf
    # The two that are narrowest together; then both take part in the fit. Slope and offset may take each other's part, so the search
    # starts from several divisions: none, and the set cut in two where it stands, as two files or runs would be.
    for start in range(0, n, max(1, n // 12)):
        upper = np.arange(n) < start
        for _ in range(6):
            rest = values - columns @ _least_absolute(np.column_stack([columns, upper]), values)[:-1]
            order = np.argsort(rest)
            within = {at: at * rest[order[:at]].var() + (n - at) * rest[order[at:]].var() for at in range(fewest, n - fewest + 1)}
            at = min(within, key=lambda at: within[at])
            if within[at] < narrowest:
                narrowest, high, best = within[at], np.isin(np.arange(n), order[at:]), rest
            upper = np.isin(np.arange(n), order[at:])
    rest = best
    # One group cut in two has its halves 2.7 (normal) to 3.5 (uniform) widths apart; more, if they are few.
    width = np.sqrt(narrowest / n)
    limit = needed = max(floor, (4 + 40 / n) * width)
    # Groups that do not mix in the model's energy may as well be a softness that changes with it.
    sides = [high[kind == one][np.argsort(hot[kind == one])] for one in np.unique(kind)]
    if sum(len(side) for side in sides if 0 < side.mean() < 1) < min(high.sum(), (~high).sum()):
        return None  # compositions are not judged against each other
    if sum(np.count_nonzero(np.diff(side)) for side in sides) < sum(side.mean() * (~side).sum() for side in sides):
        needed = max(limit, _OUTLIER_SHARE * np.ptp(hot))
    gap = float(rest[high].mean() - rest[~high].mean())
    return (high, gap, gap > needed) if gap > (limit if gap > 10 * width else needed) else None


def _states(frames: Sequence[Frame]) -> list[str]:
    """Return what a set is made of, where it is not the same throughout."""
    formulas = sorted({frame.atoms.get_chemical_formula(mode="hill", empirical=True) for frame in frames})
    found = []
    if len(formulas) > 1:
        of = f"The labels are of {len(formulas)} compositions ({_some(formulas)})"
        found.append(f"{of}: one factor, or one set of weights, has to serve all of them.")
    for what in ("energy", "stress"):
        n = sum(getattr(frame, what) is None for frame in frames)
        if 0 < n < len(frames):
            found.append(f"{n} of {len(frames)} frames have no {what}; full fine-tuning then trains on no {what} at all.")
    return found


# ---- In words -------------------------------------------------------------------------------------


def _name(frame: Frame) -> str:
    return f"{frame.file}, frame {frame.number}"


def _whole(frames: Sequence[Frame], chosen: Sequence[int]) -> str:
    files = list(dict.fromkeys(frames[k].file for k in chosen))
    return files[0] if len(files) == 1 else f"{len(files)} files, {files[0]} to {files[-1]}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def places(frames: Sequence[Frame], members: Sequence[int]) -> str:
    """Return files and numbers of frames, of many files the first."""
    by_file: dict[str, list[int]] = {}
    for k in members:
        by_file.setdefault(frames[k].file, []).append(frames[k].number)
    shown = [f"{file}, {_numbers(numbers)}" for file, numbers in list(by_file.items())[:6]]
    return "; ".join(shown) + (f"; and {len(by_file) - 6} more files" if len(by_file) > 6 else "")


def listed(frames: Sequence[Frame], problems: Sequence[Problem]) -> list[str]:
    """Return problems as lines, one per file and text, with the numbers of all frames it holds for."""
    lines: dict[tuple[str, str], list[int]] = {}
    for problem in problems:
        frame = frames[problem.frames[-1]]
        # On one line, whatever a calculator raised.
        numbers = lines.setdefault(("" if problem.kind == "file" else frame.file, " ".join(problem.text.split())), [])
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
