"""The attention half of a layer for one token of each sequence."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from macmoe.decoding.matrices import Matrix, join
from macmoe.kernels import grouped_attention, latent_attention
from macmoe.kernels.experts import Stack
from macmoe.kernels.grouped_attention import Heads
from macmoe.models import gpt_oss, qwen3
from macmoe.nn.latent_attention import LATENT_NORM_EPS, LatentAttention
from macmoe.nn.quantized import HeadLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """Grouped-query attention; the bias of its output is added with the residual stream."""

    qkv: Matrix
    output: Matrix
    heads: Heads
    weights: grouped_attention.Weights

    def __call__(self, x: mx.array, buffers: list[mx.array], places: mx.array) -> mx.array:
        """Map the normed stream [sequences, dim] to what is added to it; the cache is written."""
        parts = len(buffers) // 2
        keys, values = buffers[:parts], buffers[parts:]
        y = grouped_attention.attend(self.qkv(x), keys, values, places, self.heads, self.weights)
        return self.output(y)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Latent attention, absorbed."""

    compress: Matrix
    expand: Matrix
    output: Matrix
    key_up: Stack
    value_up: HeadLinear
    norms: tuple[mx.array, mx.array]
    wavelengths: mx.array
    form: latent_attention.Form

    def __call__(self, x: mx.array, buffers: list[mx.array], places: mx.array) -> mx.array:
        """Map the normed stream [sequences, dim] to what is added to it; the cache is written."""
        compressed = latent_attention.prepare(
            self.compress(x), self.norms, buffers, places, self.wavelengths, self.form
        )
        absorbed = latent_attention.absorb(
            self.expand(compressed), self.key_up, places, self.wavelengths, self.form
        )
        mixed = latent_attention.attend(absorbed, buffers, places, self.form)  # [sequences, heads, latent]
        values = self.value_up.by_head(mixed.swapaxes(0, 1))  # [heads, sequences, value_dim]
        return self.output(values.swapaxes(0, 1).reshape(len(x), -1))


def grouped(
    module: gpt_oss.Attention | qwen3.Attention,
    dtype: mx.Dtype,
    *,
    window: bool,
) -> Grouped | None:
    """Translate the attention of GPT-OSS or Qwen3."""
    projections = [module.q_proj, module.k_proj, module.v_proj]
    if any(type(matrix) not in {nn.Linear, nn.QuantizedLinear} for matrix in projections):
        return None
    query_rows, key_rows = module.q_proj.weight.shape[0], module.k_proj.weight.shape[0]
    norms = [module.get("q_norm"), module.get("k_norm")]
    heads = Heads(
        heads=query_rows // module.head_dim,
        kv_heads=key_rows // module.head_dim,
        head_dim=module.head_dim,
        scale=module.scale,
        eps=norms[0].eps if norms[0] is not None else 0.0,
        window=window,
    )
    if not grouped_attention.usable(heads):
        return None
    qkv, output = join(projections, dtype), join([module.o_proj], dtype)
    if qkv is None or output is None:
        return None
    weights = grouped_attention.Weights(
        wavelengths=module.rope.wavelengths,
        bias=qkv.bias,
        q_norm=norms[0].weight if norms[0] is not None else None,
        k_norm=norms[1].weight if norms[1] is not None else None,
        sinks=module.get("sinks"),
    )
    return Grouped(qkv=qkv, output=output, heads=heads, weights=weights)


def latent(module: LatentAttention, dtype: mx.Dtype, *, window: bool) -> Latent | None:
    """Translate latent attention; there is no windowed one."""
    if window or "q_a_proj" not in module:
        return None
    form = latent_attention.Form(
        heads=module.heads,
        q_rank=module.q_a_layernorm.weight.shape[0],
        latent=module.latent,
        nope_dim=module.nope_dim,
        rope_dim=module.rope_dim,
        scale=module.scale,
        rope_scale=module.rope_scale,
        eps=LATENT_NORM_EPS,
    )
    plain = type(module.k_up_proj) is HeadLinear and type(module.v_up_proj) is HeadLinear
    up = module.k_up_proj.stack(dtype) if plain else None
    if up is None or not latent_attention.usable(form):
        return None
    compress = join([module.q_a_proj, module.kv_a_proj_with_mqa], dtype)
    expand, output = join([module.q_b_proj], dtype), join([module.o_proj], dtype)
    if compress is None or expand is None or output is None:
        return None
    return Latent(
        compress=compress,
        expand=expand,
        output=output,
        key_up=up,
        value_up=module.v_up_proj,
        norms=(module.q_a_layernorm.weight, module.kv_a_layernorm.weight),
        wavelengths=module.rope.wavelengths,
        form=form,
    )
