"""`jxfer ablate`: an experiment file -> runs, tables, verdicts."""

import dataclasses
import pathlib
import shlex
import sys
from typing import Annotated, Literal

import tyro

from jxfer import text
from jxfer.ablate import experiment, launch, results
from jxfer.ablate.estimate import Kind, estimate
from jxfer.ablate.launch import RayConfig, SlurmConfig, Workers
from jxfer.ablate.sweep import Sweep
from jxfer.data import remote
from jxfer.errors import UserError
from jxfer.report import sweep as report
from jxfer.train import run_folder


def main(args: list[str]) -> int:
    """Runs `jxfer ablate ARGS` and returns the exit code."""

    def ablate(
        file: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
        out: pathlib.Path | None = None,
        small: bool = False,
        jobs: int = 1,
        launcher: Literal["local", "slurm", "ray"] = "local",
        slurm: SlurmConfig = SlurmConfig(),
        ray: RayConfig = RayConfig(),
        dry_run: bool = False,
        json: bool = False,
    ) -> int:
        """Run an experiment: every arm in every setting at every seed, then its table and verdicts.

        Runs that are finished are not repeated, and a kill loses none: the same command goes on. A
        run that fails is told and does not stop the rest; the same command tries it again. Exit
        code 1 where one of the table failed, one that it starts from, or a whole search.

        Args:
          file: An experiment file, such as experiments/lee2023_surgical.py.
          out: Folder of the runs and the report; runs/NAME unless given.
          small: The file's preset of a few minutes.
          jobs: Processes that share the runs.
          launcher: local: on this machine; slurm: as SLURM jobs (extra slurm); ray: on a Ray
            cluster (extra ray).
          slurm: what each SLURM job asks for.
          ray: what each Ray worker asks for.
          dry_run: Print the cells, what a step of each costs and how long all would take.
          json: Print results.json instead of the report.
        """
        if jobs < 1:
            raise UserError(f"--jobs {jobs}: it must be at least 1")
        declared = experiment.load(file, small)
        folder = out or pathlib.Path("runs") / declared.name
        remote.refuse(folder, "--out")
        sweep = Sweep(declared.experiment, folder)
        results.check(sweep)
        if dry_run:
            _print_estimate(estimate(sweep), json)
            return 0
        run_folder.make_folder(folder, "--out")
        sweep.retry()
        workers = Workers(file, small, folder, jobs, quiet=json)
        try:
            if launcher == "slurm":
                launch.slurm(workers, slurm)
            elif launcher == "ray":
                launch.ray(workers, ray)
            else:
                launch.local(workers)
        finally:
            # Of a sweep that was interrupted as well: jxfer report tells what is there.
            found = results.write(declared, folder, shlex.join(["jxfer", "ablate", *args]))
        page = report.write(folder)
        print(text.to_json(found) if json else (page / "report.md").read_text())
        left = [cell for cell in found["cells"] if cell["error"] or cell["status"] != "finished"]
        for cell in left:
            place = f"{cell['setting']} | {cell['arm']} | seed {cell['seed']}"
            failed = f"failed: {place}: {cell['error'] or cell['status']}"
            print(text.one_line(failed), file=sys.stderr)
        print(f"report: {page}/index.html", file=sys.stderr)
        # A choice that diverged is no gap where the search took another one.
        gaps = any(cell["role"] != "tuning" for cell in left)
        return 1 if gaps or any(one["chosen"] is None for one in found["choices"]) else 0

    return tyro.cli(ablate, prog="jxfer ablate", args=args, config=(tyro.conf.FlagCreatePairsOff,))


def _print_estimate(kinds: list[Kind], json: bool) -> None:
    total = sum(kind.cells * kind.seconds for kind in kinds)
    cells = sum(kind.cells for kind in kinds)
    if json:
        all_kinds = [dataclasses.asdict(kind) for kind in kinds]
        print(text.to_json({"kinds": all_kinds, "cells": cells, "seconds": total}))
        return
    rows = [("setting", "arm", "cells", "steps", "GFLOP a step", "seconds of steps, each")]
    rows += [
        (
            kind.setting,
            kind.arm,
            str(kind.cells),
            str(kind.steps),
            f"{kind.flops / kind.steps / 1e9:.3g}",
            f"{kind.seconds:.1f}",
        )
        for kind in kinds
    ]
    print(text.table(rows))
    print(
        f"{cells} cells; their steps take {total / 60:.1f} minutes in one process on this machine. "
        "Compiling, filling caches, reading images, evaluation and measures come on top."
    )
