"""Bits go where a model needs them, and never beyond the budget."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe import scoring
from macmoe.checkpoint import load_weights
from macmoe.errors import UsageError
from macmoe.families import family_of
from macmoe.session import load_model
from macmoe.tokenizer import Tokenizer
from macmoe_converters import exchange, open_conversion
from macmoe_converters.exchange import choose
from macmoe_converters.quality import losses
from macmoe_converters.recipes import affine
from macmoe_converters.sensitivity import PROBES, Loaded, Option, Passage, allocate, hull, measure
from tests.conftest import ROOT

HUB = ROOT / "tests" / "assets" / "hub"
TOKENS = Tokenizer.from_folder(HUB / "qwen3").encode("What is 17 + 25? 7+5=12, 1+2+1=4, so it is 42.")


@pytest.fixture(autouse=True)
def one_sweep(monkeypatch):
    monkeypatch.setattr(exchange, "SWEEPS", 1)


points = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0, 10)).map(
        lambda pair: Option(how=None, bits=pair[0], effect=pair[1])
    ),
    min_size=1,
    max_size=5,
)


@given(points)
def test_a_hull_is_convex_and_falls(options):
    kept = hull(options)
    gains = [(a.effect - b.effect) / (b.bits - a.bits) for a, b in itertools.pairwise(kept)]
    assert all(gain > 0 for gain in gains)
    assert gains == sorted(gains, reverse=True)
    assert min(option.bits for option in options) == kept[0].bits
    assert min(option.effect for option in options) == kept[-1].effect


@settings(deadline=None)
@given(st.lists(points, min_size=1, max_size=4), st.integers(1, 200))
def test_the_choice_keeps_its_budget_and_is_as_good_as_a_multiplier_allows(lists, budget):
    options = {str(i): some for i, some in enumerate(lists)}
    least = sum(min(option.bits for option in some) for some in lists)
    if least > budget:
        with pytest.raises(UsageError, match="bits at least"):
            allocate(options, budget)
        return
    chosen = allocate(options, budget).values()
    assert sum(option.bits for option in chosen) <= budget
    every = itertools.product(*lists)
    best = min(sum(o.effect for o in some) for some in every if sum(o.bits for o in some) <= budget)
    largest_step = max(a.effect - b.effect for some in lists for a, b in _steps(hull(some)))
    assert sum(option.effect for option in chosen) <= best + largest_step + 1e-9


def _steps(kept):
    return [(kept[0], kept[0]), *itertools.pairwise(kept)]


def divergence(first, second):
    return float(scoring.divergence(first, second).mean())


def predictions(conversion):
    model = family_of(conversion.config).build(conversion.config)
    load_weights(model, conversion, dtype=mx.float32)
    logits = model(mx.array([TOKENS]))[0]
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def bits(conversion):
    return 8 * sum(info.nbytes for info in conversion.infos.values()) / conversion.weights


LONGER = [pytest.param(family, marks=pytest.mark.long) for family in ("gpt_oss", "deepseek_v3")]


@pytest.mark.parametrize("family", ["qwen3", *LONGER])
def test_measured_bits_beat_four_bits_everywhere_at_the_same_size(family):
    kept, four = (open_conversion(HUB / family, recipe=recipe) for recipe in ("keep", "4bit"))
    packings = choose(load_model(HUB / family)[1], kept, [Passage(tokens=TOKENS)], bits(four))
    chosen = open_conversion(HUB / family, recipe="chosen", packings=packings)
    assert bits(chosen) <= bits(four)
    assert chosen.config["quantization"] != four.config["quantization"]
    expected = predictions(kept)
    assert divergence(expected, predictions(chosen)) < 0.8 * divergence(expected, predictions(four))


def test_measuring_leaves_the_model_as_it_was():
    kept, model = open_conversion(HUB / "qwen3"), load_model(HUB / "qwen3")[1]
    before = model(mx.array([TOKENS]))
    choose(model, kept, [Passage(tokens=TOKENS[:8])], 4.5)
    assert mx.array_equal(before, model(mx.array([TOKENS])))


def test_the_effect_of_a_packing_is_what_the_model_changes():
    kept = open_conversion(HUB / "qwen3")
    path = "model.layers.1.self_attn.v_proj"
    found = measure(Loaded.of(load_model(HUB / "qwen3")[1], kept), [Passage(tokens=TOKENS)])
    effects = {option.how: option.effect for option in found[path]}
    expected, shares = predictions(kept), []
    for how in PROBES:
        alone = open_conversion(HUB / "qwen3", recipe="alone", packings={path: how})
        shares.append(divergence(expected, predictions(alone)) / squared_error(path, how))
    assert effects[affine(4)] == pytest.approx(np.mean(shares) * squared_error(path, affine(4)), rel=0.02)
    assert effects[None] == 0
    assert effects[affine(8)] < effects[affine(4)] < effects[affine(2)]


def squared_error(path, how):
    alone = open_conversion(HUB / "qwen3", recipe="alone", packings={path: how})
    return next(loss.squared_error for loss in losses(alone) if loss.path == path)


def test_a_budget_that_no_packing_meets_is_refused():
    options = {"a": [Option(how=None, bits=100, effect=0.0), Option(how=affine(2), bits=20, effect=1.0)]}
    with pytest.raises(UsageError, match="take 20 bits at least, and 10 are left"):
        allocate(options, 10)
