# make demo    see it work          make test        everything CI checks
# make lab     open JupyterLab      make test-quick  what to run between two edits
# make readme  README.md from nbs/index.ipynb
# make docs    the site, from the notebooks: _docs/html
# make notebooks    clean the notebooks and export the library
# make constraints  constraints.txt gets what pyproject.toml asks for and it lacks; with UPGRADE=1 everything at its newest
# make setup   all the others do it first: .venv with everything in it, of the newest Python that fits, or of PYTHON3=/path/to/python

BIN := .venv/bin
PYTHON := $(BIN)/python
STAMP := .venv/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-quick lab setup readme notebooks docs constraints clean

demo: setup
	@$(PYTHON) -m hglmm.runs.demo

test: setup
	@$(PYTHON) tests/run_all.py

test-quick: setup
	@$(PYTHON) tests/run_all.py --quick

lab: setup
	@$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/nbs/explore/attention_explorer.ipynb

readme: setup
	@$(PYTHON) tests/run_all.py --write-readme

notebooks: setup
	@nbdev_clean && nbdev_export

docs: setup $(STAMP).docs
	@$(PYTHON) nbs/_docs/docs_build.py

$(STAMP).docs: pyproject.toml | setup
	@echo "Installing what the site is made with (once) ..."
	@$(PYTHON) -m pip install -qq --constraint constraints.txt --editable '.[docs]'
	@touch $@

setup: $(STAMP)
	@mkdir -p runs # where the README's lines for papermill write to: it makes no folder itself
	@if [ -z "$$CI" ] && [ "$$(git rev-parse --show-toplevel 2>/dev/null)" = "$$(pwd -P)" ]; then \
		git config --local core.hooksPath >/dev/null || git config --local core.hooksPath .githooks; \
		git config --local merge.nbdev-merge.name "notebook merge by nbdev"; \
		git config --local merge.nbdev-merge.driver ".venv/bin/nbdev_merge %O %A %B %P"; \
	fi

$(STAMP): pyproject.toml constraints.txt .ci/setup
	@PYTHON3="$(PYTHON3)" sh .ci/setup
	@touch $@

# torch stays a range: machines have builds of their own. What only torch needs is not held either.
constraints:
	@command -v uv >/dev/null || { echo "uv is needed to resolve for every system and Python at once. make setup brings it."; exit 1; }
	@echo torch | uv pip compile --quiet --universal --python-version 3.10 --all-extras --excludes - $(if $(UPGRADE),--upgrade) \
		--no-annotate --custom-compile-command "make constraints" --output-file constraints.txt pyproject.toml

# what make made; runs/, downloaded data and downloaded checkpoints stay
clean:
	@rm -rf .venv build dist *.egg-info _docs _proc data/toycoco .pytest_cache .ruff_cache
	@find . -name .git -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +
