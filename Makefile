# Everything a developer types. Each target does its own set-up.
#
# Paths are relative and programs are started as `.venv/bin/python -m ...`, so that a checkout may stand in a folder
# whose name holds a space: a target of make cannot, and neither can the first line of a script.

PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
STAMP := .venv/.set-up
PACKAGES := learning_at_home node_agent backend dashboard
# More arguments for pytest: make test PYTEST_ARGS='-m "not slow" tests/backend'
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test lint format api screenshots rivals wheel clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 22

setup: $(STAMP) ## make .venv and install everything into it (does nothing when nothing changed)

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Learning@home needs Python 3.11 or newer: make PYTHON=python3.11 setup")'
	test -x "$(VENV_PYTHON)" || "$(PYTHON)" -m venv .venv
	"$(VENV_PYTHON)" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch "$(STAMP)"

browser: setup ## find a Chromium for the browser tests, or install one
	@"$(VENV_PYTHON)" -m tests.browser.chromium

demo: setup ## train a model on a live swarm of four nodes, and watch it in a browser
	@exec "$(VENV_PYTHON)" -m learning_at_home.cli demo

test: browser ## run every test
	"$(VENV_PYTHON)" -m pytest $(PYTEST_ARGS)

lint: setup ## ruff, mypy --strict and the import contracts
	"$(VENV_PYTHON)" -m ruff check .
	"$(VENV_PYTHON)" -m ruff format --check .
	"$(VENV_PYTHON)" -m mypy
	"$(VENV_PYTHON)" -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

format: setup ## let ruff sort imports and lay out the code
	"$(VENV_PYTHON)" -m ruff check --fix-only --quiet .
	"$(VENV_PYTHON)" -m ruff format .

api: setup ## write docs/api.md from the docstrings
	"$(VENV_PYTHON)" -m docs.make_api docs/api.md

screenshots: browser ## take the README's pictures from a live demo
	"$(VENV_PYTHON)" -m tests.browser.take_live_screenshots docs/screenshots

rivals: setup ## make .venv-rivals, with the systems that benchmarks measure against
	"$(VENV_PYTHON)" -m benchmarks.rivals.install

wheel: setup ## build dist/*.whl, with templates, static files and migrations inside
	"$(VENV_PYTHON)" -m build --no-isolation --wheel

clean: ## remove .venv, caches and build outputs
	rm -rf .venv .venv-rivals build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
