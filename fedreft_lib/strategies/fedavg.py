"""FedAvg over interventions ("FedAvg + LoReFT" in the paper's ablation; McMahan et al. 2017).

Everyone gets the mean of all states, weighted by example counts, and goes on from it. R itself is averaged, never
the raw weights of an orthogonal parametrisation.
"""

from .. import aggregation
from .base import Strategy

FEDAVG = Strategy(
    "fedavg",
    aggregate=lambda X, weights, config: aggregation.mean(X, weights),
    mixing=lambda config: 1.0,
)
