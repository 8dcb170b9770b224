"""The house has one direction: rooms know the rooms below them, and ``book/architecture.md`` shows all of them."""

import ast
import importlib
import importlib.util
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "architecture.md").read_text()


def rooms(page):
    """Return the rooms of the page's table, the lowest first, each with its modules (none: it is one module)."""
    found = re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.M)
    return {room: re.findall(r"`(\w+)`", modules) for room, modules in found}


def floors(page):
    """Return the floor, counted from the top, of each room in the page's picture."""
    return {room: int(y) for y, room in re.findall(r'<text class="room" x="\d+" y="(\d+)">(\w+)</text>', page)}


def read(folder):
    """Return the source of every module below a folder, by dotted name."""
    names = {path: path.relative_to(folder).with_suffix("").as_posix().replace("/", ".") for path in folder.rglob("*.py")}
    return {name.removesuffix(".__init__"): path.read_text() for path, name in names.items()}


def room_of(module):
    return module.split(".")[1]


class Module:
    """What a module imports from its neighbours, also within functions and for types only, and which private names it touches."""

    def __init__(self, source, known):
        self.imports, self.own, self.touched = set(), set(), set()
        tree, from_others = ast.parse(source), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.imports |= {alias.name for alias in node.names} & known
            elif isinstance(node, ast.ImportFrom) and (node.level or node.module in known):
                assert not node.level, f"line {node.lineno}: imports are absolute"
                self.imports |= {full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
                from_others |= {alias.asname or alias.name for alias in node.names}
                self.touched |= {(alias.name, True) for alias in node.names if private(alias.name)}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.own.add(node.id)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr):
                owner = node.value.id if isinstance(node.value, ast.Name) else None
                if owner not in ("self", "cls"):
                    self.touched.add((node.attr, owner in from_others))
                elif isinstance(node.ctx, ast.Store):
                    self.own.add(node.attr)


def private(name):
    return name.startswith("_") and not name.endswith("_")


def faults(sources, order):
    """Return what is wrong with the imports of modules, given the order of their rooms."""
    modules = {name: Module(source, set(sources)) for name, source in sources.items() if "." in name}
    found = []
    for name, module in modules.items():
        for target in module.imports - {name, "helpers"}:
            if order.index(room_of(target)) > order.index(room_of(name)):
                found.append(f"{name} imports {target}, which is above it")
        elsewhere = {each for other, it in modules.items() if other != name for each in it.own} - module.own
        found += [f"{name} uses the private {attribute}" for attribute, sure in sorted(module.touched) if sure or attribute in elsewhere]
    try:
        TopologicalSorter({name: module.imports for name, module in modules.items()}).prepare()
    except CycleError as error:
        found.append(f"a circle: {' → '.join(reversed(error.args[1]))}")
    return found


SOURCES = read(ROOT / "src")


def test_imports_run_one_way_and_private_names_stay_at_home():
    assert faults(SOURCES, [*rooms(PAGE)]) == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.stem)
def test_tests_use_public_names(path):
    assert [name for name, sure in Module(path.read_text(), set(SOURCES)).touched if sure] == []


def test_the_page_lists_every_module():
    there = {}
    for name in SOURCES:
        if "." in name:
            there.setdefault(room_of(name), []).extend(name.split(".")[2:])
    assert {room: sorted(modules) for room, modules in rooms(PAGE).items()} == {room: sorted(modules) for room, modules in there.items()}


def test_the_picture_is_the_house():
    """Every room stands in it, in the order of the table from the ground up, and none rests on one of its own floor."""
    drawn, order = floors(PAGE), [*rooms(PAGE)]
    assert sorted(order, key=lambda room: -drawn[room]) == order
    assert set(drawn) == set(order)
    for name, source in SOURCES.items():
        for target in Module(source, set(SOURCES)).imports - {"helpers"} if "." in name else ():
            assert room_of(target) == room_of(name) or drawn[room_of(target)] > drawn[room_of(name)], f"{name} imports {target}"


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("helpers.low", "from helpers import high", "helpers.low imports helpers.high, which is above it"),
        ("helpers.low", "def f():\n    from helpers.high.inner import g", "helpers.low imports helpers.high.inner, which is above it"),
        ("helpers.high.inner", "import helpers.high.outer", "a circle: helpers.high.inner → helpers.high.outer → helpers.high.inner"),
        (
            "helpers.high.inner",
            "if TYPE_CHECKING:\n    from helpers.high.outer import X",
            "a circle: helpers.high.inner → helpers.high.outer → helpers.high.inner",
        ),
        ("helpers.high.outer", "from helpers.low import _hidden", "helpers.high.outer uses the private _hidden"),
        ("helpers.high.outer", "from helpers import low as floor\nfloor._anything", "helpers.high.outer uses the private _anything"),
        ("helpers.high.outer", "def f(thing):\n    return thing._inside", "helpers.high.outer uses the private _inside"),
    ],
)
def test_planted_faults_are_found(module, line, complaint):
    sources = {
        "helpers": "",
        "helpers.low": "class Thing:\n    def __init__(self):\n        self._inside = 1\n\ndef _hidden(): ...",
        "helpers.high": "",
        "helpers.high.inner": "from helpers import low\nlow.Thing().__class__",
        "helpers.high.outer": "from helpers.high import inner\nfrom collections import namedtuple\nnamedtuple('P', 'x')(1)._replace(x=2)",
    }
    assert faults(sources, ["low", "high"]) == []
    assert complaint in faults(sources | {module: sources[module] + "\n" + line}, ["low", "high"])


def _there(dotted):
    """Tell whether a dotted name leads to a module, or to something in one."""
    # They need packages of other environments: that the module exists must do.
    dotted = re.sub(r"^(helpers\.potentials\.(equivariant|sevennet))\..*", r"\1", dotted)
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        found = ".".join(parts[:depth])
        try:
            spec = importlib.util.find_spec(found)
        except ModuleNotFoundError:  # what stands above is no package
            continue
        if spec is not None:
            return depth == len(parts) or _has(importlib.import_module(found), parts[depth:])
    return False


def _has(found, names):
    # A field of a dataclass without a default is no attribute of the class.
    return (
        not names
        or names in [[field] for field in getattr(found, "__annotations__", {})]
        or (hasattr(found, names[0]) and _has(getattr(found, names[0]), names[1:]))
    )


def _named(text):
    """Return the dotted names of the library that a text mentions or imports."""
    names = set(re.findall(r"\bhelpers(?:\.[A-Za-z_]\w*)+", text))
    for room, listed in re.findall(r"from (helpers[\w.]*) import ([\w, ]+)", text):
        names |= {f"{room}.{word.split()[0]}" for word in listed.split(",") if word.strip()}
    return names


@pytest.mark.parametrize("pattern", ["*.md", "book/*.md", "notebooks/*.ipynb", "notebooks/labs/source/*/*.ipynb", "src/helpers/**/*.py"])
def test_what_pages_and_docstrings_name_is_there(pattern):
    missing = {f"{path.name}: {name}" for path in ROOT.glob(pattern) for name in _named(path.read_text()) if not _there(name)}
    assert not missing


_ROLE = re.compile(r":(?:func|class|data|meth|attr|exc):`(?!~?helpers\.)~?([^`]+)`")


def _short(path):
    """Return the names in a module's docstrings that say neither where they are nor are in it or in one of its classes."""
    text, module = path.read_text(), ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    places = ["", f"{module}.", *(f"{module}.{name}." for name in re.findall(r"^class (\w+)", text, re.MULTILINE))]
    return {name for name in _ROLE.findall(text) if not any(_there(place + name) for place in places)}


def test_what_docstrings_name_shortly_is_in_their_module():
    missing = {f"{path.name}: {name}" for path in (ROOT / "src/helpers").rglob("*.py") for name in _short(path)}
    assert not missing


def test_a_name_that_has_moved_is_found():
    assert not _there("helpers.throughput")
    assert not _there("helpers.speed.throughput.nothing")
    assert _named("see :func:`helpers.a.b` or from helpers import c, d as e") == {"helpers.a.b", "helpers.c", "helpers.d"}
    assert all(map(_there, ["helpers.speed.throughput.record", "helpers.potentials.base.Potential.scaled", "helpers.potentials.sevennet"]))
