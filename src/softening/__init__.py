"""Soft potentials, for those who install the package: the names that a script needs. All of them live in :mod:`helpers`.

>>> import softening
>>> potential = softening.load("chgnet-0.3.0")

The statistics (slopes, intervals, corrections) are ``softening.statistics``, which is :mod:`helpers.softening`.
"""

from importlib import import_module

_PLACES = {
    "load": "potentials",
    "Potential": "potentials",
    "CATALOGUE": "potentials",
    "relax": "engine",
    "read": "results",
    "run": "runner",
}
_PLACES |= {
    "fix": "reports.fix",
    "check": "reports.check",
    "ask": "reports.ask",
    "make": "reports.report_card",
    "export": "potentials.export",
}
_MODULES = {"statistics": "softening", "potentials": "potentials", "engine": "engine", "benchmarks": "benchmarks", "figures": "figures"}

__all__ = [*_PLACES, *_MODULES]


def __getattr__(name: str) -> object:
    # One by one, when they are asked for: torch and pymatgen take seconds.
    if name in _MODULES:
        return import_module(f"helpers.{_MODULES[name]}")
    if name in _PLACES:
        return getattr(import_module(f"helpers.{_PLACES[name]}"), name)
    raise AttributeError(f"softening has no {name}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
