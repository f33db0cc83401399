"""`make lab`: JupyterLab with the project as its root, opened at the index of the working copies.

The notebooks that a reader opens are copies (`working_copies`), which find the runs of `make reproduce` (`found_runs`).
JupyterLab may be root where this process is (as in a container). It opens a browser only where there is a screen,
prints its address anyway, and takes another port where its own is in use. The folder `jupyter` has defaults for its
settings, which a reader's own go before: no question about news and no look for updates, since the packages are locked;
Markdown files shown as pages; and HTML files, such as the report, with their scripts.
"""

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from ..memory import no_thread_cache
from . import found_runs
from .jobs import plan
from .working_copies import INDEX, WORK, lay

MINE = "interactive"  # the folder of outputs/ that the notebooks' own `output_dir` names
RESULTS = {"report.html": "a report", "play.html": "a page to play with", "results.csv": "a table of all scores"}
DEFAULTS = Path(__file__).parent / "jupyter"
# A workspace of its own: JupyterLab shows the tabs that were open here, and not those of another project.
PAGE = f"/lab/workspaces/fedreft/tree/{WORK}/{INDEX}"


def prepare(profile: str, root: Path) -> None:
    """Brings the profile's runs and lays the working copies. Raises ConfigError where a parameter is not right."""
    jobs = plan(profile, root=root)  # nothing has been written yet
    outputs = root / "outputs"
    found = found_runs.bring(outputs / profile, outputs / MINE)
    copies = lay(root, jobs, lambda kept: welcome(root, profile, found, kept))
    print(f"{WORK}: {len(copies.laid)} files laid or renewed; {found} finished runs of the profile {profile} found")
    for name in copies.kept:
        print(_kept(name))


def start(root: Path) -> None:
    """Becomes JupyterLab; it does not return."""
    print("JupyterLab starts; press Ctrl-C here to stop it", flush=True)
    paths = filter(None, [str(DEFAULTS), os.environ.get("JUPYTER_CONFIG_PATH")])
    env = {**os.environ, **no_thread_cache(), "JUPYTER_CONFIG_PATH": os.pathsep.join(paths)}
    os.chdir(root)
    os.execve(sys.executable, [sys.executable, "-m", "jupyterlab", *options(root)], env)


def options(root: Path) -> list[str]:
    """JupyterLab's options, on this machine."""
    chosen = [f"--ServerApp.root_dir={root}", f"--LabApp.default_url={PAGE}"]
    chosen += ["--log-level=ERROR", "--LabApp.log_level=ERROR"]  # its address is printed even so
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        chosen.append("--allow-root")
    if not _has_browser():
        chosen.append("--no-browser")
    return chosen


def _has_browser() -> bool:
    """Whether there is a browser with a window: one in a terminal cannot show JupyterLab."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def welcome(root: Path, profile: str, found: int, kept: Sequence[str]) -> str:
    """The last cell of the index: what there is on this machine."""
    lines = [f"The values in the parameters cells are those of the profile `{profile}`."]
    links = [
        f"[{what}](../outputs/{profile}/{name})"
        for name, what in RESULTS.items()
        if (root / "outputs" / profile / name).exists()
    ]
    made = f"made {', '.join(links)}" if links else "has not run to its end yet: it makes a report of all notebooks"
    lines.append(f"`make reproduce` {made}.")
    if found:
        lines.append(f"{found} runs that it made are found by these notebooks, and are not computed again.")
    return "\n".join(["## On this machine\n", *(f"* {line}" for line in [*lines, *map(_kept, kept)])])


def _kept(name: str) -> str:
    return (
        f"{WORK}/{name} stays as you changed it, and the workbook has another one now: rename yours, and the next "
        "`make lab` lays the new one beside it."
    )
