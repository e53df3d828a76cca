"""Every kernel's Metal text, compiled for the CPU, against plain operations in float32."""

from __future__ import annotations

import mlx.core as mx
import pytest

from macmoe.kernels import source
from tests.kernels.attention import AttentionShape, case_grouped_attention, case_latent_attention
from tests.kernels.cases import wrong
from tests.kernels.shapes import PACKINGS, latent_form, route_cases, small_cases

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


def attention_of(capacity, group):
    """Attend after 20 tokens in a buffer of some size, which is large enough for all parts."""
    form = AttentionShape(heads=8, kv_heads=8, head_dim=64, cached=20, capacity=capacity, group=group)
    return case_grouped_attention(mx.bfloat16, form)


def latent_attention_of(capacity, group):
    """Do the same with latents."""
    form = latent_form(4, 96, 64, 16, 32)
    return case_latent_attention(
        mx.bfloat16, form, PACKINGS["affine4"], past=20, capacity=capacity, group=group
    )


@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("case", [attention_of, latent_attention_of])
def test_a_cache_that_grew_needs_no_other_kernel(emulate, case, group):
    emulate()
    launches = []
    for capacity in (2048, 3072):
        with source.recorded() as calls:
            assert wrong(case(capacity, group)) == []
        launches.append([call.launch for call in calls])
    assert launches[0]
    assert launches[0] == launches[1]
