# Every target prepares the environment it needs in .venv (scripts/environment) and installs nothing twice.
BIN := .venv/bin
QUESTION ?= What is 347 + 586?

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check format docs bench assets lock run-environment test-environment

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: run-environment  ## ask a built-in model a question, thinking shown
	$(BIN)/macmoe generate --model tiny:qwen3 --temperature 0 --thinking on "$(QUESTION)"

test: test-environment  ## run the tests
	@$(BIN)/python -m pytest $(TESTS)

test-all: test-environment  ## run the tests, and the long forms of some
	@$(BIN)/python -m pytest -m "long or not long" $(TESTS)

check: test-environment  ## lint, check the format, the types and the layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: test-environment  ## sort imports, apply safe fixes, format
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

docs: test-environment  ## write docs/commands.md, docs/python.md and the table of Macs again
	@$(BIN)/python scripts/reference.py
	@$(BIN)/python scripts/macs.py

bench: test-environment  ## measure start-up against the peer
	@$(BIN)/python tests/bench/startup.py

assets: test-environment  ## rebuild the embedded models from the hub checkpoints in tests/assets
	@$(BIN)/python tests/assets/build.py

lock: test-environment  ## pin the versions installed in .venv
	@scripts/lock

run-environment:
	@scripts/environment run

test-environment:
	@scripts/environment test
