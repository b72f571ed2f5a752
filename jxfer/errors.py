"""The exceptions for what is not the code's fault.

First in the flow: everything may import them. The command line turns them into one line on stderr
and exit code 2; anything else keeps its traceback, because then the fault is ours.
"""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do about it."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class DiskError(UserError):
    """A disk is full, read-only or gone: what was asked for may be fine."""
