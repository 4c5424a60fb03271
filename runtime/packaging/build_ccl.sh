#!/usr/bin/env bash
# Builds libcorebound_ccl.so, our binding to oneCCL, on the machine that is to use it. It holds Intel's static library,
# whose licence does not let us hand it on, so it is in no wheel of ours. Needs g++ and nothing else.
#
#   build_ccl.sh ONECCL_ROOT OUTPUT_DIR [SOURCE_DIR]
#
#   ONECCL_ROOT  the environment into which pip put oneccl-devel, impi-rt and tcmlib (group `oneccl` of pyproject.toml):
#                it holds include/oneapi/ccl.hpp, lib/ccl/cpu/lib/libccl.a and lib/libhwloc.so.15
#   OUTPUT_DIR   folder of the library: corebound/lib of the installed package
#   SOURCE_DIR   runtime/csrc of a checkout or a copy of it, of which ccl/, comm/status.h and export.h are used;
#                by default the one beside this script
#
# CXX names another compiler. Nothing is built, and nothing is printed, while the library is newer than all it is made of.
set -euo pipefail
(($# == 2 || $# == 3)) || {
  echo "usage: $0 ONECCL_ROOT OUTPUT_DIR [SOURCE_DIR]" >&2
  exit 2
}
root=$1 output=$2 sources=${3:-$(dirname "$0")/../csrc}
archive=$root/lib/ccl/cpu/lib/libccl.a
library=$output/libcorebound_ccl.so
ours=("$sources"/ccl/*.cpp "$sources"/ccl/*.h "$sources/comm/status.h" "$sources/export.h")

for needed in "$archive" "$root/include/oneapi/ccl.hpp" "$root/lib/libhwloc.so.15" "${ours[@]}"; do
  [[ -f $needed ]] || {
    echo "error: $needed is missing" >&2
    echo "hint: pip install --no-deps --group pyproject.toml:oneccl   puts oneCCL into an environment" >&2
    exit 2
  }
done

is_current=1
for made_of in "$archive" "$0" "${ours[@]}"; do
  [[ $library -nt $made_of ]] || is_current=0
done
((is_current)) && exit 0

mkdir -p "$output"
work=$(mktemp -d)
new=$output/.libcorebound_ccl.so.$$
trap 'rm -rf "$work" "$new"' EXIT
launcher=()
[[ -n ${CMAKE_CXX_COMPILER_LAUNCHER:-} ]] && launcher=("$CMAKE_CXX_COMPILER_LAUNCHER")
objects=()
for source in "$sources"/ccl/*.cpp; do
  object=$work/$(basename "$source" .cpp).o
  "${launcher[@]}" "${CXX:-g++}" -std=c++20 -O2 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden \
    -Wall -Wextra -Werror -isystem "$root/include" -I "$sources" -c "$source" -o "$object"
  objects+=("$object")
done
# Intel's symbols stay inside: libfabric and MPI, loaded beside it, bring names of their own.
"${CXX:-g++}" -shared -o "$new" "${objects[@]}" -Wl,--wrap=gethostname -Wl,--exclude-libs,ALL -Wl,--no-undefined -Wl,--gc-sections \
  "$archive" "$root/lib/libhwloc.so.15" -lm -ldl -lpthread
# By one rename, so that a process that is starting never sees half a file.
mv "$new" "$library"
echo "built $library" >&2
