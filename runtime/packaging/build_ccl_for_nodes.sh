#!/usr/bin/env bash
# Builds dist/libcorebound_ccl.so for nodes like this machine, which need no compiler then. What it is built against is
# taken from the environment where group `oneccl` of pyproject.toml is installed there, else put into build/oneccl.
# Argument: the bin folder of the environment. Nothing is printed while the library is up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=$1
root=$(dirname "$bin")

if [[ ! -f $root/lib/ccl/cpu/lib/libccl.a ]]; then
  root=build/oneccl
  pins=$(grep -E '^(intel_mpi|oneccl) = ' pyproject.toml)
  if [[ ! -f $root/pins || $(<"$root/pins") != "$pins" ]]; then
    echo "oneCCL's static library and headers, into $root (about 500 MB)" >&2
    rm -rf "$root"
    "$bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --ignore-installed --prefix "$root" \
      --group pyproject.toml:oneccl >&2
    printf '%s\n' "$pins" >"$root/pins"
  fi
fi
exec runtime/packaging/build_ccl.sh "$root" dist
