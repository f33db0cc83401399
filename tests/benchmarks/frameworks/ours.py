"""Ours: python -m tests.benchmarks.frameworks.ours FOLDER METHOD INTERVENTION one|alone|simulated."""

import sys
import time

from fedreft_lib import RunConfig, run
from fedreft_lib.config.fields import steps_per_round
from tests.benchmarks.frameworks import task as tasks

if sys.argv[4] == "simulated":
    from fedreft_lib.flower.simulation import simulate

BEGAN = time.time()


def main() -> None:
    folder, method, intervention, way = sys.argv[1:]
    task = tasks.read(folder)
    config = RunConfig(**task.config).but(method=method, intervention=intervention)
    if way == "simulated":
        done = simulate(config, progress=False)
    else:
        done = run(config, progress=False, workers=1 if way == "alone" else None)
    history = done.history[done.history["round"] > 0]
    loss = history[(history["split"] == "train") & (history["metric"] == "loss")]
    sent = history[["uplink_bytes", "downlink_bytes"]].to_numpy().sum() // (task.clients * task.rounds)
    steps = len(loss) * steps_per_round(config.train_size, config)
    tasks.said(BEGAN, loss.groupby("round")["value"].mean().tolist(), steps, int(sent))


if __name__ == "__main__":
    main()
