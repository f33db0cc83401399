"""How far chance in drawing the test questions moves a score: all that one seed can tell of its uncertainty.

A client answers n of them with the share p. Its interval of 95 % is Wilson's (1927), z = 1.96:

    (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

The interval (L, U) of the mean over K clients, from their p_k and (l_k, u_k), is that of Zou and Donner (2008):

    L = mean p - sqrt(sum (p_k - l_k)^2) / K,    U = mean p + sqrt(sum (u_k - p_k)^2) / K

For ROUGE-L, whose items lie between 0 and 100, it is too wide if anything: no such score of the same mean varies more
than right and wrong answers do. Matthews' and other correlations are no means over items and have no such interval.
It says nothing about other starts, orders or partitions: those are what seeds differ in. Methods answer the same
questions, so two of them may differ although their intervals overlap.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..config import RunConfig
from ..runs.results import Run, results_of

Z = 1.959964
OF_ITEMS = ("accuracy", "rouge_l")  # scores that are means over items
NOTE = "95 % by chance in the test questions, not over seeds"


def counted(runs: Sequence[Run]) -> pd.DataFrame:
    """`results_of(runs)`, with the number of questions behind each score in the column `questions`; NaN if unknown."""
    parts = [run.results.assign(questions=_questions(run)) for run in runs]
    return pd.concat(parts, ignore_index=True) if parts else results_of([])


def asked(config: RunConfig, split: str = "test") -> float:
    """How many questions of a split each client has; NaN where clients bring their own and may have fewer."""
    return float("nan") if config.setup == "own" else float({"test": config.test_size}.get(split, config.held_out_size))


def _questions(run: Run) -> pd.Series:
    table = run.results
    several = table.groupby(["round", "client", "split", "metric"])["value"].transform("size") > 1  # parts of a test
    by_item = table["metric"].isin(OF_ITEMS) & table["split"].isin(["test", "held_out"]) & ~several
    return table["split"].map({split: asked(run.config, split) for split in ("test", "held_out")}).where(by_item)


def interval(scores: ArrayLike, questions: ArrayLike) -> tuple[float, float]:
    """Of the mean of clients' scores (K,), in percent, on as many questions (K,); NaN where a number is unknown."""
    p, n = np.asarray(scores, float) / 100, np.asarray(questions, float)
    middle, half = p + Z**2 / (2 * n), Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = ((middle + side * half) / (1 + Z**2 / n) for side in (-1, 1))
    down, up = (np.sqrt(np.sum((edge - p) ** 2)) / len(p) for edge in (low, high))
    return float(100 * (p.mean() - down)), float(100 * (p.mean() + up))


def of_one_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """A picture's rows, without `questions` where there are several seeds: no picture has both kinds of bars."""
    return rows if rows["seed"].nunique() == 1 else rows.drop(columns="questions", errors="ignore")


def spread(rows: pd.DataFrame) -> tuple[float, float, float]:
    """(mean, low, high) of a method's rows: over clients, then over seeds.

    low and high: one standard deviation over seeds; for one seed `interval`, NaN where `rows` has no `questions`.
    """
    seeds = rows.groupby("seed")["value"].mean()
    mean, sd = float(seeds.mean()), float(seeds.std())
    if len(seeds) > 1:
        return mean, mean - sd, mean + sd
    if "questions" not in rows:
        return mean, float("nan"), float("nan")
    return mean, *interval(rows["value"], rows["questions"])


def by_chance(rows: pd.DataFrame) -> bool:
    """Whether what is drawn around these rows' means is `interval`: there is one seed, and numbers of questions."""
    return rows["seed"].nunique() == 1 and "questions" in rows and bool(rows["questions"].notna().any())


def note(rows: pd.DataFrame, drawn: str) -> str:
    """What is averaged, and what is drawn around it; `drawn` is what shows the spread over seeds: bars or bands."""
    seeds = rows["seed"].nunique()
    if seeds > 1:
        parts = rows.assign(all="").groupby(["all", *rows.columns.intersection(["setup", "method"])], dropna=False)
        each = parts["seed"].nunique()
        number = str(seeds) if each.min() == seeds else f"{each.min()} to {each.max()}"
        return f"mean over clients and {number} seeds; {drawn}: standard deviation over seeds"
    return f"mean over clients; 1 seed{f'; dotted: {NOTE}' if by_chance(rows) else f', so no {drawn}'}"
