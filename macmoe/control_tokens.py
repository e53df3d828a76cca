"""Name the control tokens of the published vocabularies.

Vocabularies call only some of their control tokens special: Qwen3's `<think>` and DeepSeek's `<｜User｜>` are
not. So the names say which added tokens are control tokens; others that are not special are words that
somebody has added for a fine-tune.
"""

from __future__ import annotations

import re

_QWEN3 = (
    *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end"),
    *("quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
    *("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep"),
)
_GPT_OSS = (
    *("startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call"),
    "endofprompt",
)
_DEEPSEEK = (
    *("begin▁of▁sentence", "end▁of▁sentence", "▁pad▁", "User", "Assistant"),
    *("fim▁hole", "fim▁begin", "fim▁end", "search▁begin", "search▁end", "tool▁sep"),
    *(f"tool▁{part}▁{side}" for part in ("calls", "call", "outputs", "output") for side in ("begin", "end")),
)
_TAGS = ("think", "tool_call", "tool_response")
_PUBLISHED = frozenset(
    [
        *(f"<|{name}|>" for name in (*_QWEN3, *_GPT_OSS, "EOT")),
        *(f"<｜{name}｜>" for name in _DEEPSEEK),
        *(f"<{slash}{name}>" for name in _TAGS for slash in ("", "/")),
    ]
)
_NUMBERED = re.compile(r"<\|reserved_\d+\|>|<｜place▁holder▁no▁\d+｜>")


def is_published(token: str) -> bool:
    """Tell whether a token is a control token of a vocabulary as its publisher ships it."""
    return token in _PUBLISHED or _NUMBERED.fullmatch(token) is not None
