"""Small federations, and what tests do with their runs."""

import pandas as pd
import pytest
import torch

from fedreft_lib import RunConfig, run
from fedreft_lib.federation import participation, server
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.methods import METHODS
from fedreft_lib.model.encoding import AnswerSet
from fedreft_lib.model.tokens import Tokens
from fedreft_lib.runs import store

CASES = [
    {"method": "local"},
    {"method": "fedavg"},
    {"method": "centralised"},
    {"mixing": 0.3},
    {"mixing": 0.3, "aggregation": "mean"},
    {"mixing": "scheduled"},
    {"mixing": "adaptive"},
]
NAMES = ["local", "fedavg", "centralised", "fixed", "mean", "scheduled", "adaptive"]
LORA = {"intervention": "lora"}
EVERY = [{"method": method, **adapter} for method in METHODS for adapter in ({}, LORA) if adapter or method != "fedit"]
GLUE = {"backbone": "tiny-roberta", "benchmark": "glue", "tasks": ("sst2",), "setup": "iid", "positions": "f3"}
ONCE = [fields for fields in EVERY if fields.get("intervention") == "lora"]  # each method
BASELINES = [fields for fields in ONCE if fields["method"] not in ("local", "centralised", "fedavg", "fedreft")]


def small(**changes) -> RunConfig:
    """A federation of four clients with four tasks on a random model: two steps a client and round, 0.2 s a run."""
    fields = dict(
        backbone="tiny-llama", source="synthetic", tasks=("arc_easy", "piqa", "siqa", "boolq"), rank=2, layers="2-3",
        train_size=8, held_out_size=4, test_size=5, batch_size=4, rounds=3, lr=0.01,
    )  # fmt: skip
    return RunConfig(**{**fields, **changes})


def thinned(**changes) -> RunConfig:
    """Six clients of whom three are drawn in each round; one of the first three is late, one of the next drops out."""
    config = small(**{"clients": 6, "setup": "mixed", "sampled": 3, **changes})
    first, second = (sorted(set(range(6)) - set(participation.away(config, t))) for t in (1, 2))
    return config.but(late=[[first[0] + 1, 1]], drops=[[second[-1] + 1, 2]])


def agreeing(decoder, **changes) -> RunConfig:
    """A federation of four clients of benchmark="agreement"; decoder: see tests/conftest.py."""
    fields = dict(
        backbone=decoder, dtype="float32", benchmark="agreement", source="synthetic", tasks=("piqa",), rank=2,
        layers="2-3", train_size=16, held_out_size=4, test_size=10, batch_size=4, rounds=2, local_steps=3, lr=0.02,
    )  # fmt: skip
    return RunConfig(**{**fields, **changes})


def together(fields):
    return " ".join(map(str, fields.values()))


def finish(config, folder=None, **more):
    return run(config, folder, progress=False, **more)


def fresh(config):
    """The run of a process that has made none before and so remembers nothing."""
    assemble(config).memo.clear()
    return finish(config)


def same(one, other):
    assert torch.equal(one.states, other.states)
    assert torch.equal(one.mixing_matrices, other.mixing_matrices)
    assert one.items.keys() == other.items.keys()
    assert all(torch.equal(values, other.items[name]) for name, values in one.items.items())
    tables = [r.history.drop(columns="seconds") for r in (one, other)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def rows(done, metric, split=None):
    found = done.history[done.history["metric"] == metric]
    return found if split is None else found[found["split"] == split]


class StoppedError(Exception):
    pass


def stop_after(monkeypatch, round):
    """The power goes out right after a round has been saved."""
    save = store.Store.save

    def save_and_stop(self, t, *args):
        states = save(self, t, *args)
        if t == round:
            raise StoppedError
        return states

    monkeypatch.setattr(store.Store, "save", save_and_stop)


def stopped(config, folder, after, **more):
    with pytest.MonkeyPatch.context() as patched, pytest.raises(StoppedError):
        stop_after(patched, after)
        finish(config, folder, **more)


def computes(monkeypatch):
    """How many rounds are computed from here on."""
    rounds, honest = [], server.round_of

    def counted(clients, model, config, X, who, t, *args, **more):
        rounds.append(t)
        return honest(clients, model, config, X, who, t, *args, **more)

    monkeypatch.setattr(server, "round_of", counted)
    return rounds


def some_answers(n=10, seed=0):
    """Prompts of 6 to 10 random tokens; the answer depends on the first one, so there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        prompt = torch.randint(5, 250, (6 + i % 5,), generator=generator).tolist()
        prompt[0] = 100 + i % 2
        made.append(Tokens((*prompt, 20 + i % 2, 30), len(prompt), (2,)))
    return AnswerSet(made, None)


def named(federation, X, who=None):
    """The states of clients, by number, out of X (N, P)."""
    return {k: federation.model.spec.named(X[k]) for k in (range(len(X)) if who is None else who)}


def counted(monkeypatch, module, name: str) -> list:
    """The arguments of each call of module.name from now on."""
    calls, honest = [], getattr(module, name)

    def counts(*args, **more):
        calls.append(args)
        return honest(*args, **more)

    monkeypatch.setattr(module, name, counts)
    return calls
