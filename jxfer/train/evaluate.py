"""A pass over a split with one compiled step: figures, or the probabilities of each image."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from jxfer.data import loader
from jxfer.data.sources import Source
from jxfer.data.transforms import Preprocessing
from jxfer.models.registry import Model
from jxfer.train import metrics, parallel, step
from jxfer.trees import Tree

T = TypeVar("T")


@functools.lru_cache(maxsize=8)
def _compiled(
    make: Callable[[Model, Preprocessing], Callable[..., Any]],
    model: Model,
    preprocessing: Preprocessing,
) -> Callable[..., Any]:
    return parallel.compile_step(make(model, preprocessing))


class Evaluator:
    """Evaluates a model; compiled at the first call, once for all evaluators of an equal model.

    Args:
      batch_size: examples per step over all devices, rounded up to a multiple of their number.
    """

    def __init__(self, model: Model, preprocessing: Preprocessing, batch_size: int) -> None:
        devices = jax.device_count()
        self._preprocessing = preprocessing
        self._batch_size = -(-batch_size // devices) * devices
        self._eval_step = _compiled(step.make_eval_step, model, preprocessing)
        self._predict_step = _compiled(step.make_predict_step, model, preprocessing)

    def evaluate(self, variables: Tree, source: Source) -> metrics.Evaluation:
        """Counts every example of the source once.

        Args:
          variables: replicated, as from `parallel.replicate`.
        """
        results = (self._eval_step(variables, batch) for batch in self._batches(source))
        sums = [parallel.fetch(result) for result in one_late(results)]
        return metrics.evaluation(metrics.add(sums))

    def probabilities(self, variables: Tree, source: Source) -> np.ndarray:
        """Softmax probabilities [N, K] float32, in the source's order."""
        parts = []
        for batch in self._batches(source):
            logits = self._predict_step(variables, batch)
            real = parallel.gather(batch["mask"]) > 0
            parts.append(parallel.gather(logits)[real])
        logits = np.concatenate(parts)
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)

    def _batches(self, source: Source) -> Iterator[step.Batch]:
        # A source smaller than a batch makes one batch of its own size.
        devices = jax.device_count()
        batch_size = min(self._batch_size, -(-len(source) // devices) * devices)
        batches = loader.eval_batches(
            source,
            self._preprocessing,
            batch_size=batch_size,
            host=jax.process_index(),
            hosts=jax.process_count(),
        )
        return parallel.shard(
            {name: array for name, array in batch.items() if name != "index"} for batch in batches
        )


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
