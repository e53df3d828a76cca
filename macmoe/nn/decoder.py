"""The frame that all three families share: pre-norm residual layers between an embedding and a final norm."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float, Integer

from macmoe.nn.positions import Mask, Positions
from macmoe.protocols import Cache, LayerCache


class DecoderLayer(nn.Module):
    """x += self_attn(norm(x)); x += mlp(norm(x)).

    Args:
        self_attn: Called with (x, mask, positions, cache).
        mlp: Called with (x).
        dim: Width of the residual stream.
        eps: Added to the mean square in the norms.
    """

    def __init__(self, self_attn: nn.Module, mlp: nn.Module, dim: int, eps: float) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = nn.RMSNorm(dim, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(dim, eps=eps)

    def __call__(
        self,
        x: Float[mx.array, "batch length dim"],
        mask: Mask,
        positions: Positions,
        cache: LayerCache | None,
    ) -> Float[mx.array, "batch length dim"]:
        """Apply the layer; `cache` is updated."""
        x = x + self.self_attn(self.input_layernorm(x), mask, positions, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers, final norm.

    Args:
        vocab: Number of embedding rows.
        dim: Width of the residual stream.
        eps: Of the final norm.
        layers: The decoder layers.
        windows: Sliding window of each layer, None where a layer sees everything.
    """

    def __init__(
        self, vocab: int, dim: int, eps: float, layers: Sequence[DecoderLayer], windows: Sequence[int | None]
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, dim)
        self.layers = list(layers)
        self.norm = nn.RMSNorm(dim, eps=eps)
        self._windows = tuple(windows)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer, None for a layer that sees everything."""
        return self._windows

    def __call__(
        self,
        tokens: Integer[mx.array, "batch length"],
        cache: Cache | None = None,
        positions: Positions | None = None,
    ) -> Float[mx.array, "batch length dim"]:
        """Return the states after the final norm; `cache` is updated. Packed rows come with `positions`."""
        positions = Positions.of(tokens, cache) if positions is None else positions
        masks = {window: positions.mask(window) for window in set(self._windows)}
        x = self.embed_tokens(tokens)
        caches = [None] * len(self.layers) if cache is None else cache
        for layer, window, layer_cache in zip(self.layers, self._windows, caches, strict=True):
            x = layer(x, masks[window], positions, layer_cache)
        return self.norm(x)


class CausalLM(nn.Module):
    """A decoder with its output matrix; the embedding serves as one where the two are tied.

    Args:
        model: The decoder.
        tied: Whether the embedding is the output matrix.
    """

    def __init__(self, model: Decoder, *, tied: bool) -> None:
        super().__init__()
        self.model = model
        self.translation: Any = None  # what macmoe.decoding has made of the model, and of which weights
        if not tied:
            vocab, dim = model.embed_tokens.weight.shape
            self.lm_head = nn.Linear(dim, vocab, bias=False)

    def hidden(
        self,
        tokens: Integer[mx.array, "batch length"],
        cache: Cache | None = None,
        positions: Positions | None = None,
    ) -> Float[mx.array, "batch length dim"]:
        """Return the states after the final norm; `cache` is updated. Packed rows come with `positions`."""
        return self.model(tokens, cache, positions)

    def logits(self, hidden: Float[mx.array, "batch length dim"]) -> Float[mx.array, "batch length vocab"]:
        """Apply the output matrix."""
        return self.lm_head(hidden) if "lm_head" in self else self.model.embed_tokens.as_linear(hidden)

    def __call__(
        self, tokens: Integer[mx.array, "batch length"], cache: Cache | None = None
    ) -> Float[mx.array, "batch length vocab"]:
        """Return the logits of every position; `cache` is updated."""
        return self.logits(self.hidden(tokens, cache))
