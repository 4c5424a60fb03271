from __future__ import annotations

import ctypes

import pytest

from corebound.kernels.panel_format import INPUT_UNIT, KINDS, SCALE_KINDS, Kind, PanelFormat, ScaleKind, matrix_struct
from corebound.kernels.panels import library

pytestmark = pytest.mark.native


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale_kind", SCALE_KINDS)
@pytest.mark.parametrize("group_size", [None, INPUT_UNIT, 128])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_sizes_computed_without_the_library_are_the_library_s(
    kind: Kind, scale_kind: ScaleKind, group_size: int | None, asymmetric: bool
) -> None:
    form = PanelFormat(kind=kind, group_size=group_size, asymmetric=asymmetric, scale_kind=scale_kind)
    for outputs, inputs in ((64, 64), (65, 70), (4096, 5632), (1, 1), (250880, 1024)):
        struct = matrix_struct(outputs, inputs, form)
        assert form.matrix_bytes(outputs, inputs) == library().corebound_panel_matrix_bytes(ctypes.byref(struct))
