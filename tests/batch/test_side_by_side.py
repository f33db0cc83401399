"""The order in which notebooks begin where several run at once, and how all of them end."""

import signal
import threading
from pathlib import Path

import pytest

from fedreft_lib.batch.jobs import Job, plan
from fedreft_lib.batch.side_by_side import execute_all, longest_chain_first


def job(name: str, seconds: float, *reads: str) -> Job:
    return Job(Path(f"{name}.ipynb"), {}, {}, reads, seconds)


def test_the_longest_chain_of_jobs_that_wait_for_each_other_begins_first():
    jobs = [job("a", 10), job("b", 30), job("c", 25, "a"), job("d", 5, "c"), job("e", 30)]
    # chains: a + c + d = 40, b = 30, c + d = 30, d = 5, e = 30; equal ones stay in order
    assert [each.name for each in longest_chain_first(jobs)] == ["a", "b", "c", "e", "d"]
    assert longest_chain_first([]) == []
    assert longest_chain_first([job("c", 25, "gone")]) == [job("c", 25, "gone")]


def test_two_notebooks_at_once_leave_no_core_idle_for_long():
    """Of the ordered notebooks, if each took as long as its metadata says."""
    waiting, ends, done = longest_chain_first(plan("quick")), [0.0, 0.0], {}
    everything = sum(each.seconds for each in waiting)
    while waiting:
        lane = ends.index(min(ends))
        now, ahead = ends[lane], {each.name for each in waiting} | {n for n, end in done.items() if end > ends[lane]}
        ready = next((each for each in waiting if ahead.isdisjoint(each.reads)), None)
        if ready is None:  # until the next one ends
            ends[lane] = min(end for end in done.values() if end > now)
            continue
        waiting.remove(ready)
        ends[lane] = done[ready.name] = now + ready.seconds
    assert max(ends) < 1.06 * everything / 2


@pytest.mark.parametrize("once_more", [KeyboardInterrupt, SystemExit])
def test_stopped_twice_a_batch_still_ends_what_begins_late(once_more):
    """Its kernel starts after both, so only a later call of `stop` reaches it."""
    begun, ended, calls = threading.Event(), threading.Event(), []

    def execute(job):
        begun.set()
        assert ended.wait(60)

    def stop():
        calls.append(len(calls))
        if len(calls) <= 2:
            raise once_more
        elif len(calls) == 4:
            ended.set()

    def press():
        begun.wait()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A shell's background jobs are started deaf to SIGINT; so may these tests be.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=press).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            execute_all([job("a", 1)], 1, execute, stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()
