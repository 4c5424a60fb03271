"""Which variables ranks on other hosts need: the one list for the launcher and for accelerators. Never a secret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Runtimes that ranks use, by the prefix of their variables.
PREFIXES = (
    "ATEN_", "CCL_", "COREBOUND_", "DNNL_", "FI_", "GLOO_", "GOMP_", "HF_", "I_MPI_", "KMP_", "MALLOC_", "MKL_",
    "MLFLOW_", "OMP_", "ONEDNN_", "PSM3_", "PYTHON", "PYTORCH_", "TOKENIZERS_", "TORCH_", "TRANSFORMERS_", "UCX_",
)  # fmt: skip
NAMES = ("LD_LIBRARY_PATH", "LD_PRELOAD", "NO_COLOR", "TZ")
# Each launch, or each host, has its own.
_OWN = ("COREBOUND_AGENT_SECRET", "COREBOUND_EXPORT", "COREBOUND_JOB_ID", "PYTHONHOME")
_SECRET_ENDS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "KEY")
_HARMLESS_ENDS = ("_PATH", "_FILE", "_DIR")


def looks_secret(name: str) -> bool:
    """Return whether a variable's name says that its value is a secret; the path of a file that holds one is not."""
    if name.upper().endswith(_HARMLESS_ENDS):
        return False
    return any(word.endswith(_SECRET_ENDS) for word in name.upper().split("_"))


def exported(
    environ: Mapping[str, str],
    *,
    names: Iterable[str] = NAMES,
    prefixes: Iterable[str] = PREFIXES,
    with_secrets: bool = False,
) -> dict[str, str]:
    """Return the variables of an environment that are on the lists, by name; secrets only where asked for them."""
    listed, starts = frozenset(names), tuple(prefixes)
    return {
        name: value
        for name, value in sorted(environ.items())
        if (name in listed or name.startswith(starts)) and name not in _OWN and (with_secrets or not looks_secret(name))
    }
