from __future__ import annotations

import pytest

from corebound.errors import KernelError
from corebound.kernels.panel_probe import FORMATS, AlignedMemory, PanelProbe
from corebound.models.decoder_probe import DecoderProbe, ProbeShape
from corebound.topology import read_topology


def test_a_layer_counts_its_bytes_inputs_and_positions() -> None:
    shape = ProbeShape(num_layers=2, num_heads=4, num_kv_heads=2, hidden=128, inner=256)
    weights = (256 + 2 * 128) * 128 + 128 * 256 + 256 * 128 + 128 * 256
    assert (shape.layer_weights, shape.layer_bytes, shape.layer_inputs) == (weights, 2 * weights, 128 + 256 + 128 + 256)
    assert shape.cached_bytes == 2 * 2 * 2 * 64


def test_layers_that_do_not_fit_their_memory_are_refused() -> None:
    shape = ProbeShape(num_layers=3)
    with pytest.raises(KernelError, match=f"3 layers take {3 * shape.layer_bytes} bytes, expected up to 4096"):
        DecoderProbe((0,), shape, tokens=1, memory=AlignedMemory(4096))


@pytest.mark.native
@pytest.mark.parametrize("kind", FORMATS)
def test_a_longer_context_takes_longer_and_a_prompt_longer_still(kind: str) -> None:
    cpu = read_topology().physical_cores()[0].cpus[0]
    form = next(form for form in FORMATS.values() if form.kind == kind)
    shape = ProbeShape(num_layers=2, hidden=256, inner=256, form=form)
    probe = DecoderProbe((cpu,), shape, tokens=2048, memory=PanelProbe((cpu,), 2 * shape.layer_bytes).memory)
    short_s, long_s, prompt_s = probe.next_seconds(1, 9), probe.next_seconds(2048, 9), probe.prompt_seconds(1)
    probe.close()
    assert short_s < long_s < prompt_s
