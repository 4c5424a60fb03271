"""The public operators. All tensors are on the CPU; the implementation behind each is chosen once, at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corebound.kernels.selection import active

if TYPE_CHECKING:
    from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return x normalised over its last dimension, times weight, plus bias.

    Shapes: x [T, H]; weight and bias [H]; result [T, H].
    Source: Ba et al., Layer Normalization (2016).
    """
    return active.layer_norm(x, weight, bias, eps)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the layer norm of x + residual, and x + residual for the next residual connection.

    Shapes: x, residual and both results [T, H]; weight and bias [H].
    """
    return active.add_layer_norm(x, residual, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x divided by the root mean square of its last dimension, times weight, in the type of x.

    A weight in float32 with rows of 16 bits is multiplied in float32, by the reference on every machine.

    Shapes: x [T, H]; weight [H]; result [T, H].
    Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019).
    """
    return active.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the RMS norm of x + residual, and x + residual for the next residual connection.

    A weight in float32: as rms_norm.

    Shapes: x, residual and both results [T, H]; weight [H].
    """
    return active.add_rms_norm(x, residual, weight, eps)


def split_qkv(
    qkv: Tensor, layout: str, num_heads: int, num_kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v of a fused projection.

    `layout` is `per_head` (for each head its q, k and v, as in BLOOM) or `stacked` (all q, then all k, then all v).

    Shapes: qkv [T, (Hq + 2 Hkv) D]; q [T, Hq, D]; k and v [T, Hkv, D].

    Raises: KernelError for another layout, or per_head with Hq different from Hkv.
    """
    return active.split_qkv(qkv, layout, num_heads, num_kv_heads, head_dim)


def rotary(
    q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Return q and k rotated by the angles of their tokens' positions.

    Dimension i turns with i + R/2 (the default), or 2i with 2i + 1 (`interleaved`), where R = 2 * cos.shape[1]; the
    dimensions from R on are returned unchanged.

    Shapes: q [T, Hq, D]; k [T, Hkv, D]; positions [T] int64; cos and sin [P, R/2] float32 with R <= D.
    Source: Su et al., RoFormer (2021).
    """
    return active.rotary(q, k, positions, cos, sin, interleaved)


def store_kv(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Write each token's keys and values to its slot (block * block_size + offset) of the cache.

    Shapes: k and v [T, Hkv, D]; caches [blocks, Hkv, block_size, D]; slots [T] int64.
    """
    active.store_kv(k, v, key_cache, value_cache, slots)


def attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    scale: float,
    alibi_slopes: Tensor | None = None,
    kv_heads: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    """Return causal attention of every sequence's queries over its cached keys and values.

    Sequence b has the queries `query_starts[b]` to `query_starts[b + 1]`, the last of which sees
    `context_lengths[b]` keys, this step's included, and each one before it one key fewer. With `alibi_slopes` the score
    of a key is lowered by slope times its distance. `kv_heads` names the kv head that each query head reads; without
    it query heads share kv heads in groups of equal size. With a `window` a query sees the last so many keys up to its
    own.

    Shapes: q and result [T, Hq, D]; caches [blocks, Hkv, block_size, D]; block_tables [B, max_blocks] int32;
    query_starts [B + 1] int32; context_lengths [B] int32; alibi_slopes [Hq] float32; kv_heads [Hq] int32.
    Source: Kwon et al., Efficient Memory Management for LLM Serving with PagedAttention (2023), for caches in blocks;
    Press et al., Train Short, Test Long (2022), for the slopes; Ainslie et al., GQA (2023), for the groups.
    """
    return active.attention(
        q, key_cache, value_cache, block_tables, query_starts, context_lengths, scale, alibi_slopes, kv_heads, window
    )


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """Return the Gaussian error linear unit of x, by the tanh formula (`tanh`) or the error function (`none`).

    Shapes: x and result any.
    Raises: KernelError for another approximation.
    Source: Hendrycks and Gimpel, Gaussian Error Linear Units (2016), for both forms.
    """
    return active.gelu(x, approximate)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, where gate is the first half of each row and up the second.

    Shapes: gate_up [T, 2 I]; result [T, I].
    Source: Shazeer, GLU Variants Improve Transformer (2020), where it is SwiGLU without the matrices.
    """
    return active.silu_mul(gate_up)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x times weight transposed, plus bias.

    Up to `native.MAX_LINEAR_ROWS` rows are a matrix-vector product bound by memory, done by a kernel that reads the
    weight once; more rows are arithmetic and go to torch.

    Shapes: x [T, K]; weight [N, K]; bias [N]; result [T, N].
    """
    return active.linear(x, weight, bias)
