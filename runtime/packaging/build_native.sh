#!/usr/bin/env bash
# Builds the native libraries and puts them into the package of this checkout, each by one atomic rename, so that a
# process that is starting never sees half a file. Argument: the bin folder of the environment that holds torch.
set -euo pipefail
bin=$1
build=build/native

"$bin/cmake" -S runtime/csrc -B "$build" -G Ninja -DPython_EXECUTABLE="$bin/python" \
  -DCMAKE_MAKE_PROGRAM="$bin/ninja" >build/native-configure.log || {
  cat build/native-configure.log >&2
  exit 1
}
"$bin/cmake" --build "$build"
"$bin/cmake" --install "$build" --prefix build/native-install >/dev/null

mkdir -p runtime/corebound/lib
for library in build/native-install/corebound/lib/*.so; do
  name=$(basename "$library")
  cmp --silent "$library" "runtime/corebound/lib/$name" && continue
  cp "$library" "runtime/corebound/lib/.$name.new"
  mv "runtime/corebound/lib/.$name.new" "runtime/corebound/lib/$name"
done

# Optional: only where group `oneccl` of pyproject.toml, or an installation named by COREBOUND_ONECCL_ROOT, is there.
oneccl=${COREBOUND_ONECCL_ROOT:-$(dirname "$bin")}
if [[ -n ${COREBOUND_ONECCL_ROOT:-} || -f $oneccl/lib/ccl/cpu/lib/libccl.a ]]; then
  runtime/packaging/build_ccl.sh "$oneccl" runtime/corebound/lib
else
  echo "oneCCL is not in $oneccl: libcorebound_ccl.so is not built" >&2
fi
