"""Short names of the published models: which repository of the hub each means, and which shape it has.

A name is the last part of a repository's id in lower case ("qwen3-30b-a3b-thinking-2507"), or a shorter one
of `ALIASES`. Shapes are files of macmoe/assets/configs, so that a model can be described before it is
downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
UE8M0 = FP8 | {"scale_fmt": "ue8m0"}  # scales that are powers of two, which MXFP8 keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published model.

    Attributes:
        repo: Its repository.
        shape: Name of the packaged configuration whose shapes it has.
        changes: Keys of config.json that differ from that one.
    """

    repo: str
    shape: str
    changes: Mapping[str, Any] = field(default_factory=dict)


# owner -> repository -> shape.
REPOS: dict[str, dict[str, str]] = {
    "openai": {
        "gpt-oss-20b": "gpt-oss-20b",
        "gpt-oss-120b": "gpt-oss-120b",
        "gpt-oss-safeguard-20b": "gpt-oss-20b",
        "gpt-oss-safeguard-120b": "gpt-oss-120b",
    },
    "Qwen": {
        "Qwen3-0.6B": "qwen3-0.6b",
        "Qwen3-1.7B": "qwen3-1.7b",
        "Qwen3-4B": "qwen3-4b",
        "Qwen3-8B": "qwen3-8b",
        "Qwen3-14B": "qwen3-14b",
        "Qwen3-32B": "qwen3-32b",
        "Qwen3-30B-A3B": "qwen3-30b-a3b",
        "Qwen3-235B-A22B": "qwen3-235b-a22b",
        "Qwen3-4B-Instruct-2507": "qwen3-4b-2507",
        "Qwen3-4B-Thinking-2507": "qwen3-4b-2507",
        "Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b-2507",
        "Qwen3-30B-A3B-Thinking-2507": "qwen3-30b-a3b-2507",
        "Qwen3-235B-A22B-Instruct-2507": "qwen3-235b-a22b-2507",
        "Qwen3-235B-A22B-Thinking-2507": "qwen3-235b-a22b-2507",
        "Qwen3-Coder-30B-A3B-Instruct": "qwen3-30b-a3b-2507",
        "Qwen3-Coder-480B-A35B-Instruct": "qwen3-coder-480b-a35b",
    },
    "deepseek-ai": {
        "DeepSeek-V3": "deepseek-v3",
        "DeepSeek-V3-Base": "deepseek-v3",
        "DeepSeek-V3-0324": "deepseek-v3",
        "DeepSeek-R1": "deepseek-v3",
        "DeepSeek-R1-Zero": "deepseek-v3",
        "DeepSeek-R1-0528": "deepseek-v3",
        "DeepSeek-V3.1": "deepseek-v3",
        "DeepSeek-V3.1-Base": "deepseek-v3",
        "DeepSeek-V3.1-Terminus": "deepseek-v3",
        "DeepSeek-R1-0528-Qwen3-8B": "qwen3-8b",
    },
}
# Base models of Qwen3, whose contexts are shorter.
BASES = ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B", "Qwen3-14B", "Qwen3-30B-A3B")
R1_POSITIONS: dict[str, Any] = {
    "max_position_embeddings": 131072,
    # YaRN without its scaling of cos and sin: the published attn_factor takes it back.
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "attention_factor": 1.0,
    },
}
# The end of a repository's name -> what its config.json has of its own.
CHANGES: dict[str, dict[str, Any]] = {
    "-Base": {"max_position_embeddings": 32768},
    "-FP8": {"quantization_config": FP8},
    "DeepSeek-R1-0528-Qwen3-8B": R1_POSITIONS,
    "DeepSeek-V3-Base": {},
    "DeepSeek-V3.1": {"quantization_config": UE8M0},
    "DeepSeek-V3.1-Base": {"quantization_config": UE8M0},
    "DeepSeek-V3.1-Terminus": {"quantization_config": UE8M0},
}
# Shorter names -> names.
ALIASES = {
    "gpt-oss": "gpt-oss-20b",
    "qwen3-30b": "qwen3-30b-a3b",
    "qwen3-235b": "qwen3-235b-a22b",
    "qwen3-4b-2507": "qwen3-4b-instruct-2507",
    "qwen3-30b-a3b-2507": "qwen3-30b-a3b-instruct-2507",
    "qwen3-235b-a22b-2507": "qwen3-235b-a22b-instruct-2507",
    "qwen3-coder": "qwen3-coder-30b-a3b-instruct",
    "qwen3-coder-30b": "qwen3-coder-30b-a3b-instruct",
    "qwen3-coder-30b-a3b": "qwen3-coder-30b-a3b-instruct",
    "qwen3-coder-480b": "qwen3-coder-480b-a35b-instruct",
    "qwen3-coder-480b-a35b": "qwen3-coder-480b-a35b-instruct",
}


def _published(owner: str, name: str, shape: str) -> Published:
    ends = (end for end in sorted(CHANGES, key=len, reverse=True) if name.endswith(end))
    return Published(repo=f"{owner}/{name}", shape=shape, changes=CHANGES.get(next(ends, ""), {}))


def _table() -> dict[str, Published]:
    qwen = REPOS["Qwen"]
    rows = [(owner, name, shape) for owner, repos in REPOS.items() for name, shape in repos.items()]
    rows += [("Qwen", f"{name}-Base", qwen[name]) for name in BASES]
    rows += [("Qwen", f"{name}-FP8", shape) for name, shape in qwen.items()]
    return {name.lower(): _published(owner, name, shape) for owner, name, shape in rows}


PUBLISHED = _table()
_BY_REPO = {model.repo.lower(): model for model in PUBLISHED.values()}


def published(name: str) -> Published | None:
    """Return the published model of a short name or a repository, in any case; None: it is none of them."""
    key = name.lower()
    return _BY_REPO.get(key) or PUBLISHED.get(ALIASES.get(key, key))


def known_names() -> list[str]:
    """Return all short names."""
    return sorted({*PUBLISHED, *ALIASES})
