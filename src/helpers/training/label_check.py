"""Labels before any training: the checks of :mod:`helpers.training.labels` together, and good frames in the form of a trainer.

A model stands beside the labels, since wrong units, signs and orders show against its own answers only. It need not be the one that is to
be trained; softness is no fault of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from helpers import results
from helpers.potentials.base import Potential, Prediction
from helpers.training import labels
from helpers.training.labels import Frame, LabelError, Problem

# All take eV, eV/Å and eV/Å³ with ASE's sign. MACE takes names that ASE's readers leave alone, and gives no weight to what is missing. The
# others take the results of an ASE calculator: SevenNet the energy as free_energy, MatGL stresses of all frames or of none.
TRAINERS = ("mace", "matgl", "sevennet", "mattertune", "ase")
ANSWERS = ("energy", "forces", "stress")
_HELD = 0.005  # eV/Å; a label of exactly zero where the model has more is that of a held atom
_ROUNDING = 1e-6  # eV, Å, eV/Å, eV/Å³; files have eight decimals


@dataclass(frozen=True)
class Checked:
    """What was found in frames."""

    frames: Sequence[Frame]
    problems: list[Problem]
    notes: list[str]  # what is allowed but should be known
    answers: dict[int, Prediction]  # of the model, by the positions of frames
    kept: list[int]  # positions of the frames that no problem of their own speaks against

    def rows(self) -> list[dict[str, Any]]:
        """Return for each frame where it stands, what it has, its verdict (``good``, ``duplicate`` or ``bad``), and why."""
        found = [("good", "")] * len(self.frames)
        for problem in self.problems:
            for k in problem.frames if problem.kind == "file" else problem.frames[-1:]:
                verdict = "duplicate" if problem.kind == "duplicate" and found[k][0] != "bad" else "bad"
                found[k] = verdict, "; ".join(filter(None, (found[k][1], " ".join(problem.text.split()))))
        rows = []
        for frame, (verdict, reason) in zip(self.frames, found, strict=True):
            row = {"file": frame.file, "frame": frame.number, "formula": frame.atoms.get_chemical_formula()}
            row |= {what: getattr(frame, what) is not None for what in ANSWERS}
            rows.append(row | {"verdict": verdict, "reason": reason})
        return rows


def check(frames: Sequence[Frame], potential: Potential, *, energies=True, stresses=any, progress=False) -> Checked:
    """Judge each frame alone, then beside the others and the model's answers.

    ``energies`` tells whether what is wrong with energies is a problem, not only a note. ``stresses`` is ``any`` or ``all``: of the sound
    frames, how many must have a stress for stresses to be compared; without energies they are not.
    """
    problems, notes = labels.inspect(frames, potential.elements), []
    kept = _without(frames, problems)
    stress = energies and stresses(frames[k].stress is not None for k in kept)
    answers = dict(zip(kept, potential.evaluate([frames[k].atoms for k in kept], stress=stress, progress=progress), strict=True))
    # What is wrong hides what is less so, until it is left out.
    go_on = True
    while go_on and kept:
        found, notes = labels.compare([frames[k] for k in kept], [answers[k] for k in kept], energies=energies)
        problems += [replace(problem, frames=tuple(kept[k] for k in problem.frames)) for problem in found]
        kept = [k for k in _without(frames, problems) if k in kept]
        go_on = bool(found) and not any(problem.kind == "file" for problem in found)
    return Checked(frames, problems, notes, answers, kept)


def _without(frames: Sequence[Frame], problems: Sequence[Problem]) -> list[int]:
    """Return the positions of the frames that no problem is about."""
    bad = {problem.frames[-1] for problem in problems if problem.kind != "file"}
    return [k for k in range(len(frames)) if k not in bad]


def check_written(out: Path, trainer: str) -> None:
    """Raise ValueError if a file is not to be written (:func:`helpers.results.check_new`) or the trainer is unknown."""
    if trainer not in TRAINERS:
        raise LabelError(f"the trainer {trainer!r} is none of {', '.join(TRAINERS)}.")
    results.check_new(out, ".extxyz", ".xyz")


def write(checked: Checked, trainer: str, out: Path) -> list[str]:
    """Write the good frames in the form of one of :data:`TRAINERS`, read them back and compare.

    Returns what was left out besides the frames that are not good. ValueError as :func:`check_written`, or if no frame is left or what is
    read back differs; nothing is left behind then.
    """
    check_written(out, trainer)
    frames, answers = checked.frames, checked.answers
    chosen = [k for k, row in enumerate(checked.rows()) if row["verdict"] == "good"]
    held = [k for k in chosen if (np.abs(answers[k].forces[~frames[k].counted]) > _HELD).any()]
    bare = [k for k in chosen if trainer in ("matgl", "sevennet", "mattertune") and frames[k].energy is None]
    gone = {"forces of held atoms are zero, which a trainer would learn": held, f"{trainer} needs energies": bare}
    good = [frames[k] for k in chosen if not any(k in members for members in gone.values())]
    said = [f"not written, since {why}: {labels.places(frames, members)}" for why, members in gone.items() if members]
    if not good:
        raise LabelError("; ".join([f"{out} was not written: no good frame is left", *said]))
    if trainer == "matgl" and 0 < sum(frame.stress is None for frame in good) < len(good):
        good = [replace(frame, stress=None) for frame in good]
        said.append("no stress was written: some frames have none, and MatGL takes those of all frames or of none")
    with results.aside(out) as made:
        ase.io.write(made, [as_written(frame, trainer) for frame in good], format="extxyz")
        again = labels.read(made)
        if len(again) != len(good) or not all(map(_same, good, again)):
            raise LabelError(f"{out} was removed: what was read back is not what was written.")
    return said


def as_written(frame: Frame, trainer: str) -> ase.Atoms:
    """Return a frame as atoms with the answers where a trainer looks for them."""
    atoms = frame.atoms.copy()
    answers: dict[str, Any] = {} if frame.energy is None else {"energy": frame.energy}
    if frame.stress is not None:
        answers["stress"] = full_3x3_to_voigt_6_stress(frame.stress)
    if trainer == "mace":
        atoms.info |= {f"REF_{name}": value for name, value in answers.items()}
        atoms.arrays["REF_forces"] = frame.forces
        return atoms
    if trainer == "sevennet":
        answers["free_energy"] = frame.energy
    atoms.calc = SinglePointCalculator(atoms, forces=frame.forces, **answers)
    return atoms


def _same(frame: Frame, other: Frame) -> bool:
    pairs = [(getattr(frame.atoms, what), getattr(other.atoms, what)) for what in ("cell", "positions", "numbers")]
    pairs += [(getattr(frame, what), getattr(other, what)) for what in ANSWERS]
    return all((x is None) == (y is None) and (x is None or np.allclose(x, y, rtol=1e-9, atol=_ROUNDING)) for x, y in pairs)
