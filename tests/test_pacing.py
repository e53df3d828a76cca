"""Memory for work ahead: the limit that MLX is given, and gets back."""

from __future__ import annotations

import mlx.core as mx
import pytest

from macmoe import pacing


@pytest.fixture
def limits(monkeypatch):
    """Return a list of the limits that MLX is given; the first one was 1000."""
    given = [1000]

    def set_memory_limit(limit):
        given.append(limit)
        return given[-2]

    monkeypatch.setattr(mx, "set_memory_limit", set_memory_limit)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 70)
    return given


def test_a_cuda_gpu_gets_a_limit_for_a_while(limits, monkeypatch):
    monkeypatch.setattr(pacing.source, "backend", lambda: "cuda")
    with pytest.raises(ZeroDivisionError), pacing.in_step(5):
        raise ZeroDivisionError
    assert limits == [1000, 75, 1000]


@pytest.mark.parametrize("backend", ["metal", None])
def test_others_get_none(limits, monkeypatch, backend):
    monkeypatch.setattr(pacing.source, "backend", lambda: backend)
    with pacing.in_step(5):
        pass
    assert limits == [1000]
