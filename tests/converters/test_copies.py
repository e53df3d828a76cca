"""What should be a copy is compared before it is left out: equal ones go, others stay and are used."""

from __future__ import annotations

import logging

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macmoe.loading import load_model, open_weights
from macmoe.shards import Shards
from macmoe.tuning.fuse import write_fused
from macmoe_converters import open_conversion
from macmoe_converters.verify import verify
from tests.converters import layouts
from tests.converters.samples import (
    CONFIGS,
    assert_same_bits,
    bf16,
    decoded,
    draw,
    draw_array,
    f32,
    from_mlx,
    write_folder,
)

HUB_LAYOUTS = {
    "qwen3": layouts.hub,
    "qwen3_moe": layouts.hub,
    "gpt_oss": layouts.dequantized,
    "deepseek_v3": layouts.hub,
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = mx.array([[5, 17, 42, 3, 60, 33]])


def tied_folder(folder, family, head):
    """Write a model whose config says that it is tied, and which has a head; return its weights, too."""
    config = CONFIGS[family] | {"tie_word_embeddings": True}
    if "num_nextn_predict_layers" in config:
        config |= {"num_nextn_predict_layers": 0}
    weights = draw(config)
    stored = HUB_LAYOUTS[family](weights, config)
    return write_folder(folder, config, stored | {HEAD: head(stored[EMBEDDING])}), weights


def another(seed=1, shape=(64, 64)):
    return draw_array(shape, np.random.default_rng(seed))


def messages(caplog, folder):
    with caplog.at_level(logging.WARNING):
        conversion = open_conversion(folder)
    return conversion, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("family", HUB_LAYOUTS)
def test_another_head_of_a_tied_model_is_kept(tmp_path, caplog, family):
    head = another(shape=(64, CONFIGS[family]["hidden_size"]))
    folder, weights = tied_folder(tmp_path / "model", family, lambda _: bf16(head))
    conversion, (warning,) = messages(caplog, folder)
    assert f"{HEAD} is another matrix than {EMBEDDING}" in warning
    assert conversion.config["tie_word_embeddings"] is False
    assert_same_bits(decoded(conversion.config, dict(conversion.tensors())), weights | {HEAD: head})


@pytest.mark.parametrize("to", ["macmoe", "hub", "mlx-lm"])
@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "deepseek_v3"])
def test_every_layout_holds_another_head(tmp_path, family, to):
    head = bf16(another(shape=(64, CONFIGS[family]["hidden_size"])))
    folder, _ = tied_folder(tmp_path / "model", family, lambda _: head)
    conversion = open_conversion(folder)
    conversion.write(tmp_path / "out", to=to)
    verify(conversion, tmp_path / "out", to=to)
    shards = Shards(tmp_path / "out")
    assert shards.tensors[HEAD].dtype == "BF16"
    assert shards.read_bytes(HEAD, 0, head.array.nbytes).tobytes() == head.array.tobytes()
    again = open_conversion(tmp_path / "out")
    assert again.config["tie_word_embeddings"] is False
    assert np.array_equal(*(load_model(each)[1](TOKENS) for each in (folder, tmp_path / "out")))


def test_a_fused_model_has_the_other_head(tmp_path):
    folder, _ = tied_folder(tmp_path / "model", "qwen3", lambda _: bf16(another()))
    write_fused(open_weights(folder), {}, tmp_path / "fused", {})
    before, after = (load_model(each)[1] for each in (folder, tmp_path / "fused"))
    assert dict(tree_flatten(after.parameters())).keys() == dict(tree_flatten(before.parameters())).keys()
    assert mx.array_equal(before(TOKENS), after(TOKENS))


def wider(tensor):
    return f32((tensor.array.astype(np.uint32) << 16).view(np.float32))


def finer(tensor):
    """Store numbers that are the embedding's when they are rounded to its type."""
    return f32(wider(tensor).array * np.float32(1 + 2**-12))


@pytest.mark.parametrize("head", [lambda tensor: tensor, wider, finer], ids=["same", "wider", "finer"])
@pytest.mark.parametrize("family", HUB_LAYOUTS)
def test_an_equal_head_is_left_out(tmp_path, caplog, family, head):
    folder, weights = tied_folder(tmp_path / "model", family, head)
    conversion, warnings = messages(caplog, folder)
    assert (conversion.config["tie_word_embeddings"], warnings) == (True, [])
    assert_same_bits(decoded(conversion.config, dict(conversion.tensors())), weights)


def test_zeros_of_another_sign_are_equal(tmp_path):
    config = CONFIGS["qwen3"] | {"tie_word_embeddings": True}
    stored = layouts.hub(draw(config), config)
    values = another()
    values[3] = 0
    stored |= {EMBEDDING: bf16(values), HEAD: bf16(np.where(values == 0, np.float32(-0.0), values))}
    assert open_conversion(write_folder(tmp_path / "model", config, stored)).copies[0].equal


def packed(name, matrix, bits):
    """Store a matrix as mlx-lm does, and say what it is then, rounded to its type."""
    codes, *parts = mx.quantize(matrix, group_size=32, bits=bits)
    wide = (part.astype(mx.float32) for part in parts)
    values = mx.dequantize(codes, *wide, group_size=32, bits=bits).astype(matrix.dtype)
    path = name.removesuffix(".weight")
    names = [f"{path}.{part}" for part in ("weight", "scales", "biases")]
    return dict(zip(names, map(from_mlx, (codes, *parts)), strict=True)), values


def packed_folder(folder, tensors, **entries):
    config = CONFIGS["qwen3"] | {"tie_word_embeddings": True}
    entries = {path: {"group_size": 32, "bits": bits} for path, bits in entries.items()}
    stored = {name: each for name, each in layouts.hub(draw(config), config).items() if name != EMBEDDING}
    settings = {
        "group_size": 32,
        "bits": 4,
        **{path.replace("__", "."): how for path, how in entries.items()},
    }
    return write_folder(folder, config | {"quantization": settings}, stored | tensors)


MATRIX = mx.array(another()).astype(mx.bfloat16)


@pytest.mark.parametrize(("bits", "equal"), [(4, True), (8, False)])
def test_packed_copies_are_compared_by_what_they_stand_for(tmp_path, bits, equal):
    tensors = packed(EMBEDDING, MATRIX, 4)[0] | packed(HEAD, MATRIX, bits)[0]
    folder = packed_folder(tmp_path / "model", tensors, model__embed_tokens=4, lm_head=bits)
    conversion = open_conversion(folder)
    assert conversion.copies[0].equal == conversion.config["tie_word_embeddings"] == equal
    assert ("lm_head.scales" in conversion.infos) is not equal


@pytest.mark.parametrize("which", [EMBEDDING, HEAD])
def test_a_packed_matrix_and_its_decoded_values_are_equal(tmp_path, which):
    stored, values = packed(which, MATRIX, 4)
    (other,) = {EMBEDDING, HEAD} - {which}
    folder = packed_folder(tmp_path / "model", stored | {other: from_mlx(values)}, model__embed_tokens=4)
    assert open_conversion(folder).copies[0].equal


def test_a_head_that_was_never_packed_is_finer_than_the_embedding_and_stays(tmp_path):
    tensors = packed(EMBEDDING, MATRIX, 4)[0] | {HEAD: from_mlx(MATRIX)}
    conversion = open_conversion(packed_folder(tmp_path / "model", tensors, model__embed_tokens=4))
    assert conversion.config["tie_word_embeddings"] is False


COPIES = {
    "mtp_own_embedding": "model.layers.2.embed_tokens.weight",
    "mtp_own_head": "model.layers.2.shared_head.head.weight",
}


def prediction_folder(folder, own):
    """Write a DeepSeek model whose prediction layer has its own embedding, head, or both."""
    config = CONFIGS["deepseek_v3"]
    stored = layouts.hub(draw(config), config)
    width = config["hidden_size"]
    changed = {COPIES[switch]: bf16(another(i, (64, width))) for i, switch in enumerate(own, 2)}
    return write_folder(folder, config, stored | changed), stored | changed


@pytest.mark.parametrize("own", [["mtp_own_embedding"], ["mtp_own_head"], list(COPIES)])
@pytest.mark.parametrize("through", ["macmoe", None])
def test_a_prediction_layer_keeps_matrices_of_its_own(tmp_path, own, through):
    folder, stored = prediction_folder(tmp_path / "model", own)
    conversion = open_conversion(folder)
    assert {switch for switch in COPIES if conversion.config.get(switch)} == set(own)
    if through:
        conversion.write(tmp_path / "macmoe")
        verify(conversion, tmp_path / "macmoe")
        conversion = open_conversion(tmp_path / "macmoe")
    conversion.write(tmp_path / "hub", to="hub")
    verify(conversion, tmp_path / "hub", to="hub")
    shards = Shards(tmp_path / "hub")
    assert shards.tensors.keys() == stored.keys()
    for name in COPIES.values():
        raw = stored[name].array
        assert shards.read_bytes(name, 0, raw.nbytes).tobytes() == raw.tobytes(), name
    config = (tmp_path / "hub" / "config.json").read_text()
    assert "mtp_own" not in config


def test_drafts_are_made_with_the_matrices_of_the_prediction_layer(tmp_path):
    folder, _ = prediction_folder(tmp_path / "model", COPIES)
    model, hidden = load_model(folder)[1], mx.random.normal((1, 6, CONFIGS["deepseek_v3"]["hidden_size"]))
    own = model.mtp_logits(hidden, TOKENS)
    layer = model.mtp[0]
    borrowed = load_model(prediction_folder(tmp_path / "other", [])[0])[1]
    assert not mx.allclose(own, borrowed.mtp_logits(hidden, TOKENS))
    borrowed.model.embed_tokens.weight = layer.embed_tokens.weight
    borrowed.lm_head.weight = layer.shared_head.head.weight
    assert mx.array_equal(own, borrowed.mtp_logits(hidden, TOKENS))


def test_mlx_lm_s_layout_has_no_prediction_layer_whosever_its_matrices(tmp_path):
    conversion = open_conversion(prediction_folder(tmp_path / "model", COPIES)[0])
    conversion.write(tmp_path / "out", to="mlx-lm")
    verify(conversion, tmp_path / "out", to="mlx-lm")
    assert "mtp_own" not in (tmp_path / "out" / "config.json").read_text()


BUFFERS = (
    "model.rotary_emb.inv_freq",
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.0.self_attn.rotary_emb.cos_cached",
    "model.layers.1.self_attn.masked_bias",
    "model.layers.1.self_attn.bias",
)


@pytest.mark.parametrize("family", HUB_LAYOUTS)
def test_tables_and_masks_are_left_out(tmp_path, family):
    config = CONFIGS[family]
    weights = draw(config)
    stored = HUB_LAYOUTS[family](weights, config) | dict.fromkeys(BUFFERS, f32(np.ones((2, 2))))
    conversion = open_conversion(write_folder(tmp_path / "model", config, stored))
    assert_same_bits(decoded(conversion.config, dict(conversion.tensors())), weights)
