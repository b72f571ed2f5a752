"""A small folder of images, a small config on it, a pretrained entry, and a run in a process."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jxfer import disk, trees
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import CIFAR, AugmentConfig
from jxfer.losses.adaptation import AdaptConfig
from jxfer.models import registry
from jxfer.models.heads import HeadConfig
from jxfer.train import config as configs
from jxfer.train.checkpoint import Checkpoints
from jxfer.train.config import TrainConfig
from jxfer.train.feature_store import CacheConfig
from jxfer.train.phases import Course
from jxfer.train.plans import set_up
from jxfer.train.selection import evaluation_steps
from jxfer.train.state import TrainState
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.trees import Tree
from jxfer.zoo import store
from jxfer.zoo.card import Card
from jxfer.zoo.pretrained import ModelConfig
from tests.conftest import CLASSES
from tests.train.steps import SGD

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN_AGAIN = (
    "import sys, pathlib; from jxfer.train import loop, run_folder; "
    "folder = pathlib.Path(sys.argv[1]); "
    "loop.run_config(run_folder.read_config(folder), folder, quiet=True)"
)


@pytest.fixture(scope="session")
def small_config(images: pathlib.Path) -> Callable[..., TrainConfig]:
    """ResNet-20 through stage 1, from random weights, 16 images a step; fields by keyword."""

    def make(**fields: object) -> TrainConfig:
        small = {
            "data": DataConfig(f"folder:{images}"),
            "model": ModelConfig(arch="resnet20", through="stage1"),
            "strategy": StrategyConfig("scratch"),
            "optimizer": OptimizerConfig(lr=0.05),
            "augment": AugmentConfig(flip=True, pad_crop=2),
            "batch_size": 16,
            "epochs": 4.0,
            "log_every": 2,
            "checkpoint_every": 4,
        }
        return TrainConfig(**{**small, **fields})

    return make


@pytest.fixture(scope="session")
def make_entry(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Saves a random ResNet-20 through stage 2 as a zoo entry and returns its path."""

    def make(batchnorm: str) -> str:
        model = registry.create("resnet20", 10, through="stage2")
        card = Card(
            name=batchnorm,
            arch="resnet20",
            class_names=tuple("0123456789"),
            preprocessing=CIFAR,
            through="stage2",
            batchnorm=batchnorm,
        )
        folder = tmp_path_factory.mktemp("zoo") / batchnorm
        store.save(folder, card, model.init(7))
        return str(folder)

    return make


@pytest.fixture(scope="session")
def entries(make_entry: Callable[..., str]) -> dict[str, str]:
    """An entry by what its norms are."""
    return {batchnorm: make_entry(batchnorm) for batchnorm in ("standard", "folded")}


@pytest.fixture(scope="session")
def prefix_config(small_config: Callable[..., TrainConfig], make_entry: Callable[..., str]):
    """Stem and stage 1, pretrained, nine steps in four epochs, no augmentation."""
    entry = make_entry("standard")

    def make(
        strategy: StrategyConfig = StrategyConfig("linear_probe"),
        mode: str = "auto",
        *,
        head: HeadConfig = HeadConfig(),
        max_gb: float = 4.0,
        dtype: str = "float32",
        **fields: Any,
    ) -> TrainConfig:
        defaults = {"augment": AugmentConfig(), "optimizer": OptimizerConfig(lr=0.05)}
        return small_config(
            model=ModelConfig(weights=entry, through="stage1", classifier=head),
            strategy=strategy,
            cache=CacheConfig(mode, max_gb, dtype),
            **{**defaults, **fields},
        )

    return make


@pytest.fixture(scope="session")
def adapted_config(
    small_config: Callable[..., TrainConfig], entries: dict[str, str], other_domain: pathlib.Path
) -> Callable[..., TrainConfig]:
    """A run that adapts to the other domain by a method; `adapt` and fields by keyword."""

    def make(method: str, norms: str = "standard", **fields: Any) -> TrainConfig:
        adapt = fields.pop("adapt", {})
        defaults = {
            "model": ModelConfig(weights=entries[norms]),
            "strategy": StrategyConfig("full"),
            "optimizer": SGD,
        }
        target = None if method == "none" else f"folder:{other_domain}"
        config = AdaptConfig(method, **{"target": target, **adapt})
        return small_config(adapt=config, **{**defaults, **fields})

    return make


def make_course(config: TrainConfig) -> Course:
    """Of a run on `images`."""
    total = evaluation_steps(config, 36)[-1]
    pretrained, plans = set_up(config, CLASSES, total_steps=total, steps_per_epoch=2.25)
    return Course(plans, plans[0].initial_state(pretrained.variables, config.seed))


@pytest.fixture(scope="session")
def read_state() -> Callable[[TrainConfig, pathlib.Path], TrainState]:
    """The newest checkpoint of a run, on the host."""

    def read(config: TrainConfig, run: pathlib.Path) -> TrainState:
        with Checkpoints(run / "checkpoints") as checkpoints:
            state, _ = checkpoints.restore_latest(make_course(config).like)
        return state

    return read


@pytest.fixture(scope="session")
def read_variables() -> Callable[[TrainConfig, pathlib.Path, int], Tree]:
    """The model of a step that a run has kept, on the host."""

    def read(config: TrainConfig, run: pathlib.Path, step: int) -> Tree:
        with Checkpoints(run / "checkpoints") as checkpoints:
            return checkpoints.restore_variables(step, make_course(config).like)

    return read


@pytest.fixture(scope="session")
def start_process() -> Callable[..., subprocess.Popen]:
    """Starts, or resumes, a run in a process of its own, on `devices` fake devices."""

    def start(config: TrainConfig, run: pathlib.Path, devices: int = 8) -> subprocess.Popen:
        run.mkdir(parents=True, exist_ok=True)
        if not (run / "config.json").exists():
            disk.write_json(run / "config.json", configs.to_dict(config))
        flag = f"--xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            [sys.executable, "-c", RUN_AGAIN, str(run)],
            env=os.environ | {"XLA_FLAGS": flag, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def wait_for_step() -> Callable[[subprocess.Popen, pathlib.Path, int], None]:
    """Waits until metrics.jsonl of a run holds a line of a step, or its process has ended."""

    def wait(process: subprocess.Popen, run: pathlib.Path, step: int) -> None:
        lines = run / "metrics.jsonl"
        while process.poll() is None and f'"step": {step},' not in (
            lines.read_text() if lines.exists() else ""
        ):
            time.sleep(0.002)

    return wait


@pytest.fixture(scope="session")
def kill_after(
    wait_for_step: Callable[..., None],
) -> Callable[[subprocess.Popen, pathlib.Path, int], None]:
    """Sends SIGKILL to a run once its metrics.jsonl holds a line of a step."""

    def kill(process: subprocess.Popen, run: pathlib.Path, step: int) -> None:
        wait_for_step(process, run, step)
        process.kill()
        _, complaint = process.communicate()
        assert process.returncode == -signal.SIGKILL, complaint

    return kill


class Stopped(Exception):
    """By `stop_after_save`."""


@pytest.fixture
def stop_after_save(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """`with stop_after_save(step):` ends the run in it once the checkpoint of a step is saved."""
    save = Checkpoints.save

    @contextlib.contextmanager
    def stop(step: int) -> Iterator[None]:
        def save_and_stop(self: Checkpoints, state: TrainState, *more: Any) -> None:
            save(self, state, *more)
            if int(state.step) == step:
                raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save_and_stop)
            with pytest.raises(Stopped):
                yield

    return stop


@pytest.fixture
def small_card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An accelerator of 1 MB, as JAX tells of it."""

    class Device:
        platform, device_kind = "gpu", "card"
        memory_stats = staticmethod(lambda: {"bytes_limit": 10**6})

    monkeypatch.setattr("jax.local_devices", lambda: [Device])
    return Device


@pytest.fixture(scope="session")
def assert_same_bits() -> Callable[[Tree, Tree], None]:
    """Two trees of arrays have the same paths, and at each path the same bytes."""

    def check(found: Tree, wanted: Tree) -> None:
        found, wanted = trees.flatten(found), trees.flatten(wanted)
        assert found.keys() == wanted.keys()
        bits = {path: trees.crc32(found[path]) == trees.crc32(wanted[path]) for path in wanted}
        assert [path for path, same in bits.items() if not same] == []

    return check
