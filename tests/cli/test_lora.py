"""`macmoe lora`: from a data set to an adapter, a fused model, PEFT and back; mistakes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mlx.core as mx
import pytest

from macmoe.adapters.attach import Adapter
from macmoe.adapters.files import read_arrays, save_adapter
from macmoe.adapters.lora import LoraSpec
from macmoe.converted import ready
from macmoe.location import find_model
from macmoe.session import load_model
from macmoe.tuning.config import LoraOptions, TrainOptions
from macmoe.tuning.metrics import METRICS
from macmoe_converters.conversion import Conversion
from tests.conftest import ROOT

SHORT = ("--max-length", "128", "--steps", "2", "--warmup", "0", "--learning-rate", "0.02")


EXPERTS = ("--targets", "attention,experts")


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"{i + 1}"} for i in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "sums.jsonl")


def test_an_adapter_is_trained_used_exported_imported_and_fused(macmoe, data: str, tmp_path: Path):
    adapter, peft, back, fused = (str(tmp_path / name) for name in ("adapter", "peft", "back", "fused"))
    given = ("--model", "tiny:qwen3", "--data", data, "--out", adapter)
    trained = macmoe("lora", "train", *given, *SHORT, *EXPERTS)
    assert trained.exit_code == 0, trained.stderr
    assert trained.stdout == ""
    assert "trainable parameters" in trained.stderr
    answer = macmoe("generate", "--adapter", adapter, "--max-tokens", "3", "--temperature", "0", "2 + 3?")
    assert answer.exit_code == 0, answer.stderr
    exported = macmoe("lora", "export", adapter, "--model", "tiny:qwen3", "--out", peft)
    imported = macmoe("lora", "import", peft, "--model", "tiny:qwen3", "--out", back)
    assert (exported.exit_code, imported.exit_code) == (0, 0), exported.stderr + imported.stderr
    first, second = (read_arrays(Path(folder) / "adapter.safetensors") for folder in (adapter, back))
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[name], second[name]) for name in first)
    result = macmoe("lora", "fuse", adapter, "--model", "tiny:qwen3", "--out", fused)
    assert result.exit_code == 0, result.stderr
    assert "kept" in result.stdout
    assert macmoe("generate", "--model", fused, "--max-tokens", "3", "2 + 3?").exit_code == 0


def test_a_run_goes_on_only_when_asked_to(macmoe, data: str, tmp_path: Path):
    run = ("lora", "train", "--model", "tiny:qwen3", "--data", data, "--out", str(tmp_path / "run"), *SHORT)
    assert macmoe(*run).exit_code == 0
    again = macmoe(*run)
    assert again.exit_code == 1
    assert "resume it" in again.stderr
    resumed = macmoe(*run, "--resume")
    assert resumed.exit_code == 0
    assert "the run had ended already, after 2 updates; the same command with `--adapter " in resumed.stderr


def test_ctrl_c_saves_the_last_update_and_says_how_to_continue(macmoe, data: str, tmp_path: Path):
    run = ("lora", "train", *TINY, "--data", data, "--out", str(tmp_path / "run"), *SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("macmoe.cli.lora_train._watch", stop_at_two)
        stopped = macmoe(*run)
    assert stopped.exit_code == 130
    words = "2 of 2 updates, all saved; the same command with --resume continues"
    assert stopped.stderr.splitlines()[-1] == f"{tmp_path / 'run'}: stopped after {words}"
    assert macmoe(*run, "--resume").exit_code == 0


def stop_at_two(_: object, line: dict) -> None:
    """Press Ctrl-C when the second update is made and not yet saved."""
    if line["step"] == 2:
        raise KeyboardInterrupt


def test_an_output_that_exists_is_refused_before_anything_is_loaded(
    macmoe, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = ("lora", "train", *TINY, "--data", data, "--out", str(tmp_path), *SHORT)
    assert macmoe(*run).exit_code == 0
    for name in ("macmoe.load", "macmoe.tuning.run.load", "macmoe.tuning.run.prepare"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("something is loaded"))
    fuse = ("lora", "fuse", str(tmp_path), *TINY, "--out", str(tmp_path))
    for command, words in ((run, "holds a run already"), (fuse, "exists already")):
        again = macmoe(*command)
        assert (again.exit_code, again.stdout) == (1, "")
        assert words in again.stderr


def test_a_run_does_not_go_on_with_another_base_or_length(macmoe, data: str, tmp_path: Path):
    packed = str(tmp_path / "packed")
    hub = str(ROOT / "tests" / "assets" / "hub" / "qwen3")
    assert macmoe("convert", hub, "--quantize", "4bit", "--out", packed).exit_code == 0
    run = ("lora", "train", "--data", data, "--out", str(tmp_path / "run"), *SHORT)
    assert macmoe(*run, "--model", "tiny:qwen3").exit_code == 0
    for changed, what in (
        (("--model", packed), "another base model;"),
        (("--model", "tiny:qwen3", "--max-length", "64"), "max_length = "),
    ):
        other = macmoe(*run, *changed, "--resume")
        assert other.exit_code == 1
        assert f"this run was begun with {what}" in other.stderr


def test_plan_counts_and_refuses(macmoe, data: str):
    plan = ("lora", "plan", "--model", "tiny:gpt-oss", "--data", data, "--targets", "experts")
    found = json.loads(macmoe(*plan, "--json").stdout)
    assert found["total"] == sum(found[part] for part in ("weights", "training", "activations", "logits"))
    refused = macmoe(*plan, "--memory", "0.1")
    assert refused.exit_code == 1
    assert "does not fit" in refused.stderr
    assert "it would with" in refused.stderr
    assert " of 0.0001 GiB; it would not with smaller" in macmoe(*plan, "--memory", "0.0001").stderr
    assert macmoe(*plan, "--memory", "-1").exit_code == 2


TINY = ("--model", "tiny:qwen3")
ROWS = {
    "empty.jsonl": [],
    "mute.jsonl": [
        {
            "messages": [
                {"role": "user", "content": "2?"},
                {"role": "assistant", "content": "3", "train": False},
            ]
        }
    ],
    "robot.jsonl": [{"messages": [{"role": "robot", "content": "beep"}]}],
    "half.jsonl": [{"prompt": "2?", "completion": "3"}, {"prompt": "2?"}],
}
MISTAKES = {
    "empty data": ((*TINY, "--data", "empty.jsonl"), "empty.jsonl: has no rows"),
    "a sample that teaches nothing": (
        (*TINY, "--data", "mute.jsonl"),
        "mute.jsonl:1: nothing in it is to be learned",
    ),
    "an answer that is missing": (
        (*TINY, "--data", "half.jsonl"),
        "half.jsonl:2: nothing in it is to be learned",
    ),
    "unknown role": ((*TINY, "--data", "robot.jsonl"), "robot.jsonl:1: "),
    "unknown tracker": ((*TINY, "--data", "DATA", "--trackers", "tensorbord"), "did you mean"),
    "balance without routers": ((*TINY, "--data", "DATA", "--balance", "0.01"), "add router to the targets"),
    "no model": (("--data", "DATA"), "'model' is missing"),
    "a file as the folder": ((*TINY, "--data", "DATA", "--out", "mute.jsonl"), "mute.jsonl: is a file"),
    "patience without validation data": (
        (*TINY, "--data", "DATA", "--patience", "3"),
        "patience counts evaluations on validation data, and there are none",
    ),
    "no data": ((*TINY, "--data", "nowhere.jsonl"), "nowhere.jsonl"),
    "unknown target": (
        (*TINY, "--data", "DATA", "--targets", "attentions"),
        "did you mean",
    ),
    "rank 0": ((*TINY, "--data", "DATA", "--rank", "0"), "rank"),
    "no such file": (("--config", "nowhere.toml"), "no such file"),
    "nothing to resume": (
        (*TINY, "--data", "DATA", "--max-length", "64", "--resume"),
        "adapter: holds no run to resume; leave out --resume",
    ),
}


# What is told before the plan is printed.
AT_ONCE = (
    "a file as the folder",
    "no data",
    "nothing to resume",
    "patience without validation data",
    "unknown tracker",
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(macmoe, data: str, tmp_path: Path, mistake: str, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MACMOE_MODEL")
    for name, rows in ROWS.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments, message = MISTAKES[mistake]
    result = macmoe("lora", "train", *(data if part == "DATA" else part for part in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    assert "a bug" not in result.stderr
    assert mistake not in AT_ONCE or result.stderr.count("\n") == 1


def save(folder: Path, shapes: dict[str, tuple[int, ...]], family: str = "qwen3") -> Path:
    """Write an adapter of one matrix with these factors."""
    specs = {PATH: LoraSpec(rank=2, alpha=4)}
    arrays = {f"{PATH}.{name}": mx.ones(shape) for name, shape in shapes.items()}
    save_adapter(Adapter(specs=specs, arrays=arrays), folder, family)
    return folder


PATH = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("command", [("generate", "2?", "--adapter"), ("lora", "fuse")], ids=lambda c: c[0])
def test_an_adapter_for_another_model_or_of_another_shape_is_one_line(macmoe, tmp_path: Path, command):
    outputs, inputs = load_model(find_model("tiny:qwen3"))[1].model.layers[0].self_attn.q_proj.weight.shape
    right = {"lora_a": (2, inputs), "lora_b": (outputs, 2)}
    more = ("--out", str(tmp_path / "fused")) if "fuse" in command else ()
    for folder, words in {
        save(tmp_path / "family", right, "gpt_oss"): "the adapter is for gpt_oss and the model is qwen3",
        save(tmp_path / "wide", right | {"lora_a": (2, inputs + 32)}): "have another shape",
        save(tmp_path / "half", {"lora_a": (2, inputs)}): "have another shape",
    }.items():
        run = macmoe(*command, str(folder), *TINY, *more)
        assert (run.exit_code, run.stdout) == (1, ""), run.stderr
        assert words in run.stderr
        assert run.stderr.count("error: ") == 1
        assert not (tmp_path / "fused").exists()


def test_a_model_that_was_converted_before_is_fused_from_its_conversion(
    macmoe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MACMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MACMOE_CACHE_FROM", "0")
    hub = ROOT / "tests" / "assets" / "hub" / "qwen3"
    outputs, inputs = load_model(ready(hub))[1].model.layers[0].self_attn.q_proj.weight.shape
    adapter = save(tmp_path / "adapter", {"lora_a": (2, inputs), "lora_b": (outputs, 2)})
    monkeypatch.setattr(Conversion, "tensors", lambda _: pytest.fail("it is converted again"))
    run = macmoe("lora", "fuse", str(adapter), "--model", str(hub), "--out", str(tmp_path / "fused"))
    assert run.exit_code == 0, run.stderr


def test_a_fusion_measured_on_no_text_is_refused_in_one_line(macmoe, tmp_path: Path):
    outputs, inputs = load_model(find_model("tiny:qwen3"))[1].model.layers[0].self_attn.q_proj.weight.shape
    adapter = save(tmp_path / "adapter", {"lora_a": (2, inputs), "lora_b": (outputs, 2)})
    out = tmp_path / "fused"
    run = macmoe("lora", "fuse", str(adapter), *TINY, "--out", str(out), "--text", "")
    assert (run.exit_code, run.stdout) == (1, "")
    assert run.stderr.startswith("error: a text to measure on is empty")
    assert not out.exists()


def test_an_effect_too_small_to_judge_is_fused_and_said_so(macmoe, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("macmoe.tuning.fuse.NOISE", math.inf)
    outputs, inputs = load_model(find_model("tiny:qwen3"))[1].model.layers[0].self_attn.q_proj.weight.shape
    adapter = save(tmp_path / "adapter", {"lora_a": (2, inputs), "lora_b": (outputs, 2)})
    run = macmoe("lora", "fuse", str(adapter), *TINY, "--out", str(tmp_path / "fused"))
    assert run.exit_code == 0, run.stderr
    assert run.stdout.splitlines()[-1].endswith("not judged: too small an effect")


def test_a_folder_that_is_no_adapter_is_one_line(macmoe, tmp_path: Path):
    result = macmoe("generate", "--adapter", str(tmp_path), "hello")
    assert result.exit_code == 1
    assert "no adapter here" in result.stderr


@pytest.mark.parametrize("name", ["preview", "plan", "train", "export", "import", "fuse", "distill"])
def test_help_of_every_command(macmoe, name: str):
    result = macmoe("lora", name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: macmoe lora {name}")


@pytest.mark.parametrize("name", ["plan", "train"])
def test_help_shows_the_defaults_of_the_settings(macmoe, name: str):
    text = " ".join(macmoe("lora", name, "--help").stdout.split())
    train, lora = TrainOptions(), LoraOptions()
    for words in (
        "The folder of the run. [default: adapter]",
        f"Updates between two savings. [default: {train.save_every}]",
        f"The highest. [default: {train.learning_rate}]",
        f"How it falls. [default: {train.schedule}]",
        f"path patterns, by comma. [default: {','.join(lora.targets)}]",
    ):
        assert words in text
    assert "Updates in all, instead. --rows" in text, "without a default, none is shown"


def test_samples_are_answered_in_both_modes_at_every_evaluation(macmoe, tmp_path: Path):
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"{i + 1}"} for i in range(6)]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    result = macmoe(
        *("lora", "train", "--model", "tiny:qwen3", "--data", str(data), "--out", str(out)),
        *("--max-length", "64", "--steps", "2", "--evaluate-every", "1", "--learning-rate", "1e-9"),
        *("--sample-prompts", "What is 17 + 25?", "--sample-prompts", "What is 3 + 4?"),
    )
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    samples = [line for line in lines if "samples" in line]
    assert [line["step"] for line in samples] == [1, 2]
    on, off = samples[0]["samples"][0], samples[0]["samples"][2]
    assert (on["thinking"], on["answer"].strip(), on["complete"]) == ("on", "The answer is 42.", True)
    assert on["reasoning"].strip()
    assert (off["thinking"], off["answer"].strip()) == ("off", "The answer is 42.")
    assert not off["reasoning"].strip()
    assert "What is 17 + 25? (thinking off): The answer is 42." in result.stderr
