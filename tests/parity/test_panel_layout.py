"""The bytes of panels, which files of `corebound shard` hold: whoever changes them must raise the layout's version."""

from __future__ import annotations

import hashlib

import pytest
import torch

from corebound.kernels.panel_layout import LAYOUT_VERSION
from corebound.kernels.panels import PanelFormat, PanelMatrix

pytestmark = pytest.mark.native

OUTPUTS, INPUTS = 70, 100
# By layout version: digests of the matrices below. A new layout gets a new version and new digests.
DIGESTS = {
    1: {
        "bfloat16": "068cb303e35d0f7f2c89fef35b67e2ad9ad158fb9ba742dcf67272d1cc738013",
        "int8": "c4604b5f8a2b0ba2bc6149ad46678956b12c54c40d406a08d6d4de0ca353e9c8",
        "int4-asymmetric": "185e0a344d416ebd7f4723ea0fcc4fe5e625ad90b98f7db9cbaf5bb557064587",
        "int4-float32": "cff9117256c58295ee14fdc888f5f0a7eaddb9cb502001de76dac46669f9e354",
        "int8-gated": "450a1d6436807841bd8d52e045ea11debbbdf945489494849b38e40b673e34e6",
    },
}
FORMS = {
    "bfloat16": PanelFormat(),
    "int8": PanelFormat(kind="int8"),
    "int4-asymmetric": PanelFormat(kind="int4", group_size=32, asymmetric=True, scale_kind="float16"),
    "int4-float32": PanelFormat(kind="int4", group_size=64, scale_kind="float32"),
    "int8-gated": PanelFormat(kind="int8", group_size=32, asymmetric=True),
}


def digest(name: str) -> str:
    form = FORMS[name]
    matrix = PanelMatrix(OUTPUTS, INPUTS, form, gated=name.endswith("gated"))
    memory = torch.zeros(matrix.num_bytes + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    matrix.place(memory[start : start + matrix.num_bytes])
    numbers = torch.arange(OUTPUTS * INPUTS).view(OUTPUTS, INPUTS) * 7
    if form.kind == "bfloat16":
        matrix.put(0, (numbers % 251 - 125).bfloat16())
    else:
        largest = 256 if form.kind == "int8" else 16
        groups = torch.arange(OUTPUTS * matrix.num_groups).view(OUTPUTS, matrix.num_groups)
        scales, zeros = (groups % 17 + 1) / 64, (groups * 5 % largest).float()
        matrix.put_codes(0, (numbers % largest).to(torch.uint8), scales, zeros)
    return hashlib.sha256(matrix.memory.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", FORMS)
def test_the_bytes_are_those_of_this_version(name: str) -> None:
    assert digest(name) == DIGESTS[LAYOUT_VERSION][name], (
        "the layout of panels changed: raise LAYOUT_VERSION in kernels/panel_layout.py, and enter the digests here"
    )
