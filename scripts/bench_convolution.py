"""Convolutions on CPU: jxfer's beside XLA's own.

Command: `python scripts/bench_convolution.py`
Prints GFLOP/s of both and their ratio, medians of interleaved repetitions in one process; above 1,
ours is faster. First the weight gradient, which jxfer writes as matrix products, for the layers of
ResNet-20 (32 px, batch 128) and ResNet-18 (224 px, batch 16); then forward pass, input gradient and
weight gradient of the grouped convolutions of ResNeXt-50 32x4d (224 px, batch 4), which jxfer takes
group by group. XLA's grouped weight gradient takes seconds a call: `--no-grouped` leaves them out.
"""

import statistics
import time
from collections.abc import Callable

import jax
import tyro

from jxfer import text
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


def main(repetitions: int = 9, grouped: bool = True) -> None:
    """Prints the tables.

    Args:
      repetitions: Timed calls of each side, interleaved; a third of it for the grouped ones.
      grouped: Measure the grouped convolutions too.
    """
    print(_weight_gradients(repetitions))
    if grouped:
        print(_grouped(max(1, repetitions // 3)))


def _weight_gradients(repetitions: int) -> str:
    rows = [("layer", "XLA, GFLOP/s", "jxfer, GFLOP/s", "jxfer / XLA")]
    for batch, side, c_in, c_out, size, stride in LAYERS:
        images = jax.random.normal(jax.random.key(0), (batch, side, side, c_in))
        kernel = jax.random.normal(jax.random.key(1), (size, size, c_in, c_out))
        layer = f"{side}x{side}x{c_in} -> {c_out}, {size}x{size}, stride {stride}"
        args = (stride, size // 2)
        rows.append((layer, *_compare(_weight_gradient, images, kernel, args, repetitions)))
    print()
    return text.table(rows)


def _grouped(repetitions: int) -> str:
    rows = [("grouped layer", "pass", "XLA, GFLOP/s", "jxfer, GFLOP/s", "jxfer / XLA")]
    passes = {
        "forward": _forward,
        "input gradient": _input_gradient,
        "weight gradient": _weight_gradient,
    }
    for batch, side, channels, groups, stride in GROUPED:
        images = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels // groups, channels))
        layer = f"{side}x{side}x{channels}, 3x3, {groups} groups, stride {stride}"
        for name, make in passes.items():
            figures = _compare(make, images, kernel, (stride, 1, groups), repetitions)
            rows.append((layer, name, *figures))
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
    output = convolution.conv_xla(images, kernel, *args)
    gradient = jax.random.normal(jax.random.key(2), output.shape)
    flops = 2 * output.size * kernel[..., 0].size
    sides = [make(conv, args) for conv in (convolution.conv_xla, convolution.conv_cpu)]
    seconds: list[list[float]] = [[], []]
    for repetition in range(repetitions + 1):
        for function, times in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(images, kernel, gradient))
            if repetition:  # the first call compiles
                times.append(time.perf_counter() - start)
    xla, ours = (flops / 1e9 / statistics.median(times) for times in seconds)
    print(".", end="", flush=True)
    return f"{xla:.3g}", f"{ours:.3g}", f"{ours / xla:.2f}"


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


if __name__ == "__main__":
    tyro.cli(main)
