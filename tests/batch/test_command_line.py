"""The command line: what went wrong is one sentence and an exit code, and help comes at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedreft_lib.batch import command_line
from fedreft_lib.batch.command_line import main
from fedreft_lib.data.downloads import ASSETS
from fedreft_lib.errors import AssetError
from tests.batch.test_reproduce import write_notebook, write_parameters


@pytest.fixture
def project(tmp_path):
    """Two notebooks with parameters in the profile quick."""
    for name in ("00_tour", "02_commonsense"):
        write_notebook(tmp_path, name)
        write_parameters(tmp_path, name, "")
    return tmp_path


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDREFT_CACHE", str(tmp_path / "cache"))


def test_without_a_command_help_is_printed(capsys):
    assert main([]) == 0
    assert {"reproduce", "assets", "doctor"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["reprodcue"], "there is no command 'reprodcue', did you mean 'reproduce'?"),
        (["reproduce", "qick"], "there is no profile 'qick', did you mean 'quick'?"),
        (["reproduce", "--only", "7"], "there is no notebook number '7'; there are"),
        (["reproduce", "quick", "--only", "02, x"], "there is no notebook number 'x'; there are"),
    ],
)
def test_mistakes_are_one_sentence_without_a_traceback(arguments, sentence, project, capsys):
    assert main(arguments, project) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(sentence)
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (AssetError("no network"), 2, "no network"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "x.csv"), 2, "No space left on device: x.csv"),
    ],
)
def test_errors_of_a_command_become_a_sentence_and_a_code(error, code, sentence, monkeypatch, capsys):
    def fails(options, root):
        raise error

    monkeypatch.setitem(command_line.COMMANDS, "doctor", fails)
    assert main(["doctor"]) == code
    told = capsys.readouterr().err.strip()
    assert told.startswith(sentence)
    assert "\n" not in told


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setitem(command_line.COMMANDS, "doctor", lambda options, root: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_asset_list_says_what_is_missing_and_downloads_nothing(empty_cache, tmp_path, capsys):
    assert main(["assets", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["missing", name] for name in ASSETS]
    assert all(asset.licence in line for asset, line in zip(ASSETS.values(), lines, strict=True))
    assert not (tmp_path / "cache").exists()


def test_assets_fetches_data_and_converts_models_but_not_what_one_task_alone_needs(monkeypatch, capsys):
    monkeypatch.setattr("fedreft_lib.data.downloads.fetch", lambda name: Path("wheel") / name)
    monkeypatch.setattr("fedreft_lib.model.weights.backbone_folder", lambda name: Path("model") / name)
    assert main(["assets"]) == 0
    expected = [
        f"{name}: {'model' if asset.model else 'wheel'}/{name}" for name, asset in ASSETS.items() if not asset.only_for
    ]
    assert capsys.readouterr().out.splitlines() == expected


def test_doctor_tells_each_problem_with_what_to_do(empty_cache, project, monkeypatch, capsys):
    write_parameters(project, "02_commonsense", "mixing: 2")
    monkeypatch.setattr(command_line, "_memory", lambda: 2.0)
    assert main(["doctor"], project) == 1
    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith("! ")]
    assert lines[-1] == f"{len(problems)} to fix, see the lines with !"
    assert problems[0] == "! 2.0 GiB memory: the profile quick may need 4 GiB; the profile smoke needs less"
    assert [line for line in problems if "is missing: python -m fedreft_lib assets downloads it" in line] != []
    assert problems[-1].startswith("! profile quick: params/quick/02_commonsense.yaml: mixing: ")


def test_doctor_is_content_where_all_is_there(project, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FEDREFT_HIDDEN_STATES", str(tmp_path / "kept"))
    monkeypatch.setattr("fedreft_lib.data.downloads.find", lambda name: Path(name))
    monkeypatch.setattr(command_line, "_memory", lambda: 16.0)
    monkeypatch.setattr(command_line, "_free", lambda folder: 50.0)
    assert main(["doctor"], project) == 0
    out = capsys.readouterr().out
    assert "profile quick: 2 notebooks, parameters valid" in out
    assert "device " in out
    assert "0.00 of at most 8 GiB of hidden states in " in out
    assert out.endswith("all is fine\n")


def test_help_needs_no_torch():
    # The package's own __init__ is put aside: this is about what the command line imports.
    code = (
        "import sys, types; package = types.ModuleType('fedreft_lib'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['fedreft_lib'] = package; from fedreft_lib.batch.command_line import main; main([]); "
        "sys.exit(bool({'torch', 'pandas', 'papermill'} & set(sys.modules)))"
    )
    library = str(Path(command_line.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
