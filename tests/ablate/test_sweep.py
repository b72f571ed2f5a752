"""What a sweep knows of its cells, and what one run leaves behind."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from jxfer import trees
from jxfer.ablate import experiment
from jxfer.ablate.cells import Record, unique
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.experiment import PARENT, Cell
from jxfer.ablate.sweep import Sweep
from jxfer.data.sources import DataConfig
from jxfer.train import loop, run_folder
from jxfer.train.config import TrainConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig
from tests.ablate.grids import config, experiment_of


def sweep_of(folder, **changes):
    return Sweep(experiment_of(**changes), folder)


def test_a_cell_comes_after_its_source_which_runs_once(tmp_path):
    def cell(setting, arm, choice, seed):
        source = TrainConfig(DataConfig("glyphs"), model=ModelConfig(arch="resnet20"))
        child = dataclasses.replace(
            config(setting, arm, choice, seed), model=ModelConfig(weights=PARENT)
        )
        return Cell(child, after=Cell(source))

    sweep = sweep_of(tmp_path, cell=cell)
    jobs = unique(sweep.grid.jobs({}))
    assert [job.role for job in jobs] == ["source"] + ["tuning"] * 24
    # Its record decides whether the others may run.
    child = jobs[1]
    assert sweep.run(child) is None
    sweep._write(jobs[0].key, Record("failed", error="diverged"))
    assert sweep.run(child) == Record(
        "failed", error="the run that it starts from failed: diverged"
    )


@pytest.mark.parametrize("text", ["{", "{}", '{"status": "done"}'])
def test_a_damaged_record_is_named(one_line, tmp_path, text):
    sweep = sweep_of(tmp_path)
    sweep.cells.mkdir()
    (sweep.cells / "0123456789ab.json").write_text(text)
    with one_line("0123456789ab.json"):
        sweep.records()


def test_a_run_leaves_its_record_its_log_and_its_folder(declare, tmp_path):
    sweep = Sweep(experiment.load(declare()).experiment, tmp_path / "out")
    job = sweep.grid.jobs({})[0]
    record = sweep.run(job)
    folder = sweep.cells / job.key
    summary = json.loads((folder / "summary.json").read_text())
    assert record.measures == {ACCURACY: 100 * summary["test_accuracy"]}
    assert record.val_accuracy == record.score == summary["val_accuracy"]
    assert sweep.records() == {job.key: record}
    log = (sweep.cells / f"{job.key}.log").read_text()
    assert "resnet20 through stage1, scratch" in log
    assert log.endswith(": done\n")
    # It is over, and nothing is run again.
    assert sweep.grid.is_over(job, sweep.records())
    assert sweep.run(job) is None
    # A measure that is new is taken of the same run.
    files = {"files": lambda run: len(list(run.iterdir()))}
    more = dataclasses.replace(sweep.experiment, measures=files)
    wider = Sweep(more, tmp_path / "out")
    assert not wider.grid.is_over(job, wider.records())
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert wider.run(job).measures == record.measures | {"files": len(list(folder.iterdir()))}
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_what_fails_is_told_in_one_line_and_tried_again_when_asked(declare, tmp_path):
    file = declare('measures={"careless": _careless}, seeds=(1,)')
    sweep = Sweep(experiment.load(file).experiment, tmp_path / "out")
    job = sweep.grid.jobs({})[0]
    record = sweep.run(job)
    # The run itself is as good as ever: others may start from it, and its accuracy counts.
    assert record.status == "finished"
    assert list(record.measures) == [ACCURACY]
    assert record.failed_measures == {"careless": "ValueError: no such thing"}
    log = (sweep.cells / f"{job.key}.log").read_text()
    assert "Traceback" in log
    assert sweep.grid.is_over(job, sweep.records())
    sweep.retry()
    assert sweep.records() == {job.key: dataclasses.replace(record, failed_measures={})}
    assert not sweep.grid.is_over(job, sweep.records())


def test_a_run_that_failed_is_forgotten_when_asked_unless_a_process_is_at_it(tmp_path):
    sweep = sweep_of(tmp_path)
    sweep.cells.mkdir()
    one, other = (job.key for job in sweep.grid.jobs({})[:2])
    for key in (one, other):
        sweep._write(key, Record("failed", error="diverged"))
    with sweep._lock(one) as held:
        assert held
        sweep.retry()
    assert list(sweep.records()) == [one]


def test_a_cell_that_processes_die_of_counts_as_failed(declare, tmp_path):
    sweep = Sweep(experiment.load(declare()).experiment, tmp_path / "out")
    sweep.cells.mkdir(parents=True)
    job = sweep.grid.jobs({})[0]
    sweep._write(job.key, Record("running", attempts=2))
    record = sweep.run(job)
    assert record.status == "failed"
    assert "2 processes died of it" in record.error
    # Of its measures alone: the run stays.
    sweep._write(job.key, Record("finished", attempts=2, val_accuracy=0.5))
    record = sweep.run(job)
    assert (record.status, record.val_accuracy, record.attempts) == ("finished", 0.5, 0)
    assert "2 processes died of it" in record.failed_measures[ACCURACY]


@pytest.mark.parametrize("status", ["running", "finished"])
def test_who_runs_the_command_again_may_have_killed_it_himself(status, tmp_path):
    """As often as he likes, in one cell."""
    sweep = sweep_of(tmp_path)
    sweep.cells.mkdir()
    one, other = (job.key for job in sweep.grid.jobs({})[:2])
    for key in (one, other):
        sweep._write(key, Record(status, attempts=2))
    with sweep._lock(one):
        sweep.retry()
    assert sweep.records() == {one: Record(status, attempts=2), other: Record(status)}


def test_an_interruption_is_not_held_against_a_cell(declare, tmp_path):
    file = declare('measures={"interrupted": _interrupted}')
    sweep = Sweep(experiment.load(file).experiment, tmp_path / "out")
    job = sweep.grid.jobs({})[0]
    with pytest.raises(SystemExit):
        sweep.run(job)
    assert sweep.records()[job.key].attempts == 0


def test_a_cell_that_was_begun_goes_on_from_another_directory(declare, tmp_path, monkeypatch):
    """Its config holds the path of its source as the working directory of the sweep sees it."""
    file = declare("cell=_after, arms=('long',), choices={'long': ({'lr': 0.05},)}, claims=()")
    asked = []

    def begin(config, folder):
        with run_folder.open_run(folder, config):
            run_folder.write_config(folder, config)
            asked.append(pathlib.Path(config.model.weights))
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "run_config", begin)
    for place in (tmp_path, tmp_path / "below"):
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        sweep = Sweep(experiment.load(file).experiment, tmp_path / "out")
        source, child = sweep.grid.jobs({})[:2]
        sweep.cells.mkdir(parents=True, exist_ok=True)
        sweep._write(source.key, Record("finished"))
        with pytest.raises(KeyboardInterrupt):
            sweep.run(child)
        assert asked[-1].resolve() == tmp_path / "out" / "cells" / source.key
        config = run_folder.read_config(sweep.cells / child.key)
        assert config.model.weights == str(asked[-1])
    assert str(asked[0]) != str(asked[1])


@pytest.mark.slow
def test_a_cell_starts_from_the_model_of_the_one_before(declare, tmp_path):
    file = declare("cell=_after, arms=('long',), choices={'long': ({'lr': 0.05},)}, claims=()")
    sweep = Sweep(experiment.load(file).experiment, tmp_path / "out")
    source, child = sweep.grid.jobs({})[:2]
    assert (source.role, child.role) == ("source", "table")
    assert sweep.run(child) is None
    assert sweep.run(source).status == "finished"
    assert sweep.run(child).status == "finished"
    models = (store.load(sweep.cells / job.key / "model")[1] for job in (source, child))
    before, after = (trees.flatten(variables) for variables in models)
    for path, leaf in before.items():
        # A linear probe: the backbone is that of the source, and the head is new.
        assert np.array_equal(leaf, after[path]) == (not path.startswith("params/head/")), path
