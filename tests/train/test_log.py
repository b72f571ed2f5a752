"""Lines of training metrics: what they add up, and when they are written."""

import json

import pytest

from jxfer.train.log import TrainingLog
from jxfer.train.writers import ProgressBar, Writers
from jxfer.transfer.optimizer import OptimizerConfig
from tests.train.steps import make_plan


@pytest.fixture(scope="module")
def plan():
    """20 steps, 5 an epoch; the rate falls to a tenth after each epoch."""
    optimizer = OptimizerConfig(lr=0.1, schedule="step", step_epochs=1.0)
    return make_plan(optimizer=optimizer, total_steps=20)


@pytest.fixture
def writers(tmp_path):
    with Writers(tmp_path, 0) as opened:
        yield opened


@pytest.fixture
def make_log(writers, plan):
    def make(open_sums=(), start=0):
        bar = ProgressBar(20, 0, quiet=True)
        return TrainingLog(writers, bar, plan, start, open_sums, lambda: "kept: 2")

    return make


@pytest.fixture
def lines(tmp_path):
    def read():
        text = (tmp_path / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    return read


def sums(loss, correct, examples=4):
    return {"loss": loss, "correct": correct, "examples": examples}


def test_a_line_is_the_mean_over_its_steps(make_log, lines):
    log = make_log()
    for step, (loss, correct) in enumerate([(4.0, 1), (2.0, 2), (3.0, 4)], start=1):
        log.add(step, sums(loss, correct))
    log.end_line(3)
    log.flush()
    (line,) = lines()
    assert line.pop("images_per_second") > 0
    assert line == {
        "step": 3,
        "epoch": 0.6,
        "phase": "full",
        "train_loss": 0.75,
        "train_accuracy": pytest.approx(7 / 12),
        "lr/head": pytest.approx(0.1),
        "lr/low_lr": pytest.approx(0.01),
    }


def test_the_rate_on_a_line_is_that_of_its_last_step(make_log, lines):
    """The first decay is in the sixth step, the first of the second epoch."""
    log = make_log()
    for step in range(1, 7):
        log.add(step, sums(1.0, 1))
        log.end_line(step)
    log.flush()
    assert [line["lr/head"] for line in lines()] == pytest.approx([0.1] * 5 + [0.01])


def test_the_rates_of_a_later_phase_count_from_its_start(make_log, lines):
    log = make_log(start=7)
    for step in range(8, 14):
        log.add(step, sums(1.0, 1))
        log.end_line(step)
    log.flush()
    assert [line["lr/head"] for line in lines()] == pytest.approx([0.1] * 5 + [0.01])


def test_a_line_is_written_when_the_next_step_is_on_its_way(make_log, lines):
    log = make_log()
    log.add(1, sums(1.0, 1))
    log.end_line(1)
    assert lines() == []
    log.add(2, sums(1.0, 1))
    assert [line["step"] for line in lines()] == [1]


def test_the_step_that_releases_a_line_is_not_in_it(make_log, lines):
    log = make_log()
    log.add(1, sums(4.0, 0))
    log.end_line(1)
    log.add(2, sums(400.0, 4))
    log.end_line(2)
    log.flush()
    assert [line["train_loss"] for line in lines()] == [1.0, 100.0]


def test_an_open_line_goes_through_a_checkpoint(make_log, lines):
    """Two steps before the checkpoint, one after it: the line is that of all three."""
    before = make_log()
    before.add(1, sums(4.0, 1))
    before.add(2, sums(2.0, 2))
    after = make_log(json.loads(json.dumps(before.open_sums())))
    after.add(3, sums(3.0, 4))
    after.end_line(3)
    after.flush()
    (line,) = lines()
    assert line["train_loss"] == 0.75
    assert line["train_accuracy"] == pytest.approx(7 / 12)


def test_there_is_nothing_open_at_the_end_of_a_line(make_log):
    log = make_log()
    log.add(1, sums(1.0, 1))
    log.end_line(1)
    assert log.open_sums() == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_steps(loss, make_log, lines, one_line):
    log = make_log()
    for step in range(1, 5):
        log.add(step, sums(loss if step == 4 else 1.0, 1))
        if step % 2 == 0:
            log.end_line(step)
    words = ("step 4 of phase full", "head 0.1, low_lr 0.01", "kept: 2", "--optimizer.lr")
    with one_line(str(loss), *words):
        log.flush()
    assert [line["step"] for line in lines()] == [2]


def test_the_first_step_of_a_line_that_is_not_finite_is_named(make_log, one_line):
    """With the rates of that step: they fall to a tenth after step 5."""
    log = make_log()
    for step in range(1, 9):
        log.add(step, sums(float("inf") if step in (5, 6, 7) else 1.0, 1))
    log.end_line(8)
    with one_line("loss became inf at step 5 of phase full", "head 0.1,"):
        log.flush()


def test_a_loss_from_before_a_checkpoint_counts(make_log, one_line):
    before = make_log()
    before.add(1, sums(float("nan"), 1))
    before.add(2, sums(1.0, 1))
    after = make_log(before.open_sums())
    after.add(3, sums(1.0, 1))
    after.end_line(3)
    with one_line("step 2 of phase full"):
        after.flush()


def test_the_wait_for_data_is_what_the_device_waits(make_log, monkeypatch):
    """After a batch that came late the host waits for the step itself, and its next wait counts."""
    waited_for = []
    monkeypatch.setattr("jax.block_until_ready", waited_for.append)
    log, steps = make_log(), [sums(1.0, 1, examples) for examples in (4, 5, 6)]
    log._pace.lap()
    assert log.add(1, steps[0], waited=1e3) == "data_wait"
    assert log.add(2, steps[1], waited=0.0) == "step"
    assert log.add(3, steps[2], waited=0.0) == "step"
    assert waited_for == [steps[0], steps[0], steps[1]]
