"""Where the output of a frozen prefix is kept: what each phase caches, or why it caches nothing.

After `state`, before `prefix`, which computes and keeps it. Where a phase freezes the network from
its first stage on, with the norms on their stored averages, the output of that prefix is a fixed
function of the pixels. Keeping it pays where the same pixels come again.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jxfer import machine
from jxfer.data.sources import Source, Splits
from jxfer.errors import UserError
from jxfer.train.config import TrainConfig
from jxfer.train.feature_store import Form
from jxfer.train.state import Plan


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is cached in a phase, or why nothing is."""

    plan: Plan
    output: str | None
    """The stage, or `pooled`, whose output is kept; None: nothing is."""
    reason: str = ""
    """Why nothing is."""
    train: Form | None = None
    val: Form | None = None
    target: Form | None = None
    """Of the unlabelled images, where a method of adaptation acts."""
    views: int = 1
    """Views of each training example."""
    passes: float = 0.0
    """Of the phase over the training split, or over the target where that is larger."""

    @property
    def bytes(self) -> int:
        return sum(form.bytes for form in (self.train, self.val, self.target) if form)

    def describe(self) -> str:
        """One line for the start-up table."""
        if self.output is None:
            return f"no prefix cache in {self.plan.phase.name}: {self.reason}"
        whole, prefix = (_forward_flops(self.plan, name) for name in ("logits", self.output))
        return (
            f"prefix cache in {self.plan.phase.name}: the output of {self.output}, "
            f"{self.bytes / 1e6:,.1f} MB; {self.views} of {self.passes:.3g} passes over the "
            f"training split decode images and run the frozen part, {prefix / whole:.0%} of the "
            "forward pass"
        )


def choose_all(
    plans: Sequence[Plan], config: TrainConfig, splits: Splits, target: Source | None = None
) -> list[Choice]:
    """What each phase caches.

    Args:
      target: the unlabelled images of a run that adapts.

    Raises:
      UserError: --cache.mode asks for a cache where there can be none.
    """
    choices = [choose(plan, config, splits, target) for plan in plans]
    if config.cache.is_explicit and not any(choice.output for choice in choices):
        raise UserError(
            f"--cache.mode {config.cache.mode} under {config.strategy.name}: {choices[0].reason}; "
            "leave it out"
        )
    return choices


def choose(plan: Plan, config: TrainConfig, splits: Splits, target: Source | None = None) -> Choice:
    """Decides what a phase caches, from what is known before it starts.

    Args:
      target: see `choose_all`.

    Raises:
      UserError: --cache.mode asks for a cache, and the prefix that the phase freezes can have none.
    """
    cache, views = config.cache, config.augment.distinct_views
    most = len(splits.train)
    if target is not None and plan.adaptation.acts:
        most = max(most, len(target))
    passes = plan.total_steps * config.batch_size / most
    choice = functools.partial(Choice, plan, None)
    if cache.mode == "off":
        return choice("it is off")
    if plan.prefix is None:
        return choice("the first stage trains")
    refusal = ""
    if config.augment.mixes:
        refusal = "mixing makes new images each time"
    elif views is None:
        refusal = "each epoch draws new views; --augment.views K would repeat K of them"
    elif jax.process_count() > 1:
        refusal = "there are several hosts"
    elif not cache.is_explicit and passes < 2 * views:
        return choice("too few passes over the same pixels")
    if refusal and cache.is_explicit:
        raise UserError(f"--cache.mode {cache.mode}: {refusal}; leave it out")
    if refusal or views is None:
        return choice(refusal)
    size = plan.preprocessing.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shape = jax.eval_shape(_forward(plan, plan.prefix), plan.model.shapes(), image).shape[1:]
    unlabelled = None
    if target is not None and plan.adaptation.acts:
        unlabelled = Form(views * len(target), shape, cache.dtype)
    found = Choice(
        plan,
        plan.prefix,
        train=Form(views * len(splits.train), shape, cache.dtype),
        val=Form(len(splits.val), shape, cache.dtype),
        target=unlabelled,
        views=views,
        passes=passes,
    )
    needs = f"the features take {found.bytes / 1e9:.3g} GB, more than"
    if found.bytes > cache.max_bytes:
        if cache.is_explicit:
            raise UserError(
                f"{needs} --cache.max-gb {cache.max_gb:g}: raise it, or use --cache.mode off"
            )
        return choice(f"{needs} --cache.max-gb")
    # Of all memory, not of what is free just now: a resumed run must choose the same.
    if cache.mode == "auto" and found.bytes > machine.memory_bytes() / 2:
        return choice(f"{needs} half of this machine's memory; --cache.mode disk would keep them")
    return found


def _forward(plan: Plan, output: str) -> Any:
    return lambda variables, images: plan.model.apply(variables, images)[0][output]


def _forward_flops(plan: Plan, output: str) -> float:
    """Of one image, before XLA optimises; the ratio of two is what the cache saves."""
    size = plan.preprocessing.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    lowered = jax.jit(_forward(plan, output)).lower(plan.model.shapes(), image)
    cost = lowered.cost_analysis()
    assert cost is not None
    return float(cost["flops"])
