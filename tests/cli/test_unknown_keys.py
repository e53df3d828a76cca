"""Unknown keys of config.json: refused with a way on, and named in a warning where that way is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import macmoe as library
from macmoe.cli import cli
from macmoe.errors import ConfigError

HUB = Path(__file__).parents[1] / "assets" / "hub"
WARNING = "ignored without knowing what they mean: rope_scaling.gain, soft_cap"
COMMANDS = {
    "generate": ["generate", "--model", "FOLDER", "--max-tokens", "1", "Hi"],
    "score": ["score", "FOLDER", "Hi"],
    "inspect": ["inspect", "FOLDER"],
    "convert": ["convert", "FOLDER", "--out", "OUT"],
    "lora plan": ["lora", "plan", "--model", "FOLDER"],
}


@pytest.fixture
def odd(tmp_path):
    folder = shutil.copytree(HUB / "gpt_oss", tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    config |= {"soft_cap": 30.0, "rope_scaling": config["rope_scaling"] | {"gain": 2.0}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_unknown_keys_stop_every_command_that_loads_a_model_unless_they_are_allowed(
    macmoe, odd, tmp_path, arguments, caplog
):
    places = {"FOLDER": str(odd), "OUT": str(tmp_path / "out")}
    arguments = [places.get(each, each) for each in arguments]
    refused = macmoe(*arguments)
    assert refused.exit_code == 1
    assert "unknown keys 'rope_scaling.gain', 'soft_cap'" in refused.stderr
    assert "--allow-unknown-keys" in refused.stderr
    allowed = macmoe(*arguments, "--allow-unknown-keys")
    assert allowed.exit_code == 0, allowed.stderr
    assert WARNING in caplog.text


def test_every_command_that_loads_a_model_has_the_option():
    def options(*path):
        command = cli
        for name in path:
            command = command.get_command(None, name)
        return {name for parameter in command.params for name in parameter.opts}

    lora = ("train", "plan", "distill", "examine", "fuse", "export", "import")
    top = ("generate", "chat", "convert", "inspect", "score", "bench", "doctor")
    for path in [(name,) for name in top] + [("lora", name) for name in lora]:
        assert "--allow-unknown-keys" in options(*path), path


def test_python_has_the_same_way(odd, caplog):
    with pytest.raises(ConfigError, match="unknown keys"):
        library.load(odd)
    assert library.load(odd, allow_unknown_keys=True).family.name == "gpt_oss"
    assert WARNING in caplog.text


def test_a_file_of_another_sampler_stops_nothing_that_samples_nothing(macmoe, tmp_path):
    folder = shutil.copytree(HUB / "qwen3", tmp_path / "model")
    (folder / "generation_config.json").write_text('{"typical_p": 0.9, "top_k": "many"}')
    assert macmoe("score", str(folder), "Hi").exit_code == 0
    assert macmoe("inspect", str(folder)).exit_code == 0
    assert macmoe("convert", str(folder), "--out", str(tmp_path / "out")).exit_code == 0
    refused = macmoe("generate", "--model", str(folder), "Hi")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "'top_k' is 'many'" in refused.stderr


def test_a_way_to_search_is_replaced_with_a_warning(macmoe, tmp_path, caplog):
    folder = shutil.copytree(HUB / "qwen3", tmp_path / "model")
    (folder / "generation_config.json").write_text('{"num_beams": 4, "eos_token_id": 616}')
    asked = ["generate", "--model", str(folder), "--max-tokens", "3", "What is 17 + 25?"]
    result = macmoe(*asked)
    assert result.exit_code == 0
    assert "num_beams = 4, which macmoe does not do; the most probable token is taken" in caplog.text


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "deepseek_v3"])
def test_raw_text_ends_without_a_generation_config(tmp_path, family):
    folder = shutil.copytree(HUB / family, tmp_path / family)
    (folder / "generation_config.json").unlink()
    session = library.load(folder)
    end = json.loads((folder / "config.json").read_text())["eos_token_id"]
    assert end in session.defaults.stop_ids
    if family == "deepseek_v3":  # which ends soonest
        *_, stats = session.complete("17 + 25 =", max_tokens=100)
        assert stats.stop_reason == "stop"
