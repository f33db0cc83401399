"""All leave-one-out medians of a random matrix: python -m tests.benchmarks.grown_medians CLIENTS PARAMETERS.

Prints processor seconds, the MB that they take beyond the matrix, and Weiszfeld's iterations.
"""

import json
import sys
import time
from unittest import mock

from fedreft_lib.core import geometric_median
from fedreft_lib.core.aggregation import all_but_me
from tests.benchmarks import peak


def grown(clients: int, parameters: int) -> dict[str, float]:
    all_but_me(peak.matrix(3, 1000))  # what torch loads and keeps on its first use
    X = peak.matrix(clients, parameters)
    before, began = peak.resident(), time.process_time()
    with (
        mock.patch.object(geometric_median, "_forces", wraps=geometric_median._forces) as forces,
        mock.patch.object(geometric_median, "_nearest_point", wraps=geometric_median._nearest_point) as nearest,
    ):
        all_but_me(X)
    return {
        "seconds": time.process_time() - began,
        "memory": (peak.resident() - before) / 1e6,
        "iterations": forces.call_count - nearest.call_count,  # `_nearest_point` asks for forces too
    }


if __name__ == "__main__":
    print(json.dumps(grown(*map(int, sys.argv[1:]))))
