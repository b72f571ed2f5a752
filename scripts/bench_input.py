"""Input pipelines: jxfer's beside torchvision's ImageFolder, on the same photographs.

Command: `python -m scripts.bench_input` (needs the extra `dev`, and torchvision), from the
repository's root, with the ants and bees of PyTorch's transfer-learning tutorial in `--data`.

All sides read files, decode them, take a random resized crop of 224 px, mirror half of them and
make shuffled batches on the host.

- `torchvision`: ImageFolder (Pillow), RandomResizedCrop, RandomHorizontalFlip, ToTensor, Normalize;
  a DataLoader with persistent workers.
- `torchvision, uint8`: the same with PILToTensor in place of the last two, since jxfer's batches
  are uint8 and normalised on the device.
- `jxfer`: `loader.train_batches`, each image decoded each time.
- `jxfer, kept`: the same from its second pass on, with decoded images in memory.

Every measurement is a process of its own, with one pass before the clock starts; then `--passes`
passes over the training images, as one epoch, so that no side stops between two. Sides alternate;
the table gives medians. Each side runs with the number of workers, or threads, that is best in a
first round, unless `--workers` gives it. `per core` is images per second of the clock over the
number of cores; `per CPU second` counts the processor time of all the side's processes and threads,
which other programs on the machine disturb less. The ratio is that of `per CPU second` to
torchvision's, the median over repetitions.
"""

import itertools
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from typing import Annotated, Any, Literal

import tyro

from jxfer import text

Side = Literal["torchvision", "torchvision, uint8", "jxfer", "jxfer, kept"]
SIDES: tuple[Side, ...] = ("torchvision", "torchvision, uint8", "jxfer", "jxfer, kept")
SIZE = 224
GOAL = 1.5


def main(
    data: pathlib.Path = pathlib.Path("runs/hymenoptera_data"),
    batch_size: int = 32,
    passes: int = 8,
    repetitions: int = 5,
    workers: int | None = None,
    json_file: Annotated[pathlib.Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Prints the table; exit code 1 where jxfer, decoding each time, is below the goal.

    Args:
      data: Class folders in train/.
      batch_size: Images a batch.
      passes: Over the training images, of a measurement.
      repetitions: Of each side, alternating.
      workers: Of each side, or threads; the best of a first round unless given.
      json_file: Write every measurement here too.
    """
    cores = len(os.sched_getaffinity(0))
    rounds: dict[Side, dict[int, dict[str, float]]] = {}
    best = dict.fromkeys(SIDES, workers or 0)
    for side in SIDES if workers is None else ():
        numbers = sorted({1, cores, cores + 2} | ({0} if side.startswith("torch") else set()))
        found = {n: _measure(side, data, batch_size, passes, n) for n in numbers}
        print(side, found, file=sys.stderr, flush=True)
        rounds[side] = found
        best[side] = max(
            numbers, key={n: run["per_second"] for n, run in found.items()}.__getitem__
        )
    measured: dict[Side, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repetitions):
        for side in SIDES:
            measured[side].append(_measure(side, data, batch_size, passes, best[side]))
            print(side, measured[side][-1], file=sys.stderr, flush=True)
    rows = [("side", "workers", "images/s", "per core", "per CPU second", "of torchvision's")]
    ratios: dict[Side, float] = {}
    for side in SIDES:
        clock, cpu = (
            statistics.median(found[key] for found in measured[side])
            for key in ("per_second", "per_cpu_second")
        )
        ratios[side] = statistics.median(
            ours["per_cpu_second"] / theirs["per_cpu_second"]
            for ours, theirs in zip(measured[side], measured["torchvision"], strict=True)
        )
        figures = (f"{clock:,.0f}", f"{clock / cores:,.0f}", f"{cpu:,.0f}", f"{ratios[side]:.2f}")
        rows.append((side, str(best[side]), *figures))
    print(f"{cores} cores, {data}, batch {batch_size}, {SIZE} px, {repetitions} repetitions")
    print(text.table(rows))
    if json_file:
        result = {
            "machine": platform.platform(),
            "cores": cores,
            "batch_size": batch_size,
            "first_round": rounds,
            "workers": best,
            "measured": measured,
            "ratios": ratios,
        }
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    if ratios["jxfer"] < GOAL:
        sys.exit(f"below the goal of {GOAL:g} times torchvision's images per core")


def _measure(
    side: Side, data: pathlib.Path, batch_size: int, passes: int, workers: int
) -> dict[str, float]:
    call = (side, str(data), batch_size, passes, workers)
    code = f"from scripts import bench_input as b; b.measure{call!r}"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return found


def measure(side: Side, data: str, batch_size: int, passes: int, workers: int) -> None:
    """Prints images per second and per CPU second of one side, in this process."""
    start = our_epochs if side.startswith("jxfer") else torchvision_epochs
    epochs = start(side, data, batch_size, passes, workers)
    next(epochs)
    cpu, since = _cpu_seconds(), time.perf_counter()
    images = next(epochs)
    elapsed, used = time.perf_counter() - since, _cpu_seconds() - cpu
    print(json.dumps({"per_second": images / elapsed, "per_cpu_second": images / used}))


def our_epochs(
    side: Side, data: str, batch_size: int, passes: int, threads: int
) -> Generator[int, None, None]:
    """Yields the number of images of one pass, then of `passes`."""
    from jxfer.data import kept, loader
    from jxfer.data.readers import FolderSource, Source
    from jxfer.data.transforms import AugmentConfig, Preprocessing

    augment = AugmentConfig(random_resized_crop=True, flip=True)
    source: Source = FolderSource(data, "train")
    if side == "jxfer, kept":
        source = kept.KeptImages(source, kept.Room(2**32))
    batches = loader.train_batches(
        source, Preprocessing(SIZE), augment, batch_size=batch_size, seed=0, threads=threads
    )
    for count in (1, passes):
        steps = -(-count * len(source) // batch_size)
        for batch in itertools.islice(batches, steps):
            assert batch["image"].shape == (batch_size, SIZE, SIZE, 3)
        yield steps * batch_size


def torchvision_epochs(
    side: Side, data: str, batch_size: int, passes: int, workers: int
) -> Generator[int, None, None]:
    """The same of torchvision's."""
    import torch
    from torch.utils.data import DataLoader, Sampler
    from torchvision import datasets
    from torchvision import transforms as tv

    ends = [tv.ToTensor(), tv.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    if side == "torchvision, uint8":
        ends = [tv.PILToTensor()]
    views = tv.Compose([tv.RandomResizedCrop(SIZE), tv.RandomHorizontalFlip(), *ends])
    images = datasets.ImageFolder(f"{data}/train", views)
    torch.set_num_threads(1)

    class Shuffled(Sampler[int]):
        passes = 1

        def __iter__(self) -> Iterator[int]:
            order = torch.randperm(len(images) * self.passes) % len(images)
            return iter(order.tolist())

    sampler = Shuffled()
    loader: Any = DataLoader(
        images,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for count in (1, passes):
        sampler.passes, total = count, 0
        for batch, _ in loader:
            assert batch.shape[1:] == (3, SIZE, SIZE)
            total += len(batch)
        yield total


def _cpu_seconds() -> float:
    """Of this process and of the workers that it has."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    tick = os.sysconf("SC_CLK_TCK")
    total = own.ru_utime + own.ru_stime
    for child in multiprocessing.active_children():
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


if __name__ == "__main__":
    tyro.cli(main)
