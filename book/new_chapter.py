"""Copy the template of a chapter: its parts are those that every chapter has."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "book" / "template.ipynb"


def copy(name: str, title: str, folder: Path) -> Path:
    """Write the template to ``folder/name.ipynb`` with its title.

    Raises
    ------
    ValueError
        If the name is not a plain word, there is no title, or the chapter exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"NAME={name!r}: give lower-case letters, digits and underscores, such as lattice_constants")
    if not title.strip():
        raise ValueError('give the chapter a title: TITLE="Lattice constants"')
    path = folder / f"{name}.ipynb"
    if path.exists():
        raise ValueError(f"{path} exists; choose another name")
    words = title.strip().replace("\\", "\\\\").replace('"', '\\"')  # inside a JSON string
    path.write_text(TEMPLATE.read_text(encoding="utf-8").replace("TITLE OF THE CHAPTER", words), encoding="utf-8")
    return path


def main() -> int:
    """Copy it into ``notebooks`` and say what remains to be done."""
    name, title = (*sys.argv[1:], "", "")[:2]
    try:
        path = copy(name, title, ROOT / "notebooks")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"Wrote {path.relative_to(ROOT)}. Now add\n  - file: notebooks/{name}\nto _toc.yml, and {name!r} to CHAPTERS in tests/test_book.py."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
