"""The differences of the federated methods, from their own hooks and from the states of runs.

`facts` is the table of notebook 07: what each method trains, sends and keeps. `learned` gives the clients' states after
local training and before averaging, which a finished run does not store. `own_share` reads FedALT's routers.
"""

import functools
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from ..config import RunConfig
from ..core.interventions import INTERVENTIONS
from ..core.state import State
from ..federation.assembly import assemble
from ..federation.evaluation import tested_with
from ..federation.local_clients import start
from ..federation.rounds import federation_of
from ..federation.server import held_for_all
from ..federation.training import train_clients
from ..methods import METHODS
from ..methods.branches import Branches, Kind
from ..methods.lora import LoRA
from ..methods.method import KEPT, TOLD
from ..model import scoring
from ..model.place_inputs import place_inputs
from ..runs.results import Run
from .figures import method_labels
from .tables import summary

# Reconstructed parts of a method over interventions. The schedule is a reconstruction for every method.
RECONSTRUCTIONS = {
    "fedreft": "the mixing weight",
    "fedavg": "retraction of R",
    "fedprox": "the distance is taken over R, W and b",
    "fedadam": "retraction of R",
    "ffa": "the form over LoReFT",
    "fedsa": "the form over LoReFT",
    "fedalt": "the form over LoReFT",
    "feddpa": "the form over LoReFT",
    "flora": "the form over LoReFT",
    "fedsb": "the form over LoReFT",
    "lorar": "retraction of R",
    "lorafair": "the form over LoReFT",
    "tuned": "retraction of R",
    "flood": "retraction of R",
    "fedins": "the form over LoReFT",
    "fedgmm": "the form over LoReFT",
    "fedhl": "the form over LoReFT",
    "fedppa": "the distance is taken over R, W and b",
    "fedvra": "retraction of R; the duals of R, W and b are in the plain space",
    "fedglomo": "retraction of R",
    "flame": "the form over LoReFT",
}
IN_EVERY_FORM = {
    "feddpa": "steps shared evenly by the two phases",
    "fedsb": "the first gradient is the mean of the clients'",
    "lorar": "each step's loss is logged",
    "lorafair": "a Frobenius norm in the place of the cosine",
    "tuned": "steps and schedule of the tuning",
    "flood": "all formulas: only the abstract was read",
    "fedins": "an item is known by its prompt, and keeps its instances for a round",
    "fedgmm": "items are embedded by their prompts; steps shared evenly by the learners",
    "fedhl": "bytes count the largest rank for all",
    "fedppa": "the penalty and its growth, the entropies; bytes count all layers for all",
    "fedvra": "few steps stand for a local minimum",
    "alore": "the federated form, and D added to W",
    "flame": "experts and routers beside a dense model",
    "fedglomo": "no compression; its optimiser is the config's",
}


def reconstruction(config: RunConfig) -> str:
    """The reconstructed parts of a run's method, in a few words; "" where all is as in its paper."""
    forms = RECONSTRUCTIONS.get(config.method, "") if config.intervention != "lora" else ""
    return "; ".join(filter(None, [forms, IN_EVERY_FORM.get(config.method, "")]))


def kept(run: Run) -> str:
    """The tensors that a client trains and never sends."""
    config, method, kind = run.config, METHODS[run.config.method], _kind(run.config)
    names = tuple(name for name, _ in run.spec.shapes if not name.startswith(("head.", KEPT, TOLD)))
    trained = {n for t in (1, 2) for phase in method.phases(names, kind, config, t) for n in phase.trains}
    sent = method.sends(names, kind, config) if method.aggregate else ()
    private = [name for name in names if name in trained - set(sent)]
    if config.intervention == "lora":  # "A" from "q_proj.A", or from "output.dense.A"
        wide = config.alore_blocks  # a width that every kind can have
        own = kind.shapes(1, config.rank, wide, wide)
        private = [next(tensor for tensor in own if name.endswith(f".{tensor}")) for name in private]
    return ", ".join(dict.fromkeys(private)) or "nothing"


def facts(runs: Sequence[Run]) -> pd.DataFrame:
    """For each method: how many numbers a client trains, sends and receives in a round, its score, what it keeps."""
    scores = summary(pd.concat([run.results for run in runs], ignore_index=True), "benchmark").droplevel(0)
    rows = {}
    for run in runs:
        results, config = run.results, run.config
        messages = 4 * config.clients * config.rounds  # 4 bytes a number; one message per client and round
        rows.setdefault(method_labels(results).iloc[0], {
            "trained": run.manifest["trainable_params"],
            "sent up": results["uplink_bytes"].sum() // messages,
            "sent down": results["downlink_bytes"].sum() // messages,
            "stays private": kept(run),
            "reconstruction": reconstruction(config),
        })  # fmt: skip
    table = pd.DataFrame.from_dict(rows, orient="index")
    numbers = scores[["trained", "gain", "sd of gain", "seeds"]].rename(columns={"trained": "accuracy"}).round(1)
    return table[["trained", "sent up", "sent down"]].join(numbers).join(table[["stays private", "reconstruction"]])


def learned(config: RunConfig) -> list[State]:
    """Each client's state after its local training of round 1, before anything is averaged."""
    federation = assemble(config)
    states = {k: federation.model.spec.named(row) for k, row in enumerate(start(federation, config))}
    return [trained.state for trained in train_clients(federation, config, states, 1).values()]


def start_of(config: RunConfig) -> Tensor:
    """The state (P,) that all clients begin with."""
    return start(assemble(config), config)[0]


def average_gap(config: RunConfig) -> float:
    """Distance of the average state's addition from the clients' average addition, after the first local training.

    It is the relative Frobenius distance of B A (d_out, d_in) over all places, with equal weights and without offsets.
    """
    states, kind = learned(config), _kind(config)
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    missed = size = 0.0
    for of_group in _groups(config):
        maps = [kind.as_map(of_group(state)) for state in [mean, *states]]
        of_mean, *each = [m["B"] @ m["A"] for m in maps]
        exact = sum(each) / len(each)
        missed, size = missed + float((of_mean - exact).square().sum()), size + float(exact.square().sum())
    return (missed / size) ** 0.5


def held_out_loss(run: Run) -> float:
    """Mean over the clients of the loss on their held-out items, which are never trained on (nats per token).

    Each client has the state and the shares with which it is tested.
    """
    federation = federation_of(run)
    model, config, newest, losses = federation.model, run.config, held_for_all(run.memory), []
    for k, client in enumerate(federation.clients):
        state = tested_with(federation, config, run.states[k], k, config.rounds, newest)
        share = METHODS[config.method].test_share(model, config, state, client, client.held_out)
        losses.append(scoring.loss(model, state, client.held_out, config.batch_size, share))
    return sum(losses) / len(losses)


@torch.no_grad()
def own_share(run: Run, k: int, linear: str) -> Tensor:
    """The weight (L,) of client k's own branch in its FedALT routers: mean over the tokens of its held-out items.

    One number for each of the L adapted layers, in the linear module of that name. Training starts at 0.5.
    """
    federation = federation_of(run)
    model, state, data = federation.model, run.spec.named(run.states[k]), federation.clients[k].held_out
    routes = model.moved(state)[f"{linear}.route"]
    shares: list[list[Tensor]] = [[] for _ in routes]
    for begin, place, x in place_inputs(model, state, data, run.config.batch_size):
        if begin == f"{linear}.":
            shares[place].append(torch.softmax(x.float() @ routes[place].mT, -1)[:, 1].cpu())
    return torch.stack([torch.cat(each).mean() for each in shares])


def _groups(config: RunConfig) -> list[Callable[[State], State]]:
    """Functions that select each linear module's tensors from a state; for interventions, one for the whole state."""
    adapter = assemble(config).model.adapter
    if config.intervention != "lora":
        return [lambda state: state]
    return [functools.partial(adapter.of_linear, linear=linear) for linear in adapter.linears]


def _kind(config: RunConfig) -> Kind | Branches:
    lora = config.intervention == "lora"
    kind = LoRA(config.lora_alpha / config.rank) if lora else INTERVENTIONS[config.intervention]
    return METHODS[config.method].state_kind(kind, config)
