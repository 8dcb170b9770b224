"""Build the book; execute again only the notebooks whose code, helpers or data have changed.

Jupyter Book caches a notebook by its own code. A chapter also depends on the helpers it imports and on the
tables it reads, so this script keeps a fingerprint of those for every notebook and removes from the cache
what no longer holds. A notebook depends on

* its own code cells (Jupyter Book's own key),
* the modules of ``helpers`` it imports, and what they import in turn,
* ``data/results/<name>`` for each module among them that has such a folder (all results for the scoreboard's reader),
* the small tables in ``data/paper`` and ``data/reference``, the registry, and the lock file.

Where the project is published stands in the environment variable SOFTENING_REPOSITORY, ``https://github.com/OWNER/NAME`` (or
gitlab.com), with SOFTENING_BRANCH (``main``) and SOFTENING_JUPYTERHUB (the address of a hub with nbgitpuller). With it the pages get
buttons for Binder, Colab (GitHub only), the hub, edits and issues; without it they have none.

Notebooks are executed as many at a time as there are cores; those that measure time run alone, last.

The pages of the course labs are the students' versions, written to ``book/labs`` before every build and not executed.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from polish import polish

ROOT = Path(__file__).resolve().parents[1]
HELPERS = ROOT / "src" / "helpers"
BUILD = ROOT / "book" / "_build"
CACHE = BUILD / ".jupyter_cache"
FINGERPRINTS = BUILD / "fingerprints.json"
LABS = ROOT / "notebooks" / "labs" / "source"
ALONE = {"speed"}  # notebooks that measure time
BINDER, COLAB = "https://mybinder.org", "https://colab.research.google.com"


def module_file(name: str) -> Path | None:
    """Return the source file of a ``helpers`` module, or None if there is no such module."""
    base = HELPERS.joinpath(*name.split(".")[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported(source: str) -> set[str]:
    """Return the ``helpers`` modules that a piece of code names, whether imported or given as a string."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            # Benchmarks and model families are imported by name at run time.
            names |= {f"helpers.benchmarks.{node.value}", f"helpers.potentials.{node.value}"}
    return {name for name in names if name.split(".")[0] == "helpers" and module_file(name)}


def closure(names: set[str]) -> set[str]:
    """Return modules with everything they import from ``helpers``, directly or not."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            names |= imported(module_file(name).read_text())
    return found


def code(notebook: Path) -> str:
    """Return the Python code of a notebook without its magics."""
    cells = nbformat.read(notebook, as_version=4).cells
    lines = "\n".join(cell.source for cell in cells if cell.cell_type == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def fingerprint(notebook: Path) -> str:
    """Return a hash of everything outside a notebook that its outputs depend on."""
    modules = closure(imported(code(notebook)))
    files = {module_file(name) for name in modules}
    for name in modules:
        folder = ROOT / "data" / "results" / name.split(".")[-1]
        if folder.is_dir():
            files |= set(folder.iterdir())
    files |= {path for folder in ("paper", "reference") for path in (ROOT / "data" / folder).iterdir()}
    files |= {ROOT / "data" / "registry.csv", ROOT / "requirements.lock"}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def forget_stale(notebooks: list[Path]) -> dict[str, str]:
    """Remove the cached outputs of notebooks whose surroundings changed; return the new fingerprints."""
    now = {str(path.relative_to(ROOT)): fingerprint(path) for path in notebooks}
    before = json.loads(FINGERPRINTS.read_text()) if FINGERPRINTS.is_file() else {}
    stale = {name for name, mark in now.items() if before.get(name) != mark}
    if stale and CACHE.is_dir():
        cache = get_cache(str(CACHE))
        for record in cache.list_cache_records():
            if any(Path(record.uri) == ROOT / name for name in stale):
                cache.remove_cache(record.pk)
    for name in stale:
        # Sphinx reads again only what is newer than its last reading.
        os.utime(ROOT / name)
    return now


def execute(notebooks: list[Path], timeout: int) -> None:
    """Execute those notebooks whose outputs the cache lacks, as many at a time as there are cores; ``timeout`` (s) is for a cell.

    The build finds the outputs in the cache. What failed, it executes once more, and reports.
    """
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    cache = get_cache(str(CACHE))
    lacking = []
    for path in notebooks:
        try:
            cache.match_cache_notebook(nbformat.read(path, as_version=4))
        except KeyError:
            lacking.append(cache.add_nb_to_project(str(path)).uri)
    if lacking:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        load_executor("local-parallel", cache).run_and_cache(filter_uris=lacking, timeout=timeout)


def lab_pages() -> dict[str, Path]:
    """Return the pages of the labs, as the table of contents names them, with the notebook each is made from."""
    return {f"book/labs/{path.stem}": path for path in sorted(LABS.glob("*/*.ipynb"))}


def student_version(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a lab with gaps in place of solutions and without hidden tests, as ``nbgrader generate_assignment`` makes it."""
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader", {})
        source = re.sub(r"^ *### BEGIN HIDDEN TESTS\n.*?^ *### END HIDDEN TESTS\n?", "", cell.source, flags=re.DOTALL | re.MULTILINE)
        if marks.get("solution") and cell.cell_type == "markdown":
            source = "YOUR ANSWER HERE"
        elif marks.get("solution"):
            region = r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$"
            gap = r"\1# YOUR CODE HERE\n\1raise NotImplementedError()"
            source = re.sub(region, gap, source, flags=re.DOTALL | re.MULTILINE)
        cell.source = source.rstrip("\n")
    return notebook


def write_labs() -> None:
    """Write the pages of the labs; a page that has not changed is left alone, so that Sphinx does not read it again."""
    for page, path in lab_pages().items():
        text = nbformat.writes(student_version(nbformat.read(path, as_version=4)))
        target = ROOT / f"{page}.ipynb"
        target.parent.mkdir(exist_ok=True)
        if not target.is_file() or target.read_text() != text:
            target.write_text(text)


def published(configuration: dict, repository: str, branch: str = "main", hub: str = "") -> dict:
    """Return the configuration of the book with its buttons for a repository.

    Parameters
    ----------
    configuration : dict
        Content of ``_config.yml``.
    repository : str
        ``https://github.com/OWNER/NAME``, or of gitlab.com, which Colab cannot open.
    branch : str
    hub : str
        Address of a JupyterHub with nbgitpuller, or nothing.

    Raises
    ------
    ValueError
        If an address is not of that form.
    """
    found = re.fullmatch(r"(https://(github|gitlab)\.com/[\w.-]+/[\w.-]+?)(\.git)?/?", repository)
    if not found:
        raise ValueError(f"SOFTENING_REPOSITORY={repository!r}: give https://github.com/OWNER/NAME or https://gitlab.com/OWNER/NAME")
    if hub and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", hub):
        raise ValueError(f"SOFTENING_JUPYTERHUB={hub!r}: give the address of the hub, such as https://hub.example.org")
    launch = {"notebook_interface": "jupyterlab", "binderhub_url": BINDER}
    if found[2] == "github":
        launch["colab_url"] = COLAB
    if hub:
        launch["jupyterhub_url"] = hub
    options = {
        "repository_url": found[1],
        "repository_branch": branch,
        "path_to_docs": "",
        "use_repository_button": True,
        "use_edit_page_button": True,
        "use_issues_button": True,
        "launch_buttons": launch,
    }
    # Jupyter Book would take these from keys of its own, and then forget them for the options of the theme that stand in the file.
    changed = copy.deepcopy(configuration)
    changed["sphinx"]["config"]["html_theme_options"].update(options)
    return changed


def configuration_file() -> Path:
    """Return the configuration to build with: ``_config.yml``, or a copy with the buttons of the repository that is named."""
    repository = os.environ.get("SOFTENING_REPOSITORY", "")
    plain = ROOT / "_config.yml"
    if not repository:
        return plain
    branch, hub = os.environ.get("SOFTENING_BRANCH") or "main", os.environ.get("SOFTENING_JUPYTERHUB", "")
    content = published(yaml.safe_load(plain.read_text()), repository, branch, hub)
    BUILD.mkdir(exist_ok=True)
    path = BUILD / "_config.yml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    return path


def main() -> int:
    """Build the HTML book with warnings as errors."""
    try:
        configuration = configuration_file()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    write_labs()
    notebooks = sorted(path for path in (ROOT / "notebooks").glob("*.ipynb"))
    now = forget_stale(notebooks)
    timeout = yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]["timeout"]
    execute([path for path in notebooks if path.stem not in ALONE], timeout)
    tool = str(Path(sys.executable).parent / "jupyter-book")
    command = [tool, "build", str(ROOT), "--config", str(configuration), "--path-output", str(ROOT / "book"), "-W", "-n", "--keep-going"]
    environment = {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    reports = BUILD / "html" / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    status = subprocess.run(command, env=environment, check=False).returncode  # noqa: S603
    if status:
        for log in sorted(reports.rglob("*.log")):
            print(f"\n--- {log.name}\n{log.read_text()}", file=sys.stderr)
        return status
    polish(BUILD / "html")
    FINGERPRINTS.write_text(json.dumps(now, indent=1) + "\n")
    # Nothing in the published site should need the sources that Sphinx leaves beside it.
    shutil.rmtree(BUILD / "html" / ".doctrees", ignore_errors=True)
    print(f"\nThe book is at {(BUILD / 'html' / 'index.html').relative_to(ROOT)}; open it in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
