"""Published shapes with random weights, as bench and doctor take them."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from macmoe.bench.weights import drawn_bytes, shortened
from macmoe.cli.terminal import size
from macmoe.device import memory_limit
from macmoe.errors import MemoryLimitError

if TYPE_CHECKING:
    from collections.abc import Mapping


def check_memory(shape: str, config: Mapping[str, Any], layers: int | None) -> None:
    """Refuse weights that this machine cannot hold, before any is drawn.

    Raises:
        MemoryLimitError: See above; the message says with how many layers they fit.
        UsageError: The model does not have so many layers.
    """
    cut, limit = shortened(config, layers), memory_limit()
    needed = drawn_bytes(cut)
    if needed <= limit:
        return
    fewer = range(1, cut["num_hidden_layers"])
    fit = bisect_right(fewer, limit, key=lambda count: drawn_bytes(shortened(config, count)))
    way = f"take --layers {fit}" if fit else "not even one layer does"
    raise MemoryLimitError(
        f"{shape}: {size(needed)} of weights do not fit into {size(limit)} of memory; {way}"
    )
