# Targets set up everything they need in .venv; PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test docs lint lab install clean

demo: $(VENV)/.installed
	$(BIN)/tdpmmu check

test: $(VENV)/.dev lint
	$(BIN)/pytest -n auto

# Real kernels under emulation; needs qemu-system-x86, busybox-static, gcc, and Debian's apt.
lab: $(VENV)/.installed
	$(BIN)/tdpmmu lab run --kernel 6.1
	$(BIN)/tdpmmu lab run --kernel 6.12

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

clean:
	rm -rf $(VENV) dist build lab-*
