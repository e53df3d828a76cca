"""Damaged or hostile safetensors folders are refused before anything is read from them."""

from __future__ import annotations

import json
import logging
import struct

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.errors import CheckpointError, ConfigError
from macmoe.shards import INDEX, Shards, TensorInfo, read_header
from tests.converters.samples import f32, fp8, write_file

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "U8", "shape": [4], "data_offsets": [16, 20]},
}


def write_raw(path, header, data=bytes(20)):
    """Write a file with this header, given as text, bytes or an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(**changes):
    return GOOD | {"a": GOOD["a"] | changes}


def test_header_is_read_in_the_order_of_the_bytes(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": GOOD["b"], "a": GOOD["a"]}
    found = read_header(write_raw(tmp_path / "model.safetensors", header))
    assert list(found.items()) == [
        ("a", TensorInfo(dtype="F32", shape=(2, 2))),
        ("b", TensorInfo(dtype="U8", shape=(4,))),
    ]


BAD_HEADERS = {
    "overlap": (GOOD | {"b": GOOD["b"] | {"data_offsets": [12, 16]}}, "overlap or gap"),
    "gap": ({"a": GOOD["a"], "b": GOOD["b"] | {"data_offsets": [17, 21]}}, "overlap or gap"),
    "beyond the file": (entry(shape=[2, 200], data_offsets=[0, 1600]), "overlap or gap"),
    "bytes without a tensor": ({"a": GOOD["a"]}, "describes 16 bytes of data and the file holds 20"),
    "size of another shape": (entry(shape=[2, 3]), r"16 bytes do not hold F32 \[2, 3\]"),
    "negative size": (entry(shape=[-2, -2]), "not a list of sizes"),
    "true as a size": (entry(shape=[True, 4]), "not a list of sizes"),
    "axis beyond 32 bits": (entry(shape=[2**31, 0], data_offsets=[0, 0]), "not a list of sizes"),
    "backwards": (entry(data_offsets=[16, 0]), "-16 bytes do not hold"),
    "fractional offset": (entry(data_offsets=[0, 16.0]), "not two positions"),
    "one offset": (entry(data_offsets=[16]), "not two positions"),
    "unknown type": (entry(dtype="F12"), "'F12' is not supported"),
    "type that MLX cannot read": (entry(dtype="F64", shape=[2]), "'F64' is not supported"),
    "superfluous key": (entry(extra=1), "must have dtype, shape and data_offsets"),
    "entry that is a list": (GOOD | {"a": []}, "must have dtype, shape and data_offsets"),
    "list": ([], "not a JSON object"),
    "name twice": (b'{"a": {}, "a": {}}', "a name appears twice"),
    "no JSON": (b'{"a": ', "Expecting value"),
    "no UTF-8": (b'{"\xff": 1}', "can't decode"),
    "endless nesting": (b"[" * 100_000, "recursion"),
    "endless number": (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_inconsistent_header_is_refused(tmp_path, case):
    header, message = BAD_HEADERS[case]
    path = write_raw(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        Shards(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 7, 8, 20, -1])
def test_truncated_file_is_refused(tmp_path, size):
    path = write_raw(tmp_path / "model.safetensors", GOOD)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged safetensors file"):
        Shards(tmp_path)


def test_header_length_beyond_the_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(CheckpointError, match="would be 9223372036854775808 bytes long in a file of 10"):
        Shards(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_of_the_header_never_gives_another_exception(tmp_path_factory, position, change):
    path = write_raw(tmp_path_factory.mktemp("fuzz") / "model.safetensors", GOOD)
    raw = bytearray(path.read_bytes())
    raw[position % (len(raw) - 20)] ^= change
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except CheckpointError:
        return
    assert sum(info.nbytes for info in header.values()) == 20


def sharded(folder, where=None):
    """Write two shards and an index that says `where`."""
    write_file(folder / "model-1.safetensors", {"a": f32(np.ones((2, 2)))})
    write_file(folder / "model-2.safetensors", {"b": f32(np.zeros(3))})
    where = {"a": "model-1.safetensors", "b": "model-2.safetensors"} if where is None else where
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


def test_index_leads_to_every_tensor(tmp_path):
    shards = Shards(sharded(tmp_path))
    assert {name: array.tolist() for name, array in shards.read_all()} == {
        "a": [[1, 1], [1, 1]],
        "b": [0, 0, 0],
    }


def test_tensor_can_be_read_again(tmp_path):
    shards = Shards(sharded(tmp_path))
    assert mx.array_equal(shards.read("a"), shards.read("a"))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"a": "model-1.safetensors", "b": "../model-2.safetensors"}, "no safetensors file of this folder"),
        ({"a": "model-1.safetensors", "b": "/etc/passwd"}, "no safetensors file of this folder"),
        ({"a": "model-1.safetensors", "b": "model-2.bin"}, "no safetensors file of this folder"),
        ({"a": "model-1.safetensors", "b": "\0.safetensors"}, "no safetensors file of this folder"),
        ({"a": "model-1.safetensors", "b": "model-3.safetensors"}, "model-3.safetensors is missing"),
        ({"a": "model-1.safetensors", "b": "model-1.safetensors"}, r"disagree about 1 \(b\)"),
        ({"a": "model-1.safetensors"}, None),
        ({"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}, r"1 \(c\)"),
        ({"a": 3}, "no weight_map"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_index_must_name_the_folder_s_own_files(tmp_path, where, message):
    folder = sharded(tmp_path, where)
    if message is None:  # a file that the index does not mention is none of its business
        assert list(Shards(folder).tensors) == ["a"]
        return
    with pytest.raises(CheckpointError, match=message):
        Shards(folder)


def tensors_of(folder, caplog):
    """Return what is read, and the warnings."""
    with caplog.at_level(logging.WARNING):
        found = {name: array.tolist() for name, array in Shards(folder).read_all()}
    return found, [record.getMessage() for record in caplog.records]


OLD = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}


@pytest.mark.parametrize("left", [[], ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]])
def test_a_single_file_goes_before_an_index_of_an_earlier_save(tmp_path, caplog, left):
    """So does transformers, whatever else lies in the folder."""
    for name in left:
        write_file(tmp_path / name, {name: f32(np.ones(3))})
    write_file(tmp_path / "model.safetensors", {"a": f32(np.zeros(2)), "b": f32(np.zeros(1))})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": OLD}))
    found, (warning,) = tensors_of(tmp_path, caplog)
    assert found == {"a": [0, 0], "b": [0]}
    assert warning.startswith(f"{tmp_path / INDEX}: does not describe the files beside it, and is not used")


def test_a_single_file_that_holds_less_than_all_shards_is_not_read(tmp_path, caplog):
    sharded(tmp_path)
    write_file(tmp_path / "model.safetensors", {"a": f32(np.zeros(2))})
    found, (warning,) = tensors_of(tmp_path, caplog)
    assert found == {"a": [[1, 1], [1, 1]], "b": [0, 0, 0]}
    assert (
        warning == f"{tmp_path / 'model.safetensors'}: is not named by the index beside it, and is not read"
    )


def test_an_index_of_other_shards_is_not_used(tmp_path, caplog):
    sharded(tmp_path, {"a": "model-1-of-3.safetensors", "c": "model-3-of-3.safetensors"})
    found, (warning,) = tensors_of(tmp_path, caplog)
    assert found == {"a": [[1, 1], [1, 1]], "b": [0, 0, 0]}
    assert "2 (model-1.safetensors, model-2.safetensors)" in warning


def test_an_index_that_finds_every_tensor_in_another_file_is_not_used(tmp_path, caplog):
    sharded(tmp_path, {"a": "model-2.safetensors", "b": "model-1.safetensors"})
    found, (warning,) = tensors_of(tmp_path, caplog)
    assert found.keys() == {"a", "b"}
    assert "does not describe" in warning


def test_an_index_of_a_single_file_may_name_other_tensors(tmp_path, caplog):
    write_file(tmp_path / "model.safetensors", {"a": f32(np.ones(1))})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"old": "model.safetensors"}}))
    found, (warning,) = tensors_of(tmp_path, caplog)
    assert found == {"a": [1]}
    assert "does not describe" in warning


@pytest.mark.parametrize("name", ["pytorch_model.safetensors", "qwen3-0.6b.safetensors"])
def test_weights_under_another_name_are_found(tmp_path, caplog, name):
    write_file(tmp_path / name, {"a": f32(np.ones(1))})
    write_file(tmp_path / "adapter_model.safetensors", {"b": f32(np.ones(1))})
    assert tensors_of(tmp_path, caplog) == ({"a": [1]}, [])


def test_hidden_files_of_macos_are_no_weights(tmp_path, caplog):
    write_file(tmp_path / "model.safetensors", {"a": f32(np.ones(1))})
    (tmp_path / "._model.safetensors").write_bytes(bytes(100))
    assert tensors_of(tmp_path, caplog) == ({"a": [1]}, [])


def test_index_that_is_no_json_is_refused(tmp_path):
    (sharded(tmp_path) / INDEX).write_text("{")
    with pytest.raises(ConfigError, match="invalid JSON"):
        Shards(tmp_path)


def test_name_in_two_shards_is_refused(tmp_path):
    sharded(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    write_file(tmp_path / "model-2.safetensors", {"a": f32(np.zeros(3))})
    with pytest.raises(CheckpointError, match=r"1 \(a\) tensors are also in model-1.safetensors"):
        Shards(tmp_path)


def test_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    write_file(tmp_path / "elsewhere.safetensors", {"a": f32(np.ones(3))})
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        Shards(tmp_path / "model")


def test_link_to_itself_is_refused(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        Shards(tmp_path)


def test_links_of_a_hub_cache_are_followed(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_file(blobs / "4567", {"a": f32(np.ones(3))})
    (snapshot / "model.safetensors").symlink_to("../../blobs/4567")
    assert Shards(snapshot).read("a").tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"pickles.*get the safetensors form"):
        Shards(tmp_path)


def test_folder_without_weights_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model\*.safetensors file here"):
        Shards(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        Shards(tmp_path / "nowhere")


def test_fp8_keeps_its_name(tmp_path):
    write_file(tmp_path / "model.safetensors", {"a": fp8(np.arange(4, dtype=np.uint8))})
    shards = Shards(tmp_path)
    assert shards.tensors["a"].dtype == "F8_E4M3"
    assert shards.read("a").dtype == mx.uint8
