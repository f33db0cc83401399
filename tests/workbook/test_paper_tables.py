"""The paper's tables and pictures show the published numbers and ours in their places."""

import pandas as pd
import pytest

from fedreft_lib.errors import DataError
from fedreft_lib.workbook import paper_tables
from fedreft_lib.workbook.ledger import ledger
from tests.workbook.test_ledger import results, run

MINI = {"model": "minilm-l6-v2"}


def test_table_3_has_the_published_rows_in_their_order():
    table = paper_tables.table_3(ledger(results()))
    assert table["published"].tolist() == [78.83, 75.74, 71.11, 75.66, 76.22, 75.66]
    assert table.index[4] == ("FedReFT+", 32, "11.01")
    assert table[["ours", "nearest of ours"]].isna().all().all()


def test_table_5_puts_a_run_into_its_method_and_task():
    table = paper_tables.table_5(ledger(results(run(), run("rte", values=(70.0,), **MINI))))
    assert list(table) == ["MNLI-m", "MNLI-mm", "SST-2", "QNLI", "QQP", "RTE", "average printed"]
    assert table.loc[("FedDPA-LoRA", 8, "2.62", "published")].tolist() == [
        88.99, 88.43, 95.5, 90.74, 85.73, 87.44, 89.47,
    ]  # fmt: skip
    assert table.loc[("FedReFT+", 1, "0.053", "ours")].dropna().to_dict() == {"SST-2": 92.0}
    assert table.loc[("FedReFT+", 1, "0.053", "nearest of ours")].dropna().to_dict() == {"RTE": 70.0}
    assert table.index.unique("method").tolist() == ["FFA-LoRA", "FedDPA-LoRA", "FedSA-LoRA", "FedReFT+"]
    assert table.drop(index="FedReFT+", level="method").notna().any(axis=1).sum() == 3  # theirs alone


def test_table_6_shows_gsm8k():
    gsm8k = run("gsm8k", benchmark="arithmetic", model="meta-llama/Meta-Llama-3-8B", rank=8)
    table = paper_tables.table_6(ledger(results(gsm8k)))
    assert table["published"].tolist() == [46.63, 46.32, 49.68]
    assert table["ours"].dropna().tolist() == [92.0]


def test_figure_3_shows_what_each_rule_adds_to_fedavg():
    table = paper_tables.figure_3(ledger(results(run(**MINI))))
    assert table["over FedAvg"].tolist() == [0.0, 0.32, 0.73, 0.0, 0.85, 1.86, 0.0, 0.87, 1.06]
    assert table["nearest of ours"].dropna().to_dict() == {("glue", "RoBERTa", "GeoMedian-ABM"): 92.0}


def example() -> pd.DataFrame:
    """Two seeds of three methods on GLUE, with traffic, and one run on an own benchmark name."""
    others = [("local", "none", "none"), ("fedavg", "none", "none"), ("fedreft", "geometric_median", "adaptive")]
    runs = []
    for i, (method, aggregation, mixing) in enumerate(others):
        for seed in (0, 1):
            name = {"method": method, "aggregation": aggregation, "mixing": mixing, "seed": seed}
            runs.append(run(values=(80.0 + i + 2 * seed,), **name, **MINI))
    table = results(*runs)
    sends = (table["method"] != "local") & (table["round"] > 0)
    return table.assign(uplink_bytes=sends * 1_000_000, downlink_bytes=sends * 500_000)


def points(ax) -> dict[str, tuple[float, float]]:
    """label -> (x, y) of the filled markers."""
    return {bar.get_label(): (bar.lines[0].get_xdata()[0], bar.lines[0].get_ydata()[0]) for bar in ax.containers}


def test_figure_3_is_drawn_with_the_published_bars_beside_ours():
    fig = paper_tables.draw_figure_3(ledger(results(run(**MINI))))
    assert [ax.get_title() for ax in fig.axes] == [
        "commonsense; published: LLaMA-2-7B", "arithmetic; published: LLaMA-2-7B", "glue; published: RoBERTa",
    ]  # fmt: skip
    published, ours = fig.axes[2].containers
    assert [bar.get_height() for bar in published] == [51.30, 52.17, 52.36]
    assert [bar.get_height() for bar in ours] == [0.0, 0.0, 92.0]
    assert [text.get_text() for text in fig.axes[2].texts] == ["51.3", "52.2", "52.4", "", "", "92.0"]


def test_what_scores_cost_shows_ours_filled_and_the_published_hollow():
    fig = paper_tables.accuracy_against_cost(example(), "glue")
    size, sent, theirs = fig.axes
    assert points(size)["local only"] == (49_176, 81.0)  # without the head; seeds 80 and 82
    assert points(size)["FedReFT median, adaptive λ"] == (49_176, 83.0)
    assert list(size.lines[0].get_ydata()) == [50.0, 50.0] and size.lines[0].get_label() == "untrained backbone"
    assert points(sent)["local only"] == (0.0, 81.0)
    assert points(sent)["FedAvg"] == (3.0, 82.0)  # two rounds of 1 MB up and 0.5 MB down
    assert sent.get_xscale() == "symlog" and len(sent.get_legend().get_texts()) == 4
    assert theirs.get_title() == "published, RoBERTa-large"
    printed = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in theirs.lines}
    assert printed["FedSA-LoRA, rank 8"] == pytest.approx((1.83e6, 90.43))
    assert all(line.get_fillstyle() == "none" for line in theirs.lines)
    assert len({(line.get_color(), line.get_marker()) for line in theirs.lines}) == len(theirs.lines) == 4


def test_error_bars_are_one_deviation_over_seeds():
    ax = paper_tables.accuracy_against_cost(example(), "glue").axes[0]
    (segment,) = ax.containers[0].lines[2][0].get_segments()
    assert segment[:, 1] == pytest.approx([81 - 2**0.5, 81 + 2**0.5])


def test_markers_at_one_place_stand_side_by_side_within_the_axes():
    fig = paper_tables.accuracy_against_cost(example(), "glue")
    fig.draw_without_rendering()
    for ax in fig.axes[:2]:
        places = [bar.lines[0].get_transform().transform(bar.lines[0].get_xydata())[0, 0] for bar in ax.containers]
        assert len({round(place, 1) for place in places}) == 3
        assert all(ax.bbox.x0 < place < ax.bbox.x1 for place in places)


def test_every_logarithmic_axis_has_two_labelled_powers_of_ten():
    fig = paper_tables.accuracy_against_cost(example(), "glue")
    for ax in fig.axes:
        low, high = ax.get_xlim()
        assert sum(low <= tick <= high for tick in ax.get_xticks() if tick > 0) >= 2


def test_methods_of_one_colour_have_different_markers():
    lora = {"intervention": "lora", "aggregation": "none", "mixing": "none"}
    table = results(*(run(method=method, **lora) for method in ("fedavg", "fedit", "fedprox", "local")))
    ax = paper_tables.accuracy_against_cost(table, "glue").axes[0]
    markers = {bar.get_label(): bar.lines[0].get_marker() for bar in ax.containers}
    assert len({markers[name] for name in ("FedAvg (lora)", "FedIT", "FedProx (lora)")}) == 3


def test_an_experiment_without_a_name_is_drawn_too(tmp_path):
    example().assign(experiment="").to_csv(tmp_path / "results.csv", index=False)
    ours = paper_tables.accuracy_against_cost(pd.read_csv(tmp_path / "results.csv"), "glue").axes[0]
    assert points(ours)["FedAvg"] == (49_176, 82.0)


def test_a_benchmark_without_published_counts_has_two_panels():
    table = results(run(benchmark="instruction", metric="rouge_l"))
    assert [ax.get_title() for ax in paper_tables.accuracy_against_cost(table, "instruction").axes] == ["ours", "ours"]


def test_results_without_scores_are_refused_in_a_sentence():
    with pytest.raises(DataError, match="no test scores"):
        paper_tables.accuracy_against_cost(results(run(split="held_out")), "glue")
