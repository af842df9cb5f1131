# Two commands do all the set-up on a machine with Python >= 3.11, g++ >= 11 and make: `make demo` and `make test`.
# The environment lives in .venv and is rebuilt only when what it was made from has changed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check
# Editable: changes in gplfast/ need no new install, changes in csrc/ make one (BUILD_INPUTS).
# One call with the constraints, torch named first: the pinned version is taken before anything asks for another.
INSTALL := $(PIP) install --quiet -c constraints.txt torch -e
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)
SANITIZE ?= address,undefined

.PHONY: demo test lint format stubtest sanitize clean help

help:
	@echo "make demo | test | lint | format | stubtest | sanitize [SANITIZE=thread] | clean"

demo: .venv/.installed
	$(BIN)/gplfast demo

test: .venv/.installed-dev
	$(BIN)/pytest

lint: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python benchmarks/report.py --check
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

format: .venv/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

stubtest: .venv/.installed-dev
	$(BIN)/stubtest gplfast._core

# The tests of the extension against a build with sanitizers: ASan and UBSan, or SANITIZE=thread.
sanitize: .venv/.installed-dev
	$(PIP) install --quiet --no-deps --no-build-isolation --upgrade --target build/sanitize/site . \
	  -C build-dir=build/sanitize/$(SANITIZE) -C cmake.build-type=RelWithDebInfo \
	  -C cmake.define.GPLFAST_SANITIZE=$(SANITIZE) -C cmake.define.GPLFAST_CUDA=OFF
	$(BIN)/python tests/run_sanitized.py $(SANITIZE) build/sanitize/site

clean:
	rm -rf build .venv

.venv/.created:
	$(PYTHON) -m venv .venv
	touch $@

.venv/.installed: .venv/.created $(BUILD_INPUTS)
	$(INSTALL) '.[all]'
	touch $@

.venv/.installed-dev: .venv/.created $(BUILD_INPUTS)
	$(INSTALL) '.[all,dev]'
	touch $@ .venv/.installed
