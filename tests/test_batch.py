"""The batch: everything is checked first, runs in this interpreter, and leaves nothing half-done."""

import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import fedreft_lib
from fedreft_lib import RunConfig, load_runs, results_of, run
from fedreft_lib.batch import NotebookError, Progress, plan, read_parameters, reproduce
from fedreft_lib.errors import ConfigError, FedReFTError
from fedreft_lib.runs import RESULTS

DEFAULTS = 'mixing = 0.3\nlr = 1e-3  # AdamW\nsource = "packaged"\ndata_dir = None\nseeds = [0]\noutput_dir = "../x"'


def write_notebook(root: Path, name: str, *code: str, parameters: str = DEFAULTS) -> None:
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(new_code_cell, code)]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def write_parameters(root: Path, name: str, text: str, profile: str = "quick") -> None:
    path = root / "params" / profile / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def project(tmp_path):
    """Two notebooks with parameters in the profile quick, and one without."""
    for name in ("00_tour", "01_aside", "02_commonsense"):
        write_notebook(tmp_path, name)
    write_parameters(tmp_path, "00_tour", "")
    write_parameters(tmp_path, "02_commonsense", "mixing: 0.5\nseeds: [1, 2]\n")
    return tmp_path


def told(path: Path, number: int) -> str:
    """What the code cell with this number printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.text for output in cells[number].outputs)


# --- before anything runs ---------------------------------------------------------------------------------------------


def test_plan_has_the_notebooks_of_the_profile_in_order_with_their_parameters(project):
    jobs = plan("quick", root=project)
    assert [job.name for job in jobs] == ["00_tour", "02_commonsense"]
    assert jobs[0].parameters == {"output_dir": "../outputs/quick"}
    assert jobs[1].parameters == {"mixing": 0.5, "seeds": [1, 2], "output_dir": "../outputs/quick"}


@pytest.mark.parametrize("only", [["02"], ["2"], ["2", "02"]])
def test_only_takes_numbers_with_or_without_their_zero(project, only):
    assert [job.name for job in plan("quick", only, project)] == ["02_commonsense"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mixin: 0.5", r"no parameter 'mixin', did you mean 'mixing'\?"),
        ("seed: 3", r"no parameter 'seed', did you mean 'seeds'\?"),  # of RunConfig, but not of this notebook
        ("mixing: 1.7", r"mixing: .*less than or equal to 1.*got 1\.7"),
        ("mixing: .nan", "mixing: .*finite"),
        ("source: local", "data_dir goes with source"),  # wrong together with the notebook's own default
        ("seeds: 3", r"seeds must be like its default \[0\], got 3"),
        ("lr: 1e-3\nlr: 2e-3", "gives lr twice"),
        ("lr: 2026-01-01", "lr must be a number, text, boolean, null, list or mapping"),
        ("lr: {a: 1}", "lr: input should be a valid number"),
        ("- lr", "must be lines of `name: value`"),
        ("lr", "must be lines of `name: value`"),
        ("1: 2", "must be lines of `name: value`"),
        ("lr: [", "is not valid YAML"),
        ("output_dir: elsewhere", "output_dir is set to outputs/quick by the batch"),
    ],
)
def test_wrong_parameters_are_refused_with_the_file_and_the_reason(project, text, sentence):
    write_parameters(project, "02_commonsense", text)
    with pytest.raises(ConfigError, match=f"^params/quick/02_commonsense.yaml.*{sentence}"):
        reproduce("quick", root=project)
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ("a = 1", "must have output_dir"),
        ("import os", "must be plain `name = value` lines"),
        ("a = 1 + x", "must be plain `name = value` lines"),
        ("a = b = 1", "must be plain `name = value` lines"),
        ("a =", "must be plain `name = value` lines"),
    ],
)
def test_parameters_cell_that_is_not_flat_is_refused(project, parameters, sentence):
    write_notebook(project, "00_tour", parameters=parameters)
    with pytest.raises(ConfigError, match=f"00_tour.ipynb.*{sentence}"):
        plan("quick", root=project)


def test_broken_notebook_is_refused(project):
    (project / "notebooks/00_tour.ipynb").write_text("{")
    with pytest.raises(ConfigError, match="00_tour.ipynb cannot be read"):
        plan("quick", root=project)


@pytest.mark.parametrize(
    ("profile", "only", "sentence"),
    [
        ("quik", None, "no profile 'quik', did you mean 'quick'"),
        ("../params/quick", None, "no profile"),
        ("quick", ["7"], "no notebook number '7'; there are 00_tour, 01_aside, 02_commonsense"),
        ("quick", ["x"], "no notebook number 'x'"),
        ("quick", ["1"], "01_aside is not part of the profile: there is no params/quick/01_aside.yaml"),
    ],
)
def test_wrong_choice_is_refused(project, profile, only, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan(profile, only, project)


def test_parameters_of_no_notebook_are_refused_with_the_nearest_name(project):
    write_parameters(project, "02_comonsense", "")
    with pytest.raises(ConfigError, match="no notebook '02_comonsense', did you mean '02_commonsense'"):
        plan("quick", root=project)


@pytest.mark.parametrize("text", ["2e-3", "2E-3", "2.e-3", "0.002", "+2.0e-03"])
def test_numbers_read_as_in_python(tmp_path, text):
    write_parameters(tmp_path, "00_tour", f"lr: {text}")
    assert read_parameters(tmp_path / "params/quick/00_tour.yaml") == {"lr": 0.002}


# --- execution --------------------------------------------------------------------------------------------------------


def test_notebooks_run_in_this_interpreter_with_their_parameters(project, monkeypatch, tmp_path_factory):
    kernels = tmp_path_factory.mktemp("jupyter")
    (kernels / "kernels/python3").mkdir(parents=True)
    other = {"argv": ["/nonexistent/python", "{connection_file}"], "display_name": "other", "language": "python"}
    (kernels / "kernels/python3/kernel.json").write_text(json.dumps(other))
    monkeypatch.setenv("JUPYTER_PATH", str(kernels))
    find = "import os, sys, importlib.util\nlibrary = importlib.util.find_spec('fedreft_lib').origin"
    tell = "print(sys.executable, library, os.getcwd(), mixing, seeds, output_dir, sep=chr(10))"
    write_notebook(project, "02_commonsense", find, tell)
    runs = project / "outputs/quick/runs"
    config = RunConfig(
        backbone="tiny-llama", source="synthetic", tasks=["arc_easy"], setup="iid", rounds=0, clients=2, rank=2,
        train_size=2, held_out_size=1, test_size=2,
    )  # fmt: skip
    run(config, runs / config.run_id, progress=False)

    out = io.StringIO()
    report = reproduce("quick", root=project, out=out)

    folder = project / "outputs/quick"
    assert told(folder / "02_commonsense.ipynb", 3).splitlines() == [
        sys.executable, fedreft_lib.__file__, str(project / "notebooks"), "0.5", "[1, 2]", "../outputs/quick",
    ]  # fmt: skip
    table = pd.read_csv(folder / "results.csv", keep_default_na=False)
    assert tuple(table.columns) == RESULTS
    assert len(table) == len(results_of(load_runs(runs))) > 0
    assert report == folder / "report.html"
    assert sorted(path.name for path in folder.iterdir()) == [
        "00_tour.ipynb", "02_commonsense.ipynb", "report.html", "results.csv", "runs",
    ]  # fmt: skip
    lines = out.getvalue().splitlines()
    assert lines[0] == "01_aside: skipped, there is no params/quick/01_aside.yaml"
    assert [line.split(":")[0] for line in lines[1:5]] == ["[1/2] 00_tour"] * 2 + ["[2/2] 02_commonsense"] * 2


def test_failed_notebook_is_kept_apart_and_stops_the_batch(project):
    folder = project / "outputs/quick"
    folder.mkdir(parents=True)
    (folder / "00_tour.ipynb").write_text("the last good one")
    write_notebook(project, "00_tour", "a = 1", "raise ValueError('too cold\\nfor that')")
    with pytest.raises(NotebookError, match=r"00_tour stopped in cell \[4\] with ValueError: too cold \(see .*failed"):
        reproduce("quick", root=project, out=io.StringIO())
    assert sorted(path.name for path in folder.iterdir()) == ["00_tour.failed.ipynb", "00_tour.ipynb"]
    assert (folder / "00_tour.ipynb").read_text() == "the last good one"
    assert "ValueError" in (folder / "00_tour.failed.ipynb").read_text()


def test_dead_kernel_is_told_in_one_sentence(project):
    write_notebook(project, "00_tour", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookError, match="00_tour: its kernel was ended from outside"):
        reproduce("quick", ["0"], project, io.StringIO())
    assert [path.name for path in (project / "outputs/quick").iterdir()] == ["00_tour.failed.ipynb"]


def test_interruption_ends_the_kernel_and_leaves_no_torn_file(project):
    note = project / "pid"
    code = f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    write_notebook(project, "00_tour", code)

    def interrupt():
        while not note.exists() or not note.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell's background jobs are started deaf to SIGINT; so may these tests be.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            reproduce("quick", root=project, out=io.StringIO())
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
    assert list((project / "outputs/quick").iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("out", "lines"), [(io.StringIO(), 2), (Terminal(), 1)])
def test_progress_is_one_moving_line_on_a_terminal_and_plain_lines_elsewhere(out, lines):
    with Progress("[1/1] 00_tour", out) as progress:
        progress.start(new_notebook(cells=[new_code_cell(), new_code_cell()]))
        progress.cell(new_code_cell(), 0)
    assert out.getvalue().count("\n") == lines
    assert ("\r" in out.getvalue()) == out.isatty()
    assert "[1/1] 00_tour: 2 cells, 0 s" in out.getvalue()


def test_a_run_of_another_version_is_set_aside_and_stops_nothing(project):
    folder = project / "outputs" / "quick"
    tiny = dict(backbone="tiny-llama", source="synthetic", tasks=["piqa"], layers="2-3", rank=2, clients=2)
    small = RunConfig(**tiny, train_size=4, held_out_size=1, test_size=2, rounds=1, experiment="mine")
    for name in ("old", "new"):
        run(small, folder / "runs" / name, progress=False)
    manifest = folder / "runs" / "old" / "manifest.json"
    said = json.loads(manifest.read_text())
    del said["trainable_params"]
    manifest.write_text(json.dumps(said))
    with pytest.raises(FedReFTError, match="says nothing of trainable_params.*run again"):
        load_runs(folder / "runs")
    reproduce("quick", ["00"], root=project, out=io.StringIO())
    assert [path.name for path in (folder / "runs").iterdir()] == ["new"]
    assert (folder / "earlier" / "old" / "history.csv").exists()
    assert len(pd.read_csv(folder / "results.csv")) > 0
