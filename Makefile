# Mirada: `make` or `make help` lists the targets.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test check format debian-packages clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check --constraint constraints.txt
DEPENDENCIES := setup.cfg pyproject.toml constraints.txt
DEBIAN_PACKAGES := slurmctld slurmd slurm-client munge slurmdbd mariadb-server nginx-light dataset-fashion-mnist chromium libjpeg-turbo-progs

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-run  ## install, then train, distil and compare on the embedded sample (OUT=folder)
	@$(BIN)/mirada demo $(if $(OUT),--out "$(OUT)")

test: $(VENV)/.installed-test debian-packages  ## install what the tests need, then run all, two files at once (ARGS='-k plan')
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.installed-dev  ## lint, format, types and import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q --durations=0 tests/test_architecture.py

format: $(VENV)/.installed-dev  ## rewrite the code in the house format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

clean:  ## remove caches and builds; keeps the virtual environment and runs
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# An interrupted `python -m venv` leaves no pip, so the next run starts it again.
$(BIN)/pip:
	@for python in $(PYTHON) python3 python3.12 python3.11 python3.10; do \
	    if $$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	        echo "Creating $(VENV) with $$($$python --version)"; \
	        $$python -m venv $(VENV); exit $$?; \
	    fi; \
	done; \
	echo "error: no Python 3.10 to 3.12 on the PATH; name one: make PYTHON=/path/to/python3.11" >&2; exit 2

# DeepSpeed comes as source and asks torch about the machine while it builds: torch first, and no build isolation.
$(VENV)/.base: $(DEPENDENCIES) | $(BIN)/pip
	@echo "Installing PyTorch and DeepSpeed: several GB and some minutes, once"
	@$(PIP) torch torchvision numpy setuptools wheel ninja packaging psutil py-cpuinfo
	@DS_ACCELERATOR=$${DS_ACCELERATOR:-cpu} DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	@touch $@

$(VENV)/.installed-run: $(VENV)/.base
	@echo "Installing Mirada"
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.base
	@echo "Installing Mirada with the extra '$*'"
	@$(PIP) --no-build-isolation --editable ".[$*]"
	@touch $@ $(VENV)/.installed-run

# Only for tests that bring up a real SLURM, nginx or browser, or read all of Fashion-MNIST; without the packages they skip and say so.
debian-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null; then \
	    missing=; \
	    for package in $(DEBIAN_PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	    if [ -n "$$missing" ]; then \
	        echo "Installing Debian's$$missing"; \
	        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
	            >$(VENV)/apt.log 2>&1 </dev/null \
	            || echo "could not install$$missing (see $(VENV)/apt.log): the tests that need them will skip"; \
	    fi; \
	fi
