"""Memory of the machine and of control groups, from made files."""

import os

import pytest

from jxfer import machine


@pytest.fixture
def meminfo(monkeypatch, tmp_path):
    """4000 kB are available, and this process is in the control group a/b, which has no limit."""
    for name in ("meminfo", "cgroup"):
        (tmp_path / name).touch()
    (tmp_path / "groups/a/b").mkdir(parents=True)
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  4000 kB\nHuge: 0\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "groups")
    return tmp_path


def limit(group, most, used, files=0):
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 12345\ninactive_file {files}\n")


def test_what_is_available_is_the_machines_or_the_least_of_the_groups(meminfo):
    assert machine.available_bytes() == 4000 * 1024
    limit(meminfo / "groups/a/b", "max", 1_000_000)
    assert machine.available_bytes() == 4000 * 1024
    limit(meminfo / "groups/a/b", 3_000_000, 1_000_000)
    assert machine.available_bytes() == 2_000_000
    limit(meminfo / "groups/a", 1_500_000, 1_000_000)
    assert machine.available_bytes() == 500_000
    assert machine.memory_bytes() == 1_500_000
    limit(meminfo / "groups/a", 1_500_000, 1_000_000, files=200_000)
    assert machine.available_bytes() == 700_000
    limit(meminfo / "groups/a", 1_000_000, 1_500_000)
    assert machine.available_bytes() == 0


def test_groups_of_the_first_version_count_too(meminfo):
    group = meminfo / "groups/memory/a/b"
    group.mkdir(parents=True)
    (meminfo / "cgroup").write_text("3:cpu,cpuacct:/a\n2:memory:/a/b\n0::/\n")
    (group / "memory.limit_in_bytes").write_text("3000000\n")
    (group / "memory.usage_in_bytes").write_text("2500000\n")
    (group / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 500000\n")
    assert machine.memory_bytes() == 3_000_000
    assert machine.available_bytes() == 1_000_000


def test_a_system_without_these_files_has_all_of_its_memory(meminfo):
    (meminfo / "meminfo").unlink()
    (meminfo / "cgroup").unlink()
    wanted = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.available_bytes() == machine.memory_bytes() == wanted


def test_this_machine_tells():
    assert 0 < machine.available_bytes() < machine.memory_bytes()
