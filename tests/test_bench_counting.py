"""The counter of kernels: what it counts, and how many a token costs at the published shapes."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from macmoe.bench.counting import launches, operations, peer_kernels, plain_kernels, step_kernels
from macmoe.bench.peer import peer_model
from macmoe.bench.weights import CORRECTION, empty_model, shortened
from macmoe.checkpoint import parameters_of
from macmoe.config import load_json
from macmoe.decoding import matrices
from macmoe.decoding.step import DecodeStep
from macmoe.inspection import CONFIGS
from macmoe.nn.filling import random_states
from tests.recorded import COUNTED, hollow, record_fast_operations, record_launches

# Shape -> changes of its configuration, the most kernels a layer may cost.
PUBLISHED = {
    "gpt-oss-20b": ({}, 9),
    "qwen3-30b-a3b": ({}, 10),
    "deepseek-v3": ({"first_k_dense_replace": 0}, 15),
    "deepseek-v3, dense": ({"first_k_dense_replace": 2}, 15),
}
LAYERS = 2


def published(name, layers=LAYERS):
    """Return a model of a published shape whose weights take no memory, and its configuration."""
    changes, _ = PUBLISHED[name]
    config = shortened(load_json(CONFIGS / f"{name.split(',')[0]}.json") | changes, layers)
    model = empty_model(config)
    weights = [
        (
            path,
            hollow(array.shape, array.dtype if array.dtype in {mx.uint32, mx.uint8} else _type(path)),
        )
        for path, array in parameters_of(model).items()
    ]
    model.update(tree_unflatten(weights))
    return model, config


def _type(path):
    return mx.float32 if path.endswith(CORRECTION) else mx.bfloat16


def as_peer(arrays, config):
    return arrays if len(arrays) > 1 else mx.split(arrays[0], [config["kv_lora_rank"]], axis=-1)


def filled_cache(model, tokens=8, bits=None, padding=None):
    cache = model.make_cache(padding, bits)
    for layer, arrays in zip(cache, random_states(model, tokens), strict=True):
        layer.update(*(mx.repeat(array, cache.sequences, axis=0) for array in arrays))
        mx.eval(layer.state)
    return cache


def test_views_of_an_array_are_no_kernels():
    x = mx.ones((4, 6))
    mx.eval(x)
    assert launches(x.T.reshape(3, 8)[1:2, None].squeeze(0)) == 0


def test_operations_that_compute_are_counted_once_each():
    x = mx.ones((4, 6))
    mx.eval(x)
    y = x @ x.T
    assert launches(y + 1, mx.softmax(y, axis=-1)) == 3


def test_elementwise_operations_count_as_one_where_they_are_compiled_together():
    x = mx.ones((4, 6))
    mx.eval(x)
    assert launches(mx.exp(x) * x + x) == 3
    assert launches(mx.compile(lambda x: mx.exp(x) * x + x)(x)) == 1


@pytest.mark.parametrize("cuda", [False, True], ids=["metal", "cuda"])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_layer_costs_few_kernels_at_published_shapes(name, bits, cuda, monkeypatch):
    model, _ = published(name)
    record_launches(monkeypatch)
    monkeypatch.setattr(matrices, "mlx_is_slow", lambda: cuda)
    step = DecodeStep.of(model)
    assert step is not None
    kernels = step_kernels(model, step, filled_cache(model, bits=bits), COUNTED)
    assert kernels.layer <= PUBLISHED[name][1]


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("name", PUBLISHED)
def test_several_sequences_cost_a_weighted_sum_more_per_layer_than_one(name, bits, monkeypatch):
    model, _ = published(name)
    record_launches(monkeypatch)
    step = DecodeStep.of(model)
    assert step is not None
    one, three = (
        launches(
            step(mx.zeros((len(padding),), dtype=mx.uint32), filled_cache(model, bits=bits, padding=padding)),
            views=COUNTED,
        )
        for padding in ([0], [2, 0, 5])
    )
    assert three - one <= 3 * LAYERS  # product, sum and rounding


@pytest.mark.parametrize("name", PUBLISHED)
def test_views_of_weights_are_made_once_and_not_per_token(name, monkeypatch):
    record_launches(monkeypatch)
    monkeypatch.setattr(matrices, "mlx_is_slow", lambda: True)
    monkeypatch.setattr(matrices, "LARGE", 0)
    found = []
    for layers in (1, 2):
        model, _ = published(name, layers)
        step = DecodeStep.of(model)
        assert step is not None
        made = operations(step(mx.array([0], dtype=mx.uint32), filled_cache(model)))
        found.append(made["ExpandDims"] + made["Transpose"])
    assert found[1] - found[0] <= 3  # latent attention's, of activations


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_token_costs_fewer_kernels_than_with_plain_operations_and_with_mlx_lm(name, monkeypatch):
    model, config = published(name)
    monkeypatch.setattr(mx, "contiguous", lambda array: array)  # copies of hollow arrays would take memory
    peer = peer_model(model, config)
    caches = make_prompt_cache(peer)
    for cache, arrays in zip(caches, random_states(model, 8), strict=True):
        mx.eval(cache.update_and_fetch(*as_peer(arrays, config)))
    record_launches(monkeypatch)
    record_fast_operations(monkeypatch)
    step = DecodeStep.of(model)
    ours = step_kernels(model, step, filled_cache(model), COUNTED)
    plain = plain_kernels(model, filled_cache(model), COUNTED)
    theirs = peer_kernels(peer, caches, COUNTED)
    assert 1.5 * ours.layer <= min(plain.layer, theirs.layer)
