"""What the seeds say of each claim of a table: a verdict, never by eye.

After `claims` in the flow; the runner judges when the cells are done, the report prints.

- *reproduced*: that the claim does not hold is refused (`p_for` is small);
- *contradicted*: that the claim holds is refused (`p_against` is small);
- *underpowered*: neither. Absence of evidence says nothing of the claim.

Small is at most 0.025 after Holm's correction over all claims of the table, for either kind on its
own. So a table calls a false claim reproduced with a chance of at most 2.5 %, a true one
contradicted with at most 2.5 %, and errs at all with at most 5 %, however many its claims. A claim
that lacks seeds still counts in the correction: cells that failed make no other claim easier. The
seeds are chosen beforehand; seeds that are added until a claim succeeds void these numbers. So does
a second look at the same seeds, such as with a wider search once verdicts are known: it takes fresh
seeds.

The intervals beside a verdict are those of its claim alone, at 95 % and not corrected.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np

from jxfer import statistics
from jxfer.ablate.claims import Claim, Close, Falls, Places, Rises, Values, samples
from jxfer.ablate.pairing import Paired
from jxfer.errors import UserError
from jxfer.json_fields import ADDED
from jxfer.statistics import Numbers

ALPHA = 0.025
"""Level of either kind of verdict."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the seeds say of one claim in one setting. Values of JSON."""

    claim: str
    """such as "lp_ft > full" """
    setting: str
    """its name; "mean of N settings", or of what `pooled` says, where they are; of a slope "all",
    or those it was claimed for"""
    measure: str
    pairs: int
    """seeds with a number: those that every cell of the claim has"""
    missing: int
    """seeds that only some of the claim's cells have. Not used, and not always missing by chance:
    an arm that diverged on its bad seeds looks better than it is."""
    estimate: float | None
    """mean difference, left minus right, or mean slope per unit of x; None without a seed"""
    t_interval: tuple[float, float] | None
    """of the estimate, 95 %; None below two pairs, as all that follow"""
    bootstrap_interval: tuple[float, float] | None
    effect: float | None
    """Cohen's d_z of the numbers; None too where they do not vary"""
    p: float | None
    """Twice the one-sided p-value, at most 1, so that 0.05 is the level: for `Greater` without a
    margin, and for slopes, that of the two-sided test. Of the side that the verdict takes; of the
    nearer one where that is neither. None for an exact claim."""
    p_holm: float | None
    """the same after Holm's correction; the verdict follows from it"""
    sign_flip_p: float | None
    """two-sided, of the hypothesis that the numbers are symmetric about 0; it needs no normal
    distribution, stands beside `p` and has no part in the verdict. None below 8 pairs."""
    verdict: Literal["reproduced", "contradicted", "underpowered"]
    seeds_needed: int | None
    """Where underpowered: seeds that would settle it with 80 % power, were the effect what was seen
    and the correction the strictest that the table asks for; None where `statistics.MOST_SEEDS`
    would not do or no spread was seen."""
    trend: bool = dataclasses.field(default=False, metadata=ADDED)
    """a slope of one arm, not a difference of two"""


def judge(claims: Iterable[Claim], values: Values, places: Places) -> list[Verdict]:
    """The verdicts, in the order of the claims, one for each setting of a claim that is not pooled.

    Pass all claims of a table at once: the correction is over those given.

    Raises:
      UserError: a claim names an arm, a setting or a measure that is not there, covers no setting,
        asks for the slope over fewer than two places, or says of a measure that varies with the
        seed that it is exact.
    """
    rows = [
        (claim, setting, paired)
        for claim in claims
        for setting, paired in samples(claim, values, places)
    ]
    tested = {
        i: claim.p_values(paired.numbers) if len(paired.numbers) > 1 else (1.0, 1.0)
        for i, (claim, _, paired) in enumerate(rows)
        if not claim.exact
    }
    holm_for = statistics.holm([p_for for p_for, _ in tested.values()])
    holm_against = statistics.holm([p_against for _, p_against in tested.values()])
    adjusted = dict(zip(tested, zip(holm_for, holm_against, strict=True), strict=True))
    verdicts = []
    for i, (claim, setting, paired) in enumerate(rows):
        row = _described(claim, setting, paired)
        if claim.exact:
            verdicts.append(_compared(claim, row, paired.numbers))
        elif row.pairs < 2:
            verdicts.append(row)
        else:
            level = ALPHA / len(tested)
            verdicts.append(_tested(claim, row, paired.numbers, tested[i], adjusted[i], level))
    return verdicts


def _described(claim: Claim, setting: str, paired: Paired) -> Verdict:
    """What is known without a test."""
    return Verdict(
        claim=str(claim),
        setting=setting,
        measure=claim.measure,
        pairs=len(paired.numbers),
        missing=paired.missing,
        estimate=float(np.mean(paired.numbers)) if len(paired.numbers) else None,
        t_interval=None,
        bootstrap_interval=None,
        effect=None,
        p=None,
        p_holm=None,
        sign_flip_p=None,
        verdict="underpowered",
        seeds_needed=None,
        trend=isinstance(claim, Falls | Rises),
    )


def _tested(
    claim: Claim,
    row: Verdict,
    numbers: Numbers,
    p: tuple[float, float],
    p_holm: tuple[float, float],
    level: float,
) -> Verdict:
    """The row with its tests; `p` and `p_holm` hold (for, against)."""
    reproduced, contradicted = (value <= ALPHA for value in p_holm)
    side = 1 if contradicted or (not reproduced and p[1] < p[0]) else 0
    row = dataclasses.replace(
        row,
        t_interval=statistics.t_interval(numbers),
        bootstrap_interval=statistics.bootstrap_interval(numbers),
        effect=statistics.effect_size(numbers),
        p=min(1.0, 2 * p[side]),
        p_holm=min(1.0, 2 * p_holm[side]),
        sign_flip_p=statistics.sign_flip(numbers),
    )
    if reproduced or contradicted:
        return dataclasses.replace(row, verdict="contradicted" if contradicted else "reproduced")
    return dataclasses.replace(row, seeds_needed=_plan(claim, numbers, side, level))


def _plan(claim: Claim, numbers: Numbers, side: int, level: float) -> int | None:
    """Seeds for a test at the level that Holm asks of the smallest p-value: never too few."""
    if statistics.effect_size(numbers) is None:
        return None
    power = 0.8
    if isinstance(claim, Close):  # both bounds must be passed, or either
        power, level = (0.9, level) if side == 0 else (power, level / 2)
    gap = claim.gaps(float(np.mean(numbers)))[side]
    return statistics.seeds_needed(gap / float(np.std(numbers, ddof=1)), level, power)


def _compared(claim: Claim, row: Verdict, numbers: Numbers) -> Verdict:
    """The row of a measure without chance."""
    if row.estimate is None:
        return row
    if not np.allclose(numbers, row.estimate, rtol=1e-9, atol=0.0):
        raise UserError(
            f'claim "{claim}": "{claim.measure}" is said to be exact and differs between seeds '
            f"({row.setting})"
        )
    gap_for, gap_against = claim.gaps(row.estimate)
    holds = gap_for > 0 and gap_against <= 0
    return dataclasses.replace(row, verdict="reproduced" if holds else "contradicted")
