"""FedVRA where its limit is known: each client trains a head alone, on frozen features, down to its minimum.

    f_k(theta) = mean log(1 + exp(-y x . theta)) + RIDGE / 2 |theta|^2

x (13,) are a text's twelve `data.agreement.components`, here over all clients' training texts, and a 1; y is 1 or -1,
its label in the task with a known optimum. The f_k are strictly convex, so there is one theta* that minimises their
mean, which is what one learner with all data finds. FedVRA with a > 0 ends there, and FedProx, its a = 0, does not.
"""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..config import RunConfig
from ..core.state import Spec, State
from ..core.training import Trained
from ..data.agreement import ANSWERS, Text
from ..federation import participation
from ..federation.assembly import assemble
from ..federation.labelling import seen
from ..methods.fedvra import DUAL, FEDVRA
from ..methods.method import Sent

RIDGE = 0.01

Features = tuple[Tensor, Tensor]  # x (n, 13) and y (n,) of a client's training texts, float64


def features(config: RunConfig) -> list[Features]:
    """Of every client of a config with benchmark="agreement"."""
    clients = [client.train for client in assemble(config).questions]
    e = torch.from_numpy(seen([Text(item.task, item.question) for items in clients for item in items], config))
    x = torch.cat([e, torch.ones(len(e), 1)], 1)
    y = [torch.tensor([1.0 if item.choices[item.gold] == ANSWERS[1] else -1.0 for item in items]) for items in clients]
    return list(zip(x.split([len(items) for items in clients]), [each.double() for each in y], strict=True))


def loss(theta: Tensor, data: Features) -> Tensor:
    """f_k."""
    x, y = data
    return softplus(-y * (x @ theta)).mean() + RIDGE / 2 * theta.square().sum()


def minimum(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Of a convex function of theta (13,)."""
    theta = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective(theta)
        value.backward()
        return value

    optimiser.step(closure)
    return theta.detach()


def solution(clients: list[Features]) -> Tensor:
    """theta*, of all clients alike."""
    return minimum(lambda theta: torch.stack([loss(theta, data) for data in clients]).mean(), torch.zeros(13).double())


def distances(config: RunConfig, rounds: int) -> pd.Series:
    """|phi0 - theta*| in percent of |theta*|, before the first round and after each; by FedVRA's own hooks, from 0.

    config: its method must be "fedvra"; it says who takes part.
    """
    clients, names = features(config), ("theta",)
    theta, spec, memory = torch.zeros(13).double(), Spec.of({"theta": (13,)}), {}
    duals, best, penalty = [torch.zeros_like(theta)] * len(clients), solution(clients), FEDVRA.penalty(config)
    found = {0: 100.0}

    def held(before: State, k: int) -> Callable[[Tensor], Tensor]:
        return lambda own: loss(own, clients[k]) + (penalty({"theta": own}, before, names, 1, 1) if penalty else 0)

    for t in range(1, rounds + 1):
        who, sent = [k for k in range(len(clients)) if k not in participation.away(config, t)], []
        for k in who:
            before = {"theta": theta, f"{DUAL}theta": duals[k]}
            trained = Trained({**before, "theta": minimum(held(before, k), theta)}, [0.0], 0.0)
            duals[k] = FEDVRA.after(None, config, before, trained, {}, None, t)[f"{DUAL}theta"]
            sent.append(trained.state["theta"])
        X, weights, start = torch.stack(sent), torch.ones(len(who)).double(), theta.expand(len(who), -1)
        message = Sent(
            X, start, weights, spec, config, None, memory, tuple(who), started=start, examples=(1,) * len(clients)
        )
        theta = FEDVRA.answer(message, FEDVRA.aggregate(X, weights, config))[0]["theta"]
        found[t] = 100 * float((theta - best).norm() / best.norm())
    return pd.Series(found, name="distance").rename_axis("round")
