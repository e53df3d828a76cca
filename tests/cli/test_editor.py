"""Where the messages of a chat come from: keys that come before the prompt is ready for them."""

from __future__ import annotations

import asyncio

import pytest

from macmoe.cli.editor import agrees, line_editor


@pytest.mark.parametrize("ask", [lambda: line_editor(())("> "), lambda: agrees("Run it? ")])
def test_ctrl_c_before_the_prompt_reads_keys_is_ctrl_c(monkeypatch, tmp_path, ask):
    monkeypatch.setattr("macmoe.cli.editor.history_file", lambda: tmp_path / "history")

    def cancelled(*_):
        raise asyncio.CancelledError

    monkeypatch.setattr("prompt_toolkit.PromptSession.prompt", cancelled)
    with pytest.raises(KeyboardInterrupt):
        ask()
