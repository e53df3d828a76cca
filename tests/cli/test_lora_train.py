"""`macmoe lora train`: what is seen of a run on a terminal and elsewhere; runs that begin with an adapter."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlx.core as mx
import pytest

from macmoe.adapters.files import read_adapter
from macmoe.cli.lora_summary import routing_in_words
from macmoe.tuning.metrics import METRICS
from tests.cli.pseudo_terminal import PseudoTerminal
from tests.cli.screen_model import Screen

TINY = ("--model", "tiny:qwen3", "--max-length", "64", "--warmup", "0")


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"{i + 1}"} for i in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "sums.jsonl")


def test_without_a_terminal_a_run_writes_a_line_now_and_then_and_ends_in_words(macmoe, data, tmp_path):
    out = tmp_path / "my run"
    run = macmoe(
        *("lora", "train", *TINY, "--data", data, "--out", str(out), "--steps", "5", "--log-every", "2"),
        *("--evaluate-every", "4", "--valid-share", "0.3"),
    )
    assert run.exit_code == 0, run.stderr
    lines = run.stderr.splitlines()
    logged = [line for line in lines if line.startswith("update ") and " of 5: loss " in line]
    assert [int(line.split()[1]) for line in logged] == [1, 2, 4, 5]
    found = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    first = found[0]
    assert logged[0] == (
        f"update 1 of 5: loss {first['loss']:.4f}, learning rate 0.0001, "
        f"{first['tokens_per_second']:,.0f} tokens/s"
    )
    ending = run.stderr[run.stderr.index(f"{out}: the adapter after 5 of 5 updates (") :]
    losses = [line["loss"] for line in found if "loss" in line]
    assert f"loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last" in ending
    assert f"(perplexity {min(line['perplexity'] for line in found if 'perplexity' in line):.4g})" in ending
    assert f"try it: macmoe chat --model tiny:qwen3 --adapter '{out}'" in ending
    assert f"macmoe lora fuse '{out}' --model tiny:qwen3 --out '{out}-fused'" in ending
    assert "_" not in ending.replace(str(out), "")


def test_a_picture_that_is_missing_says_why(macmoe, data, tmp_path, monkeypatch):
    for place in ("macmoe.cli.lora_summary.find_spec", "macmoe.tuning.metrics.find_spec"):
        monkeypatch.setattr(place, lambda _: None)
    run = macmoe("lora", "train", *TINY, "--data", data, "--out", str(tmp_path / "run"), "--steps", "1")
    assert "no loss.png: matplotlib is not installed (pip install 'macmoe[plot]')" in run.stderr
    assert not (tmp_path / "run" / "loss.png").exists()


def test_what_became_of_the_experts_is_said_in_words():
    report = {"routing_agreement": 0.902, "dead_experts": 0, "busiest_expert": 0.25}
    assert list(routing_in_words({**report, "layers_with_dead_experts": []})) == [
        "experts: 90.2% of the choices are those of the model without the adapter",
        "the busiest expert of a layer gets 25.0% of its tokens' choices",
        "no expert fell out of use",
    ]
    dead = {**report, "dead_experts": 3, "layers_with_dead_experts": [1, 4]}
    assert list(routing_in_words(dead))[-1] == "3 experts are not used any more, in layers 1, 4"


def test_on_a_terminal_a_bar_shows_figures_and_notes_stand_above_it(data, tmp_path):
    arguments = ("lora", "train", *TINY, "--data", data, "--out", str(tmp_path / "run"), "--steps", "3")
    more = ("--evaluate-every", "1", "--valid-share", "0.3", "--sample-prompts", "What is 2 + 3?")
    with PseudoTerminal("-m", "macmoe", *arguments, *more) as terminal:
        terminal.expect("0 of 3")
        terminal.expect("1 of 3  loss ")
        terminal.expect(" tokens/s")
        terminal.expect(" left")
        terminal.expect("(adapted layers run without")
        screen = Screen()
        screen.feed(terminal.output)
    note = re.compile(r"update (\d): validation loss [\d.]+, perplexity [\d.e+]+")
    found = [note.fullmatch(row) for row in screen.all if row.startswith("update ")]
    assert [match and match[1] for match in found] == [*"123"]
    assert sum(row.startswith("What is 2 + 3? (thinking o") for row in screen.all) == 6
    assert not any("━" in row for row in screen.all), "the bar is gone, and no note stands in it"


def trained(macmoe, data: str, out: Path, *more: str):
    return macmoe("lora", "train", *TINY, "--data", data, "--out", str(out), *more)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory):
    """Return an adapter of two ranks, and the same in PEFT's form."""
    from click.testing import CliRunner

    from macmoe.cli import cli

    folder = tmp_path_factory.mktemp("begun")
    (folder / "sums.jsonl").write_text('{"prompt": "What is 1 + 1?", "completion": "2"}\n' * 3)
    (folder / "run.toml").write_text(
        f'model = "tiny:qwen3"\nout = "{folder}/run"\n[data]\ndata = "{folder}/sums.jsonl"\nmax_length = 64\n'
        '[lora]\ntargets = ["attention"]\nrank = 4\n[lora.patterns."*.q_proj"]\nrank = 2\n'
        "[train]\nlearning_rate = 0.01\nwarmup = 0\n"
    )
    for command in (
        ("train", "--config", f"{folder}/run.toml"),
        ("export", f"{folder}/run", "--model", "tiny:qwen3", "--out", f"{folder}/peft"),
    ):
        result = CliRunner().invoke(cli, ["lora", *command])
        assert result.exit_code == 0, result.stderr
    return folder


@pytest.mark.parametrize("form", ["run", "peft"])
def test_a_run_begins_with_an_adapter_and_trains_what_it_adapts(macmoe, data, tmp_path, begun, form):
    adapter = begun / form
    before = read_adapter(begun / "run", "qwen3")
    plan = macmoe("lora", "plan", "--model", "tiny:qwen3", "--adapter", str(adapter), "--json")
    assert json.loads(plan.stdout)["trainable"] == sum(array.size for array in before.arrays.values())
    still = ("--steps", "1", "--learning-rate", "1e-30", "--weight-decay", "0")
    run = trained(macmoe, data, tmp_path / "same", "--adapter", str(adapter), *still)
    assert run.exit_code == 0, run.stderr
    after = read_adapter(tmp_path / "same", "qwen3")
    assert after.specs == before.specs
    assert all(mx.allclose(after.arrays[name], before.arrays[name]) for name in before.arrays)
    assert not (adapter / "state.safetensors").exists() or form == "run"


def test_a_run_that_began_with_an_adapter_is_resumed_with_it_only(macmoe, data, tmp_path, begun):
    arguments = ("--adapter", str(begun / "run"), "--steps", "2")
    assert trained(macmoe, data, tmp_path / "run", *arguments).exit_code == 0
    assert trained(macmoe, data, tmp_path / "run", *arguments, "--resume").exit_code == 0
    assert trained(macmoe, data, tmp_path / "other", "--adapter", str(tmp_path / "run")).exit_code == 0
    other = ("--adapter", str(tmp_path / "other"), "--steps", "2", "--resume")
    assert (
        "begun with another adapter, or with none (--adapter)"
        in trained(macmoe, data, tmp_path / "run", *other).stderr
    )


WRONG = {
    "another rank": (
        ("--rank", "16"),
        "the settings ask for rank = 16, and this adapter has 4; leave it",
    ),
    "other targets": (("--targets", "experts,attention"), "the settings ask for other targets; leave it out"),
    "no adapter": (("--adapter", "."), "no adapter here"),
    "no folder": (("--adapter", "nowhere"), "nowhere: no such folder"),
    "another family": (("--model", "tiny:gpt-oss"), "the adapter is for qwen3 and the model is gpt_oss"),
    "the folder of an adapter": (("--out", "PEFT"), "holds an adapter already (adapter_config.json)"),
    "the folder of a run": (("--out", "RUN"), "holds a run already"),
}


@pytest.mark.parametrize(("more", "words"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_the_adapter_is_one_line(macmoe, data, tmp_path, begun, more, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"PEFT": str(begun / "peft"), "RUN": str(begun / "run")}
    arguments = ("--adapter", str(begun / "run"), *(places.get(word, word) for word in more))
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    run = trained(macmoe, data, tmp_path / "out", *arguments)
    assert (run.exit_code, run.stdout) == (1, "")
    assert words in run.stderr
    assert run.stderr.count("error: ") == 1
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out").exists()


def test_a_longer_run_is_refused_with_what_to_do_unless_its_rate_is_constant(macmoe, data, tmp_path):
    out = tmp_path / "run"
    assert trained(macmoe, data, out).exit_code == 0
    longer = trained(macmoe, data, out, "--epochs", "2", "--resume")
    assert longer.exit_code == 1
    assert "this run was begun with epochs = 1, not 2, and its learning rate follows" in longer.stderr
    assert f"the same command with `--adapter {out} --out {out}-more` instead of --resume" in longer.stderr
    for folder, epochs in ((tmp_path / "parts", "1"), (tmp_path / "whole", "2")):
        assert trained(macmoe, data, folder, "--schedule", "constant", "--epochs", epochs).exit_code == 0
    parts = trained(macmoe, data, tmp_path / "parts", "--schedule", "constant", "--epochs", "2", "--resume")
    assert parts.exit_code == 0, parts.stderr
    one, other = (read_adapter(tmp_path / name, "qwen3").arrays for name in ("parts", "whole"))
    assert all(mx.array_equal(one[name], other[name]) for name in one)
    shorter = trained(macmoe, data, tmp_path / "parts", "--schedule", "constant", "--steps", "1", "--resume")
    assert "this run has made 4 updates already, more than 1" in shorter.stderr
