"""The hooks that define a federated method.

In a round, every client trains locally, in one or more phases, and sends some of its tensors. The server forms an
`Aggregate` of them and answers each client. Every client takes its answer in. A method's hooks define how it differs;
the defaults are what FedAvg and FedReFT have in common.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..config import RunConfig
from ..core.aggregation import Aggregate, mean
from ..core.mixing import mix_with
from ..core.state import Layout, Spec, State
from ..core.training import Optimise, Penalty, Trained
from ..model.encoding import Client, Encoded
from ..model.steered import SteeredModel
from .branches import Branches, Kind

Names = Sequence[str]

# A client's state may have extras: tensors that no module reads. How a name begins says what happens to its tensor. An
# extra whose name begins otherwise is sent and aggregated with the rest.
TOLD = "told."  # reported with each update: checked, but never aggregated
KEPT = "kept."  # private: never sent
ALSO = "also."  # begins the names of what `Method.also` led to, in `Method.after`


@dataclass(frozen=True)
class Phase:
    """A part of local training: the tensors that it trains. A round's steps are divided evenly among its phases.

    share: for states that have branches (None: the shares of the state's kind): the local branch's, or the name of an
    entry of `Method.prepare`, (items,) or (items, branches). weights: the name of an entry (items,): each item's loss
    then counts so many times.
    """

    trains: tuple[str, ...]
    share: float | str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Sent:
    """What reached the server: X (N, Q) with its spec, the same tensors before the round (N, Q), and weights (N,).

    who: the clients' numbers (from 0). told: what they reported, (N, ...) by name. started (N, Q): what each update was
    trained from; it differs from `before` for an update of the round before, whose client has been brought up to date
    since. examples: the example counts of *all* clients, by number. layout: of a client's state. memory: tensors that
    the server keeps between rounds. A hook may change nothing else.
    """

    X: Tensor
    before: Tensor
    weights: Tensor
    spec: Spec
    config: RunConfig
    kind: Kind | Branches
    memory: State = field(default_factory=dict)
    who: tuple[int, ...] = ()
    told: State = field(default_factory=dict)
    started: Tensor | None = None
    examples: tuple[int, ...] = ()
    layout: Layout | None = None


def ending(names: Names, *tensors: str) -> tuple[str, ...]:
    """The names whose last part is one of `tensors`: "own.R" and "R" end in "R"."""
    return tuple(name for name in names if name.rsplit(".", 1)[-1] in tensors)


def of_branch(names: Names, *branches: str) -> tuple[str, ...]:
    """The names whose last part but one is one of `branches`. The parts before it may be a module's path."""
    return tuple(name for name in names if set(branches) & set(name.split(".")[-2:-1]))


def as_it_is(kind: Kind, config: RunConfig) -> Kind | Branches:
    return kind


def everything(names: Names, kind: Kind | Branches, config: RunConfig, t: int) -> list[Phase]:
    return [Phase(tuple(names))]


def by_sharing(names: Names, kind: Kind | Branches, config: RunConfig) -> tuple[str, ...]:
    """The tensors of `sharing`: all, or the subspace's (R, A), or the map's (W and b, B)."""
    return tuple(names) if config.sharing == "full" else ending(names, *config.sharing)


def rows(sent: Sent, aggregate: Aggregate) -> list[State]:
    return [sent.spec.named(row) for row in aggregate.aggregate]


def mix_in(layout: Layout, state: State, answer: State, lam: float, config: RunConfig, t: int) -> State:
    """(1 - lam) own + lam received, for the tensors that were received."""
    mixed = {
        name: mix_with(state[name].reshape(1, -1), received.reshape(1, -1), lam).view_as(state[name])
        for name, received in answer.items()
    }
    return {**state, **mixed}


def alike(model: SteeredModel, config: RunConfig, state: State, client: Client, part: Encoded) -> None:
    """All test items have the share of the state's kind."""
    return None


def no_tensors(*_) -> State:
    return {}


def as_it_stands(model: SteeredModel, config: RunConfig, state: State, client: Client, t: int) -> State:
    return state


@dataclass(frozen=True)
class Method:
    """A federated method.

    aggregate(X, weights, config): X (N, Q) holds what the clients sent, weights (N,) their example counts. A client
    that was not admitted has weight 0, and its row of X is its state before the round. None: clients send nothing.
    mixing(config): the share that a client takes in: a number, "scheduled" or "adaptive".
    state_kind(kind, config): the kind of a client's state. phases(names, kind, config, t): what it trains in round t.
    sends(names, kind, config): the tensors that it sends. penalty(config): what is added to a step's loss, or None.
    optimiser(config): a function like `core.training.optimise` in its place, or None.
    client_statistics(model, config, state, client): tensors about its data that a client sends before the first round;
    None or {} for most methods. initial_state(layout, config, state, statistics, steps): the state that all start from,
    given these statistics. steps: the most that one client takes in a round.
    one_for_all: the server sends one answer to all, and every client takes it whole. It is the federation's state.
    answer(sent, aggregate): what each client receives. apply_answer(layout, state, answer, lam, config, t): its next
    state. test_share(model, config, state, client, part): for states with a local branch, its share in each test item;
    or (items, branches).

    Some methods need more of a client than its adapter:
    extras(layout, config): further tensors of a state at their start, see TOLD and KEPT.
    start(model, config, k, state, client): the tensors with which client k (from 0) does not begin as the others do.
    prepare(model, config, state, client, t): before the training of round t, what its training items are to have: their
    weights or shares, see Phase. `state` is the one that it received.
    also(config, state, t): a second state to train from in round t, on the same batches, or {}: where that ends is in
    what `after` gets as `prepared`, see ALSO.
    after(model, config, before, trained, prepared, client, t): after training, the new values of extras and others.
    weigh(sent): the weights (N,) of the clients, up to a factor, in `aggregate` and for the head's mean. sent.weights
    are their example counts, and a weight of 0 stays 0.
    deploy(model, config, state, client, t): the state with which a client is tested after round t.
    """

    name: str
    aggregate: Callable[[Tensor, Tensor, RunConfig], Aggregate] | None
    mixing: Callable[[RunConfig], float | str] = lambda config: 0.0
    pools_data: bool = False  # one learner holds the training data of all clients
    one_for_all: bool = False
    state_kind: Callable[[Kind, RunConfig], Kind | Branches] = as_it_is
    phases: Callable[[Names, Kind | Branches, RunConfig, int], list[Phase]] = everything
    sends: Callable[[Names, Kind | Branches, RunConfig], tuple[str, ...]] = by_sharing
    penalty: Callable[[RunConfig], Penalty | None] = lambda config: None
    optimiser: Callable[[RunConfig], Optimise | None] = lambda config: None
    client_statistics: Callable[[SteeredModel, RunConfig, State, Client], State] | None = None
    initial_state: Callable[[Layout, RunConfig, State, Sequence[State], int], State] | None = None
    answer: Callable[[Sent, Aggregate], list[State]] = rows
    apply_answer: Callable[[Layout, State, State, float, RunConfig, int], State] = mix_in
    test_share: Callable[[SteeredModel, RunConfig, State, Client, Encoded], Tensor | None] = alike
    extras: Callable[[Layout, RunConfig], State] = no_tensors
    start: Callable[[SteeredModel, RunConfig, int, State, Client], State] = no_tensors
    prepare: Callable[[SteeredModel, RunConfig, State, Client, int], State] = no_tensors
    also: Callable[[RunConfig, State, int], State] = no_tensors
    after: Callable[[SteeredModel, RunConfig, State, Trained, State, Client, int], State] = no_tensors
    weigh: Callable[[Sent], Tensor] = lambda sent: sent.weights
    deploy: Callable[[SteeredModel, RunConfig, State, Client, int], State] = as_it_stands

    @property
    def trains_as_usual(self) -> bool:
        """Whether local training depends on the state, the data, the phases and the recipe alone."""
        return all(getattr(self, name) is getattr(DEFAULTS, name) for name in OF_TRAINING)

    @property
    def one_by_one(self) -> bool:
        """Whether its clients cannot train in one pass: each has weights, shares or an optimiser of its own."""
        return self.prepare is not no_tensors or self.optimiser is not DEFAULTS.optimiser


DEFAULTS = Method("", aggregate=None)
OF_TRAINING = ("penalty", "optimiser", "prepare", "also", "after")  # what local training depends on, beside the phases


def weighted_mean(X: Tensor, weights: Tensor, config: RunConfig) -> Aggregate:
    """FedAvg's mean, weighted by example counts."""
    return mean(X, weights)


def plain_mean(X: Tensor, weights: Tensor, config: RunConfig) -> Aggregate:
    """Every admitted client counts the same."""
    return mean(X, (weights > 0).float())
