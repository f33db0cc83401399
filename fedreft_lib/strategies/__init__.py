"""One file per federated method; a method is a value.

A round is: every client trains locally; every client that `shares` sends its state; the server turns the admitted
states into what each client receives (an `Aggregate`: a mixing matrix A and A X); every client takes in a share lam of
it. The methods differ in A, in lam, and in who trains on what:

    local          nothing is sent                        M = I
    fedavg         A = 1 p^T      lam = 1                 M = 1 p^T
    fedreft        A = All-But-Me, lam by `mixing`        M = (1 - lam) I + lam A
    centralised    one client with everybody's data       M = I
"""

from .base import Strategy
from .centralised import CENTRALISED
from .fedavg import FEDAVG
from .fedreft import FEDREFT
from .local import LOCAL

STRATEGIES: dict[str, Strategy] = {each.name: each for each in (LOCAL, FEDAVG, FEDREFT, CENTRALISED)}
