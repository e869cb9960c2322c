# `make demo` and `make test` do all their set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo test check lint types docs docs-version package clean

demo: $(VENV)/.core
	$(BIN)/ditlab demo

test: $(VENV)/.dev
	$(BIN)/pytest

check: lint types test

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Adds the site of one version to the branch gh-pages of this clone, beside those of other versions; needs no network.
# The page / leads to the newest ALIAS, and to the first version as long as none has an alias.
docs-version: $(VENV)/.docs
	test -n "$(VERSION)" # make docs-version VERSION=0.1 ALIAS=latest
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mike deploy --update-aliases "$(VERSION)" $(ALIAS)
	test -z "$(ALIAS)" && git cat-file -e gh-pages:index.html 2>/dev/null || \
		$(BIN)/mike set-default "$(or $(ALIAS),$(VERSION))"

package: $(VENV)/.dev
	$(BIN)/hatchling build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.core

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[docs]'
	touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) dist site
