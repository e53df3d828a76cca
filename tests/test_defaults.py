"""generation_config.json: the published files are read, and what would be ignored is refused."""

from __future__ import annotations

import json
import math

import pytest

from macmoe.defaults import IGNORED, NEUTRAL, Defaults
from macmoe.errors import ConfigError
from macmoe.sampling import SamplingOptions

VOCAB = 300_000
# As published: Qwen3, its base models, gpt-oss, DeepSeek-R1.
QWEN3 = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "transformers_version": "4.51.0",
}
QWEN3_BASE = {"bos_token_id": 151643, "do_sample": False, "eos_token_id": 151643, "max_new_tokens": 2048}
GPT_OSS = {
    "bos_token_id": 199998,
    "do_sample": True,
    "eos_token_id": [200002, 199999, 200012],
    "pad_token_id": 199999,
    "transformers_version": "4.55.0.dev0",
}
DEEPSEEK = {
    "_from_model_config": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "transformers_version": "4.39.3",
}


def read(folder, asked):
    (folder / "config.json").write_text(json.dumps({"vocab_size": VOCAB}))
    (folder / "generation_config.json").write_text(json.dumps(asked))
    return Defaults.read(folder)


@pytest.mark.parametrize(
    ("asked", "sampling", "stop_ids"),
    [
        (QWEN3, SamplingOptions(temperature=0.6, top_k=20, top_p=0.95), {151645, 151643}),
        (QWEN3_BASE, SamplingOptions(), {151643}),
        (GPT_OSS, SamplingOptions(temperature=1.0), {200002, 199999, 200012}),
        (DEEPSEEK, SamplingOptions(temperature=0.6, top_p=0.95), {1}),
        ({}, SamplingOptions(), set()),
    ],
)
def test_published_files_are_read(tmp_path, asked, sampling, stop_ids):
    assert read(tmp_path, asked) == Defaults(sampling=sampling, stop_ids=frozenset(stop_ids))


def test_a_folder_without_the_file_takes_the_best_token(tmp_path):
    assert Defaults.read(tmp_path) == Defaults(sampling=SamplingOptions(), stop_ids=frozenset())


def test_every_setting_of_transformers_is_used_or_known():
    from transformers import GenerationConfig

    used = {"do_sample", "eos_token_id", "min_p", "temperature", "top_k", "top_p"}
    assert GenerationConfig().to_dict().keys() <= used | IGNORED.keys() | NEUTRAL.keys()


def test_settings_that_change_nothing_are_accepted(tmp_path):
    assert read(tmp_path, NEUTRAL) == read(tmp_path, dict.fromkeys(NEUTRAL)) == read(tmp_path, {})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"repetition_penalty": 1.05}, "'repetition_penalty' is 1.05; only 1.0 is supported"),
        ({"num_beams": 4}, "'num_beams' is 4; only 1 is supported"),
        ({"typical_p": 0.9}, "'typical_p' is 0.9; only 1.0 is supported"),
        ({"suppress_tokens": [7]}, r"'suppress_tokens' is \[7\]; only \[\] is supported"),
        ({"temprature": 0.6}, "unknown key 'temprature'; did you mean 'temperature'"),
        ({"temperature": "0.6"}, "'temperature' is '0.6' where float is needed"),
        ({"do_sample": True, "temperature": math.inf}, "'temperature' is inf where float is needed"),
        ({"do_sample": True, "top_p": 2}, "top_p is 2.0; it has to be above 0 and at most 1"),
        ({"top_k": 20.5}, "'top_k' is 20.5 where int is needed"),
        ({"eos_token_id": "x"}, "'eos_token_id' is 'x' where ids of this model's 300,000 tokens are needed"),
        ({"eos_token_id": [1, True]}, "'eos_token_id' is"),
        ({"eos_token_id": -1}, "'eos_token_id' is -1"),
        ({"eos_token_id": [VOCAB]}, r"'eos_token_id' is \[300000\]"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, asked, message):
    with pytest.raises(ConfigError, match=rf"generation_config\.json: .*{message}"):
        read(tmp_path, asked)
