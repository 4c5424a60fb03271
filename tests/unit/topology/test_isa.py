from __future__ import annotations

from typing import Any

import pytest

from corebound.topology import IsaReport
from corebound.topology.isa import FEATURES, REQUIRED_FEATURES, assess_isa

XEON = frozenset({"avx", *FEATURES})
ALL_STATE = 0x600E7
NO_AMX = 0xE7
NO_AVX512 = 0x7


def native_report(
    features: frozenset[str] = XEON, *, xcr0: int = ALL_STATE, amx_permission: bool = True
) -> dict[str, Any]:
    """The JSON of csrc/isa for a processor with these features and this register state."""
    facts = {name: name in features for name in FEATURES}
    state = {"os_avx": xcr0 & 6 == 6, "os_avx512": xcr0 & 0xE6 == 0xE6, "os_amx": xcr0 & 0x60000 == 0x60000}
    needs = {
        "generic": (),
        "avx2": ("os_avx",),
        "avx512": ("os_avx", "os_avx512"),
        "avx512_vnni": ("os_avx", "os_avx512"),
        "avx512_bf16": ("os_avx", "os_avx512"),
        "amx": ("os_avx", "os_avx512", "os_amx", "amx_permission"),
    }
    have = facts | state | {"amx_permission": amx_permission}
    variants = [
        {
            "name": name,
            "missing": (missing := [f for f in (*required, *needs[name]) if not have[f]]),
            "supported": not missing,
        }
        for name, required in REQUIRED_FEATURES.items()
    ]
    return {
        "vendor": "GenuineIntel",
        "brand": " Intel(R) Xeon(R) ",
        "features": facts,
        "xcr0": xcr0,
        **state,
        "amx_permission": amx_permission,
        "variants": variants,
    }


def supported(report: IsaReport) -> list[str]:
    return [variant.name for variant in report.variants if variant.supported]


def missing(report: IsaReport, name: str) -> tuple[str, ...]:
    return next(variant.missing for variant in report.variants if variant.name == name)


def test_everything_runs_where_both_sources_agree() -> None:
    report = assess_isa(native_report(), XEON)
    assert supported(report) == ["amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "generic"]
    assert report.source == "native"
    assert report.brand == "Intel(R) Xeon(R)"
    assert report.warnings == ()


def test_amx_is_the_best_where_it_may_be_used() -> None:
    assert assess_isa(native_report(), XEON).best == "amx"
    assert assess_isa(native_report(amx_permission=False), XEON).best == "avx512_bf16"


def test_avx512_that_the_system_does_not_save_is_not_used() -> None:
    flags = XEON - {name for name in FEATURES if name.startswith(("avx512", "amx"))}
    report = assess_isa(native_report(xcr0=NO_AVX512), flags)
    assert supported(report) == ["avx2", "generic"]
    assert missing(report, "avx512") == ("os_avx512",)
    assert report.warnings == ()


def test_amx_without_permission_is_not_used_and_says_so() -> None:
    report = assess_isa(native_report(amx_permission=False), XEON)
    assert supported(report)[0] == "avx512_bf16"
    assert missing(report, "amx") == ("amx_permission",)
    assert report.amx_permission is False


def test_a_hypervisor_that_hides_xcr0_is_named_and_not_trusted() -> None:
    report = assess_isa(native_report(xcr0=0), XEON)
    assert supported(report) == ["generic"]
    assert len(report.warnings) == 1
    assert "XCR0 (0x0)" in report.warnings[0]
    assert "avx2" in report.warnings[0]


def test_a_feature_that_the_kernel_switched_off_counts_as_missing() -> None:
    report = assess_isa(native_report(), XEON - {"avx512_bf16"})
    assert supported(report) == ["avx512_vnni", "avx512", "avx2", "generic"]
    assert missing(report, "avx512_bf16") == ("avx512_bf16",)
    assert report.features["avx512_bf16"] is False
    assert "COREBOUND_ISA" in report.warnings[0]


def test_without_the_native_library_cpuinfo_decides_and_amx_stays_off() -> None:
    report = assess_isa(None, XEON, brand="Xeon", native_problem="it was not built")
    assert report.source == "cpuinfo"
    assert supported(report) == ["avx512_bf16", "avx512_vnni", "avx512", "avx2", "generic"]
    assert missing(report, "amx") == ("amx_permission",)
    assert report.amx_permission is None
    assert report.xcr0 is None
    assert "it was not built" in report.warnings[0]


def test_cpuinfo_without_flags_leaves_the_native_report_alone_in_charge() -> None:
    report = assess_isa(native_report(xcr0=NO_AMX), None)
    assert supported(report)[0] == "avx512_bf16"
    assert "native report alone" in report.warnings[0]


def test_with_neither_source_only_generic_runs() -> None:
    report = assess_isa(None, None, native_problem="it was not built")
    assert report.source == "none"
    assert supported(report) == ["generic"]
    assert report.best == "generic"
    assert len(report.warnings) == 1


def test_files_of_another_machine_need_no_native_report() -> None:
    assert assess_isa(None, XEON).warnings == ()
    assert assess_isa(None, None).warnings == ()


def test_an_old_processor_names_what_each_variant_lacks() -> None:
    report = assess_isa(None, {"avx", "avx2", "fma", "f16c"})
    assert supported(report) == ["avx2", "generic"]
    assert missing(report, "avx512") == ("avx512f", "avx512bw", "avx512vl", "avx512dq")
    assert report.os_avx is True
    assert report.os_avx512 is False


@pytest.mark.native
def test_the_table_of_required_features_is_that_of_the_native_library() -> None:
    from corebound.topology.native_report import native_isa_report

    report = native_isa_report()
    present = {name for name, value in report["features"].items() if value}
    for variant in report["variants"]:
        expected = {name for name in REQUIRED_FEATURES[variant["name"]] if name not in present}
        assert {name for name in variant["missing"] if not name.startswith("os_")} - {"amx_permission"} == expected
