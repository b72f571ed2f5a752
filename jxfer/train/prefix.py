"""The frozen-prefix cache: what a frozen part puts out never changes, so it is computed once.

After `feed` in the flow. Where a phase freezes the network from its first stage on, with the
norms on their stored averages, the output of that prefix is a fixed function of the pixels. It is
computed for every view of every training example and for the validation split, and the steps of
the phase begin after it. The order of the examples is that of the run without a cache.

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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jxfer import machine, trees
from jxfer.data import loader
from jxfer.data.readers import images_sha256
from jxfer.data.sources import Source, Splits
from jxfer.data.transforms import AugmentConfig
from jxfer.errors import DiskError, UserError
from jxfer.train import feature_store, parallel, program, step
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import Evaluator, one_late
from jxfer.train.feature_store import Form
from jxfer.train.feed import of_target, with_target
from jxfer.train.metrics import Evaluation
from jxfer.train.state import Plan
from jxfer.trees import Tree

_log = logging.getLogger("jxfer")
_NO_CHANGE = AugmentConfig()
_digests: weakref.WeakKeyDictionary[Source, str] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is cached in a phase, or why nothing is."""

    plan: Plan
    output: str | None
    """The stage, or `pooled`, whose output is kept; None: nothing is."""
    reason: str = ""
    """Why nothing is."""
    train: Form | None = None
    val: Form | None = None
    target: Form | None = None
    """Of the unlabelled images, where a method of adaptation acts."""
    views: int = 1
    """Views of each training example."""
    passes: float = 0.0
    """Of the phase over the training split, or over the target where that is larger."""

    @property
    def bytes(self) -> int:
        return sum(form.bytes for form in (self.train, self.val, self.target) if form)

    def describe(self) -> str:
        """One line for the start-up table."""
        if self.output is None:
            return f"no prefix cache in {self.plan.phase.name}: {self.reason}"
        whole, prefix = (_forward_flops(self.plan, name) for name in ("logits", self.output))
        return (
            f"prefix cache in {self.plan.phase.name}: the output of {self.output}, "
            f"{self.bytes / 1e6:,.1f} MB; {self.views} of {self.passes:.3g} passes over the "
            f"training split decode images and run the frozen part, {prefix / whole:.0%} of the "
            "forward pass"
        )


def choose_all(
    plans: Sequence[Plan], config: TrainConfig, splits: Splits, target: Source | None = None
) -> list[Choice]:
    """What each phase caches.

    Args:
      target: the unlabelled images of a run that adapts.

    Raises:
      UserError: --cache.mode asks for a cache where there can be none.
    """
    choices = [choose(plan, config, splits, target) for plan in plans]
    if config.cache.is_explicit and not any(choice.output for choice in choices):
        raise UserError(
            f"--cache.mode {config.cache.mode} under {config.strategy.name}: {choices[0].reason}; "
            "leave it out"
        )
    return choices


def choose(plan: Plan, config: TrainConfig, splits: Splits, target: Source | None = None) -> Choice:
    """Decides what a phase caches, from what is known before it starts.

    Args:
      target: see `choose_all`.

    Raises:
      UserError: --cache.mode asks for a cache, and the prefix that the phase freezes can have none.
    """
    cache, views = config.cache, config.augment.distinct_views
    most = len(splits.train)
    if target is not None and plan.adaptation.acts:
        most = max(most, len(target))
    passes = plan.total_steps * config.batch_size / most
    choice = functools.partial(Choice, plan, None)
    if cache.mode == "off":
        return choice("it is off")
    if plan.prefix is None:
        return choice("the first stage trains")
    refusal = ""
    if config.augment.mixes:
        refusal = "mixing makes new images each time"
    elif views is None:
        refusal = "each epoch draws new views; --augment.views K would repeat K of them"
    elif jax.process_count() > 1:
        refusal = "there are several hosts"
    elif not cache.is_explicit and passes < 2 * views:
        return choice("too few passes over the same pixels")
    if refusal and cache.is_explicit:
        raise UserError(f"--cache.mode {cache.mode}: {refusal}; leave it out")
    if refusal or views is None:
        return choice(refusal)
    size = plan.preprocessing.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shape = jax.eval_shape(_forward(plan, plan.prefix), plan.model.shapes(), image).shape[1:]
    unlabelled = None
    if target is not None and plan.adaptation.acts:
        unlabelled = Form(views * len(target), shape, cache.dtype)
    found = Choice(
        plan,
        plan.prefix,
        train=Form(views * len(splits.train), shape, cache.dtype),
        val=Form(len(splits.val), shape, cache.dtype),
        target=unlabelled,
        views=views,
        passes=passes,
    )
    needs = f"the features take {found.bytes / 1e9:.3g} GB, more than"
    if found.bytes > cache.max_bytes:
        if cache.is_explicit:
            raise UserError(
                f"{needs} --cache.max-gb {cache.max_gb:g}: raise it, or use --cache.mode off"
            )
        return choice(f"{needs} --cache.max-gb")
    # Of all memory, not of what is free just now: a resumed run must choose the same.
    if cache.mode == "auto" and found.bytes > machine.memory_bytes() / 2:
        return choice(f"{needs} half of this machine's memory; --cache.mode disk would keep them")
    return found


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
        except (feature_store.NoRoom, DiskError) as error:
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


def _forward(plan: Plan, output: str) -> Any:
    return lambda variables, images: plan.model.apply(variables, images)[0][output]


def _forward_flops(plan: Plan, output: str) -> float:
    """Of one image, before XLA optimises; the ratio of two is what the cache saves."""
    size = plan.preprocessing.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    lowered = jax.jit(_forward(plan, output)).lower(plan.model.shapes(), image)
    cost = lowered.cost_analysis()
    assert cost is not None
    return float(cost["flops"])


def _digest(source: Source) -> str:
    """`images_sha256`, once for all phases of a run."""
    if source not in _digests:
        _digests[source] = images_sha256(source)
    return _digests[source]
