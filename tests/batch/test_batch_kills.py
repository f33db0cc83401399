"""A few of the kills of `tests/torture/batch_kills.py`, on notebooks that do next to nothing."""

import pytest

from tests.torture.batch_kills import PLAIN, tried


@pytest.mark.slow
def test_a_batch_killed_at_any_instant_tears_nothing_and_goes_on_to_the_same_results(tmp_path):
    assert tried(3, seed=0, folder=tmp_path, notebooks=PLAIN) == {"tried": 3, "survived": 3, "torn": 0, "lost": 0}
