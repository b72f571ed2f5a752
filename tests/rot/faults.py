"""Rot, injected into real files: a flipped bit, a cut, an empty file, none."""

import contextlib
import os
import pathlib
import random
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from jxfer.commands.main import guard, main

FLIPS = int(os.environ.get("JXFER_ROT_FLIPS", "1"))
"""Of each file, one after another, at other places each time."""
FAULTS = ("delete", "truncate", "empty", *(f"flip {i}" for i in range(FLIPS)))


def cases(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """`(name, fault)` of all files below a folder, hidden ones too; folders may go as a whole."""
    for path in sorted(folder.rglob("*")):
        for fault in FAULTS if path.is_file() else FAULTS[:1]:
            yield path.relative_to(folder).as_posix(), fault


def inflict(fault: str, path: pathlib.Path) -> None:
    """Damages a file, or deletes a folder; the fault's name and the content decide where."""
    if path.is_dir():
        shutil.rmtree(path)
        return
    content = path.read_bytes()
    if fault == "delete":
        path.unlink()
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif content:
        flipped = bytearray(content)
        bit = random.Random(f"{fault} {zlib.crc32(content)}").randrange(8 * len(content))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)


@contextlib.contextmanager
def copied(folder: pathlib.Path, scratch: pathlib.Path) -> Iterator[pathlib.Path]:
    """A copy of a folder at the place where the original was made, which comes back."""
    kept = scratch / "kept"
    folder.rename(kept)
    shutil.copytree(kept, folder, symlinks=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)


class Outcomes:
    """What each fault of each file came to, by the name of the kind of file."""

    def __init__(self) -> None:
        self.table: dict[str, dict[str, set[str]]] = {}
        self.bugs: list[str] = []

    def add(self, name: str, fault: str, outcome: str) -> None:
        kind = re.sub(r"[0-9a-f]{12,}", "*", re.sub(r"tfevents.*", "*", name))
        self.table.setdefault(kind, {}).setdefault(fault.split()[0], set()).add(outcome)

    def check(self) -> None:
        """Shows the table, and fails where something was wrong in silence or ended otherwise."""
        for name, found in self.table.items():
            print(name, {fault: sorted(outcomes) for fault, outcomes in found.items()})
        assert not self.bugs, "\n".join(self.bugs)


def judge(
    folder: pathlib.Path,
    scratch: pathlib.Path,
    read: Callable[[], Any],
    wanted: Any,
    names: Callable[[str], str],
    only: Callable[[str], bool] = lambda name: True,
) -> Outcomes:
    """Damages each file of a folder in turn, in each way, and reads the folder.

    Args:
      read: `(result, lines of stderr)`; result is None where the command said in one line why.
      wanted: the result of the undamaged folder.
      names: a pattern of the words by which a message names a file.
      only: which names.
    """
    outcomes = Outcomes()
    for name, fault in cases(folder):
        if not only(name):
            continue
        with copied(folder, scratch) as damaged:
            inflict(fault, damaged / name)
            try:
                result, lines = read()
            except Exception as error:
                outcomes.bugs.append(f"{fault} {name}: {type(error).__name__}: {error}")
                continue
        told = [line for line in lines if re.search(names(name), line)]
        if any(not line.startswith("jxfer: ") for line in lines):
            outcomes.bugs.append(f"{fault} {name}: stderr: {lines}")
        elif result is None and not told:
            outcomes.bugs.append(f"{fault} {name}: does not name it: {lines}")
        elif result is not None and result != wanted:
            outcomes.bugs.append(f"{fault} {name}: {result} is not {wanted}; {lines}")
        else:
            shown = "harmless" if result is not None and not told else told[-1]
            outcomes.add(name, fault, shown.replace(str(folder), "FOLDER"))
    return outcomes


def command(capfd: Any, *args: str) -> tuple[int, str, list[str]]:
    """`(exit code, stdout, lines of stderr)` of a command."""
    return guarded(capfd, lambda: main(list(args)))


def guarded(capfd: Any, program: Callable[[], int | None]) -> tuple[int, str, list[str]]:
    """As `command`, of what a command does."""
    capfd.readouterr()
    code = guard(program)
    found = capfd.readouterr()
    return code, found.out, found.err.splitlines()
