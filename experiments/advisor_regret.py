"""How much accuracy does the advisor's advice cost, against the best strategy and against rules?

Claims under test: CS231n's table and the tutorials' freeze table tell what to train from the size
and the likeness of a data set; fine-tuning everything is safe; LP-FT beats it (Kumar et al. 2022);
LogME (You et al. 2021) alone is enough. Against them stands `jxfer advise`, which measures first.

The runs are those of `experiments/advisor_grid.py`, which says what each cell is. The advisor's
thresholds were set on the cells of digits and hymenoptera (`TUNING`); those of CIFAR-10, MNIST and
USPS only judge.

Regret in a cell, in points of test accuracy: that of the best strategy minus that of the one that
a policy chooses. The best is chosen on two of the four seeds and scored on the other two, over all
six ways to do so: chosen and scored on the same seeds, noise alone would look like regret. It can
be negative. A policy sees the training images of the seed that it is scored on.

The two tables ask whether a data set is like the source and give no measure. They are read twice:
`by eye`, as their reader would, letters and digits being alike, and `measured`, with the advisor's
own verdicts. Small is fewer than 500 training images for all. `LogME alone` freezes through the
stage whose features have the highest score, and is a linear probe where that is the last one.

Command: `python experiments/advisor_regret.py`, where `advisor_grid.py` has run
Expected: `experiments/results/advisor-regret.json`, `.md` and `.png`.
Time: about ten seconds for each of the cells' four seeds on 2 cores.
"""

import collections
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from advisor_grid import CELLS, JUDGING, SEEDS, TUNING, Cell

from jxfer import text
from jxfer.advise import advice, rules
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
        similar = cell.data in ALIKE[cell.weights] if by_eye else bool(measured["similar"])
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
    _, (found,), advised = advice.advise(config.data, splits, candidates, zoo=config.zoo, seed=seed)
    return {
        "seed": seed,
        "small": advised.verdict.small,
        "similar": advised.verdict.similar,
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


def regrets(
    cells: list[Cell], accuracy: dict[str, np.ndarray], measured: dict[str, list[Measured]]
) -> dict[str, np.ndarray]:
    """Regret of each policy in each cell, in points.

    Args:
      accuracy: cell -> [strategies, seeds], in [0, 1], in the order of `STRATEGY`.
      measured: cell -> one for each seed.

    Returns:
      policy -> [cells].
    """
    names = list(STRATEGY.values())
    halves = [
        (list(chosen), [s for s in range(len(SEEDS)) if s not in chosen])
        for chosen in itertools.combinations(range(len(SEEDS)), len(SEEDS) // 2)
    ]
    found: dict[str, list[float]] = {name: [] for name in POLICIES}
    for cell in cells:
        table = 100 * accuracy[cell.name]
        for name, policy in POLICIES.items():
            takes = [names.index(policy(cell, seen)) for seen in measured[cell.name]]
            lost = [
                table[table[:, chosen].mean(1).argmax(), seed] - table[takes[seed], seed]
                for chosen, scored in halves
                for seed in scored
            ]
            found[name].append(float(np.mean(lost)))
    return {name: np.array(values) for name, values in found.items()}


def regrets_with_weights(
    cells: list[Cell], accuracy: dict[str, np.ndarray], measured: dict[str, list[Measured]]
) -> dict[str, np.ndarray]:
    """The same where the weights are chosen too: policy -> [(data, labels per class)].

    The advisor takes the weights with the best probe; LogME those with the highest score on the
    last stage; the other policies are given the advisor's.
    """
    names = list(STRATEGY.values())
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.data, cell.per_class), []).append(cell)
    pairs = list(itertools.combinations(range(len(SEEDS)), len(SEEDS) // 2))
    found: dict[str, list[float]] = {name: [] for name in POLICIES}
    for group in groups.values():
        table = 100 * np.stack([accuracy[cell.name] for cell in group])  # [weights, strategies, s]
        for name, policy in POLICIES.items():
            takes = []
            for seed in range(len(SEEDS)):
                seen = [measured[cell.name][seed] for cell in group]
                scores = [
                    one["log_me"][-1] if name == "LogME alone" else max(one["probe"])
                    for one in seen
                ]
                which = int(np.argmax(scores))
                takes.append((which, names.index(policy(group[which], seen[which]))))
            lost = []
            for chosen in pairs:
                best = np.unravel_index(table[:, :, chosen].mean(2).argmax(), table.shape[:2])
                lost += [
                    table[(*best, seed)] - table[(*takes[seed], seed)]
                    for seed in range(len(SEEDS))
                    if seed not in chosen
                ]
            found[name].append(float(np.mean(lost)))
    return {name: np.array(values) for name, values in found.items()}


def write_page(results: pathlib.Path) -> None:
    """`advisor-regret.md` and `.png`, from the figures beside them."""
    grid = json.loads((results / "advisor-grid.json").read_text())["cells"]
    measured = json.loads((results / "advisor-regret.json").read_text())["measured"]
    accuracy = {
        name: np.array(
            [
                [run["test_accuracy"] for run in grid[name]["runs"][strategy]]
                for strategy in STRATEGY.values()
            ]
        )
        for name in measured
    }
    cells = [cell for cell in CELLS if cell.name in measured]
    judging = [cell for cell in cells if cell.data in JUDGING]
    tuning = [cell for cell in cells if cell.data in TUNING]
    advised, full = (
        [figures[key] for cell in cells for figures in rows[cell.name]]
        for rows, key in (
            (measured, "seconds"),
            ({name: grid[name]["runs"]["full"] for name in measured}, "seconds"),
        )
    )
    judged = regrets(judging, accuracy, measured)
    parts = [
        "# The advisor's regret",
        "`python experiments/advisor_regret.py`, whose head says how regret is counted; the runs "
        "are those of `advisor_grid.py`. Mean over cells, points of test accuracy; in brackets the "
        "95 % t-interval over the cells, which share weights and test images and are not "
        "independent.",
        f"## Cells that judge ({', '.join(JUDGING)}: {len(judging)} cells)",
        text.markdown(_policy_rows(judged)),
        f"## The same, the weights chosen too ({len(judging) // 2} choices)",
        text.markdown(_policy_rows(regrets_with_weights(judging, accuracy, measured))),
        f"## Cells that tuned the advisor ({', '.join(TUNING)}: {len(tuning)} cells)",
        text.markdown(_policy_rows(regrets(tuning, accuracy, measured))),
        "## Every cell",
        "Test accuracy, %, mean of four seeds; what the advisor chose at each seed; its regret.",
        text.markdown(_cell_rows(cells, accuracy, measured)),
        "## Time",
        f"Asking the advisor took {np.median(advised):.0f} s in the median and "
        f"{max(advised):.0f} s at most, compilation included; a run of full fine-tuning "
        f"{np.median(full):.0f} and {max(full):.0f} s.",
        "![regret](advisor-regret.png)",
    ]
    (results / "advisor-regret.md").write_text("\n\n".join(parts) + "\n")
    _draw(judged, results / "advisor-regret.png")
    print(text.table(_policy_rows(judged)))


def _policy_rows(found: dict[str, np.ndarray]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("policy", "mean regret", "95 % interval", "worst cell")]
    for name, values in found.items():
        low, high = t_interval(list(values))
        rows.append(
            (name, f"{values.mean():.2f}", f"{low:.2f} to {high:.2f}", f"{values.max():.1f}")
        )
    return rows


def _cell_rows(
    cells: list[Cell], accuracy: dict[str, np.ndarray], measured: dict[str, list[Measured]]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("cell", *STRATEGY.values(), "advisor", "likeness", "regret")]
    regret = regrets(cells, accuracy, measured)["advisor"]
    for cell, lost in zip(cells, regret, strict=True):
        seen = measured[cell.name]
        choices = collections.Counter(STRATEGY[one["reach"]] for one in seen)
        alike = collections.Counter("similar" if one["similar"] else "different" for one in seen)
        rows.append(
            (
                cell.name,
                *(f"{mean:.1f}" for mean in 100 * accuracy[cell.name].mean(1)),
                "; ".join(f"{name} ({n})" for name, n in choices.items()),
                "; ".join(f"{name} ({n})" for name, n in alike.items()),
                f"{lost:.1f}",
            )
        )
    return rows


def _draw(found: dict[str, np.ndarray], file: pathlib.Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(found)[::-1]
    for i, name in enumerate(names):
        values = found[name]
        low, high = t_interval(list(values))
        axes.plot(values, np.full(len(values), i), "o", color="0.75", markersize=4)
        axes.errorbar(
            values.mean(), i, xerr=[[values.mean() - low], [high - values.mean()]], fmt="s",
            color="C3" if name == "advisor" else "C0", capsize=3,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel("regret on the judging cells, points (grey: cells; bars: 95 %)")
    figure.savefig(file, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
