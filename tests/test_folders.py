"""Folders that people have are read, or refused for the true cause."""

import json
from pathlib import Path

import pytest

from tests.bench.folders import judge

REAL = Path(__file__).resolve().parents[2] / "shared" / "real_configs"
EXPECTED = json.loads((REAL / "expected.json").read_text()) if REAL.is_dir() else {}
# The true cause, in a word of the message.
CAUSES = {
    "06_qwen3_32b_fp8_static": "ModelOpt",
    "18_kimi_k2": "model_type 'kimi_k2'",
    "19_deepseek_v3_2": "model_type 'deepseek_v32'",
    "78_awq_0_6b": "AWQ",
    "80_gptq_8b": "GPTQ",
    "82_bnb_0_6b": "bitsandbytes",
}


@pytest.mark.skipif(not EXPECTED, reason="the genuine configurations lie beside the repository")
@pytest.mark.parametrize(("name", "expected"), EXPECTED.items(), ids=EXPECTED)
def test_a_genuine_folder_is_judged_as_it_should_be(name, expected):
    verdict = judge(REAL / name)
    assert verdict.read == (expected["verdict"] == "read"), verdict
    if "millions" in expected:
        assert verdict.millions == pytest.approx(expected["millions"], rel=1e-4)
    assert CAUSES.get(name, "") in verdict.why
    assert "did you mean" not in verdict.why
    assert "\n" not in verdict.why


def test_a_folder_without_any_configuration_is_refused(tmp_path):
    assert "no configuration" in judge(tmp_path).why


def test_a_setting_that_makes_no_sense_is_a_refusal(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "top_p": 7}')
    assert not judge(tmp_path).read


def test_yarn_by_hand_is_seen_in_the_longest_context(tmp_path):
    config = json.loads((Path(__file__).parents[1] / "macmoe/assets/configs/qwen3-0.6b.json").read_text())
    config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert judge(tmp_path).longest == 131072
