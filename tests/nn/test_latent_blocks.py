"""Latent attention in blocks of keys: the memory that it takes."""

from __future__ import annotations

import mlx.core as mx

from macmoe.config import RopeConfig
from macmoe.nn.latent_attention import BLOCK, LatentAttention

HEADS, LENGTH = 16, 64


def peak_bytes(attention: LatentAttention, blocks: int) -> int:
    """Return what attending to so many blocks of keys takes, beside what goes in."""
    nope, rope = (mx.random.normal((1, HEADS, LENGTH, width)) for width in (8, 4))
    latents = mx.random.normal((1, 1, blocks * BLOCK, 20))
    mx.eval(nope, rope, latents)
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    mx.eval(attention.naive_in_blocks(nope, rope, latents, None))
    return mx.get_peak_memory() - held


def test_one_block_is_held_at_a_time():
    rope = RopeConfig(theta=1e4, yarn=None)
    attention = LatentAttention(
        dim=32, heads=HEADS, q_lora_rank=None, latent=16, nope_dim=8, rope_dim=4, value_dim=8, rope=rope
    )
    mx.eval(attention.parameters())
    few, many = peak_bytes(attention, 4), peak_bytes(attention, 16)
    scores = 4 * HEADS * LENGTH * BLOCK
    assert many - few < scores
