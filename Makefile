# `make demo` and `make test` need nothing but a Python of 3.10 or later and a package index.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: help demo test proof mutants clean

help:
	@echo "make demo    install, pre-train on rendered pictures, leave results in runs/demo/"
	@echo "make test    install, check every equation, the scripts and the README"
	@echo "make proof   the same equations on 1000 random cases each, and the slow tests"
	@echo "make mutants break vlpt.py in many places, one at a time; a test must notice each"
	@echo "make clean   remove $(VENV) and runs/"

# The marker is written last, so an interrupted installation is taken up again.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/installed
	mkdir -p runs/demo
	$(RUN) data_stub.py --sheet runs/demo/sheet.png --digits --size 64
	$(RUN) train_min.py --name demo --overwrite

test: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -q -m 'not slow' --cov=vlpt --cov-branch --cov-report=term-missing

proof: $(VENV)/installed
	HYPOTHESIS_PROFILE=deep $(RUN) -m pytest -q test_vlpt.py
	$(RUN) -m pytest -q -m slow tests

mutants: $(VENV)/installed
	$(RUN) tests/mutants.py

clean:
	rm -rf $(VENV) runs
