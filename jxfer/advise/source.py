"""The source statistics of a card, from one pass over the images that its weights were trained on.

After `probe.features` in the flow; `similarity` compares a target with them.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jxfer.data.readers import Source
from jxfer.data.sources import DataConfig
from jxfer.errors import UserError
from jxfer.models.network import POOLED
from jxfer.probe.features import blocks
from jxfer.trees import Tree
from jxfer.zoo import store
from jxfer.zoo.card import Card
from jxfer.zoo.source_statistics import SourceStatistics, encode

SAMPLE = 200
"""Rows that are kept: with 64 features, less than 100 kB of card."""


@dataclasses.dataclass
class Moments:
    """Mean and scatter matrix of rows that come in blocks, in float64.

    Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample Variance": blocks
    are merged around their own means, so that nothing cancels.
    """

    count: int
    mean: np.ndarray
    """[D]"""
    scatter: np.ndarray
    """[D, D]: sum of (x - mean)(x - mean)'"""

    @classmethod
    def none(cls, features: int) -> "Moments":
        """Of no rows yet."""
        return cls(0, np.zeros(features), np.zeros((features, features)))

    def add(self, rows: np.ndarray) -> None:
        """Takes rows [n, D] in."""
        rows = rows.astype(np.float64)
        total, mean = self.count + len(rows), rows.mean(0)
        centred, step = rows - mean, mean - self.mean
        self.scatter += centred.T @ centred
        self.scatter += np.outer(step, step) * (self.count * len(rows) / total)
        self.mean = self.mean + step * (len(rows) / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """[D, D], divided by count - 1."""
        return self.scatter / (self.count - 1)


def source_statistics(
    card: Card,
    variables: Tree,
    source: Source,
    data: DataConfig,
    split: str,
    *,
    batch_size: int = 128,
    advance: Callable[[int], None] = lambda done: None,
) -> SourceStatistics:
    """One pass over the source, in bounded memory.

    Args:
      card: of the entry.
      variables: its tensors, on the host.
      source: the images that the weights were trained on.
      data: where they come from.
      split: of the data.
      batch_size: images per step over all devices.
      advance: is told after each step how many images are done.

    Raises:
      UserError: fewer than two images; while reading, one that cannot be read.
    """
    examples = len(source)
    if examples < 2:
        raise UserError(f"{data.source}: statistics need at least two images, not {examples}")
    # Of one seed for all: which images stand for the source is no choice of an experiment's.
    chosen = np.sort(np.random.default_rng(0).permutation(examples)[:SAMPLE])
    moments, sample = None, []
    model = store.build(card)
    for block in blocks(
        model, card.preprocessing, variables, source, [POOLED], batch_size=batch_size
    ):
        rows = block[POOLED]
        moments = moments or Moments.none(rows.shape[1])
        inside = (chosen >= moments.count) & (chosen < moments.count + len(rows))
        sample.append(rows[chosen[inside] - moments.count])
        moments.add(rows)
        advance(moments.count)
    assert moments is not None
    return SourceStatistics(
        output=POOLED,
        data=data.source,
        split=split,
        split_seed=data.split_seed,
        val_fraction=data.val_fraction,
        examples=examples,
        preprocessing=card.preprocessing,
        tensors_sha256=card.tensors_sha256,
        features=len(moments.mean),
        mean=encode(moments.mean),
        covariance=encode(moments.covariance()),
        sample=encode(np.concatenate(sample)),
    )
