"""How much memory the machine has, and how much of it this process may still take."""

import os
import pathlib

_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_OWN_CGROUP = pathlib.Path("/proc/self/cgroup")


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
                used = int((folder / "memory.current").read_text())
                available = min(available, int(limit) - used)
    return max(available, 0)
