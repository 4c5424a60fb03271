from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.errors import ConfigError
from corebound.launcher.hostfile import Host, parse_hostfile, read_hostfile, render_hostfile

names = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,10}[a-z0-9])?", fullmatch=True) | st.ip_addresses().map(str)
hosts = st.lists(
    st.builds(Host, names, st.integers(1, 4096)), min_size=1, max_size=8, unique_by=lambda host: host.name
).map(tuple)


def test_order_comments_blank_lines_and_addresses_are_kept_apart() -> None:
    text = "# cluster\n\nworker-0 slots=2\n  10.0.0.7   slots=4  # rack 3\r\n\t\nfe80::1 slots=1#x\nb.example slots=02"
    assert parse_hostfile(text) == (
        Host("worker-0", 2),
        Host("10.0.0.7", 4),
        Host("fe80::1", 1),
        Host("b.example", 2),
    )


def test_the_form_of_intel_mpi_and_mpich_is_read_too() -> None:
    text = "# by the operator\njob-worker-0.job.ns.svc:2\n10.0.0.7:1 # rack 3\nlast slots=4\n"
    assert parse_hostfile(text) == (Host("job-worker-0.job.ns.svc", 2), Host("10.0.0.7", 1), Host("last", 4))


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("a:1\na:2\n", "line 2, column 1", "host a is already on line 1"),
        ("a:0", "line 1, column 3", "from 1 to 4096, found '0'"),
        (" a:2 b:2", "line 1, column 6", "expected the end of the line, found 'b:2'"),
        ("a slots=1\n\nb slots=2\n a slots=3\n", "line 4, column 2", "host a is already on line 1"),
        ("a slots=4junk", "line 1, column 9", "found '4junk'"),
        ("a slots=4 junk # x", "line 1, column 11", "expected the end of the line, found 'junk'"),
        ("a slots=0", "line 1, column 9", "from 1 to 4096, found '0'"),
        ("a slots=-2", "line 1, column 9", "found '-2'"),
        ("a slots=", "line 1, column 9", "found nothing"),
        ("a slots=9999999", "line 1, column 9", "found '9999999'"),
        ("a slots=٣", "line 1, column 9", "found '٣'"),
        ("# x\na", "line 2, column 2", "expected slots=N after a, found nothing"),
        ("a 4", "line 1, column 3", "expected slots=N, found '4'"),
        ("a slot=4", "line 1, column 3", "expected slots=N, found 'slot=4'"),
        ("a slots = 4", "line 1, column 3", "expected slots=N, found 'slots'"),
        ("slots=4 a", "line 1, column 1", "expected a host name, found 'slots=4'"),
        ("-x slots=4", "line 1, column 1", "expected a host name, found '-x'"),
        ("a,b slots=4", "line 1, column 1", "expected a host name, found 'a,b'"),
    ],
)
def test_a_line_that_does_not_fit_is_named_with_file_line_and_column(text: str, place: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_hostfile(text, source="cluster.txt")
    assert caught.value.message.startswith(f"cluster.txt, {place}: ")
    assert problem in caught.value.message


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n"])
def test_a_hostfile_without_hosts_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="at least one host"):
        parse_hostfile(text)


def test_a_named_hostfile_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """DSE #575: a mistyped hostfile path "silently ran on one node"."""
    with pytest.raises(ConfigError, match=r"hostfile .*/nowhere: no such file"):
        read_hostfile(tmp_path / "nowhere")


def test_a_directory_or_bytes_that_are_no_text_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        read_hostfile(tmp_path)
    (tmp_path / "hosts").write_bytes(b"a slots=1\n\xff")
    with pytest.raises(ConfigError, match="expected UTF-8 text, found byte 0xff"):
        read_hostfile(tmp_path / "hosts")


@given(hosts)
def test_what_is_rendered_is_read_back(expected: tuple[Host, ...]) -> None:
    assert parse_hostfile(render_hostfile(expected)) == expected


@given(st.text(alphabet=st.sampled_from("ab slots=014#\n\t") | st.characters(), max_size=60))
def test_any_text_is_a_list_of_hosts_or_a_config_error(text: str) -> None:
    try:
        found = parse_hostfile(text)
    except ConfigError as error:
        assert error.message.startswith("hostfile")
    else:
        assert found and all(host.num_slots >= 1 for host in found)
