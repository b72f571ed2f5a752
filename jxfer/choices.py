"""What a field of a config may be, checked where the config is made.

After `errors` in the flow. The command line checks the choices of an option; a config that Python
builds would take anything, and a misspelt name would train something else.
"""

import typing
from typing import Any

from jxfer.errors import UserError


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
            option = f"{name.replace('_', '-')} {getattr(config, name)}"
            raise UserError(f"{prefix}{option}: it must be {allowed}")
