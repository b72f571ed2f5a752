"""What a folder of finished work holds, as flat values that two folders can be compared by.

Before `kill_anywhere`. Names of files are values too, so whatever a killed process left behind
shows. Left out: times, what a log says, and bytes that differ between any two runs (those of
Orbax's files, which are read instead, of array_record files, compiled programs and figures).
"""

import json
import pathlib
import struct
import zlib
from typing import Any

import orbax.checkpoint as ocp
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jxfer import trees
from jxfer.zoo import store

TIMES = {"images_per_second", "seconds", "checksum", "metrics"}
"""Fields of times, and of checksums over them: of a JSON file, of the lines before a checkpoint."""
_NAMES_ONLY = (
    "checksums.json",
    "commit_success.txt",
    ".lock",
    ".lockfile",
    ".log",
    "-cache",
    "-atime",
    "timing.json",
    "_METADATA",
)
_SPEED = "images_per_second"


def contents(top: pathlib.Path) -> dict[str, Any]:
    """All that is below a folder, by path."""
    found: dict[str, Any] = {}
    for path in sorted(top.iterdir()):
        if path.is_dir() and path.name == "report":
            inside: dict[str, Any] = {str(p.relative_to(path)): None for p in path.rglob("*")}
        elif path.is_dir() and path.name == "state":
            with ocp.PyTreeCheckpointer() as checkpointer:
                arrays = trees.flatten(checkpointer.restore(path.absolute()))
            inside = {name: trees.crc32(array) for name, array in arrays.items()}
        elif path.is_dir() and (path / store.CARD).is_file():
            inside = _entry(path)
        elif path.is_dir():
            inside = contents(path)
        elif path.name.startswith("events"):
            continue
        else:
            inside = {"": _value(path)}
        found |= {f"{path.name}/{name}".removesuffix("/"): value for name, value in inside.items()}
        if path.is_dir() and not inside:
            found[path.name] = None
    if events := sorted(top.glob("events*")):
        found["events"] = _points(events)
    return found


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """One line for each value that is missing, new or another."""
    lines = [f"missing: {name}" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"left behind: {name}" for name in sorted(found.keys() - wanted.keys())]
    both = sorted(found.keys() & wanted.keys())
    return lines + [
        f"{name}: {found[name]!r}, undisturbed {wanted[name]!r}"
        for name in both
        if found[name] != wanted[name]
    ]


def _entry(folder: pathlib.Path) -> dict[str, Any]:
    """A zoo entry: its card but for the hash of Orbax's files, and the bits of its tensors."""
    card, variables = store.load(folder)
    fields = _timeless(json.loads(card.to_json()))
    del fields["files_sha256"]
    names = {path.name: None for path in folder.iterdir()}
    bits = {name: trees.crc32(leaf) for name, leaf in trees.flatten(variables).items()}
    return names | bits | {store.CARD: fields}


def _value(path: pathlib.Path) -> Any:
    if path.name.endswith(_NAMES_ONLY) or "array_record" in path.name:
        return None
    if path.name == "metrics.jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".json" or path.name == "metadata":
        return _timeless(json.loads(path.read_text()))
    return f"{zlib.crc32(path.read_bytes()):08x}"


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _points(files: list[pathlib.Path]) -> list[tuple[str, int, float]]:
    """(tag, step, value) as TensorBoard shows them: a start takes away what came at or after its
    step before, and a record that was cut off is none."""
    found: list[tuple[str, int, float]] = []
    for file in files:
        data, position = file.read_bytes(), 0
        while position + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            record = data[position + 12 : position + 12 + length]
            position += 12 + length + 4
            if position > len(data):
                break
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                found = [point for point in found if point[1] < event.step]
            values = [value for value in event.summary.value if value.tag != _SPEED]
            found += [(value.tag, event.step, value.simple_value) for value in values]
    return found
