"""One size of `growth`, in a process of its own, which prints what it took:

    python -m tests.benchmarks.grown federation CLIENTS WIDTH RANK DRAWN
    python -m tests.benchmarks.grown medians CLIENTS PARAMETERS

A federation is opened and goes through two rounds, the second of which is timed, with the states of all that were drawn
in files. The model is random and small, questions are made up, and nobody is tested. The medians are all leave-one-out
medians of a random matrix; memory is what comes on top of that matrix.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from transformers import LlamaConfig

from fedreft_lib import RunConfig
from fedreft_lib.core import geometric_median
from fedreft_lib.core.aggregation import all_but_me
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.runs import checkpoints
from tests.benchmarks import peak
from tests.benchmarks.enrolled import saved_rounds
from tests.helpers.models import saved_decoder

LAYERS = 4
ROUNDS = 2


def federation(clients: int, width: int, rank: int, drawn: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(checkpoints, "IN_ONE_FILE", 0):
        sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": LAYERS}
        config = RunConfig(
            backbone=saved_decoder(f"{folder}/model", LlamaConfig, **sizes), dtype="float32", device="cpu",
            source="local", data_dir=questions(f"{folder}/data", clients), tasks=["parity"], setup="iid", rank=rank,
            clients=clients, sampled=drawn, train_size=2, held_out_size=1, test_size=1, batch_size=2, rounds=ROUNDS,
        )  # fmt: skip
        began = time.perf_counter()
        assemble(config)
        opened, ends = time.perf_counter() - began, []
        for _ in saved_rounds(config, range(1, ROUNDS + 1), f"{folder}/run"):
            ends.append(time.perf_counter())
    return {"opened": opened, "round": ends[-1] - ends[-2], "memory": peak.resident() / 1e6}


def questions(folder: str, clients: int) -> str:
    """Enough for every client, in files."""
    Path(folder).mkdir()
    for split, each in (("train", 3), ("test", 1)):
        rows = [
            {"question": f"Is {split} number {i} even?", "choices": ["yes", "no"], "gold": i % 2}
            for i in range(each * clients)
        ]
        (Path(folder) / f"parity_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def medians(clients: int, parameters: int) -> dict[str, float]:
    all_but_me(peak.matrix(3, 1000))  # what torch loads and keeps on its first use
    X = peak.matrix(clients, parameters)
    before, began = peak.resident(), time.perf_counter()
    with (
        mock.patch.object(geometric_median, "_forces", wraps=geometric_median._forces) as forces,
        mock.patch.object(geometric_median, "_nearest_point", wraps=geometric_median._nearest_point) as nearest,
    ):
        all_but_me(X)
    seconds = time.perf_counter() - began
    iterations = forces.call_count - nearest.call_count  # which asks for forces once each
    return {"seconds": seconds, "memory": (peak.resident() - before) / 1e6, "iterations": iterations}


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    print(json.dumps({"federation": federation, "medians": medians}[what](*map(int, numbers))))
