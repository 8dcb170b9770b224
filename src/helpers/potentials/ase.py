"""Any ASE calculator as a potential: bring your own model.

A calculator is evaluated one structure at a time; its exceptions, and answers of another shape or kind than ASE's, become failed records,
not crashes. Whether its numbers belong together is found out by :mod:`helpers.potentials.exam`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress
from tqdm.auto import tqdm

from helpers import structures as door
from helpers.potentials.base import Potential, PotentialError, Prediction, StructureError
from helpers.potentials.neighbours import check_structure

_ALL_ELEMENTS = frozenset(range(1, 119))

# How the reason begins when a calculator answers in another form than ASE's.
MALFORMED = "the calculator's"


class ASEPotential(Potential):
    """An ASE calculator behind the common interface.

    ``elements``, by default all, are atomic numbers that it accepts: it is trusted to refuse what it does not know.
    """

    def __init__(
        self,
        key: str,
        calculator: Calculator,
        *,
        elements: frozenset[int] = _ALL_ELEMENTS,
        description: dict[str, object] | None = None,
    ) -> None:
        described = {"family": type(calculator).__name__, "parameters": None, "weights_sha256": None, **(description or {})}
        super().__init__(key, device=torch.device("cpu"), elements=elements, description=described)
        self.wrapped = calculator

    def evaluate(self, structures, *, stress: bool = False, progress: bool = False) -> list[Prediction]:  # noqa: D102
        bar = tqdm(door.many(structures), disable=not progress, unit="structure", desc=self.key)
        return [self._evaluate_one(atoms, stress) for atoms in bar]

    def _forget(self) -> None:
        """Let the calculator start afresh: what it has of one structure must not be taken for the next one's."""
        if hasattr(self.wrapped, "reset"):
            self.wrapped.reset()

    def _evaluate_one(self, atoms: ase.Atoms, stress: bool) -> Prediction:
        self.check_time()
        try:
            check_structure(atoms.numbers, atoms.positions, atoms.cell.array, self.elements)
            own, tensor = door.enter(atoms), None
            self._forget()
            if stress:
                # First, because most calculators then have energy and forces as well, but not the other way round.
                try:
                    answer = _answer(self.wrapped.get_stress(own), "stress", ((6,), (9,), (3, 3)), "(6,) is wanted: xx, yy, zz, yz, xz, xy")
                    tensor = self.scale * (voigt_6_to_full_3x3_stress(answer) if answer.size == 6 else answer.reshape(3, 3))
                except (PropertyNotImplementedError, NotImplementedError):
                    self._forget()
            shape = (len(atoms), 3)
            forces = self.scale * _answer(self.wrapped.get_forces(own), "forces", (shape,), f"{shape} is wanted, a row for each atom")
            total = self.wrapped.get_potential_energy(own)
            energy = self.scale * _answer(total, "energy", ((), (1,)), "one number is wanted, the total (eV), not one for each atom").item()
        except StructureError as error:
            return Prediction.failed(len(atoms), str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a foreign calculator may raise anything; the reason is kept)
            return Prediction.failed(len(atoms), f"{type(error).__name__}: {error}")
        return Prediction(energy, forces, tensor)


def _answer(value: object, name: str, shapes: Collection[tuple[int, ...]], wanted: str) -> np.ndarray:
    """Return what a calculator gave as finite real numbers, if it has one of these shapes."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        what = {"c": "complex", "O": "None, or no numbers"}.get(array.dtype.kind, array.dtype.name)
        raise StructureError(f"{MALFORMED} {name}: {what}; real numbers are wanted")
    if not np.isfinite(array).all():
        raise StructureError("the calculator returned values that are not numbers")
    if array.shape not in shapes:
        raise StructureError(f"{MALFORMED} {name}: of shape {array.shape}; {wanted}")
    return array.astype(float)


# ---- Keys -----------------------------------------------------------------------------------------


def load(key: str) -> ASEPotential:
    """Make a potential from the name of a factory: a function without arguments or a class that makes a calculator, or one ready made.

    ``ase:module.factory`` or ``ase:module:factory`` names one in an importable module or in a module of the current folder,
    ``ase:path/to/file.py:factory`` one in a file. Only what the caller names is imported. What a file imports is also looked for beside it,
    after all else. The potential's key is :func:`canonical`. PotentialError if the module or the function does not exist, one of them
    raises, or what comes back is no ASE calculator.
    """
    file, name, factory_name = _place(key)
    try:
        module = _from_file(file) if file else importlib.import_module(name)
    except ImportError as error:
        advice = "must be importable (PYTHONPATH), or lie in the current folder; a file is ase:path/to/file.py:factory"
        raise PotentialError(f"{key!r}: {error}. The module, and what it imports, {advice}.") from error
    except (Exception, SystemExit) as error:
        raise PotentialError(f"{key!r}: importing {name} raised {_described(error)}") from error
    if not hasattr(module, factory_name):
        raise PotentialError(f"{key!r}: {file or name} has no {factory_name!r}")
    calculator = getattr(module, factory_name)
    if isinstance(calculator, type) or not hasattr(calculator, "get_property"):
        try:
            calculator = calculator()
        except (Exception, SystemExit) as error:
            raise PotentialError(f"{key!r}: the factory, called without arguments, raised {_described(error)}") from error
    if isinstance(calculator, type) or not hasattr(calculator, "get_property"):
        what = f"the class {calculator.__name__}" if isinstance(calculator, type) else type(calculator).__name__
        raise PotentialError(f"{key!r} returned {what}, not an ASE calculator.")
    # A file changes more easily than a package: results of its earlier content are not taken for those of this one.
    about: dict[str, object] = {"source_sha256": hashlib.sha256(file.read_bytes()).hexdigest()} if file else {}
    return ASEPotential(canonical(key), calculator, description=about)


def canonical(key: str) -> str:
    """Return the key that means the same in every folder: a file by its absolute path, with ``~`` for the home folder.

    PotentialError if the key has not one of the forms that :func:`load` takes.
    """
    file, _, factory = _place(key) if key.startswith("ase:") else (None, "", "")
    if file is None:
        return key
    home = os.path.expanduser("~")
    for folder in (home, os.path.realpath(home)):
        if file.is_relative_to(folder):
            return f"ase:~/{file.relative_to(folder).as_posix()}:{factory}"
    return f"ase:{file}:{factory}"


def _place(key: str) -> tuple[Path | None, str, str]:
    """Return the file of a key, if it names one or a module of the current folder; its module; and the factory's name."""
    text = key.removeprefix("ase:")
    name, _, factory = text.rpartition(":" if ":" in text else ".")
    if name.endswith(".py") or any(mark in name for mark in ("/", os.sep, "~")):
        file = Path(os.path.abspath(os.path.expanduser(name)))
        if not file.is_file():
            raise PotentialError(f"{key!r}: there is no file {file}")
        return file, file.stem, factory
    parts = name.split(".")
    if not all(map(str.isidentifier, [*parts, factory])) or text.endswith(".py"):
        raise PotentialError(f"{key!r}: write ase:module.factory (say ase:ase.calculators.emt.EMT) or ase:path/to/file.py:factory")
    # A console script does not import from the current folder, and a worker may have another one.
    here = Path.cwd()
    for file in (here.joinpath(*parts).with_suffix(".py"), here.joinpath(*parts, "__init__.py")):
        if file.is_file() and _top(parts[0]) in (None, here):
            return file, name, factory
    return None, name, factory


def _top(name: str) -> Path | None:
    """Return the folder that a module or package is imported from; None if there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    place = next(iter(spec.submodule_search_locations or ()), None)
    return Path(place or spec.origin or "built-in").absolute().parent


def _from_file(file: Path) -> ModuleType:
    root, names = file.parent, [] if file.name == "__init__.py" else [file.stem]
    while (root / "__init__.py").is_file():
        root, names = root.parent, [root.name, *names]
    if str(root) not in sys.path:
        # Last: a file beside it that is called like a package does not hide the package.
        sys.path.append(str(root))
    if (file.parent / "__init__.py").is_file():
        module = importlib.import_module(".".join(names))
        if Path(module.__file__ or "").resolve() != file.resolve():
            raise ImportError(f"another package is called {names[0]}: {module.__file__}")
        return module
    spec = importlib.util.spec_from_file_location(f"softening_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no file of Python code")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _described(error: BaseException) -> str:
    """Return an exception on one line, with the line of the user's code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    # A syntax error names its own line.
    place = "" if last.filename == __file__ or isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
