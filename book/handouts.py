"""A handout of one sheet for each lab: question, predictions, what to write and for how many points, formulas, what to hand in.

All of it comes from the lab's notebook. Chromium prints it; without Chromium the page is there for any other browser to print.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pypdf import PdfReader

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build import BUILD, LABS, ROOT, student_version
from pdf import print_page
from served import chromium, serve

FOLDER = BUILD / "handouts"
FORMULA = r"=|\\sum|\\times"  # what makes a sentence with mathematics one
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
@page {{ size: A4; margin: 14mm 15mm; }}
body {{ display: flex; flex-direction: column; min-height: 255mm; max-width: 180mm; margin: 0 auto;
  font: 9.8pt/1.32 "Liberation Sans", Helvetica, Arial, sans-serif; }}
h1 {{ margin: 0 0 1mm; font-size: 17pt; }}
h2 {{ margin: 4mm 0 1mm; font-size: 11.5pt; border-bottom: 1px solid #888; }}
p, ul, ol {{ margin: 0 0 1.2mm; }}
ul, ol {{ padding-left: 5mm; }}
mjx-container[display="true"] {{ margin: 1mm 0 !important; }}
code {{ font-size: 9pt; }}
table {{ width: 100%; border-collapse: collapse; }}
th, td {{ padding: 0.6mm 2mm 0.6mm 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ccc; }}
td:first-child {{ white-space: nowrap; }}
.name {{ float: right; font-size: 10pt; font-weight: normal; }}
.lines {{ flex: 1; min-height: 15.5mm; background: repeating-linear-gradient(#fff, #fff 7.8mm, #bbb 8mm); print-color-adjust: exact; }}
</style>
<script>window.MathJax = {{options: {{enableMenu: false}}}};</script>
<script defer src="../../_static/vendor/mathjax/tex-chtml.js"></script>
</head>
<body>
{body}
</body>
</html>
"""


def _math(content: str, options: dict) -> str:
    return rf"\[{content}\]" if options.get("display_mode") else rf"\({content}\)"


MARKDOWN = MarkdownIt().use(dollarmath_plugin, renderer=_math)


def asked(source: str) -> str:
    """Return what a gap asks for: functions with the first line of their docstrings, and names that have no value yet."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found.append(f"`{node.name}({ast.unparse(node.args)})`: {(ast.get_docstring(node) or '').splitlines()[0].rstrip('.')}")
        elif isinstance(node, ast.Assign) and ast.unparse(node.value) in ("None", "{}"):
            found.append(", ".join(f"`{ast.unparse(target)}`" for target in node.targets))
    return "; ".join(found).replace("|", r"\|")


def sheet(notebook: nbformat.NotebookNode, name: str) -> str:
    """Return the handout of a lab as HTML; ``name`` is that of its file."""
    cells = student_version(notebook).cells
    intro, words, formulas, steps, points = cells[0].source, [], [], [], {"code": 0, "markdown": 0}
    for before, cell in itertools.pairwise(cells):
        mark = cell.metadata.get("nbgrader", {})
        if part := re.search(r"^## (\d+ .*?) \((\d+) min\)$", cell.source, re.MULTILINE):
            steps.append([part[1], part[2], [], 0])
        if mark.get("grade"):
            points[cell.cell_type] += mark["points"]
            steps[-1][3] += mark["points"]
            if cell.cell_type == "markdown":
                words.append(re.sub(r"^## .*\n+|^\*\*Explain\.\*\* ", "", before.source))
        elif mark.get("solution") and steps:
            steps[-1][2].append(asked(cell.source))
        elif cell.cell_type == "markdown":
            formulas += re.findall(r"\$\$.*?\$\$(?:\s+with [^.]*\.)?", cell.source, re.DOTALL)
            sentences = re.split(r"(?<=[.?])\s+|\n", re.sub(r"\$\$.*?\$\$", "", cell.source, flags=re.DOTALL))
            formulas += [sentence for sentence in sentences if any(re.search(FORMULA, math) for math in re.findall(r"\$[^$]+\$", sentence))]
    title, question = re.search(r"^# (.*)$", intro, re.MULTILINE)[1], re.search(r"^\*(.+)\*$", intro, re.MULTILINE)[1]
    facts = "\n".join(line for line in intro.splitlines() if line.startswith(("- **Time", "- **You need", "- **You learn")))
    table = "\n".join(f"| {part} | {minutes} | {'; '.join(filter(None, gaps))} | {n or ''} |" for part, minutes, gaps, n in steps)
    body = [
        f'<h1>{title} <span class="name">Name: ______________________</span></h1>',
        MARKDOWN.render(f"*{question}*\n\n{facts}\n"),
        "<h2>Predict, before you compute</h2>",
        MARKDOWN.render(words[0]),
        '<div class="lines"></div>',
        "<h2>Steps</h2>",
        MARKDOWN.enable("table").render(f"| Part | min | To write | Points |\n|---|---|---|---|\n{table}\n"),
        *(["<h2>Formulas</h2>", MARKDOWN.render("\n\n".join(formulas))] if formulas else []),
        "<h2>Explain</h2>",
        *(MARKDOWN.render(text) for text in words[1:]),
        "<h2>Hand in</h2>",
        MARKDOWN.render(
            f"`{name}`, run from top to bottom, with your name in its first cell. {points['code']} points for code, {points['markdown']} "
            "for words: a prediction counts for its reason, right or wrong; an explanation for the numbers of your own that it quotes."
        ),
    ]
    return PAGE.format(title=title, body="\n".join(body))


def main() -> int:
    """Write the handouts of all labs; return 1, with a line that says why, if they cannot be printed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    sources = {path.parent.name: path for path in sorted(LABS.glob("*/*.ipynb"))}
    for lab, path in sources.items():
        (FOLDER / f"{lab}.html").write_text(sheet(nbformat.read(path, as_version=4), path.name), encoding="utf-8")
    try:
        program = chromium()
        with serve(ROOT / "book") as address:
            for lab in sources:
                target = FOLDER / f"{lab}.pdf"
                print_page(program, f"{address}/{FOLDER.relative_to(ROOT / 'book')}/{lab}.html", target)
                if (n := len(PdfReader(target).pages)) > 1:
                    print(f"{target}: {n} sheets instead of one; shorten the text of the lab", file=sys.stderr)
                    return 1
    except (FileNotFoundError, RuntimeError) as error:
        print(f"{error}\nThe pages are in {FOLDER}: print them from a browser.", file=sys.stderr)
        return 1
    print(f"handouts of {len(sources)} labs: {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
