from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.topology import format_cpu_list, parse_cpu_list


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("\n", ()),
        ("0", (0,)),
        ("0-3,8,10-11\n", (0, 1, 2, 3, 8, 10, 11)),
        ("8,0-1", (0, 1, 8)),
        ("0-2,1-3", (0, 1, 2, 3)),
        ("0-10:2/4", (0, 1, 4, 5, 8, 9)),
        ("16-31:1/2", tuple(range(16, 32, 2))),
    ],
)
def test_the_kernels_grammar_is_understood(text: str, expected: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == expected


@pytest.mark.parametrize(
    "text", ["a", "1-", "-1", "3-1", "1,,2", "0-3:2", "0-3:0/4", "0-3:5/4", "0x3", "1 2", "0-99999999999"]
)
def test_text_outside_the_grammar_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="CPU list"):
        parse_cpu_list(text)


@given(st.sets(st.integers(min_value=0, max_value=4096)))
def test_what_is_written_is_read_back(numbers: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(numbers)) == tuple(sorted(numbers))


@given(st.sets(st.integers(min_value=0, max_value=300), min_size=1))
def test_the_text_has_one_item_for_each_run_of_numbers(numbers: set[int]) -> None:
    num_runs = sum(1 for number in numbers if number - 1 not in numbers)
    assert len(format_cpu_list(numbers).split(",")) == num_runs


@given(
    st.integers(0, 50),
    st.integers(0, 100),
    st.integers(1, 9).flatmap(lambda group: st.tuples(st.integers(1, group), st.just(group))),
)
def test_a_stride_takes_the_first_of_every_group(first: int, length: int, stride: tuple[int, int]) -> None:
    used, group = stride
    expected = [number for start in range(first, first + length + 1, group) for number in range(start, start + used)]
    text = f"{first}-{first + length}:{used}/{group}"
    assert parse_cpu_list(text) == tuple(number for number in expected if number <= first + length)


@given(st.text(alphabet="0123456789,-:/ ", max_size=20))
def test_any_text_is_read_or_refused_with_a_reason(text: str) -> None:
    try:
        numbers = parse_cpu_list(text)
    except ValueError as error:
        assert "CPU list" in str(error)
    else:
        assert list(numbers) == sorted(set(numbers))
