"""A notebook's own parameters are checked like RunConfig's: in the batch, by papermill alone and by hand."""

import ast

import nbformat
import pandas as pd
import papermill
import pytest

from fedreft_lib import RunConfig
from fedreft_lib.batch.jobs import PROJECT, ordered_notebooks, parameters_of
from fedreft_lib.config import notebook_parameters
from fedreft_lib.config.notebook_parameters import OWN, check
from fedreft_lib.errors import ConfigError

NOTEBOOKS = {path.stem: path for path in ordered_notebooks(PROJECT / "notebooks")}
CHECKS = ("from_notebook", "notebook_parameters.check")
OWNED = [(name, own) for name, path in NOTEBOOKS.items() for own in parameters_of(path) if own in OWN]


def until_checked(path) -> str:
    """What a notebook executes after its parameters cell, to the end of the statement that checks them."""
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    (at,) = [i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
    found = []
    for statement in ast.parse("\n".join(cell.source for cell in code[at + 1 :])).body:
        found.append(ast.unparse(statement))
        if any(call in found[-1] for call in CHECKS):
            return "\n".join(found)
    raise AssertionError(f"{path.name} does not check its parameters")


def begun(name, **injected):
    """The namespace of a notebook after its check, with papermill's parameters or what somebody wrote in the cell."""
    names = {"RunConfig": RunConfig, "notebook_parameters": notebook_parameters, "pd": pd}
    namespace = {**names, **parameters_of(NOTEBOOKS[name]), **injected}
    exec(until_checked(NOTEBOOKS[name]), namespace)
    return namespace


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_checks_all_that_its_parameters_cell_sets_and_begins_by_it(name):
    assert set(parameters_of(NOTEBOOKS[name])) <= {*RunConfig.model_fields, *OWN}
    begun(name)


@pytest.mark.parametrize(("name", "own"), OWNED)
def test_one_of_another_kind_is_one_sentence_in_the_kernel_and_never_a_type_error(name, own):
    for wrong in (3 if isinstance(OWN[own].example, list | dict | str) else [3], None, {"a": object}, [[None]]):
        with pytest.raises(ConfigError, match=f"^{own} must be a (list|mapping|text|(whole )?number) like ") as refused:
            begun(name, **{own: wrong})
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", OWN)
def test_the_example_that_an_error_gives_is_right(name):
    check({name: OWN[name].example})


WRONG = {
    "seeds": [([-1], "greater than or equal to 0"), ([True], "valid integer"), ("[0, 1]", r"got '\[0, 1\]'")],
    "setups": [(["distinkt"], "'distinct', 'mixed'"), ("mixed", "got 'mixed'")],
    "methods": [
        (["fedrft"], "method: input should be 'local'"), (["fedreft medain"], "aggregation: input should be"),
        (["fedreft mean adaptive loss more"], "up to 4 words"), (["fedreft mean 1.3"], "mixing: "),
        ([""], "up to 4 words"),
    ],
    "contestants": [(["fedit lora 0"], "rank: input should be greater"), (["fedit lorra"], "intervention: ")],
    "per_task": [({"mrpc": {"trian_size": 3}}, "no parameter 'trian_size', did you mean 'train_size'"), ({"a": 3}, "")],
    "ablations": [([["rank"]], "a name, then mappings"), ([["rank", {"rnk": 1}]], "no parameter 'rnk'")],
    "fixed": [([1.5], "less than or equal to 1"), ([float("nan")], "finite")],
    "hostile_counts": [([-1], "greater than or equal to 0")],
    "steps": [(0, "greater than or equal to 1"), (2.5, "a whole number like 40, got 2.5")],
    "lora_lr": [(2, "less than or equal to 1")],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value", "said"), [(name, *case) for name, cases in WRONG.items() for case in cases])
def test_elements_and_bounds_are_those_of_runconfigs_fields(name, value, said):
    with pytest.raises(ConfigError, match=f"^{name} must be (.*{said}|{said})"):
        check({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("methods", ["fedavg", "fedreft krum scheduled", "fedreft mean 0.05"]), ("seeds", (0, 1)),
        ("contestants", ["fedit lora 4"]), ("map_run", {"rounds": 20}), ("map_clients", []),
        ("fixed", [0, 1]), ("more_clients", []), ("per_task", {}), ("rules", ["scheduled", "fedavg"]),
        ("ablations", [["3 clients", {"clients": 3}, {"clients": 3, "method": "fedavg"}]]),
    ],
)  # fmt: skip
def test_what_notebooks_understand_is_let_through(name, value):
    check({name: value})


def test_a_list_on_papermills_command_line_is_explained_where_one_is_meant():
    with pytest.raises(ConfigError, match=r"seeds must be a list .*, got 3; .* as -y 'seeds: \[0, 1, 2\]'$"):
        begun("02_commonsense", seeds=3)


def test_what_a_notebook_goes_through_is_given_as_a_list_and_what_its_loops_leave_is_no_parameter():
    base = begun("02_commonsense", setups=["mixed"], clients=2)["base"]
    assert base.setup == "mixed"
    with pytest.raises(ConfigError, match=r"no parameter 'seed': it goes through seeds, got \[0\]"):
        begun("02_commonsense", seed=5)
    again = begun("02_commonsense", seeds=[4, 7], seed=7, setup="distinct", setups=["mixed", "distinct"])["base"]
    assert (again.seed, again.setup) == (RunConfig().seed, "mixed")


def test_the_first_of_heads_is_the_head_of_the_notebooks_runs():
    assert begun("05_glue", heads=["private", "averaged"])["base"].head == "private"
    assert begun("05_glue", heads=[])["base"].head == "averaged"


@pytest.mark.slow
def test_papermill_alone_stops_at_the_check(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=r"seeds must be a list like \[0, 1, 2\], got 3"):
        papermill.execute_notebook(
            NOTEBOOKS["02_commonsense"], tmp_path / "out.ipynb", {"seeds": 3}, cwd=PROJECT, progress_bar=False
        )
