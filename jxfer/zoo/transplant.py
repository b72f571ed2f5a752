"""An entry's tensors into a model: strict merge, new head, truncation.

After `store` in the flow. Weights come first and the optimizer is built on the result, so that
what is frozen or regularised towards the start is what was loaded.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jxfer import trees
from jxfer.errors import UserError
from jxfer.models import initialise
from jxfer.models.registry import Model
from jxfer.trees import Tree
from jxfer.zoo.card import Card
from jxfer.zoo.report import Report, raise_problems


def transplant(
    model: Model,
    card: Card,
    source_variables: Tree,
    *,
    head: Literal["new", "keep"],
    class_names: Sequence[str],
    seed: int,
) -> tuple[Tree, Report]:
    """Fills a model's backbone, and its head or not, from an entry.

    Every backbone leaf of the model must be there with its shape. Stages that the model does not
    build, and the head where it is not kept, are dropped.

    Args:
      model: the target, with or without a head.
      card: the entry's card.
      source_variables: the entry's `{"params": ..., "batch_stats": ...}`.
      head: "new" draws the head afresh; "keep" loads it, for the same classes.
      class_names: the target's classes in the order of the logits; not read for a model without
        a head.
      seed: of the new head, which equals that of `model.init(seed)`.

    Returns:
      (variables of np.ndarray, report). The report's names are paths with their collection, such
      as `params/stage1/block0/conv1/kernel`.

    Raises:
      UserError: another architecture; stages that the entry lacks; leaves missing, unexpected or
        of another shape (all in one line); a head that cannot be kept.
    """
    _check_backbone(model, card)
    if head == "keep" and model.num_classes is not None:
        _check_classes(card, class_names)
    source, target = trees.flatten(source_variables), trees.flatten(model.shapes())

    stages_beyond = set(model.architecture.stages) - set(model.stages)
    reinitialised = [path for path in target if _part(path) == "head" and head == "new"]
    dropped, problems = [], []
    for path in source:
        if _part(path) in stages_beyond or (
            _part(path) == "head" and (head == "new" or model.num_classes is None)
        ):
            dropped.append(path)
        elif path not in target:
            problems.append(f"unexpected {path}")
    loaded = [path for path in target if path not in reinitialised]
    for path in loaded:
        if path not in source:
            problems.append(f"missing {path}")
        elif source[path].shape != target[path].shape:
            shapes = f"{source[path].shape}, expected {target[path].shape}"
            problems.append(f"{path} has shape {shapes}")
    raise_problems(f"{card.name} into {model.architecture.name}", problems)

    flat = {path: np.asarray(source[path]) for path in loaded}
    flat |= {path: initialise.draw(path, target[path].shape, seed) for path in reinitialised}
    report = Report(tuple(loaded), tuple(reinitialised), tuple(dropped))
    return trees.unflatten(dict(sorted(flat.items()))), report


def _part(path: str) -> str:
    """`stem`, `stage3` or `head`: what stands after the collection."""
    return path.split("/")[1]


def _check_backbone(model: Model, card: Card) -> None:
    arch = model.architecture
    if card.arch != arch.name:
        raise UserError(
            f"{card.name} is a {card.arch}, not a {arch.name}; set --model.arch {card.arch}"
        )
    if card.through is None:
        return
    if card.through not in arch.stages:
        raise UserError(
            f"{card.name}: its card names a stage {card.through!r} unknown to {arch.name}"
        )
    if arch.stages.index(card.through) < arch.stages.index(model.stages[-1]):
        raise UserError(
            f"{card.name} holds stages through {card.through}; add --model.through {card.through}"
        )


def _check_classes(card: Card, class_names: Sequence[str]) -> None:
    ours, theirs = tuple(class_names), card.class_names
    if not theirs:
        raise UserError(f"{card.name} has no head to keep; train a new one")
    if len(ours) != len(theirs):
        raise UserError(
            f"the head of {card.name} has {len(theirs)} classes and the data has {len(ours)}; "
            "train a new head"
        )
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our != their:
            raise UserError(
                f"class {i} is {their!r} in {card.name} and {our!r} in the data; "
                "rename the data's classes or train a new head"
            )
