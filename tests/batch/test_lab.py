"""`make lab`: what a reader has changed is never lost, and what `make reproduce` has computed is not computed again."""

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
import yaml
from filelock import FileLock

from fedreft_lib import RunConfig, run
from fedreft_lib.batch import command_line, found_runs, lab
from fedreft_lib.batch.jobs import ordered_notebooks, parameters_of, plan, profiles
from fedreft_lib.batch.working_copies import lay, with_values
from fedreft_lib.errors import ConfigError
from tests.helpers.projects import write_notebook, write_parameters, write_project

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ordered_notebooks(ROOT / "notebooks")
LINK = re.compile(r"\]\(([^)#]+)\)")


@pytest.fixture
def project(tmp_path):
    write_project(tmp_path)
    index = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Index")])
    nbformat.write(index, tmp_path / "notebooks" / "index.ipynb")
    return tmp_path


def edit(path, change):
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells)
    nbformat.write(notebook, path)


# --- working copies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", profiles(ROOT))
def test_each_copy_has_the_values_that_the_batch_would_run_it_with(profile, tmp_path):
    for name in ("notebooks", "params"):
        (tmp_path / name).symlink_to(ROOT / name)
    jobs = plan(profile, root=tmp_path)
    lay(tmp_path, jobs, lambda kept: "")
    for job in jobs:
        copy = tmp_path / "work" / job.notebook.name
        nbformat.validate(nbformat.read(copy, as_version=4))
        assert parameters_of(copy) == {**job.values, "output_dir": "../outputs/interactive"}


def test_values_replace_values_and_nothing_else():
    source = 'λ = [0,\n     1]  # "λ"\nlr = 1e-3  # AdamW\nname: str = "a"'
    values = {"λ": [2], "lr": 0.001, "name": "b", "new": {"x": None}}
    assert with_values(source, values) == 'λ = [2]  # "λ"\nlr = 1e-3  # AdamW\nname: str = "b"\nnew = {"x": None}'


def test_a_copy_that_was_run_is_renewed_and_one_that_was_changed_is_kept_and_named(project, capsys):
    lab.prepare("quick", project)
    ran, changed = project / "work" / "00_tour.ipynb", project / "work" / "02_commonsense.ipynb"
    own = project / "work" / "own.ipynb"
    own.write_text("not even a notebook")

    def run_it(cells):
        cells[0].execution_count = 1
        cells[0].outputs = [nbformat.v4.new_output("stream", text="1")]
        cells.append(nbformat.v4.new_code_cell(""))  # as Shift+Enter does in the last cell

    edit(ran, run_it)
    edit(changed, lambda cells: cells[0].update(source=cells[0].source + "\nrounds = 3"))
    before = [path.read_bytes() for path in (ran, changed, own)]
    lab.prepare("quick", project)
    assert [path.read_bytes() for path in (ran, changed, own)] == before  # the originals have not changed
    assert "as you changed it" not in capsys.readouterr().out

    for name in ("00_tour", "02_commonsense"):
        write_notebook(project, name, "'new'")
    lab.prepare("quick", project)
    assert "'new'" in ran.read_text(encoding="utf-8")
    assert [path.read_bytes() for path in (changed, own)] == before[1:]
    assert "work/02_commonsense.ipynb stays as you changed it" in capsys.readouterr().out
    assert "work/02_commonsense.ipynb stays as you changed it" in (project / "work" / "index.ipynb").read_text()

    changed.rename(project / "work" / "mine.ipynb")
    (project / "work" / ".laid.json").write_text("[")  # damaged
    lab.prepare("quick", project)
    assert "'new'" in changed.read_text(encoding="utf-8")
    assert (project / "work" / "mine.ipynb").read_bytes() == before[1]


def test_where_a_parameter_is_wrong_nothing_is_written(project):
    write_parameters(project, "00_tour", "mixing: 2")
    with pytest.raises(ConfigError, match=r"00_tour\.yaml: mixing"):
        lab.prepare("quick", project)
    assert not (project / "work").exists() and not (project / "outputs").exists()


# --- runs of the batch ------------------------------------------------------------------------------------------------


def test_a_finished_run_of_the_batch_is_read_and_not_computed_again(project):
    config = RunConfig(backbone="tiny-llama", source="synthetic", rounds=1, train_size=8, held_out_size=4, test_size=4)
    made = run(config, project / "outputs" / "quick" / "runs" / config.run_id, progress=False)
    lab.prepare("quick", project)
    found = run(config, project / "outputs" / "interactive" / "runs" / config.run_id, progress=False)
    assert found.history.equals(made.history)  # with the seconds that it took


def test_only_finished_runs_are_brought_and_none_is_replaced_but_one_of_other_code(project, monkeypatch):
    monkeypatch.setattr("fedreft_lib.environment.code_fingerprint", lambda: "now")

    def write(folder, name, code, round=2):
        path = project / "outputs" / folder / "runs" / name / "manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"round": round, "rounds": 2, "code": code, "by": folder}))

    write("quick", "stopped", "now", round=1)
    write("quick", "new", "now")
    for name, batch, mine in (("same", "now", "now"), ("outdated", "now", "old"), ("outdated batch", "old", "now")):
        write("quick", name, batch)
        write("interactive", name, mine)
    lab.prepare("quick", project)
    by = {p.parent.name: json.loads(p.read_text())["by"] for p in project.glob("outputs/interactive/*/*/manifest.json")}
    mine = {"same": "interactive", "outdated batch": "interactive"}
    assert by == {"new": "quick", "outdated": "quick", **mine}


@pytest.fixture
def batch(tmp_path):
    """A profile's folder with a finished run, as far as its manifest says so."""
    manifest = tmp_path / "quick/runs/a/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"round": 1, "rounds": 1, "code": "now"}')
    return tmp_path / "quick"


def test_two_that_start_at_once_bring_one_after_the_other(batch, tmp_path, monkeypatch):
    inside = []

    def slow(runs, source, target):
        inside.append(target)
        time.sleep(0.1)
        return len(inside), inside.pop()

    monkeypatch.setattr(found_runs, "_bring", slow)
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(found_runs.bring, [batch] * 2, [tmp_path / "mine"] * 2)) == {(1, tmp_path / "mine")}


def test_where_nothing_can_be_brought_it_opens_without(batch, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    assert found_runs.bring(batch, tmp_path / "file") == 0
    assert found_runs.bring(tmp_path / "empty", tmp_path / "mine") == 0 and not (tmp_path / "mine").exists()
    monkeypatch.setattr(found_runs, "PATIENCE", 0.1)
    (tmp_path / "mine").mkdir()
    with FileLock(tmp_path / "mine/.bring.lock"):
        assert found_runs.bring(batch, tmp_path / "mine") == 0
    assert found_runs.bring(batch, tmp_path / "mine") == 1


# --- JupyterLab -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("user", "display", "missing"), [(0, "", False), (1000, ":0", False), (1000, ":0", True)])
def test_it_is_root_only_where_we_are_and_opens_a_browser_only_where_there_is_one(user, display, missing, monkeypatch):
    def browser():
        if missing:
            raise lab.webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(lab.os, "geteuid", lambda: user, raising=False)
    monkeypatch.setattr(lab.webbrowser, "get", browser)
    monkeypatch.setattr(lab.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    chosen = lab.options(ROOT)
    assert ("--allow-root" in chosen) == (user == 0)
    assert ("--no-browser" in chosen) == (missing or not display)


# --- the way through the notebooks ------------------------------------------------------------------------------------


def test_the_index_has_every_notebook_and_each_ends_with_a_link_to_the_next():
    index = nbformat.read(ROOT / "notebooks" / "index.ipynb", as_version=4)
    links = [link for cell in index.cells for link in LINK.findall(cell.source)]
    assert [link for link in links if not (ROOT / "notebooks" / link).exists()] == []
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} - {"index.ipynb"} <= set(links)
    for path, after in zip(NOTEBOOKS, NOTEBOOKS[1:], strict=False):
        last = nbformat.read(path, as_version=4).cells[-1].source
        assert f"**Next:** [{after.stem}]({after.name})" in last


# --- other places that start it ---------------------------------------------------------------------------------------


def test_the_container_calls_targets_of_the_makefile():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    called = [container[key] for key in ("postCreateCommand", "postAttachCommand")]
    assert [command.partition("make ")[2] in targets for command in called] == [True, True]


def test_binder_gets_the_locked_torch_and_calls_commands_that_exist():
    binder = ROOT / ".binder"
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    torch = re.search(r"^torch==(\S+)", lock, re.MULTILINE)[1]
    wanted = yaml.safe_load((binder / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert f"pytorch-cpu={torch}" in wanted
    for name in ("postBuild", "start"):
        assert (binder / name).stat().st_mode & 0o111
        subprocess.run(["bash", "-n", binder / name], check=True)
    calls = re.findall(r"^python -m fedreft_lib (.+)", (binder / "postBuild").read_text(encoding="utf-8"), re.MULTILINE)
    assert [command_line._parser().parse_args(call.split()).command for call in calls] == ["assets", "lab"]
    folder = re.search(r"\$PWD/(\S+)\"", (binder / "start").read_text(encoding="utf-8"))[1]
    assert ROOT / folder == lab.DEFAULTS and any(lab.DEFAULTS.rglob("*.json"))
