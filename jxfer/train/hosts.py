"""Several processes that train one run: how they find each other, agree, and stop together.

Before `parallel` in the flow. A host is a process of JAX's distributed runtime with the devices
that it alone sees. All of them take the same steps. The first one alone touches the run folder; the
others learn from it what they need. With one host nothing here waits or communicates.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jxfer.errors import UserError, first_line

T = TypeVar("T")
_LEAVING = 30
"""Seconds that a host waits for the others where it ends."""
_BLOCK = 1 << 14  # bytes: messages are padded to a multiple, so that most share a program
_LAST_WORDS = (
    "jxfer: this host was ended, by a signal or because another died or never came; "
    "the same command on all hosts resumes"
)


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """The processes of a run: how many, and which one this is. No part of the run's config: it may
    go on with another number of them."""

    coordinator: str | None = None
    """ADDRESS:PORT of host 0, as all hosts reach it. Give all of the first three, or none: then a
    Cloud TPU, SLURM or Kubernetes tells."""
    count: int | None = None
    """Number of hosts; 1 for this one alone, whatever is detected."""
    index: int | None = None
    """Of this host, from 0."""
    timeout: int = 100
    """Seconds without a sign of life after which a host counts as dead. The others end within twice
    as long."""

    def __post_init__(self) -> None:
        if self.timeout < 1:
            raise UserError(f"--hosts.timeout {self.timeout}: it must be above 0")
        if self.alone or self.is_detected:
            return
        if self.coordinator is None or self.count is None or self.index is None:
            raise UserError(
                "--hosts.coordinator, --hosts.count and --hosts.index belong together; give all or "
                "none"
            )
        if not self.coordinator.rpartition(":")[2].isdecimal() or self.coordinator[0] == ":":
            raise UserError(f"--hosts.coordinator {self.coordinator}: it must be ADDRESS:PORT")
        if not 0 <= self.index < self.count:
            raise UserError(
                f"--hosts.index {self.index}: with --hosts.count {self.count} it is from 0 to "
                f"{self.count - 1}"
            )

    @property
    def alone(self) -> bool:
        """Whether the options ask for this host alone."""
        return (self.coordinator, self.count, self.index) == (None, 1, None)

    @property
    def is_detected(self) -> bool:
        """Whether the options leave it to what is found."""
        return (self.coordinator, self.count, self.index) == (None, None, None)


def cluster() -> str | None:
    """What tells JAX the hosts; None where this process is alone. Reads no network.

    - SLURM: a job step of more than one task (`srun`); a batch script by itself is one process.
    - Kubernetes: an indexed Job. Its pods need JAX's extra `k8s` and a headless service.
    - Cloud TPU: its library and chips are there, and JAX is not told to use another platform.
    """
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "SLURM"
    if os.environ.keys() >= {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"}:
        return "Kubernetes"
    wanted = os.environ.get("JAX_PLATFORMS") or "tpu"
    if "tpu" in wanted and importlib.util.find_spec("libtpu") is not None:
        chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
        return "Cloud TPU" if chips else None
    return None


@contextlib.contextmanager
def joined(config: HostsConfig) -> Iterator[None]:
    """This process is one of the hosts of a run. Enter it before JAX sees a device.

    If a host dies, JAX ends the others with a report; a line then says what to do.

    Raises:
      UserError: JAX cannot tell the hosts, or they do not come.
    """
    found = cluster() if config.is_detected else None
    if config.alone or (config.is_detected and found is None):
        yield
        return
    # Its handler of SIGTERM would swallow the signal until `Preemption` listens.
    jax.config.update("jax_enable_preemption_service", False)
    with _last_words():
        try:
            jax.distributed.initialize(
                config.coordinator,
                config.count,
                config.index,
                cluster_detection_method=None if found else "deactivate",
                heartbeat_timeout_seconds=config.timeout,
                shutdown_timeout_seconds=_LEAVING,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the hosts of {found or config.coordinator}: {first_line(error)}; "
                "--hosts.count 1 would train on this one alone"
            ) from error
        if jax.device_count() != jax.process_count() * jax.local_device_count():
            raise UserError(
                f"{jax.device_count()} devices on {jax.process_count()} hosts, and "
                f"{jax.local_device_count()} of them here: give each host as many"
            )
        try:
            yield
        except SystemExit:  # SIGTERM asked all to make way
            exchange(None)
            raise
        # The first still writes, or sends to a bucket, where the others have no more to do: a host
        # that ended would end it, too.
        exchange(None)


def is_first() -> bool:
    """Whether this host writes what the run leaves behind."""
    return jax.process_index() == 0


def exchange(value: T) -> list[T]:
    """What every host gives, by host. All must call it; it is small and can be pickled."""
    if jax.process_count() == 1:
        return [value]
    message = pickle.dumps(value)
    lengths = multihost_utils.process_allgather(np.uint32(len(message)))
    rows = multihost_utils.process_allgather(_padded(message, int(lengths.max())))
    pairs = zip(rows, lengths, strict=True)
    return [pickle.loads(row.tobytes()[: int(length)]) for row, length in pairs]


def together(work: Callable[[], T]) -> T:
    """Does a part of the work on every host; what a person caused on one ends all.

    Raises:
      UserError: of this host, or of the first that has one.
    """
    value: Any = None
    own: UserError | None = None
    try:
        value = work()
    except UserError as error:
        own = error
    told = exchange(None if own is None else str(own))
    if own is not None:
        raise own
    for host, message in enumerate(told):
        if message is not None:
            raise UserError(f"host {host}: {message}")
    done: T = value
    return done


def from_first(work: Callable[[], T]) -> T:
    """Does something on the first host alone; all have what it returns: at most 4 GiB, pickled.

    Raises:
      UserError: of the first host.
    """
    if jax.process_count() == 1:
        return work()
    message = b""
    if is_first():
        try:
            message = pickle.dumps((work(), None))
        except UserError as error:
            message = pickle.dumps((None, str(error)))
    length = int(multihost_utils.broadcast_one_to_all(np.uint32(len(message))))
    # As integers: added to the zeros of the others, a float of -0 would lose its sign.
    words = multihost_utils.broadcast_one_to_all(_padded(message, length))
    value, told = pickle.loads(words.tobytes()[:length])
    if told is not None:
        raise UserError(told)
    done: T = value
    return done


def check_same(values: dict[str, Any]) -> None:
    """Raises UserError unless all hosts were given the same.

    Args:
      values: what must agree, by the name that a person knows it by.
    """
    for host, others in enumerate(exchange(values)):
        for name, other in others.items():
            if other != values[name]:
                me = jax.process_index()
                raise UserError(f"host {host} has another {name} than host {me}: give all the same")


def _padded(message: bytes, length: int) -> np.ndarray:
    """uint32 words."""
    return np.frombuffer(message.ljust(-(-length // _BLOCK) * _BLOCK, b"\0"), np.uint32)


@contextlib.contextmanager
def _last_words() -> Iterator[None]:
    """A line on stderr if this process is ended from outside, or by JAX for want of another host.

    Nothing of Python runs then, so a shell holds the other end of a pipe.
    """
    script = 'read -r line || echo "$0" >&2'
    with subprocess.Popen(
        ["sh", "-c", script, _LAST_WORDS], stdin=subprocess.PIPE, start_new_session=True
    ) as shell:
        assert shell.stdin is not None
        try:
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):  # where the shell was ended too
                shell.stdin.write(b"alive\n")
                shell.stdin.close()
