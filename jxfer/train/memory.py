"""Memory: what there is, and what a compiled program takes of it.

Before `fit` in the flow.
"""

from typing import Any

import jax

from jxfer import machine


def limit_bytes() -> int | None:
    """What programs may take: of each device's own memory, or on CPU of the machine's.

    Of a device it is what its allocator may hand out; None where it does not tell. On CPU it is
    `machine.available_bytes`.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return machine.available_bytes()
    return (device.memory_stats() or {}).get("bytes_limit")


def could_fit(compiled: Any) -> bool:
    """Whether a program would fit if all other processes of this machine ended. CPU alone.

    Its arguments are there already.
    """
    held = compiled.memory_analysis().argument_size_in_bytes * jax.local_device_count()
    return program_bytes(compiled) - held <= machine.memory_bytes() - machine.own_bytes()


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
