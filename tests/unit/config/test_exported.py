from __future__ import annotations

from corebound.config.exported import NAMES, PREFIXES, exported, looks_secret
from corebound.launcher.forward import forwarded

ENVIRON = {
    "OMP_NUM_THREADS": "4", "FI_PROVIDER": "tcp", "HF_HOME": "/h", "HF_TOKEN": "s", "MALLOC_CONF": "x", "HOME": "/root",
    "LD_PRELOAD": "p.so", "LOCAL_SIZE": "2", "COREBOUND_JOB_ID": "j", "COREBOUND_AGENT_SECRET": "a",
    "TRANSFORMERS_API_KEY": "k",
}  # fmt: skip


def test_what_is_exported_is_on_the_list_and_no_secret() -> None:
    assert list(exported(ENVIRON)) == ["FI_PROVIDER", "HF_HOME", "LD_PRELOAD", "MALLOC_CONF", "OMP_NUM_THREADS"]


def test_secrets_are_told_only_to_who_asks_for_them() -> None:
    assert {"HF_TOKEN", "TRANSFORMERS_API_KEY"} == set(exported(ENVIRON, with_secrets=True)) - set(exported(ENVIRON))


def test_the_launcher_takes_exactly_this_list_to_other_hosts() -> None:
    assert forwarded(ENVIRON)[0] == exported(ENVIRON)


def test_no_name_of_the_list_is_a_secret_itself() -> None:
    assert not any(looks_secret(name) for name in (*PREFIXES, *NAMES))
