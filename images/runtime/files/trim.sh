#!/usr/bin/env bash
# Runs in a builder stage: takes out of /opt/corebound/venv what only compilers, tests and other hardware use, and compiles
# the rest to bytecode, in a form that is the same whenever it is built.
set -euo pipefail
venv=/opt/corebound/venv
site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')

# torch: headers, C++ tests, and tables of symbols for debuggers (the dynamic ones stay).
rm -rf "$site"/torch/{include,share,test} "$site"/torch/bin/{protoc*,test_*,*Test,upgrader_models,script_module*} \
  "$site"/torch/lib/lib{torchbind_test,jitbackend_test,backend_with_compiler,aoti_custom_ops}.so
strip --strip-unneeded "$site"/torch/lib/libtorch{_cpu,_python}.so "$site"/torch/lib/libc10.so
for package in numpy sympy networkx mpmath; do
  find "$site/$package" -depth -type d -name tests -exec rm -r {} +
done
rm -rf "$venv/include"
find "$venv/lib" -name '*.a' -delete

# Intel MPI: what is left is hydra, the C library, libfabric with its providers, the tables of tuned algorithms and IMB-MPI1.
# Its files are taken as they are, or left out; the licence does not let us change them.
rm -rf "$venv"/lib/lib{mpi_abi,mpifort,mpifort_abi,mpi_ilp64,mpicxx,mpijava,mpcp,mpcp_wrapper,tcm_debug}.so* \
  "$venv"/lib/mpi/libmpi_ze_hooks.so "$venv"/share/java "$venv"/share/man "$venv"/opt/mpi/tune_fast \
  "$venv"/opt/mpi/etc/*.{fatbin,spv} "$venv"/bin/{mpitune_fast,IMB-MT,IMB-NBC,IMB-P2P,IMB-RMA,IMB-MPI1-GPU,IMB-RMA-GPU} \
  "$venv"/bin/{fi_info,fi_pingpong,libfabric}
# A wheel cannot hold links: a library that has three names is in it three times.
/build/bin/python /source/link_equal_files.py "$venv/lib" "$venv/bin"

# pip notes where a wheel came from.
find "$site" -path '*.dist-info/direct_url.json' -delete
find "$site" -path '*.dist-info/RECORD' -exec sed -i '/direct_url\.json/d' {} +

# Bytecode that is valid by the source's content and not by its time; `unchecked`, because nobody edits an image. Without
# it are what needs a compiler or a newer Python, and the models of transformers that Corebound does not run by itself:
# those are compiled when they are imported.
without='/torch/(_inductor/|onnx/|testing/_internal/(?!__init__|common_dtype|logging_tensor))'
without+='|/transformers/models/(?!(auto|bloom|encoder_decoder|llama)/)[^/]+/|/setuptools/|/pygments/lexers/'
"$venv/bin/python" -m compileall -q -x "$without" --invalidation-mode unchecked-hash "$site"
