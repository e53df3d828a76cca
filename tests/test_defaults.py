"""generation_config.json: the published files are read, and what cannot be done is said."""

from __future__ import annotations

import json
import math

import pytest

from macmoe.defaults import SEARCH, UNSUPPORTED, USED, Defaults, recommended
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
CODER = {
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
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


def read(folder, asked, fallback=None):
    (folder / "config.json").write_text(json.dumps({"vocab_size": VOCAB}))
    (folder / "generation_config.json").write_text(json.dumps(asked))
    return Defaults.read(folder, None, fallback)


@pytest.mark.parametrize(
    ("asked", "sampling", "stop_ids"),
    [
        (QWEN3, SamplingOptions(temperature=0.6, top_k=20, top_p=0.95), {151645, 151643}),
        (QWEN3_BASE, SamplingOptions(), {151643}),
        (GPT_OSS, SamplingOptions(temperature=1.0), {200002, 199999, 200012}),
        (DEEPSEEK, SamplingOptions(temperature=0.6, top_p=0.95), {1}),
        (CODER, SamplingOptions(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05), {151645}),
        ({"repetition_penalty": 1.05}, SamplingOptions(repetition_penalty=1.05), set()),
        ({"do_sample": True, "top_k": -1}, SamplingOptions(temperature=1.0), set()),
        ({}, SamplingOptions(), set()),
    ],
)
def test_published_files_are_read(tmp_path, asked, sampling, stop_ids):
    assert read(tmp_path, asked) == Defaults(sampling=sampling, stop_ids=frozenset(stop_ids))


RECOMMENDED = {
    "Qwen3": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "Qwen3 Thinking-2507": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "Qwen3 Instruct-2507": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "Qwen3-Coder": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
}


@pytest.mark.parametrize(("model", "options"), RECOMMENDED.items(), ids=RECOMMENDED)
@pytest.mark.parametrize("asked", [None, {"_from_model_config": True, "eos_token_id": 151645}])
def test_where_nothing_is_asked_qwen3_is_sampled_as_its_publisher_recommends(tmp_path, model, options, asked):
    fallback = recommended("qwen3", model)
    assert fallback == SamplingOptions(**options)
    defaults = Defaults.read(tmp_path, None, fallback) if asked is None else read(tmp_path, asked, fallback)
    assert defaults.sampling == fallback


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_other_families_take_the_best_token_then(tmp_path, family):
    fallback = recommended(family, "any")
    assert Defaults.read(tmp_path, None, fallback) == Defaults(
        sampling=SamplingOptions(), stop_ids=frozenset()
    )


class Vocabulary:
    def token_id(self, token):
        return {"<|im_end|>": 151645, "<|endoftext|>": 151643}.get(token)


@pytest.mark.parametrize(
    ("config", "tokenizer", "stop_ids"),
    [
        ({"eos_token_id": 7}, None, {7}),
        ({"eos_token_id": [7, 8]}, {"eos_token": "<|im_end|>"}, {7, 8, 151645}),
        ({}, {"eos_token": {"content": "<|endoftext|>", "special": True}}, {151643}),
        ({"eos_token_id": None}, {"eos_token": None}, set()),
        ({"eos_token_id": 10**9}, {"eos_token": "<unknown>"}, set()),
    ],
)
def test_ends_come_from_the_other_files_where_this_one_names_none(tmp_path, config, tokenizer, stop_ids):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": VOCAB} | config))
    if tokenizer is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert Defaults.read(tmp_path, Vocabulary()).stop_ids == stop_ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    assert Defaults.read(tmp_path, Vocabulary()).stop_ids == stop_ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert Defaults.read(tmp_path, Vocabulary()).stop_ids == {3}


def test_settings_that_change_nothing_are_accepted(tmp_path):
    neutral = SEARCH | UNSUPPORTED
    assert read(tmp_path, neutral) == read(tmp_path, dict.fromkeys(neutral)) == read(tmp_path, {})


def test_every_neutral_value_is_that_of_transformers():
    from transformers import GenerationConfig

    theirs = GenerationConfig().to_dict()
    for key, value in (SEARCH | UNSUPPORTED).items():
        assert theirs.get(key) in (None, value, [], {})
    assert not {key for key in USED if key not in theirs} - {"presence_penalty", "frequency_penalty"}


@pytest.mark.parametrize(
    "asked", [{"trust_remote_code": True}, {"use_model_defaults": True}, {"max_new_tokens": 5, "new": [1]}]
)
def test_what_chooses_no_token_is_passed_over(tmp_path, asked):
    defaults = read(tmp_path, QWEN3 | asked)
    assert defaults == read(tmp_path, QWEN3)
    assert not defaults.remarks()


@pytest.mark.parametrize(
    ("asked", "name"), [({"num_beams": 4}, "num_beams = 4"), ({"penalty_alpha": 0.6}, "penalty_alpha = 0.6")]
)
def test_a_search_is_replaced_and_said(tmp_path, asked, name):
    greedy, sampled = read(tmp_path, asked), read(tmp_path, QWEN3 | asked)
    assert greedy.options({}).temperature == 0
    assert sampled.options({}).temperature == 0.6
    (remark,) = greedy.remarks()
    assert remark.startswith(
        f"generation_config.json asks for {name}, which macmoe does not do; the most probable"
    )
    assert "tokens are sampled instead" in sampled.remarks()[0]


@pytest.mark.parametrize("asked", [{"typical_p": 0.9}, {"suppress_tokens": [7]}, {"no_repeat_ngram_size": 3}])
def test_what_nothing_replaces_needs_the_word_of_the_caller(tmp_path, asked):
    defaults = read(tmp_path, asked)
    for given in ({}, {"seed": 3}, {"temperature": None}):
        with pytest.raises(ConfigError, match=f"asks for {next(iter(asked))} = .*--temperature"):
            defaults.options(given)
    assert defaults.options({"temperature": 0.5}) == SamplingOptions(temperature=0.5)
    assert "leaves out" in defaults.remarks()[0]


def test_stop_texts_are_read(tmp_path):
    assert read(tmp_path, {"stop_strings": ["END", "."]}).stop == ("END", ".")
    assert read(tmp_path, {"stop_strings": "END"}).stop == ("END",)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"temprature": 0.6}, "unknown key 'temprature'; did you mean 'temperature'"),
        ({"do_samples": False}, "unknown key 'do_samples'; did you mean 'do_sample'"),
        ({"temperature": "0.6"}, "'temperature' is '0.6' where float is needed"),
        ({"do_sample": True, "temperature": math.inf}, "'temperature' is inf where float is needed"),
        ({"do_sample": True, "top_p": 2}, "top_p is 2.0; it has to be above 0 and at most 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0.0; it has to be above 0"),
        ({"top_k": 20.5}, "'top_k' is 20.5 where int is needed"),
        ({"stop_strings": [""]}, "'stop_strings' is"),
        ({"eos_token_id": "x"}, "'eos_token_id' is 'x' where ids of this model's 300,000 tokens are needed"),
        ({"eos_token_id": [1, True]}, "'eos_token_id' is"),
        ({"eos_token_id": -1}, "'eos_token_id' is -1"),
        ({"eos_token_id": [VOCAB]}, r"'eos_token_id' is \[300000\]"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, asked, message):
    with pytest.raises(ConfigError, match=rf"generation_config\.json: .*{message}"):
        read(tmp_path, asked)
