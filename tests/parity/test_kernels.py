"""Tokens decoded with kernels, in the emulator, against transformers: the cases of the modules."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macmoe.decoding.step import DecodeStep
from tests.metal.conftest import emulate  # noqa: F401 - a fixture
from tests.parity.bench import (
    SHORT_GATE,
    Bench,
    Ids,
    Reals,
    difference,
    in_chunks,
    log_probabilities,
    random_ids,
    reference_log_probabilities,
)
from tests.parity.cases import CASES

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("emulate")]

# Sizes that no published model has, and that the kernels are not made for.
LEFT_TO_MODULES = {
    "qwen3_odd_v5",
    "qwen3_moe_fused",
    "deepseek_plain",
    "deepseek_odd_v5",
    "deepseek_fused",
    "deepseek_ue8m0",
    "deepseek_fp8",
}
PROMPT, DECODED = 40, 4
ALONE, BATCH = (0,), (0, 17, 31)  # padding of the sequences
WAYS = [(name, ALONE) for name in CASES if name not in LEFT_TO_MODULES] + [
    (name, BATCH) for name in ("qwen3_moe", "gpt_oss_mxfp4", "deepseek")
]


@pytest.fixture
def step_of(emulate: Any) -> Any:  # noqa: F811
    """Return what translates a model, uncompiled: every launch runs at once."""

    def translate(model: Any) -> DecodeStep | None:
        emulate()
        step = DecodeStep.of(model)
        if step is not None:
            step.run = step.trace
        return step

    return translate


def decoded(step: DecodeStep, cache: Any, ids: Ids) -> Reals:
    """Feed tokens [sequences, length] one by one; return log-probabilities [sequences, length, vocab]."""
    return log_probabilities(mx.stack([step(mx.array(column), cache) for column in ids.T], axis=1))


@pytest.mark.parametrize(("name", "padding"), WAYS)
def test_decoded_tokens_match_transformers(
    bench: Bench, step_of: Any, name: str, padding: tuple[int, ...]
) -> None:
    model, step = bench.model(name), step_of(bench.model(name))
    batch = np.stack([random_ids(name, PROMPT + DECODED, seed) for seed in range(len(padding))])
    cache = model.make_cache(left_padding=padding)
    in_chunks(model, batch[:, :PROMPT], [PROMPT], cache)
    found = decoded(step, cache, batch[:, PROMPT:])
    for row, pad in enumerate(padding):
        expected = reference_log_probabilities(bench.reference(name), batch[row, pad:])
        assert difference(found[row], expected[-DECODED:]) <= SHORT_GATE


@pytest.mark.parametrize("name", sorted(LEFT_TO_MODULES))
def test_other_sizes_are_left_to_the_modules(bench: Bench, step_of: Any, name: str) -> None:
    assert step_of(bench.model(name)) is None
