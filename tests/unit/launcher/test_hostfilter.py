from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.errors import ConfigError
from corebound.launcher.hostfile import Host
from corebound.launcher.hostfilter import HostSpec, parse_filter, render_filter, select_slots

CLUSTER = (Host("worker-0", 4), Host("worker-1", 2), Host("fe80::1", 2))

names = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,10}[a-z0-9])?", fullmatch=True) | st.ip_addresses().map(str)
slots = st.none() | st.sets(st.integers(0, 4095), min_size=1, max_size=6).map(lambda found: tuple(sorted(found)))
specs = st.lists(st.builds(HostSpec, names, slots), min_size=1, max_size=5, unique_by=lambda spec: spec.name).map(tuple)


def include(text: str) -> dict[str, tuple[int, ...]]:
    return select_slots(CLUSTER, parse_filter(text, where="--include"), None)


def exclude(text: str) -> dict[str, tuple[int, ...]]:
    return select_slots(CLUSTER, None, parse_filter(text, where="--exclude"))


def test_including_a_host_without_slots_takes_the_whole_host() -> None:
    assert include("worker-0") == {"worker-0": (0, 1, 2, 3)}
    assert include("worker-0@worker-1:0") == {"worker-0": (0, 1, 2, 3), "worker-1": (0,)}


def test_hosts_follow_the_hostfile_and_slots_are_sorted() -> None:
    assert include("worker-1:1,0@worker-0:2") == {"worker-0": (2,), "worker-1": (0, 1)}


@pytest.mark.parametrize(("text", "column"), [("worker-0:0,0", 12), ("worker-1@[fe80::1]:1,0,01", 24)])
def test_a_slot_that_an_entry_names_twice_is_an_error_with_its_column(text: str, column: int) -> None:
    slot = int(text[column - 1 :])
    with pytest.raises(ConfigError, match=f"--include, column {column}: slot {slot} is named twice"):
        include(text)


def test_several_entries_of_one_host_are_merged() -> None:
    assert include("worker-0:0@worker-0:3") == {"worker-0": (0, 3)}
    assert include("worker-0:0@worker-0") == {"worker-0": (0, 1, 2, 3)}


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert include("[fe80::1]:1") == {"fe80::1": (1,)}
    assert include("[fe80::1]") == {"fe80::1": (0, 1)}


def test_excluding_leaves_out_slots_and_emptied_hosts() -> None:
    assert exclude("worker-0:0,1@worker-1") == {"worker-0": (2, 3), "fe80::1": (0, 1)}
    assert exclude("worker-1:0@worker-1:1") == {"worker-0": (0, 1, 2, 3), "fe80::1": (0, 1)}


def test_excluding_everything_is_an_error() -> None:
    with pytest.raises(ConfigError, match="leaves no slot"):
        exclude("worker-0@worker-1@[fe80::1]")


def test_a_slot_beyond_the_host_is_an_error() -> None:
    with pytest.raises(ConfigError, match="host worker-1 has slots 0 to 1, found slot 7"):
        include("worker-1:7")


def test_an_unknown_host_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown host 'worker-2'") as caught:
        exclude("worker-2")
    assert caught.value.hint is not None and "did you mean `worker-" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("", 1, "expected a host name, found nothing"),
        ("a@", 3, "expected a host name, found nothing"),
        ("a:", 3, "expected a slot number, found nothing"),
        ("a:0,", 5, "expected a slot number, found nothing"),
        ("a:0,x", 5, "expected a slot number, found 'x'"),
        ("a:0:1", 4, "expected a slot, found ':'"),
        ("fe80::1", 6, "expected a slot, found ':'"),
        ("[fe80::1", 1, "expected ] after '[fe80::1'"),
        ("[fe80::1]0", 10, "expected : or @, found '0'"),
        ("[worker]", 2, "expected a host name, found 'worker'"),
        ("a b", 1, "expected a host name, found 'a b'"),
        ("b@a:-1", 5, "expected a slot number, found '-1'"),
        ("a:99999", 3, "expected a slot number, found '99999'"),
    ],
)
def test_what_does_not_fit_is_named_with_flag_and_column(text: str, column: int, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_filter(text, where="--include")
    assert caught.value.message.startswith(f"--include, column {column}: ")
    assert problem in caught.value.message


@given(specs)
def test_what_is_rendered_is_read_back(expected: tuple[HostSpec, ...]) -> None:
    assert parse_filter(render_filter(expected), where="--include") == expected


@given(st.text(alphabet=st.sampled_from("ab0:@,[]1") | st.characters(), max_size=30))
def test_any_text_is_a_filter_or_a_config_error(text: str) -> None:
    try:
        found = parse_filter(text, where="--include")
    except ConfigError as error:
        assert error.message.startswith("--include, column ")
    else:
        assert parse_filter(render_filter(found), where="--include") == found
