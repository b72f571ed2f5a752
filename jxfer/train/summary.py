"""What a run says of itself: the start-up table, `summary.json`, and the best model as an entry."""

import collections
import dataclasses
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from jxfer import text, trees
from jxfer.data.sources import Splits
from jxfer.data.targets import Target
from jxfer.losses.adaptation import AdaptConfig
from jxfer.losses.regularise import RegulariseConfig
from jxfer.train import config as configs
from jxfer.train import flops
from jxfer.train.config import TrainConfig
from jxfer.train.metrics import Evaluation
from jxfer.train.phases import Course
from jxfer.train.state import Plan
from jxfer.train.step import traced_train_step
from jxfer.transfer.labels import FROZEN, LABELS, base
from jxfer.zoo.card import Card, Measurement
from jxfer.zoo.pretrained import Pretrained

WORK_COLUMNS = ("forward GFLOP", "backward GFLOP")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def print_start(
    config: TrainConfig,
    splits: Splits,
    pretrained: Pretrained,
    course: Course,
    target: Target | None = None,
) -> None:
    """The start-up table: what was loaded; each group's parameters, rate, memory, norms and work.

    The work is that of a step on images, without what a regulariser adds. `jxfer audit` tells what
    the compiled steps take: here nothing waits for the compiler.
    """
    model = pretrained.model
    test = f"{len(splits.test)} test" if splits.test is not None else "no test split"
    lines = [
        f"{model.architecture.name} through {model.stages[-1]}, {config.strategy.name}: "
        f"{len(splits.train)} train, {len(splits.val)} validation, {test}, "
        f"{len(splits.train.class_names)} classes; {course.steps} steps on "
        f"{jax.device_count()} device{'s' if jax.device_count() > 1 else ''}",
        f"weights: {pretrained.report}",
        "",
    ]
    if pretrained.fresh and pretrained.report.loaded:
        lines.insert(2, f"new in the backbone: {', '.join(pretrained.fresh)}")
    if target is not None:
        lines.insert(1, _adapts(config.adapt, target))
    columns = (
        "group",
        "parameters",
        "peak learning rate",
        "optimizer bytes",
        "norms",
        "statistics bytes",
        *WORK_COLUMNS,
    )
    rows: list[tuple[str, ...]] = [("phase", "steps", *columns)]
    for plan, end in zip(course.plans, course.ends, strict=True):
        like = course.like(end)
        memory, norms = optimizer_bytes(plan, like.opt_state), norms_by_label(plan)
        plain = dataclasses.replace(plan, regularise=RegulariseConfig())
        # As training calls it: a start traces its step once.
        fixed = plain.reference(pretrained.variables, config.seed), plan.rate_table
        work = flops.by_label(
            traced_train_step(plain), plan, like, config.batch_size // jax.device_count(), *fixed
        )
        peaks = plan.peaks
        for label, count in parameters_by_label(plan).items():
            if count:
                rate = "-" if label == FROZEN else f"{peaks[label]:.3g}"
                cells = (label, f"{count:,}", rate, f"{memory[label]:,}", *norms[label].cells())
                gigaflops = (f"{work.get((label, pass_), 0) / 1e9:.4g}" for pass_ in (False, True))
                rows.append((plan.phase.name, str(plan.total_steps), *cells, *gigaflops))
    print("\n".join(lines) + text.table(rows), file=sys.stderr)


def _adapts(adapt: AdaptConfig, target: Target) -> str:
    test = f"{len(target.test)} test" if target.test is not None else "no test split"
    return (
        f"adapts by {adapt.method} to {adapt.target}: {len(target.train)} images without labels, "
        f"{len(target.val)} validation, {test}"
    )


def parameters_by_label(plan: Plan) -> dict[str, int]:
    """Number of parameters under each label, those that do not occur in the plan left out."""
    labels = trees.flatten(plan.labels)
    order = (FROZEN, *plan.peaks)
    counts = {label: 0 for label in order if label in labels.values()}
    for path, leaf in trees.flatten(plan.shapes).items():
        counts[labels[path]] += int(np.prod(leaf.shape))
    return counts


def optimizer_bytes(plan: Plan, opt_state: optax.OptState) -> dict[str, int]:
    """Bytes of optimizer state under each label of the plan, whatever the form of the transform.

    What is kept for a parameter, which is named by its path, counts under the parameter's label;
    the counters of a group under the group's own.

    Args:
      opt_state: of the plan; it may hold shapes.
    """
    labels = trees.flatten(plan.labels)
    memory = dict.fromkeys(parameters_by_label(plan), 0)
    for keys, leaf in jax.tree_util.tree_flatten_with_path(opt_state)[0]:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        ends = ("/".join(names[i:]) for i in range(len(names)))
        label = next((labels[end] for end in ends if end in labels), names[0] if names else None)
        if label in memory:
            memory[label] += leaf.size * leaf.dtype.itemsize
    return memory


@dataclasses.dataclass(frozen=True)
class Norms:
    """The norm layers of a group."""

    modes: dict[str, int]
    """How many run on their stored averages (frozen), by the batch under frozen parameters (adapt),
    and by the batch (train); those that do not occur left out."""
    bytes: int
    """Of their running means and variances."""

    def cells(self) -> tuple[str, str]:
        """For a table."""
        counts = ", ".join(f"{count} {mode}" for mode, count in self.modes.items())
        return counts or "-", f"{self.bytes:,}"


def norms_by_label(plan: Plan) -> dict[str, Norms]:
    """The norm layers under each label of the plan; a layer of two labels is where it moves."""
    statistics = trees.flatten(plan.model.shapes()["batch_stats"])
    labels: dict[str, str] = {}
    for path, label in trees.flatten(plan.labels).items():
        layer = path.rpartition("/")[0]
        if labels.get(layer, FROZEN) == FROZEN:
            labels[layer] = label
    modes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    memory: collections.Counter[str] = collections.Counter()
    for path in plan.model.norm_paths():
        batch = "adapt" if labels[path] == FROZEN else "train"
        modes[labels[path]][batch if path in plan.train_layers else "frozen"] += 1
        for name in ("mean", "var"):
            leaf = statistics[f"{path}/{name}"]
            memory[labels[path]] += leaf.size * leaf.dtype.itemsize
    return {label: Norms(dict(modes[label]), memory[label]) for label in parameters_by_label(plan)}


def _by_base(figures: dict[str, int]) -> dict[str, int]:
    """Added up over stages: `low_lr/stage1` and `low_lr/stage2` are `low_lr`."""
    total = dict.fromkeys(LABELS, 0)
    for label, figure in figures.items():
        total[base(label)] += figure
    return total


def build(
    splits: Splits,
    pretrained: Pretrained,
    strategy: str,
    course: Course,
    *,
    best: dict[str, Any],
    steps: int,
    test: Evaluation | None,
    adapt: dict[str, Any] | None,
    frozen_unchanged: Sequence[bool | None],
    commit: str | None,
) -> dict[str, Any]:
    """`summary.json`: nothing in it depends on the clock.

    Under `phases` stand the figures of each; `parameters` and `optimizer_state_bytes` beside it are
    those of the last phase. `frozen_unchanged` holds for all phases, None where none froze a leaf.

    Args:
      steps: that were taken; fewer than planned where the run stopped early, in its last phase.
      test: of the chosen model; in a run that adapts, on the target.
      adapt: what a run that adapts says besides, from `judge.Verdict`.
      frozen_unchanged: of each phase.
    """
    phases = [
        {
            "name": plan.phase.name,
            "steps": min(end, steps) - (end - plan.total_steps),
            "parameters": parameters_by_label(plan),
            "optimizer_state_bytes": optimizer_bytes(plan, course.like(end).opt_state),
            "frozen_unchanged": unchanged,
        }
        for plan, end, unchanged in zip(course.plans, course.ends, frozen_unchanged, strict=True)
    ]
    told = [unchanged for unchanged in frozen_unchanged if unchanged is not None]
    report = pretrained.report
    return {
        "strategy": strategy,
        "phases": phases,
        "classes": list(splits.train.class_names),
        "train_examples": len(splits.train),
        "val_accuracy": best["correct"] / len(splits.val),
        "val_correct": best["correct"],
        "val_examples": len(splits.val),
        "test_accuracy": test.accuracy if test else None,
        "test_correct": test.correct if test else None,
        "test_examples": test.examples if test else None,
        "test_top5_accuracy": test.top5_accuracy if test else None,
        "test_macro_f1": test.macro_f1 if test else None,
        "test_loss": test.loss if test else None,
        "adapt": adapt,
        "best_step": best["step"],
        "steps": steps,
        "stopped_early": steps < course.steps,
        "loaded": list(report.loaded),
        "reinitialised": list(report.reinitialised),
        "dropped": list(report.dropped),
        "skipped_images": list(splits.skipped),
        "commit": commit,
        "parameters": _by_base(parameters_by_label(course.plans[-1])),
        "optimizer_state_bytes": _by_base(
            optimizer_bytes(course.plans[-1], course.like(course.steps).opt_state)
        ),
        "frozen_unchanged": all(told) if told else None,
        "devices": jax.device_count(),
        "hosts": jax.process_count(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def timing(seconds: dict[str, float], total: float, steps: int, batch_size: int) -> dict[str, Any]:
    """`timing.json`: of this process, so of fewer steps than the run's if it resumed.

    Args:
      seconds: `compile` until the first step of each phase is done, its batch included; after that
        `data_wait` while the device waits for images and `step` for the rest; `eval`; `prefix`.
    """
    busy = sum(seconds[part] for part in ("compile", "data_wait", "step", "prefix"))
    looping = seconds["data_wait"] + seconds["step"]
    return {
        "seconds": seconds | {"total": total},
        "steps": steps,
        "examples_per_second": steps * batch_size / busy if busy else None,
        "data_wait_share": seconds["data_wait"] / looping if looping else None,
    }


def model_card(
    name: str, config: TrainConfig, pretrained: Pretrained, summary: dict[str, Any]
) -> Card:
    """The card of a run's best model by validation."""
    model = pretrained.model
    parent = pretrained.card if pretrained.report.loaded else None
    measured = []
    for split in ("val", "test"):
        correct, n = summary[f"{split}_correct"], summary[f"{split}_examples"]
        # AdaBN's statistics are those of the target: the model that is saved is not the one that
        # was validated on the source.
        if n and (split == "test" or config.adapt.method != "adabn"):
            data = (split == "test" and config.adapt.target) or config.data.source
            measured.append(Measurement(data, split, correct / n, correct, n))
    return Card(
        name=name,
        arch=model.architecture.name,
        class_names=tuple(summary["classes"]),
        preprocessing=pretrained.preprocessing,
        head=model.head,
        through=None if model.stages == model.architecture.stages else model.stages[-1],
        batchnorm="folded" if pretrained.folded else "standard",
        dataset=config.data.source,
        licence=parent.licence if parent else "unknown",
        parents=(parent.as_ancestor(), *parent.parents) if parent else (),
        measured=tuple(measured),
        strategy=config.strategy.name,
        config=configs.to_dict(config),
        seed=config.seed,
        command=shlex.join(sys.argv),
        commit=summary["commit"],
    )
