"""SIGTERM, by which SLURM and spot machines ask a run to make way: it saves, and ends with code 75.

After `parallel` in the flow. The first signal lets the step under way end and be saved; the second
ends the process at once, whatever it is doing.
"""

import functools
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jxfer.train import parallel

_log = logging.getLogger("jxfer")


TRY_AGAIN = 75
"""The exit code: EX_TEMPFAIL of sysexits.h."""


class Preempted(SystemExit):
    """The run was asked to make way; `message` says what became of its last step."""

    def __init__(self, message: str) -> None:
        super().__init__(TRY_AGAIN)
        self.message = message


class Preemption:
    """Listens for SIGTERM while it is entered.

    Not where the program has a handler of its own, and not outside the main thread, which alone can
    have one.
    """

    unsaved = False
    """Whether a step was taken that no checkpoint holds. While there is none, and no other host
    waits for this one, the signal ends the run where it stands."""

    def __init__(self) -> None:
        self._signalled = False
        self._listens = False
        self._pipe = (-1, -1)
        self._before = -1  # where signals went
        self._votes: jax.Array | None = None  # of the step before

    def __enter__(self) -> "Preemption":
        # None: a handler from outside Python, which is JAX's own where there are several hosts.
        default = signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None)
        if default and threading.current_thread() is threading.main_thread():
            self._listens = True
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._before = signal.set_wakeup_fd(self._pipe[1])
            signal.signal(signal.SIGTERM, self._first)
            threading.Thread(target=self._wait_for_second, daemon=True).start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.set_wakeup_fd(self._before)
            os.close(self._pipe[1])  # the thread reads to the end, and ends
        if isinstance(error, Preempted):
            _log.warning("SIGTERM: %s; the same command resumes", error.message)

    def asked(self) -> bool:
        """Whether to save after this step and stop; all hosts are told the same at the same step.

        Call it after every step. With several hosts it returns what was known a step ago, so that
        the devices have work while it waits.
        """
        if jax.process_count() == 1:
            return self._signalled
        votes = _count()(parallel.replicate(np.int32(self._signalled)))
        last, self._votes = self._votes, votes
        return last is not None and bool(parallel.fetch(last))

    def saved(self) -> bool:
        """Notes that nothing is left to save; whether a host by itself was asked meanwhile."""
        self.unsaved = False
        return self._signalled and jax.process_count() == 1

    def _first(self, *_: object) -> None:
        self._signalled = True
        if not self.unsaved and jax.process_count() == 1:
            raise Preempted("nothing was left to save")

    def _wait_for_second(self) -> None:
        # Python calls a handler between two of its own instructions, which a compilation or another
        # host may keep it from; the pipe gets a byte in any case.
        signals = 0
        while byte := os.read(self._pipe[0], 1):
            signals += byte[0] == signal.SIGTERM
            if signals == 2:
                os._exit(128 + signal.SIGTERM)
        os.close(self._pipe[0])


@functools.cache
def _count() -> Callable[..., Any]:
    return parallel.compile_step(lambda vote: jax.lax.psum(vote, parallel.AXIS))
