"""The tables of a sweep's report, from its results.

After `results` and `page` in the flow. Each function returns a table for a page, which `tables`
writes as Markdown and LaTeX too.
"""

import math
from collections.abc import Callable, Sequence

from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.verdicts import Verdict
from jxfer.report.page import Cell, Number, Table
from jxfer.report.results import Choice, Results, Search, Summary

NONE = "–"
"""Where there is no figure."""
_MOST_DECIMALS = 6
_MOST_CHOICES = 6
"""Searches whose choices a caption tells."""


def measure(results: Results, name: str) -> Table:
    """Settings x arms, the longer of the two from top to bottom: mean and 95 % interval."""
    settings = [setting.name for setting in results.settings]
    found = {
        (setting, arm): one
        for setting in settings
        for arm in results.arms
        if (one := results.summary(setting, arm, name))
    }
    show = _format(list(found.values()))
    usual = max((len(one.values) for one in found.values()), default=0)
    strong = {
        (setting, arm)
        for setting in (settings if name == ACCURACY and not _are_curves(results) else ())
        for arm in results.not_shown_worse(setting, name)
    }

    def cell(setting: str, arm: str) -> Cell:
        one = found.get((setting, arm))
        if one is None:
            return _why_none(results, setting, arm)
        shown = _mean(one, show)
        if len(one.values) != usual:
            shown += f" (n = {len(one.values)})"
        return Number(shown, one.mean, strong=(setting, arm) in strong)

    if len(settings) >= len(results.arms):
        columns = ["setting", *results.arms]
        rows = [[setting, *(cell(setting, arm) for arm in results.arms)] for setting in settings]
    else:
        columns = ["arm", *settings]
        rows = [[arm, *(cell(setting, arm) for setting in settings)] for arm in results.arms]
    return Table(heading(name), columns, rows, _caption(results, name, list(found.values())))


def label(name: str) -> str:
    """A measure with its unit, where that is known."""
    return f"{name}, %" if name == ACCURACY else name


def heading(name: str) -> str:
    """The same as a heading."""
    shown = label(name)
    return shown[:1].upper() + shown[1:]


def intervals(results: Results) -> Table:
    """Every mean with both of its intervals."""
    rows: list[list[Cell]] = []
    for setting, arm, name, one in summaries(results):
        show = _format([one])
        rows.append(
            [
                *(setting, arm, label(name)),
                Number(str(len(one.values)), len(one.values)),
                Number(show(one.mean), one.mean),
                *(_interval(pair, show) for pair in (one.t, one.bootstrap, one.wilson)),
            ]
        )
    columns = ["setting", "arm", "measure", "n", "mean", "t", "bootstrap", "Wilson"]
    caption = (
        "95 % intervals of the mean over seeds: Student's t, and a bias-corrected and accelerated "
        "bootstrap, which is too narrow for few seeds. Wilson: of the test images of a single run."
    )
    return Table("Intervals", columns, rows, caption)


def summaries(results: Results) -> list[tuple[str, str, str, Summary]]:
    """(setting, arm, measure, summary) of all that have one."""
    return [
        (setting.name, arm, name, one)
        for name in results.measures
        for setting in results.settings
        for arm in results.arms
        if (one := results.summary(setting.name, arm, name))
    ]


def claims(results: Results) -> Table:
    """What each claim came to."""

    def number(value: float | None) -> Cell:
        if value is None:
            return NONE
        return Number(str(value) if isinstance(value, int) else f"{value:.3g}", value)

    rows: list[list[Cell]] = [
        [
            *(one.claim, one.setting, label(one.measure), one.verdict),
            *(number(one.pairs), number(one.estimate)),
            *(
                _interval(pair, "{:.3g}".format)
                for pair in (one.t_interval, one.bootstrap_interval)
            ),
            *map(number, (one.effect, one.p, one.p_holm, one.sign_flip_p, one.seeds_needed)),
        ]
        for one in results.claims
    ]
    columns = [
        *("claim", "setting", "measure", "verdict", "pairs", "estimate", "t", "bootstrap"),
        *("effect", "p", "p, Holm", "p, sign flip", "seeds needed"),
    ]
    caption = (
        "A claim is tested on differences between runs that share a seed, left minus right, or on "
        "slopes per unit of the axis. Estimate: their mean, with 95 % intervals of this claim "
        "alone, not corrected; effect: Cohen's d_z, of paired differences (or slopes). p: twice "
        "the one-sided p of the side that the verdict takes, or of the nearer one; the verdict "
        "follows from p after Holm's correction over all tested claims of the table, at 0.05. Sign "
        "flip: from 8 pairs on. Seeds needed: for 80 % power, were the effect what was seen, at "
        "the strictest level of the correction. Underpowered: neither the claim nor its opposite "
        "is shown."
    )
    if any(one.estimate is not None and one.pairs > 1 and one.p is None for one in results.claims):
        caption += " Rows without p are of measures without chance: compared, not tested."
    return Table("Claims", columns, rows, caption + _missing_pairs(results.claims))


def search(results: Results) -> Table:
    """What was tried for each arm, and taken."""
    rows: list[list[Cell]] = []
    for one in results.choices:
        tried = (f"{told(pair.choice)}: {_tried(pair.accuracy, one.by)}" for pair in one.validation)
        rows.append([one.setting, one.arm, chosen(one), "; ".join(tried) or NONE])
    return Table(
        "Hyper-parameters",
        ["setting", "arm", "chosen", f"mean {_by(results)} of each choice"],
        rows,
        budget(results),
    )


def budget(results: Results) -> str:
    """What the search was allowed, in a sentence."""
    if results.budget == 1:
        return "Hyper-parameters were fixed beforehand, without a search."
    ends = any(_at_an_end(one) for one in results.choices)
    tuned = list(dict.fromkeys(one.setting for one in results.choices))
    where = ""
    if len(results.settings) > 1 and tuned:
        everywhere = len(tuned) == len(results.settings)
        where = " in each setting" if everywhere else f" in {', '.join(tuned)} for all settings"
    return (
        f"Each arm tried {results.budget} choices of hyper-parameters{where} at "
        f"{_seeds('tuning seed', results.tuning_seeds)} and took the one with the highest mean "
        f"{_by(results)}."
        + (" An asterisk marks a choice at an end of what was tried." if ends else "")
    )


def _by(results: Results) -> str:
    """What the searches chose by."""
    return " or ".join(dict.fromkeys(one.by for one in results.choices if one.validation))


def _tried(value: float | None, by: str) -> str:
    if value is None:
        return NONE
    return f"{value:.2%}" if by.endswith("accuracy") else f"{value:.4g}"


def chosen(one: Search) -> str:
    """The choice of a search, with an asterisk after each number at an end of what was tried."""
    if one.chosen is None:
        return NONE
    ends = frozenset(name for name in one.chosen if one.at_an_end(name))
    return told(one.chosen, ends)


def _at_an_end(one: Search) -> bool:
    return any(one.at_an_end(name) for name in one.chosen or ())


def told(choice: Choice, ends: frozenset[str] = frozenset()) -> str:
    """Hyper-parameters as text, such as `lr 0.1, momentum 0.9`."""
    parts = (f"{name} {value}{'*' if name in ends else ''}" for name, value in choice.items())
    return ", ".join(parts) or "none"


def unfinished(results: Results) -> Table:
    """Cells that failed, cells that did not run, and those of which a measure failed."""
    rows: list[list[Cell]] = [
        [
            *(cell.status, cell.role, cell.setting, cell.arm, str(cell.seed)),
            *(told(cell.choice), cell.error or NONE),
        ]
        for cell in results.cells
        if cell.status != "finished" or cell.error
    ]
    columns = ["status", "role", "setting", "arm", "seed", "choice", "error"]
    return Table("Failed and missing cells", columns, rows, "They are in no mean.")


def diverged(results: Results) -> Table:
    """Runs that adapt and ended far below their best."""
    rows: list[list[Cell]] = [
        [cell.role, cell.setting, cell.arm, str(cell.seed), told(cell.choice)]
        for cell in results.cells
        if cell.diverged
    ]
    columns = ["role", "setting", "arm", "seed", "choice"]
    return Table("Diverged runs", columns, rows, "They are in the means, by their best step.")


def _format(found: Sequence[Summary]) -> Callable[[float], str]:
    """Decimals for two digits of the median half-width; without one, four digits."""
    halves = sorted((one.interval[1] - one.interval[0]) / 2 for one in found if one.interval)
    half = halves[len(halves) // 2] if halves else 0.0
    if half <= 0:
        return "{:.4g}".format
    decimals = 1 - math.floor(math.log10(half))
    if decimals > _MOST_DECIMALS:
        return "{:.4g}".format
    return f"{{:z.{max(0, decimals)}f}}".format  # z: no -0.0


def _mean(one: Summary, show: Callable[[float], str]) -> str:
    if one.t is not None:
        return f"{show(one.mean)} ± {show((one.t[1] - one.t[0]) / 2)}"
    if one.wilson is not None:
        return f"{show(one.mean)} [{show(one.wilson[0])}, {show(one.wilson[1])}]"
    return show(one.mean)


def _interval(pair: tuple[float, float] | None, show: Callable[[float], str]) -> Cell:
    """Sorts by its lower end."""
    return NONE if pair is None else Number(f"{show(pair[0])} to {show(pair[1])}", pair[0])


def _why_none(results: Results, setting: str, arm: str) -> str:
    """Why a place of the table has no figure: `failed`, `missing`, or that there is no such arm."""
    found = {
        "failed" if cell.error else cell.status
        for cell in results.cells
        if (cell.setting, cell.arm) == (setting, arm) and (cell.error or cell.status != "finished")
    }
    return ", ".join(sorted(found)) or NONE


def _caption(results: Results, name: str, found: Sequence[Summary]) -> str:
    parts = []
    counts = [len(one.values) for one in found]
    if max(counts, default=0) > 1:
        parts.append(f"Mean ± half of the 95 % t-interval, {_seeds('seed', results.seeds)}.")
    if any(one.wilson for one in found):
        parts.append("A single run stands with Wilson's 95 % interval for its test images.")
    if name == ACCURACY and _are_curves(results):
        parts.append("Arms are curves over the settings, and are not compared: nothing is bold.")
    elif name == ACCURACY and max(counts, default=0) > 1 and len(results.arms) > 1:
        parts.append(
            "Bold: in each setting the highest mean, and every arm that is not shown to be worse: "
            "its paired 95 % t-interval to the highest reaches zero, not corrected for the number "
            "of arms."
        )
    if name == ACCURACY:
        parts.append(budget(results))
        if results.budget > 1:
            parts.append(_taken(results))
        if results.note:
            parts.append(results.note)
    return " ".join(parts)


def _are_curves(results: Results) -> bool:
    """Whether all that is claimed is of slopes: then an arm is a condition, such as the data."""
    return bool(results.claims) and all(one.trend for one in results.claims)


def _taken(results: Results) -> str:
    """What each arm chose, and in which settings; of many choices, how many are at an end."""
    found = {(one.arm, chosen(one)) for one in results.choices}
    if len(found) > _MOST_CHOICES:
        ends = sum(map(_at_an_end, results.choices))
        at_ends = f"; {ends} of {len(results.choices)} are at an end" if ends else ""
        return f"Chosen: as under Hyper-parameters{at_ends}."
    parts = []
    for arm in results.arms:
        where: dict[str, list[str]] = {}
        for one in results.choices:
            if one.arm == arm:
                where.setdefault(chosen(one), []).append(one.setting)
        same = len(where) == 1
        told_of = (choice if same else f"{choice} ({', '.join(s)})" for choice, s in where.items())
        parts.append(f"{arm}: {' / '.join(told_of)}")
    return f"Chosen: {'; '.join(parts)}."


def _seeds(name: str, seeds: Sequence[int]) -> str:
    listed = ", ".join(map(str, seeds))
    return f"{name} {listed}" if len(seeds) == 1 else f"{len(seeds)} {name}s ({listed})"


def _missing_pairs(verdicts: Sequence[Verdict]) -> str:
    """Seeds that failed are not missing by chance: say so where there are some."""
    short = [one for one in verdicts if one.missing]
    if not short:
        return ""
    listed = "; ".join(f"{one.claim} in {one.setting}: {one.missing}" for one in short)
    return f" Seeds that only some of a claim's cells have are not used ({listed})."
