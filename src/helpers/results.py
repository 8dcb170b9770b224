"""Result tables on disk, each with its provenance, and the shards of runs in progress.

``data/results/<benchmark>/<model>.parquet`` is a tidy table; the ``.json`` beside it says how it was made.
A long run writes shards to ``data/runs`` and joins them at the end. Every file is written under a temporary
name and renamed, so a reader never sees half a file and a killed run loses at most the shard it was in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pandas as pd

from helpers.registry import data_dir, own_dir

PACKAGES = (
    *("torch", "torch-sim-atomistic", "chgnet", "matgl", "mace-torch", "sevenn", "matcalc"),
    *("e3nn", "ase", "pymatgen", "phonopy", "numpy"),
)

COLUMNS = ["model", "set", "material", "case", "property", "value", "reference", "unit", "status", "reason"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One reference case."""

    name: str  # unique within the benchmark, readable: ``snap/Cu/111``
    set: str  # reference set, a key of the module's ``SETS``
    material: str  # what intervals are bootstrapped over: ``Cu``, ``mp-1265``, …
    structures: dict[str, ase.Atoms]  # by role: ``slab``, ``bulk``, ``frame``, …
    reference: dict[str, Any] = field(default_factory=dict)  # DFT values by property: floats, or arrays for forces and stress
    info: dict[str, Any] = field(default_factory=dict)  # further columns of the table: Miller index, temperature, pressure, …


def row(
    model: str,
    case: Case,
    property: str,
    value: float,
    reference: float,
    unit: str,
    *,
    error: str | None = None,
    **extra: object,
) -> dict[str, Any]:
    """Return one row of a tidy table: the standard columns, the case's info, and what else is given.

    ``status`` is ``ok``, or ``failed`` with ``error`` as the reason. A value that is no finite number has failed, too.
    """
    if error is None and not np.isfinite(value):
        error = f"the value is no finite number ({value})"
    return {
        "model": model,
        "set": case.set,
        "material": case.material,
        "case": case.name,
        "property": property,
        "value": value,
        "reference": reference,
        "unit": unit,
        "status": "ok" if error is None else "failed",
        "reason": error or "",
        **case.info,
        **extra,
    }


def table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a table with the standard columns first."""
    frame = pd.DataFrame(list(rows))
    if frame.empty:
        return pd.DataFrame(columns=COLUMNS)
    return frame[[*COLUMNS, *[column for column in frame.columns if column not in COLUMNS]]]


class ResultsError(Exception):
    """A result table is missing or does not fit its provenance."""


def results_dir(base: Path | None = None) -> Path:
    """Return the folder that tables are written to, below a base or :func:`helpers.registry.own_dir`."""
    return (own_dir() if base is None else Path(base)) / "results"


def runs_dir(base: Path | None = None) -> Path:
    """Return the folder of runs in progress."""
    return (own_dir() if base is None else Path(base)) / "runs"


def file_name(model: str) -> str:
    """Return a model key as a file name: ``ase:`` and ``file:`` keys hold characters that paths cannot."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in model)


def table_path(benchmark: str, model: str, base: Path | None = None) -> Path:
    """Return where the table of a benchmark and a model lies: below a base, or one's own, or the one that came with the package."""
    name = Path(benchmark, f"{file_name(model)}.parquet")
    own, shipped = results_dir(base) / name, data_dir() / "results" / name
    return shipped if base is None and shipped.is_file() and not own.is_file() else own


def models(benchmark: str) -> list[str]:
    """Return the models that have a table for a benchmark."""
    folders = {results_dir(), data_dir() / "results"}
    return sorted({read_json(path)["model"] for folder in folders for path in (folder / benchmark).glob("*.json")})


def atomically(path: Path, write) -> None:
    """Write a file under a temporary name in the same folder, then rename it; an error leaves what was there and names the file."""
    # Not by the module tempfile, which makes files private: a result has the rights that the user gives to files.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        # Writing into an open file, as to a full disk, raises without the file's name.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def check_new(path: Path, *suffixes: str) -> None:
    """Raise ValueError for a file or folder that is not to be made: its name ends otherwise, it exists, or there is no folder for it."""
    for wrong, why in (
        (suffixes and path.suffix not in suffixes, f"its name must end with {' or '.join(suffixes)}"),
        (os.path.lexists(path), "it exists, and nothing is overwritten; choose another name"),
        (not path.parent.is_dir(), f"there is no folder {path.parent}"),
    ):
        if wrong:
            raise ValueError(f"{path} cannot be written: {why}.")


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield where to make a new file or folder: it gets its name if nothing is raised, and is removed otherwise."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as place:
        yield Path(place) / path.name
        os.rename(Path(place) / path.name, path)


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file atomically."""
    atomically(path, lambda target: target.write_bytes(content))


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    atomically(path, lambda target: table.to_parquet(target, index=False, compression="zstd"))


def write_json(content: Mapping[str, object], path: Path, *, sort_keys: bool = True) -> None:
    """Write a JSON file atomically, in UTF-8; bytes of file names that are none become JSON's own escapes."""
    text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=sort_keys)
    write_bytes(f"{text}\n".encode("utf-8", "backslashreplace"), path)


def read_json(path: Path) -> Any:
    """Read a JSON file; ResultsError if it is damaged; the message names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{path} is damaged ({error}): delete it, then give the same command again.") from error


def read_table(path: Path) -> pd.DataFrame:
    """Read a table that :func:`write_parquet` or :func:`condense` wrote; ResultsError if it is missing or damaged; the message names it."""
    try:
        table = pd.read_parquet(path)
        if "rows" not in table.attrs:
            return table
        common = pd.read_parquet(path.with_name(table.attrs["rows"]))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} is missing or damaged ({error}): give the command again that made it.") from error
    order, table.attrs = table.attrs["columns"], {}
    return pd.concat([table, common.iloc[table["row"].cumsum() - 1].reset_index(drop=True)], axis=1)[order]


def condense(benchmark: str, keys: Collection[str]) -> None:
    """Store what the tables of a benchmark have in common once, beside them; :func:`read_table` puts it back, and no number changes.

    Keys are those of :func:`check`.
    """
    paths = [table_path(benchmark, model) for model in models(benchmark)]
    tables = [read_table(path) for path in paths]
    marks = [pd.util.hash_pandas_object(table[["set", "case", "property", *keys]].astype(object), index=False) for table in tables]
    row, _ = pd.factorize(pd.concat(marks))
    first = ~pd.Series(row).duplicated().to_numpy()
    rows = {}
    kept = {"model", "value", "status", "reason"}
    for name in [name for name in tables[0] if name not in kept and all(name in table for table in tables)]:
        column = pd.concat([table[name] for table in tables], ignore_index=True)
        codes, _ = pd.factorize(column)
        if np.array_equal(codes, codes[first][row]):
            rows[name] = column[first].astype(tables[0][name].dtype).reset_index(drop=True)
    common = pd.DataFrame(rows)
    content = common.to_parquet(index=False, compression="zstd", compression_level=19)
    name = f"rows-{hashlib.sha256(content).hexdigest()[:8]}.parquet"
    write_bytes(content, paths[0].with_name(name))
    start = 0
    for path, table in zip(paths, tables, strict=True):
        steps = np.diff(row[start : start + len(table)], prepend=-1).astype(np.int32)  # nearly all 1: they take no space
        own = table.drop(columns=list(common)).assign(row=steps)
        own.attrs = {"rows": name, "columns": list(table)}
        write_bytes(own.to_parquet(index=False, compression="zstd", compression_level=19), path)
        start += len(table)
    for other in paths[0].parent.glob("rows-*.parquet"):
        if other.name != name:
            other.unlink()


def check(table: pd.DataFrame, keys: Collection[str] = ()) -> None:
    """Check that the table of a benchmark is tidy.

    ``keys`` are columns that, beside model, set, case and property, tell its rows apart; one of which no set here makes use may be missing.
    ResultsError if a standard column is missing, a property has several units in one set (in another set it may count by another measure),
    a row is neither ok with a finite value and no reason nor failed with a reason, or two rows are of the same thing.
    """
    if missing := [name for name in COLUMNS if name not in table]:
        raise ResultsError(f"a table needs the columns {', '.join(COLUMNS)}; this one lacks {', '.join(missing)}")
    ok, told = table["status"] == "ok", table["reason"].astype(str) != ""
    units = table.groupby(["set", "property"], observed=True)["unit"].transform("nunique")
    for wrong, words in (
        (~table["status"].isin(["ok", "failed"]), "have a status that is neither ok nor failed"),
        (ok & ~np.isfinite(table["value"].astype(float)), "are ok without a finite value"),
        (ok == told, "are ok with a reason, or failed without one"),
        (units > 1, "are of a property that has several units in one set"),
        (
            table.duplicated(["model", "set", "case", "property", *[name for name in keys if name in table]], keep=False),
            f"are of the same thing (told apart by {', '.join(keys) or 'case and property'})",
        ),
    ):
        if wrong.any():
            raise ResultsError(f"{int(wrong.sum())} of {len(table)} rows {words}:\n{table.loc[wrong, COLUMNS].head(5).to_string()}")


def write(
    benchmark: str,
    model: str,
    table: pd.DataFrame,
    provenance: Mapping[str, object],
    base: Path | None = None,
    *,
    keys: Collection[str] = (),
) -> Path:
    """Write a table that passes :func:`check` with its provenance; the provenance last, so that it vouches for a complete table."""
    check(table, keys)
    path = results_dir(base) / benchmark / f"{file_name(model)}.parquet"
    write_parquet(table, path)
    write_json({"benchmark": benchmark, "model": model, **provenance}, path.with_suffix(".json"))
    return path


def read(benchmark: str, model: str | Collection[str] | None = None, *, sets: Collection[str] = ()) -> pd.DataFrame:
    """Read the table of one model, of several, or of all that have one.

    Who compares models on some sets needs these from each of them: a model of which only other sets were computed is left out, and a line
    says so. ResultsError if there is none; the message gives the command that makes it.
    """
    chosen = models(benchmark) if model is None else [model] if isinstance(model, str) else list(model)
    paths = [table_path(benchmark, key) for key in chosen]
    missing = [key for key, path in zip(chosen, paths, strict=True) if not path.is_file()]
    if missing or not chosen:
        raise ResultsError(
            f"no results of {benchmark} for {', '.join(missing) or 'any model'} in {results_dir()}. "
            f"Make them with: softening run {benchmark} --model {missing[0] if missing else 'chgnet-0.3.0'}"
        )
    tables = {key: read_table(path) for key, path in zip(chosen, paths, strict=True)}
    lacking = {key: [name for name in sets if name not in set(table["set"])] for key, table in tables.items()}
    for key, names in lacking.items():
        if names:
            print(f"{key} is left out: its table of {benchmark} lacks {', '.join(names)}. softening run {benchmark} --model {key} adds it.")
    kept = [table for key, table in tables.items() if not lacking[key]]
    if not kept:
        raise ResultsError(f"no model in {results_dir()} has all of {', '.join(sets)} in its table of {benchmark}.")
    return pd.concat(kept, ignore_index=True)


def provenance(benchmark: str, model: str, base: Path | None = None) -> dict[str, Any]:
    """Read how a table was made."""
    path = table_path(benchmark, model, base).with_suffix(".json")
    if not path.is_file():
        raise ResultsError(f"{path} is missing: the table of {benchmark} for {model} has no provenance.")
    return read_json(path)


def machine() -> str:
    """Return the processor this runs on, in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        # The last processor's lines; a virtual one often hides its number, but not its family and model.
        known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in info.read_text().splitlines())}
        cpu = known.get("model name", cpu)
        if not any(map(str.isdigit, cpu)) and "cpu family" in known:
            cpu += f" (family {known['cpu family']}, model {known['model']})"
    return f"{cpu}, {os.cpu_count()} cores"


def device_name(device: str) -> str:
    """Return what a device is, in words."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return machine()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on; those of other environments are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
