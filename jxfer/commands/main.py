"""The entry point: picks a command; what a person caused becomes one line and exit code 2."""

import gc
import importlib
import logging
import os
import sys
from collections.abc import Callable

from jxfer import disk, text
from jxfer.errors import UserError

COMMANDS = {
    "train": "train a model, or resume or finish a run",
    "lr-find": "suggest a learning rate for a run",
    "advise": "measure weights on images, and recommend what to train",
    "audit": "what a training costs a step, and whether what is frozen leaks",
    "evaluate": "accuracy of a run or zoo entry on a data set",
    "predict": "class names and probabilities of images",
    "features": "outputs of a frozen network, in files that NumPy opens",
    "probe": "a linear classifier or nearest neighbours on every stage of a frozen network",
    "ablate": "run an experiment file: a grid of runs, its table and verdicts",
    "report": "tables, figures and a page of a finished sweep or run",
    "zoo": "import, list, show, verify, compare and export pretrained weights",
}
"""Each is a module of this package with `main(args) -> exit code`, imported when it is called; a
dash in the name is an underscore in the module's."""

_COLLECT_AFTER = 50_000
"""New objects after which Python looks for garbage, in place of its 700 to 2,000: imports and
traces make some millions that stay, and to look through these again and again took 6 % of a start.
"""


def main(args: list[str] | None = None) -> int:
    """Runs `jxfer ARGS` and returns the exit code."""
    args = sys.argv[1:] if args is None else args
    name = args[0] if args else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return 0 if args else 2

    def command() -> int:
        if name not in COMMANDS:
            raise UserError(f"no command {name!r}; there are {', '.join(COMMANDS)}")
        gc.set_threshold(_COLLECT_AFTER)
        module = importlib.import_module(f"jxfer.commands.{name.replace('-', '_')}")
        importlib.import_module("jxfer.train.program_cache").switch_on()
        return int(module.main(args[1:]))

    return guard(command)


def guard(program: Callable[[], int | None]) -> int:
    """Runs a program with log lines on stderr.

    `UserError` is one line and exit code 2, and so is a disk that fails where nothing else tells.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(text.OneLine("jxfer: %(message)s"))
    log = logging.getLogger("jxfer")
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)
    try:
        with disk.quiet_threads():
            code = program() or 0
        sys.stdout.flush()  # here, where a closed pipe is still ours to answer
        return code
    except UserError as error:
        print(text.one_line(f"jxfer: error: {error}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        _drop_output()
        return 141
    except OSError as error:
        if not disk.is_disk(error):
            raise
        where = error.filename or "standard output, or a temporary file"
        print(text.one_line(f"jxfer: error: {where}: {error.strerror}"), file=sys.stderr)
        _drop_output()
        return 2
    except KeyboardInterrupt:
        print("jxfer: interrupted; the same command resumes a run", file=sys.stderr)
        return 130


def _drop_output() -> None:
    """What is left to write to standard output goes nowhere, so that the exit can flush it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jxfer COMMAND [OPTIONS]",
            "",
            "Transfer learning with image classifiers in JAX.",
            "",
            *lines,
            "",
            "jxfer COMMAND --help shows a command's options.",
        ]
    )
