"""`macmoe convert`: other layouts, budgets, reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from macmoe.cli.quality import duration, figure, telling
from tests.conftest import ROOT

HUB = ROOT / "tests" / "assets" / "hub"


def test_a_budget_is_kept_and_reported(macmoe, tmp_path):
    text = tmp_path / "text"
    text.write_text("What is 17 + 25?")
    out, report, picture = tmp_path / "small", tmp_path / "report.json", tmp_path / "report.png"
    result = macmoe(
        "convert", str(HUB / "qwen3"), "--out", str(out), "--report", str(report), "--plot", str(picture),
        "--bits-per-weight", "4.5", "--calibration", str(text),
    )  # fmt: skip
    assert result.exit_code == 0
    found = json.loads(report.read_text())
    assert 4.3 < found["bits_per_weight"] <= 4.5
    assert found["recipe"] == json.loads((out / "macmoe.json").read_text())["recipe"] == "4.5 bits per weight"
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["bits", "per", "weight", "relative", "error"]
    assert lines[-4].split()[-2:] == [f"{found['bits_per_weight']:.2f}", f"{found['relative_error']:.4f}"]
    assert f"worst: {found['worst'][0]['matrix']}" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("layout", ["hub", "mlx-lm"])
def test_other_layouts_are_written(macmoe, tmp_path, layout):
    source = ROOT / "macmoe" / "assets" / "qwen3"
    result = macmoe("convert", str(source), "--out", str(tmp_path / "out"), "--to", layout)
    assert result.exit_code == 0
    assert not (tmp_path / "out" / "macmoe.json").exists()
    answers = [
        macmoe("generate", "--model", str(folder), "--temperature", "0", "What is 17 + 25?").stdout
        for folder in (source, tmp_path / "out")
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quantize", "4bit", "--bits-per-weight", "4"), "either --quantize or --bits-per-weight"),
        (("--quantize", "8bit", "--calibration", __file__), "is for --bits-per-weight and dwq4 only"),
        (("--calibration", __file__), "is for --bits-per-weight and dwq4 only"),
    ],
)
def test_options_that_exclude_each_other_are_wrong_usage(macmoe, tmp_path, options, message):
    result = macmoe("convert", str(HUB / "qwen3"), "--out", str(tmp_path / "out"), *options)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits-per-weight", "1", "--calibration", "{text}"), "2.56 bits per weight at least"),
        (("--bits-per-weight", "100"), "takes 16.00 bits per weight as it is"),
        (("--bits-per-weight", "16"), "takes 16.00 bits per weight as it is"),
        (("--to", "hub", "--quantize", "4bit"), "no packings of MLX"),
    ],
)
def test_what_cannot_be_done_is_one_line(macmoe, tmp_path, options, message):
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_text("What is 17 + 25?")
    options = [option.format(text=text) for option in options]
    result = macmoe("convert", str(HUB / "qwen3"), "--out", str(out), *options)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("bits", ["100", "1"])
def test_bits_that_nothing_reaches_are_refused_before_measuring(macmoe, tmp_path, monkeypatch, bits):
    monkeypatch.setattr("macmoe.cli.quality.load_folder", lambda *_, **__: pytest.fail("it was loaded"))
    result = macmoe(
        "convert", str(HUB / "deepseek_v3"), "--out", str(tmp_path / "out"), "--bits-per-weight", bits
    )
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_a_long_measurement_is_foretold_once(monkeypatch, capsys):
    clock = iter([0.0, 30.0, 60.0, 90.0, 120.0])
    monkeypatch.setattr("macmoe.cli.quality.time.monotonic", lambda: next(clock))
    seen = []
    report = telling(Path("model"), lambda done, total: seen.append((done, total)))
    for done in range(1, 5):
        report(done, 100)
    assert seen == [(done, 100) for done in range(1, 5)]
    assert (
        capsys.readouterr().err == "model: measuring takes about 50 minutes at most, by the first 3 of 100\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (100, "about 2 minutes"),
        (7000, "about 117 minutes"),
        (7200, "about 2 hours"),
        (200_000, "about 2 days"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


def test_the_picture_has_whole_layers_and_begins_at_zero():
    pytest.importorskip("matplotlib")
    layers = [{"relative_error": error, "bits_per_weight": 4.5} for error in (0.0808, 0.0812)]
    for axes in figure({"recipe": "4bit", "bits_per_weight": 4.5, "layers": layers}).axes:
        assert [tick for tick in axes.get_xticks() if tick != int(tick)] == []
        assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plot", "{folder}/r.xyz"), "r.xyz: no format that can be drawn; there are "),
        (("--plot", f"{__file__}/r.png"), "is a file, so nothing can lie in it"),
        (("--report", f"{__file__}/none/r.json"), "is a file, so nothing can lie in it"),
        (("--report", "{folder}"), "is a folder; give the name of a file in it"),
        (("--report", ""), "is a folder; give the name of a file in it"),
        (("--out", ""), ".: is no name of a new folder"),
        (("--out", ".."), "..: is no name of a new folder"),
    ],
)
def test_what_cannot_be_written_is_refused_first(macmoe, tmp_path, options, message):
    options = [option.format(folder=tmp_path) for option in options]
    result = macmoe("convert", str(HUB / "qwen3"), "--out", str(tmp_path / "out"), *options)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("further", [(), ("--resume",), ("--verify",)])
def test_an_existing_output_is_refused_before_measuring(macmoe, tmp_path, monkeypatch, further):
    monkeypatch.setattr("macmoe.cli.convert.open_within", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "precious").touch()
    result = macmoe(
        "convert", str(HUB / "qwen3"), "--out", str(tmp_path), "--bits-per-weight", "4.5", *further
    )
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}: exists already; choose another folder")
