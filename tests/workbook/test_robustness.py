"""The table of what Flower makes of bad updates is whole, and its words mean what they say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedreft_lib import RunConfig
from fedreft_lib.workbook import robustness
from fedreft_lib.workbook.robustness import BAD_UPDATES, OUTCOMES, measured_flower, measured_here
from tests.torture import flower

BOUND = 3
HONEST = [{"R": np.full((8, 2), x), "W": np.full((2, 8), x), "b": np.full(2, x)} for x in (0.9, 1.0, 1.0, 1.1)]
HONEST = [{name: array.astype(np.float32) for name, array in update.items()} for update in HONEST]


def constant(value: float, **changes) -> dict[str, np.ndarray]:
    """An aggregate whose numbers are all `value`, except for the named arrays."""
    return {name: np.full_like(array, value) for name, array in HONEST[0].items()} | changes


def test_every_strategy_has_each_bad_update_once_with_an_allowed_outcome():
    table = measured_flower()
    assert {"FedAvg", "FedMedian"} <= set(table["strategy"])
    for _, rows in table.groupby("strategy"):
        assert tuple(rows["bad_update"]) == tuple(BAD_UPDATES)
    assert set(table["outcome"]) <= set(OUTCOMES)
    assert table["flwr_version"].str.fullmatch(r"\d+\.\d+\.\d+").all() and table["flwr_version"].nunique() == 1


def test_outcome_agrees_with_the_error_and_with_the_sentence():
    for row in measured_flower().itertuples():
        told = [outcome for outcome in OUTCOMES if outcome in row.sentence]
        assert row.outcome == told[0]
        if row.outcome == "poisoned":
            assert row.largest_error > BOUND
        elif told == ["aborts"]:
            assert pd.isna(row.largest_error)
        else:
            assert not row.largest_error > BOUND


def test_script_and_reader_speak_of_the_same_things():
    assert (tuple(flower.BAD_UPDATES), flower.OUTCOMES, flower.BOUND) == (tuple(BAD_UPDATES), OUTCOMES, BOUND)
    assert tuple(measured_flower().columns) == flower.COLUMNS


@pytest.mark.parametrize(
    ("aggregate", "outcome"),
    [
        (constant(1.0), "refused"),  # the mean of all honest ones
        (constant(0.95), "refused"),  # of two of them
        (constant(1.02), "harmless"),
        (constant(1.29), "harmless"),  # 2.9 times the largest honest distance, which is 0.1 in each number
        (constant(1.31), "poisoned"),
        (constant(1.0, b=np.array([1, np.nan], np.float32)), "poisoned"),
        (constant(1.0, b=np.array([1, -np.inf], np.float32)), "poisoned"),
        (constant(1.0, b=np.ones(2)), "wrong shape or dtype"),
        (constant(1.31, b=np.ones(2)), "poisoned"),
        (constant(1.0, b=np.ones((1, 2), np.float32)), "wrong shape or dtype"),
        (constant(1.0, c=np.ones(2, np.float32)), "wrong shape or dtype"),
    ],
)
def test_an_aggregate_is_judged_by_its_shapes_its_numbers_and_its_distance(aggregate, outcome):
    assert flower.judge(aggregate, HONEST, without_bad=constant(1.07), bad=constant(2.0)).outcome == outcome


def test_what_a_strategy_gives_without_the_bad_update_counts_as_refused():
    assert flower.judge(constant(1.07), HONEST, without_bad=constant(1.07), bad=constant(2.0)).outcome == "refused"


def test_a_bad_update_is_told_with_its_pull_on_the_aggregate():
    judged = flower.judge(constant(1.02), HONEST, without_bad=constant(1.0), bad=constant(1.1))
    assert (judged.error, judged.detail) == (
        pytest.approx(0.2, rel=1e-4),
        "0.20 of the way from the honest mean to the bad update",
    )


def test_bad_updates_are_what_their_names_say():
    def made(kind: str) -> list[tuple]:
        return [change(HONEST[0]) for change in flower.BAD_UPDATES[kind].values()]

    def numbers(update: dict) -> np.ndarray:
        return np.concatenate([array.reshape(-1) for array in update.values()])

    assert [np.isnan(numbers(update)).sum() for update, _ in made("one NaN")] == [1]
    assert [np.isposinf(numbers(update)).sum() for update, _ in made("one Inf")] == [1]
    [(large, _)] = made("norm 1e30")
    assert np.linalg.norm(numbers(large).astype(np.float64)) == pytest.approx(1e30, rel=1e-6)
    assert numbers(large).dtype == np.float32
    for update, _ in made("broadcastable shape"):
        np.broadcast(update["W"], HONEST[0]["W"])  # raises ValueError where it is not
    for update, _ in made("wrong shape"):
        with pytest.raises(ValueError, match="mismatch"):
            [np.broadcast(update[name], HONEST[0][name]) for name in update]
    for kind in ("negative count", "NaN count", "huge count"):
        for update, count in made(kind):
            assert update is HONEST[0]
            assert count < 0 or count != count or count >= 1e9


def test_without_flower_the_script_skips_with_one_sentence():
    script, blocked = Path(flower.__file__), "sys.modules['flwr'] = None"  # import flwr then raises ImportError
    before = flower.TABLE.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", f"import runpy, sys; {blocked}; runpy.run_path({str(script)!r}, run_name='__main__')"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("skipped: flwr ") and done.stdout.count("\n") == 1
    assert flower.TABLE.read_bytes() == before


def test_here_every_bad_update_is_refused_and_the_judge_can_say_otherwise():
    table = measured_here(kinds=("mean",), seed=3)
    assert tuple(table["bad_update"]) == tuple(BAD_UPDATES) and set(table["outcome"]) == {"refused"}
    assert (table["largest_error"] == 0).all() and table["sentence"].str.len().gt(0).all()
    config = RunConfig(
        backbone="tiny-llama", source="synthetic", layers="2-3", rank=2, setup="iid", clients=5, train_size=8,
        held_out_size=2, test_size=4, local_steps=2, rounds=1, mixing=1.0, retraction="raw", aggregation="mean",
    )  # fmt: skip
    honest = robustness._after_a_round(config.but(drops=[[5, 1]]))[0][:4]
    judged = [
        robustness._judged(config.but(hostile=1, **more), honest)["outcome"]
        for more in (
            {"attack": "noise", "attack_scale": 29.0},
            {"attack": "noise", "attack_scale": 0.1},
            {"attack": "one_nan", "min_clients": 5},
        )
    ]
    assert judged == ["poisoned", "harmless", "aborts"]
