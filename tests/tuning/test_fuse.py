"""Adapters in the weights: what is measured, what is written, what is refused."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from macmoe.adapters.attach import Adapter, apply, attach, detach, select, taken
from macmoe.adapters.lora import LoraSpec
from macmoe.checkpoint import DTYPES, Checkpoint
from macmoe.cli import cli
from macmoe.errors import CheckpointError, UsageError
from macmoe.loading import load_model, open_weights
from macmoe.location import BUILT_IN, find_model
from macmoe.tuning.fuse import NOISE, Effect, fuse, record, stored_types, write_fused
from tests.tuning.tiny import randomize

TEXTS = [list(range(40, 70))]
TARGETS = ("attention", "mlp", "shared_experts", "experts")


def prepared(name: str, strength: float) -> tuple[object, Adapter]:
    model = load_model(find_model(name), "float32")[1]
    adapters = attach(model, select(model, TARGETS, LoraSpec(rank=2, alpha=2 * strength)))
    randomize(adapters)
    adapter = taken(adapters)
    detach(model)
    return model, adapter


def fused(model: object, adapter: Adapter, **options) -> tuple[dict, list[Effect]]:
    """Fuse in float32."""
    return fuse(model, adapter, TEXTS, types=dict.fromkeys(adapter.specs, mx.float32), **options)


def logits(model: object) -> np.ndarray:
    return np.array(model(mx.array(TEXTS)))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_model_fused_in_full_precision_is_written_and_answers_like_the_adapted_one(
    name: str, tmp_path: Path
):
    model, adapter = prepared(name, 0.5)
    apply(model, adapter)
    adapted = logits(model)
    detach(model)
    modules, effects = fused(model, adapter)
    assert effects[-1].kept > 0.999
    assert np.abs(logits(model) - adapted).max() <= 1e-3 * np.abs(adapted).max()
    source = open_weights(find_model(name))
    write_fused(source, modules, tmp_path / "fused", record(effects))
    again = load_model(tmp_path / "fused", "float32")[1]
    assert np.array_equal(logits(again), logits(model))
    touched = {f"{path}.{part}" for path in modules for part in ("weight", "scales", "biases")}
    before, after = dict(source.tensors()), dict(Checkpoint(tmp_path / "fused").tensors())
    kept = [tensor for tensor in before if tensor not in touched]
    assert kept
    assert all(mx.array_equal(before[tensor], after[tensor]) for tensor in kept)


def test_a_grid_that_swallows_the_adapter_is_left_for_a_finer_one():
    model, adapter = prepared("tiny:gpt-oss", 0.02)
    _, effects = fused(model, adapter, precision="base")
    assert effects[0].precision == "base"
    assert len(effects) > 1
    assert effects[0].kept < 0.9 <= effects[-1].kept


def test_a_grid_that_swallows_the_adapter_is_refused_where_that_is_asked_for():
    model, adapter = prepared("tiny:gpt-oss", 0.02)
    with pytest.raises(UsageError, match=r"effect would be left, .* or choose a finer precision"):
        fused(model, adapter, precision="base", raise_precision=False)


def test_an_effect_below_the_rounding_noise_is_not_judged():
    model, adapter = prepared("tiny:qwen3", 1e-6)
    _, effects = fused(model, adapter)
    assert [effect.precision for effect in effects] == ["full"]
    assert effects[0].to_base <= NOISE
    assert effects[0].kept is None


def test_a_share_is_never_negative_and_nothing_finer_than_full_is_offered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("macmoe.tuning.fuse.fused_modules", lambda adapters, *_: base_of(adapters))
    model, adapter = prepared("tiny:qwen3", 0.5)
    with pytest.raises(UsageError, match=r"full', 0.0% of .*; keep the adapter apart, or ask for less$"):
        fused(model, adapter)
    assert Effect(precision="full", to_base=1e-3, to_fused=2e-3).kept == 0


def base_of(adapters: dict) -> dict:
    """Return the matrices without what an adapter adds, as if they had swallowed it."""
    return {path: adapter.base for path, adapter in adapters.items()}


def test_divergences_are_those_of_the_distributions():
    model, adapter = prepared("tiny:qwen3", 0.5)
    base = logits(model)
    apply(model, adapter)
    adapted = logits(model)
    detach(model)
    _, effects = fused(model, adapter)
    p, q = (np.exp(x[0] - x[0].max(-1, keepdims=True)).astype(np.float64) for x in (adapted, base))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    assert effects[0].to_base == pytest.approx(float((p * np.log(p / q)).sum(-1).mean()), rel=1e-3)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_fused_model_loads_in_transformers_after_a_conversion_to_the_hub_layout(name: str, tmp_path: Path):
    model, adapter = prepared(name, 0.5)
    modules, effects = fused(model, adapter)
    write_fused(open_weights(find_model(name)), modules, tmp_path / "fused", record(effects))
    arguments = ["convert", str(tmp_path / "fused"), "--to", "hub", "--out", str(tmp_path / "hub")]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hub", dtype=torch.float32).float().eval()
    with torch.no_grad():
        found = theirs(torch.tensor(TEXTS)).logits.numpy()
    ours = logits(load_model(tmp_path / "fused", "float32")[1])
    assert np.abs(found - ours).max() <= 1e-3 * np.abs(ours).max()


@pytest.mark.parametrize("name", ["F16", "F32"])
def test_fused_matrices_have_the_type_that_they_had(name: str, tmp_path: Path):
    shutil.copytree(find_model("tiny:deepseek-v3"), tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        arrays = mx.load(str(path))
        wide = {key: array for key, array in arrays.items() if array.dtype == mx.bfloat16}
        retyped = {key: array.astype(DTYPES[name]) for key, array in wide.items()}
        mx.save_safetensors(str(path), arrays | retyped, {"format": "mlx"})
    source = open_weights(tmp_path / "model")
    model = load_model(tmp_path / "model")[1]
    adapters = attach(model, select(model, (*TARGETS, "router"), LoraSpec(rank=2, alpha=1)))
    randomize(adapters)
    modules, effects = fuse(model, taken(adapters), TEXTS, types=stored_types(source, adapters))
    write_fused(source, modules, tmp_path / "fused", record(effects))
    found = Checkpoint(tmp_path / "fused").infos
    packed = [path for path in modules if source.infos[f"{path}.weight"].dtype == "U32"]
    assert packed
    assert {found[f"{path}.weight"].dtype for path in packed} == {name}
    assert not any(f"{path}.scales" in found for path in packed)
    kept = {name: info.dtype for name, info in source.infos.items() if name.rpartition(".")[0] not in packed}
    assert {name: info.dtype for name, info in found.items() if name in kept} == kept


def test_chat_templates_that_have_a_name_come_along(tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(find_model("tiny:qwen3"), source)
    (source / "additional_chat_templates").mkdir(parents=True)
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    write_fused(open_weights(source), {}, tmp_path / "fused", {})
    assert (tmp_path / "fused" / "additional_chat_templates" / "tool_use.jinja").read_text() == "T"
    assert (tmp_path / "fused" / "tokenizer.json").is_file()


def test_a_fused_model_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path):
    model, adapter = prepared("tiny:qwen3", 0.5)
    modules, effects = fused(model, adapter)
    source = open_weights(find_model("tiny:qwen3"))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written \(.*Unable to write.*nothing was kept"):
            write_fused(source, modules, tmp_path / "fused", record(effects))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not list(tmp_path.iterdir())
