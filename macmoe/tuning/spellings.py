"""How data sets spell what a record holds. Tables only: a new spelling is a word in one of them."""

from __future__ import annotations

# What a record can hold, by the names that data sets give it, in lower case.
RECORD_FIELDS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "chat", "dialogue"),
    "prompt": ("prompt", "question", "problem", "query"),
    "completion": ("completion", "response", "answer", "output", "solution", "generated_solution"),
    "reasoning": (
        *("reasoning", "reasoning_content", "reasoning_trace", "cot", "complex_cot", "chain_of_thought"),
        *("thought", "thoughts", "thinking_text", "rationale"),
    ),
    "text": ("text",),
    "system": ("system", "system_prompt", "system_message"),
    "tools": ("tools", "functions"),
    "thinking": ("thinking", "enable_thinking", "thinking_mode", "reasoning_effort", "effort"),
    "instruction": ("instruction", "instructions"),
    "input": ("input", "inputs"),
    "context": ("context",),
    "target": ("target", "targets"),
    "user": ("user", "human"),
    "assistant": ("assistant",),
    "history": ("history",),
}
FIELD_OF = {spelling: name for name, spellings in RECORD_FIELDS.items() for spelling in spellings}

# What says how to read a row and what comes before it; empty, it is absent.
SETTINGS = ("system", "tools", "thinking")
BESIDE = ("reasoning", "history", *SETTINGS)

# The fields that are the question, in this order and a blank line apart, and those that answer it.
QUESTION = ("prompt", "instruction", "input", "context", "user")
ANSWER = ("completion", "assistant", "target")
# Of the first, those whose names can be nothing else.
ASKS = frozenset({"prompt", "instruction", "input"})

# The forms of a record: the fields that make it one, and those it may have. The first that fits counts.
FORMS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("messages",), SETTINGS),
    *((("prompt", answer), BESIDE) for answer in ANSWER),
    *((("instruction", answer), ("input", "context", *BESIDE)) for answer in ANSWER),  # Alpaca, Dolly
    (("input", "completion"), BESIDE),
    (("input", "target"), BESIDE),
    (("user", "assistant"), BESIDE),
    (("prompt",), ("history", *SETTINGS)),
    (("instruction",), ("input", "context", "history", *SETTINGS)),
    (("text",), ()),
)
# What a message about a row of no form names; the others are spellings of these.
MAIN_FORMS = (("messages",), ("prompt", "completion"), ("prompt",), ("text",))
# Beside a question of another form these are more of it, or say it otherwise: no guess which.
RIVALS = ("instruction", "input", "context")

# Two answers to one question, the better one first.
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "rejected"),
)
# Whether an answer was liked, as KTO takes it: true or false.
RATINGS = ("label", "kto_tag")

# What data sets call the fields of a message; `macmoe.chat.history` knows what they share with clients.
MESSAGE_FIELDS: dict[str, tuple[str, ...]] = {
    "role": ("role", "from"),
    "content": ("content", "value"),
    "train": ("train", "loss", "trainable"),
    "weight": ("weight",),
}

# A question and its answer as one item of a conversation.
TURNS = (
    *(("input", "output"), ("human", "assistant"), ("user", "assistant"), ("human", "bot")),
    *(("question", "answer"), ("prompt", "response"), ("instruction", "output")),
)

ROLES: dict[str, str] = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}

# The modes, by the words and values of the fields that name them.
MODES: dict[object, str] = {
    **{mode: mode for mode in ("off", "on", "low", "medium", "high")},
    True: "on",
    False: "off",
    "true": "on",
    "false": "off",
    "think": "on",
    "no_think": "off",
    "/think": "on",
    "/no_think": "off",
}
