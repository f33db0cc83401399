"""Rules are compared where nobody is hostile, and under each attack by the largest number of hostile clients."""

import pandas as pd

from fedreft_lib import RunConfig, run
from fedreft_lib.workbook import breakdown

VALUES = {  # (rule, hostile, attack): the scores of two seeds
    ("mean", 0, "noise"): (80, 82), ("median", 0, "noise"): (79, 83),
    ("mean", 0, "collude"): (80, 82), ("median", 0, "collude"): (79, 83),
    ("mean", 2, "noise"): (0, 0), ("median", 2, "noise"): (99, 99),
    ("mean", 3, "noise"): (60, 60), ("median", 3, "noise"): (70, 72),
    ("mean", 3, "collude"): (50, 60), ("median", 3, "collude"): (40, 60),
}  # fmt: skip


def test_each_attack_is_one_comparison_and_the_calm_case_is_counted_once():
    scores = pd.DataFrame([
        {"rule": rule, "hostile": hostile, "attack": attack, "seed": seed, "value": float(value)}
        for (rule, hostile, attack), values in VALUES.items() for seed, value in enumerate(values)
    ])  # fmt: skip
    found = breakdown.against(scores, "mean")
    assert found["difference"].to_dict() == {
        ("nobody hostile", "mean", "median"): 0.0, ("noise, 3 hostile", "mean", "median"): 11.0,
        ("collude, 3 hostile", "mean", "median"): -5.0,
    }  # fmt: skip
    assert set(found["family"]) == {3} and set(found["seeds"]) == {2}


def scores() -> pd.DataFrame:
    return pd.DataFrame([
        {"rule": rule, "hostile": n, "attack": attack if n else "nobody", "seed": seed, "value": float(value)}
        for (rule, n, attack), values in VALUES.items() if n or attack == "noise"
        for seed, value in enumerate(values)
    ])  # fmt: skip


def test_runs_without_hostile_clients_are_in_every_panel_once():
    fig = breakdown.breakdown(scores(), 7, 50.0)
    assert [ax.get_title() for ax in fig.axes] == ["noise", "collude"]
    for ax, worst in zip(fig.axes, ({"mean": 60, "median": 71}, {"mean": 55, "median": 50}), strict=True):
        lines = {line.get_label(): line for line in ax.lines}
        assert {rule: (lines[rule].get_ydata()[0], lines[rule].get_ydata()[-1]) for rule in worst} == {
            rule: (81, value) for rule, value in worst.items()
        }
    assert fig.get_suptitle() == "Highest with 3 of 7 clients hostile: median (noise) and mean (collude)"


def test_a_run_without_hostile_clients_has_no_attack():
    base = RunConfig(
        backbone="tiny-llama", source="synthetic", layers=[2], rounds=0, test_size=4, train_size=8, clients=5
    )
    runs = [run(base.but(hostile=n, attack="noise"), progress=False) for n in (0, 2)]
    table = breakdown.honest_scores(runs)
    assert table["attack"].tolist() == ["nobody", "noise"] and table["questions"].tolist() == [12.0, 12.0]
    assert table["value"].tolist() == [each.accuracy().iloc[:3].mean() for each in runs]
