"""A token of each of several sequences in kernels: padded or not, few or too many."""

from __future__ import annotations

import mlx.core as mx
import pytest

import macmoe
from macmoe.decoding import choice
from macmoe.decoding.examination import Verdict, examine
from macmoe.decoding.step import places_in
from macmoe.generate import following_logits
from macmoe.kernels import experts
from macmoe.location import BUILT_IN
from macmoe.nn.cache import FullCache, SlidingCache
from macmoe.nn.positions import Positions
from macmoe.sampling import Sampler, SamplingOptions
from macmoe.tuning.replies import generate_batch
from tests.metal.test_faults import planted

QUESTIONS = ("What is 347 + 586?", "What is 3 + 4? Think about it, and say what you find.", "7 - 2?")
PADDING = (9, 0, 21)
TOKENS = 6


def translated(session, step, bits=None):
    """Let a model use its step with a kind of cache; return what collects the sequences of each launch."""
    launched = []
    step.run = lambda tokens, *rest: launched.append(len(tokens)) or step.trace(tokens, *rest)
    right = Verdict(checks={}, seconds=1.0, plain_seconds=2.0)
    session.model.translation = choice.Translation(choice.arrays_of(session.model), step, {bits: right})
    return launched


def prompts_of(session):
    """Return prompts of different lengths."""
    rendered = [session.format.render([macmoe.Message("user", text)], thinking="on") for text in QUESTIONS]
    return [session.tokenizer.encode_segments(segments) for segments in rendered]


def greedy(model, padding, bits):
    """Return the greedy tokens after random prompts [batch, TOKENS]."""
    length = 40
    tokens = mx.random.randint(5, model.config.vocab_size, (len(padding), length), key=mx.random.key(3))
    cache = model.make_cache(padding, bits)
    logits = model(tokens, cache)[:, -1]
    mx.eval(logits)
    following = following_logits(model, cache)
    chosen = [mx.argmax(logits, axis=-1)]
    for _ in range(TOKENS - 1):
        chosen.append(mx.argmax(following(chosen[-1]), axis=-1))
    return mx.stack(chosen, axis=1).tolist()


@pytest.mark.parametrize("name", BUILT_IN)
def test_replies_of_a_batch_are_those_of_the_modules(session_with_step, monkeypatch, name):
    session, step = session_with_step(name)
    launched = translated(session, step)

    def replies():
        return generate_batch(
            session.model,
            prompts_of(session),
            Sampler(SamplingOptions()),
            max_tokens=TOKENS,
            stop_ids=(),
        )

    with_kernels = replies()
    assert launched == [len(QUESTIONS)] * (TOKENS - 1)
    monkeypatch.setenv("MACMOE_KERNELS", "0")
    assert with_kernels == replies()
    assert len(launched) == TOKENS - 1


@pytest.mark.parametrize("padding", [PADDING, (0, 0)], ids=["padded", "equal"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_tokens_after_packed_caches_are_those_of_the_modules(session_with_step, monkeypatch, name, padding):
    session, step = session_with_step(name)
    launched = translated(session, step, 8)
    with_kernels = greedy(session.model, padding, 8)
    assert launched == [len(padding)] * (TOKENS - 1)
    monkeypatch.setenv("MACMOE_KERNELS", "0")
    assert with_kernels == greedy(session.model, padding, 8)


@pytest.mark.parametrize("window", [None, 4])
def test_a_token_sees_what_the_mask_of_the_modules_shows(window):
    cache = FullCache() if window is None else SlidingCache(window, slack=3)
    padding = (5, 0, 9)
    cache.update(mx.zeros((3, 1, 10, 8)))
    for offset in range(10, 300, 7):
        cache.update(mx.zeros((3, 1, offset - cache.offset, 8)))
        room = cache.open(1)
        places = places_in(room, cache.offset, padding).tolist()
        left = mx.array(padding)
        here = Positions(offset=offset, length=1, left_padding=left, start=offset - left)
        seen = here.mask(window)[:, 0, 0].sum(axis=-1).tolist()
        assert [row - first + 1 for _, row, first in places] == seen
        assert [position for position, _, _ in places] == here.start.tolist()
        assert {row for _, row, _ in places} == {room.row}


@pytest.mark.parametrize("name", BUILT_IN)
def test_more_sequences_than_the_expert_kernels_take_are_left_to_the_modules(session_with_step, name):
    session, step = session_with_step(name)
    translated(session, step)
    most = experts.MAX_PAIRS // step.layers[-1].feed_forward.router.choice.slots
    for sequences in (most, most + 1):
        cache = session.model.make_cache([0] * sequences)
        assert (choice.decode_step(session.model, cache) is not None) == (sequences == most)


def test_an_error_that_only_several_sequences_show_is_found(emulate, session_with_step):
    session, step = session_with_step("tiny:gpt-oss")
    emulate(change=planted("uint(places[sequence * 3 + 2])", "uint(places[2])"))
    assert set(examine(session.model, step).wrong) == {
        f"attention, window {window}, 2 sequences" for window in set(session.model.model.windows)
    }
