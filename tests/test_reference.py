"""The pages of functions: what they name is there, and the examples in docstrings say what comes out."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "book" / "api").glob("*.md"))
NAMED = re.findall(r"\.\. automodule:: ([\w.]+)\n   :members:(.*)", "\n".join(page.read_text() for page in PAGES))


@pytest.mark.parametrize(("module", "members"), NAMED, ids=[module for module, _ in NAMED])
def test_what_a_page_names_is_there_and_says_what_it_is(module, members):
    there = importlib.import_module(module)
    assert there.__doc__
    for name in filter(None, re.split(r"[,\s]+", members)):
        assert getattr(there, name).__doc__, name


@pytest.mark.parametrize("module", ["softening", *(module for module, _ in NAMED)])
def test_examples_say_what_comes_out(module):
    there = importlib.import_module(module)
    outcome = doctest.testmod(there, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.failed == 0


def test_there_are_examples():
    tried = sum(doctest.testmod(importlib.import_module(module)).attempted for module in ("helpers.softening", "helpers.engine.batched"))
    assert tried > 3
