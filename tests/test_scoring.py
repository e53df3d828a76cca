"""Scores against a full forward pass in float64 NumPy, and the properties of a comparison."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from macmoe import scoring
from macmoe.errors import UsageError
from macmoe.families import family_of
from macmoe.scoring import compare, divergence, score
from tests.parity.cases import DEEPSEEK, GPT_OSS, QWEN3_MOE

TINY = {"qwen3_moe": QWEN3_MOE, "gpt_oss": GPT_OSS, "deepseek_v3": DEEPSEEK}
TOKENS = list(range(3, 43))


def build(config, seed):
    mx.random.seed(seed)
    return family_of(config).build(config)


@pytest.fixture(params=TINY.values(), ids=TINY)
def config(request):
    return request.param


def float64_log_probabilities(model):
    logits = np.array(model(mx.array([TOKENS])), dtype=np.float64)[0, :-1]
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("chunk", [7, 39, 256])
def test_scores_equal_a_full_forward_pass(config, chunk, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    model = build(config, 0)
    expected = float64_log_probabilities(model)[np.arange(len(TOKENS) - 1), TOKENS[1:]]
    scored = score(model, TOKENS)
    np.testing.assert_allclose(scored.logprobs, expected, atol=2e-5)
    assert scored.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-4)


def test_divergence_equals_its_definition(config):
    model, other = build(config, 0), build(config, 1)
    p, q = float64_log_probabilities(model), float64_log_probabilities(other)
    compared = compare(model, other, TOKENS)
    np.testing.assert_allclose(compared.divergences, (np.exp(p) * (p - q)).sum(-1), atol=1e-4)
    assert compared.agreement == (p.argmax(-1) == q.argmax(-1)).mean()
    assert compared.score == score(model, TOKENS)
    assert compared.other == score(other, TOKENS)


def test_small_divergences_are_not_rounding():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 300)) * 8
    p, q = (
        z - np.log(np.exp(z).sum(-1, keepdims=True))
        for z in (logits, logits + 1e-4 * rng.standard_normal(logits.shape))
    )
    found = divergence(mx.array(p.astype(np.float32)), mx.array(q.astype(np.float32)))
    expected = (np.exp(p) * (p - q)).sum(-1)
    assert expected.max() < 1e-7
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=1e-12)


def test_a_model_does_not_differ_from_itself(config):
    model = build(config, 0)
    compared = compare(model, model, TOKENS)
    assert compared.mean_divergence == 0
    assert compared.agreement == 1


@pytest.mark.parametrize("tokens", [[], [5]])
def test_text_without_a_token_to_predict_is_refused(tokens):
    with pytest.raises(UsageError, match="two tokens or more"):
        score(build(QWEN3_MOE, 0), tokens)


def test_unknown_token_id_is_refused():
    with pytest.raises(UsageError, match="outside the vocabulary"):
        score(build(QWEN3_MOE, 0), [1, 10**6])


def test_models_of_different_vocabularies_are_not_compared():
    other = QWEN3_MOE | {"vocab_size": QWEN3_MOE["vocab_size"] + 8}
    with pytest.raises(UsageError, match="share a vocabulary"):
        compare(build(QWEN3_MOE, 0), build(other, 0), TOKENS)
