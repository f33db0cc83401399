"""A federation of a given size: python -m tests.benchmarks.grown_federation CLIENTS WIDTH RANK DRAWN.

It is opened and goes through two rounds, the second of which is timed, with the states of those that were drawn in
files. The model is random and small, questions are made up, and nobody is tested. Prints processor seconds of all
threads, which other programs change little, and the peak of the process's memory in MB.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from transformers import LlamaConfig

from fedreft_lib import RunConfig
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.runs import checkpoints
from tests.benchmarks import peak
from tests.benchmarks.enrolled import saved_rounds
from tests.helpers.models import saved_decoder

LAYERS = 4
ROUNDS = 2


def parameters(width: int, rank: int) -> int:
    """Of a LoReFT state with sites for prefix and suffix in each layer: R, W and b."""
    return 2 * LAYERS * rank * (2 * width + 1)


def grown(clients: int, width: int, rank: int, drawn: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(checkpoints, "IN_ONE_FILE", 0):
        # A wide model whose weights are not small is too noisy to be read in the usual, fast way.
        sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": LAYERS, "initializer_range": 0.02}
        config = RunConfig(
            backbone=saved_decoder(f"{folder}/model", LlamaConfig, **sizes), dtype="float32", device="cpu",
            source="local", data_dir=questions(f"{folder}/data", clients), tasks=["parity"], setup="iid", rank=rank,
            clients=clients, sampled=drawn, train_size=2, held_out_size=1, test_size=1, batch_size=2, rounds=ROUNDS,
        )  # fmt: skip
        began = time.process_time()
        assemble(config)
        opened, ends = time.process_time() - began, []
        for X in saved_rounds(config, range(1, ROUNDS + 1), f"{folder}/run"):
            assert len(X.common) == parameters(width, rank)
            ends.append(time.process_time())
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


if __name__ == "__main__":
    print(json.dumps(grown(*map(int, sys.argv[1:]))))
