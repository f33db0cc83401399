"""FedReFT: All-But-Me aggregation (arXiv 2508.20295).

Client k receives the geometric median of the *others'* states (or their mean, "Mean-ABM" in the paper's ablation) and
mixes in a share lam. The others count equally: weights by example counts would let the largest client stand for all.
How lam is set is a reconstruction; see RunConfig.mixing.
"""

from ..core import aggregation
from .method import Method

FEDREFT = Method(
    "fedreft",
    aggregate=lambda X, weights, config: aggregation.all_but_me(
        X, config.aggregation, (weights > 0).float(), config.byzantine
    ),
    mixing=lambda config: config.mixing,
)
