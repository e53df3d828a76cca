"""What the machine has: the memory that a model may use."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

USABLE = 0.9  # the share of memory that a run may fill
GIB = 1 << 30
RESERVE = GIB  # for activations, MLX's buffers and the program, beside weights and cache
LARGEST_CACHE = 4 * GIB  # of macmoe.memory.CONTEXT tokens, of any published model
# What a source's weights can grow to where they cannot stay packed: FP8 that is decoded to float32.
MOST = 4
# Of a container: what the system allows it, in bytes, or "max" (cgroups 2, then 1).
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_limit() -> int:
    """Return the bytes that a run may use on this machine: of its GPU where MLX names a size, else of RAM."""
    if mx.default_device() == mx.Device(mx.gpu):
        info = mx.device_info()
        sizes = ("max_recommended_working_set_size", "memory_size", "total_memory")  # the last is CUDA's
        known = next((info[name] for name in sizes if info.get(name)), 0)
        if known:
            return int(int(known) * USABLE)
    return int(_ram() * USABLE)


def _ram() -> int:
    """Return the machine's memory, or what a container has of it."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdecimal() and int(text):
            sizes.append(int(text))
    return min(sizes)


def surely_fits(stored: int, *, grows: bool = True) -> bool:
    """Return whether weights fit whatever the rest of their configuration says: nothing has to be estimated.

    Args:
        stored: Bytes of the files of weights.
        grows: Whether they may be decoded while they are loaded.
    """
    times = MOST if grows else 1
    if mx.default_device() == mx.Device(mx.cpu):
        times *= 2
    spare = LARGEST_CACHE if stored > GIB else GIB
    return times * stored + spare + RESERVE < memory_limit()
