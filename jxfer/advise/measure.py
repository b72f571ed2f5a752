"""What the advisor measures of a pair (weights, data), before anything is trained.

After `cost` in the flow. One forward pass over some training images, with everything frozen, gives
the features of all stages; all else is computed from them on the host. Only the training split is
read: validation stays for the run that follows, test for its end.
"""

import dataclasses
import time

import numpy as np
import scipy.special

from jxfer.advise import mirror, overlap, similarity, transferability
from jxfer.advise.mirror import Mirrors
from jxfer.data.readers import Source, Subset
from jxfer.errors import UserError
from jxfer.models import registry
from jxfer.probe import features, linear, neighbours
from jxfer.zoo.card import Card
from jxfer.zoo.pretrained import Pretrained

MOST_IMAGES = 1000
"""Training images that are looked at, spread evenly over the classes."""
FEWEST_PER_CLASS = 2
NEIGHBOURS = 5
FOLDS = 5
# A ninth of the full path's strengths: what is asked is how good a probe would be, not which.
STRENGTHS = tuple(np.logspace(2, -4, 7).tolist())


@dataclasses.dataclass(frozen=True)
class Size:
    """The training split."""

    classes: int
    examples: int
    smallest_class: int
    """its examples"""
    largest_class: int


@dataclasses.dataclass(frozen=True)
class Depth:
    """What the features of one stage, averaged over positions, know of the classes."""

    stage: str
    features: int
    probe: float
    """accuracy of softmax regression, cross-validated, at the best strength of the penalty"""
    neighbours: float
    """accuracy of the 5 nearest neighbours by cosine, cross-validated"""
    log_me: float


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Of one pair of weights and data. A figure that cannot be had is None, with the reason."""

    weights: str
    images: int
    """that were looked at"""
    depths: tuple[Depth, ...]
    """from the stem on"""
    h_score: float
    """of the last stage, with a shrunk covariance"""
    leep: float | None
    nce: float | None
    frechet: float | None
    """excess over chance, in units of the source's variance"""
    proxy_a_distance: float | None
    norm_shift: dict[str, float]
    """by stage"""
    known_classes: dict[str, tuple[str, ...]]
    """classes of the target that a source of the weights has, by name"""
    folded: bool
    missing: dict[str, str]
    """why a figure is None or empty"""
    mirrors: Mirrors
    image_seconds: float | None
    """of a compiled forward pass, per image, decoding included; None on fewer images than a batch,
    which start-up costs would dominate"""
    seconds: float
    """that all of this took"""

    @property
    def last(self) -> Depth:
        return self.depths[-1]

    @property
    def best(self) -> Depth:
        """The stage whose probe is the most accurate; the deepest of equals."""
        return max(reversed(self.depths), key=lambda depth: depth.probe)


def size(source: Source) -> Size:
    """Counts the training split.

    Raises:
      UserError: fewer than two classes, or a class has fewer than two images.
    """
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    if len(counts) < 2:
        raise UserError(
            f"the training split has one class ({source.class_names[0]}): advice needs at least 2"
        )
    if counts.min() < FEWEST_PER_CLASS:
        fewest = int(counts.argmin())
        raise UserError(
            f"class {source.class_names[fewest]} has {counts[fewest]} training images: advice "
            f"needs at least {FEWEST_PER_CLASS} of each class"
        )
    return Size(len(counts), len(source), int(counts.min()), int(counts.max()))


def sample(source: Source, seed: int, most: int = MOST_IMAGES) -> Source:
    """At most `most` examples, but 2 of each class; as many of each as of any that has so many."""
    counts = np.bincount(source.labels)
    share = most // len(counts)
    if counts.max() <= share or len(source) <= most:
        return source
    rng = np.random.default_rng([seed, 2])  # not the streams of `subsets`
    members = (np.flatnonzero(source.labels == label) for label in range(len(counts)))
    share = max(share, FEWEST_PER_CLASS)
    return Subset(source, np.sort(np.concatenate([rng.permutation(m)[:share] for m in members])))


def measure(
    name: str, pretrained: Pretrained, source: Source, seed: int, batch_size: int = 64
) -> Measurements:
    """Measures weights on training images.

    Args:
      name: of the weights, for the report.
      pretrained: with weights; its new head is not looked at.
      source: of `sample`.
      seed: of folds and draws.

    Raises:
      UserError: as `linear.cross_validate` and `features.extract`.
    """
    started = time.perf_counter()
    model, labels = pretrained.model, source.labels

    def extract(some: Source) -> dict[str, np.ndarray]:
        arguments = (model, pretrained.preprocessing, pretrained.variables, some, model.stages)
        return features.extract(*arguments, batch_size=batch_size)

    stages = extract(source)
    depths = tuple(_depth(stage, rows, source, seed) for stage, rows in stages.items())
    last = stages[model.stages[-1]]
    # Extracted again: which rows of `source` they are is not kept.
    some = sample(source, seed, mirror.MOST_IMAGES)
    plain = last if some is source else extract(some)[model.stages[-1]]
    before = time.perf_counter()
    mirrored = extract(mirror.mirrored(some))[model.stages[-1]]
    image_seconds = None
    if len(some) >= batch_size:
        image_seconds = (time.perf_counter() - before) / len(some)
    missing: dict[str, str] = {}
    leep, nce = _from_source_head(pretrained, last, labels, missing)
    frechet, distance = _from_statistics(pretrained, last, seed, missing)
    shift = similarity.norm_shift(
        model,
        pretrained.preprocessing,
        pretrained.variables,
        source,
        batchnorm="folded" if pretrained.folded else "standard",
        batch_size=batch_size,
    )
    if shift.reason is not None:
        missing["norm_shift"] = shift.reason
    card = pretrained.card
    return Measurements(
        weights=name,
        images=len(source),
        depths=depths,
        h_score=transferability.shrunk_h_score(last, labels),
        leep=leep,
        nce=nce,
        frechet=frechet,
        proxy_a_distance=distance,
        norm_shift=shift.stages,
        known_classes=overlap.known_classes(card, source.class_names) if card else {},
        folded=pretrained.folded,
        missing=missing,
        mirrors=mirror.mirrors(plain, mirrored, seed),
        image_seconds=image_seconds,
        seconds=time.perf_counter() - started,
    )


def _depth(stage: str, rows: np.ndarray, source: Source, seed: int) -> Depth:
    labels = source.labels
    folds = min(FOLDS, int(np.bincount(labels).min()))
    probe = linear.cross_validate(
        (rows, labels), source.class_names, folds=folds, seed=seed, strengths=STRENGTHS
    )
    fold, correct = linear.stratified_folds(labels, folds, seed), 0
    for i in range(folds):
        known, asked = fold != i, fold == i
        k = min(NEIGHBOURS, int(known.sum()))
        predicted = neighbours.predict(
            (rows[known], labels[known]), rows[asked], k, "cosine", len(source.class_names)
        )
        correct += int((predicted == labels[asked]).sum())
    return Depth(
        stage=stage,
        features=rows.shape[1],
        probe=float(probe.val_correct[probe.picked] / probe.val_examples),
        neighbours=correct / len(labels),
        log_me=transferability.log_me(rows, labels),
    )


def _from_source_head(
    pretrained: Pretrained, rows: np.ndarray, labels: np.ndarray, missing: dict[str, str]
) -> tuple[float | None, float | None]:
    """LEEP and NCE, by the classifier that the weights came with."""
    head = pretrained.source_head
    if not head:
        reason = "the weights have no linear classifier of named classes on their last stage"
        missing["leep"] = missing["nce"] = reason
        return None, None
    logits = rows @ head["kernel"] + head["bias"]
    probabilities = scipy.special.softmax(logits, 1)
    return (
        transferability.leep(probabilities, labels),
        transferability.nce(logits.argmax(1), labels),
    )


def _from_statistics(
    pretrained: Pretrained, rows: np.ndarray, seed: int, missing: dict[str, str]
) -> tuple[float | None, float | None]:
    """Fréchet excess and proxy A-distance, from the statistics in the card."""
    card, reason = pretrained.card, None
    statistics = card.statistics if card else None
    if card is None or statistics is None:
        reason = "the card of the weights holds no source statistics: see jxfer zoo statistics"
    elif statistics.features != rows.shape[1] or pretrained.model.stages[-1] != _last(card):
        reason = "the card's source statistics are of another stage"
    elif statistics.preprocessing != pretrained.preprocessing:
        reason = "the card's source statistics are of images of another preprocessing"
    if statistics is None or reason is not None:
        missing["frechet"] = missing["proxy_a_distance"] = str(reason)
        return None, None
    mean, covariance = statistics.mean_array(), statistics.covariance_array()
    return (
        similarity.frechet_shift(mean, covariance, rows, seed).excess,
        similarity.proxy_a_distance(statistics.sample_array(), rows, seed),
    )


def _last(card: Card) -> str:
    return card.through or registry.architecture(card.arch).stages[-1]
