"""The references by which kernels are checked on a user's machine see mistakes.

That they agree with every right kernel is seen in test_kernels.
"""

from __future__ import annotations

import mlx.core as mx
import pytest

from macmoe.decoding.launches import errors_of
from macmoe.decoding.references import REFERENCES, pairs
from macmoe.kernels import routing, source
from tests.kernels.shapes import small_cases
from tests.metal.test_faults import FAULTS, planted

CASES = small_cases(mx.float32)
WRONG = (
    "one row too many",
    "one key too many",
    "one key too few",
    "the wrong scale",
    "the low nibble twice",
    "rows before the first one seen are weighed",
    "the scale of the next group",
    "numbers in the wrong order",
)


def failures(case):
    """Return what is beyond its bound in the launches of a case."""
    mx.random.seed(0)
    with source.recorded() as calls:
        case()
    assert calls
    return [
        (error, bound) for call in calls for error, bound in errors_of(call, call()) if not error <= bound
    ]


@pytest.mark.parametrize("fault", WRONG)
def test_a_planted_mistake_is_seen(emulate, fault):
    name, find, replacement = FAULTS[fault]
    emulate(change=planted(find, replacement))
    assert failures(CASES[name])


@pytest.mark.parametrize("kind", range(3))
def test_another_expert_than_the_best_is_seen(kind):
    logits = mx.array([[0.1, 0.9, 0.5, 0.2]])
    constants = {"KIND": kind, "TOP_K": 1, "SLOTS": 1, "NORMALIZE": 1, "SCALE": 1.0, "EXPERTS": 4}
    constants |= {"GROUPS": 1, "TOP_GROUPS": 1}
    launch = source.Launch(
        kernel=routing.CHOICE,
        inputs=("logits", "correction"),
        outputs=("experts", "weights"),
        constants=tuple(constants.items()),
    )
    call = source.Call(launch=launch, arguments={"inputs": [logits, mx.zeros((4,))]})
    for expert in range(4):
        ((got, wanted),) = pairs(call, [mx.array([[expert]], dtype=mx.uint32), mx.ones((1, 1))])
        assert mx.allclose(got, wanted).item() == (expert == 1)


def test_every_kernel_of_the_cases_has_a_reference(launches):
    names = {launch.kernel.name for launch, _, _ in launches(mx.bfloat16)}
    assert names == set(REFERENCES)


@pytest.mark.parametrize(
    ("backend", "setting", "expected"),
    [("cuda", None, mx.float16), ("cuda", "0", mx.float32), ("metal", None, mx.float32)],
)
def test_float32_products_are_judged_by_the_bits_that_they_keep(monkeypatch, backend, setting, expected):
    monkeypatch.setattr(source, "backend", lambda: backend)
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    if setting is not None:
        monkeypatch.setenv("MLX_ENABLE_TF32", setting)
    assert source.product_type(mx.float32) == expected
    assert source.product_type(mx.bfloat16) == mx.bfloat16
