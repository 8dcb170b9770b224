"""The registry: downloads from a server on this machine, every way they can go wrong, and the rows themselves."""

from __future__ import annotations

import csv
import hashlib
import http.server
import re
import threading
import time
from pathlib import Path

import pytest

from helpers import registry
from helpers.registry import RegistryError

CONTENT = b"forces and energies\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FIELDS = ["key", "benchmark", "url", "sha256", "bytes", "mirror_path", "licence", "citation"]


@pytest.fixture
def server():
    """A server that sends CONTENT. ``failures`` counts the requests that it still answers with 500; ``requests`` lists the paths."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.requests.append(self.path)
            if self.server.failures:
                self.server.failures -= 1
                self.send_error(500)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.failures, httpd.requests, httpd.content = 0, [], CONTENT
    httpd.address = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def small_registry(tmp_path, monkeypatch, server):
    """A registry of three files on the server, with its own cache and no mirror."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        ["good", "forces", f"{server.address}/good.bin", SHA256, len(CONTENT), "owner/good.bin", "MIT", "A"],
        ["wrong", "forces", f"{server.address}/wrong.bin", "0" * 64, "", "owner/wrong.bin", "MIT", "B"],
        ["unsigned", "weights", f"{server.address}/unsigned.bin", "", "", "owner/unsigned.bin", "MIT", "C"],
    ]
    with (data / "registry.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([FIELDS, *rows])
    monkeypatch.setenv(registry.DATA_VARIABLE, str(data))
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(registry.MIRROR_VARIABLE, raising=False)
    monkeypatch.delenv(registry.OFFLINE_VARIABLE, raising=False)
    # The pause between attempts is not what is tested.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return tmp_path


def cached(folder: Path) -> list[str]:
    """List the files in the cache."""
    return sorted(path.name for path in (folder / "cache").rglob("*") if path.is_file())


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
    assert 1 < len(server.requests) < 10
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


def test_a_second_download_must_be_the_recorded_file(small_registry, server):
    registry.fetch("unsigned").unlink()
    server.content = b"another file under the same address"
    with pytest.raises(RegistryError, match="unsigned"):
        registry.fetch("unsigned")
    assert cached(small_registry) == ["unsigned.bin.sha256"]
    server.content = CONTENT
    assert registry.fetch("unsigned").read_bytes() == CONTENT


def test_fetch_all_goes_on_after_an_error(small_registry):
    results = dict((file.key, result) for file, result in registry.fetch_all(registry.files()))
    assert list(results) == ["good", "wrong", "unsigned"]
    assert results["good"].read_bytes() == results["unsigned"].read_bytes() == CONTENT
    assert isinstance(results["wrong"], RegistryError)
    assert [file.key for file, _ in registry.fetch_all(registry.files("forces"))] == ["good", "wrong"]


def test_unknown_names(small_registry, monkeypatch):
    for ask in (registry.lookup, registry.local_path, registry.fetch):
        with pytest.raises(RegistryError, match=r"'nonsense' is not in .*registry.csv"):
            ask("nonsense")
    with pytest.raises(RegistryError, match=r"no files for 'nonsense'. It has: forces, weights"):
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


@pytest.mark.skipif(registry.mirror_dir() is None, reason="needs the data mirror (SOFTENING_MIRROR)")
def test_every_mirrored_file_is_the_registered_one(project_registry):
    mirror = registry.mirror_dir()
    here = [file for file in registry.files() if (mirror / file.mirror_path).is_file()]
    assert len(here) > 100
    for file in here:
        path = mirror / file.mirror_path
        assert registry.sha256(path) == file.sha256, file.key
        assert path.stat().st_size == file.size, file.key
