"""How data sets spell what a record holds. Tables only: a new spelling is a word in one of them."""

from __future__ import annotations

# What a record can hold, by the names that data sets give it.
RECORD_FIELDS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "chat"),
    "prompt": ("prompt", "question", "problem", "query"),
    "completion": ("completion", "response", "answer", "output", "solution"),
    "reasoning": ("reasoning", "reasoning_content", "cot"),
    "text": ("text",),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "thinking": ("thinking", "enable_thinking", "thinking_mode", "reasoning_effort", "effort"),
}

# The forms of a record: the fields that make it one, and those it may have. The first that fits counts.
FORMS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("messages",), ("system", "tools", "thinking")),
    (("prompt", "completion"), ("reasoning", "system", "tools", "thinking")),
    (("prompt",), ("system", "tools", "thinking")),
    (("text",), ()),
)

# What data sets call the fields of a message; `macmoe.chat.history` knows what they share with clients.
MESSAGE_FIELDS: dict[str, tuple[str, ...]] = {
    "role": ("role", "from"),
    "content": ("content", "value"),
    "train": ("train", "loss", "trainable"),
    "weight": ("weight",),
}

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
    "think": "on",
    "no_think": "off",
    "/think": "on",
    "/no_think": "off",
}
