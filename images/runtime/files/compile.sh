#!/usr/bin/env bash
# Runs in a builder stage: compiles Corebound's wheel against the torch of /opt/corebound/venv and lays out below /product
# what it adds to that environment, in a form that is the same whenever it is built.
# Usage: compile.sh stable|classic     how the operators reach torch
set -euo pipefail
torch_abi=$1
python=/opt/corebound/venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INDEX=1 PIP_ROOT_USER_ACTION=ignore
site=$("$python" -c 'import site; print(site.getsitepackages()[0])')

PATH=/build/bin:$PATH /build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /dist \
  --config-settings "cmake.define.COREBOUND_TORCH_DIR=$site/torch" \
  --config-settings "cmake.define.COREBOUND_TORCH_ABI=$torch_abi" /source/runtime
/build/bin/pip --python "$python" install --quiet --no-compile --no-deps --root /product /dist/corebound-*.whl

# pip notes where a wheel came from.
find /product -path '*.dist-info/direct_url.json' -delete
find /product -path '*.dist-info/RECORD' -exec sed -i '/direct_url\.json/d' {} +
"$python" -m compileall -q -s /product -p / --invalidation-mode unchecked-hash "/product$site"
