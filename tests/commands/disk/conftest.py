"""Disks that are full, read-only or gone, for real: small tmpfs mounts.

`Disk.leave` fills one up but for some room, so that a command meets the end of the disk in turn at
each of its writes. Each time it says so in one line, loses nothing that was there, and the same
command then goes on to the bits of an undisturbed one.
"""

import os
import signal
import subprocess

import pytest

from jxfer.commands.main import main
from tests.commands.runs import train

PAGE = 4096
FULL = "No space left on device"


class Disk:
    """A tmpfs of 4 MB."""

    def __init__(self, place):
        self.place, self._filler = place, place / "filler"
        place.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=4m", "tmpfs")

    def _mount(self, *options):
        done = subprocess.run(
            ["mount", *options, str(self.place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    def leave(self, pages):
        """Fills all but some pages of 4 KiB."""
        free = os.statvfs(self.place)
        blocks = free.f_bavail * free.f_frsize // PAGE - pages
        assert blocks >= 0
        with self._filler.open("wb") as file:
            file.write(bytes(blocks * PAGE))

    def make_room(self):
        self._filler.unlink()

    def make_read_only(self):
        self._mount("-o", "remount,ro")

    def make_writable(self):
        self._mount("-o", "remount,rw")

    def unmount(self):
        """Even while files in it are open."""
        subprocess.run(["umount", "-l", str(self.place)], capture_output=True, check=False)


@pytest.fixture
def disk(tmp_path):
    try:
        made = Disk(tmp_path / "disk")
    except FileNotFoundError:
        pytest.skip("a small disk cannot be mounted here: there is no mount")
    yield made
    made.unmount()


@pytest.fixture
def run(capfd):
    """Runs a command that must not hang; returns (exit code, stdout, stderr)."""

    def hang(*_):
        raise TimeoutError("it hangs")

    def call(*args):
        capfd.readouterr()
        before = signal.signal(signal.SIGALRM, hang)
        signal.alarm(1200)  # far more than any takes
        try:
            code = main([str(arg) for arg in args])
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(run):
    """Runs a command that the disk must refuse; returns the last line of stderr, the only error."""

    def call(*args):
        code, out, err = run(*args)
        assert (code, out) == (2, ""), err
        assert "Traceback" not in err
        lines = err.splitlines()
        assert [line for line in lines if "error" in line.lower()] == [lines[-1]], err
        assert lines[-1].startswith("jxfer: error: ")
        return lines[-1]

    return call


@pytest.fixture(scope="session")
def undisturbed(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([str(word) for word in train(folder, images)]) == 0
    return folder
