"""The course labs: the solution gets all points, the empty version none, and every usual slip its hint."""

import ast
import functools
import operator
import os
import re
import shutil
import sys
from pathlib import Path

import ase
import nbformat
import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from bs4 import BeautifulSoup
from conftest import book_script
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from traitlets.config.loader import PyFileConfigLoader

from helpers import labs
from helpers.engine import Relaxed
from helpers.potentials.ase import ASEPotential

# nbgrader and newer versions of SQLAlchemy disagree about when an object joins its session.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "notebooks" / "labs"
SOURCES = sorted((COURSE / "source").glob("*/*.ipynb"))
NAMES = [path.parent.name for path in SOURCES]


def read(path):
    return nbformat.read(path, as_version=4)


def marks(cell):
    return cell.metadata.get("nbgrader", {})


# ---------------------------------------------------------------------------------------------------
# The notebooks


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_sources_are_well_formed(path):
    notebook = read(path)
    nbformat.validate(notebook)
    tagged = [cell for cell in notebook.cells if marks(cell)]
    identifiers = [marks(cell)["grade_id"] for cell in tagged]
    assert len(set(identifiers)) == len(identifiers)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None)
        assert cell.cell_type != "code" or marks(cell), "a code cell that nbgrader does not know could be edited unseen"
    for cell in tagged:
        assert marks(cell)["schema_version"] == 3
        assert ("points" in marks(cell)) == marks(cell)["grade"]
        assert marks(cell)["locked"] != marks(cell)["solution"]
        assert ("### BEGIN SOLUTION" in cell.source) == (marks(cell)["solution"] and cell.cell_type == "code")
        assert cell.source.count("### BEGIN") == cell.source.count("### END")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    minutes = [int(found) for found in re.findall(r"^## .*\((\d+) min\)", text, flags=re.MULTILINE)]
    assert f"**Time** {sum(minutes)} minutes" in text
    assert 60 <= sum(minutes) <= 90


def test_the_guide_has_the_points_and_times_of_the_notebooks():
    guide = (ROOT / "book" / "teaching.md").read_text()
    for number, path in enumerate(SOURCES, 1):
        graded = [cell for cell in read(path).cells if marks(cell).get("grade")]
        code = sum(marks(cell)["points"] for cell in graded if cell.cell_type == "code")
        words = [marks(cell)["points"] for cell in graded if cell.cell_type == "markdown"]
        total = code + sum(words)
        assert f"| {number} | {code} | {words[0]} | {sum(words[1:])} | {total} |" in guide
        minutes = re.search(r"\*\*Time\*\* (\d+) minutes", read(path).cells[0].source)[1]
        assert re.search(rf"^\| {number} \[.*{path.stem}\.ipynb.*\| {minutes} \| {total} \|$", guide, flags=re.MULTILINE)


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_the_handout_is_that_of_the_notebook(path):
    """Everything that is graded, with its points, and no solution."""
    notebook = read(path)
    text = BeautifulSoup(book_script("handouts").sheet(notebook, path.name), "html.parser")
    title, question = re.findall(r"^(?:# (.*)|\*(.+)\*)$", notebook.cells[0].source, flags=re.MULTILINE)[:2]
    assert text.h1.get_text().startswith(title[0])
    assert text.em.get_text() == question[1]
    points = sum(marks(cell).get("points", 0) for cell in notebook.cells)
    assert sum(int(row.find_all("td")[-1].get_text() or 0) for row in text.select("tbody tr")) == points
    for cell in notebook.cells:
        for name in re.findall(r"^def (\w+)", cell.source, flags=re.MULTILINE) if marks(cell).get("solution") else ():
            assert any(code.get_text().startswith(f"{name}(") for code in text.select("td code")), name
        if cell.source.startswith("**Explain.**"):
            assert " ".join(cell.source.split()[1:6]).replace("*", "") in " ".join(text.get_text().split())
    for gone in ("Model answer", "SOLUTION", "HIDDEN", "$", "raise", "://"):
        assert gone not in str(text.body)


@pytest.mark.slow
def test_a_handout_takes_one_sheet(tmp_path, capsys):
    """Lab 3 has the fullest; the command says it of any that takes more."""
    module = book_script("handouts")
    try:
        module.chromium()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    module.LABS = tmp_path
    shutil.copytree(COURSE / "source" / "lab3", tmp_path / "lab3")
    module.FOLDER = module.BUILD / f"handouts-{tmp_path.name}"  # served from the folder of the book
    try:
        assert module.main() == 0, capsys.readouterr().err
        assert (module.FOLDER / "lab3.pdf").is_file()
    finally:
        shutil.rmtree(module.FOLDER)


# ---------------------------------------------------------------------------------------------------
# Grading


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course folder, with what nbgrader needs to grade; one for all tests, since its database takes longest."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copy(COURSE / "nbgrader_config.py", folder)
    shutil.copytree(COURSE / "source", folder / "source")
    config = PyFileConfigLoader("nbgrader_config.py", path=str(folder)).load_config()
    assert config.CourseDirectory.root == str(folder)
    with pytest.MonkeyPatch.context() as patch:
        # nbgrader starts alembic by name, as `make autograde` lets it.
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield folder, NbGraderAPI(config=config)


def run(notebook):
    """Run the code cells of a notebook one after another in this process; return (cell, exception or None) for each, and the names made."""
    space, outcome = {}, []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            try:
                exec(compile(cell.source, marks(cell)["grade_id"], "exec"), space)  # noqa: S102
            except Exception as error:  # noqa: BLE001
                outcome.append((cell, error))
            else:
                outcome.append((cell, None))
    return outcome, space


@functools.cache
def solved(path):
    return run(read(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_the_solution_passes_every_check(path):
    outcome, _ = solved(path)
    assert any(marks(cell)["grade"] for cell, _ in outcome)
    assert [(marks(cell)["grade_id"], error) for cell, error in outcome if error] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_the_students_version_has_no_solutions(course, path):
    """Neither solutions nor hidden tests; and the book shows the same."""
    folder, api = course
    lab = path.parent.name
    made = api.generate_assignment(lab)
    assert made["success"], made["log"]
    released = folder / "release" / lab / path.name
    text = released.read_text()
    for word in ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS", "Model answer"):
        assert word in path.read_text()
        assert word not in text
    page = book_script("build").student_version(read(path))
    assert [cell.source.strip() for cell in page.cells] == [cell.source.strip() for cell in read(released).cells]


@pytest.mark.slow
def test_nbgrader_gives_points_for_solutions_and_none_for_gaps(course):
    """A kernel takes most of its time to import: one notebook goes through nbgrader, solved down to a cell; all are run in this process."""
    folder, api = course
    lab, path = next((name, path) for name, path in zip(NAMES, SOURCES, strict=True) if name == "lab1")
    api.generate_assignment(lab)
    half, gaps = read(path), read(folder / "release" / lab / path.name).cells
    last = next(k for k, cell in enumerate(half.cells) if marks(cell).get("grade_id") == "check_slope")
    half.cells[last + 1 :] = gaps[last + 1 :]
    half.cells[-2].source = "Soft."  # an answer in words
    half.cells[last].source = "pass"  # a check that was tampered with
    half.cells[last - 1].source = half.cells[last - 1].source.replace("    return", "    np.ones(1) / np.zeros(1)\n    return")  # warns
    target = folder / "submitted" / "ada" / lab / path.name
    target.parent.mkdir(parents=True)
    nbformat.write(half, target)
    graded = api.autograde(lab, "ada")
    assert graded["success"], graded["log"]
    with Gradebook(f"sqlite:///{folder}/gradebook.db") as book:
        notebook = book.find_submission(lab, "ada").notebooks[0]
        points = {grade.name: (grade.auto_score, grade.max_score) for grade in notebook.grades if grade.cell.cell_type == "code"}
        solved = {marks(cell).get("grade_id") for cell in half.cells[: last + 1]} & set(points)
        assert solved == {"check_force", "check_slope"}
        assert points == {name: (best if name in solved else 0, best) for name, (_, best) in points.items()}
        assert {grade.name for grade in notebook.grades if grade.needs_manual_grade} == {"predict", "explain"}
    cells = {marks(cell).get("grade_id"): cell for cell in read(folder / "autograded" / "ada" / lab / path.name).cells}
    assert "labs.check" in cells["check_slope"].source
    assert "np.zeros(1)" in cells["slope"].source
    assert not [output for name in solved for output in cells[name].outputs if output.output_type == "error"]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_the_empty_version_stops_at_its_gaps_only(path):
    outcome, _ = run(book_script("build").student_version(read(path)))
    for cell, error in outcome:
        if marks(cell)["grade"]:
            assert isinstance(error, labs.NotYet | NotImplementedError | NameError), (marks(cell)["grade_id"], error)
        elif marks(cell)["solution"]:
            assert error is None or isinstance(error, NotImplementedError), (marks(cell)["grade_id"], error)
        else:
            assert error is None, (marks(cell)["grade_id"], error)


def test_lab_1_tells_soft_from_shrunken_and_from_noisy():
    """Errors that do not depend on DFT leave the slope at one (part 1 once said: below one); shrinking lowers it and leaves s' at one."""
    path = COURSE / "source" / "lab1" / "softening_scale.ipynb"
    _, space = solved(path)
    pairs = space["both"]
    assert set(pairs) == {"element", "noisy", "shrunken", "compounds"}
    r2 = 1 / (1 + 0.6**2)
    assert pairs["noisy"] == pytest.approx((1, r2), abs=0.03)
    assert pairs["shrunken"] == pytest.approx((r2, 1), abs=0.03)
    s, reverse = pairs["element"]
    assert s < 0.9 < 1.1 < reverse
    answers = "\n".join(cell.source for cell in read(path).cells if cell.source.startswith("*Model answer.*"))
    assert "The second model has a slope of *one*" in answers
    assert "The noisy model has s = 1 and s' = R²" in answers


def test_nothing_gives_predictions_away():
    """Alternative texts describe a figure without what it shows to those who have not drawn it yet; nor do titles and last words."""
    for path in SOURCES:
        page = book_script("build").student_version(read(path))
        code = "\n".join(cell.source for cell in page.cells if cell.cell_type == "code")
        said = [ast.unparse(node.value) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.keyword) and node.arg == "alt"]
        said += [page.cells[0].source.replace("the line below it", ""), page.cells[-1].source]
        assert len(said) > 2
        for text in said:
            assert not re.search(r"steep|below|above|√|too (small|large|low|high)|[01]\.\d", text), (path.name, text)


DATA = {"lab1": ("data", "clouds"), "lab2": ("reference",), "lab3": ("reference",), "lab4": ("data",)}


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_every_variant_has_its_data(path, monkeypatch):
    cells = {marks(cell)["grade_id"]: cell.source for cell in read(path).cells if marks(cell)}
    offered = []
    monkeypatch.setattr(labs, "variant", lambda name, choices: offered.append(choices) or choices[0])
    exec(cells["setup"], {"NAME": None})  # noqa: S102
    (choices,) = offered
    assert len(set(choices)) == len(choices) >= 5
    for choice in choices if len(choices) < 10 else (choices[0], choices[-1]):
        monkeypatch.setattr(labs, "variant", lambda name, choices, choice=choice: choice)
        space = {"NAME": None}
        for name in ("setup", *DATA[path.parent.name]):
            exec(cells[name], space)  # noqa: S102
        assert np.all(np.isfinite(space["dft"]))


def test_a_name_chooses_a_variant(capsys):
    """The same one everywhere and always, so that it is what a grader sees; the choices are spread."""
    choices = ["Cu", "Li", "Mo", "Ni", "Si"]
    assert labs.variant("Ada Lovelace", choices) == labs.variant(" ada  lovelace ", choices)
    assert labs.variant("Ada", choices) == "Mo"
    assert labs.variant(None, choices) == labs.variant("  ", choices) == "Cu"
    assert "no name yet" in capsys.readouterr().out
    drawn = [labs.variant(f"student {k}", choices) for k in range(500)]
    assert all(70 < drawn.count(choice) < 130 for choice in choices)
    assert labs.variant(1234, choices) == labs.variant("1234", choices)


def test_a_wrong_answer_in_a_students_notebook_gets_its_hint():
    """As a student would: fill the first gaps, one of them wrongly, and run cell after cell."""
    page = book_script("build").student_version(read(COURSE / "source" / "lab3" / "phonons.ipynb"))
    cells = {marks(cell)["grade_id"]: cell.source for cell in page.cells if marks(cell)}
    space = {"np": np}
    gap = "# YOUR CODE HERE\n    raise NotImplementedError()"
    exec(cells["scaled"].replace(gap, "return c * omega", 1).split("stiff = None")[0], space)  # noqa: S102
    with pytest.raises(labs.NotYet, match="a spring c times as stiff"):
        labs.check("scaled frequency", space["scaled_frequency"], 10.0, 1.5)
    exec(cells["frequency"], space)  # noqa: S102
    with pytest.raises(labs.NotYet, match="still a gap"):
        labs.check("reduced mass", space["reduced_mass"], 28.0, 12.0)


# ---------------------------------------------------------------------------------------------------
# Hints


def cloud(seed=0, n=200):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x, 0.6 * x + 0.4 * rng.normal(size=n)


def carbide():
    """A crystal of two unlike atoms that ASE's own potential can compute."""
    return bulk("CuAu", "rocksalt", a=5.2)


EXAMPLES = {
    "force": (-41.2, -41.5, 0.05),
    "slope": cloud(),
    "inverse slope": cloud(),
    "MAE": cloud(),
    "cMAE": cloud(),
    "energy per atom": (-14.7, 4),
    "area": (np.array([[2.9, 0, 0], [1.45, 2.5, 0], [0, 0, 24.0]]),),
    "surface energy": (-21.3, 6, -3.66, 7.1),
    "J/m²": (0.05,),
    "surface ratio": (0.05, 1.3),
    "share below": (np.arange(10.0), np.arange(10.0) + np.array([1.0] * 3 + [-1.0] * 7)),
    "layers": (np.array([-7.0, -10.6, -14.3]), [2, 3, 4], -3.66, 7.1),
    "spring constant": (-0.31, 0.35, 0.03),
    "reduced mass": (28.1, 12.0),
    "frequency": (7.1, 8.4),
    "scaled frequency": (10.0, 1.7),
    "factor from frequency": (14.0, 23.0),
    "frequency ratio": (14.0, 23.0),
    "factor": cloud(),
    "least-squares factor": cloud(),
    "error left": (1.5, *cloud()),
    "every label": ([cloud(seed, 12) for seed in range(4)],),
    "mended forces": (1.25, np.arange(6.0).reshape(2, 3)),
    "forgotten": (np.arange(-4.0, 5.0), 1.2 * np.arange(-4.0, 5.0) + 0.3),
}
answer_of, hint_of = map(operator.itemgetter, (0, 1))
SLIPS = [(key, slip) for key in EXAMPLES for slip in labs.QUESTIONS[key].slips]


def emt():
    return ASEPotential("ase:emt", EMT())


def test_every_question_has_an_example():
    # The other two need a potential and are tried below.
    assert set(labs.QUESTIONS) - set(EXAMPLES) == {"displaced forces", "frequency at Γ"}


@pytest.mark.parametrize("key", EXAMPLES)
def test_the_right_answer_is_accepted_as_a_number_and_as_a_function(key, capsys):
    question, data = labs.QUESTIONS[key], EXAMPLES[key]
    labs.check(key, question.reference(*data), *data)
    labs.check(key, question.reference, *data)
    assert capsys.readouterr().out.count(f"✓ {question.name}: right.") == 2


# Shares are asked for as numbers; they need not change with the data.
@pytest.mark.parametrize("key", [key for key in EXAMPLES if key != "share below"])
def test_a_function_must_compute_from_its_arguments(key):
    """A typed number, or a formula of the variables around it, is right for the data of the visible check only."""
    question, data = labs.QUESTIONS[key], EXAMPLES[key]
    with pytest.raises(labs.NotYet, match="right for these data, but not for others"):
        labs.check(key, lambda *_: question.reference(*data), *data)


@pytest.mark.parametrize(("key", "slip"), SLIPS, ids=[f"{key}-{number}" for number, (key, _) in enumerate(SLIPS)])
def test_every_slip_gets_its_hint(key, slip):
    with pytest.raises(labs.NotYet) as caught:
        labs.check(key, answer_of(slip), *EXAMPLES[key])
    assert hint_of(slip) in str(caught.value)


@pytest.mark.parametrize("key", EXAMPLES)
def test_no_message_contains_the_answer(key):
    question, data = labs.QUESTIONS[key], EXAMPLES[key]
    expected = np.asarray(question.reference(*data), dtype=float)
    messages = [hint_of(slip) for slip in question.slips]
    for wrong in (expected + 0.37 * np.abs(expected).max(), -0.71 * expected, 1000 * expected, -expected, 2 * expected):
        with pytest.raises(labs.NotYet) as caught:
            labs.check(key, wrong, *data)
        messages.append(str(caught.value))
    for number in expected.ravel()[:3]:
        assert not any(f"{abs(number):.3g}" in message for message in messages if abs(number) not in (0, 1, 2))


@pytest.mark.parametrize("slip", labs.QUESTIONS["displaced forces"].slips, ids=range(len(labs.QUESTIONS["displaced forces"].slips)))
def test_slips_of_displacements_get_their_hints(slip):
    data = (carbide(), emt(), 0.03)
    labs.check("displaced forces", labs.QUESTIONS["displaced forces"].reference, *data)
    with pytest.raises(labs.NotYet) as caught:
        labs.check("displaced forces", answer_of(slip), *data)
    assert hint_of(slip) in str(caught.value)


@pytest.mark.slow
def test_frequencies_at_gamma():
    """By hand and by phonopy the optical mode is the same; the slips get their hints."""
    crystal, potential, step = bulk("CuAu", "cesiumchloride", a=3.05), emt(), 0.01
    data = (crystal, potential, 2, step)
    k = labs.QUESTIONS["spring constant"].reference(*labs.QUESTIONS["displaced forces"].reference(crystal, potential, step), step)
    mass = labs.QUESTIONS["reduced mass"].reference(*crystal.get_masses())
    labs.check("frequency at Γ", labs.QUESTIONS["frequency"].reference(k, mass), *data)
    for slip in labs.QUESTIONS["frequency at Γ"].slips:
        with pytest.raises(labs.NotYet) as caught:
            labs.check("frequency at Γ", answer_of(slip)(*data), *data)
        assert hint_of(slip) in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "no answer"),
        (..., "no answer"),
        ("three", "should be a number, but it is a str"),
        ([1.0, 2.0], "it has shape"),
        (np.nan, "not a number"),
        (-3.0, "the sign is not"),
        (3000.0, "meV"),
        (0.003, "thousand times too small"),
        (300.0, "per cent"),
        (6.0, "factor of 2"),
        (1.5, "factor of 2"),
        (-7.7, "nor is the size"),
        (7.7, "too large"),
        (0.1, "too small"),
        (4.5, "mine"),
    ],
)
def test_what_can_be_said_of_any_number(answer, words):
    with pytest.raises(labs.NotYet, match=words):
        labs.check_number("number", answer, 3.0, hints=[(4.5, "mine")])


def test_a_hint_that_cannot_be_told_from_the_right_answer_is_not_given(capsys):
    labs.check_number("number", 3.0, 3.0, hints=[(3.0, "never")])
    assert "right" in capsys.readouterr().out
    with pytest.raises(labs.NotYet, match="2 of 3 numbers"):
        labs.check_number("numbers", [1.0, 5.0, 6.0], [1.0, 2.0, 3.0])


def test_what_goes_wrong_in_a_function_is_told():
    def broken(x, y):
        return x / "y"

    def gap(x, y):
        raise NotImplementedError

    def selfish(x, y):
        x[:] = 0
        return 1.0

    x, y = cloud()
    with pytest.raises(labs.NotYet, match="stopped with TypeError"):
        labs.check("slope", broken, x, y)
    with pytest.raises(labs.NotYet, match="still a gap"):
        labs.check("slope", gap, x, y)
    with pytest.raises(labs.NotYet):
        labs.check("slope", selfish, x, y)
    assert x.any(), "a student's function got the data themselves, not a copy"


def test_the_message_replaces_the_traceback():
    assert labs.NotYet("look").__class__._render_traceback_(labs.NotYet("look")) == ["Not yet. look"]
    with pytest.raises(labs.NotYet, match="slab and area"):
        labs.need(slab=None, area=..., other=0.0)
    labs.need(answer=0.0)


def clustered():
    rng = np.random.default_rng(0)
    group = np.repeat([f"material {k}" for k in range(12)], 30)
    x = rng.normal(size=360)
    return x, x * np.repeat(np.linspace(0.4, 1.0, 12), 30) + 0.2 * rng.normal(size=360), group


def resampled(x, y, group, quantiles, n=3000):
    rng = np.random.default_rng(7)
    members = [np.flatnonzero(group == name) for name in np.unique(group)]
    slopes = []
    for _ in range(n):
        chosen = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        slopes.append((x[chosen] @ y[chosen]) / (x[chosen] @ x[chosen]))
    return np.percentile(slopes, quantiles)


def test_intervals(capsys):
    x, y, group = clustered()
    labs.check_interval(lambda x, y, group: resampled(x, y, group, (2.5, 97.5)), x, y, group)
    assert "right" in capsys.readouterr().out
    right = resampled(x, y, group, (2.5, 97.5))
    with pytest.raises(labs.NotYet, match="not for others"):
        labs.check_interval(lambda x, y, group: right, x, y, group)
    wrong = {
        "single force components": resampled(x, y, np.arange(len(x)), (2.5, 97.5)),
        "two thirds": resampled(x, y, group, (16, 84)),
        "lower end comes first": right[::-1],
        "other slope": resampled(y, x, group, (2.5, 97.5)),
        "too narrow": right[0] + np.ptp(right) * np.array([0.1, 0.35]),
        "too wide": right + 0.8 * np.ptp(right) * np.array([-1, 1]),
        "wrong place": right + 3 * np.ptp(right),
        "it has shape": 0.8,
    }
    for words, answer in wrong.items():
        with pytest.raises(labs.NotYet, match=words):
            labs.check_interval(answer, x, y, group)


def test_relaxed_structures():
    potential = emt()
    cell = bulk("Cu", a=3.5, cubic=True)
    strained = Relaxed(cell, 0.0, np.zeros((4, 3)), 1, True)
    rattled = cell.copy()
    rattled.rattle(0.1, seed=0)
    labs.check_relaxed("bulk", strained, potential, 0.02)
    cases = {
        "cell has to relax": (strained, {"smax": 6e-4}),
        "largest force": (Relaxed(rattled, 0.0, np.zeros((4, 3)), 0, True), {}),
        "returns a list": ([strained], {}),
        "it is a float": (3.5, {}),
        "the cell has changed": (strained, {"start": bulk("Cu", a=3.6, cubic=True)}),
    }
    for words, (answer, options) in cases.items():
        with pytest.raises(labs.NotYet, match=words):
            labs.check_relaxed("bulk", answer, potential, 0.02, **options)


def test_slabs():
    crystal = bulk("Al", a=4.04, cubic=True)

    def slab(layers=6, a=4.04, vacuum=6.0, periodic=True):
        return fcc111("Al", size=(1, 1, layers), a=a, vacuum=vacuum, periodic=periodic)

    labs.check_slab(slab(), crystal, 6, 6.0)
    cases = {
        "not periodic": slab(periodic=False),
        "atoms. One atom per layer": slab(layers=5),
        "Whose lattice parameter": slab(a=4.05),
        "empty height": slab(vacuum=3.0),
        "it is a list": [],
    }
    for words, answer in cases.items():
        with pytest.raises(labs.NotYet, match=words):
            labs.check_slab(answer, crystal, 6, 6.0)
    assert isinstance(slab(), ase.Atoms)


def test_forces_come_from_the_committed_table():
    rows = labs.forces("single-element-md", "Si", 300.0)
    assert set(rows["unit"]) == {"eV/Å"}
    pairs = labs.frames(rows)
    assert len(pairs) == rows["case"].nunique()
    assert sum(len(x) for x, _ in pairs) == len(rows)
    with pytest.raises(ValueError, match="no forces of Xx"):
        labs.forces("single-element-md", "Xx")
