"""`python -m fedreft_lib`: see `batch.command_line`."""

import signal
import sys

from .batch.command_line import main

if __name__ == "__main__":
    # As with Ctrl-C, kernels are ended on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
