"""What a plan's step costs and whether it leaks, held against the least that it could do.

After `summary` in the flow. The plan's own step and that of `least` are compiled for the devices
that are there, measured, and run once on the same random images. Nothing is trained.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jxfer import trees
from jxfer.train import flops, least, parallel, step, summary
from jxfer.train.state import Plan, TrainState
from jxfer.transfer.labels import FROZEN
from jxfer.trees import Tree

FLOPS_TOLERANCE = 0.02
"""The step counts its correct answers and pads where the least does not; a backward pass that comes
back costs far more."""
UPDATE_TOLERANCE = 0.01
"""Of the norm of what a step changes in a group, or in a statistic. Two programs round differently;
the traps are off by factors."""
_ROUNDING = 1e-6  # of the parameters' norm: what rounding their sum with the update may change

Leaves = dict[str, np.ndarray]
"""By path."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, one device's part."""

    flops: float
    """As the compiler counts them. It counts the body of a loop once, on CPU those over the groups
    of a grouped convolution's weight gradient."""
    temporary_bytes: int
    """Memory beside arguments and results."""
    optimizer_bytes: int


@dataclasses.dataclass(frozen=True)
class Group:
    """A label's share of the plan."""

    label: str
    parameters: int
    optimizer_bytes: int
    norms: summary.Norms
    forward_flops: int
    """From `flops.by_label`, as the next."""
    backward_flops: int


@dataclasses.dataclass(frozen=True)
class Audit:
    """One phase."""

    phase: str
    groups: tuple[Group, ...]
    step: Program
    least: Program
    leaks: tuple[str, ...]
    """One line each; empty for a plan that is right."""


def audit(plan: Plan, variables: Tree, per_device_batch: int) -> Audit:
    """Audits a phase. Compiles two programs and runs each once.

    Args:
      plan: of the phase.
      variables: to start from, on the host; only their place counts, so random ones will do.
      per_device_batch: images a step on each device, at the size of the plan's preprocessing.
    """
    batch = _random_batch(plan, per_device_batch)
    start = plan.initial_state(variables)
    ideal = dataclasses.replace(start, opt_state=least.initial_opt_state(plan, start.params))
    train_step = step.make_train_step(plan)
    groups = by_group(plan, start, per_device_batch)
    program, (after, _) = measure(train_step, start, batch)
    least_program, (moved, averages, _, _) = measure(least.make_least_step(plan), ideal, batch)
    leaks = [
        *_flops_leaks(program, least_program),
        *_memory_leaks(groups),
        *_frozen_leaks(plan, start, after),
        *_update_leaks(plan, start, after, moved),
        *_statistics_leaks(start, after, averages),
    ]
    return Audit(plan.phase.name, groups, program, least_program, tuple(leaks))


def measure(
    function: Callable[..., Any], state: TrainState, batch: dict[str, np.ndarray]
) -> tuple[Program, Any]:
    """Compiles a step for all devices and runs it once.

    Args:
      function: `function(state, batch)`, for one device.
      state: on the host.
      batch: over all devices.

    Returns:
      (its figures; the first device's results, on the host).
    """
    (sharded,) = parallel.shard([batch])
    replicated = parallel.replicate(state)
    mapped: Any = parallel.compile_step(function)
    compiled = mapped.lower(replicated, sharded).compile()
    program = Program(
        flops=compiled.cost_analysis()["flops"],
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
        optimizer_bytes=_bytes(state.opt_state),
    )
    return program, parallel.fetch(compiled(replicated, sharded))


def _random_batch(plan: Plan, per_device_batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n, size = per_device_batch * jax.local_device_count(), plan.preprocessing.size
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    labels = rng.integers(0, plan.model.num_classes, n, np.int32)
    return {"image": images, "label": labels}


def by_group(plan: Plan, start: TrainState, per_device_batch: int) -> tuple[Group, ...]:
    """The groups of a phase, frozen ones first; traced, not compiled."""
    work = flops.by_label(plan, start, per_device_batch)
    memory = summary.optimizer_bytes(plan, start.opt_state)
    norms = summary.norms_by_label(plan)
    return tuple(
        Group(
            label=label,
            parameters=parameters,
            optimizer_bytes=memory[label],
            norms=norms[label],
            forward_flops=work.get((label, False), 0),
            backward_flops=work.get((label, True), 0),
        )
        for label, parameters in summary.parameters_by_label(plan).items()
    )


def _flops_leaks(program: Program, least_program: Program) -> list[str]:
    ratio = program.flops / least_program.flops
    if ratio <= 1 + FLOPS_TOLERANCE:
        return []
    return [
        f"the step takes {program.flops:.4g} FLOPs, {ratio:.2f} times the least, "
        f"{least_program.flops:.4g}: it computes gradients that nothing needs"
    ]


def _memory_leaks(groups: Collection[Group]) -> list[str]:
    kept = sum(group.optimizer_bytes for group in groups if group.label == FROZEN)
    return [f"the optimizer keeps {kept:,} bytes for frozen parameters"] if kept else []


def _frozen_leaks(plan: Plan, start: TrainState, after: TrainState) -> list[str]:
    """What must not move is compared bit for bit."""
    labels, moves = trees.flatten(plan.labels), least.moving_statistics(plan)
    moved = [
        path
        for path, leaf in _changed(start.params, after.params).items()
        if labels[path] == FROZEN and leaf
    ]
    drifted = [
        path
        for path, leaf in _changed(start.batch_stats, after.batch_stats).items()
        if path not in moves and leaf
    ]
    return [
        f"{what} move: {_some(paths)}"
        for what, paths in (
            ("frozen parameters", moved),
            ("statistics of BatchNorm that should stay", drifted),
        )
        if paths
    ]


def _changed(before: Tree, after: Tree) -> dict[str, bool]:
    flat = trees.flatten(after)
    return {
        path: not np.array_equal(np.asarray(leaf), flat[path])
        for path, leaf in trees.flatten(before).items()
    }


def _update_leaks(plan: Plan, start: TrainState, after: TrainState, moved: Leaves) -> list[str]:
    """What trains must move as the least step moves it."""
    before, found = trees.flatten(start.params), trees.flatten(after.params)
    leaks = []
    for label, paths in least.groups(plan).items():
        if label == FROZEN:
            continue
        size, right_size, agree = _compare(before, found, moved, paths)
        if not right_size:
            leaks.append(
                f"{label} learns at a rate of 0: it moves nothing and costs its gradients all the "
                "same; freeze it"
            )
        elif not agree:
            ratio = size / right_size
            leaks.append(f"the update of {label} is wrong: {ratio:.3g} of the right one in norm")
    return leaks


def _statistics_leaks(start: TrainState, after: TrainState, averages: Leaves) -> list[str]:
    before, found = trees.flatten(start.batch_stats), trees.flatten(after.batch_stats)
    wrong = [path for path in averages if not _compare(before, found, averages, [path])[2]]
    return [f"statistics of BatchNorm do not follow the batch: {_some(wrong)}"] if wrong else []


def _compare(
    before: Leaves, found: Leaves, right: Leaves, paths: Sequence[str]
) -> tuple[float, float, bool]:
    """(norm of the change that was found, that of the right one, whether the two agree)."""

    def joined(leaves: Leaves) -> np.ndarray:
        return np.concatenate([np.ravel(leaves[path]) for path in paths]).astype(np.float64)

    start = joined(before)
    change, right_change = joined(found) - start, joined(right) - start
    size, right_size = float(np.linalg.norm(change)), float(np.linalg.norm(right_change))
    tolerance = UPDATE_TOLERANCE * right_size + _ROUNDING * np.linalg.norm(start)
    return size, right_size, bool(np.linalg.norm(change - right_change) <= tolerance)


def _bytes(opt_state: optax.OptState) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(opt_state))


def _some(paths: list[str]) -> str:
    shown = ", ".join(paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"
