#!/usr/bin/env bash
# Runs in the builder stage after install.sh: removes what a running image does not need, and compiles the rest.
set -euo pipefail

# What only a compiler or torch's own tests would use.
site=$(/opt/corebound/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')
rm -rf "$site/torch/include" "$site/torch/share" "$site/torch/test" "$site/torch/bin/protoc"* /opt/corebound/venv/include
find /opt/corebound/venv/lib -name '*.a' -delete
# pip notes where a wheel came from.
find "$site" -path '*.dist-info/direct_url.json' -delete
find "$site" -path '*.dist-info/RECORD' -exec sed -i '/direct_url\.json/d' {} +

# Bytecode that is valid by the source's content and not by its time; `unchecked`, because nobody edits an image.
# torch keeps files for newer Pythons among its test helpers; those cannot be compiled here.
/opt/corebound/venv/bin/python -m compileall -q -x '/torch/testing/' --invalidation-mode unchecked-hash "$site"
