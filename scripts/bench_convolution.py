"""Convolutions on CPU: jxfer's beside XLA's own.

Command: `python scripts/bench_convolution.py`
Prints GFLOP/s of both and their ratio, medians of interleaved repetitions in one process; above 1,
ours is faster. First the weight gradient, which jxfer writes as matrix products, for the layers of
ResNet-20 (32 px, batch 128) and ResNet-18 (224 px, batch 16); then forward pass, input gradient and
weight gradient of the grouped convolutions of ResNeXt-50 32x4d (224 px, batch 4), which jxfer takes
group by group. XLA's grouped weight gradient takes seconds a call: `--no-grouped` leaves them out.
`--torch` (needs the extra `dev`) adds each pass of the first table's layers beside PyTorch's, in
channels_last.
"""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import tyro

from jxfer import machine, text
from jxfer.models import convolution

LAYERS = (
    # batch, side, C_in, C_out, kernel, stride
    (128, 32, 3, 16, 3, 1),
    (128, 32, 16, 16, 3, 1),
    (128, 32, 16, 32, 3, 2),
    (128, 16, 32, 32, 3, 1),
    (128, 8, 64, 64, 3, 1),
    (16, 224, 3, 64, 7, 2),
    (16, 56, 64, 64, 3, 1),
    (16, 56, 64, 128, 1, 2),
    (16, 28, 128, 128, 3, 1),
    (16, 14, 256, 256, 3, 1),
)


GROUPED = (
    # batch, side, channels in and out, groups, stride
    (4, 56, 128, 32, 1),
    (4, 56, 256, 32, 2),
    (4, 28, 256, 32, 1),
    (4, 14, 512, 32, 1),
    (4, 7, 1024, 32, 1),
)
Convolution = Callable[..., jax.Array]


def main(repetitions: int = 9, grouped: bool = True, torch: bool = False) -> None:
    """Prints the tables.

    Args:
      repetitions: Timed calls of each side, interleaved; a third of it for the grouped ones.
      grouped: Measure the grouped convolutions too.
      torch: Measure PyTorch's convolutions too.
    """
    print(_weight_gradients(repetitions))
    if grouped:
        print(_grouped(max(1, repetitions // 3)))
    if torch:
        print(_beside_torch(repetitions))


def _weight_gradients(repetitions: int) -> str:
    rows = [("layer", "XLA, GFLOP/s", "jxfer, GFLOP/s", "jxfer / XLA")]
    for layer in LAYERS:
        name, images, kernel, args = _layer(*layer)
        rows.append((name, *_compare(_weight_gradient, images, kernel, args, repetitions)))
    print()
    return text.table(rows)


def _layer(
    batch: int, side: int, c_in: int, c_out: int, size: int, stride: int
) -> tuple[str, jax.Array, jax.Array, tuple[int, ...]]:
    """Name, images, kernel, and the convolution's other arguments."""
    images = jax.random.normal(jax.random.key(0), (batch, side, side, c_in))
    kernel = jax.random.normal(jax.random.key(1), (size, size, c_in, c_out))
    name = f"{side}x{side}x{c_in} -> {c_out}, {size}x{size}, stride {stride}"
    return name, images, kernel, (stride, size // 2)


def _grouped(repetitions: int) -> str:
    rows = [("grouped layer", "pass", "XLA, GFLOP/s", "jxfer, GFLOP/s", "jxfer / XLA")]
    for batch, side, channels, groups, stride in GROUPED:
        images = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels // groups, channels))
        layer = f"{side}x{side}x{channels}, 3x3, {groups} groups, stride {stride}"
        for name, make in PASSES.items():
            figures = _compare(make, images, kernel, (stride, 1, groups), repetitions)
            rows.append((layer, name, *figures))
    print()
    return text.table(rows)


def _beside_torch(repetitions: int) -> str:
    rows = [("layer", "pass", "PyTorch, GFLOP/s", "jxfer, GFLOP/s", "jxfer / PyTorch")]
    for layer in LAYERS:
        name, images, kernel, args = _layer(*layer)
        theirs = _torch_passes(images, kernel, *args)
        for which, make in PASSES.items():
            ours = _side(make, convolution.conv_cpu, images, kernel, args)
            figures = _alternate((theirs[which], ours), _flops(images, kernel, args), repetitions)
            rows.append((name, which, *figures))
    print()
    return text.table(rows)


def _compare(
    make: Callable[[Convolution, tuple[int, ...]], Convolution],
    images: jax.Array,
    kernel: jax.Array,
    args: tuple[int, ...],
    repetitions: int,
) -> tuple[str, str, str]:
    """GFLOP/s of XLA and of jxfer, and their ratio."""
    sides = (convolution.conv_xla, convolution.conv_cpu)
    xla, ours = (_side(make, conv, images, kernel, args) for conv in sides)
    return _alternate((xla, ours), _flops(images, kernel, args), repetitions)


def _flops(images: jax.Array, kernel: jax.Array, args: tuple[int, ...]) -> int:
    """Of any pass."""
    return 2 * _output(images, kernel, args).size * kernel[..., 0].size


def _output(images: jax.Array, kernel: jax.Array, args: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    found: jax.ShapeDtypeStruct = jax.eval_shape(
        lambda *arrays: convolution.conv_xla(*arrays, *args), images, kernel
    )
    return found


def _side(
    make: Callable[[Convolution, tuple[int, ...]], Convolution],
    conv: Convolution,
    images: jax.Array,
    kernel: jax.Array,
    args: tuple[int, ...],
) -> Callable[[], object]:
    """A pass by jxfer or XLA, until it has ended."""
    gradient = jax.random.normal(jax.random.key(2), _output(images, kernel, args).shape)
    function = make(conv, args)
    return lambda: jax.block_until_ready(function(images, kernel, gradient))


def _torch_passes(
    images: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> dict[str, Callable[[], object]]:
    import torch

    def channels_last(x: jax.Array, axes: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(x).transpose(axes))
        return tensor.contiguous(memory_format=torch.channels_last)

    torch.set_num_threads(machine.visible_cores())
    x, k = channels_last(images, (0, 3, 1, 2)), channels_last(kernel, (3, 2, 0, 1))
    y = torch.conv2d(x, k, None, stride, padding)  # as good a gradient as any
    backward = torch.ops.aten.convolution_backward

    def gradient(of: list[bool]) -> object:
        pairs = [stride] * 2, [padding] * 2, [1, 1]
        return backward(y, x, k, None, *pairs, False, [0, 0], 1, of)

    return {
        "forward": lambda: torch.conv2d(x, k, None, stride, padding),
        "input gradient": lambda: gradient([True, False, False]),
        "weight gradient": lambda: gradient([False, True, False]),
    }


def _alternate(
    sides: tuple[Callable[[], object], Callable[[], object]], flops: int, repetitions: int
) -> tuple[str, str, str]:
    """GFLOP/s of a peer and of jxfer, and ours over the peer's."""
    seconds: list[list[float]] = [[], []]
    for _ in range(repetitions):
        for side, times in zip(sides, seconds, strict=True):
            side()  # compiles; and for a while after a call PyTorch's threads still take cores
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
    peer, ours = (flops / 1e9 / statistics.median(times) for times in seconds)
    print(".", end="", flush=True)
    return f"{peer:.3g}", f"{ours:.3g}", f"{ours / peer:.2f}"


def _forward(conv: Convolution, args: tuple[int, ...]) -> Convolution:
    return jax.jit(lambda images, kernel, output: conv(images, kernel, *args))


def _input_gradient(conv: Convolution, args: tuple[int, ...]) -> Convolution:
    @jax.jit
    def gradient(images: jax.Array, kernel: jax.Array, output: jax.Array) -> jax.Array:
        _, pull_back = jax.vjp(lambda x: conv(x, kernel, *args), images)
        return pull_back(output)[0]

    return gradient


def _weight_gradient(conv: Convolution, args: tuple[int, ...]) -> Convolution:
    @jax.jit
    def gradient(images: jax.Array, kernel: jax.Array, output: jax.Array) -> jax.Array:
        _, pull_back = jax.vjp(lambda k: conv(images, k, *args), kernel)
        return pull_back(output)[0]

    return gradient


PASSES: dict[str, Callable[[Convolution, tuple[int, ...]], Convolution]] = {
    "forward": _forward,
    "input gradient": _input_gradient,
    "weight gradient": _weight_gradient,
}

if __name__ == "__main__":
    tyro.cli(main)
