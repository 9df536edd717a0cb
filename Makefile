# make demo    see it work          make test      everything CI checks
# make lab     open JupyterLab      make notebooks clean the notebooks and export the library
# make readme  README.md from nbs/index.ipynb
# make setup   all the others do it first: .venv with everything in it

BIN := .venv/bin
PYTHON := $(BIN)/python
STAMP := .venv/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lab setup readme notebooks clean

demo: setup
	@$(PYTHON) -m hglmm.demo

test: setup
	@$(PYTHON) tests/run_all.py

lab: setup
	@$(BIN)/jupyter lab --notebook-dir=.

readme: setup
	@$(PYTHON) tests/run_all.py --write-readme

notebooks: setup
	@nbdev_clean && nbdev_export

setup: $(STAMP)
	@if [ -z "$$CI" ] && [ "$$(git rev-parse --show-toplevel 2>/dev/null)" = "$$(pwd -P)" ]; then \
		git config --local core.hooksPath >/dev/null || git config --local core.hooksPath .githooks; \
		git config --local merge.nbdev-merge.name "notebook merge by nbdev"; \
		git config --local merge.nbdev-merge.driver ".venv/bin/nbdev_merge %O %A %B %P"; \
	fi

$(STAMP): pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; python3 is $$(python3 --version 2>&1)."; exit 1; }
	@echo "Setting up .venv (a few minutes, once) ..."
	@python3 -m venv .venv || { echo "python3 could not make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m pip install --quiet --editable '.[dev,gcg]'
	@touch $@

# what make made; runs/, downloaded data and downloaded checkpoints stay
clean:
	@rm -rf .venv build dist *.egg-info _docs _proc data/toycoco .pytest_cache .ruff_cache
	@find . -name .git -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +
