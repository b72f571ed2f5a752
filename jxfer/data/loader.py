"""Batches of pixels, by Grain: shuffled for training, in order and padded for evaluation.

After `mixing` and `sampling`, before `kept`. Batches are NumPy, on the host. The examples of a
training batch, their order and their augmentation are a pure function of (seed, step), whatever the
number of threads or hosts: to resume, start at the next step. Only mixing, which pairs the examples
of one host, depends on the number of hosts. Decoding runs in threads, because OpenCV and Pillow
release the GIL, and processes take seconds to start.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from jxfer import machine
from jxfer.data import augmentation, mixing, sampling, transforms
from jxfer.data.mixing import Batch
from jxfer.data.pictures import Picture
from jxfer.data.sources import Source
from jxfer.data.transforms import AugmentConfig, Preprocessing
from jxfer.errors import UserError

# The threads are Grain's: OpenCV's own would compete with them for the same cores.
cv2.setNumThreads(1)
_MOST_THREADS = 16  # each makes a whole batch, and Python's part of the work is not parallel


def train_batches(
    source: Source,
    preprocessing: Preprocessing,
    augment: AugmentConfig,
    *,
    batch_size: int,
    seed: int,
    balanced_sampling: bool = False,
    start_step: int = 0,
    threads: int | None = None,
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
      threads: that read and decode; None: one a core, at most 16.
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

    per_host = _per_host(batch_size, hosts)
    if not len(source):
        raise UserError("the training split holds no image")
    # Endless before slicing and batching: hosts stay in step and no batch is short.
    order = sampling.order(source, seed, balanced=balanced_sampling)
    if augment.views is None:
        fresh = _TrainingView(source, preprocessing, augment)
        views = order.random_map(lambda draw, rng: fresh(draw[0], rng))
    else:
        stored, count = _StoredView(source, preprocessing, augment, seed), augment.views
        views = order.map(lambda draw: stored(draw[0], draw[1] % count))
    dataset = views[host::hosts].batch(per_host, drop_remainder=True)
    if augment.mixes:
        if per_host == 1:
            raise UserError(
                f"--augment.mixup and --augment.cutmix mix the examples of a host's batch, and "
                f"batch size {batch_size} gives each host one: raise --batch-size"
            )
        mix = functools.partial(mixing.mix, mixup=augment.mixup, cutmix=augment.cutmix)
        dataset = dataset.random_map(mix)  # on the whole batch, seeded by the step
    return _iterate(dataset[start_step:], threads)


def train_rows(
    source: Source,
    views: int,
    *,
    batch_size: int,
    seed: int,
    balanced_sampling: bool = False,
    start_step: int = 0,
) -> Iterator[np.ndarray]:
    """What the batches of `train_batches` hold, on one host and with `views` views an image.

    Yields:
      int64 `[batch_size]`: view * len(source) + position in the source.
    """
    order = sampling.order(source, seed, balanced=balanced_sampling)
    rows = order.map(lambda draw: draw[1] % views * len(source) + draw[0])
    batches = rows.batch(batch_size, drop_remainder=True)
    return (batches[step] for step in itertools.count(start_step))


def view_batches(
    source: Source,
    preprocessing: Preprocessing,
    augment: AugmentConfig,
    *,
    seed: int,
    batch_size: int,
    start_row: int = 0,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Every view of every example once, in the order of the rows of `train_rows`, on one host.

    Without augmentation there is one view, the evaluation view. The last batch is padded.

    Yields:
      `image` uint8 `[batch_size, size, size, 3]`, `mask` float32 `[batch_size]`, 0 for padding.
    """
    import grain

    rows = len(source) * (augment.distinct_views or 0)
    padded = start_row + -(-(rows - start_row) // batch_size) * batch_size
    stored = _StoredView(source, preprocessing, augment, seed)

    def example(row: int) -> dict[str, Any]:
        view, index = divmod(row if row < rows else 0, len(source))
        return {"image": stored(index, view)["image"], "mask": np.float32(row < rows)}

    dataset = grain.MapDataset.range(start_row, padded).map(example)
    return _iterate(dataset.batch(batch_size), threads)


def eval_batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    threads: int | None = None,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """The evaluation view of every example once, over all hosts, in the source's order.

    The last batch is padded, so that all batches have one shape and all hosts as many of them.

    Args:
      batch_size: over all hosts.
      threads: that read and decode; None: one a core, at most 16.
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


def feature_batches(features: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """Rows of features in order, each once, padded as by `eval_batches`.

    Yields:
      `features` `[batch_size, ...]`, `label` int32 and `mask` float32 `[batch_size]`.
    """
    for start in range(0, len(features), batch_size):
        rows = np.arange(start, start + batch_size)
        real = rows < len(features)
        rows[~real] = 0
        yield {
            "features": features[rows],
            "label": labels[rows].astype(np.int32),
            "mask": real.astype(np.float32),
        }


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """The evaluation view of an example."""

    pixels: np.ndarray
    label: int

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes


def _evaluation_view(source: Source, index: int, preprocessing: Preprocessing) -> _Labelled:
    def make() -> _Labelled:
        example = source[index]
        image = transforms.decode(example.image, example.name)
        # A copy, so that what is kept does not hold the whole image.
        view = transforms.evaluation_view(image, preprocessing).copy()
        return _Labelled(view, example.label)

    return source.keep((index, preprocessing), make)


@dataclasses.dataclass(frozen=True)
class _TrainingView:
    source: Source
    preprocessing: Preprocessing
    augment: AugmentConfig

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        source, preprocessing, augment = self.source, self.preprocessing, self.augment
        if augment.random_resized_crop:
            picture = source.keep(index, lambda: Picture(source[index]))
            label = picture.label
            view = augmentation.random_crop(picture, preprocessing, augment.crop_scale, rng)
        else:
            whole = _evaluation_view(source, index, preprocessing)
            view, label = whole.pixels, whole.label
        view = augmentation.change(view, preprocessing, augment, rng)
        return {"image": view, "label": np.int32(label)}


@dataclasses.dataclass(frozen=True)
class _StoredView:
    """View `view` of example `index`, whenever and in whatever batch it is asked for."""

    source: Source
    preprocessing: Preprocessing
    augment: AugmentConfig
    seed: int

    def __call__(self, index: int, view: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, view, index])
        return _TrainingView(self.source, self.preprocessing, self.augment)(index, rng)


@dataclasses.dataclass(frozen=True)
class _EvaluationView:
    source: Source
    preprocessing: Preprocessing

    def __call__(self, index: int) -> dict[str, Any]:
        if index < len(self.source):
            found = _evaluation_view(self.source, index, self.preprocessing)
            view, label = found.pixels, found.label
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


def _iterate(dataset: Any, threads: int | None) -> Iterator[Batch]:
    """Reads ahead in threads; stops them when the caller lets go of the iterator."""
    import grain

    threads = threads or min(machine.visible_cores(), _MOST_THREADS)
    # A thread makes whole batches: two more than there are threads keep all of them busy.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
