"""Every two arms of a table in each setting: paired differences, of which no claim was made.

Command: `python -m scripts.compare_arms experiments/results/NAME`

Left minus right over the seeds that both have, and the 95 % t-interval of the mean, not corrected
for their number: what docs/findings.md calls "uncorrected". Where the settings are an axis, such as
the freeze depth, a second table compares every two of them in each arm.
"""

import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import tyro

from jxfer import statistics, text
from jxfer.ablate import pairing
from jxfer.ablate.claims import ACCURACY
from jxfer.commands.main import guard
from jxfer.report import results


def main(out: tyro.conf.Positional[pathlib.Path], measure: str = ACCURACY) -> None:
    """Prints the table.

    Args:
      out: The folder with results.json.
      measure: Of which differences are taken.
    """
    found = results.read(out)
    settings = [setting.name for setting in found.settings]
    values = {
        (setting, arm): one.values
        for setting, arm in itertools.product(settings, found.arms)
        if (one := found.summary(setting, arm, measure))
    }
    print(_table("setting", settings, found.arms, values))
    if found.axis:
        by_arm = {(arm, setting): some for (setting, arm), some in values.items()}
        print("\n" + _table("arm", found.arms, settings, by_arm))


def _table(
    name: str,
    blocks: Sequence[str],
    sides: Sequence[str],
    values: Mapping[tuple[str, str], Mapping[int, float]],
) -> str:
    """Every two sides in each block, from {(block, side): {seed: value}}."""
    rows = [(name, "left", "right", "pairs", "difference", "95 % interval")]
    for block in blocks:
        for left, right in itertools.combinations(sides, 2):
            one, other = values.get((block, left), {}), values.get((block, right), {})
            paired = pairing.differences([one], [other]).numbers
            if len(paired) > 1:
                low, high = statistics.t_interval(paired)
                shown = (f"{np.mean(paired):.2f}", f"{low:.2f} to {high:.2f}")
                rows.append((block, left, right, str(len(paired)), *shown))
    return text.table(rows)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
