"""Multiple choice: a prompt read once with all its options on top of it, against every (prompt, option) pair.

Real questions, one client of one task after another, as a run tests them. Both sides have as many rows in a batch and
sort them by length: what padding leaves of the saved tokens is in the note.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedreft_lib import RunConfig
from fedreft_lib.core.state import State
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.model import scoring
from fedreft_lib.model.encoding import ChoiceSet
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.tokens import Tokens, by_length
from tests.benchmarks.contest import Contest, Rival, timed
from tests.benchmarks.sizes import Size


def contests(size: Size) -> Iterator[Contest]:
    for dtype in size.dtypes:
        yield contest(size, dtype)


def questions(size: Size, dtype: str) -> tuple[SteeredModel, list[ChoiceSet], RunConfig]:
    """The test questions of four clients, each with a task of its own, and the model that reads them."""
    config = RunConfig(
        backbone=size.backbone, source=size.source, dtype=dtype, device="cpu", clients=4, train_size=1,
        held_out_size=1, test_size=size.questions, scoring="likelihood",
    )  # fmt: skip
    federation = assemble(config)
    return (
        federation.model,
        [replace(part, hidden=None) for client in federation.clients for part in client.test],
        config,
    )


def contest(size: Size, dtype: str) -> Contest:
    model, tests, config = questions(size, dtype)
    state, rows = model.start("random", 0), 2 * config.batch_size
    together = [data.sequences for data in tests]
    apart = [[pair for sequence in sequences for pair in pairs(sequence)] for sequences in together]
    counts = [[len(sequence.answer_lengths) for sequence in sequences] for sequences in together]

    def scored(parts: list[list[Tokens]]) -> list[Tensor]:
        return [totals(model, state, sequences, rows) for sequences in parts]

    def ours() -> Tensor:
        each = [scores for data in tests for scores in scoring.option_scores(model, state, data, config)]
        return torch.stack([options.argmax() for options in each])

    def theirs() -> Tensor:
        each = zip(scored(apart), counts, strict=True)
        return torch.stack([options.argmax() for found, own in each for options in found.split(own)])

    def check() -> str:
        differ = int((ours() != theirs()).sum())
        mine, other = (torch.cat(scored(parts)) for parts in (together, apart))
        away = float(((mine - other) / other).abs().max())
        if model.backbone.dtype == torch.float32:
            assert differ == 0 and away < 1e-4, f"{differ} choices differ, log-probabilities by {away:.1e}"
        bare, full = (
            [sum(count(sequences) for sequences in parts) for parts in (together, apart)]
            for count in (unpadded, lambda sequences: padded(sequences, rows))
        )
        read = f"{bare[0]} tokens ({full[0]} padded) in place of {bare[1]} ({full[1]})"
        return f"{differ} choices differ, log-probabilities by {away:.0e}; {read}"

    name = f"multiple choice, {dtype}, {sum(map(len, tests))} questions"
    return Contest(name, timed(ours), (Rival("every pair", timed(theirs), target=1 / 2),), check, most=3)


def pairs(sequence: Tokens) -> list[Tokens]:
    """The prompt with each of its options alone."""
    prompt = sequence.ids[: sequence.prompt_length]
    options = torch.tensor(sequence.ids[sequence.prompt_length :]).split(sequence.answer_lengths)
    return [Tokens((*prompt, *option.tolist()), len(prompt), (len(option),)) for option in options]


def unpadded(sequences: Sequence[Tokens]) -> int:
    return sum(len(sequence.ids) for sequence in sequences)


def padded(sequences: Sequence[Tokens], rows: int) -> int:
    """How many tokens the model reads, padding included."""
    batches = ([len(sequences[i].ids) for i in indices] for indices in by_length(sequences, rows))
    return sum(len(lengths) * max(lengths) for lengths in batches)


@torch.no_grad()
def totals(model: SteeredModel, state: State, sequences: Sequence[Tokens], rows: int) -> Tensor:
    """The log-probability of every answer of `sequences`, in their order."""
    found: dict[int, Tensor] = {}
    for indices in by_length(sequences, rows):
        logprobs, answer = model.answer_logprobs(model.batch([sequences[i] for i in indices]), state)
        counts = [len(sequences[i].answer_lengths) for i in indices]
        sums = torch.zeros(sum(counts), dtype=torch.float64).index_add_(0, answer, logprobs.double())
        found |= dict(zip(indices, sums.split(counts), strict=True))
    return torch.cat([found[i] for i in range(len(sequences))])
