"""A byte order mark at the beginning of a file, as some editors write it, is no text of it."""

from __future__ import annotations

import codecs

import pytest

from macmoe.config import load_json
from macmoe.tuning.config import read_run


def test_the_first_command_of_a_piped_chat_is_one(macmoe):
    result = macmoe("chat", stdin=codecs.BOM_UTF8 + b"/thinking off\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "thinking: off\n")


@pytest.mark.parametrize("options", [("-",), ("--file", "{path}")])
def test_a_text_is_scored_without_it(macmoe, tmp_path, options):
    text = b"What is 17 + 25?"
    (tmp_path / "text").write_bytes(codecs.BOM_UTF8 + text)
    options = [option.format(path=tmp_path / "text") for option in options]
    stdin = codecs.BOM_UTF8 + text if "-" in options else b""
    marked = macmoe("score", "tiny:qwen3", *options, stdin=stdin)
    assert marked.stdout == macmoe("score", "tiny:qwen3", text.decode()).stdout


def test_settings_and_json_are_read_without_it(tmp_path):
    (tmp_path / "a.json").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}')
    assert load_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "run.toml").write_bytes(codecs.BOM_UTF8 + b'model = "m"\ndata = "d"\n')
    assert read_run(tmp_path / "run.toml", {}).model == "m"
