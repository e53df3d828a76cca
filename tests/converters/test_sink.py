"""Output is complete or absent, in files of limited size that any reader of safetensors understands."""

from __future__ import annotations

import hashlib
import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open

from macmoe.errors import CheckpointError, ConversionError, UsageError
from macmoe.shards import Shards
from macmoe_converters import open_conversion, sink
from tests.converters import layouts
from tests.converters.samples import CONFIGS, draw, in_memory, u8, write_folder

CONFIG = CONFIGS["gpt_oss"]


@pytest.fixture
def source(tmp_path):
    """A small GPT-OSS folder with a tokenizer."""
    folder = write_folder(tmp_path / "model", CONFIG, layouts.mxfp4(draw(CONFIG), CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


def weight(**sizes):
    """Return one weight, its parts of so many bytes."""
    return {name: sink.Stored(rows=in_memory(mx.zeros(size, mx.uint8))) for name, size in sizes.items()}


def test_shards_are_filled_in_order():
    weights = [weight(a=4), weight(b=4, c=2), weight(d=2), weight(e=30), weight(f=1)]
    shards = sink.plan_shards(weights, limit=10)
    assert [list(shard.tensors) for shard in shards] == [["a", "b", "c"], ["d"], ["e"], ["f"]]
    assert [shard.name for shard in shards][::3] == [
        "model-00001-of-00004.safetensors",
        "model-00004-of-00004.safetensors",
    ]


def test_shards_are_about_equally_large():
    weights = [weight(**{f"w{i}": 1 + i % 3}) for i in range(60)]
    shards = sink.plan_shards(weights, limit=100)
    assert [sum(stored.rows.info.nbytes for stored in shard.tensors.values()) for shard in shards] == [60, 60]


def test_written_files_are_read_by_the_reference_reader(tmp_path, source):
    conversion = open_conversion(source)
    conversion.write(tmp_path / "out", shard_bytes=50_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert [path.name for path in files if path.stat().st_size > 60_000] == []
    expected = dict(conversion.tensors())
    for path in files:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                array = expected.pop(name)
                if array.dtype != mx.bfloat16:  # which numpy does not know
                    assert np.array_equal(file.get_tensor(name), np.array(array)), name
    assert expected == {}


def test_tensors_begin_at_multiples_of_their_size(tmp_path, source):
    open_conversion(source).write(tmp_path / "out")
    raw = (tmp_path / "out" / "model-00001-of-00001.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    size = {"U8": 1, "U32": 4, "BF16": 2}
    assert (8 + length) % 8 == 0
    assert all(entry["data_offsets"][0] % size[entry["dtype"]] == 0 for entry in header.values())


def test_folder_says_where_it_comes_from(tmp_path, source):
    open_conversion(source).write(tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {
        "config.json",
        "macmoe.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    }
    record = json.loads((tmp_path / "out" / "macmoe.json").read_text())
    assert record["format_version"] == 1
    assert (record["source"], record["layout"], record["recipe"]) == ("model", "hub", "keep")
    assert record["sha256"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "out").glob("*.safetensors")
    }
    assert str(tmp_path) not in (tmp_path / "out" / "macmoe.json").read_text()


def test_chat_templates_come_along_in_each_of_their_forms(tmp_path, source):
    names = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja")
    for name in (*names, "additional_chat_templates/run.py", "chat_templates/rag.jinja"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    open_conversion(source).write(tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*chat*/*")}
    assert found == {"additional_chat_templates/tool_use.jinja", "chat_templates/rag.jinja"}
    assert all((tmp_path / "out" / name).read_text() == name for name in names)


def test_hashes_can_be_left_out(tmp_path, source):
    open_conversion(source).write(tmp_path / "out", hashes=False)
    assert "sha256" not in json.loads((tmp_path / "out" / "macmoe.json").read_text())


def test_two_conversions_are_the_same_bytes(tmp_path, source):
    open_conversion(source).write(tmp_path / "one")
    open_conversion(source).write(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_existing_output_is_kept(tmp_path, source):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("data")
    with pytest.raises(UsageError, match="exists already"):
        open_conversion(source).write(out)
    with pytest.raises(UsageError, match="no macmoe checkpoint"):
        open_conversion(source).write(out, force=True)
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_force_replaces_a_checkpoint(tmp_path, source):
    out = tmp_path / "out"
    open_conversion(source).write(out)
    (out / "tokenizer.json").write_text("old")
    open_conversion(source).write(out, force=True)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_source_is_never_the_output(tmp_path, source):
    open_conversion(source).write(tmp_path / "out")
    with pytest.raises(UsageError, match="same folder"):
        open_conversion(tmp_path / "out").write(tmp_path / "out", force=True)


def test_replaced_checkpoint_survives_an_interruption(tmp_path, source):
    def stop(*_):
        raise KeyboardInterrupt

    open_conversion(source).write(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        open_conversion(source).write(tmp_path / "out", force=True, progress=stop)
    assert Shards(tmp_path / "out").tensors


def test_unwritable_place_is_one_line(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError, match="cannot be written"):
        open_conversion(source).write(tmp_path / "file" / "out")


def test_progress_ends_at_the_total(tmp_path, source):
    steps = []
    conversion = open_conversion(source)
    conversion.write(tmp_path / "out", progress=lambda done, total: steps.append((done, total)))
    total = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert steps[-1] == (total, total)
    assert steps == sorted(steps)


def test_damaged_scales_leave_nothing(tmp_path):
    stored = layouts.mxfp4(draw(CONFIG), CONFIG)
    name = "model.layers.1.mlp.experts.down_proj_scales"
    stored[name] = u8(np.full_like(stored[name].array, 255))
    conversion = open_conversion(write_folder(tmp_path / "model", CONFIG, stored))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.down_proj"):
        conversion.write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
