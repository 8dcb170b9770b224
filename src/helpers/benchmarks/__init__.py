"""The benchmarks: one module per family of the paper, all with the same four names.

``Protocol``
    frozen dataclass; every setting, with its unit in the name or the comment.
``cases(protocol, sets=None)``
    reference structures with their DFT values, as a list of :class:`Case`.
``run(potential, cases, protocol)``
    a tidy table, one row per case and property (columns :data:`COLUMNS` first). A failure is a row with a reason.
``summarise(table)``
    the numbers that the chapter quotes, one row per model and set.

Each module also has ``SETS`` (name of each reference set → the registry keys it needs; an empty tuple for
a set that needs no external file), ``LIVE`` (the set that the book recomputes while it builds) and ``TOLERANCES``
(largest accepted difference between the live values and the committed ones, by property). One that evaluates each structure very often
sets ``ATOMS_PER_SHARD``, the size of the pieces in which :mod:`helpers.runner` computes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib import import_module
from types import ModuleType

from helpers.registry import nearest
from helpers.results import COLUMNS, Case, row, table

__all__ = ["CATALOGUE", "COLUMNS", "EXPERIMENTS", "Case", "chosen_sets", "module", "row", "table"]

EXPERIMENTS = (
    "fine_tuning",
    "mending",
    "curvature_mending",
    "students",
    "valley_floor",
    "learning_curve",
    "alchemy",
    "coverage",
    "weak_labels",
)

CATALOGUE = (
    "surfaces",
    "defects",
    "solid_solutions",
    "phonons",
    "elasticity",
    "strained_cells",
    "migration",
    "off_equilibrium",
    *EXPERIMENTS,
)


def module(name: str) -> ModuleType:
    """Import a benchmark by name.

    Raises
    ------
    KeyError
        If there is no such benchmark; the message lists those there are.
    """
    if name not in CATALOGUE:
        raise KeyError(f"unknown benchmark {name!r}; there are: {', '.join(CATALOGUE)}.{nearest(name, CATALOGUE)}")
    return import_module(f"helpers.{'experiments' if name in EXPERIMENTS else 'benchmarks'}.{name}")


def chosen_sets(known: Collection[str], sets: str | Iterable[str] | None) -> list[str]:
    """Return the reference sets that are asked for, each once: all of a benchmark's ``SETS`` if None.

    Raises
    ------
    KeyError
        If one is unknown or none is given; the message lists those there are.
    """
    names = list(known) if sets is None else list(dict.fromkeys([sets] if isinstance(sets, str) else sets))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"unknown set(s) {', '.join(unknown)}" if unknown else "no set is given"
        raise KeyError(f"{what}; there are: {', '.join(known)}.{''.join(nearest(name, known) for name in unknown)}")
    return names
