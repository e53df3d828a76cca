"""`macmoe score`: figures of a text, of token ids, and of two models."""

from __future__ import annotations

import json
import math

import pytest

import macmoe as package
from tests.conftest import ROOT

HUB = ROOT / "tests" / "assets" / "hub" / "qwen3"
TEXT = "What is 17 + 25? The answer is 42."


@pytest.fixture(scope="module")
def tokens():
    return package.load("tiny:qwen3").tokenizer.encode(TEXT)


def test_table_and_json_agree(macmoe, tokens):
    table = macmoe("score", "tiny:qwen3", TEXT)
    figures = json.loads(macmoe("score", "tiny:qwen3", TEXT, "--json").stdout)
    assert (table.exit_code, table.stderr) == (0, "")
    assert [line.rsplit(maxsplit=1) for line in table.stdout.splitlines()] == [
        ["tokens", str(len(tokens))],
        ["log probability", f"{figures['log_probability']:.6g}"],
        ["perplexity", f"{figures['perplexity']:.6g}"],
    ]
    assert figures["tokens"] == tokens
    assert len(figures["logprobs"]) == len(tokens) - 1
    assert figures["log_probability"] == pytest.approx(sum(figures["logprobs"]))
    assert figures["perplexity"] == pytest.approx(math.exp(-sum(figures["logprobs"]) / (len(tokens) - 1)))


@pytest.mark.parametrize("form", [json.dumps, lambda ids: "\n".join(map(str, ids))], ids=["json", "lines"])
def test_token_ids_in_a_file_score_as_their_text(macmoe, tokens, tmp_path, form):
    path = tmp_path / "ids"
    path.write_text(form(tokens))
    expected = macmoe("score", "tiny:qwen3", TEXT).stdout
    assert macmoe("score", "tiny:qwen3", "--tokens", str(path)).stdout == expected
    assert macmoe("score", "tiny:qwen3", "--tokens", "-", stdin=form(tokens)).stdout == expected


def test_text_comes_from_standard_input(macmoe):
    first, second = "What is 17 + 25?", "The answer is 42."
    expected = macmoe("score", "tiny:qwen3", f"{first}\n\n{second}").stdout
    assert macmoe("score", "tiny:qwen3", first, stdin=second).stdout == expected
    for arguments in (["-"], []):
        assert macmoe("score", "tiny:qwen3", *arguments, stdin=f"{first}\n\n{second}").stdout == expected


def test_a_model_agrees_with_itself(macmoe):
    result = macmoe("score", "tiny:qwen3", TEXT, "--against", "tiny:qwen3", "--json")
    figures = json.loads(result.stdout)
    assert figures["mean_divergence"] == figures["largest_divergence"] == 0
    assert figures["top_1_agreement"] == 1
    assert figures["other_perplexity"] == figures["perplexity"]


def test_one_token_has_nothing_to_score(macmoe):
    result = macmoe("score", "tiny:qwen3", "7")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        result.stderr
        == "error: a text needs two tokens or more: the first is given, the others are predicted\n"
    )


def test_text_in_a_file_scores_as_the_text(macmoe, tmp_path):
    (tmp_path / "text").write_text(TEXT)
    found = macmoe("score", "tiny:qwen3", "--file", str(tmp_path / "text")).stdout
    assert found == macmoe("score", "tiny:qwen3", TEXT).stdout
    (tmp_path / "text").write_bytes(b"\xff\xfe\xfa")
    refused = macmoe("score", "tiny:qwen3", "--file", str(tmp_path / "text"))
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "is not UTF-8" in refused.stderr
    assert macmoe("score", "tiny:qwen3", TEXT, "--file", str(tmp_path / "text")).exit_code == 2


def test_a_model_is_compared_with_its_packed_form(macmoe, tmp_path):
    packed = tmp_path / "packed"
    converted = macmoe("convert", str(HUB), "--out", str(packed), "--quantize", "experts3-rest8")
    assert converted.exit_code == 0
    figures = json.loads(macmoe("score", str(packed), TEXT, "--against", str(HUB), "--json").stdout)
    assert figures["perplexity_ratio"] == pytest.approx(figures["perplexity"] / figures["other_perplexity"])
    assert figures["mean_divergence"] > 0
