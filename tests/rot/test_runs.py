"""Each file of a run or a sweep, damaged in each way: harmless, or told in one line."""

import re

import pytest

from jxfer.commands.main import main
from jxfer.report import run_results
from jxfer.train.log import TrainingLog
from tests import runs
from tests.rot import faults
from tests.rot.conftest import left

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def make_run(images, tmp_path_factory):
    """Arguments of a run of nine steps, with a checkpoint at every third."""

    def make(name):
        run = tmp_path_factory.mktemp(name) / "run"
        model = ("--model.arch", "resnet20", "--model.through", "stage1")
        recipe = ("--strategy.name", "scratch", "--optimizer.lr", "0.05", "--batch-size", "16")
        often = ("--epochs", "4", "--log-every", "2", "--checkpoint-every", "3", "--json")
        data = ("--data.source", f"folder:{images}")
        return run, ["train", "--run", str(run), *data, *model, *recipe, *often]

    return make


@pytest.fixture(scope="module")
def finished(make_run):
    run, args = make_run("finished")
    assert main(args) == 0
    return run, args


@pytest.fixture(scope="module")
def unfinished(make_run):
    """A run that was interrupted at its eighth step, with checkpoints at 3 and 6."""
    run, args = make_run("unfinished")
    add = TrainingLog.add

    def stop(log, step, *others):
        waiting = add(log, step, *others)
        if step == 8:
            raise KeyboardInterrupt
        return waiting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "add", stop)
        assert main(args) == 130
    assert runs.checkpoints(run) == [3, 6]
    return run, args


def of_run(name):
    """A checkpoint is named by its step, a file of the model by its folder."""
    if name == "checkpoints":
        return "holds no checkpoint"
    if step := re.match(r"checkpoints/(\d+)", name):
        return rf"checkpoint {step[1]}\b.* is damaged"
    if name.startswith("model"):
        return r"/tensors: (damaged|missing)|model/card\.json|/model\b"
    return re.escape(name.split("/")[-1])


@slow
def test_the_folder_of_an_unfinished_run(unfinished, finished, scratch, call):
    """It ends with the bits of an undisturbed one; from which checkpoint is no secret."""
    run, args = unfinished
    wanted = left(finished[0])

    def resume():
        before = runs.checkpoints(run)
        result, lines = call(*args)
        if result is None:
            return None, lines
        said = "\n".join(lines)
        (started,) = re.findall(r"resumes from step (\d)", said) or ["0"]
        assert started != "0" or "holds no checkpoint; it begins again" in said
        for step in set(before) - set(range(int(started) + 1)):
            assert f"checkpoint {step} is damaged" in said
        found = left(run)
        if any("metrics.jsonl is missing" in line for line in lines):
            assert found[-1] == [line for line in wanted[-1] if line["step"] > 6]
            found = (*found[:-1], wanted[-1])
        return found, lines

    faults.judge(run, scratch, resume, wanted, of_run).check()


@slow
@pytest.mark.parametrize("fault", faults.FAULTS)
@pytest.mark.parametrize("name", ["progress/metadata", "state/manifest.ocdbt"])
def test_where_all_checkpoints_are_rotten_nothing_starts_over(
    name, fault, unfinished, scratch, call
):
    run, args = unfinished
    with faults.copied(run, scratch):
        for step in (3, 6):
            faults.inflict(fault, run / "checkpoints" / str(step) / name)
        result, lines = call(*args)
        assert result is None
        assert "checkpoints: no checkpoint is intact; " in lines[-1]
        assert runs.checkpoints(run) == [3, 6]
        assert runs.lines(run) == runs.lines(scratch / "kept")


def no_checkpoint(name):
    """Nobody looks into those of a finished run: without the folder, all is as before."""
    return not name.startswith("checkpoints/")


@slow
def test_a_finished_run_trains_no_more(finished, scratch, call):
    run, args = finished

    def again():
        result, lines = call(*(arg for arg in args if arg != "--json"))
        if result is None:
            return None, lines
        table = [line for line in result.splitlines() if not line.startswith("waited for data")]
        return table, [line for line in lines if line.startswith("jxfer: ")]

    faults.judge(run, scratch, again, again()[0], of_run, no_checkpoint).check()


@slow
def test_a_finished_run_is_evaluated(finished, scratch, call):
    run, _ = finished
    args = ("evaluate", str(run), "--split", "val", "--json")
    wanted, _ = call(*args)
    faults.judge(run, scratch, lambda: call(*args), wanted, of_run, no_checkpoint).check()


@slow
def test_a_finished_run_is_reported(finished, scratch, capfd):
    """`run_results.read` is all that the report reads."""
    run, _ = finished

    def read():
        found = []

        def program():
            one = run_results.read(run)
            figures = (one.config, one.summary, one.timing, one.metrics, one.card, one.figures)
            found.append((figures, one.probabilities.tobytes(), one.correct))

        code, _, lines = faults.guarded(capfd, program)
        return (None if code else found[0]), lines

    faults.judge(run, scratch, read, read()[0], of_run, no_checkpoint).check()


@slow
def test_the_folder_of_a_sweep(declare, tmp_path, scratch, call):
    """`jxfer ablate` again; a run's checkpoints and its model are read by no finished sweep.

    Without all of its cells it is a new one.
    """
    one = "arms=('short',), choices={'short': ({'lr': 0.05},)}, claims=(), seeds=(0,)"
    out = tmp_path / "out"
    args = ("ablate", str(declare(one)), "--out", str(out), "--json")

    def again():
        result, lines = call(*args)
        told = [line for line in lines if not line.startswith(("report: ", "1/1 "))]
        if result is None:
            return None, told
        (key,) = (cell["key"] for cell in result["cells"])
        page = (out / "report/index.html").read_text()
        # The command stands in the page unless the config is gone, which the page shows.
        (command,) = re.findall("jxfer train --run [^<]*", page) or [wanted_command]
        assert (out / f"cells/{key}/config.json").is_file() == ("jxfer train --run" in page)
        return [result, command, (out / "report/report.md").read_text()], told

    wanted_command = ""
    wanted, _ = again()
    wanted_command = wanted[1]
    assert "--optimizer.lr 0.05" in wanted_command
    (key,) = (cell["key"] for cell in wanted[0]["cells"])
    unread = tuple(f"cells/{key}/{part}/" for part in ("checkpoints", "model"))

    def only(name):
        return name != "cells" and not name.startswith(unread)

    faults.judge(out, scratch, again, wanted, re.escape, only).check()

    def report():
        result, lines = call("report", str(out))
        return (None if result is None else (out / "report/report.md").read_text()), lines

    of_report = lambda name: name == "results.json"  # noqa: E731
    faults.judge(out, scratch, report, wanted[2], re.escape, of_report).check()
