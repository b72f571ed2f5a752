"""When a run evaluates, which step is the best, and when to stop looking for a better one.

After `metrics` in the flow. Pure: nothing here is stored but `Best`, so a run that resumes decides
as one that was never killed.
"""

import dataclasses
import math
from collections.abc import Sequence

from jxfer.errors import UserError
from jxfer.train.config import TrainConfig
from jxfer.train.metrics import Evaluation

_MOST_STEPS = 10**8


def evaluation_steps(config: TrainConfig, examples: int) -> list[int]:
    """Steps after which the run evaluates, in order; the last one ends it.

    Raises:
      UserError: the steps are too many to count.
    """
    steps_per_epoch = examples / config.batch_size
    if config.epochs * steps_per_epoch > _MOST_STEPS:
        raise UserError(f"--epochs {config.epochs:g}: that is more than {_MOST_STEPS:,} steps")
    total = max(1, math.ceil(config.epochs * steps_per_epoch))
    if config.eval_every * steps_per_epoch <= 1:
        return list(range(1, total + 1))
    evaluations = math.ceil(config.epochs / config.eval_every)
    ends = (math.ceil(i * config.eval_every * steps_per_epoch) for i in range(1, evaluations))
    return sorted({end for end in ends if end < total} | {total})


@dataclasses.dataclass
class Best:
    """The best evaluation so far; the first of equals."""

    step: int | None = None
    correct: int = -1
    score: float | None = None
    """What it is the best by: the count of correct images unless another score is given."""

    def update(self, step: int, result: Evaluation, score: float | None = None) -> bool:
        """Takes an evaluation; returns whether it is the best.

        Args:
          score: the larger, the better; one that is not finite is never the best but the first.
        """
        score = float(result.correct) if score is None else score
        better = self.step is None or (math.isfinite(score) and score > self._score)
        if better:
            finite = score if math.isfinite(score) else None
            self.step, self.correct, self.score = step, result.correct, finite
        return better

    @property
    def _score(self) -> float:
        return -math.inf if self.score is None else self.score


def out_of_patience(
    patience: int | None, evaluate_at: Sequence[int], best: Best, step: int, last_phase: int
) -> bool:
    """Whether the last `patience` evaluations, all of the last phase, found no better step.

    Early stopping: Goodfellow, Bengio & Courville 2016, "Deep Learning", algorithm 7.1, with the
    score that `Best` goes by. The phases before the last one always run to their ends:
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
