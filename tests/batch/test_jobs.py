"""The plan of a batch: every name and value of a profile is checked before anything runs."""

import pytest

from fedreft_lib.batch.jobs import plan
from fedreft_lib.batch.reproduce import reproduce
from fedreft_lib.errors import ConfigError
from tests.helpers.projects import DEFAULTS, write_notebook, write_parameters, write_project


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path)


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
        ("mixing: .nan", "has the value '.nan' .line 1.: write a decimal and finite number"),
        ("source: local", "data_dir goes with source"),  # wrong together with the notebook's own default
        ("seeds: 3", r"seeds must be a list like \[0, 1, 2\], got 3$"),
        ("seeds: [0, one]", r"seeds must be a list like .*valid integer\), got \[0, 'one'\]"),
        ("seeds: [true]", r"seeds must be a list like .*valid integer\), got \[True\]"),
        ("seeds: []", r"seeds must be a list like .*at least 1 item.*, got \[\]"),
        ("mine: 3", r"mine must be like its default \['a'\], got 3"),  # declared nowhere but in its own notebook
        ("mine: [a, 2]", r"mine must be like its default \['a'\], got \['a', 2\]"),
        ("lr: 1e-3\nlr: 2e-3", "gives lr twice"),
        ("lr: 2026-01-01", "has the value '2026-01-01' .line 1.: write .* or a text in quotes"),
        ("lr: {a: 1}", "lr: input should be a valid number"),
        ("- lr", "must be lines of `name: value`"),
        ("lr", "must be lines of `name: value`"),
        ("1: 2", "must be lines of `name: value`"),
        ("lr: [", "is not valid YAML"),
        ("output_dir: elsewhere", "output_dir is set to outputs/quick by the batch"),
    ],
)
def test_wrong_parameters_are_refused_with_the_file_and_the_reason(project, text, sentence):
    write_notebook(project, "02_commonsense", parameters=f'{DEFAULTS}\nmine = ["a"]')
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
        ("quick", ["9" * 5000], "no notebook number '9999"),
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


def test_a_notebook_says_in_its_metadata_that_it_reads_runs(project):
    write_notebook(project, "02_commonsense", metadata={"fedreft": {"reads": "runs"}})
    assert [job.reads for job in plan("quick", root=project)] == [(), ("00_tour", "01_aside")]
    write_notebook(project, "02_commonsense", metadata={"fedreft": {"reads": ["01"]}})
    assert [job.reads for job in plan("quick", root=project)] == [(), ("01_aside",)]


def test_a_notebook_says_about_how_long_it_takes(project):
    write_notebook(project, "02_commonsense", metadata={"fedreft": {"seconds": 90}})
    assert [job.seconds for job in plan("quick", root=project)] == [60, 90]


@pytest.mark.parametrize("wrong", [0, -1, True, "90", None, float("inf"), float("nan")])
def test_seconds_that_are_none_are_refused(project, wrong):
    write_notebook(project, "02_commonsense", metadata={"fedreft": {"seconds": wrong}})
    with pytest.raises(ConfigError, match='02_commonsense.ipynb: its metadata\'s "seconds" must be a number above 0'):
        plan("quick", root=project)


@pytest.mark.parametrize("wrong", [{"reads": "all"}, {"reads": ["02"]}, {"reads": [1]}, {"reads": [["00"]]}, ["00"]])
def test_what_it_reads_must_be_before_it(project, wrong):
    write_notebook(project, "02_commonsense", metadata={"fedreft": wrong})
    with pytest.raises(ConfigError, match='02_commonsense.ipynb: its metadata may say "fedreft": {"reads": "runs"}'):
        plan("quick", root=project)
