"""Which examples of a split to take: a stratified hold-out, a class-balanced few. Indices only.

After `errors`, before `sources`. Both draws depend on the labels and the seed alone, so every
machine that reads the same data gets the same subset.
"""

from collections.abc import Sequence

import numpy as np

from jxfer.errors import UserError


def carve(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits off a stratified hold-out.

    Each class gives `round(fraction * n)` of its n examples, but at least one and never its last:
    a class with a single example keeps it.

    Args:
      labels: int `[N]`.
      fraction: between 0 and 1, exclusive.

    Returns:
      (kept, carved): ascending int64 indices; together every index once.

    Raises:
      UserError: every class has one example, so there is nothing to hold out.
    """
    rng = np.random.default_rng(seed)
    carved = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        carved.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    held_out = np.sort(np.concatenate(carved)) if carved else np.empty(0, np.int64)
    if not len(held_out):
        raise UserError(
            "no class has two images, so none can be held out for validation: add images, "
            "or give the data a val split"
        )
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def few_per_class(
    labels: np.ndarray, class_names: Sequence[str], per_class: int, seed: int
) -> np.ndarray:
    """Draws `per_class` examples of every class.

    With one seed the draws are nested: those for 5 are among those for 10.

    Args:
      labels: int `[N]`, each an index into `class_names`.

    Returns:
      Ascending int64 indices `[len(class_names) * per_class]`.

    Raises:
      UserError: a class has fewer examples.
    """
    rng = np.random.default_rng([seed, 1])  # not the stream of `carve`
    drawn = []
    for label, class_name in enumerate(class_names):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < per_class:
            raise UserError(
                f"class {class_name} has {len(members)} training images, fewer than "
                f"--data.per-class {per_class}: lower it, or add images"
            )
        drawn.append(members[:per_class])
    return np.sort(np.concatenate(drawn))
