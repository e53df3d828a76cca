"""The step: one token of each sequence in, logits of the next out, compiled once for all tokens.

MLX replays a compiled graph without running the Python that built it, so a token costs the host little. For
that nothing in the graph may depend on how long the conversation is: positions come in as arrays, and the
cache's buffers change their shape only when they grow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macmoe.decoding import attention, mlp
from macmoe.decoding.matrices import join
from macmoe.families import Model
from macmoe.kernels.add_norm import Joint, add_norm, usable
from macmoe.kernels.packed import KINDS
from macmoe.kernels.source import Call, recorded
from macmoe.models import deepseek_v3, gpt_oss, qwen3
from macmoe.nn.cache import ModelCache
from macmoe.nn.latent_attention import LatentAttention
from macmoe.nn.mlp import MLP
from macmoe.protocols import Room

Attention = attention.Grouped | attention.Latent
FeedForward = mlp.Dense | mlp.Sparse

ATTENTION: dict[type[nn.Module], Callable[..., Attention | None]] = {
    gpt_oss.Attention: attention.grouped,
    qwen3.Attention: attention.grouped,
    LatentAttention: attention.latent,
}
FEED_FORWARD: dict[type[nn.Module], Callable[..., FeedForward | None]] = {
    MLP: mlp.dense,
    gpt_oss.SparseMLP: mlp.gpt_oss_mlp,
    qwen3.SparseMLP: mlp.qwen3_mlp,
    deepseek_v3.SparseMLP: mlp.deepseek_v3_mlp,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer translated; `norm` stands before attention, `window` is as in the model's list of windows."""

    attention: Attention
    feed_forward: FeedForward
    norm: mx.array
    eps: float
    window: int | None


class DecodeStep:
    """One new token of each of a few sequences through a model.

    Args:
        model: The model, for its embedding, final norm and output matrix.
        layers: Its layers, translated.
    """

    def __init__(self, model: Model, layers: Sequence[Layer]) -> None:
        self._model = model
        self.head = join([model.lm_head], model.model.norm.weight.dtype) if "lm_head" in model else None
        self.layers = tuple(layers)
        self.run = mx.compile(self.trace)

    @classmethod
    def of(cls, model: Model) -> "DecodeStep | None":
        """Translate a model; None if some part of it has no translation."""
        scale = model.model.norm.weight
        dtype = scale.dtype
        if dtype not in KINDS or not usable(scale.shape[0]):
            return None
        layers = []
        for layer, window in zip(model.model.layers, model.model.windows, strict=True):
            translated = _translate(layer, window, dtype)
            if translated is None:
                return None
            layers.append(translated)
        return cls(model, layers)

    def fits(self, sequences: int) -> bool:
        """Return whether so many sequences are few enough for the kernels of every layer."""
        feeds = (layer.feed_forward for layer in self.layers)
        return all(sequences <= feed.most_tokens for feed in feeds if isinstance(feed, mlp.Sparse))

    def trace(self, tokens: mx.array, places: dict[str, mx.array], buffers: list[list[mx.array]]) -> mx.array:
        """Build the graph of one token of each sequence.

        Args:
            tokens: [sequences], their ids.
            places: By window, see `places_in`.
            buffers: Of each layer's cache.

        Returns:
            Logits [sequences, vocab].
        """
        decoder = self._model.model
        x = decoder.embed_tokens(tokens)  # [sequences, dim]
        first = self.layers[0]
        normed = mx.fast.rms_norm(x, first.norm, first.eps)
        for index, layer in enumerate(self.layers):
            delta = layer.attention(normed, buffers[index], places[str(layer.window)])
            x, delta = layer.feed_forward(x, delta)
            following = self.layers[index + 1].norm if index + 1 < len(self.layers) else decoder.norm.weight
            x, normed = add_norm(x, delta, Joint(norm=following, eps=layer.eps))
        if self.head is not None:
            return self.head(normed)
        return self._model.logits(normed[None]).reshape(len(tokens), -1)

    def __call__(self, tokens: mx.array, cache: ModelCache) -> mx.array:
        """Return the logits [sequences, vocab] after one more token each [sequences]; `cache` is updated."""
        return self._advance(self.run, tokens, cache)

    def calls(self, tokens: mx.array, cache: ModelCache) -> list[Call]:
        """Return the launches of one more token each [sequences], after they have run; `cache` is updated."""
        with recorded() as calls:
            mx.eval(self._advance(self.trace, tokens, cache))
        return calls

    def _advance(self, run: Callable[..., mx.array], tokens: mx.array, cache: ModelCache) -> mx.array:
        padding = cache.padding or (0,) * len(tokens)
        rooms = [layer.open(1) for layer in cache]
        places = {}
        for layer, room in zip(self.layers, rooms, strict=True):
            key = str(layer.window)
            if key not in places:
                places[key] = places_in(room, cache.offset, padding)
        logits = run(tokens, places, [room.buffers for room in rooms])
        for layer in cache:
            layer.advance(1)
        return logits


def places_in(room: Room, offset: int, padding: Sequence[int]) -> mx.array:
    """Return where the kernels find and write things, for each sequence.

    Args:
        room: Of the layer, made for the next token.
        offset: Tokens in the cache, padding included.
        padding: Padding tokens before each sequence.

    Returns:
        int32 [sequences, 3]: position of the token, its row in the buffers, the first row that it sees.
    """
    start = offset - room.row  # tokens before the first row
    places = [[offset - pad, room.row, max(room.first, pad - start)] for pad in padding]
    return mx.array(places, dtype=mx.int32)


def _translate(layer: Any, window: int | None, dtype: mx.Dtype) -> Layer | None:
    attend, feed = ATTENTION.get(type(layer.self_attn)), FEED_FORWARD.get(type(layer.mlp))
    if attend is None or feed is None:
        return None
    attention_step = attend(layer.self_attn, dtype, window=window is not None)
    if attention_step is None:
        return None
    norm = layer.post_attention_layernorm
    joint = Joint(norm=norm.weight, eps=norm.eps, bias=attention_step.output.bias)
    feed_forward = feed(layer.mlp, joint, dtype)
    if feed_forward is None:
        return None
    return Layer(
        attention=attention_step,
        feed_forward=feed_forward,
        norm=layer.input_layernorm.weight,
        eps=layer.input_layernorm.eps,
        window=window,
    )
