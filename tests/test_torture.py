"""The short form of `make torture`: real kills, changed bytes and bad updates, with other seeds than there."""

import pytest

from tests.torture import GOOD, checkpoint_damage, files, full_disk, parameters, training_kills


@pytest.mark.parametrize(
    ("tried", "n"),
    [
        pytest.param(training_kills.tried, 6, marks=pytest.mark.slow, id="kills of training"),
        pytest.param(checkpoint_damage.tried, 20, marks=pytest.mark.slow, id="damaged run folders"),
        pytest.param(files.tried, 30, id="damaged data files"),
        pytest.param(parameters.tried, 60, id="parameters"),
    ],
)
def test_everything_that_is_tried_survives_or_is_refused_in_a_sentence(tried, n, tmp_path):
    counts = tried(n, 1234, tmp_path)
    assert counts["tried"] == n == sum(counts.get(end, 0) for end in GOOD), counts


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path):
    counts = full_disk.tried(3, 1234, tmp_path)
    if not counts["tried"]:
        pytest.skip("needs the right to mount a small disk")
    assert counts["tried"] == counts["survived"] == 3 and counts["of them full"] > 0
