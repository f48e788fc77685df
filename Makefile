# Everything a user or CI runs. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The real clients have dependencies that differ from ours.
CLIENTS := .clients
# Another package index for torch, for builds that the default index does not have (CPU only, another CUDA).
TORCH_INDEX ?=
# Several checkouts may share MNIST: without a data/mnist of its own this one takes a shared/data/mnist beside it.
export SERVEKIT_DATA_DIR ?= $(firstword $(wildcard data/mnist ../shared/data/mnist) data/mnist)

export PIP_DISABLE_PIP_VERSION_CHECK = 1
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt
INSTALL_FAILED = { echo "The installation failed: read the message above, check the network and the free disk space, and run make again."; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help venv train serve test test-slow test-clients check bench bench-peers faults clean

help: ## List these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.serve ## Make .venv with what serving and training need

train: venv ## Train both models: a new version of each in model_store
	@$(BIN)/python -m train

serve: venv ## Train what model_store lacks, then serve on 127.0.0.1:5001
	@$(BIN)/python -m train --missing
	@exec $(BIN)/gunicorn

test: $(VENV)/.develop ## Run the tests that run side by side, with branch coverage
	@$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

test-slow: $(VENV)/.develop ## Run the tests that load the machine or measure time, one by one
	@$(BIN)/python -m pytest -m slow --no-cov

test-clients: $(VENV)/.serve $(CLIENTS)/.made ## Ask servers with the real clients of every contract; installs those into .clients
	@SERVEKIT_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)/bin/pytest tests/clients

check: $(VENV)/.develop ## Lint and check types
	@$(BIN)/flake8
	@$(BIN)/isort --check --quiet .
	@$(BIN)/mypy --no-error-summary

bench: venv ## Measure servekit beside its own limits, into bench/results and bench/README.md
	@$(BIN)/python -m train --missing
	@$(BIN)/python -m bench

bench-peers: venv ## Measure it beside TorchServe, Triton and others, about 20 minutes; installs them under .bench
	@$(BIN)/python -m train --missing
	@$(BIN)/python -m bench --peers

faults: venv ## Kill, stop, starve and flood servers, and measure what clients see of it, into bench/faults/README.md
	@$(BIN)/python -m train --missing
	@$(BIN)/python -m bench.faults

clean: ## Remove .venv, .clients, .bench, caches and what tests left; keep data and model_store
	@rm -rf $(VENV) $(CLIENTS) .bench .mypy_cache .pytest_cache .coverage .coverage.* *.egg-info build dist
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
	@$(PIP) --editable '.[fast,onnx,triton,grpc,openapi,torchserve,train]' || $(INSTALL_FAILED)
	@touch $@

$(VENV)/.develop: $(VENV)/.serve
	@echo "Installing what tests and checks need into $(VENV) ..."
	@$(PIP) --editable '.[fast,onnx,triton,grpc,openapi,torchserve,train,test,check]' || $(INSTALL_FAILED)
	@touch $@

$(CLIENTS)/.made: $(VENV)/.made tests/clients/requirements.txt
	@echo "Installing the real clients into $(CLIENTS) (takes a minute or two) ..."
	@$(BIN)/python -m venv --clear $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet --no-deps --no-compile --requirement tests/clients/requirements.txt || $(INSTALL_FAILED)
	@touch $@
