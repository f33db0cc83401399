"""The short form of `make bench`: every benchmark runs, and its two sides compute the same. No time is asserted."""

import json
import mmap
import sys

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import spent, users
from tests.benchmarks.contest import Contest, Rival, Skipped, measured
from tests.benchmarks.growth import Sweep
from tests.benchmarks.sizes import TINY
from tests.helpers.pairs import few

# A deployment takes minutes; tests/flower/test_deployment.py starts one.
SHORT = [topic for topic in command.TOPICS if topic != "deployment"]


@pytest.mark.parametrize("topic", few(SHORT, "step", "scoring", "cohort"))
def test_every_benchmark_runs_and_its_sides_agree(topic):
    reasons, rows = [], []
    for contest in command.TOPICS[topic](TINY):
        if isinstance(contest, Skipped):
            reasons.append(f"{contest.name}: {contest.reason}")
        else:
            rows += measured(contest, 1)
    if not rows:
        pytest.skip("; ".join(reasons))
    assert all(row["low"] == row["ratio"] == row["high"] and row["repeats"] == 1 for row in rows)


def sided(ours, theirs, target):
    """A contest whose sides take what the lists say, one entry a turn."""
    ours, theirs = iter(ours), iter(theirs)
    rival = Rival("theirs", lambda: next(theirs), target)
    return Contest("a contest", lambda: next(ours), (rival,), lambda: "checked")


def test_a_ratio_is_taken_within_each_turn_so_a_disturbance_of_both_sides_changes_nothing():
    (row,) = measured(sided([1, 10, 100, 2, 5], [2, 20, 200, 4, 10], 0.6), 5)
    assert (row["low"], row["ratio"], row["high"], row["met"]) == (0.5, 0.5, 0.5, "yes")
    assert (row["ours"], row["baseline"], row["note"]) == (5, 10, "checked")


@pytest.mark.parametrize(("target", "met"), [(4.0, "yes"), (1.0, "no"), (3.0, "unclear"), (None, "")])
def test_a_target_is_met_or_missed_only_where_the_whole_spread_says_so(target, met):
    (row,) = measured(sided([1, 2, 3, 4, 5], [1, 1, 1, 1, 1], target), 5)
    assert (row["low"], row["ratio"], row["high"]) == (2, 3, 4)
    assert row["met"] == met


def test_what_is_measured_is_printed_written_and_drawn(tmp_path, monkeypatch, capsys):
    turns = {"a": sided([1, 2], [1, 1], 1.5), "b": Skipped("something", "it is not here")}
    monkeypatch.setattr(command, "TOPICS", {name: lambda size, each=each: [each] for name, each in turns.items()})
    monkeypatch.setattr(command.machine, "BUSY", -1.0)
    rows = command.bench(["a", "b"], 2, TINY, tmp_path)
    said = capsys.readouterr().out
    assert "THE MACHINE WAS BUSY" in said and "something: skipped, it is not here" in said
    assert "a contest, against theirs" in said
    assert list(rows.columns) == command.COLUMNS and len(rows) == 1
    assert (tmp_path / "bench.csv").read_text().startswith(",".join(command.COLUMNS))
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_benchmark_that_does_not_exist_is_refused_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "stepp"])
    with pytest.raises(SystemExit):
        command.main()
    assert "there is no benchmark 'stepp': choose out of step, peft" in capsys.readouterr().err


# ---- programs that are watched ---------------------------------------------------------------------------------------

HELD = 200_000_000  # bytes
HOLDS = f"import time; held = bytearray(b'x') * {HELD}; time.sleep(1)"
STARTS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDS!r}]); print('done')"
telling = pytest.mark.skipif(not spent.ROLLUP.exists(), reason="the system tells no shares of memory")


@telling
def test_what_a_program_takes_has_the_processes_that_it_starts_in_it():
    command = [sys.executable, "-c", STARTS]
    found = spent.watched(command)
    assert HELD < found.memory < 2 * HELD and found.processor > 0
    assert spent.ran(command).said == "done"


@telling
def test_a_file_counts_once_and_in_full_whoever_else_maps_it(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * HELD)
    maps = "import mmap; f = open('file', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096]); "
    two = f"import os, time; os.chdir({str(tmp_path)!r}); {maps} os.fork(); sum(m[::4096]); time.sleep(1); print()"
    alone = spent.watched([sys.executable, "-c", two]).memory
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as other:
        assert sum(other[::4096])  # this process, which is not the program's, has all of it in memory, too
        assert HELD < spent.watched([sys.executable, "-c", two]).memory < 1.3 * HELD
    assert HELD < alone < 1.3 * HELD


def test_a_program_that_fails_is_an_error_with_its_own_last_words():
    with pytest.raises(RuntimeError, match="no such luck"):
        spent.ran([sys.executable, "-c", "raise SystemExit('no such luck')"])


@pytest.mark.parametrize(
    ("losses", "steps", "reason"), [([2.0, 2.5], 8, "does not learn"), ([2.0, 1.5], 7, "took 7 steps of 8")]
)
def test_a_program_that_does_not_learn_or_takes_fewer_steps_is_not_compared(losses, steps, reason):
    task = users.Task({}, "float32", 1, 2, 2, 2, 8, 0.1, 1.0, 1, 1.0, [], "f1+l1", 0)
    line = json.dumps({"began": 0.0, "losses": losses, "steps": steps, "sent": 8})
    with pytest.raises(AssertionError, match=reason):
        users.Turns(task, []).checked("it", spent.Ran(1.0, 1.0, line), spent.Watched(1.0, 1))


def test_the_slope_of_a_power_is_its_exponent_and_every_size_runs_once():
    asked = []
    sweep = Sweep((10, 100, 1000), lambda size: asked.append(size) or {"seconds": 3.0 * size**1.5})
    (contest,) = sweep.contests("clients", ("seconds",))
    (row,) = measured(contest, 3)
    assert row["ratio"] == pytest.approx(1.5) and asked == [10, 100, 1000]
    assert "processor seconds: 10: 94.9, 100: 3e+03" in row["note"]
