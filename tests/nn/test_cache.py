"""Caches against plain lists of tokens: what went in comes back, after any mix of appends and trims."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.errors import UsageError
from macmoe.nn.cache import GROWTH, STEP, FullCache, LatentCache, ModelCache, SlidingCache

WINDOW, SLACK = 8, 16

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 70)),
        st.tuples(st.just("trim"), st.integers(0, SLACK)),
        st.tuples(st.just("copy"), st.just(0)),
    ),
    max_size=25,
)


def tokens(first, count):
    """Return `count` distinguishable keys and values [1, 2, count, 3]."""
    keys = np.arange(first, first + count, dtype=np.float32)[None, None, :, None] + np.zeros((1, 2, 1, 3))
    return mx.array(keys), mx.array(-keys)


def check(cache, expected, sequence):
    """Run appends and trims; `expected(history, count)` says what an append of `count` tokens must return."""
    history, counter = [], 0
    for action, amount in sequence:
        if action == "append":
            keys, values = cache.update(*tokens(counter, amount))
            history += range(counter, counter + amount)
            counter += amount
            assert keys[0, 0, :, 0].tolist() == expected(history, amount)
            assert values[0, 1, :, 2].tolist() == [-token for token in expected(history, amount)]
        elif action == "trim":
            back = min(amount, cache.trimmable)
            cache.trim(back)
            history = history[: len(history) - back]
        else:
            forked = cache.copy()
            cache.update(*tokens(10_000, 3))  # must not reach the copy
            cache = forked
        assert cache.offset == len(history)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_full_cache_returns_every_token(sequence):
    check(FullCache(), lambda history, _: history, sequence)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_sliding_cache_returns_the_window_before_the_new_tokens(sequence):
    check(
        SlidingCache(WINDOW, SLACK),
        lambda history, count: history[max(0, len(history) - count - (WINDOW - 1)) :],
        sequence,
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_sliding_cache_can_always_take_back_its_slack(lengths):
    cache = SlidingCache(WINDOW, SLACK)
    for length in lengths:
        cache.update(*tokens(0, length))
        assert cache.trimmable >= min(SLACK, cache.offset)


def test_sliding_cache_stays_small_after_a_long_prompt():
    cache = SlidingCache(WINDOW, SLACK)
    cache.update(*tokens(0, 4000))
    small = SlidingCache(WINDOW, SLACK)
    small.update(*tokens(0, 1))
    assert cache.nbytes == small.nbytes


def test_latent_cache_keeps_one_array():
    cache = LatentCache()
    (latents,) = cache.update(mx.ones((1, 1, 5, 12)))
    assert latents.shape == (1, 1, 5, 12)
    assert cache.nbytes == STEP * 12 * 4


@pytest.mark.parametrize(
    ("held", "room"), [(STEP, 2 * STEP), (4 * STEP, 6 * STEP), (40 * STEP, 40 * STEP + GROWTH)]
)
def test_a_full_cache_grows_by_half_but_not_without_limit(held, room):
    for grow in (lambda cache: cache.open(1), lambda cache: cache.update(mx.zeros((1, 1, 1, 12)))):
        cache = FullCache()
        cache.update(mx.zeros((1, 1, held, 12)))
        grow(cache)
        assert cache.nbytes == room * 12 * 4


def test_reserved_room_is_allocated_once():
    cache = FullCache()
    cache.reserve(3 * STEP)
    cache.update(*tokens(0, 5))
    before = cache.nbytes
    for _ in range(5):
        cache.update(*tokens(0, 100))
    assert cache.nbytes == before


def test_growth_copies_each_token_a_bounded_number_of_times():
    """Appending one by one must not copy everything every STEP tokens."""
    cache, sizes = FullCache(), set()
    for _ in range(40):
        cache.update(*tokens(0, STEP // 2))
        sizes.add(cache.nbytes)
    assert len(sizes) <= 8  # geometric: log(20) / log(1.5) growths, not 20


@pytest.mark.parametrize("make", [FullCache, lambda: SlidingCache(WINDOW, SLACK)])
def test_trimming_more_than_is_known_says_what_to_do(make):
    cache = make()
    cache.update(*tokens(0, 100))
    with pytest.raises(UsageError, match=r"cannot take back 101 tokens.*process the prompt again"):
        cache.trim(101)
    assert cache.offset == 100


def test_a_failed_trim_of_the_model_cache_leaves_every_layer_as_it_was():
    cache = ModelCache([FullCache(), SlidingCache(WINDOW, SLACK)])
    for layer in cache:
        layer.update(*tokens(0, 500))
    with pytest.raises(UsageError):
        cache.trim(400)
    assert [layer.offset for layer in cache] == [500, 500]


def test_a_copied_model_cache_is_independent():
    cache = ModelCache([FullCache()], left_padding=[2, 0])
    cache.layers[0].update(*tokens(0, 5))
    twin = cache.copy()
    twin.layers[0].update(*tokens(5, 2))
    assert (cache.offset, twin.offset) == (5, 7)
    assert cache.state[0].shape[2] == 5
    assert twin.left_padding is not None
    assert twin.left_padding.tolist() == [2, 0]
    assert twin.padding == (2, 0)


def test_a_model_cache_knows_how_many_sequences_it_holds():
    cache = ModelCache([FullCache()])
    assert cache.sequences == 1
    cache.layers[0].update(mx.zeros((3, 1, 5, 8)))
    assert cache.sequences == cache.copy().sequences == 3
    assert ModelCache([FullCache()], left_padding=[0, 0]).sequences == 2
