"""From what was measured to a strategy: a pure function, the two published tables beside it.

After `measure` in the flow. The thresholds were set on the tuning cells of
`experiments/advisor_grid.py`, digits and hymenoptera, and on nothing else; how the rules fare on
other data stands in `docs/advisor.md`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jxfer.advise.measure import Measurements, Size

SMALL = 500
"""Training images below which a table's data set is small. Neither table gives a number."""
FEW = 30
"""Training images of a class below which the advisor counts them as few."""
SIMILAR_DISTANCE = 1.55
"""Proxy A-distance below which a data set is like the source."""
SIMILAR_SHIFT = 0.08
"""Where there is no such distance: shift of the last stage's norms below which it is."""

Reach = Literal["linear_probe", "early_probe", "freeze_most", "freeze_part", "full"]
"""How much trains. freeze_most freezes through the last stage but one, freeze_part through the
first after the stem; early_probe, which only a table asks for, classifies an earlier stage."""

# (small, similar) -> what the table says.
CS231N: dict[tuple[bool, bool], Reach] = {
    (True, True): "linear_probe",
    (False, True): "full",
    (True, False): "early_probe",
    (False, False): "full",
}
"""CS231n, "Transfer Learning: When and how to fine-tune?" (Karpathy)."""
FREEZE_TABLE: dict[tuple[bool, bool], Reach] = {
    (True, True): "linear_probe",
    (False, True): "freeze_most",
    (True, False): "freeze_part",
    (False, False): "full",
}
"""The table of tutorials: the more similar and the fewer, the more layers are frozen."""
TABLES = {"CS231n": CS231N, "freeze table": FREEZE_TABLE}

MEASURED: dict[tuple[bool, bool | None], Reach] = {
    (True, True): "linear_probe",
    (False, True): "freeze_most",
    (True, False): "freeze_part",
    (False, False): "freeze_part",
    (True, None): "freeze_most",
    (False, None): "freeze_most",
}
"""(few of a class, similar) -> what did best, or as well as any at less cost, on the tuning cells.
Where nothing tells likeness: what was never far from the best there."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Where a data set stands in the tables."""

    small: bool
    similar: bool | None
    """None: nothing tells"""
    decided_by: str
    """the figure behind `similar`, and the threshold that it was held against"""
    few: bool
    """fewer than `FEW` images of a class, on average"""

    def __str__(self) -> str:
        size = "small" if self.small else "large"
        likeness = {True: "similar", False: "different", None: "of unknown likeness"}[self.similar]
        return f"{size}, {likeness}"


def verdict(size: Size, measured: Measurements) -> Verdict:
    """Small or large, similar or different.

    Similarity is the proxy A-distance where the card has source statistics, else the shift of the
    last stage's norms, else whether the source has all classes of the target by name.
    """
    small, few = size.examples < SMALL, size.examples < FEW * size.classes
    if measured.proxy_a_distance is not None:
        distance = measured.proxy_a_distance
        similar = distance < SIMILAR_DISTANCE
        return Verdict(
            small, similar, f"proxy A-distance {distance:.2f}, limit {SIMILAR_DISTANCE}", few
        )
    if measured.norm_shift:
        shift = measured.norm_shift[measured.last.stage]
        decided_by = f"norm shift {shift:.2f} in {measured.last.stage}, limit {SIMILAR_SHIFT}"
        return Verdict(small, shift < SIMILAR_SHIFT, decided_by, few)
    for source, names in measured.known_classes.items():
        if len(names) == size.classes:
            return Verdict(small, True, f"{source} has all {len(names)} classes", few)
    nothing = "no source statistics, no statistics of norms, no class names in common"
    return Verdict(small, None, nothing, few)


def choose(measurements: Sequence[Measurements]) -> Measurements:
    """The weights to start from: those whose best stage a probe reads most accurately.

    The first of equals.
    """
    return max(measurements, key=lambda measured: measured.best.probe)


def reach(verdict: Verdict, folded: bool) -> Reach:
    """How much to train.

    Args:
      folded: the norms of the weights are folded into the convolutions. They cannot follow the new
        images then, and on the tuning cells the less trained the better.
    """
    if folded:
        return "linear_probe" if verdict.similar else "freeze_most"
    return MEASURED[verdict.few, verdict.similar]


def says(table: str, verdict: Verdict) -> Reach | None:
    """What a published table says; None where nothing tells likeness."""
    return None if verdict.similar is None else TABLES[table][verdict.small, verdict.similar]
