"""Stacked experts and head matrices, plain and packed, against a loop over experts."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macmoe.config import Quantization
from macmoe.errors import ConfigError
from macmoe.nn import moe, quantized
from macmoe.nn.mlp import clamped_swiglu, swiglu
from macmoe.nn.moe import PAIRS_PER_EXPERT, Experts, combine
from macmoe.nn.quantized import ExpertLinear, HeadLinear, pack_modules

EXPERTS, DIM, HIDDEN, TOP_K = 4, 64, 96, 2

PACKINGS = {
    "plain": None,
    "mxfp4": Quantization(group_size=32, bits=4, mode="mxfp4"),
    "mxfp8": Quantization(group_size=32, bits=8, mode="mxfp8"),
    "affine 4": Quantization(group_size=32, bits=4, mode="affine"),
    "affine 8": Quantization(group_size=32, bits=8, mode="affine"),
    "nvfp4": Quantization(group_size=16, bits=4, mode="nvfp4"),
    "nvfp4, global scale": Quantization(group_size=16, bits=4, mode="nvfp4", global_scale=True),
}


def fill(linear, how, seed):
    """Give a stack random weights, packed if asked for, and return them unpacked as float64."""
    plain = mx.random.normal(linear.weight.shape, key=mx.random.key(seed)) / linear.weight.shape[-1] ** 0.5
    if "bias" in linear:
        linear.bias = mx.random.normal(linear.bias.shape, key=mx.random.key(seed + 1))
    if how is None:
        linear.weight = plain
        return np.array(plain, dtype=np.float64)
    linear.pack(how)
    if how.global_scale:
        return fill_with_global_scales(linear, plain, how)
    arrays = mx.quantize(plain, group_size=how.group_size, bits=how.bits, mode=how.mode)
    for name, array in zip(("weight", "scales", "biases"), arrays, strict=False):
        assert linear[name].shape == array.shape
        linear[name] = array
    unpacked = mx.dequantize(
        *arrays, group_size=how.group_size, bits=how.bits, mode=how.mode, dtype=mx.float32
    )
    return np.array(unpacked, dtype=np.float64)


def fill_with_global_scales(module, plain, how):
    """Pack matrix by matrix, each with the scale that MLX suggests: its largest magnitude."""
    settings = {"group_size": how.group_size, "bits": how.bits, "mode": how.mode}
    scales = mx.abs(plain).max(axis=(-2, -1))
    matrices = list(zip(plain.reshape(-1, *plain.shape[-2:]), scales.reshape(-1), strict=True))
    packed = [mx.quantize(matrix, global_scale=scale, **settings) for matrix, scale in matrices]
    unpacked = [
        mx.dequantize(*arrays, global_scale=scale, dtype=mx.float32, **settings)
        for arrays, (_, scale) in zip(packed, matrices, strict=True)
    ]
    module.weight, module.scales = (
        mx.stack(parts).reshape(module[name].shape)
        for name, parts in zip(("weight", "scales"), zip(*packed, strict=True), strict=True)
    )
    assert module.global_scale.shape == scales.shape
    module.global_scale = scales
    return np.array(mx.stack(unpacked).reshape(plain.shape), dtype=np.float64)


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_module_multiplies_by_its_global_scale(bias):
    model = nn.Sequential(nn.Linear(64, 32, bias=bias))
    how = PACKINGS["nvfp4, global scale"]
    pack_modules(model, {"layers.0": how})
    (linear,) = model.layers
    weight = fill_with_global_scales(linear, mx.random.normal((32, 64), key=mx.random.key(0)), how)
    if bias:
        linear.bias = mx.arange(32) / 8
    x = mx.random.normal((3, 5, 64), key=mx.random.key(1))
    expected = np.array(x) @ weight.T + (np.arange(32) / 8 if bias else 0)
    np.testing.assert_allclose(np.array(linear(x)), expected, atol=1e-4)
    linear.set_dtype(mx.bfloat16)
    assert linear(x.astype(mx.bfloat16)).dtype == mx.bfloat16
    assert linear.trainable_parameters() == {}


def reference(x, gate_up, down, biases, routes, activation):
    chosen, weights = routes
    y = np.zeros_like(x)
    for token, (experts, shares) in enumerate(zip(chosen, weights, strict=True)):
        for expert, share in zip(experts, shares, strict=True):
            h = gate_up[expert] @ x[token] + biases[0][expert]
            y[token] += share * (down[expert] @ activation(h[:HIDDEN], h[HIDDEN:]) + biases[1][expert])
    return y


def silu_gate(gate, up):
    return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize("how", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize(
    "tokens", [1, EXPERTS * PAIRS_PER_EXPERT // TOP_K - 1, 40], ids=["one", "unsorted", "sorted"]
)
@pytest.mark.parametrize("bias", [False, True])
def test_experts_equal_a_loop_over_experts(how, tokens, bias):
    experts = Experts(EXPERTS, DIM, HIDDEN, swiglu, bias=bias)
    gate_up, down = fill(experts.gate_up_proj, how, 0), fill(experts.down_proj, how, 10)
    biases = [
        np.array(p.bias) if bias else np.zeros((EXPERTS, 1))
        for p in (experts.gate_up_proj, experts.down_proj)
    ]
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, DIM)).astype(np.float32)
    chosen = np.array([rng.permutation(EXPERTS)[:TOP_K] for _ in range(tokens)])
    weights = rng.random((tokens, TOP_K)).astype(np.float32)
    y = experts(mx.array(x), mx.array(chosen.astype(np.uint32)), mx.array(weights))
    expected = reference(x.astype(np.float64), gate_up, down, biases, (chosen, weights), silu_gate)
    np.testing.assert_allclose(np.array(y), expected, atol=2e-5)


def test_sorted_rows_reach_mlx_in_whole_rows(monkeypatch):
    """Rows behind an inserted axis have a stride that MLX's sorted kernels on Metal and CUDA misread."""
    operands = []

    def spy(x, *arguments, **options):
        operands.append(x)
        return gather_mm(x, *arguments, **options)

    gather_mm = mx.gather_mm
    monkeypatch.setattr(mx, "gather_mm", spy)
    experts = Experts(EXPERTS, DIM, HIDDEN, swiglu)
    x = mx.random.normal((40, DIM))
    mx.eval(experts(x, mx.zeros((40, TOP_K), dtype=mx.uint32), mx.ones((40, TOP_K))))
    mx.eval(operands)
    assert [memoryview(rows).strides for rows in operands] == [
        (4 * width, 4 * width, 4) for width in (DIM, HIDDEN)
    ]


def test_the_gradient_of_rows_comes_in_whole_rows():
    """The gradient goes through the same kernels as the rows did."""
    order = mx.argsort(mx.random.randint(0, EXPERTS, (40 * TOP_K,)))
    weights, rows = mx.ones((40, TOP_K)), mx.random.normal((40 * TOP_K, 1, DIM))
    _, (gradient,) = mx.vjp(
        lambda rows: combine(rows, weights, order, mx.argsort(order)), [rows], [mx.ones((40, DIM))]
    )
    mx.eval(gradient)
    assert memoryview(gradient).strides == (4 * DIM, 4 * DIM, 4)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_tokens_are_summed_some_at_a_time(monkeypatch, tokens):
    monkeypatch.setattr(moe, "SUMMED", tokens * (4 + 4) * TOP_K * DIM)
    order = mx.argsort(mx.random.normal((40 * TOP_K,)))
    weights, rows = mx.random.normal((40, TOP_K)), mx.random.normal((40 * TOP_K, 1, DIM))
    expected = np.zeros((40, DIM))
    for row, pair in enumerate(np.array(order)):
        expected[pair // TOP_K] += np.array(weights).flat[pair] * np.array(rows)[row, 0]
    np.testing.assert_allclose(combine(rows, weights, order, mx.argsort(order)), expected, atol=1e-6)


def test_clamped_swiglu_clamps_both_inputs():
    gate, up = np.array([-20.0, 0.5, 3.0, 20.0, 8.0]), np.array([1.0, -9.0, 9.0, 0.0, -1.0])
    g, u = np.minimum(gate, 7), np.clip(up, -7, 7)
    expected = (u + 1) * g / (1 + np.exp(-1.702 * g))
    y = clamped_swiglu(mx.array(gate, dtype=mx.float32), mx.array(up, dtype=mx.float32), 7.0)
    np.testing.assert_allclose(np.array(y), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", PACKINGS.values(), ids=PACKINGS)
def test_head_matrices_work_in_both_directions(how):
    heads = HeadLinear(3, 64, 32)
    weight = fill(heads, how, 0)
    x = mx.random.normal((2, 1, 5, 64), key=mx.random.key(1))
    y = mx.random.normal((2, 3, 5, 32), key=mx.random.key(2))
    np.testing.assert_allclose(np.array(heads(x)), np.array(x) @ weight.swapaxes(1, 2), atol=1e-5)
    np.testing.assert_allclose(np.array(heads.transposed(y)), np.array(y) @ weight, atol=1e-5)
    some = np.array(x) @ weight[1:].swapaxes(1, 2)
    np.testing.assert_allclose(np.array(heads(x, slice(1, 3))), some, atol=1e-5)


def test_the_rows_of_a_batch_meet_a_head_matrix_at_once(monkeypatch):
    """MLX's CUDA products of several stacks of rows with one packed stack are wrong, which no CPU shows."""
    heads = HeadLinear(3, 64, 32)
    fill(heads, PACKINGS["affine 4"], 0)
    shapes = []
    product = mx.quantized_matmul
    monkeypatch.setattr(
        mx, "quantized_matmul", lambda x, *a, **k: shapes.append(x.shape) or product(x, *a, **k)
    )
    heads(mx.zeros((2, 1, 5, 64)))
    heads.transposed(mx.zeros((2, 3, 5, 32)))
    assert shapes == [(1, 10, 64), (3, 10, 32)]


def test_packing_an_unknown_path_is_refused():
    with pytest.raises(ConfigError, match="'down_projection', which is not a matrix"):
        pack_modules(Experts(EXPERTS, DIM, HIDDEN, swiglu), {"down_projection": PACKINGS["mxfp4"]})


def test_packing_a_width_that_is_no_multiple_of_the_group_is_refused():
    experts = Experts(EXPERTS, 40, HIDDEN, swiglu)
    with pytest.raises(ConfigError, match="40 inputs cannot be packed in groups of 32"):
        pack_modules(experts, {"gate_up_proj": PACKINGS["mxfp4"]})


@pytest.mark.parametrize("packing", ["mxfp4", "affine 4", "nvfp4, global scale"])
@pytest.mark.parametrize("readable", [1, 2, 3])
def test_a_stack_that_mlx_cannot_read_whole_is_gathered_in_parts(monkeypatch, packing, readable):
    linear = ExpertLinear(5, DIM, HIDDEN, bias=True)
    fill(linear, PACKINGS[packing], 0)
    x, experts = mx.random.normal((6, 2, 1, DIM)), mx.array([[4, 0], [2, 2], [1, 3], [0, 4], [3, 1], [4, 4]])
    whole = linear(x, experts)
    gathered = []
    gather = mx.gather_qmm

    def counting(x, weight, *rest, **named):
        gathered.append(len(weight))
        return gather(x, weight, *rest, **named)

    monkeypatch.setattr(
        mx, "gather_qmm", lambda x, w, *a, **k: gathered.append(len(w)) or gather(x, w, *a, **k)
    )
    monkeypatch.setattr(quantized, "readable_bytes", lambda: readable * linear.weight.nbytes // 5)
    assert mx.array_equal(linear(x, experts), whole)
    assert sum(gathered) == 5
    assert max(gathered) == readable
