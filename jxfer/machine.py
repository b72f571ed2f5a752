"""The cores and the memory of this machine that this process may take."""

import os
import pathlib
from collections.abc import Iterator

_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_OWN_CGROUP = pathlib.Path("/proc/self/cgroup")


def visible_cores() -> int:
    """Cores that this process may run on, which a scheduler may have cut down."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


_STATM = pathlib.Path("/proc/self/statm")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def memory_bytes() -> int:
    """All memory, free or not, of this machine or of the control groups that hold this process."""
    own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([own, *(limit for limit, _ in _groups())])


def own_bytes() -> int:
    """What this process holds; 0 on systems that do not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # not Linux
        return 0


def available_bytes() -> int:
    """What is free now, of the machine's memory and of the control groups that hold this process.

    Systems that do not tell have all of their memory.
    """
    try:
        lines = _MEMINFO.read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return memory_bytes()
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    available = int(found["MemAvailable"].split()[0]) * 1024
    return max(min([available, *(limit - used for limit, used in _groups())]), 0)


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of each control group that holds this process and has a limit.

    Files that the kernel keeps in memory, and drops when it is short of it, are not in use.
    """
    lines = _OWN_CGROUP.read_text().splitlines() if _OWN_CGROUP.exists() else []
    for line in lines:
        _, kinds, own = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root = _CGROUPS / "memory" if kinds else _CGROUPS
        most, current, files = _VERSION_1 if kinds else _VERSION_2
        group = root / own.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root) or not (folder / most).exists():
                continue
            limit = (folder / most).read_text().strip()
            if limit != "max":
                pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                dropped = int(dict(pairs)[files])
                yield int(limit), int((folder / current).read_text()) - dropped
