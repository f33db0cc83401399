"""`make lab` as a newcomer meets it: it opens at the index, asks nothing, and a saved run makes no diff."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from fedreft_lib.batch.record import clean

ROOT = Path(__file__).parents[2]
ADDRESS = re.compile(r"http://127\S+")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what `make lab` needs, under git."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("fedreft_lib", "notebooks", "params"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / ".gitignore", folder)
    report = folder / "outputs" / "quick" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text(
        "<title>Report</title><p>still</p><script>document.querySelector('p').textContent='moves'</script>"
    )
    executed = report.parent / "00_tour.ipynb"
    notebook = nbformat.read(ROOT / "notebooks" / "00_tour.ipynb", as_version=4)
    notebook.metadata.papermill = {"duration": 1.0}
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count, cell.outputs = count, [nbformat.v4.new_output("stream", text="done\n")]
    nbformat.write(notebook, executed)
    clean(executed)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def address(project, tmp_path_factory):
    """Where our command says that JupyterLab is, for a user without settings; its port is in use."""
    home = tmp_path_factory.mktemp("home")
    kept = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "JUPYTER_CONFIG_PATH")}
    with socket.socket() as taken, (home / "log").open("w") as log:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = {**kept, "HOME": str(home), "JUPYTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fedreft_lib", "lab"]
        running = subprocess.Popen(command, cwd=project, env=env, stdout=log, stderr=log)
        while not (found := ADDRESS.search((home / "log").read_text())):
            assert running.poll() is None, (home / "log").read_text()
            time.sleep(0.1)
    assert f":{port}/" not in found[0]
    yield found[0]
    running.terminate()
    running.wait(20)


def test_a_newcomer_is_asked_nothing_and_a_saved_run_makes_no_diff(page, address, project):
    page.goto(address)
    page.get_by_role("heading", name="The FedReFT workbook").wait_for(timeout=60_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=60_000)
    assert page.url.partition("?")[0].endswith("/tree/work/index.ipynb")

    page.get_by_role("link", name="00_tour").first.click()
    page.get_by_role("heading", name="00 A tour").wait_for(timeout=60_000)
    tour = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    page.get_by_text("(ipykernel) | Idle").wait_for(timeout=60_000)  # before that, keys run nothing
    unsaved = page.locator(".jp-mod-dirty")
    assert unsaved.count() == 0  # it has only been opened
    tour.locator(".jp-CodeCell", has_text="output_dir =").first.click()
    page.keyboard.press("Control+Enter")
    tour.locator(".jp-InputPrompt", has_text="[1]").wait_for(timeout=60_000)
    unsaved.first.wait_for()
    page.keyboard.press("Control+S")
    unsaved.first.wait_for(state="hidden", timeout=20_000)
    copy = project / "work" / "00_tour.ipynb"
    assert any(cell.get("execution_count") for cell in json.loads(copy.read_text())["cells"])
    assert subprocess.check_output(["git", "status", "--porcelain"], cwd=project, text=True) == ""
    assert page.locator(".jp-Dialog, .Toastify__toast").count() == 0


def test_what_a_batch_has_executed_stays_its_own_file_when_it_is_opened(page, address):
    """An unsaved notebook is saved after two minutes, and the next batch would execute it again."""
    page.goto(re.sub(r"/tree/[^?]*", "/tree/outputs/quick/00_tour.ipynb", address.replace("/fedreft/", "/opened/")))
    page.get_by_text("(ipykernel) | Idle").wait_for(timeout=60_000)
    assert page.locator(".jp-mod-dirty").count() == 0


def test_the_report_opens_beside_the_notebooks_with_its_scripts(page, address):
    page.goto(address.replace("/fedreft/", f"/{secrets.token_hex(4)}/"))
    page.get_by_role("link", name="a report").click(timeout=60_000)
    page.frame_locator(".jp-HTMLViewer iframe").get_by_text("moves").wait_for(timeout=20_000)
