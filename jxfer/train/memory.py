"""Memory: what there is, and what a compiled program takes of it.

Before `prefix` in the flow.
"""

import logging
from typing import Any

import jax

from jxfer import machine
from jxfer.errors import UserError

_log = logging.getLogger("jxfer")


def limit_bytes() -> int:
    """What programs may take: of each device's own memory, or on CPU of the machine's.

    Of a device it is what its allocator may hand out. On CPU it is `machine.available_bytes`.

    Raises:
      UserError: the device does not tell.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return machine.available_bytes()
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        raise UserError(f"{device.device_kind} does not tell how much memory it has")
    return int(limit)


def program_bytes(compiled: Any) -> int:
    """What a program needs while it runs: arguments, results and what lies between.

    A result that takes the memory of an argument counts once. On CPU the local devices share the
    machine's memory, so it is what all of them need; elsewhere what each does.

    Args:
      compiled: from `lower(...).compile()` of a step for all devices.
    """
    stats = compiled.memory_analysis()
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    sharing = jax.local_device_count() if jax.local_devices()[0].platform == "cpu" else 1
    return int(total - stats.alias_size_in_bytes) * sharing


def check(step: Any, *arguments: Any) -> None:
    """Compares what a step needs with what there is. Compiles the step; its call does not again.

    On CPU, where what is free may change, too little is a warning.

    Args:
      step: from `parallel.compile_step`.
      arguments: of its first call.

    Raises:
      UserError: the device has too little.
    """
    needed, limit = program_bytes(step.lower(*arguments).compile()), limit_bytes()
    if needed <= limit:
        return
    is_cpu = jax.local_devices()[0].platform == "cpu"
    line = (
        f"a step takes {needed / 1e9:.3g} GB of memory, and {limit / 1e9:.3g} GB "
        f"{'are free' if is_cpu else 'is what a device has'}; lower --batch-size (jxfer audit "
        "--largest-batch finds the largest that fits), or set --remat or --accumulate"
    )
    if not is_cpu:
        raise UserError(line)
    _log.warning(line)
