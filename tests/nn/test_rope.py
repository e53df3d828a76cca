"""Rotary tables against transformers, and the published constants of the three families."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.config import ConfigReader, read_rope
from macmoe.errors import ConfigError
from macmoe.nn.rope import Rope, attention_factor, frequencies, mscale

YARN = {
    "gpt-oss": (64, 150000.0, {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}),
    "qwen3": (128, 1e6, {"factor": 4.0, "original_max_position_embeddings": 32768}),
    "deepseek": (
        64,
        1e4,
        {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "v2 mscale": (
        64,
        1e4,
        {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.707},
    ),
    "given factor": (
        64,
        1e4,
        {"factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 1.25},
    ),
    "tiny original": (32, 1e4, {"factor": 4.0, "original_max_position_embeddings": 16}),
    "beta": (
        64,
        5e5,
        {"factor": 16.0, "original_max_position_embeddings": 1024, "beta_fast": 8, "beta_slow": 2},
    ),
}


def rope_config(theta, scaling, max_position=131072):
    data = {"rope_theta": theta, "rope_scaling": scaling}
    return read_rope(ConfigReader(data, "config.json"), max_position)


@pytest.mark.parametrize(("head_dim", "theta", "scaling"), YARN.values(), ids=YARN)
def test_yarn_against_transformers(head_dim, theta, scaling):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    reference = LlamaConfig(
        head_dim=head_dim,
        hidden_size=head_dim,
        num_attention_heads=1,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "yarn", "rope_theta": theta, **scaling},
    )
    inv_freq, factor = ROPE_INIT_FUNCTIONS["yarn"](reference, "cpu")
    config = rope_config(theta, {"rope_type": "yarn", **scaling})
    np.testing.assert_allclose(frequencies(head_dim, config), inv_freq.double().numpy(), rtol=3e-7)
    assert attention_factor(config.yarn) == pytest.approx(factor, rel=1e-9)


def test_attn_factor_multiplies_the_factor_of_yarn():
    """DeepSeek-R1-0528-Qwen3-8B undoes it so; transformers, which has no such key, is told the product."""
    head_dim, theta, scaling = YARN["qwen3"]
    part = 0.8782488562869419
    yarn = rope_config(theta, {"rope_type": "yarn", **scaling, "attn_factor": part}).yarn
    assert attention_factor(yarn) == pytest.approx(1.0, abs=1e-12)
    assert attention_factor(yarn) == pytest.approx(part * mscale(yarn.factor), abs=1e-12)
    whole = rope_config(theta, {"rope_type": "yarn", **scaling, "attention_factor": 1.0})
    np.testing.assert_array_equal(
        frequencies(head_dim, whole),
        frequencies(head_dim, rope_config(theta, {"rope_type": "yarn", **scaling, "attn_factor": part})),
    )
    with pytest.raises(ConfigError, match="keep one"):
        rope_config(theta, {"rope_type": "yarn", **scaling, "attn_factor": part, "attention_factor": 1.0})


@pytest.mark.parametrize(
    ("name", "factor", "scale"),
    [("gpt-oss", 1.3465735903, 1.0), ("qwen3", 1.1386294361, 1.0), ("deepseek", 1.0, 1.8738542071)],
)
def test_published_constants(name, factor, scale):
    _, theta, scaling = YARN[name]
    yarn = rope_config(theta, {"rope_type": "yarn", **scaling}).yarn
    assert attention_factor(yarn) == pytest.approx(factor, abs=1e-9)
    assert mscale(yarn.factor, yarn.mscale_all_dim or 0.0) ** 2 == pytest.approx(scale, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20_000), st.booleans())
def test_rotation_is_the_textbook_one(start, interleaved):
    rng = np.random.default_rng(start)
    x = rng.standard_normal((2, 3, 4, 8)).astype(np.float32)
    config = rope_config(1e4, None)
    y = np.array(Rope(8, config, interleaved=interleaved)(mx.array(x), start))
    pairs = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :4], x[..., 4:])
    angles = np.arange(start, start + 4)[:, None] * frequencies(8, config)
    z = (pairs[0] + 1j * pairs[1]) * np.exp(1j * angles)
    first, second = (y[..., 0::2], y[..., 1::2]) if interleaved else (y[..., :4], y[..., 4:])
    np.testing.assert_allclose(first + 1j * second, z, atol=3e-3 if start > 1000 else 2e-4)


def test_each_sequence_has_its_own_start():
    rope = Rope(8, rope_config(1e4, None))
    x = mx.random.normal((2, 1, 3, 8), key=mx.random.key(0))
    together = rope(x, mx.array([5, 0]))
    for row, start in ((0, 5), (1, 0)):
        np.testing.assert_allclose(
            np.array(together[row : row + 1]), np.array(rope(x[row : row + 1], start)), atol=1e-6
        )
