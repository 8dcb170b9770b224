"""Say what keeps this version from being released: every place that tells the version, the date or the title must tell the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def problems(root: Path, today: str) -> list[str]:
    """Return what is wrong in the files of ``root``, one sentence each; ``today`` is an ISO date."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    zenodo = json.loads((root / ".zenodo.json").read_text())
    found = []
    if str(citation.get("version")) != version:
        found.append(f"CITATION.cff has version {citation.get('version')}, pyproject.toml {version}")
    if str(citation.get("date-released")) != today:
        found.append(f"CITATION.cff has date-released {citation.get('date-released')}, today is {today}")
    for name in ("title", "license", "keywords"):
        if zenodo.get(name) != citation.get(name):
            found.append(f".zenodo.json and CITATION.cff have different {name}")
    headings = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    if headings[:1] != [f"{version} ({today})"]:
        found.append(f"CHANGELOG.md begins with {headings[:1] or 'no heading'}; the lines of Unreleased go under “## {version} ({today})”")
    return found


def main() -> int:
    """Check the files and the working tree, and say how to go on."""
    found = problems(ROOT, date.today().isoformat())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603, S607

    if git("status", "--porcelain"):
        found.append("there are changes that are not committed")
    if git("tag", "--list", f"v{version}"):
        found.append(f"there is a tag v{version} already; raise the version in pyproject.toml and CITATION.cff")
    print(
        "\n".join(found) or f"Ready: git tag v{version} && git push origin v{version}, and Zenodo archives what the tag names.", flush=True
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
