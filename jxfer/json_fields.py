"""JSON -> frozen dataclasses, strictly: nothing missing, nothing unknown, nothing of another type.

Below `errors` in the flow. `dataclasses.asdict` is the way back.
"""

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

from jxfer.errors import UserError

T = TypeVar("T")
ADDED = {"added": True}
"""Metadata of a field with a default that files of earlier versions do not have."""
_DEEPEST = 50  # levels of a file


def parse(text: str) -> Any:
    """`json.loads` for files of others.

    Raises:
      ValueError: it is not JSON, or nested so deeply that no code of ours could follow.
    """
    too_deep = ValueError(f"nested more than {_DEEPEST} levels deep")

    def check(value: Any, left: int) -> None:
        if not left:
            raise too_deep
        for child in value.values() if isinstance(value, dict) else value:
            if isinstance(child, dict | list):
                check(child, left - 1)

    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep from None
    check([value], _DEEPEST + 1)
    return value


def decode(cls: type[T], value: Any, where: str) -> T:
    """Builds a dataclass from what `json.load` returned.

    Fields may be str, int, float, bool, None, dict, another dataclass, `Literal`, `tuple[X, ...]`,
    `tuple[X, Y]` and unions of these. Every field must be present, those with a default too: a
    file that was written by another version shall say so. Only a field with the metadata `ADDED`
    takes its default where it is absent.

    Args:
      cls: the dataclass.
      value: a JSON object.
      where: names the file in messages.

    Raises:
      UserError: a field is missing, unknown, of the wrong type, or refused by the dataclass; the
        message names `where` and the field.
    """
    return typing.cast(T, _decode(cls, value, where, ""))


def _decode(hint: Any, value: Any, where: str, field: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where, field)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _decode(hint, value, where, field)
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _wrong(where, field, f"one of {', '.join(map(str, arguments))}", value)
    if origin is tuple:
        return _tuple(arguments, value, where, field)
    kind = origin or hint
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _wrong(where, field, "a number within float64", value) from None
    if type(value) is not kind:  # not isinstance: True is an int
        raise _wrong(where, field, _KINDS[kind], value)
    return value


_KINDS = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "an object",
}


def _dataclass(cls: Any, value: Any, where: str, field: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, field or "the file", "an object", value)
    hints = typing.get_type_hints(cls)
    added = {f.name: bool(f.metadata.get("added")) for f in dataclasses.fields(cls)}
    prefix = f"{field}." if field else ""
    for name, later in added.items():
        if name not in value and not later:
            raise UserError(f"{where}: the field {prefix}{name} is missing")
    for name in value:
        if name not in added:
            raise UserError(f"{where}: unknown field {prefix}{name}")
    given = [name for name in added if name in value]
    fields = {name: _decode(hints[name], value[name], where, prefix + name) for name in given}
    try:
        return cls(**fields)
    except UserError as error:  # a range check of the dataclass itself: say which file
        raise UserError(f"{where}: {error}") from None


def _tuple(arguments: tuple[Any, ...], value: Any, where: str, field: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(where, field, "a list", value)
    if arguments[-1] is Ellipsis:
        arguments = arguments[:1] * len(value)
    if len(arguments) != len(value):
        raise _wrong(where, field, f"a list of {len(arguments)}", value)
    return tuple(
        _decode(hint, item, where, f"{field}[{i}]")
        for i, (hint, item) in enumerate(zip(arguments, value, strict=True))
    )


def _wrong(where: str, field: str, expected: str, value: Any) -> UserError:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return UserError(f"{where}: {field} must be {expected}, not {shown}")
