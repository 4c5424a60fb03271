"""The text form of schemes, on the way in and out."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from corebound.errors import ConfigError
from corebound.quantization.scheme import GROUP_SIZES, Scheme, is_scheme, parse_scheme

ALL = [Scheme(*parts) for parts in itertools.product((4, 8), (None, *GROUP_SIZES), (True, False))]


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_every_scheme_is_read_back_from_its_name(scheme: Scheme) -> None:
    assert parse_scheme(scheme.name) == scheme


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("int8", "int8:channel:sym"),
        ("int4", "int4:g128:asym"),
        ("int4:sym", "int4:g128:sym"),
        ("int8:g64", "int8:g64:sym"),
        ("int4:asym:channel", "int4:channel:asym"),
    ],
)
def test_parts_that_are_left_out_have_defaults(text: str, name: str) -> None:
    assert parse_scheme(text).name == name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("int5", "unknown width 'int5'"),
        ("", "unknown width ''"),
        ("int4:", "unknown part ''"),
        ("int4:g48", "unknown part 'g48'"),
        ("int4:g64:g64", "a second group 'g64'"),
        ("int4:sym:asym", "a second symmetry 'asym'"),
        ("int4:symm", "unknown part 'symm'"),
    ],
)
def test_a_wrong_scheme_is_an_error_that_lists_the_choices(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scheme(text)
    assert caught.value.message == f"quantization scheme {text!r}: {problem}"
    assert ":channel|g32|g64|g128 and :sym|asym; int8 is int8:channel:sym" in str(caught.value.hint)
    assert caught.value.exit_code == 2


def test_a_near_miss_gets_the_nearest_part() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scheme("int4:symm")
    assert str(caught.value.hint).startswith("did you mean `sym`? ")


def test_float_types_are_no_schemes() -> None:
    assert [is_scheme(text) for text in ("int4", "int8:g7", "bfloat16", "int16")] == [True, True, False, False]


def test_groups_are_counted_with_a_short_last_one() -> None:
    assert [Scheme(4, 32, True).num_groups(count) for count in (32, 33, 1)] == [1, 2, 1]
    assert Scheme(8, None, True).num_groups(1000) == 1


def test_naming_a_scheme_imports_no_torch() -> None:
    code = "import sys, corebound.quantization; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=60)
