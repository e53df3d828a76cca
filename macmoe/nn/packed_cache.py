"""What attention remembers in 8 bits a number: about half of the memory of bfloat16.

Rows are packed as mx.quantize packs them, once, when they are appended: groups of neighboring numbers share a
scale and an offset of the model's type. Attention gets the rows unpacked, the new ones as well, so that what
a token sees does not depend on how a prompt was cut into passes.
"""

import mlx.core as mx

from macmoe.errors import UsageError
from macmoe.nn.cache import FullCache

BITS = 8
PARTS = 3  # of a packed array: rows, scales, offsets
GROUPS = (64, 32)  # numbers that share a scale: the first one that divides the width


def group_size(width: int, bits: int) -> int:
    """Return how many numbers of a row share a scale.

    Raises:
        UsageError: Rows of this width cannot be packed, or not in so many bits.
    """
    if bits != BITS:
        raise UsageError(f"a cache cannot be kept in {bits} bits; {BITS} is what there is")
    group = next((group for group in GROUPS if width % group == 0), None)
    if group is None:
        raise UsageError(
            f"the cache of this model has rows of {width} numbers, and only multiples of {GROUPS[-1]} can be "
            f"packed in {bits} bits; use a cache in full precision"
        )
    return group


class PackedCache(FullCache):
    """Keeps every token in 8 bits; each array is held as packed rows, their scales and their offsets.

    Args:
        width: Of the rows; keys and values have the same.
        bits: Of a packed number.

    Raises:
        UsageError: See `group_size`.
    """

    def __init__(self, width: int, bits: int = BITS) -> None:
        super().__init__()
        self.bits = bits
        self.group = group_size(width, bits)

    def update(self, *new: mx.array) -> tuple[mx.array, ...]:
        """Append arrays [batch, heads, length, width]; return each with the tokens before it, unpacked."""
        packed = [part for array in new for part in mx.quantize(array, self.group, self.bits)]
        held = super().update(*packed)
        return tuple(
            mx.dequantize(*held[first : first + PARTS], group_size=self.group, bits=self.bits)
            for first in range(0, len(held), PARTS)
        )
