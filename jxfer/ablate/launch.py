"""Where the workers of a sweep run: in this process, in others, under SLURM, or on a Ray cluster.

After `worker` in the flow. The folder of the sweep, the experiment file and the data must be where
every machine sees them under the same paths.
"""

import dataclasses
import importlib
import multiprocessing.connection
import os
import pathlib
import sys
from typing import Any, Literal

from jxfer import text
from jxfer.ablate import worker
from jxfer.errors import UserError
from jxfer.train.preemption import TRY_AGAIN

RESTARTS = 3
"""Times that a worker may die, one after another, without having begun a cell."""


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
    """What each SLURM job asks for."""

    partition: str | None = None
    minutes: int = 180
    """After which it is ended; a job that is preempted or runs out of time is queued again."""
    cpus: int = 2
    gpus: int = 0
    memory_gb: int = 8
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """submitit's executor: slurm; local runs processes here as SLURM would, to try it out."""


@dataclasses.dataclass(frozen=True)
class RayConfig:
    """What each Ray worker asks for."""

    address: str | None = None
    """Of a running cluster, or auto; a cluster on this machine is started unless given."""
    cpus: float = 1
    gpus: float = 0
    """0 hides them from the worker."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """How many processes a sweep has, and where."""

    file: pathlib.Path
    """The experiment file."""
    small: bool
    folder: pathlib.Path
    jobs: int
    quiet: bool = False

    def begun(self) -> int:
        """When a cell was begun or ended last, in ns."""
        files = (self.folder / "cells").glob("*.json")
        return max((file.stat().st_mtime_ns for file in files), default=0)

    def arguments(self, index: int) -> tuple[Any, ...]:
        """Of `worker.work`, for one of them; plain values that survive a trip to another host."""
        return (str(self.file), self.small, str(self.folder), index, self.jobs, self.quiet)


def local(workers: Workers) -> None:
    """One worker in this process, or several in processes of their own.

    They see the same cores, so a run has the same bits whatever their number. One that a signal
    kills is started again.

    Raises:
      UserError: as `worker.work`, or they die time after time.
    """
    if workers.jobs == 1:
        worker.work(*workers.arguments(0))
        return
    context = multiprocessing.get_context("spawn")  # a fork would take JAX's threads along

    def start(index: int) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_in_a_process, args=workers.arguments(index))
        process.start()
        return process

    alive = {index: start(index) for index in range(workers.jobs)}
    idle, begun = 0, workers.begun()
    try:
        while alive:
            sentinels = {process.sentinel: index for index, process in alive.items()}
            for sentinel in multiprocessing.connection.wait(list(sentinels)):
                index = sentinels[sentinel]  # type: ignore[index]
                process = alive.pop(index)
                process.join()
                if process.exitcode == 0:
                    continue
                idle, begun = (idle + 1 if begun == workers.begun() else 0), workers.begun()
                signalled = (process.exitcode or 0) < 0 or process.exitcode == TRY_AGAIN
                if not signalled or idle >= RESTARTS:
                    raise UserError(
                        f"a worker died with exit code {process.exitcode}; the same command goes on"
                    )
                alive[index] = start(index)  # a signal, such as the kernel's when memory is short
    finally:
        for process in alive.values():
            process.terminate()


def slurm(workers: Workers, config: SlurmConfig) -> None:
    """An array of SLURM jobs by submitit; returns when all have ended.

    Raises:
      UserError: submitit is not installed, there is no such cluster, or a job failed.
    """
    submitit = _extra("submitit", "slurm")
    try:
        executor = submitit.AutoExecutor(workers.folder / "submitit" / "%j", cluster=config.cluster)
    except RuntimeError as error:
        raise UserError(f"--launcher slurm: {error}") from None
    executor.update_parameters(
        name="jxfer",
        timeout_min=config.minutes,
        cpus_per_task=config.cpus,
        gpus_per_node=config.gpus,
        mem_gb=config.memory_gb,
        **({"slurm_partition": config.partition} if config.partition else {}),
    )
    with executor.batch():
        jobs = [executor.submit(Resubmitted(), *workers.arguments(i)) for i in range(workers.jobs)]
    try:
        for job in jobs:
            job.result()
    except submitit.core.utils.UncompletedJobError as error:
        last = str(error).strip().splitlines()[-1]
        raise UserError(
            f"--launcher slurm: job {job.job_id}: {last}; see {job.paths.stderr}"
        ) from None
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


def ray(workers: Workers, config: RayConfig) -> None:
    """Tasks on a Ray cluster; returns when all have ended. One whose machine goes is tried again.

    Raises:
      UserError: Ray is not installed, or there is no cluster at the address.
    """
    cluster = _extra("ray", "ray")
    try:
        cluster.init(address=config.address, log_to_driver=not workers.quiet)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--ray.address {config.address}: {error}") from None
    try:
        options = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_retries": RESTARTS}
        task = cluster.remote(**options)(_work_in)
        here = str(pathlib.Path.cwd())  # its workers start elsewhere
        cluster.get([task.remote(here, *workers.arguments(i)) for i in range(workers.jobs)])
    finally:
        cluster.shutdown()


class Resubmitted:
    """Takes up the sweep again where SLURM puts a preempted job back into the queue."""

    def __call__(self, *arguments: Any) -> None:
        worker.work(*arguments)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit queues in its stead: the same, since the folder holds all state."""
        return _extra("submitit", "slurm").helpers.DelayedSubmission(self, *arguments)


def _work_in(folder: str, *arguments: Any) -> None:
    os.chdir(folder)
    worker.work(*arguments)


def _in_a_process(*arguments: Any) -> None:
    try:
        worker.work(*arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        print(text.one_line(f"jxfer: error: {error}"), file=sys.stderr)
        sys.exit(2)


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"--launcher {extra} needs {module}: pip install 'jxfer[{extra}]'"
        ) from None
