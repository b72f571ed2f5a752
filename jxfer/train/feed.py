"""What feeds a run on this host with images; `prefix` feeds it with features.

After `evaluate` in the flow.
"""

from collections.abc import Iterator

import jax

from jxfer.data import loader
from jxfer.data.mixing import Batch
from jxfer.data.readers import Source
from jxfer.data.sources import Splits
from jxfer.data.transforms import Preprocessing
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import Evaluator
from jxfer.train.metrics import Evaluation
from jxfer.trees import Tree


class Images:
    """Feeds a phase that caches nothing."""

    after: None = None
    """The output of the network that the batches hold: none."""

    def __init__(self, config: TrainConfig, splits: Splits, preprocessing: Preprocessing) -> None:
        self._config, self._splits, self._preprocessing = config, splits, preprocessing

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """From step `start_step` + 1 on, counted from the start of the run."""
        return train_batches(
            self._config, self._splits.train, self._preprocessing, start_step=start_step
        )

    def evaluate(self, evaluator: Evaluator, variables: Tree) -> Evaluation:
        """On the validation split; `variables` are replicated."""
        return evaluator.evaluate(variables, self._splits.val)


def train_batches(
    config: TrainConfig, source: Source, preprocessing: Preprocessing, *, start_step: int = 0
) -> Iterator[Batch]:
    """`loader.train_batches` as the config says, from step `start_step` + 1 on."""
    return loader.train_batches(
        source,
        preprocessing,
        config.augment,
        batch_size=config.batch_size,
        seed=config.seed,
        balanced_sampling=config.data.balanced_sampling,
        start_step=start_step,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
