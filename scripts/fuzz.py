"""Feeds the parsers of `tests/fuzz_targets.py` by atheris: coverage leads it to new inputs.

    python scripts/fuzz.py card -max_total_time=600

The first argument is a target, the others are libFuzzer's. It ends at the first input that gives
anything but a result or a `UserError`, and leaves it in `crash-...`; such an input becomes a test
in `tests/test_fuzz.py`. Needs atheris, which is in no list of dependencies.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
with atheris.instrument_imports(include=["jxfer", "PIL", "numpy.lib"]):
    from tests import fuzz_targets


def main() -> None:
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], lambda data: fuzz_targets.try_one(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
