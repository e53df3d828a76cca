"""The emulator as a third kind of GPU, and shapes that keep it quick."""

from __future__ import annotations

import pytest

from macmoe.kernels import grouped_attention, latent_attention, source
from tests.metal import emulator


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    """Cut caches into few parts: a GPU needs many to be busy, a test needs more than one."""
    monkeypatch.setattr(grouped_attention, "TARGET_GROUPS", 6)
    monkeypatch.setattr(latent_attention, "PARTS", 3)


@pytest.fixture
def emulate(monkeypatch):
    """Launch kernels in the emulator; called with an order of threads, and what changes the texts."""
    if reason := emulator.missing():
        pytest.skip(reason)

    def use(order="forward", change=lambda launch: launch):
        source._compiled.cache_clear()
        launcher = {"emulator": lambda launch: emulator.emulated(change(launch), order)}
        monkeypatch.setattr(source, "LAUNCHERS", launcher)
        monkeypatch.setattr(source, "backend", lambda: "emulator")

    yield use
    source._compiled.cache_clear()
