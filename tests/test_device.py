"""The memory that a model may use."""

from __future__ import annotations

import mlx.core as mx
import pytest

from macmoe import device
from macmoe.device import USABLE, memory_limit

CPU = mx.Device(mx.cpu)


@pytest.fixture
def on_cpu(monkeypatch):
    """Compute on the CPU, in no container."""
    monkeypatch.setattr(device, "LIMITS", ())
    monkeypatch.setattr(mx, "default_device", lambda: CPU)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("text", "limit"), [("1000000\n", 900_000), ("max\n", None), ("9223372036854771712\n", None), ("", None)]
)
def test_a_container_has_what_it_is_allowed(tmp_path, monkeypatch, text, limit):
    whole = memory_limit()
    (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(device, "LIMITS", (tmp_path / "missing", tmp_path / "memory.max"))
    assert memory_limit() == (whole if limit is None else limit)


@pytest.mark.parametrize("key", ["max_recommended_working_set_size", "memory_size", "total_memory"])
def test_a_gpu_has_what_mlx_names(monkeypatch, key):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {key: 1000})
    assert memory_limit() == int(1000 * USABLE)
