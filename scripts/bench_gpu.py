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

Every cell (network, case, batch size) has a process for each side, so that the peak of memory is
its own; JAX takes memory as it needs it. After the warm-up the sides alternate in blocks of about
`--seconds`; images/s are medians over blocks, the ratio the median over neighbours. `of peak` is
the step's FLOPs (convolutions and matrix products, counted on jxfer's step by
`jxfer.train.flops` and taken for both) over the card's rate, which is the faster side's median in
multiplying two square bfloat16 matrices in the same cell. Memory is the allocator's peak. Cells
that would begin after `--limit` seconds are left out and named. `--small` runs everything in tiny
form on a CPU: it shows that the script works, and its figures mean nothing.
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

import numpy as np

from jxfer import text

CASES = ("full", "partial", "head", "cached")
SIDES = ("jxfer", "torch")
CLASSES = 1000
FROZEN_THROUGH = 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of the table."""

    arch: str
    case: str
    batch: int
    size: int
    matrix: int
    """Side of the matrices that the card's rate is measured by."""
    torch_mode: str
    small: bool


@dataclasses.dataclass
class Ready:
    """What a side does on request, after its warm-up."""

    block: Callable[[int], float]
    """Seconds of so many steps."""
    matmul: Callable[[], float]
    """FLOP/s."""
    peak_bytes: Callable[[], int | None]
    facts: dict[str, Any]


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
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], Cell(**json.loads(options.worker[1])))
        return
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
            "peak_bytes": workers[side].ask("end")["peak_bytes"],
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
        arguments = ["--worker", side, json.dumps(dataclasses.asdict(cell))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench_gpu", *arguments],
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


def work(side: str, cell: Cell) -> None:
    """Answers questions from stdin."""
    ready = our_side(cell) if side == "jxfer" else torch_side(cell)
    print(json.dumps(ready.facts), flush=True)
    for line in sys.stdin:
        question, _, number = line.strip().partition(" ")
        answer: dict[str, Any]
        if question == "steps":
            answer = {"seconds": ready.block(int(number))}
        elif question == "matmul":
            answer = {"flops_per_second": ready.matmul()}
        else:
            answer = {"peak_bytes": ready.peak_bytes()}
        print(json.dumps(answer), flush=True)


def pixels(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [B, H, W, 3], int32 [B]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (cell.batch, cell.size, cell.size, 3), np.uint8)
    return images, rng.integers(0, CLASSES, cell.batch, np.int32)


def our_side(cell: Cell) -> Ready:
    """jxfer's train step."""
    import jax
    import jax.numpy as jnp

    from jxfer import trees
    from jxfer.data.transforms import Preprocessing
    from jxfer.losses.classification import LossConfig
    from jxfer.models import registry
    from jxfer.train import flops, parallel
    from jxfer.train.state import Plan
    from jxfer.train.step import compiled_train_step, make_train_step
    from jxfer.transfer.optimizer import OptimizerConfig
    from jxfer.transfer.strategy import StrategyConfig, phases

    assert jax.device_count() == 1, "one device is measured"
    strategy = {
        "full": StrategyConfig("full"),
        "head": StrategyConfig("linear_probe"),
    }.get(cell.case, StrategyConfig("partial", f"stage{FROZEN_THROUGH}"))
    model = dataclasses.replace(registry.create(cell.arch, CLASSES), compute_dtype="bfloat16")
    (phase,) = phases(strategy, model.stages)
    plan = Plan(
        model=model,
        preprocessing=Preprocessing(cell.size, mean=MEAN, std=STD),
        phase=phase,
        optimizer=OptimizerConfig(lr=0.01, weight_decay=0.0, schedule="constant"),
        loss=LossConfig(),
        total_steps=1_000_000,
        steps_per_epoch=1000.0,
        folded=False,
    )
    images, labels = pixels(cell)
    batch = {"image": images, "label": labels}
    after = plan.prefix if cell.case == "cached" else None
    if after is not None:
        shape = jax.ShapeDtypeStruct((cell.batch, cell.size, cell.size, 3), jnp.float32)
        outputs = jax.eval_shape(lambda v, x: model.apply(v, x)[0], model.shapes(), shape)
        drawn = np.random.default_rng(0).standard_normal(outputs[after].shape, np.float32)
        batch = {"features": np.maximum(drawn, 0), "label": labels}  # as after a ReLU
    state = parallel.replicate(plan.initial_state(model.init(0)))
    (placed,) = parallel.shard([batch])
    step = compiled_train_step(plan, after)
    paths = [path for path in trees.flatten(plan.labels) if path.endswith("/kernel")]
    kernels = [path.removesuffix("/kernel") for path in paths]
    counted = flops.by_layer(
        parallel.compile_step(make_train_step(plan, after)), (state, placed), kernels
    )

    def block(steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, sums = step(state, placed, {})
        jax.block_until_ready(sums)
        return time.perf_counter() - start

    side = cell.matrix
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.matmul)

    def matmul() -> float:
        product(a, b).block_until_ready()
        start = time.perf_counter()
        for _ in range(10):
            c = product(a, b)
        c.block_until_ready()
        return 10 * 2 * side**3 / (time.perf_counter() - start)

    def peak_bytes() -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    start = time.perf_counter()
    block(1)
    compile_seconds = time.perf_counter() - start
    block(2)
    facts = {"flops": sum(counted.values()), "device": jax.devices()[0].device_kind}
    facts |= {"version": jax.__version__, "compile_seconds": compile_seconds}
    return Ready(block, matmul, peak_bytes, facts)


def torch_side(cell: Cell) -> Ready:
    """The same step in PyTorch."""
    import torch
    from torch import Tensor, nn

    from tests import torch_reference

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert cell.small or device.type == "cuda", "no CUDA device; --small runs without one"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model: Any = torch_reference.create(cell.arch, CLASSES)
    model = model.to(device, memory_format=torch.channels_last)
    stages = [model.get_submodule(f"layer{i}") for i in range(1, len(model.depths) + 1)]
    frozen = {"full": 0, "head": len(stages)}.get(cell.case, FROZEN_THROUGH)
    moving: list[nn.Module] = [*stages[frozen:], model.fc] if frozen else [model]
    for parameter in model.parameters():
        parameter.requires_grad = False
    for module in moving:
        module.train()
        for parameter in module.parameters():
            parameter.requires_grad = True
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=0.01,
        momentum=0.9,
        fused=device.type == "cuda",
    )
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (MEAN, STD))

    def below(images: Tensor) -> Tensor:
        x = model.stem((images.float() / 255 - mean) / std)
        for stage in stages[:frozen]:
            x = stage(x)
        return x

    def loss_of(inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            if cell.case == "cached":
                x = inputs
            elif frozen:
                with torch.no_grad():
                    x = below(inputs)
            else:
                x = below(inputs)
            for stage in stages[frozen:]:
                x = stage(x)
            logits = model.fc(x.mean((2, 3)))
        return nn.functional.cross_entropy(logits.float(), labels)

    compiled = torch.compile(loss_of, **_compiler(cell))
    drawn, numbers = pixels(cell)
    inputs = torch.from_numpy(drawn).to(device).permute(0, 3, 1, 2)  # channels last, as it is
    if cell.case == "cached":
        with torch.no_grad():
            inputs = below(inputs).contiguous(memory_format=torch.channels_last)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
    labels = torch.from_numpy(numbers).long().to(device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def block(steps: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            compiled(inputs, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        wait()
        return time.perf_counter() - start

    side = cell.matrix
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def matmul() -> float:
        a @ b
        wait()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        wait()
        return 10 * 2 * side**3 / (time.perf_counter() - start)

    def peak_bytes() -> int | None:
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else None

    start = time.perf_counter()
    block(1)
    compile_seconds = time.perf_counter() - start
    block(2)
    facts = {"version": torch.__version__, "compile_seconds": compile_seconds}
    return Ready(block, matmul, peak_bytes, facts)


def _compiler(cell: Cell) -> dict[str, Any]:
    # On a CPU the kernels would be built by a C++ compiler, which need not be there.
    return {"backend": "aot_eager"} if cell.small else {"mode": cell.torch_mode}


if __name__ == "__main__":
    main()
