"""A notebook is executed again if the data or a backbone changed, however its parameters name them."""

import json

import pytest

from fedreft_lib.batch import unchanged
from fedreft_lib.batch.jobs import Job
from tests.helpers.changes import CHANGES, DATA, config_of, forget, in_json
from tests.helpers.projects import write_notebook


@pytest.mark.parametrize("change", CHANGES)
def test_a_notebook_is_executed_again(home, change):
    kind, make = CHANGES[change]
    config = config_of(home, kind)
    write_notebook(home, "02_own", "print(1)")
    values = {"data_dir": "../data", "backbone": "../model", "output_dir": "../outputs/quick"}
    job = Job(home / "notebooks/02_own.ipynb", values, values)
    before = unchanged.made_of(job, home / "outputs/quick")
    forget()
    assert unchanged.made_of(job, home / "outputs/quick") == before
    make(home)
    after = unchanged.made_of(job, home / "outputs/quick")
    part = "its data" if change in DATA else "its backbones"
    assert config and [name for name in before if before[name] != after[name]] == [part]


NAMED = {
    "a list": {"backbones": ["tiny-llama", "../model"], "data_dirs": ["../data"]},
    "nested": {"ablations": [["x", {"backbone": "../model", "data_dir": "../data"}]]},
    "a mapping": {"backbone": {"small": "../model"}, "per_task": {"birds": {"data_dir": "../data"}}},
    "at home": {"backbone": "~/model", "data_dir": "~/data"},
    "elsewhere": {"backbone": "{}/model", "data_dir": "{}/data"},
    "links": {"backbone": "../links/model", "data_dir": "../links"},
}


@pytest.mark.parametrize("named", NAMED)
def test_however_parameters_name_data_and_backbones_a_change_is_noticed(home, monkeypatch, named):
    config_of(home, "questions")
    monkeypatch.setenv("HOME", str(home))
    (home / "links").mkdir()
    for name in ("model", "data"):
        (home / "links" / name).symlink_to(home / name)
    (home / "data/client1/round").symlink_to(home / "data")  # leads back up
    write_notebook(home, "02_own", "print(1)")
    values = json.loads(json.dumps(NAMED[named]).replace("{}", str(home)))
    job, folder = Job(home / "notebooks/02_own.ipynb", values, values), home / "outputs/quick"
    before = unchanged.made_of(job, folder)
    assert unchanged.made_of(job, folder) == before
    in_json("config.json", lambda found: found.update(rms_norm_eps=0.1))(home)
    between = unchanged.made_of(job, folder)
    DATA["gold"][1](home)
    after = unchanged.made_of(job, folder)
    assert before["its backbones"] != between["its backbones"] and between["its data"] != after["its data"]


def test_a_commit_of_a_backbone_on_the_hub_counts_where_it_is_known(home, monkeypatch):
    write_notebook(home, "02_own", "print(1)")
    values = {"backbone": "some/model", "backbones": ["tiny-llama"]}
    job, folder = Job(home / "notebooks/02_own.ipynb", values, values), home / "outputs/quick"
    said = []
    monkeypatch.setattr(unchanged, "backbone_identity", lambda name, base: said[-1] if "/" in name else name)
    output = folder / "02_own.ipynb"
    output.parent.mkdir(parents=True)
    output.write_text("executed")
    for then, now, why in (
        ("hub", "hub", None), ("hub", "hub a", None), ("hub a", "hub", None), ("hub a", "hub a", None),
        ("hub a", "hub b", "its backbones on the hub changed"),
    ):  # fmt: skip
        said.append(then)
        unchanged.write(folder, "02_own", unchanged.made_of(job, folder), output, [])
        said.append(now)
        assert unchanged.why_execute(folder, "02_own", unchanged.made_of(job, folder)) == why
