"""What is learned in the formats of models that follow another template than their family."""

from __future__ import annotations

import pytest

from macmoe.chat import Message, ToolCall
from macmoe.chat.deepseek_v3 import DeepSeekFormat
from macmoe.chat.qwen3_coder import Qwen3CoderFormat
from macmoe.errors import DatasetError
from macmoe.tuning.batch import ANSWER, PROMPT, THINKING
from tests.tuning.builders import record, teach, texts

SINCE_FEBRUARY, R1_0528 = (DeepSeekFormat(variant=variant) for variant in ("r1-2025-02", "r1-0528"))


@pytest.mark.parametrize(("chat", "opened"), [(SINCE_FEBRUARY, ""), (R1_0528, "<think>\n")])
def test_empty_thinking_of_r1_is_learned_where_that_is_asked_for(chat, opened):
    (lesson,) = teach("deepseek_v3", record("Q", "A"), chat=chat, empty_thinking="train").lessons
    assert texts("deepseek_v3", lesson.sample)[1] == f"{opened}\n</think>\n\nA<｜end▁of▁sentence｜>"
    with pytest.raises(DatasetError, match="an answer has no reasoning"):
        teach("deepseek_v3", record("Q", "A"), chat=chat)


def test_r1_0528_learns_to_open_its_thinking_itself():
    (lesson,) = teach("deepseek_v3", record("Q", ("R", "A")), chat=R1_0528).lessons
    given, learned = texts("deepseek_v3", lesson.sample)
    assert given == "<｜begin▁of▁sentence｜><｜User｜>Q<｜Assistant｜>"
    assert learned == "<think>\nR\n</think>\n\nA<｜end▁of▁sentence｜>"
    assert set(lesson.sample.kinds) == {PROMPT, THINKING, ANSWER}


def test_qwen3_coder_learns_its_calls_and_nothing_of_declarations_and_results():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = Message("assistant", "", tool_calls=(ToolCall("f", {"a": [1]}),))
    messages = (Message("user", "Q"), call, Message("tool", "R"), Message("assistant", "A"))
    row = record(messages=messages, weights=(0.0, 1.0, 0.0, 1.0), tools=(tool,))
    first, second = teach("qwen3", row, chat=Qwen3CoderFormat()).lessons
    assert texts("qwen3", first.sample)[1] == (
        "<tool_call>\n<function=f>\n<parameter=a>\n[1]\n</parameter>\n</function>\n</tool_call><|im_end|>"
    )
    assert texts("qwen3", second.sample)[1] == "A<|im_end|>"
    assert set(first.sample.kinds) | set(second.sample.kinds) == {PROMPT, ANSWER}
