from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.errors import ConfigError
from corebound.launcher.corelist import parse_core_list, render_core_list


@pytest.mark.parametrize(
    ("text", "expected"), [("0", (0,)), ("0-3,8", (0, 1, 2, 3, 8)), ("7,9-9,11-12", (7, 9, 11, 12)), ("5-5", (5,))]
)
def test_numbers_and_ranges_are_read(text: str, expected: tuple[int, ...]) -> None:
    assert parse_core_list(text) == expected


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("", 1, "found nothing"),
        ("1-", 1, "found '1-'"),
        ("5-3", 1, "ends before it starts"),
        ("3,2", 3, "expected a CPU above 3"),
        ("1,1", 3, "expected a CPU above 1"),
        ("0-4,3-6", 5, "expected a CPU above 4"),
        ("0-1,", 5, "found nothing"),
        ("a", 1, "found 'a'"),
        ("0- 2", 1, "found '0- 2'"),
        ("0, 2", 3, "found ' 2'"),
        ("-1", 1, "found '-1'"),
        ("0-999999999", 1, "up to 65535"),
        ("٣", 1, "found '٣'"),
    ],
)
def test_what_does_not_fit_is_named_with_its_column(text: str, column: int, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_core_list(text)
    assert f"--bind_core_list, column {column}: " in caught.value.message
    assert problem in caught.value.message


@given(st.sets(st.integers(0, 600), min_size=1))
def test_what_is_rendered_is_read_back(cpus: set[int]) -> None:
    assert parse_core_list(render_core_list(cpus)) == tuple(sorted(cpus))


@given(st.text(alphabet=st.sampled_from("0123456789-, a\n") | st.characters(), max_size=20))
def test_any_text_is_a_list_or_a_config_error(text: str) -> None:
    try:
        cpus = parse_core_list(text)
    except ConfigError as error:
        assert "column" in error.message
    else:
        assert cpus and list(cpus) == sorted(set(cpus))
