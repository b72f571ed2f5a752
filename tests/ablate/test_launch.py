"""Workers in processes: the same bits whatever their number, and none lost to one that dies."""

import subprocess
import sys

import pytest

from jxfer import trees
from jxfer.ablate import experiment, launch, worker
from jxfer.ablate.cells import Record
from jxfer.ablate.launch import RayConfig, SlurmConfig, Workers
from jxfer.ablate.sweep import Sweep
from jxfer.zoo import store
from tests.runs import lines, summary


@pytest.fixture
def sweep_of():
    return lambda file, folder: Sweep(experiment.load(file).experiment, folder)


def outcomes(sweep):
    """What every cell came to, and the bits of its model."""
    found = {}
    for key, record in sweep.records().items():
        assert record.status == "finished", record.error
        folder = sweep.cells / key
        _, variables = store.load(folder / "model")
        bits = {path: trees.crc32(leaf) for path, leaf in trees.flatten(variables).items()}
        found[key] = (summary(folder), bits, lines(folder))
    return found


def processes(folder):
    """Numbers of the processes that ran cells, from their logs."""
    logs = (file.read_text() for file in (folder / "cells").glob("*.log"))
    return {line.split()[2] for log in logs for line in log.splitlines() if " | seed " in line}


def test_one_worker_runs_all_and_again_nothing(declare, sweep_of, tmp_path, capsys):
    file = declare("seeds=(0, 1)")
    worker.work(str(file), False, str(tmp_path / "out"))
    first = outcomes(sweep_of(file, tmp_path / "out"))
    assert len(first) == 4
    told = capsys.readouterr().err
    assert "4/4 images | long" in told
    worker.work(str(file), False, str(tmp_path / "out"))
    assert capsys.readouterr().err == ""


def test_a_cell_that_was_begun_comes_after_the_rest(declare, sweep_of, tmp_path, monkeypatch):
    file = declare("seeds=(0, 1)")
    sweep = sweep_of(file, tmp_path / "out")
    taken = []

    def run(self, job):
        taken.append(job.key)
        return self._write(job.key, Record("failed", error="not run"))

    monkeypatch.setattr(Sweep, "run", run)
    sweep.cells.mkdir(parents=True)
    deadly, *others = (job.key for job in sweep.grid.jobs({}))
    sweep._write(deadly, Record("running", attempts=1))
    worker.work(str(file), False, str(tmp_path / "out"), quiet=True)
    assert taken == [*others, deadly]


@pytest.mark.slow
def test_two_processes_leave_the_same_bits_as_one(declare, sweep_of, tmp_path):
    file = declare()
    worker.work(str(file), False, str(tmp_path / "one"), quiet=True)
    launch.local(Workers(file, False, tmp_path / "two", jobs=2, quiet=True))
    assert outcomes(sweep_of(file, tmp_path / "two")) == outcomes(sweep_of(file, tmp_path / "one"))
    assert len(processes(tmp_path / "two")) == 2


@pytest.mark.slow
def test_a_cell_that_kills_its_process_does_not_stop_the_rest(declare, sweep_of, tmp_path):
    file = declare('measures={"deadly": _deadly}')
    launch.local(Workers(file, False, tmp_path / "out", jobs=2, quiet=True))
    sweep = sweep_of(file, tmp_path / "out")
    records = sweep.records()
    found = {(job.arm, job.seed): records[job.key] for job in sweep.grid.jobs(records)}
    failed = {place: record.failed_measures for place, record in found.items()}
    assert {place for place, why in failed.items() if why} == {("short", 1), ("long", 1)}
    assert "2 processes died of it" in failed["short", 1]["deadly"]
    assert found["long", 2].measures["deadly"] == 1.0


@pytest.mark.slow
def test_jobs_of_submitit_run_the_sweep(declare, sweep_of, tmp_path):
    pytest.importorskip("submitit")
    file = declare(changes="seeds=(0, 1)")
    workers = Workers(file, False, tmp_path / "out", jobs=2, quiet=True)
    launch.slurm(workers, SlurmConfig(cluster="local"))
    assert len(outcomes(sweep_of(file, tmp_path / "out"))) == 4
    assert any((tmp_path / "out" / "submitit").iterdir())


def test_a_preempted_job_is_queued_again(declare, tmp_path):
    pytest.importorskip("submitit")
    workers = Workers(declare(), False, tmp_path / "out", jobs=1)
    again = launch.Resubmitted().checkpoint(*workers.arguments(0))
    assert isinstance(again.function, launch.Resubmitted)
    assert again.args == workers.arguments(0)


@pytest.mark.slow
def test_two_workers_of_a_ray_cluster_run_the_sweep(declare, sweep_of, tmp_path):
    pytest.importorskip("ray")
    file = declare()
    # In a process of its own: Ray forks, which JAX's threads do not survive.
    command = [sys.executable, "-m", "jxfer", "ablate", str(file), "--launcher", "ray"]
    options = ("--jobs", "2", "--out", str(tmp_path / "out"))
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(outcomes(sweep_of(file, tmp_path / "out"))) == 6
    assert len(processes(tmp_path / "out")) == 2


def test_a_launcher_that_is_not_installed_names_its_extra(one_line, declare, tmp_path, monkeypatch):
    workers = Workers(declare(), False, tmp_path / "out", jobs=1)
    for module, call in (
        ("submitit", lambda: launch.slurm(workers, SlurmConfig())),
        ("ray", lambda: launch.ray(workers, RayConfig())),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        extra = "slurm" if module == "submitit" else "ray"
        with one_line(module, f"jxfer[{extra}]"):
            call()


@pytest.mark.slow
def test_a_worker_that_raises_ends_the_sweep(one_line, declare, tmp_path):
    file = declare()
    workers = Workers(file, False, tmp_path / "out", jobs=2)
    file.write_text("raise RuntimeError('broken since it was read')")
    with one_line("a worker died", "exit code 1"):
        launch.local(workers)
