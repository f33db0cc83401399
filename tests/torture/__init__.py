"""Faults by the hundred, injected for real; each part has `tried(n, seed, folder)`, which returns counts."""

from tests.helpers.federations import same

# The counts under these names are of trials that ended as they should; whatever else is counted is a loss.
GOOD = ("survived", "refused", "usable", "read", "repaired")


def equal(one, other) -> bool:
    """Whether two runs have the same bits."""
    try:
        same(one, other)
    except AssertionError:
        return False
    return True
