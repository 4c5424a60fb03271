"""torch can trace the native operators: schemas, result shapes, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.native

BF16, INT32 = torch.bfloat16, torch.int32


def arguments() -> dict[str, tuple[Any, ...]]:
    x, weight = torch.randn(3, 8, dtype=BF16), torch.randn(8, dtype=BF16)
    q, k = torch.randn(3, 4, 8, dtype=BF16), torch.randn(3, 2, 8, dtype=BF16)
    caches = torch.randn(2, 2, 16, 8, dtype=BF16), torch.randn(2, 2, 16, 8, dtype=BF16)
    starts, lengths = torch.tensor([0, 3], dtype=INT32), torch.tensor([5], dtype=INT32)
    angles = torch.randn(10, 4)
    return {
        "layer_norm": (x, weight, weight, 1e-5),
        "add_layer_norm": (x, x, weight, weight, 1e-5),
        "rms_norm": (x, weight, 1e-5),
        "add_rms_norm": (x, x, weight, 1e-5),
        "split_qkv": (torch.randn(3, 32, dtype=BF16), False, 2, 1, 8),
        "rotary": (q, k, torch.arange(3), angles, angles, False),
        "store_kv": (k, k, *caches, torch.arange(3)),
        "attention": (q, *caches, torch.zeros(1, 1, dtype=INT32), starts, lengths, 0.3, torch.rand(4), None),
        "gelu": (x, True),
        "silu_mul": (x,),
        "panel_linear": (x, torch.zeros(64 * 32 * 2, dtype=torch.uint8), None, 5, 8, 0, 32, 1, False, False, 0),
        "linear": (x, torch.randn(5, 8, dtype=BF16), torch.randn(5, dtype=BF16)),
    }


@pytest.mark.parametrize("op", arguments().keys())
def test_schema_and_shapes_hold(op: str) -> None:
    from corebound.kernels import native

    native.load()
    torch.library.opcheck(getattr(torch.ops.corebound, op).default, arguments()[op])


def test_the_public_functions_compile_into_one_graph() -> None:
    from corebound import kernels

    x, gate, weight = torch.randn(2, 16), torch.randn(8, 16), torch.randn(16)

    def block(x: torch.Tensor) -> torch.Tensor:
        return kernels.silu_mul(kernels.linear(kernels.gelu(kernels.rms_norm(x, weight, 1e-5)), gate))

    with kernels.forced(mode="native"):
        expected = block(x)
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
