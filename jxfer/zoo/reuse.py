"""Which leaves of an entry go into a network of another architecture, or into a part of its own.

After `store`, before `transplant`, which fills them in. What is re-used is a unit: the whole stem,
a residual block, or a convolution with its norm. A unit is taken whole or not at all, since a
kernel without its norm, or a block without its shortcut, is worth nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jxfer.errors import UserError
from jxfer.models.registry import Model
from jxfer.zoo.card import Card
from jxfer.zoo.report import Report

Leaves = Mapping[str, Any]  # by path with its collection; arrays or shapes


def reused_leaves(
    model: Model, card: Card, source: Leaves, target: Leaves, stages: Sequence[str]
) -> list[str]:
    """Paths of the target's leaves that an entry fills: those of all units that fit.

    A unit fits if both sides have the same leaves in it, each of one shape.

    Args:
      model: the target.
      card: the entry's card.
      source: the entry's leaves.
      target: the model's leaves.
      stages: names of the stages to take over.

    Raises:
      UserError: a stage that the model or the entry lacks, or of which no unit fits; norms that
        came folded into the convolutions beside new ones.
    """
    loaded: set[str] = set()
    for stage in stages:
        if stage not in model.stages:
            raise UserError(
                f"--model.reuse {stage}: the {model.architecture.name} has no such stage; "
                f"it has {', '.join(model.stages)}"
            )
        ours, theirs = _units(target, stage), _units(source, stage)
        if not theirs:
            raise UserError(f"--model.reuse {stage}: {card.name} ({card.arch}) holds no such stage")
        fitting = [unit for unit in ours if _shapes(ours[unit]) == _shapes(theirs.get(unit, {}))]
        if not fitting:
            raise UserError(
                f"--model.reuse {stage}: nothing of it fits from {card.name} ({card.arch}) into "
                f"the {model.architecture.name}: {_misfit(ours, theirs)}; leave {stage} out"
            )
        loaded.update(path for unit in fitting for path in ours[unit])
    norms = [path for path in target if path.startswith("batch_stats/")]
    if card.batchnorm == "folded" and 0 < len(loaded & set(norms)) < len(norms):
        # The card of what is trained from here could not say which of its norms must stay frozen.
        raise UserError(
            f"the norms of {card.name} are folded into its convolutions and cannot stand beside "
            "new ones: re-use an entry with standard BatchNorm, or every stage that is built"
        )
    return sorted(loaded)


def fresh_parts(report: Report) -> tuple[str, ...]:
    """Parts of the backbone that hold new values: `stage3`, or `stage1/block2` beside loaded ones.

    Each is the beginning of its parameters' paths, without the collection.
    """
    loaded = {path.split("/")[1] for path in report.loaded}
    parts = []
    for path in report.reinitialised:
        collection, stage, *rest = path.split("/")
        if collection == "params" and stage != "head":
            parts.append(f"{stage}/{rest[0]}" if stage in loaded else stage)
    return tuple(dict.fromkeys(parts))


def _units(leaves: Leaves, stage: str) -> dict[str, dict[str, Any]]:
    """Name of each unit of a stage -> its leaves."""
    units: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        if path.split("/")[1] == stage:
            units.setdefault(_unit(path), {})[path] = leaf
    return units


def _unit(path: str) -> str:
    """`stem`, `stage1/block0`, `fc6`; `stage1/norm1` belongs to `stage1/conv1`."""
    _, stage, *layers, _ = path.split("/")
    if stage == "stem" or not layers:
        return stage
    return f"{stage}/{layers[0].replace('norm', 'conv')}"


def _shapes(leaves: Leaves) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in leaves.items()}


def _misfit(ours: Mapping[str, Leaves], theirs: Mapping[str, Leaves]) -> str:
    """Why the first unit does not fit; a shape says more than an absent leaf."""
    unit = next(iter(sorted(ours)))
    wanted, found = _shapes(ours[unit]), _shapes(theirs.get(unit, {}))
    for path, shape in wanted.items():
        if found.get(path, shape) != shape:
            return f"{path} has shape {found[path]}, expected {shape}"
    odd = min(wanted.keys() ^ found.keys())
    return f"only the {'model' if odd in wanted else 'entry'} has {odd}"
