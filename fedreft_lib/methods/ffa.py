"""FFA-LoRA (Sun et al. 2024): all clients have the same random A, which is frozen. Only B is trained and averaged.

mean(B_k) A is then exactly the mean of the clients' additions, and a client sends half as much. Over LoReFT
(reconstruction) R is frozen and W, b are trained: also exact, since R^T (W h + b - R h) is linear in W and b.
"""

from .method import Method, Phase, ending, weighted_mean

FFA = Method(
    "ffa",
    aggregate=weighted_mean,
    mixing=lambda config: 1.0,
    one_for_all=True,
    phases=lambda names, kind, config, t: [Phase(ending(names, *kind.map))],
    sends=lambda names, kind, config: ending(names, *kind.map),
)
