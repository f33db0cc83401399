"""A notebook is kept if, and only if, nothing changed of what it was made of and of what it made."""

import json
from pathlib import Path

import pytest

from fedreft_lib.batch import unchanged
from fedreft_lib.batch.jobs import plan
from tests.helpers.projects import DEFAULTS, write_notebook, write_parameters

NAME = "02_commonsense"
READS = {"fedreft": {"reads": "runs"}}


@pytest.fixture
def project(tmp_path):
    """Two finished notebooks, of which the second reads runs; made by hand, since a stamp is about files."""
    for name, text in (("00_tour", ""), (NAME, "source: local\ndata_dir: ../data\nmixing: 0.5")):
        write_notebook(tmp_path, name, "print(1)", metadata=READS if name == NAME else None)
        write_parameters(tmp_path, name, text)
    for name in ("data/piqa_train.jsonl", "requirements.lock", "outputs/quick/runs/a/manifest.json"):
        write(tmp_path / name, name)
    write(tmp_path / "outputs/quick/runs/a/checkpoints/round_0001.safetensors", "bits")
    finish(tmp_path, "00_tour", ["runs/a/manifest.json"])
    finish(tmp_path, NAME, ["table.csv"])
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def made_of(root: Path, name: str) -> dict[str, str]:
    (job,) = plan("quick", [name[:2]], root)
    return unchanged.made_of(job, root / "outputs/quick")


def finish(root: Path, name: str, files: list[str]) -> None:
    folder = root / "outputs/quick"
    for file in files:
        write(folder / file, f"{file} of {name}")
    write(folder / f"{name}.ipynb", f"executed {name}")
    unchanged.write(folder, name, made_of(root, name), folder / f"{name}.ipynb", [folder / file for file in files])


def why(root: Path, name: str = NAME) -> str | None:
    return unchanged.why_execute(root / "outputs/quick", name, made_of(root, name))


def test_what_is_unchanged_is_kept(project):
    assert why(project) is None and why(project, "00_tour") is None


def test_new_times_of_the_same_content_change_nothing(project):
    for path in [path for path in project.rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes())
        path.touch()
    assert why(project) is None and why(project, "00_tour") is None


def other_cell(root: Path) -> None:
    write_notebook(root, NAME, "print(2)", metadata=READS)


def other_default(root: Path) -> None:
    write_notebook(root, NAME, "print(1)", parameters=DEFAULTS.replace("1e-3", "2e-3"), metadata=READS)


CHANGES = {
    "the notebook": other_cell,
    "the notebook and its parameters": other_default,
    "its parameters": lambda root: write_parameters(root, NAME, "source: local\ndata_dir: ../data\nmixing: 0.4"),
    "the packages": lambda root: write(root / "requirements.lock", "torch==0"),
    "its data": lambda root: write(root / "data/piqa_train.jsonl", "other"),
    "the runs that it reads": lambda root: write(root / "outputs/quick/runs/a/checkpoints/round_0001.safetensors", "x"),
}


@pytest.mark.parametrize("part", CHANGES)
def test_whatever_it_was_made_of_may_not_change(project, part):
    CHANGES[part](project)
    assert why(project) == f"{part} changed"


def test_another_library_or_package_is_noticed(project, tmp_path_factory, monkeypatch):
    library = tmp_path_factory.mktemp("library")
    write(library / "figures.py", "colour = 1")
    monkeypatch.setattr(unchanged, "LIBRARY", library)
    finish(project, "00_tour", [])
    write(library / "__pycache__/figures.pyc", "compiled")
    write(library / "flower/README.md", "no code reads this")
    assert why(project, "00_tour") is None
    write(library / "figures.py", "colour = 2")
    assert why(project, "00_tour") == "the library changed"
    monkeypatch.setattr(unchanged, "version", lambda name: "0")
    assert why(project, "00_tour") == "the library and the packages changed"


def test_more_data_a_new_run_and_a_repeated_notebook_are_changes(project):
    write(project / "data/deeper/boolq_test.jsonl", "more")
    assert why(project) == "its data changed"
    (project / "data/deeper/boolq_test.jsonl").unlink()
    write(project / "outputs/quick/runs/b/manifest.json", "{}")
    assert why(project) == "the runs that it reads changed" and why(project, "00_tour") is None
    (project / "outputs/quick/runs/b/manifest.json").unlink()
    assert why(project) is None
    write_parameters(project, "00_tour", "mixing: 0.1")
    finish(project, "00_tour", ["runs/a/manifest.json"])
    assert why(project) is None  # to the bit the same output and run: there is nothing new to read
    write(project / "outputs/quick/00_tour.ipynb", "executed again")
    folder = project / "outputs/quick"
    unchanged.write(folder, "00_tour", {}, folder / "00_tour.ipynb", [folder / "runs/a/manifest.json"])
    assert why(project) == "the runs that it reads changed"


def test_backbones_in_nested_parameters_are_part_of_what_it_is_made_of(project):
    (project / "weights").mkdir()
    parameters = DEFAULTS + "\nablations = [['x', {'backbone': '../weights'}]]"
    write_notebook(project, "00_tour", parameters=parameters)
    finish(project, "00_tour", [])
    assert why(project, "00_tour") is None
    write(project / "weights/model.safetensors", "bits")
    assert why(project, "00_tour") == "its backbones changed"


@pytest.mark.parametrize(
    ("then", "now", "known"), [("A", "A", "A"), ("A", "B", unchanged.CHANGED), (unchanged.UNKNOWN, "A", "A")]
)
def test_a_backbone_on_the_hub_may_come_while_a_notebook_runs_but_not_change(then, now, known):
    made_of = {unchanged.HUB: then, "the library": "a", "its data": "d"}
    after = {unchanged.HUB: now, "the library": "b", "its data": "d"}
    found = {unchanged.HUB: known, "the library": unchanged.CHANGED, "its data": "d"}
    assert unchanged.still(made_of, after) == found


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
@pytest.mark.parametrize("file", ["02_commonsense.ipynb", "table.csv"])
def test_what_it_made_must_be_there_unchanged(project, file, damage):
    damage(project / "outputs/quick" / file)
    what = "its output" if file.endswith("ipynb") else file
    assert why(project) == f"{what} is gone or changed"


def test_what_a_notebook_beside_removes_meanwhile_is_no_part_of_a_stamp(project):
    folder = project / "outputs/quick"
    files = [folder / "table.csv", folder / "runs/b/checkpoints/round_0001.safetensors"]
    unchanged.write(folder, NAME, made_of(project, NAME), folder / f"{NAME}.ipynb", files)
    assert list(unchanged.read(folder, NAME)["files"]) == ["table.csv"] and why(project) is None


def test_files_of_another_notebook_and_slides_are_not_in_a_stamp_those_of_nobody_are(project):
    folder = project / "outputs/quick"
    before = unchanged.times(folder)
    for name in ("figures/02_a.png", "figures/03_b.png", "mine.png", "slides/02_commonsense.slides.html"):
        write(folder / name, name)
    assert unchanged.written(folder, before, NAME) == [folder / "figures/02_a.png", folder / "mine.png"]


@pytest.mark.parametrize(
    ("file", "experiments", "number"),
    [
        ("study/a/checkpoints/round_0001.safetensors", {"study/a": "06_mixing_ablation: map"}, "06"),
        ("figures/02_accuracy.png", {}, "02"),
        ("08_killed/checkpoints/round_0000.safetensors", {}, "08"),
        ("runs/02_try/history.csv", {"runs/02_try": ""}, ""),  # somebody's own run, whatever its folder is called
        ("10_sums/a/nodes/b/learned.safetensors", {}, "10"),
        ("runs/a/history.csv", {"runs/a": "mine"}, ""),
    ],
)
def test_whose_a_file_is(tmp_path, file, experiments, number):
    for run, experiment in experiments.items():
        write(tmp_path / run / "config.json", json.dumps({"experiment": experiment}))
    assert unchanged.owner(tmp_path, tmp_path / file) == number


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", "\x00", "[" * 100_000, '{"made_of": {}, "output": 1, "files": {}}',
     '{"made_of": 1, "output": "", "files": {}}', '{"made_of": {}, "output": "", "files": []}'],
)  # fmt: skip
def test_a_damaged_stamp_vouches_for_nothing(project, text):
    write(project / f"outputs/quick/stamps/{NAME}.json", text)
    assert why(project) == "it has not been finished"


def test_no_single_flipped_bit_of_a_stamp_keeps_what_it_should_not(project):
    path = project / f"outputs/quick/stamps/{NAME}.json"
    good = path.read_bytes()
    now = made_of(project, NAME)
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(bad)
        reason = unchanged.why_execute(project / "outputs/quick", NAME, now)
        try:
            same = json.loads(bad) == json.loads(good)  # only white space became other white space
        except ValueError:
            same = False
        assert (reason is None) == same
