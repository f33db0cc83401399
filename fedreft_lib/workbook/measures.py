"""Measures of notebook 11 that are no accuracies.

rounds_of           the newest common state after each round, and the server's memory
angles              the principal angles between what two runs' R span
beyond_rank         how much of FedHL's sum the truncation to a rank throws away, by round
novelties           whether FedGMM's density finds texts of a task that no client has
on_the_way          how far each round's state is from one that was trained in one place, and its loss
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.linalg import subspace_angles
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..federation.assembly import Federation, assemble
from ..federation.local_clients import start
from ..federation.rounds import federated_round
from ..federation.server import held_for_all
from ..methods import fedgmm, uncertainty
from ..methods.additions import addition, beyond, groups
from ..model import scoring
from ..model.encoding import Encoded
from ..model.steered import SteeredModel
from ..runs.results import Run
from .arms import Arms
from .controls import redealt
from .method_facts import start_of


def first_clients(federation: Federation, n: int) -> Federation:
    """The federation of the first n clients alone."""
    return replace(federation, clients=federation.clients[:n], questions=federation.questions[:n], memo={})


def rounds_of(config: RunConfig) -> Iterator[tuple[Federation, State, State]]:
    """The federation, its common state and the server's memory: before the first round, and after each. No tests.

    For a method whose server has one answer for all.
    """
    federation, memory = assemble(config), {}
    X = start(federation, config)
    for t in range(config.rounds + 1):
        if t:
            X, report = federated_round(federation, config, X, t, memory=memory)
            memory = report.memory
        yield federation, {**federation.model.spec.named(X[0]), **held_for_all(memory)}, memory


def angles(one: Tensor, other: Tensor) -> np.ndarray:
    """Degrees (places, r), the smallest first, between the row spaces of R (places, r, d) and of another."""
    pairs = zip(one.double(), other.double(), strict=True)
    return np.stack([np.degrees(subspace_angles(a.T.numpy(), b.T.numpy()))[::-1] for a, b in pairs])


def turned(arms: Arms, towards: Sequence[Run]) -> pd.DataFrame:
    """The angles of each run's R, and of its W - R, to those of the run of its seed in `towards`.

    seed, method (the arm; "the start" is where all begin), part, value: the mean angle in degrees, largest.
    """
    rows = []
    for name, runs in {**arms, "the start": next(iter(arms.values()))}.items():
        for run, other in zip(runs, towards, strict=True):
            row = start_of(run.config) if name == "the start" else run.states[0]
            phi, to = run.spec.named(row), other.spec.named(other.states[0])
            for part in ("R", "W - R")[: 1 if name == "the start" else 2]:  # there W = R
                of = angles(*(each["R"] if part == "R" else each["W"] - each["R"] for each in (phi, to)))
                own = {"seed": run.config.seed, "method": name, "part": part}
                rows.append({**own, "value": of.mean(), "largest": of[:, -1].mean()})
    return pd.DataFrame(rows)


def beyond_rank(config: RunConfig, ranks: Sequence[int]) -> pd.DataFrame:
    """Percent of |W|^2 beyond each rank after each round of FedHL: rounds x ranks, mean over modules or layers."""
    rows = {}
    for t, (_, _, memory) in enumerate(rounds_of(config)):
        parts = [W for name, W in memory.items() if name.startswith("delta.")]
        if parts:
            rows[t] = np.mean([beyond(W.double(), list(ranks)) for W in parts], axis=0)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(ranks)).rename_axis("round")


def novelty(model: SteeredModel, config: RunConfig, state: State, data: Encoded) -> Tensor:
    """- log sum_m1 pi_m1 N(z; mu_m1, Sigma_m1) of each item, (items,): how unlike a FedGMM client's texts it is."""
    near = fedgmm.seen(model, config, state, data)[1]
    return -(near + state["kept.pi"].double().sum(1).log()).logsumexp(1)


def without(federation: Federation, task: str) -> Federation:
    """The federation, whose clients train on no item of that task. Their tests stay."""
    hands: list[list[int]] = []
    first = 0
    for client in federation.questions:
        hands.append([first + i for i, item in enumerate(client.train) if item.task != task])
        first += len(client.train)
    return redealt(federation, hands)


def novelties(done: Run, federation: Federation, foreign: str, what: str) -> pd.DataFrame:
    """How well a run tells each client's tests of the task `foreign` from its others: seed, client, method, value.

    method: `what`. value: 100 times the area under the ROC curve, 50 by chance. The score is a client's `novelty`; that
    of another method than FedGMM is FLood's o, the entropy of what the model answers.
    """
    config, model, rows = done.config, federation.model, []
    for client, data, row in zip(federation.clients, federation.questions, done.states, strict=True):
        state, (test,) = model.spec.named(row), client.test
        if config.method == "fedgmm":
            score = novelty(model, config, state, test)
        else:
            score = uncertainty.scores(model, config, state, test, "entropy")
        area = roc_auc_score([item.task == foreign for item in data.test], score)
        rows.append({"seed": config.seed, "client": client.name, "method": what, "value": 100 * area})
    return pd.DataFrame(rows)


def on_the_way(config: RunConfig, towards: State, what: str) -> pd.DataFrame:
    """By round: the distance of what the common state adds to the model from what `towards` adds, in percent of the
    latter's size, and the mean loss on all clients' training items: seed, method (`what`), round, distance, loss."""
    rows = []
    for t, (federation, state, _) in enumerate(rounds_of(config)):
        model, kind = federation.model, federation.model.layout.kind
        read = {name: state[name] for name in model.layout.adapter_names}
        ends = [torch.cat([addition(kind, phi).flatten() for phi in groups(each).values()]) for each in (read, towards)]
        distance = 100 * float((ends[0] - ends[1]).norm() / ends[1].norm())
        losses = [scoring.loss(model, read, client.train, config.batch_size) for client in federation.clients]
        rows.append({"seed": config.seed, "method": what, "round": t, "distance": distance, "loss": np.mean(losses)})
    return pd.DataFrame(rows)
