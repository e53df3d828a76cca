"""Sampling against transformers' logits warpers, and its own promises: seeds, ranges, float32."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.errors import UsageError
from macmoe.sampling import Sampler, SamplingOptions, keep_min_p, keep_top_k, keep_top_p, log_probabilities

VOCAB = 50


def random_logits(seed, rows=3):
    return np.random.default_rng(seed).standard_normal((rows, VOCAB)).astype(np.float32) * 3


def warped(warper, logits):
    import torch

    return warper(None, torch.tensor(logits)).numpy()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, VOCAB + 10))
def test_top_k_against_transformers(seed, top_k):
    from transformers import TopKLogitsWarper

    logits = random_logits(seed)
    np.testing.assert_array_equal(
        np.array(keep_top_k(mx.array(logits), top_k)), warped(TopKLogitsWarper(top_k), logits)
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_top_p_against_transformers(seed, top_p):
    from transformers import TopPLogitsWarper

    logits = random_logits(seed)
    np.testing.assert_array_equal(
        np.array(keep_top_p(mx.array(logits), top_p)), warped(TopPLogitsWarper(top_p), logits)
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_top_p_keeps_what_transformers_keeps_and_its_ties(seed, top_p):
    from transformers import TopPLogitsWarper

    logits = random_logits(seed).round()
    reference = warped(TopPLogitsWarper(top_p), logits)
    smallest = np.where(np.isinf(reference), np.inf, reference).min(axis=-1, keepdims=True)
    np.testing.assert_array_equal(
        np.array(keep_top_p(mx.array(logits), top_p)), np.where(logits < smallest, -np.inf, logits)
    )


@pytest.mark.parametrize("top_p", [1e-12, 1 - 1e-12])
def test_top_p_keeps_the_best_and_never_what_another_cut_dropped(top_p):
    kept = np.array(keep_top_p(keep_top_k(mx.array(random_logits(4)), 5), top_p))
    assert all(1 <= count <= 5 for count in np.isfinite(kept).sum(axis=-1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_min_p_against_transformers(seed, min_p):
    from transformers import MinPLogitsWarper

    logits = random_logits(seed)
    np.testing.assert_array_equal(
        np.array(keep_min_p(mx.array(logits), min_p)), warped(MinPLogitsWarper(min_p), logits)
    )


def test_log_probabilities_are_float32_even_for_bfloat16_logits():
    logits = mx.array(random_logits(0)).astype(mx.bfloat16)
    result = log_probabilities(logits)
    assert result.dtype == mx.float32
    exact = np.array(logits.astype(mx.float32), dtype=np.float64)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(np.array(result), exact, atol=2e-6)


def test_temperature_zero_takes_the_most_probable_token_and_reports_its_log_probability():
    logits = random_logits(1)
    tokens, logprobs = Sampler(SamplingOptions())(mx.array(logits))
    assert tokens.tolist() == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(
        np.array(logprobs), np.array(log_probabilities(mx.array(logits))).max(axis=1), atol=1e-6
    )


def test_a_seed_reproduces_the_choices_and_another_seed_changes_them():
    logits = mx.array(random_logits(2))

    def draw(seed):
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sampler(logits)[0].tolist() for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_the_first_and_the_last_seed_are_usable(seed):
    assert Sampler(SamplingOptions(temperature=1.0, seed=seed))(mx.zeros((1, VOCAB)))[0].shape == (1,)


def test_without_a_seed_the_drawn_seed_reproduces_the_run():
    logits = mx.array(random_logits(3))
    first = Sampler(SamplingOptions(temperature=1.0))
    again = Sampler(SamplingOptions(temperature=1.0, seed=first.seed))
    assert [first(logits)[0].tolist() for _ in range(10)] == [again(logits)[0].tolist() for _ in range(10)]


def test_temperature_comes_before_the_cuts():
    """At temperature 3 this distribution is flat enough that top_p 0.5 keeps more than the best token."""
    probabilities = np.array([[0.6, 0.25, 0.1, 0.05]])
    sampler = Sampler(SamplingOptions(temperature=3.0, top_p=0.5, seed=0))
    seen = {sampler(mx.array(np.log(probabilities)))[0].item() for _ in range(200)}
    assert seen == {0, 1}


def test_samples_follow_the_distribution():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = mx.broadcast_to(mx.array(np.log(probabilities)), (20_000, 4))
    tokens, _ = Sampler(SamplingOptions(temperature=1.0, seed=0))(logits)
    shares = np.bincount(np.array(tokens), minlength=4) / 20_000
    np.testing.assert_allclose(shares, probabilities, atol=0.015)  # about four standard deviations


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.5},
        {"min_p": 2.0},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_meaningless_options_are_refused(options):
    name = next(iter(options))
    with pytest.raises(UsageError, match=f"{name} is .*; it has to be"):
        SamplingOptions(**options)
