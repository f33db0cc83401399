"""Tables and pictures of ablations count what the runs hold, and compare each level with the first of its factor."""

import pandas as pd
import pytest
from scipy import stats

from fedreft_lib import RunConfig, run
from fedreft_lib.errors import DataError
from fedreft_lib.runs.results import RESULTS
from fedreft_lib.workbook import ablation_figures, sampling

# gains of two clients and two seeds, in points; "rank 1" is 2, 4, 6 and 8 points below "rank 8"
GAINS = {"rank 8": (10, 12, 14, 20), "rank 1": (8, 8, 8, 12), "rank 4": (11, 11, 15, 19)}


def rows() -> pd.DataFrame:
    found = []
    for level, gains in GAINS.items():
        for (seed, client), gain in zip([(0, "a"), (0, "b"), (1, "a"), (1, "b")], gains, strict=True):
            row = {"factor": "rank", "level": level, "seed": seed, "client": client, "task": client, "rounds": 2}
            row |= {"method": "fedreft", "aggregation": "mean", "mixing": "fixed 0.3", "intervention": "loreft"}
            row |= {"rank": int(level.split()[1]), "uplink_bytes": 4000, "downlink_bytes": 0, "trainable_params": 7}
            for round, value in ((0, 40.0), (2, 40.0 + gain)):
                found.append({**row, "round": round, "split": "test", "metric": "accuracy", "value": value})
    return pd.DataFrame(found, columns=[*RESULTS, "factor", "level"])


def test_levels_are_named_by_what_they_do_not_share():
    levels = [{"clients": 3, "method": "fedavg"}, {"clients": 3, "aggregation": "mean"}]
    assert ablation_figures.level_names(levels) == ["method fedavg", "aggregation mean"]
    assert ablation_figures.level_names([{"rank": 8}, {"rank": 1}]) == ["8", "1"]
    assert ablation_figures.level_names([{"rank": 8}, {"rank": 8, "rounds": 1}]) == ["", "rounds 1"]
    assert ablation_figures.level_names([{"layers": [29]}]) == ["[29]"]
    both = [{"local_epochs": 1}, {"local_epochs": 2, "rounds": 1}]
    assert ablation_figures.level_names(both) == ["local_epochs 1", "local_epochs 2 and rounds 1"]


def test_levels_are_compared_seed_by_seed_as_scipy_does():
    table = ablation_figures.compared(rows())
    assert list(table.index.get_level_values("level")) == list(GAINS)
    found, paired = (
        table.loc[("rank", "rank 1")],
        stats.ttest_rel([8, 10], [11, 17]),
    )  # the clients' means, seed by seed
    assert (found["difference"], found["p"]) == (-5, pytest.approx(paired.pvalue))
    assert (found["low"], found["high"]) == pytest.approx(tuple(paired.confidence_interval(0.95)))
    assert set(table["family"].dropna()) == {2}
    first = table.loc[("rank", "rank 8")]
    assert (first["trained"], first["gain"]) == (54, 14)
    assert first["sd of gain"] == pytest.approx(pd.Series([11.0, 17.0]).std())
    assert pd.isna(first["difference"])


def test_the_verdict_says_what_the_table_says():
    found = ablation_figures.compared(rows())["verdict"]
    assert ablation_figures.verdict(rows()) == [
        f"rank, against rank 8: rank 1 {found['rank', 'rank 1']}; rank 4 {found['rank', 'rank 4']} "
        "(adjusted for 2 comparisons; 2 seeds: few seeds)."
    ]
    assert ablation_figures.verdict(rows().query("level == 'rank 8'")) == []


def test_levels_with_other_clients_are_not_paired():
    other = rows()
    other.loc[other["level"] == "rank 1", "client"] += "'"
    assert ablation_figures.compared(other)["family"].dropna().tolist() == [1]
    paired, apart = ablation_figures.verdict(other)
    assert paired.startswith("rank, against rank 8: rank 4 ") and "rank 1" not in paired
    assert apart == "rank: rank 1 not paired with rank 8, since the clients are others."


def test_the_picture_has_every_level_with_its_spread_over_seeds():
    (ax,) = ablation_figures.by_level(rows()).axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [f"rank:  {level}" for level in GAINS]
    (bar,) = ax.containers[0].lines[2][0].get_segments()
    sd = pd.Series([11.0, 17.0]).std()
    assert bar[:, 0] == pytest.approx([14 - sd, 14 + sd])


def test_a_line_runs_through_the_levels_of_a_numeric_column():
    (ax,) = ablation_figures.against_column(rows(), "rank").axes
    assert list(ax.lines[0].get_xdata()) == [1, 4, 8]
    assert list(ax.lines[0].get_ydata()) == [49, 54, 54]
    assert ax.collections  # the band
    assert ax.figure.get_suptitle() == "From rank 1 to 8: +5.0 points with FedReFT mean, λ\N{NO-BREAK SPACE}0.3"


def test_one_seed_has_the_trained_scores_interval_around_the_gain():
    one = rows().query("seed == 0").assign(questions=20.0)
    (bar,) = ablation_figures.by_level(one).axes[0].containers[0].lines[2][0].get_segments()
    assert bar[:, 0] == pytest.approx([edge - 40 for edge in sampling.interval([50, 52], [20, 20])])


def test_what_is_sent_is_the_mean_over_seeds():
    table = ablation_figures.sent(rows())
    assert table.loc[("rank", "rank 1")].to_dict() == {
        "trainable numbers": 7.0, "uplink MB": 0.016, "downlink MB": 0.0,
    }  # fmt: skip


def test_runs_become_rows_with_their_factor_and_level():
    config = RunConfig(backbone="tiny-llama", source="synthetic", layers=[2], rounds=0, test_size=4, train_size=8)
    table = ablation_figures.rows_of([("rank", "rank 8", run(config, progress=False))])
    assert list(table) == [*RESULTS, "questions", "factor", "level"] and set(table["level"]) == {"rank 8"}


def test_results_without_tests_are_refused():
    with pytest.raises(DataError, match="no test scores"):
        ablation_figures.compared(rows().query("split == 'train'"))
