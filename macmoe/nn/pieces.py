"""Work in pieces, one after the other, so that the memory of one is enough."""

from collections.abc import Sequence

import mlx.core as mx


def cut(length: int, step: int) -> list[slice]:
    """Cut so many places into pieces of `step`; the last may be shorter."""
    return [slice(begin, min(begin + step, length)) for begin in range(0, length, step)]


def after(x: mx.array, earlier: Sequence[mx.array]) -> mx.array:
    """Return x, which then nothing uses before `earlier` is there.

    MLX is free to begin with what every piece needs before it ends the first.
    """
    return mx.depends([x], list(earlier))[0] if earlier else x
