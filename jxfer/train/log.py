"""Training metrics between the device and the writers, read one step late."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jxfer.errors import UserError
from jxfer.train import metrics, parallel
from jxfer.train.metrics import Sums
from jxfer.train.state import Plan
from jxfer.train.writers import Clock, ProgressBar, Writers

_LATE = 0.1
"""A batch is late if the host waited for it this part of the time since the last step."""


class TrainingLog:
    """Adds up the sums of each step and writes a line where one ends.

    A line is written when the step after it has been dispatched, so that waiting for its sums does
    not leave the device idle.

    Args:
      plan: of the phase; its name and learning rates stand on each line.
      start: steps before the phase.
      open_sums: what `open_sums` returned when the checkpoint was saved.
      last_checkpoint: says what there is to go back to.
    """

    def __init__(
        self,
        writers: Writers,
        bar: ProgressBar,
        plan: Plan,
        start: int,
        open_sums: Iterable[Sums],
        last_checkpoint: Callable[[], str],
    ) -> None:
        self._writers, self._bar = writers, bar
        self._phase, self._start = plan.phase.name, start
        self._steps_per_epoch = plan.steps_per_epoch
        self._rates = plan.rate_table
        self._open: list[Sums] = list(open_sums)
        self._last_checkpoint = last_checkpoint
        self._ended: tuple[int, list[Sums]] | None = None
        self._before: Sums = {}
        self._pace = Clock()
        self.clock = Clock()

    def add(self, step: int, sums: Sums, waited: float = 0.0) -> str:
        """Takes a step's sums, still on the device, and writes the line that ended before it.

        The host stays one step ahead of the device. Where a batch came late it waits for the step
        itself: the device would have nothing to do anyway, and what the host then waits for the
        next batch is what the device waits for it.

        Args:
          waited: seconds for the batch of this step.

        Returns:
          What the seconds until the next batch count as: `data_wait`, or `step` while the device is
          at work.
        """
        self._open.append(sums)
        self.flush()
        self._bar.advance(step)
        late = waited > _LATE * self._pace.lap()
        jax.block_until_ready(sums if late else self._before)
        self._before = sums
        return "data_wait" if late else "step"

    def end_line(self, step: int) -> None:
        """The line that is open ends with this step."""
        self._ended, self._open = (step, self._open), []

    def flush(self) -> None:
        """Writes the line that has ended, if there is one.

        Raises:
          UserError: its loss is not finite.
        """
        if self._ended is None:
            return
        step, parts = self._ended
        self._ended = None
        parts = parallel.fetch(parts)
        total = metrics.add(parts)
        examples = int(total["examples"])
        loss, accuracy = float(total["loss"]) / examples, int(total["correct"]) / examples
        if not math.isfinite(loss):
            bad = [i for i, part in enumerate(parts) if not math.isfinite(part["loss"])]
            first = step - len(parts) + 1 + bad[0] if bad else step
            raise UserError(
                f"the training loss became {loss} at {self.place(first)}; "
                f"{self._last_checkpoint()}; lower --optimizer.lr or set --optimizer.clip-norm, in "
                "a new run folder"
            )
        others = sorted(total.keys() - {"loss", "correct", "examples"})
        speed = examples / self.clock.lap()
        index = step - 1 - self._start
        self._writers.write(
            step,
            {"epoch": step / self._steps_per_epoch, "phase": self._phase}
            | {"train_loss": loss, "train_accuracy": accuracy}
            | {f"train_{name}": float(total[name]) / examples for name in others}
            | {f"lr/{label}": float(rates[index]) for label, rates in self._rates.items()}
            | {"images_per_second": speed},
        )
        self._bar.describe(
            f"{self._phase}  loss {loss:.3f}  accuracy {accuracy:.1%}  {speed:,.0f} images/s"
        )

    def place(self, step: int) -> str:
        """The step with its phase and learning rates, for messages."""
        index = step - 1 - self._start
        rates = ", ".join(f"{label} {rates[index]:.3g}" for label, rates in self._rates.items())
        return f"step {step} of phase {self._phase} (learning rates: {rates})"

    def open_sums(self) -> list[dict[str, Any]]:
        """The sums of the open line as JSON values, for a checkpoint in the middle of it."""
        total = metrics.add(parallel.fetch(self._open))
        return [{name: value.item() for name, value in total.items()}] if total else []
