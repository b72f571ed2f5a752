"""A small experiment on the test images, declared as a user would: in a file."""

FILE = '''"""Claim: training beats a frozen random network."""

import dataclasses
import os
import pathlib
import signal

from jxfer.ablate.claims import Greater
from jxfer.ablate.experiment import PARENT, Cell, Experiment, Setting
from jxfer.data.sources import DataConfig
from jxfer.train.config import TrainConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig


def cell(setting, arm, choice, seed):
    return TrainConfig(
        data=DataConfig("folder:IMAGES"),
        model=ModelConfig(arch="resnet20", through="stage1"),
        strategy=StrategyConfig("scratch"),
        optimizer=OptimizerConfig(lr=choice["lr"]),
        batch_size=16,
        epochs=1 if arm == "short" else 3,
        seed=seed,
    )


def _after(setting, arm, choice, seed):
    source = cell(setting, "short", {"lr": 0.05}, 0)
    config = cell(setting, arm, choice, seed)
    model = ModelConfig(weights=PARENT, head="keep")
    if arm == "short":
        return config
    strategy = StrategyConfig("linear_probe")
    return Cell(dataclasses.replace(config, model=model, strategy=strategy), after=Cell(source))


def _deadly(folder):
    if '"seed": 1' in (folder / "config.json").read_text():
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def _interrupted(folder):
    raise SystemExit


def _careless(folder):
    if '"seed": 1' in (folder / "config.json").read_text():
        raise ValueError("no such\\nthing")
    return 2.0


def experiment(small=False):
    fields = dict(
        title="a small table",
        settings=(Setting("images"),),
        arms=("short", "long"),
        cell=cell,
        seeds=(0, 1) if small else (0, 1, 2),
        choices={"short": ({"lr": 0.05},), "long": ({"lr": 0.05},)},
        claims=(Greater("long", "short"),),
    )
    return Experiment(**(fields | dict(CHANGES)))
'''
