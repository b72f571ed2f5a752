"""What a run has written, and its files damaged."""

import json
import pathlib
from typing import Any

from jxfer.train import run_folder


def lines(run: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the speed, which no two runs share."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in found]


def summary(run: pathlib.Path) -> dict[str, Any]:
    """summary.json without the commit: the code may be edited while its tests run."""
    found = run_folder.read_summary(run)
    del found["commit"]
    return found


def checkpoints(run: pathlib.Path) -> list[int]:
    """The steps whose checkpoints are there whole."""
    names = (path.name for path in (run / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    """Of all below a folder: the tensors of an entry or checkpoint."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(path: pathlib.Path) -> None:
    """In the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: pathlib.Path) -> None:
    """Leaves the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
