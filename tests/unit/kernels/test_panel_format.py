from __future__ import annotations

import pytest

from corebound.errors import KernelError
from corebound.kernels.panel_format import PanelFormat


@pytest.mark.parametrize(
    ("form", "num_bytes"),
    [
        (PanelFormat(), 2 * 128 * 96),
        # Codes of a byte, and 64 two-byte scales a panel.
        (PanelFormat(kind="int8"), 2 * (64 * 96 + 128)),
        # 70 inputs fill one group of 128: half a byte each, and a scale and a zero for each output.
        (PanelFormat(kind="int4", group_size=128, asymmetric=True), 2 * (32 * 128 + 64 * 3)),
        (PanelFormat(kind="int4", group_size=32, scale_kind="float32"), 2 * (32 * 96 + 3 * 64 * 4)),
    ],
)
def test_a_matrix_takes_whole_panels_and_groups(form: PanelFormat, num_bytes: int) -> None:
    assert form.matrix_bytes(65, 70) == num_bytes


def test_groups_that_no_kernel_takes_are_refused() -> None:
    with pytest.raises(KernelError, match="a multiple of 32 inputs up to 128, or a multiple of that, found 48"):
        PanelFormat(kind="int8", group_size=48)
