"""Rotary position embedding (arXiv 2104.09864) with the YaRN extension (arXiv 2309.00071).

Checked against transformers' modeling_rope_utils._compute_yarn_parameters. Frequencies are computed in
float64 on the host and rounded once.
"""

import math

import mlx.core as mx
import numpy as np
from jaxtyping import Float

from macmoe.config import RopeConfig, YarnConfig


def mscale(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's attention temperature for a context stretched by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def attention_factor(yarn: YarnConfig | None) -> float:
    """Return what cos and sin are multiplied by: scores grow by its square."""
    if yarn is None:
        return 1.0
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return yarn.attn_factor * mscale(yarn.factor, yarn.mscale) / mscale(yarn.factor, yarn.mscale_all_dim)
    return yarn.attn_factor * mscale(yarn.factor)


def frequencies(rope_dim: int, config: RopeConfig) -> np.ndarray:
    """Return the angle per position of each rotary pair, float64 [rope_dim / 2].

    YaRN keeps fast rotations, divides slow ones by `factor`, and blends linearly in between. The bounds of
    the blend are whole pair numbers unless `truncate` is false.
    """
    pairs = np.arange(rope_dim // 2)
    plain = config.theta ** (-2.0 * pairs / rope_dim)
    yarn = config.yarn
    if yarn is None:
        return plain

    def pair_with(rotations: float) -> float:
        """Return the (fractional) pair that turns this many times within the original context."""
        wavelength = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rope_dim * math.log(wavelength) / (2 * math.log(config.theta))

    low, high = pair_with(yarn.beta_fast), pair_with(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope_dim - 1)
    if low == high:
        high += 0.001  # the reference avoids the division by zero in this way
    blend = np.clip((pairs - low) / (high - low), 0, 1)
    return plain * (1 - blend) + plain / yarn.factor * blend


class Rope:
    """Rotates queries and keys by their positions; holds no parameters.

    The attention factor is not applied here: it multiplies every score by a constant, so the attention layers
    fold it into their scale.

    Args:
        rope_dim: Width of the rotated part.
        config: Base and YaRN parameters.
        interleaved: Pairs are (0, 1), (2, 3), ... (DeepSeek) instead of (0, D/2), (1, D/2 + 1), ...
    """

    def __init__(self, rope_dim: int, config: RopeConfig, *, interleaved: bool = False) -> None:
        self.rope_dim = rope_dim
        self.interleaved = interleaved
        # mx.fast.rope takes the wavelengths (up to 2 pi).
        self.wavelengths = mx.array((1.0 / frequencies(rope_dim, config)).astype(np.float32))

    def __call__(
        self, x: Float[mx.array, "batch heads length rope_dim"], start: int | mx.array
    ) -> Float[mx.array, "batch heads length rope_dim"]:
        """Rotate `x`; see `Positions.start` for `start`."""
        if isinstance(start, mx.array) and start.ndim == 2:
            return self._each(x, start)
        return self._rotate(x, start)

    def _each(self, x: mx.array, positions: mx.array) -> mx.array:
        """Rotate every token by its own position [batch, length]: each is a sequence of one token."""
        batch, heads, length, rope_dim = x.shape
        tokens = x.transpose(0, 2, 1, 3).reshape(batch * length, heads, 1, rope_dim)
        rotated = self._rotate(tokens, positions.flatten())
        return rotated.reshape(batch, length, heads, rope_dim).transpose(0, 2, 1, 3)

    def _rotate(self, x: mx.array, start: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x,
            self.rope_dim,
            traditional=self.interleaved,
            base=None,
            scale=1.0,
            offset=start,
            freqs=self.wavelengths,
        )
