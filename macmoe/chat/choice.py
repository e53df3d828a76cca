"""Choose the chat format of a checkpoint: by its tokenizer and its template, not by its architecture.

A model can have learned another family's format: DeepSeek-R1-0528-Qwen3-8B is a Qwen3 with DeepSeek's control
tokens, and Qwen3-Coder calls tools in a way of its own.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from macmoe.chat.deepseek_v3 import DeepSeekFormat
from macmoe.chat.format import ChatFormat
from macmoe.chat.gpt_oss import HarmonyFormat
from macmoe.chat.parser import Vocabulary
from macmoe.chat.qwen3 import Qwen3Format
from macmoe.chat.qwen3_coder import Qwen3CoderFormat
from macmoe.chat.templates import without_comments

_LOG = logging.getLogger(__name__)

FORMATS: dict[str, type[ChatFormat]] = {
    "qwen3": Qwen3Format,
    "gpt_oss": HarmonyFormat,
    "deepseek_v3": DeepSeekFormat,
}


def format_for(family: str, vocabulary: Vocabulary) -> ChatFormat:
    """Return the chat format of a checkpoint; a template that none has is taken for the nearest, and said.

    Raises:
        ChatFormatError: Its vocabulary has the control tokens of no format.
    """
    kind = _kind(FORMATS[family], vocabulary)
    template = without_comments(vocabulary.template)
    if kind is Qwen3Format and "<function=" in template:
        kind = Qwen3CoderFormat
    chat = kind.for_model(vocabulary)
    if isinstance(chat, DeepSeekFormat) and kind is not FORMATS[family] and not template.strip():
        chat = replace(chat, variant="r1-0528")  # of these formats the one that other architectures learned
    if template.strip() and not chat.wording.knows(template):
        _LOG.warning(
            "the chat template of this checkpoint is none that macmoe knows; prompts are written as for "
            "%s%s, which may differ from what the model was trained on",
            chat.model,
            f" ({chat.variant})" if chat.variant else "",
        )
    return chat


def _kind(own: type[ChatFormat], vocabulary: Vocabulary) -> type[ChatFormat]:
    """Return the format whose control tokens the vocabulary, and if there is a choice the template, has."""
    able = [
        kind
        for kind in dict.fromkeys([own, *FORMATS.values()])
        if all(vocabulary.token_id(token) is not None for token in kind.required)
    ]
    named = [kind for kind in able if all(token in vocabulary.template for token in kind.wording.needed)]
    return next(iter([*named, *able]), own)
