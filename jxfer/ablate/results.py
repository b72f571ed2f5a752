"""What came of a sweep: `results.json`, with every run, every search and the verdicts.

After `sweep` in the flow; `jxfer report` reads it, and an experiment's committed results are it.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from jxfer import disk, sealed
from jxfer.ablate import verdicts
from jxfer.ablate.cells import Job, Record, as_json, error_of
from jxfer.ablate.claims import ACCURACY, Values
from jxfer.ablate.experiment import File
from jxfer.ablate.sweep import Sweep
from jxfer.errors import UserError
from jxfer.train import run_folder


def write(file: File, folder: pathlib.Path, command: str) -> dict[str, Any]:
    """Writes `FOLDER/results.json` from what is on disk, whether or not the sweep is over.

    Args:
      file: the experiment.
      folder: of the sweep.
      command: that made it, for the record.

    Returns:
      What was written.

    Raises:
      UserError: as `Sweep.records` and `verdicts.judge`; it cannot be written.
    """
    experiment, sweep = file.experiment, Sweep(file.experiment, folder)
    records = sweep.records()
    jobs = sweep.grid.jobs(records)
    finished = [job for job in jobs if (r := records.get(job.key)) and r.status == "finished"]
    places = {setting.name: setting.x for setting in experiment.settings}
    judged = verdicts.judge(experiment.claims, values(sweep, records), places)
    result = {
        "name": file.name,
        "file": str(file.path),
        "doc": file.doc,
        "title": experiment.title,
        "axis": experiment.axis,
        "note": experiment.note,
        "small": file.small,
        "command": command,
        "commits": sorted({commit for job in finished if (commit := records[job.key].commit)}),
        "versions": _versions(sweep, finished),
        "settings": [dataclasses.asdict(setting) for setting in experiment.settings],
        "arms": list(experiment.arms),
        "measures": [ACCURACY, *experiment.measures],
        "seeds": list(experiment.seeds),
        "tuning_seeds": list(experiment.tuning_seeds),
        "budget": experiment.budget,
        "choices": [as_json(search) for search in sweep.grid.searches(records)],
        "cells": [_cell(job, records.get(job.key)) for job in jobs],
        "claims": [dataclasses.asdict(verdict) for verdict in judged],
    }
    content = f"{json.dumps(sealed.seal(result), indent=2)}\n"
    disk.replace(folder / "results.json", content.encode())  # another process may write it, too
    return result


def check(sweep: Sweep) -> None:
    """Raises UserError where a claim speaks of what the table does not have."""
    places = {setting.name: setting.x for setting in sweep.experiment.settings}
    verdicts.judge(sweep.experiment.claims, values(sweep, {}), places)


def values(sweep: Sweep, records: Mapping[str, Record]) -> Values:
    """(setting, arm, measure) -> figure of each seed that has one; {} where none has."""
    measures = (ACCURACY, *sweep.experiment.measures)
    found: dict[tuple[str, str, str], dict[int, float]] = {
        (job.setting, job.arm, measure): {} for job in sweep.grid.planned() for measure in measures
    }
    for job in sweep.grid.jobs(records):
        record = records.get(job.key)
        if job.role == "table" and record is not None and record.status == "finished":
            for measure in measures:
                value = record.measures.get(measure)
                if value is not None and math.isfinite(value):
                    found[job.setting, job.arm, measure][job.seed] = value
    return found


def _cell(job: Job, record: Record | None) -> dict[str, Any]:
    known = {"status": "missing", "error": None}
    if record is not None and record.status != "running":
        known = dataclasses.asdict(record) | {"error": error_of(record)}
        for name in ("attempts", "failed_measures"):
            del known[name]
    return {
        "key": job.key,
        "role": job.role,
        "setting": job.setting,
        "arm": job.arm,
        "seed": job.seed,
        "choice": dict(job.choice),
        **known,
    }


def _versions(sweep: Sweep, finished: list[Job]) -> dict[str, str]:
    """Those of the first run; results that mix commits say so by `commits`."""
    if not finished:
        return {}
    run = sweep.cells / finished[0].key
    summary = run_folder.read_summary(run)
    if summary is None:
        record = run.with_suffix(".json")
        raise UserError(f"{run / 'summary.json'} is missing; delete {record} to run the cell again")
    versions: dict[str, str] = summary["versions"]
    return versions
