"""Claims of a table as code: what an experiment says before it has run.

After `pairing` in the flow; `verdicts` judges them. A claim gives one number for each seed: the
difference of two arms that share the seed, or the slope of an arm's measure. Two one-sided t-tests
follow from these numbers: `p_for`, of the hypothesis that the claim does not hold, and `p_against`,
of the hypothesis that it holds.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jxfer import statistics
from jxfer.ablate import pairing
from jxfer.ablate.pairing import Paired
from jxfer.errors import UserError
from jxfer.statistics import Numbers

ACCURACY = "test accuracy"
"""The measure that every run has, in percent."""

Values = Mapping[tuple[str, str, str], Mapping[int, float]]
"""(setting, arm, measure) -> {seed: value}. An arm that a setting has is there, empty, even if no
seed of it finished: else a claim would leave the setting out without a word."""
Places = Mapping[str, float | None]
"""Setting -> its x, in the order of the table."""


@dataclasses.dataclass(frozen=True)
class Greater:
    """The left arm's measure is greater than the right arm's.

    For it: the mean difference is above 0. Against it: the mean difference is below `margin`. Where
    both are shown, the difference is real and smaller than what matters: contradicted. Without a
    margin two equal arms stay underpowered for ever; with one, enough seeds contradict the claim.
    """

    left: str
    right: str
    settings: tuple[str, ...] = ()
    """where it is claimed, each on its own; empty: every setting that has both arms"""
    measure: str = ACCURACY
    margin: float = 0.0
    """the smallest difference that matters, in the unit of the measure"""
    pooled: bool | str = False
    """one claim on the mean over the settings, which weigh the same; or what they have in common,
    as verdicts shall name them"""
    exact: bool = False
    """the measure does not depend on the seed, as FLOPs: no test, and one seed will do"""

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise UserError(f'claim "{self}": the margin must not be negative')

    def __str__(self) -> str:
        margin = f" (margin {self.margin:g})" if self.margin else ""
        return f"{self.left} > {self.right}{margin}"

    def p_values(self, numbers: Numbers) -> tuple[float, float]:
        return statistics.paired_t(numbers)[1], statistics.paired_t(numbers, self.margin)[0]

    def gaps(self, estimate: float) -> tuple[float, float]:
        return estimate, self.margin - estimate


@dataclasses.dataclass(frozen=True)
class NotWorse:
    """The left arm's measure is at most `by` below the right arm's.

    For it: the mean difference is above -by, a test of non-inferiority. Against it: it is below.
    """

    left: str
    right: str
    by: float
    settings: tuple[str, ...] = ()
    """as in `Greater`, like all that follow"""
    measure: str = ACCURACY
    pooled: bool | str = False
    exact: bool = False

    def __post_init__(self) -> None:
        if not self.by > 0:
            raise UserError(f'claim "{self}": it must be by more than 0')

    def __str__(self) -> str:
        return f"{self.left} not worse than {self.right} by {self.by:g}"

    def p_values(self, numbers: Numbers) -> tuple[float, float]:
        below, above = statistics.paired_t(numbers, -self.by)
        return above, below

    def gaps(self, estimate: float) -> tuple[float, float]:
        return estimate + self.by, -self.by - estimate


@dataclasses.dataclass(frozen=True)
class Close:
    """Two arms differ by less than `within`, in the unit of the measure.

    For it: two one-sided tests, the mean difference is above -within and below +within (Schuirmann
    1987). Against it: the mean difference is beyond either; that is two chances, so p is doubled.
    """

    left: str
    right: str
    within: float
    settings: tuple[str, ...] = ()
    """as in `Greater`, like all that follow"""
    measure: str = ACCURACY
    pooled: bool | str = False
    exact: bool = False

    def __post_init__(self) -> None:
        if not self.within > 0:
            raise UserError(f'claim "{self}": it must be within more than 0')

    def __str__(self) -> str:
        return f"{self.left} within {self.within:g} of {self.right}"

    def p_values(self, numbers: Numbers) -> tuple[float, float]:
        below_low, above_low = statistics.paired_t(numbers, -self.within)
        below_high, above_high = statistics.paired_t(numbers, self.within)
        return max(above_low, below_high), min(1.0, 2 * min(below_low, above_high))

    def gaps(self, estimate: float) -> tuple[float, float]:
        return self.within - abs(estimate), abs(estimate) - self.within


@dataclasses.dataclass(frozen=True)
class _Trend:
    arm: str
    measure: str = ACCURACY
    settings: tuple[str, ...] = ()
    """where the slope is taken; empty: every setting that has an x and the arm"""
    exact: bool = False
    """as in `Greater`"""

    sign: ClassVar[int]

    def p_values(self, numbers: Numbers) -> tuple[float, float]:
        less, greater = statistics.paired_t(numbers)
        return (greater, less) if self.sign > 0 else (less, greater)

    def gaps(self, estimate: float) -> tuple[float, float]:
        return self.sign * estimate, -self.sign * estimate


@dataclasses.dataclass(frozen=True)
class Falls(_Trend):
    """An arm's measure falls along x: the slope of its line of least squares is negative.

    A slope for each seed that has every x, and a t-test of the slopes. It speaks of the trend as a
    whole; a curve may fall overall and still rise between two neighbours.
    """

    sign: ClassVar[int] = -1

    def __str__(self) -> str:
        return f"{self.arm} falls"


@dataclasses.dataclass(frozen=True)
class Rises(_Trend):
    """An arm's measure rises along x: as `Falls`, with a positive slope."""

    sign: ClassVar[int] = 1

    def __str__(self) -> str:
        return f"{self.arm} rises"


Claim = Greater | NotWorse | Close | Falls | Rises


def samples(claim: Claim, values: Values, places: Places) -> list[tuple[str, Paired]]:
    """(name of the setting, numbers), one for each setting that a claim speaks of on its own.

    Raises:
      UserError: it names an arm, a setting or a measure that is not there, covers no setting, or
        asks for the slope over fewer than two places.
    """
    if isinstance(claim, _Trend):
        return [_slopes(claim, values, places)]
    arms = (claim.left, claim.right)
    settings = _settings(claim, arms, values, places)
    found = []
    for group in [settings] if claim.pooled else [(setting,) for setting in settings]:
        left, right = ([values[name, arm, claim.measure] for name in group] for arm in arms)
        common = claim.pooled if isinstance(claim.pooled, str) else f"{len(group)} settings"
        name = group[0] if len(group) == 1 else f"mean of {common}"
        found.append((name, pairing.differences(left, right)))
    return found


def _slopes(claim: _Trend, values: Values, places: Places) -> tuple[str, Paired]:
    for setting in claim.settings:
        if setting in places and places[setting] is None:
            raise UserError(f'claim "{claim}": the setting "{setting}" has no x')
    axis = {setting: x for setting, x in places.items() if x is not None}
    settings = _settings(claim, (claim.arm,), values, axis)
    x = [axis[setting] for setting in settings]
    if len(set(x)) < 2:
        raise UserError(f'claim "{claim}": a slope needs settings at two places or more')
    cells = [values[setting, claim.arm, claim.measure] for setting in settings]
    return ", ".join(claim.settings) or "all", pairing.slopes(x, cells)


def _settings(
    claim: Claim | _Trend, arms: tuple[str, ...], values: Values, places: Places
) -> tuple[str, ...]:
    """The settings that a claim covers, in its order or the table's; all of its names checked."""
    _, all_arms, measures = (dict.fromkeys(key[i] for key in values) for i in range(3))
    for kind, names, known in (
        ("arm", arms, all_arms),
        ("setting", claim.settings, places),
        ("measure", (claim.measure,), measures),
    ):
        for name in names:
            if name not in known:
                listed = ", ".join(known) or "none"
                raise UserError(f'claim "{claim}": no {kind} "{name}"; there are: {listed}')
    covered = tuple(
        setting
        for setting in claim.settings or places
        if all((setting, arm, claim.measure) in values for arm in arms)
    )
    cells = f'{" and ".join(arms)} with "{claim.measure}"'
    for setting in claim.settings:
        if setting not in covered:
            raise UserError(f'claim "{claim}": the setting "{setting}" does not have {cells}')
    if not covered:
        raise UserError(f'claim "{claim}": no setting has {cells}')
    return covered
