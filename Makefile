# `make` lists the targets. Each one does the set-up that it needs, and none asks anything.
# Needed: python3.11 or newer with its venv module, make, bash.

PYTHON ?= python3
PROFILE ?= quick
SHELL := bash
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A stamp is named after the content that it stands for, so an edited lock is installed and a finished one is not.
hash = $(shell cat $(1) pyproject.toml | cksum | cut -d ' ' -f 1)
LOCKED := .venv/installed-$(call hash,requirements.lock)
PINNED := .venv-pyreft/installed-$(call hash,environment.yml)

# Tests run in as many processes as there are cores, up to four, since each takes 1.5 GB; torch has one thread in each.
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(1)/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# Slides without a network have reveal.js in them; this package has it as files, and no more of it is used.
REVEALJS := .venv/bin/pip install --quiet --no-deps sphinx-revealjs==3.2.1

.PHONY: help setup reproduce test test-all test-browser torture bench lab slides lint lock setup-pyreft test-pyreft clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup: $(LOCKED)  ## install the locked stack into .venv

reproduce: $(LOCKED)  ## run the ordered notebooks (PROFILE=quick, JOBS=notebooks at once)
	@.venv/bin/python -m fedreft_lib reproduce $(PROFILE) $(if $(JOBS),--jobs $(JOBS))

test: lint  ## lint and run the tests, without those that need minutes
	@$(call PYTEST,.venv) --ignore tests/browser -m "not slow"

test-all: lint  ## lint and run all tests but those in a browser
	@$(call PYTEST,.venv) --ignore tests/browser

test-browser: $(LOCKED)  ## test the widgets, the report and JupyterLab in chromium, if there is one
	@$(REVEALJS)
	@.venv/bin/pip install --quiet --requirement tests/browser/requirements.txt
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false .venv/bin/python -m pytest tests/browser

torture: $(LOCKED)  ## kill, damage and poison everything some hundreds of times (an hour and a quarter)
	@.venv/bin/python -m tests.torture

bench: $(LOCKED)  ## measure our speed as ratios to that of others (an hour, on a quiet machine)
	@.venv/bin/python -m tests.benchmarks

lab: $(LOCKED)  ## open working copies of the notebooks in JupyterLab
	@.venv/bin/python -m fedreft_lib lab $(PROFILE)

EXECUTED = $(filter-out %.running.ipynb %.failed.ipynb, $(wildcard outputs/$(PROFILE)/0[0-68]_*.ipynb))
slides: $(LOCKED)  ## make slides for a class from the executed notebooks (PROFILE=quick)
	@$(REVEALJS)
	@.venv/bin/jupyter nbconvert --config notebooks/classroom/slides/config.py \
	  --output-dir outputs/$(PROFILE)/slides $(or $(EXECUTED),$(error outputs/$(PROFILE) holds no executed notebook: run make reproduce PROFILE=$(PROFILE) first))

lint: $(LOCKED)  ## check code and notebooks with ruff, the arrows between imports, and that no merge is half done
	@! git grep -nE '^(<<<<<<<|>>>>>>>) '
	@.venv/bin/ruff check . && .venv/bin/ruff format --check --quiet fedreft_lib tests
	@.venv/bin/lint-imports --no-logo --no-cache

lock:  ## compile requirements.lock anew (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --extra dev --extra flower --upgrade \
	  --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
	  --output-file requirements.lock pyproject.toml

setup-pyreft: $(PINNED)  ## install the pyreft-pinned stack (environment.yml) into .venv-pyreft

test-pyreft: $(PINNED)  ## run what differs there on the pyreft-pinned stack
	@$(call PYTEST,.venv-pyreft) -m "pinned and not slow"

clean:  ## remove the environments and the caches (outputs stay: runs are dear)
	@rm -rf .venv .venv-pyreft .pytest_cache .ruff_cache .hypothesis
	@find fedreft_lib tests notebooks -name __pycache__ -prune -exec rm -rf {} +

# --- set-up -----------------------------------------------------------------------------------------------------------
# torch goes first, by version alone, so that each platform gets its own build. The lock is complete, so pip need not
# resolve it (--no-deps); pyreft's own pins would not resolve. The pinned stack is resolved by pip, which is its point.
# pip would compile with one core; compileall takes all. It also says that some files are templates, which is no error.

comma := ,

$(LOCKED):
	$(call install,.venv,cat requirements.lock,--no-deps)

$(PINNED):
	$(call install,.venv-pyreft,sed -n '/^  - pip:/$(comma)$$s/^      - //p' environment.yml,)

# $(1) environment, $(2) command that prints its requirements, $(3) options for pip
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed and '$(PYTHON)' is not; name one with: make PYTHON=python3.11"; exit 1; }
	@set -o pipefail; env=$(1); \
	step() { \
	  echo "[$$1] $$2"; shift 2; \
	  "$$@" 2>&1 | tee -a $$env/install.log | while IFS= read -r line; do \
	    case $$line in *Downloading*[0-9][0-9].[0-9]" MB)"|*" GB)") echo "     $$line";; esac; done && return; \
	  reason=$$(grep '^ERROR' $$env/install.log || grep . $$env/install.log); \
	  echo "Set-up of $$env stopped ($${reason##*$$'\n'}): check the network and the free disk space, then run the" \
	    "same command again and it goes on from there; the full log is $$env/install.log."; exit 1; }; \
	mkdir -p $$env && : > $$env/install.log && $(2) > $$env/requirements.txt && \
	step 1/5 "virtual environment $$env" $(PYTHON) -m venv $$env && \
	step 2/5 "torch, the build for this machine" $$env/bin/pip install --no-compile $$(grep ^torch== $$env/requirements.txt) && \
	step 3/5 "$$(grep -c == $$env/requirements.txt) packages" $$env/bin/pip install --no-compile $(3) -r $$env/requirements.txt && \
	step 4/5 "compiling them on all cores" sh -c "$$env/bin/python -m compileall -q -j 0 $$env/lib fedreft_lib || true" && \
	step 5/5 "fedreft_lib from this folder" $$env/bin/pip install --no-deps --no-build-isolation --editable . && \
	rm -f $$env/installed-* && touch $@ && echo "done: $$env is ready"
endef
