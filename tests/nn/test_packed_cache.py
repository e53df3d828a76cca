"""Packed caches: what went in comes back within a step of its group, whatever happens in between."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.errors import UsageError
from macmoe.families import family_of
from macmoe.nn.cache import STEP, FullCache, ModelCache, SlidingCache
from macmoe.nn.packed_cache import PackedCache, group_size
from tests.parity.cases import DEEPSEEK, GPT_OSS, QWEN3_MOE

HEADS, WIDTH = 2, 96
TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
PACKABLE = {"qwen3_moe": QWEN3_MOE, "gpt_oss": GPT_OSS, "deepseek_v3": DEEPSEEK | {"qk_rope_head_dim": 32}}


def rows(seed, count, batch=1, dtype=mx.float32):
    """Return keys and values [batch, heads, count, width], rows of very different sizes among them."""
    drawn = np.random.default_rng(seed)
    sizes = 10.0 ** drawn.uniform(-3, 2, (2, batch, HEADS, count, 1))
    keys, values = drawn.normal(0.3, 1, (2, batch, HEADS, count, WIDTH)) * sizes
    return mx.array(keys).astype(dtype), mx.array(values).astype(dtype)


def allowed(exact, dtype=mx.float32):
    """Return by how much each number may be off: a step of its group, and rounding of the type.

    Mostly it is half a step; but steps are counted from zero, so that zero stays zero, and up to a step is
    missing at the far end.
    """
    groups = np.array(exact.astype(mx.float32)).reshape(*exact.shape[:-1], -1, group_size(WIDTH, 8))
    step = (groups.max(-1) - groups.min(-1)) / 255
    # The scale is rounded to the type: up to 255 steps away from the offset that counts 255 times.
    unit = {mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}[dtype]
    bound = step * (1.01 + 255 * unit / 2) + unit * np.abs(groups).max(-1)
    return np.repeat(bound[..., None], groups.shape[-1], axis=-1).reshape(exact.shape)


def assert_close(got, exact, dtype=mx.float32):
    assert (got.shape, got.dtype) == (exact.shape, dtype)
    off = np.abs(np.array(got.astype(mx.float32)) - np.array(exact.astype(mx.float32)))
    assert (off <= allowed(exact, dtype)).all()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 70)),
        st.tuples(st.just("trim"), st.integers(0, 100)),
        st.tuples(st.just("copy"), st.just(0)),
        st.tuples(st.just("load"), st.just(0)),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_every_token_comes_back_and_never_changes(sequence):
    cache, exact, seen = PackedCache(WIDTH), None, None
    for number, (action, amount) in enumerate(sequence):
        if action == "append":
            new = rows(number, amount)
            pairs = zip(exact or [array[:, :, :0] for array in new], new, strict=True)
            exact = [mx.concatenate(pair, axis=2) for pair in pairs]
            got = cache.update(*new)
            for one, wanted in zip(got, exact, strict=True):
                assert_close(one, wanted)
            if seen is not None:  # packed once: nothing that came later has touched it
                assert all(mx.array_equal(b[:, :, : a.shape[2]], a) for a, b in zip(seen, got, strict=True))
            seen = got
        elif action == "trim":
            back = min(amount, cache.trimmable)
            cache.trim(back)
            keep = cache.offset
            exact, seen = ([a[:, :, :keep] for a in arrays] if arrays else None for arrays in (exact, seen))
        elif action == "copy":
            forked = cache.copy()
            cache.update(*rows(10_000, 3))  # must not reach the copy
            cache = forked
        elif cache.offset:
            saved, offset = cache.state, cache.offset
            cache = PackedCache(WIDTH)
            cache.load(saved, offset)
        assert cache.offset == (0 if exact is None else exact[0].shape[2])


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_row_is_packed_in_any_type_and_batch(name, batch):
    dtype, cache = TYPES[name], PackedCache(WIDTH)
    exact = rows(1, 40, batch, dtype)
    for got, wanted in zip(cache.update(*exact), exact, strict=True):
        assert_close(got, wanted, dtype)


def test_no_row_hangs_on_another_one():
    keys, values = rows(1, 40, 3)
    together, _ = PackedCache(WIDTH).update(keys, values)
    alone, _ = PackedCache(WIDTH).update(keys[1:2, :, 7:8], values[1:2, :, 7:8])
    assert mx.array_equal(alone, together[1:2, :, 7:8])


def test_a_packed_cache_takes_about_half_of_the_memory():
    for width, most in ((128, 0.532), (64, 0.532), (576, 0.532), (32, 0.563)):
        full, packed = FullCache(), PackedCache(width)
        for cache in (full, packed):
            cache.update(*[mx.zeros((1, HEADS, 300, width), dtype=mx.bfloat16)] * 2)
        assert packed.nbytes / full.nbytes == pytest.approx(most, abs=1e-3)


def test_a_packed_cache_grows_as_a_full_one_and_keeps_reserved_room():
    full, packed = FullCache(), PackedCache(WIDTH)
    for _ in range(12):
        for cache in (full, packed):
            cache.update(*rows(0, STEP // 2))
        assert {buffer.shape[2] for buffer in packed._buffers} == {full._buffers[0].shape[2]}
    reserved = PackedCache(WIDTH)
    reserved.reserve(3 * STEP)
    reserved.update(*rows(0, 5))
    before = reserved.nbytes
    reserved.update(*rows(1, 3 * STEP - 5))
    assert reserved.nbytes == before


@pytest.mark.parametrize("constant", [0.0, -2.5, 3.0])
def test_a_row_of_equal_numbers_comes_back_exactly(constant):
    (row,) = PackedCache(64).update(mx.full((1, 1, 1, 64), constant))
    assert (row == constant).all()


@pytest.mark.parametrize("width", [16, 48, 80])
def test_a_width_that_cannot_be_packed_is_one_line(width):
    with pytest.raises(UsageError, match=f"rows of {width} numbers, and only multiples of 32 can be packed"):
        PackedCache(width)


def test_other_bits_are_refused():
    with pytest.raises(UsageError, match="cannot be kept in 4 bits; 8 is what there is"):
        PackedCache(64, 4)


@pytest.mark.parametrize("config", PACKABLE.values(), ids=PACKABLE)
def test_a_model_packs_what_grows_with_the_context(config):
    model = family_of(config).build(config)
    kinds = [type(layer) for layer in model.make_cache(bits=8)]
    windows = model.model.windows
    assert kinds == [PackedCache if window is None else SlidingCache for window in windows]
    assert (model.make_cache().bits, model.make_cache(bits=8).bits) == (None, 8)
    assert model.make_cache(bits=8).copy().bits == 8


def test_a_latent_that_cannot_be_packed_is_one_line():
    model = family_of(DEEPSEEK).build(DEEPSEEK)
    with pytest.raises(UsageError, match="rows of 48 numbers"):
        model.make_cache(bits=8)


def test_a_model_cache_of_packed_layers_trims_and_copies_all_of_them():
    cache = ModelCache([PackedCache(WIDTH), SlidingCache(8, 16)])
    for layer in cache:
        layer.update(*rows(3, 30))
    twin = cache.copy()
    cache.trim(5)
    assert [layer.offset for layer in cache] == [25, 25]
    assert [layer.offset for layer in twin] == [30, 30]
