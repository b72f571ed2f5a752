"""JSON files that tell their own damage: an object with the checksum of all else in it.

After `json_fields` in the flow. A flipped bit mostly leaves a JSON file that can be read, with
another figure or another name in it; the field `checksum` does not match then. A file without that
field, of an earlier version or made by hand, is taken as it is.
"""

import json
import pathlib
import zlib
from typing import Any

from jxfer.errors import UserError
from jxfer.json_fields import parse

CHECKSUM = "checksum"
"""The field: eight hexadecimal digits."""


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """Their checksum, first, so that a person can remove its line, and the values."""
    assert CHECKSUM not in values
    return {CHECKSUM: _checksum(values)} | values


def bare(found: Any) -> Any:
    """What was sealed, whether or not the checksum matches: for who tells of other faults first."""
    if not isinstance(found, dict):
        return found
    return {name: value for name, value in found.items() if name != CHECKSUM}


def unseal(found: Any, where: str, remedy: str = "restore it") -> Any:
    """What was sealed.

    Args:
      found: what `json_fields.parse` returned.
      where: names the file in the message.
      remedy: what to do about it, for the message.

    Raises:
      UserError: the checksum is that of other values.
    """
    values = bare(found)
    if isinstance(found, dict) and _is_damaged(found, values):
        raise UserError(
            f"{where} is damaged: its checksum is that of another content; {remedy}; if the change "
            "is yours, remove the line of the checksum"
        )
    return values


def read(path: pathlib.Path, remedy: str) -> Any:
    """What a sealed file holds.

    Args:
      remedy: what to do about a file that cannot be read, for the message.

    Raises:
      UserError: it is not there, no JSON, or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged, no UTF-8"
        raise UserError(f"{path} cannot be read: {reason}; {remedy}") from error
    try:
        found = parse(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged, no valid JSON ({error}); {remedy}") from error
    return unseal(found, str(path), remedy)


def _is_damaged(found: dict[str, Any], values: dict[str, Any]) -> bool:
    if CHECKSUM in found:
        return found[CHECKSUM] not in (None, _checksum(values))
    # A bit of the field's own name may have flipped.
    return any(
        isinstance(value, str) and value == _checksum({k: v for k, v in found.items() if k != name})
        for name, value in found.items()
    )


def _checksum(values: dict[str, Any]) -> str:
    # As they come back from a file: keys are text there.
    plain = json.loads(json.dumps(values))
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"
