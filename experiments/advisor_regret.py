"""How much accuracy does the advisor's advice cost, against the best strategy and against rules?

Claims under test: CS231n's table and the tutorials' freeze table tell what to train from the size
and the likeness of a data set; fine-tuning everything is safe; LP-FT beats it (Kumar et al. 2022);
LogME (You et al. 2021) alone is enough. Against them stands `jxfer advise`, which measures first.

The runs are those of `experiments/advisor_grid.py`, which says what each cell is. The advisor's
thresholds were set on the cells of digits and hymenoptera (`TUNING`); those of CIFAR-10, MNIST and
USPS only judge. MNIST and USPS are handwritten digits as well, so CIFAR-10 is shown by itself too.

Regret in a cell, in points of test accuracy: that of the best strategy minus that of the one that
a policy chooses. The best is chosen on two of the four seeds and scored on the other two, over all
six ways to do so: chosen and scored on the same seeds, noise alone would look like regret. It can
be negative, and is a lower bound, since two seeds do not always find the best; `at most` is the
figure against the best of all four. A policy sees the training images of the seed that it is
scored on. What is scored is the strategy, with the rates and epochs of the grid and its budget of
steps, which are near those of the advice but not the same, and without its flips.

The two tables ask whether a data set is like the source and give no measure. They are read twice:
`by eye`, as their reader would, letters and digits being alike, and `measured`, with the advisor's
own verdicts. Small is fewer than 500 training images for them. `LogME alone` takes the stage whose
features have the highest score and trains what lies above it: a linear probe where it is the last,
everything where it is the stem. Where weights are chosen too, it takes those with the highest score
on the last stage, as its paper does.

Command: `python experiments/advisor_regret.py`, where `advisor_grid.py` has run
Expected: `experiments/results/advisor-regret.json`, `.md` and `.png`.
Time: about ten seconds for each of the cells' four seeds on 2 cores; cells that the same commit has
measured are not measured again.
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
from jxfer.train import plans, program

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
    "resnet18-imagenet": ("hymenoptera",),
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
        assert similar is not None, f"{cell.name}: no table can be asked"
        return STRATEGY[rules.TABLES[name][measured["small"], similar]]

    return policy


POLICIES: dict[str, Policy] = {
    "advisor": lambda _, measured: STRATEGY[measured["reach"]],
    "always fine-tune all": lambda *_: "full",
    "always linear probe": lambda *_: "linear_probe",
    "always LP-FT": lambda *_: "lp_ft",
    "always freeze most": lambda *_: "partial, stage 2",
    "always freeze part": lambda *_: "partial, stage 1",
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
    file = results / "advisor-regret.json"
    code = {
        "grid_commit": grid["commit"],
        "commit": program.commit(),
        "versions": grid["versions"],
    }
    earlier = json.loads(file.read_text()) if file.exists() else {}
    same = all(earlier.get(key) == value for key, value in code.items())
    measured: dict[str, list[Measured]] = {}
    for cell in cells:
        known = earlier["measured"].get(cell.name) if same else None
        measured[cell.name] = known or [_measure(cell, seed) for seed in SEEDS]
        file.write_text(text.to_json(code | {"measured": measured}) + "\n")
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


Accuracies = dict[str, np.ndarray]
"""Cell -> test accuracy [strategies, seeds], in points, in the order of `STRATEGY`."""


def regrets(
    groups: list[list[Cell]],
    accuracies: Accuracies,
    measured: dict[str, list[Measured]],
    halves: bool = True,
) -> dict[str, np.ndarray]:
    """Regret of each policy in each group of cells, which differ by their weights alone.

    In a group of several the policy also chooses the weights: LogME by its score on the last stage,
    the others as the advisor does, by the best probe.

    Args:
      halves: choose the best on half of the seeds and score on the others; else on all of them.

    Returns:
      policy -> [groups].
    """
    names, seeds = list(STRATEGY.values()), range(len(SEEDS))
    chosen_on = list(itertools.combinations(seeds, len(SEEDS) // 2)) if halves else [tuple(seeds)]
    found: dict[str, list[float]] = {name: [] for name in POLICIES}
    for group in groups:
        table = np.stack([accuracies[cell.name] for cell in group])  # [weights, strategies, seeds]
        for name, policy in POLICIES.items():
            taken = []
            for seed in seeds:
                seen = [measured[cell.name][seed] for cell in group]
                by_logme = name.startswith("LogME")
                scores = [one["log_me"][-1] if by_logme else max(one["probe"]) for one in seen]
                which = int(np.argmax(scores))
                taken.append(table[which, names.index(policy(group[which], seen[which])), seed])
            lost = []
            for chosen in chosen_on:
                scored = [seed for seed in seeds if seed not in chosen] if halves else list(seeds)
                means = table[:, :, chosen].mean(2)
                best = table[np.unravel_index(means.argmax(), means.shape)]
                lost += [best[seed] - taken[seed] for seed in scored]
            found[name].append(float(np.mean(lost)))
    return {name: np.array(values) for name, values in found.items()}


def write_page(results: pathlib.Path) -> None:
    """`advisor-regret.md` and `.png`, from the figures beside them."""
    grid = json.loads((results / "advisor-grid.json").read_text())["cells"]
    measured = json.loads((results / "advisor-regret.json").read_text())["measured"]
    accuracies = {
        name: np.array(
            [
                [100 * run["test_accuracy"] for run in grid[name]["runs"][strategy]]
                for strategy in STRATEGY.values()
            ]
        )
        for name in measured
    }
    cells = [cell for cell in CELLS if cell.name in measured]

    def of(*data: str) -> list[list[Cell]]:
        return [[cell] for cell in cells if cell.data in data]

    def by_weights(*data: str) -> list[list[Cell]]:
        groups: dict[tuple[str, int], list[Cell]] = {}
        for (cell,) in of(*data):
            groups.setdefault((cell.data, cell.per_class), []).append(cell)
        return list(groups.values())

    def table(groups: list[list[Cell]]) -> str:
        rows = _policy_rows(
            regrets(groups, accuracies, measured),
            regrets(groups, accuracies, measured, halves=False),
        )
        return text.markdown(rows)

    asked = [one["seconds"] for cell in cells for one in measured[cell.name]]
    full = [run["seconds"] for cell in cells for run in grid[cell.name]["runs"]["full"]]
    parts = [
        "# The advisor's regret",
        "`python experiments/advisor_regret.py`; its head says how regret is counted, and that of "
        "`advisor_grid.py` what was run. Means over cells, points of test accuracy; intervals are "
        "95 % t-intervals over the cells, which share weights and test images and are not "
        "independent. `more than the advisor`: the policy's regret minus the advisor's, by cell.",
        f"## The {len(of(*JUDGING))} cells that judge: {', '.join(JUDGING)}",
        table(of(*JUDGING)),
        *(
            part
            for data in (("cifar10",), ("mnist", "usps"))
            if of(*data)
            for part in (f"## Of these, {' and '.join(data)}", table(of(*data)))
        ),
        "## The cells that judge, the weights chosen too",
        table(by_weights(*JUDGING)),
        f"## The {len(of(*TUNING))} cells that tuned the advisor: {', '.join(TUNING)}",
        table(of(*TUNING)),
        "## Every cell",
        "Test accuracy, %, mean of four seeds; what the advisor chose at how many of them; regret.",
        text.markdown(_cell_rows(cells, accuracies, measured)),
        "## Time",
        f"Asking the advisor took {np.median(asked):.0f} s in the median and {max(asked):.0f} s at "
        f"most, compilation included; full fine-tuning {np.median(full):.0f} s in the median and "
        f"{max(full):.0f} s at most.",
        "![regret](advisor-regret.png)",
    ]
    (results / "advisor-regret.md").write_text("\n\n".join(parts) + "\n")
    judged = regrets(of(*JUDGING), accuracies, measured)
    _draw(judged, results / "advisor-regret.png")
    print(table(of(*JUDGING)))


def _policy_rows(
    found: dict[str, np.ndarray], at_most: dict[str, np.ndarray]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("policy", "regret", "interval", "more than the advisor", "interval", "worst", "at most")
    ]
    for name, values in found.items():
        more = values - found["advisor"]
        rows.append(
            (
                name,
                f"{values.mean():.2f}",
                _interval(values),
                "-" if name == "advisor" else f"{more.mean():+.2f}",
                _interval(more) if np.ptp(more) else "-",
                f"{values.max():.1f}",
                f"{at_most[name].mean():.2f}",
            )
        )
    return rows


def _interval(values: np.ndarray) -> str:
    low, high = t_interval(list(values))
    return f"{low:.2f} to {high:.2f}"


def _cell_rows(
    cells: list[Cell], accuracies: Accuracies, measured: dict[str, list[Measured]]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("cell", *STRATEGY.values(), "advisor", "likeness", "regret")]
    regret = regrets([[cell] for cell in cells], accuracies, measured)["advisor"]
    likeness = {True: "similar", False: "different", None: "unknown"}
    for cell, lost in zip(cells, regret, strict=True):
        seen = measured[cell.name]
        choices = collections.Counter(STRATEGY[one["reach"]] for one in seen)
        alike = collections.Counter(likeness[one["similar"]] for one in seen)
        rows.append(
            (
                cell.name,
                *(f"{mean:.1f}" for mean in accuracies[cell.name].mean(1)),
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
