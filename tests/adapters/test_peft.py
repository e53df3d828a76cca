"""Adapters of all families against PEFT: logits, loss, every gradient, and the way there and back."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from macmoe.adapters.attach import apply, arrays_of, attach, detach, put, select, taken
from macmoe.adapters.lora import LoraSpec, matrix_shape
from macmoe.adapters.peft_export import CONFIG, WEIGHTS, export_peft
from macmoe.adapters.peft_import import PeftConfig, import_peft
from macmoe.errors import MacmoeError, UsageError
from macmoe.session import load_model
from macmoe.tuning.batch import Batch
from macmoe.tuning.loss import loss_sums
from tests.parity.builder import reference
from tests.parity.cases import Config
from tests.tuning.tiny import CONFIGS, EVERYTHING, adapted, randomize, samples
from tests.tuning.tiny import build as tiny

pytestmark = [
    pytest.mark.parity,
    # peft 0.21.2 says that patterns for parameters are ignored; the logits show that they are applied.
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning"
    ),
]

GRADIENTS = 2e-6  # relative to the largest value of a gradient
LOGITS = 1e-5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Let torch not wait for threads of its own: tests run in parallel already."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("peft") / request.param
    write_checkpoint(CONFIGS[request.param], folder)
    return Pair(name=request.param, folder=folder)


def write_checkpoint(config: Config, folder: Path) -> None:
    """Write random weights mild enough that float32 itself costs less than the gates."""
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"initializer_range": 0.1}))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    for name, array in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("bias", "sinks")):
            array.data += 0.2 * torch.randn_like(array)
    model.save_pretrained(folder)


@dataclass(frozen=True)
class Pair:
    """One checkpoint, for both sides."""

    name: str
    folder: Path

    def model(self) -> Any:
        return load_model(self.folder, "float32")[1]

    def torch(self) -> Any:
        return reference(self.folder)

    def exported(self, model: Any, folder: Path, **options: Any) -> Path:
        adapter = taken({p: m for p, m in model.named_modules() if hasattr(m, "spec")})
        detach(model)
        export_peft(model, adapter, folder, family=self.name, **options)
        apply(model, adapter)
        return folder

    def imported(self, folder: Path) -> Any:
        model = self.model()
        return import_peft(folder, model, self.name)


def torch_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def with_adapter(model: Any, targets: tuple[str, ...] = EVERYTHING, **spec: Any) -> dict[str, Any]:
    made = attach(model, select(model, targets, LoraSpec(**({"rank": 3, "alpha": 6.0} | spec))))
    randomize(made)
    return made


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_logits_loss_and_every_gradient_match_peft(case: Pair, tmp_path: Path):
    model = case.model()
    adapters = with_adapter(model)
    data = samples(3)
    batches = [Batch.of([[sample]], len(sample.tokens) - 1) for sample in data]

    def loss(arrays: dict[str, mx.array]) -> mx.array:
        put(adapters, arrays)
        return sum((loss_sums(model, batch).loss.sum() for batch in batches), mx.array(0.0))

    arrays = arrays_of(adapters)
    value, gradients = mx.value_and_grad(loss)(arrays)
    put(adapters, arrays)
    folder = case.exported(model, tmp_path / "adapter")
    # In float64: in float32 PEFT's own gradients are 2e-6 away from these.
    peft_model = PeftModel.from_pretrained(case.torch().double(), folder, is_trainable=True).double().eval()
    total = torch.tensor(0.0, dtype=torch.float64)
    for sample in data:
        logits = peft_model(torch.tensor([sample.tokens])).logits[0]
        ours = np.array(model(mx.array([sample.tokens]))[0])
        assert np.abs(ours - logits.detach().numpy()).max() <= LOGITS * np.abs(ours).max()
        losses = torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(sample.tokens[1:]), reduction="none"
        )
        total = total + (losses * torch.tensor(sample.weights[1:])).sum()
    assert value.item() == pytest.approx(total.item(), rel=2e-6)
    total.backward()
    expected = peft_gradients(case, peft_model, tmp_path)
    assert gradients.keys() == expected.keys()
    errors = {name: relative(np.array(gradients[name]), np.array(expected[name])) for name in gradients}
    assert max(errors.values()) <= GRADIENTS, {k: v for k, v in errors.items() if v > GRADIENTS}


def peft_gradients(case: Pair, peft_model: Any, folder: Path) -> dict[str, mx.array]:
    """Let the import arrange PEFT's gradients as it arranges factors."""
    gradients = {
        name.replace(".default", ""): parameter.grad.float()
        for name, parameter in peft_model.named_parameters()
        if "lora_" in name
    }
    (folder / "gradients").mkdir()
    shutil.copy(folder / "adapter" / CONFIG, folder / "gradients")
    save_file(gradients, folder / "gradients" / WEIGHTS)
    return dict(case.imported(folder / "gradients").arrays)


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"shared": True}], ids=str)
def test_an_adapter_goes_to_peft_and_comes_back_bit_equal(case: Pair, tmp_path: Path, options: dict):
    model = case.model()
    adapters = with_adapter(model, **options)
    tokens = np.random.default_rng(3).integers(0, 96, (2, 12))
    expected = np.array(model(mx.array(tokens)))
    folder = case.exported(model, tmp_path / "adapter")
    found = torch_logits(PeftModel.from_pretrained(case.torch(), folder).eval(), tokens)
    assert np.abs(found - expected).max() <= LOGITS * max(1, np.abs(expected).max())
    back = case.imported(folder)
    apply(model, back)
    if "shared" in options:  # comes back as one factor per expert
        assert mx.array_equal(model(mx.array(tokens)), mx.array(expected))
    else:
        assert back.specs == {path: adapter.spec for path, adapter in adapters.items()}
        assert all(mx.array_equal(back.arrays[name], array) for name, array in arrays_of(adapters).items())


def test_dora_matches_peft_and_comes_back(case: Pair, tmp_path: Path):
    model = case.model()
    adapters = with_adapter(model, ("*.self_attn.o_proj",), dora=True)  # gpt_oss: with a bias
    for adapter in adapters.values():
        adapter.magnitude = adapter.magnitude * mx.random.uniform(0.5, 1.5, adapter.magnitude.shape)
    tokens = np.random.default_rng(3).integers(0, 96, (2, 12))
    folder = case.exported(model, tmp_path / "adapter")
    found = torch_logits(PeftModel.from_pretrained(case.torch(), folder).eval(), tokens)
    assert np.abs(found - np.array(model(mx.array(tokens)))).max() <= LOGITS
    back = case.imported(folder)
    assert all(mx.array_equal(back.arrays[name], array) for name, array in arrays_of(adapters).items())


def test_an_adapter_made_by_peft_is_taken_over(case: Pair, tmp_path: Path):
    options: dict[str, Any] = {
        "target_modules": ["o_proj", "q_proj"],
        "rank_pattern": {"layers.1.*o_proj": 5},
    }
    if case.name == "deepseek_v3":
        options["target_modules"] = ["o_proj", "kv_b_proj"]
    if case.name != "qwen3":
        options["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    torch.manual_seed(1)
    peft_model = get_peft_model(case.torch(), config).eval()
    peft_model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(3).integers(0, 96, (2, 12))
    model = case.model()
    apply(model, case.imported(tmp_path))
    expected = torch_logits(peft_model, tokens)
    assert np.abs(np.array(model(mx.array(tokens))) - expected).max() <= LOGITS * max(
        1, np.abs(expected).max()
    )


def test_experts_one_by_one_match_peft_and_come_back(tmp_path: Path):
    write_checkpoint(CONFIGS["qwen3_moe"], tmp_path / "model")
    case = Pair(name="qwen3_moe", folder=tmp_path / "model")
    model = case.model()
    adapters = with_adapter(model, ("attention", "experts"))
    tokens = np.random.default_rng(3).integers(0, 96, (2, 12))
    folder = case.exported(model, tmp_path / "adapter", layout="per-expert")
    found = torch_logits(PeftModel.from_pretrained(case.torch(), folder).eval(), tokens)
    assert np.abs(found - np.array(model(mx.array(tokens)))).max() <= LOGITS
    back = case.imported(folder)
    assert all(mx.array_equal(back.arrays[name], array) for name, array in arrays_of(adapters).items())


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe"])
def test_only_one_of_the_two_expert_parameters_is_recognized(tmp_path: Path, family: str):
    write_checkpoint(CONFIGS[family], tmp_path / "model")
    case = Pair(name=family, folder=tmp_path / "model")
    one, other, both = (f"*.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj", "*"))
    mixed = tuple(pattern.replace("*.mlp", f"*.{i}.mlp") for i, pattern in enumerate((other, both)))
    for number, targets in enumerate([(one,), (other,), mixed, mixed[::-1]]):
        model = case.model()
        adapters = with_adapter(model, targets)
        folder = case.exported(model, tmp_path / str(number))
        tokens = np.random.default_rng(3).integers(0, 96, (2, 12))
        found = torch_logits(PeftModel.from_pretrained(case.torch(), folder).eval(), tokens)
        assert np.abs(found - np.array(model(mx.array(tokens)))).max() <= LOGITS
        back = case.imported(folder)
        assert all(mx.array_equal(back.arrays[key], array) for key, array in arrays_of(adapters).items())


REFUSED = {
    "bias": "all",
    "modules_to_save": ["lm_head"],
    "use_qalora": True,
    "layer_replication": [[0, 1]],
    "init_lora_weights": "pissa",
    "alora_invocation_tokens": [1],
    "peft_type": "LOHA",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_cannot_be_taken_over_is_refused_by_name(tmp_path: Path, setting: str):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | {setting: REFUSED[setting]}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UsageError, match=setting):
        import_peft(tmp_path, tiny("qwen3"), "qwen3")


def test_other_methods_are_refused_by_name_and_notes_of_trainers_pass(tmp_path: Path):
    notes = {
        "unsloth_version": "2025.9.7",
        "_saved_by": "x",
        "lora_dtype": "bfloat16",
        "lorap_lr_ratio": 16.0,
    }
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | notes))
    assert PeftConfig.read(tmp_path).rank == 2
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8}))
    with pytest.raises(UsageError, match="'PROMPT_TUNING'"):
        PeftConfig.read(tmp_path)


LENGTHS = {  # inputs and outputs of a matrix whose rows cannot have lengths here
    "self_attn.kv_b_proj": (16, 4 * (8 + 12)),
    "mlp.experts": (32, 48),
    "mlp.experts.{}.down_proj": (24, 32),
}


@pytest.mark.parametrize("matrix", LENGTHS)
def test_lengths_of_what_is_no_linear_layer_here_are_refused(tmp_path: Path, matrix: str):
    model = tiny("deepseek_v3")
    assert matrix_shape(model.model.layers[1].self_attn.k_up_proj) == (4, 8, 16)
    inputs, outputs = LENGTHS[matrix]
    rows = 2 * (8 if matrix == "mlp.experts" else 1)  # all experts at once, with all their ranks
    arrays = {
        "lora_A.weight": torch.zeros(rows, inputs),
        "lora_B.weight": torch.zeros(outputs, rows),
        "lora_magnitude_vector": torch.ones(outputs),
    }
    names = {matrix.format(expert) for expert in range(8)}
    where = "base_model.model.model.layers.1"
    tensors = {f"{where}.{name}.{key}": array.clone() for name in names for key, array in arrays.items()}
    save_file(tensors, tmp_path / WEIGHTS)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": True}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UsageError, match="DoRA is defined for plain linear layers only"):
        import_peft(tmp_path, model, "deepseek_v3")


def test_tensors_of_another_model_are_refused(tmp_path: Path):
    model = tiny("qwen3")
    adapter = taken(adapted(model))
    detach(model)
    export_peft(model, adapter, tmp_path, family="qwen3")
    for other in ("gpt_oss", "deepseek_v3"):
        with pytest.raises(UsageError):
            apply(tiny(other), import_peft(tmp_path, tiny(other), other))
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(MacmoeError, match="damaged"):
        import_peft(tmp_path, model, "qwen3")
