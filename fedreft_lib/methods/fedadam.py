"""FedAdam (Reddi et al. 2021, algorithm 2): the server treats the mean change as a gradient and takes an Adam step.

    D = mean_k (x_k - x)      m <- b1 m + (1 - b1) D      v <- b2 v + (1 - b2) D^2      x <- x + eta m / (sqrt(v) + tau)

m starts at 0 and v at tau^2. There is no bias correction, as in the paper (Flower has one). The mean is unweighted.
With b1 = b2 = 0 and eta = tau far above |D|, the step is D itself: FedAvg. Over LoReFT, R is retracted afterwards.
"""

import torch

from ..core.aggregation import Aggregate
from ..core.state import State
from .method import Method, Sent, plain_mean


def server_adam(sent: Sent, aggregate: Aggregate) -> list[State]:
    """One Adam step from the state of the round's start. The server's memory keeps m and v."""
    config, x = sent.config, sent.before[0]  # all clients start from the same state
    D = aggregate.aggregate[0] - x
    m = sent.memory.get("m", torch.zeros_like(x))
    v = sent.memory.get("v", torch.full_like(x, config.server_tau**2))
    m = config.server_beta1 * m + (1 - config.server_beta1) * D
    v = config.server_beta2 * v + (1 - config.server_beta2) * D.square()
    sent.memory.update(m=m, v=v)
    x = x + config.server_lr * m / (v.sqrt() + config.server_tau)
    return [sent.spec.named(x) for _ in aggregate.aggregate]


FEDADAM = Method("fedadam", aggregate=plain_mean, mixing=lambda config: 1.0, one_for_all=True, answer=server_adam)
