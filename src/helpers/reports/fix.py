"""Fix a potential with a few DFT labels: check them, split them, fit, test, save, report.

::

    from helpers.reports import fix
    fixed = fix.fix("chgnet-0.3.0", ["my.extxyz"], method="linear", out="my-fix")
    fixed.potential.calculator()

The folder that comes out is loaded with ``potentials.load("file:my-fix")`` (:mod:`helpers.potentials.fixes`). A run can be
interrupted: the same call goes on where it stopped, and does nothing if all is done. Nothing but that folder is ever written to.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from filelock import FileLock, Timeout

from helpers import figures, potentials, registry, results, softening
from helpers.potentials import Potential, PotentialError, Prediction, exam, fixes
from helpers.potentials.base import GraphPotential
from helpers.reports import page
from helpers.training import fine_tune, label_check, labels
from helpers.training.fine_tune import FineTuned, Label, Recipe
from helpers.training.labels import Frame, LabelError

# Half of the chapters' epochs: the error has settled by then, and ten labels of 64 atoms take minutes on one core.
EPOCHS = 50

# The test set is drawn in blocks of this share of the frames.
_BLOCK = 0.1

_STARTED, _CHECKPOINT, _LOCK = "started.json", "training.pt", ".lock"

# Longer lists and tables are folded in the report; mended.json has all of them.
_SHOWN = 10

_TOLD = 20  # lines of a complaint
_ENERGY_WORSE = 0.005  # eV/atom
_USUAL_FACTORS = (0.8, 2.0)


@dataclass(frozen=True)
class Fixed:
    """What :func:`fix` made."""

    folder: Path
    key: str  # what :func:`helpers.potentials.load` takes: ``file:FOLDER``
    potential: Potential  # the fixed one, as it loads from the folder
    # One row per ``stage`` and ``frames`` (``test`` or ``fit``): ``n_frames``, ``n_components``, ``slope``, ``inverse_slope``, ``r2``,
    # ``mae`` and ``cmae`` (eV/Å), ``energy_mae`` (eV/atom, after reference energies of the elements have been fitted on the frames that
    # were fitted; NaN if unknown).
    scores: pd.DataFrame
    # Whether a factor suffices; what to know of the labels; which frames were left out, and why.
    advice: list[str]
    notes: list[str]
    dropped: list[str]


def fix(
    model: str | Path,
    sources: Path | str | Label | ase.Atoms | Iterable[Path | str | Label | ase.Atoms],
    *,
    method: str = "linear",
    out: Path | str,
    recipe: Recipe | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
    skip_bad: bool = False,
    drop_duplicates: bool = False,
    forces_only: bool = False,
    progress: bool = False,
) -> Fixed:
    """Fix a potential with labels, and write it, with a report, to a folder.

    Parameters
    ----------
    model, device, trust
        As :func:`helpers.potentials.load` takes them; a Path is a file or folder.
    sources : path, Label or ase.Atoms, or iterable of paths, of Label or of ase.Atoms
        Files that ASE reads, or a folder of them; labels in memory; atoms with their answers (of a calculator, or as arrays).
    method : str
        One of :data:`helpers.training.fine_tune.METHODS`: :func:`helpers.training.fine_tune.linear_correction`, or
        :func:`helpers.training.fine_tune.fine_tune` with what the method sets where the recipe has the default.
    out : path
        A new or empty folder, or that of the same call before.
    recipe : Recipe, optional
        For all methods but ``linear``; by default the recipe's own with :data:`EPOCHS` epochs and this seed, also that of the split.
    test_fraction : float
        Share of the frames held back for the test (:func:`split`); 0 tests nothing.
    skip_bad, drop_duplicates, forces_only : bool
        Leave out frames that cannot be used, or that repeat another, instead of an error; ignore energies and stresses of the labels.

    Raises
    ------
    LabelError
        If labels cannot be used; the message lists all of them.
    PotentialError
        If the folder holds something else or is in use, the disk is full, the potential has no weights to train, or a calculator's energy,
        forces and stress do not belong together.
    """
    if method not in fine_tune.METHODS:
        raise ValueError(f"method must be one of {', '.join(fine_tune.METHODS)}, not {method!r}")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"the test fraction must be at least 0 and less than 1, not {test_fraction}")
    recipe = recipe or Recipe(epochs=EPOCHS, seed=seed)
    trains = method != "linear"
    if trains and recipe.epochs < 1:
        raise ValueError(f"fine-tuning needs at least one epoch, not {recipe.epochs}")
    out, model = Path(out), f"file:{model}" if isinstance(model, Path) else model
    _content(out)
    potential = potentials.load(model, device, trust=trust)
    model = potential.key if model.startswith("ase:") else model  # the same in every folder
    if trains and not isinstance(potential, GraphPotential):
        raise PotentialError(f"{model} has no weights to train; use the linear correction (--method linear).")
    recipe = fine_tune.recipe_of(method, potential, recipe)
    frames, files = _read(sources)
    if recipe.curvature_weight and any(frame.curvature is None for frame in frames):
        raise LabelError("the method curvature needs force constants: give phonopy's FORCE_SETS, FORCE_CONSTANTS or phonopy_params.yaml.")
    request = {
        "model_sha256": potential.describe()["weights_sha256"],
        "model": Path(model).name if model.startswith("file:") else model,
        "model_scale": potential.scale,
        "labels": [file["sha256"] for file in files],
        "method": method,
        "recipe": recipe.record() if trains else None,
        "test_fraction": test_fraction,
        "seed": seed,
        "skip_bad": skip_bad,
        "drop_duplicates": drop_duplicates,
        "forces_only": forces_only,
    }
    if not _finished(out, request):
        with _alone(out):
            # Another one may have come first.
            if not _finished(out, request):
                _make(out, request, model, potential, frames, files, recipe, progress)
    return _reload(out, device)


def _make(out: Path, request: dict, model: str, potential: Potential, frames: list, files: list, recipe: Recipe, progress: bool) -> None:
    method = request["method"]
    notes = exam.examine(potential)
    if request["forces_only"]:
        frames = [replace(frame, energy=None, stress=None) for frame in frames]
    frames, before, dropped, found = _checked(frames, potential, request, progress)
    fitted, tested = split(frames, request["test_fraction"], request["seed"], whole=bool(recipe.curvature_weight))
    notes = [*notes, *found, *_thin(frames, fitted, tested)]

    results.write_json(request, out / _STARTED)
    chosen = [frames[k] for k in fitted]
    single = _single_factors(chosen, [before[k] for k in fitted])
    stages: dict[str, Sequence[Prediction]] = {"before": before}
    outcome, offsets = None, {}
    if method == "linear":
        new = fine_tune.linear_correction(potential, [frame.label() for frame in chosen], "advised")
        stages["one factor"] = new.evaluate([frame.atoms for frame in frames], progress=progress)
    else:
        on_zero, offsets = _on_the_models_zero(chosen, [before[k] for k in fitted])
        outcome = fine_tune.fine_tune(potential, on_zero, recipe, checkpoint=out / _CHECKPOINT, progress=progress)
        new = outcome.potential
        if (factor := _factor(chosen, [before[k] for k in fitted])) is not None:
            stages["one factor"] = [Prediction(factor * p.energy, factor * p.forces) for p in before]
        stages["fine-tuned"] = new.evaluate([frame.atoms for frame in frames], progress=progress)
    for frame, prediction in zip(frames, list(stages.values())[-1], strict=True):
        if not prediction.ok:
            raise PotentialError(f"the fixed potential fails on {frame.file}, frame {frame.number}, and was not saved: {prediction.error}")

    scores = _scores(frames, fitted, tested, stages)
    said, interval = advice(scores, single, method), _interval(chosen, [before[k] for k in fitted])
    seen = {z for frame in frames for z in frame.atoms.numbers.tolist()}
    lost = fine_tune.forgetting(potential, new, seen) if outcome is not None and potential.elements - seen else None
    ends = scores[scores["frames"] == ("test" if tested else "fit")].set_index("stage")["mae"]
    kept = (len(tested) > 0 or outcome is not None) and ends.iloc[-1] > ends["before"]
    if kept:
        worse = f"from {ends['before']:.3g} to {ends.iloc[-1]:.3g} eV/Å on the {'test' if tested else 'fitted'} frames"
        said = [f"The model was kept as it was: {method} makes its force MAE worse, {worse}.", *said]
        new = potential
    about: dict[str, Any] = {
        "request": request,
        "method": method,
        "trained": method != "linear" and not kept,
        "kept_as_it_was": bool(kept),
        "forgetting": lost,
        "base_sha256": request["model_sha256"],
        "model_key": model,
        "factor": new.scale / potential.scale,
        "single_factors": single,
        "factor_interval": interval,
        "recipe": request["recipe"],
        "best_epoch": outcome.best_epoch if outcome else None,
        "history": outcome.history if outcome else [],
        "energy_offsets_ev": offsets,
        "n_labels": len(fitted),
        "labels": files,
        "fitted": [[frames[k].file, frames[k].number] for k in fitted],
        "tested": [[frames[k].file, frames[k].number] for k in tested],
        "dropped": dropped,
        "notes": notes,
        "advice": [*said, *_reach(interval, len(fitted), lost)],
        "scores": scores.astype(object).where(scores.notna(), None).to_dict("records"),
        "elements": sorted({symbol for frame in frames for symbol in frame.atoms.get_chemical_symbols()}),
        "device": results.device_name(str(potential.device)),
        "packages": results.package_versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    _write_report(out, about, frames, fitted, tested, stages, outcome)
    fixes.save(out, new, model, about)
    for name in (_STARTED, _CHECKPOINT):
        (out / name).unlink(missing_ok=True)


# ---- The folder -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second fix out of the folder, say what a full disk means, and leave no empty folder behind."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    lock = FileLock(out / _LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # The operating system frees the lock of a killed process.
        with lock.acquire(timeout=0):
            try:
                yield
            finally:
                # While it is held: freed first, it could be another's already. Windows does not let go of an open file.
                with contextlib.suppress(OSError):
                    (out / _LOCK).unlink()
    except Timeout:
        raise PotentialError(f"another 'softening fix' is at work in {out}; wait for it, stop it, or choose another folder.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PotentialError(
            f"the disk is full ({error}). {out} keeps what is done; make room, then give the same command again."
        ) from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _content(out: Path) -> set[str]:
    """Return the names in the folder, hidden ones apart, which a file manager or a killed run leaves; refuse what is no fix."""
    if out.exists() and not out.is_dir():
        raise PotentialError(f"{out} is a file; choose a new folder for --out.")
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if names and not names & {fixes.RECORD, _STARTED, _CHECKPOINT}:
        raise PotentialError(f"{out} is not empty and holds something else; choose a new folder for --out.")
    return names


def _finished(out: Path, request: dict[str, Any]) -> bool:
    """Tell whether the folder holds this very fix, complete; refuse anything but this fix, complete or not."""
    names = _content(out)
    # A checkpoint by itself says what it is of.
    if not names & {fixes.RECORD, _STARTED}:
        return False
    before = fixes.record(out).get("request") if fixes.RECORD in names else results.read_json(out / _STARTED)
    now = json.loads(json.dumps(request))
    if before != now:
        other = [name for name in now if not isinstance(before, dict) or before.get(name) != now[name]]
        raise PotentialError(f"{out} holds another fix (different: {', '.join(other)}); choose a new folder for --out.")
    return fixes.RECORD in names


def _reload(out: Path, device: str) -> Fixed:
    """Return a finished fix as it stands in its folder. It was written or checked by this call, hence the trust."""
    content = fixes.record(out)
    key = f"file:{out}"
    potential = potentials.load(key, device, trust=True)
    try:
        scores = pd.DataFrame(content["scores"]).astype({"energy_mae": float})
        return Fixed(out, key, potential, scores, content["advice"], content["notes"], content["dropped"])
    except (KeyError, TypeError, ValueError) as error:
        raise PotentialError(f"{out / fixes.RECORD} is damaged ({error!r}): fix the potential again, into a new folder.") from error


# ---- The labels -----------------------------------------------------------------------------------


def _read(sources: Any) -> tuple[list[Frame], list[dict[str, object]]]:
    """Return frames, and for each file its name, SHA-256, number of frames, and where the answers stood."""
    sources = [sources] if isinstance(sources, (str, os.PathLike, Label, ase.Atoms)) or not isinstance(sources, Iterable) else list(sources)
    kinds = {type(one).__name__: isinstance(one, (Label, ase.Atoms)) for one in sources if not isinstance(one, (str, os.PathLike))}
    if not all(kinds.values()) or (kinds and any(isinstance(one, (str, os.PathLike)) for one in sources)):
        wrong = next((f"{name} holds no labels" for name, known in kinds.items() if not known), "files do not go with labels in memory")
        raise LabelError(f"{wrong}; give files or a folder, or Label, or ASE atoms that carry their answers.")
    if kinds:
        frames = [_in_memory(number, one) for number, one in enumerate(sources)]
        files = {"labels": _digest(frames)}
    else:
        frames = labels.read(sources)
        sums = {name: registry.sha256(Path(name)) for name in dict.fromkeys(frame.file for frame in frames)}
        # Bytes of a name that are no text could not be written into a report.
        text = {name: name.encode("utf-8", "backslashreplace").decode() for name in sums}
        frames, files = [replace(frame, file=text[frame.file]) for frame in frames], {text[name]: sha for name, sha in sums.items()}
    names: dict[str, list[str]] = {file: [] for file in files}
    for frame in frames:
        names[frame.file].append(frame.names)
    found = {file: "; ".join(dict.fromkeys(filter(None, each))) for file, each in names.items()}
    return frames, [{"file": file, "sha256": sha, "frames": len(names[file]), "found": found[file]} for file, sha in files.items()]


def _in_memory(number: int, one: Label | ase.Atoms) -> Frame:
    if isinstance(one, Label):
        if one.forces is not None and one.forces.ndim == 2:
            # As a frame marks what does not count.
            one = replace(one, forces=np.where(np.isnan(one.forces), 0.0, one.forces))
        return replace(labels.from_labels([one])[0], number=number)
    stale = getattr(one.calc, "results", None) and hasattr(one.calc, "check_state") and one.calc.check_state(one)
    fault = f"its calculator has the answer for other {', '.join(stale or ())}: ask it again, and keep that before the next"
    return labels.as_frame("labels", number, one, fault if stale else "")


def _digest(frames: Sequence[Frame]) -> str:
    """Return what tells labels in memory from others: all that a calculator may read, and the answers."""
    digest = hashlib.sha256()
    for frame in frames:
        for array in (frame.atoms.cell.array, *frame.atoms.arrays.values(), frame.forces, frame.energy, frame.stress):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        digest.update(repr(frame.atoms.info).encode())
    return digest.hexdigest()


def _checked(frames, potential, request, progress) -> tuple[list[Frame], list[Prediction], list[str], list[str]]:
    """Return the frames to use with the potential's answers, what was left out, and notes; refuse what may not be left out."""
    trains = request["method"] != "linear"
    found = label_check.check(frames, potential, energies=trains, stresses=all, progress=progress)
    problems, kept = found.problems, found.kept
    allowed = {"frame": request["skip_bad"], "duplicate": request["drop_duplicates"], "file": False}
    blocking = [problem for problem in problems if not allowed[problem.kind]]
    if blocking or not kept:
        raise LabelError(_complaint(frames, blocking or problems, bool(kept)))
    return [frames[k] for k in kept], [found.answers[k] for k in kept], labels.listed(frames, problems), found.notes


def _complaint(frames: Sequence[Frame], problems: Sequence[labels.Problem], any_left: bool) -> str:
    kinds = {problem.kind for problem in problems}
    told = labels.listed(frames, problems)
    lines = ["the labels cannot be used as they are (frames are counted from 0):", *(f"  {line}" for line in told[:_TOLD])]
    if len(told) > _TOLD:
        lines.append(f"  and {len(told) - _TOLD} more lines like these")
    if not any_left:
        lines.append("No frame is left.")
    else:
        if "frame" in kinds:
            lines.append("Correct these frames, or go on without them: --skip-bad. The report lists what was left out.")
        if "duplicate" in kinds:
            lines.append("Go on with the first of each: --drop-duplicates.")
    return "\n".join(lines)


def split(frames: Sequence[Frame], test_fraction: float, seed: int, *, whole: bool = False) -> tuple[list[int], list[int]]:
    """Divide frames into those to fit and those to test; ``whole`` files where their frames share force constants.

    Neighbours in a trajectory are nearly the same structure, so a test on frames drawn one by one would be too kind. The frames of each
    composition, in the order given, whether each has its own file or not, are cut into blocks of consecutive ones, a tenth of all each.
    Blocks drawn at random make up the test set, the last one cut to size. At least one frame is held back, unless the fraction is 0 or
    there is only one frame; at least one is fitted. Positions are sorted.
    """
    if whole:
        files = list({frame.file: frame for frame in frames}.values())
        held = {files[k].file for k in split(files, test_fraction, seed)[1]}
        sides = [[k for k, frame in enumerate(frames) if (frame.file in held) == tests] for tests in (False, True)]
        return sides[0], sides[1]
    n = len(frames)
    if test_fraction == 0 or n == 1:
        return list(range(n)), []
    n_test = min(n - 1, max(1, round(test_fraction * n)))
    length = max(1, round(_BLOCK * n))
    alike: dict[str, list[int]] = {}
    for k, frame in enumerate(frames):
        alike.setdefault(frame.atoms.get_chemical_formula(), []).append(k)
    blocks = [members[first : first + length] for members in alike.values() for first in range(0, len(members), length)]
    order = np.random.default_rng(seed).permutation(len(blocks))
    tested = sorted([k for block in order for k in blocks[block]][:n_test])
    return [k for k in range(n) if k not in set(tested)], tested


def _thin(frames: Sequence[Frame], fitted: Sequence[int], tested: Sequence[int]) -> list[str]:
    """Return notes on elements that only the test has."""
    seen = {symbol for k in fitted for symbol in frames[k].atoms.get_chemical_symbols()}
    new = sorted({symbol for k in tested for symbol in frames[k].atoms.get_chemical_symbols()} - seen)
    return [f"Only test frames hold {', '.join(new)}: for these elements the test is of a transfer."] if new else []


# ---- Fit and test ---------------------------------------------------------------------------------


def _components(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Return force components, label and model, as far as they count."""
    counted = np.concatenate([frame.counted for frame in frames])
    return tuple(np.concatenate([one.forces for one in part])[counted].ravel() for part in (frames, predictions))


def _factor(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> float | None:
    """Return the advised c, or None where the slope is not positive or there is none."""
    try:
        return softening.correction(*_components(frames, predictions), "advised")
    except ValueError:
        return None


def _interval(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> list[float] | None:
    """Return the advised c with the ends of its 95 % interval over frames (:func:`softening.bootstrap_over`), or None if there is none."""
    pairs = [_components([frame], [prediction]) for frame, prediction in zip(frames, predictions, strict=True)]
    if len(pairs) < 2:
        return None
    sums = [[x @ x, x @ y, y @ y] for x, y in pairs]
    found = softening.bootstrap_over(sums, lambda total: softening.advised_factor(*np.moveaxis(total, -1, 0)))
    ends = [found.estimate, found.low, found.high]
    return ends if np.isfinite(ends).all() else None


def _reach(interval: list[float] | None, n: int, lost: dict[str, float] | None) -> list[str]:
    """Say how sure the factor of n frames is, and what was forgotten."""
    if interval is None:
        said = ["The factor has no interval: " + ("one frame gives none." if n == 1 else "the frames do not agree on its sign.")]
    else:
        narrow = f" With {n} frames it is too narrow: add frames." if n < 5 else ""
        is_ = "The factor is" if lost is None else "One factor would be"
        said = [f"{is_} " + "{:.3f}, 95 % interval {:.3f} to {:.3f}".format(*interval) + f" over {n} fitted frames.{narrow}"]
    if lost is not None:
        on = f"on {lost['n']} crystals of {lost['n_elements']} elements that no label has"
        forces = f"forces changed by {lost['forces']:.3f} eV/Å, {lost['forces'] / lost['forces_before']:.0%} of their mean size"
        said.append(f"Forgetting, {on}: {forces}, energies by {1000 * lost['energy']:.0f} meV/atom.")
    return said


def _single_factors(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> list[float]:
    """Return what each frame alone would give for c, where it gives anything."""
    found = [_factor([frame], [prediction]) for frame, prediction in zip(frames, predictions, strict=True)]
    return [c for c in found if c is not None]


def _shift(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Return elements, and the reference energies (eV) that labels have beyond a model, fitted per atom by least squares."""
    table = labels.counts(frames)
    size = table.sum(axis=1)
    offset = np.array([frame.energy for frame in frames], dtype=float) - [p.energy for p in predictions]
    elements = np.unique(np.concatenate([frame.atoms.numbers for frame in frames]))
    return elements, np.linalg.lstsq(table / size[:, None], offset / size, rcond=None)[0]


def _offset(frame: Frame, elements: np.ndarray, energies: np.ndarray) -> float:
    return float((frame.atoms.numbers[:, None] == elements).sum(axis=0) @ energies)


def _on_the_models_zero(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> tuple[list[Label], dict[str, float]]:
    """Return labels whose energies are shifted, per element, to the model's own reference energies, and the shifts (eV per atom)."""
    # Another code or pseudopotential counts energies from another zero. To learn that offset would take all of the training.
    known = [frame.energy for frame in frames if frame.energy is not None]
    if len(known) < len(frames):
        return [frame.label() for frame in frames], {}
    elements, energies = _shift(frames, predictions)
    shifted = [
        replace(frame.label(), energy=energy - _offset(frame, elements, energies)) for frame, energy in zip(frames, known, strict=True)
    ]
    return shifted, {chemical_symbols[z]: float(energy) for z, energy in zip(elements, energies, strict=True)}


def _energy_mae(frames: Sequence[Frame], predictions: Sequence[Prediction], fitted: Sequence[int], chosen: Sequence[int]) -> float:
    """Return the energy MAE (eV/atom) of the chosen frames whose reference energies the fitted frames determine; NaN if there are none."""
    known = [k for k in fitted if frames[k].energy is not None]
    if not known:
        return math.nan
    elements, energies = _shift([frames[k] for k in known], [predictions[k] for k in known])
    table = labels.counts([frames[k] for k in known])
    inside = np.linalg.pinv(table) @ table
    errors = []
    for k in chosen:
        frame = frames[k]
        composition = (frame.atoms.numbers[:, None] == elements).sum(axis=0).astype(float)
        determined = composition.sum() == len(frame.atoms) and np.allclose(composition @ inside, composition, atol=1e-6 * len(frame.atoms))
        if frame.energy is not None and determined:
            errors.append(abs(predictions[k].energy + composition @ energies - frame.energy) / len(frame.atoms))
    # One fitted frame per reference energy has no error by construction.
    free = chosen is not fitted or len(known) > np.linalg.matrix_rank(table)
    return float(np.mean(errors)) if errors and free else math.nan


def _scores(frames: Sequence[Frame], fitted: Sequence[int], tested: Sequence[int], stages: dict[str, Sequence[Prediction]]) -> pd.DataFrame:
    rows = []
    for name, chosen in (("test", tested), ("fit", fitted)):
        for stage, predictions in stages.items() if chosen else ():
            x, y = _components([frames[k] for k in chosen], [predictions[k] for k in chosen])
            found = softening.fit(x, y)
            row: dict[str, Any] = {"stage": stage, "frames": name, "n_frames": len(chosen), "n_components": found.n}
            row |= {column: getattr(found, column) for column in ("slope", "inverse_slope", "r2", "mae", "cmae")}
            rows.append(row | {"energy_mae": _energy_mae(frames, predictions, fitted, chosen)})
    return pd.DataFrame(rows)


def advice(scores: pd.DataFrame, single_factors: Sequence[float], method: str) -> list[str]:
    """Say in words whether one factor suffices, by :data:`RULES`, from the scores and the c of each fitted frame alone."""
    judged = "test" if (scores["frames"] == "test").any() else "fit"
    rows = scores[scores["frames"] == judged].set_index("stage")
    before = rows.loc["before"]
    said = [_softness(before)]
    if judged == "test" and before["n_frames"] == 1:
        said = [f"One test frame says little: label more before you rely on what follows. There: {said[0]}"]
    factor = rows.loc["one factor"] if "one factor" in rows.index else None
    if factor is not None and before["mae"] > 0:
        share = 1 - factor["mae"] / before["mae"]
        own = 1 - before["cmae"] / before["mae"]
        if share >= softening.SUFFICES:
            said.append(f"One factor removes {share:.0%} of the force error: a scalar suffices unless you need the rest.")
        elif share >= softening.WORTH_HAVING:
            said.append(
                f"One factor removes {share:.0%} of the force error: it helps, but what is left needs trained weights (method full)."
            )
        elif share >= 0:
            said.append(
                f"One factor removes only {share:.0%} of the force error: a scalar does not suffice; train the weights (method full)."
            )
        else:
            said.append(f"One factor makes the forces worse, by {-share:.0%}: do not use it.")
        if judged == "test" and share < softening.SUFFICES <= own:
            said.append(
                f"A factor fitted to the test frames would remove {own:.0%} of their error: "
                "the frames that were fitted are of another kind. Label frames like those the potential is for."
            )
    if method != "linear":
        tuned = rows.loc["fine-tuned"]
        reached = f"Training the weights changes the force MAE from {before['mae']:.3g} to {tuned['mae']:.3g} eV/Å"
        if factor is None:
            said.append(f"{reached}; no factor could be fitted.")
        else:
            pays = tuned["mae"] < 0.9 * min(factor["mae"], before["mae"])
            verdict = "it pays" if pays else "it does not pay; take the simpler of the two others"
            said.append(f"{reached}, one factor to {factor['mae']:.3g}: {verdict}.")
    last = rows.iloc[-1]
    if last["energy_mae"] > 1.2 * before["energy_mae"] and last["energy_mae"] - before["energy_mae"] > _ENERGY_WORSE:
        said.append(
            f"Energies became worse: {1000 * before['energy_mae']:.0f} before, {1000 * last['energy_mae']:.0f} meV/atom after. "
            "Force labels fix forces; check energy differences before you use them."
        )
    if len(single_factors) > 1:
        low, high = min(single_factors), max(single_factors)
        agree = "they do not agree on whether forces are too small" if low < 1 < high else "they agree on the direction"
        said.append(f"The fitted frames, each alone, ask for factors from {low:.2f} to {high:.2f}: {agree}.")
    if before["slope"] > 0 and not _USUAL_FACTORS[0] <= 1 / before["slope"] <= _USUAL_FACTORS[1]:
        said.append(f"A slope of {before['slope']:.2f} is unusual; check units, functional and the kind of frames before you use a factor.")
    if judged == "fit":
        said.append(
            "Nothing was tested: all numbers are of the frames that were fitted. Add frames to learn what the fix is worth elsewhere."
        )
    elif before["n_frames"] == 2:
        said.append("Uncertain: there are only 2 test frames.")
    return said


def _softness(before: pd.Series) -> str:
    s, inverse = before["slope"], before["inverse_slope"]
    return {
        "stiff": f"The model is not soft here but stiff: its forces are {s:.2f} times those of DFT.",
        "right": f"The model is not soft here: its forces have the right size (slope {s:.2f}).",
        "calibrated": f"The slope of {s:.2f} is that of a calibrated (shrunken) prediction (R² {before['r2']:.2f}, s′ {inverse:.2f}).",
        "soft": f"The model is soft here: the slope of its forces on DFT's is {s:.2f}.",
    }[softening.verdict(s, inverse)]


RULES = (
    "Soft: slope s below 0.97 and inverse slope s′ above 1.03. With s low but s′ near one the model is calibrated (shrunken), "
    "and a factor would only amplify its scatter.",
    "A scalar suffices if it removes at least half of the force error of the test frames; below a fifth it is not worth having. "
    "What the factor best for the test frames would remove, 1 − cMAE/MAE, tells whether it is the idea or only this factor that fails.",
    "Trained weights pay if they leave less than nine tenths of the error that the better of the original and one factor leaves.",
    "Fewer than three test frames: an indication, no more.",
)


# ---- The report -----------------------------------------------------------------------------------


def _write_report(
    out: Path,
    about: dict[str, Any],
    frames: Sequence[Frame],
    fitted: Sequence[int],
    tested: Sequence[int],
    stages: dict[str, Sequence[Prediction]],
    outcome: FineTuned | None,
) -> None:
    shown = tested or fitted
    base = about["model_key"] if not about["model_key"].startswith("file:") else f"file:{about['request']['model']}"
    after = f"{base}*{about['factor']:.4f}" if outcome is None else f"{base}+{about['n_labels']}"
    last = list(stages)[-1]
    table = _force_table([frames[k] for k in shown], {base: [stages["before"][k] for k in shown], after: [stages[last][k] for k in shown]})
    scores = pd.DataFrame(about["scores"]).astype({"energy_mae": float})
    rows = scores[scores["frames"] == ("test" if tested else "fit")].set_index("stage")
    parity = page.Picture(
        figures.force_parity(table, models=[base, after]),
        f"Model against DFT force components of {len(shown)} frames, before and after: the slope goes from "
        f"{rows.loc['before', 'slope']:.2f} to {rows.loc[last, 'slope']:.2f}, the mean absolute error from "
        f"{rows.loc['before', 'mae']:.3f} to {rows.loc[last, 'mae']:.3f} eV/Å.",
        f"Force components of the {'test frames' if tested else 'fitted frames (nothing was tested)'}: "
        "before on the left, after on the right. A perfect model lies on the dashed line.",
    )
    result: list[page.Block | None] = [
        page.Text(about["advice"][0], strong=True),
        page.Bullets(about["advice"][1:]),
        _score_table(scores, "test", tested),
    ]
    result += [parity, _score_table(scores, "fit", fitted)]
    sections = [page.Section("What the fix does", [block for block in result if block is not None])]
    if outcome is not None:
        best = outcome.history[outcome.best_epoch]
        sections.append(
            page.Section(
                "Training",
                [
                    page.Picture(
                        figures.training_curve(outcome.history, outcome.best_epoch, after),
                        f"Force error against epoch. The weights of epoch {outcome.best_epoch + 1} of {len(outcome.history)} were "
                        f"kept, where the frames that choose the epoch have {best['validation_force_mae']:.3f} eV/Å.",
                        f"{len(outcome.train)} of the fitted frames were trained on, {len(outcome.validation)} chose the epoch"
                        + (" (the same one: there is only one)." if outcome.train == outcome.validation else ". Test frames took no part."),
                    )
                ],
            )
        )
    sections += [
        _use(out, about),
        _labels_section(about, frames, fitted, tested),
        page.Section("How the advice is found", [page.Bullets(RULES), page.Text(_DEFINITIONS)]),
        _provenance(about),
    ]
    title = f"{figures.label(base)}, fixed with {about['n_labels']} label{'' if about['n_labels'] == 1 else 's'}"
    how = "one factor on energies, forces and stresses" if outcome is None else "fine-tuned weights"
    how = "kept as it was" if about["kept_as_it_was"] else how
    lead = f"{how[0].upper()}{how[1:]}. Elements: {', '.join(about['elements'])}. {about['date']}."
    footer = "Written by softening fix. Method: Deng et al., npj Comput. Mater. 11, 9 (2025)."
    page.write(out, title, lead, sections, footer)


_DEFINITIONS = (
    "Slope s: least-squares line of the model's force components on DFT's, through zero. Inverse slope s′: of DFT's on the model's. "
    "R² = s s′. cMAE: mean absolute error after every force has been divided by s. Energy MAE: per atom, after reference energies of the "
    "elements have been fitted on the fitted frames, so that another code's zero of energy does not count."
)


def _force_table(frames: Sequence[Frame], predictions: dict[str, Sequence[Prediction]]) -> pd.DataFrame:
    parts = []
    for model, answers in predictions.items():
        reference, value = _components(frames, answers)
        parts.append(pd.DataFrame({"model": model, "case": "", "property": "force", "value": value, "reference": reference}))
    return pd.concat(parts, ignore_index=True).assign(unit="eV/Å", status="ok", reason="")


def _score_table(scores: pd.DataFrame, which: str, chosen: Sequence[int]) -> page.Table | None:
    rows = scores[scores["frames"] == which]
    if rows.empty:
        return None
    shown = {
        "slope s": ("slope", "{:.3f}", 1),
        "inverse slope s′": ("inverse_slope", "{:.3f}", 1),
        "R²": ("r2", "{:.3f}", 1),
        "force MAE (eV/Å)": ("mae", "{:.3f}", 1),
        "force cMAE (eV/Å)": ("cmae", "{:.3f}", 1),
        "energy MAE (meV/atom)": ("energy_mae", "{:.1f}", 1000),
    }
    cells = {
        row["stage"]: [form.format(unit * row[column]) if pd.notna(row[column]) else "–" for column, form, unit in shown.values()]
        for row in rows.to_dict("records")
    }
    name = "test frames, which took no part in the fit" if which == "test" else "frames that were fitted"
    count = f"{len(chosen)} frame{'' if len(chosen) == 1 else 's'}, {rows['n_components'].iloc[0]:,} force components"
    return page.Table(pd.DataFrame(cells, index=list(shown)), f"On the {name}: {count}.")


def _use(out: Path, about: dict[str, Any]) -> page.Section:
    key = f"file:{out}"
    trust = fixes.is_code(about["model_key"])
    load = f"potential = potentials.load({key!r}{', trust=True' if trust else ''})"
    python = f"from helpers import potentials\n\n{load}\natoms.calc = potential.calculator()"
    shell = f"softening run surfaces --model {shlex.quote(key)}{' --trust' if trust else ''}"
    blocks: list[page.Block] = [page.Code(python), page.Text("As any model of the command line:"), page.Code(shell)]
    if about["method"] == "linear":
        blocks.append(
            page.Text(
                f"The factor is c = {about['factor']:.4f}. Any other code that can multiply energies, forces and stresses by it "
                "gives the same."
            )
        )
    return page.Section("How to use it", blocks)


def _labels_section(about: dict[str, Any], frames: Sequence[Frame], fitted: Sequence[int], tested: Sequence[int]) -> page.Section:
    used = [Counter(frames[k].file for k in chosen) for chosen in (fitted, tested)]
    # Of many files those that are alike share a row.
    rows: dict[tuple, list[str]] = {}
    for file in about["labels"]:
        cells = (file["frames"], *(one[file["file"]] for one in used), file["found"] or "–")
        rows.setdefault(cells if len(about["labels"]) > _SHOWN else (*cells, file["file"]), []).append(file["file"])
    names = [files[0] if len(files) == 1 else f"{len(files)} files, {files[0]} … {files[-1]}" for files in rows.values()]
    summed = [[len(files) * n for n in (a, b, c, a - b - c)] + [found] for (a, b, c, found, *_), files in rows.items()]
    columns = ["frames", "fitted", "tested", "left out", "answers found as"]
    blocks: list[page.Block] = [page.Table(pd.DataFrame(summed, index=pd.Index(names, name="file"), columns=columns))]
    if tested:
        blocks.append(page.Text(f"Held back for the test, in blocks of neighbours (counted from 0): {labels.places(frames, tested)}."))
    if about["dropped"]:
        more = [f"… and more, in {fixes.RECORD}"] * (len(about["dropped"]) > _SHOWN)
        blocks += [page.Text("Frames left out:"), page.Bullets([*about["dropped"][:_SHOWN], *more])]
    if about["energy_offsets_ev"]:
        shifts = ", ".join(f"{symbol} {value:+.3f}" for symbol, value in about["energy_offsets_ev"].items())
        blocks.append(page.Text(f"Taken off the labels' energies, so that they count from the model's zero (eV per atom): {shifts}."))
    if about["notes"]:
        blocks += [page.Text("To know:"), page.Bullets(about["notes"])]
    return page.Section("Labels", blocks)


def _provenance(about: dict[str, Any]) -> page.Section:
    sums = {f"SHA-256 of {file['file']}": file["sha256"] for file in about["labels"]}
    if len(sums) > _SHOWN:
        sums = {f"SHA-256 of the {len(sums)} label files": f"in {fixes.RECORD}"}
    rows = {
        "fixed from": about["model_key"],
        "SHA-256 of its weights": about["base_sha256"] or "not known",
        **sums,
        "method": about["method"],
        **({"recipe": ", ".join(f"{name} {value}" for name, value in about["recipe"].items())} if about["recipe"] else {}),
        "test fraction, seed": f"{about['request']['test_fraction']}, {about['request']['seed']}",
        "device": about["device"],
        "packages": ", ".join(f"{name} {number}" for name, number in about["packages"].items()),
        "date": about["date"],
    }
    return page.Section("Where it comes from", [page.facts(rows)])
