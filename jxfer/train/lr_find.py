"""The learning-rate finder: train while the rate grows, and see where the loss falls.

Beside `loop` in the flow: the same plan, step and batches, with an exponential sweep in place of
the schedule and nothing saved. Smith 2017, "Cyclical Learning Rates for Training Neural Networks"
(https://arxiv.org/abs/1506.01186), section 3.3: the range test. The exponential sweep, the
smoothing, the stop and both suggestions are those of fastai (`LRFinder`, `steep` and `minimum` in
`fastai/callback/schedule.py`; Howard & Gugger 2020, "Deep Learning for Coders", chapter 5).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import optax

from jxfer.data import screen
from jxfer.errors import UserError
from jxfer.train import feed, parallel
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import one_late, source_relationship
from jxfer.train.metrics import Sums
from jxfer.train.plans import set_up
from jxfer.train.selection import evaluation_steps
from jxfer.train.state import Plan, TrainState
from jxfer.train.step import Batch, compiled_train_step
from jxfer.transfer.labels import HEAD
from jxfer.trees import Tree

_SMOOTHING = 0.98
_DIVERGED = 4.0  # times the lowest smoothed loss
_FEWEST = 10  # steps: with fewer, what is left after the ends are cut off has no slope


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Which rates are tried.

    Raises:
      UserError: the rates do not grow from above 0, or the steps are too few.
    """

    lowest: float = 1e-6
    """Learning rate of the first step; this and the next in terms of --optimizer.lr."""
    highest: float = 10.0
    """Learning rate of the last step."""
    steps: int = 100
    """Training steps; each multiplies the rate by the same factor."""

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest < math.inf:
            raise UserError(
                f"--sweep.lowest {self.lowest:g} --sweep.highest {self.highest:g}: the first must "
                "be above 0 and below the second"
            )
        if self.steps < _FEWEST:
            raise UserError(f"--sweep.steps {self.steps}: it must be at least {_FEWEST}")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What was seen, step by step, up to where the loss diverged."""

    phase: str
    """Of the strategy; its first one."""
    rates: tuple[float, ...]
    """In terms of --optimizer.lr."""
    losses: tuple[float, ...]
    """Of each step's batch, before the step; mean cross-entropy, nats."""
    smoothed: tuple[float, ...]
    """See `smooth`."""
    planned: int
    """Steps that it would have taken."""

    @property
    def diverged(self) -> bool:
        """Whether it ended before the last step: the smoothed loss rose above four times its
        lowest, or a loss was not finite."""
        return len(self.rates) < self.planned

    def suggestions(self) -> dict[str, float]:
        """Rates by the name of their rule, from the smoothed losses.

        steep: where the loss falls fastest by the logarithm of the rate. minimum: a tenth of the
        rate of the lowest loss. The first tenth of the planned steps, where the average has
        seen too little, and the last five that were taken are left out.

        Raises:
          UserError: too few steps were taken.
        """
        first, last = self.planned // 10, len(self.rates) - 5
        if last - first < 2:
            raise UserError(
                f"the loss diverged after {len(self.rates)} steps, at a learning rate of "
                f"{self.rates[-1]:.3g}; start lower with --sweep.lowest"
            )
        rates, smoothed = np.array(self.rates[first:last]), np.array(self.smoothed[first:last])
        slopes = np.diff(smoothed) / np.diff(np.log(rates))
        return {
            "steep": float(rates[np.argmin(slopes)]),
            "minimum": float(rates[np.argmin(smoothed)] / 10),
        }


@dataclasses.dataclass(frozen=True)
class _SweepPlan(Plan):
    """A phase's plan whose rates grow; labels keep the ratios of their peaks."""

    sweep: SweepConfig = SweepConfig()

    def schedules(self) -> dict[str, optax.Schedule]:
        growth = self.sweep.highest / self.sweep.lowest
        peaks = self.optimizer.peaks(self.model.stages)
        return {
            label: optax.exponential_decay(
                self.sweep.lowest * peak / peaks[HEAD], self.sweep.steps - 1, growth
            )
            for label, peak in peaks.items()
        }


def find(config: TrainConfig, sweep: SweepConfig = SweepConfig()) -> Sweep:
    """Sweeps the rate of the first phase, from its starting weights, on training batches alone.

    Batches, augmentation, batch size, precision and accumulation are those of the run; its schedule
    and moving averages are left out. Losses are read one step late, so that the device has work.

    Raises:
      UserError: as a run of the config would; it adapts; the first loss is not finite.
    """
    parallel.check_batch(config.batch_size, config.accumulate)
    if config.adapt.acts:
        raise UserError("--adapt: the sweep is of labelled images alone; leave it out")
    splits = screen.load_splits(config.data)
    pretrained, plans = set_up(
        config,
        splits.train.class_names,
        total_steps=evaluation_steps(config, len(splits.train))[-1],
        steps_per_epoch=len(splits.train) / config.batch_size,
        train=splits.train,
    )
    plan = _sweep_plan(plans[0], sweep)
    state = plan.initial_state(pretrained.variables, config.seed)
    reference = plan.reference(pretrained.variables) | source_relationship(
        pretrained, splits.train, config.batch_size
    )
    batches = parallel.shard(feed.train_batches(config, splits.train, pretrained.preprocessing))
    seen = until_it_diverges(map(_mean_loss, one_late(_train(plan, state, batches, reference))))
    taken = len(seen)
    if not taken:
        raise UserError("the loss of the first batch is not finite; look at the weights and images")
    rates = sweep.lowest * (sweep.highest / sweep.lowest) ** (np.arange(taken) / (sweep.steps - 1))
    return Sweep(
        phase=plan.phase.name,
        rates=tuple(map(float, rates)),
        losses=tuple(loss for loss, _ in seen),
        smoothed=tuple(smoothed for _, smoothed in seen),
        planned=sweep.steps,
    )


def smooth(losses: Iterable[float]) -> Iterator[float]:
    """Moving averages with decay 0.98, each divided by its sum of weights, 1 - 0.98^n."""
    average = 0.0
    for n, loss in enumerate(losses, start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        yield average / (1 - _SMOOTHING**n)


def until_it_diverges(losses: Iterable[float]) -> list[tuple[float, float]]:
    """(loss, smoothed loss) of each step before the sweep ends; see `Sweep.diverged`."""
    seen: list[tuple[float, float]] = []
    lowest = math.inf
    raw, again = itertools.tee(losses)
    for loss, smoothed in zip(raw, smooth(again), strict=True):
        if not math.isfinite(loss) or smoothed > _DIVERGED * lowest:
            break
        lowest = min(lowest, smoothed)
        seen.append((loss, smoothed))
    return seen


def _sweep_plan(plan: Plan, sweep: SweepConfig) -> _SweepPlan:
    fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    return _SweepPlan(**fields | {"total_steps": sweep.steps, "ema_decay": None}, sweep=sweep)


def _train(
    plan: Plan, state: TrainState, batches: Iterator[Batch], reference: Tree
) -> Iterator[Sums]:
    train_step = compiled_train_step(plan)
    state, reference, rates = parallel.replicate((state, reference, plan.rate_table))
    for _ in range(plan.total_steps):
        state, sums = train_step(state, next(batches), reference, rates)
        yield sums


def _mean_loss(sums: Sums) -> float:
    host = parallel.fetch(sums)
    return float(host["loss"]) / int(host["examples"])
