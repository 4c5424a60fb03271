"""Instruction sets by CPU and operating system: the native report, checked against /proc/cpuinfo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_bf16",
    "avx512_vnni",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)


@dataclass(frozen=True)
class IsaVariant:
    """A kernel variant, whether it can run here, and what is missing if it cannot."""

    name: str
    supported: bool
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class IsaReport:
    """Instruction sets that can really be used; `variants` best first, ending in `generic`.

    The flags and xcr0 are None where nothing that was read tells them.
    """

    source: Literal["native", "cpuinfo", "none"]
    brand: str = ""
    features: Mapping[str, bool] = field(default_factory=dict)
    variants: tuple[IsaVariant, ...] = (IsaVariant("generic", True),)
    xcr0: int | None = None
    os_avx: bool | None = None
    os_avx512: bool | None = None
    os_amx: bool | None = None
    amx_permission: bool | None = None
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The name of the best variant that can run."""
        return next(variant.name for variant in self.variants if variant.supported)


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
_AVX512_VNNI = (*_AVX512, "avx512_vnni")
_AVX512_BF16 = (*_AVX512_VNNI, "avx512_bf16")
_AMX = (*_AVX512_BF16, "amx_tile", "amx_bf16", "amx_int8")

# What each variant needs, best first; csrc/isa decides at run time, this table serves where it cannot be asked.
REQUIRED_FEATURES: dict[str, tuple[str, ...]] = {
    "amx": _AMX,
    "avx512_bf16": _AVX512_BF16,
    "avx512_vnni": _AVX512_VNNI,
    "avx512": _AVX512,
    "avx2": _AVX2,
    "generic": (),
}


def assess_isa(
    native: Mapping[str, Any] | None,
    flags: Iterable[str] | None,
    *,
    brand: str = "",
    native_problem: str | None = None,
) -> IsaReport:
    """Return what can be used, given the native report and the flags of /proc/cpuinfo (None where there is none).

    A feature on which the two disagree counts as missing and is named in a warning. `native_problem` says why there
    is no native report where one was due; None where none can be, as for another machine's files.
    """
    known = None if flags is None else {name: name in set(flags) for name in FEATURES}
    if native is None:
        return _from_flags(known, set(flags or ()), brand, native_problem)
    return _from_native(native, known, brand)


def _from_flags(known: dict[str, bool] | None, flags: set[str], brand: str, problem: str | None) -> IsaReport:
    if known is None:
        unknown_warning = f"instruction sets are unknown: no native report ({problem}) and no flags in /proc/cpuinfo"
        unknown = tuple(IsaVariant(name, not needs, needs) for name, needs in REQUIRED_FEATURES.items())
        return IsaReport("none", brand=brand, variants=unknown, warnings=(unknown_warning,) if problem else ())
    warning = f"instruction sets are those of /proc/cpuinfo alone: no native report ({problem})"
    variants = []
    for name, needs in REQUIRED_FEATURES.items():
        missing = tuple(feature for feature in needs if not known[feature])
        if name == "amx" and not missing:
            missing = ("amx_permission",)  # only the native library can ask for it
        variants.append(IsaVariant(name, not missing, missing))
    return IsaReport(
        "cpuinfo",
        brand=brand,
        features=known,
        variants=tuple(variants),
        # The kernel drops a flag from /proc/cpuinfo when it does not switch on the register state behind it.
        os_avx="avx" in flags,
        os_avx512="avx512f" in flags,
        os_amx="amx_tile" in flags,
        warnings=(warning,) if problem else (),
    )


def _from_native(native: Mapping[str, Any], known: dict[str, bool] | None, brand: str) -> IsaReport:
    features = {name: bool(native["features"].get(name, False)) for name in FEATURES}
    os_state = {"avx": native["os_avx"], "avx512": native["os_avx512"], "amx": native["os_amx"]}
    warnings = []
    unconfirmed: set[str] = set()
    if known is None:
        warnings.append("instruction sets are those of the native report alone: no flags in /proc/cpuinfo")
    else:
        usable = {name: features[name] and bool(os_state[_state_of(name)]) for name in FEATURES}
        unconfirmed = {name for name in FEATURES if usable[name] and not known[name]}
        hidden = [name for name in FEATURES if known[name] and not usable[name]]
        if hidden:
            warnings.append(
                f"/proc/cpuinfo lists {', '.join(hidden)}, but CPUID and XCR0 ({int(native['xcr0']):#x}) do not "
                "confirm it; a hypervisor may hide state. Treated as missing"
            )
        if unconfirmed:
            warnings.append(
                f"CPUID and XCR0 report {', '.join(sorted(unconfirmed))}, but /proc/cpuinfo does not list it; the "
                "kernel may have it switched off. Treated as missing: set COREBOUND_ISA to a variant without it"
            )
    variants = []
    for row in native["variants"]:
        doubted = tuple(name for name in REQUIRED_FEATURES.get(row["name"], ()) if name in unconfirmed)
        missing = tuple(str(item) for item in row["missing"])
        variants.append(IsaVariant(row["name"], bool(row["supported"]) and not doubted, missing + doubted))
    return IsaReport(
        "native",
        brand=str(native.get("brand") or brand).strip(),
        features={name: value and name not in unconfirmed for name, value in features.items()},
        variants=tuple(variants),
        xcr0=int(native["xcr0"]),
        os_avx=bool(native["os_avx"]),
        os_avx512=bool(native["os_avx512"]),
        os_amx=bool(native["os_amx"]),
        amx_permission=bool(native["amx_permission"]),
        warnings=tuple(warnings),
    )


def _state_of(feature: str) -> str:
    """Return the register state that a feature needs from the operating system."""
    if feature.startswith("amx"):
        return "amx"
    return "avx512" if feature.startswith("avx512") else "avx"
