"""Whether a training step fits into memory, and the largest batch whose step does, by compiling.

After `audit` in the flow. Every size that is judged is compiled, and what counts is the compiled
program's own account of its memory; nothing is run. That account is close to a straight line in the
batch, so two programs predict the size and two more confirm it: the largest that fits and the next,
which does not.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jxfer.errors import UserError
from jxfer.train import memory, parallel
from jxfer.train.state import Plan
from jxfer.train.step import make_train_step
from jxfer.trees import Tree

_log = logging.getLogger("jxfer")

PREDICTED = 8
"""Programs after which a prediction is no longer trusted, and the rest is halved."""
CPU_ADVISED = 0.9
"""Of what is free, in advice on CPU: the next start will find some percent more or less of it."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """The largest batch that fits, and the next, which does not."""

    phase: str
    """The phase that decides."""
    batch_size: int
    """Over all devices."""
    bytes: int
    """Of its step: `memory.program_bytes`."""
    next_batch_size: int
    next_bytes: int | None
    """None: the compiler itself refused, for want of memory."""
    limit_bytes: int


def largest_batch(plans: Sequence[Plan], variables: Tree, batch_size: int, limit_bytes: int) -> Fit:
    """The largest batch whose step fits in every phase.

    Args:
      plans: of the phases, whose steps take images and no reference.
      variables: that they start from; only their shapes count.
      batch_size: over all devices, to begin with.
      limit_bytes: what a step may take; see `memory.limit_bytes`.

    Raises:
      UserError: not even an image on each device, and in each of its parts, fits.
    """
    unit = jax.device_count() * plans[0].accumulate
    found: Fit | None = None
    # What trains most takes most: after it each other phase costs one program, as a rule.
    for plan in sorted(plans, key=lambda plan: -len(plan.trainable)):

        def cost(units: int, plan: Plan = plan) -> float:
            return step_bytes(plan, variables, units * unit)

        start = batch_size // unit
        if found is not None:
            start = found.batch_size // unit
            if cost(start) <= limit_bytes:
                continue
        fits, next_bytes = search(cost, start, limit_bytes)
        units, size = fits
        if not units:
            raise UserError(
                f"--largest-batch: a step of {unit} images takes {_gigabytes(next_bytes)} in phase "
                f"{plan.phase.name}, and there are {_gigabytes(limit_bytes)}; set --remat or "
                "--accumulate, or take a smaller network or image"
            )
        found = Fit(
            phase=plan.phase.name,
            batch_size=units * unit,
            bytes=int(size),
            next_batch_size=(units + 1) * unit,
            next_bytes=int(next_bytes) if math.isfinite(next_bytes) else None,
            limit_bytes=limit_bytes,
        )
    assert found is not None
    return found


def search(
    cost: Callable[[int], float], start: int, limit: float
) -> tuple[tuple[int, float], float]:
    """The largest number that costs no more than the limit, where cost grows with the number.

    Args:
      cost: of a number from 1 on; inf where it cannot be told. Called once for each.
      start: the first number that is tried.

    Returns:
      ((number, its cost), the cost of the next number, which is above the limit). The number is 0,
      and its cost too, where that of 1 is above.
    """
    known: dict[int, float] = {}
    low, high = 0, 0  # the largest that is known to fit; the smallest known not to, 0: none yet
    number = start
    while not high or high - low > 1:
        known[number] = cost(number)
        if known[number] <= limit:
            low = number
        else:
            high = number
        number = _next(known, limit, low, high)
    return (low, known.get(low, 0)), known[high]


def _next(known: dict[int, float], limit: float, low: int, high: int) -> int:
    told = [(number, cost) for number, cost in known.items() if math.isfinite(cost)]
    nearest = sorted(told, key=lambda point: abs(point[1] - limit))[:2]
    if len(nearest) == 2 and len(known) < PREDICTED:
        (a, cost_a), (b, cost_b) = sorted(nearest)
        if cost_b > cost_a:
            predicted = a + math.floor((limit - cost_a) * (b - a) / (cost_b - cost_a))
            return max(low + 1, min(predicted, high - 1) if high else predicted)
    return (low + high) // 2 if high else 2 * low


def check(step: Any, state: Any, batch: dict[str, Any], *fixed: Any, parts: int = 1) -> None:
    """Compares what a step needs with what there is. Compiles the step; its call does not again.

    On CPU too little is a warning where the step would fit if other processes ended.

    Args:
      step: from `parallel.compile_step`; the other arguments are those of its first call.
      batch: leaves [devices, images, ...].
      parts: that each device takes its images in.

    Raises:
      UserError: there is too little; with the batch size that fits.
    """
    limit = memory.limit_bytes()
    if limit is None:
        kind = jax.local_devices()[0].device_kind
        _log.warning("%s does not tell how much memory it has: a step may not fit", kind)
        return
    compiled = step.lower(state, batch, *fixed).compile()
    needed = memory.program_bytes(compiled)
    if needed <= limit:
        return
    is_cpu = jax.local_devices()[0].platform == "cpu"
    told = (
        f"a step takes {_gigabytes(needed)} of memory, and {_gigabytes(limit)} "
        f"{'are free' if is_cpu else 'is what a device has'}"
    )
    if is_cpu and memory.could_fit(compiled):
        _log.warning(
            "%s; lower --batch-size (jxfer audit --largest-batch finds the largest that fits), or "
            "set --remat or --accumulate",
            told,
        )
        return
    images = batch["label"].shape[1]

    def cost(units: int) -> float:
        def resized(leaf: Any) -> jax.ShapeDtypeStruct:
            devices, count, *rest = leaf.shape
            return jax.ShapeDtypeStruct(
                (devices, count // images * units * parts, *rest), leaf.dtype
            )

        return _bytes(step, jax.tree.map(_shape, state), jax.tree.map(resized, batch), *fixed)

    advised = CPU_ADVISED * limit if is_cpu else limit
    (units, _), _ = search(cost, max(1, images // parts // 2), advised)
    fits = units * parts * jax.device_count()
    advice = f"--batch-size {fits} fits" if fits else "not even one image on each device fits"
    raise UserError(f"{told}; {advice}; or set --remat or --accumulate, in a new run folder")


def step_bytes(plan: Plan, variables: Tree, batch_size: int) -> float:
    """`memory.program_bytes` of a phase's step on images; inf where it cannot be compiled for that.

    Args:
      batch_size: over all devices, a multiple of their number times the plan's parts.
    """
    size, devices = plan.preprocessing.size, jax.local_device_count()
    each = batch_size // jax.device_count()
    batch = {
        "image": jax.ShapeDtypeStruct((each, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((each,), jnp.int32),
    }
    state = jax.eval_shape(plan.initial_state, variables)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((devices, *leaf.shape), leaf.dtype), (state, batch)
    )
    return _bytes(parallel.compile_step(make_train_step(plan), donate_state=True), *arguments)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _bytes(step: Any, *arguments: Any) -> float:
    try:
        return memory.program_bytes(step.lower(*arguments).compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if math.isfinite(count) else "more than there is"
