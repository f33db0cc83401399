"""Clients that are all on this machine."""

from collections.abc import Callable

from torch import Tensor

from ..config import RunConfig
from ..core.state import State
from ..core.training import Trained
from ..data.partition import classes_of, data_fingerprint
from ..methods import METHODS
from ..methods.method import DEFAULTS
from ..model.heads import check_classes
from ..runs.client_states import ClientStates
from . import evaluation
from .assembly import Federation
from .client import ClientResult, ClientUpdate, begun, common_start, make_update, take_answer
from .engine import engine_of
from .training import participants, train_clients
from .work import Work, in_turn


class LocalClients:
    """`server.Clients` for the clients of a federation. work: computes their tasks."""

    def __init__(self, federation: Federation, config: RunConfig, work: Work = in_turn):
        self.federation, self.config, self.model, self.work = federation, config, federation.model, work
        self.longest, self.writes = federation.longest, federation.writes
        self.trained: dict[int, Trained] = {}  # by `train_runs`, for the next round: used in place of training
        check_classes({client.name: classes_of(client) for client in federation.questions}, config)
        self.cut = federation.cut
        self.participants = participants(federation, config)
        self.names = [p.name for p in self.participants]
        self.examples, self.steps = [len(p.train) for p in self.participants], [p.steps for p in self.participants]

    @property
    def engine(self) -> str:
        last_token = all(participant.last_token for participant in self.participants)
        return engine_of(self.config, self.model.backbone.device, last_token)

    @property
    def questions(self) -> str:
        return data_fingerprint(self.federation.questions)

    def begin(self) -> ClientStates:
        return enrolled(self.federation, self.config)

    def train(
        self, before: dict[int, State], missed: dict[int, State], t: int, on_step: Callable[[], object]
    ) -> dict[int, ClientUpdate]:
        trained = self.trained or train_clients(self.federation, self.config, before, t, on_step, self.work)
        self.trained = {}
        return {
            k: make_update(
                self.model.layout, self.config, k, t,
                name=self.names[k], examples=self.examples[k], before=before[k], trained=each,
            )
            for k, each in trained.items()
        }  # fmt: skip

    def apply_answers(
        self, states: dict[int, State], answers: dict[int, State | None], refused: set[int], t: int
    ) -> dict[int, ClientResult]:
        tasks = [(k, t, state, answers[k]) for k, state in states.items()]
        reads = METHODS[self.config.method].mixing(self.config) == "adaptive"  # its held-out items, with each lam
        found = (self.work if reads else in_turn)(_answered, self.federation, self.config, tasks, lambda: None)
        return dict(zip(states, found, strict=True))

    def evaluate(self, X: ClientStates | None, t: int, memory: State, progress: bool) -> list[dict]:
        how = {"memory": memory, "progress": progress, "work": self.work}
        return evaluation.evaluate_all(self.federation, self.config, X, t, **how)


def _answered(
    federation: Federation, config: RunConfig, k: int, t: int, state: State, answer: State | None, on_step: object
) -> ClientResult:
    client = federation.clients[k] if k < len(federation.clients) else None  # not the centralised learner
    return take_answer(federation.model, config, client, t, state, answer)


def start(federation: Federation, config: RunConfig) -> Tensor:
    """X (N, P) before the first round. All clients have one basis R: an average of different ones means nothing."""
    return enrolled(federation, config).all


def enrolled(federation: Federation, config: RunConfig) -> ClientStates:
    """`start` as ClientStates; without N copies in memory, unless each client begins with something of its own."""
    method, everybody, layout = METHODS[config.method], participants(federation, config), federation.model.layout
    state = common_start(layout, config)
    if method.client_statistics:
        seen = federation.clients[: config.clients - config.unseen]
        known = [method.client_statistics(federation.model, config, state, each) for each in seen]
        state = method.initial_state(layout, config, state, known, max(each.steps for each in everybody))
    own = {}
    if method.start is not DEFAULTS.start:
        own = {
            k: layout.spec.row(begun(federation.model, config, k, state, client))
            for k, client in enumerate(federation.clients)
        }
    return ClientStates(layout.spec.row(state), len(everybody), own)
