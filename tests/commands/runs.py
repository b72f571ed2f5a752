"""A small run by its command, in this process or another, and what came of it to the last bit."""

import hashlib
import json
import os
import subprocess
import sys

from jxfer.zoo import store
from tests import runs
from tests.train.conftest import ROOT


def files(folder):
    """What lies in a folder, by name: the digest of each file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def train(folder, images, *more):
    """Nine steps, a line every second, checkpoints at 3, 4, 7, 8 and 9."""
    options = {
        "--run": folder,
        "--data.source": f"folder:{images}",
        "--model.arch": "resnet20",
        "--model.through": "stage1",
        "--strategy.name": "scratch",
        "--optimizer.lr": 0.05,
        "--batch-size": 16,
        "--epochs": 4,
        "--log-every": 2,
        "--checkpoint-every": 4,
    }
    return ["train", *(word for option in options.items() for word in option), *more]


def outcome(folder):
    """Summary, metrics, the model's card, and the checksums of every leaf of the last state."""
    summary = runs.summary(folder)
    last = (folder / "checkpoints" / str(summary["steps"]) / "progress").glob("*")
    (progress,) = (json.loads(file.read_text()) for file in last if file.stat().st_size > 1000)
    for name in ("checksum", "metrics"):  # of the lines, which hold the speed
        del progress[name]
    return summary, runs.lines(folder), store.verify(folder / "model").tensors_sha256, progress


def start(*args, **environment):
    """The command in a process of its own, on as many devices as here.

    What it compiles is kept where the tests keep theirs, unless it has a cache of its own.
    """
    changed = {"PYTHONPATH": str(ROOT), **environment}
    inherited = dict(os.environ)
    if "JXFER_COMPILED" in environment:
        inherited.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(
        [sys.executable, "-m", "jxfer", *map(str, args)],
        env=inherited | {name: str(value) for name, value in changed.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
