"""A run that was killed, or whose checkpoint rots, ends with the same bits as one that was not."""

import contextlib
import dataclasses
import json
import shutil

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jxfer.data.sources import DataConfig
from jxfer.data.transforms import AugmentConfig
from jxfer.models.heads import HeadConfig
from jxfer.train import loop, run_folder
from jxfer.train.log import TrainingLog
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig
from tests.hypotheses import examples
from tests.runs import flip_a_bit, largest_file, lines, summary, truncate


@pytest.fixture(scope="module")
def config(small_config, images):
    """18 steps, 2.25 an epoch: lines, checkpoints and epochs end at different steps.

    With dropout, mixing and balanced sampling, whose draws have to come back too.
    """
    model = ModelConfig(arch="resnet20", through="stage1", classifier=HeadConfig(dropout=0.25))
    augment = AugmentConfig(flip=True, pad_crop=2, randaugment=(2, 9), mixup=0.2, cutmix=1.0)
    data = DataConfig(f"folder:{images}", balanced_sampling=True)
    return small_config(
        data=data, model=model, augment=augment, epochs=8.0, eval_every=4.0, checkpoint_every=6
    )


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    loop.run_config(config, run, quiet=True)
    return run


@pytest.fixture
def unfinished(undisturbed, tmp_path):
    """The run as a kill after its last checkpoint, before the summary, would have left it."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")
    return run


def steps(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def assert_same_run(config, undisturbed, read_state, assert_same_bits):
    """Parameters, statistics, optimizer state, metrics and summary agree to the last bit."""

    def check(run):
        found, wanted = read_state(config, run), read_state(config, undisturbed)
        assert int(found.step) == int(wanted.step) == 18
        assert_same_bits(found.params, wanted.params)
        assert_same_bits(found.batch_stats, wanted.batch_stats)
        assert_same_bits(by_path(found.opt_state), by_path(wanted.opt_state))
        assert lines(run) == lines(undisturbed)
        assert summary(run) == summary(undisturbed)

    return check


def by_path(opt_state):
    leaves, _ = jax.tree_util.tree_flatten_with_path(opt_state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def finish(process):
    """Lets a resumed run end."""
    _, output = process.communicate()
    assert process.returncode == 0, output
    assert "resumes from step" in output


@pytest.mark.slow
def test_kill_9_in_mid_epoch_changes_no_bit(
    config, tmp_path, start_process, kill_after, assert_same_run
):
    run = tmp_path / "run"
    # The save of step 9 waits for that of step 6, so there is a checkpoint to resume from.
    kill_after(start_process(config, run), run, 10)
    assert steps(run)
    assert not (run / "summary.json").exists()
    finish(start_process(config, run))
    assert_same_run(run)


@pytest.mark.slow
def test_sigterm_saves_the_step_and_the_same_command_changes_no_bit(
    config, tmp_path, start_process, wait_for_step, assert_same_run
):
    """Evaluations and checkpoints of the config are at other steps than the signal's."""
    run = tmp_path / "run"
    stopped = start_process(config, run)
    wait_for_step(stopped, run, 2)
    stopped.terminate()
    _, output = stopped.communicate()
    assert stopped.returncode == 75, output
    (line,) = (line for line in output.splitlines() if "SIGTERM" in line)
    assert f"saved at step {max(steps(run))} of 18" in line
    assert "the same command resumes" in line
    assert not (run / "summary.json").exists()
    finish(start_process(config, run))
    assert_same_run(run)


@pytest.mark.parametrize("damage", [flip_a_bit, truncate])
def test_a_rotten_checkpoint_is_reported_and_the_one_before_taken(
    damage, unfinished, config, caplog, assert_same_run
):
    before, newest = steps(unfinished)[-2:]
    damage(largest_file(unfinished / f"checkpoints/{newest}/state"))
    loop.run_config(config, unfinished, quiet=True)
    assert f"checkpoint {newest} is damaged" in caplog.text
    assert f"resumes from step {before} of 18" in caplog.text
    assert json.loads((unfinished / "timing.json").read_text())["steps"] == 18 - before
    assert_same_run(unfinished)


def test_a_run_without_an_intact_checkpoint_is_an_error(unfinished, config, one_line):
    for step in steps(unfinished):
        truncate(largest_file(unfinished / f"checkpoints/{step}/state"))
    with one_line(str(unfinished), "no checkpoint is intact"):
        loop.run_config(config, unfinished, quiet=True)


def test_a_run_killed_after_its_last_step_only_writes_its_summary(
    unfinished, config, assert_same_run
):
    loop.run_config(config, unfinished, quiet=True)
    assert_same_run(unfinished)


def test_another_config_is_refused_and_the_difference_shown(undisturbed, config, one_line):
    optimizer = dataclasses.replace(config.optimizer, lr=0.5)
    with one_line("another config", "optimizer.lr 0.05 -> 0.5", "seed 0 -> 3"):
        loop.run_config(dataclasses.replace(config, optimizer=optimizer, seed=3), undisturbed)


def test_a_finished_run_returns_its_summary_and_writes_nothing(undisturbed, config, caplog):
    def files():
        found = (path for path in undisturbed.rglob("*") if path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in found}

    before = files()
    result = loop.run_config(config, undisturbed, quiet=True)
    assert result == run_folder.read_summary(undisturbed)
    assert "has finished" in caplog.text
    assert files() == before


@pytest.mark.slow
def test_a_second_process_on_a_live_run_is_refused(config, tmp_path, start_process):
    run = tmp_path / "run"
    with run_folder.open_run(run, config):
        second = start_process(config, run)
        _, output = second.communicate()
    assert second.returncode == 1
    assert "another process is training here" in output


@pytest.mark.slow
def test_data_that_changed_is_an_error_that_loses_nothing(small_config, images, tmp_path, one_line):
    data = tmp_path / "images"
    shutil.copytree(images, data)
    config = small_config(data=DataConfig(f"folder:{data}"), epochs=1.0)
    run = tmp_path / "run"
    loop.run_config(config, run, quiet=True)
    (run / "summary.json").unlink()
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())

    for split in ("train", "val", "test"):
        shutil.copytree(data / split / "ants", data / split / "wasps")
    with one_line("other shapes", "--run"):
        loop.run_config(config, run, quiet=True)
    for split in ("train", "val", "test"):
        shutil.rmtree(data / split / "wasps")
    next((data / "train" / "bees").iterdir()).unlink()
    with one_line("the data changed", "36", "35"):
        loop.run_config(config, run, quiet=True)
    ant = next((data / "train" / "ants").iterdir())
    ant.rename(data / "train" / "bees" / "moved.png")  # as many, but other labels
    shutil.copy(images / "train" / "bees" / "00.png", data / "train" / "bees" / "again.png")
    with one_line("the data changed"):
        loop.run_config(config, run, quiet=True)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept


@pytest.mark.slow
def test_starting_weights_that_changed_are_an_error(
    make_entry, small_config, tmp_path, one_line, monkeypatch
):
    entry = make_entry("standard")
    config = small_config(
        model=ModelConfig(weights=str(entry)), strategy=StrategyConfig("linear_probe"), epochs=1.0
    )
    run = tmp_path / "run"
    loop.run_config(config, run, quiet=True)
    (run / "summary.json").unlink()
    card, variables = store.load(entry)
    store.save(entry, card, jax.tree.map(lambda leaf: leaf * 1.5, variables), overwrite=True)
    with one_line("the starting weights changed", "--run"):
        loop.run_config(config, run, quiet=True)


class _Interruption(Exception):
    """Stands for whatever ends a process between two steps."""


@pytest.mark.slow
@examples(8)
@given(schedule=st.lists(st.integers(1, 17), min_size=1, max_size=3).map(sorted))
def test_any_schedule_of_interruptions_gives_the_same_final_state(
    schedule, config, assert_same_run, tmp_path_factory
):
    """A run that is interrupted when it takes each of these steps, and then let go."""
    run = tmp_path_factory.mktemp("interrupted") / "run"
    add = TrainingLog.add
    for number in (*schedule, None):

        def stop_at(log, step, *others, number=number):
            waiting = add(log, step, *others)
            if step == number:
                raise _Interruption
            return waiting

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingLog, "add", stop_at)
            with contextlib.suppress(_Interruption):
                loop.run_config(config, run, quiet=True)
    assert_same_run(run)
