"""Kernels that are recorded instead of launched, so that a CPU can count what a GPU would run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest

from macmoe.bench.counting import VIEWS
from macmoe.kernels import source

MARK = "Depends"  # the operation that stands for a launch
COUNTED = VIEWS - {MARK}


def hollow(shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """Return zeros that take no memory, whatever their shape."""
    zeros = mx.broadcast_to(mx.array(0, dtype), tuple(shape))
    mx.eval(zeros)
    return zeros


def mark(outputs: list[mx.array], inputs: Sequence[Any]) -> list[mx.array]:
    """Return outputs that come from the inputs by one operation."""
    return mx.depends(outputs, [array for array in inputs if isinstance(array, mx.array)])


def _launch(
    *, inputs: list[mx.array], output_shapes: list[tuple[int, ...]], output_dtypes: list[mx.Dtype], **_: Any
) -> list[mx.array]:
    outputs = [hollow(*form) for form in zip(output_shapes, output_dtypes, strict=True)]
    return mark(outputs, inputs)


def record_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every launch of a kernel of ours be one marked operation."""
    monkeypatch.setattr(source, "backend", lambda: "recorded")
    monkeypatch.setitem(source.LAUNCHERS, "recorded", lambda _: _launch)


def record_fast_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the same for MLX's fused operations, which are single kernels on a GPU only."""

    def like_first(first: mx.array, *others: Any, **named: Any) -> mx.array:
        return mark([hollow(first.shape, first.dtype)], [first, *others, *named.values()])[0]

    def attention(queries: mx.array, keys: mx.array, values: mx.array, **named: Any) -> mx.array:
        shape = (*queries.shape[:-1], values.shape[-1])
        return mark([hollow(shape, queries.dtype)], [queries, keys, values, *named.values()])[0]

    monkeypatch.setattr(mx.fast, "rms_norm", like_first)
    monkeypatch.setattr(mx.fast, "rope", like_first)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attention)
