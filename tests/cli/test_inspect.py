"""`macmoe inspect`: the whole table, and the same figures as JSON."""

from __future__ import annotations

import json

import pytest

from macmoe.cli.inspect import tables

TABLE = """\
                                            gpt-oss-20b            qwen3-30b-a3b          deepseek-v3
family                                          gpt_oss                    qwen3          deepseek_v3
layers x width                                24 x 2880                48 x 2048            61 x 7168
vocabulary                                      201,088                  151,936              129,280
attention                          GQA 64/8 x 64, sinks  GQA 32/4 x 128, QK norm   MLA 128 x 512 + 64
sliding window                   128 in 12 of 24 layers                        -                    -
positions                             YaRN x32 of 4,096                     RoPE    YaRN x40 of 4,096
longest context                                 131,072                   40,960              163,840
experts                                         4 of 32                 8 of 128  8 of 256 + 1 shared
parameters                               20,914,757,184           30,532,122,624      671,026,419,200
  without embedding and output           19,756,490,304           29,909,792,768      669,173,061,120
  active per token                        3,608,307,264            3,041,867,776       36,625,618,432
  active, embedding included              4,187,440,704            3,353,032,704       37,552,297,472
  multi-token prediction, apart                       -                        -       11,610,068,224
stored bits per weight                             5.26                    16.00                 8.03
stored                                        12.82 GiB                56.87 GiB           637.83 GiB
cache per token (bf16)                         24,576 B                 98,304 B             70,272 B
cache at 32,768                                0.75 GiB                 3.00 GiB             2.14 GiB
cache at 131,072                               3.00 GiB                 too long             8.58 GiB
"""


def test_three_families_side_by_side(macmoe):
    result = macmoe("inspect", "gpt-oss-20b", "qwen3-30b-a3b", "deepseek-v3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == TABLE


def test_json_has_the_figures_as_numbers(macmoe):
    result = macmoe("inspect", "gpt-oss-20b", "--context", "1000", "--json")
    (figures,) = json.loads(result.stdout)
    assert figures["parameters_active"] == 3_608_307_264
    assert figures["sliding_windows"] == [128] * 12
    assert figures["cache_bytes"] == {"1000": 24_576 * 1000 + 3 * 2**20}
    assert figures["stored_bits_per_weight"] > 5
    assert isinstance(figures["stored_bytes"], int)


@pytest.mark.parametrize(
    ("width", "models"), [(None, [3]), (80, [3]), (25, [3]), (24, [2, 1]), (17, [1, 1, 1]), (1, [1, 1, 1])]
)
def test_as_many_models_are_side_by_side_as_there_is_room_for(width, models):
    columns = [{"": name, "size": "1 GiB"} for name in ("a", "b", "c")]
    parts = [[line.split() for line in part.splitlines()] for part in tables(columns, width)]
    assert [len(part[0]) for part in parts] == models
    assert [name for part in parts for name in part[0]] == ["a", "b", "c"]
    assert all(part[1] == ["size", *["1", "GiB"] * len(part[0])] for part in parts)


def test_a_packed_cache_is_said_to_be_one(macmoe):
    result = macmoe("inspect", "gpt-oss-20b", "--context", "1000", "--cache-bits", "8")
    rows = [line.split("  ")[0] for line in result.stdout.splitlines()[-2:]]
    assert rows == ["cache per token (8 bits)", "cache at 1,000"]
    figures = json.loads(macmoe("inspect", "gpt-oss-20b", "--cache-bits", "8", "--json").stdout)
    assert (figures[0]["cache_bits"], figures[0]["cache_bytes_per_token"]) == (8, 13_056)


def test_a_recipe_behind_the_name_is_taken_for_the_stored_size(macmoe):
    (figures,) = json.loads(macmoe("inspect", "qwen3-30b-a3b:4bit", "--json").stdout)
    assert 4.5 <= figures["stored_bits_per_weight"] < 4.51


def test_small_sizes_are_readable(macmoe):
    result = macmoe("inspect", "qwen3-0.6b", "--context", "1", "--context", "100")
    sizes = [line.split()[-2:] for line in result.stdout.splitlines()[-2:]]
    assert sizes == [["112.00", "KiB"], ["10.94", "MiB"]]


def test_a_model_of_another_family_is_refused(macmoe, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    result = macmoe("inspect", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {tmp_path}: model_type 'qwen2' is not supported "
        "(supported: gpt_oss, qwen3, qwen3_moe, deepseek_v3)\n"
    )
