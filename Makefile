# Each target sets up what it needs: make, git and Python 3.11 to 3.14 are enough.
# `make PYTHON=python3.12 test` chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
UV ?= uv
export NO_MKDOCS_2_WARNING := 1
export SEALWRIGHT_OPENAI2_PYTHON := $(CURDIR)/.venv-openai2/bin/python
export SEALWRIGHT_FLOWER_PYTHON := $(CURDIR)/.venv-flower/bin/python

.PHONY: help demo test drill image test-image test-image-long release check bench docs lock clean
.NOTPARALLEL:

help:
	@echo "make demo    tell the whole story on this machine, on a real language model"
	@echo "make test    run the tests"
	@echo "make drill   make faults on brokers that run, and show in a table that they hold"
	@echo "make image   build a guest image from pinned packages into build/image"
	@echo "make test-image  build it twice, boot it under QEMU, and see refused what was changed"
	@echo "make test-image-long  boot what only the broker refuses too: some ten minutes more"
	@echo "make release build wheel and images, predict, sign and log them"
	@echo "make check   lint, types, layers, lock files, docs, README, and the bare wheel alone"
	@echo "make bench   measure against our peers; results in bench/results/"
	@echo "make docs    build the documentation into site/"
	@echo "make lock    resolve the dependencies again (needs uv)"
	@echo "make clean   remove everything these targets made"

demo:
	@$(PYTHON) scripts/setup.py .venv demo model
	@$(BIN)/sealwright demo --dir .demo

test:
	@$(PYTHON) scripts/setup.py .venv test model
	@$(PYTHON) scripts/setup.py .venv-openai2 openai2
	@$(PYTHON) scripts/setup.py .venv-flower flower
	@$(PYTHON) scripts/system.py swtpm swtpm-tools skopeo buildah systemd postgresql spin gcc libc6-dev
	@$(BIN)/python scripts/real_evidence.py --optional
	$(BIN)/pytest -n 2 --dist loadfile

# What is not installed is skipped by name; exit code 0 only if all that ran held.
drill:
	@$(PYTHON) scripts/setup.py .venv test
	@$(PYTHON) scripts/system.py postgresql faketime
	$(BIN)/sealwright drill --short

NEWEST := --or-newest

# Debian, for apt; no root. A mirror that has dropped a pinned version is no reason to fail: see build/packages/lock.json.
image:
	@$(PYTHON) scripts/setup.py .venv test model
	$(BIN)/python scripts/oci_lock.py fetch build/packages $(NEWEST)
	rm -rf build/image build/wheel
	$(BIN)/python scripts/wheel.py build/wheel
	$(BIN)/sealwright image build --packages build/packages --wheel build/wheel/*.whl --out build/image \
	  --lock $$(test -e build/packages/lock.json && echo build/packages/lock.json || echo deploy/oci/lock.json)

# Root, or the packages below installed: what is missing is skipped by name.
test-image: image
	@$(PYTHON) scripts/system.py qemu-system-x86 ovmf swtpm swtpm-tools sbsigntool mtools dosfstools cryptsetup-bin gdisk cpio nftables
	SEALWRIGHT_IMAGE=$(CURDIR)/build/image SEALWRIGHT_PACKAGES=$(CURDIR)/build/packages \
	  SEALWRIGHT_WHEEL=$$(echo $(CURDIR)/build/wheel/*.whl) $(BIN)/pytest --durations=5 tests/image/builder tests/image/boot

test-image-long: export SEALWRIGHT_LONG := 1
test-image-long: test-image

# Of exactly the packages that the lock names. Keys and log come from the environment: scripts/release.py says which.
release: NEWEST :=
release: image
	rm -rf build/oci
	for kind in broker client enclave; do $(BIN)/sealwright image oci $$kind --lock deploy/oci/lock.json \
	  --packages build/packages --wheel build/wheel/*.whl --out build/oci/$$kind || exit 1; done
	$(BIN)/python scripts/release.py

check:
	@$(PYTHON) scripts/setup.py .venv test model
	@$(PYTHON) scripts/setup.py .venv check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/python scripts/lock.py --check
	$(BIN)/python scripts/readme.py --check
	$(BIN)/mkdocs --quiet build --strict --site-dir build/site
	$(BIN)/python scripts/bare_wheel.py

# The engine's OpenMP library is there where the machine has none.
bench: export LD_LIBRARY_PATH := $(CURDIR)/.venv/lib$(addprefix :,$(LD_LIBRARY_PATH))
bench:
	@$(PYTHON) scripts/setup.py .venv test model
	$(BIN)/python bench/run.py

docs:
	@$(PYTHON) scripts/setup.py .venv check
	$(BIN)/mkdocs build --strict

lock:
	@$(PYTHON) scripts/setup.py .venv check
	UV=$(UV) $(BIN)/python scripts/lock.py

clean:
	rm -rf .venv .venv-openai2 .venv-flower build dist site .demo .cache
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
