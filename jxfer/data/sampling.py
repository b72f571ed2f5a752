"""The endless order of the training examples when every class is to come equally often.

After `readers`, before `loader`.
"""

from typing import Any

import numpy as np

from jxfer.data.readers import Source
from jxfer.errors import UserError


def class_balanced(source: Source, seed: int) -> Any:
    """Every class equally often, and within a class every example.

    With K classes, each run of K draws from a multiple of K on holds every class once, in a new
    random order. The draws of a class of n examples go through a new permutation of them every n
    draws. So a small class repeats its examples sooner; nothing is left out of a large one.

    Args:
      seed: of the order.

    Returns:
      An infinite `grain.MapDataset` of examples; element i depends on the seed and i alone. It is
      seeded for the random operations that follow.

    Raises:
      UserError: a class has no example.
    """
    import grain

    classes = len(source.class_names)
    seeds = np.random.SeedSequence(seed).generate_state(classes)
    draws = [
        grain.MapDataset.source(indices).shuffle(seed=int(class_seed)).repeat(None)
        for indices, class_seed in zip(members(source), seeds, strict=True)
    ]
    order = grain.MapDataset.range(classes).seed(seed).shuffle().repeat(None)
    return order.map_with_index(lambda draw, label: source[int(draws[label][draw // classes])])


def members(source: Source) -> list[np.ndarray]:
    """The indices of each class's examples, ascending.

    Raises:
      UserError: a class has no example.
    """
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    if not counts.all():
        empty = source.class_names[int(counts.argmin())]
        raise UserError(
            f"class {empty} has no training image to draw: add some, or leave out "
            "--data.balanced-sampling"
        )
    return np.split(np.argsort(source.labels, kind="stable"), np.cumsum(counts)[:-1])
