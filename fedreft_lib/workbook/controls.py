"""Controls of notebook 11 that no config describes: items dealt anew, and clients that differ in one thing.

    redealt, planted    a federation whose clients have other training items
    spotted             whether FLood's score finds those that were planted
    Equal               clients that count the same, however many examples they have
    Exchanged           clients whose reports are exchanged: a method's weights, at clients drawn at random
    ShuffledItems       clients whose item weights are shuffled among their items
    against_controls    each arm against its own control

The rounds are those of all runs. But these runs stay in memory: what is in a run's folder must follow from its config.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from ..config import RunConfig
from ..core.state import State
from ..data.partition import check_disjoint
from ..errors import DataError
from ..federation.assembly import Federation, assemble
from ..federation.client import ClientUpdate, is_told
from ..federation.local_clients import LocalClients, start
from ..federation.rounds import rest_of
from ..methods import METHODS, uncertainty
from ..model.device import one_thread
from ..model.local_training import train_client
from ..runs.results import Run
from ..runs.store import Store
from ..seeds import derive
from . import statistics
from .arms import Arms, scores, with_accuracy

PLANTED = 5  # one item in so many


def run_arms(
    base: RunConfig,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    federation: Callable[[RunConfig], Federation] = assemble,
    clients: type[LocalClients] = LocalClients,
) -> Arms:
    """`arms.run_arms` in memory, with the federation that `federation` makes of a config, and such `clients`."""
    found: Arms = {name: [] for name in arms}
    for seed in seeds:  # arms of one seed share what is remembered of its data
        for name, changes in arms.items():
            config = base.but(**changes, seed=seed)
            found[name].append(run_on(federation(config), config, clients))
    return found


def run_on(federation: Federation, config: RunConfig, clients: type[LocalClients] = LocalClients) -> Run:
    """A run of a config on a federation that need not be the config's own."""
    with one_thread(config.device):
        return rest_of(clients(federation, config), config, Store(config, None), resume=False, progress=False)


def redealt(federation: Federation, hands: Sequence[Sequence[int]]) -> Federation:
    """The federation, whose client k has the training items hands[k]: places in the list of all clients' items.

    Labels, held-out items and tests stay. Raises DataError where an item is dealt twice.
    """
    encoded = type(federation.clients[0].train).join([client.train for client in federation.clients])
    items = [item for client in federation.questions for item in client.train]
    questions = [
        replace(client, train=tuple(items[i] for i in hand))
        for client, hand in zip(federation.questions, hands, strict=True)
    ]
    check_disjoint(questions)
    clients = [
        replace(client, train=encoded.subset(hand)) for client, hand in zip(federation.clients, hands, strict=True)
    ]
    return replace(federation, clients=clients, questions=questions, memo={})  # what is remembered is of other items


def planted(federation: Federation, size: int, foreign: str, *, own_texts: bool = False) -> Federation:
    """All clients with `size` training items: the last one's are foreign, as are the last fifth of each other client's.

    Foreign items are the last client's, as they are labelled there: those of the task `foreign`, or with own_texts
    those of the other tasks, which are the tasks that all others keep. Raises DataError where there are too few.
    """
    places, owned = iter(range(sum(len(client.train) for client in federation.questions))), []
    for client in federation.questions:
        owned.append([(next(places), item.task == foreign) for item in client.train])
    strange = (i for i, of_task in owned[-1] if of_task != own_texts)
    few = size // PLANTED
    hands = [
        [i for i, of_task in own if not of_task][: size - few] + list(islice(strange, few)) for own in owned[:-1]
    ] + [list(islice(strange, size))]
    if any(len(hand) < size for hand in hands):
        raise DataError(
            f"there are too few items of {foreign}, or of other tasks: give more tasks or a larger train_size"
        )
    return redealt(federation, hands)


def spotted(federation: Federation, done: Run, who: Sequence[int], what: str) -> pd.DataFrame:
    """FLood's o of a `planted` federation's items: 100 times the area under its ROC curve, by seed, method, client.

    It is how often a planted item's o is above that of an own one; the method is `what`, with "before training" or
    "after training". done: a run of the federation. who: the clients (from 0).
    """
    config, model, rows = done.config, federation.model, []
    for when, X in (("before training", start(federation, config)), ("after training", done.states)):
        for k in who:
            client, named = federation.clients[k], model.spec.named(X[k])
            o = uncertainty.scores(model, config, named, client.train, config.flood_score)
            is_planted = np.arange(len(o)) >= len(o) - len(o) // PLANTED
            area = 100 * roc_auc_score(is_planted, o)
            rows.append({"seed": config.seed, "client": client.name, "method": f"{what}, {when}", "value": area})
    return pd.DataFrame(rows)


class Equal(LocalClients):
    """Clients that all say that they have one example, so that they count the same."""

    def __init__(self, federation: Federation, config: RunConfig):
        super().__init__(federation, config)
        self.examples = [1] * len(self.examples)


class Exchanged(LocalClients):
    """Clients that report what another one found (`told.*`): the same values, in an order drawn anew each round."""

    def train(self, before, missed, t, on_step):
        updates = super().train(before, missed, t, on_step)
        order = np.random.default_rng(derive(self.config.seed, "exchanged", t)).permutation(list(updates))
        told = {k: {n: value for n, value in each.update.state.items() if is_told(n)} for k, each in updates.items()}
        return {k: _telling(updates[k], told[other]) for k, other in zip(updates, order, strict=True)}


def _telling(one: ClientUpdate, told: State) -> ClientUpdate:
    update = replace(one.update, state={**one.update.state, **told})
    return replace(one, state={**one.state, **told}, update=update)


class ShuffledItems(LocalClients):
    """Clients of a method that weighs items in its one phase of training: the same weights, at other items."""

    def train(self, before, missed, t, on_step):
        method, model, config = METHODS[self.config.method], self.model, self.config
        (phase,) = method.phases(model.layout.adapter_names, model.layout.kind, config, t)
        for k, state in before.items():
            client, steps = self.federation.clients[k], self.steps[k]
            prepared = method.prepare(model, config, state, client, t)
            generator = torch.Generator().manual_seed(derive(config.seed, "shuffled", t, client.name))
            weights = prepared[phase.weights][torch.randperm(len(client.train), generator=generator)]
            seed, (done, of) = derive(config.seed, "batches", t, client.name), config.schedule_part(steps, t)
            trained = train_client(
                model, state, client.train, config, seed=seed, weights=weights, steps=steps, before=done, of=of,
                trains=(*phase.trains, *model.layout.head_names), penalty=method.penalty(config), on_step=on_step,
            )  # fmt: skip
            after = method.after(model, config, state, trained, prepared, client, t)
            self.trained[k] = replace(trained, state={**trained.state, **after})
        return super().train(before, missed, t, on_step)


def against_controls(
    title: str, arms: Arms, controls: Mapping[str, str], clients: Sequence[int] | None = None
) -> pd.DataFrame:
    """Each arm against its own control (arm -> control), as one family; with the columns of `arms.compared`."""
    table = scores(arms, clients).assign(experiment=title)
    pairs = [
        statistics.differences(table[table["method"].isin([arm, control])], control, "experiment")
        for arm, control in controls.items()
    ]
    return with_accuracy(statistics.family(pd.concat(pairs)), table)
