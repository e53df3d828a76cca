"""Every faster way of a training step against the plain one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macmoe.adapters.attach import arrays_of, put
from macmoe.nn.moe import combine, dispatch
from macmoe.tuning.batch import Batch
from macmoe.tuning.config import TrainOptions
from macmoe.tuning.loss import inputs_of, loss_sums
from macmoe.tuning.step import Step
from macmoe.tuning.unpacking import Unpacked, keep_packed, unpack_products
from tests.adapters.test_lora import MODES
from tests.adapters.test_lora import packed as packed_model
from tests.tuning.test_loss import packed
from tests.tuning.test_trainer import factors, trainer
from tests.tuning.tiny import CONFIGS, adapted, build, samples


def gradients(model: Any, adapters: dict[str, Any], batch: Any, **how: Any) -> dict[str, np.ndarray]:
    """Return the loss and the gradient of every factor."""
    arrays = arrays_of(adapters)

    def loss(arrays: dict[str, mx.array]) -> mx.array:
        put(adapters, arrays)
        return loss_sums(model, batch, **how).loss.sum()

    value, found = mx.value_and_grad(loss)(arrays)
    put(adapters, arrays)
    return {name: np.array(array) for name, array in (found | {"loss": value}).items()}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], bound: float) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.abs(found[name] - array).max() <= bound * max(np.abs(array).max(), 1e-6), name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_taken_with_the_loss_is_the_gradient(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("macmoe.tuning.loss.CHUNK", 5)
    model = build(name)
    adapters, batch = adapted(model), packed(samples(6))
    expected = gradients(model, adapters, batch)
    assert_close(gradients(model, adapters, batch, learn=True), expected, 2e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapted_output_matrix_is_trained_with_it(name: str):
    model = build(name)
    targets = ("attention", "lm_head") if "lm_head" in model else ("attention",)
    adapters, batch = adapted(model, targets), packed(samples(6))
    expected = gradients(model, adapters, batch)
    assert_close(gradients(model, adapters, batch, learn=True), expected, 2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("piece", [2**30, 5000], ids=["whole", "pieces"])
def test_unpacked_products_are_those_of_packed_matrices(name: str, mode: str, piece: int):
    model = packed_model(name, MODES[mode])
    adapters, batch = adapted(model), packed(samples(9))
    expected = gradients(model, adapters, batch)
    unpack_products(model, piece)
    assert any(isinstance(module, Unpacked) for _, module in model.named_modules())
    found = gradients(model, adapters, batch)
    keep_packed(model)
    assert not any(isinstance(module, Unpacked) for _, module in model.named_modules())
    assert_close(found, expected, 5e-6)
    again = gradients(model, adapters, batch)
    assert all(np.array_equal(again[key], array) for key, array in expected.items())


@pytest.mark.parametrize("unpacks", [False, True], ids=["packed", "unpacked"])
def test_logits_of_a_frozen_output_matrix_are_computed_once(unpacks: bool, monkeypatch: pytest.MonkeyPatch):
    model = packed_model("qwen3_moe", MODES["affine"])
    adapters, batch = adapted(model, ("attention",)), packed(samples(6))
    if unpacks:
        unpack_products(model)
    calls: list[int] = []
    logits = type(model).logits

    def counted(model: Any, hidden: mx.array) -> mx.array:
        calls.append(hidden.shape[1])
        return logits(model, hidden)

    monkeypatch.setattr(type(model), "logits", counted)
    gradients(model, adapters, batch, learn=True)
    assert sum(calls) == inputs_of(batch)["places"].size


def test_a_cpu_unpacks_while_it_trains_and_only_then():
    with mx.stream(mx.cpu):
        model = packed_model("gpt_oss", MODES["mxfp4"])
        step = Step(model, {}, None, TrainOptions())

        def unpacked() -> bool:
            return any(isinstance(module, Unpacked) for _, module in model.named_modules())

        with step.ready():
            assert unpacked()
            with step.paused():
                assert not unpacked()
            assert unpacked()
        assert not unpacked()


def test_collected_gradients_are_those_of_the_plain_operations():
    tokens, top_k, dim = 7, 3, 5
    keys = mx.random.split(mx.random.key(0), 4)
    x, scale = mx.random.normal((tokens, dim), key=keys[0]), mx.random.normal((dim,), key=keys[1])
    weights = mx.random.normal((tokens, top_k), key=keys[2])
    order = mx.argsort(mx.random.randint(0, 4, (tokens * top_k,), key=keys[3]))
    places = mx.argsort(order)

    def ours(x: mx.array, weights: mx.array) -> mx.array:
        rows = mx.sin(dispatch(x, order, places) * scale)
        return (combine(rows, weights, order, places) ** 2).sum()

    def plain(x: mx.array, weights: mx.array) -> mx.array:
        y = mx.sin(x[order // top_k] * scale)[places].reshape(tokens, top_k, dim)
        return ((y * weights[..., None]).sum(axis=1) ** 2).sum()

    for found, expected in zip(
        mx.grad(ours, argnums=(0, 1))(x, weights), mx.grad(plain, argnums=(0, 1))(x, weights), strict=True
    ):
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_one_sample_need_no_segments(name: str):
    model = build(name)
    adapters = adapted(model)
    data = samples(4, longest=30)
    batch = Batch.of([[sample] for sample in data], 32)
    assert "segments" not in inputs_of(batch)
    expected = gradients(model, adapters, replace(batch, alone=False))
    assert_close(gradients(model, adapters, batch), expected, 5e-6)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_a_compiled_step_learns_the_same(name: str, tmp_path: Path):
    runs = [trainer(name, tmp_path / str(how), steps=3, compile=how) for how in (False, True)]
    for run in runs:
        run.run()
    assert_close(factors(runs[1]), factors(runs[0]), 1e-4)
