"""The states of a finished run, mixed once more: what every client would then write, and its held-out loss.

    phi_k <- (1 - lam) phi_k + lam A_k,     A_k the mean or the geometric median of the others, or FedAvg's mean of all

Mixed are the tensors that the run's clients send (for a run without a server, those that FedReFT would send); what a
client keeps to itself stays its own. Nothing is trained, and the run does not change. What was found is remembered.
"""

from functools import cached_property

from torch import Tensor, tensor

from ..config import RunConfig
from ..core.aggregation import Aggregate, all_but_me, mean
from ..core.mixing import mixing_matrix
from ..core.state import State
from ..errors import FedReFTError
from ..federation import participation
from ..federation.client import apply_answer, sent_names
from ..federation.rounds import federation_of
from ..methods import METHODS
from ..methods.method import DEFAULTS
from ..model import scoring
from ..model.encoding import LabelSet
from ..model.tokens import Tokens
from ..runs.results import Run
from . import texts
from .looks import NAMES

RULES = {
    "mean": "mean of the others",
    "geometric_median": "geometric median of the others",
    "fedavg": "FedAvg: mean of all",
}
MORE = ("state_kind", "extras", "start", "deploy", "test_share")  # hooks of states with parts, or of more than a state
TOKENS = 24  # of a text at most, so that nobody waits: a second or so of one core, for 135 million parameters


def refusal(config: RunConfig) -> str:
    """Why the states of a run cannot be mixed once more, as a sentence; "" where they can."""
    method, choose = METHODS[config.method], "choose a run of local, FedAvg or FedReFT."
    if any(getattr(method, hook) is not getattr(DEFAULTS, hook) for hook in MORE):
        name = NAMES.get(method.name, method.name)
        return f"In a run of {name}, more than one mixed state decides what a client writes: {choose}"
    if method.pools_data or config.clients < 2:
        return f"This run has one state, and no others to mix it with: {choose}"
    return ""


class Remix:
    """A run whose states are mixed by any rule of RULES and any lam. Clients are numbered from 0.

    Raises FedReFTError for a run that has a `refusal`, and where the data or the backbone have changed since.
    """

    def __init__(self, run: Run):
        if why := refusal(run.config):
            raise FedReFTError(why)
        self.run, self.config, self.federation = run, run.config, federation_of(run)
        self.model, self.clients = self.federation.model, self.federation.clients
        self.losses: dict[tuple[str, int], dict[float, float]] = {}  # by rule and client: held-out losses by lam
        self.texts: dict[tuple[str, int, float, str], str] = {}  # by rule, client, lam and prompt

    @cached_property
    def takes_in(self) -> RunConfig:
        """The config by which a client takes in an answer: that of All-But-Me, where a head is mixed like the rest."""
        head = "private" if self.config.head == "private" else "shared"
        return self.config.but(method="fedreft", head=head)

    @cached_property
    def sent(self) -> tuple[str, ...]:
        """Names of the tensors that are mixed."""
        layout = self.model.layout
        return sent_names(layout, self.config) or sent_names(layout, self.takes_in)

    @cached_property
    def X(self) -> Tensor:
        """What the clients send, (N, Q)."""
        return self.model.spec.columns(self.sent, self.run.states)

    @cached_property
    def received(self) -> dict[str, Aggregate]:
        """What the clients receive by each rule. A client that is not in the federation counts for nobody."""
        out = {*participation.gone(self.config, self.config.rounds)}
        out |= {*range(len(self.clients) - self.config.unseen, len(self.clients))}
        weights = tensor([0.0 if k in out else len(client.train) for k, client in enumerate(self.clients)])
        equal = (weights > 0).float()
        others = {kind: all_but_me(self.X, kind, equal) for kind in ("mean", "geometric_median")}
        return {**others, "fedavg": mean(self.X, weights)}

    @property
    def writes(self) -> bool:
        """Whether the model writes texts; an encoder does not."""
        return self.model.backbone.kind == "causal"

    @property
    def longest(self) -> int:
        """Tokens of a text at most."""
        return min(self.config.max_new_tokens, TOKENS)

    @property
    def all_equal(self) -> bool:
        """Whether all clients sent the same, so that mixing changes nothing."""
        return bool((self.X[0] == self.X).all())

    @property
    def unit(self) -> str:
        """Of the held-out loss."""
        held_out = self.clients[0].held_out
        if isinstance(held_out, LabelSet):
            return "nats a text" if all(held_out.classes) else "squared error"
        return "nats a question" if self.config.objective == "choice" else "nats a token"

    def weights(self, rule: str, lam: float) -> Tensor:
        """M (N, N): row k holds the weights of all states in client k's new one."""
        return mixing_matrix(self.received[rule].A, share(rule, lam))

    def state(self, rule: str, lam: float, k: int) -> State:
        """Client k's state after the mixing."""
        own = self.model.spec.named(self.run.states[k])
        answer = self.model.spec.part(self.sent).named(self.received[rule].aggregate[k])
        layout, rounds = self.model.layout, self.config.rounds
        return apply_answer(layout, self.takes_in, rounds, own, answer, share(rule, lam)).state

    def loss(self, rule: str, lam: float, k: int) -> float:
        """Client k's held-out loss after the mixing."""
        known, at = self.losses.setdefault((rule, k), {}), share(rule, lam)
        if at not in known:
            held_out = self.clients[k].held_out
            known[at] = scoring.loss(self.model, self.state(rule, lam, k), held_out, self.config.batch_size)
        return known[at]

    def text(self, rule: str, lam: float, k: int, prompt: str) -> str:
        """What client k writes after the mixing. Raises FedReFTError for a prompt that the model cannot read."""
        at = (rule, k, share(rule, lam), prompt)
        if at not in self.texts:
            state = self.state(rule, lam, k)
            self.texts[at] = self.model.generate([self.read(prompt)], state, self.longest)[0]
        return self.texts[at]

    def read(self, prompt: str) -> Tokens:
        """A prompt for a text of at most `longest` tokens. Raises FedReFTError where the model cannot read it."""
        return texts.read(self.model.backbone, prompt, self.config, self.longest)


def share(rule: str, lam: float) -> float:
    """The share that a client takes in: FedAvg has no λ, since its mean takes the place of the client's state."""
    return 1.0 if rule == "fedavg" else lam
