"""The target of domain adaptation: images of the source's classes whose labels are not learned.

After `screen`, before `loader`. Labels of the target are read in two places alone, both of them in
evaluation: to measure, and for the step that an oracle would have chosen.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jxfer.data import screen, sources
from jxfer.data.readers import Example, Source, Subset, View
from jxfer.data.sources import DataConfig
from jxfer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Target:
    """The splits of a target. `val` and `test` have the classes of the source, and only these."""

    train: Source
    """unlabelled images to adapt to"""
    unlabelled_val: Source
    """unlabelled images for the scores that choose a step"""
    val: Source
    """the same with their labels, for the oracle alone"""
    test: Source | None
    """read once, at the end; where the target has a single split, all of it; None where it has
    several and none is a test split"""
    skipped: tuple[str, ...] = ()
    """names of unreadable images that were left out"""


class Unlabelled(View):
    """The images of a source without its labels: each of them is -1."""

    @property
    def labels(self) -> np.ndarray:
        return np.full(len(self), -1, np.int32)

    def __getitem__(self, index: int) -> Example:
        return dataclasses.replace(self._source[index], label=-1)


class Renumbered(View):
    """A source under the classes of another one; an image keeps the name of its class.

    Args:
      source: whose images.
      class_names: of the other source, in its order. Images of classes that are not among them are
        left out.
    """

    def __init__(self, source: Source, class_names: Sequence[str]) -> None:
        numbers = {name: number for number, name in enumerate(class_names)}
        self._numbers = np.array([numbers.get(name, -1) for name in source.class_names], np.int32)
        super().__init__(Subset(source, np.flatnonzero(self._numbers[source.labels] >= 0)))
        self.class_names = tuple(class_names)

    @property
    def labels(self) -> np.ndarray:
        return self._numbers[self._source.labels]

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return dataclasses.replace(example, label=int(self._numbers[example.label]))


def open_target(config: DataConfig, spec: str, class_names: Sequence[str], partial: bool) -> Target:
    """Opens the splits of a target.

    A missing validation split is drawn from train by `config.split_seed`, whatever the labels are.

    Args:
      config: of the source; its `source` and `per_class` do not apply.
      spec: of the target.
      class_names: of the source.
      partial: the classes may overlap in part. Images of classes that the source has not are
        trained on, since no label says which they are, and are left out of `val` and `test`.

    Raises:
      UserError: as `screen.load_splits`; the target is the source; the classes differ, and
        `partial` is not set; fewer than two are shared; or a split has too few images of them.
    """
    ours = config
    config = dataclasses.replace(config, source=spec, per_class=None, balanced_sampling=False)
    splits = screen.load_splits(config, by_class=False)
    if sources.place(config) == sources.place(ours):
        raise UserError(f"--adapt.target {spec}: it is the source; leave --adapt out")
    _check_classes(spec, class_names, splits.train.class_names, partial)
    skipped, test = splits.skipped, splits.test
    if test is None and sources.has_one_split(config):
        test, skipped = screen.load_for_evaluation(config)
    target = Target(
        train=Unlabelled(splits.train),
        unlabelled_val=Unlabelled(splits.val),
        val=Renumbered(splits.val, class_names),
        test=None if test is None else Renumbered(test, class_names),
        skipped=skipped,
    )
    for name, source in (("validation", target.val), ("test", target.test)):
        if source is not None and len(source) < 2:
            raise UserError(
                f"--adapt.target {spec}: its {name} split has {len(source)} images of the source's "
                "classes, and at least 2 are needed"
            )
    return target


def _check_classes(spec: str, ours: Sequence[str], theirs: Sequence[str], partial: bool) -> None:
    source, target = set(ours), set(theirs)
    if source != target and not partial:
        lists = (
            f"{', '.join(sorted(names))} only in the {domain}"
            for domain, names in (("source", source - target), ("target", target - source))
            if names
        )
        raise UserError(
            f"--adapt.target {spec}: its classes are not those of the source: {'; '.join(lists)}; "
            "--adapt.partial trains all the same, and tests on the shared ones"
        )
    if len(source & target) < 2:
        raise UserError(f"--adapt.target {spec}: it shares fewer than two classes with the source")
