"""Which clients train together in one pass: the engine.

    one_by_one    each client alone (local.train): the plain loop
    cohort        several clients' batches as one (cohort.train_together): equal but for rounding

The choice follows from the config, the data and the kind of device, never from a clock, so that a run has the same bits
whenever it is run again or goes on. Measured by tests/benchmarks/cohort.py on one CPU thread, which two texts of 60
tokens keep busy. How many times as fast a cohort is:

    SmolLM2-135M, layers 20-29, four clients, like lengths       1.26 with batches of one, 0.94 of two, 0.92 of four
    the same with eight clients; in bfloat16; in all layers      1.35; 1.27; 1.08 with batches of one
    four tasks of unlike lengths, up to 64 tokens; up to 256     1.17; 0.57 with batches of one (padding)
    MiniLM, texts of 25 tokens, three clients                    1.39 with batches of one, 1.18 of two, 1.02 of 16

No GPU has been measured; there the figures below keep a cohort to the 32 rows that a batch of the paper's profile has.
"""

from typing import TYPE_CHECKING

import torch

from .config import RunConfig

if TYPE_CHECKING:
    from .training import Participant

LARGEST_BATCH = {"cpu": 1, "cuda": 16}  # a client's rows, up to which cohorts are faster
ROWS = {"cpu": 16, "cuda": 32}  # in one pass at most, for its memory
ALIKE = 0.75  # "auto" joins clients whose texts are on average at least so long as the cohort's longest


def engine_of(config: RunConfig, device: torch.device) -> str:
    """The engine that "auto" stands for. Dropout is drawn client by client, so it has no cohorts."""
    if config.engine != "auto":
        return config.engine
    together = config.batch_size <= LARGEST_BATCH.get(device.type, LARGEST_BATCH["cpu"]) and not config.dropout
    return "cohort" if together else "one_by_one"


def rows_in_a_pass(config: RunConfig, device: torch.device) -> int:
    """At most, in training."""
    if engine_of(config, device) == "one_by_one":
        return config.batch_size
    return max(ROWS.get(device.type, ROWS["cpu"]), config.batch_size)


def cohorts(clients: "dict[int, Participant]", config: RunConfig, device: torch.device) -> list[list[int]]:
    """The clients, by number, in the groups that train together; all of a group take as many steps."""
    if engine_of(config, device) == "one_by_one":
        return [[k] for k in clients]
    most = rows_in_a_pass(config, device) // config.batch_size
    found: list[list[int]] = []
    for k in sorted(clients, key=lambda k: _order(clients[k]), reverse=True):
        client, first = clients[k], clients[found[-1][0]] if found else None
        if first and len(found[-1]) < most and _fit(first, client, config):
            found[-1].append(k)
        else:
            found.append([k])
    return found


def _fit(first: "Participant", client: "Participant", config: RunConfig) -> bool:
    # Learning rates follow the steps; and one client without cached states would cost the others theirs.
    return _order(first)[:2] == _order(client)[:2] and (
        config.engine == "cohort" or _length(client) >= ALIKE * _length(first)
    )


def _order(client: "Participant") -> tuple[int, bool, float]:
    return client.steps, client.train.hidden is None, _length(client)


def _length(client: "Participant") -> float:
    """Tokens of a training text on average."""
    return sum(len(sequence.ids) for sequence in client.train.sequences) / len(client.train)
