"""Log-probabilities of macmoe against transformers, and against a float64 implementation, case by case."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.parity.bench import (
    LONG_GATE,
    SHORT_GATE,
    Bench,
    difference,
    log_probabilities,
    macmoe_log_probabilities,
    macmoe_tail,
    random_ids,
    reference_log_probabilities,
    reference_tail,
)
from tests.parity.cases import CASES

pytestmark = pytest.mark.parity

LONG = [name for name, case in CASES.items() if case.long]
# The float64 implementation knows no dense layers between sparse ones and no YaRN entry without its length.
UNPUBLISHED = {"qwen3_moe_mixed", "qwen3_moe_fused", "gpt_oss_attention_factor"}


@pytest.mark.parametrize("name", CASES)
def test_up_to_100_tokens_match_transformers(bench: Bench, name: str):
    ids = random_ids(name, 100)
    expected = reference_log_probabilities(bench.reference(name), ids)
    assert difference(macmoe_log_probabilities(bench.model(name), ids), expected) <= SHORT_GATE


@pytest.mark.parametrize("length", [1500, pytest.param(5000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", LONG)
def test_the_last_256_of_many_positions_match_transformers(bench: Bench, name: str, length: int):
    ids = random_ids(name, length)
    expected = reference_tail(bench.reference(name), ids, 256)
    assert difference(macmoe_tail(bench.model(name), ids, 256), expected) <= LONG_GATE


@pytest.fixture
def spec_numpy(shared: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(shared / "reference")
    return pytest.importorskip("spec_numpy")


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNPUBLISHED])
def test_up_to_100_tokens_match_a_float64_implementation(bench: Bench, spec_numpy: ModuleType, name: str):
    ids = random_ids(name, 100)
    tensors, config = spec_numpy.load(bench.folder(name) / "plain")
    expected = log_probabilities(spec_numpy.forward(ids, tensors, config))
    assert difference(macmoe_log_probabilities(bench.model(name), ids), expected) <= SHORT_GATE


def test_the_gate_catches_dropped_groups_filled_with_zero(bench: Bench, spec_numpy: ModuleType):
    name = "deepseek_negative_bias"
    ids = random_ids(name, 100)
    tensors, config = spec_numpy.load(bench.folder(name) / "plain")
    wrong = log_probabilities(spec_numpy.forward(ids, tensors, config, {"group_fill": 0.0}))
    assert difference(macmoe_log_probabilities(bench.model(name), ids), wrong) > 100 * SHORT_GATE
