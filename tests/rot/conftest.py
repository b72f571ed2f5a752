"""A command, and all that it leaves, for whoever damages the files that it reads."""

import json

import pytest

from tests import runs
from tests.rot import faults


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def call(capfd):
    """Runs a command: (what it printed, JSON if so; None where it failed in one line; stderr)."""

    def run(*args):
        code, out, lines = faults.command(capfd, *args)
        errors = [line for line in lines if line.startswith("jxfer: error: ")]
        assert (code, len(errors)) in ((0, 0), (2, 1)), (code, lines)
        return (None if code else json.loads(out) if "--json" in args else out), lines

    return run


def left(run, last=9):
    """All that a run leaves but for the clock: figures, lines, and checksums of every leaf."""
    summary = json.loads((run / "summary.json").read_text())
    progress = json.loads((run / f"checkpoints/{last}/progress/metadata").read_text())
    card = json.loads((run / "model/card.json").read_text())
    figures = {k: v for k, v in summary.items() if k not in ("commit", "checksum")}
    return figures, progress["checksums"], card["tensors_sha256"], runs.lines(run)
