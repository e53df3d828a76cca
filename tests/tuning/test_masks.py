"""Exactly what the model writes after the prompt of inference is learned: literally, and by golden data."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.chat import Message, ToolCall
from macmoe.chat.deepseek_v3 import DeepSeekFormat
from macmoe.chat.qwen3 import Qwen3Format
from macmoe.errors import DatasetError
from macmoe.tuning.batch import ANSWER, PROMPT, THINKING
from macmoe.tuning.masks import Teacher
from tests.chat.records import arguments_of, family_of, format_of, golden, vectors
from tests.tuning.builders import FORMATS, SOMEWHERE, record, teach, texts
from tests.vocabularies import real, small

HEAD = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
    "Knowledge cutoff: 2024-06\n\nReasoning: {}\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
)
# (family, conversation, the samples it becomes: prompt, what is learned as thinking, what as answer)
CASES = {
    "qwen3, thinking in every turn": (
        "qwen3",
        record("Q1", ("R1", "A1"), "Q2", ("R2", "A2")),
        [
            (
                "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n",
                "<think>\nR1\n</think>",
                "\n\nA1<|im_end|>",
            ),
            (
                (
                    "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
                    "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
                ),
                "<think>\nR2\n</think>",
                "\n\nA2<|im_end|>",
            ),
        ],
    ),
    "qwen3, no thinking": (
        "qwen3",
        record("Q", "A"),
        [
            (
                "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
                "",
                "A<|im_end|>",
            )
        ],
    ),
    "qwen3, both modes in one conversation": (
        "qwen3",
        record("Q1", "A1", "Q2", ("R2", "A2")),
        [
            (
                "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
                "",
                "A1<|im_end|>",
            ),
            (
                (
                    "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
                    "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
                ),
                "<think>\nR2\n</think>",
                "\n\nA2<|im_end|>",
            ),
        ],
    ),
    "qwen3, told not to think by a flag": (
        "qwen3",
        record("Q /no_think", "A"),
        [
            (
                "<|im_start|>user\nQ /no_think<|im_end|>\n<|im_start|>assistant\n",
                "<think>\n\n</think>",
                "\n\nA<|im_end|>",
            )
        ],
    ),
    "gpt_oss, thinking in every turn": (
        "gpt_oss",
        record("Q1", ("R1", "A1"), "Q2", ("R2", "A2"), thinking="high"),
        [
            (
                HEAD.format("high") + "<|start|>user<|message|>Q1<|end|><|start|>assistant",
                "<|channel|>analysis<|message|>R1<|end|>",
                "<|start|>assistant<|channel|>final<|message|>A1<|return|>",
            ),
            (
                HEAD.format("high") + "<|start|>user<|message|>Q1<|end|>"
                "<|start|>assistant<|channel|>final<|message|>A1<|end|>"
                "<|start|>user<|message|>Q2<|end|><|start|>assistant",
                "<|channel|>analysis<|message|>R2<|end|>",
                "<|start|>assistant<|channel|>final<|message|>A2<|return|>",
            ),
        ],
    ),
    "gpt_oss, no thinking": (
        "gpt_oss",
        record("Q", "A"),
        [
            (
                HEAD.format("low") + "<|start|>user<|message|>Q<|end|>"
                "<|start|>assistant<|channel|>final<|message|>",
                "",
                "A<|return|>",
            )
        ],
    ),
    "deepseek, thinking in every turn": (
        "deepseek_v3",
        record("Q1", ("R1", "A1"), "Q2", ("R2", "A2")),
        [
            (
                "<｜begin▁of▁sentence｜><｜User｜>Q1<｜Assistant｜><think>",
                "R1</think>",
                "A1<｜end▁of▁sentence｜>",
            ),
            (
                (
                    "<｜begin▁of▁sentence｜><｜User｜>Q1<｜Assistant｜></think>A1<｜end▁of▁sentence｜>"
                    "<｜User｜>Q2<｜Assistant｜><think>"
                ),
                "R2</think>",
                "A2<｜end▁of▁sentence｜>",
            ),
        ],
    ),
    "deepseek, no thinking": (
        "deepseek_v3",
        record("Q", "A"),
        [("<｜begin▁of▁sentence｜><｜User｜>Q<｜Assistant｜></think>", "", "A<｜end▁of▁sentence｜>")],
    ),
    "deepseek, no thinking in the first of two turns": (
        "deepseek_v3",
        record("Q1", "A1", "Q2", ("R2", "A2")),
        [
            ("<｜begin▁of▁sentence｜><｜User｜>Q1<｜Assistant｜></think>", "", "A1<｜end▁of▁sentence｜>"),
            (
                (
                    "<｜begin▁of▁sentence｜><｜User｜>Q1<｜Assistant｜></think>A1<｜end▁of▁sentence｜>"
                    "<｜User｜>Q2<｜Assistant｜><think>"
                ),
                "R2</think>",
                "A2<｜end▁of▁sentence｜>",
            ),
        ],
    ),
}
# The golden records that teach to ignore the mode they set, or need what no model can write.
REFUSED = {
    "gpt_oss/final_plain/0": "asked to think",
    "gpt_oss/final_plain/2": "asked to think",
    "gpt_oss/call_final_train/1": "asked to think",
    "deepseek_v31/call_final_train/0": "cannot think, after a tool result",
}


def parts_of(family, sample):
    """Return the text of the tokens of each kind, after checking that the kinds stand in order."""
    kinds = list(sample.kinds)
    assert kinds == sorted(kinds)
    assert [kind != PROMPT for kind in kinds] == [weight > 0 for weight in sample.weights]
    by_kind = [
        [token for token, known in zip(sample.tokens, kinds, strict=True) if known == kind]
        for kind in (PROMPT, THINKING, ANSWER)
    ]
    return tuple(small(family).decode(tokens) for tokens in by_kind)


@pytest.mark.parametrize(("family", "conversation", "expected"), CASES.values(), ids=CASES)
def test_supervised_text_is_literally(family, conversation, expected):
    taught = teach(family, conversation)
    assert [parts_of(family, lesson.sample) for lesson in taught.lessons] == expected


def golden_record(data):
    """Return a golden conversation of which the last answer is to be learned."""
    arguments = arguments_of(data)
    messages = tuple(arguments["messages"])
    weights = (0.0,) * (len(messages) - 1) + (1.0,)
    tools = tuple(arguments["tools"])
    return record(messages=messages, weights=weights, tools=tools, thinking=arguments["thinking"])


@pytest.mark.parametrize("data", [param for param in golden() + vectors() if "train" in param.values[0]])
def test_supervised_tokens_are_the_golden_target_after_the_prompt_of_inference(data):
    chat = format_of(data)
    try:
        tokenizer = real(data["family"])
    except pytest.skip.Exception:
        tokenizer = small(family_of(data))
    teacher = Teacher(chat=chat, tokenizer=tokenizer, max_length=10**6)
    conversation = golden_record(data)
    if data["id"] in REFUSED:
        with pytest.raises(DatasetError, match=REFUSED[data["id"]]):
            teacher.teach([conversation])
        return
    (lesson,) = teacher.teach([conversation]).lessons
    *history, answer = conversation.messages
    mode = conversation.thinking or ("on" if answer.reasoning else "off")
    prompt = tokenizer.encode_segments(chat.render(history, tools=conversation.tools, thinking=mode))
    assert lesson.sample.tokens[: len(prompt)] == prompt
    assert tokenizer.decode(lesson.sample.tokens[len(prompt) :]) == data["train"]["target"]
    assert lesson.sample.weights == [0.0] * len(prompt) + [1.0] * (len(lesson.sample.tokens) - len(prompt))


CALL = ToolCall("f", {"a": 1}, id="1")
CALLING = (
    Message("user", "Q"),
    Message("assistant", "", reasoning="R1", tool_calls=(CALL,)),
    Message("tool", "7", tool_call_id="1"),
    Message("assistant", "A", reasoning="R2"),
)
TARGETS_OF_CALLS = {
    "qwen3": [
        '<think>\nR1\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>',
        "<think>\nR2\n</think>\n\nA<|im_end|>",
    ],
    "gpt_oss": [
        (
            "<|channel|>analysis<|message|>R1<|end|><|start|>assistant to=functions.f"
            '<|channel|>commentary <|constrain|>json<|message|>{"a": 1}<|call|>'
        ),
        "<|channel|>analysis<|message|>R2<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>",
    ],
}


@pytest.mark.parametrize("family", TARGETS_OF_CALLS)
def test_a_call_and_the_answer_after_its_result_are_two_samples(family):
    conversation = record(messages=CALLING, weights=(0.0, 1.0, 0.0, 1.0))
    learned = [texts(family, lesson.sample)[1] for lesson in teach(family, conversation).lessons]
    assert learned == TARGETS_OF_CALLS[family]


def test_deepseek_s_reasoning_after_a_tool_result_is_refused_rather_than_lost():
    answers = record(messages=CALLING, weights=(0.0, 0.0, 0.0, 1.0))
    with pytest.raises(DatasetError, match=r"^data.jsonl:1: an answer has reasoning where the model cannot"):
        teach("deepseek_v3", answers)


def test_only_answers_with_a_weight_are_learned_and_with_that_weight():
    conversation = record("Q1", "A1", "Q2", "A2", "Q3", "A3", weights=(0.0, 0.0, 0.0, 0.5, 0.0, 1.0))
    taught = teach("qwen3", conversation)
    assert [texts("qwen3", lesson.sample)[1] for lesson in taught.lessons] == ["A2<|im_end|>", "A3<|im_end|>"]
    assert [max(lesson.sample.weights) for lesson in taught.lessons] == [0.5, 1.0]


THINKING_ONLY = Qwen3Format(variant="thinking")
R1 = DeepSeekFormat(variant="r1")
REFUSALS = {
    "reasoning with thinking off": ("qwen3", {}, record("Q", ("R", "A"), thinking="off"), "thinking off"),
    "reasoning after /no_think": ("qwen3", {}, record("Q /no_think", ("R", "A")), "/no_think was asked"),
    "no reasoning with thinking on": ("qwen3", {}, record("Q", "A", thinking="on"), "asked to think"),
    "no reasoning with high effort": ("gpt_oss", {}, record("Q", "A", thinking="high"), "asked to think"),
    "no reasoning, a model that always thinks": (
        "qwen3",
        {"chat": THINKING_ONLY},
        record("Q", "A"),
        "asked to think",
    ),
    "reasoning, a model that never thinks": (
        "deepseek_v3",
        {"chat": DeepSeekFormat(variant="v3")},
        record("Q", ("R", "A")),
        "no thinking='on'",
    ),
    "an empty answer": ("qwen3", {}, record("Q", " "), "an answer to learn is empty"),
    "no answer": ("qwen3", {}, record("Q"), "nothing in it is to be learned"),
    "no weight": ("qwen3", {}, record("Q", "A", weights=(0.0, 0.0)), "nothing in it is to be learned"),
}


@pytest.mark.parametrize(("family", "options", "bad", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_a_sample_against_its_mode_is_one_line_with_its_place(family, options, bad, reason):
    with pytest.raises(DatasetError, match=f"^data.jsonl:1: .*{reason}") as failure:
        teach(family, bad, **options)
    assert "\n" not in str(failure.value)


def test_bad_samples_are_skipped_and_listed_where_that_is_asked_for():
    taught = teach("qwen3", record("Q", " "), record("Q1", " ", "Q2", "A2"), skip_bad=True)
    assert [texts("qwen3", lesson.sample)[1] for lesson in taught.lessons] == ["A2<|im_end|>"]
    assert taught.rejected == ("data.jsonl:1: an answer to learn is empty",) * 2


EMPTY_BLOCKS = {
    "qwen3, asked to think": ("qwen3", {}, "on", "<think>\n\n</think>\n\nA<|im_end|>"),
    "qwen3 that always thinks": ("qwen3", {"chat": THINKING_ONLY}, None, "\n</think>\n\nA<|im_end|>"),
    "r1": ("deepseek_v3", {"chat": R1}, "on", "\n</think>\n\nA<｜end▁of▁sentence｜>"),
    "gpt_oss": ("gpt_oss", {}, "high", "<|channel|>final<|message|>A<|return|>"),
}


@pytest.mark.parametrize(("family", "options", "thinking", "target"), EMPTY_BLOCKS.values(), ids=EMPTY_BLOCKS)
def test_empty_thinking_is_learned_where_that_is_asked_for(family, options, thinking, target):
    (lesson,) = teach(family, record("Q", "A", thinking=thinking), empty_thinking="train", **options).lessons
    assert texts(family, lesson.sample)[1] == target


@pytest.mark.parametrize("family", FORMATS)
def test_a_long_conversation_loses_its_oldest_turns_and_keeps_its_answer(family):
    conversation = record("Q1 " * 40, "A1", "Q2", ("R2", "A2"), "Q3", "A3 and its end.")
    whole = teach(family, conversation).lessons[-1]
    limit = len(whole.sample.tokens) - 10
    taught = teach(family, conversation, max_length=limit)
    last = taught.lessons[-1]
    shorter = teach(family, record("Q2", ("R2", "A2"), "Q3", "A3 and its end.")).lessons[-1]
    assert last.sample == shorter.sample
    assert (whole.dropped, last.dropped) == (0, 2)


def test_an_answer_whose_end_would_not_fit_is_left_out_and_listed():
    taught = teach("qwen3", record("Q", "A"), record("Q", "A very long answer. " * 30), max_length=60)
    assert len(taught.lessons) == 1
    assert taught.too_long == (SOMEWHERE,)
    with pytest.raises(DatasetError, match="no sample is left: 0 are bad, and 1 are longer than 60 tokens"):
        teach("qwen3", record("Q", "A very long answer. " * 30), max_length=60)


def test_a_flag_that_counts_is_not_cut_away():
    conversation = record("Q1 /no_think", "A1", "Q2 " * 40, "A2")
    limit = len(teach("qwen3", conversation).lessons[-1].sample.tokens) - 5
    taught = teach("qwen3", conversation, max_length=limit)
    assert [lesson.dropped for lesson in taught.lessons] == [0]
    assert len(taught.too_long) == 1


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), length=st.integers(2, 12))
def test_a_plain_text_is_learned_completely_and_once(text, length):
    taught = teach("gpt_oss", record(messages=(), weights=(), text=text), max_length=length)
    samples = [lesson.sample for lesson in taught.lessons]
    tokens = [samples[0].tokens[0], *(token for sample in samples for token in sample.tokens[1:])]
    assert small("gpt_oss").decode(tokens) == f"{text}<|endoftext|>"
    assert all(sample.weights == [0.0] + [1.0] * (len(sample.tokens) - 1) for sample in samples)
    assert max(len(sample.tokens) for sample in samples) <= length


WORDS = st.text("abc <think></>|", min_size=1, max_size=12).filter(str.strip)


@settings(deadline=None, max_examples=60)
@given(
    family=st.sampled_from(list(FORMATS)),
    answers=st.lists(st.tuples(st.none() | WORDS, WORDS), min_size=1, max_size=3),
)
def test_every_sample_is_a_prompt_of_inference_and_an_answer_that_reads_back(family, answers):
    """The parser that reads real outputs finds reasoning and answer again in what is learned."""
    turns = [turn for pair in answers for turn in ("Q", pair if pair[0] else pair[1])]
    conversation = record(*turns)
    try:
        taught = teach(family, conversation)
    except DatasetError:
        return  # text that no answer of the family can hold
    chat, tokenizer = FORMATS[family], small(family)
    assert len(taught.lessons) == len(answers)
    for number, (lesson, (reasoning, _)) in enumerate(zip(taught.lessons, answers, strict=True)):
        history = conversation.messages[: 2 * number + 1]
        prompt = tokenizer.encode_segments(chat.render(history, thinking="on" if reasoning else "off"))
        assert lesson.sample.tokens[: len(prompt)] == prompt
        assert list(lesson.sample.weights) == [float(kind > PROMPT) for kind in lesson.sample.kinds]
        assert (THINKING in lesson.sample.kinds) == bool(reasoning)
        assert ANSWER in lesson.sample.kinds
