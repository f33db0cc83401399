"""FedProx (Li et al. 2020): FedAvg whose clients are held near where they started the round.

mu / 2 times the squared distance is added to the local loss, over R, W, b themselves (A, B for LoRA). mu = 0 is FedAvg.
"""

from .method import Method, weighted_mean

FEDPROX = Method(
    "fedprox",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    proximal=lambda config: config.proximal_mu,
)
