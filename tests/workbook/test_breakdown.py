"""Rules are compared where nobody is hostile, and under each attack by the largest number of hostile clients."""

import pandas as pd

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
