"""The forest plot draws the numbers of its tables, and fills what is certain."""

import numpy as np
import pandas as pd
import pytest

from fedreft_lib.workbook import statistics
from fedreft_lib.workbook.forest import forest


def table(reference, shifts):
    rng = np.random.default_rng(0)
    rows = [
        (group, seed, method, 50 + rng.standard_normal() + (0 if method == reference else shift))
        for group, shift in shifts.items()
        for seed in range(8)
        for method in (reference, "FedReFT mean, λ 0.1")
    ]
    scores = pd.DataFrame(rows, columns=["comparison", "seed", "method", "value"])
    return statistics.against(scores, reference, "comparison")


def test_every_difference_is_at_its_place_with_its_interval_and_filled_where_it_is_certain():
    tables = {
        "over alone": table("local only", {"styles": 0.0, "sst2": 9.0}),
        "over FedAvg": table("FedAvg", {"sst2": -9.0}),
    }
    axes = forest(tables, "Gains").axes
    assert [text.get_text() for text in axes[0].get_yticklabels()] == [
        "styles: FedReFT mean, λ 0.1", "sst2: FedReFT mean, λ 0.1"
    ]  # fmt: skip
    assert list(axes[0].get_yticks()) == [1, 0]
    for ax, found in zip(axes, tables.values(), strict=True):
        dots = [line for line in ax.lines if line.get_marker() == "s"]
        assert [dot.get_xdata()[0] for dot in dots] == pytest.approx(found["difference"].tolist())
        filled = [dot.get_markerfacecolor() != "white" for dot in dots]
        assert filled == found["verdict"].isin(["above", "below"]).tolist()
        bars = [bar.get_segments()[0][:, 0].tolist() for bar in ax.collections]
        assert np.allclose(bars, found[["low", "high"]])
    assert tables["over alone"]["verdict"].tolist()[1] == "above"


def test_a_single_seed_has_a_dot_and_no_bar():
    one = table("local only", {"sst2": 1.0}).assign(low=np.nan, high=np.nan, verdict="undecided")
    (ax,) = forest({"alone": one}, "One").axes
    assert len(ax.collections) == 0 and len(ax.lines) == 2
