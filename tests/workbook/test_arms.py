"""Experiments of arms: the runs that they ask for, and tables that say what these runs hold."""

import pytest

from fedreft_lib import run
from fedreft_lib.workbook import arms
from tests.helpers.federations import rows, small


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    base = small(rounds=2, eval_every=1, experiment="field")
    changes = {
        "alone": {"method": "local"},
        "FedAvg": {"method": "fedavg"},
        "hostile": {"method": "fedavg", "hostile": 1},
    }
    return base, arms.run_arms(base, "test", changes, [0, 3], tmp_path_factory.mktemp("field"))


def test_each_arm_has_the_runs_of_its_config_and_says_so_in_their_experiment(found):
    base, got = found
    assert list(got) == ["alone", "FedAvg", "hostile"] and all(
        [r.config.seed for r in runs] == [0, 3] for runs in got.values()
    )
    for name, runs in got.items():
        assert {r.config.experiment for r in runs} == {f"field: test, {name}"}
    own = run(base.but(method="fedavg", seed=3), progress=False)
    assert float((got["FedAvg"][1].states - own.states).abs().max()) < 1e-5


def test_tables_have_the_numbers_of_the_runs(found):
    _, got = found
    table = arms.overview(got, [0, 2])
    for name, runs in got.items():
        scores = [run.accuracy().iloc[[0, 2]].mean() for run in runs]
        assert table.loc[name, "accuracy"] == pytest.approx(sum(scores) / 2)
    sent = got["FedAvg"][0].spec.size
    assert table["sent up"].tolist() == [0, sent, sent] and table["sent down"].tolist() == [0, sent, sent]
    assert (table["seconds a round"] > 0).all()
    one = arms.scores({"FedAvg": got["FedAvg"][:1]}, [1])
    assert one["value"].tolist() == [got["FedAvg"][0].accuracy().iloc[1]] and one["client"].tolist() == [
        got["FedAvg"][0].accuracy().index[1]
    ]
    assert arms.by_round(got).loc[1, "alone"] == pytest.approx(
        sum(float(r.accuracy(1).mean()) for r in got["alone"]) / 2
    )
    assert list(arms.by_round(got).index) == [0, 1, 2]
    assert arms.weight_of(got["FedAvg"], 2) == pytest.approx(0.25) and arms.weight_of(got["alone"], 2) == 0
    assert rows(got["hostile"][0], "loss").shape[0] == 8


def test_arms_are_compared_with_one_of_them_seed_by_seed(found):
    _, got = found
    table = arms.compared("test", got, "alone").loc["test"].loc["alone"]
    difference = (
        sum(float((a.accuracy() - b.accuracy()).mean()) for a, b in zip(got["FedAvg"], got["alone"], strict=True)) / 2
    )
    assert table.loc["FedAvg", "difference"] == pytest.approx(difference) and len(table) == 2
    assert table.loc["FedAvg", "seeds"] == 2 and table.loc["FedAvg", "family"] == 2
