"""Mended potentials in the form that their own package loads, so that they can be used without this project.

The factor c of a mended potential multiplies the whole energy, reference energies included (:meth:`~helpers.potentials.Potential.scaled`).
It goes into the weights where the energy is linear in some of them: CHGNet's last layer and composition model, the mean, deviation and
reference energies that MatGL keeps beside the network, MACE's scale, shift and reference energies. Nothing is approximated, and what was
written is loaded by its own package and compared with the mended potential before it gets its name.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shlex
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers

from helpers import potentials, results, structures
from helpers.potentials import ase as calculators
from helpers.potentials import fixes
from helpers.potentials.base import Potential, PotentialError, Prediction

N_CRYSTALS = 20
# Largest differences allowed, and their units; of a crystal whose own values exceed one, as a share of the largest.
TOLERANCES = {"energy": (2e-5, "eV/atom"), "forces": (5e-4, "eV/Å"), "stress": (2e-5, "eV/Å³")}

# How each form is used.
USE = {
    "chgnet": "from chgnet.model import CHGNet, CHGNetCalculator\natoms.calc = CHGNetCalculator(CHGNet.from_file({path!r}))",
    "matgl": "import matgl, matgl.ext.ase\natoms.calc = matgl.ext.ase.PESCalculator(matgl.load_model({path!r}), stress_unit='eV/A3')",
    "mace": "from mace.calculators import MACECalculator\natoms.calc = MACECalculator(model_paths={path!r})",
    "ase": "from {stem} import calculator  # needs this project's package\natoms.calc = calculator()",
}


def form_of(potential: Potential) -> tuple[str, str]:
    """Return the form in which a potential's own package loads it, or ``ase`` and why there is none."""
    family, network = type(potential).__module__.rpartition(".")[2], getattr(potential, "network", None)
    if family not in USE or family == "ase":
        return "ase", f"the form of {potential.description.get('family', potential.key)} is not one of those that can be written"
    if family == "matgl" and potential.description["family"] == "M3GNet" and potential.convention.receiver:
        weights = "these M3GNet weights sum messages onto the far end of each bond, MatGL of today onto the near one, where the triples are"
        return "ase", f"{weights}. No change of the weights makes up for that: MatGL would load them and be wrong without a sign"
    if family == "mace" and potential.scale != 1 and hasattr(network, "pair_repulsion") and not hasattr(network, "scale_shift"):
        return "ase", "this MACE adds a pair repulsion that no weight multiplies, so the factor has no place in its file"
    return family, ""


def command(key: str, potential: Potential) -> str:
    """Return the command that exports a mended potential, ``file:FOLDER``, in the form of its package."""
    form, _ = form_of(potential)
    stem = "".join(c if c.isalnum() else "_" for c in Path(key.removeprefix("file:")).resolve().name)
    ending = {"chgnet": ".pth.tar", "mace": ".model", "ase": ".py"}.get(form, "")
    return f"softening export {shlex.quote(key)} --to {form} --out {form}_{stem}{ending}" + " --trust" * fixes.is_code(key)


def export(model: str, form: str, out: Path | str, *, trust: bool = False) -> tuple[dict[str, float], str]:
    """Write a mended potential in the form of its own package, and make sure that this loads it and gives the same answers.

    Returned are the largest differences from the mended potential (:data:`TOLERANCES`), and how to load it, in Python. PotentialError or
    ValueError, with nothing left behind, if the model is no mended potential, there is something of that name, the architecture has not
    this form, or the package's answers differ from those of the mended potential on one of :data:`N_CRYSTALS` crystals.

    Parameters
    ----------
    model : str
        ``file:FOLDER``, what :mod:`helpers.potentials.fixes` wrote.
    form : {"chgnet", "matgl", "mace", "ase"}
        A file for ``CHGNet.from_file`` (single precision), a folder for ``matgl.load_model`` (single precision, MatGL's present
        convention), a MACE model file (double precision), or a Python module with a function ``calculator``.
    out : path
        Must not exist.
    trust : bool
        As in :func:`helpers.potentials.load`.
    """
    out = Path(out)
    folder = fixes.folder_of(f"file:{model.removeprefix('file:')}")
    if folder is None:
        raise PotentialError(f"{model} is no mended potential: file:FOLDER is wanted, a folder that 'softening fix' made.")
    if form not in USE:
        raise PotentialError(f"the form {form!r} is none of {', '.join(USE)}.")
    results.check_new(out)
    if form == "ase" and not (out.suffix == ".py" and out.stem.isidentifier()):
        raise PotentialError(f"{out} could not be imported: --to ase writes a Python module; call it something like my_fix.py.")
    # In double precision, so that numbers are rounded once.
    mended = potentials.load(f"file:{folder}", "cpu", dtype=torch.float64, trust=trust)
    own, why = form_of(mended)
    if form not in ("ase", own):
        why = why or f"it was made from {mended.description['mended_from']}, of another architecture"
        raise PotentialError(f"{folder} cannot be exported to {form}: {why}. Use --to {own}.")
    crystals = _crystals(mended, fixes.record(folder).get("elements", ()))
    expected = mended.evaluate(crystals, stress=True)
    precision = torch.get_default_dtype()
    try:
        # What a package warns of while it is compared is not about the user's structures.
        with results.aside(out) as made, warnings.catch_warnings(action="ignore"):
            _write(form, mended, folder, made)
            differences = _compared(out, expected, calculators.ASEPotential(str(out), _loaded(form, made)).evaluate(crystals, stress=True))
    finally:
        torch.set_default_dtype(precision)  # MACE's calculator changes it
    return differences, USE[form].format(path=str(out), stem=out.stem)


def _crystals(potential: Potential, labelled: Iterable[str]) -> list[ase.Atoms]:
    """Return strained and rattled crystals of two elements each: half of them of the labels' elements, half of all there are."""
    rng = np.random.default_rng(0)
    of_labels = [atomic_numbers[symbol] for symbol in labelled] or sorted(potential.elements)
    # What a calculator takes is not known.
    every = of_labels if isinstance(potential, calculators.ASEPotential) else sorted(potential.elements)
    found = []
    for n in range(N_CRYSTALS):
        chosen = of_labels if n < N_CRYSTALS // 2 else every
        pair = rng.choice(chosen, 2, replace=len(chosen) < 2)
        found.append(structures.prototype(pair, "rocksalt" if n % 2 else "zincblende", rng))
    return found


def _compared(out: Path, expected: Sequence[Prediction], found: Sequence[Prediction]) -> dict[str, float]:
    """Return the largest differences; PotentialError if one is not tolerated or a crystal could not be evaluated."""
    largest = dict.fromkeys(TOLERANCES, 0.0)
    for n, (one, other) in enumerate(zip(expected, found, strict=True)):
        where = f"on crystal {n + 1} of the {len(expected)} it was tested on"
        if not (one.ok and other.ok):
            raise PotentialError(f"{out} was removed: {where} there is no answer: {one.error or other.error}.")
        for what, (tolerance, _) in TOLERANCES.items():
            if what == "stress" and one.stress is None:
                continue
            size = len(one.forces) if what == "energy" else 1
            ours, theirs = (np.asarray(getattr(answer, what), dtype=float) / size for answer in (one, other))
            difference, allowed = float(np.abs(ours - theirs).max()), tolerance * max(1.0, float(np.abs(ours).max()))
            if not difference <= allowed:
                text = f"{where} its {what} differs from the mended potential's by {difference:.2g}, more than {allowed:.2g}"
                raise PotentialError(f"{out} was removed: {text}. Use the folder itself, or --to ase.")
            largest[what] = max(largest[what], difference)
    return largest


def _loaded(form: str, path: Path) -> Calculator:
    """Return what a form's own package makes of a file or folder, as an ASE calculator on the CPU."""
    with contextlib.redirect_stdout(io.StringIO()):
        if form == "chgnet":
            from chgnet.model import CHGNet, CHGNetCalculator

            return CHGNetCalculator(CHGNet.from_file(str(path)), use_device="cpu")
        if form == "matgl":
            import matgl
            from matgl.ext.ase import PESCalculator

            return PESCalculator(matgl.load_model(path), stress_unit="eV/A3")
        if form == "mace":
            from helpers.potentials.mace import UNSAFE_UNPICKLING, contained

            with contained():
                from mace.calculators import MACECalculator

                os.environ[UNSAFE_UNPICKLING] = "1"  # as the package's import leaves it; here it is the file just written
                return MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64")
        return calculators.load(f"ase:{path}:calculator").wrapped


# What a module says; numbers and names go in as literals.
_MODULE = '''"""A mended potential as an ASE calculator: ``from {stem} import calculator``, then ``atoms.calc = calculator()``.

It stands by itself, but needs this project's package (helpers) and what the original model needs. Written by softening export.
"""

import base64
import tempfile
import zlib
from pathlib import Path

from helpers import potentials

ORIGINAL = {original!r}
FILES = {files!r}


def calculator(device="auto"):
    """Return the calculator: energies in eV, forces in eV/Å, stress in eV/Å³."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILES.items():
            Path(folder, name).write_bytes(zlib.decompress(base64.b85decode(text)))
        return potentials.load(Path(folder), device, trust=True).calculator()
'''


def _write(form: str, mended: Potential, folder: Path, path: Path) -> None:
    """Write a potential, whose network is used up: the factor goes into its weights."""
    if form == "ase":
        # Of the record what loading needs: the names of the user's files stay at home.
        record = {name: value for name, value in fixes.record(folder).items() if name in fixes.NEEDED}
        files = {name: (folder / name).read_bytes() for name in (fixes.WEIGHTS, fixes.BASE) if (folder / name).is_file()}
        files[fixes.RECORD] = json.dumps(record).encode()
        packed = {name: base64.b85encode(zlib.compress(content)).decode() for name, content in files.items()}
        path.write_text(_MODULE.format(stem=path.stem, original=mended.description["mended_from"], files=packed), encoding="utf-8")
        return
    network, c = mended.network, mended.scale
    if form == "matgl":
        from matgl.apps.pes import Potential as MatGLModel

        beside = [(c * tensor).float() for tensor in (mended.mean, mended.std, mended.element_energy)]
        MatGLModel(network.float(), *beside).save(path)
        return
    if form == "chgnet":
        scaled = [network.mlp.layers[-1], network.composition_model]
    elif hasattr(network, "scale_shift"):
        scaled = [network.atomic_energies_fn, network.scale_shift]  # which the pair repulsion goes through as well
    else:
        linear = [[layer for name, layer in readout.named_children() if name.startswith("linear")] for readout in network.readouts]
        scaled = [network.atomic_energies_fn, *(layers[-1] for layers in linear)]
    with torch.no_grad():
        for part in scaled:
            for tensor in list(part.parameters()) or list(part.buffers()):  # not the masks beside e3nn's weights
                tensor.mul_(c)
    network.requires_grad_(True)
    torch.save({"model": network.float().as_dict()} if form == "chgnet" else network, path)
