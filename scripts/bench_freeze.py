"""Freezing on CPU: jxfer beside PyTorch (channels_last), on the same images.

Command: `python -m scripts.bench_freeze CASE ...` (needs the extra `dev`), from the repository's
root, with the ants and bees of PyTorch's transfer-learning tutorial in `--data`.

| case | what both sides do | of PyTorch's time, at most (goal) |
|---|---|---|
| `probe` | ResNet-18, 224 px, batch 16: head only, 25 epochs, validation after each | 0.10 |
| `partial` | the same, frozen through stage 3, 10 epochs | 0.75 (0.5) |
| `full` | one training step of ResNet-18, 224 px, batch 16 | 1.5 (1.0) |
| `cifar` | one training step of ResNet-20, 32 px, batch 128 | 2.1 (1.0) |

`probe` and `partial` time whole runs in processes of their own, from the start of the program's
work to its end. Ours is `jxfer.run_config`: compilation, decoding, the prefix cache, validation,
checkpoints and the summary are in its time. PyTorch's is the tutorial's loop with frozen parameters
and BatchNorm on its stored averages; its images are decoded and resized beforehand and lie in
memory, which is not in its time, and it saves nothing. `full` and `cifar` time blocks of steps in
one process, on images in memory, after a warm-up. The two sides alternate; the table gives medians
and the median of the ratios of neighbours. Weights are random: time does not depend on them.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from jxfer import text
from jxfer.data import loader
from jxfer.data.readers import FolderSource
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import CIFAR, IMAGENET, Preprocessing
from jxfer.losses.classification import LossConfig
from jxfer.models import registry
from jxfer.train import parallel
from jxfer.train.config import TrainConfig
from jxfer.train.loop import run_config
from jxfer.train.state import Plan
from jxfer.train.step import make_train_step
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig, phases
from jxfer.zoo import store
from jxfer.zoo.card import Card
from jxfer.zoo.pretrained import ModelConfig
from tests import torch_reference

Case = Literal["probe", "partial", "full", "cifar"]
EPOCHS = {"probe": 25, "partial": 10}
STRATEGIES = {
    "probe": StrategyConfig("linear_probe"),
    "partial": StrategyConfig("partial", "stage3"),
}
LIMITS = {"probe": 0.10, "partial": 0.75, "full": 1.5, "cifar": 2.1}
BATCH, CIFAR_BATCH = 16, 128
OPTIMIZER = OptimizerConfig(lr=0.01, backbone_lr=0.001, weight_decay=0.0, schedule="constant")


def main(
    cases: tyro.conf.Positional[tuple[Case, ...]] = ("probe", "partial", "full", "cifar"),
    data: pathlib.Path = pathlib.Path("runs/hymenoptera_data"),
    repetitions: int = 3,
    steps: int = 4,
) -> None:
    """Prints the table, a line a case; exit code 1 where a ratio is above its limit.

    Args:
      cases: What to measure.
      data: Class folders in train/ and val/.
      repetitions: Of each side, alternating.
      steps: A block of `full` and `cifar`.
    """
    rows = [("case", "jxfer, s", "PyTorch, s", "ratio", "limit")]
    too_slow = []
    for case in cases:
        sides: tuple[Callable[[], float], Callable[[], float]]
        if case in ("full", "cifar"):
            sides = (our_steps(case, steps), torch_steps(case, steps))
        else:
            sides = (_in_a_process(case, "jxfer", data), _in_a_process(case, "torch", data))
        seconds = [(sides[0](), sides[1]()) for _ in range(repetitions)]
        print(case, seconds, file=sys.stderr)
        ours, theirs = (statistics.median(column) for column in zip(*seconds, strict=True))
        ratio = statistics.median(a / b for a, b in seconds)
        rows.append((case, f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.2f}", f"{LIMITS[case]:.2f}"))
        if ratio > LIMITS[case]:
            too_slow.append(case)
    print(text.table(rows))
    if too_slow:
        sys.exit(f"above the limit: {', '.join(too_slow)}")


def _in_a_process(case: str, side: str, data: pathlib.Path) -> Callable[[], float]:
    def run() -> float:
        code = (
            f"from scripts import bench_freeze as b; b.whole_run({case!r}, {side!r}, {str(data)!r})"
        )
        output = subprocess.run(
            [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
        )
        return float(json.loads(output.stdout.splitlines()[-1]))

    return run


def whole_run(case: str, side: str, data: str) -> None:
    """Prints the seconds of one run."""
    print(our_run(case, data) if side == "jxfer" else torch_run(case, data))


def our_run(case: str, data: str) -> float:
    """Seconds of `run_config`, from a zoo entry of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        entry, model = pathlib.Path(folder, "entry"), registry.create("resnet18", 2)
        card = Card(name="entry", arch="resnet18", class_names=("a", "b"), preprocessing=IMAGENET)
        store.save(entry, card, model.init(0))
        config = TrainConfig(
            data=DataConfig(f"folder:{data}"),
            model=ModelConfig(weights=str(entry)),
            strategy=STRATEGIES[case],
            optimizer=OPTIMIZER,
            epochs=EPOCHS[case],
            batch_size=BATCH,
        )
        start = time.perf_counter()
        run_config(config, pathlib.Path(folder, "run"), quiet=True)
        return time.perf_counter() - start


def torch_run(case: str, data: str) -> float:
    """Seconds of the tutorial's loop: in each epoch all training steps, then validation."""
    train, val = (_pixels(FolderSource(data, split)) for split in ("train", "val"))
    model = torch_reference.create("resnet18", 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch_reference.randomise(model, 0)
    head, top = model.get_submodule("fc"), model.get_submodule("layer4")
    moving = [head] if case == "probe" else [head, top]
    for parameter in model.parameters():
        parameter.requires_grad = False
    for module in moving:
        for parameter in module.parameters():
            parameter.requires_grad = True
    groups = [{"params": module.parameters()} for module in moving]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    start = time.perf_counter()
    for _ in range(EPOCHS[case]):
        model.eval()
        if case == "partial":
            top.train()
        for images, labels in _torch_batches(*train, shuffle=True):
            _torch_step(model, optimizer, images, labels)
        model.eval()
        with torch.no_grad():
            correct = sum(
                int((model(images)["logits"].argmax(-1) == labels).sum())
                for images, labels in _torch_batches(*val, shuffle=False)
            )
        assert 0 <= correct <= len(val[1])
    return time.perf_counter() - start


def _pixels(source: FolderSource) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images [N, 3, 224, 224], channels last, and labels."""
    batches = loader.eval_batches(source, IMAGENET, batch_size=1)
    pixels = torch.from_numpy(np.concatenate([batch["image"] for batch in batches]))
    mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
    images = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last), torch.tensor(source.labels).long()


def _torch_batches(images: torch.Tensor, labels: torch.Tensor, *, shuffle: bool) -> Any:
    order = torch.randperm(len(images)) if shuffle else torch.arange(len(images))
    for rows in order.split(BATCH):
        yield images[rows].contiguous(memory_format=torch.channels_last), labels[rows]


def _torch_step(
    model: torch.nn.Module, optimizer: Any, images: torch.Tensor, labels: torch.Tensor
) -> None:
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images)["logits"], labels)
    loss.backward()
    optimizer.step()


def our_steps(case: str, steps: int) -> Callable[[], float]:
    """Seconds a step of full fine-tuning, a block at a time."""
    arch, preprocessing, batch_size = _setting(case)
    model = registry.create(arch, 10)
    (phase,) = phases(StrategyConfig("full"), model.stages)
    plan = Plan(
        model=model,
        preprocessing=preprocessing,
        phase=phase,
        optimizer=OPTIMIZER,
        loss=LossConfig(),
        total_steps=1000,
        steps_per_epoch=10.0,
        folded=False,
    )
    images, labels = _noise(preprocessing, batch_size)
    devices = jax.local_device_count()
    batch = {
        "image": jnp.asarray(images.reshape(devices, -1, *images.shape[1:])),
        "label": jnp.asarray(labels.reshape(devices, -1)),
    }
    step = parallel.compile_step(make_train_step(plan), donate_state=True)
    state, _ = step(parallel.replicate(plan.initial_state(model.init(0))), batch)

    def block() -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, sums = step(state, batch)
        jax.block_until_ready(sums)
        return (time.perf_counter() - start) / steps

    block()
    return block


def torch_steps(case: str, steps: int) -> Callable[[], float]:
    """The same in PyTorch."""
    arch, preprocessing, batch_size = _setting(case)
    model = torch_reference.create(arch, 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch_reference.randomise(model, 0)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pixels, numbers = _noise(preprocessing, batch_size)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(numbers).long()

    def block() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            _torch_step(model, optimizer, images, labels)
        return (time.perf_counter() - start) / steps

    block()
    return block


def _setting(case: str) -> tuple[str, Preprocessing, int]:
    return ("resnet18", IMAGENET, BATCH) if case == "full" else ("resnet20", CIFAR, CIFAR_BATCH)


def _noise(preprocessing: Preprocessing, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (batch_size, preprocessing.size, preprocessing.size, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8), rng.integers(0, 10, batch_size, np.int32)


if __name__ == "__main__":
    tyro.cli(main)
