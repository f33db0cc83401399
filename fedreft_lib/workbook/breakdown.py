"""The breakdown curve: the scores of honest clients against the number of hostile ones."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.figure import Figure

from ..runs.results import Run
from . import statistics
from .figures import AGGREGATES, CYCLE, GREY, mean_line, panel_row, spread_note, titled

RULES = {**AGGREGATES, "none": "FedAvg"}


def honest_scores(runs: Iterable[Run]) -> pd.DataFrame:
    """One row for each run: attack, rule, hostile, seed, and the mean score of the clients that are honest in all runs.

    A client that is hostile in any run is left out of all runs, so the same tests are compared. Norm clipping before
    the aggregation is part of the rule's name.
    """
    runs = list(runs)
    worst = max(run.config.hostile for run in runs)
    rows = []
    for run in runs:
        config, scores = run.config, run.accuracy()
        kind = config.aggregation if config.method == "fedreft" else "none"
        clipped = "" if config.norm_clip is None else ", clipped"
        rows.append({
            "attack": config.attack.replace("_", " "), "rule": RULES[kind] + clipped, "hostile": config.hostile,
            "seed": config.seed, "value": float(scores.iloc[: config.clients - worst].mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def against(scores: pd.DataFrame, reference: str) -> pd.DataFrame:
    """`statistics.against` of the rules: without hostile clients, and under each attack by the largest number of them.

    scores: from `honest_scores`. Other numbers of hostile clients are left to the curve.
    """
    most = scores["hostile"].max()
    chosen = scores[scores["hostile"].isin([0, most])].rename(columns={"rule": "method"})
    case = (chosen["attack"] + f", {most} hostile").where(chosen["hostile"] > 0, "nobody hostile")
    return statistics.against(chosen.assign(case=case), reference, by="case")


def breakdown(scores: pd.DataFrame, clients: int, untrained: float) -> Figure:
    """The honest clients' score against the number of hostile ones: a panel for each attack, a line for each rule."""
    attacks, rules = scores["attack"].unique(), scores["rule"].unique()
    fig, axes = panel_row(len(attacks), width=4.2, height=3.4, sharey=True)
    for ax, attack in zip(axes, attacks, strict=True):
        ax.axhline(untrained, color=GREY, linestyle="--", linewidth=1.2, label="untrained")
        for rule, colour in zip(rules, CYCLE, strict=False):
            own = scores[(scores["attack"] == attack) & (scores["rule"] == rule)]
            if len(own):
                mean_line(ax, own, "hostile", color=colour, marker="o", label=rule)
        ax.set(title=attack, xlabel=f"hostile clients, of {clients}")
        ax.set_xticks(sorted(scores["hostile"].unique()))
    axes[0].set_ylabel("honest clients' test score (%)")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return titled(fig, "How many hostile clients does a rule tolerate?", spread_note(scores, "bands"))
