"""Time from `jxfer train` to the end of its first step, programs not yet cached, and cached.

Each start is a process of its own that ends after its second step, whose time is what a step takes
by itself. Seconds of the wall clock, of all cores (which other programs on the machine disturb
less), and of the wall clock without a step's own.

Command: `python -m scripts.bench_startup`
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import tyro

from jxfer import text

_START = """
import json, os, sys, time
from jxfer.commands.main import main
from jxfer.train import log
import jax

ends = []

take_sums = log.TrainingLog.add

def add(self, step, sums, *rest):
    jax.block_until_ready(sums)
    ends.append((time.time(), time.process_time()))
    if len(ends) == 2:
        (first, cores), (second, _) = ends
        seconds = first - float(os.environ["STARTED"])
        print(json.dumps([seconds, cores, seconds - (second - first)]), flush=True)
        os._exit(0)
    return take_sums(self, step, sums, *rest)

log.TrainingLog.add = add
sys.exit(main(sys.argv[1:]))
"""


def start(arguments: list[str], cache: str, run: pathlib.Path) -> list[float]:
    """Of a run in a new folder until its first step has ended.

    Returns:
      Seconds, seconds of all cores, and seconds less those of its second step.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment = {"JXFER_CACHE": cache, "JXFER_COMPILED": "on", "STARTED": str(time.time())}
    done = subprocess.run(
        [sys.executable, "-c", _START, "train", "--run", str(run), *arguments],
        env=inherited | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(
    arch: str = "resnet18",
    image_size: int = 224,
    batch_size: int = 16,
    source: str = "digits",
    repeats: int = 3,
) -> None:
    """Prints the medians.

    Args:
      arch: of the network, from random weights.
      image_size: in pixels.
      batch_size: examples a step.
      source: data spec.
      repeats: pairs of starts.
    """
    arguments = ["--data.source", source, "--model.arch", arch, "--strategy.name", "scratch"]
    arguments += ["--model.image-size", str(image_size), "--batch-size", str(batch_size)]
    found: dict[str, list[list[float]]] = {"first": [], "second": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        # Prepares the data, and reads the files of the imports once.
        start(arguments, str(folder / "prepared"), folder / "warm")
        for i in range(repeats):
            cache = folder / f"cache{i}"
            cache.mkdir()
            (cache / "embedded").symlink_to(folder / "prepared" / "embedded")
            for name, starts in found.items():
                starts.append(start(arguments, str(cache), folder / f"{name}{i}"))
    medians = {
        name: [statistics.median(column) for column in zip(*starts, strict=True)]
        for name, starts in found.items()
    }
    ratio = [second / first for first, second in zip(*medians.values(), strict=True)]
    rows: list[tuple[str, ...]] = [("start", "seconds", "of all cores", "without a step's own")]
    rows += [(name, *(f"{value:.1f}" for value in values)) for name, values in medians.items()]
    rows.append(("second of first", *(f"{value:.2f}" for value in ratio)))
    print(f"{arch}, {image_size} px, batch {batch_size}, medians of {repeats}")
    print(text.table(rows))


if __name__ == "__main__":
    tyro.cli(main)
