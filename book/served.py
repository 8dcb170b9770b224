"""The built book as a browser meets it: served on this machine, opened with Chromium. Used for printing and for the browser's checks."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium() -> str:
    """Return the program of Chromium or Chrome: the one that CHROMIUM names, or the first that is installed.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        if shutil.which(named) is None:
            raise FileNotFoundError(f"CHROMIUM={named}: there is no such program")
        return named
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        raise FileNotFoundError(f"no browser: install Chromium or Chrome, or set CHROMIUM; looked for {', '.join(BROWSERS)}")
    return found


def chromium_options() -> list[str]:
    """Return the options that Chromium needs on this machine: its sandbox refuses to work for root, as in a container."""
    return ["--no-sandbox"] if os.geteuid() == 0 else []


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine alone; yield its address, ``http://127.0.0.1:PORT``."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
