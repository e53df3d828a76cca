"""Damaged models and unsuitable prompts: one line on stderr, exit code 1, no output, nothing left behind."""

from __future__ import annotations

import json
import shutil
import struct

import mlx.core as mx
import pytest

from macmoe.location import ASSETS, BUILT_IN
from tests.conftest import ROOT

HUB = ROOT / "tests" / "assets" / "hub"
WEIGHTS = "model.safetensors"


def read_header(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path, header, body):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    tensors = mx.load(str(folder / WEIGHTS))
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(str(folder / WEIGHTS), tensors, {"format": "pt"})


def truncate(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def overlap(folder):
    header, body = read_header(folder / WEIGHTS)
    names = [name for name in header if name.endswith("norm.weight")]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    write_header(folder / WEIGHTS, header, body)


def lie_about_the_header(folder):
    path = folder / WEIGHTS
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def reshape(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": mx.ones((4, 4))}))


def remove(folder):
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))


def add(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.surprise.weight": mx.ones((4,))}))


def leave_the_folder(folder):
    outside = folder.parent / "outside.safetensors"
    shutil.copy(folder / WEIGHTS, outside)
    header, _ = read_header(outside)
    index = {"weight_map": {name: f"../{outside.name}" for name in header if name != "__metadata__"}}
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def only_pickles(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def invalid_json(folder):
    (folder / "config.json").write_text('{"model_type": ')


def other_family(folder):
    edit_config(folder, model_type="llama")


def unknown_key(folder):
    edit_config(folder, num_layers=3)


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


# What is wrong with the folder: how it gets that way, and what the line says.
DAMAGE = {
    "truncated": (truncate, WEIGHTS),
    "overlapping": (overlap, "overlap"),
    "header beyond the file": (lie_about_the_header, WEIGHTS),
    "wrong shape": (reshape, "model.norm.weight"),
    "missing tensor": (remove, "model.norm.weight"),
    "extra tensor": (add, "model.surprise.weight"),
    "index leaves the folder": (leave_the_folder, "../outside.safetensors"),
    "only pickles": (only_pickles, "safetensors"),
    "invalid JSON": (invalid_json, "config.json: invalid JSON at line 1"),
    "other family": (other_family, "model_type 'llama' is not supported"),
    "unknown key": (unknown_key, "unknown key 'num_layers'; did you mean 'num_hidden_layers'?"),
}
COMMANDS = {
    "generate": ("generate", "What is 17 + 25?", "--model", "{folder}"),
    "score": ("score", "{folder}", "What is 17 + 25?"),
    "convert": ("convert", "{folder}", "--out", "{out}"),
}


@pytest.fixture
def folder(tmp_path):
    """Return a copy of a tiny checkpoint as the hub has it."""
    return shutil.copytree(HUB / "qwen3", tmp_path / "model")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_unusable_model_is_one_line(macmoe, folder, tmp_path, damage, words, command):
    damage(folder)
    before = sorted(tmp_path.iterdir())
    result = macmoe(*(part.format(folder=folder, out=tmp_path / "out") for part in command))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert "bug" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["generate", "score"])
def test_model_without_tokenizer_is_one_line(macmoe, folder, command):
    no_tokenizer(folder)
    result = macmoe(*(part.format(folder=folder) for part in COMMANDS[command]))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "tokenizer.json" in result.stderr


def test_a_damaged_tokenizer_is_not_converted(macmoe, folder, tmp_path):
    (folder / "tokenizer.json").write_text("{")
    result = macmoe(*(part.format(folder=folder, out=tmp_path / "out") for part in COMMANDS["convert"]))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{folder}/tokenizer.json: not a tokenizer" in result.stderr
    assert list(tmp_path.iterdir()) == [folder]


def test_a_missing_tokenizer_is_a_warning_of_a_conversion(macmoe, folder, tmp_path, caplog):
    no_tokenizer(folder)
    result = macmoe(*(part.format(folder=folder, out=tmp_path / "out") for part in COMMANDS["convert"]))
    assert result.exit_code == 0
    assert caplog.messages == [f"{folder}: no tokenizer.json, without which it answers nothing"]


def test_nan_weights_are_a_warning_that_names_the_tensor(macmoe, folder, caplog):
    def poison(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")

    edit_weights(folder, poison)
    macmoe("generate", "Hi", "--model", str(folder), "--max-tokens", "1")
    assert [
        r.levelname for r in caplog.records if "model.norm.weight" in r.message and "NaN" in r.message
    ] == ["WARNING"]


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt_is_one_line(macmoe, prompt):
    result = macmoe("generate", prompt)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: the prompt is empty: there is nothing to answer\n"


def test_empty_raw_prompt_is_one_line(macmoe):
    result = macmoe("generate", "--raw", "")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: the prompt is empty: there is nothing to continue\n"


def test_prompt_beyond_the_last_position_is_one_line(macmoe, folder):
    edit_config(folder, max_position_embeddings=16)
    result = macmoe("generate", "What is 17 + 25?" * 10, "--model", str(folder))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "this model knows 16 positions; shorten the prompt" in result.stderr


@pytest.mark.parametrize("command", ["generate", "score", "inspect", "convert"])
def test_unknown_built_in_model_is_one_line(macmoe, tmp_path, command):
    arguments = {
        "generate": ("hi", "--model", "tiny:qwen"),
        "score": ("tiny:qwen", "text"),
        "inspect": ("tiny:qwen",),
        "convert": ("tiny:qwen", "--out", str(tmp_path / "out")),
    }
    result = macmoe(command, *arguments[command])
    assert (result.exit_code, result.stdout) == (1, "")
    names = ", ".join(BUILT_IN)
    assert result.stderr == (
        f"error: tiny:qwen: no such built-in model (there are {names}); did you mean 'tiny:qwen3'?\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_overwritten_without_force(macmoe, folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("data")
    result = macmoe("convert", str(folder), "--out", str(out))
    assert (result.exit_code, result.stdout) == (1, "")
    assert [path.name for path in out.iterdir()] == ["precious"]


@pytest.mark.parametrize("text", ["1 2 x", '{"a": 1}'])
def test_file_without_token_ids_is_one_line(macmoe, tmp_path, text):
    path = tmp_path / "ids.txt"
    path.write_text(text)
    result = macmoe("score", "tiny:qwen3", "--tokens", str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path}: not a list of token ids")


def test_file_of_token_ids_that_is_not_utf8_is_one_line(macmoe, tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes(b"1 2 \xff")
    result = macmoe("score", "tiny:qwen3", "--tokens", str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {path}: is not UTF-8 (invalid start byte at byte 4); convert it first\n"


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_that_does_not_exist_is_refused(macmoe, seed):
    result = macmoe("generate", "Hi", "--seed", str(seed))
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{seed} is not in the range" in result.stderr
    result = macmoe("lora", "train", "--model", "tiny:qwen3", "--data", "no.jsonl", "--seed", str(seed))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: seed is {seed}; it has to be from 0 to 2**64 - 1\n"


def test_assets_are_there():
    assert {path.name for path in ASSETS.iterdir() if path.is_dir()} == {"configs", *BUILT_IN.values()}
