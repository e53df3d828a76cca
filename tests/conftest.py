"""Shared paths and fixtures of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Golden renderings, tokenizers and reference code, present on development machines beside the repository.
SHARED = ROOT.parent / "shared"

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of golden data, or skip the test that asks for it."""
    if not SHARED.is_dir():
        pytest.skip("the golden data folder ../shared is not on this machine")
    return SHARED


@pytest.fixture
def short_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `macmoe bench` warm up and copy little: enough for all that is not a speed."""
    for module in ("measure", "run"):
        monkeypatch.setattr(f"macmoe.bench.{module}.WARM_UP", 2)
        monkeypatch.setattr(f"macmoe.bench.{module}.WARM_UP_PASSES", 2)
    monkeypatch.setattr("macmoe.bench.measure.gc.collect", lambda: 0)  # slow where torch is loaded as well
    monkeypatch.setattr("macmoe.bench.traffic.COPIES", 1)
    monkeypatch.setattr("macmoe.bench.traffic.COPY_BYTES", {True: 1 << 20, False: 1 << 20})
