"""Every kernel's Metal text, compiled for the CPU, against plain operations in float32."""

from __future__ import annotations

import mlx.core as mx
import pytest

from tests.kernels.cases import wrong
from tests.kernels.shapes import route_cases, small_cases

# All cases in bfloat16; in the other types those whose texts differ by the type.
TYPED = ("add_norm", "attention norm", "attention window", "latent affine4", "latent plain")
CASES = {
    **{f"bfloat16 {name}": case for name, case in small_cases(mx.bfloat16).items()},
    **{f"route {name}": case for name, case in route_cases().items()},
    **{
        f"{dtype} {name}".removeprefix("mlx.core."): case
        for dtype in (mx.float32, mx.float16)
        for name, case in small_cases(dtype).items()
        if name in TYPED
        or name.endswith(("clamped", "9 tokens"))
        or any(word in name for word in ("packed", "logits", "sequences"))
    },
}


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_plain_operations_in_any_order_of_threads(emulate, name):
    results = []
    for order in ("forward", "backward"):
        emulate(order)
        mx.random.seed(0)
        pairs = CASES[name]()
        assert wrong(pairs) == []
        results.append([got for got, _ in pairs])
    assert all(mx.array_equal(a, b, equal_nan=True) for a, b in zip(*results, strict=True))
