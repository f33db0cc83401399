"""What chance in the test questions does to a score, against SciPy, simulation and counts by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from fedreft_lib import RunConfig, run
from fedreft_lib.workbook import sampling


@pytest.mark.parametrize(("right", "n"), [(0, 8), (3, 20), (20, 20), (61, 100)])
def test_one_clients_interval_is_wilsons(right, n):
    found = binomtest(right, n).proportion_ci(method="wilson")
    assert sampling.interval([100 * right / n], [n]) == pytest.approx((100 * found.low, 100 * found.high), abs=1e-3)


def test_the_interval_of_a_mean_over_clients_holds_it_in_95_of_100_draws():
    shares, n, rng = np.array([0.02, 0.3, 0.55, 0.9]), np.array([20, 40, 20, 32]), np.random.default_rng(0)
    drawn = 100 * rng.binomial(n, shares, size=(4000, 4)) / n
    bounds = [sampling.interval(scores, n) for scores in drawn]
    held = np.mean([low <= 100 * shares.mean() <= high for low, high in bounds])
    assert 0.93 < held < 0.985


def test_one_seed_has_the_interval_of_its_questions_and_several_have_their_deviation():
    rows = pd.DataFrame({"seed": [0, 0, 1, 1], "value": [40.0, 60.0, 50.0, 70.0], "questions": 20.0})
    assert sampling.spread(rows) == pytest.approx((55, 55 - 50**0.5, 55 + 50**0.5))
    one = rows[rows["seed"] == 0]
    assert sampling.spread(one) == (50.0, *sampling.interval([40, 60], [20, 20]))
    assert sampling.by_chance(one) and not sampling.by_chance(rows)
    assert "not over seeds" in sampling.note(one, "bars") and "over seeds" in sampling.note(rows, "bars")
    uneven = pd.concat([rows.assign(setup="distinct"), rows.assign(setup="mixed"), rows.assign(setup="mixed", seed=9)])
    assert "and 2 seeds;" in sampling.note(rows, "bars") and "and 2 to 3 seeds;" in sampling.note(uneven, "bars")
    without = one.drop(columns="questions")
    assert np.isnan(sampling.spread(without)[1:]).all() and sampling.note(without, "bars").endswith("so no bars")


def test_the_number_of_questions_is_that_of_the_clients_tests():
    base = RunConfig(backbone="tiny-llama", source="synthetic", layers=[2], rounds=0, test_size=6, train_size=8)
    table = sampling.counted([run(base, progress=False)])
    of_items = (table["split"] == "test") & (table["metric"] == "accuracy")
    assert set(table.loc[of_items, "questions"]) == {6.0} and table.loc[~of_items, "questions"].isna().all()
    assert sampling.counted([]).empty


def test_clients_with_questions_of_their_own_have_no_known_number():
    assert np.isnan(sampling.asked(RunConfig(setup="own", source="local", data_dir="own", tasks=["a"])))
