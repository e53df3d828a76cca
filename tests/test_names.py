"""Short names of the published models."""

from __future__ import annotations

import pytest

from macmoe.location import locate, suggestion
from macmoe.names import ALIASES, PUBLISHED, known_names, published


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("gpt-oss-20b", "openai/gpt-oss-20b"),
        ("GPT-OSS-Safeguard-120B", "openai/gpt-oss-safeguard-120b"),
        ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B"),
        ("qwen3-30b-a3b-thinking-2507-fp8", "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8"),
        ("qwen3-235b-a22b-2507", "Qwen/Qwen3-235B-A22B-Instruct-2507"),
        ("qwen3-coder-30b-a3b", "Qwen/Qwen3-Coder-30B-A3B-Instruct"),
        ("qwen3-coder-480b-a35b-instruct-fp8", "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"),
        ("qwen3-14b-base", "Qwen/Qwen3-14B-Base"),
        ("deepseek-v3.1", "deepseek-ai/DeepSeek-V3.1"),
        ("deepseek-v3.1-terminus", "deepseek-ai/DeepSeek-V3.1-Terminus"),
        ("deepseek-r1-0528-qwen3-8b", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"),
        ("qwen/qwen3-8b", "Qwen/Qwen3-8B"),
    ],
)
def test_a_name_means_a_repository_in_any_case(name, repo):
    for spelling in (name, name.upper()):
        found = published(spelling)
        assert found is not None
        assert found.repo == repo


def test_names_are_those_of_the_repositories_and_aliases_mean_names():
    assert all(model.repo.split("/")[1].lower() == name for name, model in PUBLISHED.items())
    assert set(ALIASES.values()) <= set(PUBLISHED)
    assert not ALIASES.keys() & PUBLISHED.keys()
    assert published("owner/name") is None


def test_a_name_that_goes_on_is_suggested_before_one_that_is_only_alike():
    assert suggestion("qwen3-30b-a3") == "; did you mean 'qwen3-30b-a3b'?"
    assert suggestion("gpt-oss-21b") == "; did you mean 'gpt-oss-20b'?"
    assert suggestion("nothing of the kind") == ""


def test_a_folder_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("gpt-oss-20b").repo == "openai/gpt-oss-20b"
    (tmp_path / "gpt-oss-20b").mkdir()
    (tmp_path / "gpt-oss-20b" / "config.json").touch()
    assert locate("gpt-oss-20b").repo is None


def test_every_name_is_one_word():
    assert all(name == name.lower() and "/" not in name and ":" not in name for name in known_names())
