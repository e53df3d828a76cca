"""Every kernel beside plain MLX operations in float32, at any shape: what the emulator and a GPU both run.

A case draws its inputs in a type, launches the kernel, and returns pairs (got, wanted). Wanted is computed in
float32 from the same inputs, packed weights through mx.dequantize, and does not use the code under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from macmoe.kernels import experts, routing
from macmoe.kernels.add_norm import Joint, add_norm, add_norm_logits
from macmoe.kernels.packed import Packing, packing_of
from macmoe.nn.routing import grouped_sigmoid_top_k, softmax_then_top_k, top_k_then_softmax

Pairs = list[tuple[mx.array, mx.array]]
PACKINGS = {
    "plain": Packing(),
    "affine4": packing_of("affine", 4, 64),
    "affine4g32": packing_of("affine", 4, 32),
    "affine8": packing_of("affine", 8, 64),
    "mxfp4": packing_of("mxfp4", 4, 32),
    "mxfp8": packing_of("mxfp8", 8, 32),
}
MLX_MODES = {1: "affine", 2: "mxfp4", 3: "mxfp8"}


def draw(*shape: int, dtype: mx.Dtype, scale: float = 1.0) -> mx.array:
    """Return normal numbers of a type."""
    return (mx.random.normal(shape) * scale).astype(dtype)


def stack(
    packing: Packing, shape: tuple[int, int, int], dtype: mx.Dtype, *, bias: bool = False
) -> tuple[experts.Stack, mx.array]:
    """Return packed random matrices and what they stand for, in float32."""
    weight = draw(*shape, dtype=dtype, scale=shape[-1] ** -0.5)
    offsets = draw(*shape[:2], dtype=dtype, scale=0.5) if bias else None
    if not packing.bits:
        return experts.Stack(packing=packing, weight=weight, bias=offsets), weight.astype(mx.float32)
    how = {"group_size": packing.group_size, "bits": packing.bits, "mode": MLX_MODES[packing.mode]}
    parts = mx.quantize(weight, **how)
    packed = experts.Stack(
        packing=packing,
        weight=parts[0],
        scales=parts[1],
        offsets=parts[2] if len(parts) > 2 else None,
        bias=offsets,
    )
    wide = [part if part.dtype in {mx.uint32, mx.uint8} else part.astype(mx.float32) for part in parts]
    return packed, mx.dequantize(*wide, **how, dtype=mx.float32)


def activation(kind: int, y: mx.array, limit: float) -> mx.array:
    """Join gate and up in float32."""
    if kind == experts.NONE:
        return y
    gate, up = mx.split(y, 2, axis=-1)
    if kind == experts.SWIGLU:
        return gate * mx.sigmoid(gate) * up
    gate, up = mx.minimum(gate, limit), mx.clip(up, -limit, limit)
    return (up + 1) * gate * mx.sigmoid(1.702 * gate)


def case_add_norm(dtype: mx.Dtype, tokens: int, dim: int, *, bias: bool, count: int = 0) -> Pairs:
    """X + delta + bias, its norm, and the logits of a router of so many experts."""
    x, delta, norm = (draw(*shape, dtype=dtype) for shape in ((tokens, dim), (tokens, dim), (dim,)))
    joint = Joint(norm=norm, eps=1e-5, bias=draw(dim, dtype=dtype) if bias else None)
    total = x.astype(mx.float32) + delta.astype(mx.float32)
    total = total if joint.bias is None else total + joint.bias.astype(mx.float32)
    rounded = total.astype(dtype).astype(mx.float32)
    normed = rounded * mx.rsqrt((rounded**2).mean(-1, keepdims=True) + 1e-5) * norm.astype(mx.float32)
    if not count:
        return list(zip(add_norm(x, delta, joint), (total, normed), strict=True))
    router, extra = draw(count, dim, dtype=dtype, scale=dim**-0.5), draw(count, dtype=dtype)
    got = add_norm_logits(x, delta, joint, router, extra if bias else None)
    logits = got[1].astype(mx.float32) @ router.astype(mx.float32).T  # of the norm as it was written
    return list(zip(got, (total, normed, logits + extra.astype(mx.float32) * bias), strict=True))


def case_route(
    kind: int, tokens: int, count: int, top_k: int, groups: int = 1, *, normalize: bool = True
) -> Pairs:
    """The choice of experts; experts come in the order of their numbers on both sides."""
    logits, correction = draw(tokens, count, dtype=mx.float32), None
    top_groups = max(1, groups // 2)
    if kind == routing.TOP_K_SOFTMAX:
        wanted = top_k_then_softmax(logits, top_k)
    elif kind == routing.SOFTMAX_TOP_K:
        wanted = softmax_then_top_k(logits, top_k, normalize=normalize)
    else:
        correction = draw(count, dtype=mx.float32, scale=0.2) - 0.3  # so that some scores are below zero
        wanted = grouped_sigmoid_top_k(
            logits, correction, top_k, groups=groups, top_groups=top_groups, normalize=normalize, scale=2.5
        )
    shared = kind == routing.GROUPED_SIGMOID
    choice = routing.Choice(
        kind=kind,
        top_k=top_k,
        normalize=normalize,
        scale=2.5 if shared else 1.0,
        groups=groups,
        top_groups=top_groups,
        shared=shared,
    )
    chosen, weights = routing.route(logits, choice, correction)
    pairs: Pairs = []
    if shared:
        pairs += [(chosen[:, top_k], mx.full((tokens,), count)), (weights[:, top_k], mx.ones((tokens,)))]
        chosen, weights = chosen[:, :top_k], weights[:, :top_k]
    for got, want in ((chosen, wanted[0]),):
        pairs.append((mx.sort(got, axis=-1), mx.sort(want, axis=-1)))
    by_number = [
        mx.take_along_axis(values, mx.argsort(order, axis=-1), axis=-1)
        for order, values in ((chosen, weights), wanted)
    ]
    return [*pairs, (by_number[0], by_number[1])]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """Sizes of a mixture."""

    packing: Packing
    tokens: int
    count: int
    top_k: int
    dim: int
    hidden: int
    kind: int = experts.SWIGLU
    bias: bool = False
    shared: bool = False


def case_experts(dtype: mx.Dtype, form: ExpertShape) -> Pairs:
    """Both expert kernels; with several tokens the second one per pair."""
    x = draw(form.tokens, form.dim, dtype=dtype)
    up, up_wide = stack(form.packing, (form.count, 2 * form.hidden, form.dim), dtype, bias=form.bias)
    down, down_wide = stack(form.packing, (form.count, form.dim, form.hidden), dtype, bias=form.bias)
    shared_up, shared_up_wide = stack(form.packing, (1, 2 * form.hidden, form.dim), dtype)
    shared_down, shared_down_wide = stack(form.packing, (1, form.dim, form.hidden), dtype)
    chosen = mx.argsort(mx.random.uniform(shape=(form.tokens, form.count)), axis=-1)[:, : form.top_k]
    chosen = chosen.astype(mx.uint32)
    weights = mx.random.uniform(shape=(form.tokens, form.top_k + form.shared))
    if form.shared:
        last = mx.full((form.tokens, 1), form.count, dtype=mx.uint32)
        chosen = mx.concatenate([chosen, last], axis=-1)
        up_wide = mx.concatenate([up_wide, shared_up_wide])
        down_wide = mx.concatenate([down_wide, shared_down_wide])
    limit = 1.5  # so that it matters
    hidden = experts.expert_rows(
        up, x, chosen, activation=form.kind, limit=limit, shared=shared_up if form.shared else None
    )
    products = (up_wide[chosen] @ x.astype(mx.float32)[:, None, :, None])[..., 0]
    if up.bias is not None:
        products += up.bias.astype(mx.float32)[chosen]
    pairs = [(hidden, activation(form.kind, products, limit))]
    wide = hidden.astype(mx.float32)  # the second kernel gets what the first one wrote
    outputs = (down_wide[chosen] @ wide[..., None])[..., 0]
    if down.bias is not None:
        outputs += down.bias.astype(mx.float32)[chosen]
    if form.tokens == 1:
        got = experts.expert_sum(down, hidden, chosen, weights, shared_down if form.shared else None)
        return [*pairs, (got, (outputs * weights[..., None]).sum(1))]
    got = experts.expert_rows(down, hidden, chosen, shared=shared_down if form.shared else None)
    return [*pairs, (got, outputs)]


ULP = {mx.float32: 2.0**-23, mx.bfloat16: 2.0**-7, mx.float16: 2.0**-10}


# Units of the last place by which a result may differ. 16-bit results are float32 sums, rounded once or
# twice; in float32 the reference too is a sum of hundreds of rounded terms, in another order.
BOUNDS = {mx.float32: 16.0, mx.bfloat16: 2.0, mx.float16: 2.0}


def wrong(pairs: Pairs) -> list[str]:
    """Return what is beyond its bound, in words."""
    errors = [(index, error(got, wanted), got.dtype) for index, (got, wanted) in enumerate(pairs)]
    return [
        f"result {index}: {found:.1f} units of the last place ({dtype})"
        for index, found, dtype in errors
        if not found <= BOUNDS.get(dtype, 0.0)
    ]


def error(got: mx.array, wanted: mx.array) -> float:
    """Return the largest difference over the largest wanted value, in units of the type's last place."""
    wide, wanted = got.astype(mx.float32), wanted.astype(mx.float32)
    if wide.size == 0:
        return 0.0
    scale = mx.maximum(mx.abs(wanted).max(), 1e-30)
    unit = ULP.get(got.dtype, ULP[mx.float32])
    return float((mx.abs(wide - wanted).max() / scale).item()) / unit


Runner = Callable[[], Pairs]
