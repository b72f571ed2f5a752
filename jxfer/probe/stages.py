"""A probe at every stage: what each depth of a frozen network knows of the classes.

After `linear` and `neighbours`, last of the probes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from jxfer import choices
from jxfer.errors import UserError
from jxfer.probe import linear, neighbours
from jxfer.probe.linear import RegularisationPath
from jxfer.probe.neighbours import Metric, Neighbours


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Which probe."""

    kind: Literal["softmax", "svm", "knn"] = "softmax"
    """Softmax regression, linear SVM (squared hinge, one against rest), or k nearest neighbours."""
    metric: Metric = "cosine"
    """Of the neighbours."""

    def __post_init__(self) -> None:
        choices.check(self, "--probe.")
        if self.kind != "knn" and self.metric != "cosine":
            raise UserError(f"--probe.metric does nothing under --probe.kind {self.kind}")


@dataclasses.dataclass(frozen=True)
class Split:
    """One split's features at every stage."""

    features: Mapping[str, np.ndarray]
    """stage -> float32 [N, D of the stage]"""
    labels: np.ndarray
    """int [N]"""


@dataclasses.dataclass(frozen=True)
class StageProbe:
    """What a probe at one stage came to."""

    chosen: RegularisationPath | Neighbours
    """by the validation split"""
    val_correct: int
    test_correct: int | None
    """of the chosen probe; None without a test split"""


def probe(
    config: ProbeConfig,
    train: Split,
    val: Split,
    test: Split | None,
    class_names: tuple[str, ...],
) -> dict[str, StageProbe]:
    """Fits and chooses at every stage, and then looks at the test split once.

    Returns:
      {stage: its probe}, in the order of the training features.

    Raises:
      UserError: as `linear.fit` and `neighbours.fit`, or the test split is empty.
    """
    if test is not None and not len(test.labels):
        raise UserError("the test split has no images: add some, or leave the split out")
    chosen: dict[str, RegularisationPath | Neighbours] = {}
    for stage, features in train.features.items():
        splits = (features, train.labels), (val.features[stage], val.labels)
        if config.kind == "knn":
            chosen[stage] = neighbours.fit(*splits, class_names, config.metric)
        else:
            chosen[stage] = linear.fit(*splits, class_names, config.kind)
    return {
        stage: StageProbe(
            found,
            int(found.val_correct[found.picked]),
            None if test is None else _correct(found, stage, train, test, len(class_names)),
        )
        for stage, found in chosen.items()
    }


def _correct(
    found: RegularisationPath | Neighbours, stage: str, train: Split, test: Split, classes: int
) -> int:
    linear.check_finite(test.features[stage], "test")
    if isinstance(found, RegularisationPath):
        predicted = found.probe.predict(test.features[stage])
    else:
        known = train.features[stage], train.labels
        predicted = neighbours.predict(known, test.features[stage], found.k, found.metric, classes)
    return int(np.sum(predicted == test.labels))
