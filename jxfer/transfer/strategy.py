"""A strategy: which part of the network trains. A pure function from (stages, options) to phases.

After `labels` in the flow.

| strategy | frozen | low_lr | head |
|---|---|---|---|
| `scratch` | | | everything, from random weights |
| `linear_probe` | the backbone | | the head |
| `partial` | stem .. `freeze_through` | the stages above it | the head |
| `full` | | the backbone | the head |

Parts of the backbone that hold new values take the head's full rate, and are never frozen.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from jxfer.errors import UserError
from jxfer.transfer.labels import FROZEN, HEAD, LOW_LR, Rule


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
    """What trains."""

    name: Literal["scratch", "linear_probe", "partial", "full"] = "full"
    """scratch: all, from random weights; linear_probe: the head; partial: what lies above
    freeze_through; full: everything."""
    freeze_through: str | None = None
    """For partial: the last frozen stage, such as stage2; all before it are frozen too."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of label rules."""

    name: str
    rules: tuple[Rule, ...]


def phases(
    config: StrategyConfig, stages: Sequence[str], fresh: Sequence[str] = ()
) -> tuple[Phase, ...]:
    """Expands a strategy.

    Args:
      config: the strategy and its options.
      stages: the stages that the model has, from the stem on, without the head.
      fresh: stages and parts of stages, such as `stage1/block2`, that hold new values.

    Raises:
      UserError: `freeze_through` missing, unknown, or given to a strategy that has no use for it;
        a fresh part that the strategy would freeze.
    """
    if config.name != "partial" and config.freeze_through is not None:
        raise UserError(
            f"--strategy.freeze-through goes with partial, not with {config.name}; leave it out"
        )
    if config.name == "scratch":
        return (Phase(config.name, ((".*", HEAD),)),)
    frozen: Sequence[str] = ()
    if config.name == "linear_probe":
        frozen = stages
    elif config.name == "partial":
        if config.freeze_through not in stages:
            raise UserError(
                f"--strategy.freeze-through {config.freeze_through}: partial needs one of "
                f"{', '.join(stages)}"
            )
        frozen = stages[: stages.index(config.freeze_through) + 1]
    for part in fresh:
        if part.split("/")[0] in frozen:
            raise UserError(
                f"{part} is new, and {config.name} would freeze it at random values: use "
                "--strategy.name full, freeze through an earlier stage, or build less with "
                "--model.through"
            )
    new = [(f"{re.escape(part)}/.*", HEAD) for part in fresh]
    rules = [
        (f"{stage}/.*", FROZEN if stage in frozen else LOW_LR)
        for stage in stages
        if stage not in fresh
    ]
    return (Phase(config.name, (*new, *rules, ("head/.*", HEAD))),)
