"""A chromium that is installed on this machine, driven by Playwright; a JupyterLab; axe-core's accessibility rules."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Whether every code cell of the notebook on top is idle, and has been executed or is empty.
RAN = """() => window.jupyterapp.shell.currentWidget.content.widgets.every(({ model }) =>
    model.type !== 'code' ||
    (model.executionState !== 'running' && (model.executionCount || !model.sharedModel.source)))"""
# Whether its kernel is there; before that, "run all" would ask which one to start.
READY = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.kernelDisplayStatus === 'idle'"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def chromium():
    """A running browser; the tests are skipped where there is none, or no Playwright (see requirements.txt)."""
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-browser installs Playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root in a container
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium) -> Iterator[Callable]:
    """Opens pages, each like a new reader's. An error of a script in one of them is an error of the test."""
    contexts, errors = [], []

    def opened(**settings):
        contexts.append(chromium.new_context(**{"viewport": DESK, **settings}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def page(new_page):
    """A page on a desk."""
    return new_page()


@pytest.fixture
def phone(new_page):
    """A page on a phone, 390 pixels wide, with a touch screen."""
    return new_page(viewport=PHONE, has_touch=True, is_mobile=True)


@pytest.fixture
def dark(new_page):
    """A page in dark mode."""
    return new_page(color_scheme="dark")


@pytest.fixture
def violations() -> Callable[..., list[str]]:
    """What axe-core finds in a page: one line for each broken rule, with the first elements that break it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def found(page) -> list[str]:
        return [
            f"{each['id']}: {[node['html'][:120] for node in each['nodes'][:3]]} ({len(each['nodes'])})"
            for each in axe.run(page).response["violations"]
        ]

    return found


class Lab:
    """A running JupyterLab. `folder` is what its file browser shows."""

    def __init__(self, folder: Path, url: str, token: str):
        self.folder, self.url, self.token = folder, url, token

    def open(self, page, notebook: str):
        """Opens a notebook, by its path below `folder`, in a workspace of its own, and waits for its kernel."""
        page.goto(f"{self.url}/lab/workspaces/{secrets.token_hex(4)}/tree/{notebook}?token={self.token}")
        page.locator(".jp-Notebook").first.wait_for(timeout=60_000)
        page.wait_for_function(READY, timeout=120_000)
        return page

    def run_all(self, page, seconds: float = 300) -> None:
        """Runs all cells and waits until the last code cell has ended, or one has failed."""
        page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_timeout(500)  # the cells get their states
        page.wait_for_function(RAN, timeout=1000 * seconds)


@pytest.fixture(scope="session")
def start_lab(tmp_path_factory) -> Iterator[Callable[[Path], Lab]]:
    """Starts a JupyterLab on a folder, with settings of its own, and stops it at the end."""
    running = []

    def started(folder: Path) -> Lab:
        token, home = secrets.token_hex(16), tmp_path_factory.mktemp("jupyter")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {**os.environ, "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
               "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "spaces"),
               "OMP_NUM_THREADS": "1"}  # fmt: skip
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}",
                   f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
                   "--LabApp.expose_app_in_browser=True"]  # fmt: skip
        with (home / "log").open("w") as log:
            running.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/api?token={token}", timeout=1).close()
                return Lab(folder, url, token)
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                assert running[-1].poll() is None, (home / "log").read_text()
                time.sleep(0.2)
        raise AssertionError((home / "log").read_text())

    yield started
    for process in running:
        process.terminate()
    for process in running:
        process.wait(60)
