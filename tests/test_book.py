"""The book's machinery, and the anatomy of its chapters."""

import ast
import math
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import book_script

from helpers import chapter

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [
    ROOT / "notebooks" / f"{name}.ipynb"
    for name in (
        "surfaces",
        "defects",
        "solid_solutions",
        "migration",
        "phonons",
        "elasticity",
        "off_equilibrium",
        "molecular_dynamics",
        "why_soft",
        "is_it_real",
        "six_diets",
        "before_any_dft",
        "the_cure",
        "mended_for_everyone",
        "alchemy",
        "coverage",
    )
]


build, check = book_script("build"), book_script("check")


def test_imports_are_followed_through_the_helpers():
    found = build.closure(build.imported("from helpers import figures\nfrom helpers.benchmarks import surfaces"))
    assert {"helpers.figures", "helpers.softening", "helpers.benchmarks.surfaces", "helpers.engine", "helpers.potentials.base"} <= found
    assert "helpers.cli" not in found
    # Families of potentials are imported by name.
    assert "helpers.potentials.chgnet" in build.closure({"helpers.potentials"})


def test_a_changed_helper_or_table_executes_the_chapter_again(monkeypatch, tmp_path):
    """The fingerprint follows what a chapter uses, and nothing else."""
    root = tmp_path
    for folder in ("src/helpers/benchmarks", "src/helpers/engine", "data/results/surfaces", "data/paper", "data/reference", "notebooks"):
        (root / folder).mkdir(parents=True)
    (root / "src/helpers/__init__.py").write_text("")
    (root / "src/helpers/benchmarks/__init__.py").write_text("")
    (root / "src/helpers/benchmarks/surfaces.py").write_text("from helpers import engine\n")
    (root / "src/helpers/engine/__init__.py").write_text("x = 1\n")
    (root / "src/helpers/other.py").write_text("x = 1\n")
    (root / "data/results/surfaces/model.json").write_text("{}")
    for name in ("data/registry.csv", "requirements.lock"):
        (root / name).write_text("")
    notebook = root / "notebooks/chapter.ipynb"
    cell = nbformat.v4.new_code_cell("%matplotlib inline\nfrom helpers.benchmarks import surfaces")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    monkeypatch.setattr(build, "ROOT", root)
    monkeypatch.setattr(build, "HELPERS", root / "src/helpers")
    before = build.fingerprint(notebook)
    (root / "src/helpers/other.py").write_text("x = 2\n")
    assert build.fingerprint(notebook) == before
    (root / "src/helpers/engine/__init__.py").write_text("x = 2\n")
    after_helper = build.fingerprint(notebook)
    assert after_helper != before
    (root / "data/results/surfaces/model.json").write_text('{"a": 1}')
    assert build.fingerprint(notebook) != after_helper


@pytest.mark.parametrize(
    ("html", "complaint"),
    [
        ('<script src="https://example.org/x.js"></script>', "from elsewhere"),
        ('<img src="missing.png" alt="a figure">', "does not exist"),
        ('<img src="data:image/png;base64,AAAA">', "without alternative text"),
        ('<a href="other.html">x</a>', "dead link"),
        ('<h2 id="here">x</h2><a href="#there">x</a>', "no such place"),
        ('<div class="output stderr">Traceback</div>', "shows an error"),
        ('<div class="output text_plain"><pre>Figure: slopes</pre></div>', "was not drawn: 'Figure: slopes'"),
    ],
)
def test_the_check_finds_what_is_wrong(tmp_path, html, complaint):
    page = tmp_path / "page.html"
    page.write_text(f"<html><body>{html}</body></html>")
    messages = check.check_page(page, {page.resolve(): {"here"}})
    assert len(messages) == 1
    assert complaint in messages[0]


@pytest.mark.slow
def test_notebooks_are_executed_once_and_one_that_fails_is_left_to_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CACHE", tmp_path / "_build" / "cache")
    paths = []
    for name, source in {"good": "open('runs', 'a').write('x')", "bad": "raise RuntimeError"}.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="one")])
        paths.append(tmp_path / name / f"{name}.ipynb")
        paths[-1].parent.mkdir()
        nbformat.write(notebook, paths[-1])
    for _ in range(2):
        build.execute(paths, timeout=60)
    assert (tmp_path / "good" / "runs").read_text() == "x", "in its own folder, once"
    cache = build.get_cache(str(build.CACHE))
    assert cache.match_cache_notebook(nbformat.read(paths[0], as_version=4))
    with pytest.raises(KeyError):
        cache.match_cache_notebook(nbformat.read(paths[1], as_version=4))


def test_the_check_accepts_a_good_page(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<h2 id="here">x</h2><a href="#here">x</a><a href="https://doi.org/1">x</a><img src="data:image/png;base64,A" alt="x">')
    assert check.check_page(page, {page.resolve(): {"here"}}) == []


def test_every_page_of_the_contents_exists():
    labs = build.lab_pages()  # written when the book is built
    for name in check.pages():
        assert name in labs or any((ROOT / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb")), name
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} | set(labs) <= set(check.pages())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None)


@pytest.mark.parametrize("path", [*NOTEBOOKS, *(ROOT / "notebooks" / "labs" / "source").rglob("*.ipynb")], ids=lambda path: path.stem)
def test_code_that_is_shown_fits_the_page(path):
    """88 characters (``book/_static/custom.css``); what a page hides or folds may be longer."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and not cell.metadata.get("tags")]
    assert [line for cell in cells for line in cell.source.split("\n") if len(line) > 88] == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_have_the_house_anatomy(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    parts = ("How to run this", "## The physics", "by hand", "## The whole set", "## Live check", "## Why soft", "## The fix", "## Summary")
    positions = [text.index(part) for part in parts]
    assert positions == sorted(positions)
    assert text.index("## Exercises") < text.index("## References")
    assert 25 <= len(notebook.cells) <= 60
    lines = [(len(cell.source.split("\n")), cell.metadata.get("tags", [])) for cell in notebook.cells if cell.cell_type == "code"]
    longest = max(n for n, _ in lines)
    assert longest <= 20, f"a code cell has {longest} lines; move its work into helpers"
    seen, whole = (sum(n for n, tags in lines if not (hidden and tags not in ([], ["hide-cell"]))) for hidden in (True, False))
    assert seen >= 0.45 * whole, f"{seen} of {whole} lines of code can be seen; move what only shows into helpers"


@pytest.mark.parametrize("path", [*CHAPTERS, ROOT / "book" / "template.ipynb"], ids=lambda path: path.stem)
def test_chapters_open_with_the_question_the_answer_and_a_figure(path):
    """What is needed to run a chapter is its first code, folded on the page; the figure is made where its data are."""
    cells = nbformat.read(path, as_version=4).cells
    title, question, answer, figure, how = cells[0].source.split("\n\n")
    assert title.startswith("# ")
    assert re.fullmatch(r"\*[^*]*\?[^*]*\*", question) or path.stem == "template"
    assert len(re.findall(r"[.!?](?= |$)", re.sub(r"\{glue:text\}`[^`]+`", "7", answer), re.MULTILINE)) in (2, 3)
    assert figure == "```{glue} opening\n```"
    assert how.startswith("```{admonition} How to run this\n:class: dropdown glance\n")
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.metadata.get("tags") for cell in code[:2]] == [["hide-cell"]] * 2
    assert len({cell.metadata.mystnb.code_prompt_show for cell in code[:2]} - {""}) == 2
    (made,) = [cell for cell in code if re.search(r"here\.glue\(\s*opening=", cell.source)]
    assert made.metadata.tags in (["remove-cell"], ["hide-input"])


@pytest.mark.parametrize("path", [*CHAPTERS, ROOT / "book" / "template.ipynb"], ids=lambda path: path.stem)
def test_chapters_have_one_switch_near_the_top(path):
    """It stands at what the build of the book uses, and every live check goes through it."""
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [number for number, source in enumerate(code) if "chapter.begin(" in source] == [1]
    assert 'RUN = "sample"\nhere = chapter.begin(RUN, ' in code[1]
    checked = set(re.findall(r'here\.live_check\(\s*"(\w+)"', "\n".join(code)))
    assert checked == set(re.findall(r'"(\w+)"', code[1].splitlines()[-2]))
    assert "runner.live_check" not in "\n".join(code)


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "book" / "template.ipynb"], ids=lambda path: path.stem)
def test_another_model_is_one_changed_word(path):
    """Rows are chosen by ``here.own``, which never comes back empty and names whose they are; so no cell filters by MODEL itself."""
    code = build.code(path)
    nodes = list(ast.walk(ast.parse(code)))
    calls = {call: ast.unparse(call.func) for call in nodes if isinstance(call, ast.Call)}
    may = ("chapter.begin", "here.live_check", "potentials.load", "figures.label")
    allowed = {id(argument) for call, name in calls.items() if name in may for argument in call.args}
    used = [node for node in nodes if isinstance(node, ast.Name) and node.id == "MODEL" and isinstance(node.ctx, ast.Load)]
    assert not [f"line {node.lineno}" for node in used if id(node) not in allowed]
    assert "@MODEL" not in code
    assert not re.search(r"live, n.*label\(MODEL\)", code), "the check is of whatever model has a table"
    named = {"model"} | {f"{call.args[0].value}_model" for call, name in calls.items() if name == "here.own"}
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    assert set(re.findall(r"\{glue:text\}`(model|\w+_model)`", text)) <= named


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tensornet-matpes-pbe-2025.1", "file:my-fix"])
@pytest.mark.parametrize(
    ("name", "experiment"),
    [("surfaces", "fine_tuning"), ("defects", "mending"), ("migration", "curvature_mending")],
)
def test_what_is_trained_is_shown_with_another_model(name, experiment, model, monkeypatch, capsys):
    """Neither has a table; the cells up to the next sentence still run, and name the model that they show."""
    glued = {}
    monkeypatch.setattr(chapter.myst_nb, "glue", lambda name, value, display: glued.__setitem__(name, value))
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    start = next(number for number, cell in enumerate(cells) if f'here.own("{experiment}")' in cell.source)
    end = next(number for number, cell in enumerate(cells) if number > start and cell.cell_type == "markdown")
    names = {}
    for cell in (*cells[1:3], *cells[start:end]):
        source = re.sub('^MODEL = "[^"]+"', f'MODEL = "{model}"', cell.source, flags=re.MULTILINE)
        exec(source.replace('RUN = "sample"', 'RUN = "results"'), names)  # noqa: S102
    assert f"{experiment}: these are numbers of CHGNet 0.3.0" in capsys.readouterr().out
    assert glued[f"{experiment}_model"] == "CHGNet 0.3.0"
    quoted = re.findall(r"\{glue:text\}`([^`:]+)[:`]", cells[end].source)
    of_cells = [value for number, value in glued.items() if number in quoted]
    assert len(of_cells) >= 3
    assert not any(isinstance(value, float) and math.isnan(value) for value in of_cells)


def test_numbers_of_ours_are_glued_not_typed():
    """A decimal number in a sentence about our models must come from a table; the paper's and textbook ones are typed with a source."""
    allowed = re.compile(r"glue:|paper|\$|%|Å|footcite|0\.995|`|\|")
    for path in CHAPTERS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for line in cell.source.splitlines():
                    if re.search(r"(?<![\w.])\d\.\d{2,}", line):
                        assert allowed.search(line), f"{path.stem}: {line}"


def test_the_configuration_names_no_outside_address():
    text = (ROOT / "_config.yml").read_text()
    yaml.safe_load(text)
    assert "://" not in text


def test_environments_are_no_pages():
    """Packages bring Markdown files of their own, which Sphinx would read: make env-NAME must not break make book."""
    excluded = yaml.safe_load((ROOT / "_config.yml").read_text())["exclude_patterns"]
    assert {".venv", ".venv-*"} <= set(excluded)
