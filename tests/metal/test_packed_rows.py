"""Rows that kernels pack: bit for bit those of mx.quantize; what they leave is what they stand for."""

from __future__ import annotations

import mlx.core as mx
import pytest

from macmoe.kernels import latent_attention, rows
from tests.kernels.attention import AttentionShape, case_grouped_attention, unpacked
from tests.kernels.cases import wrong
from tests.kernels.shapes import latent_form
from tests.metal.emulator import missing
from tests.metal.small import run

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

COUNT, WIDTH = 24, 192
TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
BODY = """
  threadgroup float values[WIDTH];
  const uint thread_index = thread_index_in_threadgroup;
  const uint place = threadgroup_position_in_grid.x * WIDTH;
  for (uint i = thread_index; i < WIDTH; i += 64) values[i] = float(x[place + i]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const Rows target = ROWS(cache, ulong(0), WIDTH);
  store_row(target, place, values, WIDTH, simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < WIDTH; i += 64) y[place + i] = values[i];
"""


def awkward(dtype):
    """Return rows of all sizes, all of one sign, all equal, zero, and with one large number."""
    x = mx.random.normal((COUNT, WIDTH), key=mx.random.key(0)) * 10 ** mx.linspace(-4, 3, COUNT)[:, None]
    x[0], x[1], x[2] = 0, 3.25, -0.75
    x[3], x[4] = mx.abs(x[3]), -mx.abs(x[4])
    x[5, 7], x[6, 9] = 50, -50
    return x.astype(dtype)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("group", [32, 64])
def test_rows_are_packed_as_by_mlx(name, group):
    x = awkward(TYPES[name])
    wanted = mx.quantize(x, group, 8)
    parts = [mx.zeros(part.shape, dtype=part.dtype) for part in wanted]
    mx.eval(parts)
    left = run(
        BODY,
        {"x": x, **rows.named("cache", parts)},
        {"y": (x.shape, mx.float32)},
        grid=(64 * COUNT, 1, 1),
        threadgroup=(64, 1, 1),
        header=rows.ROWS,
        writes=rows.written("cache"),
        constants={**rows.constants(parts, WIDTH), "T": x.dtype, "WIDTH": WIDTH, "SIMD_GROUPS": 2},
    )
    for got, part in zip(parts, wanted, strict=True):
        assert mx.array_equal(got, part)
    stands_for = unpacked(list(wanted), group)
    assert (mx.abs(left - stands_for) <= 1e-6 * mx.abs(stands_for).max(-1, keepdims=True)).all()


@pytest.mark.parametrize("name", TYPES)
def test_a_latent_is_packed_from_what_the_model_computes(emulate, name):
    emulate()
    dtype, form, group = TYPES[name], latent_form(4, 64, 64, 16, 32), 32
    compressed = mx.random.normal((2, form.q_rank + form.width), key=mx.random.key(1)).astype(dtype)
    norms = (mx.ones((form.q_rank,), dtype=dtype), mx.full((form.latent,), 1.5, dtype=dtype))
    plain = mx.zeros((2, 1, 8, form.width), dtype=dtype)
    places = mx.array([[5, 3, 0], [4, 4, 1]], dtype=mx.int32)
    packed = list(mx.quantize(plain, group, 8))
    for parts in ([plain], packed):
        mx.eval(parts)
        latent_attention.prepare(compressed, norms, parts, places, 1e4 ** (mx.arange(16) / 16), form)
    for got, part in zip(packed, mx.quantize(plain, group, 8), strict=True):
        assert mx.array_equal(got[0, :, 3], part[0, :, 3])
        assert mx.array_equal(got[1, :, 4], part[1, :, 4])
    got = latent_attention.unpack(packed, compressed, form)
    assert wrong([(got, unpacked(packed, group)[:, 0])]) == []


def test_a_cache_that_nobody_packed_stays_as_it_was(emulate):
    """The same seed draws the same case: what is not packed is the model's own numbers."""
    emulate()
    results = []
    for group in (0, 64):
        mx.random.seed(3)
        form = AttentionShape(heads=4, kv_heads=2, head_dim=64, cached=20, capacity=24, group=group)
        results.append(case_grouped_attention(mx.float32, form)[0][0])
    assert not mx.array_equal(*results)
    assert mx.allclose(*results, atol=0.05)
