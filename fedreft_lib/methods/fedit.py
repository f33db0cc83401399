"""FedIT (Zhang et al. 2023, "Shepherd"): FedAvg over LoRA, A and B averaged apart.

The mean of the products B A is not the product of the means, which is what most of the other LoRA methods are about.
"""

from .method import Method, weighted_mean

FEDIT = Method("fedit", aggregate=weighted_mean, mixing=lambda config: 1.0, one_for_all=True)
