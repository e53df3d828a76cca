"""The built-in models with a packed cache: nearly the distributions, and the tokens, of full precision."""

from __future__ import annotations

import mlx.core as mx
import pytest

import macmoe
from macmoe.chat.messages import Message
from macmoe.generate import generate, prefill
from macmoe.location import BUILT_IN
from macmoe.sampling import Sampler, SamplingOptions, log_probabilities
from macmoe.scoring import divergence
from tests.assets.questions import exam

QUESTIONS = exam("packed cache", 2)
TOKENS = 20
# Mean KL divergence of the answers, in nats; 1e-7 was measured (docs/performance.md).
DIVERGENCE = 1e-5


@pytest.fixture(scope="module", params=BUILT_IN)
def session(request):
    return macmoe.load(request.param, "float32")


def prompt_of(session, question):
    segments = session.format.render([Message("user", question.text)], thinking="on")
    return session.tokenizer.encode_segments(segments)


def greedy(session, prompt, bits):
    model, stops = session.model, session.format.stop_ids(session.tokenizer)
    cache = model.make_cache(bits=bits)
    tokens = generate(
        model, prompt, Sampler(SamplingOptions()), max_tokens=TOKENS, stop_ids=stops, cache=cache
    )
    return [token.id for token in tokens]


def test_answers_are_those_of_full_precision(session):
    for question in QUESTIONS:
        prompt = prompt_of(session, question)
        answer = greedy(session, prompt, None)
        assert greedy(session, prompt, 8) == answer
        tokens, first = mx.array([prompt + answer]), len(prompt) - 1
        full, packed = (
            log_probabilities(session.model(tokens, session.model.make_cache(bits=bits)))[0, first:]
            for bits in (None, 8)
        )
        assert not mx.array_equal(full, packed)
        assert divergence(full, packed).mean().item() < DIVERGENCE


def test_a_prompt_gives_the_same_in_any_pieces(session):
    prompt = prompt_of(session, QUESTIONS[0])
    caches = [session.model.make_cache(bits=8) for _ in range(3)]
    whole, pieces, tokens = (
        prefill(session.model, mx.array([prompt]), cache, chunk=chunk)
        for cache, chunk in zip(caches, (512, 7, 1), strict=True)
    )
    assert mx.allclose(whole, pieces, atol=2e-3)
    assert mx.allclose(whole, tokens, atol=2e-3)


def test_a_padded_batch_gives_what_its_prompts_give_alone(session):
    prompts = [prompt_of(session, question) for question in QUESTIONS]
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    tokens = mx.array([[0] * gap + prompt for gap, prompt in zip(padding, prompts, strict=True)])
    cache = session.model.make_cache(padding, bits=8)
    together = session.model(tokens, cache)[:, -1]
    for row, prompt in zip(together, prompts, strict=True):
        alone = prefill(session.model, mx.array([prompt]), session.model.make_cache(bits=8))[0]
        assert mx.allclose(row, alone, atol=2e-3)
