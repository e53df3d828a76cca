"""What the help of each command ends with: lines to copy, which a test parses."""

from __future__ import annotations

# Command -> examples. A command that is not here fails a test.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "macmoe chat --model gpt-oss-20b",
        'macmoe generate --model qwen3-30b-a3b "Why is the sky blue?"',
        'git diff | macmoe generate --model gpt-oss-20b "Review this change."',
    ),
    "generate": (
        'macmoe generate --model gpt-oss-20b "What is 17 + 25?"',
        'macmoe generate --thinking low --json "What is 17 + 25?"',
        'git diff | macmoe generate --model gpt-oss-20b "Review this change."',
        "macmoe generate --file question.txt --max-answer-tokens 500",
    ),
    "chat": (
        "macmoe chat --model gpt-oss-20b",
        'macmoe chat --model qwen3-8b --system "Answer in one sentence."',
        "macmoe chat --tool tools.py < questions.txt",
    ),
    "pull": ("macmoe pull gpt-oss-20b", "macmoe pull Qwen/Qwen3-30B-A3B --quantize 4bit"),
    "convert": (
        "macmoe convert Qwen/Qwen3-30B-A3B --out qwen3-4bit --quantize 4bit --verify",
        "macmoe convert qwen3-4bit --out qwen3-mlx --to mlx-lm",
        "macmoe convert Qwen/Qwen3-8B --dry-run --quantize 8bit",
    ),
    "cache": ("macmoe cache list",),
    "cache list": ("macmoe cache list",),
    "cache remove": ("macmoe cache remove Qwen--Qwen3-8B-0123456789ab", "macmoe cache remove --all"),
    "inspect": (
        "macmoe inspect gpt-oss-20b qwen3-30b-a3b deepseek-v3.1",
        "macmoe inspect qwen3-8b --context 8192 --cache-bits 8",
    ),
    "score": (
        'macmoe score tiny:qwen3 "What is 17 + 25? The answer is 42."',
        "macmoe score qwen3-4bit --file text.txt --against Qwen/Qwen3-30B-A3B",
        "cat text.txt | macmoe score qwen3-8b --json",
    ),
    "bench": (
        "macmoe bench qwen3-4bit --context 512 --context 32768",
        "macmoe bench --shape gpt-oss-20b --layers 4 --against mlx-lm",
    ),
    "doctor": ("macmoe doctor", "macmoe doctor --model qwen3-4bit --fresh"),
    "completion": (
        'eval "$(macmoe completion zsh)"',
        "macmoe completion fish > ~/.config/fish/completions/macmoe.fish",
    ),
    "lora": (
        "macmoe lora preview chats.jsonl --model Qwen/Qwen3-30B-A3B",
        "macmoe lora train --model Qwen/Qwen3-30B-A3B --data chats.jsonl --out adapters/chats",
    ),
    "lora preview": (
        "macmoe lora preview chats.jsonl --model tiny:gpt-oss",
        "macmoe lora preview chats.jsonl --samples 0 --json",
    ),
    "lora plan": ("macmoe lora plan --model tiny:gpt-oss --targets attention,experts --rank 4",),
    "lora train": (
        "macmoe lora train --model tiny:qwen3 --data chats.jsonl --out adapters/chats --epochs 2",
        "macmoe lora train --config run.toml --resume",
        "macmoe lora train --model tiny:qwen3 --data chats.jsonl --adapter adapters/chats --out more",
        'macmoe generate --model tiny:qwen3 --adapter adapters/chats "What is 17 + 25?"',
    ),
    "lora export": ("macmoe lora export adapters/chats --model Qwen/Qwen3-30B-A3B --out chats-peft",),
    "lora import": ("macmoe lora import chats-peft --model Qwen/Qwen3-30B-A3B --out adapters/chats",),
    "lora examine": (
        "macmoe lora examine chats.jsonl --model tiny:qwen3 --adapter adapters/chats --verify exact",
    ),
    "lora fuse": ("macmoe lora fuse adapters/chats --model tiny:gpt-oss --out chats-fused --precision base",),
    "lora distill": ("macmoe lora distill chats.jsonl --model tiny:qwen3 --out thoughts.jsonl --tries 8",),
}


def epilog(command: str) -> str:
    """Return the end of a command's help: its examples, each on a line of its own."""
    return "\n".join(["\b", "Examples:", *(f"  {example}" for example in EXAMPLES.get(command, ()))])
