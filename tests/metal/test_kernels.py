"""Every kernel's Metal text, compiled for the CPU, against plain operations in float32, and its reference."""

from __future__ import annotations

import mlx.core as mx
import pytest

from macmoe.decoding.launches import errors_of
from macmoe.kernels import source
from tests.kernels.attention import AttentionShape, case_grouped_attention, case_latent_attention
from tests.kernels.cases import wrong
from tests.kernels.shapes import PACKINGS, latent_form, route_cases, small_cases

# All cases in bfloat16; in float16 those whose texts differ by the type; in float32 all but most experts.
TYPED = ("add_norm", "attention norm", "attention window", "latent affine4", "latent plain")


def differs_by_type(name):
    words = ("packed", "logits", "sequences")
    return name in TYPED or name.endswith(("clamped", "9 tokens")) or any(word in name for word in words)


CASES = {
    **{f"bfloat16 {name}": case for name, case in small_cases(mx.bfloat16).items()},
    **{f"route {name}": case for name, case in route_cases().items()},
    **{
        f"float32 {name}": case
        for name, case in small_cases(mx.float32).items()
        if "experts" not in name or differs_by_type(name)
    },
    **{f"float16 {name}": case for name, case in small_cases(mx.float16).items() if differs_by_type(name)},
}


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_plain_operations_and_its_reference_in_any_order_of_threads(emulate, name):
    written = []
    emulate("forward", kept=written)
    mx.random.seed(0)
    with source.recorded() as calls:
        assert wrong(CASES[name]()) == []
    assert calls
    emulate("backward")
    for call, forward in zip(calls, written, strict=True):
        backward = call()
        assert all(mx.array_equal(a, b, equal_nan=True) for a, b in zip(forward, backward, strict=True))
        if "32 tokens" not in name:  # references take one token after the other
            assert [error for error, bound in errors_of(call, backward) if not error <= bound] == []


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
