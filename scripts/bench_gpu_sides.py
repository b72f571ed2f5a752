"""The two sides of `scripts/bench_gpu.py`: one training step in jxfer, and the same in PyTorch.

`python -m scripts.bench_gpu_sides SIDE CELL` is a side in a process of its own: it warms up, prints
what it is as a line of JSON, and answers each line of stdin with another.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

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
    """FLOP/s. Its matrices are there for as long as it runs."""
    peak_bytes: Callable[[], int | None]
    """Of the process so far: to be asked before the first `matmul`."""
    facts: dict[str, Any]


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
    product = jax.jit(jnp.matmul)

    def matmul() -> float:
        a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
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

    def matmul() -> float:
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
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
    work(sys.argv[1], Cell(**json.loads(sys.argv[2])))
