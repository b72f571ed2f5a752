"""What a run says of itself: the start-up table, `summary.json`, and the best model as an entry."""

import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from jxfer import text, trees
from jxfer.data.sources import Splits
from jxfer.train import config as configs
from jxfer.train.config import TrainConfig
from jxfer.train.metrics import Evaluation
from jxfer.train.state import Plan, TrainState
from jxfer.transfer.labels import FROZEN, LABELS
from jxfer.zoo.card import Card, Measurement
from jxfer.zoo.pretrained import Pretrained

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def print_start(splits: Splits, pretrained: Pretrained, plan: Plan, initial: TrainState) -> None:
    """The start-up table: what was loaded; each group's parameters, rate and optimizer bytes."""
    model = plan.model
    test = f"{len(splits.test)} test" if splits.test is not None else "no test split"
    lines = [
        f"{model.architecture.name} through {model.stages[-1]}, {plan.phase.name}: "
        f"{len(splits.train)} train, {len(splits.val)} validation, {test}, "
        f"{len(splits.train.class_names)} classes; {plan.total_steps} steps on "
        f"{jax.device_count()} device{'s' if jax.device_count() > 1 else ''}",
        f"weights: {pretrained.report}",
        "",
    ]
    if pretrained.fresh and pretrained.report.loaded:
        lines.insert(2, f"new in the backbone: {', '.join(pretrained.fresh)}")
    counts, memory = parameters_by_label(plan), optimizer_bytes(initial)
    peaks = plan.optimizer.peaks()
    rows = [("group", "parameters", "peak learning rate", "optimizer bytes")]
    for label in LABELS:
        if counts[label]:
            rate = "-" if label == FROZEN else f"{peaks[label]:.3g}"
            rows.append((label, f"{counts[label]:,}", rate, f"{memory.get(label, 0):,}"))
    print("\n".join(lines) + text.table(rows), file=sys.stderr)


def parameters_by_label(plan: Plan) -> dict[str, int]:
    """Number of parameters under each label."""
    labels = trees.flatten(plan.labels)
    counts = dict.fromkeys(LABELS, 0)
    for path, leaf in trees.flatten(plan.model.shapes()["params"]).items():
        counts[labels[path]] += int(np.prod(leaf.shape))
    return counts


def optimizer_bytes(initial: TrainState) -> dict[str, int]:
    """Bytes of optimizer state under each label."""
    states = initial.opt_state.inner_states
    return {
        label: sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        for label, state in states.items()
    }


def build(
    splits: Splits,
    pretrained: Pretrained,
    plan: Plan,
    initial: TrainState,
    final: TrainState,
    *,
    best: dict[str, int],
    test: Evaluation | None,
    commit: str | None,
) -> dict[str, Any]:
    """`summary.json`: nothing in it depends on the clock."""
    before, after = plan.frozen_leaves(initial), plan.frozen_leaves(final)
    unchanged = all(np.array_equal(before[path], after[path]) for path in before)
    report = pretrained.report
    return {
        "strategy": plan.phase.name,
        "phases": [plan.phase.name],
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
        "best_step": best["step"],
        "steps": int(final.step),
        "loaded": list(report.loaded),
        "reinitialised": list(report.reinitialised),
        "dropped": list(report.dropped),
        "skipped_images": list(splits.skipped),
        "commit": commit,
        "parameters": parameters_by_label(plan),
        "optimizer_state_bytes": optimizer_bytes(initial),
        "frozen_unchanged": unchanged if before else None,
        "devices": jax.device_count(),
        "hosts": jax.process_count(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
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
        if n:
            measured.append(Measurement(config.data.source, split, correct / n, correct, n))
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


def commit() -> str | None:
    """The git commit of the code, with `+changes` where files differ from it; None outside git."""
    here = pathlib.Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "."],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
