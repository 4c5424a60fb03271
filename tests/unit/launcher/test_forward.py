from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.errors import ConfigError
from corebound.launcher.forward import forwarded, looks_secret


def test_settings_of_runtimes_go_to_other_hosts_and_the_rest_stays() -> None:
    wanted = {
        "OMP_NUM_THREADS": "4", "KMP_BLOCKTIME": "1", "GOMP_SPINCOUNT": "0", "CCL_WORKER_OFFLOAD": "0",
        "FI_PROVIDER": "tcp", "I_MPI_WAIT_MODE": "1", "GLOO_SOCKET_IFNAME": "eth0", "COREBOUND_COMM": "gloo",
        "PYTHONPATH": "/x", "LD_LIBRARY_PATH": "/l", "LD_PRELOAD": "p.so", "MALLOC_CONF": "c", "HF_HOME": "/h",
        "TOKENIZERS_PARALLELISM": "false", "HF_TOKEN_PATH": "/run/token",
    }  # fmt: skip
    private = {"HOME": "/root", "PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "s", "COREBOUND_JOB_ID": "x", "EDITOR": "vi"}
    assert forwarded({**wanted, **private}) == (wanted, ())


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "FI_SECRET", "CCL_PASSWORD", "OMP_APIKEY", "hf_token", "X_KEY_ID"]
)
def test_a_name_that_says_secret_is_one(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "KEYBOARD", "FI_PROVIDER", "HF_HOME"])
def test_a_name_that_only_contains_such_a_word_is_none(name: str) -> None:
    assert not looks_secret(name)


def test_more_can_be_asked_for_by_name_and_by_prefix_but_no_secret() -> None:
    environ = {"MINE": "1", "MINE_TOO": "2", "APP_A": "3", "APP_TOKEN": "4", "MY_KEY": "5"}
    chosen, warnings = forwarded(environ, "MINE, APP_*,MY_KEY")
    assert chosen == {"MINE": "1", "APP_A": "3"}
    assert warnings == (
        "MY_KEY does not go to other hosts, it looks like a secret: put it into a file on each of them",
    )


def test_a_token_that_ranks_may_wait_for_is_named_though_nobody_asked() -> None:
    assert forwarded({"HF_TOKEN": "s"})[0] == {}
    assert "HF_TOKEN" in forwarded({"HF_TOKEN": "s"})[1][0]


@pytest.mark.parametrize("export", ["*", "A B", "A-B", "A,*B"])
def test_what_cannot_be_a_name_is_refused(export: str) -> None:
    with pytest.raises(ConfigError, match="COREBOUND_EXPORT"):
        forwarded({}, export)


@given(st.dictionaries(st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,20}\Z"), st.text(max_size=5), max_size=8))
def test_whatever_the_environment_no_secret_leaves(environ: dict[str, str]) -> None:
    chosen, _ = forwarded(environ, "A*,B*,H*,T*")
    assert not any(looks_secret(name) for name in chosen)
    assert chosen.items() <= environ.items()
