# make run · make test · make test-all · make lab · make notebooks · make site · make bench · make oldest · make canary · make lint.  Options for the job:  make run ARGS="--sites 4 --rounds 10 --alpha iid"
PYTHON ?= python3
BIN := .venv/bin

run: .venv
	$(BIN)/python code/fl/job.py $(ARGS)

# Two at a time: a simulation, or a notebook with one, leaves a core idle for half of its time. WORKERS=0 runs one by one.
WORKERS ?= 2
test: .venv
	$(BIN)/python -m pytest --nbmake -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: tenseal test
	$(BIN)/python -m pytest -m slow -n $(WORKERS) --dist loadfile tests $(ARGS)

# A relative CIFAR10_SOURCE is meant from here; a notebook's kernel starts one folder down.
lab: .venv
	$(if $(CIFAR10_SOURCE),CIFAR10_SOURCE="$$(realpath "$(CIFAR10_SOURCE)")") $(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_see_a_federation.ipynb $(ARGS)

notebooks: tenseal
	$(BIN)/python notebooks/refresh.py $(ARGS)

# The web edition: build/site/html/index.html, from the committed outputs. test-site looks at it in a browser.
site: .venv/site
	$(BIN)/python docs/build.py $(ARGS)

test-site: .venv/site
	$(BIN)/python -m pytest -m slow tests/test_site.py $(ARGS)

bench: .venv
	$(BIN)/python tests/benchmarks/bench.py $(ARGS)

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# Encryption alone needs it, and there is no wheel for every Python and machine: what needs it is left out there.
tenseal: .venv
	@$(BIN)/python -m pip install --quiet --only-binary :all: $$(sed -n 's/^#.* \(tenseal==[0-9.]*\)$$/\1/p' environment.yml) \
	  || echo "There is no TenSEAL for this Python on this machine: what encrypts is skipped, and says so."

# The exact versions stand in environment.yml alone: conda reads them there, and so does this.
# TORCH=cpu takes wheels without CUDA: from PyTorch's own index, or from where PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS says.
CPU_INDEX := https://download.pytorch.org/whl/cpu
INDEX = $(if $(CPU),$(if $(PIP_EXTRA_INDEX_URL)$(PIP_FIND_LINKS),,--extra-index-url $(CPU_INDEX)))
CPU := $(and $(filter cpu,$(TORCH)),$(filter Linux,$(shell uname -s)))
SMALL := Packages of about 0.6 GB are coming, 1.8 GB on disk: a few minutes.
LARGE := Packages of about 3 GB are coming, 6.3 GB on disk, most of it for NVIDIA GPUs: 5 to 15 minutes on a common line.
NO_GPU := No NVIDIA GPU is seen here: stop this (Ctrl-C) and say make .venv TORCH=cpu, for a fifth of that.
.venv: .venv/installed
.venv/installed: environment.yml pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	@if [ -n "$(CPU)" ]; then echo "$(SMALL)"; else echo "$(LARGE)"; command -v nvidia-smi >/dev/null || echo "$(NO_GPU)"; fi
	$(PYTHON) -m venv .venv
	sed -n 's/^ *- \([A-Za-z0-9_-]*==.*\)$$/\1/p' environment.yml $(if $(CPU),| sed 's/^\(torch[a-z]*==[0-9.]*\)/\1+cpu/') > .venv/versions.txt
	$(BIN)/python -m pip install $(INDEX) --requirement .venv/versions.txt --editable .
	@touch $@

# The fast suite on other versions, each in an environment of its own, made anew where this line's files changed.
# oldest: the lower bounds of pyproject.toml with FLARE 2.8; then the learner alone with the oldest FLARE that it takes.
OLDEST_FLARE := 2.8.3
SUITE := -m pytest --nbmake -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder
oldest: .venv-oldest/installed
	.venv-oldest/bin/python tests/versions.py found
	TUTORIAL_VERSIONS=.venv-oldest/versions.txt .venv-oldest/bin/python $(SUITE) $(ARGS)
	.venv-oldest/bin/python -m pip install --quiet --upgrade --no-deps --target .venv-oldest/learner nvflare==2.4.0
	PYTHONPATH="$(CURDIR)/.venv-oldest/learner" .venv-oldest/bin/python -m pytest tests/test_learner.py tests/test_drive.py

.venv-oldest/installed: pyproject.toml tests/versions.py
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python tests/versions.py oldest $(OLDEST_FLARE) > .venv-oldest/versions.txt
	.venv-oldest/bin/python -m pip install $(INDEX) --requirement .venv-oldest/versions.txt --editable .
	@touch $@

# canary: what environment.yml has, with nvflare, torch and numpy as new as pip finds them, pre-releases too. It looks
# past pyproject's upper bound of nvflare, and fails where that has to move.
canary:
	$(PYTHON) -m venv .venv-canary
	.venv-canary/bin/python tests/versions.py canary > .venv-canary/versions.txt
	.venv-canary/bin/python -m pip install $(INDEX) --requirement .venv-canary/versions.txt
	.venv-canary/bin/python -m pip install $(INDEX) --pre --upgrade --requirement .venv-canary/versions.txt nvflare torch torchvision numpy
	.venv-canary/bin/python -m pip install --no-deps --editable .
	.venv-canary/bin/python tests/versions.py found
	TUTORIAL_VERSIONS=.venv-canary/versions.txt .venv-canary/bin/python $(SUITE) $(ARGS)

# What only the web edition needs; its exact versions stand in environment.yml, too, as comments.
.venv/site: .venv/installed environment.yml
	sed -n 's/^ *# site: //p' environment.yml > .venv/site.txt
	$(BIN)/python -m pip install --quiet --requirement .venv/site.txt
	@touch $@

.PHONY: run test test-all lab notebooks site test-site bench oldest canary lint tenseal .venv
