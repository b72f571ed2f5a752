"""Every two arms of a table, setting by setting: paired differences, of which no claim was made.

Command: `python -m scripts.compare_arms experiments/results/NAME`

Left minus right over the seeds that both have, and the 95 % t-interval of the mean, not corrected
for their number: what docs/findings.md calls "uncorrected".
"""

import itertools
import pathlib
import sys

import numpy as np
import tyro

from jxfer import statistics, text
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
    rows = [("setting", "left", "right", "pairs", "difference", "95 % interval")]
    for setting in found.settings:
        for left, right in itertools.combinations(found.arms, 2):
            paired = found.differences(setting.name, left, right, measure)
            if len(paired) > 1:
                low, high = statistics.t_interval(paired)
                shown = (f"{np.mean(paired):.2f}", f"{low:.2f} to {high:.2f}")
                rows.append((setting.name, left, right, str(len(paired)), *shown))
    print(text.table(rows))


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
