"""`python -m fedreft_lib`: see `batch.command_line`."""

import signal
import sys

from .batch.command_line import main

if __name__ == "__main__":
    # SIGTERM ends the kernels too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
