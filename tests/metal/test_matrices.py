"""Packed matrices of one token, by the experts' kernel instead of MLX's product."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from macmoe.decoding import matrices, mlp
from macmoe.kernels.add_norm import Joint
from macmoe.nn.mlp import MLP

DIM, HIDDEN = 128, 96


@pytest.fixture
def large(emulate, monkeypatch):
    """Return a function after which every packed matrix is a large one on a GPU where MLX is slow."""

    def enlarge():
        emulate()
        monkeypatch.setattr(matrices, "LARGE", 0)
        monkeypatch.setattr(matrices, "mlx_is_slow", lambda: True)

    return enlarge


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8"])
def test_large_matrix_gives_the_product_of_mlx(large, mode):
    bits, group = {"affine": (4, 64), "mxfp4": (4, 32), "mxfp8": (8, 32)}[mode]
    x = mx.random.normal((1, DIM))
    pair = [nn.Linear(DIM, rows, bias=False).to_quantized(group, bits, mode) for rows in (HIDDEN, 40)]
    matrix = matrices.join(pair, x.dtype)
    wanted = matrix(x)
    large()
    assert matrix.large(x) is not None
    assert matrix.large(mx.concatenate([x, x])) is None
    assert mx.allclose(matrix(x), wanted, atol=1e-5)


def test_large_dense_layer_gives_the_output_of_the_module(large):
    module, norm = MLP(DIM, HIDDEN), nn.RMSNorm(DIM)
    nn.quantize(module, 32, 4)
    x, delta = mx.random.normal((2, 1, DIM))
    large()
    dense = mlp.dense(module, Joint(norm=norm.weight, eps=norm.eps), mx.float32)
    total, y = dense(x, delta)
    assert mx.allclose(total, x + delta)
    assert mx.allclose(y, module(norm(x + delta)[None])[0], atol=1e-5)


def test_a_plain_matrix_stays_with_mlx(large):
    matrix = matrices.join([nn.Linear(DIM, HIDDEN, bias=False)], mx.float32)
    large()
    x = mx.random.normal((1, DIM))
    assert mx.array_equal(matrix(x), x @ matrix.arrays["weight"].T)
