"""Counts and cache sizes against published figures.

Expected values: the model cards and reports (20.91 B / 3.61 B, 671 B / 37 B, ...), refined to exact counts by
independent arithmetic on the published shapes; sizes of the caches likewise.
"""

from __future__ import annotations

import json

import mlx.core as mx
import pytest

from macmoe.errors import CheckpointError, ConfigError
from macmoe.inspection import CONFIGS, Architecture, describe, find_config, packaged_configs
from macmoe.names import PUBLISHED

GIB = 2**30

# name: total, body, active body, active (body + output), active with embedding
PARAMETERS = {
    "gpt-oss-20b": (20_914_757_184, 19_756_490_304, 3_029_173_824, 3_608_307_264, 4_187_440_704),
    "gpt-oss-120b": (116_829_156_672, 115_670_889_792, 4_553_716_032, 5_132_849_472, 5_711_982_912),
    "qwen3-0.6b": (596_049_920, 440_467_456, 440_467_456, 596_049_920, 596_049_920),
    "qwen3-1.7b": (1_720_574_976, 1_409_410_048, 1_409_410_048, 1_720_574_976, 1_720_574_976),
    "qwen3-4b": (4_022_468_096, 3_633_511_936, 3_633_511_936, 4_022_468_096, 4_022_468_096),
    "qwen3-8b": (8_190_735_360, 6_946_075_648, 6_946_075_648, 7_568_405_504, 8_190_735_360),
    "qwen3-14b": (14_768_307_200, 13_212_482_560, 13_212_482_560, 13_990_394_880, 14_768_307_200),
    "qwen3-32b": (32_762_123_264, 31_206_298_624, 31_206_298_624, 31_984_210_944, 32_762_123_264),
    "qwen3-30b-a3b": (30_532_122_624, 29_909_792_768, 2_730_702_848, 3_041_867_776, 3_353_032_704),
    "qwen3-235b-a22b": (235_093_634_560, 233_848_974_848, 20_946_103_808, 21_568_433_664, 22_190_763_520),
    "deepseek-v3": (671_026_419_200, 669_173_061_120, 35_698_939_392, 36_625_618_432, 37_552_297_472),
}

# name: bytes per token, GiB at 32K, 128K, 256K (None: beyond what the model is for)
CACHE = {
    "gpt-oss-20b": (24_576, 0.75, 3.00, None),
    "gpt-oss-120b": (36_864, 1.13, 4.50, None),
    "qwen3-0.6b": (114_688, 3.50, 14.0, None),
    "qwen3-1.7b": (114_688, 3.50, 14.0, None),
    "qwen3-4b": (147_456, 4.50, 18.0, 36.0),
    "qwen3-8b": (147_456, 4.50, 18.0, 36.0),
    "qwen3-14b": (163_840, 5.00, 20.0, None),
    "qwen3-32b": (262_144, 8.00, 32.0, None),
    "qwen3-30b-a3b": (98_304, 3.00, 12.0, 24.0),
    "qwen3-235b-a22b": (192_512, 5.88, 23.5, 47.0),
    "deepseek-v3": (70_272, 2.14, 8.58, None),
}


def inspect(name: str) -> Architecture:
    return describe(name, *find_config(name))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    counted = inspect(name).parameters
    assert (
        counted.total,
        counted.body,
        counted.active_body,
        counted.active,
        counted.active_with_embedding,
    ) == PARAMETERS[name]


@pytest.mark.parametrize("name", CACHE)
def test_cache_sizes_are_the_published_ones(name):
    model = inspect(name)
    per_token, *sizes = CACHE[name]
    assert model.cache_bytes_per_token == per_token
    for context, size in zip((2**15, 2**17, 2**18), sizes, strict=True):
        if size is not None:
            assert model.cache_bytes(context) / GIB == pytest.approx(size, abs=0.0051)


@pytest.mark.parametrize(("name", "mebibytes"), [("gpt-oss-20b", 3.0), ("gpt-oss-120b", 4.5)])
def test_windows_add_a_fixed_size(name, mebibytes):
    model = inspect(name)
    fixed = model.cache_bytes(100_000) - 100_000 * model.cache_bytes_per_token
    assert fixed == mebibytes * 2**20


# 8 bits and, for 64 numbers, two of 16 bits: 34 bytes instead of 64; sliding layers stay as they are.
@pytest.mark.parametrize("name", ["gpt-oss-20b", "qwen3-30b-a3b", "deepseek-v3"])
def test_a_packed_cache_grows_by_half_as_much(name):
    full, packed = inspect(name), describe(name, *find_config(name), cache_bits=8)
    assert packed.cache_bytes_per_token == full.cache_bytes_per_token * 17 // 32
    windows = [one.cache_bytes(10_000) - 10_000 * one.cache_bytes_per_token for one in (full, packed)]
    assert windows[0] == windows[1]


def test_a_context_shorter_than_the_window_needs_less():
    model = inspect("gpt-oss-20b")
    assert (
        model.cache_bytes(64) == 64 * 2 * model.cache_bytes_per_token
    )  # as many sliding layers as full ones


def test_multi_token_prediction_is_counted_apart():
    assert inspect("deepseek-v3").parameters.mtp == 11_610_068_224


@pytest.mark.parametrize(("name", "gibibytes"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_stored_sizes_are_those_of_the_model_card(name, gibibytes):
    assert inspect(name).stored_bytes / GIB == pytest.approx(gibibytes, abs=0.05)


@pytest.mark.parametrize(("name", "bits"), [("qwen3-8b", 16.0), ("deepseek-v3", 8.03)])
def test_stored_bits_per_weight(name, bits):
    assert inspect(name).stored_bits == pytest.approx(bits, abs=0.005)


@pytest.mark.parametrize(
    ("name", "attention", "positions", "experts"),
    [
        ("gpt-oss-120b", "GQA 64/8 x 64, sinks", "YaRN x32 of 4,096", (128, 4, 0)),
        ("qwen3-235b-a22b", "GQA 64/4 x 128, QK norm", "RoPE", (128, 8, 0)),
        ("qwen3-32b", "GQA 64/8 x 128, QK norm", "RoPE", (0, 0, 0)),
        ("deepseek-v3", "MLA 128 x 512 + 64", "YaRN x40 of 4,096", (256, 8, 1)),
    ],
)
def test_architecture_in_words(name, attention, positions, experts):
    model = inspect(name)
    assert (model.attention, model.positions) == (attention, positions)
    assert (model.experts, model.top_k, model.shared_experts) == experts


# A published name for each configuration, as the models that share one need no test each.
CONFIGURATIONS = {(model.shape, str(model.changes)): name for name, model in PUBLISHED.items()}


@pytest.mark.parametrize("name", CONFIGURATIONS.values())
def test_every_packaged_configuration_is_complete(name):
    assert inspect(name).parameters.total > 0


def test_every_packaged_configuration_has_a_name():
    assert {shape for shape, _ in CONFIGURATIONS} == {path.stem for path in CONFIGS.iterdir()}
    assert set(packaged_configs()) >= set(PUBLISHED)


def test_a_repository_is_described_without_asking_the_hub():
    assert find_config("openai/GPT-OSS-20b") == find_config("gpt-oss-20b")


def test_names_are_found_in_any_case():
    assert find_config("GPT-OSS-20B") == find_config("gpt-oss-20b")


def test_a_folder_is_described_with_its_size_on_disk(tmp_path):
    config, _ = find_config("qwen3-0.6b")
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros(1000)})
    assert find_config(str(tmp_path)) == (config, path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        find_config(str(tmp_path))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"gpt-oss-21b.*did you mean 'gpt-oss-20b'\?"):
        find_config("gpt-oss-21b")


def test_hub_model_without_network_is_one_line():
    with pytest.raises(CheckpointError, match=r"owner/none: .*HF_HUB_OFFLINE is set and no copy"):
        find_config("owner/none")
