"""Training steps on an accelerator: jxfer beside PyTorch, on one card, in bfloat16 at 224 px.

Command: `python -m scripts.bench_gpu --arch resnet50 --json FILE`, from the repository's root, on a
machine with one GPU, JAX, Flax, Optax, OpenCV and PyTorch (not torchvision, Grain, TFDS or tyro).

| case | what both sides do |
|---|---|
| `full` | every parameter trains, BatchNorm by the batch |
| `partial` | frozen through stage 3, its BatchNorm on stored averages |
| `head` | the head alone |
| `cached` | `partial` from stored outputs of stage 3, float32 |

Batches lie on the device: uint8 images, normalised inside the step, or features. jxfer's side is
its own train step, as `jxfer train --compute-dtype bfloat16` compiles it. PyTorch's is what a good
user would write: torch.compile over normalisation, forward pass and loss, channels_last, autocast
to bfloat16, the frozen prefix under no_grad in eval mode, fused SGD with momentum, cudnn.benchmark.
torch.compile's default mode launches kernels one by one, while XLA puts many of them into command
buffers (CUDA graphs): in small cells, where launching takes longer than computing, that may favour
jxfer. `--torch-mode reduce-overhead` gives PyTorch CUDA graphs, too; measure both.

Every cell (network, case, batch size) has a process for each side, so that the peak of memory is
its own; JAX takes memory as it needs it. After the warm-up the sides alternate in blocks of about
`--seconds`; images/s are medians over blocks, the ratio the median over neighbours. `of peak` is
the step's FLOPs (convolutions and matrix products, counted on jxfer's step by
`jxfer.train.flops` and taken for both) over the card's rate, which is the faster side's median in
multiplying two square bfloat16 matrices in the same cell. Memory is the allocator's peak after six
steps, before there are such matrices. Cells that would begin after `--limit` seconds are left out
and named. `--small` runs everything in tiny form on a CPU: it shows that the script works, and its
figures mean nothing.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from jxfer import text
from scripts.bench_gpu_sides import CASES, SIDES, Cell


def main() -> None:
    """Prints the table; exit code 1 where a side failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet50"])
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--batch-size", nargs="+", type=int, default=[256])
    parser.add_argument("--seconds", type=float, default=1.0, help="of a block of steps")
    parser.add_argument("--repeats", type=int, default=7, help="blocks of each side")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds until the last start")
    parser.add_argument("--torch-mode", default="default", help="of torch.compile")
    parser.add_argument("--small", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    size, matrix = (64, 128) if options.small else (224, 8192)
    cells = [
        Cell(arch, case, batch, size, matrix, options.torch_mode, options.small)
        for arch in options.arch
        for batch in options.batch_size
        for case in options.case
    ]
    began = time.monotonic()
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    for cell in cells:
        if time.monotonic() - began > options.limit:
            left_out.append(f"{cell.arch} {cell.case} {cell.batch}")
            continue
        found.append(measure(cell, options.seconds, options.repeats))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(text.table([HEADER, *map(row, found)]))
    if left_out:
        print(f"left out, for want of time: {', '.join(left_out)}")
    if any("error" in result[side] for result in found for side in SIDES):
        sys.exit("a side failed")


def measure(cell: Cell, seconds: float, repeats: int) -> dict[str, Any]:
    """Figures of both sides of a cell."""
    workers: dict[str, Worker] = {}
    facts: dict[str, dict[str, Any]] = {}
    for side in SIDES:  # one after the other: both choose kernels by timing them
        workers[side] = Worker(side, cell)
        facts[side] = workers[side].answer()
    result: dict[str, Any] = {"cell": dataclasses.asdict(cell), **facts}
    alive = [side for side in SIDES if "error" not in facts[side]]
    steps = {}
    for side in alive:
        once = workers[side].ask("steps 3")["seconds"] / 3
        steps[side] = max(2, round(seconds / once))
        result[side]["peak_bytes"] = workers[side].ask("peak")["peak_bytes"]
    times: dict[str, list[float]] = {side: [] for side in alive}
    rates: dict[str, list[float]] = {side: [] for side in alive}
    for _ in range(repeats):
        for side in alive:
            taken = workers[side].ask(f"steps {steps[side]}")["seconds"]
            times[side].append(taken / steps[side])
            rates[side].append(workers[side].ask("matmul")["flops_per_second"])
    for side in alive:
        step_seconds = statistics.median(times[side])
        result[side] |= {
            "step_seconds": times[side],
            "images_per_second": cell.batch / step_seconds,
            "matmul_flops_per_second": statistics.median(rates[side]),
        }
        workers[side].close()
    if "jxfer" in alive:
        peak = max(result[side]["matmul_flops_per_second"] for side in alive)
        for side in alive:
            work_rate = facts["jxfer"]["flops"] * result[side]["images_per_second"] / cell.batch
            result[side]["of_peak"] = work_rate / peak
    if len(alive) == len(SIDES):
        pairs = zip(times["torch"], times["jxfer"], strict=True)
        result["speed_ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
    return result


HEADER = (
    *("network", "case", "batch", "jxfer, images/s", "PyTorch, images/s", "ratio"),
    *("jxfer, of peak", "PyTorch, of peak", "jxfer, GB", "PyTorch, GB"),
)


def row(result: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""

    def column(key: str, form: Callable[[Any], str]) -> tuple[str, ...]:
        values = [result[side].get(key) for side in SIDES]
        failed = ["failed" if "error" in result[side] else "-" for side in SIDES]
        return tuple(f if v is None else form(v) for v, f in zip(values, failed, strict=True))

    cell, ratio = result["cell"], result.get("speed_ratio")
    return (
        *(cell["arch"], cell["case"], str(cell["batch"])),
        *column("images_per_second", lambda value: f"{value:,.0f}"),
        "-" if ratio is None else f"{ratio:.2f}",
        *column("of_peak", lambda value: f"{value:.1%}"),
        *column("peak_bytes", lambda value: f"{value / 1e9:.2f}"),
    )


class Worker:
    """A side in a process of its own, which answers each line with a line of JSON."""

    def __init__(self, side: str, cell: Cell) -> None:
        arguments = [side, json.dumps(dataclasses.asdict(cell))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench_gpu_sides", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )

    def answer(self) -> dict[str, Any]:
        """The next answer; `error` where the process has ended, whose traceback is on stderr."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        return {"error": f"exit code {self._process.wait()}"}

    def ask(self, question: str) -> dict[str, Any]:
        """Raises RuntimeError if the side fails after its warm-up."""
        assert self._process.stdin is not None
        print(question, file=self._process.stdin, flush=True)
        found = self.answer()
        if "error" in found:
            raise RuntimeError(found["error"])
        return found

    def close(self) -> None:
        """Waits for the end."""
        self._process.communicate()


if __name__ == "__main__":
    main()
