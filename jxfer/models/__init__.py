"""Architectures: modules, heads, and the registry that is the seam to the rest.

`convolutional` and `score_geometry` turn a classifier into a map of scores; imported when they are
first used.
"""

import importlib
from typing import Any

_HOMES = dict.fromkeys(("convolutional", "score_geometry"), "jxfer.models.dense")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
