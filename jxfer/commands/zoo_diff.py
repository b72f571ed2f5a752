"""`jxfer zoo diff`: what training moved between two entries."""

import dataclasses
from typing import Annotated

import tyro

from jxfer import text
from jxfer.models import registry
from jxfer.zoo import diff, store, zoos


@dataclasses.dataclass(frozen=True)
class Diff:
    """Compare two entries leaf by leaf, to see what training moved.

    Prints, for each stage, the Euclidean norms of A, of B and of B - A, and the cosine between A
    and B. Statistics are BatchNorm's running mean and variance.
    """

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """The starting point: name of an entry, or the folder of an entry or a run."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """What came of it, named in the same way."""
    leaves: bool = False
    """List every leaf too."""
    zoo: str | None = None
    """A folder of entries that is searched first."""
    json: bool = False
    """Print one JSON object, with every leaf."""

    def run(self) -> None:
        folders = [zoos.resolve(name, self.zoo) for name in (self.a, self.b)]
        (card_a, a), (card_b, b) = (store.load(folder) for folder in folders)
        stages = [
            stage for card in (card_a, card_b) for stage in registry.architecture(card.arch).stages
        ]
        comparison = diff.compare(a, b, list(dict.fromkeys(stages)))
        same_classes = card_a.class_names == card_b.class_names
        if self.json:
            sides = {
                side: {"path": str(folder), "name": card.name, "arch": card.arch}
                for side, folder, card in zip("ab", folders, (card_a, card_b), strict=True)
            }
            found = {"same_classes": same_classes} | dataclasses.asdict(comparison)
            print(text.to_json(sides | found))
            return
        print(f"A: {folders[0]} ({card_a.arch})\nB: {folders[1]} ({card_b.arch})\n")
        print(_table("stage", comparison.stages))
        if not same_classes:
            print("\nthe classes differ: rows of the two heads stand for different things")
        if self.leaves:
            print("\n" + _table("leaf", comparison.leaves))
        for title, paths in (("A", comparison.only_a), ("B", comparison.only_b)):
            if paths:
                print(f"\nonly in {title}: {len(paths)}\n" + _indented(paths))
        if comparison.other_shape:
            lines = [f"{leaf.path} {leaf.a} in A, {leaf.b} in B" for leaf in comparison.other_shape]
            print(f"\nof another shape: {len(lines)}\n" + _indented(lines))


def _table(title: str, differences: tuple[diff.Difference, ...]) -> str:
    if not differences:
        return "no leaf is in both with the same shape"
    header = (title, "of", "elements", "|A|", "|B|", "|B-A|", "|B-A|/|A|", "cosine", "")
    return text.table([header, *map(_row, differences)])


def _row(difference: diff.Difference) -> tuple[str, ...]:
    numbers = (difference.norm_a, difference.norm_b, difference.distance, difference.relative)
    return (
        difference.name,
        difference.kind,
        f"{difference.elements:,}",
        *("-" if number is None else f"{number:.4g}" for number in numbers),
        "-" if difference.cosine is None else f"{difference.cosine:.6f}",
        "same bits" if difference.same_bits else "",
    )


def _indented(lines: tuple[str, ...] | list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
