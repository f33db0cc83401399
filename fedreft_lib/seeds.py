"""Seeds depend only on (seed, purpose), never on what ran before, so any round can be computed again."""

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A seed below 2**63 for one purpose, e.g. `derive(seed, "batches", round, client)`."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
