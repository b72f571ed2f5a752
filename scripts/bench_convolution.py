"""The weight gradient of a convolution on CPU: jxfer's matrix products beside XLA's own.

Command: `python scripts/bench_convolution.py`
Prints, for the layers of ResNet-20 (32 px, batch 128) and ResNet-18 (224 px, batch 16), GFLOP/s of
both and their ratio: medians of interleaved repetitions in one process. Above 1, ours is faster.
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


def main(repetitions: int = 9) -> None:
    """Prints the table.

    Args:
      repetitions: Timed calls of each side, interleaved.
    """
    rows = [("layer", "XLA, GFLOP/s", "jxfer, GFLOP/s", "jxfer / XLA")]
    for batch, side, c_in, c_out, size, stride in LAYERS:
        images = jax.random.normal(jax.random.key(0), (batch, side, side, c_in))
        kernel = jax.random.normal(jax.random.key(1), (size, size, c_in, c_out))
        args = (stride, size // 2)
        output = convolution.conv_xla(images, kernel, *args)
        gradient = jax.random.normal(jax.random.key(2), output.shape)
        flops = 2 * output.size * size * size * c_in
        sides = [
            _weight_gradient(conv, args) for conv in (convolution.conv_xla, convolution.conv_cpu)
        ]
        seconds: list[list[float]] = [[], []]
        for repetition in range(repetitions + 1):
            for function, times in zip(sides, seconds, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(function(images, kernel, gradient))
                if repetition:  # the first call compiles
                    times.append(time.perf_counter() - start)
        xla, ours = (flops / 1e9 / statistics.median(times) for times in seconds)
        layer = f"{side}x{side}x{c_in} -> {c_out}, {size}x{size}, stride {stride}"
        rows.append((layer, f"{xla:.0f}", f"{ours:.0f}", f"{ours / xla:.2f}"))
        print(".", end="", flush=True)
    print()
    print(text.table(rows))


def _weight_gradient(
    conv: Callable[..., jax.Array], args: tuple[int, int]
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    @jax.jit
    def gradient(images: jax.Array, kernel: jax.Array, output: jax.Array) -> jax.Array:
        _, pull_back = jax.vjp(lambda k: conv(images, k, *args), kernel)
        return pull_back(output)[0]

    return gradient


if __name__ == "__main__":
    tyro.cli(main)
