"""`macmoe bench`: the table, JSON, the picture, and what it refuses."""

from __future__ import annotations

import json
import os

import pytest

QUICK = ("--tokens", "2", "--rounds", "1")
TINY = ("tiny:qwen3", "--context", "20", "--prefill", "6", *QUICK)
EACH = (*TINY, "--verify", "3")


@pytest.mark.usefixtures("short_bench")
def test_a_checkpoint_is_measured_beside_mlx_lm(macmoe, tmp_path):
    path = tmp_path / "figures.json"
    result = macmoe("bench", *TINY, "--against", "mlx-lm", "--json", str(path))
    assert (result.exit_code, result.stderr) == (0, "")
    title, _, heading, *rows = result.stdout.splitlines()
    assert title.startswith("tiny:qwen3, 4 layers, 4.90 MiB of weights; ")
    assert title.endswith("; with plain operations")
    assert heading.split() == ["macmoe", "mlx-lm", "ratio"]
    labels = [row[: row.find("  ", 3)].rstrip() for row in rows]
    assert labels == [
        "kernels per token",
        "  per layer",
        "decode after 20, tokens/s",
        "  lowest to highest",
        labels[4],
        "  tokens alike at first",
        "  peak memory",
        "  of it beyond weights and cache",
        "prompt of 6, tokens/s",
        "  lowest to highest",
        "  first token after",
        "  peak memory",
        "  of it beyond weights and cache",
    ]
    assert labels[4].startswith("  of the limit (")
    figures = json.loads(path.read_text())
    decode, prefill = figures["cases"]
    assert (decode["size"], decode["same_tokens"], prefill["size"]) == (20, 2, 6)
    for name in ("macmoe", "mlx-lm"):
        assert decode["sides"][name]["tokens_per_second"]["median"] > 0
        assert figures["kernels"][name]["layer"] > 10


@pytest.mark.usefixtures("short_bench")
def test_drafts_and_batches_are_measured_beside_mlx_lm(macmoe, tmp_path):
    path = tmp_path / "figures.json"
    asked = ("--verify", "2", "--verify", "3", "--batch", "3", "--against", "mlx-lm")
    result = macmoe("bench", "tiny:qwen3", *asked, *QUICK, "--json", str(path))
    assert (result.exit_code, result.stderr) == (0, "")
    labels = [row[: row.find("  ", 3)].rstrip() for row in result.stdout.splitlines()[5:]]
    after = ["  tokens alike at first", "  peak memory", "  of it beyond weights and cache"]
    assert labels == [
        *("verify 2 after 512, tokens/s", "  lowest to highest", "  a draft takes", *after),
        *("verify 3 after 512, tokens/s", "  lowest to highest", "  a draft takes", *after),
        *("3 sequences after 512, tokens/s", "  lowest to highest", "  a token of each takes", *after),
    ]
    cases = json.loads(path.read_text())["cases"]
    assert [(case["kind"], case["size"], case["context"]) for case in cases] == [
        ("verify", 2, 512),
        ("verify", 3, 512),
        ("batch", 3, 512),
    ]
    for case in cases:
        assert case["same_tokens"] == 18 * case["size"]
        for side in case["sides"].values():
            assert side["tokens"] == 16 * case["size"]
            assert side["tokens_per_second"]["median"] > 0


@pytest.mark.usefixtures("short_bench")
def test_json_on_stdout_stands_alone(macmoe):
    result = macmoe("bench", "tiny:gpt-oss", "--context", "8", *QUICK, "--json", "-")
    figures = json.loads(result.stdout)
    assert list(figures["kernels"]) == ["macmoe"]
    assert [case["kind"] for case in figures["cases"]] == ["decode"]


@pytest.mark.usefixtures("short_bench")
@pytest.mark.parametrize("name", ["tiny:gpt-oss", "tiny:deepseek-v3"])
def test_a_packed_cache_is_measured_with_the_bytes_that_it_has(macmoe, name):
    figures = {}
    for bits in ((), ("--cache-bits", "8")):
        asked = ("bench", name, "--context", "400", *QUICK, "--json", "-", *bits)
        figures[bits] = json.loads(macmoe(*asked).stdout)
    full, packed = figures.values()
    assert (full["cache_bits"], packed["cache_bits"]) == (None, 8)
    both = [one["cases"][0]["sides"]["macmoe"] for one in (full, packed)]
    assert both[1]["tokens_per_second"]["median"] > 0
    assert (
        both[1]["cache_bytes"] < 0.45 * both[0]["cache_bytes"]
    )  # of float32, sliding layers stay as they are
    saved = both[0]["cache_bytes"] - both[1]["cache_bytes"]
    assert full["cases"][0]["token_bytes"] - packed["cases"][0]["token_bytes"] == saved


@pytest.mark.usefixtures("short_bench")
def test_the_table_says_that_the_cache_is_packed(macmoe):
    result = macmoe("bench", "tiny:qwen3", "--context", "8", *QUICK, "--cache-bits", "8")
    assert "; cache in 8 bits; " in result.stdout.splitlines()[0]


@pytest.mark.usefixtures("short_bench")
def test_the_speeds_are_drawn(macmoe, tmp_path):
    path = tmp_path / "speeds.png"
    assert macmoe("bench", *EACH, "--plot", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_an_unknown_kind_is_refused(macmoe, tmp_path):
    result = macmoe("bench", *TINY, "--plot", str(tmp_path / "speeds.txt"))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "no format that can be drawn; there are " in result.stderr


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_that_cannot_be_made_is_noticed_before_measuring(macmoe, tmp_path, option):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "figures.png"
    result = macmoe("bench", *TINY, option, str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path}: {tmp_path / 'file'} is a file, so nothing can lie in it")
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("short_bench")
def test_a_case_without_time_is_said_not_to_be_measured(macmoe):
    result = macmoe("bench", *EACH, "--time-limit", "1e-9")
    assert result.exit_code == 0
    assert result.stdout.count("not measured") == 3
    for name in ("decode after 20", "prompt of 6", "verify 3 after 20"):
        assert f"{name}, macmoe: 0 rounds: the time limit" in result.stdout


@pytest.mark.parametrize(
    "arguments", [(), ("tiny:qwen3", "--shape", "gpt-oss-20b"), ("tiny:qwen3", "--layers", "1")]
)
def test_one_model_is_asked_for(macmoe, arguments):
    result = macmoe("bench", *arguments)
    assert result.exit_code == 2
    assert "Give either MODEL, or --shape NAME" in result.stderr


def test_a_shape_has_no_more_layers_than_the_model(macmoe):
    result = macmoe("bench", "--shape", "gpt-oss-20b", "--layers", "25")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: this model has 24 layers; it cannot be measured with 25\n",
    )


@pytest.mark.parametrize(("gibibytes", "way"), [(24, "take --layers 6"), (1, "not even one layer does")])
def test_weights_beyond_the_memory_are_refused_before_they_are_drawn(macmoe, monkeypatch, gibibytes, way):
    monkeypatch.setattr("macmoe.cli.shapes.memory_limit", lambda: gibibytes * 2**30)
    monkeypatch.setattr("macmoe.bench.run.random_model", lambda _: pytest.fail("they were drawn"))
    result = macmoe("bench", "--shape", "deepseek-v3")
    assert (result.exit_code, result.stdout) == (1, "")
    message = f"351.67 GiB of weights do not fit into {gibibytes}.00 GiB of memory; {way}"
    assert result.stderr == f"error: deepseek-v3: {message}\n"


@pytest.mark.parametrize(
    ("case", "needed"),
    [
        (("--context", "40880", "--tokens", "64"), 40_961),
        (("--prefill", "40961"), 40_961),
        (("--context", "20", "--verify", "2100"), 42_020),
    ],
)
def test_what_is_longer_than_the_model_knows_is_refused(macmoe, case, needed):
    result = macmoe("bench", "tiny:qwen3", *case)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: the longest case needs {needed:,} positions, what is decoded included, and tiny:qwen3 knows "
        "40,960; ask for fewer tokens"
    )
    assert result.stdout == ""


def test_an_unknown_shape_is_refused_in_one_line(macmoe):
    result = macmoe("bench", "--shape", "gpt-oss-20")
    assert result.exit_code == 1
    assert result.stderr.endswith("did you mean 'gpt-oss-20b'?\n")


def test_the_switch_for_kernels_holds_for_one_command(macmoe, monkeypatch):
    monkeypatch.delenv("MACMOE_KERNELS", raising=False)
    seen: list[str | None] = []
    monkeypatch.setattr("macmoe.cli.bench.run", lambda *_, **__: seen.append(os.environ["MACMOE_KERNELS"]))
    monkeypatch.setattr("macmoe.cli.bench.show", lambda *_: None)
    assert macmoe("bench", "tiny:qwen3", "--no-kernels").exit_code == 0
    assert (seen, "MACMOE_KERNELS" in os.environ) == (["0"], False)


@pytest.mark.parametrize("command", ["generate", "chat", "score", "bench", "doctor"])
def test_kernels_can_be_turned_off_wherever_a_model_runs(macmoe, command):
    assert "--no-kernels" in macmoe(command, "--help").stdout
