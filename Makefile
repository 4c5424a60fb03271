# Corebound's verbs. `make` alone lists them.
INVENTORY ?= local
PYTHON3   ?= python3
VENV      ?= .venv
BIN       := $(abspath $(VENV))/bin
PYTHON    := $(BIN)/python
TESTS     ?=
OPTIONS   ?=
CONFIRM   ?=
NODES     ?= 3
FLAVOUR   ?=

SHELL         := /bin/bash
.SHELLFLAGS   := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS     += --no-print-directory

SETUP       = $(PYTHON3) runtime/packaging/setup_venv.py --venv $(VENV) $(if $(ALLOW_CUDA_TORCH),--allow-cuda)
CONTROL     = $(SETUP) $(if $(BUNDLE),--bundle build/bundle )control
PLAYBOOK    = INVENTORY=$(INVENTORY) CONFIRM=$(CONFIRM) VENV=$(VENV) playbooks/scripts/run_playbook
LAB         = PYTHONPATH=tests $(PYTHON) -m lab
KUBERNETES  = PYTHONPATH=tests $(PYTHON) -m k8s
SCRIPTS     = $(shell git ls-files '*.sh') .ci/run playbooks/scripts/run_playbook \
              images/runtime/files/corebound-launcher images/runtime/files/corebound-worker images/runtime/files/corebound-server
CXX_SOURCES = $(shell git ls-files 'runtime/csrc/*.cpp' 'runtime/csrc/*.h' 'tests/csrc/*.cpp' 'tests/fixtures/*.cpp')
CONTAINERS  = $(shell git ls-files 'images/*Containerfile*')

##@ First steps

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@printf '\nOPTIONS="..." goes to ansible-playbook, such as OPTIONS="-e corebound_prefix=/srv/corebound"'
	@printf '\nCONFIRM=prod lets deploy and reset end what runs on the machines of a protected inventory (prod)'
	@printf '\nINVENTORY=%s chooses the machines; there are: %s\n' '$(INVENTORY)' \
	  "$$(cd inventories && ls -d */ | tr -d / | grep -Ev '^(defaults|k8s)$$' | paste -sd ' ')"

.PHONY: setup
setup: ## Prepare this checkout: system packages, .venv, pinned tools, torch (CPU build)
	@$(SETUP) develop

.PHONY: native
native: setup ## Build the native libraries into runtime/corebound/lib
	@mkdir -p build && flock build/native.lock runtime/packaging/build_native.sh $(BIN)

##@ Machines

.PHONY: deploy
deploy: ## Install Corebound and a model on every machine of INVENTORY and prove it; BUNDLE=file fetches nothing
	@$(PLAYBOOK) --check-inventory
ifdef BUNDLE
	@$(PYTHON3) runtime/packaging/unpack_bundle.py '$(BUNDLE)'
	@$(CONTROL)
	@$(PLAYBOOK) site.yml --extra-vars '{"corebound_bundle_dir": "$(abspath build/bundle)"}' $(OPTIONS)
else
	@$(SETUP) deploy
	@$(MAKE) wheel
	@$(PLAYBOOK) site.yml $(OPTIONS)
endif

.PHONY: smoke
smoke: ## Prove every machine, and all of them together: bindings, bandwidth, sums, tokens; print tables
	@$(PLAYBOOK) --check-inventory
	@$(CONTROL)
	@$(PLAYBOOK) smoke.yml $(OPTIONS)

.PHONY: reset
reset: ## Remove everything that deploy put on the machines of INVENTORY
	@$(PLAYBOOK) --check-inventory
	@$(CONTROL)
	@$(PLAYBOOK) reset.yml $(OPTIONS)

.PHONY: wheel
wheel: ## Build the wheel that deploy installs, into dist/ (FLAVOUR=ipex: that of the role ipex, into dist/ipex/)
	@$(SETUP) deploy
	@case '$(FLAVOUR)' in \
	  '') $(PYTHON) runtime/packaging/build_wheel.py ;; \
	  ipex) $(PYTHON) runtime/packaging/build_ipex_wheel.py $(if $(ALLOW_CUDA_TORCH),--allow-cuda) ;; \
	  *) echo "error: FLAVOUR is '$(FLAVOUR)'; expected ipex, or nothing" >&2; exit 2 ;; \
	esac

.PHONY: bundle
bundle: ## Write one archive that deploy BUNDLE=file installs from (BUNDLE_WITH="intel_mpi oneccl", BUNDLE_MODEL=folder)
	@$(MAKE) wheel
	@$(PYTHON) runtime/packaging/make_bundle.py --with '$(BUNDLE_WITH)' $(if $(BUNDLE_MODEL),--model '$(BUNDLE_MODEL)')

##@ Kubernetes

.PHONY: manifests
manifests: setup ## Make the manifests in k8s/, and the copy that overlays build on, from the values in inventories/k8s/
	@for name in mpijob-bloom server server-leader-worker-set; do \
	  $(BIN)/corebound k8s render "inventories/k8s/$$name.yml" --output "k8s/$$name.yaml" || exit; \
	done
	@cp k8s/mpijob-bloom.yaml k8s/base/mpijob-bloom.yaml

##@ Lab

.PHONY: lab-up
lab-up: ## Start NODES hosts (3) on this machine for INVENTORY=lab, each with its own sshd; root only
	@$(CONTROL)
	@$(LAB) up --nodes $(NODES) $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE))

.PHONY: lab-down
lab-down: ## Stop them and leave nothing but the built image (PURGE=1 removes that too)
	@$(CONTROL)
	@$(LAB) down $(if $(PURGE),--purge)

.PHONY: k8s-up
k8s-up: setup ## Start a Kubernetes cluster of two nodes on this machine, built from Debian's source (IMAGE=...); root only
	@$(KUBERNETES) up $(if $(IMAGE),--image $(IMAGE))

.PHONY: k8s-down
k8s-down: setup ## Stop it and leave nothing but the built programs and the nodes' images
	@$(KUBERNETES) down

##@ Containers

.PHONY: images
images: ## Build the container images with podman or docker (FLAVOUR=ipex, ENGINE=, BASE_IMAGE=, SAVE=file, PUSH=registry)
	@$(SETUP) deploy
	@PYTHONPATH=tests $(PYTHON) images/build.py $(if $(ENGINE),--engine "$(ENGINE)") $(if $(FLAVOUR),--flavour $(FLAVOUR)) \
	  $(if $(ALLOW_CUDA_TORCH),--allow-cuda) $(if $(NO_CACHE),--no-cache) $(if $(SAVE),--save $(SAVE)) $(if $(PUSH),--push $(PUSH)) \
	  $(if $(APT_SOURCES),--apt-sources $(APT_SOURCES))

##@ Checks

.PHONY: test
test: native ## Run every test that needs nothing but this machine (TESTS=path or -k expression narrows it)
	@$(PYTHON) -m pytest -m "not lab and not k8s and not topology and not images and not bench" $(TESTS)

.PHONY: test-all
test-all: native ## Run the same suite and fail when a part of it was skipped
	@mkdir -p reports
	@$(PYTHON) -m pytest -m "not lab and not k8s and not topology and not images and not bench" --junitxml=reports/tests.xml
	@$(PYTHON) .ci/check_skips.py reports/tests.xml

.PHONY: test-lab
test-lab: native ## Run the tests that start nodes with podman on this machine; root only
	@$(PYTHON) -m pytest -m lab $(TESTS)

.PHONY: test-k8s
test-k8s: native ## Run jobs on a Kubernetes cluster that is put up on this machine for it; root only
	@$(PYTHON) -m pytest -m k8s $(TESTS)

.PHONY: test-topology
test-topology: setup ## Run the tests that boot machines with several sockets and NUMA nodes in QEMU
	@$(PYTHON) -m pytest -m topology $(or $(TESTS),tests/topology)

.PHONY: test-images
test-images: native ## Build the images, look into them and run them, two on a network too; root only
	@$(PYTHON) -m pytest -m images $(TESTS)

.PHONY: models-matrix
models-matrix: native ## Run every family of models on 1 to 4 ranks against the whole one and write the table to docs/models.md
	@OMP_NUM_THREADS=1 PYTHONPATH=tests $(PYTHON) -m models_matrix

.PHONY: models-memory
models-memory: native ## Measure what every family needs of memory to load, on 1 and 2 ranks, and write the table to docs/models.md
	@OMP_NUM_THREADS=1 PYTHONPATH=tests $(PYTHON) -m models_memory

.PHONY: bench
bench: native ## Measure this machine and Corebound on it, and check the promised ratios (a quiet machine; writes 2.2 GB)
	@$(BIN)/corebound bench machine
	@$(BIN)/corebound bench allreduce
	@$(BIN)/corebound bench generate --shape llama-1.1b --num-ranks 2 --compare transformers
	@$(PYTHON) -m pytest -m bench --timeout=1800 $(TESTS)

.PHONY: bench-peers
bench-peers: native ## Install the engines that `corebound bench peers` compares with (PEERS="llama_cpp vllm"; some GB each)
	@$(PYTHON3) runtime/packaging/setup_peers.py $(PEERS)
	@echo "installed; now: $(BIN)/corebound bench peers --output reports/peers.md --results reports/peers.json (a quiet machine; an hour)" >&2

.PHONY: lint
lint: setup ## Check style, layers, playbooks, scripts and the project's own rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(if $(CXX_SOURCES),$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES))
	@$(BIN)/yamllint --strict .
	@LC_ALL=C.UTF-8 PATH=$(BIN):$$PATH $(BIN)/ansible-lint --offline -q
	@$(BIN)/shellcheck --severity=style $(SCRIPTS)
	@$(if $(CONTAINERS),$(BIN)/hadolint $(CONTAINERS))
	@PYTHONPATH=runtime $(BIN)/lint-imports
	@$(PYTHON) .ci/check_repository.py
	@$(PYTHON) .ci/check_docstrings.py

.PHONY: format
format: setup ## Rewrite Python and C++ sources in the project's format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@$(if $(CXX_SOURCES),$(BIN)/clang-format -i $(CXX_SOURCES))

.PHONY: typecheck
typecheck: setup ## Check types, strictly
	@$(BIN)/mypy
	@MYPYPATH=runtime/packaging $(BIN)/mypy --config-file pyproject.toml runtime/packaging/*.py playbooks/roles/*/files/*.py playbooks/filter_plugins/*.py playbooks/roles/*/action_plugins/*.py .ci/*.py
	@MYPYPATH=tests:images:runtime/packaging $(BIN)/mypy --config-file pyproject.toml images/*.py images/runtime/files/*.py
	@MYPYPATH=runtime:tests/fixtures/accelerator_extension $(BIN)/mypy --package corebound_example
	@MYPYPATH=tests $(BIN)/mypy --package smoke --package lab --package topology --package k8s
