"""FedProx (Li et al. 2020): FedAvg whose clients stay near their state at the round's start.

The local loss adds mu / 2 times the squared distance to it, over R, W, b themselves (A, B for LoRA). mu = 0 is FedAvg.
"""

from .method import Method, weighted_mean

FEDPROX = Method(
    "fedprox",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    proximal=lambda config: config.proximal_mu,
)
