"""AdaBN: the statistics of BatchNorm re-estimated on images of another domain.

After `evaluate` in the flow. Li et al. 2017, "Revisiting Batch Normalization for Practical Domain
Adaptation", section 3 and algorithm 1. Nothing is trained and no label is read.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jxfer import trees
from jxfer.data import loader
from jxfer.data.readers import Source
from jxfer.data.transforms import AugmentConfig, Preprocessing, normalise
from jxfer.models.layers import NORM_MOMENTUM
from jxfer.models.registry import Model
from jxfer.train import metrics, parallel
from jxfer.train.evaluate import one_late
from jxfer.train.step import Batch
from jxfer.trees import Tree


def statistics(
    model: Model, preprocessing: Preprocessing, variables: Tree, source: Source, batch_size: int
) -> Tree:
    """`batch_stats` of a source's images: the mean and variance of what each norm sees.

    All norms run in train mode on whole shuffled batches, whose moments are over all devices. The
    mean is that of the batches' means; the variance, by the law of total variance, the mean of the
    batches' variances plus the variance of their means. So many batches are taken as hold every
    image at least once; the last of them runs into the next epoch.

    Args:
      variables: of the network, replicated.
      source: one image is enough.
      batch_size: over all devices.

    Returns:
      float32, on the host.
    """
    batches = loader.train_batches(
        source,
        preprocessing,
        AugmentConfig(),
        batch_size=batch_size,
        seed=0,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    count = math.ceil(len(source) / batch_size)
    moments_step = _compiled(model, preprocessing)
    images = ({"image": batch["image"]} for batch in itertools.islice(batches, count))
    results = (moments_step(variables, batch) for batch in parallel.shard(images))
    sums = metrics.add(trees.flatten(parallel.fetch(result)) for result in one_late(results))
    found = {}
    for layer in model.norm_paths():
        mean, square, variance = (
            sums[f"{layer}/{name}"] / count for name in ("mean", "square", "var")
        )
        found[f"{layer}/mean"] = mean.astype(np.float32)
        found[f"{layer}/var"] = (variance + square - mean**2).astype(np.float32)
    return trees.unflatten(found)


@functools.lru_cache(maxsize=4)
def _compiled(model: Model, preprocessing: Preprocessing) -> Callable[..., Any]:
    return parallel.compile_step(
        _make_moments_step(model.synchronised(parallel.AXIS), preprocessing)
    )


def _make_moments_step(
    model: Model, preprocessing: Preprocessing
) -> Callable[[Tree, Batch], dict[str, jax.Array]]:
    """`mean`, its `square` and `var` of a batch over all devices, by the path of each norm."""
    norms = frozenset(model.norm_paths())

    def moments_step(variables: Tree, batch: Batch) -> dict[str, jax.Array]:
        # From averages of zero the moved ones are the batch's, times what a step takes of them.
        zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        images = normalise(batch["image"], preprocessing)
        _, moved = model.apply(variables | {"batch_stats": zeros}, images, norms)
        found = {path: leaf / (1 - NORM_MOMENTUM) for path, leaf in trees.flatten(moved).items()}
        squares = {f"{norm}/square": found[f"{norm}/mean"] ** 2 for norm in norms}
        return found | squares

    return moments_step
