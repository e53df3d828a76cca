"""Text to ids and back: what users type stays text, and streams never cut a character."""

from __future__ import annotations

import functools
import json
import unicodedata
from dataclasses import dataclass

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, pre_tokenizers

from macmoe import tokenizer as module
from macmoe.errors import CheckpointError, UsageError
from macmoe.tokenizer import Tokenizer
from tests.vocabularies import REAL, real, real_backend, small, small_backend

BACKENDS = {f"small {family}": (small_backend, family) for family in ("qwen3", "gpt_oss", "deepseek_v3")}
BACKENDS |= {name: (real_backend, name) for name in REAL}


@dataclass(frozen=True)
class Part:
    text: str
    control: bool
    trainable: bool = False


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request) -> tokenizers.Tokenizer:
    make, name = BACKENDS[request.param]
    return make(name)


@pytest.fixture(scope="module")
def tokenizer(backend) -> Tokenizer:
    return Tokenizer(backend)


def texts_with(backend: tokenizers.Tokenizer) -> st.SearchStrategy[str]:
    """Return texts full of token strings, whole and cut."""
    tokens = sorted(token.content for token in backend.get_added_tokens_decoder().values())[:60]
    pieces = st.sampled_from(tokens) | st.sampled_from([token[1:] for token in tokens]) | st.text(max_size=6)
    return st.lists(pieces, max_size=8).map("".join)


@settings(deadline=None)
@given(data=st.data())
def test_text_never_becomes_a_control_token(backend, tokenizer, data):
    text = data.draw(texts_with(backend))
    ids = tokenizer.encode(text)
    assert not set(ids) & set(backend.get_added_tokens_decoder())
    assert tokenizer.decode(ids) in (text, unicodedata.normalize("NFC", text))


@settings(deadline=None)
@given(data=st.data())
def test_control_text_is_encoded_like_the_library_does(backend, tokenizer, data):
    text = data.draw(texts_with(backend))
    assert tokenizer.encode(text, control=True) == backend.encode(text, add_special_tokens=False).ids


@settings(deadline=None)
@given(data=st.data())
def test_stream_of_tokens_joins_to_the_decoded_whole(backend, tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 300), max_size=12))
    stream = tokenizer.detokenizer()
    pieces = [stream.add(token_id) for token_id in ids] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids) == backend.decode(ids, skip_special_tokens=False)
    assert stream.finish() == ""


@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_stream_shows_no_broken_character_on_the_way(text):
    tokenizer = small("gpt_oss")
    stream = tokenizer.detokenizer()
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += stream.add(token_id)
        assert text.startswith(shown)
    assert shown == text


def test_alphabet_is_the_library_s():
    assert set(module._BYTES) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(module._BYTES.values()) == list(range(256))


WORDS = [
    AddedToken("[ENT]"),
    AddedToken("<sku>", normalized=False),
    AddedToken("sku", single_word=True),
    AddedToken("é", normalized=True),
    AddedToken("[L]", lstrip=True),
    AddedToken("[R]", rstrip=True, normalized=False),
    AddedToken("Hello", normalized=False),
]


def with_words(family="qwen3", **options) -> Tokenizer:
    """Return the small vocabulary of a family to which a fine-tune has added words."""
    backend = tokenizers.Tokenizer.from_str(small_backend(family).to_str())
    backend.add_special_tokens(["[SEP]"])
    backend.add_tokens(WORDS)
    return Tokenizer(backend, **options)


@functools.cache
def tuned(family) -> Tokenizer:
    return with_words(family)


PIECES = [word.content for word in WORDS] + [" ", "\n", "a", "e\u0301", "sk", "[", "skus", ".", "Hell"]


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "deepseek_v3"])
@settings(deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_words_that_were_added_are_found_in_text_as_the_library_finds_them(family, text):
    tokenizer = tuned(family)
    ids = tokenizer._backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == ids
    turn = [Part("<|x|>", control=False), Part(text, control=False)]
    assert tokenizer.encode_segments(turn) == tokenizer.encode(f"<|x|>{text}")


def test_special_tokens_of_no_format_are_not_found_in_text():
    tokenizer = with_words(special=["[ENT]"])
    separator, entity = tokenizer.token_id("[SEP]"), tokenizer.token_id("[ENT]")
    assert not {separator, entity} & set(tokenizer.encode("[SEP][ENT]"))
    assert tokenizer.encode("[SEP][ENT]", control=True) == [separator, entity]
    assert tokenizer.encode_segments([Part("[SEP]", control=True)]) == [separator]


@pytest.fixture
def checkpoint(tmp_path):
    """Return a folder with added words, and what its tokenizer_config.json says."""

    def make(**config):
        with_words()._backend.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return make


def test_special_tokens_of_no_format_are_said_once(checkpoint, caplog):
    folder = checkpoint(additional_special_tokens=["[ENT]", "<|im_start|>"])
    for _ in range(2):
        tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.token_id("[ENT]") not in tokenizer.encode("[ENT]")
    (record,) = caplog.records
    assert "no chat format knows the special tokens [SEP], [ENT]; text that spells one" in record.getMessage()


def test_tokens_with_a_role_are_control_tokens_that_need_no_word(checkpoint, caplog):
    roles = {"pad_token": "[SEP]", "eos_token": {"content": "[ENT]", "special": False}}
    tokenizer = Tokenizer.from_folder(checkpoint(**roles))
    assert not {tokenizer.token_id("[SEP]"), tokenizer.token_id("[ENT]")} & set(
        tokenizer.encode("[SEP][ENT]")
    )
    assert tokenizer.encode("<sku>") == [tokenizer.token_id("<sku>")]
    assert not caplog.records


def test_what_a_trainer_left_of_truncation_and_padding_has_no_effect(tmp_path):
    backend = tokenizers.Tokenizer.from_str(small_backend("qwen3").to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=5)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    for control in (True, False):
        assert tokenizer.encode("Hello there", control=control) == small("qwen3").encode("Hello there")
        assert tokenizer.encode("x", control=control) == small("qwen3").encode("x")


def test_text_between_control_tokens_is_encoded_as_a_whole():
    tokenizer = real("gpt_oss")
    parts = [Part("<|start|>user<|message|>", control=True), Part("Hel", control=False)]
    parts += [Part("lo", control=False), Part(" there<|end|>", control=True)]
    assert tokenizer.encode_segments(parts) == tokenizer.encode(
        "<|start|>user<|message|>Hello there<|end|>", control=True
    )


def test_text_to_learn_begins_at_a_token_boundary():
    tokenizer = real("gpt_oss")
    parts = [Part("Hel", control=False), Part("lo", control=False, trainable=True)]
    assert tokenizer.encode_segments(parts) == tokenizer.encode("Hel") + tokenizer.encode("lo")
    assert tokenizer.encode_segments(parts) != tokenizer.encode("Hello")


def test_tokens_are_found_by_their_exact_string():
    tokenizer = small("qwen3")
    assert tokenizer.encode("<think>", control=True) == [tokenizer.token_id("<think>")]
    assert tokenizer.token_id("<thinking>") is None


def test_half_of_a_surrogate_pair_is_refused():
    with pytest.raises(UsageError, match="UTF-16"):
        small("qwen3").encode("a\udc80")


NAMED = json.dumps(
    {
        "chat_template": [
            {"name": "default", "template": "D"},
            {"name": "rag", "template": "R"},
            {"name": "tool_use", "template": "T"},
        ]
    }
)


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, ""),
        ({"tokenizer_config.json": json.dumps({"chat_template": "T"})}, "T"),
        ({"tokenizer_config.json": json.dumps({"chat_template": [{"name": "default"}]})}, ""),
        ({"tokenizer_config.json": json.dumps({"chat_template": "T"}), "chat_template.jinja": "J"}, "J"),
        ({"tokenizer_config.json": NAMED}, "D\nT"),
        ({"tokenizer_config.json": NAMED, "additional_chat_templates/tool_use.jinja": "J"}, "D\nJ"),
        ({"chat_template.jinja": "\ufeffJ", "chat_templates/tool_use.jinja": "J"}, "J"),
        ({"tokenizer_config.json": json.dumps({"chat_template": [{"name": "rag", "template": "R"}]})}, "R"),
        ({"tokenizer_config.json": json.dumps({"chat_template": {"default": "D"}})}, "D"),
        ({"chat_template.json": json.dumps({"chat_template": "P"})}, "P"),
        ({"chat_template.json": json.dumps({"chat_template": "P"}), "tokenizer_config.json": "{}"}, "P"),
        ({"chat_template.jinja": "", "tokenizer_config.json": json.dumps({"chat_template": "T"})}, "T"),
    ],
)
def test_folder_gives_tokenizer_and_template(tmp_path, files, template):
    small_backend("qwen3").save(str(tmp_path / "tokenizer.json"))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.template == template
    assert tokenizer.encode("Hello") == small("qwen3").encode("Hello")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "tokenizer.json: missing"),
        ({"tokenizer.json": "{"}, "tokenizer.json: not a tokenizer"),
        (
            {"tokenizer.json": tokenizers.Tokenizer(tokenizers.models.WordLevel()).to_str()},
            "not a byte-level",
        ),
        ({"tokenizer.json": None, "tokenizer_config.json": "{"}, "tokenizer_config.json: not a JSON object"),
        ({"tokenizer.json": None, "tokenizer_config.json": "[]"}, "tokenizer_config.json: not a JSON object"),
        ({"tokenizer.json": None, "chat_template.json": "{"}, "chat_template.json: not a JSON object"),
        ({"tokenizer.json": None, "chat_template.jinja": b"\xff\xfe"}, "chat_template.jinja: not a text"),
    ],
)
def test_damaged_folder_is_refused_in_one_line(tmp_path, files, message):
    for name, text in files.items():
        content = small_backend("qwen3").to_str() if text is None else text
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as failure:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(failure.value)
