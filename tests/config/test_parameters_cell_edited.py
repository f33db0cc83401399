"""The parameters cell, edited and run again in one kernel: what it sets counts, as in a fresh kernel."""

import contextlib
import io

import pytest
from IPython.core.interactiveshell import InteractiveShell

from fedreft_lib import RunConfig
from fedreft_lib.errors import ConfigError

OWN = 'rank = 3\nseeds = [0]\noutput_dir = "here"'
USE = 'base = RunConfig.from_notebook(globals(), also=["seeds", "output_dir"])\nx, seed = 1, 5'


@pytest.fixture
def ran():
    """Runs cells in IPython, as a kernel does, and returns `base`."""
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False

    def cells(*sources):
        for source in ("from fedreft_lib import RunConfig", *sources):
            with contextlib.redirect_stdout(io.StringIO()):
                shell.run_cell(source, store_history=True).raise_error()
        return shell.user_ns["base"]

    yield cells
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("edited", [
    f"# a note\n{OWN}  # another\nalpha: float = 0.1",
    f"{OWN}\nalpha = 1 / 10",
    f"{OWN}\nalpha = 0.1\nprint(alpha)",
    f"%%time\n{OWN}\nalpha = 0.1",
    f"%load_ext autoreload\n{OWN}\nalpha = 0.1",
])  # fmt: skip
def test_a_parameter_that_a_reader_adds_counts(ran, edited):
    assert ran(OWN, USE, edited, USE) == RunConfig(rank=3, alpha=0.1)
    assert ran(OWN, USE) == RunConfig(rank=3)  # and no longer once it is removed


@pytest.mark.parametrize("edited", [f"{OWN}\nroundz = 2", f"{OWN}\nroundz = 4 // 2"])
def test_a_misspelt_parameter_that_a_reader_adds_is_refused(ran, edited):
    with pytest.raises(ConfigError, match="no parameter 'roundz', did you mean 'rounds'"):
        ran(OWN, USE, edited, USE)


@pytest.mark.parametrize("after", ["x = 1; lr = 7.0", 'output_dir = "there"'])
def test_a_cell_of_the_readers_own_leaves_the_parameters_as_they_are(ran, after):
    assert ran(OWN, after, USE) == RunConfig(rank=3)


@pytest.mark.parametrize("injected", ["alpha = .5", "alpha = float('nan')"])
def test_papermills_cell_counts_whatever_its_values_are(ran, injected):
    with pytest.raises(ConfigError, match="no parameter 'roundz'"):
        ran(OWN, f"# Parameters\n{injected}\nroundz = 3", USE)
