"""python -m tests.flower.simulated CONFIG FOLDER [AT_ONCE]: a simulation in a process of its own."""

import sys

from fedreft_lib import RunConfig
from fedreft_lib.errors import FedReFTError
from fedreft_lib.flower.simulation import simulate

if __name__ == "__main__":
    given, folder, *at_once = sys.argv[1:]
    try:
        simulate(RunConfig.model_validate_json(given), folder, at_once=int(*at_once or [1]), progress=False)
    except FedReFTError as error:
        sys.exit(str(error))
