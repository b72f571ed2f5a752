"""What counts as a leak: a plan's step and its state, held against those of the least step.

Before `audit` in the flow, which measures both. Each rule returns a line for each leak.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence

import jax
import numpy as np
import optax

from jxfer import trees
from jxfer.train import flops, least, summary
from jxfer.train.state import Plan, TrainState
from jxfer.transfer.labels import FROZEN
from jxfer.trees import Tree

FLOPS_TOLERANCE = 0.02
"""The step counts its correct answers and pads where the least does not; a backward pass that comes
back costs far more."""
MEMORY_TOLERANCE = 0.25
"""Of the temporary memory, which follows the compiler's choices: less is no sign of a leak."""
UPDATE_TOLERANCE = 0.01
"""Of the norm of what the steps change in a group, in its optimizer state, or in a statistic. Two
programs round differently; the traps are off by factors. AdamW's weight decay is usually below."""
_ROUNDING = float(np.finfo(np.float32).eps)  # of a norm: what rounding its leaves may change
_NOISE = 1e-5  # of all moments' norm: below, a gradient is made of rounding errors

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


def of_costs(
    program: Program, least_program: Program, groups: Collection[Group], least_work: flops.Work
) -> list[str]:
    """Of a step beside the least.

    Args:
      groups: of the step.
      least_work: `flops.by_label` of the least step.
    """
    return [
        *_work_leaks(program, least_program, groups, least_work),
        *_memory_leaks(program, least_program, groups),
    ]


def of_states(plan: Plan, start: TrainState, after: TrainState, right: TrainState) -> list[str]:
    """Of the state after some steps.

    Args:
      start: before them.
      right: after as many least steps; its `opt_state` has a form of its own.
    """
    # Where something moves that must not, all that trains moves otherwise as well.
    return _frozen_leaks(plan, start, after) or _learning_leaks(plan, start, after, right)


def _work_leaks(
    program: Program, least_program: Program, groups: Collection[Group], least_work: flops.Work
) -> list[str]:
    ratio = program.flops / least_program.flops
    if ratio > 1 + FLOPS_TOLERANCE:
        return [
            f"the step takes {program.flops:.4g} FLOPs, {ratio:.2f} times the least, "
            f"{least_program.flops:.4g}: it computes gradients that nothing needs"
        ]
    return [
        f"the backward pass of {group.label} takes {group.backward_flops:.4g} FLOPs, the least "
        f"{wanted:.4g}: it computes gradients that nothing needs"
        for group in groups
        if group.backward_flops > (wanted := least_work.get((group.label, True), 0))
    ]


def _memory_leaks(program: Program, least_program: Program, groups: Collection[Group]) -> list[str]:
    if kept := sum(group.optimizer_bytes for group in groups if group.label == FROZEN):
        return [f"the optimizer keeps {kept:,} bytes for frozen parameters"]
    if program.optimizer_bytes > least_program.optimizer_bytes:
        return [
            f"the optimizer keeps {program.optimizer_bytes:,} bytes, the least is "
            f"{least_program.optimizer_bytes:,}"
        ]
    too_much = program.temporary_bytes > (1 + MEMORY_TOLERANCE) * least_program.temporary_bytes
    if too_much and program.flops <= (1 + FLOPS_TOLERANCE) * least_program.flops:
        return [
            f"the step takes {program.temporary_bytes:,} bytes of temporary memory, the least is "
            f"{least_program.temporary_bytes:,}"
        ]
    return []


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
        path: not trees.same_bits(leaf, flat[path]) for path, leaf in trees.flatten(before).items()
    }


def _learning_leaks(
    plan: Plan, start: TrainState, after: TrainState, right: TrainState
) -> list[str]:
    """What trains must move as the least steps move it."""
    before, found, wanted = (trees.flatten(state.params) for state in (start, after, right))
    memory, wanted_memory = _moments(after.opt_state), _moments(right.opt_state)
    noise, rates = _noise(wanted_memory), least.peaks(plan)
    leaks = []
    for label, paths in least.groups(plan).items():
        if label == FROZEN:
            continue
        # Adam makes full steps of gradients that are rounding errors alone.
        telling = [path for path in paths if path not in noise]
        size, right_size, agree = _compare(before, found, wanted, telling)
        still = [path for path in telling if _stands_still(before, found, wanted, path)]
        if not rates[label]:
            leaks.append(
                f"{label} learns at a rate of 0: it moves nothing and costs its gradients all the "
                "same; freeze it"
            )
        elif not agree:
            ratio = f"{size / right_size:.3g} of the right one in norm" if right_size else "too big"
            leaks.append(f"the update of {label} is wrong: {ratio}")
        elif still:
            leaks.append(f"the update of {label} leaves out {_some(still)}")
        elif not _remembers(memory, wanted_memory, paths):
            leaks.append(f"the optimizer keeps wrong moments of {label}'s gradients")
    if _counts(after.opt_state) - _counts(right.opt_state):
        leaks.append("the optimizer miscounts its steps")
    return leaks + _statistics_leaks(plan, start, after, right)


def _statistics_leaks(
    plan: Plan, start: TrainState, after: TrainState, right: TrainState
) -> list[str]:
    before, found, wanted = (trees.flatten(state.batch_stats) for state in (start, after, right))
    paths = sorted(least.moving_statistics(plan))
    wrong = [path for path in paths if not _compare(before, found, wanted, [path])[2]]
    return [f"statistics of BatchNorm do not follow the batch: {_some(wrong)}"] if wrong else []


def _compare(
    before: Leaves, found: Leaves, right: Leaves, paths: Sequence[str]
) -> tuple[float, float, bool]:
    """(norm of the change that was found, that of the right one, whether the two agree)."""
    start = _joined(before, paths)
    change, right_change = _joined(found, paths) - start, _joined(right, paths) - start
    size, right_size = float(np.linalg.norm(change)), float(np.linalg.norm(right_change))
    tolerance = UPDATE_TOLERANCE * right_size + _ROUNDING * np.linalg.norm(start)
    return size, right_size, bool(np.linalg.norm(change - right_change) <= tolerance)


def _noise(right: dict[str, Leaves]) -> frozenset[str]:
    """Parameters whose gradients are rounding errors, as of a bias before a norm."""
    return frozenset(
        path
        for leaves in (right.get(name, {}) for name in ("trace", "mu"))
        for floor in [_NOISE * _norm(leaves)]
        for path, leaf in leaves.items()
        if np.linalg.norm(leaf) <= floor
    )


def _stands_still(before: Leaves, found: Leaves, right: Leaves, path: str) -> bool:
    return (
        trees.same_bits(before[path], found[path]) and not _compare(before, found, right, [path])[2]
    )


def _remembers(found: dict[str, Leaves], right: dict[str, Leaves], paths: Sequence[str]) -> bool:
    """Whether the moments of these parameters are right: momentum, or both of Adam's."""
    for name, leaves in right.items():
        own = [path for path in paths if path in leaves]
        if any(path not in found.get(name, {}) for path in own):
            return False
        if own:
            wanted = _joined(leaves, own)
            error = np.linalg.norm(_joined(found[name], own) - wanted)
            if not error <= UPDATE_TOLERANCE * np.linalg.norm(wanted) + _NOISE * _norm(leaves):
                return False
    return True


def _norm(leaves: Leaves) -> float:
    return math.hypot(*(float(np.linalg.norm(leaf)) for leaf in leaves.values()))


def _joined(leaves: Leaves, paths: Sequence[str]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.ravel(leaves[path]) for path in paths)])


def _moments(opt_state: optax.OptState) -> dict[str, Leaves]:
    """By the name of the moment, such as `trace`, and the path of the parameter."""
    moments: dict[str, Leaves] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(opt_state)[0]:
        names = [str(getattr(key, "name", getattr(key, "key", ""))) for key in keys]
        fields = [i for i, key in enumerate(keys) if isinstance(key, jax.tree_util.GetAttrKey)]
        if fields and fields[-1] + 1 < len(keys):
            path = "/".join(names[fields[-1] + 1 :])
            moments.setdefault(names[fields[-1]], {})[path] = np.asarray(leaf)
    return moments


def _counts(opt_state: optax.OptState) -> set[int]:
    leaves = map(np.asarray, jax.tree.leaves(opt_state))
    return {int(leaf) for leaf in leaves if leaf.ndim == 0 and leaf.dtype.kind == "i"}


def _some(paths: list[str]) -> str:
    shown = ", ".join(paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"
