"""The findings of notebook 06: each sentence says what its row says, and how sure that is."""

import pandas as pd
import pytest

from fedreft_lib.workbook import statistics, study
from fedreft_lib.workbook.findings import as_html, cost, cost_picture, findings

MEAN, MEDIAN = "FedReFT mean, λ 0.1", "FedReFT median, λ 0.1"
LEVELS = {1.0: (80, 90, 86), 0.7: (80, 74, 83), 0.5: (80, 60, 79)}  # training alone, FedAvg, a share of 0.1


def on_map(seeds=8, levels=LEVELS, spread=0.2):
    rows = []
    for a, scores in levels.items():
        methods = zip((study.LOCAL, study.FEDAVG, MEAN), (0.0, 0.75, 0.1), scores, strict=True)
        for i, (method, lam, level) in enumerate(methods, start=1):
            noise = [spread * (i * seed % 5 - 2) for seed in range(seeds)]
            rows += [(a, 64, seed, method, lam, level + noise[seed]) for seed in range(seeds)]
    table = pd.DataFrame(rows, columns=["agreement", "n", "seed", "method", "lam", "value"])
    return study.contrasts(study.with_best(table))


def attacked(seeds=8, apart=20.0):
    rows = [
        (
            f"{f} hostile clients",
            seed,
            method,
            60 + (apart if f and method == MEDIAN else 0) + 0.1 * seed * (method == MEAN),
        )
        for f in (0, 3)
        for seed in range(seeds)
        for method in (MEAN, MEDIAN)
    ]
    table = pd.DataFrame(rows, columns=["attack", "seed", "method", "value"])
    return statistics.against(table, MEAN, "attack")


def test_sentences_have_the_numbers_of_their_rows():
    table = on_map()
    said = dict(findings(table, attacked(), MEAN, MEDIAN))
    row = table.loc[("a = 1, n = 64", study.LOCAL, study.FEDAVG)]
    assert said["FedAvg, where clients agree"] == (
        "With 64 texts a client and 100 % of labels in common it is "
        f"{row['difference']:.1f} points above training alone (95 %: {row['low']:.1f} to {row['high']:.1f})."
    )
    row = table.loc[("a = 0.5, n = 64", study.LOCAL, study.FEDAVG)]
    below = said["Training alone, where they do not"]
    assert (
        f"{-row['difference']:.1f} points below training alone (95 %: {-row['high']:.1f} to {-row['low']:.1f})" in below
    )
    ridge = said["All-But-Me, between the two"]
    for end, name in ((study.LOCAL, "training alone"), (study.FEDAVG, "FedAvg")):
        assert f"{table.loc[('a = 0.7, n = 64', end, study.BEST)]['difference']:.1f} points above {name}" in ridge
    assert ridge.startswith("With 64 texts a client and 70 % of labels in common the best share is")
    hostile = said["The geometric median, where somebody is hostile"]
    assert hostile.startswith("With 3 hostile clients the median of the others is 19.6 points above their mean")
    assert "with 0 hostile clients it is 0.4 points below it (95 %: 0.1 to 0.6)" in hostile


def test_what_is_not_certain_is_not_said_as_if_it_were():
    flat = {1.0: (80, 80.1, 80), 0.5: (80, 79.9, 80)}
    said = dict(findings(on_map(levels=flat, spread=4.0), attacked(apart=0.0), MEAN, MEDIAN))
    assert all("not certain" in said[title] for title in list(said)[:2])
    assert said["All-But-Me, between the two"].startswith(
        "It is certainly above both ends in no cell. It comes nearest"
    )
    few = dict(findings(on_map(seeds=4), attacked(seeds=4), MEAN, MEDIAN))
    assert all("only 4 seeds" in text for text in few.values())
    single = dict(findings(on_map(seeds=1), attacked(seeds=1), MEAN, MEDIAN))
    assert "All-But-Me, between the two" not in single  # a share cannot be chosen on other seeds
    assert all("has no interval" in text for text in single.values()) and len(single) == 3


def test_the_cost_is_counted_in_bytes():
    title, text = cost(250_000, 135_000_000)
    assert text.startswith("A client sends 250,000 numbers a round (1.00 MB)") and text.endswith("would be 540 MB.")
    widths = [bar.get_width() for bar in cost_picture(250_000, 135_000_000).axes[0].patches]
    assert widths == pytest.approx([540.0, 1.0])
    assert as_html([("<a>", "b & c")]) == "<ul><li><b>&lt;a&gt;.</b> b &amp; c</li></ul>"
