"""The plain operations that each kernel replaces, in float32: what a launch should have given.

A reference takes a launch with its arrays and the outputs of its kernel, and returns pairs (got, wanted) of
everything the kernel wrote, the cache included. It reads packed numbers with mx.dequantize and shares nothing
with the texts. The matrix units of a GPU may round what they multiply, so there are no products of matrices
here: those with one vector, and sums of products, MLX computes without them.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from macmoe.kernels import experts, routing
from macmoe.kernels.packed import AFFINE, MODES, PLAIN
from macmoe.kernels.source import Call
from macmoe.nn.routing import grouped_sigmoid_top_k, softmax_then_top_k, top_k_then_softmax

Pairs = list[tuple[mx.array, mx.array]]
Reference = Callable[[Call, list[mx.array]], Pairs]
MODE_NAMES = {mode: name for name, mode in MODES.items()}


def pairs(call: Call, outputs: list[mx.array]) -> Pairs:
    """Return what a launch gave, evaluated, beside what its reference gives."""
    mx.eval(outputs)  # also what is written in place
    found = REFERENCES[call.launch.kernel.name](call, outputs)
    mx.eval(found)
    return found


def _wide(call: Call) -> dict[str, mx.array]:
    """Return the inputs, those in floating point in float32; what is not used is not computed."""
    return {
        name: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in call.inputs.items()
    }


def _numbers(call: Call) -> list[list[int]]:
    """Return position, row and first row of each sequence's token, see `places` of the attention kernels."""
    numbers: Any = call.inputs["places"].tolist()
    return numbers


def _normed(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    return x if weight is None else x * mx.rsqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def _turned(x: mx.array, positions: mx.array, wavelengths: mx.array) -> list[mx.array]:
    """Turn pairs [tokens, heads, pairs, 2] by their positions [tokens]; return both halves."""
    angles = positions[:, None, None] * (1 / wavelengths)
    cosine, sine = mx.cos(angles), mx.sin(angles)
    a, b = x[..., 0], x[..., 1]
    return [a * cosine - b * sine, b * cosine + a * sine]


def _add_norm(call: Call, outputs: list[mx.array]) -> Pairs:
    given, total = _wide(call), outputs[0]
    wanted = given["x"] + given["delta"] + given.get("bias", 0)
    rounded = wanted.astype(total.dtype).astype(mx.float32)
    return [(total, wanted), (outputs[1], _normed(rounded, given["weight"], call.constants["EPS"]))]


def _add_norm_logits(call: Call, outputs: list[mx.array]) -> Pairs:
    """Compare the logits with products of the norm as it was written, rounded: it is compared by itself."""
    given, normed = _wide(call), outputs[1].astype(mx.float32)
    logits = normed @ given["router"].T + given.get("router_bias", 0)
    return [*_add_norm(call, outputs), (outputs[2], logits)]


def _route(call: Call, outputs: list[mx.array]) -> Pairs:
    """Compare the weights of all experts, 0 of those not chosen: the order of the choice does not matter."""
    logits, c = call.inputs["logits"], call.constants
    top_k, normalize = c["TOP_K"], bool(c["NORMALIZE"])
    if c["KIND"] == routing.TOP_K_SOFTMAX:
        chosen, weights = top_k_then_softmax(logits, top_k)
    elif c["KIND"] == routing.SOFTMAX_TOP_K:
        chosen, weights = softmax_then_top_k(logits, top_k, normalize=normalize)
    else:
        groups = {"groups": c["GROUPS"], "top_groups": c["TOP_GROUPS"]}
        chosen, weights = grouped_sigmoid_top_k(
            logits, call.inputs["correction"], top_k, **groups, normalize=normalize, scale=c["SCALE"]
        )
    if c["SLOTS"] > top_k:  # the shared expert
        last = mx.ones((len(logits), 1))
        chosen = mx.concatenate([chosen, c["EXPERTS"] * last.astype(mx.uint32)], axis=-1)
        weights = mx.concatenate([weights, last], axis=-1)
    none = mx.zeros((len(logits), c["EXPERTS"] + 1))
    return [
        (mx.put_along_axis(none, outputs[0], outputs[1], -1), mx.put_along_axis(none, chosen, weights, -1))
    ]


def _of_experts(call: Call, name: str) -> mx.array:
    """Return a part of each chosen expert's matrix, [tokens, slots, ...]; a shared one is the last."""
    given, chosen = call.inputs, call.inputs["experts"]
    if not call.constants["SHARED"]:
        return given[name][chosen]
    shared = mx.broadcast_to(
        given[f"{name}_shared"][:, None], (len(chosen), 1, *given[f"{name}_shared"].shape[1:])
    )
    return mx.concatenate([given[name][chosen[:, :-1]], shared], axis=1)


def _unpacked(call: Call, take: Callable[[str], mx.array]) -> mx.array:
    """Return matrices or rows in float32; `take` gives their parts by the names that matrices' have."""
    c, weight = call.constants, take("w")
    if c["MODE"] == PLAIN:
        return weight.astype(mx.float32)
    scales = take("scales")
    affine = c["MODE"] == AFFINE
    return mx.dequantize(
        weight,
        scales.astype(mx.float32) if affine else scales,
        take("offsets").astype(mx.float32) if affine else None,
        group_size=c["GROUP"],
        bits=c["BITS"],
        mode=MODE_NAMES[c["MODE"]],
        dtype=mx.float32,
    )


def _rows(call: Call, name: str) -> mx.array:
    """Return a buffer of the cache in float32, packed or not."""
    return _unpacked(call, lambda part: call.inputs[name if part == "w" else f"{name}_{part}"])


def _written(call: Call, row: mx.array) -> mx.array:
    """Return a row of `_rows` in the type whose exactness it has: 8 bits, where it is packed."""
    return row.astype(call.constants["T"] if call.constants["MODE"] == PLAIN else mx.bfloat16)


def _products(call: Call) -> mx.array:
    """Multiply tokens [tokens, dim] or [tokens, slots, dim] by their experts' matrices."""
    x = _wide(call)["x"]
    matrices = _unpacked(call, lambda name: _of_experts(call, name))  # [tokens, slots, rows, dim]
    products = (matrices @ (x[:, None] if x.ndim == 2 else x)[..., None])[..., 0]
    return products + (_of_experts(call, "bias") if call.constants["HAS_BIAS"] else 0)


def _expert_rows(call: Call, outputs: list[mx.array]) -> Pairs:
    kind, limit, y = call.constants["ACTIVATION"], call.constants["LIMIT"], _products(call)
    if kind == experts.NONE:
        return [(outputs[0], y)]
    gate, up = mx.split(y, 2, axis=-1)
    if kind == experts.SWIGLU:
        return [(outputs[0], gate * mx.sigmoid(gate) * up)]
    gate, up = mx.minimum(gate, limit), mx.clip(up, -limit, limit)
    return [(outputs[0], (up + 1) * gate * mx.sigmoid(1.702 * gate))]


def _expert_sum(call: Call, outputs: list[mx.array]) -> Pairs:
    return [(outputs[0], (_products(call) * call.inputs["weights"][..., None]).sum(axis=1))]


def _joined(partial: mx.array, bounds: mx.array, sinks: mx.array | None) -> mx.array:
    """Join the parts of an attention; see `parts.combine`."""
    tops, norms = bounds[..., 0], bounds[..., 1]  # [sequences, heads, parts]
    if sinks is not None:
        one_more = mx.broadcast_to(sinks[:, None], (*tops.shape[:2], 1))
        tops = mx.concatenate([tops, one_more], axis=-1)
        norms = mx.concatenate([norms, mx.ones(one_more.shape)], axis=-1)
    shares = mx.exp(tops - tops.max(axis=-1, keepdims=True))
    total = (partial * shares[..., : partial.shape[2], None]).sum(axis=2)
    return (total / (norms * shares).sum(axis=-1, keepdims=True)).reshape(len(partial), -1)


def _combine_parts(call: Call, outputs: list[mx.array]) -> Pairs:
    given = _wide(call)
    return [(outputs[0], _joined(given["partial"], given["bounds"], given.get("sinks")))]


def _grouped_attention(call: Call, outputs: list[mx.array]) -> Pairs:
    """Compare the whole attention: how the cache is cut into parts is the kernel's own business."""
    c, given = call.constants, _wide(call)
    got = outputs[0] if len(outputs) == 1 else _joined(outputs[0], outputs[1], None).astype(c["T"])
    held = [_rows(call, name) for name in ("keys", "values")]
    found: Pairs = []
    for number, places in enumerate(_numbers(call)):
        y, k, v = _one_sequence(call, given, held, number, places)
        rows = (_written(call, buffer[number, :, places[1]]) for buffer in held)
        found += [(got[number].reshape(y.shape), y), *zip(rows, (k, v), strict=True)]
    return found


def _one_sequence(
    call: Call, given: dict[str, mx.array], held: list[mx.array], number: int, places: list[int]
) -> tuple[mx.array, mx.array, mx.array]:
    """Return a sequence's attention [heads, head_dim], and its new key and value [kv_heads, head_dim]."""
    c, (position, place, first) = call.constants, places
    width, kv_heads = c["HEAD_DIM"], c["KV_HEADS"]
    qkv = (given["qkv"][number] + given.get("bias", 0)).reshape(-1, width)
    q, k, v = mx.split(qkv, [c["HEADS"], c["HEADS"] + kv_heads])

    def rotated(x: mx.array) -> mx.array:
        halves = x.reshape(1, -1, 2, width // 2).transpose(0, 1, 3, 2)
        return mx.concatenate(_turned(halves, mx.array([position]), given["wavelengths"]), axis=-1)[0]

    q = rotated(_normed(q, given.get("q_norm"), c["EPS"]))
    k = rotated(_normed(k, given.get("k_norm"), c["EPS"]))
    # With the new row as it was written, rounded: it is compared by itself.
    keys, values = (buffer[number, :, first : place + 1] for buffer in held)
    queries = q.reshape(kv_heads, -1, 1, width) * c["SCALE"]
    scores = (queries * keys[:, None]).sum(axis=-1)  # [kv_heads, together, rows]
    sinks = given.get("sinks")
    if sinks is not None:
        scores = mx.concatenate([scores, sinks.reshape(kv_heads, -1, 1)], axis=-1)
    weights = mx.softmax(scores, axis=-1)[..., : keys.shape[1], None]
    return (weights * values[:, None]).sum(axis=2).reshape(-1, width), k, v


def _side_by_side(x: mx.array, call: Call) -> mx.array:
    """Turn rotary parts [tokens, heads, rope_dim] of which pairs stand side by side."""
    positions = call.inputs["places"][:, 0]
    pairs_of = x.reshape(*x.shape[:2], -1, 2)
    return mx.stack(_turned(pairs_of, positions, call.inputs["wavelengths"]), axis=-1).reshape(x.shape)


def _latent_prepare(call: Call, outputs: list[mx.array]) -> Pairs:
    given, c = _wide(call), call.constants
    q, latent, key = mx.split(given["compressed"], [c["Q_RANK"], c["Q_RANK"] + c["LATENT"]], axis=-1)
    latent = _normed(latent, given["kv_norm"], c["EPS"])
    rows = mx.concatenate([latent, _side_by_side(key[:, None], call)[:, 0]], axis=-1)
    places = call.inputs["places"][:, 1, None, None]
    written = mx.take_along_axis(_rows(call, "cache")[:, 0], places, axis=1)[:, 0]
    return [(outputs[0], _normed(q, given["q_norm"], c["EPS"])), (_written(call, written), rows)]


def _latent_unpack(call: Call, outputs: list[mx.array]) -> Pairs:
    return [(outputs[0], _rows(call, "cache").squeeze(1))]


def _latent_absorb(call: Call, outputs: list[mx.array]) -> Pairs:
    query, c = _wide(call)["query"], call.constants
    heads = query.reshape(len(query), c["HEADS"], -1)
    plain, rotary = mx.split(heads, [c["NOPE_DIM"]], axis=-1)
    matrices = _unpacked(call, lambda name: call.inputs[name])  # [heads, nope_dim, latent]
    latents = (plain[:, :, None] @ matrices)[:, :, 0]
    turned = _side_by_side(rotary, call) * c["ROPE_SCALE"]
    wanted = mx.concatenate([latents, turned], axis=-1) * c["SCALE"]
    return [(outputs[0], wanted.reshape(outputs[0].shape))]


def _latent_weights(call: Call, outputs: list[mx.array]) -> Pairs:
    scores = _wide(call)["scores"]
    _, last, first = call.inputs["places"].T[:, :, None, None]  # of each sequence [sequences, 1, 1]
    rows = mx.arange(scores.shape[-1])
    seen = (rows >= first) & (rows <= last)
    return [(outputs[0], mx.softmax(mx.where(seen, scores, -mx.inf), axis=-1))]


REFERENCES: dict[str, Reference] = {
    "add_norm": _add_norm,
    "add_norm_logits": _add_norm_logits,
    "route": _route,
    "expert_rows": _expert_rows,
    "expert_sum": _expert_sum,
    "grouped_attention": _grouped_attention,
    "combine_parts": _combine_parts,
    "latent_prepare": _latent_prepare,
    "latent_unpack": _latent_unpack,
    "latent_absorb": _latent_absorb,
    "latent_weights": _latent_weights,
}
