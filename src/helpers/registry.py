"""The registry of external files: where each one comes from, and how it is verified.

Every weight file and every DFT data set that the project does not ship is one row of
``data/registry.csv`` (address, SHA-256, size, licence, citation). :func:`fetch` returns a local path
to a verified copy. It looks, in this order, in

1. the mirror folder named by the environment variable ``SOFTENING_MIRROR``
   (layout ``owner/repository/commit/path``),
2. the download cache (``SOFTENING_CACHE``, by default the user's cache folder),
3. the public address, unless ``SOFTENING_OFFLINE`` is set.

A file whose checksum differs from the registry is never returned: a bad download is deleted, a bad
mirror file is refused. Where the registry lacks a checksum, size and kind of the file are all that tells it from an error page.
"""

from __future__ import annotations

import csv
import difflib
import errno
import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import platformdirs
import pooch
import requests
from filelock import FileLock, Timeout
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

MIRROR_VARIABLE = "SOFTENING_MIRROR"
CACHE_VARIABLE = "SOFTENING_CACHE"
OFFLINE_VARIABLE = "SOFTENING_OFFLINE"
DATA_VARIABLE = "SOFTENING_DATA"

_WAITS_S = (1, 4, 16)  # between attempts
_LONGEST_WAIT_S = 120  # that a server may ask for
_REFUSALS = {
    401: "the server wants a login",
    403: "the server, or a proxy on the way, refuses access",
    404: "the server has no such file; it may have moved",
    410: "the file was withdrawn",
}
_ZIP_ARCHIVES = (".model", ".pt", ".zip", ".xlsx")
# What files begin with, by the ending of their names.
_BEGINNINGS = {".gz": b"\x1f\x8b", ".lzma": (b"\xfd7zXZ", b"\x5d\x00\x00"), ".json": (b"{", b"[", b'"'), ".xml": b"<"}


class RegistryError(Exception):
    """A registered file is unknown, missing, or not what the registry says it is."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the question whether a known name was meant by an unknown one, with a blank before it; nothing if none is near."""
    found = difflib.get_close_matches(name, list(known), 1, cutoff=0.5)
    return f" Did you mean {found[0]}?" if found else ""


@dataclass(frozen=True)
class RegisteredFile:
    """One external file."""

    key: str  # name used in code: ``owner/repository/path`` for files from a repository
    benchmark: str  # what it is for: ``weights`` or the name of a benchmark
    url: str  # public address
    sha256: str  # empty when it is not known, in which case the first download is trusted and recorded
    size: int  # bytes; 0 when not known
    mirror_path: str  # place of the file below the mirror folder and below the cache
    licence: str
    citation: str


_CHECKOUT, _INSTALLED = Path(__file__).resolve().parents[2] / "data", Path(__file__).resolve().parents[1] / "softening" / "data"


def data_dir() -> Path:
    """Return the project's ``data`` folder: that of the checkout, or the one that is installed with the package.

    The environment variable ``SOFTENING_DATA`` overrides both. RegistryError if it holds no registry.
    """
    override = os.environ.get(DATA_VARIABLE)
    folder = (
        Path(override) if override else next((here for here in (_CHECKOUT, _INSTALLED) if (here / "registry.csv").is_file()), _INSTALLED)
    )
    if not (folder / "registry.csv").is_file():
        raise RegistryError(f"{folder} holds no registry.csv. Set {DATA_VARIABLE} to a folder that does, such as data in a checkout.")
    return folder


def own_dir() -> Path:
    """Return the folder that results are written to: ``data``, or the user's own where that belongs to an installed package."""
    return Path(platformdirs.user_data_dir("pes-softening")) if data_dir() == _INSTALLED else data_dir()


def cache_dir() -> Path:
    """Return the folder that downloads go to."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override) if override else Path(pooch.os_cache("pes-softening"))


def mirror_dir() -> Path | None:
    """Return the local mirror folder, or None when none is set.

    RegistryError if the environment variable names a folder that does not exist.
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
        rows = [RegisteredFile(size=int(row.pop("bytes") or 0), **row) for row in csv.DictReader(handle)]
    return {row.key: row for row in rows}


def files(benchmark: str | None = None) -> list[RegisteredFile]:
    """List the registered files, all of them or those of one benchmark (or of ``weights``)."""
    everything = list(_load(data_dir() / "registry.csv").values())
    if benchmark is None:
        return everything
    chosen = [file for file in everything if file.benchmark == benchmark]
    if not chosen:
        groups = ", ".join(sorted({file.benchmark for file in everything}))
        raise RegistryError(f"The registry has no files for {benchmark!r}. It has: {groups}.{nearest(benchmark, groups.split(', '))}")
    return chosen


class Listed(Sequence[str]):
    """The keys of a benchmark's files that are wanted, read from the registry when they are first asked for."""

    def __init__(self, benchmark: str, wanted: Callable[[str], bool]) -> None:
        self.benchmark, self.wanted = benchmark, wanted

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return tuple(file.key for file in files(self.benchmark) if self.wanted(file.key))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place):
        return self._keys[place]


def lookup(key: str) -> RegisteredFile:
    """Return the registry row of one file."""
    known = _load(data_dir() / "registry.csv")
    if key not in known:
        raise RegistryError(f"{key!r} is not in {data_dir() / 'registry.csv'}.{nearest(key, known)}")
    return known[key]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _first_seen(file: RegisteredFile) -> Path:
    """Return the note that records the checksum of a file whose checksum the registry lacks."""
    return cache_dir() / (file.mirror_path + ".sha256")


def expected_sha256(file: RegisteredFile) -> str:
    """Return the checksum a file must have: the registered one, else the one recorded at its download, else ''.

    A record whose file is gone from the cache counts no more: who deletes a file wants another one.
    """
    note = _first_seen(file)
    if file.sha256 or not note.is_file() or not (cache_dir() / file.mirror_path).is_file():
        return file.sha256
    return note.read_text().strip()


def local_path(key: str) -> Path | None:
    """Return the path of a local, verified copy (mirror first, then cache), or None. Never downloads.

    RegistryError if the copy found is not the registered file.
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
    expected, wrong = expected_sha256(file), _wrong(path, file)
    if not wrong and expected and (actual := sha256(path)) != expected:
        wrong = f"SHA-256 {actual}, expected {expected}"
    if wrong:
        note = _first_seen(file)
        also = f" and {note}, which records what came first" if not file.sha256 and note.is_file() else ""
        raise RegistryError(f"{path} is not the registered {file.key}: {wrong}. Delete it{also}, and fetch it again from {file.url}.")
    _verified.add(seen)


def is_web_page(beginning: bytes) -> bool:
    """Tell from its first bytes whether a file is a page, such as proxies, logins and failing servers send instead of a file."""
    return beginning[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower().startswith((b"<!doctype html", b"<html"))


def _wrong(path: Path, file: RegisteredFile) -> str:
    """Return what tells a file from the registered one at first sight: another kind or size; '' if nothing does."""
    size = path.stat().st_size
    told = f"{size} bytes, expected {file.size}" if file.size and size != file.size else f"{size} bytes"
    with path.open("rb") as handle:
        beginning = handle.read(1024)
    ending = Path(file.mirror_path).suffix
    if is_web_page(beginning):
        return "it is a web page, such as a proxy or a login sends instead of a file"
    if ending in _ZIP_ARCHIVES and not zipfile.is_zipfile(path):
        return f"it is no zip archive, as a file {ending} is, or not the whole of one ({told})"
    if not beginning.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_BEGINNINGS.get(ending, b"")):
        return f"it is no file {ending}, by its first bytes ({told})"
    return told if file.size and size != file.size else ""


def fetch(key: str) -> Path:
    """Return a verified local copy of a registered file (key in ``data/registry.csv``), downloading it if necessary.

    RegistryError if the key is unknown, a copy has the wrong checksum, the download fails, or offline mode is set and there is no local
    copy. The message names the file, its address and where to put it.
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
    folder = (cache_dir() / file.mirror_path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            # Perhaps the process that this one waited for has brought it.
            if (found := local_path(file.key)) is not None:
                return found
            for left_over in folder.glob("tmp" + 8 * "[a-z0-9_]"):
                left_over.unlink()
            return _bring(file, folder)
    except (OSError, ValueError) as error:
        raise RegistryError(f"Could not download {file.key} from {file.url}: {_advice(error, file)}") from error


def _alone(folder: Path):
    """Let one process at a time download into a folder, so that what lies there under a temporary name is of a killed one."""
    lock = FileLock(folder / ".lock", mode=0o666)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        pooch.get_logger().info("Another process downloads to %s; waiting for it.", folder)
        return lock.acquire()


def _bring(file: RegisteredFile, folder: Path) -> Path:
    name = Path(file.mirror_path).name
    # pooch writes to a temporary name, verifies, deletes on mismatch, and only then renames.
    source = pooch.create(folder, "", registry={name: f"sha256:{file.sha256}" if file.sha256 else None}, urls={name: file.url})
    waits = iter(_WAITS_S)
    while True:
        try:
            return Path(source.fetch(name, downloader=partial(_stream, file)))
        except requests.RequestException as error:
            # Without a name server there is no network, and hundreds of files may be asked for.
            pause = None if "NameResolutionError" in str(error) else _pause(error.response, next(waits, None))
            if pause is None:
                raise
            pooch.get_logger().info("%s; trying again in %.0f s.", error, pause)
            time.sleep(pause)


def _pause(response: requests.Response | None, wait: float | None) -> float | None:
    """Return how long to wait (s) before the next attempt, or None where that is of no use."""
    if response is None or wait is None:
        return wait
    asked = _asked(response)
    if asked is not None:
        return asked if asked <= _LONGEST_WAIT_S else None
    return wait if response.status_code in (408, 429) or response.status_code >= 500 else None


def _asked(response: requests.Response) -> float | None:
    """Return the seconds that a busy server asks to wait."""
    try:
        asked = response.headers.get("Retry-After") if response.status_code in (429, 503) else None
        return None if asked is None else Retry().parse_retry_after(asked)
    except InvalidHeader:
        return None


def _stream(file: RegisteredFile, url: str, output: str, source: pooch.Pooch) -> None:
    path = Path(output)
    # pooch makes the temporary file private; made anew it has the rights that the user gives to files.
    path.unlink()
    pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, timeout=60)(url, output, source)
    if wrong := _wrong(path, file):
        raise ValueError(wrong)
    if not file.sha256:
        note, new = _first_seen(file), sha256(path)
        if note.is_file() and (old := note.read_text().strip()) != new:
            pooch.get_logger().warning("%s has changed since its first download: SHA-256 was %s, is %s.", file.key, old, new)
        note.write_text(new + "\n")


def _advice(error: Exception, file: RegisteredFile) -> str:
    """Return what went wrong with a download, and what to do."""
    what, where = str(error), f"Get it elsewhere, or later, and put it at {cache_dir() / file.mirror_path}."
    if (response := getattr(error, "response", None)) is not None:
        asked = _asked(response)
        meaning = _REFUSALS.get(response.status_code) or (f"the server asks to wait {asked:.0f} s" if asked else "the server fails")
        what = f"{response.status_code} {response.reason}: {meaning}"
    elif isinstance(error, requests.exceptions.ChunkedEncodingError):  # its own words are a tuple
        what = "the connection broke off before the end of the file"
    elif isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        where = f"Let {CACHE_VARIABLE} name another folder than {cache_dir()}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = next(folder for folder in (cache_dir(), *cache_dir().parents) if folder.exists())
            free, needed = (f"{size / 1e6:.1f} MB" if size else "not known" for size in (shutil.disk_usage(place).free, file.size))
            what, where = f"the disk is full ({free} free, needed: {needed})", f"Make room. Or l{where[1:]}"
    return f"{what}. {where}"


def available(keys: Iterable[str]) -> bool:
    """Tell whether all these files are on this machine already (nothing is downloaded)."""
    return all(local_path(key) is not None for key in keys)
