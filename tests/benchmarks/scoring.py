"""Multiple choice: a prompt read once with all its options on top of it, against every (prompt, option) pair.

Real questions of four tasks, as `evaluate.chosen` reads them. Both sides have as many rows in a batch.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import replace

import torch
from torch import Tensor

from fedreft_lib import RunConfig, evaluate
from fedreft_lib.batches import Sequence, by_length
from fedreft_lib.interventions import State
from fedreft_lib.steering import SteeredModel
from fedreft_lib.worlds import Options, open_world
from tests.benchmarks.contest import Contest, Rival, timed
from tests.benchmarks.sizes import Size


def contests(size: Size) -> Iterator[Contest]:
    for dtype in size.dtypes:
        yield contest(size, dtype)


def questions(size: Size, dtype: str) -> tuple[SteeredModel, Options, RunConfig]:
    """The test questions of four clients as one, and the model that reads them."""
    config = RunConfig(
        backbone=size.backbone, source=size.source, dtype=dtype, device="cpu", clients=4, train_size=1,
        held_out_size=1, test_size=size.questions, scoring="likelihood",
    )  # fmt: skip
    world = open_world(config)
    data = Options.join([part for client in world.clients for part in client.test])
    return world.model, replace(data, hidden=None), config


def contest(size: Size, dtype: str) -> Contest:
    model, data, config = questions(size, dtype)
    state, rows = model.start("random", 0), 2 * config.batch_size
    apart = [pair for sequence in data.sequences for pair in pairs(sequence)]
    counts = [len(sequence.answer_lengths) for sequence in data.sequences]

    def ours() -> Tensor:
        return evaluate.chosen(model, state, data, config)

    def theirs() -> Tensor:
        return torch.stack([each.argmax() for each in totals(model, state, apart, rows).split(counts)])

    def check() -> str:
        differ = int((ours() != theirs()).sum())
        together, each = (totals(model, state, sequences, rows) for sequences in (data.sequences, apart))
        away = float(((together - each) / each).abs().max())
        if model.backbone.dtype == torch.float32:
            assert differ == 0 and away < 1e-4, f"{differ} choices differ, log-probabilities by {away:.1e}"
        tokens = [padded(sequences, rows) for sequences in (data.sequences, apart)]
        read = f"{tokens[0]} tokens with their padding in place of {tokens[1]}"
        return f"{differ} of {len(data)} choices differ, log-probabilities by {away:.0e}; {read}"

    rivals = (Rival("every pair", timed(theirs), target=1 / 2),)
    return Contest(f"multiple choice, {dtype}, {len(data)} questions", timed(ours), rivals, check)


def pairs(sequence: Sequence) -> list[Sequence]:
    """The prompt with each of its options alone."""
    prompt = sequence.ids[: sequence.prompt_length]
    options = torch.tensor(sequence.ids[sequence.prompt_length :]).split(sequence.answer_lengths)
    return [Sequence((*prompt, *option.tolist()), len(prompt), (len(option),)) for option in options]


def padded(sequences: Many[Sequence], rows: int) -> int:
    """How many tokens the model reads, padding included."""
    batches = ([len(sequences[i].ids) for i in indices] for indices in by_length(sequences, rows))
    return sum(len(lengths) * max(lengths) for lengths in batches)


@torch.no_grad()
def totals(model: SteeredModel, state: State, sequences: Many[Sequence], rows: int) -> Tensor:
    """The log-probability of every answer of `sequences`, in their order."""
    found: dict[int, Tensor] = {}
    for indices in by_length(sequences, rows):
        logprobs, answer = model.answer_logprobs(model.batch([sequences[i] for i in indices]), state)
        counts = [len(sequences[i].answer_lengths) for i in indices]
        sums = torch.zeros(sum(counts), dtype=torch.float64).index_add_(0, answer, logprobs.double())
        found |= dict(zip(indices, sums.split(counts), strict=True))
    return torch.cat([found[i] for i in range(len(sequences))])
