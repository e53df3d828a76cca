"""The loss on routers against transformers', against the formula, and its gradient in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func as of_gpt_oss
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func as of_qwen3

from macmoe.adapters.attach import arrays_of, attach, select
from macmoe.adapters.lora import LoraSpec
from macmoe.errors import UsageError
from macmoe.nn.routing import router_logits
from macmoe.tuning.balance import Balance, sequences
from macmoe.tuning.batch import PADDING, Batch
from macmoe.tuning.config import read_run
from macmoe.tuning.loss import inputs_of, states
from tests.tuning.test_trainer import factors, trainer
from tests.tuning.tiny import adapted, build, samples

BATCH = Batch.of([samples(3), samples(3, seed=4)], 48)
SPARSE = ("qwen3_moe", "gpt_oss", "deepseek_v3")


def measured(name: str) -> tuple[Any, list[float], list[np.ndarray]]:
    """Return a model, the loss of each layer, and the tokens that reached its router."""
    model = build(name)
    adapted(model)
    balance = Balance.of(model)
    reached: list[np.ndarray] = []
    for layer in balance.layers:
        measure = layer._measure

        def spied(tokens: mx.array, groups: mx.array, measure: Any = measure) -> mx.array:
            reached.append(np.array(tokens))
            return measure(tokens, groups)

        layer._measure = spied
    balance.begin(BATCH.segments, 4)
    mx.eval(states(model, inputs_of(BATCH)))
    found = [layer.take().item() for layer in balance.layers]
    balance.end(model)
    return model, found, reached


@pytest.mark.parametrize(("name", "reference"), [("qwen3_moe", of_qwen3), ("gpt_oss", of_gpt_oss)])
def test_each_layers_loss_is_that_of_transformers(name: str, reference: Any):
    model, found, reached = measured(name)
    layers = [layer.mlp for layer in model.model.layers]
    real = torch.tensor((np.array(BATCH.segments) != PADDING).astype(np.int64))
    for mlp, loss, tokens in zip(layers, found, reached, strict=True):
        router = mlp.gate if "gate" in mlp else mlp.router
        logits = torch.tensor(np.array(router_logits(mx.array(tokens), router)))
        expected = reference((logits,), logits.shape[-1], mlp.top_k, real)
        assert loss == pytest.approx(float(expected), rel=1e-5)


def test_deepseeks_loss_is_the_formula_sequence_by_sequence():
    model, found, reached = measured("deepseek_v3")
    layers = [layer.mlp for layer in model.model.layers if "gate" in layer.mlp]
    segments = np.array(BATCH.segments)
    names = (np.arange(len(segments))[:, None] * 100 + segments)[segments != PADDING]
    for mlp, loss, tokens in zip(layers, found, reached, strict=True):
        logits = router_logits(mx.array(tokens), mlp.gate.score)
        chosen = np.array(mlp.gate.base.choose(logits)[0])[(segments != PADDING).flatten()]
        affinities = 1 / (1 + np.exp(-np.array(logits, np.float64)))[(segments != PADDING).flatten()]
        experts, top_k = affinities.shape[1], chosen.shape[1]
        expected = []
        for name in np.unique(names):
            own = names == name
            f = [(chosen[own] == e).sum() * experts / (top_k * own.sum()) for e in range(experts)]
            p = (affinities[own] / affinities[own].sum(axis=1, keepdims=True)).mean(axis=0)
            expected.append((np.array(f) * p).sum())
        assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_sequences_are_groups_and_padding_belongs_to_none():
    groups = np.array(sequences(mx.array([[0, 0, 1, -1], [0, -1, -1, -1]]), 2))
    assert groups.tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("name", SPARSE)
def test_a_heavy_balance_loss_evens_out_the_choices(name: str, tmp_path: Path):
    run = trainer(name, tmp_path, steps=30, balance=100.0, learning_rate=0.05, clip=0.0, accumulate=1)
    run.run()
    losses = [line["balance_loss"] for line in run.metrics.lines() if "balance_loss" in line]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert not any("mlp.mlp" in path for path, _ in run.model.named_modules())


# One family shows it of the step, which all share; each family's balance is tested above.
@pytest.mark.parametrize(
    "name", [SPARSE[0], *(pytest.param(each, marks=pytest.mark.long) for each in SPARSE[1:])]
)
def test_layers_computed_again_and_a_compiled_step_balance_the_same(name: str, tmp_path: Path):
    ways = {"kept": {"recompute": False}, "again": {"recompute": True}, "compiled": {"compile": True}}
    ends = {}
    for way, options in ways.items():
        run = trainer(name, tmp_path / way, steps=2, balance=1.0, **options)
        run.run()
        ends[way] = factors(run)
    for way in ("again", "compiled"):
        for key, array in ends["kept"].items():
            assert np.abs(ends[way][key] - array).max() <= 1e-4 * max(np.abs(array).max(), 1e-3), key


def test_without_a_weight_the_run_is_the_same_as_ever(tmp_path: Path):
    run = trainer("gpt_oss", tmp_path, steps=1)
    run.run()
    assert "balance_loss" not in run.metrics.lines()[0]


def test_a_balance_loss_needs_routers_that_learn():
    with pytest.raises(UsageError, match="add router to the targets"):
        read_run(None, {"model": "tiny:qwen3", "data": "d.jsonl", "train": {"balance": 0.01}})
    model = build("gpt_oss")
    assert arrays_of(attach(model, select(model, ("router",), LoraSpec(rank=2, alpha=4))))
