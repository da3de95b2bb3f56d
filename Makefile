# Every target works on a fresh machine with Python 3.11 or newer and make. Packages come from wherever pip is set up to
# look. PYTHON=... picks the interpreter, VENV=... the environment, JOBS=... the number of test processes.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
JOBS ?= 2
TRUTH ?=
EXPORT ?= hf infra

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install -qq
# The requirements of one dependency group; read by hand, as the pip of a fresh environment may not know groups yet.
GROUP = $(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]], sep="\n")'

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-mirage test-export lint docs generate accuracy bench wheel-test clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 3; }
	@echo "creating $(VENV) with $(PYTHON)" >&2
	@"$(PYTHON)" -m venv "$(VENV)"

$(VENV)/.memfit: pyproject.toml src/memfit/_version.py | $(BIN)/python
	@echo "installing memfit into $(VENV)" >&2
	@$(PIP) -e .
	@touch $@

$(VENV)/.group-%: pyproject.toml $(VENV)/.memfit
	@echo "installing what '$*' needs into $(VENV)" >&2
	@$(GROUP) $* | tr '\n' '\0' | xargs -0 $(PIP)
	@touch $@

demo: $(VENV)/.memfit ## where the memory of two real jobs goes, in a second
	@for job in llama-3.1-8b-8xh100 qlora-rtx-4090; do \
		echo "$$ memfit estimate examples/$$job.toml"; \
		$(BIN)/memfit estimate examples/$$job.toml || test $$? -eq 1 || exit; \
		echo; \
	done

test: $(VENV)/.memfit $(VENV)/.group-test ## the test suite: no GPU, no torch, no network
	$(BIN)/python -m pytest -q -n $(JOBS)

test-slow: $(VENV)/.memfit $(VENV)/.group-test $(VENV)/.group-slow ## the tests that hold memfit against torch and transformers
	$(BIN)/python -m pytest -q -n $(JOBS) -m slow

test-mirage: $(VENV)/.memfit $(VENV)/.group-test ## real CUDA wheels of torch: its allocator, and torch on the imaginary GPU (gcc, network, 2 GB)
	$(BIN)/python -m pytest -q -m mirage tests/mirage

test-export: ## exports held against the tools they are for, each in its own environment: EXPORT="hf infra ..." or all
	@PYTHON="$(PYTHON)" bash .ci/export-test $(EXPORT)

lint: $(VENV)/.memfit $(VENV)/.group-lint ## ruff, mypy --strict, import contract
	@status=0; for step in "ruff check" "ruff format --check" "mypy --strict" "lint-imports"; do \
		echo "$$step"; $(BIN)/$$step || status=1; \
	done; exit $$status

docs: $(VENV)/.memfit $(VENV)/.group-docs ## the documentation, offline, into docs/_build/html
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

generate: $(VENV)/.memfit ## rewrite every generated block and example output in README and docs
	$(BIN)/python docs/generate.py

accuracy: $(VENV)/.memfit ## docs/accuracy-table.md from the truth records in TRUTH=folder
	@test -n "$(TRUTH)" || { echo "make accuracy TRUTH=folder-with-records" >&2; exit 2; }
	$(BIN)/python docs/accuracy_page.py "$(TRUTH)"

bench: $(VENV)/.memfit ## speed of the formula and of the simulated allocator
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/allocator.py

wheel-test: $(VENV)/.memfit $(VENV)/.group-build ## build the wheel, install it alone in a fresh environment, use it
	@BIN="$(BIN)" bash .ci/wheel-test

clean: ## remove what was built and cached, keep the environment
	rm -rf build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
