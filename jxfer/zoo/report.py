"""What became of every tensor when weights were loaded, and how to refuse a bad match.

Used by `torch_names` (a file into a model) and `transplant` (an entry into a model).
"""

import dataclasses
from collections.abc import Sequence

from jxfer.errors import UserError

_SHOWN = 5  # problems written out in one message


@dataclasses.dataclass(frozen=True)
class Report:
    """Sorted names; every tensor of the source and every leaf of the target is in one of them."""

    loaded: tuple[str, ...]
    """paths of target leaves that were filled from the source"""
    reinitialised: tuple[str, ...]
    """paths of target leaves that keep a fresh random value"""
    dropped: tuple[str, ...]
    """names, in the source's own terms, of tensors that were not used"""

    def __str__(self) -> str:
        return (
            f"loaded {len(self.loaded)}, re-initialised {len(self.reinitialised)}, "
            f"dropped {len(self.dropped)}"
        )


def raise_problems(what: str, problems: Sequence[str]) -> None:
    """Raises all problems as one line, the first five written out; does nothing without any.

    Raises:
      UserError: `problems` is not empty.
    """
    if not problems:
        return
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    shown = list(problems[:_SHOWN])
    if len(problems) > _SHOWN:
        shown.append(f"and {len(problems) - _SHOWN} more")
    raise UserError(f"{what}: {count}: {'; '.join(shown)}")
