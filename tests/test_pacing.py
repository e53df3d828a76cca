"""Memory for work ahead: the limit that MLX is given, and gets back."""

from __future__ import annotations

import os
import subprocess
import sys

import mlx.core as mx
import pytest

from macmoe import pacing

LIMIT = "MLX_MAX_MB_PER_BUFFER"


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


@pytest.mark.skipif(sys.platform != "linux", reason="only MLX's CUDA back end is told, which is for Linux")
@pytest.mark.parametrize(("chosen", "found"), [({}, "400"), ({LIMIT: "70"}, "70")])
def test_graphs_are_small_unless_the_user_wants_others(chosen, found):
    code = f"import os, macmoe; print(os.environ['{LIMIT}'])"
    without = {name: value for name, value in os.environ.items() if name != LIMIT}
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, env=without | chosen, text=True).strip() == found
