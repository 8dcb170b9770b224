"""A Sphinx extension: the house's short docstrings, as reStructuredText understands them.

They list arguments in lines that begin with names in code, with what belongs to one indented below, and write absolute values with bars.
"""

from __future__ import annotations

import re

_ARGUMENT = re.compile(r"(``[\w*]+``(, ``[\w*]+``)*)( \(.+?\))?: ")
_CODE = re.compile(r"(``.*?``|:\w+:`.*?`)")


def readable(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make a list of the lines on arguments, and let bars stand for themselves. Changes ``lines``."""
    made: list[str] = []
    inside = False  # a list of arguments
    for line in lines:
        begins = bool(_ARGUMENT.match(line))
        if begins and not inside:
            made.append("")
        inside = begins or (inside and line[:1] == " ")
        text = "".join(part if part.startswith(("``", ":")) else part.replace("|", "\\|") for part in _CODE.split(line))
        made.append(f"- {text}" if begins else f"  {text.strip()}" if inside else text)
    lines[:] = made


def skipped(app: object, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of a named tuple, of which Python says only their place; what the tuple is stands in its own docstring."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app) -> dict[str, bool]:
    """Register it, before napoleon, which reads what is left."""
    app.connect("autodoc-process-docstring", readable, priority=100)
    app.connect("autodoc-skip-member", skipped)
    return {"parallel_read_safe": True}
