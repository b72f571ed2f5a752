"""The frozen-prefix cache: what a frozen part puts out never changes, so it is computed once.

After `prefix_choice` in the flow, which says where there is one. The output is computed for every
view of every training example and for the validation split, and the steps of the phase begin after
it. The order of the examples is that of the run without a cache.

Exactness: rows are computed by the forward pass of the whole network, in float32, so the steps see
what they would have computed but for the compiler's choices: XLA may fuse the operations around
the cut in another way. The trained parameters agree with those of the run without a cache to
rounding (the tests hold 1e-5 relative to the largest entry of a leaf), and bit for bit where the
halves compile to the same operations. With `dtype="bfloat16"` the features are rounded to 8 bits.
"""

import dataclasses
import functools
import json
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jxfer import trees
from jxfer.data import loader
from jxfer.data.readers import images_sha256
from jxfer.data.sources import Source, Splits
from jxfer.data.transforms import AugmentConfig
from jxfer.errors import DiskError
from jxfer.train import feature_room, feature_store, parallel, program, step
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import Evaluator, one_late
from jxfer.train.feature_store import Form
from jxfer.train.feed import of_target, with_target
from jxfer.train.metrics import Evaluation
from jxfer.train.prefix_choice import Choice
from jxfer.train.state import Plan
from jxfer.trees import Tree

_log = logging.getLogger("jxfer")
_NO_CHANGE = AugmentConfig()
_digests: weakref.WeakKeyDictionary[Source, str] = weakref.WeakKeyDictionary()


class PrefixCache:
    """Feeds a phase with features; as `feed.Images` does with images.

    Args:
      choice: with an output.
      variables: on the host; of the phase's start, though only the frozen prefix is read.
      report: takes a line about how far the computation is.
      target: the unlabelled images, where the choice has a form for them.
    """

    def __init__(
        self,
        choice: Choice,
        config: TrainConfig,
        splits: Splits,
        variables: Tree,
        report: Callable[[str], None],
        target: Source | None = None,
    ) -> None:
        assert choice.output is not None
        assert choice.train is not None
        assert choice.val is not None
        self.after: str = choice.output
        self._config, self._splits, self._choice = config, splits, choice
        self._target_images = target if choice.target is not None else None
        self._report = report
        replicated = parallel.replicate(variables)
        digest = trees.sha256(_prefix(choice.plan, variables))
        make = functools.partial(self._rows, replicated, digest)
        self._train = make(config, splits.train, config.augment, choice.train)
        self._val = make(config, splits.val, _NO_CHANGE, choice.val)
        self._target = np.empty(0)
        if target is not None and choice.target is not None:
            other = of_target(config)
            self._target = make(other, target, other.augment, choice.target)

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """As `loader.train_batches`, with `features` [B, ...] in place of `image`.

        Args:
          start_step: counted from the start of the run.
        """
        batches = self._batches(self._config, self._splits.train, self._train, start_step)
        if self._target_images is None:
            return batches
        others = self._batches(
            of_target(self._config), self._target_images, self._target, start_step
        )
        return with_target(batches, others)

    def _batches(
        self, config: TrainConfig, source: Source, features: np.ndarray, start_step: int
    ) -> Iterator[dict[str, np.ndarray]]:
        labels = source.labels
        for rows in loader.train_rows(
            source,
            self._choice.views,
            batch_size=config.batch_size,
            seed=config.seed,
            balanced_sampling=config.data.balanced_sampling,
            start_step=start_step,
        ):
            yield {"features": features[rows], "label": labels[rows % len(labels)]}

    def evaluate(self, evaluator: Evaluator, variables: Tree) -> Evaluation:
        """On the validation split; `variables` are replicated."""
        labels = self._splits.val.labels
        return evaluator.evaluate_features(variables, self._val, labels, self.after)

    def _rows(
        self,
        variables: Tree,
        weights: str,
        config: TrainConfig,
        source: Source,
        augment: AugmentConfig,
        form: Form,
    ) -> np.ndarray:
        plan = self._choice.plan
        devices = jax.device_count()
        batch_size = min(config.batch_size, -(-form.rows // devices) * devices)
        feature_step = _compiled_feature_step(plan.model, plan.preprocessing, self.after)

        def rows_from(start: int) -> Iterator[np.ndarray]:
            batches = loader.view_batches(
                source,
                plan.preprocessing,
                augment,
                seed=config.seed,
                batch_size=batch_size,
                start_row=start,
            )
            under_way = (
                (feature_step(variables, batch), batch["mask"]) for batch in parallel.shard(batches)
            )
            done = start
            for features, mask in one_late(under_way):
                block = parallel.gather(features)[parallel.gather(mask) > 0]
                done += len(block)
                self._report(f"output of {self.after}: {done:,} of {form.rows:,} images")
                yield block

        if not config.cache.on_disk:
            return feature_store.in_memory(form, rows_from)
        key = {
            "weights": weights,
            "network": repr((plan.model.architecture.config, self.after, plan.model.compute_dtype)),
            "preprocessing": dataclasses.asdict(plan.preprocessing),
            "images": _digest(source),
            "augment": dataclasses.asdict(augment) if augment.changes_pixels else None,
            "seed": config.seed if augment.changes_pixels else None,
            "program": program.identity(batch_size),
        }
        max_bytes = config.cache.max_bytes
        try:
            return feature_store.on_disk(json.loads(json.dumps(key)), form, rows_from, max_bytes)
        except (feature_room.NoRoom, DiskError) as error:
            if config.cache.mode != "shared":
                raise
            _log.warning("%s; here they are kept in memory", error)
            return feature_store.in_memory(form, rows_from)


@functools.lru_cache(maxsize=8)
def _compiled_feature_step(model: Any, preprocessing: Any, output: str) -> Any:
    return parallel.compile_step(step.make_predict_step(model, preprocessing, output))


def _prefix(plan: Plan, variables: Tree) -> Tree:
    """The variables that the cached output depends on."""
    stages = plan.model.stages
    if plan.prefix in stages:
        stages = stages[: stages.index(plan.prefix) + 1]
    return {
        kind: {stage: tree[stage] for stage in stages if stage in tree}
        for kind, tree in variables.items()
    }


def _digest(source: Source) -> str:
    """`images_sha256`, once for all phases of a run."""
    if source not in _digests:
        _digests[source] = images_sha256(source)
    return _digests[source]
