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

.PHONY: demo test lint format stubtest emulate sanitize clean help

help:
	@echo "make demo | test | lint | format | stubtest | emulate | sanitize [SANITIZE=thread] | clean"

demo: .venv/.installed
	$(BIN)/gplfast demo

test: .venv/.installed-dev
	$(BIN)/pytest

lint: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python benchmarks/report.py --check
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')

format: .venv/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $$(find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')

stubtest: .venv/.installed-dev
	$(BIN)/stubtest gplfast._core --allowlist tests/stubtest_allowlist.txt

# A build of the extension in a folder of its own: $(call build_in,folder,CMake's definitions)
build_in = $(PIP) install --quiet --no-deps --no-build-isolation --upgrade --target $(1)/site . \
  -C build-dir=$(1)/build -C cmake.define.GPLFAST_CUDA=OFF -C cmake.define.GPLFAST_EMULATE_AMX=ON $(2)

# The tests of the extension with AMX's instructions in plain C++, on any CPU with AVX-512.
emulate: .venv/.installed-dev
	$(call build_in,build/emulate,)
	$(BIN)/python tests/run_extension_tests.py build/emulate/site

# The same against a build with sanitizers: ASan and UBSan, or SANITIZE=thread.
sanitize: .venv/.installed-dev
	$(call build_in,build/sanitize/$(SANITIZE),-C cmake.build-type=RelWithDebInfo -C cmake.define.GPLFAST_SANITIZE=$(SANITIZE))
	$(BIN)/python tests/run_extension_tests.py build/sanitize/$(SANITIZE)/site $(SANITIZE)

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
