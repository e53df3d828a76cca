"""What a model family and a cache must offer to the layers above, stated once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Room:
    """Where a kernel writes the next token of a layer, and what that token sees.

    Attributes:
        buffers: Arrays [batch, heads, capacity, width] that nobody else holds.
        row: The token's row in them.
        first: The first row that it sees, where no padding stands there.
    """

    buffers: list[mx.array]
    row: int
    first: int


@runtime_checkable
class LayerCache(Protocol):
    """What one attention layer remembers of the tokens before the current call."""

    @property
    def bits(self) -> int | None:
        """Bits of a packed number; None for numbers of the model's type."""
        ...

    @property
    def offset(self) -> int:
        """Number of tokens seen so far: the position of the next token."""
        ...

    @property
    def trimmable(self) -> int:
        """How many of the newest tokens `trim` can take back."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held, reserve included."""
        ...

    @property
    def state(self) -> list[mx.array]:
        """The arrays in use: what has to be evaluated, and what a saved cache consists of."""
        ...

    def update(self, *new: mx.array) -> tuple[mx.array, ...]:
        """Append arrays [batch, heads, length, width]; return each with the earlier tokens the layer sees."""
        ...

    def open(self, tokens: int) -> Room:
        """Make room for a few more tokens that a kernel will write; `advance` tells that it has."""
        ...

    def advance(self, tokens: int) -> None:
        """Count tokens that a kernel has written."""
        ...

    def reserve(self, tokens: int) -> None:
        """Make room for this many tokens in all, so that no growth happens on the way."""
        ...

    def trim(self, tokens: int) -> None:
        """Forget the newest tokens, exactly."""
        ...

    def copy(self) -> "LayerCache":
        """Return an independent cache with the same content."""
        ...

    def snapshot(self, offset: int) -> "LayerCache | None":
        """Return a copy as it was at an earlier offset, or None if trimming leads there from anywhere."""
        ...

    def load(self, arrays: Sequence[mx.array], offset: int) -> None:
        """Take over a saved `state` at a saved offset."""
        ...


@runtime_checkable
class Cache(Protocol):
    """The layer caches of one model and one batch, moved together."""

    @property
    def left_padding(self) -> mx.array | None:
        """Padding tokens before each sequence [sequences], None without any."""
        ...

    @property
    def offset(self) -> int:
        """Number of tokens seen so far."""
        ...

    @property
    def trimmable(self) -> int:
        """How many of the newest tokens `trim` can take back in every layer."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        ...

    @property
    def state(self) -> list[mx.array]:
        """All arrays in use."""
        ...

    def reserve(self, tokens: int) -> None:
        """Make room for this many tokens in all layers."""
        ...

    def trim(self, tokens: int) -> None:
        """Forget the newest tokens in all layers."""
        ...

    def copy(self) -> "Cache":
        """Return an independent copy."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


@runtime_checkable
class TextConfig(Protocol):
    """What the token loop has to know of a model's configuration."""

    @property
    def vocab_size(self) -> int:
        """Number of rows of the output matrix."""
        ...

    @property
    def max_position_embeddings(self) -> int:
        """Number of positions the model knows."""
        ...

    @property
    def prefill_bytes(self) -> int:
        """Bytes that a layer holds at once for each token of a prompt, weights and cache apart."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """A decoder-only model: token ids in, logits out.

    Shapes: tokens [batch, length]; hidden [batch, length, dim]; logits [batch, length, vocab].
    """

    @property
    def config(self) -> TextConfig:
        """The configuration the model was built from."""
        ...

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Return the logits of every position."""
        ...

    def hidden(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Return the states after the final norm (a prompt needs only the logits of its last position)."""
        ...

    def logits(self, hidden: mx.array) -> mx.array:
        """Apply the output matrix."""
        ...

    def make_cache(self, left_padding: Sequence[int] | None = None, bits: int | None = None) -> Cache:
        """Return an empty cache.

        Args:
            left_padding: Number of padding tokens before each sequence of a batch.
            bits: Keep what grows with the context packed in so many bits: 8, or None for the model's type.

        Raises:
            UsageError: It cannot be packed so.
        """
        ...
