"""FedSA-LoRA (Guo et al. 2025): clients train A and B, and send only A, which is averaged. B stays with the client.

Over LoReFT (reconstruction) the subspace R is shared, and W, b stay. The opposite, sharing what FedSA keeps, is FedAvg
with sharing="Wb" (or "B"); with sharing="full" it is FedAvg itself.
"""

from .method import Method, ending, weighted_mean

FEDSA = Method(
    "fedsa",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    sends=lambda names, kind, config: ending(names, *kind.subspace),
)
