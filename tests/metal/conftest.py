"""The emulator as a third kind of GPU, and shapes that keep it quick."""

from __future__ import annotations

import mlx.core as mx
import pytest

import macmoe
from macmoe.decoding.step import DecodeStep
from macmoe.kernels import grouped_attention, source
from tests.kernels.shapes import route_cases, small_cases
from tests.metal import emulator


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    """Cut caches into few parts: a GPU needs many to be busy, a test needs more than one."""
    monkeypatch.setattr(grouped_attention, "TARGET_GROUPS", 6)
    monkeypatch.setattr(grouped_attention, "LEAST_ROWS", 1)


@pytest.fixture
def emulate(monkeypatch):
    """Launch kernels in the emulator; called with an order of threads, what changes the texts, and a list.

    What each launch writes is appended to the list.
    """
    if reason := emulator.missing():
        pytest.skip(reason)

    def use(order="forward", change=lambda launch: launch, kept=None):
        def launcher(launch):
            run = emulator.emulated(change(launch), order)
            return run if kept is None else lambda **arguments: kept.append(run(**arguments)) or kept[-1]

        source._compiled.cache_clear()
        monkeypatch.setattr(source, "LAUNCHERS", {"emulator": launcher})
        monkeypatch.setattr(source, "backend", lambda: "emulator")

    yield use
    source._compiled.cache_clear()


@pytest.fixture
def session_with_step(emulate):
    """A built-in model, and its step as the emulator runs it: uncompiled, since every launch runs at once."""

    def load(name):
        session = macmoe.load(name, "float32")
        emulate()
        step = DecodeStep.of(session.model)
        assert step is not None
        step.run = step.trace
        return session, step

    return load


@pytest.fixture
def launches(monkeypatch):
    """Return what all kernels are launched with in a type: launch, inputs, types of outputs. Nothing runs."""

    def collect(dtype):
        found = {}

        def record(launch):
            def run(*, inputs, output_shapes, output_dtypes, **_):
                found[launch, str([(array.shape, array.dtype) for array in inputs])] = (
                    launch,
                    inputs,
                    output_dtypes,
                )
                return [mx.zeros(*output) for output in zip(output_shapes, output_dtypes, strict=True)]

            return run

        source._compiled.cache_clear()
        monkeypatch.setattr(source, "LAUNCHERS", {"recorder": record})
        monkeypatch.setattr(source, "backend", lambda: "recorder")
        for case in {**small_cases(dtype), **route_cases()}.values():
            case()
        return list(found.values())

    yield collect
    source._compiled.cache_clear()
