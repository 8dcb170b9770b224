# Two commands: `make book` and `make test`. Everything else is listed by `make help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 8000
LABS   ?= lab1 lab2 lab3 lab4
# Some tools start others by name (nbgrader starts alembic): they must find those of this environment.
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help book test test-fast coverage lint format serve browser lab labs autograde slides handouts pdf results bench hero new-chapter lock check release clean

help:  ## List the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# The lock pins every package, extras included; installing under it as a constraint brings only what is needed.
$(VENV)/.core: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d; set PYTHON=python3.11" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .[dev]
	@touch $@

$(VENV)/.lab: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .[lab]
	@touch $@

$(VENV)/.browser: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .[browser]
	@touch $@

$(VENV)/.teach: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .[teach]
	@touch $@

book: $(VENV)/.core  ## Build the book: book/_build/html/index.html
	$(BIN)/python book/build.py

check: $(VENV)/.core  ## Check the built book: pages, figures, links, nothing fetched from elsewhere
	$(BIN)/python book/check.py

test: $(VENV)/.dev  ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/.dev  ## Run the tests that take no longer than a second: something of every module, in two minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

coverage: $(VENV)/.dev  ## Run the tests and list the lines of src that none of them reaches
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov=helpers --cov-report=term-missing:skip-covered

lint: $(VENV)/.dev  ## Check style and types, and that notebooks are stored without outputs
	$(BIN)/ruff check src tests notebooks book
	$(BIN)/ruff format --check src tests book
	$(BIN)/ty check --python $(VENV)
	$(BIN)/nbstripout --verify $$(git ls-files '*.ipynb')
	$(BIN)/codespell $$(git ls-files '*.md' '*.py' '*.ipynb' '*.toml' '*.yml' Makefile)
	$(BIN)/python book/check.py --sources

format: $(VENV)/.dev  ## Format the code and strip the notebooks
	$(BIN)/ruff check --fix src tests notebooks book
	$(BIN)/ruff format src tests book
	$(BIN)/nbstripout $$(git ls-files '*.ipynb')

serve: book  ## Build and serve the book at http://localhost:8000 (PORT=8001 for another)
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory book/_build/html

browser: $(VENV)/.browser  ## Open the built pages in Chromium, offline: errors, contrast, keyboard, weight (PAGES="notebooks/surfaces ..." for some)
	$(BIN)/python book/browser.py $(PAGES)

pdf: book $(VENV)/.dev  ## Print the book: book/_build/soft-potentials.pdf (needs Chromium or Chrome)
	$(BIN)/python book/pdf.py

slides: book  ## Make slides of every chapter from the built pages: book/_build/html/slides/index.html
	$(BIN)/python book/slides.py

handouts: $(VENV)/.dev  ## Print a handout of one sheet for each lab: book/_build/handouts/lab1.pdf (needs Chromium or Chrome)
	$(BIN)/python book/handouts.py

lab: $(VENV)/.lab  ## Open the chapters in JupyterLab
	$(BIN)/jupyter lab --ip 127.0.0.1 notebooks

labs: $(VENV)/.teach  ## Make the students' version of the course labs: notebooks/labs/release
	cd notebooks/labs && for lab in $(LABS); do $(abspath $(BIN))/nbgrader generate_assignment $$lab --create --force || exit 1; done

autograde: $(VENV)/.teach  ## Grade what lies in notebooks/labs/submitted, and write the grades to grades.csv there
	cd notebooks/labs && for lab in $(LABS); do if ls -d submitted/*/$$lab > /dev/null 2>&1; then $(abspath $(BIN))/nbgrader autograde $$lab --create --force || exit 1; fi; done && $(abspath $(BIN))/nbgrader export

# Potentials and tools whose packages clash with ours. Each has a file of what it pins otherwise; all else comes from the lock.
env-%: environments/%.txt requirements.lock pyproject.toml  ## Make an environment of its own, .venv-NAME: env-sevennet (SevenNet-0), env-bench (matcalc)
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	sed -nE 's/^([A-Za-z0-9_.-]+)(\[[a-z]+\])?==.*/^\1==/p' environments/$*.txt > .venv-$*/own.txt
	grep -vif .venv-$*/own.txt requirements.lock > .venv-$*/constraints.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-$*/constraints.txt -r environments/$*.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .

bench: env-bench  ## Measure the speed beside other packages; other programs on the machine disturb (half an hour)
	.venv-bench/bin/softening bench

results: $(VENV)/.core  ## Recompute every result table (resumes; needs the data: softening fetch; MODELS="KEY ..." for some potentials)
	$(BIN)/softening run-all $(addprefix --model ,$(MODELS))
	$(BIN)/python -c 'from helpers import results; from helpers.benchmarks import off_equilibrium as off; results.condense("off_equilibrium", off.KEYS)'

new-chapter: $(VENV)/.core  ## Copy the template of a chapter: make new-chapter NAME=lattice_constants TITLE="Lattice constants"
	@$(BIN)/python book/new_chapter.py "$(NAME)" "$(TITLE)"

hero: $(VENV)/.core  ## Draw the picture of the README and the introduction anew
	$(BIN)/python -c 'from helpers import scoreboard; scoreboard.hero().savefig("book/_static/hero.png", dpi=150)'

lock:  ## Resolve the newest versions anew and rewrite requirements.lock (a test says which pins of environment.yml must follow)
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet -e .[dev,gpu,lab,teach]
	$(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed "s/+cpu//" > requirements.lock
	rm -rf $(VENV)-lock

release: lint test book check browser  ## Check everything that a release needs, and say how to tag it
	$(BIN)/python book/release.py

clean:  ## Remove the built book and its cache
	rm -rf book/_build
