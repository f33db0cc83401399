"""The batch: it runs in this interpreter, leaves nothing half-done, and does nothing twice."""

import io
import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import nullcontext

import nbformat
import pandas as pd
import psutil
import pytest
from ipykernel.kernelspec import get_kernel_dict

import fedreft_lib
from fedreft_lib import RunConfig, load_runs, results_of, run
from fedreft_lib.batch import execution, unchanged
from fedreft_lib.batch.execution import NotebookError
from fedreft_lib.batch.reproduce import reproduce, set_aside
from fedreft_lib.errors import FedReFTError
from fedreft_lib.runs.results import RESULTS
from tests.helpers.projects import told, write_notebook, write_parameters, write_project
from tests.torture.batch_kills import PROCESSES

JOBS = ("00_tour", "01_aside", "02_commonsense")
TINY = RunConfig(
    backbone="tiny-llama", source="synthetic", tasks=["piqa"], setup="iid", layers=[2], rank=2, clients=2,
    train_size=4, held_out_size=1, test_size=2, rounds=1,
)  # fmt: skip


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path)


# --- execution --------------------------------------------------------------------------------------------------------


def test_notebooks_run_in_this_interpreter_with_their_parameters(project, monkeypatch, tmp_path_factory):
    kernels = tmp_path_factory.mktemp("jupyter")
    (kernels / "kernels/python3").mkdir(parents=True)
    other = {"argv": ["/nonexistent/python", "{connection_file}"], "display_name": "other", "language": "python"}
    (kernels / "kernels/python3/kernel.json").write_text(json.dumps(other))
    monkeypatch.setenv("JUPYTER_PATH", str(kernels))
    find = "import os, sys, importlib.util\nlibrary = importlib.util.find_spec('fedreft_lib').origin"
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    tell = "about = sys.executable, library, os.getcwd(), os.environ['GLIBC_TUNABLES']\n"
    tell += "print(*about, mixing, seeds, output_dir, sep=chr(10))"
    write_notebook(project, "02_commonsense", find, tell)
    runs = project / "outputs/quick/runs"
    run(TINY, runs / TINY.run_id, progress=False)

    out = io.StringIO()
    report = reproduce("quick", root=project, out=out, at_once=1)

    folder = project / "outputs/quick"
    assert told(folder / "02_commonsense.ipynb", 3).splitlines() == [
        sys.executable, fedreft_lib.__file__, str(project / "notebooks"), "glibc.malloc.tcache_count=0",
        "0.5", "[1, 2]", "../outputs/quick",
    ]  # fmt: skip
    table = pd.read_csv(folder / "results.csv", keep_default_na=False)
    assert tuple(table.columns) == RESULTS
    assert len(table) == len(results_of(load_runs(runs))) > 0
    assert report == folder / "report.html"
    assert sorted(path.name for path in folder.iterdir()) == [
        "00_tour.ipynb", "02_commonsense.ipynb", "report.html", "results.csv", "runs", "stamps",
    ]  # fmt: skip
    lines = out.getvalue().splitlines()
    assert lines[0] == "01_aside: skipped, there is no params/quick/01_aside.yaml"
    assert [line.split(":")[0] for line in lines[1:5]] == ["[1/2] 00_tour"] * 2 + ["[2/2] 02_commonsense"] * 2


def test_what_is_stored_is_clean_and_what_there_is_to_play_with_is_named(project):
    bars = "from tqdm.auto import tqdm\nfor _ in tqdm(range(2)): print('seen')"
    warns = "import warnings\nwarnings.warn('next year', FutureWarning)\nwarnings.warn('damaged')"
    toy = "from IPython.display import HTML\nHTML('<b>toy</b>')"
    write_notebook(project, "00_tour", bars, warns, toy)
    path = project / "notebooks/00_tour.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].metadata["tags"] = ["play"]
    nbformat.write(notebook, path)
    out = io.StringIO()
    reproduce("quick", ["00"], project, out)
    made = nbformat.read(project / "outputs/quick/00_tour.ipynb", as_version=4)
    printed, warned, _ = (output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs)
    assert printed.text == "seen\nseen\n" and "widgets" not in made.metadata
    assert "damaged" in warned.text and "next year" not in warned.text
    assert "<b>toy</b>" in (project / "outputs/quick/play.html").read_text(encoding="utf-8")
    assert out.getvalue().splitlines()[-1] == f"play:    {project / 'outputs/quick/play.html'}"


def test_failed_notebook_is_kept_apart_and_stops_the_batch(project):
    folder = project / "outputs/quick"
    reproduce("quick", ["00"], project, io.StringIO())
    good = (folder / "00_tour.ipynb").read_bytes()
    write_notebook(project, "00_tour", "a = 1", "raise ValueError('too cold\\nfor that')")
    with pytest.raises(NotebookError, match=r"00_tour stopped in cell \[4\] with ValueError: too cold \(see .*failed"):
        reproduce("quick", root=project, out=io.StringIO(), at_once=1)
    assert [path.name for path in sorted(folder.glob("*.ipynb"))] == ["00_tour.failed.ipynb", "00_tour.ipynb"]
    assert (folder / "00_tour.ipynb").read_bytes() == good
    assert "ValueError" in (folder / "00_tour.failed.ipynb").read_text()


def test_dead_kernel_is_told_in_one_sentence(project):
    write_notebook(project, "00_tour", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookError, match="00_tour: its kernel was ended from outside"):
        reproduce("quick", ["0"], project, io.StringIO())
    names = sorted(path.name for path in (project / "outputs/quick").iterdir())
    assert names == ["00_tour.failed.ipynb", "stamps"]


@pytest.mark.parametrize(("deaths", "starts"), [(1, 2), (9, 3)])
def test_a_kernel_that_dies_at_its_start_is_started_again(project, tmp_path, monkeypatch, deaths, starts):
    """As where another program has taken its port meanwhile: its first cell has not begun."""
    note = tmp_path / "starts"
    begin = (
        f"import os, runpy; note = open({str(note)!r}, 'a+'); note.write('.'); note.flush(); note.seek(0)\n"
        f"if len(note.read()) <= {deaths}: os._exit(1)\n"
        "runpy.run_module('ipykernel_launcher', run_name='__main__')"
    )

    def command(**how) -> dict:
        start = get_kernel_dict(**how)
        at = start["argv"].index("-m")
        return {**start, "argv": [*start["argv"][:at], "-c", begin, *start["argv"][at + 2 :]]}

    monkeypatch.setattr(execution, "get_kernel_dict", command)
    with nullcontext() if deaths == 1 else pytest.raises(NotebookError, match="its kernel was ended"):
        reproduce("quick", ["00"], project, io.StringIO())
    assert len(note.read_text()) == starts
    assert (project / "outputs/quick/00_tour.ipynb").exists() == (deaths == 1)


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
            reproduce("quick", ["00"], project, io.StringIO())
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
    assert [path.name for path in (project / "outputs/quick").iterdir()] == ["stamps"]


# --- what is there already --------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_set_aside_and_stops_nothing(project):
    folder = project / "outputs" / "quick"
    for name in ("old", "new"):
        run(TINY, folder / "runs" / name, progress=False)
    for path in (folder / "runs/old").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    (folder / "03_gone.ipynb").write_text('{"cells": 1}')
    with pytest.raises(FedReFTError, match="old"):
        load_runs(folder / "runs")
    reproduce("quick", ["00"], root=project, out=io.StringIO())
    assert [path.name for path in (folder / "runs").iterdir()] == ["new"]
    assert (folder / "earlier/old/history.csv").exists() and (folder / "earlier/03_gone.ipynb").exists()
    assert len(pd.read_csv(folder / "results.csv")) > 0


def test_runs_that_a_notebook_used_stay_and_those_of_its_earlier_parameters_go(tmp_path):
    for name, experiment in (("used", "00_tour"), ("earlier", "00_tour: rank"), ("of_another", "02_commonsense")):
        run(TINY.but(experiment=experiment), tmp_path / "runs" / name, progress=False)
    before = unchanged.times(tmp_path)
    run(TINY.but(experiment="00_tour"), tmp_path / "runs/used", progress=False)  # finished: it is read, not computed
    files = unchanged.written(tmp_path, before, "00_tour")
    assert {path.relative_to(tmp_path / "runs").parts[0] for path in files} == {"used"}
    assert any(path.suffix == ".safetensors" for path in files)
    set_aside(tmp_path, "00_tour", unchanged.runs_of(files))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["of_another", "used"]
    assert [path.name for path in (tmp_path / "earlier").iterdir()] == ["earlier"]


def test_what_is_unchanged_is_kept_and_what_is_changed_runs_with_what_reads_its_runs(project):
    folder = project / "outputs/quick"
    log = "import pathlib\npathlib.Path('../executed').open('a').write('{}\\n')"
    picture = "pathlib.Path(output_dir, 'picture.txt').write_text(str(mixing))"
    write_notebook(project, "00_tour", log.format("00"))
    write_notebook(project, "01_aside", log.format("01"), picture)
    write_notebook(project, "02_commonsense", log.format("02"), metadata={"fedreft": {"reads": "runs"}})
    write_parameters(project, "01_aside", "")

    def executed() -> tuple[list[str], list[str]]:
        """The notebooks that a call executes, and what it says."""
        (project / "executed").write_text("")
        out = io.StringIO()
        reproduce("quick", root=project, out=out, at_once=1)
        return (project / "executed").read_text().split(), out.getvalue().splitlines()

    assert executed()[0] == ["00", "01", "02"]
    for name in ("results.csv", "report.html"):
        (folder / name).unlink()
    outputs = {path.name: path.read_bytes() for path in folder.glob("*.ipynb")}
    again, lines = executed()
    assert again == []
    kept = [f"{name}: unchanged, kept; delete {folder / name}.ipynb to execute it again" for name in JOBS]
    assert lines == [*kept, f"results: {folder / 'results.csv'}", f"report:  {folder / 'report.html'}"]
    assert {path.name: path.read_bytes() for path in folder.glob("*.ipynb")} == outputs
    assert (folder / "results.csv").exists() and (folder / "report.html").exists()

    write_parameters(project, "01_aside", "mixing: 0.7")
    again, lines = executed()
    assert again == ["01", "02"]
    assert re.fullmatch(r"\[2/3\] 01_aside: starting, its parameters changed, 0 s \(last time \d+ s in all\)", lines[1])
    assert (folder / "picture.txt").read_text() == "0.7"


def test_runs_of_values_that_were_tried_and_taken_back_leave_the_results(project):
    """A batch is stopped with other values after a run was computed; then the first ones come back."""
    compute = "from fedreft_lib import RunConfig, run\nname = f'{{output_dir}}/runs/{{mixing}}'\n"
    compute += "run(RunConfig(**{} | {{'mixing': mixing}}), name, progress=False)\n1 / (mixing != 0.7)"
    write_notebook(project, "01_aside", compute.format(TINY.but(experiment="01_aside").model_dump()))
    write_notebook(project, "02_commonsense", metadata={"fedreft": {"reads": "runs"}})
    write_parameters(project, "01_aside", "mixing: 0.5")
    reproduce("quick", root=project, out=io.StringIO())
    folder = project / "outputs/quick"
    results = (folder / "results.csv").read_text()
    write_parameters(project, "01_aside", "mixing: 0.7")
    with pytest.raises(NotebookError, match="ZeroDivisionError"):
        reproduce("quick", root=project, out=io.StringIO())
    assert len(list((folder / "runs").iterdir())) == 2
    write_parameters(project, "01_aside", "mixing: 0.5")
    out = io.StringIO()
    reproduce("quick", root=project, out=out)
    assert "starting" not in out.getvalue() and (folder / "results.csv").read_text() == results
    assert f"01_aside: the run 0.7 of other parameters is in {folder / 'earlier'} now" in out.getvalue()
    assert [path.name for path in (folder / "earlier").iterdir()] == ["0.7"]


def test_what_changes_while_a_notebook_runs_is_told_and_has_it_executed_again(project, monkeypatch):
    library = project / "library"
    library.mkdir()
    (library / "a.py").write_text("one = 1")
    monkeypatch.setattr(unchanged, "LIBRARY", library)
    write_notebook(project, "00_tour", f"import pathlib\npathlib.Path({str(library / 'a.py')!r}).write_text('one = 2')")
    told = "00_tour: the library changed while it ran, so the next batch executes it again"
    for content, expected in (("one = 1", True), ("one = 1", True), ("one = 2", False)):
        (library / "a.py").write_text(content)
        out = io.StringIO()
        reproduce("quick", ["00"], root=project, out=out)
        assert (told in out.getvalue()) == expected and "starting" in out.getvalue()
    out = io.StringIO()
    reproduce("quick", ["00"], root=project, out=out)
    assert "starting" not in out.getvalue()


@pytest.mark.parametrize("torn", [True, False])
def test_a_notebook_that_is_being_saved_or_renamed_when_it_has_run_through_is_not_lost(project, torn):
    source = str(project / "notebooks/00_tour.ipynb")
    away = "path.write_text('{')" if torn else "path.rename(path.with_suffix('.old'))"
    write_notebook(project, "00_tour", f"import pathlib\npath = pathlib.Path({source!r})\n{away}\nprint('through')")
    reproduce("quick", ["00"], root=project, out=io.StringIO())
    assert told(project / "outputs/quick/00_tour.ipynb", -1) == "through\n"
    write_notebook(project, "00_tour", "print('again')")
    reproduce("quick", ["00"], root=project, out=io.StringIO())
    assert told(project / "outputs/quick/00_tour.ipynb", -1) == "again\n"


# --- side by side -----------------------------------------------------------------------------------------------------

MEET = """import pathlib, time
place = pathlib.Path({place!r})
(place / {name!r}).touch()
while len(list(place.iterdir())) < 2:
    time.sleep(0.01)
pathlib.Path(output_dir, {name!r} + "_picture.txt").write_text({name!r})"""


def test_notebooks_that_meet_each_own_what_they_wrote(project, tmp_path_factory):
    """Each of two waits until the other has begun, writes a picture and computes a run; each is then kept alone."""
    place = tmp_path_factory.mktemp("place")
    folder = project / "outputs/quick"
    compute = "from fedreft_lib import RunConfig, run\nrun(RunConfig(**{}), output_dir + '/runs/{}', progress=False)"
    names = ("00_tour", "02_commonsense")
    for name in names:
        config = TINY.but(experiment=name).model_dump()
        write_notebook(project, name, MEET.format(place=str(place), name=name), compute.format(config, name))
    reproduce("quick", root=project, out=io.StringIO(), at_once=2)
    for name in names:
        files = unchanged.read(folder, name)["files"]
        assert f"{name}_picture.txt" in files and f"runs/{name}/manifest.json" in files
        assert not [file for file in files if name not in file]
    out = io.StringIO()
    reproduce("quick", root=project, out=out, at_once=2)
    assert [line for line in out.getvalue().splitlines() if "starting" in line] == []
    assert set(pd.read_csv(folder / "results.csv")["experiment"]) == set(names)


def test_a_notebook_that_reads_runs_waits_and_an_error_stops_only_what_has_not_begun(project):
    log = f"import pathlib, time\nwith open({str(project / 'log')!r}, 'a') as file: file.write('{{}}')\n"
    failed = project / "outputs/quick/01_aside.failed.ipynb"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(failed)!r}).exists(): time.sleep(0.1)"
    write_notebook(project, "00_tour", wait, log.format("0"))
    write_notebook(project, "01_aside", log.format("1"), "raise ValueError('too cold')")
    write_notebook(project, "02_commonsense", log.format("2"), metadata={"fedreft": {"reads": ["00"]}})
    write_notebook(project, "03_last", log.format("3"), metadata={"fedreft": {"reads": ["00", "02"]}})
    for name in ("01_aside", "03_last"):
        write_parameters(project, name, "")
    with pytest.raises(NotebookError, match="01_aside stopped"):
        reproduce("quick", root=project, out=io.StringIO(), at_once=2)
    assert sorted((project / "log").read_text()) == ["0", "1"]
    assert (project / "outputs/quick/00_tour.ipynb").exists()
    write_notebook(project, "01_aside", log.format("1"))
    (project / "log").unlink()
    reproduce("quick", root=project, out=io.StringIO(), at_once=3)
    said = (project / "log").read_text()
    assert sorted(said) == ["1", "2", "3"] and said.index("2") < said.index("3")


def test_a_whole_output_that_a_kill_left_without_its_name_is_taken_over_and_a_torn_one_goes(project):
    folder = project / "outputs/quick"
    reproduce("quick", root=project, out=io.StringIO())
    for name in ("00_tour", "02_commonsense"):
        (folder / f"{name}.ipynb").rename(folder / f"{name}.running.ipynb")
    whole = (folder / "00_tour.running.ipynb").read_bytes()
    torn = folder / "02_commonsense.running.ipynb"
    torn.write_bytes(torn.read_bytes()[:-9])
    (folder / "results.csv.tmp").write_text("half")
    out = io.StringIO()
    reproduce("quick", root=project, out=out)
    assert (folder / "00_tour.ipynb").read_bytes() == whole
    assert "00_tour: unchanged, kept" in out.getvalue() and "[2/2] 02_commonsense: starting" in out.getvalue()
    assert not list(folder.glob("*.running.ipynb")) and not list(folder.glob("*.tmp"))


def test_a_second_batch_is_refused_and_the_kernel_of_a_killed_one_is_ended(project):
    note = project / "pid"
    code = f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    write_notebook(project, "00_tour", code)
    first = PROCESSES.Process(target=reproduce, args=("quick", ["00"], project, io.StringIO()))
    first.start()
    while not note.exists() or not note.read_text():
        time.sleep(0.01)
    with pytest.raises(FedReFTError, match=rf"another batch is running in .*quick .process {first.pid}, since .*wait"):
        reproduce("quick", ["02"], project, io.StringIO())
    first.kill()
    first.join()
    write_notebook(project, "00_tour", "print('through')")
    reproduce("quick", ["00"], project, io.StringIO())
    assert told(project / "outputs/quick/00_tour.ipynb", -1) == "through\n"
    assert not psutil.pid_exists(int(note.read_text())) or is_zombie(int(note.read_text()))


def is_zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
