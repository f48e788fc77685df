# Everything a user or CI runs. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The real clients have dependencies that differ from ours.
CLIENTS := .clients
# The oldest versions that setup.cfg allows.
MINIMAL := .minimal
EXTRAS := fast,onnx,triton,grpc,openapi,torchserve,keys,tracing,train
# Another package index for torch, for builds that the default index does not have (CPU only, another CUDA).
TORCH_INDEX ?=
# Several checkouts may share MNIST: without a data/mnist of its own this one takes a shared/data/mnist beside it.
export SERVEKIT_DATA_DIR ?= $(firstword $(wildcard data/mnist ../shared/data/mnist) data/mnist)

export PIP_DISABLE_PIP_VERSION_CHECK = 1
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt
INSTALL_FAILED = { echo "The installation failed: read the message above, check the network and the free disk space, and run make again."; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help venv train serve test test-slow test-clients test-optimized test-minimal test-deploy fuzz check bench bench-peers faults clean

help: ## List these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.serve ## Make .venv with what serving and training need

train: venv ## Train both models: a new version of each in model_store
	@$(BIN)/python -m train

serve: venv ## Train what model_store lacks, then serve on 127.0.0.1:5001
	@$(BIN)/python -m train --missing
	@exec $(BIN)/gunicorn

test: $(VENV)/.develop ## Run the tests that run side by side, with branch coverage
	@$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

test-slow: $(VENV)/.develop ## Run the tests that start many servers, then those that load the machine or measure time, one by one
	@$(BIN)/python -m pytest -m "slow and starts" --no-cov --numprocesses auto --dist worksteal
	@$(BIN)/python -m pytest -m "slow and not starts" --no-cov

test-clients: $(VENV)/.serve $(CLIENTS)/.made ## Ask servers with the real clients of every contract; installs those into .clients
	@SERVEKIT_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)/bin/pytest tests/clients

test-optimized: $(VENV)/.develop ## Run the tests of security as python -O runs them, without any assert but the tests' own
	@PYTHONOPTIMIZE=1 $(BIN)/python -m pytest -W ignore::pytest.PytestConfigWarning --no-cov --numprocesses auto \
	  --dist loadfile tests/security

test-minimal: $(MINIMAL)/.made ## Run the tests with the oldest versions that setup.cfg allows; installs those into .minimal
	@$(MINIMAL)/bin/python -m pytest -m "not slow" --no-cov --numprocesses auto --dist loadfile

test-deploy: $(VENV)/.develop ## Check deploy/ with promtool, and by a Prometheus that scrapes a server under faults
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || \
	  { echo "Prometheus and its promtool are needed. On Debian and Ubuntu: apt-get install prometheus"; exit 1; }
	@$(BIN)/python -m pytest --no-cov tests/deploy

fuzz: $(VENV)/.develop ## Look for what breaks codecs, parsers and contracts with new examples each time, about 10 minutes
	@$(BIN)/python -m pytest --no-cov --hypothesis-profile search --override-ini faulthandler_timeout=0 --numprocesses auto tests/fuzz

check: $(VENV)/.develop ## Lint, check types, and look for what is known to be unsafe
	@$(BIN)/flake8
	@$(BIN)/isort --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/bandit --ini setup.cfg --quiet --recursive

bench: venv ## Measure servekit beside its own limits, into bench/results and bench/README.md
	@$(BIN)/python -m train --missing
	@$(BIN)/python -m bench

bench-peers: venv ## Measure it beside TorchServe, Triton and others, about 20 minutes; installs them under .bench
	@$(BIN)/python -m train --missing
	@$(BIN)/python -m bench --peers

faults: venv ## Kill, stop, starve and flood servers, and measure what clients see of it, into bench/faults/README.md
	@$(BIN)/python -m train --missing
	@$(BIN)/python -m bench.faults

clean: ## Remove .venv, .clients, .minimal, .bench, caches and what tests left; keep data and model_store
	@rm -rf $(VENV) $(CLIENTS) $(MINIMAL) .bench .hypothesis .mypy_cache .pytest_cache .coverage .coverage.* *.egg-info build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "servekit needs Python 3.11 or newer, and $(PYTHON) is not. Install one and name it: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { echo "No virtual environment could be made with $(PYTHON). On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.serve: $(VENV)/.made setup.cfg pyproject.toml constraints.txt
	@echo "Installing what serving and training need into $(VENV) (the first time takes minutes) ..."
	@test -z "$(TORCH_INDEX)" || $(PIP) --index-url "$(TORCH_INDEX)" torch || $(INSTALL_FAILED)
	@$(PIP) --editable '.[$(EXTRAS)]' || $(INSTALL_FAILED)
	@touch $@

$(VENV)/.develop: $(VENV)/.serve
	@echo "Installing what tests and checks need into $(VENV) ..."
	@$(PIP) --editable '.[$(EXTRAS),test,check]' || $(INSTALL_FAILED)
	@touch $@

$(MINIMAL)/.made: $(VENV)/.made setup.cfg constraints-minimal.txt
	@echo "Installing the oldest versions that setup.cfg allows into $(MINIMAL) (takes minutes) ..."
	@$(BIN)/python -m venv --clear $(MINIMAL)
	@test -z "$(TORCH_INDEX)" || $(MINIMAL)/bin/python -m pip install --quiet --constraint constraints-minimal.txt \
	  --index-url "$(TORCH_INDEX)" torch || $(INSTALL_FAILED)
	@$(MINIMAL)/bin/python -m pip install --quiet --constraint constraints-minimal.txt --editable '.[$(EXTRAS),test]' || $(INSTALL_FAILED)
	@touch $@

$(CLIENTS)/.made: $(VENV)/.made tests/clients/requirements.txt
	@echo "Installing the real clients into $(CLIENTS) (takes a minute or two) ..."
	@$(BIN)/python -m venv --clear $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet --no-deps --no-compile --requirement tests/clients/requirements.txt || $(INSTALL_FAILED)
	@touch $@
