"""What the machine has: the memory that a model may use."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

USABLE = 0.9  # the share of memory that a run may fill
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
