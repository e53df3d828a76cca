"""Where the tokens of one call stand, and which keys each of them may see."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from macmoe.protocols import Cache


@dataclass(frozen=True, slots=True)
class Band:
    """The mask of a sliding window over blocks as long as the window: each sees itself and the one before.

    Attributes:
        window: Tokens of the window, and of a block.
        visible: Which of its two blocks' keys a query sees [batch or 1, blocks, 1, window, 2 * window].
    """

    window: int
    visible: mx.array


Mask = mx.array | str | Band | None


@dataclass(frozen=True, slots=True)
class Positions:
    """The tokens of one call: `length` new ones after `offset` cached ones.

    Attributes:
        offset: Tokens already in the cache.
        length: Tokens of this call.
        left_padding: Padding tokens before each sequence of the batch [batch], or None.
        start: Position of the first new token: one number, or one per sequence [batch]; where sequences are
            packed, the position of every token [batch, length].
        segments: Which of its row's packed sequences each token belongs to [batch, length], or None.
    """

    offset: int
    length: int
    left_padding: mx.array | None
    start: int | mx.array
    segments: mx.array | None = None

    @classmethod
    def of(cls, tokens: mx.array, cache: Cache | None) -> "Positions":
        """Describe a call with `tokens` [batch, length] after what `cache` holds."""
        length = tokens.shape[1]
        if cache is None:
            return cls(offset=0, length=length, left_padding=None, start=0)
        padding = cache.left_padding
        start = cache.offset if padding is None else cache.offset - padding
        return cls(offset=cache.offset, length=length, left_padding=padding, start=start)

    @classmethod
    def packed(cls, positions: mx.array, segments: mx.array) -> "Positions":
        """Describe rows of several sequences, one after the other, that must not see each other.

        Args:
            positions: Place of each token within its sequence [batch, length].
            segments: The number of its sequence within the row [batch, length]; equal numbers are neighbors.
        """
        length = positions.shape[1]
        return cls(offset=0, length=length, left_padding=None, start=positions, segments=segments)

    def mask(self, window: int | None = None) -> Mask:
        """Return the mask of a layer that sees everything, or the last `window` tokens (itself included).

        Returns:
            None where every key is visible, "causal" where that says it all, a `Band` where the tokens are
            whole blocks of the window's length, else booleans [batch or 1, 1, length, keys].
        """
        if window is not None and self._in_blocks(window):
            return self._band(window)
        if self.segments is not None:
            return self._packed_mask(self.segments, window)
        past = self.offset if window is None else min(self.offset, window - 1)
        everything = window is None or past + self.length <= window
        if self.left_padding is None and (everything or self.length == 1):
            return None if self.length == 1 else "causal"
        queries = mx.arange(self.offset, self.offset + self.length)[:, None]
        keys = mx.arange(self.offset - past, self.offset + self.length)[None]
        visible = keys <= queries  # [length, keys]
        if window is not None:
            visible = visible & (queries - keys < window)
        if self.left_padding is None:
            return visible[None, None]
        real = keys >= self.left_padding[:, None, None]  # [batch, 1, keys]
        # A padding token sees itself, so that no row is empty and no NaN arises.
        return (visible & (real | (keys == queries)))[:, None]

    def _in_blocks(self, window: int) -> bool:
        first = self.offset == 0 and self.left_padding is None
        return first and self.length >= 2 * window and self.length % window == 0

    def _band(self, window: int) -> Band:
        queries = mx.arange(self.length).reshape(-1, window, 1)  # [blocks, window, 1]
        keys = mx.arange(-window, window) + queries[:, :1]  # [blocks, 1, 2 * window], before 0: none
        visible = (keys >= 0) & (keys <= queries) & (queries - keys < window)
        if self.segments is None:
            return Band(window, visible[None, :, None])
        of_keys = self.segments[:, mx.maximum(keys, 0)]  # [batch, blocks, 1, 2 * window]
        same = self.segments.reshape(-1, *queries.shape) == of_keys
        return Band(window, (visible & same)[:, :, None])

    def _packed_mask(self, segments: mx.array, window: int | None) -> mx.array:
        """Return booleans [batch, 1, length, length]: earlier tokens of the same sequence, in the window."""
        places = mx.arange(self.length)
        ago = places[:, None] - places[None]  # [length, length]
        visible = ago >= 0 if window is None else (ago >= 0) & (ago < window)
        return (visible & (segments[:, :, None] == segments[:, None, :]))[:, None]


def left_padding_array(left_padding: Sequence[int] | None) -> mx.array | None:
    """Return the padding counts as an array [batch]; no padding at all is None."""
    return mx.array(list(left_padding)) if left_padding is not None and any(left_padding) else None
