"""Processes that compute clients side by side: the same bits, whatever their number and however they are started."""

import os
import signal
import sys
import threading
import time
import warnings

import pytest
import torch

from fedreft_lib import RunConfig, assemble, run
from fedreft_lib.errors import ConfigError, ElsewhereWarning, FedReFTError
from fedreft_lib.federation import workers

CONFIG = RunConfig(
    backbone="tiny-llama", source="synthetic", tasks=["piqa", "boolq"], setup="mixed", layers=[1, 2], rank=2,
    clients=3, train_size=12, held_out_size=3, test_size=6, union_size=4, rounds=2, local_steps=2, lr=0.01,
    batch_size=3, engine="one_by_one", item_scores=True,
)  # fmt: skip
CASES = {
    "fedreft": {"mixing": 0.4},
    "adaptive": {"mixing": "adaptive"},
    "two trajectories": {"method": "fedglomo"},
    "prepared": {"method": "flame", "experts": 2},
    "one learner": {"method": "centralised"},
    "drawn": {"method": "fedavg", "sampled": 2},
    "a head": {"backbone": "tiny-roberta", "benchmark": "glue", "tasks": ["sst2"], "setup": "iid", "method": "local",
               "union_size": 0},
}  # fmt: skip


def results(done) -> tuple:
    return done.states, done.history.drop(columns="seconds").to_dict("records"), done.items


@pytest.mark.parametrize("case", CASES)
def test_the_bits_do_not_depend_on_the_number_of_workers(case):
    config = CONFIG.but(**CASES[case])
    (states, history, items), *others = (results(run(config, progress=False, workers=n)) for n in (1, 2, 3))
    for other in others:
        assert torch.equal(other[0], states) and repr(other[1:]) == repr((history, items))


def test_the_bits_do_not_depend_on_the_threads_that_torch_may_use():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = run(CONFIG, progress=False, workers=1)
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        one = run(CONFIG, progress=False)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(many.states, one.states) and many.manifest["threads"] == one.manifest["threads"] == 1


def test_processes_that_cannot_be_forked_are_spawned(monkeypatch):
    monkeypatch.setattr(workers, "START", "spawn")
    found = run(CONFIG, progress=False, workers=2)
    assert torch.equal(found.states, run(CONFIG, progress=False, workers=1).states)


# --- tasks ------------------------------------------------------------------------------------------------------------


def waits(federation, config, seconds, on_step):
    time.sleep(seconds)
    on_step()
    return os.getpid(), torch.get_num_threads()


def fails(federation, config, error, on_step):
    if isinstance(error, FedReFTError):
        warnings.warn("cold", ElsewhereWarning, stacklevel=1)
    raise error


def ends(federation, config, pid, on_step):
    if os.getpid() != pid:
        os.kill(os.getpid(), signal.SIGKILL)
    return "here"


def returns(federation, config, value, on_step):
    return value


@pytest.fixture
def pool():
    federation = assemble(CONFIG)
    with workers.working(federation, CONFIG, 2) as work:

        def shared(function, *values, on_step=lambda: None):
            return work(function, federation, CONFIG, [(each,) for each in values], on_step)

        yield shared


def test_tasks_are_shared_out_and_their_steps_are_counted(pool):
    steps = []
    found = pool(waits, 0.5, 0.5, 0.01, on_step=lambda: steps.append(1))
    assert len({pid for pid, _ in found} - {os.getpid()}) == 2 and {threads for _, threads in found} == {1}
    assert len(steps) == 3


def test_a_view_is_sent_without_what_it_is_a_view_of(pool):
    whole = torch.arange(1_000_000.0).reshape(1000, 1000).to(torch.bfloat16)
    parts = [whole[3, 5:9], whole[:2, 7], whole[:0], torch.tensor(True)]
    assert len(workers._packed(parts)) < 2000
    for part, found in zip(parts, pool(returns, *parts), strict=True):
        assert found.dtype == part.dtype and torch.equal(found, part)


def test_an_error_is_raised_and_a_warning_given_here(pool):
    with pytest.warns(ElsewhereWarning, match="cold"), pytest.raises(FedReFTError, match="^too cold$"):
        pool(fails, FedReFTError("too cold"), FedReFTError("too cold"))


def test_a_mistake_says_where_it_was(pool):
    with pytest.raises(ZeroDivisionError) as caught:
        pool(fails, ZeroDivisionError("x"), ZeroDivisionError("x"))
    assert "test_workers.py" in caught.value.__notes__[0]


def test_what_a_killed_worker_leaves_is_computed_here(pool):
    with pytest.warns(
        ElsewhereWarning, match="was ended, most often because memory ran out: this process computes alone"
    ):
        assert pool(ends, os.getpid(), os.getpid(), os.getpid()) == ["here"] * 3
    assert pool(returns, 1, 2) == [1, 2]


def test_an_interruption_ends_the_workers(pool):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pool(waits, 60, 60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 30 and pool(returns, 1, 2) == [1, 2]


# --- how many ---------------------------------------------------------------------------------------------------------


def test_short_runs_stay_in_this_process_and_long_ones_get_a_worker_a_thread(monkeypatch):
    federation = assemble(CONFIG)
    assert workers.by_rule(federation, CONFIG, 8) == 1
    monkeypatch.setattr(workers, "WORTH", 0)
    assert [workers.by_rule(federation, CONFIG, threads) for threads in (1, 2, 8)] == [1, 2, 3]
    one_pass = CONFIG.but(engine="cohort")
    assert workers.by_rule(assemble(one_pass), one_pass, 8) == 1
    monkeypatch.setattr(workers, "START", "spawn")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "script.py", raising=False)
    assert workers.by_rule(federation, CONFIG, 8) == 1
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert workers.by_rule(federation, CONFIG, 8) == 3
    pooled = CONFIG.but(method="centralised")
    assert workers.by_rule(assemble(pooled), pooled, 8) == 1


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "2"])
def test_a_wrong_number_is_refused(wrong):
    with pytest.raises(ConfigError, match="workers must be a number of processes from 1, or None"):
        run(CONFIG, workers=wrong)
