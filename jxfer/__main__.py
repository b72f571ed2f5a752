"""`python -m jxfer` is the command `jxfer`."""

import sys

from jxfer.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
