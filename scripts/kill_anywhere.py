"""Kills a command at random places, runs it again, and compares what it leaves with a calm run.

    python -m scripts.kill_anywhere --command train --kills 50

The command runs undisturbed first, and `kill_marks` writes down each place that it reaches. Then,
in a new folder, it is killed at places drawn from these (which place, the how-many-th time, how
long after), over and over, until a restart comes to its end; then in another new folder, until all
kills are spent. Its processes are forked from one that has imported jxfer, which saves most of
their time; the undisturbed one, and those that are killed as they start, are not.

What every folder holds in the end, caches included, must be what the undisturbed one holds. Prints
each kill, and ends with exit code 1 where a restart fails, hangs, or leaves anything else. The code
must not be edited meanwhile: a run remembers it.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any, Literal

import tyro

from jxfer import text
from scripts import kill_compare
from scripts.kill_commands import COMMANDS, Command, prepare
from scripts.kill_marks import START

ROOT = pathlib.Path(__file__).resolve().parents[1]
CHILD = str(ROOT / "scripts" / "kill_marks.py")
PATIENCE = 900
"""Seconds after which a process counts as hanging."""
UNFINISHED = re.compile(r"tmp|\.part$|\.new-|\.old-|preparing")
"""Names of what is not whole yet."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Times that an undisturbed run reached a place."""

    name: str
    spans: list[float]
    """Seconds of each: of a call, until its end; of a file, until the thread's next mark."""


class Harness:
    """Runs one command, undisturbed and killed, always in `FOLDER/work`: programs know their path.

    Beside it are `log`, all that the command said, and `marks` of the last process.
    """

    def __init__(self, command: Command, folder: pathlib.Path, seed: int) -> None:
        self._command, self._folder = command, folder
        self._work, self._marks = folder / "work", folder / "marks"
        self._random = random.Random(seed)
        ours = ("JAX_COMPILATION_CACHE_DIR", "JXFER_COMPILED", "JXFER_ZOO", "XLA_FLAGS")
        self._environment = {name: v for name, v in os.environ.items() if name not in ours}
        self._environment |= {"PYTHONPATH": str(ROOT), "JXFER_CACHE": "cache"}
        self._environment |= {"JAX_PLATFORMS": "cpu"}
        self._forks = subprocess.Popen(
            [sys.executable, CHILD, *command.imports],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Ends the process that others are forked from."""
        self._forks.communicate()

    def start(self, at: tuple[str, int, float] | None = None, fork: bool = True) -> int:
        """Runs the command to its end or to the kill; returns the exit code."""
        self._work.mkdir(exist_ok=True)
        self._marks.unlink(missing_ok=True)
        order: dict[str, Any] = {"args": self._command.args, "cwd": str(self._work), "at": at}
        order |= {"log": str(self._folder / "log"), "marks": str(self._marks)}
        order |= {"calls": self._command.calls, "files": self._command.files}
        line = json.dumps(order | {"patience": PATIENCE})
        if not fork or (at is not None and at[0] == START):
            child = [sys.executable, CHILD, line]
            return subprocess.run(child, env=self._environment, stdin=subprocess.DEVNULL).returncode
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.write(line + "\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline())

    def said(self) -> str:
        """The end of what the command said."""
        return (self._folder / "log").read_text()[-4000:]

    def _lines(self) -> list[list[str]]:
        return [line.split("\t") for line in self._marks.read_text().splitlines()]

    def places(self) -> list[Place]:
        """That the last process reached."""
        lines = self._lines()
        spans: dict[str, list[float]] = collections.defaultdict(list)
        for index, (since, sign, thread, place, _) in enumerate(lines):
            if sign != "+":
                continue
            ends = [
                float(line[0])
                for line in lines[index + 1 :]
                if line[2] == thread and (place not in self._command.calls or line[3] == place)
            ]
            spans[place].append(min(ends[0] - float(since), 1.0) if ends else 0.02)
        spans[START] = [float(lines[1][0]) - float(lines[0][0])]
        return [Place(name, found) for name, found in spans.items()]

    def shuffled(self, places: list[Place]) -> list[Place]:
        return self._random.sample(places, len(places))

    def draw(self, place: Place, resumed: bool) -> tuple[str, int, float]:
        """A moment at a place; of a run that was killed before, in its first half."""
        number = self._random.randint(1, -(-len(place.spans) // (2 if resumed else 1)))
        exact = place.name != START and self._random.random() < 0.3
        late = 0.0 if exact else self._random.uniform(0, place.spans[number - 1])
        return place.name, number, late

    def last_mark(self) -> str:
        """Where the last process came, and what of files was next."""
        return " ".join(self._lines()[-1][3:]).strip()

    def unfinished(self) -> str:
        """Names of what kills have cut off."""
        return ", ".join(
            sorted({path.name for path in self._work.rglob("*") if UNFINISHED.search(path.name)})
        )

    def take_contents(self) -> dict[str, Any]:
        """What the finished command left; makes room for the next one."""
        found = kill_compare.contents(self._work)
        shutil.rmtree(self._work)
        return found


def run(command: str, kills: int, seed: int, folder: pathlib.Path) -> dict[str, int]:
    """Kills a command, prints each kill and what became of each folder.

    Returns:
      How often each place was hit; all places of the command are there.

    Raises:
      SystemExit: a restart failed, or left something else.
    """
    with contextlib.closing(Harness(COMMANDS[command], folder, seed)) as harness:
        return _run(harness, command, kills)


def _run(harness: Harness, command: str, kills: int) -> dict[str, int]:
    if code := harness.start(fork=False):
        sys.exit(f"{command}: exit code {code}: {harness.said()}")
    places = harness.places()
    missed = {*COMMANDS[command].calls, *COMMANDS[command].files} - {place.name for place in places}
    assert not missed, f"{command} never reached: {missed}"
    wanted = harness.take_contents()
    moments = sum(len(place.spans) for place in places)
    _say(f"{command}: {moments} moments, {len(wanted)} values to compare")
    hits = dict.fromkeys((place.name for place in places), 0)
    order: list[Place] = []
    spent = 0
    while spent < kills:
        killed = 0
        while True:
            order = order or harness.shuffled(places)
            at = harness.draw(order[-1], killed > 0) if spent < kills else None
            code = harness.start(at)
            if code == 0:
                break
            if code != -signal.SIGKILL or at is None:
                sys.exit(f"exit code {code}: {harness.said()}")
            order.pop()
            spent, killed = spent + 1, killed + 1
            place, number, late = at
            hits[place] += 1
            of = next(len(p.spans) for p in places if p.name == place)
            when = f"{number} of {of}, {1000 * late:.1f} ms later"
            _say(f"{spent:3} | {place} | {when} | {harness.last_mark()} | {harness.unfinished()}")
        if found := kill_compare.differences(harness.take_contents(), wanted):
            sys.exit("\n".join(["it differs:", *found[:20]]))
        _say(f"    after {killed} kills the command came to its end: nothing differs")
    return hits


def _say(line: str) -> None:
    print(line, flush=True)


def main(
    command: Literal["train", "ablate", "features", "zoo import"] = "train",
    kills: int = 12,
    seed: int = 0,
    out: pathlib.Path | None = None,
) -> None:
    """Prints the kills, and a table of the places.

    Args:
      command: which command is killed.
      kills: how many times.
      seed: of the moments.
      out: a new folder that keeps all that the command wrote; a temporary one unless given.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = (out or pathlib.Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        hits = run(command, kills, seed, folder)
    print(text.table([("place", "kills"), *((name, str(count)) for name, count in hits.items())]))


if __name__ == "__main__":
    tyro.cli(main)
