"""Tables over many experiments keep runs apart that differ, and show one comparison where there are many."""

import json

import pandas as pd
import pytest
import torch

from fedreft_lib import RunConfig, results_of, run
from fedreft_lib.workbook import comparisons, tables
from tests.workbook.test_ledger import results
from tests.workbook.test_ledger import run as rows_of

FEW = {"experiment": "06_few", "model": "m"}
MANY = {"experiment": "07_many", "model": "m"}


def many_methods(**common) -> list[list[dict]]:
    methods = [("local", "none", "none"), ("fedavg", "none", "none"), ("fedreft", "mean", "fixed 0.3")]
    return [rows_of(method=m, aggregation=a, mixing=x, **common) for m, a, x in methods]


@pytest.fixture(scope="module")
def runs():
    """Both kinds of All-But-Me and FedAvg with three and with four clients; tiny model, invented questions."""
    base = RunConfig(
        backbone="tiny-llama", layers="1-2", rank=2, source="synthetic", setup="iid", rounds=1, local_steps=1,
        train_size=8, held_out_size=2, test_size=4,
    )  # fmt: skip
    kinds = [{"aggregation": "mean"}, {"aggregation": "geometric_median"}, {"method": "fedavg"}]
    configs = [base.but(clients=n, experiment=f"08_some: {n}", **kind) for n in (3, 4) for kind in kinds]
    return [run(config, progress=False) for config in configs]


def test_runs_are_ordered_by_experiment_and_simple_methods_first(runs):
    found = [(r.config.experiment, r.config.method, r.config.aggregation) for r in comparisons.ordered(runs)]
    kinds = [("fedavg", "geometric_median"), ("fedreft", "mean"), ("fedreft", "geometric_median")]
    assert found == [(experiment, *kind) for experiment in ("08_some: 3", "08_some: 4") for kind in kinds]


def test_the_overview_counts_every_run_of_a_notebook(runs):
    table = comparisons.overview(runs)
    assert table.index.tolist() == [("commonsense", "08_some")]
    row = table.iloc[0]
    assert (row["runs"], row["experiments"], row["methods"], row["clients"]) == (6, 2, 2, "3, 4")
    assert comparisons.overview([]).empty


def test_the_widest_comparison_is_shown_once_for_each_setup():
    table = results(*many_methods(**MANY), *many_methods(**FEW)[:2], rows_of(setup="distinct", **FEW))
    chosen = comparisons.widest(table)
    assert set(zip(chosen["experiment"], chosen["setup"], strict=True)) == {("07_many", "iid")}
    alike = results(*many_methods(**MANY), *many_methods(**FEW))
    assert set(comparisons.widest(alike)["experiment"]) == {"06_few"}  # the first by name
    apart = results(*many_methods(**FEW)[:2], *many_methods(clients=8, **MANY), *many_methods(setup="mixed", **FEW))
    chosen = comparisons.widest(apart).drop_duplicates(["setup", "clients"])
    assert set(zip(chosen["setup"], chosen["clients"], strict=True)) == {("iid", 8), ("mixed", 3)}


def test_runs_that_no_column_tells_apart_are_left_out():
    tried = [rows_of(values=(value,), experiment="07_many: learning rate") for value in (60.0, 70.0)]
    table = results(*tried, *many_methods(**MANY))
    assert set(comparisons.told_apart(table)["experiment"]) == {"07_many"}
    tasks = results(*(rows_of(task, **MANY) for task in ("rte", "sst2")))  # of several tasks a run each: they stay
    pd.testing.assert_frame_equal(comparisons.told_apart(tasks), tasks)
    assert comparisons.told_apart(results()).empty


def test_a_method_at_several_ranks_has_several_labels():
    table = results(*(rows_of(rank=r, values=(60.0 + r,), **FEW) for r in (1, 8)), *many_methods(**MANY))
    gains = comparisons.gains(comparisons.told_apart(table))
    assert gains.loc[gains["trained"] == 68.0, "method"].tolist() == ["FedReFT median, adaptive λ (loreft rank 8)"]
    assert gains.loc[gains["trained"] == 61.0, "gain"].tolist() == [11.0]
    assert "FedAvg" in set(gains["method"])


def test_gains_have_a_line_for_every_comparison_and_method():
    table = results(*many_methods(**MANY), *many_methods(clients=4, **MANY), rows_of(**FEW))
    assert len(comparisons.gains(table)) == 7
    assert list(comparisons.gains(results())) == list(comparisons.gains(table))


def test_in_glue_each_task_has_a_line():
    gains = comparisons.gains(results(rows_of("rte", **FEW), rows_of("sst2", values=(70.0,), **FEW)))
    assert gains[["task", "trained"]].values.tolist() == [["rte", 92.0], ["sst2", 70.0]]
    other = comparisons.gains(results(rows_of("boolq", benchmark="commonsense", **FEW)))
    assert other["task"].tolist() == ["all"]


def test_kept_tables_give_the_scores_gains_and_differences_again(tmp_path, runs):
    table = results(*many_methods(**MANY), *many_methods(seed=1, values=(80.0, 90.0, 97.0), **MANY), rows_of(**FEW))
    facts = comparisons.keep(tmp_path / "new", runs, table)
    kept = {path.stem: pd.read_csv(path) for path in (tmp_path / "new").glob("*.csv")}
    assert set(kept) == {"scores", "gains", *(f"against_{name}" for name in comparisons.REFERENCES)}
    again = comparisons.against(kept["scores"], "local only").reset_index()
    pd.testing.assert_frame_equal(again, kept["against_local"], atol=1e-3, check_dtype=False)
    assert set(again["comparison"]) == {"glue sst2, iid (07_many)"} and len(kept["gains"]) == 4
    untrained = kept["against_untrained"].set_index(["comparison", "method"])["difference"]
    assert untrained["glue sst2, iid (07_many)", "FedAvg"] == 40.5  # of seed 0: 42, of seed 1: 39
    assert facts["runs"] == {"08_some": 6} and facts["code"] == [runs[0].manifest["code"]]
    assert json.loads((tmp_path / "new" / "manifest.json").read_text()) == facts


def test_the_comparisons_of_one_notebook_are_one_family():
    parts = [many_methods(experiment="07_many: two", setup=setup, model="m") for setup in ("distinct", "mixed")]
    table = results(*parts[0], *parts[1], *many_methods(**MANY), *many_methods(**FEW)[:2])
    found = comparisons.against(tables.accuracies(table), "local only")
    assert found.groupby("comparison", sort=False)["family"].agg(["size", "first"]).T.to_dict("list") == {
        "glue sst2, distinct (07_many: two)": [2, 6], "glue sst2, mixed (07_many: two)": [2, 6],
        "glue sst2, iid (07_many)": [2, 6], "glue sst2, iid (06_few)": [1, 1],
    }  # fmt: skip


def test_a_comparison_has_the_reference_and_another_method():
    found = comparisons.against(tables.accuracies(results(*many_methods(**MANY), rows_of(**FEW))), "local only")
    assert set(found.index.get_level_values("comparison")) == {"glue sst2, iid (07_many)"}
    for alone in (results(rows_of(**FEW)), results()):
        assert comparisons.against(tables.accuracies(alone), "local only").empty


def test_matrices_are_those_of_the_last_round(runs):
    found = comparisons.mixing_matrices(runs, results_of(runs), most=3)
    assert list(found) == ["commonsense, iid (08_some: 3)"]
    (fedavg,) = [M for label, M in found["commonsense, iid (08_some: 3)"] if label == "FedAvg"]
    assert torch.allclose(fedavg, torch.full((3, 3), 1 / 3, dtype=fedavg.dtype))
    assert comparisons.mixing_matrices([], results()) == {}


def test_with_three_clients_our_runs_end_in_one_place(runs):
    table = comparisons.medians_apart(runs)
    assert table["pairs of runs"].to_dict() == {3: 1, 4: 1}
    states = table["largest distance of states"]
    assert states[3] < 1e-6 < states[4]
    assert comparisons.medians_apart([]).empty


def test_every_client_sends_under_all_but_me(runs):
    table = comparisons.senders(results_of(runs))["clients that send"]
    assert (table == table.index.get_level_values("clients")).all() and len(table) == 6
    assert comparisons.senders(results()).empty


def test_folded_tables_hold_every_row_and_no_markup_of_the_data():
    page = comparisons.folded({"a <b>": pd.DataFrame({"x": ["<i>", "y"], "z": [1.0, None]})}).data
    assert "<summary>a &lt;b&gt; (2)</summary>" in page and "&lt;i&gt;" in page
    assert "1.00" in page and "NaN" not in page


def test_a_table_for_reading_shows_nothing_where_there_is_no_number():
    table = comparisons.blank(pd.DataFrame({"x": [1.234, None], "y": ["a", None]}))
    assert table.to_numpy().tolist() == [["1.23", "a"], ["", ""]]
