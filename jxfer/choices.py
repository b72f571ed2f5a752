"""What the command line calls a field of a config, and what it may be, checked where it is made.

After `errors` in the flow. The command line checks the choices of an option; a config that Python
builds would take anything, and a misspelt name would train something else.
"""

import typing
from typing import Any

from jxfer.errors import UserError


def option(prefix: str, name: str) -> str:
    """The command line's name of a field: `--adapt.`, `min_size` -> `--adapt.min-size`."""
    return f"{prefix}{name.replace('_', '-')}"


def check(config: Any, prefix: str) -> None:
    """Compares every `Literal` field of a dataclass with its choices.

    Args:
      config: an instance.
      prefix: of its fields, in the message: `--optimizer.`.

    Raises:
      UserError: a field is none of its choices.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is typing.Literal and getattr(config, name) not in hint.__args__:
            *others, last = map(str, hint.__args__)
            allowed = f"{', '.join(others)} or {last}"
            found = f"{option(prefix, name)} {getattr(config, name)}"
            raise UserError(f"{found}: it must be {allowed}")
