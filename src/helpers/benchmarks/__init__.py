"""The benchmarks: one module per family of the paper, all with the same names.

``Protocol``
    frozen dataclass; every setting, with its unit in the name or the comment.
``cases(protocol=None, sets=None)``
    reference structures with their DFT values, as a list of :class:`Case`, of some sets or of all; files that are not here are fetched.
    KeyError if a set is unknown, RegistryError if a file cannot be had, ValueError if one is not what it should be.
``run(potential, cases, protocol, progress=False)``
    a tidy table, one row per case and property (columns :data:`COLUMNS` first), of these cases or of a reader's own. A failure is a row
    with a reason.
``summarise(table)``
    the numbers that the chapter quotes, one row per model and set. Here and in other functions, ``table`` is what ``run`` returns.

With constants a module says what everything else must know of it:

``SETS``
    name of each reference set → the registry keys it needs; an empty tuple for a set that needs no external file.
``FUNCTIONALS``
    the sets whose DFT has another functional than PBE, which the catalogue's potentials learned → that functional. The first of ``SETS``
    is the one that figures and tables show unless they name another (:func:`functional`).
``LIVE``, ``TOLERANCES``
    the set that the book recomputes while it builds, and the largest accepted difference from the committed values, by property.
``KEYS``
    the columns that, beside set, case and property, tell the rows of a model apart.
``FAMILIES``
    how its table is read as softness (:class:`Family`).
``QUICK``, ``STAND_IN``
    what a sample of it is (:class:`Sample`): how much of which set, and how much of ``LIVE`` if none of these sets' files is here. With an
    empty ``QUICK`` it is on no report card. ``usable(cases)``, if there is one, says which cases of a set a sample is drawn from.
``MODELS``
    of experiments, which have no ``FAMILIES`` and no ``QUICK``: the potentials that its committed tables are made with → their sets.

One that evaluates each structure very often sets ``ATOMS_PER_SHARD``, the size of the pieces in which :mod:`helpers.runner` computes it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Literal

import numpy as np
import pandas as pd

from helpers import BENCHMARKS, EXPERIMENTS, OTHER_FUNCTIONAL, registry
from helpers.registry import nearest
from helpers.results import COLUMNS, Case, Rows, row, table

CATALOGUE = BENCHMARKS


def module(name: str) -> ModuleType:
    """Import a benchmark by name; KeyError if there is no such benchmark, which lists those there are."""
    if name not in CATALOGUE:
        raise KeyError(f"unknown benchmark {name!r}; there are: {', '.join(CATALOGUE)}.{nearest(name, CATALOGUE)}")
    return import_module(f"helpers.{'experiments' if name in EXPERIMENTS else 'benchmarks'}.{name}")


def chosen_sets(known: Collection[str], sets: str | Iterable[str] | None) -> list[str]:
    """Return the reference sets that are asked for, each once: all of a benchmark's ``SETS`` if None.

    KeyError if one is unknown or none is given, which lists those there are.
    """
    names = list(known) if sets is None else list(dict.fromkeys([sets] if isinstance(sets, str) else sets))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"unknown set(s) {', '.join(unknown)}" if unknown else "no set is given"
        raise KeyError(f"{what}; there are: {', '.join(known)}.{''.join(nearest(name, known) for name in unknown)}")
    return names


def functional(which: str) -> str:
    """Return the functional of the DFT of a set, ``benchmark/set``, or of a benchmark's first set; empty if it is PBE as in training data.

    KeyError if there is no such benchmark or set.
    """
    name, _, chosen = which.partition("/")
    known = module(name)
    return getattr(known, "FUNCTIONALS", {}).get(chosen_sets(known.SETS, chosen or None)[0], "")


def runs(models: Iterable[str]) -> Iterator[tuple[str, str, Collection[str] | None]]:
    """Yield all runs of the book: benchmarks with each of these potentials on all sets that are here (None), experiments with their own."""
    models = list(models)
    for name in CATALOGUE:
        own = module(name).MODELS if name in EXPERIMENTS else dict.fromkeys(models)
        yield from ((name, model, sets) for model, sets in own.items())


# ---- How a table is read as softness --------------------------------------------------------------

# Which derivative of the energy a quantity is, and p in: E → c E multiplies it by c^p. In the order in which pages show them.
_QUANTITIES = {"force": (1, 1.0), "energy": (0, 1.0), "barrier": (0, 1.0), "stress": (1, 1.0), "frequency": (2, 0.5), "curvature": (2, 1.0)}

NO_U, NO_MAGNET = "without O or F beside a +U metal", "without magnetic metals"


@dataclass(frozen=True)
class Family:
    """One quantity on one set of systems."""

    key: str  # for code
    name: str  # for the reader
    benchmark: str  # whose table
    quantity: str  # ``force``, ``energy``, ``barrier``, ``stress``, ``frequency`` or ``curvature``
    # From that table to the columns of :func:`helpers.explanations.rows`, failed rows included.
    read: Callable[[pd.DataFrame], pd.DataFrame]
    # What ``static`` and ``kept`` mean; empty if there is no such thing.
    geometry: str = ""
    selection: str = ""
    functional: str = ""  # of the reference, if it is another than the training data's: a sign on the name says so
    # ``control``: frames like the training data, which say whether a model works at all, not how soft it is. ``card``: on report cards
    # only. ``stand-in``: on report cards only, with a model of the book in the place of DFT, which has no values there.
    role: Literal["", "control", "card", "stand-in"] = ""

    def __post_init__(self) -> None:
        if self.quantity not in _QUANTITIES:
            raise ValueError(f"{self.key}: there is no quantity {self.quantity!r}; there are: {', '.join(_QUANTITIES)}")
        if self.functional and not self.name.endswith(OTHER_FUNCTIONAL):
            object.__setattr__(self, "name", f"{self.name}\u00a0{OTHER_FUNCTIONAL}")

    @property
    def order(self) -> int:
        """Return which derivative of the energy it is (0 energy, 1 force or stress, 2 curvature)."""
        return _QUANTITIES[self.quantity][0]

    @property
    def kind(self) -> str:
        """``force`` or ``scalar``: forces and stresses vary about zero; scalars have mostly one sign."""
        return "force" if self.order == 1 else "scalar"

    @property
    def power(self) -> float:
        """Return the power p. E → c E multiplies the quantity by c^p; p is ½ for frequencies, 1 for all else."""
        return _QUANTITIES[self.quantity][1]


def families(*roles: str) -> dict[str, Family]:
    """Return the families of these roles by key, forces first, then energies, barriers, stresses and curvatures."""
    found = [family for name in CATALOGUE if name not in EXPERIMENTS for family in module(name).FAMILIES if family.role in roles]
    return {family.key: family for family in sorted(found, key=lambda family: list(_QUANTITIES).index(family.quantity))}


def of(sets: str | Collection[str], name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Return the reader of one property of one set, or of some sets."""
    chosen = [sets] if isinstance(sets, str) else sets
    return lambda rows: rows[rows["set"].isin(chosen) & (rows["property"] == name)]


def beside(chosen: pd.DataFrame, moved: str, fixed: str, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows of the property ``moved``, with the value of ``fixed`` for the same case as ``static``.

    ``extra`` names columns that tell the rows of a case apart.
    """
    keys = ["model", "set", "case", *extra]
    static = chosen[(chosen["property"] == fixed) & (chosen["status"] == "ok")]
    static = static[[*keys, "value"]].rename(columns={"value": "static"})
    return chosen[chosen["property"] == moved].merge(static, on=keys, how="left", validate="one_to_one")


def without(found: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return rows with ``kept``: all but those for which a column of truth values is true."""
    return found.assign(kept=~found[column].astype(bool))


def force_rows(model: str, case: Case, values: np.ndarray, references: np.ndarray, error: str | None = None, **extra: object) -> Rows:
    """Return one row per force component (eV/Å, with ``atom`` and ``component``, 0 to 2 for x to z), or a single failed one."""
    record = partial(row, model, case, "force", unit="eV/Å", **extra)
    if error is not None:
        return [record(np.nan, np.nan, error=error, atom=np.nan, component=np.nan)]
    return [record(float(value), float(references[at]), atom=float(at[0]), component=float(at[1])) for at, value in np.ndenumerate(values)]


# ---- A sample -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """How many cases of a set are drawn."""

    n: int  # cases; materials if these are taken whole
    max_atoms: int | None = None  # cases with more atoms in all their structures together are not drawn: they take too long
    whole: bool = False  # take all cases of a material, where a number belongs to a material


def at_hand(name: str, wanted: Mapping[str, Sample | None]) -> dict[str, Sample | None]:
    """Return those of the wanted sets of a benchmark whose files are here; if none is, what stands in for them, if anything does."""
    known = module(name)
    here = {chosen: size for chosen, size in wanted.items() if registry.available(known.SETS[chosen])}
    return here or ({known.LIVE: known.STAND_IN} if getattr(known, "STAND_IN", None) else {})


def draw(name: str, cases: Sequence[Case], size: Sample, seed: int = 0) -> list[Case]:
    """Draw cases of one set, from their names and DFT values alone, never from a prediction.

    Materials come in random order, and each gives one case before any gives a second one. For one seed a larger sample holds the
    smaller one. Cases that no number would be made of (``usable`` of the benchmark) are not drawn. Those drawn stay in their order.
    """
    usable = getattr(module(name), "usable", list)(cases)
    if size.max_atoms is not None:
        usable = [case for case in usable if sum(len(atoms) for atoms in case.structures.values()) <= size.max_atoms]
    materials: dict[str, list[Case]] = {}
    for case in usable:
        materials.setdefault(case.material, []).append(case)
    if not materials:
        return []
    # A sum of the letters is the same in every process, unlike hash().
    rng = np.random.default_rng([seed, zlib.crc32(f"{name}/{usable[0].set}".encode())])
    order = [sorted(materials)[position] for position in rng.permutation(len(materials))]
    if size.whole:
        chosen = {case.name for material in order[: size.n] for case in materials[material]}
    else:
        shuffled = [[materials[material][position].name for position in rng.permutation(len(materials[material]))] for material in order]
        rounds = max(map(len, shuffled))
        chosen = set([names[turn] for turn in range(rounds) for names in shuffled if turn < len(names)][: size.n])
    return [case for case in cases if case.name in chosen]


def drawn(name: str, sets: Mapping[str, Sample | None], seed: int = 0) -> tuple[list[Case], int]:
    """Return the cases that are drawn from some sets (None: all of a set), and how many there are in these sets."""
    known, chosen, total = module(name), [], 0
    for one, size in sets.items():
        everything = known.cases(known.Protocol(), [one])
        total += len(everything)
        chosen += everything if size is None else draw(name, everything, size, seed)
    return chosen, total


def sample(name: str) -> list[Case]:
    """Return a quick sample of a benchmark: ``QUICK`` of the sets whose files are here, else the stand-in; all of ``LIVE`` if neither."""
    known = module(name)
    return drawn(name, at_hand(name, getattr(known, "QUICK", {})) or {known.LIVE: None})[0]
