"""Pieces of grouped-query attention (arXiv 2305.13245) that the families put together."""

import mlx.core as mx
from jaxtyping import Float

from macmoe.nn.positions import Band, Mask


def split_heads(
    x: Float[mx.array, "batch length _"], head_dim: int
) -> Float[mx.array, "batch length heads head_dim"]:
    """Cut the last axis into heads."""
    return x.reshape(*x.shape[:2], -1, head_dim)


def merge_heads(x: Float[mx.array, "batch heads length head_dim"]) -> Float[mx.array, "batch length _"]:
    """Put the heads side by side again."""
    batch, _, length, _ = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, -1)


def attend(
    queries: Float[mx.array, "batch heads length head_dim"],
    keys: Float[mx.array, "batch kv_heads keys head_dim"],
    values: Float[mx.array, "batch kv_heads keys value_dim"],
    *,
    scale: float,
    mask: Mask,
    sinks: Float[mx.array, " heads"] | None = None,
) -> Float[mx.array, "batch heads length value_dim"]:
    """Compute softmax(scale * q.k) v, the softmax in float32.

    Query head h uses key head h // (heads / kv_heads). A sink is one more logit per head, after scaling and
    masking, without a value: it takes probability away.
    """
    if isinstance(mask, Band):
        return _attend_in_blocks(queries, keys, values, scale=scale, band=mask, sinks=sinks)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)


def _attend_in_blocks(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    band: Band,
    sinks: mx.array | None,
) -> mx.array:
    """Attend block by block: with a window of w, a token needs 2 w of the keys at most, not all."""
    batch, heads, length, _ = queries.shape
    window, blocks = band.window, length // band.window

    def cut(x: mx.array) -> mx.array:
        """Return [batch * blocks, heads, window, dim]."""
        x = x.reshape(batch, x.shape[1], blocks, window, -1).transpose(0, 2, 1, 3, 4)
        return x.reshape(batch * blocks, *x.shape[2:])

    def cut_with_last(x: mx.array) -> mx.array:
        """Return each block behind the one before it [batch * blocks, heads, 2 * window, dim]."""
        earlier = mx.pad(x, [(0, 0), (0, 0), (window, 0), (0, 0)])[:, :, :length]
        return mx.concatenate([cut(earlier), cut(x)], axis=2)

    visible = mx.broadcast_to(band.visible, (batch, *band.visible.shape[1:]))
    y = mx.fast.scaled_dot_product_attention(
        cut(queries),
        cut_with_last(keys),
        cut_with_last(values),
        scale=scale,
        mask=visible.flatten(0, 1),
        sinks=sinks,
    )  # [batch * blocks, heads, window, value_dim]
    y = y.reshape(batch, blocks, heads, window, -1).transpose(0, 2, 1, 3, 4)
    return y.reshape(batch, heads, length, -1)
