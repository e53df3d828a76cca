"""Time the parts of a training step, each in the ways that MLX offers, at shapes of GPT-OSS-20b and Qwen3.

    python tests/bench/train_parts.py [--tokens 4096] [--repeats 5] [--json FILE]

Every part runs with its gradient. This is where `macmoe.tuning.unpacking` and the blocks of sliding windows
come from: on another back end the faster way may be another one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macmoe.config import Quantization
from macmoe.nn.attention import attend
from macmoe.nn.positions import Positions
from macmoe.nn.quantized import ExpertLinear, pack_modules
from macmoe.tuning.loss import token_losses
from macmoe.tuning.unpacking import Unpacked

DTYPE = mx.bfloat16
# experts, experts of a token, inputs, outputs, packing
EXPERTS = {
    "gpt-oss gate_up": (32, 4, 2880, 5760, Quantization(group_size=32, bits=4, mode="mxfp4")),
    "qwen3 gate_up": (128, 8, 2048, 1536, Quantization(group_size=64, bits=4, mode="affine")),
}
RANK = 8

Part = tuple[Callable[..., mx.array], list[mx.array]]


def draw(*shape: int) -> mx.array:
    """Return random numbers."""
    return mx.random.normal(shape).astype(DTYPE) * 0.02


def experts_parts(name: str, tokens: int) -> dict[str, Part]:
    """Return the ways to multiply sorted rows by packed experts, and an adapter of them."""
    experts, top_k, inputs, outputs, how = EXPERTS[name]
    holder: Any = nn.Module()
    holder.stack = ExpertLinear(experts, inputs, outputs)
    parts = mx.quantize(draw(experts, outputs, inputs), how.group_size, how.bits, mode=how.mode)
    pack_modules(holder, {"stack": how})
    for part, array in zip(("weight", "scales", "biases"), parts, strict=False):
        holder.stack[part] = array
    chosen = mx.sort(mx.random.randint(0, experts, (tokens * top_k,))).astype(mx.uint32)
    rows = draw(tokens * top_k, 1, inputs)
    mx.eval(holder.parameters(), chosen, rows)
    a, b = mx.random.normal((experts, inputs, RANK)), mx.random.normal((experts, RANK, outputs))

    def adapter(rows: mx.array, a: mx.array, b: mx.array) -> mx.array:
        for factor in (a, b):
            rows = mx.gather_mm(rows, factor.astype(rows.dtype), rhs_indices=chosen, sorted_indices=True)
        return rows

    def in_float32(rows: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return adapter(rows.astype(mx.float32), a, b).astype(DTYPE)

    whole = Unpacked(holder.stack, 2**40)
    pieces = Unpacked(holder.stack)
    return {
        f"{name}: packed": (lambda rows: holder.stack(rows, chosen, in_order=True), [rows]),
        f"{name}: unpacked": (lambda rows: whole(rows, chosen, in_order=True), [rows]),
        f"{name}: unpacked in pieces": (lambda rows: pieces(rows, chosen, in_order=True), [rows]),
        f"{name}: adapter": (adapter, [rows, a, b]),
        f"{name}: adapter in float32": (in_float32, [rows, a, b]),
    }


def linear_parts(tokens: int) -> dict[str, Part]:
    """Return the ways to multiply by a packed matrix."""
    parts: dict[str, Part] = {}
    for name, outputs in {"q_proj": 4096, "lm_head": 151936}.items():
        linear = nn.QuantizedLinear.from_linear(nn.Linear(2048, outputs, bias=False), 64, 4)
        linear.set_dtype(DTYPE)
        x = draw(tokens if outputs < 10000 else 512, 2048)
        unpacked = Unpacked(linear, 2**40)
        parts |= {f"qwen3 {name}: packed": (linear, [x]), f"qwen3 {name}: unpacked": (unpacked, [x])}
    return parts


def attention_parts(tokens: int) -> dict[str, Part]:
    """Return the ways to attend in GPT-OSS."""
    batch, length = max(tokens // 2048, 1), min(tokens, 2048)
    q, k, v = draw(batch, 64, length, 64), draw(batch, 8, length, 64), draw(batch, 8, length, 64)
    sinks = draw(64)
    plain = Positions(offset=0, length=length, left_padding=None, start=0)
    places = mx.arange(length)
    segments = mx.zeros((batch, length), dtype=mx.int32)
    packed = Positions.packed(mx.broadcast_to(places, segments.shape), segments)
    booleans = (places[:, None] >= places) & (places[:, None] - places < 128)
    added = mx.where(booleans, 0.0, -mx.inf).astype(DTYPE)
    masks = {
        "causal": plain.mask(),
        "packed, booleans": packed.mask(),
        "window, booleans": booleans,
        "window, added": added,
        "window, blocks": plain.mask(128),
    }
    return {
        f"gpt-oss attention: {name}{' + sinks' if with_sinks else ''}": (
            lambda q, k, v, mask=mask, sinks=sinks if with_sinks else None: attend(
                q, k, v, scale=0.125, mask=mask, sinks=sinks
            ),
            [q, k, v],
        )
        for name, mask in masks.items()
        for with_sinks in (True, False)
    }


def loss_parts() -> dict[str, Part]:
    """Return the ways to the loss of 512 tokens."""
    hidden, head = draw(512, 2880), draw(201088, 2880)
    targets = mx.random.randint(0, 201088, (512,))
    return {
        "gpt-oss loss of 512 tokens": (lambda hidden: token_losses(hidden @ head.T, targets), [hidden]),
        "gpt-oss loss of 512 tokens, float32": (
            lambda hidden: mx.fast.cross_entropy((hidden @ head.T).astype(mx.float32), targets),
            [hidden],
        ),
    }


def clock(part: Part, repeats: int) -> dict[str, Any]:
    """Time the forward pass, and it with the gradient of all arguments."""
    function, arguments = part
    mx.eval(arguments)
    cotangent = mx.ones_like(function(*arguments))

    def both() -> Any:
        return mx.vjp(function, arguments, [cotangent])

    found: dict[str, Any] = {}
    for name, run in (("forward ms", lambda: function(*arguments)), ("with gradient ms", both)):
        times, before = [], mx.get_active_memory()
        for _ in range(repeats + 1):
            mx.reset_peak_memory()
            began = time.perf_counter()
            mx.eval(run())
            times.append(1e3 * (time.perf_counter() - began))
        found[name] = statistics.median(times[1:])
        found[name.replace("ms", "peak MB")] = (mx.get_peak_memory() - before) / 1e6
    return found


def main() -> None:
    """Print a line for each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    groups = [lambda name=name: experts_parts(name, options.tokens) for name in EXPERTS]
    groups += [lambda: linear_parts(options.tokens), lambda: attention_parts(options.tokens), loss_parts]
    found: dict[str, Any] = {}
    for group in groups:
        for name, part in group().items():
            try:
                found[name] = clock(part, options.repeats)
            except (RuntimeError, ValueError) as error:
                found[name] = {"error": str(error)}
            print(f"{name:48}", json.dumps(found[name]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
        mx.clear_cache()


if __name__ == "__main__":
    main()
