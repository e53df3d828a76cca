"""What a token reads from memory, and how fast this machine's memory is."""

from __future__ import annotations

import re
import statistics
import time
from typing import Any

import mlx.core as mx

from macmoe.checkpoint import parameters_of
from macmoe.families import Model
from macmoe.nn.filling import after_one_token

COPIES = 5
COPY_BYTES = {True: 1 << 30, False: 1 << 27}  # on a GPU or not: far more than a cache holds
_ROUTED = re.compile(r"\.experts\.")


def weight_bytes(model: Model) -> int:
    """Return the bytes of a model's weights."""
    return sum(array.nbytes for array in parameters_of(model).values())


def token_bytes(model: Model, context: int, cache_bits: int | None = None) -> int:
    """Return the bytes that one token has to read after `context` others: weights in use, and the cache.

    Of the experts those that are chosen, of the embedding one row, unless it is the output matrix as well.
    The cache is one of `cache_bits`, see `LanguageModel.make_cache`.
    """
    parameters = parameters_of(model)
    tied = not any(name.startswith("lm_head.") for name in parameters)
    read = sum(_share(name, array, model.config, tied=tied) for name, array in parameters.items())
    return round(read) + cache_bytes(model, context, cache_bits)


def _share(name: str, array: mx.array, config: Any, *, tied: bool) -> float:
    if name.startswith("mtp."):
        return 0
    if name.startswith("model.embed_tokens.") and not tied:
        return array.nbytes / array.shape[0]
    if _ROUTED.search(name):
        return array.nbytes * top_k(config) / array.shape[0]
    return array.nbytes


def top_k(config: Any) -> int:
    """Return how many routed experts a token uses."""
    moe = getattr(config, "moe", None)  # where Qwen3 keeps it
    return (config if moe is None else moe).num_experts_per_tok


def cache_bytes(model: Model, context: int, cache_bits: int | None = None) -> int:
    """Return the bytes of a cache that a token reads after `context` others."""
    seen = [context if window is None else min(context, window) for window in model.model.windows]
    return sum(
        tokens * array.nbytes
        for tokens, layer in zip(seen, after_one_token(model, cache_bits), strict=True)
        for array in layer.state
    )


def bandwidth() -> float:
    """Measure the bytes per second that a copy in memory moves, read and written ones."""
    on_gpu = mx.default_device() != mx.Device(mx.cpu)
    source = mx.ones((COPY_BYTES[on_gpu] // 4,), dtype=mx.uint32)
    mx.eval(source, -source)  # compiles
    seconds = []
    for _ in range(COPIES):
        began = time.perf_counter()
        mx.eval(-source)
        mx.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * source.nbytes / statistics.median(seconds)
