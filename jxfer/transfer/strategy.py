"""A strategy: which part of the network trains. A pure function from (stages, options) to phases.

After `labels` in the flow.

| strategy | frozen | low_lr | head |
|---|---|---|---|
| `scratch` | | | everything, from random weights |
| `linear_probe` | the backbone | | the head |
| `partial` | stem .. `freeze_through` | the stages above it | the head |
| `full` | | the backbone | the head |
| `surgical` | the other stages | `stages` | the head |
| `bn_only` | all but the norms | scale and bias of the norms | the head |
| `bitfit` | all but the biases | the biases | the head |
| `rules` | as `rules` says | | |
| `lp_ft`, first phase | the backbone | | the head |
| `lp_ft`, second phase | | the backbone | the head |
| `gradual`, first phase | the backbone | | the head |
| `gradual`, each later phase | one stage less, from the top | one stage more | the head |

Parts of the backbone that hold new values take the head's full rate, and are never frozen.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal

from jxfer import choices
from jxfer.errors import UserError
from jxfer.transfer.labels import FROZEN, HEAD, LOW_LR, Rule, base, is_label

Name = Literal[
    "scratch",
    "linear_probe",
    "partial",
    "full",
    "lp_ft",
    "gradual",
    "surgical",
    "bn_only",
    "bitfit",
    "rules",
]


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
    """What trains."""

    name: Name = "full"
    """scratch: all, from random weights; linear_probe: the head; partial: what lies above
    freeze_through; full: everything; lp_ft: the head, then everything (Kumar et al. 2022);
    gradual: the head, then one more stage a phase, from the top (Howard & Ruder 2018, section 3.2);
    surgical: some stages (Lee et al. 2023); bn_only: scale and bias of the norms (Frankle et al.
    2021); bitfit: the biases (Ben Zaken et al. 2022); rules: what rules says. All train the head,
    but rules may not."""
    freeze_through: str | None = None
    """For partial: the last frozen stage, such as stage2; all before it are frozen too."""
    stages: tuple[str, ...] = ()
    """For surgical: the stages that train, such as stage1 stage2."""
    phase_epochs: float | None = None
    """For lp_ft: epochs of the first phase, half of the run unless given. For gradual: epochs of
    each phase but the last, which takes the rest; one unless given, as in the paper."""
    rules: tuple[str, ...] = ()
    """For rules: PATTERN=LABEL, such as 'stage3/.*=low_lr' 'head/.*=head' '.*=frozen'. The first
    pattern that matches a parameter's whole path decides; labels: frozen, low_lr, low_lr/STAGE,
    head."""
    frozen_norms: Literal["frozen", "adapt"] = "frozen"
    """BatchNorm whose parameters are frozen: frozen runs on its stored averages; adapt normalises
    by the batch and moves the averages."""
    trainable_norms: Literal["train", "frozen"] = "train"
    """BatchNorm whose parameters move: train normalises by the batch and moves the averages; frozen
    runs on its stored averages."""

    def __post_init__(self) -> None:
        choices.check(self, "--strategy.")
        if self.phase_epochs is not None and not 0 < self.phase_epochs < math.inf:
            raise UserError(f"--strategy.phase-epochs {self.phase_epochs:g}: it must be above 0")


_USES: dict[str, tuple[str, ...]] = {
    "freeze_through": ("partial",),
    "stages": ("surgical",),
    "phase_epochs": ("lp_ft", "gradual"),
    "rules": ("rules",),
    "frozen_norms": (
        *("linear_probe", "partial", "lp_ft", "gradual", "surgical", "bn_only", "bitfit", "rules"),
    ),
    "trainable_norms": (
        *("partial", "full", "lp_ft", "gradual", "surgical", "bn_only", "bitfit", "rules"),
    ),
}
"""The strategies that have a use for an option; any other refuses it."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of label rules and schedules of its own."""

    name: str
    rules: tuple[Rule, ...]
    epochs: float | None = None
    """None: an equal part of the epochs that the other phases leave."""
    frozen_norms: Literal["frozen", "adapt"] = "frozen"
    trainable_norms: Literal["train", "frozen"] = "train"


def phases(
    config: StrategyConfig,
    stages: Sequence[str],
    fresh: Sequence[str] = (),
    *,
    with_norms: Sequence[str] | None = None,
    per_stage: bool = False,
) -> tuple[Phase, ...]:
    """Expands a strategy.

    Args:
      config: the strategy and its options.
      stages: the stages that the model has, from the stem on, without the head.
      fresh: stages and parts of stages, such as `stage1/block2`, that hold new values.
      with_norms: the stages that have norm layers; all unless given.
      per_stage: label pretrained parameters by their stage, `low_lr/stage3`.

    Raises:
      UserError: an option missing, unknown, or given to a strategy that has no use for it; a fresh
        part that the strategy would freeze; bn_only where there are no norms.
    """
    _check_options(config)
    name = config.name

    def rules(training: Sequence[str], leaf: str = "", per_stage: bool = per_stage) -> list[Rule]:
        """Rules under which these stages train, or of them only the paths that end with `leaf`."""
        new = [(f"{re.escape(part)}/.*", HEAD) for part in fresh]
        low = {stage: f"{LOW_LR}/{stage}" if per_stage else LOW_LR for stage in training}
        old = [stage for stage in stages if stage not in fresh]
        leaves = []
        own = [stage for stage in old if stage in low]
        if leaf and per_stage:
            leaves = [(f"{stage}/(.*/)?{leaf}", low[stage]) for stage in own]
        elif leaf and own:
            leaves = [(f"({'|'.join(own)})/(.*/)?{leaf}", LOW_LR)]
        rest = [(f"{stage}/.*", FROZEN if leaf else low.get(stage, FROZEN)) for stage in old]
        return [*new, *leaves, *rest, ("head/.*", HEAD)]

    def phase(name: str, rules: Sequence[Rule], epochs: float | None = None) -> Phase:
        return Phase(name, tuple(rules), epochs, config.frozen_norms, config.trainable_norms)

    if name == "scratch":
        return (phase(name, [(".*", HEAD)]),)
    if name == "linear_probe":
        _check_fresh(name, stages, fresh)
        return (phase(name, rules([])),)
    if name == "partial":
        if config.freeze_through not in stages:
            given = "" if config.freeze_through is None else f" {config.freeze_through}"
            raise UserError(
                f"--strategy.freeze-through{given}: partial needs one of {', '.join(stages)}"
            )
        depth = stages.index(config.freeze_through) + 1
        _check_fresh(name, stages[:depth], fresh)
        return (phase(name, rules(stages[depth:])),)
    if name == "surgical":
        _check_stages(config.stages, stages)
        return (phase(name, rules(config.stages)),)
    if name == "bn_only":
        normed = stages if with_norms is None else with_norms
        if not normed:
            raise UserError("--strategy.name bn_only: the network has no BatchNorm")
        return (phase(name, rules(normed, r"norm\d*/(scale|bias)")),)
    if name == "bitfit":
        return (phase(name, rules(stages, "bias")),)
    if name == "lp_ft":
        return (phase("head", rules([]), config.phase_epochs), phase("all", rules(stages)))
    if name == "gradual":
        epochs = 1.0 if config.phase_epochs is None else config.phase_epochs
        found = [phase("head", rules([]), epochs)]
        # A label of its own for each stage, since each begins at another step.
        for depth in reversed(range(len(stages))):
            if stages[depth] not in fresh:
                found.append(phase(stages[depth], rules(stages[depth:], per_stage=True), epochs))
        return (*found[:-1], dataclasses.replace(found[-1], epochs=None))
    if name == "rules":
        return (phase(name, _parse(config.rules, stages)),)
    return (phase(name, rules(stages)),)


def phase_steps(
    phases: Sequence[Phase], epochs: float, total_steps: int, steps_per_epoch: float
) -> tuple[int, ...]:
    """How many steps each phase takes; together they take `total_steps`.

    Raises:
      UserError: the phases do not fit into the run, or one would be shorter than a step.
    """
    given = sum(phase.epochs for phase in phases if phase.epochs is not None)
    open_phases = sum(phase.epochs is None for phase in phases)
    if given >= epochs or not open_phases:
        raise UserError(
            f"--epochs {epochs:g}: the phases before the last take {given:g} epochs; "
            "raise --epochs or lower --strategy.phase-epochs"
        )
    share = (epochs - given) / open_phases
    ends, past = [], 0.0
    for phase in phases:
        past += share if phase.epochs is None else phase.epochs
        ends.append(math.ceil(past * steps_per_epoch))
    ends[-1] = total_steps
    steps = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    if min(steps) < 1:
        raise UserError(
            f"--epochs {epochs:g} is {total_steps} steps, too few for {len(phases)} phases: "
            "raise --epochs or --strategy.phase-epochs"
        )
    return steps


def _check_options(config: StrategyConfig) -> None:
    for field in dataclasses.fields(config):
        uses = _USES.get(field.name)
        if uses and config.name not in uses and getattr(config, field.name) != field.default:
            raise UserError(
                f"--strategy.{field.name.replace('_', '-')} goes with {', '.join(uses)}, "
                f"not with {config.name}; leave it out"
            )


def _check_fresh(name: str, frozen: Sequence[str], fresh: Sequence[str]) -> None:
    for part in fresh:
        if part.split("/")[0] in frozen:
            raise UserError(
                f"{part} is new, and {name} would freeze it at random values: use "
                "--strategy.name full, freeze through an earlier stage, or build less with "
                "--model.through"
            )


def _check_stages(chosen: Sequence[str], stages: Sequence[str]) -> None:
    if not chosen:
        raise UserError(f"--strategy.stages: surgical needs some of {', '.join(stages)}")
    for stage in chosen:
        if stage not in stages:
            raise UserError(f"--strategy.stages {stage}: no such stage; use {', '.join(stages)}")
        if chosen.count(stage) > 1:
            raise UserError(f"--strategy.stages: {stage} comes twice; leave one out")


def _parse(items: Sequence[str], stages: Sequence[str]) -> list[Rule]:
    if not items:
        raise UserError("--strategy.rules: rules needs some, such as 'head/.*=head' '.*=frozen'")
    rules = []
    for item in items:
        pattern, _, label = item.rpartition("=")
        stage = label.removeprefix(f"{LOW_LR}/")
        if not pattern or not is_label(label) or (base(label) != label and stage not in stages):
            raise UserError(
                f"--strategy.rules {item}: it must be PATTERN=LABEL with a label of {FROZEN}, "
                f"{LOW_LR}, {HEAD}, {', '.join(f'{LOW_LR}/{stage}' for stage in stages)}"
            )
        rules.append((pattern, label))
    return rules
