"""A process that takes the cells of a sweep one after another until none is left.

After `sweep` in the flow. Workers share nothing but the folder: whoever holds a cell's lock runs
it, and a cell whose worker died is taken up by another, which resumes its run. So it is all one to
a sweep where its workers run, and how many there are.
"""

import logging
import multiprocessing
import pathlib
import sys
import time

from jxfer import text
from jxfer.ablate import experiment
from jxfer.ablate.cells import Job, Record, error_of, unique
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.sweep import Sweep
from jxfer.train import program_cache

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
    program_cache.switch_on()  # workers share programs, and a sweep that goes on finds them
    _work(sweep, index, count, quiet)


def _work(sweep: Sweep, index: int, count: int, quiet: bool) -> None:
    last: tuple[str, str] | None = None
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        records = sweep.records()
        jobs = unique(sweep.grid.jobs(records))
        left = [job for job in jobs if not sweep.grid.is_over(job, records)]
        if not left:
            return
        start = index * len(left) // count
        turned = left[start:] + left[:start]
        # Begun ones come last: whoever died of one gets to the rest before he may die of it again.
        # Then, as the sort is stable, those of one program in a row.
        turned.sort(key=lambda job: (job.key in records, (job.setting, job.arm) != last))
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
    print(text.one_line(line), file=sys.stderr, flush=True)
