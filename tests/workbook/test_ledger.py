"""The ledger drops no published number, and gives ours only where the setting is the published one."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from fedreft_lib.config import RunConfig
from fedreft_lib.data import FAMILIES
from fedreft_lib.data.grading.metrics import PRIMARY
from fedreft_lib.runs.results import RESULTS
from fedreft_lib.workbook import ledger as book
from fedreft_lib.workbook.ledger import METHODS, ledger, published

CSV = Path(book.__file__).with_name("published.csv")
GLUE_6 = ("mnli", "mnli_mm", "sst2", "qnli", "qqp", "rte")
FEDREFT_GLUE = {
    "experiment": "05_glue", "benchmark": "glue", "setup": "iid", "model": "FacebookAI/roberta-large",
    "method": "fedreft", "aggregation": "geometric_median", "mixing": "adaptive", "intervention": "loreft", "rank": 1,
    "layers": "all", "clients": 3, "rounds": 2, "seed": 0, "split": "test", "metric": "accuracy",
    "trainable_params": 49_176, "head_params": 1_051_650,
}  # fmt: skip


def run(task="sst2", values=(90.0, 92.0, 94.0), **changes) -> list[dict]:
    """The rows of one run: before (50), after round 1 (60), and in the end `values`, one a client."""
    common = FEDREFT_GLUE | {"task": task} | changes
    ends = [(0, [50.0] * len(values)), (1, [60.0] * len(values)), (common["rounds"], values)]
    return [common | {"round": t, "client": f"c{k}", "value": v} for t, row in ends for k, v in enumerate(row)]


def results(*runs) -> pd.DataFrame:
    return pd.DataFrame([row for rows in runs for row in rows], columns=list(RESULTS))


def filled(table: pd.DataFrame) -> list[tuple]:
    rows = table[table["ours"].notna()]
    return list(zip(rows["table"], rows["method"], rows["task"], rows["ours"], strict=True))


def test_every_published_row_appears_exactly_once_and_unchanged():
    with open(CSV, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 133
    for table in (ledger(results()), ledger(results(run(), run("boolq", benchmark="commonsense")))):
        found = table[list(rows[0])].astype(object)
        assert found.where(found.notna(), "").astype(str).to_dict("records") == rows
        keys = ["source", "table", "benchmark", "task", "model", "method", "rank"]
        assert not table.duplicated(keys).any()


def test_a_run_in_the_published_setting_fills_its_cells_and_no_others():
    table = ledger(results(run(), run(seed=1, values=(93.0, 95.0, 97.0))))
    assert filled(table) == [("Table 5", "FedReFT+", "SST-2", 93.5)]  # of seed 0: 92, of seed 1: 95
    row = table[table["ours"].notna()].iloc[0]
    assert row["ours_sd"] == pytest.approx(3 / 2**0.5)
    assert (row["seeds"], row["comparable"], row["reason"]) == ("0 1", "same setting", "")
    assert row["our_setting"] == (
        "FacebookAI/roberta-large, loreft rank 1, layers all, iid setup, 3 clients, 2 rounds, mixing adaptive (05_glue)"
    )
    assert pd.isna(row["nearest_ours"])


@pytest.mark.parametrize(
    "change",
    [
        {"model": "minilm-l6-v2"},
        {"model": "FacebookAI/roberta-base"},
        {"rank": 2},
        {"clients": 4},
        {"metric": "f1"},
        {"method": "fedavg", "aggregation": "none"},
        {"aggregation": "mean"},
        {"intervention": "direft"},
        {"benchmark": "commonsense"},
        {"split": "held_out"},
        {"task": "cola"},
    ],
    ids=str,
)
def test_a_run_that_differs_in_one_thing_fills_none(change):
    assert filled(ledger(results(run(**change)))) == []


@pytest.mark.parametrize("model", ["roberta-large", "models/RoBERTa-large", "FacebookAI/roberta-large"])
def test_a_backbone_is_known_by_its_own_name_wherever_it_lies(model):
    assert len(filled(ledger(results(run(model=model))))) == 1


def test_centralised_numbers_do_not_ask_how_many_clients_pooled_their_data():
    one = run(method="centralised", aggregation="none", mixing="none", clients=5)
    assert ("Table GLUE", "LoReFT", "SST-2", 92.0) in filled(ledger(results(one)))


def test_each_task_is_compared_by_its_published_metric():
    settings = {"method": "centralised", "aggregation": "none", "mixing": "none"}
    wrong, right = run("cola", **settings), run("cola", metric="matthews", values=(60.0,), **settings)
    assert filled(ledger(results(wrong))) == []
    assert filled(ledger(results(wrong, right))) == [("Table GLUE", "LoReFT", "CoLA", 60.0)]


def test_an_average_is_formed_only_over_all_its_tasks():
    values = dict(zip(GLUE_6, (81.0, 82.0, 83.0, 84.0, 85.0, 86.0), strict=True))
    runs = {task: run(task, values=(value,)) for task, value in values.items()}
    for left_out in GLUE_6:
        table = ledger(results(*(rows for task, rows in runs.items() if task != left_out)))
        average = table.query("table == 'Table 5' and method == 'FedReFT+' and task == 'average printed'").iloc[0]
        assert pd.isna(average["ours"]) and pd.isna(average["nearest_ours"])
        assert f"no run of {left_out} on this backbone" in average["reason"]
        assert len(filled(table)) == 5
    assert ("Table 5", "FedReFT+", "average printed", 83.5) in filled(ledger(results(*runs.values())))


def test_an_average_mixes_neither_seeds_nor_settings():
    first, second = GLUE_6[:3], GLUE_6[3:]
    for change in ({"seed": 1}, {"layers": "20-23"}, {"mixing": "fixed 0.3"}):
        runs = [run(task) for task in first] + [run(task, **change) for task in second]
        assert "average printed" not in [task for _, _, task, _ in filled(ledger(results(*runs)))]
    uneven = [run(task, seed=seed) for task in first for seed in (0, 1)] + [run(task) for task in second]
    table = ledger(results(*uneven))
    assert table.loc[(table["task"] == "average printed") & table["ours"].notna(), "seeds"].tolist() == ["0"]


def test_an_average_whose_tasks_are_not_named_is_never_reproduced():
    settings = {"benchmark": "commonsense", "setup": "mixed", "model": "meta-llama/Llama-3.2-3B", "rank": 8}
    tasks = ("boolq", "piqa", "siqa", "winogrande", "openbookqa")
    table = ledger(results(*(run(task, **settings) for task in tasks)))
    assert filled(table) == []
    row = table.query("table == 'Table 3' and method == 'FedReFT+' and rank == 8").iloc[0]
    assert row["nearest_ours"] == 92.0 and "tasks: boolq, openbookqa, piqa, siqa" in row["nearest_setting"]
    assert "does not name the tasks" in row["reason"]
    assert row["comparable"] == "other tasks: shown for direction only"


def test_mixed_task_numbers_stand_beside_mixed_task_runs_only():
    settings = {"benchmark": "commonsense", "model": "smollm2-135m-instruct", "rank": 8}
    table = ledger(results(run("boolq", setup="distinct", **settings)))
    assert table.query("table == 'Table 3'")["nearest_ours"].isna().all()


def test_the_nearest_run_is_chosen_by_its_setting_and_never_by_its_score():
    small = {"model": "minilm-l6-v2"}
    runs = [
        run(values=(99.0,), rank=8, clients=4, **small),
        run(values=(10.0,), **small),  # the published rank and number of clients
        run(values=(98.0,), experiment="06_mixing_ablation", **small),
    ]
    for order in (runs, runs[::-1]):
        table = ledger(results(*order))
        row = table.query("table == 'Table 5' and method == 'FedReFT+' and task == 'SST-2'").iloc[0]
        assert row["nearest_ours"] == 10.0 and "seeds 0" in row["nearest_setting"]
        assert row["comparable"] == "other backbone: shown for direction only"


def test_among_like_settings_the_nearest_is_of_the_experiment_that_compares_most_methods():
    small = {"model": "minilm-l6-v2", "experiment": "07_methods"}
    others = [run(method=method, aggregation="none", **small) for method in ("fedavg", "local")]
    table = ledger(results(run(values=(99.0,), model="minilm-l6-v2"), run(values=(10.0,), **small), *others))
    assert table.query("table == 'Table 5' and method == 'FedReFT+'")["nearest_ours"].dropna().tolist() == [10.0]


def test_where_there_is_no_number_of_ours_there_is_a_reason():
    for table in (ledger(results()), ledger(results(run(), run(model="minilm-l6-v2", task="rte")))):
        empty = table["ours"].isna()
        assert (table.loc[empty, "reason"].str.len() > 10).all()
        assert (table.loc[~empty, "reason"] == "").all()
        assert set(table.loc[empty & table["nearest_ours"].isna(), "comparable"]) == {"not run"}


def test_reasons_name_what_is_missing():
    def reason(table, name: str, method: str, task: str) -> str:
        chosen = (table["table"] == name) & (table["method"] == method) & (table["task"] == task)
        return table.loc[chosen, "reason"].iloc[-1]

    table = ledger(results())
    assert "meta-llama/Llama-3.2-3B is gated" in reason(table, "Table 3", "FLoRA", "average of 5 tasks")
    assert "GLUE train sets" in reason(table, "Table 5", "FedReFT+", "RTE")
    assert "judge model" in reason(table, "instruction", "LoReFT", "Alpaca-Eval v1")
    assert "DoRA is not among" in reason(table, "commonsense", "DoRA", "average printed")
    assert "no rank is printed" in reason(table, "arithmetic", "LoReFT", "GSM8K")
    assert "size of RoBERTa is not printed" in reason(table, "Table 1 / Figure 3", "Mean-ABM", "average")
    ran = reason(ledger(results(run(rank=2))), "Table 5", "FedReFT+", "SST-2")
    assert ran.startswith("no run at this rank and number of clients")


def test_every_published_name_is_translated_or_known_not_to_be():
    table = published()
    untranslated = set(table["method"]) - set(METHODS)
    assert untranslated == {"DoRA", "RED", "full fine-tuning", "LoReFT half rank", "LoReFT 1K data", "FedReFT"}
    tasks = set(table.loc[~book.is_average(table) & table["metric"].isin(book.METRICS), "task"])
    assert tasks == set(book.TASKS)
    assert set(table["model"]) - set(book.BACKBONES) == {"RoBERTa", ""}
    assert set(book.METRICS.values()) < set(PRIMARY)


def test_translations_are_names_that_a_run_can_have():
    fields = RunConfig.model_fields
    for method in METHODS.values():
        assert method.method in fields["method"].annotation.__args__
        assert method.intervention in fields["intervention"].annotation.__args__
        assert method.aggregation in (*fields["aggregation"].annotation.__args__, "")
    assert set(book.BENCHMARKS.values()) == set(FAMILIES) - {"agreement"}  # which is no paper's
    known = {task for family in FAMILIES.values() for task in family.tasks} | {"mnli_mm"}  # items of the task mnli
    assert set(book.TASKS.values()) <= known


def test_runs_that_the_columns_cannot_tell_apart_are_not_averaged():
    ablation = {"experiment": "06_start", "values": (10.0, 20.0, 30.0)}
    unlike = run(**ablation), run(**ablation | {"values": (80.0, 80.0, 80.0)})
    assert filled(ledger(results(*unlike))) == []
    assert filled(ledger(results(*unlike, run()))) == [("Table 5", "FedReFT+", "SST-2", 92.0)]


def test_results_read_back_from_a_file_give_the_same_ledger(tmp_path):
    table = results(run(experiment=""), run("rte", model="minilm-l6-v2", experiment=""))
    table.to_csv(tmp_path / "results.csv", index=False)
    pd.testing.assert_frame_equal(ledger(pd.read_csv(tmp_path / "results.csv")), ledger(table))


def test_the_file_is_written_whole_with_every_row(tmp_path):
    book.write(ledger(results(run())), tmp_path / "new" / "ledger.csv")
    back = pd.read_csv(tmp_path / "new" / "ledger.csv", dtype=str, keep_default_na=False)
    assert len(back) == 133 and [path.name for path in (tmp_path / "new").iterdir()] == ["ledger.csv"]
    assert back["ours"].tolist().count("92.00") == 1 and set(back["ours"]) == {"", "92.00"}
    assert back["value"].tolist() == published()["value"].tolist()
