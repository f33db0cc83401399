"""The workbook itself: every notebook runs in the profile smoke, and what it leaves keeps the contract."""

import io
import shutil

import nbformat
import pandas as pd
import pytest

from fedreft_lib.batch import unchanged
from fedreft_lib.batch.jobs import PROJECT, plan, profiles
from fedreft_lib.batch.reproduce import reproduce
from fedreft_lib.runs.results import RESULTS, load_runs

NOTEBOOKS = [
    "00_tour", "01_data_partitioning", "02_commonsense", "03_arithmetic", "04_instruction", "05_glue",
    "06_mixing_ablation", "07_methods", "08_robustness", "09_results", "10_beyond_one_machine",
    "11_the_field",
]  # fmt: skip


def copied(root):
    """The project as far as a batch reads it."""
    for folder in ("notebooks", "params"):
        shutil.copytree(PROJECT / folder, root / folder)
    return root


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """outputs/smoke of a copy of the project."""
    root = copied(tmp_path_factory.mktemp("project"))
    reproduce("smoke", root=root, out=io.StringIO())
    return root / "outputs" / "smoke"


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_a_profile_has_every_notebook_with_valid_parameters(profile):
    assert profile in profiles()
    assert [job.name for job in plan(profile)] == NOTEBOOKS


def assert_ran_through(folder, names):
    assert [path.stem for path in sorted(folder.glob("*.ipynb"))] == names
    report = (folder / "report.html").read_text(encoding="utf-8")
    for name in names:
        cells = nbformat.read(folder / f"{name}.ipynb", as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
        title = cells[0].source.splitlines()[0].lstrip("# ")
        assert title in report


def test_the_first_notebook_runs_through(tmp_path):
    reproduce("smoke", ["00"], root=copied(tmp_path), out=io.StringIO())
    assert_ran_through(tmp_path / "outputs" / "smoke", ["00_tour"])


@pytest.mark.slow
def test_every_notebook_runs_through(reproduced):
    assert_ran_through(reproduced, NOTEBOOKS)


@pytest.mark.slow
def test_of_every_file_it_is_known_which_notebook_made_it(reproduced):
    """Notebooks that run side by side would count the files of nobody as theirs."""
    assert [path for path in unchanged.times(reproduced) if not unchanged.owner(reproduced, path)] == []


@pytest.mark.slow
def test_results_hold_both_setups_all_methods_and_every_client(reproduced):
    results = pd.read_csv(reproduced / "results.csv", keep_default_na=False)
    assert list(results) == list(RESULTS)
    main = results[(results["experiment"] == "02_commonsense") & (results["split"] == "test")]
    assert set(main["setup"]) == {"distinct", "mixed"}
    assert set(main["method"]) == {"local", "fedavg", "fedreft", "centralised"}
    assert set(main["aggregation"]) == {"none", "mean", "geometric_median"}
    counted = main[main["metric"] == "accuracy"].groupby(["setup", "method", "aggregation", "seed", "round"])["client"]
    assert (counted.nunique() == 4).all()
    assert main.loc[main["metric"] == "accuracy", "value"].astype(float).between(0, 100).all()


@pytest.mark.slow
def test_runs_of_earlier_parameters_leave_the_results(reproduced):
    root = reproduced.parent.parent
    file = root / "params" / "smoke" / "06_mixing_ablation.yaml"
    file.write_text(file.read_text() + "fixed: [0.0, 1.0]\nrules: [adaptive]\n")
    before = {run.config.run_id for run in load_runs(reproduced / "runs")}
    reproduce("smoke", ["06"], root=root, out=io.StringIO())
    after = [run.config for run in load_runs(reproduced / "runs")]
    assert {config.run_id for config in after} < before
    assert {config.mixing for config in after if config.experiment == "06_mixing_ablation"} == {0.0, 1.0, "adaptive"}
    assert any((reproduced / "earlier").iterdir())
