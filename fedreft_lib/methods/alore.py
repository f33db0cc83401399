"""ALoRE (Du et al. 2024, arXiv 2412.08341) in a federation: FedAvg of Kronecker sums, see `kronecker`.

    D = sum_i S_i (x) (P_i Q_i),    S, P, Q (and c) <- sum_k p_k S_k, P_k, Q_k (and c_k),    p_k: example counts

The paper is not federated and has no results on text: the whole form here is a reconstruction. The mean of the three
factors is not the mean of the clients' D; `workbook.method_facts.average_gap` measures how far it is.
Over "loreft" the states stand at its places, on the residual stream; over "lora" in its modules. r is `rank`.
"""

from .kronecker import Kronecker
from .method import Method, weighted_mean

ALORE = Method(
    "alore",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    state_kind=lambda kind, config: Kronecker(kind, config.alore_blocks),
)
