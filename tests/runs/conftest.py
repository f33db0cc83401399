"""Runs that many tests look at, made once."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedreft_lib import RunConfig
from fedreft_lib.runs.results import Run
from tests.helpers.federations import finish, small, stopped


@dataclass(frozen=True)
class Kept:
    """A run of three rounds that nobody disturbed, and folders of it that are copied for a test to damage."""

    config: RunConfig
    whole: Run
    folders: Path

    def copied(self, rounds: int, to: Path) -> Path:
        """The run's folder as it is after so many rounds, one that was stopped or (3) the finished one."""
        return Path(shutil.copytree(self.folders / str(rounds), to, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> Kept:
    config, folders = small(rounds=3), tmp_path_factory.mktemp("kept")
    for rounds in (1, 2):
        stopped(config, folders / str(rounds), after=rounds)
    return Kept(config, finish(config, folders / "3"), folders)
