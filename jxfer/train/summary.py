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
from rich.console import Console

from jxfer import trees
from jxfer.data.sources import Splits
from jxfer.train import config as configs
from jxfer.train.config import TrainConfig
from jxfer.train.metrics import Evaluation
from jxfer.train.state import Setup, TrainState
from jxfer.train.writers import table
from jxfer.transfer.labels import FROZEN, LABELS
from jxfer.trees import Tree
from jxfer.zoo import store
from jxfer.zoo.card import Card, Measurement

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def print_start(
    config: TrainConfig, splits: Splits, setup: Setup, initial: TrainState, console: Console
) -> None:
    """The start-up table: what was loaded; each group's parameters, rate and optimizer bytes."""
    model, report = setup.pretrained.model, setup.pretrained.report
    test = f"{len(splits.test)} test" if splits.test is not None else "no test split"
    console.print(
        f"{model.architecture.name} through {model.stages[-1]}, {config.strategy.name}: "
        f"{len(splits.train)} train, {len(splits.val)} validation, {test}; "
        f"{len(splits.train.class_names)} classes; {report}",
        highlight=False,
    )
    counts, memory = parameters_by_label(setup), optimizer_bytes(setup, initial)
    peaks = config.optimizer.peaks()
    rows = [
        [
            label,
            f"{counts[label]:,}",
            "-" if label == FROZEN else f"{peaks[label]:.3g}",
            f"{memory.get(label, 0):,}",
        ]
        for label in LABELS
        if counts[label]
    ]
    columns = ["group", "parameters", "peak learning rate", "optimizer bytes"]
    table("", columns, rows, console)


def parameters_by_label(setup: Setup) -> dict[str, int]:
    """Number of parameters under each label."""
    labels = trees.flatten(setup.labels)
    counts = dict.fromkeys(LABELS, 0)
    for path, leaf in trees.flatten(setup.pretrained.variables["params"]).items():
        counts[labels[path]] += int(np.prod(leaf.shape))
    return counts


def optimizer_bytes(setup: Setup, initial: TrainState) -> dict[str, int]:
    """Bytes of optimizer state under each label."""
    states = initial.opt_state.inner_states
    return {
        label: sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        for label, state in states.items()
    }


def build(
    config: TrainConfig,
    splits: Splits,
    setup: Setup,
    initial: TrainState,
    final: TrainState,
    best_step: int,
    val_correct: int,
    test: Evaluation | None,
) -> dict[str, Any]:
    """`summary.json`: nothing in it depends on the clock."""
    before = setup.frozen_leaves(initial.params, initial.batch_stats)
    after = setup.frozen_leaves(final.params, final.batch_stats)
    unchanged = all(np.array_equal(before[path], after[path]) for path in before)
    report = setup.pretrained.report
    return {
        "strategy": config.strategy.name,
        "phases": [setup.phase.name],
        "classes": list(splits.train.class_names),
        "train_examples": len(splits.train),
        "val_accuracy": val_correct / len(splits.val),
        "val_correct": val_correct,
        "val_examples": len(splits.val),
        "test_accuracy": test.accuracy if test else None,
        "test_correct": test.correct if test else None,
        "test_examples": test.examples if test else None,
        "test_top5_accuracy": test.top5_accuracy if test else None,
        "test_macro_f1": test.macro_f1 if test else None,
        "test_loss": test.loss if test else None,
        "best_step": best_step,
        "steps": int(final.step),
        "loaded": list(report.loaded),
        "reinitialised": list(report.reinitialised),
        "dropped": list(report.dropped),
        "skipped_images": list(splits.skipped),
        "commit": commit(),
        "parameters": parameters_by_label(setup),
        "optimizer_state_bytes": optimizer_bytes(setup, initial),
        "frozen_unchanged": unchanged if before else None,
        "devices": jax.device_count(),
        "hosts": jax.process_count(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def save_model(
    folder: pathlib.Path,
    config: TrainConfig,
    splits: Splits,
    setup: Setup,
    variables: Tree,
    summary: dict[str, Any],
) -> None:
    """The best model by validation as a zoo entry."""
    pretrained, model = setup.pretrained, setup.pretrained.model
    parent = pretrained.card if pretrained.report.loaded else None
    measured = []
    for split in ("val", "test"):
        correct, n = summary[f"{split}_correct"], summary[f"{split}_examples"]
        if n:
            measured.append(Measurement(config.data.source, split, correct / n, correct, n))
    card = Card(
        name=folder.parent.name,
        arch=model.architecture.name,
        class_names=splits.train.class_names,
        preprocessing=pretrained.preprocessing,
        through=None if model.stages == model.architecture.stages else model.stages[-1],
        batchnorm=parent.batchnorm if parent else "standard",
        dataset=config.data.source,
        licence=parent.licence if parent else "unknown",
        parent=parent.name if parent else None,
        measured=tuple(measured),
        strategy=config.strategy.name,
        config=configs.to_dict(config),
        seed=config.seed,
        command=shlex.join(sys.argv),
        commit=summary["commit"],
    )
    store.save(folder, card, variables, overwrite=True)


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
