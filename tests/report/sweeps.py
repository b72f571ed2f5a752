"""A sweep that might have been: several settings and arms, a search, a failed cell, a claim."""

import copy
import dataclasses
import functools
import json
import pathlib

import numpy as np

from jxfer.ablate import claims, verdicts
from jxfer.ablate.claims import ACCURACY
from jxfer.data.sources import DataConfig
from jxfer.train import config as configs
from jxfer.train.config import TrainConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.zoo.pretrained import ModelConfig

DOC = """Which part of a network should train? Strategies side by side.

Claims under test: LP-FT beats fine-tuning everything (Kumar et al. 2022).

Command: `python experiments/strategies.py`
"""
SETTINGS = ("digits, few", "digits, many", "cifar10, few", "cifar10, many")
ARMS = ("linear_probe", "full", "lp_ft")
SEEDS = (0, 1, 2, 3, 4)
RATES = (0.01, 0.03, 0.1)
EXAMPLES = 500


def results(axis: str = "") -> dict:
    """As `results.json` has it. With an axis, x is 5 and 500, twice.

    Seed 3 of lp_ft in "digits, many" failed; seed 4 of full in "cifar10, many" is missing; there is
    no lp_ft in "cifar10, few", and a single run of linear_probe in "cifar10, many".
    """
    return copy.deepcopy(_results(axis))


@functools.cache
def _results(axis: str) -> dict:
    rng = np.random.default_rng(0)
    places = dict(zip(SETTINGS, (5.0, 500.0) * 2 if axis else (None,) * 4, strict=True))
    choices, cells = [], []
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for s, setting in enumerate(SETTINGS):
        for a, arm in enumerate(ARMS):
            if (setting, arm) == ("cifar10, few", "lp_ft"):
                continue
            best = RATES[2 if arm == "linear_probe" else 1]
            tried = [{"choice": {"lr": r}, "accuracy": 0.9 - abs(r - best)} for r in RATES]
            place = {"setting": setting, "arm": arm}
            choices.append({**place, "chosen": {"lr": best}, "validation": tried})
            seeds = SEEDS[:1] if (setting, arm) == ("cifar10, many", "linear_probe") else SEEDS
            for seed in seeds:
                correct = int(rng.binomial(EXAMPLES, 0.6 + 0.08 * s + 0.03 * a))
                key = f"{s}{a}{seed}".rjust(12, "f")
                cell = {"key": key, "role": "table", **place, "seed": seed, "choice": {"lr": best}}
                if (s, a, seed) == (1, 2, 3):
                    cells.append({**cell, "status": "failed", "error": "the loss is NaN at step 7"})
                    continue
                if (s, a, seed) == (3, 1, 4):
                    cells.append({**cell, "status": "missing", "error": None})
                    continue
                measures = {ACCURACY: 100 * correct / EXAMPLES, "drift": float(rng.gamma(2 + a))}
                cell |= {"status": "finished", "error": None, "measures": measures}
                cell |= {"val_accuracy": 0.87, "test_correct": correct, "test_examples": EXAMPLES}
                cells.append({**cell, "seconds": 12.5 + seed, "commit": "abc123"})
                for name, value in measures.items():
                    values.setdefault((setting, arm, name), {})[seed] = value
    stated = [claims.Greater("lp_ft", "full"), claims.Greater("full", "linear_probe")]
    return {
        "name": "strategies",
        "file": "experiments/strategies.py",
        "doc": DOC,
        "title": "Strategies side by side",
        "axis": axis,
        "note": "Cut to 5 seeds.",
        "small": False,
        "command": "jxfer ablate experiments/strategies.py --out runs/strategies",
        "commits": ["abc123"],
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "settings": [{"name": name, "x": x} for name, x in places.items()],
        "arms": list(ARMS),
        "measures": [ACCURACY, "drift"],
        "seeds": list(SEEDS),
        "tuning_seeds": [100, 101],
        "budget": 3,
        "choices": choices,
        "cells": cells,
        "claims": [dataclasses.asdict(one) for one in verdicts.judge(stated, values, places)],
    }


def write(folder: pathlib.Path, found: dict) -> None:
    """Writes `results.json`, and of each cell that began its log, and its config if it finished."""
    (folder / "cells").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found))
    for cell in found["cells"]:
        if cell["status"] != "missing":
            (folder / "cells" / f"{cell['key']}.log").write_text("a log\n")
        if cell["status"] == "finished":
            (folder / "cells" / cell["key"]).mkdir()
            config = TrainConfig(
                DataConfig("digits", per_class=10),
                ModelConfig(weights="resnet20-cifar100", reuse=("stem", "stage1")),
                optimizer=OptimizerConfig(lr=cell["choice"]["lr"], nesterov=True),
                seed=cell["seed"],
            )
            values = json.dumps(configs.to_dict(config))
            (folder / "cells" / cell["key"] / "config.json").write_text(values)
