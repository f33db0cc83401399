"""FedIT (Zhang et al. 2023, "Shepherd"): FedAvg over LoRA, which averages A and B separately.

The mean of the products B A is not the product of the means. Most of the other LoRA methods address this.
"""

from .method import Method, weighted_mean

FEDIT = Method("fedit", aggregate=weighted_mean, mixing=lambda config: 1.0, one_for_all=True)
