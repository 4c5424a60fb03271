#!/usr/bin/env bash
# Runs in a builder stage: builds our binding to oneCCL into /product. Intel's static library and headers stay behind; what
# the binding needs at run time is in the environment already.
set -euo pipefail
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheelhouse PIP_ROOT_USER_ACTION=ignore
root=/opt/corebound/venv
site=$("$root/bin/python" -c 'import site; print(site.getsitepackages()[0])')

/build/bin/pip --python "$root/bin/python" install --quiet --no-compile --no-deps --requirement /wheelhouse/oneccl.txt
bash /source/build_ccl.sh "$root" "/product$site/corebound/lib" /source/csrc

# Its licence goes with the part of it that is in the binding, and its version for the list of what is inside.
doc=/product$root/share/doc/oneccl-devel
mkdir -p "$doc"
cp "$site"/oneccl_devel-*.dist-info/LICENSE.txt "$doc/license.txt"
sed -n 's/^Version: //p' "$site"/oneccl_devel-*.dist-info/METADATA > "$doc/version"
