"""FFA-LoRA (Sun et al. 2024): A is drawn once, the same for all, and frozen; B alone is trained and averaged.

mean(B_k) A is then exactly the mean of the clients' additions, and half as much is sent. Over LoReFT
(reconstruction) R is frozen and W, b are trained: exact as well, since R^T (W h + b - R h) is linear in W and b.
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
