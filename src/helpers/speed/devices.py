"""Every potential on one device, a GPU or a core: whether it computes what it should, how fast, and how far from what the device allows.

Measured as in :mod:`helpers.speed.compare`, without files: small crystals beside double precision on the CPU (``statics``), growing numbers
of rocksalt cells (``scaling``, ``dynamics``, ``relaxation``, ``training``), and the bound of the device (``roofline``). A table for each
potential stands in ``data/results/speed-<device>``.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import ase
import pandas as pd
from ase.build import bulk

from helpers import potentials, results
from helpers.figures import label
from helpers.runner.cluster import RunError
from helpers.speed import compare, throughput
from helpers.speed.routes import ROUTES, Task, chosen

# Of the ways, those that keep to one device; in order of importance.
WAYS = ("ours", "ase", "ours-ase", "torch-sim", "chgnet-batch")


@dataclass(frozen=True)
class Protocol(compare.Rules):
    """What is measured on a device."""

    rounds: int = 3
    in_turns: bool = False
    longest_s: float | None = 1.0
    compared: tuple[str, ...] = ("statics",)
    threads: bool = False
    compiled: bool = False
    crystals: int = 20  # of CRYSTALS
    repeats: tuple[int, ...] = (1, 2, 4)  # rocksalt cells of 8, 64 and 512 atoms, the first for all kinds of tasks
    growth: int = 4  # so many times as many structures the next time,
    most_atoms: int = 131_072  # up to these together
    steps: int = 10  # of dynamics, relaxation and training


QUICK = Protocol(rounds=1, crystals=2, repeats=(1,), growth=2, most_atoms=16, steps=2)

# Lattice constants, Å: Wyckoff, Crystal Structures (1963).
CRYSTALS = {
    "fcc": {"Cu": 3.61, "Al": 4.05, "Ni": 3.52, "Au": 4.08},
    "bcc": {"W": 3.16, "Fe": 2.87, "Na": 4.29},
    "diamond": {"Si": 5.43, "C": 3.57, "Ge": 5.66},
    "rocksalt": {"MgO": 4.21, "NaCl": 5.64, "LiF": 4.02, "CaO": 4.81, "TiN": 4.24},
    "zincblende": {"GaAs": 5.65, "ZnS": 5.41, "SiC": 4.35},
    "cesiumchloride": {"CsCl": 4.12},
    "fluorite": {"CaF2": 5.46},
}


def crystals(n: int) -> list[ase.Atoms]:
    """Return the first n small crystals, each atom displaced at random by some 0.05 Å."""
    made = [bulk(formula, kind, a=a, cubic=True) for kind, members in CRYSTALS.items() for formula, a in members.items()][:n]
    for number, atoms in enumerate(made):
        atoms.rattle(0.05, seed=number)
    return made


def tasks(protocol: Protocol, device: str) -> list[Task]:
    """Return what is to be computed, what matters most first: agreement, then small cells."""

    def grown(kind: str, repeat: int, steps: int = 0) -> list[Task]:
        n, made = 1, []
        while n * 8 * repeat**3 <= protocol.most_atoms:
            # No more than 64 different ones, so that a hundred thousand travel to another process at once.
            made.append(Task(kind, f"{n} × {8 * repeat**3} atoms", tuple(islice(cycle(cells[repeat]), n)), steps=steps))
            n *= protocol.growth
        return made

    cells = {repeat: throughput.structures(throughput.Protocol(seed=protocol.seed), repeat, 64) for repeat in protocol.repeats}
    small, *large = protocol.repeats
    # What fills a GPU takes a core minutes.
    batch = tuple(cells[small][: 1 if device == "cpu" else 64] * (1 if device == "cpu" else 8))
    moved = [task for kind in ("dynamics", "relaxation", "training") for task in grown(kind, small, protocol.steps)]
    bound = Task("roofline", f"{len(batch)} × {len(batch[0])} atoms", batch)
    first = Task("statics", f"{protocol.crystals} small crystals", tuple(crystals(protocol.crystals)))
    return [first, *grown("scaling", small), bound, *moved, *(task for repeat in large for task in grown("scaling", repeat))]


def models() -> list[str]:
    """Return the potentials of the catalogue that can run here; a MACE with random weights stands in if none of them is a MACE."""
    found = [key for key in potentials.CATALOGUE if potentials.runnable(key)]
    stands_in = potentials.installed("mace-mp-0-medium") and "mace" not in map(_architecture, found)
    return [*found, compare.RANDOM_MACE] if stands_in else found


def _architecture(key: str) -> str:
    return key.split("-")[0]


def name_of(device: str) -> str:
    """Return the name of a device's tables, such as ``speed-nvidia-h200``."""
    return f"{compare.NAME}-" + re.sub(r"[^a-z0-9]+", "-", results.device_name(device).lower()).strip("-")


def record(
    device: str = "auto",
    keys: Sequence[str] | None = None,
    out: Path | None = None,
    protocol: Protocol | None = None,
    *,
    minutes: float = 20.0,
    routes: Sequence[str] | None = None,
    progress: bool = False,
) -> tuple[str, list[str], bool]:
    """Measure potentials (by default :func:`models`) on a device by some ways (:data:`WAYS`) and write their tables.

    First all of them are compared with the CPU. Then one of each architecture is measured, then the others. No task is begun after so many
    minutes; the same call goes on where the last one stopped.

    Returns the name of the tables (:func:`name_of`), the potentials that have one (why another has none is printed), and whether everything
    is done. PotentialError if the device is not here, ValueError if a potential or a way is unknown.
    """
    protocol, deadline = protocol or Protocol(), time.time() + 60 * minutes
    device = str(potentials.resolve_device(device))
    name, keys, jobs = name_of(device), list(keys or models()), tasks(protocol, device)
    for key in keys:
        chosen(key, routes)
    first = [key for number, key in enumerate(keys) if _architecture(key) not in map(_architecture, keys[:number])]
    in_order = sorted(keys, key=lambda key: key not in first)
    for key, brief in [*((key, True) for key in keys), *((key, False) for key in in_order)]:
        how = {"jobs": jobs[:1] if brief else jobs, "routes": WAYS[:1] if brief else routes or WAYS}
        try:
            compare.record(key, out, protocol, name=name, device=device, progress=progress, deadline=deadline, **how)
        except RunError as error:
            print(f"not measured: {error}", flush=True)
    return name, [key for key in keys if results.table_path(name, key, out).is_file()], time.time() < deadline


def names(out: Path | None = None) -> list[str]:
    """Return the names of the devices that have tables."""
    return sorted({path.parent.name for path in results.results_dir(out).glob(f"{compare.NAME}-*/*.json")})


def fastest(summary: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model, kind and size of cell, from :func:`helpers.speed.compare.summarise`.

    ``n``: how many structures at a time are fastest; ``per_s``: structures per second then, or steps of structures; by the name of each
    other way, how many times as fast ours is, each at its fastest; ``memory_mb``: the largest peak of ours; ``failed``: what did.
    """
    rows = []
    part = summary[summary["kind"].isin(["scaling", "dynamics", "relaxation", "training"])]
    for (model, kind, atoms), group in part.groupby(["model", "kind", part["n_atoms"] // part["n_structures"]], sort=False):
        done, failed = group[group["status"] == "ok"], group[group["status"] == "failed"]
        row = {"model": model, "kind": kind, "atoms": atoms}
        if "ours" in set(done["route"]):
            best = done.loc[done.groupby("route")["structures_per_s"].idxmax()].set_index("route")
            rates, ours = best["structures_per_s"], best.loc["ours"]
            row |= {"n": ours["n_structures"], "per_s": rates["ours"] * max(1, ours["steps"])}
            row |= {name: rates["ours"] / rates.get(name, math.nan) for name in WAYS[1:]}
            row["memory_mb"] = done.loc[done["route"] == "ours", "memory_mb"].max()
        rows.append(row | {"failed": "; ".join(f"{one.route}, {one.n_structures}: {one.reason}" for one in failed.itertuples())})
    return pd.DataFrame(rows)


def told(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return what tables say as a reader wants to see it, numbers as text: agreement, speed, and the bound of the device, by caption."""
    summary, bounds = compare.summarise(table), compare.limits(table).reset_index()
    statics = summary[(summary["kind"] == "statics") & (summary["route"] == "ours")]
    agreement = {
        "case": "",
        "energy_difference": "ΔE (eV/atom)",
        "force_difference": "ΔF (eV/Å)",
        "agreement": "agrees",
        "reason": "failed",
    }
    speed = {"kind": "", "atoms": "atoms", "n": "at a time", "per_s": "per second"}
    speed |= {name: f"times as fast as {ROUTES[name].label}" for name in WAYS[1:]} | {"memory_mb": "peak MB", "failed": "failed"}
    bound = {name: name for name in compare.PARTS} | {"of_products": "of matrix products", "of_bandwidth": "of memory's bandwidth"}
    shown = {
        "Largest differences from double precision on the CPU.": (statics, agreement),
        "Ours at its fastest, beside other ways at theirs.": (fastest(summary), speed),
        "Where the time of a batch goes (shares), and what the network reaches of the device's own rates.": (
            bounds,
            bound | {"memory_ratio": "time over the bound"},
        ),
    }
    return {
        words: part.assign(model=part["model"].map(label))
        .set_index("model")
        .reindex(columns=list(columns))
        .dropna(axis=1, how="all")
        .map(lambda value: "–" if value == "" or pd.isna(value) else value if isinstance(value, str) else f"{value:.3g}")
        .rename(columns=columns)
        for words, (part, columns) in shown.items()
        if len(part)
    }
