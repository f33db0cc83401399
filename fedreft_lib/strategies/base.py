"""What a federated method has to say."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..aggregation import Aggregate
from ..config import RunConfig


@dataclass(frozen=True)
class Strategy:
    """A federated method whose server step is a mixing matrix.

    aggregate(X, weights, config): X (N, P) are the clients' states, weights (N,) their example counts, 0 for a client
    that was not admitted this round (its row of X is then the state that it started from). None: nothing is sent.
    mixing(config): the share that a client takes in: a number, "scheduled" or "adaptive".
    """

    name: str
    aggregate: Callable[[Tensor, Tensor, RunConfig], Aggregate] | None
    mixing: Callable[[RunConfig], float | str] = lambda config: 0.0
    pools_data: bool = False  # one client holds everybody's training data
