"""What a run thinks of its models: which step is best, and in the end how good it is.

After `prefix` in the flow. A run that adapts judges its models on the target as
well. Labels of the target are used to measure, and to say which step an oracle would have chosen;
no choice of the run depends on them.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jxfer.data.readers import Source, Subset
from jxfer.data.sources import Splits
from jxfer.data.targets import Target
from jxfer.errors import UserError
from jxfer.models.network import POOLED
from jxfer.train import adabn, parallel, target_scores
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import Evaluator
from jxfer.train.feed import Images
from jxfer.train.metrics import Evaluation
from jxfer.train.prefix import PrefixCache
from jxfer.train.selection import Best
from jxfer.trees import Tree
from jxfer.zoo.pretrained import Pretrained

_log = logging.getLogger("jxfer")
_MOST_ROWS = 2000
"""Images of each domain's training split that importance weights are estimated on."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The end of a run."""

    variables: Tree
    """Of the chosen model, on the host."""
    test: Evaluation | None
    """On the test split, of the target in a run that adapts; None where there is none."""
    adapt: dict[str, Any] | None
    """For the summary of a run that adapts."""


class Judge:
    """Judges the models of a run.

    Args:
      config: of the run.
      splits: of its data.
      pretrained: its network.
      target: of a run that adapts.

    Raises:
      UserError: AdaBN has no norms to adapt; a score needs images of several hosts.
    """

    def __init__(
        self,
        config: TrainConfig,
        splits: Splits,
        pretrained: Pretrained,
        target: Target | None = None,
    ) -> None:
        self._config, self._splits, self._target = config, splits, target
        self._model, self._preprocessing = pretrained.model, pretrained.preprocessing
        self._start = pretrained.variables
        self._evaluator = Evaluator(self._model, self._preprocessing, config.batch_size)
        self.best, self.oracle = Best(), Best()
        self._last_correct, self._most_correct = 0, 0
        if config.adapt.select != "source" and jax.process_count() > 1:
            raise UserError(
                f"--adapt.select {config.adapt.select} needs the whole target on one host; use "
                "source"
            )
        if config.adapt.method == "adabn":
            _check_adabn(pretrained)

    def restore(self, progress: dict[str, Any]) -> None:
        """Goes on from what `progress` returned, or from {}."""
        self.best = Best(**progress.get("best", {}))
        self.oracle = Best(**progress.get("oracle", {}))
        self._last_correct = progress.get("last_correct", 0)
        self._most_correct = progress.get("most_correct", 0)

    def progress(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        found: dict[str, Any] = {"best": dataclasses.asdict(self.best)}
        if self._target is not None:
            oracle = dataclasses.asdict(self.oracle)
            found |= {
                "oracle": oracle,
                "last_correct": self._last_correct,
                "most_correct": self._most_correct,
            }
        return found

    def evaluate(
        self, step: int, feed: Images | PrefixCache, variables: Tree
    ) -> tuple[dict[str, Any], bool]:
        """Judges the model of a step on the validation split.

        Args:
          feed: of the phase.
          variables: replicated.

        Returns:
          (figures for the log; whether a checkpoint of the step must be kept).
        """
        result = feed.evaluate(self._evaluator, variables)
        figures = {f"val_{name}": value for name, value in dataclasses.asdict(result).items()}
        if self._target is None:
            return figures, self.best.update(step, result)
        self._last_correct = result.correct
        self._most_correct = max(self._most_correct, result.correct)
        adapted = self._adapted(variables, self._target)
        oracle = self._evaluator.evaluate(adapted, self._target.val)
        score = self._score(result, variables, adapted, self._target)
        shown = score if math.isfinite(score) else None
        figures |= {"oracle_val_accuracy": oracle.accuracy, "score": shown}
        keep = [self.best.update(step, result, score), self.oracle.update(step, oracle)]
        return figures, any(keep)

    def conclude(self, restore: Callable[[int], Tree]) -> Verdict:
        """Reads the test split, once.

        Args:
          restore: the variables of a step that was kept, on the host.
        """
        assert self.best.step is not None
        variables = restore(self.best.step)
        replicated = parallel.replicate(variables)
        test = None
        if self._splits.test is not None:
            test = self._evaluator.evaluate(replicated, self._splits.test)
        if self._target is None:
            return Verdict(variables, test, None)
        assert self.oracle.step is not None
        adapted = self._adapted(replicated, self._target)
        on_target = oracle = self._test_on(self._target, adapted)
        if self.oracle.step != self.best.step:
            other = parallel.replicate(restore(self.oracle.step))
            oracle = self._test_on(self._target, self._adapted(other, self._target))
        config, examples = self._config.adapt, len(self._splits.val)
        commonest = int(np.bincount(self._splits.val.labels).max())
        start = self._evaluator.evaluate(parallel.replicate(self._start), self._splits.val)
        most = max(self._most_correct, start.correct)
        diverged = has_diverged(self._last_correct, most, commonest)
        if diverged:
            _log.warning(
                "the run has diverged: %d of %d validation images of the source at its end, %d at "
                "best; lower --adapt.weight or --optimizer.lr",
                self._last_correct,
                examples,
                most,
            )
        adapt = {
            "method": config.method,
            "target": config.target,
            "target_train_examples": len(self._target.train),
            "target_val_examples": len(self._target.val),
            "target_skipped_images": list(self._target.skipped),
            "select": config.select,
            "score": self.best.score,
            "source_test_accuracy": test.accuracy if test else None,
            "source_test_correct": test.correct if test else None,
            "source_test_examples": test.examples if test else None,
            "oracle_step": self.oracle.step,
            "oracle_val_accuracy": self.oracle.correct / len(self._target.val),
            "oracle_test_accuracy": oracle.accuracy if oracle else None,
            "diverged": diverged,
        }
        return Verdict(parallel.fetch(adapted), on_target, adapt)

    def _test_on(self, target: Target, adapted: Tree) -> Evaluation | None:
        return None if target.test is None else self._evaluator.evaluate(adapted, target.test)

    def _adapted(self, variables: Tree, target: Target) -> Tree:
        """The model as it is used on the target: with its own statistics under AdaBN."""
        if self._config.adapt.method != "adabn":
            return variables
        batch_size = self._config.batch_size
        found = adabn.statistics(
            self._model, self._preprocessing, variables, target.train, batch_size
        )
        return variables | {"batch_stats": parallel.replicate(found)}

    def _score(
        self, on_source: Evaluation, variables: Tree, adapted: Tree, target: Target
    ) -> float:
        """By --adapt.select; the larger, the better."""
        select = self._config.adapt.select
        if select == "source":
            return on_source.accuracy
        if select == "importance_weighted":
            vectors = self._evaluator.vectors
            held_out = vectors(variables, self._splits.val)
            return target_scores.importance_weighted_accuracy(
                held_out["logits"].argmax(-1) == self._splits.val.labels,
                held_out[POOLED],
                vectors(variables, _some(self._splits.train))[POOLED],
                vectors(adapted, _some(target.train))[POOLED],
                self._config.seed,
            )
        probabilities = self._evaluator.probabilities(adapted, target.unlabelled_val)
        if select == "entropy":
            return target_scores.entropy(probabilities)
        return target_scores.soft_neighbourhood_density(probabilities)


def has_diverged(last: int, best: int, commonest: int) -> bool:
    """Whether a run ends with half of its best accuracy on labelled images or less, or at chance.

    At chance it has no more right than a network that says one class of all.

    Args:
      last: correct validation images of the source at the last evaluation.
      best: the most at any, or of the network that the run started from.
      commonest: validation images of the class that has most.
    """
    return last <= max(best / 2, commonest)


def _check_adabn(pretrained: Pretrained) -> None:
    if pretrained.folded:
        raise UserError(
            "--adapt.method adabn: the norms of these weights are folded into the convolutions and "
            "have no statistics to adapt; use another method"
        )
    if not pretrained.model.norm_paths():
        raise UserError(
            f"--adapt.method adabn: {pretrained.model.architecture.name} has no BatchNorm; use "
            "another method"
        )


def _some(source: Source) -> Source:
    """At most `_MOST_ROWS` of the images, always the same."""
    if len(source) <= _MOST_ROWS:
        return source
    drawn = np.random.default_rng(0).permutation(len(source))[:_MOST_ROWS]
    return Subset(source, np.sort(drawn))
