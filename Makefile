# make demo ARGS="--nodes 4 --json demo.json"    make test ARGS="-k lease -x"
.PHONY: help setup demo test test-windows lint format clean
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

bin := .venv/bin
ARGS ?=

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Virtual environment and, as root on Debian or Ubuntu, missing system packages
	@scripts/setup.sh

demo: setup ## A farm on this machine, told live; ARGS="..." goes to nlbfarm-node demo
	@$(bin)/nlbfarm-node demo $(ARGS)

test: setup ## All tests (those that need root or a kernel feature that is not here say so); ARGS="..." goes to pytest
	@$(bin)/python -m pytest $(ARGS)

test-windows: setup ## Windows CPython in Wine: neutral tests, WinDivert's filters, a mixed farm; ARGS="..." goes to pytest in Wine
	@scripts/test_windows.sh $(ARGS)

lint: setup ## ruff, mypy --strict, import-linter
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/lint-imports --no-logo

format: setup ## Formats the code and puts right what ruff can
	@$(bin)/ruff check --fix .
	@$(bin)/ruff format .

clean: ## Removes everything that was made here
	rm -rf .venv .wine dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
