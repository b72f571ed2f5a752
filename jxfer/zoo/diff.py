"""What moved between two entries: each leaf of one against the same leaf of the other.

After `store` in the flow; `jxfer zoo diff` prints it. All arithmetic is in float64.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from jxfer import trees
from jxfer.trees import Tree

Kind = Literal["parameters", "statistics"]
_KINDS: dict[str, Kind] = {"params": "parameters", "batch_stats": "statistics"}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far B lies from A, over one leaf or over all leaves of a stage, taken as one vector."""

    name: str
    """path of the leaf without its collection, or name of the stage"""
    kind: Kind
    """BatchNorm's running mean and variance are statistics"""
    elements: int
    norm_a: float
    """Euclidean norm of A"""
    norm_b: float
    """Euclidean norm of B"""
    distance: float
    """Euclidean norm of B - A"""
    relative: float | None
    """distance / norm_a; None where A is zero"""
    cosine: float | None
    """of the angle between A and B; None where one of them is zero"""
    same_bits: bool
    """A and B have the same type and the same bytes"""


@dataclasses.dataclass(frozen=True)
class OtherShape:
    """A leaf that both hold, in two shapes."""

    path: str
    """with its collection"""
    a: tuple[int, ...]
    b: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two trees of variables compared; every leaf of each is in one of these."""

    stages: tuple[Difference, ...]
    """over the leaves below, parameters first, in the order of the stages"""
    leaves: tuple[Difference, ...]
    """in the same order, by path within a stage"""
    only_a: tuple[str, ...]
    """paths, with their collection, that B lacks"""
    only_b: tuple[str, ...]
    """paths, with their collection, that A lacks"""
    other_shape: tuple[OtherShape, ...]


def compare(a: Tree, b: Tree, stages: Sequence[str]) -> Comparison:
    """Compares two trees of variables leaf by leaf.

    Args:
      a: `{"params": ..., "batch_stats": ...}` of arrays.
      b: the same.
      stages: the order in which stages are listed; others, such as the head, follow by name.
    """
    ours, theirs = trees.flatten(a), trees.flatten(b)
    both = [path for path in ours if path in theirs]
    other_shape = [path for path in both if ours[path].shape != theirs[path].shape]
    rank = {stage: i for i, stage in enumerate(stages)}
    collections = list(_KINDS)

    def order(path: str) -> tuple[int, int, str]:
        collection, stage, _ = path.split("/", 2)
        return collections.index(collection), rank.get(stage, len(rank)), path

    leaves: list[Difference] = []
    groups: dict[tuple[Kind, str], list[_Sums]] = {}
    for path in sorted(set(both) - set(other_shape), key=order):
        collection, name = path.split("/", 1)
        sums = _sums(ours[path], theirs[path])
        leaves.append(_difference(name, _KINDS[collection], [sums]))
        groups.setdefault((_KINDS[collection], name.split("/")[0]), []).append(sums)
    return Comparison(
        stages=tuple(_difference(stage, kind, group) for (kind, stage), group in groups.items()),
        leaves=tuple(leaves),
        only_a=tuple(path for path in ours if path not in theirs),
        only_b=tuple(path for path in theirs if path not in ours),
        other_shape=tuple(OtherShape(p, ours[p].shape, theirs[p].shape) for p in other_shape),
    )


@dataclasses.dataclass(frozen=True)
class _Sums:
    """What a leaf adds to the figures of its stage."""

    elements: int
    aa: float
    bb: float
    dd: float
    """sum of (b - a)^2, not bb - 2 ab + aa, which cancels where little moved"""
    ab: float
    same_bits: bool


def _sums(a: np.ndarray, b: np.ndarray) -> _Sums:
    x, y = (np.asarray(leaf, np.float64).ravel() for leaf in (a, b))
    same_bits = a.dtype == b.dtype and a.tobytes() == b.tobytes()
    d = y - x
    return _Sums(x.size, float(x @ x), float(y @ y), float(d @ d), float(x @ y), same_bits)


def _difference(name: str, kind: Kind, parts: Iterable[_Sums]) -> Difference:
    parts = list(parts)
    norm_a, norm_b, distance = (
        math.sqrt(math.fsum(getattr(part, field) for part in parts)) for field in ("aa", "bb", "dd")
    )
    cosine = None
    if norm_a and norm_b and math.isfinite(norm_a + norm_b):
        cosine = math.fsum(part.ab for part in parts) / (norm_a * norm_b)
        cosine = min(1.0, max(-1.0, cosine))  # rounding may step over by a unit in the last place
    return Difference(
        name=name,
        kind=kind,
        elements=sum(part.elements for part in parts),
        norm_a=norm_a,
        norm_b=norm_b,
        distance=distance,
        relative=distance / norm_a if norm_a else None,
        cosine=cosine,
        same_bits=all(part.same_bits for part in parts),
    )
