# Every target sets up what it needs in .venv: `make test`, `make demo`, `make bench`, `make docs`,
# `make lint`.
#
#   PYTHON  the interpreter to build for                  (default: python3)
#   TORCH   the torch to install, any from 2.10 on        (default: the one the results come from)
#   CLANG   the compiler of `make sanitize`               (default: the newest clang++ here)

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
# What builds a peer calls the ninja that came with it.
WITH_NINJA := PATH="$(abspath $(BIN)):$$PATH"
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/* csrc/*/*)

.PHONY: test clients sanitize fuzz codegen matrix wheels gpu demo bench docs lint format clean

# FASTOPT_TESTS=all: every combination of cases, dtypes and options, where else a part of them is run.
# In two processes, of 1.2 GB each, whose waiting threads sleep: spinning, they would take the other one's cores.
test: $(VENV)/.test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2
	TRITON_INTERPRET=1 FASTOPT_BACKEND=triton OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m parity -n auto

# Trainers (Lightning, Accelerate, DeepSpeed, ...) with fastopt's optimizers, and other packages' optimizers
# beside them: their real packages.
clients: $(VENV)/.clients
	$(BIN)/python -m pytest tests/clients

# The core under clang's sanitizers, in build/sanitize-*; ARGS narrows the suite down.
sanitize: $(VENV)/.test
	CLANG="$(CLANG)" ARGS="$(ARGS)" tests/sanitizers/run.sh address $(BIN)/python
	CLANG="$(CLANG)" ARGS="$(ARGS)" tests/sanitizers/run.sh thread $(BIN)/python

# FUZZ_SECONDS: how long (600); FUZZ_SEED: the first seed; alone, that round only, made small.
fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz

# What the Triton kernels compile to, for every GPU target; ARGS="--target sm_90 --quick" for a part.
codegen: $(VENV)/.test
	$(BIN)/python tests/codegen.py $(ARGS)

# On a machine with a GPU: parity to the bit, the table, tiles, then what this GPU's kernels compile to.
# Its own torch and Triton are used; result sets go to benchmarks/results/<device>.
gpu: $(VENV)-gpu/.bench
	$(VENV)-gpu/bin/python -m benchmarks gpu $(ARGS)
	$(VENV)-gpu/bin/python -m benchmarks tuning $(ARGS)
	$(VENV)-gpu/bin/python tests/codegen.py --target native

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo $(ARGS)

bench: $(VENV)/.peers
	$(WITH_NINJA) $(BIN)/python -m benchmarks $(or $(ARGS),all)

# Pythons, torches, compilers, AArch64: all that the machine has; ARGS="3.12 2.13 clang" for a part.
matrix: $(VENV)/.test
	$(BIN)/python tests/matrix $(ARGS)

# The site in build/site; a warning, such as a link or an anchor that leads nowhere, is an error. The
# variable quietens mkdocs-material's notice of its successor (CONTRIBUTING.md).
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The source distribution and wheels, tried where there is no compiler; ARGS="3.12 2.13" for a part.
wheels:
	$(PYTHON) tests/wheels/wheels.py $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h)
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/validate-pyproject pyproject.toml

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h)

$(VENV)/.torch: Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

# An editable install: the packages beside fastopt/ (benchmarks, examples, tests) run from the tree.
$(VENV)/.test $(VENV)/.demo $(VENV)/.bench: $(VENV)/.%: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

# A peer that does not install is named as absent in the tables. DeepSpeed compiles its optimizer at the
# first use, 95 s on 2 cores, which is not to be measured.
$(VENV)/.peers: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable ".[bench,peers]" \
	|| $(BIN)/python -m pip install --quiet --editable ".[bench]"
	-$(WITH_NINJA) $(BIN)/python -c "from deepspeed.ops.op_builder import CPUAdamBuilder as b; b().load()"
	touch $@

# A torchvision made for another build of torch goes again, and timm, which needs it: Lightning, which
# does not, would not import beside it.
$(VENV)/.clients: $(VENV)/.test
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[clients]"
	-$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[peers]"
	$(BIN)/python -c "import torchvision" || $(BIN)/python -m pip uninstall --quiet --yes timm torchvision
	touch $@

# Groups, not extras: an editable install would build the core anew.
$(VENV)/.docs $(VENV)/.lint: $(VENV)/.%: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --group $*
	touch $@

$(VENV)-gpu/.bench: $(SOURCES)
	$(PYTHON) -m venv --system-site-packages $(VENV)-gpu
	$(VENV)-gpu/bin/python -m pip install --quiet --editable ".[bench]"
	touch $@

clean:
	rm -rf build $(VENV) $(VENV)-gpu
