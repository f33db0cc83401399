"""Which clients train together in one pass: the engine.

    one_by_one    each client alone (core.training.train): the plain loop
    cohort        several clients' batches as one (cohort.train_together): the same bits, see there for exceptions

The choice follows from the config and the kind of device, never from a clock, so that a run has the same bits whenever
it is run again or goes on. Measured by `python -m tests.benchmarks cohort`: SmolLM2-135M, layers 20-29, four clients
with texts of unlike lengths, two CPU threads. Seconds of a cohort over those of one after another:

    batches of    one    two    four   eight
    bfloat16      0.61   0.71   0.87   0.88
    float32       0.55   0.71   0.81   1.00

Where batches are padded (see model.fast.packed_attention) unlike lengths cost more than one pass saves, and "auto" is
one_by_one. No GPU has been measured; there the figures below keep a cohort to 32 rows, a batch of the paper's profile.
"""

from dataclasses import dataclass

import torch

from ..config import RunConfig
from ..model.encoding import AnswerSet, LabelSet
from ..model.fast.packed_attention import GIVEN

LARGEST_BATCH = {"cpu": 4, "cuda": 16}  # a client's rows, up to which cohorts are faster
ROWS = {"cpu": 16, "cuda": 32}  # in one pass at most, for its memory


@dataclass(frozen=True)
class Participant:
    """Who trains: a client, or the centralised learner with everybody's data."""

    name: str
    train: AnswerSet | LabelSet
    steps: int


def engine_of(config: RunConfig, device: torch.device) -> str:
    """The engine that "auto" stands for. Dropout is drawn client by client, so it has no cohorts."""
    if config.engine != "auto":
        return config.engine
    small = config.batch_size <= LARGEST_BATCH.get(device.type, LARGEST_BATCH["cpu"])
    return "cohort" if GIVEN and small and not config.dropout else "one_by_one"


def rows_in_a_pass(config: RunConfig, device: torch.device) -> int:
    """At most, in training."""
    if engine_of(config, device) == "one_by_one":
        return config.batch_size
    return max(ROWS.get(device.type, ROWS["cpu"]), config.batch_size)


def cohorts(clients: dict[int, Participant], config: RunConfig, device: torch.device) -> list[list[int]]:
    """The clients, by number, in the groups that train together; all of a group take as many steps."""
    if engine_of(config, device) == "one_by_one":
        return [[k] for k in clients]
    most = rows_in_a_pass(config, device) // config.batch_size
    found: list[list[int]] = []
    for k in sorted(clients, key=lambda k: _kind(clients[k]), reverse=True):
        if found and len(found[-1]) < most and _kind(clients[found[-1][0]]) == _kind(clients[k]):
            found[-1].append(k)
        else:
            found.append([k])
    return found


def _kind(client: Participant) -> tuple[int, bool]:
    """Who go together: learning rates follow the steps, and one without cached states would cost the others theirs."""
    return client.steps, client.train.hidden is None
