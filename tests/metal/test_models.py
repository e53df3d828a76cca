"""Whole models with kernels: the tokens are those of the modules."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

import macmoe
from macmoe.decoding import choice
from macmoe.decoding.examination import Check, Verdict, examine, in_float32
from macmoe.decoding.step import DecodeStep
from macmoe.generate import generate
from macmoe.location import BUILT_IN
from macmoe.sampling import Sampler, SamplingOptions

PROMPT = "What is 347 + 586?"
TOKENS = 12


@pytest.fixture
def session_with_step(emulate):
    """A built-in model, and its step as the emulator runs it: uncompiled, since every launch runs at once."""

    def load(name):
        session = macmoe.load(name, "float32")
        emulate()
        step = DecodeStep.of(session.model)
        assert step is not None
        step.run = step.trace
        return session, step

    return load


def verdict_of(error, *, seconds):
    """Return a verdict on kernels, where the modules take two seconds."""
    check = Check(error=error, bound=1e-4, seconds=seconds, plain_seconds=2.0)
    return Verdict(checks={"sparse": check}, seconds=seconds, plain_seconds=2.0)


def greedy(session, count):
    """Return the first greedy tokens of an answer."""
    segments = session.format.render([macmoe.Message("user", PROMPT)], thinking="on")
    prompt = session.tokenizer.encode_segments(segments)
    return [
        token.id for token in generate(session.model, prompt, Sampler(SamplingOptions()), max_tokens=count)
    ]


@pytest.mark.parametrize("name", BUILT_IN)
def test_greedy_tokens_are_those_of_the_modules(session_with_step, monkeypatch, name):
    session, step = session_with_step(name)
    monkeypatch.setenv("MACMOE_KERNELS", "0")
    plain = greedy(session, TOKENS)
    monkeypatch.delenv("MACMOE_KERNELS")
    launched = []
    trace = step.trace
    step.run = lambda *arguments: launched.append(1) or trace(*arguments)
    session.model.translation = (choice.identity(session.model), step)
    assert greedy(session, TOKENS) == plain
    assert len(launched) == TOKENS - 1


@pytest.mark.parametrize("name", BUILT_IN)
def test_self_check_accepts_right_kernels_and_refuses_wrong_ones(session_with_step, name):
    session, step = session_with_step(name)
    verdict = examine(session.model, step)
    assert not verdict.wrong
    assert len(verdict.checks) >= 3
    assert not verdict_of(1.0, seconds=1.0).use
    assert not verdict_of(float("nan"), seconds=1.0).use
    assert not verdict_of(0.0, seconds=3.0).use
    assert mx.default_device() == mx.Device(mx.cpu)


def test_examination_finds_a_planted_error(session_with_step):
    session, step = session_with_step("tiny:qwen3")
    right = step.layers[0]
    step.layers = (replace(right, feed_forward=lambda x: 1.001 * right.feed_forward(x)), *step.layers[1:])
    assert set(examine(session.model, step).wrong) == {"function"}


def test_a_module_in_float32_gets_its_numbers_back(session_with_step):
    session, _ = session_with_step("tiny:gpt-oss")
    model = session.model
    model.set_dtype(mx.bfloat16)
    before = choice.identity(model)
    with in_float32(model):
        assert model.model.norm.weight.dtype == mx.float32
    assert choice.identity(model) == before
    assert model.model.norm.weight.dtype == mx.bfloat16


def test_a_refusal_for_errors_is_said_and_one_for_time_is_not(caplog):
    assert not choice._accepted(verdict_of(0.25, seconds=1.0))
    assert "sparse 2.5e-01" in caplog.text
    caplog.clear()
    assert not choice._accepted(verdict_of(0.0, seconds=3.0))
    assert choice._accepted(verdict_of(0.0, seconds=1.0))
    assert caplog.text == ""


def test_copies_of_a_cache_do_not_see_what_kernels_write(session_with_step):
    session, step = session_with_step("tiny:gpt-oss")
    model = session.model
    cache = model.make_cache()
    mx.eval(model.hidden(mx.arange(40)[None], cache))
    twin = cache.copy()
    before = [mx.array(array) for array in twin.state]
    mx.eval(step(mx.array([7]), cache), before)
    assert all(mx.array_equal(a, b) for a, b in zip(twin.state, before, strict=True))
    own = step(mx.array([9]), twin)
    wanted = model(mx.array([[*range(40), 9]]))[0, -1:]
    assert mx.allclose(own, wanted, atol=1e-4)
    cache.trim(1)
    assert mx.allclose(step(mx.array([9]), cache), wanted, atol=1e-4)
