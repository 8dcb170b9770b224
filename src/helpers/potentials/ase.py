"""Any ASE calculator as a potential: bring your own model.

A calculator is evaluated one structure at a time; its exceptions become failed records, not crashes.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Sequence

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from torch_sim.state import SimState
from tqdm.auto import tqdm

from helpers.potentials.base import Potential, PotentialError, Prediction, StructureError, check_structure

_ALL_ELEMENTS = frozenset(range(1, 119))


class ASEPotential(Potential):
    """An ASE calculator behind the common interface.

    Parameters
    ----------
    key : str
    calculator : ase.calculators.calculator.Calculator
    elements : frozenset of int, optional
        Atomic numbers the calculator accepts; by default it is trusted to refuse what it does not know.
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

    def evaluate(self, structures: Sequence[ase.Atoms], *, stress: bool = False, progress: bool = False) -> list[Prediction]:  # noqa: D102
        bar = tqdm(structures, disable=not progress, unit="structure", desc=self.key)
        return [self._evaluate_one(atoms, stress) for atoms in bar]

    def _forget(self) -> None:
        """Let the calculator start afresh: what it has of a structure that it gave up must not be taken for the next one's."""
        if hasattr(self.wrapped, "reset"):
            self.wrapped.reset()

    def _evaluate_one(self, atoms: ase.Atoms, stress: bool) -> Prediction:
        self.check_time()
        try:
            check_structure(atoms.numbers, atoms.positions, atoms.cell.array, self.elements)
            copy = atoms.copy()
            copy.calc = self.wrapped
            tensor = None
            if stress:
                # First, because most calculators then have energy and forces as well, but not the other way round.
                try:
                    tensor = self.scale * np.asarray(copy.get_stress(voigt=False), dtype=float)
                except (PropertyNotImplementedError, NotImplementedError):
                    tensor = None
                    self._forget()
            forces = self.scale * np.asarray(copy.get_forces(), dtype=float)
            energy = self.scale * float(copy.get_potential_energy())
        except StructureError as error:
            return Prediction.failed(len(atoms), str(error))
        except Exception as error:  # noqa: BLE001  (a foreign calculator may raise anything; the reason is kept)
            self._forget()
            return Prediction.failed(len(atoms), f"{type(error).__name__}: {error}")
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            return Prediction.failed(len(atoms), "the calculator returned values that are not numbers")
        return Prediction(energy, forces, tensor)

    def forward(self, state: SimState, **_: object) -> dict[str, torch.Tensor]:
        """Evaluate a torch-sim state, one structure after the other."""
        predictions = self.evaluate(state.to_atoms(), stress=self.compute_stress)
        forces = np.concatenate([prediction.forces for prediction in predictions])
        output = {
            "energy": torch.as_tensor([p.energy for p in predictions], dtype=state.dtype, device=state.device),
            "forces": torch.as_tensor(forces, dtype=state.dtype, device=state.device),
        }
        if self.compute_stress:
            stresses = [np.full((3, 3), np.nan) if p.stress is None else p.stress for p in predictions]
            output["stress"] = torch.as_tensor(np.stack(stresses), dtype=state.dtype, device=state.device)
        return output


def load(key: str) -> ASEPotential:
    """Make a potential from ``ase:module.factory``: the named function is called without arguments and returns a calculator.

    Only the module that the caller names is imported.

    Raises
    ------
    PotentialError
        If the module or the function does not exist, one of them raises, or what comes back is no ASE calculator.
    """
    path = key.removeprefix("ase:")
    module_name, _, factory_name = path.rpartition(".")
    if not module_name:
        raise PotentialError(f"{key!r}: write ase:module.factory, for example ase:ase.calculators.emt.EMT")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PotentialError(f"{key!r}: {error}. The module, and what it imports, must be importable (PYTHONPATH).") from error
    except Exception as error:
        raise PotentialError(f"{key!r}: importing {module_name} raised {_described(error)}") from error
    try:
        factory = getattr(module, factory_name)
    except AttributeError as error:
        raise PotentialError(f"{key!r}: {error}") from error
    try:
        calculator = factory()
    except Exception as error:
        raise PotentialError(f"{key!r}: the factory, called without arguments, raised {_described(error)}") from error
    if not hasattr(calculator, "get_property"):
        raise PotentialError(f"{key!r} returned {type(calculator).__name__}, not an ASE calculator.")
    return ASEPotential(key, calculator)


def _described(error: Exception) -> str:
    """Return an exception with the line of the user's code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    # A syntax error names its own line.
    place = "" if last.filename == __file__ or isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
    return f"{type(error).__name__}: {error}{place}"
