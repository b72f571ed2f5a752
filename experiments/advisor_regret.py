"""How much accuracy does the advisor's advice cost, against the best strategy and against rules?

Claims under test: CS231n's table and the tutorials' freeze table tell what to train from the size
and the likeness of a data set; fine-tuning everything is safe; LP-FT beats it (Kumar et al. 2022);
LogME (You et al. 2021) alone is enough. Against them stands `jxfer advise`, which measures first.

The runs are those of `experiments/advisor_grid.py`, which says what each cell is. The advisor's
thresholds were set on the cells of digits and hymenoptera (`TUNING`); those of CIFAR-10, MNIST and
USPS only judge.

Regret in a cell, in points of test accuracy: that of the best strategy minus that of the one that
a policy chooses. The best is chosen on two of the four seeds and scored on the other two, over all
six ways to do so: chosen and scored on the same seeds, noise alone would look like regret. It can be
negative. A policy sees the training images of the seed that it is scored on.

The two tables ask whether a data set is like the source and give no measure. They are read twice:
`by eye`, as their reader would, letters and digits being alike, and `measured`, with the advisor's
own verdicts. Small is fewer than 500 training images for all. `LogME alone` freezes through the
stage whose features have the highest score, and is a linear probe where that is the last one.

Command: `python experiments/advisor_regret.py`, where `advisor_grid.py` has run
Expected: `experiments/results/advisor-regret.json`, `.md` and `.png`.
Time: about ten seconds for each of the cells' four seeds on 2 cores.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from advisor_grid import CELLS, IMAGES, JUDGING, SEEDS, TUNING, Cell

from jxfer import text
from jxfer.advise import advice, measure, rules
from jxfer.commands.main import guard
from jxfer.data import screen
from jxfer.errors import UserError
from jxfer.statistics import t_interval
from jxfer.train import plans

ROOT = pathlib.Path(__file__).resolve().parent
STRATEGY = {
    "linear_probe": "linear_probe",
    "early_probe": "early_probe",
    "freeze_most": "partial, stage 2",
    "freeze_part": "partial, stage 1",
    "full": "full",
    "lp_ft": "lp_ft",
}
"""What the grid calls a reach; all its networks have the stages stem, 1, 2, 3."""
ALIKE = {
    "resnet20-cifar100": ("cifar10", "hymenoptera"),
    "resnet20-glyphs": ("digits", "mnist", "usps"),
    "resnet18-imagenet": ("hymenoptera", "cifar10"),
}
"""The sets that a reader would call like the source."""
BY_LOGME = ("full", "partial, stage 1", "partial, stage 2", "linear_probe")
"""By the stage with the highest score: stem, stage 1, 2, 3."""

Measured = dict[str, Any]
"""Of a cell and seed; see `_measure`."""
Policy = Callable[[Cell, Measured], str]


def _table(name: str, by_eye: bool) -> Policy:
    def policy(cell: Cell, measured: Measured) -> str:
        similar = cell.data in ALIKE[cell.weights] if by_eye else measured["similar"]
        return STRATEGY[rules.TABLES[name][measured["small"], similar]]

    return policy


POLICIES: dict[str, Policy] = {
    "advisor": lambda _, measured: STRATEGY[measured["reach"]],
    "always fine-tune all": lambda *_: "full",
    "always linear probe": lambda *_: "linear_probe",
    "always LP-FT": lambda *_: "lp_ft",
    "CS231n, by eye": _table("CS231n", True),
    "CS231n, measured": _table("CS231n", False),
    "freeze table, by eye": _table("freeze table", True),
    "freeze table, measured": _table("freeze table", False),
    "LogME alone": lambda _, measured: BY_LOGME[int(np.argmax(measured["log_me"]))],
}


def main(results: pathlib.Path = ROOT / "results") -> None:
    """Asks the advisor in every cell, and sets its regret beside that of fixed rules.

    Args:
      results: where the grid's figures are and these go.
    """
    grid = json.loads((results / "advisor-grid.json").read_text())
    cells = [cell for cell in CELLS if cell.name in grid["cells"]]
    if not cells:
        raise UserError(f"{results}/advisor-grid.json holds no cell; run advisor_grid.py first")
    measured = {cell.name: [_measure(cell, seed) for seed in SEEDS] for cell in cells}
    record = {"grid_commit": grid["commit"], "measured": measured}
    (results / "advisor-regret.json").write_text(text.to_json(record) + "\n")
    write_page(results)


def _measure(cell: Cell, seed: int) -> Measured:
    """What the advisor sees and says; it is asked as `jxfer advise` asks it."""
    print(f"{cell.name}, seed {seed} ...", file=sys.stderr)
    started = time.perf_counter()
    config = cell.config("full", seed)
    splits = screen.load_splits(config.data)
    loaded = plans.load(config, splits.train.class_names)
    candidates = {cell.weights: (config.model, loaded)}
    size, (found,), advised = advice.advise(
        config.data, splits, candidates, zoo=config.zoo, seed=seed
    )
    return {
        "seed": seed,
        "small": advised.verdict.small,
        "similar": bool(advised.verdict.similar),
        "decided_by": advised.verdict.decided_by,
        "reach": advised.reach,
        "probe": [depth.probe for depth in found.depths],
        "log_me": [depth.log_me for depth in found.depths],
        "proxy_a_distance": found.proxy_a_distance,
        "frechet": found.frechet,
        "norm_shift": found.norm_shift,
        "flip": advised.config.augment.flip,
        "seconds": time.perf_counter() - started,
        "full_seconds_estimate": advised.full_seconds,
    }
