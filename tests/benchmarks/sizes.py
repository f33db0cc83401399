"""How large the benchmarks are: FULL for `make bench`, TINY for the tests, which only see that everything runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    backbone: str
    source: str  # of questions
    dtypes: tuple[str, ...]  # the first is the one for what is measured in one precision only
    lengths: tuple[int, ...]  # tokens of a training prompt
    steps: int  # of peft's and our training, of which the first is not timed
    questions: int  # to score, for each of four clients
    new_tokens: int
    clients: int  # of the aggregation
    parameters: int  # of each of them
    local_steps: tuple[int, ...]  # of each of them in a round
    tops: tuple[str, ...]  # layers with sites, for runs with kept hidden states
    batches: tuple[int, ...]  # rows of a client's batch, for cohorts
    sweeps: dict[str, tuple[int, ...]]  # what time is taken against
    enrolled: tuple[int, int]  # clients of whom some are drawn for a round: few, and many
    drawn: int  # of them
    lr: float  # of whole federations, which have to learn something
    grown_clients: tuple[int, ...]  # enrolled, of whom `drawn` are drawn
    grown_width: int  # of the model whose states grow
    grown_ranks: tuple[int, ...]  # of these states
    grown_medians: tuple[int, ...]  # clients of a geometric median
    grown_columns: int  # parameters of each of these


FULL = Size(
    backbone="smollm2-135m-instruct",
    source="packaged",
    dtypes=("bfloat16", "float32"),
    lengths=(64, 160),
    steps=4,
    questions=32,
    new_tokens=24,
    clients=100,
    parameters=2_752_960,  # LoReFT of rank 8 at every layer of LLaMA-3.2-3B
    local_steps=(1, 4),
    tops=("20-29", "25-29"),
    batches=(1, 2, 4, 8),
    # FedReFT begins at two clients: one alone has no others.
    sweeps={
        "clients": (2, 4, 16, 64),
        "drawn": (4, 8, 16, 32),
        "rounds": (2, 4, 8, 16),
        "examples": (8, 16, 32, 64),
        "length": (32, 128, 512),
    },  # fmt: skip
    enrolled=(100, 1000),
    drawn=10,
    lr=2e-3,
    grown_clients=(100, 1_000, 10_000),
    grown_width=1344,
    grown_ranks=(9, 64, 512),  # 0.2, 1.4 and 11 M parameters
    grown_medians=(10, 30, 100, 300, 1_000),
    grown_columns=100_000,
)
TINY = Size(
    backbone="tiny-llama",
    source="synthetic",
    dtypes=("float32",),
    lengths=(24,),
    steps=3,
    questions=2,
    new_tokens=3,
    clients=5,
    parameters=1000,
    local_steps=(1,),
    tops=("2-3",),
    batches=(2,),
    sweeps={
        "clients": (2, 3),
        "drawn": (2, 3),
        "rounds": (1, 2),
        "examples": (4, 8),
        "length": (24, 48),
    },  # fmt: skip
    enrolled=(4, 8),
    drawn=2,
    lr=2e-2,
    grown_clients=(4, 8),
    grown_width=32,
    grown_ranks=(1, 2),
    grown_medians=(5, 10),
    grown_columns=1000,
)
