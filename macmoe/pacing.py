"""Memory for work that a GPU has not begun.

MLX hands a CUDA GPU up to ten graphs ahead (0.32.4), each with memory for its results, which is given back
only when the GPU has got there. How large a graph may be is said in `macmoe/__init__.py`. On Metal graphs are
smaller.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from macmoe.kernels import source


@contextmanager
def in_step(beyond: int) -> Iterator[None]:
    """Hand over no more work while `beyond` bytes are held on top of what is held now, on a CUDA GPU."""
    if not source.on_cuda():
        yield
        return
    limit = mx.set_memory_limit(mx.get_active_memory() + beyond)
    try:
        yield
    finally:
        mx.set_memory_limit(limit)
