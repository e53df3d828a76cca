"""What attention remembers: full, sliding and latent caches, and the set of them that belongs to one model.

Arrays are [batch, heads, length, width]. Buffers have spare room and are written in place. When one is full
it grows by half, but by no more than `GROWTH` tokens: products of attention may go over the spare room too.
`reserve` makes the room at once where the length is known. Fused kernels write into the buffers themselves
(`open`), which MLX does not know of: so a cache remembers whether a copy may share its buffers, and then
moves to new ones first.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from macmoe.errors import UsageError
from macmoe.nn.positions import left_padding_array
from macmoe.protocols import LayerCache, Room

STEP = 256  # buffers hold a multiple of this many tokens
GROWTH = 4096  # tokens by which a buffer grows at most; a new size costs a copy


def _round_up(tokens: int) -> int:
    return -(-tokens // STEP) * STEP


def _with_room(array: mx.array, capacity: int) -> mx.array:
    """Return `array` extended along the token axis to `capacity` tokens."""
    room = mx.zeros((*array.shape[:2], capacity - array.shape[2], array.shape[3]), dtype=array.dtype)
    return mx.concatenate([array, room], axis=2)


def _wait_for_kernels() -> None:
    """Wait for what was launched: MLX does not know which rows kernels write, so no copy waits for them."""
    mx.synchronize()


def _check_trim(cache: LayerCache, tokens: int) -> None:
    if not 0 <= tokens <= cache.trimmable:
        raise UsageError(
            f"cannot take back {tokens} tokens: this cache can forget the newest {cache.trimmable} of "
            f"{cache.offset}; "
            "process the prompt again instead"
        )


class FullCache:
    """Keeps every token: keys and values [batch, kv_heads, length, head_dim] of one layer."""

    bits: int | None = None  # of a packed number

    def __init__(self) -> None:
        self.offset = 0
        self._buffers: list[mx.array] = []
        self._reserved = 0
        self._shared = False  # whether a copy may hold the same buffers

    def open(self, tokens: int) -> Room:
        """Make room for a few more tokens that a kernel will write; `advance` tells that it has.

        The cache must hold a token already: the first ones say what types and shapes there are.
        """
        end = self.offset + tokens
        capacity = self._buffers[0].shape[2]
        if end > capacity:
            capacity = self._capacity(end)
        if self._shared or capacity > self._buffers[0].shape[2]:
            _wait_for_kernels()
            self._buffers = [_with_room(array, capacity) for array in self.state]
            self._shared = False
        return Room(self._buffers, self.offset, 0)

    def advance(self, tokens: int) -> None:
        """Count tokens that a kernel has written."""
        self.offset += tokens

    def update(self, *new: mx.array) -> tuple[mx.array, ...]:
        """Append arrays [batch, heads, length, width] and return each with all the tokens before it."""
        end = self.offset + new[0].shape[2]
        if not self._buffers or end > self._buffers[0].shape[2]:
            held = self.state or [array[:, :, :0] for array in new]
            self._buffers = [_with_room(array, self._capacity(end)) for array in held]
        for buffer, array in zip(self._buffers, new, strict=True):
            buffer[:, :, self.offset : end] = array
        self._shared = False
        self.offset = end
        return tuple(self.state)

    def _capacity(self, end: int) -> int:
        """Return for how many tokens new buffers are made that have to hold `end`."""
        grown = self.offset + min(self.offset // 2, GROWTH)
        return _round_up(max(end, self._reserved, grown))

    @property
    def state(self) -> list[mx.array]:
        """The tokens held, without the spare room."""
        return [buffer[:, :, : self.offset] for buffer in self._buffers]

    @property
    def trimmable(self) -> int:
        """Every token can be taken back."""
        return self.offset

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, spare room included."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def reserve(self, tokens: int) -> None:
        """Let the next growth make room for this many tokens in all."""
        self._reserved = tokens

    def trim(self, tokens: int) -> None:
        """Forget the newest tokens."""
        _check_trim(self, tokens)
        self.offset -= tokens

    def copy(self) -> "FullCache":
        """Return an independent cache; memory is shared until one of the two is written."""
        twin = copy.copy(self)
        twin._buffers = [buffer[...] for buffer in self._buffers]
        self._shared = twin._shared = True
        return twin

    def snapshot(self, offset: int) -> "FullCache | None":  # noqa: ARG002 - trimming suffices
        """Return None: this cache can go back to any offset by itself."""
        return None

    def load(self, arrays: Sequence[mx.array], offset: int) -> None:
        """Take over a saved `state` at a saved offset."""
        self.offset, self._buffers, self._shared = offset, [array[...] for array in arrays], True


class LatentCache(FullCache):
    """Keeps every token of a latent-attention layer: one array [batch, 1, length, latent + rope_dim].

    The compressed key/value after its norm, and the shared rotary key after rotation (arXiv 2405.04434,
    section 2.1). Values are the first `latent` columns of the keys, so nothing is stored twice.
    """


class SlidingCache:
    """Keeps what a sliding window needs, and `slack` tokens more, so that tokens can be taken back.

    Tokens stand in temporal order in a buffer with twice the room; when it is full the newest ones move to
    its front.

    Args:
        window: Tokens that a query sees, itself included.
        slack: How many tokens can be taken back at least (prefix reuse, rejected drafts).
    """

    bits: int | None = None  # never packed: what it holds is small

    def __init__(self, window: int, slack: int = 512) -> None:
        self.window = window
        self.slack = slack
        self.offset = 0
        self._start = 0  # position of the first token in the buffers
        self._buffers: list[mx.array] = []
        self._shared = False  # whether a copy may hold the same buffers

    @property
    def _keep(self) -> int:
        return self.window - 1 + self.slack

    def open(self, tokens: int) -> Room:
        """Make room for a few more tokens; see `FullCache.open`."""
        if self._shared or self.offset - self._start + tokens > self._buffers[0].shape[2]:
            _wait_for_kernels()
            self._compact(tuple(array[:, :, :tokens] for array in self._buffers))
        return Room(
            self._buffers, self.offset - self._start, max(0, self.offset - (self.window - 1)) - self._start
        )

    def advance(self, tokens: int) -> None:
        """Count tokens that a kernel has written."""
        self.offset += tokens

    def _slice(self, first: int) -> list[mx.array]:
        """Return the tokens from position `first` to the newest."""
        return [buffer[:, :, first - self._start : self.offset - self._start] for buffer in self._buffers]

    def _append(self, new: tuple[mx.array, ...]) -> None:
        for buffer, array in zip(self._buffers, new, strict=True):
            begin = self.offset - self._start
            buffer[:, :, begin : begin + array.shape[2]] = array
        self._shared = False
        self.offset += new[0].shape[2]

    def _compact(self, new: tuple[mx.array, ...]) -> None:
        """Move the tokens worth keeping to the front of fresh buffers that have room for `new`."""
        first = max(self._start, self.offset - self._keep)
        kept = self._slice(first) if self._buffers else [array[:, :, :0] for array in new]
        capacity = _round_up(max(2 * self._keep, kept[0].shape[2] + new[0].shape[2]))
        self._buffers = [_with_room(array, capacity) for array in kept]
        self._shared = False
        self._start = first

    def update(self, *new: mx.array) -> tuple[mx.array, ...]:
        """Append arrays and return each with the window - 1 tokens before it."""
        length = new[0].shape[2]
        first = max(0, self.offset - (self.window - 1))
        if not self._buffers or self.offset - self._start + length > self._buffers[0].shape[2]:
            self._compact(new)
        self._append(new)
        visible = tuple(self._slice(first))
        if self._buffers[0].shape[2] > _round_up(2 * self._keep):
            self._compact(
                tuple(array[:, :, :0] for array in new)
            )  # a long prompt must not leave a long buffer
        return visible

    @property
    def state(self) -> list[mx.array]:
        """The tokens held."""
        return self._slice(self._start)

    @property
    def trimmable(self) -> int:
        """How many tokens can go so that a full window is still there for the next one."""
        return self.offset if self._start == 0 else max(0, self.offset - self._start - (self.window - 1))

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, spare room included."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def reserve(self, tokens: int) -> None:
        """Do nothing: the size does not depend on the number of tokens."""

    def trim(self, tokens: int) -> None:
        """Forget the newest tokens."""
        _check_trim(self, tokens)
        self.offset -= tokens

    def snapshot(self, offset: int) -> "SlidingCache | None":
        """Return a copy as it was at an earlier offset; small: only the window and the slack are held."""
        twin = self.copy()
        twin.trim(self.offset - offset)
        return twin

    def load(self, arrays: Sequence[mx.array], offset: int) -> None:
        """Take over a saved `state` at a saved offset."""
        self.offset, self._buffers, self._shared = offset, [array[...] for array in arrays], True
        self._start = offset - (arrays[0].shape[2] if arrays else 0)

    def copy(self) -> "SlidingCache":
        """Return an independent cache; memory is shared until one of the two is written."""
        twin = copy.copy(self)
        twin._buffers = [buffer[...] for buffer in self._buffers]
        self._shared = twin._shared = True
        return twin


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state to go back to: copies of the layers that cannot get there by trimming, None for the others."""

    offset: int
    layers: tuple[LayerCache | None, ...]


class ModelCache:
    """The caches of all layers of one model for one batch.

    Args:
        layers: One cache per layer, in order.
        left_padding: Padding tokens before each sequence of the batch, or None.
    """

    def __init__(self, layers: Sequence[LayerCache], left_padding: Sequence[int] | None = None) -> None:
        self.layers = list(layers)
        self.padding = None if left_padding is None else tuple(left_padding)

    def __iter__(self) -> Iterator[LayerCache]:
        return iter(self.layers)

    @property
    def offset(self) -> int:
        """Number of tokens seen so far."""
        return self.layers[0].offset

    @property
    def left_padding(self) -> mx.array | None:
        """Padding tokens before each sequence [sequences], None without any."""
        return left_padding_array(self.padding)

    @property
    def sequences(self) -> int:
        """Sequences of the batch; one while nothing is held or said about it."""
        if self.padding is not None:
            return len(self.padding)
        held = self.layers[0].state
        return len(held[0]) if held else 1

    @property
    def bits(self) -> int | None:
        """Bits of a packed number; None if every layer keeps the model's type."""
        return next((layer.bits for layer in self.layers if layer.bits), None)

    @property
    def trimmable(self) -> int:
        """How many of the newest tokens every layer can take back."""
        return min(layer.trimmable for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def state(self) -> list[mx.array]:
        """All arrays in use; evaluate them to finish a prefill."""
        return [array for layer in self.layers for array in layer.state]

    def reserve(self, tokens: int) -> None:
        """Make room for this many tokens in all layers."""
        for layer in self.layers:
            layer.reserve(tokens)

    def trim(self, tokens: int) -> None:
        """Forget the newest tokens in all layers.

        Raises:
            UsageError: Some layer no longer knows what stood before them; no layer is changed then.
        """
        if tokens > self.trimmable:
            _check_trim(min(self.layers, key=lambda layer: layer.trimmable), tokens)
        for layer in self.layers:
            layer.trim(tokens)

    def snapshot(self, offset: int) -> "Snapshot":
        """Remember the state at an offset that can still be reached by trimming."""
        return Snapshot(offset, tuple(layer.snapshot(offset) for layer in self.layers))

    def restore(self, snapshot: "Snapshot") -> None:
        """Go back to a snapshot of this cache, however many tokens came after it."""
        for index, layer in enumerate(snapshot.layers):
            if layer is None:
                self.layers[index].trim(self.layers[index].offset - snapshot.offset)
            else:
                self.layers[index] = layer.copy()

    def copy(self) -> "ModelCache":
        """Return an independent copy."""
        return type(self)([layer.copy() for layer in self.layers], self.padding)
