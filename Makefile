# Corebound: `make help` lists the targets.
VENV   ?= .venv
PYTHON := $(abspath $(VENV))/bin/python

.PHONY: native
native: ## Build the native libraries into runtime/corebound/lib
	@mkdir -p build && flock build/native.lock sh -ec '\
	  $(abspath $(VENV))/bin/cmake -S runtime/csrc -B build/native -G Ninja -DPython_EXECUTABLE=$(PYTHON) \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja >build/native-configure.log || { cat build/native-configure.log; exit 1; }; \
	  $(abspath $(VENV))/bin/cmake --build build/native; \
	  $(abspath $(VENV))/bin/cmake --install build/native --prefix build/native-install >/dev/null; \
	  mkdir -p runtime/corebound/lib; \
	  for f in build/native-install/corebound/lib/*.so; do cp $$f runtime/corebound/lib/.$$(basename $$f).new; \
	    mv runtime/corebound/lib/.$$(basename $$f).new runtime/corebound/lib/$$(basename $$f); done'
