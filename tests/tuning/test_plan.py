"""Estimates against real adapters and a real peak; what does not fit names what would."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import pytest

from macmoe.adapters.attach import arrays_of, attach, select
from macmoe.checkpoint import parameters_of
from macmoe.errors import MemoryLimitError, UsageError
from macmoe.tuning.config import LoraOptions, TrainOptions, read_run
from macmoe.tuning.plan import Settings, check_fits, estimate
from tests.tuning.test_trainer import trainer
from tests.tuning.tiny import CONFIGS, EVERYTHING, build

WEIGHTS = 1_000_000


def settings(lora: LoraOptions, length: int = 32, **train: object) -> Settings:
    return Settings(lora=lora, train=TrainOptions(**train), row_length=length)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("options", [{}, {"shared": True}, {"rank": 5}], ids=str)
def test_trainable_parameters_are_those_of_the_real_adapters(name: str, options: dict):
    model = build(name)
    lora = LoraOptions(targets=EVERYTHING, **options)
    planned = estimate(model, settings(lora), WEIGHTS, 4).trainable
    adapters = attach(model, select(model, lora.targets, lora.spec))
    assert planned == sum(array.size for array in arrays_of(adapters).values())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_estimate_is_not_below_the_real_peak(name: str, tmp_path: Path):
    run = trainer(name, tmp_path, steps=2, rows=4)
    weights = sum(array.nbytes for path, array in parameters_of(run.model).items() if "lora" not in path)
    lora = LoraOptions(targets=EVERYTHING, rank=2)
    mx.eval(run.model.parameters())
    needed = estimate(build(name), settings(lora, rows=4), weights, 4).total
    mx.clear_cache()
    others = mx.get_active_memory() - weights  # models of tests before this one
    mx.reset_peak_memory()
    run.run()
    assert needed > 0.8 * (mx.get_peak_memory() - others)


def test_what_does_not_fit_names_the_cheapest_changes_and_those_suffice():
    model = build("qwen3_moe")
    wanted = settings(LoraOptions(targets=("experts",)), length=512, rows=4, recompute=False)
    fits = settings(LoraOptions(targets=("experts",)), length=512, rows=1, accumulate=4)
    limit = estimate(model, fits, WEIGHTS, 4).total
    with pytest.raises(MemoryLimitError, match="it would with recompute = true, rows = 1 and acc"):
        check_fits(model, wanted, WEIGHTS, 4, limit)
    assert check_fits(model, fits, WEIGHTS, 4, limit).total == limit
    with pytest.raises(MemoryLimitError, match="; it would not with smaller settings either, so take"):
        check_fits(model, wanted, WEIGHTS, 4, WEIGHTS)


RUN = """
model = "tiny:qwen3"
[data]
data = "chats.jsonl"
[lora]
targets = ["attention", "experts"]
[lora.patterns."*.experts.*"]
rank = 2
[train]
epochs = 3
learning_rate = 1e-3
"""


def test_a_file_gives_the_settings_and_options_go_before_it(tmp_path: Path):
    (tmp_path / "run.toml").write_text(RUN)
    run = read_run(tmp_path / "run.toml", {"train": {"epochs": 5, "rows": None}, "data": {"data": None}})
    assert (run.train.epochs, run.train.learning_rate, run.train.rows) == (5, 1e-3, 1)
    assert run.data.data == "chats.jsonl"
    assert run.lora.targets == ("attention", "experts")
    assert run.lora.overrides()["*.experts.*"].rank == 2


WRONG = {
    "epochs = 3": ("epoch = 3", "unknown setting 'epoch'; did you mean 'epochs'"),
    "learning_rate = 1e-3": ("learning_rate = -1", "above 0"),
    "rank = 2": ("rank = 'two'", "rank is 'two'; it has to be a whole number"),
    'model = "tiny:qwen3"': ("", "'model' is missing; give --model"),
    '[lora.patterns."*.experts.*"]\nrank = 2': ("patterns = 'x'", "'x'; it has to be a section of settings"),
    'data = "chats.jsonl"': ("data = 3", "data is 3; it has to be text"),
    'targets = ["attention", "experts"]': ("targets = [1]", "targets is (1,); it has to be a list of texts"),
    "epochs = 3\nlearning_rate": ("steps = 'x'\nlearning_rate", "steps is 'x'; it has to be a whole number"),
    "epochs = 3\n": ("final_share = 1.5\n", "final_share is 1.5; it has to lie between 0 and 1"),
    "[train]": ("[train", "cannot be read as TOML"),
}


def test_the_name_of_the_data_may_stand_without_a_section(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('model = "tiny:qwen3"\ndata = "chats.jsonl"\n')
    read = [read_run(file, {"data": {"data": data, "max_length": 64}}).data for data in (None, "sums.jsonl")]
    assert [(data.data, data.max_length) for data in read] == [("chats.jsonl", 64), ("sums.jsonl", 64)]


def test_a_value_in_the_place_of_a_section_is_refused_whatever_is_given_besides(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('model = "tiny:qwen3"\ndata = "chats.jsonl"\nlora = 3\n')
    with pytest.raises(UsageError, match="lora is 3; it has to be a section of settings"):
        read_run(file, {"lora": {"rank": 4}})


@pytest.mark.parametrize("right", WRONG)
def test_wrong_settings_are_one_line(tmp_path: Path, right: str):
    wrong, message = WRONG[right]
    (tmp_path / "run.toml").write_text(RUN.replace(right, wrong))
    with pytest.raises(UsageError, match=re.escape(message)):
        read_run(tmp_path / "run.toml", {}).lora.overrides()
