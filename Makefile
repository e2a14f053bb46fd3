# `make demo` runs the whole demonstration, `make test` the tests; each sets up what it needs first.
# An environment that is already active (venv, or conda other than base) is used as it is; otherwise .venv is made here.

PYTHON ?= python3
EXTRAS ?= test,browser,judge,tensorboard,openclip,fleet
RUN ?= runs/demo

CONDA_OWN := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX))
ENV := $(or $(VIRTUAL_ENV),$(CONDA_OWN),.venv)
PY := $(ENV)/bin/python
STAMP := $(ENV)/.carblib-installed
# In a container everybody is root, whom JupyterLab refuses unless told.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help install demo test bench lint figures publish lab clean

help:
	@echo "make demo      the whole demonstration on rendered scenes, then where its report is"
	@echo "make test      the tests              (make test ARGS='-k loss' runs some of them)"
	@echo "make lab       JupyterLab on this machine only, at the notebooks; params, runs and figures open in it too"
	@echo "make figures   the figures of a finished run again    (RUN=runs/demo)"
	@echo "make publish   puts a run's notebooks and figures where git keeps them: notebooks/, figures/published"
	@echo "make bench     what every stage costs beside the official formulation (make bench ARGS=--quick: a minute)"
	@echo "make lint      ruff on code, tests and notebooks"
	@echo "make clean     caches and build leftovers; data/, runs/ and .venv stay"

demo: install
	$(PY) -m carblib demo

test: install
	$(PY) -m pytest $(ARGS)

bench: install
	$(PY) -m carblib bench $(ARGS)

figures: install
	$(PY) -m carblib figures $(RUN)

publish: install
	$(PY) -m carblib publish $(RUN)

lab: install
	$(PY) -m jupyterlab --ip=127.0.0.1 $(AS_ROOT) --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

install: $(STAMP)

# pydensecrf is compiled while it is installed and only dense-CRF refinement needs it, so a failure there stops nothing.
$(STAMP): pyproject.toml | $(PY)
	@echo "Installing carblib into $(ENV): some GB and a few minutes, the first time and when pyproject.toml has changed."
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PY) -m ensurepip  # an environment of uv's has none
	$(PY) -m pip install --disable-pip-version-check -e '.[$(EXTRAS)]'
	$(PY) -m pip install --disable-pip-version-check --quiet -e '.[crf]' \
		|| echo "pydensecrf could not be built here (it needs a C++ compiler): dense-CRF refinement is off, all else works."
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "carblib needs Python 3.10 or newer: name one, as in make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --upgrade pip

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
