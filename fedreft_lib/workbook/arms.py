"""Experiments of notebook 11: runs that differ in one thing, their arms, with the same seeds, data, start and steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..config import RunConfig
from ..federation.together import run_together
from ..runs.results import Run
from . import statistics

Arms = dict[str, list[Run]]  # by name: a run for each seed


def run_arms(
    base: RunConfig, title: str, arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], folder: str | Path
) -> Arms:
    """The runs of an experiment. arms: what each changes in `base`. Their `experiment` names the title and the arm."""
    configs = {
        name: [base.but(**changes, seed=seed, experiment=f"{base.experiment}: {title}, {name}") for seed in seeds]
        for name, changes in arms.items()
    }
    runs = iter(run_together([config for several in configs.values() for config in several], folder))
    return {name: [next(runs) for _ in several] for name, several in configs.items()}


def scores(arms: Arms, clients: Sequence[int] | None = None) -> pd.DataFrame:
    """Test accuracies after the last round, in percent: seed, method (the arm), client, value.

    clients: the numbers (from 0) of those that count, default: all.
    """
    tables = []
    for name, runs in arms.items():
        for run in runs:
            found = run.accuracy()
            found = found if clients is None else found.iloc[list(clients)]
            own = {"seed": run.config.seed, "method": name, "client": found.index, "value": found.to_numpy()}
            tables.append(pd.DataFrame(own))
    return pd.concat(tables, ignore_index=True)


def compared(title: str, arms: Arms, reference: str, clients: Sequence[int] | None = None) -> pd.DataFrame:
    """`statistics.against` of all arms, with the mean accuracy of each; one experiment is one family."""
    table = scores(arms, clients)
    return with_accuracy(statistics.against(table.assign(experiment=title), reference, "experiment"), table)


def with_accuracy(found: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Comparisons of arms, with the mean accuracy of each arm in its `scores`."""
    means = table.groupby("method")["value"].mean()
    return found.assign(accuracy=found.index.get_level_values("method").map(means))


def overview(arms: Arms, clients: Sequence[int] | None = None) -> pd.DataFrame:
    """For each arm: accuracy (%), calibrated NLL (nats), numbers that a client sends and receives a round, seconds."""
    rows = {}
    for name, runs in arms.items():
        history, rounds = pd.concat([run.history for run in runs]), runs[0].config.rounds
        tests = history[(history["split"] == "test") & (history["round"] == rounds)]
        if clients is not None:
            tests = tests[tests["client"].isin(runs[0].accuracy().index[list(clients)])]
        trained = history[(history["split"] == "train") & (history["metric"] == "loss")]
        messages = 4 * max(len(trained), 1)
        rows[name] = {
            "accuracy": scores({name: runs}, clients)["value"].mean(),
            "calibrated NLL": tests.loc[tests["metric"] == "calibrated_nll", "value"].astype(float).mean(),
            "sent up": history["uplink_bytes"].sum() / messages,
            "sent down": history["downlink_bytes"].sum() / messages,
            "seconds a round": trained["seconds"].sum() / len(runs) / rounds,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def by_round(arms: Arms) -> pd.DataFrame:
    """Mean test accuracy of each arm after each evaluated round: rounds x arms."""
    found = {}
    for name, runs in arms.items():
        rounds = sorted(set(runs[0].history.query("split == 'test'")["round"]))
        found[name] = {t: sum(float(run.accuracy(t).mean()) for run in runs) / len(runs) for t in rounds}
    return pd.DataFrame(found).rename_axis("round")


def weight_of(runs: Sequence[Run], k: int) -> float:
    """The weight of client k (from 0) in what client 1 is given, mean over rounds and runs."""
    return sum(float(run.mixing_matrices[:, 0, k].mean()) for run in runs) / len(runs)
