"""A run's config: what it refuses, and the forms that it is written in and read back from."""

import dataclasses
import json

import pytest
import tyro

from jxfer import disk
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import AugmentConfig
from jxfer.losses.classification import LossConfig
from jxfer.losses.regularise import RegulariseConfig
from jxfer.train import config as configs
from jxfer.train import run_folder
from jxfer.train.config import TrainConfig
from jxfer.train.feature_store import CacheConfig
from jxfer.train.selection import evaluation_steps
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

DIGITS = DataConfig("digits")
FULL = TrainConfig(
    data=DataConfig("digits", split_seed=3, val_fraction=0.25, per_class=5),
    model=ModelConfig(weights="somewhere", through="stage2", image_size=64),
    strategy=StrategyConfig("partial", "stage1"),
    optimizer=OptimizerConfig(name="adamw", lr=1e-3, backbone_lr=3e-5, clip_norm=1.0),
    augment=AugmentConfig(
        flip=True,
        random_resized_crop=True,
        crop_scale=(0.2, 0.9),
        randaugment=(2, 9),
        mixup=0.2,
        cutmix=1.0,
    ),
    loss=LossConfig(label_smoothing=0.1, class_weights="balanced"),
    regularise=RegulariseConfig(delta=0.1, bss=0.001, bss_k=2),
    epochs=0.1,
    seed=7,
    accumulate=2,
    compute_dtype="bfloat16",
    ema_decay=0.99,
    patience=3,
    zoo="my/zoo",
)


@pytest.mark.parametrize(
    ("field", "value", "option"),
    [
        ("epochs", 0.0, "--epochs 0"),
        ("epochs", float("nan"), "--epochs nan"),
        ("epochs", float("inf"), "--epochs inf"),
        ("cache", CacheConfig(max_gb=float("inf")), "--cache.max-gb inf"),
        ("optimizer", OptimizerConfig(warmup_epochs=float("inf")), "--optimizer.warmup-epochs inf"),
        ("batch_size", 0, "--batch-size 0"),
        ("batch_size", -8, "--batch-size -8"),
        ("eval_every", -1.0, "--eval-every -1"),
        ("log_every", 0, "--log-every 0"),
        ("checkpoint_every", 0, "--checkpoint-every 0"),
        ("seed", -1, "--seed -1"),
        ("accumulate", 0, "--accumulate 0"),
        ("patience", 0, "--patience 0"),
        ("ema_decay", 1.0, "--ema-decay 1"),
        ("ema_decay", 0.0, "--ema-decay 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_option(field, value, option, one_line):
    with one_line(option, "must be"):
        TrainConfig(DIGITS, **{field: value})


def test_rare_classes_are_made_up_for_once(one_line):
    with one_line("--data.balanced-sampling", "--loss.class-weights"):
        TrainConfig(
            DataConfig("digits", balanced_sampling=True), loss=LossConfig(class_weights="balanced")
        )


@pytest.mark.parametrize("config", [TrainConfig(DIGITS), FULL], ids=["defaults", "everything"])
def test_a_config_reads_back_from_its_json_as_it_was(config, tmp_path):
    disk.write_json(tmp_path / "config.json", configs.to_dict(config))
    assert run_folder.read_config(tmp_path) == config


def test_the_dict_of_a_config_is_what_its_json_reads_back_as():
    values = configs.to_dict(FULL)
    assert json.loads(json.dumps(values)) == values
    assert values["augment"]["crop_scale"] == [0.2, 0.9]
    assert values["optimizer"]["backbone_lr"] == 3e-5


def with_lengths(**fields):
    return dataclasses.replace(TrainConfig(DIGITS, batch_size=10), **fields)


@pytest.mark.parametrize(
    ("fields", "examples", "expected"),
    [
        ({"epochs": 3.0}, 100, [10, 20, 30]),
        ({"epochs": 3.0}, 95, [10, 19, 29]),  # 9.5 steps an epoch, rounded up
        ({"epochs": 2.5}, 100, [10, 20, 25]),
        ({"epochs": 4.0, "eval_every": 2.0}, 100, [20, 40]),
        ({"epochs": 5.0, "eval_every": 2.0}, 100, [20, 40, 50]),
        ({"epochs": 1.0, "eval_every": 0.25}, 100, [3, 5, 8, 10]),
        ({"epochs": 1.0, "eval_every": 9.0}, 100, [10]),
        ({"epochs": 0.001}, 100, [1]),
        ({"epochs": 3.0, "eval_every": 0.1}, 10, [1, 2, 3]),
        ({"epochs": 3.0, "eval_every": 1e-300}, 10, [1, 2, 3]),
        ({"epochs": 3.0}, 4, [1, 2]),  # less than a batch an epoch
    ],
)
def test_evaluations_fall_at_the_end_of_epochs_and_of_the_run(fields, examples, expected):
    assert evaluation_steps(with_lengths(**fields), examples) == expected


def test_more_steps_than_can_be_listed_are_refused(one_line):
    with one_line("--epochs 1e+300", "100,000,000 steps"):
        evaluation_steps(with_lengths(epochs=1e300), 100)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(DataConfig("digits")),
        TrainConfig(
            DataConfig("folder:a b", per_class=10, balanced_sampling=True),
            ModelConfig(weights="x", reuse=("stem", "stage1")),
            StrategyConfig("rules", rules=("params/head/.*=head", ".*=frozen")),
            OptimizerConfig(lr=1e-5, nesterov=True, stage_lrs=("stage1=1e-4",)),
            loss=LossConfig(label_smoothing=0.1),
            epochs=0.5,
            ema_decay=0.999,
            seed=3,
        ),
    ],
)
def test_the_options_of_a_config_make_it_again(config):
    start = TrainConfig(DataConfig(tyro.MISSING))
    options = configs.to_options(configs.to_dict(config))
    made = tyro.cli(
        TrainConfig, default=start, args=options, config=(tyro.conf.FlagCreatePairsOff,)
    )
    assert made == config


def test_every_switch_is_off_by_default():
    flat = configs.to_dict(TrainConfig(DataConfig("digits")))
    found = [value for part in flat.values() if isinstance(part, dict) for value in part.values()]
    assert True not in [value for value in [*found, *flat.values()] if isinstance(value, bool)]
