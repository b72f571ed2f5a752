"""Devices: the only file that says pmap, replicates, shards or unreplicates.

The steps are written for one device, with collectives over the axis `"batch"`. Here they are
compiled for all local devices, their state is replicated, and batches `[B, ...]` become
`[devices, B / devices, ...]`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils

from jxfer.errors import UserError

AXIS = "batch"
T = TypeVar("T")


def check_batch(batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError unless the global batch divides evenly over all devices, and their parts."""
    devices = jax.device_count()
    if batch_size % devices:
        raise UserError(
            f"--batch-size {batch_size} does not divide over {devices} devices; "
            f"try {max(1, round(batch_size / devices)) * devices}"
        )
    if batch_size // devices % accumulate:
        raise UserError(
            f"--accumulate {accumulate} does not divide the {batch_size // devices} examples of "
            f"--batch-size {batch_size} on each of {devices} devices"
        )


def compile_step(step: Callable[..., Any], *, donate_state: bool = False) -> Callable[..., Any]:
    """`step(state, batch)` on every device at once; `.lower(...)` gives the compiled program.

    With `donate_state` the old state's memory is re-used for the new one.
    """
    return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,) if donate_state else ())


def replicate(tree: T) -> T:
    """A copy of every leaf on every local device: [...] -> [devices, ...]."""
    # From the host: what is on a device flax stacks there, all copies on one device and a program
    # for each shape. Under flax's own axis name the second step would compile again.
    return jax_utils.replicate(jax.device_get(tree), axis_name=AXIS)


def fetch(tree: T) -> T:
    """The first device's copy, as host arrays; waits for it. Leaves that are on the host stay."""

    def first(leaf: Any) -> Any:
        return leaf.addressable_shards[0].data if isinstance(leaf, jax.Array) else leaf

    # All transfers start before the first is waited for. On CPU what comes back may be the device's
    # own memory, which the next step takes over: hence the copy.
    fetched: T = jax.tree.map(
        lambda leaf, host: np.array(host[0]) if isinstance(leaf, jax.Array) else leaf,
        tree,
        jax.device_get(jax.tree.map(first, tree)),
    )
    return fetched


def example_indices(examples: int) -> jax.Array:
    """Inside a step: where this device's `examples` examples stand in the global batch, int32 [B].

    Host h of n holds every n-th example from the h-th on (`loader.train_batches`), and `shard`
    deals each host's out to its devices in order. So the indices do not depend on the number of
    devices or hosts.
    """
    host, device = jnp.divmod(jax.lax.axis_index(AXIS), jax.local_device_count())
    local = device * examples + jnp.arange(examples, dtype=jnp.int32)
    return local * jax.process_count() + host


def gather(array: jax.Array) -> np.ndarray:
    """Joins a per-device output: [devices, b, ...] -> host [devices * b, ...]."""
    return np.asarray(array).reshape(-1, *array.shape[2:])


def shard(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, jax.Array]]:
    """Splits each batch over the local devices and keeps two of them in flight."""
    devices = jax.local_device_count()

    def split(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k: v.reshape(devices, len(v) // devices, *v.shape[1:]) for k, v in batch.items()}

    return jax_utils.prefetch_to_device(map(split, batches), size=2, axis_name=AXIS)
