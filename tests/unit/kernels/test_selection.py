"""Selection of implementations: the rules, and what is said about a fallback."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from corebound.errors import KernelError
from corebound.kernels import selection
from corebound.kernels.selection import OPS, NativeSupport, select

ALL = NativeSupport(variants=dict.fromkeys(OPS, "avx2"))


def test_auto_takes_the_native_implementation_of_every_operator() -> None:
    rows = select("auto", ALL)
    assert [row["op"] for row in rows] == list(OPS)
    assert {(row["implementation"], row["variant"]) for row in rows} == {("native", "avx2")}


def test_one_missing_operator_falls_back_alone() -> None:
    fallbacks = [row for row in select("auto", ALL, missing={"gelu"}) if row["implementation"] == "reference"]
    assert [(row["op"], row["variant"], row["reason"]) for row in fallbacks] == [
        ("gelu", "reference", "no native implementation")
    ]


def test_without_native_libraries_every_operator_falls_back_with_their_reason() -> None:
    rows = select("auto", NativeSupport(problem="native library missing: lib.so"))
    assert {row["reason"] for row in rows} == {"native library missing: lib.so"}


def test_mode_reference_uses_no_native_operator() -> None:
    rows = select("reference", ALL)
    assert {(row["implementation"], row["reason"]) for row in rows} == {("reference", "COREBOUND_KERNELS=reference")}


def test_mode_native_makes_a_missing_operator_an_error_that_names_it() -> None:
    with pytest.raises(KernelError, match="kernel rotary: COREBOUND_KERNELS=native, but no native implementation"):
        select("native", ALL, missing={"rotary"})


def test_a_fallback_is_logged_once_with_its_operators_and_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    some = NativeSupport(variants={op: "avx2" for op in OPS if op not in ("gelu", "linear")})
    monkeypatch.setattr(selection, "_native_support", lambda mode, isa: some)
    # As at start: an earlier test may have set up the log, and pytest listens to such a logger by itself.
    monkeypatch.setattr(logging.getLogger("corebound"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("corebound"), "handlers", [])
    selection._selected.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="corebound"):
            selection.table()
            selection.table()
    finally:
        selection._selected.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "kernels: plain torch in place of native gelu, linear: no native implementation"
    ]


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, corebound.kernels, corebound.kernels.memory_probe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_attribute_that_is_no_operator_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="soft_max"):
        _ = selection.Implementations().soft_max
