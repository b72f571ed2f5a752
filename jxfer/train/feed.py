"""What feeds a run on this host with images; `prefix` feeds it with features.

After `evaluate` in the flow.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jxfer import trees
from jxfer.data import loader
from jxfer.data.mixing import Batch
from jxfer.data.readers import Source
from jxfer.data.sources import Splits
from jxfer.data.targets import Target, open_target
from jxfer.data.transforms import Preprocessing
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import Evaluator
from jxfer.train.metrics import Evaluation
from jxfer.trees import Tree


class Images:
    """Feeds a phase that caches nothing."""

    after: None = None
    """The output of the network that the batches hold: none."""

    def __init__(
        self,
        config: TrainConfig,
        splits: Splits,
        preprocessing: Preprocessing,
        target: Source | None = None,
    ) -> None:
        """`target`: unlabelled images that stand in each batch as `target_image`."""
        self._config, self._splits, self._preprocessing = config, splits, preprocessing
        self._target = target

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """From step `start_step` + 1 on, counted from the start of the run."""
        config, preprocessing = self._config, self._preprocessing
        batches = train_batches(config, self._splits.train, preprocessing, start_step=start_step)
        if self._target is None:
            return batches
        others = train_batches(
            of_target(config), self._target, preprocessing, start_step=start_step
        )
        return with_target(batches, others)

    def evaluate(self, evaluator: Evaluator, variables: Tree) -> Evaluation:
        """On the validation split; `variables` are replicated."""
        return evaluator.evaluate(variables, self._splits.val)


def load_target(config: TrainConfig, class_names: Sequence[str]) -> Target | None:
    """The target of a run that adapts; None for any other.

    Raises:
      UserError: as `targets.open_target`.
    """
    adapt = config.adapt
    if adapt.target is None:
        return None
    return open_target(config.data, adapt.target, class_names, adapt.partial)


def fingerprint(splits: Splits, target: Target | None) -> dict[str, Any]:
    """JSON values by which a run that goes on knows its data again."""
    found = {
        "classes": list(splits.train.class_names),
        "train_examples": len(splits.train),
        "val_examples": len(splits.val),
        "labels_crc32": [trees.crc32(source.labels) for source in (splits.train, splits.val)],
    }
    if target is not None:
        both = (target.train, target.unlabelled_val)
        found["target_examples"] = [len(source) for source in both]
        found["target_names_crc32"] = [_names_crc32(source) for source in both]
    return found


def _names_crc32(source: Source) -> int:
    names = "\0".join(source.name(i) for i in range(len(source)))
    return zlib.crc32(names.encode(errors="surrogateescape"))


def of_target(config: TrainConfig) -> TrainConfig:
    """The same for the stream of the target's images, which has an order of its own.

    Two domains of as many images would else meet in the same pairs in every epoch. What needs
    labels is left out.
    """
    seed = int(np.random.SeedSequence([config.seed, 1]).generate_state(1)[0])
    data = dataclasses.replace(config.data, balanced_sampling=False)
    return dataclasses.replace(config, seed=seed, data=data)


def with_target(batches: Iterator[Batch], others: Iterator[Batch]) -> Iterator[Batch]:
    """Each batch with the pixels, or features, of one of the target as `target_...`."""
    for batch, other in zip(batches, others, strict=True):
        kind = "image" if "image" in other else "features"
        yield {**batch, f"target_{kind}": other[kind]}


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
