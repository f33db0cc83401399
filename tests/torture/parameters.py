"""Random parameter files and parameters: `python -m tests.torture.parameters 500`.

A file of the project with random damage, random bytes, or a RunConfig with random values: each ends in parameters that
can be used or in a ConfigError of one sentence, and nothing is ever run by a tag.
"""

import random
import sys
import tempfile
from pathlib import Path

from fedreft_lib import RunConfig
from fedreft_lib.config.parameter_files import read_parameters
from fedreft_lib.errors import ConfigError
from tests.torture.checkpoint_damage import damaged

GOOD = sorted((Path(__file__).parents[2] / "params").rglob("*.yaml"))
TAGS = ("!!python/object/apply:os.system ['touch burnt']", "!!python/name:os.system", "!!set {a, b}", "&a [*a, *a]")
VALUES = (None, True, -1, 0, 1e308, float("nan"), float("inf"), "", "x" * 10_000, [], [[]], {}, [1, [2]], 10**400, b"x")


def tried(n: int, seed: int, folder: Path) -> dict[str, int]:
    """Counts: tried, refused in a sentence, usable, failed otherwise."""
    draw = random.Random(seed)
    counts = {"tried": 0, "refused": 0, "usable": 0, "failed otherwise": 0}
    attempts = (_file, _tag, _config)
    for i in range(n):
        counts["tried"] += 1
        try:
            attempts[i % len(attempts)](draw, folder)
            counts["usable"] += 1
        except ConfigError as error:
            counts["refused" if "\n" not in str(error) else "failed otherwise"] += 1
        except Exception:
            counts["failed otherwise"] += 1
    counts["failed otherwise"] += (Path.cwd() / "burnt").exists()
    return counts


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "params" / "quick" / "02_commonsense.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _file(draw: random.Random, folder: Path) -> None:
    read_parameters(_write(folder, damaged(draw.choice(GOOD).read_bytes(), draw)))


def _tag(draw: random.Random, folder: Path) -> None:
    read_parameters(_write(folder, f"rank: {draw.choice(TAGS)}\n".encode()))


def _config(draw: random.Random, folder: Path) -> None:
    names = draw.sample(sorted(RunConfig.model_fields), draw.choice([1, 2, 5]))
    RunConfig(**{name: draw.choice(VALUES) for name in names})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(tried(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(scratch)))
