"""A notebook's parameters become a config: each of them counts or is refused, and nothing else does."""

import math
import types

import numpy as np
import pytest

from fedreft_lib import RunConfig, run
from fedreft_lib.errors import ConfigError


def notebook_globals(**parameters):
    """What `globals()` holds after a parameters cell under IPython and papermill."""
    return {
        "__name__": "__main__",
        "__builtins__": {},
        "_ih": [""],
        "_oh": {},
        "_dh": ["."],
        "_": "",
        "__": "",
        "_i": "x = 1",
        "_i1": "x = 1",
        "In": ["", "x = 1"],
        "Out": {1: 3},
        "get_ipython": lambda: None,
        "exit": object(),
        "math": math,
        "types": types,
        "RunConfig": RunConfig,
        "run": run,
        **parameters,
    }


def test_a_parameters_cell_becomes_a_config():
    cell = {"mixing": 0.25, "tasks": ["piqa", "siqa"], "clients": 2, "layers": [1, 3], "data_dir": None, "seeds": [0]}
    config = RunConfig.from_notebook(notebook_globals(**cell), also=["seeds"])
    assert config == RunConfig(mixing=0.25, tasks=("piqa", "siqa"), clients=2, layers=(1, 3))


@pytest.mark.parametrize(("cell", "said"), [
    ({"mixxing": 0.3}, "'mixing'"),
    ({"seed_s": [0]}, "'seeds'"),  # the notebook's own parameters are right names too
    ({"rank": "8"}, "rank"),
    ({"notes": {"a": 1}}, "'notes'"),
])  # fmt: skip
def test_a_misspelt_or_mistyped_notebook_parameter_is_refused(cell, said):
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_notebook(notebook_globals(**cell), also=["seeds"])


def test_a_parameter_in_capitals_is_refused_and_not_passed_over():
    with pytest.raises(ConfigError, match="'mixing'"):
        RunConfig.from_notebook(notebook_globals(MIXING=0.9))


CELL = 'rank = 3\nsetups = ["iid", "mixed"]\noutput_dir = "here"'


def after(*cells, **left):
    """`globals()` of a kernel that has run these cells, a notebook's parameters cell among them, and what they left."""
    return {**notebook_globals(**left), "rank": 3, "setups": ["iid", "mixed"], "output_dir": "here", "In": ["", *cells]}


def test_what_other_cells_have_left_is_no_parameter():
    left = {"x": 1, "question": "why?", "seed": 7, "setup": "dirichlet", "lr": 0.5}
    leftover = after("x = 1", CELL, "for setup in setups: pass", "lr = 0.5", **left)
    found = RunConfig.from_notebook(leftover, also=["setups", "output_dir"])
    assert found == RunConfig(rank=3, setup="iid")
    # Another run of the notebook, with a parameter changed.
    again = {**after(CELL, "x = 1", CELL.replace("3", "5"), **left), "rank": 5}
    assert RunConfig.from_notebook(again, also=["setups", "output_dir"]) == RunConfig(rank=5, setup="iid")


def test_papermills_cell_counts_with_the_notebooks_own():
    injected = "# Parameters\nlr = 0.25\noutput_dir = 'there'"
    found = RunConfig.from_notebook(after(CELL, injected, lr=0.25), also=["setups", "output_dir"])
    assert found == RunConfig(rank=3, lr=0.25, setup="iid")
    with pytest.raises(ConfigError, match="there is no parameter 'roundz', did you mean 'rounds'"):
        RunConfig.from_notebook(after(CELL, "# Parameters\nroundz = 2", roundz=2), also=["setups", "output_dir"])
    with pytest.raises(ConfigError, match="^seeds must be"):
        RunConfig.from_notebook(after(CELL, "# Parameters\nseeds = 3", seeds=3), also=["setups", "output_dir", "seeds"])


def test_imported_constants_are_left_alone():
    assert RunConfig.from_notebook(notebook_globals(RESULTS=("a", "b"), rank=3)) == RunConfig(rank=3)


@pytest.mark.parametrize("values", [{"rank": np.int64(4)}, {"layers": range(1, 3)}, {"tasks": {"boolq"}}])
def test_a_notebooks_field_of_another_type_is_refused_and_not_left_out(values):
    with pytest.raises(ConfigError, match=f"^{next(iter(values))}: "):
        RunConfig.from_notebook(values)
