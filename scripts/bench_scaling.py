"""What grows with devices, with what trains, and with the records of a dataset.

Command: `python -m scripts.bench_scaling [sharding] [allreduce] [loader]`, from the repository's
root, on Linux. Each measurement has a process of its own, and one runs at a time.

- `sharding`: seconds of a full training step of ResNet-20, 32 px, at one global batch on 1, 2, 4
  and 8 fake CPU devices. They share the cores, so what a step takes beyond that of one device is
  the overhead of sharding.
- `allreduce`: bytes that a device hands to all-reduce in a step, by freeze depth, from the text of
  the program compiled for 8, beside their closed form: gradients of what trains, statistics that
  move, metrics. XLA passes equal gradients once: those of the biases of the two norms whose outputs
  a block adds. FLOPs are those of `jxfer audit`.
- `loader`: seconds until a dataset is open, until its first batch, and for each batch after that,
  and resident memory, by the number of records.

The records of `loader` are one and the same grey PNG image of 32 px, so that neither decoding nor
the disk decides. They come as three sources: `memory`, a sequence in memory, which is the loader
alone; `folder`, class folders of hard links to that image; `tfds`, an array_record dataset written
for the occasion. To open is `open_splits`, which holds out validation, and the labels, as a run
does. Repetitions are interleaved; figures are medians.
"""

import collections
import json as jsons
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
import tyro

from jxfer import text, trees
from jxfer.data import loader
from jxfer.data.readers import Source
from jxfer.data.transforms import CIFAR, IMAGENET, AugmentConfig, Preprocessing
from jxfer.losses.classification import LossConfig
from jxfer.models import registry
from jxfer.train import flops, parallel
from jxfer.train.state import Plan
from jxfer.train.step import make_train_step
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig, phases
from scripts import equal_records

Part = Literal["sharding", "allreduce", "loader"]
Row = dict[str, Any]
DEVICES = (1, 2, 4, 8)
BATCH = 128
BATCHES = 20
"""of the loader that are timed after the first"""
METRICS = 3
"""numbers of four bytes: sum of losses, correct, examples"""
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


def main(
    parts: tyro.conf.Positional[tuple[Part, ...]] = ("sharding", "allreduce", "loader"),
    arch: str = "resnet50",
    records: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000),
    repetitions: int = 3,
    steps: int = 3,
    json: bool = False,
) -> None:
    """Prints a table for each part.

    Args:
      parts: What to measure.
      arch: The network of `allreduce`.
      records: Sizes of the datasets of `loader`.
      repetitions: Of each time, interleaved.
      steps: Training steps in a block of `sharding`.
      json: Print the figures instead.
    """
    found: dict[str, list[Row]] = {}
    for part in parts:
        if part == "sharding":
            found[part] = sharding(repetitions, steps)
        elif part == "allreduce":
            found[part] = jsons.loads(_python(f"print_allreduce({arch!r})", devices=max(DEVICES)))
        else:
            found[part] = loading(records, repetitions)
        if not json:
            print(part)
            print(text.table([tuple(found[part][0]), *(_shown(row) for row in found[part])]))
    if json:
        print(text.to_json(found))


def _shown(row: Row) -> tuple[str, ...]:
    return tuple(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())


def _code(call: str) -> list[str]:
    return [sys.executable, "-c", f"from scripts import bench_scaling as b; b.{call}"]


def _environment(devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def _python(call: str, devices: int = 1) -> str:
    """The last line that a function of this file prints in a process of its own."""
    output = subprocess.run(
        _code(call), env=_environment(devices), check=True, stdout=subprocess.PIPE, text=True
    )
    return output.stdout.splitlines()[-1]


def sharding(repetitions: int, steps: int) -> list[Row]:
    """The processes live side by side; a line on its stdin makes one of them time a block."""
    workers = [
        subprocess.Popen(
            _code(f"serve_steps({steps})"),
            env=_environment(devices),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for devices in DEVICES
    ]

    def block(worker: "subprocess.Popen[str]") -> float:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write("\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    for worker in workers:
        block(worker)  # compiles
    seconds = [[block(worker) for worker in workers] for _ in range(repetitions)]
    for worker in workers:
        worker.communicate()
    rows = []
    for devices, column in zip(DEVICES, zip(*seconds, strict=True), strict=True):
        ratios = [own / one[0] for own, one in zip(column, seconds, strict=True)]
        rows.append(
            {
                "devices": devices,
                "images a device": BATCH // devices,
                "step, s": statistics.median(column),
                "of one device's": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return rows


def serve_steps(steps: int) -> None:
    """For each line of stdin: prints the seconds a step of a block of them."""
    plan = _plan("resnet20", StrategyConfig("full"), CIFAR)
    step, state, batch = _compiled(plan, BATCH)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(steps):
            state, sums = step(state, batch)
        jax.block_until_ready(sums)
        print((time.perf_counter() - start) / steps, flush=True)


def _plan(arch: str, strategy: StrategyConfig, preprocessing: Preprocessing) -> Plan:
    model = registry.create(arch, equal_records.CLASSES)
    (phase,) = phases(strategy, model.stages)
    return Plan(
        model=model,
        preprocessing=preprocessing,
        phase=phase,
        optimizer=OptimizerConfig(lr=0.01),
        loss=LossConfig(),
        total_steps=1000,
        steps_per_epoch=10.0,
        folded=False,
    )


def _compiled(plan: Plan, batch_size: int) -> tuple[Any, Any, dict[str, jax.Array]]:
    """(step, state, batch) on all devices."""
    rng, size = np.random.default_rng(0), plan.preprocessing.size
    images = rng.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, equal_records.CLASSES, batch_size, np.int32)
    [batch] = parallel.shard([{"image": images, "label": labels}])
    state = parallel.replicate(plan.initial_state(plan.model.init(0)))
    return parallel.compile_step(make_train_step(plan), donate_state=True), state, batch


def print_allreduce(arch: str) -> None:
    """Prints JSON rows, from nothing frozen to all but the head."""
    stages = registry.create(arch, equal_records.CLASSES).stages
    depths = {"nothing": StrategyConfig("full")}
    depths |= {through: StrategyConfig("partial", through) for through in stages[:-1]}
    depths["backbone"] = StrategyConfig("linear_probe")
    rows = []
    for frozen, strategy in depths.items():
        plan = _plan(arch, strategy, IMAGENET)
        step, state, batch = _compiled(plan, jax.device_count())
        program = step.lower(state, batch).compile().as_text()
        operations, found = all_reduced(program)
        one = parallel.fetch(state)
        parameters, averages = trees.flatten(one.params), trees.flatten(one.batch_stats)
        moving = sum(leaf.size for path, leaf in parameters.items() if plan.moves(path))
        adapting = sum(leaf.size for path, leaf in averages.items() if plan.adapts(path))
        work = flops.by_label(make_train_step(plan), plan, one, per_device_batch=1)
        rows.append(
            {
                "frozen through": frozen,
                "GFLOP an image": sum(work.values()) / 1e9,
                "trainable": moving,
                "statistics": adapting,
                "operations": operations,
                "all-reduced, bytes": found,
                "closed form": 4 * (moving + adapting + METRICS),
            }
        )
    print(jsons.dumps(rows))


def all_reduced(program: str) -> tuple[int, int]:
    """(number of all-reduce operations, bytes of their operands) in HLO text, for one device.

    An all-reduce gives what it takes, so the type on its left is that of its operands.
    """
    types = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program)
    size = 0
    for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", " ".join(types)):
        size += BYTES[kind] * int(np.prod([int(n) for n in shape.split(",") if n]))
    return len(types), size


def loading(records: Sequence[int], repetitions: int) -> list[Row]:
    """Writes the datasets, then times each in turn."""
    runs: dict[tuple[str, int], list[Row]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for kind in equal_records.KINDS:
            for number in records:
                start = time.perf_counter()
                equal_records.write(kind, number, pathlib.Path(folder, f"{kind}{number}"))
                seconds = time.perf_counter() - start
                print(f"{kind} {number}: written in {seconds:.0f} s", file=sys.stderr)
        for _ in range(repetitions):
            for kind in equal_records.KINDS:
                for number in records:
                    path = f"{folder}/{kind}{number}"
                    line = _python(f"print_loading({kind!r}, {number}, {path!r})")
                    print(kind, number, line, file=sys.stderr)
                    runs[kind, number].append(jsons.loads(line))
    return [
        {"source": kind, "records": number}
        | {name: statistics.median(run[name] for run in found) for name in found[0]}
        for (kind, number), found in runs.items()
    ]


def print_loading(kind: str, number: int, path: str) -> None:
    """Prints JSON: seconds to open and to the first batch, and what the process holds then."""
    for batch in _batches(equal_records.InMemory(1000)):  # imports and starts what any run does
        assert len(batch["label"]) == BATCH
        break
    before = _resident("VmRSS")
    start = time.perf_counter()
    source = equal_records.read(kind, number, path)
    opened = time.perf_counter()
    batches = _batches(source)
    next(batches)
    first = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    end = time.perf_counter()
    figures = {
        "open, s": opened - start,
        "first batch, s": first - opened,
        "a batch after, s": (end - first) / BATCHES,
        "resident, MB": _resident("VmRSS"),
        "of the data, MB": _resident("VmRSS") - before,
        "peak, MB": _resident("VmHWM"),
    }
    print(jsons.dumps(figures))


def _batches(source: Source) -> Iterator[Any]:
    return loader.train_batches(source, CIFAR, AugmentConfig(), batch_size=BATCH, seed=0)


def _resident(field: str) -> float:
    """MB, from Linux's table of this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1000


if __name__ == "__main__":
    tyro.cli(main)
