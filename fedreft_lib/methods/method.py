"""What a federated method has to say.

A round is: every client trains locally, in one phase or several; sends some of its tensors; the server forms an
`Aggregate` of them and answers each client; every client takes its answer in. A method is a value whose hooks say what
is particular about it; the defaults are FedAvg's and FedReFT's common ground.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..config import RunConfig
from ..core.aggregation import Aggregate, mean
from ..core.mixing import mix_with
from ..core.state import Layout, Spec, State
from ..model.encoding import Client, Encoded
from ..model.steered import SteeredModel
from .branches import Branches, Kind

Names = Sequence[str]


@dataclass(frozen=True)
class Phase:
    """A part of local training: which tensors move, in which share of the round's steps.

    share: of the local branch, for states that have one (None: as the state's kind has it).
    """

    trains: tuple[str, ...]
    share: float | None = None


@dataclass(frozen=True)
class Sent:
    """What reached the server: X (N, Q) with its spec, what the clients started the round from, their weights (N,).

    memory: tensors that the server keeps between rounds; the one thing that a hook may change.
    """

    X: Tensor
    before: Tensor
    weights: Tensor
    spec: Spec
    config: RunConfig
    kind: Kind | Branches
    memory: State = field(default_factory=dict)


def ending(names: Names, *tensors: str) -> tuple[str, ...]:
    """Those of the names whose last part is one of `tensors`: "own.R" and "R" end in "R"."""
    return tuple(name for name in names if name.rsplit(".", 1)[-1] in tensors)


def of_branch(names: Names, *branches: str) -> tuple[str, ...]:
    """Those of the names whose last part but one is one of `branches`; the parts before may be a module's path."""
    return tuple(name for name in names if set(branches) & set(name.split(".")[-2:-1]))


def as_it_is(kind: Kind, config: RunConfig) -> Kind | Branches:
    return kind


def everything(names: Names, kind: Kind | Branches, config: RunConfig, t: int) -> list[Phase]:
    return [Phase(tuple(names))]


def by_sharing(names: Names, kind: Kind | Branches, config: RunConfig) -> tuple[str, ...]:
    """What `sharing` names: all tensors, or those of the subspace (R, A), or those of the map (W and b, B)."""
    return tuple(names) if config.sharing == "full" else ending(names, *config.sharing)


def rows(sent: Sent, aggregate: Aggregate) -> list[State]:
    return [sent.spec.named(row) for row in aggregate.aggregate]


def mix_in(layout: Layout, state: State, answer: State, lam: float, config: RunConfig, t: int) -> State:
    """(1 - lam) own + lam received, in the tensors that were received."""
    mixed = {
        name: mix_with(state[name].reshape(1, -1), received.reshape(1, -1), lam).view_as(state[name])
        for name, received in answer.items()
    }
    return {**state, **mixed}


def alike(model: SteeredModel, config: RunConfig, state: State, client: Client, part: Encoded) -> None:
    """Every test item has the share that the state's kind has."""
    return None


@dataclass(frozen=True)
class Method:
    """A federated method.

    aggregate(X, weights, config): X (N, Q) is what the clients sent, weights (N,) their example counts, 0 for a client
    that was not admitted this round (its row of X is then what it started from). None: nothing is sent.
    mixing(config): the share that a client takes in: a number, "scheduled" or "adaptive".
    state_kind(kind, config): what a client's state is made of. phases(names, kind, config, t): what it trains in round
    t. sends(names, kind, config): which of its tensors it sends. proximal(config): FedProx's mu.
    client_statistics(model, config, state, client): what a client sends of its data before the first round; mostly {}.
    initial_state(layout, config, state, statistics, steps): the state that all start from, given everybody's
    statistics. steps: the most that a client takes in a round.
    one_for_all: the server answers all alike, and every client has that whole: what it says is the federation's state.
    answer(sent, aggregate): what each client receives. apply_answer(layout, state, answer, lam, config, t): its next
    state. test_share(model, config, state, client, part): for states with a local branch, its share in each test item.
    """

    name: str
    aggregate: Callable[[Tensor, Tensor, RunConfig], Aggregate] | None
    mixing: Callable[[RunConfig], float | str] = lambda config: 0.0
    pools_data: bool = False  # one client holds everybody's training data
    one_for_all: bool = False
    state_kind: Callable[[Kind, RunConfig], Kind | Branches] = as_it_is
    phases: Callable[[Names, Kind | Branches, RunConfig, int], list[Phase]] = everything
    sends: Callable[[Names, Kind | Branches, RunConfig], tuple[str, ...]] = by_sharing
    proximal: Callable[[RunConfig], float] = lambda config: 0.0
    client_statistics: Callable[[SteeredModel, RunConfig, State, Client], State] | None = None
    initial_state: Callable[[Layout, RunConfig, State, Sequence[State], int], State] | None = None
    answer: Callable[[Sent, Aggregate], list[State]] = rows
    apply_answer: Callable[[Layout, State, State, float, RunConfig, int], State] = mix_in
    test_share: Callable[[SteeredModel, RunConfig, State, Client, Encoded], Tensor | None] = alike


def weighted_mean(X: Tensor, weights: Tensor, config: RunConfig) -> Aggregate:
    """FedAvg's: by example counts."""
    return mean(X, weights)


def plain_mean(X: Tensor, weights: Tensor, config: RunConfig) -> Aggregate:
    """Every admitted client counts the same."""
    return mean(X, (weights > 0).float())
