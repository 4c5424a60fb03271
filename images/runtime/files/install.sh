#!/usr/bin/env bash
# Runs in a builder stage: makes /build, an environment with what compiling takes, and /opt/corebound/venv with torch and
# the packages, from /wheelhouse alone. Nothing of Corebound is in either yet.
set -euo pipefail
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheelhouse PIP_ROOT_USER_ACTION=ignore

python3 -m venv /build
/build/bin/pip install --quiet --upgrade pip
/build/bin/pip install --quiet --no-compile --requirement /wheelhouse/build.txt

python3 -m venv --without-pip /opt/corebound/venv
/build/bin/pip --python /opt/corebound/venv/bin/python install --quiet --no-compile --requirement /wheelhouse/runtime.txt
