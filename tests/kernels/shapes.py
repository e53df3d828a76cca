"""The cases at small and awkward shapes, for the emulator, and at those of published models, for a GPU."""

from __future__ import annotations

import mlx.core as mx

from macmoe.kernels import experts, latent_attention, routing
from tests.kernels.attention import (
    AttentionShape,
    case_grouped_attention,
    case_latent_attention,
    case_latent_weights,
)
from tests.kernels.cases import (
    PACKINGS,
    ExpertShape,
    Runner,
    case_add_norm,
    case_experts,
    case_route,
)


def latent_form(heads: int, q_rank: int, latent: int, nope: int, rope: int) -> latent_attention.Form:
    """Return a form with DeepSeek's kind of scales."""
    return latent_attention.Form(
        heads=heads,
        q_rank=q_rank,
        latent=latent,
        nope_dim=nope,
        rope_dim=rope,
        scale=(nope + rope) ** -0.5,
        rope_scale=1.25,
        eps=1e-6,
    )


def small_cases(dtype: mx.Dtype) -> dict[str, Runner]:
    """Return cases at small and awkward shapes, by name."""
    cases: dict[str, Runner] = {
        "add_norm": lambda: case_add_norm(dtype, 1, 64, bias=False),
        "add_norm bias, 3 tokens, 2880": lambda: case_add_norm(dtype, 3, 2880, bias=True),
        "add_norm odd width": lambda: case_add_norm(dtype, 2, 104, bias=True),
        "add_norm_logits": lambda: case_add_norm(dtype, 2, 96, bias=True, count=12),
        "add_norm_logits 33 experts, 768": lambda: case_add_norm(dtype, 1, 768, bias=False, count=33),
        "add_norm_logits 1 expert, odd width": lambda: case_add_norm(dtype, 3, 104, bias=True, count=1),
        "add_norm_logits 2048": lambda: case_add_norm(dtype, 1, 2048, bias=False, count=7),
        "add_norm_logits 2880": lambda: case_add_norm(dtype, 3, 2880, bias=True, count=5),
        "add_norm_logits 4096": lambda: case_add_norm(dtype, 1, 4096, bias=False, count=3),
        "add_norm_logits 7168": lambda: case_add_norm(dtype, 1, 7168, bias=False, count=3),
    }
    for name, packing in PACKINGS.items():
        one = ExpertShape(packing=packing, tokens=1, count=5, top_k=3, dim=64, hidden=64)
        wide = ExpertShape(
            packing=packing,
            tokens=1,
            count=3,
            top_k=2,
            dim=320,
            hidden=192,
            kind=experts.CLAMPED_SWIGLU,
            bias=True,
        )
        ragged = ExpertShape(packing=packing, tokens=9, count=4, top_k=2, dim=128, hidden=64, bias=True)
        crowded = ExpertShape(packing=packing, tokens=32, count=3, top_k=2, dim=64, hidden=64)
        joined = ExpertShape(packing=packing, tokens=1, count=4, top_k=2, dim=128, hidden=64, shared=True)
        together = ExpertShape(packing=packing, tokens=3, count=4, top_k=2, dim=128, hidden=64, shared=True)
        cases |= {
            f"experts {name}": lambda form=one: case_experts(dtype, form),
            f"experts {name}, bias, clamped": lambda form=wide: case_experts(dtype, form),
            f"experts {name}, 9 tokens": lambda form=ragged: case_experts(dtype, form),
            f"experts {name}, 32 tokens": lambda form=crowded: case_experts(dtype, form),
            f"experts {name}, shared": lambda form=joined: case_experts(dtype, form),
            f"experts {name}, shared, 3 tokens": lambda form=together: case_experts(dtype, form),
            f"latent {name}": lambda packing=packing: case_latent_attention(
                dtype, latent_form(4, 96, 64, 16, 16), packing, past=37, capacity=64
            ),
        }
    cases["latent first token"] = lambda: case_latent_attention(
        dtype, latent_form(2, 64, 256, 32, 64), PACKINGS["plain"], past=0, capacity=16
    )
    cases["latent 3 sequences"] = lambda: case_latent_attention(
        dtype, latent_form(4, 96, 64, 16, 16), PACKINGS["affine4"], past=37, capacity=61, padding=(0, 11, 35)
    )
    cases["latent packed cache"] = lambda: case_latent_attention(
        dtype, latent_form(4, 96, 64, 16, 32), PACKINGS["affine4"], past=37, capacity=61, group=32
    )
    cases["latent packed cache, 3 sequences"] = lambda: case_latent_attention(
        dtype,
        latent_form(2, 64, 128, 32, 64),
        PACKINGS["plain"],
        past=9,
        capacity=16,
        padding=(3, 0, 7),
        group=64,
    )
    cases["latent weights"] = lambda: case_latent_weights(
        dtype, latent_form(4, 64, 32, 16, 16), first=5, past=700, capacity=777
    )
    cases["latent weights, three rounds"] = lambda: case_latent_weights(
        dtype, latent_form(1, 64, 32, 16, 16), first=5, past=17_000, capacity=17_008
    )
    cases["latent weights, first token"] = lambda: case_latent_weights(
        dtype, latent_form(2, 64, 32, 16, 16), first=0, past=0, capacity=16
    )
    base = {"heads": 8, "kv_heads": 2, "cached": 45, "capacity": 64}
    shapes = {
        "attention": AttentionShape(head_dim=16, **base),
        "attention norm": AttentionShape(head_dim=32, norm=True, **base),
        "attention bias, sinks": AttentionShape(head_dim=64, bias=True, sinks=True, **base),
        "attention window": AttentionShape(head_dim=16, window=True, first=38, sinks=True, bias=True, **base),
        "attention first token": AttentionShape(heads=4, kv_heads=4, head_dim=16, cached=0, capacity=8),
        "attention 128, odd cache": AttentionShape(
            heads=6, kv_heads=2, head_dim=128, cached=33, capacity=40, norm=True
        ),
        "attention packed, bias, sinks": AttentionShape(head_dim=32, bias=True, sinks=True, group=32, **base),
        "attention packed 64, sinks": AttentionShape(head_dim=64, sinks=True, bias=True, group=64, **base),
        "attention packed 128, odd cache": AttentionShape(
            heads=6, kv_heads=2, head_dim=128, cached=33, capacity=40, norm=True, group=64
        ),
        "attention packed first token": AttentionShape(
            heads=4, kv_heads=4, head_dim=64, cached=0, capacity=8, group=64
        ),
    } | batches()
    return cases | {
        name: lambda form=form: case_grouped_attention(dtype, form) for name, form in shapes.items()
    }


def batches() -> dict[str, AttentionShape]:
    """Return shapes with several sequences; of the first ones the last sequence sees itself alone."""
    ragged = {"cached": 45, "capacity": 64, "padding": (0, 17, 43)}
    odd = {"heads": 6, "kv_heads": 2, "cached": 33, "capacity": 40, "padding": (9, 0, 30)}
    return {
        "attention 3 sequences": AttentionShape(heads=4, kv_heads=2, head_dim=16, **ragged),
        "attention 3 sequences in parts, bias, sinks": AttentionShape(
            heads=4, kv_heads=1, head_dim=32, bias=True, sinks=True, **ragged
        ),
        "attention 3 sequences, window": AttentionShape(
            heads=8, kv_heads=2, head_dim=16, window=True, first=12, bias=True, sinks=True, **ragged
        ),
        "attention 3 sequences 128, odd cache": AttentionShape(head_dim=128, norm=True, **odd),
        "attention 3 sequences, packed 128, odd cache": AttentionShape(
            head_dim=128, norm=True, group=64, **odd
        ),
        "attention 3 sequences in parts, packed": AttentionShape(
            heads=4, kv_heads=1, head_dim=32, bias=True, sinks=True, group=32, **ragged
        ),
    }


def route_cases() -> dict[str, Runner]:
    """Return the choices of experts, which know no type but float32."""
    return {
        "route top-k, softmax": lambda: case_route(routing.TOP_K_SOFTMAX, 3, 32, 4),
        "route softmax, top-k": lambda: case_route(routing.SOFTMAX_TOP_K, 3, 128, 8),
        "route without rescaling": lambda: case_route(routing.SOFTMAX_TOP_K, 2, 33, 5, normalize=False),
        "route groups": lambda: case_route(routing.GROUPED_SIGMOID, 3, 256, 8, 8),
        "route small groups": lambda: case_route(routing.GROUPED_SIGMOID, 4, 24, 4, 4),
        "route one group": lambda: case_route(routing.GROUPED_SIGMOID, 2, 16, 3, 1),
    }


def real_cases(dtype: mx.Dtype) -> dict[str, Runner]:
    """Return cases at the shapes of published models, by name."""
    cases: dict[str, Runner] = {
        "add_norm gpt-oss": lambda: case_add_norm(dtype, 1, 2880, bias=True),
        "add_norm deepseek": lambda: case_add_norm(dtype, 1, 7168, bias=False),
        "add_norm_logits gpt-oss": lambda: case_add_norm(dtype, 1, 2880, bias=True, count=32),
        "add_norm_logits qwen3": lambda: case_add_norm(dtype, 1, 2048, bias=False, count=128),
        "add_norm_logits qwen3 235b": lambda: case_add_norm(dtype, 1, 4096, bias=False, count=128),
        "add_norm_logits deepseek": lambda: case_add_norm(dtype, 1, 7168, bias=False, count=256),
        "latent deepseek 2048": lambda: case_latent_attention(
            dtype,
            latent_form(128, 1536, 512, 128, 64),
            PACKINGS["affine4"],
            past=2047,
            capacity=4096,
        ),
        "latent packed cache deepseek": lambda: case_latent_attention(
            dtype,
            latent_form(128, 1536, 512, 128, 64),
            PACKINGS["affine4"],
            past=2047,
            capacity=4096,
            group=64,
        ),
        "latent weights deepseek": lambda: case_latent_weights(
            dtype, latent_form(128, 1536, 512, 128, 64), first=0, past=8191, capacity=9216
        ),
        "latent deepseek 4 sequences": lambda: case_latent_attention(
            dtype,
            latent_form(128, 1536, 512, 128, 64),
            PACKINGS["affine4"],
            past=100,
            capacity=256,
            padding=(40, 0, 7, 90),
        ),
    }
    forms = {
        "gpt-oss": ExpertShape(
            packing=PACKINGS["mxfp4"],
            tokens=1,
            count=32,
            top_k=4,
            dim=2880,
            hidden=2880,
            kind=experts.CLAMPED_SWIGLU,
            bias=True,
        ),
        "qwen3": ExpertShape(packing=PACKINGS["affine4"], tokens=1, count=32, top_k=8, dim=2048, hidden=768),
        "qwen3 16 tokens": ExpertShape(
            packing=PACKINGS["affine4"], tokens=16, count=32, top_k=8, dim=2048, hidden=768
        ),
        "deepseek": ExpertShape(
            packing=PACKINGS["affine4"], tokens=1, count=8, top_k=4, dim=7168, hidden=2048, shared=True
        ),
    }
    shapes = {
        "attention gpt-oss": AttentionShape(
            heads=64, kv_heads=8, head_dim=64, cached=8000, capacity=8192, bias=True, sinks=True
        ),
        "attention gpt-oss window": AttentionShape(
            heads=64,
            kv_heads=8,
            head_dim=64,
            cached=1000,
            capacity=1280,
            first=873,
            window=True,
            bias=True,
            sinks=True,
        ),
        "attention qwen3": AttentionShape(
            heads=32, kv_heads=4, head_dim=128, cached=8000, capacity=8192, norm=True
        ),
        "attention qwen3 4 sequences": AttentionShape(
            heads=32, kv_heads=4, head_dim=128, cached=800, capacity=1024, norm=True, padding=(0, 9, 700, 41)
        ),
        "attention packed gpt-oss": AttentionShape(
            heads=64, kv_heads=8, head_dim=64, cached=8000, capacity=8192, bias=True, sinks=True, group=64
        ),
        "attention packed qwen3": AttentionShape(
            heads=32, kv_heads=4, head_dim=128, cached=8000, capacity=8192, norm=True, group=64
        ),
    }
    cases |= {f"experts {name}": lambda form=form: case_experts(dtype, form) for name, form in forms.items()}
    return cases | {
        name: lambda form=form: case_grouped_attention(dtype, form) for name, form in shapes.items()
    }
