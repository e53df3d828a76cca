"""Caches filled without running a model over tokens: only shapes and types are taken from it."""

from collections.abc import Iterator

import mlx.core as mx

from macmoe.protocols import Cache, LanguageModel


def after_one_token(model: LanguageModel, bits: int | None = None) -> Cache:
    """Return a cache with one token in it, not computed: its arrays tell shapes and types.

    Args:
        model: The model.
        bits: Of the cache, see `LanguageModel.make_cache`.
    """
    cache = model.make_cache(bits=bits)
    model.hidden(mx.zeros((1, 1), dtype=mx.uint32), cache)
    return cache


def random_states(model: LanguageModel, context: int, sequences: int = 1) -> Iterator[list[mx.array]]:
    """Yield arrays [sequences, heads, context, width] for the cache of each layer, the same at every call."""
    for number, layer in enumerate(after_one_token(model)):
        keys = mx.random.split(mx.random.key(number), len(layer.state))
        yield [
            mx.random.normal((sequences, array.shape[1], context, array.shape[3]), dtype=array.dtype, key=key)
            for array, key in zip(layer.state, keys, strict=True)
        ]
