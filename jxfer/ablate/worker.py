"""A process that takes the cells of a sweep one after another until none is left.

After `sweep` in the flow. Workers share nothing but the folder: whoever holds a cell's lock runs
it, and a cell whose worker died is taken up by another, which resumes its run. So it is all one to
a sweep where its workers run, and how many there are.
"""

import contextlib
import logging
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from jxfer.ablate import experiment
from jxfer.ablate.cells import Job, Record, error_of, unique
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.sweep import Sweep

POLL = 1.0
"""Seconds between two looks, where all cells that are left are with other workers."""


def work(
    file: str, small: bool, folder: str, index: int = 0, count: int = 1, quiet: bool = False
) -> None:
    """Runs what no other worker runs, and returns when nothing is left.

    Args:
      file: the experiment file.
      small: its preset.
      folder: of the sweep.
      index: of this worker among `count`; they begin at different places of the grid.
      quiet: do not tell of each cell on stderr.

    Raises:
      UserError: as `experiment.load` and `Sweep.records`.
    """
    logging.getLogger("jxfer").setLevel(logging.INFO)
    sweep = Sweep(experiment.load(pathlib.Path(file), small).experiment, pathlib.Path(folder))
    with _compiled_programs(pathlib.Path(folder) / "compiled"):
        _work(sweep, index, count, quiet)


@contextlib.contextmanager
def _compiled_programs(folder: pathlib.Path) -> Iterator[None]:
    """Workers share compiled programs, and a sweep that goes on finds them."""
    options = {
        "jax_compilation_cache_dir": str(folder.resolve()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # or an earlier folder would stay in use
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _work(sweep: Sweep, index: int, count: int, quiet: bool) -> None:
    last: tuple[str, str] | None = None
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        records = sweep.records()
        jobs = unique(sweep.jobs(records))
        left = [job for job in jobs if not sweep.is_over(job, records)]
        if not left:
            return
        start = index * len(left) // count
        turned = left[start:] + left[:start]
        turned.sort(key=lambda job: (job.setting, job.arm) != last)  # stable: one program, one row
        for job in turned:
            record = sweep.run(job)
            if record is not None:
                last = (job.setting, job.arm)
                if not quiet:
                    _tell(job, record, 1 + len(jobs) - len(left), len(jobs))
                break
        else:
            time.sleep(POLL)


def _tell(job: Job, record: Record, number: int, known: int) -> None:
    if error := error_of(record):
        outcome = f"failed: {error}"
    elif job.role == "table":
        outcome = f"test {record.measures[ACCURACY]:.1f} %, {record.seconds:.0f} s"
    else:
        outcome = f"validation {100 * (record.val_accuracy or 0):.1f} %, {record.seconds:.0f} s"
    choice = ", ".join(f"{name} {value}" for name, value in job.choice.items())
    place = " | ".join(filter(None, (job.setting, job.arm, choice)))
    role = "" if job.role == "table" else f" ({job.role})"
    line = f"{number}/{known} {place} | seed {job.seed}{role}: {outcome}"
    print(line, file=sys.stderr, flush=True)
