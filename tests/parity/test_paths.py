"""Every way through a model gives the same numbers: at once, in chunks, in a batch, after a rollback."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from macmoe.errors import UsageError
from macmoe.nn import latent_attention
from macmoe.nn.cache import SlidingCache
from tests.parity.bench import (
    PATH_GATE,
    Bench,
    Ids,
    Reals,
    difference,
    in_chunks,
    macmoe_log_probabilities,
    random_ids,
)
from tests.parity.cases import CASES

pytestmark = pytest.mark.parity

CHUNKS = {
    "prefill then decode": [91] + [1] * 9,
    "uneven chunks": [3, 17, 1, 40, 9, 30],
    "chunks around the window": [8, 7, 9, 76],
}
# One case for each kind of cache: full, sliding, latent.
CACHES = ["qwen3_moe", "gpt_oss", "deepseek"]
ONE_BY_ONE = [name if name in CACHES else pytest.param(name, marks=pytest.mark.long) for name in CASES]


@pytest.mark.parametrize("name", CASES)
def test_chunks_equal_one_full_forward(bench: Bench, name: str):
    ids, model = random_ids(name, 100), bench.model(name)
    full = macmoe_log_probabilities(model, ids)
    found = {way: difference(in_chunks(model, ids, sizes), full) for way, sizes in CHUNKS.items()}
    assert max(found.values()) <= PATH_GATE, found


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_tokens_one_by_one_equal_one_full_forward(bench: Bench, name: str):
    ids, model = random_ids(name, 100), bench.model(name)
    assert difference(in_chunks(model, ids, [1] * 100), macmoe_log_probabilities(model, ids)) <= PATH_GATE


@pytest.mark.parametrize("name", CACHES)
def test_a_batch_without_a_cache_equals_its_sequences_alone(bench: Bench, name: str):
    model, batch = bench.model(name), np.stack([random_ids(name, 70, seed) for seed in (1, 2)])
    together = macmoe_log_probabilities(model, batch)
    alone = np.stack([macmoe_log_probabilities(model, row) for row in batch])
    assert difference(together, alone) <= PATH_GATE


@pytest.mark.parametrize("name", CASES)
def test_a_left_padded_batch_equals_its_sequences_alone(bench: Bench, name: str):
    model, decoded = bench.model(name), 6
    padding = [0, 37, 83]
    batch = np.stack([random_ids(name, 100, seed) for seed in (1, 2, 3)])
    cache = model.make_cache(left_padding=padding)
    together = in_chunks(model, batch, [50, 100 - 50 - decoded] + [1] * decoded, cache)
    for row, pad in enumerate(padding):
        alone = macmoe_log_probabilities(model, batch[row, pad:])
        assert difference(together[row, pad:], alone) <= PATH_GATE


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("dropped", [1, 5, 29])
def test_other_tokens_after_a_rollback_equal_a_fresh_run(bench: Bench, name: str, dropped: int):
    ids, other, model = random_ids(name, 60), random_ids(name, 30, seed=7), bench.model(name)
    cache = model.make_cache()
    in_chunks(model, ids, [31] + [1] * 29, cache)
    cache.trim(dropped)
    kept = ids[: len(ids) - dropped]
    assert cache.offset == len(kept)
    _assert_continues(model, cache, kept, other)


@pytest.mark.parametrize("name", CACHES)
def test_a_prompt_can_be_taken_back_completely(bench: Bench, name: str):
    ids, model = random_ids(name, 60), bench.model(name)
    cache = model.make_cache()
    in_chunks(model, random_ids(name, 40, seed=7), [40], cache)
    cache.trim(40)
    _assert_continues(model, cache, ids[:0], ids)


@pytest.mark.parametrize("name", CACHES)
def test_copies_of_a_cache_live_their_own_lives(bench: Bench, name: str):
    ids, model = random_ids(name, 40), bench.model(name)
    cache = model.make_cache()
    in_chunks(model, ids, [40], cache)
    twin = cache.copy()
    for seed, each in enumerate((cache, twin, twin.copy())):
        before = each.offset
        _assert_continues(model, each, ids, random_ids(name, 20, seed))
        each.trim(each.offset - before)
    _assert_continues(model, cache, ids, random_ids(name, 20, seed=9))


@pytest.mark.parametrize("name", CACHES)
def test_a_copied_batch_keeps_its_padding(bench: Bench, name: str):
    model, padding = bench.model(name), [0, 25]
    batch = np.stack([random_ids(name, 40, seed) for seed in (1, 2)])
    cache = model.make_cache(left_padding=padding)
    in_chunks(model, batch[:, :30], [30], cache)
    continued = in_chunks(model, batch[:, 30:], [1] * 10, cache.copy())
    alone = macmoe_log_probabilities(model, batch[1, padding[1] :])
    assert difference(continued[1], alone[-10:]) <= PATH_GATE


def test_a_sliding_cache_rolls_back_after_it_has_dropped_tokens(bench: Bench):
    ids, other, model = random_ids("gpt_oss", 700), random_ids("gpt_oss", 20, seed=7), bench.model("gpt_oss")
    cache = _with_slack(model.make_cache(), 16)
    in_chunks(model, ids, [300, 7, 93, 256] + [1] * 44, cache)
    assert cache.trimmable >= 16
    cache.trim(16)
    _assert_continues(model, cache, ids[:-16], other)


def test_a_rollback_past_what_a_sliding_cache_knows_is_refused_and_changes_nothing(bench: Bench):
    ids, model = random_ids("gpt_oss", 700), bench.model("gpt_oss")
    cache = _with_slack(model.make_cache(), 16)
    in_chunks(model, ids[:680], [680], cache)
    with pytest.raises(UsageError, match="cannot take back"):
        cache.trim(cache.trimmable + 1)
    assert [layer.offset for layer in cache] == [680] * 4
    _assert_continues(model, cache, ids[:680], ids[680:])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("deepseek")])
def test_naive_and_absorbed_latent_attention_agree(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str):
    ids, model = random_ids(name, 100), bench.model(name)
    found = {}
    for form, below in (("naive", 0), ("absorbed", 1000)):
        for layer in model.model.layers:
            monkeypatch.setattr(layer.self_attn, "absorb_below", below)
        found[form] = in_chunks(model, ids, [1, 99])
    gap = difference(found["naive"], found["absorbed"])
    assert 0 < gap <= PATH_GATE  # not 0: the two forms really ran


def test_a_piece_with_too_many_scores_is_attended_to_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    ids, model = random_ids("deepseek", 700), bench.model("deepseek")
    found = []
    for most in (latent_attention.SCORES, 2**14):
        monkeypatch.setattr(latent_attention, "SCORES", most)
        found.append(in_chunks(model, ids, [650, 9, 1, 40]))
    assert 0 < difference(*found) <= PATH_GATE  # not 0: the two ways really ran


def _assert_continues(model: Any, cache: Any, before: Ids, after: Ids) -> None:
    """Check that the cache holds exactly `before`: decoding `after` equals a fresh run over both."""
    sizes = [1, 1, len(after) - 2]
    fresh: Reals = macmoe_log_probabilities(model, np.concatenate([before, after]))
    assert difference(in_chunks(model, after, sizes, cache), fresh[len(before) :]) <= PATH_GATE


def _with_slack(cache: Any, slack: int) -> Any:
    """Give the sliding layers of an empty cache little slack, so that they drop tokens early."""
    cache.layers = [
        SlidingCache(layer.window, slack) if isinstance(layer, SlidingCache) else layer
        for layer in cache.layers
    ]
    return cache
