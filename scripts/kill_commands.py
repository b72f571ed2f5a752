"""The commands that `kill_anywhere` kills, what they start from, and the places of their kills."""

import dataclasses
import pathlib

from jxfer.data.transforms import CIFAR
from jxfer.models import registry
from jxfer.zoo import export, store
from jxfer.zoo.card import Card

_DIGITS = ("--data.source", "digits")
_COMPILING = {"compiling": "jax._src.compiler:backend_compile_and_load"}
_TRAINING = {
    **_COMPILING,
    "a step": "jxfer.train.log:TrainingLog.add",
    "evaluating": "jxfer.train.judge:Judge.evaluate",
    "testing": "jxfer.train.judge:Judge.conclude",
    "a line of metrics": "jxfer.train.writers:Writers.write",
}
_CACHES = {
    "the cache of programs": r"cache/compiled/",
    "the cache of the frozen part": r"cache/features/",
    "preparing the data": r"cache/embedded/",
}
_RUN = {
    "saving a checkpoint": r"{}/checkpoints/",
    "the logs": r"{}/(metrics|events)",
    "the model's entry": r"{}/\.?model",
    "other files of a run": r"{}/",
}


def _run_files(run: str) -> dict[str, str]:
    return {place: pattern.format(run) for place, pattern in _RUN.items()}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, with relative paths, and the places where it is killed besides start and end."""

    args: tuple[str, ...]
    calls: dict[str, str]
    files: dict[str, str]
    imports: tuple[str, ...]
    """Modules that the process has before it forks."""


_DATA = ("tensorflow_datasets", "sklearn.datasets")
COMMANDS = {
    "train": Command(
        (
            *("train", "--run", "run", *_DIGITS, "--data.per-class", "8", "--batch-size", "16"),
            *("--model.weights", "../backbone", "--model.image-size", "16", "--cache.mode", "disk"),
            *("--strategy.name", "lp_ft", "--optimizer.name", "sgd", "--optimizer.lr", "0.05"),
            *("--ema-decay", "0.9", "--epochs", "4", "--log-every", "3", "--checkpoint-every", "4"),
        ),
        _TRAINING | {"switching the phase": "jxfer.train.phases:Course.enter"},
        _run_files("run") | _CACHES,
        ("jxfer.commands.train", *_DATA),
    ),
    "ablate": Command(
        ("ablate", "../table.py", "--out", "out"),
        _TRAINING,
        _run_files(r"out/cells/\w+") | {"the sweep's files": r"out/"} | _CACHES,
        ("jxfer.commands.ablate", *_DATA),
    ),
    "features": Command(
        (
            *("features", "../backbone", "--out", "out", *_DIGITS, "--batch-size", "64"),
            *("--outputs", "stem", "pooled"),
        ),
        _COMPILING | {"a block of rows": "jxfer.probe.feature_writer:_Parts.append"},
        {
            "files of features": r"out/",
            **{place: _CACHES[place] for place in ("the cache of programs", "preparing the data")},
        },
        ("jxfer.commands.features", *_DATA),
    ),
    "zoo import": Command(
        (
            *("zoo", "import", "../backbone.safetensors", "--arch", "resnet20", "--headless"),
            *("--through", "stage1", "--zoo", "zoo"),
        ),
        {"converting": "jxfer.zoo.weights:convert"},
        {"the entry": r"zoo/"},
        ("jxfer.commands.zoo_import",),
    ),
}

_TABLE = '''"""Claim: the head alone is enough."""

from jxfer.ablate.experiment import Experiment, Setting
from jxfer.data.sources import DataConfig
from jxfer.train.config import TrainConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig


def cell(setting, arm, choice, seed):
    return TrainConfig(
        data=DataConfig("digits", per_class=8),
        model=ModelConfig(weights="../backbone", image_size=16),
        strategy=StrategyConfig(arm),
        batch_size=16,
        epochs=2,
        checkpoint_every=4,
        log_every=3,
        seed=seed,
    )


def experiment(small=False):
    return Experiment(
        title="digits",
        settings=(Setting("digits"),),
        arms=("linear_probe", "full"),
        cell=cell,
        seeds=(0, 1),
        choices=dict.fromkeys(("linear_probe", "full"), ({},)),
    )
'''


def prepare(folder: pathlib.Path) -> None:
    """What the commands start from."""
    model = registry.create("resnet20", None, through="stage1")
    card = Card("backbone", "resnet20", (), CIFAR, through="stage1")
    variables = model.init(0)
    card = store.save(folder / "backbone", card, variables)
    export.to_torch(card, variables, folder / "backbone.safetensors")
    (folder / "table.py").write_text(_TABLE)
