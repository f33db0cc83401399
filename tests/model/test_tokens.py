"""Text to padded batches: nothing is lost, and answers on one prompt do not see each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib import load_backbone
from fedreft_lib.model.tokens import Tokens, by_length, collate, encode

CPU = torch.device("cpu")


def tokenizer():
    return load_backbone("tiny-llama").tokenizer  # a byte is a token


SEQUENCES = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 4), max_size=4)).map(
        lambda drawn: Tokens(tuple(range(10, 10 + drawn[0] + sum(drawn[1]))), drawn[0], tuple(drawn[1]))
    ),
    min_size=1,
    max_size=5,
)


# ---- encoding -------------------------------------------------------------------------------------------------------


def test_a_sequence_is_the_prompt_and_then_every_answer():
    tok = tokenizer()
    sequence = encode(tok, "Question?", [" yes", " no"], max_length=100)
    assert tok.decode(sequence.ids) == "Question? yes no"
    assert sequence.prompt_length == 9 and sequence.answer_lengths == (4, 3)
    assert sequence.branches == [-1] * 9 + [0] * 4 + [1] * 3
    assert sequence.places == [*range(9), 9, 10, 11, 12, 9, 10, 11]  # each answer stands right after the prompt
    assert sequence.sources == [8, 9, 10, 11, 8, 13, 14]  # and its first token is predicted by the prompt's last


def test_the_prompt_has_the_same_tokens_whatever_answers_follow():
    tok = tokenizer()
    alone = encode(tok, "Why?", [], max_length=50)
    for answers in ([" a"], [" a", " bc"]):
        found = encode(tok, "Why?", answers, max_length=50)
        assert found.ids[: found.prompt_length] == alone.ids and found.prompt_length == alone.prompt_length


def test_the_end_token_follows_every_answer_where_it_is_asked_for_and_no_bare_prompt():
    tok = tokenizer()
    found = encode(tok, "Why?", [" a", " bc"], max_length=50, end=True)
    assert found.answer_lengths == (3, 4)
    assert found.ids[6] == found.ids[10] == tok.eos_token_id
    assert tok.eos_token_id not in encode(tok, "Why?", [], max_length=50, end=True).ids


@pytest.mark.parametrize("end", [False, True])
def test_a_prompt_that_is_too_long_loses_its_beginning_and_no_answer_loses_anything(end):
    tok = tokenizer()
    found = encode(tok, "0123456789", [" a", " bcd"], max_length=10, end=end)
    room = 10 - 4 - end
    assert tok.decode(found.ids[: found.prompt_length]) == "0123456789"[-room:]
    assert found.answer_lengths == (2 + end, 4 + end)


def test_half_of_the_room_is_the_prompts_where_an_answer_alone_is_too_long():
    found = encode(tokenizer(), "0123456789", ["x" * 30], max_length=16)
    assert found.prompt_length == 8 and found.answer_lengths == (8,)


# ---- collating ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(SEQUENCES, st.sampled_from(["left", "right"]))
def test_a_batch_holds_every_token_once_and_says_which_are_answers(sequences, side):
    batch = collate(sequences, 0, CPU, side=side)
    width = max(len(s.ids) for s in sequences)
    assert batch.ids.shape == batch.mask.shape == (len(sequences), width)
    targets, answers = [], 0
    for row, s in enumerate(sequences):
        start = width - len(s.ids) if side == "left" else 0
        here = slice(start, start + len(s.ids))
        assert int(batch.starts[row]) == start and int(batch.prompt_lengths[row]) == s.prompt_length
        assert batch.mask[row].nonzero()[:, 0].tolist() == list(range(here.start, here.stop))
        assert batch.ids[row, here].tolist() == list(s.ids)
        assert int(batch.ids[row].sum()) == sum(s.ids)  # padding is 0
        column = start + s.prompt_length
        for n in s.answer_lengths:
            before = start + s.prompt_length - 1
            for _ in range(n):
                targets.append([row, before, column, answers])
                before, column = column, column + 1
            answers += 1
    assert batch.targets.tolist() == targets


@settings(deadline=None)
@given(SEQUENCES, st.sampled_from(["left", "right"]))
def test_a_token_sees_the_prompt_and_what_came_before_in_its_own_answer(sequences, side):
    batch = collate(sequences, 0, CPU, side=side)
    mask = batch.attention(torch.float32)
    if all(len(s.answer_lengths) < 2 for s in sequences):
        assert mask is batch.mask  # the model's own causal mask says it all
        return
    assert mask.shape == (len(sequences), 1, *batch.ids.shape[1:], *batch.ids.shape[1:])
    for row, s in enumerate(sequences):
        start = int(batch.starts[row])
        answer_of = [None] * s.prompt_length + [a for a, n in enumerate(s.answer_lengths) for _ in range(n)]
        for i in range(len(s.ids)):
            sees = {start + j for j in range(i + 1) if answer_of[j] in (None, answer_of[i])}
            assert set((mask[row, 0, start + i] == 0).nonzero()[:, 0].tolist()) == sees
    blocked = mask[mask != 0]
    assert bool((blocked == torch.finfo(torch.float32).min).all())
    assert bool((mask == 0).any(-1).all())  # a row of padding that sees nothing would make NaN


def test_cached_hidden_states_are_padded_like_the_tokens():
    sequences = [Tokens((5, 6, 7), 3), Tokens((8,), 1)]
    hidden = [torch.randn(3, 4), torch.randn(1, 4)]
    batch = collate(sequences, 0, CPU, hidden=hidden)
    assert torch.equal(batch.hidden[0], hidden[0]) and torch.equal(batch.hidden[1, :1], hidden[1])
    assert batch.hidden.shape == (2, 3, 4) and not batch.hidden[1, 1:].any()


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 6))
def test_batches_by_length_hold_every_index_once_longest_first(lengths, size):
    sequences = [Tokens(tuple(range(n)), n) for n in lengths]
    batches = by_length(sequences, size)
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1]) and 1 <= len(batches[-1]) <= size
    assert flat == sorted(flat, key=lambda i: (-lengths[i], i))  # ties in the given order
