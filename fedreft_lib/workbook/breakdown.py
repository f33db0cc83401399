"""The breakdown curve: the scores of honest clients against the number of hostile ones."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.figure import Figure

from ..runs.results import Run
from . import sampling, statistics
from .canvas import by_panel, highest, key, label_rows, mean_line, panel_row, side_by_side, titled
from .looks import AGGREGATES, GREY, looks

RULES = {**AGGREGATES, "none": "FedAvg"}
NOBODY = "nobody"  # the attack of a run without hostile clients


def honest_scores(runs: Iterable[Run]) -> pd.DataFrame:
    """One row for each run: attack, rule, hostile, seed, and the mean score of the clients that are honest in all runs.

    A client that is hostile in any run is left out of all runs, so the same tests are compared. Norm clipping before
    the aggregation is part of the rule's name. `questions` is the number of test questions behind the score. A run
    without hostile clients belongs to all attacks, and its own is NOBODY.
    """
    runs = list(runs)
    worst = max(run.config.hostile for run in runs)
    rows = []
    for run in runs:
        config, honest = run.config, run.accuracy().iloc[: run.config.clients - worst]
        kind = config.aggregation if config.method == "fedreft" else "none"
        clipped = "" if config.norm_clip is None else ", clipped"
        rows.append({
            "attack": config.attack.replace("_", " ") if config.hostile else NOBODY, "rule": RULES[kind] + clipped,
            "hostile": config.hostile, "seed": config.seed, "value": float(honest.mean()),
            "questions": len(honest) * sampling.asked(config),
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
    """The honest clients' score against the number of hostile ones: a panel for each attack, a line for each rule.

    Runs without hostile clients are in every panel.
    """
    scores = sampling.of_one_seed(scores)
    calm, most = scores["hostile"] == 0, scores["hostile"].max()
    attacks = list(dict.fromkeys(scores.loc[~calm, "attack"])) or [NOBODY]
    names = {rule: rule if rule.startswith("FedAvg") else f"FedReFT {rule}" for rule in scores["rule"].unique()}
    styles = dict(zip(names, looks(names.values()).values(), strict=True))
    fig, axes = panel_row(len(attacks), width=4.2, height=3.4, sharey=True)
    best = {}
    for ax, attack in zip(axes, attacks, strict=True):
        ax.axhline(untrained, color=GREY, linestyle="--", linewidth=1.2, label="untrained")
        shown = scores[calm | (scores["attack"] == attack)]
        for aside, (rule, own) in zip(side_by_side(len(styles)), shown.groupby("rule", sort=False), strict=False):
            mean_line(ax, own, "hostile", aside=aside, label=rule, **styles[rule])
        worst = shown[shown["hostile"] == most].groupby("rule", sort=False)["value"].mean()
        best[attack] = highest(worst)
        ax.set(title=attack, xlabel=f"hostile clients, of {clients}")
        ax.set_xticks(sorted(scores["hostile"].unique()))
    label_rows(axes, "honest clients' test score (%)")
    key(axes)
    title = f"Highest with {most} of {clients} clients hostile: {by_panel(best)}"
    return titled(fig, title, sampling.note(scores, "bands"))
