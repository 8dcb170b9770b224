"""The registry: downloads from a server on this machine, every way they can go wrong, and the rows themselves."""

from __future__ import annotations

import csv
import email.utils
import errno
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pooch
import pytest
import torch
from conftest import needs_mirror
from typer.testing import CliRunner

from helpers import cli, registry
from helpers.registry import RegistryError

CONTENT = b"forces and energies\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KINDS = {".json": b'{"a": 1}', ".gz": b"\x1f\x8b\x08\x00", ".lzma": b"\xfd7zXZ\x00", ".xml": b"<?xml version='1.0'?><a/>"}
FIELDS = ["key", "benchmark", "url", "sha256", "bytes", "mirror_path", "licence", "citation"]


@pytest.fixture
def server():
    """A server that sends CONTENT. ``failures`` counts the requests that it still answers with ``status``; ``requests`` lists the paths.

    ``headers`` go with failures; ``cut`` leaves out so many bytes that the header promises; ``pause`` is a lock to be had before content.
    With ``release`` it is a host of releases: it sends on to an address with a query, and content of which no header says the length.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.requests.append(self.path)
            if self.server.release and "?" not in self.path:
                self.send_response(302)
                self.send_header("Location", f"{self.server.address}/asset{self.path}?sig=a%2Fb%3D&name=x")
                self.end_headers()
                return
            if self.server.failures:
                self.server.failures -= 1
                self.send_response(self.server.status)
                for name, value in {"Content-Length": "0", **self.server.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                return
            self.send_response(200)
            if not self.server.release:
                self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            with self.server.pause:
                self.wfile.write(self.server.content[: len(self.server.content) - self.server.cut])

        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.failures, httpd.requests, httpd.content = 0, [], CONTENT
    httpd.status, httpd.headers, httpd.cut, httpd.pause, httpd.release = 500, {}, 0, threading.Lock(), False
    httpd.address = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def small_registry(tmp_path, monkeypatch, server):
    """A registry of a few files on the server, with its own cache and no mirror. ``waits`` lists the pauses between attempts."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        ["good", "forces", f"{server.address}/good.bin", SHA256, len(CONTENT), "owner/good.bin", "MIT", "A"],
        ["wrong", "forces", f"{server.address}/wrong.bin", "0" * 64, "", "owner/wrong.bin", "MIT", "B"],
        ["unsigned", "weights", f"{server.address}/unsigned.bin", "", "", "owner/unsigned.bin", "MIT", "C"],
        ["network", "networks", f"{server.address}/network.model", "", "", "owner/network.model", "MIT", "D"],
        ["sized", "networks", f"{server.address}/sized.bin", "", len(CONTENT), "owner/sized.bin", "MIT", "E"],
        ["archive", "networks", f"{server.address}/archive.model", SHA256, len(CONTENT), "owner/archive.model", "MIT", "H"],
        ["nowhere", "nowhere", "http://host.invalid/file.bin", SHA256, "", "owner/nowhere.bin", "MIT", "G"],
        *([f"kind{end}", "kinds", f"{server.address}/kind{end}", "", "", f"owner/kind{end}", "MIT", "F"] for end in KINDS),
    ]
    with (data / "registry.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([FIELDS, *rows])
    monkeypatch.setenv(registry.DATA_VARIABLE, str(data))
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.delenv(registry.OFFLINE_VARIABLE, raising=False)
    server.waits = []
    monkeypatch.setattr(time, "sleep", server.waits.append)
    return tmp_path


def cached(folder: Path) -> list[str]:
    """List the files in the cache, without locks."""
    return sorted(path.name for path in (folder / "cache").rglob("*") if path.is_file() and path.name != ".lock")


def archive() -> bytes:
    """Return a small model file, a zip archive."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(300.0)}, buffer)
    return buffer.getvalue()


def test_download_is_verified_and_leaves_nothing_else(small_registry, server):
    assert registry.local_path("good") is None
    assert not registry.available(["good"])
    path = registry.fetch("good")
    assert path == small_registry / "cache" / "owner" / "good.bin"
    assert path.read_bytes() == CONTENT
    assert cached(small_registry) == ["good.bin"]
    assert registry.fetch("good") == registry.local_path("good") == path
    assert registry.available(["good"])
    assert server.requests == ["/good.bin"]


def test_a_wrong_checksum_is_an_error_and_leaves_no_file(small_registry, server):
    with pytest.raises(RegistryError, match=r"Could not download wrong from http://127.0.0.1.*wrong.bin"):
        registry.fetch("wrong")
    assert server.requests
    assert cached(small_registry) == []
    assert registry.local_path("wrong") is None


def test_a_server_error_is_tried_again(small_registry, server):
    server.failures = 1
    assert registry.fetch("good").read_bytes() == CONTENT
    assert server.requests == ["/good.bin"] * 2
    assert cached(small_registry) == ["good.bin"]


def test_a_server_that_stays_down_is_an_error(small_registry, server):
    server.failures = 100
    with pytest.raises(RegistryError, match=r"good.*good.bin.*put it at .*owner/good.bin") as caught:
        registry.fetch("good")
    assert "500" in str(caught.value)
    assert len(server.requests) == 4
    assert server.waits == [1, 4, 16]
    assert cached(small_registry) == []


def test_a_download_that_breaks_off_leaves_no_file(small_registry, server):
    server.content = CONTENT[:100]
    with pytest.raises(RegistryError, match="Could not download good"):
        registry.fetch("good")
    assert cached(small_registry) == []


def test_nobody_listens(small_registry, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(RegistryError, match=r"Could not download good from http://127.0.0.1.*put it at .*owner/good.bin"):
        registry.fetch("good")


def test_without_a_network_nothing_is_waited_for(small_registry, server):
    with pytest.raises(RegistryError, match=r"Could not download nowhere from http://host.invalid.*put it at .*owner/nowhere.bin"):
        registry.fetch("nowhere")
    assert server.waits == []


def test_offline_says_what_to_put_where(small_registry, server, monkeypatch):
    monkeypatch.setenv(registry.OFFLINE_VARIABLE, "1")
    target = small_registry / "cache" / "owner" / "good.bin"
    with pytest.raises(RegistryError) as caught:
        registry.fetch("good")
    for part in ("good is not on this machine", f"{server.address}/good.bin", str(target), registry.OFFLINE_VARIABLE):
        assert part in str(caught.value)
    assert server.requests == []
    # The advice works.
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)
    assert registry.fetch("good") == target


def test_a_damaged_file_in_the_cache_is_refused(small_registry, server):
    path = registry.fetch("good")
    path.write_bytes(CONTENT + b"x")
    with pytest.raises(RegistryError, match=r"good.bin is not the registered good: 20001 bytes, expected 20000\. Delete it, and fetch"):
        registry.fetch("good")
    path.write_bytes(CONTENT.replace(b"e", b"x"))
    with pytest.raises(RegistryError, match=r"good.bin is not the registered good: SHA-256 [0-9a-f]{64}, expected"):
        registry.fetch("good")
    path.unlink()
    assert registry.fetch("good").read_bytes() == CONTENT


def test_the_mirror_comes_first(small_registry, server, monkeypatch):
    registry.fetch("good")
    mirrored = small_registry / "mirror" / "owner" / "good.bin"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(CONTENT)
    monkeypatch.setenv(registry.MIRROR_VARIABLE, str(small_registry / "mirror"))
    assert registry.fetch("good") == mirrored
    assert len(server.requests) == 1


def test_a_damaged_mirror_is_refused(small_registry, server, monkeypatch):
    mirrored = small_registry / "mirror" / "owner" / "good.bin"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(CONTENT[:-1])
    monkeypatch.setenv(registry.MIRROR_VARIABLE, str(small_registry / "mirror"))
    with pytest.raises(RegistryError, match=r"mirror/owner/good.bin is not the registered good"):
        registry.fetch("good")
    assert server.requests == []
    assert mirrored.exists(), "the mirror is not ours to delete from"


def test_a_mirror_that_does_not_exist(small_registry, monkeypatch):
    monkeypatch.setenv(registry.MIRROR_VARIABLE, str(small_registry / "nowhere"))
    with pytest.raises(RegistryError, match=r"SOFTENING_MIRROR=.*nowhere is not a folder"):
        registry.fetch("good")


def test_first_download_is_trusted_recorded_and_enforced(small_registry, server):
    assert registry.expected_sha256(registry.lookup("unsigned")) == ""
    path = registry.fetch("unsigned")
    assert registry.expected_sha256(registry.lookup("unsigned")) == SHA256
    assert cached(small_registry) == ["unsigned.bin", "unsigned.bin.sha256"]
    assert registry.fetch("unsigned") == path
    path.write_bytes(b"something else")
    with pytest.raises(RegistryError, match=f"unsigned.bin is not the registered unsigned.*expected {SHA256}"):
        registry.fetch("unsigned")


def test_a_mismatch_names_the_record_that_must_go(small_registry, server):
    path = registry.fetch("unsigned")
    path.write_bytes(b"something else")
    with pytest.raises(RegistryError, match=r"Delete it and .*owner/unsigned.bin.sha256, which records what came first"):
        registry.fetch("unsigned")


def test_a_record_without_its_file_is_no_truth(small_registry, server, monkeypatch):
    """A deleted file is fetched again, and a change since the first download is not silent."""
    registry.fetch("unsigned").unlink()
    assert registry.expected_sha256(registry.lookup("unsigned")) == ""
    server.content = b"another file under the same address"
    changed = hashlib.sha256(server.content).hexdigest()
    said = []
    monkeypatch.setattr(pooch.get_logger(), "warning", lambda text, *values: said.append(text % values))
    assert registry.fetch("unsigned").read_bytes() == server.content
    assert f"unsigned has changed since its first download: SHA-256 was {SHA256}, is {changed}." in said
    assert registry.expected_sha256(registry.lookup("unsigned")) == changed


PAGES = (b"<!DOCTYPE html><title>Sign in</title>", b"\n <HTML><body>503</body></HTML>", b"\xef\xbb\xbf<html>")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("key", ["good", "unsigned", "network", "kind.xml"])
def test_a_page_instead_of_the_file_is_refused_and_leaves_nothing(small_registry, server, key, page):
    """With status 200, as proxies send them. Nothing is recorded: the next download is the first one."""
    server.content = page
    with pytest.raises(RegistryError, match=f"Could not download {key} from .*a web page.*put it at "):
        registry.fetch(key)
    assert cached(small_registry) == []
    assert len(server.requests) == 1, "the page would come again"
    server.content = {"network": archive(), "kind.xml": KINDS[".xml"]}.get(key, CONTENT)
    assert registry.fetch(key).read_bytes() == server.content


@pytest.mark.parametrize("content", [b"busy", b"", archive()[:-100], b'{"message": "not found"}'], ids=["text", "empty", "cut", "json"])
def test_a_model_file_that_is_no_archive_is_refused(small_registry, server, content):
    server.content = content
    with pytest.raises(RegistryError, match=rf"no zip archive, as a file .model is.*\({len(content)} bytes\)"):
        registry.fetch("network")
    assert cached(small_registry) == []


@pytest.mark.parametrize("ending", KINDS)
def test_a_file_is_of_the_kind_that_its_name_says(small_registry, server, ending):
    server.content = b"try again later"
    with pytest.raises(RegistryError, match=f"it is no file {ending}"):
        registry.fetch(f"kind{ending}")
    assert cached(small_registry) == []
    server.content = KINDS[ending]
    assert registry.fetch(f"kind{ending}").read_bytes() == server.content


def test_a_page_that_an_earlier_version_recorded_is_found_out(small_registry, server):
    place = small_registry / "cache" / "owner"
    place.mkdir(parents=True)
    (place / "network.model").write_bytes(PAGES[0])
    (place / "network.model.sha256").write_text(hashlib.sha256(PAGES[0]).hexdigest())
    with pytest.raises(RegistryError, match=r"network.model is not the registered network: it is a web page.*Delete it and .*model.sha256"):
        registry.fetch("network")
    # The advice works, and to delete the file alone is enough.
    (place / "network.model").unlink()
    server.content = archive()
    assert registry.fetch("network").read_bytes() == server.content


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x"])
def test_a_file_of_another_size_is_refused(small_registry, server, content):
    server.content = content
    with pytest.raises(RegistryError, match=f"sized.*{len(content)} bytes, expected {len(CONTENT)}"):
        registry.fetch("sized")
    assert cached(small_registry) == []


def test_a_body_shorter_than_its_header_says_is_tried_again(small_registry, server):
    server.cut = 7000
    with pytest.raises(RegistryError, match=r"unsigned.bin: the connection broke off before the end of the file\. Get it elsewhere"):
        registry.fetch("unsigned")
    assert cached(small_registry) == []
    assert len(server.requests) == 4


def test_a_host_that_sends_on_and_tells_no_length(small_registry, server):
    server.release = True
    assert registry.fetch("good").read_bytes() == CONTENT
    assert server.requests == ["/good.bin", "/asset/good.bin?sig=a%2Fb%3D&name=x"]
    assert cached(small_registry) == ["good.bin"]


@pytest.mark.parametrize(
    ("key", "wrong", "said"),
    [
        ("good", {"cut": 7000}, "13000 bytes, expected 20000"),
        ("archive", {"cut": 7000}, r"not the whole of one \(13000 bytes, expected 20000\)"),
        ("good", {"content": b"<!DOCTYPE html><title>Sign in</title>"}, "a web page"),
        ("good", {"failures": 1, "status": 403}, "403 Forbidden: .*refuses access"),
    ],
)
def test_what_goes_wrong_after_a_redirect_is_one_line_and_leaves_nothing(small_registry, server, key, wrong, said):
    """The length that no header told is known to the registry alone. The line names the address asked for, not the one with the query."""
    server.release = True
    vars(server).update(wrong)
    with pytest.raises(RegistryError, match=f"^Could not download {key} from {server.address}/{key}[.a-z]*: .*{said}.*put it at [^\n?]*$"):
        registry.fetch(key)
    assert cached(small_registry) == []


def test_a_server_that_falls_silent_is_given_up(small_registry, server, monkeypatch):
    patient = pooch.HTTPDownloader
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **settings: patient(**{**settings, "timeout": 0.1}))
    with server.pause, pytest.raises(RegistryError, match=r"Could not download good from .*Read timed out.*put it at"):
        registry.fetch("good")
    assert server.waits == [1, 4, 16]
    assert cached(small_registry) == []


@pytest.mark.parametrize(
    ("status", "meaning"), [(404, "no such file"), (403, "refuses access"), (410, "was withdrawn"), (401, "wants a login")]
)
def test_a_refusal_is_not_tried_again_and_says_what_it_means(small_registry, server, status, meaning):
    server.failures, server.status = 100, status
    with pytest.raises(RegistryError, match=f"good from .*: {status} .*{meaning}.*put it at"):
        registry.fetch("good")
    assert len(server.requests) == 1
    assert server.waits == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(small_registry, server, status):
    server.failures, server.status, server.headers = 2, status, {"Retry-After": "7"}
    assert registry.fetch("good").read_bytes() == CONTENT
    assert server.waits == [7, 7]


def test_a_date_to_wait_for_is_understood(small_registry, server):
    server.failures, server.status = 1, 503
    server.headers = {"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)}
    registry.fetch("good")
    assert 25 < server.waits[0] <= 31


@pytest.mark.parametrize(("header", "waits"), [("3600", []), ("nonsense", [1, 4, 16])])
def test_a_wait_of_an_hour_is_left_to_the_user(small_registry, server, header, waits):
    server.failures, server.status, server.headers = 100, 503, {"Retry-After": header}
    with pytest.raises(RegistryError, match="asks to wait 3600 s" if not waits else "503 .*the server fails"):
        registry.fetch("good")
    assert server.waits == waits


def test_what_killed_downloads_left_is_cleared_but_no_other_file(small_registry):
    place = small_registry / "cache" / "owner"
    place.mkdir(parents=True)
    for name in ("tmpabcd1234", "tmp_a2_c4_x", "tmpdir.json", "other.bin"):
        (place / name).write_bytes(b"x")
    registry.fetch("good")
    assert cached(small_registry) == ["good.bin", "other.bin", "tmpdir.json"]


def test_a_second_process_waits_for_the_first_and_takes_its_file(small_registry, server):
    """The download that runs is not disturbed: neither its temporary file nor the server is touched."""
    command = [sys.executable, "-c", "from helpers import registry; print(registry.fetch('good'))"]
    with server.pause:
        jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        partial = small_registry / "cache" / "owner"
        for _ in range(600):
            if server.requests and list(partial.glob("tmp*")):
                break
            threading.Event().wait(0.05)
        # Time for the other one to come to the lock.
        threading.Event().wait(1.0)
        assert len(list(partial.glob("tmp*"))) == 1
    outputs = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert server.requests == ["/good.bin"]
    assert sum("Another process downloads" in errors for _, errors in outputs) == 1
    assert cached(small_registry) == ["good.bin"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_rights_that_the_user_gives_to_files(small_registry, umask, mode):
    before = os.umask(umask)
    try:
        assert registry.fetch("good").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_gets_its_own_advice(small_registry, server, monkeypatch, number):
    def full(self, url, output_file, pooch):
        Path(output_file).write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    with pytest.raises(RegistryError, match=r"the disk is full \(\d+\.\d MB free, needed: 0\.0 MB\)\. Make room\. Or let SOFTENING_CACHE"):
        registry.fetch("good")
    assert cached(small_registry) == []
    assert server.waits == [], "a full disk does not empty itself"


def test_names_with_a_slip_are_asked_back(small_registry):
    with pytest.raises(RegistryError, match=r"'unsinged' is not in .*Did you mean unsigned\?"):
        registry.fetch("unsinged")
    with pytest.raises(RegistryError, match=r"no files for 'weigths'.*Did you mean weights\?"):
        registry.files("weigths")


def test_the_command_goes_on_after_an_error(small_registry):
    outcome = CliRunner().invoke(cli.app, ["fetch", "forces"])
    assert outcome.exit_code == 1
    assert "ready    good (20.0 kB)" in outcome.output
    assert "failed   wrong" in outcome.output
    assert "1 of 2 files are here and verified" in outcome.output
    assert CliRunner().invoke(cli.app, ["fetch"]).output.count("ready ") == 3, "the pages of networks and kinds are none of theirs"


def test_a_cache_that_cannot_be_written_gets_another_advice(small_registry, monkeypatch):
    (small_registry / "file").touch()
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(small_registry / "file" / "cache"))
    with pytest.raises(RegistryError, match=r"Not a directory: .*Let SOFTENING_CACHE name another folder than .*file/cache\.$"):
        registry.fetch("good")


def test_unknown_names(small_registry, monkeypatch):
    for ask in (registry.lookup, registry.local_path, registry.fetch):
        with pytest.raises(RegistryError, match=r"'nonsense' is not in .*registry.csv"):
            ask("nonsense")
    with pytest.raises(RegistryError, match=r"no files for 'nonsense'. It has: forces, kinds, networks, nowhere, weights"):
        registry.files("nonsense")
    monkeypatch.setenv(registry.DATA_VARIABLE, str(small_registry))
    with pytest.raises(RegistryError, match=r"holds no registry.csv.*SOFTENING_DATA"):
        registry.files()


@pytest.fixture
def project_registry(monkeypatch):
    """The project's own registry, whatever the environment says."""
    monkeypatch.delenv(registry.DATA_VARIABLE, raising=False)
    return registry.data_dir() / "registry.csv"


def test_rows_of_the_project_registry(project_registry):
    with project_registry.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(registry.files()) > 100
    for column in ("key", "mirror_path"):
        values = [row[column] for row in rows]
        assert sorted(set(values)) == sorted(values), f"{column} repeats"
    for row in rows:
        assert list(row) == FIELDS
        assert row["url"].startswith("https://"), row["key"]
        assert re.fullmatch(r"([0-9a-f]{64})?", row["sha256"]), row["key"]
        assert re.fullmatch(r"\d*", row["bytes"]), row["key"]
        for column in ("benchmark", "licence", "citation"):
            assert row[column].strip(), f"{row['key']} has no {column}"
        place = Path(row["mirror_path"])
        assert not place.is_absolute()
        assert ".." not in place.parts


def test_addresses_of_repository_files_name_a_commit(project_registry):
    raw = [file for file in registry.files() if file.url.startswith("https://raw.githubusercontent.com/")]
    assert len(raw) > 100
    for file in raw:
        assert file.url == f"https://raw.githubusercontent.com/{file.mirror_path}"
        assert re.fullmatch(r"[0-9a-f]{40}", file.mirror_path.split("/")[2]), file.key
        assert file.sha256, file.key
        assert file.size, file.key


@needs_mirror
def test_every_mirrored_file_is_the_registered_one(project_registry):
    mirror = registry.mirror_dir()
    here = [file for file in registry.files() if (mirror / file.mirror_path).is_file()]
    assert len(here) > 100
    for file in here:
        path = mirror / file.mirror_path
        assert registry.sha256(path) == file.sha256, file.key
        assert path.stat().st_size == file.size, file.key


@pytest.mark.slow
def test_importing_a_benchmark_reads_no_registry(tmp_path):
    code = "from helpers import benchmarks; print(*[benchmarks.module(name).LIVE for name in benchmarks.CATALOGUE])"
    environment = {**os.environ, registry.DATA_VARIABLE: str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
