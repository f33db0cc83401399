"""FedAvg over interventions ("FedAvg + LoReFT" in the paper's ablation; McMahan et al. 2017).

Every client gets the mean of all states, weighted by example counts, and continues from it. The mean is over R itself,
never over the raw weights of an orthogonal parametrisation.
"""

from .method import Method, weighted_mean

FEDAVG = Method("fedavg", aggregate=weighted_mean, mixing=lambda config: 1.0, one_for_all=True)
