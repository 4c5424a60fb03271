#!/usr/bin/env bash
# Runs in the builder stage: compiles Corebound's wheel and installs it with its packages into /opt/corebound/venv, from
# /wheelhouse alone, in a form that is the same whenever it is built.
set -euo pipefail
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheelhouse PIP_ROOT_USER_ACTION=ignore
cd /source

python3 -m venv /build
/build/bin/pip install --quiet --upgrade pip
/build/bin/pip install --quiet --group pyproject.toml:build "$(cat /wheelhouse/torch.txt)" numpy
PATH=/build/bin:$PATH /build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /dist ./runtime

python3 -m venv --without-pip /opt/corebound/venv
/build/bin/pip --python /opt/corebound/venv/bin/python install --quiet --no-compile \
  --group pyproject.toml:runtime --group pyproject.toml:intel_mpi "$(cat /wheelhouse/torch.txt)"
/build/bin/pip --python /opt/corebound/venv/bin/python install --quiet --no-compile --no-deps /dist/corebound-*.whl
