"""Adapters on models: gradients on packed bases, merging, exchange at run time."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from safetensors import safe_open

from macmoe.adapters.attach import (
    Adapter,
    adaptable,
    apply,
    arrays_of,
    attach,
    attached,
    detach,
    put,
    select,
    taken,
)
from macmoe.adapters.files import MARKER, WEIGHTS, read_adapter, save_adapter, write_arrays
from macmoe.adapters.lora import ExpertLora, HeadLora, LoraSpec, decoded
from macmoe.config import Quantization
from macmoe.errors import CheckpointError, ConfigError, MacmoeError, UsageError
from macmoe.nn.quantized import NVFP4_RANGE, PACKED, ExpertLinear, HeadLinear, pack_modules
from macmoe.tuning.batch import Batch
from macmoe.tuning.loss import loss_sums
from tests.tuning.tiny import CONFIGS, EVERYTHING, adapted, build, randomize, samples

SPEC = LoraSpec(rank=3, alpha=6.0)
MODES = {
    "mxfp4": Quantization(group_size=32, bits=4, mode="mxfp4"),
    "mxfp8": Quantization(group_size=32, bits=8, mode="mxfp8"),
    "affine": Quantization(group_size=32, bits=4, mode="affine"),
}
SCALED = {"nvfp4": Quantization(group_size=16, bits=4, mode="nvfp4", global_scale=True)}
TOKENS = mx.array([[1, 5, 9, 2, 7, 7, 3, 4]])


def packed(name: str, how: Quantization) -> Any:
    """Return a model with every matrix packed that has whole groups."""
    model = build(name)
    plain = {
        path: module.weight
        for path, module in model.named_modules()
        if type(module) in PACKED
        and module.weight.shape[-1] % 32 == 0
        and not path.endswith(("gate", "router"))
        and not (how.global_scale and path.endswith("embed_tokens"))
    }
    pack_modules(model, dict.fromkeys(plain, how))
    for path, weight in plain.items():
        parts = mx.quantize(weight, group_size=how.group_size, bits=how.bits, mode=how.mode)
        named = [
            (f"{path}.{part}", array)
            for part, array in zip(("weight", "scales", "biases"), parts, strict=False)
        ]
        if how.global_scale:
            named.append((f"{path}.global_scale", mx.full(weight.shape[:-2], 0.8 * NVFP4_RANGE)))
        model.update(tree_unflatten(named))
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mode", MODES | SCALED)
def test_a_matrix_can_be_adapted_however_it_is_packed(name: str, mode: str):
    assert adaptable(packed(name, (MODES | SCALED)[mode])).keys() == adaptable(build(name)).keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_new_adapters_change_no_logit_and_taken_off_leave_no_trace(name: str):
    model = build(name)
    before = dict(tree_flatten(model.parameters()))
    expected = model(TOKENS)
    attach(model, select(model, EVERYTHING, SPEC))
    assert mx.array_equal(model(TOKENS), expected)
    randomize(attached(model))
    assert not mx.allclose(model(TOKENS), expected)
    detach(model)
    after = dict(tree_flatten(model.parameters()))
    assert all(after[path] is array for path, array in before.items())
    assert after.keys() == before.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_only_factors_are_trainable_and_routers_are_frozen_unless_named(name: str):
    model = build(name)
    adapters = attach(model, select(model, EVERYTHING[:-1], SPEC))
    names = [path for path, _ in tree_flatten(model.trainable_parameters())]
    assert sorted(names) == sorted(arrays_of(adapters))
    assert not any(path.endswith(("mlp.gate", "mlp.router")) for path in adapters)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mode", MODES | SCALED)
def test_gradients_on_packed_bases_agree_with_finite_differences(name: str, mode: str):
    model = packed(name, (MODES | SCALED)[mode])
    adapters = adapted(model, EVERYTHING[:-1])
    batch = Batch.of([samples(2, longest=8)], 16)

    def loss(arrays: dict[str, mx.array]) -> mx.array:
        put(adapters, arrays)
        return loss_sums(model, batch).loss.sum()

    arrays = arrays_of(adapters)
    gradients = mx.grad(loss)(arrays)
    norm = float(mx.sqrt(sum(gradient.square().sum() for gradient in gradients.values())))
    step = 2e-3 / norm
    up, down = (
        float(loss({key: array + sign * step * gradients[key] for key, array in arrays.items()}))
        for sign in (1, -1)
    )
    assert (up - down) / (2 * step) == pytest.approx(norm**2, rel=0.01)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("outward", [False, True])
def test_experts_on_a_packed_base_have_the_gradients_of_the_decoded_base(
    mode: str, shared: bool, outward: bool
):
    mx.random.seed(1)
    packed_base, plain_base = ExpertLinear(4, 64, 32), ExpertLinear(4, 64, 32)
    weight = packed_base.weight
    packed_base.pack(MODES[mode])
    parts = mx.quantize(weight, group_size=32, bits=MODES[mode].bits, mode=mode)
    for part, array in zip(("weight", "scales", "biases"), parts, strict=False):
        packed_base[part] = array
    plain_base.weight = decoded(packed_base)
    spec = LoraSpec(rank=2, alpha=4.0, shared=shared)
    both = [ExpertLora(base, spec, outward=outward) for base in (packed_base, plain_base)]
    x, chosen = mx.random.normal((6, 1, 1, 64)), mx.array([[0, 2], [2, 1], [0, 1], [1, 2], [2, 0], [0, 2]])
    factors = {name: 0.2 * mx.random.normal(array.shape) for name, array in both[0].factors.items()}

    def loss(x: mx.array, factors: dict[str, mx.array], layer: ExpertLora) -> mx.array:
        layer.update(factors)
        return mx.sin(layer(x, chosen)).sum()

    (dx, found), (expected_dx, expected) = (
        mx.grad(lambda x, f, layer=layer: loss(x, f, layer), argnums=(0, 1))(x, factors) for layer in both
    )
    assert mx.allclose(dx, expected_dx, atol=2e-5)
    for key, array in expected.items():
        assert mx.allclose(found[key], array, atol=2e-5), key
        if array.ndim == 3:
            assert not found[key][3].any()  # nobody chose expert 3


def test_both_forms_of_latent_attention_see_the_same_adapter():
    mx.random.seed(2)
    keys, values = HeadLora(HeadLinear(3, 16, 8), SPEC), None
    values = HeadLora(HeadLinear(3, 16, 12), SPEC, lender=keys)
    for adapter in (keys, values):
        adapter.update({name: mx.random.normal(array.shape) for name, array in adapter.factors.items()})
        matrix = adapter.merged(decoded(adapter.base))
        c, y = mx.random.normal((2, 1, 5, 16)), mx.random.normal((2, 3, 5, matrix.shape[1]))
        assert mx.allclose(adapter(c), c @ matrix.swapaxes(-1, -2), atol=1e-4)
        assert mx.allclose(adapter.transposed(y), y @ matrix, atol=1e-4)
    assert "lora_a" not in values


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_decodes_token_by_token_as_it_reads_a_prompt(name: str):
    model = build(name)
    adapted(model)
    expected = model(TOKENS)
    cache = model.make_cache()
    steps = [model(TOKENS[:, i : i + 1], cache=cache) for i in range(TOKENS.shape[1])]
    assert mx.allclose(mx.concatenate(steps, axis=1), expected, atol=2e-4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("options", [{}, {"shared": True}, {"rslora": True}], ids=str)
def test_merged_matrices_compute_what_the_adapter_computes(name: str, options: dict):
    model = build(name)
    adapters = adapted(model, EVERYTHING[:-1], **options)
    expected = model(TOKENS)
    merged = {f"{path}.weight": adapter.merged(decoded(adapter.base)) for path, adapter in adapters.items()}
    detach(model)
    model.load_weights(list(merged.items()), strict=False)
    assert mx.allclose(model(TOKENS), expected, atol=2e-4 * float(mx.abs(expected).max()))


def test_rows_of_learned_length_need_no_decoded_matrix_in_a_step():
    mx.random.seed(3)
    for how in (None, MODES["mxfp4"], SCALED["nvfp4"]):
        model = build("gpt_oss") if how is None else packed("gpt_oss", how)
        adapters = adapted(model, ("*.layers.1.self_attn.[qo]_proj",), dora=True)
        for adapter in adapters.values():
            adapter.magnitude = adapter.magnitude * 1.3
            x = mx.random.normal((5, adapter.lora_a.shape[1]))
            expected = x @ adapter.merged(decoded(adapter.base)).T + adapter.base.bias
            assert mx.allclose(adapter(x), expected, atol=1e-4)


def test_adapters_are_exchanged_at_run_time():
    model = build("deepseek_v3")
    plain = model(TOKENS)
    first = taken(adapted(model, ("attention",)))
    with_first = model(TOKENS)
    detach(model)
    second = taken(adapted(model, ("experts", "router"), seed=9))
    with_second = model(TOKENS)
    for adapter, expected in ((first, with_first), (second, with_second), (first, with_first)):
        apply(model, adapter)
        assert mx.array_equal(model(TOKENS), expected)
    detach(model)
    assert mx.array_equal(model(TOKENS), plain)


def test_a_saved_adapter_comes_back_bit_equal(tmp_path: Path):
    model = build("gpt_oss")
    adapter = taken(adapted(model, dora=False, shared=True))
    save_adapter(adapter, tmp_path, "gpt_oss")
    back = read_adapter(tmp_path, "gpt_oss")
    assert back.specs == dict(adapter.specs)
    assert all(mx.array_equal(back.arrays[name], array) for name, array in adapter.arrays.items())


def test_arrays_are_written_without_a_copy_in_memory(tmp_path: Path):
    arrays = {"a": mx.arange(1_000_000, dtype=mx.float32).reshape(1000, 1000), "b": mx.ones((3, 2)).T}
    mx.eval(arrays)
    tracemalloc.start()
    try:
        write_arrays(tmp_path / WEIGHTS, arrays, {"kind": "test"})
        assert tracemalloc.get_traced_memory()[1] < arrays["a"].nbytes / 10
    finally:
        tracemalloc.stop()
    with safe_open(tmp_path / WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "mlx", "kind": "test"}
        assert all(np.array_equal(file.get_tensor(name), np.array(array)) for name, array in arrays.items())
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_patterns_choose_matrices_and_ranks():
    model = build("deepseek_v3")
    other = LoraSpec(rank=1, alpha=1.0)
    specs = select(model, ("*.layers.1.self_attn.o_proj", "experts"), SPEC, {"*.experts.*": other})
    assert specs == {
        "model.layers.1.self_attn.o_proj": SPEC,
        "model.layers.1.mlp.experts.gate_up_proj": other,
        "model.layers.1.mlp.experts.down_proj": other,
    }


WRONG_TARGETS = {
    "attentoin": "did you mean 'attention'",
    "*.q_prj": "matches no matrix",
    "shared_experts": "match no matrix",
    "*.embed_tokens": "matches no matrix",
}


@pytest.mark.parametrize("target", WRONG_TARGETS)
def test_targets_that_choose_nothing_are_refused(target: str):
    with pytest.raises(UsageError, match=WRONG_TARGETS[target]):
        select(build("qwen3_moe"), (target,), SPEC)


def test_lengths_of_experts_are_refused():
    with pytest.raises(UsageError, match="DoRA"):
        select(build("qwen3_moe"), ("experts",), LoraSpec(rank=2, alpha=1.0, dora=True))


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (-1, 1.0), (1, float("nan"))])
def test_ranks_and_scales_without_sense_are_refused(rank: int, alpha: float):
    with pytest.raises(UsageError):
        LoraSpec(rank=rank, alpha=alpha)


def test_an_adapter_for_another_model_or_shape_is_refused_and_the_model_stays_as_it_was(tmp_path: Path):
    model = build("qwen3")
    adapter = taken(adapted(model))
    save_adapter(adapter, tmp_path, "qwen3")
    with pytest.raises(UsageError, match="for qwen3 and the model is gpt_oss"):
        read_adapter(tmp_path, "gpt_oss")
    with pytest.raises(UsageError, match="another model"):
        apply(build("qwen3_moe"), adapter)
    detach(model)
    expected = model(TOKENS)
    wrong = Adapter(specs=adapter.specs, arrays={k: a[..., :2] for k, a in adapter.arrays.items()})
    with pytest.raises(UsageError, match="another shape"):
        apply(model, wrong)
    assert mx.array_equal(model(TOKENS), expected)


def damage(folder: Path, how: str) -> None:
    if how == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])
    elif how == "without weights":
        (folder / WEIGHTS).unlink()
    elif how == "with unknown settings":
        (folder / MARKER).write_text((folder / MARKER).read_text().replace('"rslora"', '"rslra"'))
    elif how == "of a later version":
        (folder / MARKER).write_text((folder / MARKER).read_text().replace('version": 1', 'version": 9'))
    else:
        (folder / MARKER).write_text("{")


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("truncated", CheckpointError),
        ("without weights", CheckpointError),
        ("with unknown settings", ConfigError),
        ("of a later version", CheckpointError),
        ("not JSON", ConfigError),
    ],
)
def test_a_damaged_adapter_is_one_line(tmp_path: Path, how: str, error: type[MacmoeError]):
    save_adapter(taken(adapted(build("qwen3"))), tmp_path, "qwen3")
    damage(tmp_path, how)
    with pytest.raises(error) as raised:
        read_adapter(tmp_path, "qwen3")
    assert "\n" not in str(raised.value)
