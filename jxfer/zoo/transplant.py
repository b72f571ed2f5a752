"""An entry's tensors into a model: strict merge, new head, truncation, re-use of stages.

After `reuse` in the flow. Weights come first and the optimizer is built on the result, so that
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
from jxfer.zoo.reuse import Leaves, reused_leaves


def transplant(
    model: Model,
    card: Card,
    source_variables: Tree,
    *,
    head: Literal["new", "keep"] = "new",
    class_names: Sequence[str] = (),
    seed: int = 0,
    reuse: Sequence[str] = (),
) -> tuple[Tree, Report]:
    """Fills a model's backbone, and its head or not, from an entry.

    Every backbone leaf of the model must be there with its shape. Stages that the model does not
    build, and the head where it is not kept, are dropped. With `reuse` only the named stages are
    taken over, as far as they fit, and the model may be of another architecture; all else is new.

    Example: the first stages of a ResNet-18 into a ResNet-34.

        card, variables = store.load(zoos.resolve("resnet18-imagenet"))
        model = registry.create("resnet34", num_classes=5)
        variables, report = jxfer.transplant(model, card, variables, reuse=["stem", "stage1"])

    Args:
      model: the target, with or without a head.
      card: the entry's card.
      source_variables: the entry's `{"params": ..., "batch_stats": ...}`.
      head: "new" draws the head afresh; "keep" loads it, for the same classes.
      class_names: the target's classes in the order of the logits; read for a head that is kept.
      seed: of the new leaves, which equal those of `model.init(seed)`.
      reuse: stages to take over; empty for all that the model has, strictly.

    Returns:
      (variables of np.ndarray, report). The report's names are paths with their collection, such
      as `params/stage1/block0/conv1/kernel`.

    Raises:
      UserError: another architecture without `reuse`; stages that the entry lacks; leaves missing,
        unexpected or of another shape (all in one line); a head that cannot be kept; as
        `reuse.reused_leaves`.
    """
    source, target = trees.flatten(source_variables), trees.flatten(model.shapes())
    if reuse:
        if head == "keep":
            raise UserError("--model.reuse puts a new head on what it takes; set --model.head new")
        loaded = reused_leaves(model, card, source, target, reuse)
        dropped = [path for path in source if path not in loaded]
    else:
        _check_backbone(model, card)
        if head == "keep" and model.num_classes is not None:
            _check_classes(card, class_names)
        loaded, dropped = _strict(model, card, source, target, head)
    reinitialised = [path for path in target if path not in loaded]
    flat = {path: np.asarray(source[path]) for path in loaded}
    flat |= {path: initialise.draw(path, target[path].shape, seed) for path in reinitialised}
    report = Report(tuple(loaded), tuple(reinitialised), tuple(dropped))
    return trees.unflatten(dict(sorted(flat.items()))), report


def _strict(
    model: Model, card: Card, source: Leaves, target: Leaves, head: Literal["new", "keep"]
) -> tuple[list[str], list[str]]:
    """(paths to load: all but a new head, paths to drop); raises where they do not match."""
    stages_beyond = set(model.architecture.stages) - set(model.stages)
    loaded = [path for path in target if not (_part(path) == "head" and head == "new")]
    dropped, problems = [], []
    for path in source:
        if _part(path) in stages_beyond or (
            _part(path) == "head" and (head == "new" or model.num_classes is None)
        ):
            dropped.append(path)
        elif path not in target:
            problems.append(f"unexpected {path}")
    for path in loaded:
        if path not in source:
            problems.append(f"missing {path}")
        elif source[path].shape != target[path].shape:
            shapes = f"{source[path].shape}, expected {target[path].shape}"
            problems.append(f"{path} has shape {shapes}")
    raise_problems(f"{card.name} into {model.architecture.name}", problems)
    return loaded, dropped


def _part(path: str) -> str:
    """`stem`, `stage3` or `head`: what stands after the collection."""
    return path.split("/")[1]


def _check_backbone(model: Model, card: Card) -> None:
    arch = model.architecture
    if card.arch != arch.name:
        raise UserError(
            f"{card.name} is a {card.arch}, not a {arch.name}; set --model.arch {card.arch}, "
            "or name the stages to take over with --model.reuse"
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
