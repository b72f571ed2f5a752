"""`jxfer train --profile`: a trace of a few training steps, which TensorBoard and Perfetto open.

Before `writers` in the flow, which ends a trace that is cut off.
"""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax

SKIPPED = 2
"""Steps before the trace: the first compiles, the second fills the queue behind it."""
TRACED = 5
"""Steps in the trace, or those that are left."""
_log = logging.getLogger("jxfer")


class Profile:
    """Traces steps of the first phase that a process trains.

    Args:
      folder: the run folder; the trace is `plugins/profile/TIME/` in it. None traces nothing.
    """

    def __init__(self, folder: pathlib.Path | None) -> None:
        self._folder = folder
        self._is_tracing = False

    def of(self, train_step: Callable[..., Any], first: int, end: int) -> Callable[..., Any]:
        """The same step, traced when it is called for those after the first `SKIPPED`.

        Args:
          first: the step that the first call takes.
          end: the last step of the phase.
        """
        folder, self._folder = self._folder, None
        if folder is None:
            return train_step
        start, stop = first + SKIPPED, min(first + SKIPPED + TRACED - 1, end)
        if start > stop:
            _log.warning(
                "--profile: nothing to trace: it begins with the step after the first %d, and %d "
                "are left",
                SKIPPED,
                end - first + 1,
            )
            return train_step
        steps = iter(range(first, end + 1))

        def traced_step(*arguments: Any) -> Any:
            step = next(steps)
            if step == start:
                self._start(folder)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                results = train_step(*arguments)
            if step == stop:
                jax.block_until_ready(results)
                self.close()
                _log.info("traced steps %d to %d: %s", start, stop, folder / "plugins/profile")
            return results

        return traced_step

    def close(self) -> None:
        """Writes the trace that is open, if there is one."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()

    def _start(self, folder: pathlib.Path) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each call of a Python function would slow the steps down
        jax.profiler.start_trace(str(folder), profiler_options=options)
        self._is_tracing = True
