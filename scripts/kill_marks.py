"""Runs a jxfer command, marks in a file which places it reaches, and kills itself at one of them.

The child of `kill_anywhere`: `python scripts/kill_marks.py ORDER`, or with modules in place of the
order, which are imported first; then each line of stdin is an order, for a fork that takes it, and
its exit code, or minus the signal, is answered. An order is JSON:

    args    of jxfer
    cwd     where it runs
    log     the file that takes its output
    marks   the file; a line is a time in seconds, + or -, the thread, the place, and what was there
    calls   place -> module:function; a call begins with + and ends with -
    files   place -> what matches the path, relative to the working folder, of a file or folder that
            is about to be made, opened to write, renamed or removed
    patience    seconds after which it is ended
    at      [place, how many-th time, seconds later], where kill -9 comes, or null

Nothing of the command is replaced: its functions are called as they are, and the files are seen by
an audit hook, before each operation. TensorStore's writes in C++ are not seen, hence the delays.
"""

import collections
import functools
import importlib
import importlib.abc
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

START, END = "starting", "ending"


class Marks:
    """Counts the places that are reached."""

    def __init__(self, file: str, at: tuple[str, int, float] | None) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._at = at
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def reach(self, place: str, what: str = "") -> None:
        with self._lock:
            self._counts[place] += 1
            number = self._counts[place]
        self.note("+", place, what)
        if self._at is not None and (place, number) == tuple(self._at[:2]):
            if not self._at[2]:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Thread(target=self._kill_later, daemon=True).start()

    def note(self, sign: str, place: str, what: str = "") -> None:
        line = f"{time.monotonic():.6f}\t{sign}\t{threading.get_ident()}\t{place}\t{what}\n"
        os.write(self._file, line.encode(errors="replace"))

    def _kill_later(self) -> None:
        assert self._at is not None
        time.sleep(self._at[2])
        os.kill(os.getpid(), signal.SIGKILL)

    def watch_calls(self, calls: dict[str, str]) -> None:
        for place, where in calls.items():
            module, _, path = where.partition(":")
            owner: Any = importlib.import_module(module)
            *owners, name = path.split(".")
            for part in owners:
                owner = getattr(owner, part)
            setattr(owner, name, self._marked(place, getattr(owner, name)))

    def _marked(self, place: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def marked(*args: Any, **kwargs: Any) -> Any:
            self.reach(place)
            try:
                return call(*args, **kwargs)
            finally:
                self.note("-", place)

        return marked

    def watch_files(self, files: dict[str, str]) -> None:
        patterns = {place: re.compile(pattern) for place, pattern in files.items()}
        here = os.getcwd() + "/"

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event not in _OPERATIONS and not (event == "open" and _writes(args)):
                return
            path = _path(event, args)
            if path is None or (path.startswith("/") and not path.startswith(here)):
                return
            path = path.removeprefix(here)
            for place, pattern in patterns.items():
                if pattern.match(path):
                    self.reach(place, f"{event.removeprefix('os.')} {path}")
                    return

        sys.addaudithook(hook)


_OPERATIONS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


def _writes(args: tuple[Any, ...]) -> bool:
    return bool(args[2] & (os.O_WRONLY | os.O_RDWR))


def _path(event: str, args: tuple[Any, ...]) -> str | None:
    """Of the file, absolute or as it was given."""
    if isinstance(args[0], int) or args[0] is None:
        return None
    path = os.fsdecode(args[0])
    if event in ("os.remove", "os.rmdir") and args[1] != -1:  # relative to an open folder
        path = os.path.join(os.readlink(f"/proc/self/fd/{args[1]}"), path)
    return path


class _WithoutTorch(importlib.abc.MetaPathFinder):
    """Hides an extra that tensorboardX imports where it is installed, which takes seconds."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "torch":
            raise ModuleNotFoundError("torch is hidden", name=fullname)


def main() -> int:
    sys.meta_path.insert(0, _WithoutTorch())
    if sys.argv[1].startswith("{"):
        return _run(json.loads(sys.argv[1]))
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return _run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return 0


def _run(order: dict[str, Any]) -> int:
    signal.alarm(order["patience"])  # ends a process that hangs
    os.chdir(order["cwd"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for file in (1, 2):
        os.dup2(log, file)
    sys.argv = ["jxfer", *order["args"]]  # as the command puts it into cards
    marks = Marks(order["marks"], order["at"])
    marks.reach(START)
    marks.watch_calls(order["calls"])
    marks.watch_files(order["files"])
    from jxfer.commands.main import main as command

    code = command()
    marks.reach(END)
    return code


if __name__ == "__main__":
    sys.exit(main())
