"""A pass over a split with one compiled step: figures, or the probabilities of each image."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from jxfer.data import loader
from jxfer.data.sources import Source
from jxfer.data.transforms import Preprocessing
from jxfer.models.network import POOLED
from jxfer.models.registry import Model
from jxfer.train import metrics, parallel, step
from jxfer.trees import Tree
from jxfer.zoo.pretrained import SOURCE_HEAD, Pretrained

T = TypeVar("T")


@functools.lru_cache(maxsize=8)
def _compiled(
    make: Callable[..., Callable[..., Any]],
    model: Model,
    preprocessing: Preprocessing,
    after: str | None = None,
) -> Callable[..., Any]:
    return parallel.compile_step(make(model, preprocessing, after=after))


class Evaluator:
    """Evaluates a model; compiled at the first call, once for all evaluators of an equal model.

    Args:
      batch_size: examples per step over all devices, rounded up to a multiple of their number.
    """

    def __init__(self, model: Model, preprocessing: Preprocessing, batch_size: int) -> None:
        devices = jax.device_count()
        self._model, self._preprocessing = model, preprocessing
        self._batch_size = -(-batch_size // devices) * devices

    def evaluate(self, variables: Tree, source: Source) -> metrics.Evaluation:
        """Counts every example of the source once.

        Args:
          variables: replicated, as from `parallel.replicate`.
        """
        return self._sums(variables, self._batches(source), None)

    def evaluate_features(
        self, variables: Tree, features: np.ndarray, labels: np.ndarray, after: str
    ) -> metrics.Evaluation:
        """The same from an output of the network instead of from images.

        Args:
          features: [N, ...], one row an example.
          labels: int [N].
          after: the output that the features are.
        """
        batches = loader.feature_batches(features, labels, self._batch_of(len(features)))
        return self._sums(variables, parallel.shard(batches), after)

    def _sums(
        self, variables: Tree, batches: Iterator[step.Batch], after: str | None
    ) -> metrics.Evaluation:
        eval_step = _compiled(step.make_eval_step, self._model, self._preprocessing, after)
        results = (eval_step(variables, batch) for batch in batches)
        sums = [parallel.fetch(result) for result in one_late(results)]
        return metrics.evaluation(metrics.add(sums))

    def probabilities(self, variables: Tree, source: Source) -> np.ndarray:
        """Softmax probabilities [N, K] float32, in the source's order."""
        from scipy import special  # a fifth of a second that most starts do without

        predict_step = _compiled(step.make_predict_step, self._model, self._preprocessing)
        logits: np.ndarray = self._rows(predict_step, variables, source)
        return special.softmax(logits, -1)

    def vectors(self, variables: Tree, source: Source) -> dict[str, np.ndarray]:
        """`pooled` [N, C] and `logits` [N, K] of one pass, float32, in the source's order."""
        outputs_step = _compiled(_make_vectors_step, self._model, self._preprocessing)
        rows: dict[str, np.ndarray] = self._rows(outputs_step, variables, source)
        return rows

    def _rows(self, function: Callable[..., Any], variables: Tree, source: Source) -> Any:
        """What a step returns for each example; padding left out."""
        parts = []
        for batch in self._batches(source):
            found = function(variables, batch)
            real = parallel.gather(batch["mask"]) > 0
            parts.append(jax.tree.map(lambda x, real=real: parallel.gather(x)[real], found))
        return jax.tree.map(lambda *blocks: np.concatenate(blocks), *parts)

    def class_probabilities(self, variables: Tree, source: Source) -> np.ndarray:
        """Mean softmax probabilities of the examples of each class, [classes, K] float32.

        Rows follow `source.class_names`; that of a class without examples is zero.

        Args:
          variables: replicated, as from `parallel.replicate`.
        """
        classes = len(source.class_names)
        make = functools.partial(step.make_class_sums_step, classes=classes)
        class_sums = parallel.compile_step(make(self._model, self._preprocessing))
        results = (class_sums(variables, batch) for batch in self._batches(source))
        total = metrics.add(parallel.fetch(result) for result in one_late(results))
        counts = np.maximum(total["examples"], 1)[:, None]
        return (total["probabilities"] / counts).astype(np.float32)

    def _batch_of(self, examples: int) -> int:
        # A source smaller than a batch makes one batch of its own size.
        devices = jax.device_count()
        return min(self._batch_size, -(-examples // devices) * devices)

    def _batches(self, source: Source) -> Iterator[step.Batch]:
        batches = loader.eval_batches(
            source,
            self._preprocessing,
            batch_size=self._batch_of(len(source)),
            host=jax.process_index(),
            hosts=jax.process_count(),
        )
        return parallel.shard(
            {name: array for name, array in batch.items() if name != "index"} for batch in batches
        )


def _make_vectors_step(
    model: Model, preprocessing: Preprocessing, after: None = None
) -> Callable[[Tree, step.Batch], dict[str, jax.Array]]:
    return step.make_outputs_step(model, preprocessing, (POOLED, "logits"), "pooled")


def source_relationship(pretrained: Pretrained, source: Source, batch_size: int) -> Tree:
    """Co-Tuning's `{"relationship": p(source class | class) [K_t, K_s]}` of the training split.

    One pass over its evaluation view; {} where the source's head does not train.
    """
    if SOURCE_HEAD not in pretrained.variables["params"]:
        return {}
    model, variables = pretrained.as_source()
    evaluator = Evaluator(model, pretrained.preprocessing, batch_size)
    return {"relationship": evaluator.class_probabilities(parallel.replicate(variables), source)}


def one_late(results: Iterable[T]) -> Iterator[T]:
    """Yields each result once the next is under way, so that the device always has work.

    More than two would fill the device's memory with their batches, and starve XLA's threads where
    several devices share a CPU.
    """
    waiting: list[T] = []
    for result in results:
        waiting.append(result)
        if len(waiting) == 2:
            yield waiting.pop(0)
    yield from waiting
