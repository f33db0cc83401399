"""Intervals, adjustment, equivalence and power are those of SciPy and of simulations with a known answer."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedreft_lib.errors import DataError
from fedreft_lib.workbook import statistics

SEEDS, CLIENTS = 8, 4


def table(**differences) -> pd.DataFrame:
    """d_s of several methods, as `statistics.differences` gives them."""
    index = pd.MultiIndex.from_tuples([("iid", "local only", method) for method in differences])
    return pd.DataFrame(list(differences.values()), index.set_names(["setup", "against", "method"]))


def scores(rng, methods=("local only", "FedAvg", "FedReFT"), items=()) -> pd.DataFrame:
    rows = [
        {
            "setup": "iid",
            "seed": seed,
            "method": method,
            "client": f"c{client}",
            **dict(zip(("item",), item, strict=False)),
        }
        for seed in range(SEEDS)
        for method in methods
        for client in range(CLIENTS)
        for item in ([(i,) for i in range(items[client])] if items else [()])
    ]
    found = pd.DataFrame(rows)
    return found.assign(value=rng.normal(60, 5, len(found)))


def correlated(rng, repetitions: int, mean: float = 0.0) -> np.ndarray:
    """Differences (repetitions, seeds, clients) with variance 1, of which the clients of a seed share .3."""
    shared = rng.normal(0, 0.3**0.5, (repetitions, SEEDS, 1))
    return mean + shared + rng.normal(0, 0.7**0.5, (repetitions, SEEDS, CLIENTS))


def by_seed(found: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(found.mean(axis=2), pd.MultiIndex.from_product([["iid"], ["local only"], range(len(found))]))


def within(rate: float, expected: float, repetitions: int) -> bool:
    """Whether a rate is the expected one, up to three and a half standard errors of the simulation."""
    return abs(rate - expected) < 3.5 * (expected * (1 - expected) / repetitions) ** 0.5


def test_the_interval_is_that_of_a_paired_t_test_over_the_means_of_the_seeds():
    rows = scores(np.random.default_rng(0))
    found = statistics.against(rows, "local only", by="setup")
    means = rows.groupby(["method", "seed"])["value"].mean().unstack("seed")
    assert found.index.tolist() == [("iid", "local only", "FedAvg"), ("iid", "local only", "FedReFT")]
    for (_, _, method), row in found.iterrows():
        expected = stats.ttest_rel(means.loc[method], means.loc["local only"])
        assert row["p"] == pytest.approx(expected.pvalue)
        assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert (row["seeds"], row["family"]) == (SEEDS, 2)


def test_clients_have_equal_weight_however_many_items_they_have():
    rows = scores(np.random.default_rng(1), items=(1, 2, 3, 10))
    means = (
        rows.groupby(["method", "seed", "client"])["value"].mean().groupby(["method", "seed"]).mean().unstack("seed")
    )
    found = statistics.differences(rows, "local only", by="setup").loc[("iid", "local only", "FedAvg")]
    assert found.to_numpy() == pytest.approx((means.loc["FedAvg"] - means.loc["local only"]).to_numpy())


def test_only_what_both_have_is_compared():
    rows = scores(np.random.default_rng(2))
    lost = rows[~((rows["method"] == "FedAvg") & ((rows["seed"] == 3) | (rows["client"] == "c0")))]
    kept = rows[(rows["seed"] != 3) & (rows["client"] != "c0")]
    both, alone = (statistics.differences(each, "local only", by="setup").loc[("iid", "local only", "FedAvg")]
                   for each in (lost, kept))  # fmt: skip
    assert np.isnan(both[3]) and both.dropna().to_numpy() == pytest.approx(alone.to_numpy())
    with pytest.raises(DataError, match="no method here is 'FedProx'"):
        statistics.against(rows, "FedProx", by="setup")


def test_holm_steps_down_and_stops():
    found = statistics.holm(pd.Series({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": np.nan}))
    assert found["p (Holm)"].round(10).to_dict() == pytest.approx(
        {"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.025, "e": np.nan}, nan_ok=True
    )
    assert found["level"].to_dict() == pytest.approx(
        {"d": 0.05 / 5, "a": 0.05 / 4, "c": 0.05 / 3, "b": 0.05 / 3, "e": 0.05 / 3}
    )
    all_rejected = statistics.holm(pd.Series([0.001, 0.001, 0.04]))
    assert all_rejected["level"].tolist() == pytest.approx([0.05 / 3, 0.05 / 2, 0.05])


def test_adjusted_intervals_exclude_zero_exactly_where_holm_rejects():
    rng = np.random.default_rng(3)
    draws = {f"m{k}": rng.normal(k / 4, 1.0, SEEDS) for k in range(10)}
    found = statistics.family(table(**draws))
    excluded = (found["low (Holm)"] > 0) | (found["high (Holm)"] < 0)
    assert 0 < excluded.sum() < 10 and (excluded == (found["p (Holm)"] < 0.05)).all()
    row = found.iloc[-1]
    level = found["p"].rank().iloc[-1] - 1  # this many have smaller p-values
    interval = stats.ttest_1samp(draws["m9"], 0).confidence_interval(1 - 0.05 / (10 - level))
    assert (row["low (Holm)"], row["high (Holm)"]) == pytest.approx(tuple(interval))


def test_equivalence_is_two_one_sided_tests_and_the_90_percent_interval():
    for draws in (np.random.default_rng(seed).normal(0.2, 0.9, SEEDS) for seed in range(20)):
        found = statistics.family(table(FedAvg=draws)).iloc[0]
        one_sided = (
            stats.ttest_1samp(draws, -1, alternative="greater"),
            stats.ttest_1samp(draws, 1, alternative="less"),
        )
        assert found["p (equal)"] == pytest.approx(max(test.pvalue for test in one_sided))
        low, high = stats.ttest_1samp(draws, 0).confidence_interval(0.90)
        assert (found["p (equal)"] < 0.05) == (low > -1 and high < 1)


@pytest.mark.parametrize("seeds", [2, 3, 8, 16])
def test_the_detectable_difference_is_found_in_four_of_five_repetitions(seeds):
    one = stats.zscore(np.arange(seeds), ddof=1)  # standard deviation 1
    found = statistics.family(table(FedAvg=one)).iloc[0]
    draws = np.random.default_rng(4).normal(found["detectable"], 1.0, (20_000, seeds))
    assert within((stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean(), 0.8, 20_000)


def test_words_follow_from_the_intervals():
    base = np.linspace(-1, 1, SEEDS)
    found = statistics.family(table(
        up=3 + base, down=-3 + base, same=0.2 * base, unclear=1 + 2 * base, constant=2 + 0 * base,
        single=[1.0] + [np.nan] * (SEEDS - 1),
    ))  # fmt: skip
    words = found["verdict"].droplevel(["setup", "against"])
    assert words[["up", "down", "same"]].tolist() == ["above", "below", "equal within 1 point"]
    assert words["unclear"] == f"undecided: this design sees {3.2698 * 2 * base.std(ddof=1) / SEEDS**0.5:.1f} points"
    assert words["single"] == "undecided: one seed has no interval"
    assert words["constant"] == "undecided: equal differences in all seeds have no interval"
    assert found["note"].tolist() == ["", "", "", "", "", "few seeds"]
    assert set(found["family"]) == {6}
    assert found.loc[("iid", "local only", "single"), ["low", "p (Holm)", "detectable"]].isna().all()


def test_a_sentence_names_the_reference_the_family_and_few_seeds():
    base = np.linspace(-1, 1, 4)
    found = statistics.family(table(FedAvg=9 + base, FedProx=9.5 + base, FedAdam=-9 + base))
    assert statistics.sentences(found) == [
        "iid, against local only: FedAvg, FedProx above; FedAdam below "
        "(adjusted for 3 comparisons; 4 seeds: few seeds)."
    ]
    one = statistics.family(table(FedAvg=[1.0]))
    assert statistics.sentences(one) == [
        "iid, against local only: FedAvg undecided: one seed has no interval (1 seed: few seeds)."
    ]
    only = statistics.family(table(FedAvg=9 + base))
    assert statistics.sentences(only)[0].endswith("FedAvg above (adjusted for 1 comparison; 4 seeds: few seeds).")
    assert statistics.sentences(found.iloc[:0]) == []


def test_above_both_ends_needs_both():
    base = np.linspace(-1, 1, SEEDS)
    local = statistics.family(table(FedAvg=3 + base, good=5 + base, middling=2 + base))
    fedavg = statistics.family(table(good=2 + base, middling=-1 + base, **{"local only": -3 + base}))
    found = statistics.above_both(local, fedavg)
    assert found["above both ends"].to_dict() == {("iid", "good"): True, ("iid", "middling"): False}
    assert found.loc[("iid", "middling")].tolist() == ["above", "below", False]


def test_the_bootstrap_over_seeds_is_scipys():
    rows = scores(np.random.default_rng(5), methods=("local only", "FedAvg"))
    draws = statistics.differences(rows, "local only", by="setup").iloc[0].to_numpy()
    found = statistics.bootstrap(rows, "local only", by="setup").iloc[0]
    expected = stats.bootstrap((draws,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(6))
    assert found.tolist() == pytest.approx(list(expected.confidence_interval), abs=0.1 * draws.std())


def test_the_bootstrap_resamples_items_too():
    """Items of -1 and 1 in every client of every seed: the seeds agree, and all the spread is that of the items."""
    items = 50
    rows = scores(np.random.default_rng(7), methods=("local only", "FedAvg"), items=(items,) * CLIENTS)
    rows["value"] = np.where(rows["method"] == "FedAvg", np.where(rows["item"] % 2, 1.0, -1.0), 0.0)
    low, high = statistics.bootstrap(rows, "local only", by="setup").iloc[0]
    expected = 1.96 / (SEEDS * CLIENTS * items) ** 0.5
    assert (low, high) == pytest.approx((-expected, expected), rel=0.1)
    assert statistics.bootstrap(rows[rows["seed"] == 0], "local only", by="setup").empty


def test_intervals_by_seed_cover_as_often_as_they_say_and_those_by_pair_do_not():
    repetitions = 4000
    draws = correlated(np.random.default_rng(8), repetitions, mean=1.5)
    found = statistics.family(by_seed(draws))
    assert within(found["low"].le(1.5).mul(found["high"].ge(1.5)).mean(), 0.95, repetitions)
    pairs = stats.ttest_1samp(draws.reshape(repetitions, -1), 0, axis=1).confidence_interval(0.95)
    assert ((pairs.low <= 1.5) & (pairs.high >= 1.5)).mean() < 0.88  # of 95 that they claim


@pytest.mark.parametrize("real", [0, 3])
def test_a_family_says_a_wrong_above_or_below_in_at_most_one_of_twenty(real):
    rng, families, m = np.random.default_rng(9), 200, 8
    means = np.array([9.0] * real + [0.0] * (m - real))[:, None, None]
    wrong = 0
    for _ in range(families):
        words = statistics.family(by_seed(correlated(rng, m) + means))["verdict"].to_numpy()
        wrong += bool(np.isin(words[real:], ["above", "below"]).any())
        assert (words[:real] == "above").all()
    assert within(wrong / families, 0.05, families)  # m unadjusted tests would be wrong in 1 - .95 ** m: .23 or .34


def test_a_difference_of_one_point_is_called_equal_in_one_of_twenty():
    repetitions = 4000
    draws = correlated(np.random.default_rng(10), repetitions, mean=statistics.MARGIN)
    rate = (statistics.family(by_seed(draws))["verdict"] == "equal within 1 point").mean()
    assert within(rate, 0.05, repetitions)
    none = correlated(np.random.default_rng(11), repetitions)
    assert (statistics.family(by_seed(none))["verdict"] == "equal within 1 point").mean() > 0.9
