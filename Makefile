# Every target does its own set-up: a virtual environment in .venv with what pyproject.toml names.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Without cargo everything runs on the Python twins; NEXUS_BUILD_KERNEL=require refuses that.
CARGO := $(shell command -v cargo 2>/dev/null)
CRATE := rust/nexus_kernel
CRATE_FILES := $(CRATE)/Cargo.toml $(CRATE)/Cargo.lock $(CRATE)/build.rs \
  $(wildcard $(CRATE)/src/*.rs $(CRATE)/src/py/*.rs)
FUZZ_SECONDS ?= 15
CARGO_RUN = cd $(CRATE) && PYO3_PYTHON=$(abspath $(BIN))/python cargo

.PHONY: demo test check fix bench fuzz sanitize sizes clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(if $(CARGO),$(CARGO_RUN) test --locked --quiet)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	test ! -e src/nexus/_kernel.abi3.so || $(BIN)/stubtest nexus._kernel
	$(BIN)/lint-imports
	$(if $(CARGO),$(CARGO_RUN) fmt --check)
	$(if $(CARGO),$(CARGO_RUN) fmt --check --manifest-path fuzz/Cargo.toml)
	$(if $(CARGO),$(CARGO_RUN) clippy --release --locked --quiet --features python -- -D warnings)
	$(if $(CARGO),$(CARGO_RUN) clippy --locked --quiet --all-targets -- -D warnings)

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CARGO),$(CARGO_RUN) fmt)
	$(if $(CARGO),$(CARGO_RUN) fmt --manifest-path fuzz/Cargo.toml)

bench: $(STAMP)
	$(BIN)/python -m benchmarks

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz
	$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

# The switch is in every toolchain, but open to a nightly only. The triple keeps it off build scripts.
sanitize: $(STAMP)
	cd $(CRATE) && RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/sanitize \
	  cargo test --locked --quiet --lib --target $$(rustc -vV | sed -n 's/^host: //p')

sizes: $(STAMP)
	$(BIN)/python benchmarks/sizes.py

clean:
	rm -rf $(VENV) .demo $(CRATE)/target src/nexus/_kernel.abi3.so src/nexus/_kernel_missing.txt

# Asked for by module, since a virtual environment made without pip still has ensurepip.
$(STAMP): pyproject.toml hatch_build.py src/nexus/__init__.py $(CRATE_FILES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[cli,yaml,testing]' --group dev
	touch $@
