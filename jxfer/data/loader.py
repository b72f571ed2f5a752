"""Batches of pixels, by Grain: shuffled for training, in order and padded for evaluation.

Last of the data files. Batches are NumPy, on the host. The examples of a training batch, their
order and their augmentation are a pure function of (seed, step), whatever the number of threads or
hosts: to resume, start at the next step. Only mixing, which pairs the examples of one host, depends
on the number of hosts. Decoding runs in threads, because OpenCV and Pillow release the GIL, and
processes take seconds to start.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from jxfer.data import mixing, sampling, sources, transforms
from jxfer.data.mixing import Batch
from jxfer.data.sources import DataConfig, Source, Splits, Subset
from jxfer.data.transforms import AugmentConfig, Preprocessing
from jxfer.errors import UserError

# The threads are Grain's: OpenCV's own would compete with them for the same cores.
cv2.setNumThreads(1)

_log = logging.getLogger("jxfer")


def load_splits(config: DataConfig) -> Splits:
    """Opens the splits for training and, with `on_bad_image="skip"`, leaves bad images out.

    Raises:
      UserError: as `sources.open_splits`; a class has no training image to balance with, or no
        readable one.
    """
    if config.on_bad_image == "error":
        splits = sources.open_splits(config)
        if config.balanced_sampling:
            sampling.members(splits.train)
        return splits
    splits = sources.open_splits(config, screen=drop_unreadable)
    if splits.skipped:
        _log.warning(
            "unreadable images skipped: %d, the first %s", len(splits.skipped), splits.skipped[0]
        )
    train = splits.train
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    if not counts.all():
        empty = train.class_names[int(counts.argmin())]
        raise UserError(
            f"class {empty} has no readable training image ({len(splits.skipped)} skipped, "
            f"the first {splits.skipped[0]}): repair or replace them"
        )
    return splits


def drop_unreadable(source: Source) -> tuple[Source, tuple[str, ...]]:
    """Decodes every image once, on all cores.

    Returns:
      (the source without the unreadable images, their names in the source's order).
    """

    def unreadable(chunk: range) -> list[int]:
        bad = []
        for index in chunk:
            try:
                example = source[index]
                transforms.decode(example.image, example.name)
            except UserError:
                bad.append(index)
        return bad

    chunks = [range(len(source))[start : start + 64] for start in range(0, len(source), 64)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        bad = list(itertools.chain.from_iterable(pool.map(unreadable, chunks)))
    if not bad:
        return source, ()
    kept = np.setdiff1d(np.arange(len(source)), bad)
    return Subset(source, kept), tuple(source.name(index) for index in bad)


def train_batches(
    source: Source,
    preprocessing: Preprocessing,
    augment: AugmentConfig,
    *,
    batch_size: int,
    seed: int,
    balanced_sampling: bool = False,
    start_step: int = 0,
    threads: int = 2,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """Endless shuffled, augmented batches; batch k of the iterator is that of `start_step + k`.

    Each epoch is a new permutation and batches run across epochs, so none is short, even where the
    source is smaller than the batch. The batches of all hosts interleave to the one-host batch,
    before mixing.

    Args:
      batch_size: over all hosts.
      seed: of the order and the augmentation.
      balanced_sampling: in the order of `sampling.class_balanced` instead.
      start_step: the first batch to yield.
      threads: that read and decode.
      host: this host's number, below `hosts`.

    Yields:
      `image` uint8 `[batch_size // hosts, size, size, 3]` RGB, `label` int32
      `[batch_size // hosts]`. With mixup or CutMix also `partner_label` and `own_weight`, as from
      `mixing.mix`.

    Raises:
      UserError: the hosts cannot share the batch evenly, the source is empty, a class has no
        example to balance with, a batch of one is to be mixed, or, while iterating, an image
        cannot be read.
    """
    import grain

    per_host = _per_host(batch_size, hosts)
    if not len(source):
        raise UserError("the training split holds no image")
    if balanced_sampling:
        examples = sampling.class_balanced(source, seed)
    else:
        examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
    # Endless before slicing and batching: hosts stay in step and no batch is short.
    dataset = examples.random_map(_TrainingView(preprocessing, augment))[host::hosts].batch(
        per_host, drop_remainder=True
    )
    if augment.mixup or augment.cutmix:
        if per_host == 1:
            raise UserError(
                f"--augment.mixup and --augment.cutmix mix the examples of a host's batch, and "
                f"batch size {batch_size} gives each host one: raise --batch-size"
            )
        mix = functools.partial(mixing.mix, mixup=augment.mixup, cutmix=augment.cutmix)
        dataset = dataset.random_map(mix)  # on the whole batch, seeded by the step
    return _iterate(dataset[start_step:], threads)


def eval_batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    threads: int = 2,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """The evaluation view of every example once, over all hosts, in the source's order.

    The last batch is padded, so that all batches have one shape and all hosts as many of them.

    Args:
      batch_size: over all hosts.
      threads: that read and decode.
      host: this host's number, below `hosts`.

    Yields:
      `image` uint8 `[batch_size // hosts, size, size, 3]` RGB, `label` int32, `mask` float32 (1
      for an example, 0 for padding) and `index` int32 (position in the source; `len(source)` or
      more for padding), each `[batch_size // hosts]`.

    Raises:
      UserError: the hosts cannot share the batch evenly or, while iterating, an image cannot be
        read.
    """
    import grain

    per_host = _per_host(batch_size, hosts)
    padded = -(-len(source) // batch_size) * batch_size
    if not padded:
        return iter(())
    dataset = (
        grain.MapDataset.range(padded)[host::hosts]
        .map(_EvaluationView(source, preprocessing))
        .batch(per_host, drop_remainder=True)
    )
    return _iterate(dataset, threads)


@dataclasses.dataclass(frozen=True)
class _TrainingView:
    preprocessing: Preprocessing
    augment: AugmentConfig

    def __call__(self, example: sources.Example, rng: np.random.Generator) -> dict[str, Any]:
        image = transforms.decode(example.image, example.name)
        view = transforms.training_view(image, self.preprocessing, self.augment, rng)
        return {"image": view, "label": np.int32(example.label)}


@dataclasses.dataclass(frozen=True)
class _EvaluationView:
    source: Source
    preprocessing: Preprocessing

    def __call__(self, index: int) -> dict[str, Any]:
        if index < len(self.source):
            example = self.source[index]
            image = transforms.decode(example.image, example.name)
            view, label = transforms.evaluation_view(image, self.preprocessing), example.label
        else:
            size = self.preprocessing.size
            view, label = np.zeros((size, size, 3), np.uint8), 0
        return {
            "image": view,
            "label": np.int32(label),
            "mask": np.float32(index < len(self.source)),
            "index": np.int32(index),
        }


def _per_host(batch_size: int, hosts: int) -> int:
    if batch_size < 1 or batch_size % hosts:
        raise UserError(
            f"batch size {batch_size} must be a positive multiple of the number of hosts, {hosts}"
        )
    return batch_size // hosts


def _iterate(dataset: Any, threads: int) -> Iterator[Batch]:
    """Reads ahead in threads; stops them when the caller lets go of the iterator."""
    import grain

    # A thread makes whole batches: two more than there are threads keep all of them busy.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
