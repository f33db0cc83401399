"""The engine: which clients train together in one pass.

    one_by_one    each client by itself (core.training.train)
    cohort        the batches of several clients as one (model.fast.cohort): the same bits, except as noted there
    last_token    a cohort of many clients, whose texts are read at their prompts' last tokens alone (model.fast.
                  last_token): equal but for rounding; "auto" means it wherever it is possible

The choice depends on the config and the kind of device, never on a clock, so a run that is repeated or continued has
the same bits. Measured by `python -m tests.benchmarks cohort`: SmolLM2-135M, layers 20-29, four clients with texts of
different lengths, two CPU threads. Seconds of a cohort, divided by those of one client after another:

    batches of    one    two    four   eight
    bfloat16      0.61   0.71   0.87   0.88
    float32       0.55   0.71   0.81   1.00

Where batches are padded (see model/fast/packed_attention.py), different lengths cost more than one pass saves, and
"auto" means one_by_one. No GPU has been measured: there a cohort has at most 32 rows, one batch of the paper's profile.
"""

from dataclasses import dataclass

import torch

from ..config import RunConfig
from ..methods import METHODS
from ..model.encoding import AnswerSet, ChoiceSet, LabelSet
from ..model.fast.packed_attention import GIVEN

LARGEST_BATCH = {"cpu": 4, "cuda": 16}  # rows of one client; cohorts are faster up to here
ROWS = {"cpu": 16, "cuda": 32}  # most rows in one pass, to bound its memory
LAST_TOKENS = 1024  # most rows in one pass where a row is one token


@dataclass(frozen=True)
class Participant:
    """One learner: a client, or the centralised learner with the data of all clients."""

    name: str
    train: AnswerSet | ChoiceSet | LabelSet
    steps: int

    @property
    def last_token(self) -> bool:
        return isinstance(self.train, ChoiceSet) and self.train.last is not None


def engine_of(config: RunConfig, device: torch.device, last_token: bool = False) -> str:
    """The engine that "auto" means here. Dropout is drawn client by client, so "auto" then means one_by_one.

    Methods whose training needs more of a client than its state and its batches always go one by one.
    """
    if METHODS[config.method].one_by_one:
        return "one_by_one"
    if config.engine != "auto":
        return config.engine
    if last_token:
        return "last_token"
    small = config.batch_size <= LARGEST_BATCH.get(device.type, LARGEST_BATCH["cpu"])
    return "cohort" if GIVEN and small and not config.dropout else "one_by_one"


def rows_in_a_pass(config: RunConfig, device: torch.device, last_token: bool = False) -> int:
    """The most rows that one pass of training has."""
    engine = engine_of(config, device, last_token)
    if engine == "one_by_one":
        return config.batch_size
    return max(LAST_TOKENS if engine == "last_token" else ROWS.get(device.type, ROWS["cpu"]), config.batch_size)


def cohorts(clients: dict[int, Participant], config: RunConfig, device: torch.device) -> list[list[int]]:
    """The groups of clients (numbers) that train together. All clients of a group take the same number of steps."""
    last_token = all(client.last_token for client in clients.values())
    if engine_of(config, device, last_token) == "one_by_one":
        return [[k] for k in clients]
    most = rows_in_a_pass(config, device, last_token) // config.batch_size
    found: list[list[int]] = []
    for k in sorted(clients, key=lambda k: _kind(clients[k]), reverse=True):
        if found and len(found[-1]) < most and _kind(clients[found[-1][0]]) == _kind(clients[k]):
            found[-1].append(k)
        else:
            found.append([k])
    return found


def _kind(client: Participant) -> tuple[int, bool]:
    """What the clients of a group share: learning rates depend on the steps; cached hidden states serve all or none."""
    return client.steps, client.train.hidden is None
