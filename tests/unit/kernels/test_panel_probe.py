from __future__ import annotations

import struct

import pytest

from corebound.errors import KernelError
from corebound.kernels.panel_format import PANEL_OUTPUTS, Kind, PanelFormat
from corebound.kernels.panel_probe import FILL, FORMATS, random_panel


def bfloat16(data: bytes) -> list[float]:
    pairs = (data[at : at + 2] for at in range(0, len(data), 2))
    return [float(struct.unpack("<f", b"\0\0" + pair)[0]) for pair in pairs]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_random_panel_is_as_large_as_one_and_always_the_same(kind: Kind) -> None:
    form = FORMATS[kind]
    panel = random_panel(form, 300)
    assert len(panel) == form.matrix_bytes(PANEL_OUTPUTS, 300) and panel == random_panel(form, 300)


def test_plain_random_weights_are_of_either_sign_and_about_a_hundredth() -> None:
    values = bfloat16(random_panel(FORMATS["bfloat16"], 64))
    assert {0.0078 <= abs(value) < 0.016 for value in values} == {True}
    assert 0.4 < sum(value < 0 for value in values) / len(values) < 0.6


@pytest.mark.parametrize(("kind", "middle"), [("int8", 128), ("int4", 8)])
def test_rounded_random_weights_are_about_a_hundredth_around_zero(kind: Kind, middle: int) -> None:
    form = FORMATS[kind]
    panel, group = random_panel(form, 256), form.group_inputs(256)
    num_codes = group * PANEL_OUTPUTS * (1 if kind == "int8" else 0.5)
    codes, after = panel[: int(num_codes)], panel[int(num_codes) :]
    (scale,) = set(bfloat16(after[: 2 * PANEL_OUTPUTS]))
    if form.asymmetric:
        assert set(after[2 * PANEL_OUTPUTS : 3 * PANEL_OUTPUTS]) == {middle}
    spread = [byte & 15 for byte in codes] if kind == "int4" else list(codes)
    mean = sum(abs(code - middle) * scale for code in spread) / len(spread)
    assert 0.004 < mean < 0.016
    assert abs(sum(spread) / len(spread) - middle) < 0.05 * middle + 0.5


def test_random_codes_with_scales_that_are_no_bfloat16_are_refused() -> None:
    with pytest.raises(KernelError, match="expected scales in bfloat16, found float16"):
        random_panel(PanelFormat(kind="int8", scale_kind="float16"), 64)


def test_a_filled_region_is_of_small_weights_in_every_format() -> None:
    (plain,) = bfloat16(bytes([FILL, FILL]))
    assert 1e-5 < plain < 1e-3
    # Codes of eight bits around 128, nibbles around the zero point that is the same byte.
    assert all(
        1e-3 < abs(code - zero) * plain < 2e-2 for code, zero in ((FILL, 128), (FILL & 15, FILL), (FILL >> 4, FILL))
    )
