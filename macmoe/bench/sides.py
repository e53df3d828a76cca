"""The two sides of a comparison: each decodes and verifies, reads a prompt, counts its kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from macmoe.bench.counting import Kernels, peer_kernels, plain_kernels, step_kernels
from macmoe.bench.traffic import cache_bytes
from macmoe.decoding.choice import decode_step
from macmoe.families import Model
from macmoe.generate import following_logits, generate
from macmoe.nn.cache import ModelCache
from macmoe.nn.filling import random_states
from macmoe.sampling import Sampler, SamplingOptions

FIRST = 1  # the token that follows a filled cache
COUNTED_AFTER = 64  # tokens in the cache when kernels are counted


Passes = Sequence[list[list[int]]]  # token ids [passes, sequences, tokens]


class Side(Protocol):
    """What is measured."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        ...

    def decode(self, context: int, tokens: int) -> Iterator[int]:
        """Yield tokens, chosen greedily, after a cache of random content; the first `next` fills it."""
        ...

    def first_token(self, prompt: Sequence[int]) -> int:
        """Process a prompt and return the token after it."""
        ...

    def passes(self, context: int, passes: Passes) -> Iterator[list[int]]:
        """Yield the token chosen at every place of each pass over tokens, after caches of random content.

        The first `next` fills the caches; the tokens stay in them. What is yielded has been waited for,
        because the next pass would depend on it.
        """
        ...

    def cache_bytes(self, context: int) -> int:
        """Return the bytes of the cache that one token reads."""
        ...

    def kernels(self) -> Kernels:
        """Count the kernels of one token."""
        ...


def _choices(forward: Callable[[mx.array], mx.array], passes: Passes) -> Iterator[list[int]]:
    """Yield the likeliest tokens of each pass; `forward`: [sequences, tokens] -> logits with a vocabulary."""
    for tokens in passes:
        chosen: Any = mx.argmax(forward(mx.array(tokens)), axis=-1).flatten().tolist()
        yield chosen


class Ours:
    """macmoe, through the loop that every answer comes from.

    Args:
        model: The model.
        cache_bits: Of its cache; None for the model's type.
    """

    def __init__(self, model: Model, cache_bits: int | None = None) -> None:
        self.model = model
        self.cache_bits = cache_bits

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return _nbytes(self.model)

    def _filled(self, context: int, sequences: int = 1) -> ModelCache:
        cache = self.model.make_cache(bits=self.cache_bits)
        for layer, arrays in zip(cache, random_states(self.model, context, sequences), strict=True):
            layer.update(*arrays)
            mx.eval(layer.state)
        return cache

    def decode(self, context: int, tokens: int) -> Iterator[int]:
        """Yield tokens after a filled cache."""
        cache = self._filled(context)
        answer = generate(self.model, [FIRST], Sampler(SamplingOptions()), max_tokens=tokens, cache=cache)
        return (token.id for token in answer)

    def first_token(self, prompt: Sequence[int]) -> int:
        """Process a prompt and return the token after it."""
        cache = self.model.make_cache(bits=self.cache_bits)
        return next(generate(self.model, prompt, Sampler(SamplingOptions()), max_tokens=1, cache=cache)).id

    def passes(self, context: int, passes: Passes) -> Iterator[list[int]]:
        """Yield the choices; one token of each sequence goes the way of decoding."""
        cache = self._filled(context, len(passes[0]))
        following = following_logits(self.model, cache)  # decides on the kernels of several tokens as well

        def forward(tokens: mx.array) -> mx.array:
            if tokens.shape[1] == 1:
                return following(tokens[:, 0])
            return self.model.logits(self.model.hidden(tokens, cache))

        yield from _choices(forward, passes)

    def cache_bytes(self, context: int) -> int:
        """Return the bytes of the cache that one token reads."""
        return cache_bytes(self.model, context, self.cache_bits)

    @property
    def uses_kernels(self) -> bool:
        """Whether the kernels of macmoe.kernels decode: wanted, possible, right and faster here."""
        return decode_step(self.model, self._filled(1)) is not None

    def kernels(self) -> Kernels:
        """Count the kernels of one token."""
        cache = self._filled(COUNTED_AFTER)
        step = decode_step(self.model, cache)
        return plain_kernels(self.model, cache) if step is None else step_kernels(self.model, step, cache)


class Peer:
    """mlx-lm, through its `generate_step`.

    Args:
        peer: Its model.
        ours: Ours, for what the caches are filled with.
    """

    def __init__(self, peer: Any, ours: Model) -> None:
        self.peer = peer
        self.ours = ours
        self._lib: Any = importlib.import_module("mlx_lm.generate")
        self._caches: Any = importlib.import_module("mlx_lm.models.cache")

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return _nbytes(self.peer)

    def _filled(self, context: int, sequences: int = 1) -> list[Any]:
        caches = self._caches.make_prompt_cache(self.peer)
        states = random_states(self.ours, context, sequences)
        for layer, cache, arrays in zip(self.peer.layers, caches, states, strict=True):
            mx.eval(cache.update_and_fetch(*self._translated(layer, arrays)))
        return caches

    def _translated(self, layer: Any, arrays: list[mx.array]) -> list[mx.array]:
        """Return what its layer keeps where ours keeps `arrays`."""
        if len(arrays) == 1:  # latent attention: latent and rotary key apart
            return list(mx.split(arrays[0], [self.peer.args.kv_lora_rank], axis=-1))
        keys, values = arrays
        return [keys * getattr(layer.self_attn.rope, "mscale", 1.0), values]  # YaRN's factor, in our scale

    def decode(self, context: int, tokens: int) -> Iterator[int]:
        """Yield tokens after a filled cache."""
        answer = self._lib.generate_step(
            mx.array([FIRST]), self.peer, max_tokens=tokens, prompt_cache=self._filled(context)
        )
        return (int(token) for token, _ in answer)

    def first_token(self, prompt: Sequence[int]) -> int:
        """Process a prompt in its own chunks (2,048 tokens) and return the token after it."""
        token, _ = next(self._lib.generate_step(mx.array(list(prompt)), self.peer, max_tokens=1))
        return int(token)

    def passes(self, context: int, passes: Passes) -> Iterator[list[int]]:
        """Yield the choices, by forward passes as its own speculative decoding makes them."""
        caches = self._filled(context, len(passes[0]))
        yield from _choices(lambda tokens: self.peer(tokens, cache=caches), passes)

    def cache_bytes(self, context: int) -> int:
        """Return the bytes of the cache that one token reads."""
        return cache_bytes(self.ours, context)

    def kernels(self) -> Kernels:
        """Count the kernels of one token."""
        return peer_kernels(self.peer, self._filled(COUNTED_AFTER))


def _nbytes(module: Any) -> int:
    parameters: Any = tree_flatten(module.parameters())
    return sum(array.nbytes for _, array in parameters)
