"""Latent attention with some heads and queries at a time: the same results, in less memory."""

from __future__ import annotations

import mlx.core as mx
import pytest

from macmoe.adapters.lora import HeadLora, LoraSpec
from macmoe.config import Quantization, RopeConfig
from macmoe.nn import latent_attention
from macmoe.nn.latent_attention import LatentAttention
from macmoe.nn.positions import Mask, Positions
from macmoe.nn.quantized import pack_modules

HEADS, LATENT, ROPE = 16, 32, 4


@pytest.fixture
def attention() -> LatentAttention:
    mx.random.seed(0)
    return LatentAttention(
        dim=32,
        heads=HEADS,
        q_lora_rank=None,
        latent=LATENT,
        nope_dim=8,
        rope_dim=ROPE,
        value_dim=8,
        rope=RopeConfig(theta=1e4, yarn=None),
    )


def drawn(batch: int, length: int, keys: int) -> list[mx.array]:
    """Return queries, plain and rotated, and latents."""
    nope, rope = (mx.random.normal((batch, HEADS, length, width)) for width in (8, ROPE))
    arrays = [nope, rope, mx.random.normal((batch, 1, keys, LATENT + ROPE))]
    mx.eval(arrays)
    return arrays


def in_pieces(monkeypatch: pytest.MonkeyPatch, rows: int, heads: int, keys: int, batch: int = 1) -> None:
    """Let so many queries and heads be taken at once."""
    monkeypatch.setattr(latent_attention, "ROWS", rows)
    monkeypatch.setattr(latent_attention, "SCORES", 4 * batch * rows * keys * heads)


def packed_mask() -> Mask:
    """Return what a row of two packed sequences sees, 37 and 13 tokens long."""
    places = mx.arange(50)
    return Positions.packed(places[None], (places >= 37)[None]).mask()


MASKS = {
    "a prompt": (1, 50, "causal"),
    "a prompt after others": (1, 90, "causal"),
    "everything": (1, 50, None),
    "padded sequences": (2, 90, Positions(40, 50, mx.array([3, 0]), mx.array([37, 40])).mask()),
    "packed sequences": (1, 50, packed_mask()),
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize(("rows", "heads"), [(50, 5), (7, 16), (16, 1), (1, 3)])
def test_pieces_give_what_all_at_once_gives(attention, monkeypatch, case, rows, heads):
    batch, keys, mask = MASKS[case]
    arrays = drawn(batch, 50, keys)
    whole = attention.naive(*arrays, mask)
    in_pieces(monkeypatch, rows, heads, keys, batch)
    assert mx.abs(attention.naive(*arrays, mask) - whole).max().item() < 1e-5


@pytest.mark.parametrize("how", ["packed", "adapted"])
def test_some_heads_of_packed_and_adapted_matrices(attention, monkeypatch, how):
    if how == "packed":
        packing = Quantization(group_size=32, bits=8, mode="affine")
        plain = {name: getattr(attention, name).weight for name in ("k_up_proj", "v_up_proj")}
        pack_modules(attention, dict.fromkeys(plain, packing))
        for name, weight in plain.items():
            parts = mx.quantize(weight, group_size=32, bits=8)
            attention.update({name: dict(zip(("weight", "scales", "biases"), parts, strict=True))})
    else:
        attention.k_up_proj = HeadLora(attention.k_up_proj, LoraSpec(rank=3, alpha=6))
        attention.v_up_proj = HeadLora(attention.v_up_proj, LoraSpec(rank=3, alpha=6), attention.k_up_proj)
        attention.k_up_proj.initialize(mx.random.key(1))
        for module in (attention.k_up_proj, attention.v_up_proj):
            module.lora_b = mx.random.normal(module.lora_b.shape)
    arrays = drawn(1, 50, 90)
    whole = attention.naive(*arrays, "causal")
    in_pieces(monkeypatch, 16, 3, 90)
    assert mx.abs(attention.naive(*arrays, "causal") - whole).max().item() < 1e-5


def test_gradients_go_through_the_pieces(attention, monkeypatch):
    arrays = drawn(1, 50, 50)

    def loss(*arrays: mx.array) -> mx.array:
        return (attention.naive(*arrays, "causal") ** 2).sum()

    gradient = mx.grad(loss, argnums=(0, 1, 2))
    whole = gradient(*arrays)
    in_pieces(monkeypatch, 16, 3, 50)
    for mine, theirs in zip(gradient(*arrays), whole, strict=True):
        assert mx.abs(mine - theirs).max().item() < 1e-4


@pytest.mark.parametrize("bytes_of_scores", [0, 4 * 90, 4 * 90 * 20, 4 * 90 * 100])
def test_fewer_queries_are_taken_where_the_scores_of_one_head_are_too_many(
    attention, monkeypatch, bytes_of_scores
):
    arrays = drawn(1, 50, 90)
    whole = attention.naive(*arrays, "causal")
    seen = []
    newest = latent_attention._newest
    monkeypatch.setattr(
        latent_attention, "_newest", lambda q, k, v: (seen.append(q.shape[1:3]), newest(q, k, v))[1]
    )
    monkeypatch.setattr(latent_attention, "SCORES", bytes_of_scores)
    assert mx.abs(attention.naive(*arrays, "causal") - whole).max().item() < 1e-5
    assert {heads for heads, _ in seen} == {1}
    assert max(rows for _, rows in seen) == min(50, max(1, bytes_of_scores // (4 * 90)))


def test_scores_are_held_once():
    queries, keys = mx.random.normal((1, 4, 64, 12)), mx.random.normal((1, 4, 8192, 12))
    mx.eval(queries, keys)
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    mx.eval(latent_attention._newest(queries, keys, keys))
    scores = 4 * 4 * 64 * 8192
    assert mx.get_peak_memory() - held < 1.3 * scores


@pytest.mark.parametrize(("sequences", "absorbed"), [(1, True), (2, False)])
def test_a_batch_whose_scores_are_too_many_has_keys_written_out(attention, monkeypatch, sequences, absorbed):
    monkeypatch.setattr(attention, "absorb_below", 1000)
    monkeypatch.setattr(latent_attention, "SCORES", 4 * HEADS * 50 * 90)
    latents = mx.zeros((sequences, 1, 90, LATENT + ROPE))
    several, one = (Positions(90 - length, length, None, 0) for length in (50, 1))
    assert attention._cheaper(several, latents) == (attention.absorbed if absorbed else attention.naive)
    assert attention._cheaper(one, mx.zeros((900, 1, 90, LATENT + ROPE))) == attention.absorbed


def test_one_piece_is_held_at_a_time(attention, monkeypatch):
    length, keys = 64, 4096
    arrays = drawn(1, length, keys)
    mx.eval(attention.parameters())
    in_pieces(monkeypatch, 16, 1, keys)
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    mx.eval(attention.naive(*arrays, "causal"))
    scores = 4 * HEADS * length * keys
    assert mx.get_peak_memory() - held < scores / 4
