"""Early stopping: the rule by itself, and runs that end by it."""

import json
import math
import shutil

import pytest

from jxfer.train import loop
from jxfer.train.evaluate import Evaluator
from jxfer.train.metrics import Evaluation
from jxfer.train.selection import Best, out_of_patience
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig
from tests.runs import summary


@pytest.mark.parametrize(
    ("patience", "best", "step", "last_phase", "over"),
    [
        (None, 10, 60, 0, False),
        (2, 10, 20, 0, False),
        (2, 10, 30, 0, True),
        (2, 10, 35, 0, True),  # between two evaluations nothing changes
        (2, 30, 40, 0, False),
        (1, 30, 30, 0, False),
        (1, 30, 40, 0, True),
        (2, None, 5, 0, False),
        (2, 10, 40, 30, False),  # one evaluation in the last phase
        (2, 10, 50, 30, True),
        (2, 10, 30, 30, False),
        (2, 40, 50, 30, False),
    ],
)
def test_patience_counts_the_evaluations_of_the_last_phase_since_the_best(
    patience, best, step, last_phase, over
):
    found = out_of_patience(patience, (10, 20, 30, 40, 50, 60), Best(best), step, last_phase)
    assert found == over


def evaluation(correct):
    return Evaluation(0.0, None, 0.0, 0.0, correct, 10)


def test_the_first_of_equals_is_the_best():
    best = Best()
    for step, correct in ((1, 3), (2, 5), (3, 5), (4, 4)):
        best.update(step, evaluation(correct))
    assert best == Best(2, 5, 5.0)


def test_a_score_decides_in_place_of_the_count_and_one_that_is_not_finite_never():
    best = Best()
    assert best.update(1, evaluation(9), -math.inf)  # some step has to be the best
    assert best == Best(1, 9, None)
    assert best.update(2, evaluation(3), -0.5)
    assert not best.update(3, evaluation(8), -0.6)
    assert not best.update(4, evaluation(8), math.nan)
    assert best == Best(2, 3, -0.5)


@pytest.fixture
def play(monkeypatch):
    """Validation counts by the number of the evaluation; the test split is evaluated for real."""
    real = Evaluator.evaluate

    def set_up(counts):
        left = list(counts)

        def evaluate(self, variables, source):
            result = real(self, variables, source)
            if len(source) != 15:
                return result
            return Evaluation(left[0] / 15, None, 0.0, 1.0, left.pop(0), 15)

        monkeypatch.setattr(Evaluator, "evaluate", evaluate)

    return set_up


@pytest.mark.slow
def test_a_run_stops_and_a_kill_before_its_summary_changes_nothing(play, small_config, tmp_path):
    """9 steps, evaluated at 3, 5, 7 and 9: the second is the best, the third uses the patience."""
    config = small_config(patience=1)
    play([5, 7, 7, 9])
    run = tmp_path / "run"
    result = loop.run_config(config, run, quiet=True)
    assert (result["best_step"], result["val_correct"]) == (5, 7)
    assert (result["steps"], result["stopped_early"]) == (7, True)
    assert result["phases"][0]["steps"] == 7
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 7
    wanted = summary(run)

    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")
    play([])  # validation is not evaluated again
    assert loop.run_config(config, run, quiet=True) is not None
    assert summary(run) == wanted
    assert (run / "model" / "card.json").exists()


@pytest.mark.slow
def test_a_kill_between_two_evaluations_keeps_the_count(play, small_config, tmp_path):
    config = small_config(patience=2, checkpoint_every=1)
    run = tmp_path / "run"
    play([7, 6, 5, 9])
    loop.run_config(config, run, quiet=True)
    wanted = summary(run)
    assert (wanted["steps"], wanted["stopped_early"]) == (7, True)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "7")  # as a kill at step 6 would have left it
    play([5, 9])
    loop.run_config(config, run, quiet=True)
    assert summary(run) == wanted


def test_a_run_that_takes_all_its_steps_did_not_stop_early(play, small_config, tmp_path):
    play([9, 6, 5, 4])
    result = loop.run_config(small_config(patience=3), tmp_path / "run", quiet=True)
    assert (result["steps"], result["stopped_early"]) == (9, False)


@pytest.mark.slow
def test_the_first_phase_runs_to_its_end_and_what_was_frozen_is_still_compared(
    play, small_config, make_entry, tmp_path
):
    """lp_ft, five steps of the head and four of everything; evaluations at 2, 3, 4, 5, 6, ..."""
    config = small_config(
        model=ModelConfig(weights=make_entry("standard"), through="stage1"),
        strategy=StrategyConfig("lp_ft"),
        eval_every=0.5,
        patience=2,
    )
    play([9, 1, 1, 1, 1, 1, 1, 1])
    result = loop.run_config(config, tmp_path / "run", quiet=True)
    head, everything = result["phases"]
    assert head["steps"] == 5
    assert head["frozen_unchanged"] is True
    assert everything["frozen_unchanged"] is None
    assert (everything["steps"], result["steps"]) == (2, 7)
    assert result["frozen_unchanged"] is True
    assert result["stopped_early"] is True


@pytest.mark.slow
def test_a_stopped_partial_run_still_proves_its_freeze(play, small_config, make_entry, tmp_path):
    config = small_config(
        model=ModelConfig(weights=make_entry("standard"), through="stage1"),
        strategy=StrategyConfig("partial", "stem"),
        patience=1,
    )
    play([3, 3, 9, 9])
    result = loop.run_config(config, tmp_path / "run", quiet=True)
    assert (result["steps"], result["frozen_unchanged"]) == (5, True)
