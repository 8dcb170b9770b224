"""The registry of external files: where each one comes from, and how it is verified.

Every weight file and every DFT data set that the project does not ship is one row of
``data/registry.csv`` (address, SHA-256, size, licence, citation). :func:`fetch` returns a local path
to a verified copy. It looks, in this order, in

1. the mirror folder named by the environment variable ``SOFTENING_MIRROR``
   (layout ``owner/repository/commit/path``),
2. the download cache (``SOFTENING_CACHE``, by default the user's cache folder),
3. the public address, unless ``SOFTENING_OFFLINE`` is set.

A file whose checksum differs from the registry is never returned: a bad download is deleted, a bad
mirror file is refused.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pooch

MIRROR_VARIABLE = "SOFTENING_MIRROR"
CACHE_VARIABLE = "SOFTENING_CACHE"
OFFLINE_VARIABLE = "SOFTENING_OFFLINE"
DATA_VARIABLE = "SOFTENING_DATA"

_DOWNLOAD_ATTEMPTS = 4


class RegistryError(Exception):
    """A registered file is unknown, missing, or not what the registry says it is."""


@dataclass(frozen=True)
class RegisteredFile:
    """One external file.

    Attributes
    ----------
    key : str
        Name used in code: ``owner/repository/path`` for files from a repository.
    benchmark : str
        What it is for: ``weights`` or the name of a benchmark.
    url : str
        Public address.
    sha256 : str
        Checksum; empty when it is not known, in which case the first download is trusted and recorded.
    size : int
        Size in bytes; 0 when not known.
    mirror_path : str
        Place of the file below the mirror folder and below the cache.
    licence, citation : str
        Terms and source.
    """

    key: str
    benchmark: str
    url: str
    sha256: str
    size: int
    mirror_path: str
    licence: str
    citation: str


def data_dir() -> Path:
    """Return the project's ``data`` folder (environment variable ``SOFTENING_DATA`` overrides it)."""
    override = os.environ.get(DATA_VARIABLE)
    folder = Path(override) if override else Path(__file__).resolve().parents[2] / "data"
    if not (folder / "registry.csv").is_file():
        raise RegistryError(
            f"{folder} holds no registry.csv. Run from a checkout of the project, or set {DATA_VARIABLE} to its data folder."
        )
    return folder


def cache_dir() -> Path:
    """Return the folder that downloads go to."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override) if override else Path(pooch.os_cache("pes-softening"))


def mirror_dir() -> Path | None:
    """Return the local mirror folder, or None when none is set.

    Raises
    ------
    RegistryError
        If the environment variable names a folder that does not exist.
    """
    value = os.environ.get(MIRROR_VARIABLE)
    if not value:
        return None
    folder = Path(value)
    if not folder.is_dir():
        raise RegistryError(f"{MIRROR_VARIABLE}={value} is not a folder.")
    return folder


@cache
def _load(path: Path) -> dict[str, RegisteredFile]:
    with path.open(newline="") as handle:
        rows = [
            RegisteredFile(
                key=row["key"],
                benchmark=row["benchmark"],
                url=row["url"],
                sha256=row["sha256"],
                size=int(row["bytes"] or 0),
                mirror_path=row["mirror_path"],
                licence=row["licence"],
                citation=row["citation"],
            )
            for row in csv.DictReader(handle)
        ]
    return {row.key: row for row in rows}


def files(benchmark: str | None = None) -> list[RegisteredFile]:
    """List the registered files, all of them or those of one benchmark (or of ``weights``)."""
    everything = list(_load(data_dir() / "registry.csv").values())
    if benchmark is None:
        return everything
    chosen = [file for file in everything if file.benchmark == benchmark]
    if not chosen:
        groups = ", ".join(sorted({file.benchmark for file in everything}))
        raise RegistryError(f"The registry has no files for {benchmark!r}. It has: {groups}.")
    return chosen


def lookup(key: str) -> RegisteredFile:
    """Return the registry row of one file."""
    try:
        return _load(data_dir() / "registry.csv")[key]
    except KeyError:
        raise RegistryError(f"{key!r} is not in {data_dir() / 'registry.csv'}.") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _first_seen(file: RegisteredFile) -> Path:
    """Return the note that records the checksum of a file whose checksum the registry lacks."""
    return cache_dir() / (file.mirror_path + ".sha256")


def expected_sha256(file: RegisteredFile) -> str:
    """Return the checksum a file must have: the registered one, else the one recorded at first download, else ''."""
    if file.sha256:
        return file.sha256
    note = _first_seen(file)
    return note.read_text().strip() if note.is_file() else ""


def local_path(key: str) -> Path | None:
    """Return the path of a local, verified copy (mirror first, then cache), or None. Never downloads.

    Raises
    ------
    RegistryError
        If the copy found is not the registered file.
    """
    file = lookup(key)
    folders = [folder for folder in (mirror_dir(), cache_dir()) if folder is not None]
    for folder in folders:
        path = folder / file.mirror_path
        if path.is_file():
            _verify(path, file)
            return path
    return None


_verified: set[tuple[str, int, int]] = set()


def _verify(path: Path, file: RegisteredFile) -> None:
    stat = path.stat()
    seen = (str(path), stat.st_size, stat.st_mtime_ns)
    if seen in _verified:
        return
    expected = expected_sha256(file)
    if expected and (actual := sha256(path)) != expected:
        raise RegistryError(
            f"{path} is not the registered {file.key}: SHA-256 {actual}, expected {expected}. Delete it and fetch it again from {file.url}."
        )
    _verified.add(seen)


def fetch(key: str) -> Path:
    """Return a verified local copy of a registered file, downloading it if necessary.

    Parameters
    ----------
    key : str
        Key of the file in ``data/registry.csv``.

    Raises
    ------
    RegistryError
        If the key is unknown, a copy has the wrong checksum, the download fails, or offline mode is
        set and there is no local copy. The message names the file, its address and where to put it.
    """
    found = local_path(key)
    if found is not None:
        return found
    file = lookup(key)
    if os.environ.get(OFFLINE_VARIABLE):
        raise RegistryError(
            f"{file.key} is not on this machine and {OFFLINE_VARIABLE} is set. "
            f"Get it from {file.url} and put it at {cache_dir() / file.mirror_path}."
        )
    return _download(file)


def _download(file: RegisteredFile) -> Path:
    target = cache_dir() / file.mirror_path
    expected = expected_sha256(file)
    try:
        # pooch writes to a temporary name, verifies, deletes on mismatch, and only then renames.
        pooch.create(
            path=target.parent,
            base_url="",
            registry={target.name: f"sha256:{expected}" if expected else None},
            urls={target.name: file.url},
            retry_if_failed=_DOWNLOAD_ATTEMPTS - 1,
        ).fetch(target.name, downloader=pooch.HTTPDownloader(progressbar=True, timeout=60))
    except (OSError, ValueError) as error:
        raise RegistryError(
            f"Could not download {file.key} from {file.url}: {error}. Without a network, get it elsewhere and put it at {target}."
        ) from error
    if not expected:
        _first_seen(file).write_text(sha256(target) + "\n")
    return target


def available(keys: Iterable[str]) -> bool:
    """Tell whether all these files are on this machine already (nothing is downloaded)."""
    return all(local_path(key) is not None for key in keys)


def fetch_all(chosen: Iterable[RegisteredFile]) -> Iterator[tuple[RegisteredFile, Path | RegistryError]]:
    """Fetch files, yielding each with its path or its error.

    One failure does not stop the rest.
    """
    for file in chosen:
        try:
            yield file, fetch(file.key)
        except RegistryError as error:
            yield file, error
