# `make demo` and `make test` need nothing but a Python of 3.10 or later and a package index.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# Threads that wait for each other leave their core to the process that loads pictures.
export OMP_WAIT_POLICY ?= passive

.PHONY: help demo walkthrough play test proof mutants readme gpu clean

help:
	@echo "make demo        install, pre-train on rendered pictures, leave results in runs/demo/"
	@echo "make walkthrough take one picture through every step of the method, in runs/walkthrough/"
	@echo "make play        open a page in which a trained model reads; MODEL=runs/demo for your own"
	@echo "make test        install, check every equation, the programs and the documentation"
	@echo "make proof       check the equations on up to 1000 random cases each, and run the slow tests"
	@echo "make mutants     break vlpt.py in many places, one at a time; a test must notice each"
	@echo "make readme      run the long commands of the documentation; ICDAR2015=PATH adds photographs"
	@echo "make gpu         check, measure and train on one GPU; ICDAR2015=PATH adds detectors; MINUTES=30 is its limit"
	@echo "make clean       remove $(VENV), runs/ and carry/"

# The marker is written last, so that an interrupted installation is taken up again.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("PYTHON: expected 3.10 or later, got " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

# glibc then keeps the memory of large tensors instead of returning it to the system after each use.
demo: export MALLOC_MMAP_THRESHOLD_ = 1073741824
demo: export MALLOC_TRIM_THRESHOLD_ = 1073741824
demo: $(VENV)/installed
	$(RUN) train_min.py --name demo --overwrite

$(VENV)/installed-docs: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[docs]'
	touch $@

# The notebook is executed in this folder, where its files and its model are.
walkthrough: $(VENV)/installed-docs
	@test -f runs/demo/metrics.json || { echo "runs/demo: expected a finished run, got none; run make demo first"; exit 1; }
	mkdir -p runs/walkthrough
	$(RUN) -m jupytext --quiet --to ipynb --execute --run-path . \
	  --output runs/walkthrough/walkthrough.ipynb docs/walkthrough.py
	$(RUN) -m nbconvert --to html --no-prompt --log-level ERROR --CoalesceStreamsPreprocessor.enabled=True \
	  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags remove-input \
	  runs/walkthrough/walkthrough.ipynb
	@echo "wrote runs/walkthrough/walkthrough.html and walkthrough.ipynb"

MODEL ?=
play: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[play]'
	$(RUN) -m experiments.play $(MODEL)

# The tests of a file run in one process, so that its slow fixtures are made once.
test: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile -m 'not slow' --durations=15 \
	  --cov=vlpt --cov-branch --cov-report=term-missing

proof: $(VENV)/installed
	HYPOTHESIS_PROFILE=deep $(RUN) -m pytest -q test_vlpt.py
	$(RUN) -m pytest -q -m slow tests

mutants: $(VENV)/installed
	$(RUN) -m tests.mutants

readme: $(VENV)/installed demo
	$(RUN) vlpt.py
	$(RUN) vlpt.py oclip_rn50
	$(RUN) -m readers sheet synth runs/sheet.png
	$(RUN) -m readers check synth
	$(RUN) -m experiments.fake_synthtext runs/fake --images 858750
	$(RUN) -m experiments.bench data --data synthtext:runs/fake
	for part in step scale memory; do $(RUN) -m experiments.bench $$part || exit; done
	$(RUN) -m experiments.bench step --preset tiny
	$(MAKE) walkthrough
	test -z "$(ICDAR2015)" || $(RUN) train_min.py --data icdar2015:$(ICDAR2015) \
	  --image-size 256 --batch 32 --samples 9600 --name icdar2015

MINUTES ?= 30
gpu: $(VENV)/installed
	$(RUN) -m experiments.gpu all --minutes $(MINUTES) $(if $(ICDAR2015),--icdar2015 $(ICDAR2015))

clean:
	rm -rf $(VENV) runs carry
