"""`macmoe convert`: what it writes, what it says, what it leaves alone."""

from __future__ import annotations

import json
import re
import shutil

import mlx.core as mx
import pytest

from macmoe.location import ASSETS
from tests.conftest import ROOT

HUB = ROOT / "tests" / "assets" / "hub"
ASK = ("generate", "What is 17 + 25?", "--temperature", "0", "--json", "--model")


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "deepseek_v3"])
def test_converted_model_answers_as_its_source(macmoe, tmp_path, family):
    out = tmp_path / "out"
    result = macmoe("convert", str(HUB / family), "--out", str(out))
    assert (result.exit_code, result.stdout) == (0, "")
    *said, report = result.stderr.splitlines()
    assert len(said) == (family == "deepseek_v3")  # its prediction layer repeats two matrices
    assert re.fullmatch(
        rf"{re.escape(str(out))}: \d+ tensors, \d\.\d\d MiB in, \d\.\d\d MiB out, \d+\.\d\d bits per weight, "
        r"peak memory \d+\.\d\d .iB, \d+\.\d s",
        report,
    )
    before, after = (json.loads(macmoe(*ASK, str(folder)).stdout) for folder in (HUB / family, out))
    assert before["answer"] == after["answer"] != ""
    assert before["thinking"] == after["thinking"]


def rows_of(text):
    return dict(re.split(r" {2,}", line.strip()) for line in text.splitlines())


def test_dry_run_describes_the_result_and_writes_nothing(macmoe, tmp_path):
    source, out = HUB / "gpt_oss", tmp_path / "out"
    result = macmoe("convert", str(source), "--dry-run", "--out", str(out), "--shard-size", "0.5MB")
    assert (result.exit_code, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    rows = rows_of(result.stdout)
    assert rows["model type"] == "gpt_oss"
    assert rows["layout"] == "hub"
    assert rows["matrices in mxfp4 4 bit"] == "8"
    assert rows["free on the disk"].endswith("iB")
    macmoe("convert", str(source), "--out", str(out), "--shard-size", "0.5MB")
    files = list(out.glob("*.safetensors"))
    assert rows["files"] == str(len(files))
    weights = sum(len(path.read_bytes()) for path in files) / 2**20
    assert abs(float(rows["stored"].removesuffix(" MiB")) - weights) < 0.02
    shard = min(path.stat().st_size for path in files)
    assert shard < 600_000


@pytest.mark.parametrize("to", ["hub", "mlx-lm"])
def test_dry_run_describes_the_layout_that_is_asked_for(macmoe, tmp_path, to):
    source, out = HUB / "gpt_oss", tmp_path / "out"
    rows = rows_of(macmoe("convert", str(source), "--dry-run", "--to", to).stdout)
    macmoe("convert", str(source), "--out", str(out), "--to", to)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert rows["tensors"] == str(len(index["weight_map"]))
    assert abs(float(rows["stored"].removesuffix(" MiB")) - index["metadata"]["total_size"] / 2**20) < 0.01


def test_written_folder_is_verified(macmoe, tmp_path):
    out = tmp_path / "out"
    command = ("convert", str(HUB / "qwen3"), "--out", str(out), "--quantize", "4bit", "--verify")
    first = macmoe(*command)
    assert first.exit_code == 0
    *_, proof = first.stderr.splitlines()
    assert proof == f"{out}: 135 source tensors: 21 equal; 114 as close as their packing allows"
    assert macmoe(*command).stderr.splitlines() == [proof]
    file = next(out.glob("*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-1000] ^= 1
    file.write_bytes(raw)
    damaged = macmoe(*command)
    assert damaged.exit_code == 1
    assert "SHA-256" in damaged.stderr


def said(result, out):
    """Return what is said beside the report, without the folder before it."""
    return [line.partition(": ")[2] for line in result.stderr.splitlines() if not line.startswith(f"{out}:")]


def test_a_copy_that_is_left_out_is_said_and_counted(macmoe, tmp_path):
    out = tmp_path / "out"
    result = macmoe("convert", str(tied(tmp_path)), "--out", str(out), "--verify")
    assert result.exit_code == 0
    assert said(result, out) == ["equal copies of other matrices, not kept: 1 (lm_head.weight)"]
    assert result.stderr.splitlines()[-1] == (
        f"{out}: 135 source tensors: 134 equal; "
        "equal copies of others: 1 (lm_head.weight of model.embed_tokens.weight)"
    )


def tied(folder):
    """Write Qwen3 tied, with its embedding once more as head."""
    source = shutil.copytree(HUB / "qwen3", folder / "tied")
    tensors = mx.load(str(source / "model.safetensors"))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return source


def test_every_tensor_that_a_layout_does_without_is_counted(macmoe, tmp_path):
    out = tmp_path / "out"
    result = macmoe("convert", str(HUB / "deepseek_v3"), "--out", str(out), "--to", "mlx-lm", "--verify")
    assert result.exit_code == 0
    assert any(
        "left out, because mlx-lm has no prediction layers (MTP): 122 (" in line for line in said(result, out)
    )
    proof = result.stderr.splitlines()[-1]
    total, equal, copies, left = map(int, re.findall(r"(\d+) (?:source|equal|\(model)", proof))
    assert total == equal + copies + left == len(mx.load(str(HUB / "deepseek_v3" / "model.safetensors")))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((), ("--quantize", "8bit"), "made with keep, not 8bit; verify with the options"),
        (("--quantize", "4bit"), (), "made with 4bit, not keep; verify with the options"),
        (("--to", "mlx-lm"), (), "is not in the layout of macmoe; verify with the --to"),
        ((), ("--to", "hub"), "is not in the layout of hub; verify with the --to"),
        (
            ("--to", "mlx-lm"),
            ("--to", "mlx-lm", "--quantize", "4bit"),
            "made with other options or of another",
        ),
    ],
)
def test_verifying_what_was_made_otherwise_says_how_it_was_made(macmoe, tmp_path, first, second, message):
    out = tmp_path / "out"
    command = ("convert", str(HUB / "qwen3"), "--out", str(out))
    assert macmoe(*command, *first).exit_code == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    result = macmoe(*command, *second, "--verify")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr
    assert "--force" not in result.stderr
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    if "--to" not in first:  # what is no macmoe checkpoint is never replaced
        forced = macmoe(*command, *second, "--verify", "--force")
        assert (forced.exit_code, "source tensors" in forced.stderr) == (0, True)


def test_a_folder_of_another_version_is_verified(macmoe, tmp_path):
    out = tmp_path / "out"
    command = ("convert", str(HUB / "qwen3"), "--out", str(out), "--verify")
    first = macmoe(*command)
    marker = json.loads((out / "macmoe.json").read_text())
    (out / "macmoe.json").write_text(json.dumps(marker | {"macmoe_version": "0.0.1"}))
    assert macmoe(*command).stderr.splitlines() == first.stderr.splitlines()[-1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--quantize", "8bit"),
            r"stay as they are: 26 in affine 4 bit; .*8bit would not.*so this is a copy",
        ),
        (("--to", "hub"), r"decoded to float32, because the hub's layout has no such packing: 114 \("),
        (("--to", "hub"), r"of the source says bfloat16, .* written as float32; .* result says float32"),
    ],
)
def test_what_was_asked_and_does_not_happen_is_said(macmoe, tmp_path, options, message):
    packed, out = tmp_path / "packed", tmp_path / "out"
    macmoe("convert", str(HUB / "qwen3"), "--out", str(packed), "--quantize", "4bit")
    result = macmoe("convert", str(packed), "--out", str(out), *options)
    assert result.exit_code == 0
    assert [line for line in said(result, out) if re.search(message, line)]
    if "hub" in options:
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"


def test_folder_that_is_converted_already_says_so(macmoe, tmp_path):
    result = macmoe("convert", str(ASSETS / "qwen3"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "is a macmoe checkpoint already" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["0", "5 apples", "-1GB", "0.0001B"])
def test_size_that_is_none_is_wrong_usage(macmoe, size):
    result = macmoe("convert", str(HUB / "qwen3"), "--dry-run", "--shard-size", size)
    assert result.exit_code == 2
    assert "is no size such as 5GB" in result.stderr


def test_recipe_packs_plain_matrices(macmoe, tmp_path):
    out = tmp_path / "out"
    macmoe("convert", str(HUB / "qwen3"), "--out", str(out), "--quantize", "8bit")
    assert json.loads((out / "config.json").read_text())["quantization"]["bits"] == 8
    plain = sum(path.stat().st_size for path in (ASSETS / "qwen3").glob("*.safetensors"))
    packed = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert packed < 0.7 * plain


def test_force_replaces_the_folder(macmoe, tmp_path):
    out = tmp_path / "out"
    assert macmoe("convert", str(HUB / "qwen3"), "--out", str(out)).exit_code == 0
    (out / "leftover").touch()
    assert macmoe("convert", str(HUB / "qwen3"), "--out", str(out)).exit_code == 1
    assert macmoe("convert", str(HUB / "qwen3"), "--out", str(out), "--force").exit_code == 0
    assert not (out / "leftover").exists()


def test_interruption_says_how_to_continue(macmoe, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("macmoe_converters.Conversion.write", stop)
        result = macmoe("convert", str(HUB / "qwen3"), "--out", str(out))
    assert result.exit_code == 130
    assert result.stderr == f"{out}: stopped; the same command with --resume continues\n"


def test_adapter_and_gguf_are_called_by_their_name(macmoe, tmp_path):
    (tmp_path / "model.gguf").touch()
    result = macmoe("convert", str(tmp_path / "model.gguf"), "--dry-run")
    assert result.exit_code == 1
    assert "GGUF, the format of llama.cpp" in result.stderr
