"""Label rules -> a label for every parameter, and which layers are in train mode.

After `models` in the flow. A rule is (pattern, label): the pattern matches a leaf's whole path,
the first rule that matches wins. `frozen` leaves do not move; `low_lr` leaves are pretrained and
take a small step; `head` leaves are new and take the full one. A group with a rate of its own is
labelled by its stage: `low_lr/stage3`.
"""

import re
from collections.abc import Sequence
from typing import Literal

from jxfer import trees
from jxfer.errors import UserError
from jxfer.trees import Tree

FROZEN = "frozen"
LOW_LR = "low_lr"
HEAD = "head"
LABELS = (FROZEN, LOW_LR, HEAD)

Rule = tuple[str, str]


def base(label: str) -> str:
    """The label without its stage: `low_lr/stage3` -> `low_lr`."""
    return label.partition("/")[0]


def is_label(label: str) -> bool:
    """Whether this is one of `LABELS`, or `low_lr/` and a stage."""
    return label in LABELS or bool(re.fullmatch(f"{LOW_LR}/[^/]+", label))


def label_tree(params: Tree, rules: Sequence[Rule]) -> Tree:
    """Labels every leaf of `params` (arrays or shapes).

    Returns:
      A tree of the same structure whose leaves are labels.

    Raises:
      UserError: a pattern is no regular expression, a label is unknown, a leaf that no rule
        covers, a rule that decides no leaf.
    """
    for pattern, label in rules:
        if not is_label(label):
            raise UserError(
                f"label rule {pattern!r}: no label {label!r}; "
                f"use {', '.join(LABELS)} or {LOW_LR}/STAGE"
            )
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(f"label rule {pattern!r} is no regular expression: {error}") from error
    labels: dict[str, str] = {}
    deciding: set[int] = set()
    for path in trees.flatten(params):
        for i, (pattern, label) in enumerate(rules):
            if re.fullmatch(pattern, path):
                labels[path] = label
                deciding.add(i)
                break
        else:
            raise UserError(f"no label rule covers the parameter {path}; add one that does")
    for i, (pattern, label) in enumerate(rules):
        if i not in deciding:
            raise UserError(f"the label rule ({pattern!r}, {label!r}) decides no parameter")
    return trees.unflatten(labels)


def trainable(labels: Tree) -> frozenset[str]:
    """Paths of the leaves that move."""
    return frozenset(path for path, label in trees.flatten(labels).items() if label != FROZEN)


def train_layers(
    labels: Tree,
    norm_paths: Sequence[str],
    dropout_paths: Sequence[str] = (),
    *,
    frozen_norms: Literal["frozen", "adapt"] = "frozen",
    trainable_norms: Literal["train", "frozen"] = "train",
) -> frozenset[str]:
    """The norm and dropout layers in train mode; a frozen group runs as in evaluation.

    A norm is trainable where one of its own parameters is. Were it left in train mode with all of
    them frozen, its averages would drift under the frozen weights. A dropout layer, such as
    `fc6/dropout`, has no parameters: it drops where one under its parent, `fc6`, trains.

    Args:
      labels: a label for every parameter.
      norm_paths: all norm layers.
      dropout_paths: all dropout layers.
      frozen_norms: adapt lets the statistics of frozen norms follow the new data all the same
        (Li et al. 2017, "Revisiting Batch Normalization for Practical Domain Adaptation").
      trainable_norms: frozen keeps the norms whose parameters move on their stored averages.
    """
    moving = {path.rpartition("/")[0] for path in trainable(labels)}
    modes = {True: trainable_norms == "train", False: frozen_norms == "adapt"}
    norms = {path for path in norm_paths if modes[path in moving]}
    parents = {path: path.rpartition("/")[0] + "/" for path in dropout_paths}
    drops = {
        path for path, parent in parents.items() if any(f"{m}/".startswith(parent) for m in moving)
    }
    return frozenset(norms | drops)
