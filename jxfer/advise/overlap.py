"""Classes of the target that weights were trained to tell apart.

First of the advisor's files, beside `transferability`. Names are all that is compared: a match is a
reason to look, and no match proves nothing.
"""

import re
from collections.abc import Sequence

from jxfer.zoo import imagenet
from jxfer.zoo.card import Card


def known_classes(card: Card, class_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The sources of the weights that have classes of these names.

    Args:
      card: of the weights; the entries that it descends from count too.
      class_names: of the target.

    Returns:
      {source: the target's names that it has}, sources without any left out.
    """
    found = {}
    for source, theirs in _sources(card).items():
        endings = {_singular(name)[i:] for name in theirs for i in range(len(_singular(name)))}
        shared = tuple(name for name in class_names if _singular(name) in endings)
        if shared:
            found[source] = shared
    return found


def is_imagenet(dataset: str, class_names: Sequence[str] = ()) -> bool:
    """Whether a data set is ImageNet-1k or holds it, by its name or its classes."""
    words = set(re.findall(r"[a-z0-9]+", dataset.lower()))
    named = words & {"imagenet", "imagenet1k", "imagenet2012", "ilsvrc", "ilsvrc2012"}
    return (bool(named) and "tiny" not in words) or tuple(class_names) == imagenet.class_names()


def _sources(card: Card) -> dict[str, Sequence[str]]:
    """Class names of what the weights were trained on, where they are known."""
    sources: dict[str, Sequence[str]] = {}
    if is_imagenet(card.dataset, card.class_names):
        sources["ImageNet"] = imagenet.words()
    elif card.class_names:
        sources[card.dataset or card.name] = card.class_names
    for ancestor in card.parents:
        if is_imagenet(ancestor.dataset):
            sources["ImageNet"] = imagenet.words()
    return sources


def _singular(name: str) -> tuple[str, ...]:
    """Lower-case words, the last in the singular: "Carpenter_Bees" -> ("carpenter", "bee")."""
    words = re.findall(r"[^\W_]+", name.lower())
    if words and len(words[-1]) > 3 and words[-1].endswith("s") and not words[-1].endswith("ss"):
        words[-1] = words[-1][:-1]
    return tuple(words)
