"""Tables say what the runs say: which round is shown, and how methods differ, seed by seed."""

import pandas as pd
import pytest
from scipy import stats

from fedreft_lib.errors import DataError
from fedreft_lib.runs.results import RESULTS
from fedreft_lib.workbook import tables

RUN = {
    "experiment": "05_glue", "benchmark": "glue", "task": "rte", "setup": "iid", "model": "minilm-l6-v2",
    "method": "local", "aggregation": "none", "mixing": "none", "intervention": "loreft", "rank": 1, "layers": "all",
    "clients": 2, "rounds": 3, "seed": 0, "metric": "accuracy", "trainable_params": 9, "head_params": 3,
    "uplink_bytes": 0, "downlink_bytes": 0, "seconds": 0.0,
}  # fmt: skip
CLIENTS = ("client1", "client2")


def rows(split, by_round, **changes):
    """A row for each round and client; by_round: {round: (value of client 1, value of client 2)}."""
    return [
        {**RUN, **changes, "split": split, "round": t, "client": client, "value": float(value)}
        for t, values in by_round.items()
        for client, value in zip(CLIENTS, values, strict=True)
    ]


def results(*several):
    return pd.DataFrame([row for each in several for row in each], columns=list(RESULTS))


def one_run(held_out, test, **changes):
    return [*rows("held_out", held_out, **changes), *rows("test", test, **changes)]


HELD_OUT = {0: (90, 90), 1: (50, 50), 2: (40, 80), 3: (60, 60)}  # means 90, 50, 60, 60
TEST = {0: (10, 10), 1: (11, 12), 2: (21, 22), 3: (31, 32)}


def test_the_best_round_is_the_earliest_trained_one_with_the_best_mean_held_out_score():
    found = tables.at_best_round(results(one_run(HELD_OUT, TEST)))
    assert list(found) == list(RESULTS)
    assert found[["round", "client", "value"]].values.tolist() == [
        [0, "client1", 10], [0, "client2", 10], [2, "client1", 21], [2, "client2", 22],
    ]  # fmt: skip
    assert set(found["rounds"]) == {2} and set(found["split"]) == {"test"}


def test_each_run_and_each_task_has_its_own_best_round():
    last = {**HELD_OUT, 3: (99, 99)}
    found = tables.at_best_round(
        results(
            one_run(HELD_OUT, TEST),
            one_run(last, TEST, seed=1),
            one_run(last, TEST, method="fedavg"),
            one_run({**HELD_OUT, 1: (70, 71)}, TEST, task="cola", metric="matthews"),
        )
    )
    picked = found[found["round"] > 0].drop_duplicates(["task", "method", "seed"])
    assert picked[["task", "method", "seed", "round"]].values.tolist() == [
        ["rte", "local", 0, 2], ["rte", "local", 1, 3], ["rte", "fedavg", 0, 3], ["cola", "local", 0, 1],
    ]  # fmt: skip


def test_only_the_primary_metric_picks_and_every_metric_is_shown():
    misleading = rows("held_out", {1: (99, 99), 2: (0, 0)}, metric="f1")
    shown = rows("test", {1: (1, 1), 2: (2, 2)}, metric="f1")
    found = tables.at_best_round(results(one_run(HELD_OUT, TEST), misleading, shown))
    assert found.loc[found["metric"] == "f1", "value"].tolist() == [2, 2]


def test_mismatched_mnli_goes_with_the_round_of_the_matched_one():
    matched = one_run(HELD_OUT, TEST, task="mnli")
    found = tables.at_best_round(results(matched, rows("test", TEST, task="mnli_mm")))
    assert found.loc[found["task"] == "mnli_mm", "round"].tolist() == [0, 0, 2, 2]


def test_runs_without_held_out_scores_are_refused():
    with pytest.raises(DataError, match="no round of rte with fedavg has held-out scores"):
        tables.at_best_round(results(one_run(HELD_OUT, TEST), rows("test", TEST, method="fedavg")))


def test_tables_of_the_best_round_show_that_round():
    best = tables.at_best_round(results(one_run(HELD_OUT, TEST)))
    row = tables.summary(best, by="task").loc[("rte", "local only")]
    assert (row["untrained"], row["trained"], row["gain"]) == (10, 21.5, 11.5)


@pytest.mark.parametrize(("by", "group"), [("setup", "iid"), ("task", "rte")])
def test_methods_are_compared_in_pairs_of_seeds(by, group):
    ours, theirs = [(60, 62), (64, 70)], [(50, 55), (52, 51)]
    table = results(
        *(one_run(HELD_OUT, {0: (10, 10), 3: values}, seed=seed) for seed, values in enumerate(theirs)),
        *(one_run(HELD_OUT, {0: (9, 9), 3: v}, seed=seed, method="fedavg") for seed, v in enumerate(ours)),
    )
    found = tables.against(table, "local only", by=by)
    assert found.index.tolist() == [(group, "local only", "FedAvg")]
    expected = stats.ttest_rel([61, 67], [52.5, 51.5])  # the clients' means, seed by seed
    row = found.iloc[0]
    assert (row["difference"], row["p"], row["seeds"]) == (12.0, pytest.approx(expected.pvalue), 2)


def test_training_is_compared_with_the_untrained_backbone():
    table = results(*(one_run(HELD_OUT, {0: (10, 20), 3: (40 + s, 60)}, seed=s) for s in (0, 1)))
    found = tables.against(table, "untrained")
    assert found["difference"].to_dict() == {("iid", "untrained", "local only"): 35.25}
    assert found["p"].iloc[0] == pytest.approx(stats.ttest_1samp([35, 35.5], 0).pvalue)
