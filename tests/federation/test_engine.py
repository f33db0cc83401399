"""Who trains together in one pass: it follows from the config and the device, never from a clock."""

import dataclasses

import pytest
import torch

from fedreft_lib import RunConfig
from fedreft_lib.errors import ConfigError
from fedreft_lib.federation import engine
from fedreft_lib.federation.engine import ROWS, Participant, cohorts, engine_of
from tests.helpers.federations import some_answers

CPU = torch.device("cpu")


def test_auto_follows_from_the_batch_the_dropout_and_the_device(monkeypatch):
    monkeypatch.setattr(engine, "GIVEN", True)
    gpu = torch.device("cuda:1")
    assert engine_of(RunConfig(batch_size=1), CPU) == "cohort"
    assert engine_of(RunConfig(batch_size=8), CPU) == "one_by_one"
    assert engine_of(RunConfig(batch_size=8), gpu) == "cohort"
    assert engine_of(RunConfig(batch_size=8, dropout=0.1), gpu) == "one_by_one"
    for forced in ("cohort", "one_by_one"):
        assert engine_of(RunConfig(batch_size=1, engine=forced), gpu) == engine_of(RunConfig(engine=forced), CPU)


def test_a_cohort_with_dropout_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match='engine="cohort" draws no dropout.* use engine="one_by_one" or dropout=0'):
        RunConfig(engine="cohort", dropout=0.1)


def participants(*lengths, steps=2):
    """Clients of one training text each."""
    data = some_answers(1)
    made = {}
    for k, n in enumerate(lengths):
        longer = dataclasses.replace(data.sequences[0], ids=(5,) * n, prompt_length=n - 2)
        made[k] = Participant(f"c{k}", dataclasses.replace(data, sequences=[longer]), steps)
    return made


def test_those_go_together_who_take_as_many_steps_and_fit_into_a_pass():
    forced = RunConfig(batch_size=4, engine="cohort")
    most = ROWS["cpu"] // 4
    clients = participants(*[20] * (most + 1))
    assert cohorts(clients, forced, CPU) == [list(range(most)), [most]]
    assert cohorts(clients, forced.but(engine="one_by_one"), CPU) == [[k] for k in clients]
    assert cohorts(clients, forced.but(batch_size=4 * ROWS["cpu"]), CPU) == [[k] for k in clients]
    other = {**participants(20, 20), 2: dataclasses.replace(clients[2], steps=9)}
    assert sorted(cohorts(other, forced, CPU)) == [[0, 1], [2]]
    cached = dataclasses.replace(clients[1].train, hidden=[torch.zeros(20, 4)])
    assert sorted(cohorts({**participants(20), 1: dataclasses.replace(clients[1], train=cached)}, forced, CPU)) == [
        [0], [1],
    ]  # fmt: skip
    assert cohorts({}, forced, CPU) == []


def test_where_batches_are_padded_auto_joins_nobody(monkeypatch):
    monkeypatch.setattr(engine, "GIVEN", False)
    clients, config = participants(20, 100, 22, 90), RunConfig(batch_size=1)
    assert cohorts(clients, config, CPU) == [[0], [1], [2], [3]]
    assert cohorts(clients, config.but(engine="cohort"), CPU) == [[0, 1, 2, 3]]
