# What a contributor runs. `make` alone lists the targets.
PYTHON ?= python3
VENV   ?= .venv

BIN     := $(VENV)/bin
MATURIN := VIRTUAL_ENV=$(abspath $(VENV)) PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/maturin
DEMO    := python/edgewise/demo/demo.safetensors
CLIPPY  := cargo clippy --quiet --all-targets

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The virtual environment with the build tool; `install` brings the rest from pyproject.toml.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'maturin>=1.9,<2'
	touch $@

# With WHEEL=FILE, that wheel's extension is installed in place of one built here.
.PHONY: install
install: $(VENV)/ready ## build the package into .venv, optimised, with all tools
ifdef WHEEL
	$(BIN)/python tools/install_wheel.py $(WHEEL)
else
	$(MATURIN) develop --quiet --release --extras dev,video
endif

.PHONY: test
test: install test-rust test-python ## install, then run all tests

# The benchmarks run once each, as tests; what they print is of no interest here.
.PHONY: test-rust
test-rust:
	cargo test --quiet --features evex --tests
	cargo test --quiet --features evex --benches >/dev/null

# The tests of videos run a second time as if the extra `video` were not installed.
.PHONY: test-python
test-python: install
	$(BIN)/python -m pytest
	PYTHONPATH=tests/python $(BIN)/python -m pytest -p hide_av tests/python/test_video_*.py

# Not part of `check`, since it takes programs from Debian; .ci/run calls it.
.PHONY: test-arm
test-arm: install ## build for 64-bit ARM and test under emulation (Debian)
	$(BIN)/python tools/emulate_arm.py $(if $(ARM_WHEEL),--wheel $(ARM_WHEEL))

# Not part of `check` nor of .ci/run: it builds a Python first. MUSL_WHEEL=FILE is tested in place of one in dist/.
.PHONY: test-musl
test-musl: install $(VENV)/zig ## test the wheel for musl with a Python built for musl (Debian)
	$(BIN)/python tools/test_musl.py $(MUSL_WHEEL)

# Not part of `check`: it would build the crate once more. .ci/run calls it.
FUZZ_SECONDS ?= 20
.PHONY: fuzz
fuzz: ## feed damaged files to the readers, each for FUZZ_SECONDS
	fuzz/run.sh $(FUZZ_SECONDS)

.PHONY: lint
lint: install ## check format, lints, types and documentation
	cargo fmt --check
	$(CLIPPY) --features evex -- -D warnings
	$(CLIPPY) --features python -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: format
format: install ## format Rust and Python
	cargo fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: wheel
wheel: install ## build the wheel into dist/ and try it in an environment of its own
	rm -rf dist
	$(MATURIN) build --quiet --release --out dist
	$(BIN)/python tools/check_wheel.py dist

# Zig links for old systems and for ARM. It is large, so only this target loads it.
$(VENV)/zig: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'ziglang==0.17.*'
	touch $@

.PHONY: wheels
wheels: $(VENV)/zig ## build wheels for x86-64 and 64-bit ARM into dist/, which run on any Linux, and check them
	rm -rf dist
	$(BIN)/python tools/make_wheels.py $(TARGETS)
	$(BIN)/python tools/check_wheel.py dist

# The cheap steps first, the tests last.
.NOTPARALLEL:
.PHONY: check
check: lint wheel test ## everything CI does

.PHONY: bench
bench: ## measure the kernels on this machine
	cargo bench --features evex

.PHONY: demo-model
demo-model: install ## build the model in the package anew from tools/demo/checkpoint
	$(BIN)/edgewise quantize --force tools/demo/checkpoint $(DEMO)
	$(BIN)/python -m pytest tests/python/test_demo_model.py

.PHONY: clean
clean: ## remove all that was built
	cargo clean
	rm -rf $(VENV) dist python/edgewise/_native*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
