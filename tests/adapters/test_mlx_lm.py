"""Adapters that mlx-lm itself made: the same logits here as there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from macmoe.adapters.attach import apply
from macmoe.adapters.mlx_lm import import_mlx_lm
from macmoe.adapters.opening import open_adapter
from macmoe.errors import ConfigError, UsageError
from macmoe.session import load_model
from tests.adapters.test_peft import write_checkpoint
from tests.conftest import ROOT
from tests.tuning.tiny import CONFIGS, build

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
TOKENS = mx.array([[1, 5, 9, 2, 7, 7, 3, 4]])
PARAMETERS = {"rank": 3, "scale": 7.0, "dropout": 0.0}


def experts(name: str) -> list[str]:
    return [f"mlp.{name}.{part}_proj" for part in ("gate", "up", "down")]


KEYS = {
    "qwen3": ["self_attn.q_proj", "mlp.gate", *experts("switch_mlp")],
    "gpt_oss": ["self_attn.o_proj", "mlp.router", *experts("experts")],
    "deepseek_v3": ["self_attn.q_b_proj", "mlp.shared_experts.up_proj", *experts("switch_mlp")],
}


def save_theirs(model: Any, name: str, folder: Path) -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    linear_to_lora_layers(model, 2, PARAMETERS | {"keys": KEYS[name]})
    mx.random.seed(4)
    factors = {
        path: 0.1 * mx.random.normal(array.shape)
        for path, array in tree_flatten(model.parameters())
        if path.endswith(("lora_a", "lora_b"))
    }
    model.load_weights(list(factors.items()), strict=False)
    mx.save_safetensors(str(folder / "adapters.safetensors"), factors)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": PARAMETERS | {"keys": KEYS[name]}}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", KEYS)
def test_an_adapter_of_mlx_lm_gives_the_same_logits(name: str, tmp_path: Path):
    from mlx_lm.utils import load_model as load_theirs

    hub = ROOT / "tests" / "assets" / "hub" / name
    if name == "deepseek_v3":  # mlx-lm does not load its multi-token-prediction layer, nor YaRN of version 5
        hub = tmp_path / "model"
        write_checkpoint(CONFIGS[name] | {"rope_scaling": None}, hub)
    theirs, _ = load_theirs(hub)
    theirs.set_dtype(mx.float32)
    save_theirs(theirs, name, tmp_path)
    model = load_model(hub, "float32")[1]
    plain = model(TOKENS)
    apply(model, open_adapter(tmp_path, model, name))
    expected = theirs(TOKENS)
    effect = mx.abs(plain - expected).max()
    assert effect > 0.01
    assert mx.abs(model(TOKENS) - expected).max() <= 1e-2 * effect


def test_other_kinds_and_other_models_are_refused(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "full"}')
    with pytest.raises(UsageError, match="full"):
        import_mlx_lm(tmp_path, build("qwen3"))
    (tmp_path / "adapter_config.json").write_text('{"lora_parameters": [8, 20.0]}')
    with pytest.raises(ConfigError, match="lora_parameters"):
        import_mlx_lm(tmp_path, build("qwen3"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_parameters": PARAMETERS}))
    pair = {"lora_a": mx.zeros((32, 2)), "lora_b": mx.zeros((2, 32))}
    named = {f"model.embed_tokens.{side}": array for side, array in pair.items()}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), named)
    with pytest.raises(UsageError, match="embed_tokens"):
        import_mlx_lm(tmp_path, build("qwen3"))
