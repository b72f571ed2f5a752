"""The cores and the memory of this machine that this process may take."""

import os
import pathlib

_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_OWN_CGROUP = pathlib.Path("/proc/self/cgroup")


def visible_cores() -> int:
    """Cores that this process may run on, which a scheduler may have cut down."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory_bytes() -> int:
    """All memory of this machine, free or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
    own = _OWN_CGROUP.read_text().strip().rpartition("::")[2]
    group = _CGROUPS / own.lstrip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(_CGROUPS) and (folder / "memory.max").exists():
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                used = int((folder / "memory.current").read_text()) - _dropped_first(folder)
                available = min(available, int(limit) - used)
    return max(available, 0)


def _dropped_first(group: pathlib.Path) -> int:
    """Bytes of a control group that are files read before, which the kernel gives up unasked."""
    lines = (group / "memory.stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
