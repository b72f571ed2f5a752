"""The best step by validation, and when to stop looking for a better one.

After `metrics` in the flow. Pure: nothing here is stored but `Best`, so a run that resumes decides
as one that was never killed.
"""

import dataclasses
from collections.abc import Sequence

from jxfer.train.metrics import Evaluation


@dataclasses.dataclass
class Best:
    """The best evaluation so far; the first of equals."""

    step: int | None = None
    correct: int = -1

    def update(self, step: int, result: Evaluation) -> bool:
        """Takes an evaluation; returns whether it is the best."""
        better = result.correct > self.correct
        if better:
            self.step, self.correct = step, result.correct
        return better


def out_of_patience(
    patience: int | None, evaluate_at: Sequence[int], best: Best, step: int, last_phase: int
) -> bool:
    """Whether the last `patience` evaluations, all of the last phase, found no better step.

    Early stopping: Goodfellow, Bengio & Courville 2016, "Deep Learning", algorithm 7.1, with the
    count of correct validation images. The phases before the last one always run to their ends:
    they prepare it, and a head that has settled is no reason to leave out the fine-tuning.

    Args:
      patience: None never stops.
      evaluate_at: all steps at which the run evaluates.
      best: after the evaluation of `step`.
      step: steps taken.
      last_phase: steps before the last phase.
    """
    if patience is None:
        return False
    since = max(best.step or 0, last_phase)
    return sum(since < at <= step for at in evaluate_at) >= patience
