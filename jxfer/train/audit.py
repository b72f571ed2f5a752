"""What a plan's step costs and whether it leaks, held against the least that it could do.

After `summary` in the flow. The plan's own step and that of `least` are compiled for the devices
that are there, measured, and run a few times on the same random images. Nothing is trained.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jxfer.train import flops, leaks, least, parallel, step, summary
from jxfer.train.leaks import Group, Program
from jxfer.train.state import Plan, TrainState
from jxfer.trees import Tree

STEPS = 3
"""That are taken. In the first momentum is still zero, and Adam sees no more than signs."""


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
    """Audits a phase. Compiles two programs and takes `STEPS` steps of each.

    Args:
      plan: of the phase.
      variables: to start from, on the host; only their place counts, so random ones will do.
      per_device_batch: images a step on each device, at the size of the plan's preprocessing.
    """
    batch = _random_batch(plan, per_device_batch)
    start = plan.initial_state(variables)
    ideal = dataclasses.replace(start, opt_state=least.initial_opt_state(plan, start.params))
    train_step, least_step = step.make_train_step(plan), least.make_least_step(plan)
    program, after = measure(train_step, start, batch, lambda _, result: result[0])
    least_program, right = measure(least_step, ideal, batch, least.advance)
    groups = by_group(plan, start, per_device_batch)
    least_work = flops.by_label(least_step, plan, ideal, per_device_batch)
    costs = leaks.of_costs(program, least_program, groups, least_work)
    found = (*costs, *leaks.of_states(plan, start, after, right))
    return Audit(plan.phase.name, groups, program, least_program, found)


def measure(
    function: Callable[..., Any],
    state: TrainState,
    batch: dict[str, np.ndarray],
    advance: Callable[[TrainState, Any], TrainState],
) -> tuple[Program, TrainState]:
    """Compiles a step for all devices and takes `STEPS` of them, each on the same batch.

    Args:
      function: `function(state, batch)`, for one device.
      state: on the host.
      batch: over all devices.
      advance: from a state and what `function` returned, on the host, to the next state.

    Returns:
      (the program's figures; the last state, on the host).
    """
    (sharded,) = parallel.shard([batch])
    mapped: Any = parallel.compile_step(function)
    compiled = mapped.lower(parallel.replicate(state), sharded).compile()
    program = Program(
        flops=compiled.cost_analysis()["flops"],
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
        optimizer_bytes=_bytes(state.opt_state),
    )
    for _ in range(STEPS):
        state = advance(state, parallel.fetch(compiled(parallel.replicate(state), sharded)))
    return program, state


def _random_batch(plan: Plan, per_device_batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n, size = per_device_batch * jax.local_device_count(), plan.preprocessing.size
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    labels = rng.integers(0, plan.model.num_classes, n, np.int32)
    return {"image": images, "label": labels}


def by_group(plan: Plan, start: TrainState, per_device_batch: int) -> tuple[Group, ...]:
    """The groups of a phase, frozen ones first; traced, not compiled."""
    work = flops.by_label(step.make_train_step(plan), plan, start, per_device_batch)
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


def _bytes(opt_state: optax.OptState) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(opt_state))
